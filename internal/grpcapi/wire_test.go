package grpcapi

import (
	"log/slog"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/subscription"
)

// stored returns an order event as the log has it.
func stored(t testing.TB) *eventlog.OrderRecord {
	t.Helper()
	log, err := eventlog.Open(t.Context(), eventlog.Config{Dir: t.TempDir(), MaxEventBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	order := &ordergatev1.Order{Id: "cs_1", Revision: 7, Livemode: new(true), Metadata: map[string]string{"a": "ä"}, Customer: &ordergatev1.Customer{Name: "Erika Mustermann"}}
	if _, err := log.AppendOrder(t.Context(), &ordergatev1.OrderEvent{Id: "cs_1.7", Order: order, Note: "x"}, 0); err != nil {
		t.Fatal(err)
	}
	record, err := log.DurableOrder(t.Context(), "cs_1")
	if err != nil {
		t.Fatal(err)
	}
	return record
}

// What is passed on as it is stored says the same as what is decoded and encoded.
func TestWire(t *testing.T) {
	record := stored(t)
	event, err := record.Event()
	if err != nil {
		t.Fatal(err)
	}
	delivery := subscription.Delivery{ID: "d", Record: record, Attempt: 3, LeaseEnd: time.Unix(1_800_000_000, 5), Redriven: true, Replaced: []int64{4, 5}, Newest: record}
	watched, watchErr := wireEvent(record, "log")
	if again, _ := wireEvent(record, "log"); watchErr == nil && &again[0] != &watched[0] {
		t.Error("encoded twice")
	}
	delivered, deliveryErr := wireDelivery(delivery)
	for _, tt := range []struct {
		message wire
		err     error
		got     proto.Message
		want    proto.Message
	}{
		{watched, watchErr, &ordergatev1.WatchOrdersResponse{}, &ordergatev1.WatchOrdersResponse{ResumeToken: encodeToken(resumeToken, "log", record.Sequence), Payload: &ordergatev1.WatchOrdersResponse_Event{Event: event}}},
		{delivered, deliveryErr, &ordergatev1.ConsumeResponse{}, &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: &ordergatev1.Delivery{
			DeliveryId: "d", Event: event, Attempt: 3, LeaseExpireTime: timestamppb.New(delivery.LeaseEnd), Redriven: true,
			ReplacedRevisions: []int64{4, 5}, LatestRevision: event.GetOrder().GetRevision(), LatestDirective: event.GetOrder().GetDirective(),
		}}}},
	} {
		if tt.err != nil {
			t.Fatal(tt.err)
		}
		encoded, err := newWireCodec().Marshal(tt.message)
		if err != nil {
			t.Fatal(err)
		}
		if err := newWireCodec().Unmarshal(encoded, tt.got); err != nil || !proto.Equal(tt.got, tt.want) {
			t.Errorf("%v, %v; want %v", tt.got, err, tt.want)
		}
	}
}
