package grpcapi

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/sample"
)

// The first and the last year of a Timestamp are before and after everything, wherever a
// time enters.
func TestExtremeTimes(t *testing.T) {
	first, last := timestamppb.New(time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)), timestamppb.New(time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC))
	at := func(time *timestamppb.Timestamp) *ordergatev1.SubscriptionPosition {
		return &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Time{Time: time}}
	}
	g := newGateway(t, t.TempDir())
	sale := g.receiveStory(t, sample.Completed)[0]
	g.convert(t, sale)

	for name, test := range map[string]struct {
		time    *timestamppb.Timestamp
		backlog int64
	}{"first": {first, 1}, "last": {last, 0}} {
		created, err := g.work.CreateSubscription(deadline(t), &ordergatev1.CreateSubscriptionRequest{Subscription: &ordergatev1.Subscription{Name: name}, Start: at(test.time)})
		if err != nil || created.GetSubscription().GetStats().GetBacklog() != test.backlog {
			t.Errorf("start at the %s time: %v, %v", name, created.GetSubscription().GetStats(), err)
		}
		sought, err := g.work.SeekSubscription(deadline(t), &ordergatev1.SeekSubscriptionRequest{Subscription: name, Position: at(test.time)})
		if err != nil || sought.GetSubscription().GetStats().GetBacklog() != test.backlog {
			t.Errorf("seek to the %s time: %v, %v", name, sought.GetSubscription().GetStats(), err)
		}
		watch := g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_StartTime{StartTime: test.time}})
		if test.backlog > 0 {
			watch.expect(sale.OrderID + ".1")
		}
		watch.expect("caught up")
		if got := g.list(t, 10, &ordergatev1.EventFilter{StartTime: test.time}); len(got) != int(test.backlog) {
			t.Errorf("listed from the %s time: %v", name, got)
		}
		if got := g.list(t, 10, &ordergatev1.EventFilter{EndTime: test.time}); len(got) != 1-int(test.backlog) {
			t.Errorf("listed up to the %s time: %v", name, got)
		}
		if _, done := g.reprocess(t, &ordergatev1.ReprocessEventsRequest{StartTime: test.time}); done.GetExamined() != test.backlog {
			t.Errorf("reprocessed from the %s time: %v", name, done)
		}
	}
	_, err := receiveAll(g.events.Backfill(deadline(t), &ordergatev1.BackfillRequest{Since: last}))
	expectProblem(t, err, problem{Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: "since"})
}
