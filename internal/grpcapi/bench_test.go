package grpcapi

import (
	"log/slog"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/sample"
)

// encodedStream encodes as grpc does, and sends nothing.
type encodedStream struct {
	grpc.ServerStream
	codec encoding.CodecV2
	bytes int
}

func (s *encodedStream) Send(response *ordergatev1.WatchOrdersResponse) error {
	data, err := s.codec.Marshal(response)
	s.bytes = data.Len()
	data.Free()
	return err
}

// BenchmarkWatchedEvent is what an event costs for each of its watchers, from the
// stored bytes to those that are sent.
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
	stream := &encodedStream{codec: encoding.GetCodecV2("proto")}
	w := &watcher{stream: stream, logID: "bench"}
	b.ReportAllocs()
	for b.Loop() {
		event, err := records[0].Event()
		if err != nil {
			b.Fatal(err)
		}
		if err := w.send(&ordergatev1.WatchOrdersResponse{Payload: &ordergatev1.WatchOrdersResponse_Event{Event: event}}); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(stream.bytes))
}
