package grpcapi

import (
	"log/slog"
	"testing"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/sample"
)

// BenchmarkWatchedEvent is what an event costs, from the stored bytes to those that are
// sent: the first of its watchers, and each that follows.
func BenchmarkWatchedEvent(b *testing.B) {
	ctx := b.Context()
	story, err := sample.Story(sample.Completed, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	e, err := orders.Parse(story[0].Body, orders.DefaultSources())
	if err != nil {
		b.Fatal(err)
	}
	change, err := orders.Apply(nil, e, orders.LineItems{State: ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE})
	if err != nil {
		b.Fatal(err)
	}
	log, err := eventlog.Open(ctx, eventlog.Config{Dir: b.TempDir(), MaxEventBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	if _, err := log.AppendOrder(ctx, &ordergatev1.OrderEvent{Id: "cs_1.1", Kind: change.Kind, Order: change.Order, SourceEventId: e.ID}, 0); err != nil {
		b.Fatal(err)
	}
	if err := log.Flush(ctx); err != nil {
		b.Fatal(err)
	}
	records, _, err := log.ReadOrders(ctx, 0, 1)
	if err != nil || len(records) != 1 {
		b.Fatal(records, err)
	}
	codec := newWireCodec()
	for name, encode := range map[string]func(*eventlog.OrderRecord) (wire, error){
		"first": func(r *eventlog.OrderRecord) (wire, error) {
			return encodeEvent(r, encodeToken(resumeToken, "bench", r.Sequence))
		},
		"next": func(r *eventlog.OrderRecord) (wire, error) { return wireEvent(r, "bench") },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				message, err := encode(records[0])
				if err != nil {
					b.Fatal(err)
				}
				data, err := codec.Marshal(message)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(int64(data.Len()))
			}
		})
	}
}
