//go:build unix

package peers_test

import (
	"fmt"
	"testing"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/natscluster"
)

// BenchmarkConsume is an event that is delivered and acknowledged, at the gateway that
// has the subscription and at another one, which passes it on.
func BenchmarkConsume(b *testing.B) {
	url := natscluster.Single(b)
	owner, other := newGateway(b, url), newGateway(b, url)
	owner.create()
	for name, g := range map[string]*gateway{"own": owner, "passed-on": other} {
		b.Run(name, func(b *testing.B) {
			for i := range b.N {
				id := fmt.Sprintf("cs_%s_%d_%d", name, b.N, i)
				event := &ordergatev1.OrderEvent{Id: id + ".1", Order: &ordergatev1.Order{Id: id, Revision: 1, Metadata: map[string]string{"note": text}}}
				if _, err := owner.log.AppendOrder(b.Context(), event, 0); err != nil {
					b.Fatal(err)
				}
			}
			if err := owner.log.Flush(b.Context()); err != nil {
				b.Fatal(err)
			}
			stream, err := g.work.Consume(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			if err := stream.Send(&ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{Subscription: "shipping", MaxOutstandingEvents: 1000}}); err != nil {
				b.Fatal(err)
			}
			for acked := 0; acked < b.N; {
				response, err := stream.Recv()
				if err != nil {
					b.Fatal(err)
				}
				acked += len(response.GetResults().GetResults())
				if delivery := response.GetDelivery(); delivery != nil {
					if err := stream.Send(&ordergatev1.ConsumeRequest{Acks: []string{delivery.GetDeliveryId()}}); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.StopTimer()
			stream.CloseSend()
		})
	}
}

// text makes an order as large as most are.
var text = string(make([]byte, 3000))
