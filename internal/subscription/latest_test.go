package subscription

import (
	"fmt"
	"slices"
	"testing"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

const (
	latest     = ordergatev1.DeliveryMode_DELIVERY_MODE_LATEST
	everyEvent = ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT
)

func newLatestBench(t *testing.T) *bench {
	return newBench(t, &ordergatev1.Subscription{Delivery: latest})
}

// replacing is given, with the replaced revisions of each delivery.
func replacing(deliveries []Delivery) (all []string) {
	for _, d := range deliveries {
		all = append(all, fmt.Sprintf("%s%d%v", d.Record.OrderID, d.Record.Sequence, d.Replaced))
	}
	return all
}

func (b *bench) wantReplacing(what string, w *Worker, want ...string) []Delivery {
	b.t.Helper()
	deliveries := b.take(w)
	if got := replacing(deliveries); !slices.Equal(got, want) {
		b.t.Errorf("%s: %v, want %v", what, got, want)
	}
	return deliveries
}

func TestLatestReplacesABacklog(t *testing.T) {
	b := newLatestBench(t)
	b.store("a", "b", "a", "a")
	w := b.attach("w", 10)
	out := b.wantReplacing("a backlog", w, "a4[1 3]", "b2[]")
	b.want("ack", b.ack(out[0]), "OK")
	b.want("the same again", b.ack(out[0]), "OK")
	b.store("a")
	b.wantReplacing("a later event", w, "a5[]")
}

// The newest revision is ahead of the position, because the window is small.
func TestLatestLooksAheadOfThePosition(t *testing.T) {
	b := newLatestBench(t)
	b.store("a", "b", "c", "d", "a")
	w := b.attach("w", 1)
	for _, want := range []string{"b2[]", "c3[]", "d4[]", "a5[1]"} {
		b.want("ack", b.ack(b.wantReplacing("the next", w, want)[0]), "OK")
	}
}

func TestLatestBoundsDeferredOrders(t *testing.T) {
	b := newLatestBench(t)
	b.q.maxDeferred = 0
	b.store("a", "b", "c", "a", "b")
	w := b.attach("w", 1)
	for _, want := range []string{"c3[]", "a4[]", "b5[]"} { // the first events are settled without being listed
		b.want("ack", b.ack(b.wantReplacing("the next", w, want)[0]), "OK")
	}
}

func TestLatestAfterAFailedDelivery(t *testing.T) {
	for name, fail := range map[string]func(b *bench, d Delivery){
		"nack":    func(b *bench, d Delivery) { b.nack(d, retry, 0) },
		"expiry":  func(b *bench, _ Delivery) { b.pass(time.Hour) },
		"give up": func(b *bench, d Delivery) { b.q.extend(d.ID, 0, b.now) },
		"redrive": func(b *bench, d Delivery) {
			b.nack(d, reject, 0)
			b.work()
			b.q.redrive(b.q.lanes["a"], []uint64{1}, b.now)
		},
		"seek": func(b *bench, _ Delivery) { b.q.seek(0, b.now) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newLatestBench(t)
			w := b.attach("w", 10)
			b.store("a", "a")
			out := b.wantReplacing("the first", w, "a2[1]")
			b.store("a")
			fail(b, out[0])
			again := b.wantReplacing("after a failure", w, "a3[1 2]")
			if got := b.ack(out[0]); got == "OK" {
				t.Errorf("the ack of an outdated delivery is answered %s", got)
			}
			b.want("ack", b.ack(again[0]), "OK")
			b.wantReplacing("when all is done", w)
		})
	}
}

// A late acknowledgement settles the events that its worker has seen, and nothing newer.
func TestLatestLateAcknowledgement(t *testing.T) {
	b := newLatestBench(t)
	w := b.attach("w", 10)
	b.store("a", "a")
	out := b.wantReplacing("the first", w, "a2[1]")
	w.stopped = true
	b.pass(time.Hour)
	b.work()
	b.want("an ack when the lease is over", b.ack(out[0]), "OK")
	w.stopped = false
	b.store("a", "a")
	out = b.wantReplacing("later events", w, "a4[3]")
	w.stopped = true
	b.pass(time.Hour)
	b.store("a")
	b.work()
	b.want("an ack when there is a newer event", b.ack(out[0]), "OK")
	w.stopped = false
	b.wantReplacing("the newer event", w, "a5[]")
}

