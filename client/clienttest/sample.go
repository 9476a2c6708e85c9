package clienttest

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/sample"
)

// Scenarios returns the names for [SampleEvents], such as paid and refunded. They are
// those of `ordergate trigger`.
func Scenarios() (names []string) {
	for _, summary := range sample.Scenarios() {
		names = append(names, summary.Name)
	}
	return names
}

// SampleEvents returns the order events of a scenario, as a gateway makes them from
// Stripe's events. Each call is about a new order of an invented buyer. The orders are of
// Stripe's test mode; a test of a handler that refuses those sets Order.Livemode.
func SampleEvents(scenario string) ([]*ordergatev1.OrderEvent, error) {
	now := time.Now()
	story, err := sample.Scenario(scenario, now)
	if err != nil {
		return nil, err
	}
	sources := orders.DefaultSources()
	sources.PaymentIntents = true // for the scenario elements
	current := map[string]*ordergatev1.Order{}
	var events []*ordergatev1.OrderEvent
	for _, step := range story {
		parsed, err := orders.Parse(step.Body, sources)
		if err != nil {
			return nil, fmt.Errorf("sample %s: parse %s: %w", scenario, step.Type, err)
		}
		change, err := orders.Apply(current[step.OrderID], parsed, sampleItems())
		if err != nil {
			return nil, fmt.Errorf("sample %s: apply %s: %w", scenario, step.Type, err)
		}
		if change == nil {
			continue // such as the invoice of a session
		}
		current[step.OrderID] = change.Order
		events = append(events, &ordergatev1.OrderEvent{
			Id: fmt.Sprintf("%s.%d", change.Order.GetId(), change.Order.GetRevision()), Kind: change.Kind, Order: change.Order,
			Sequence: int64(len(events) + 1), SourceEventId: step.ID, CreateTime: timestamppb.New(now), PreviousDirective: change.PreviousDirective,
		})
	}
	return events, nil
}

// sampleItems returns the line items that a gateway with an API key reads from Stripe.
func sampleItems() orders.LineItems {
	return orders.LineItems{
		State: ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE,
		Items: []*ordergatev1.LineItem{{Id: "li_1", Description: "Tea", Quantity: proto.Int64(2)}},
	}
}
