package clienttest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/client/clienttest"
)

// A test of a handler whose printer fails at the first attempt. In a test, the context is
// t.Context().
func Example() {
	gateway := clienttest.New()
	defer gateway.Close()
	events, err := clienttest.SampleEvents("refunded")
	if err != nil {
		log.Fatal(err)
	}
	gateway.Deliver(events...)

	ship := func(_ context.Context, delivery *client.Delivery) error {
		switch {
		case delivery.Event.GetOrder().GetDirective() != ordergatev1.Directive_DIRECTIVE_SHIP:
			return client.Skip(errors.New("nothing to ship"))
		case delivery.Attempt == 1:
			panic("the printer has no paper")
		}
		return nil
	}
	if err := gateway.Run(context.Background(), ship, client.ConsumeOptions{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		log.Fatal(err)
	}
	for _, s := range gateway.Settlements() {
		fmt.Println("revision", s.Event.GetOrder().GetRevision(), "attempt", s.Attempt, s.Outcome)
	}
	// Output:
	// revision 1 attempt 1 retried
	// revision 1 attempt 2 acknowledged
	// revision 2 attempt 1 skipped
}