// After a restart, an ack of several events is not taken for one of fewer.
func TestLatestAckAfterRestart(t *testing.T) {
	b := newLatestBench(t)
	w := b.attach("w", 10)
	b.store("a", "a", "a")
	out := b.wantReplacing("the first", w, "a3[1 2]")
	old := b.q
	b.q = newQueue("uid", old.settings, 2)
	b.q.position = 2
	b.q.restoreHead("a", head{sequence: 1}, 2, b.now)
	b.q.restored(b.now)
	b.want("before the events are read", b.ack(out[0]), "RETRYABLE")
	w = b.attach("w", 10)
	b.work()
	b.want("when they are read", b.ack(out[0]), "OK")
	b.wantReplacing("the rest", w)

	b.q = newQueue("uid", old.settings, 3)
	b.q.position = 2 // the events up to there were settled, and the others are still to come
	b.want("when some are still to come", b.ack(out[0]), "UNKNOWN")
}

// A delivery that was not sent is no attempt.
func TestRecallIsNoAttempt(t *testing.T) {
	b := newLatestBench(t)
	b.store("a")
	pull := &Worker{signal: make(chan struct{}, 1), ackDeadline: 30 * time.Second, limit: 1, limitBytes: 1 << 20}
	b.q.attach(pull, "", 10, 1<<20)
	b.q.recall(b.take(pull)[0].ID, b.now)
	if out := b.take(pull); len(out) != 1 || out[0].Attempt != 1 {
		t.Errorf("after the recall: %+v", out)
	}
}

func TestLatestLeavesOutWhatTheFilterExcludes(t *testing.T) {
	b := newLatestBench(t)
	b.store("a", "a", "b")
	b.q.arrive(b.log[0], true, b.now)
	w := b.attach("w", 10)
	b.q.dispatch(b.now)
	b.q.recall(b.q.take(w, b.now)[0].ID, b.now)
	lanes, _ := b.q.wanted(true)
	f := lookUpIn(b.log, lanes[0], b.q.position, func(r *eventlog.OrderRecord) (event, order bool) { return r.Sequence == 1, r.Sequence == 1 })
	if !b.q.apply(lanes[0], f, b.now) || len(b.q.lanes) > 0 || !b.q.changed {
		t.Errorf("an order that the filter excludes now is left: %d", len(b.q.lanes))
	}
}

func TestModeChanges(t *testing.T) {
	b := newLatestBench(t)
	w := b.attach("w", 10)
	b.store("a", "a", "a")
	b.wantReplacing("newest", w, "a3[1 2]")
	b.q.settings.Delivery = everyEvent
	b.pass(time.Hour)
	for _, want := range []string{"a1[]", "a2[]", "a3[]"} {
		b.want("ack", b.ack(b.wantReplacing("every event", w, want)[0]), "OK")
	}
	b.store("b", "b", "b")
	b.wantReplacing("every event", w, "b4[]")
	b.q.settings.Delivery = latest
	b.pass(time.Hour)
	b.want("ack", b.ack(b.wantReplacing("newest", w, "b6[4 5]")[0]), "OK")
	b.wantReplacing("the rest", w)
}

// Attempts count for a revision, not for an order.
func TestLatestCountsAttemptsOfARevision(t *testing.T) {
	b := newLatestBench(t)
	b.q.settings.MaxAttempts = 3
	w := b.attach("w", 10)
	b.store("a")
	b.nack(b.take(w)[0], retry, 0)
	b.want("the same revision", b.given(w), "a1x2")
	b.store("a")
	b.pass(time.Hour)
	b.want("a newer revision", b.given(w), "a2")
}
