package subscription

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

// bench is a queue and its log, on virtual time.
type bench struct {
	t   *testing.T
	q   *queue
	log []*eventlog.OrderRecord
	now time.Time
}

// newBench has every event delivered unless the settings say otherwise.
func newBench(t *testing.T, settings *ordergatev1.Subscription) *bench {
	if settings.Delivery == ordergatev1.DeliveryMode_DELIVERY_MODE_UNSPECIFIED {
		settings.Delivery = ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT
	}
	b := &bench{t: t, q: newQueue("uid", withDefaults(settings), 1), now: time.Unix(1_800_000_000, 0)}
	b.q.revision = sequenceOf
	return b
}

// sequenceOf is the revision of an event in these tests.
func sequenceOf(r *eventlog.OrderRecord) int64 { return int64(r.Sequence) }

// store adds an event of each order to the log.
func (b *bench) store(orders ...string) {
	for _, order := range orders {
		b.log = append(b.log, &eventlog.OrderRecord{Sequence: uint64(len(b.log) + 1), Time: b.now, OrderID: order})
	}
}

func (b *bench) attach(id string, window int) *Worker {
	w := &Worker{signal: make(chan struct{}, 1), ackDeadline: 30 * time.Second}
	b.q.attach(w, id, window, 1<<20)
	return w
}

// work reads and assigns until nothing more happens.
func (b *bench) work() {
	for {
		b.q.tick(b.now)
		lanes, want := b.q.wanted(b.q.position < uint64(len(b.log)))
		for _, read := range lanes {
			b.q.apply(read, lookUpIn(b.log, read, b.q.position, selectsAll), b.now)
		}
		position := b.q.position
		for _, r := range b.log[position:min(int(position)+max(want, 0), len(b.log))] {
			b.q.arrive(r, true, b.now)
		}
		b.q.dispatch(b.now)
		if len(lanes) == 0 && position == b.q.position {
			return
		}
	}
}

// selection is a filter: whether it selects an event, and whether it selects its order.
type selection func(r *eventlog.OrderRecord) (event, order bool)

func selectsAll(*eventlog.OrderRecord) (event, order bool) { return true, true }

// lookUpIn is Subscription.lookUp and lookUpNewest for a list of events. Removed events
// are nil.
func lookUpIn(log []*eventlog.OrderRecord, read laneRead, upTo uint64, selects selection) found {
	f := found{upTo: upTo, checked: uint64(len(log))}
	for _, r := range log[read.sequence-1:] {
		if r == nil || r.OrderID != read.lane.order {
			continue
		}
		wanted, order := selects(r)
		switch {
		case read.latest:
			if f.record != nil && f.last == f.record.Sequence {
				f.replaced = append(f.replaced, sequenceOf(f.record))
			}
			f.record, f.excluded = r, !order
			if wanted || r.Sequence == read.sequence {
				f.last, f.stored = r.Sequence, r.Time
			}
		case r.Sequence == read.sequence:
			f.record, f.stored, f.checked = r, r.Time, r.Sequence
		case read.behind && wanted && f.next == 0 && r.Sequence <= upTo:
			f.next = r.Sequence
		}
	}
	if read.latest && f.last == 0 {
		f.record = nil
	}
	return f
}

// newestIn returns the newest event of an order.
func newestIn(log []*eventlog.OrderRecord, order string) (newest *eventlog.OrderRecord) {
	for _, r := range log {
		if r != nil && r.OrderID == order {
			newest = r
		}
	}
	return newest
}

// take returns the deliveries of a worker now. In LATEST it recalls the outdated ones.
func (b *bench) take(w *Worker) (current []Delivery) {
	for recalled := true; recalled; {
		recalled = false
		b.work()
		for _, d := range b.q.take(w, b.now) {
			if b.q.latest() && newestIn(b.log, d.Record.OrderID).Sequence > d.checked {
				b.q.recall(d.ID, b.now)
				recalled = true
			} else {
				current = append(current, d)
			}
		}
	}
	return current
}

// given is take, as text: each event as its order and its sequence.
func (b *bench) given(w *Worker) string {
	var events []string
	for _, d := range b.take(w) {
		text := fmt.Sprintf("%s%d", d.Record.OrderID, d.Record.Sequence)
		if d.Attempt > 1 {
			text += fmt.Sprintf("x%d", d.Attempt)
		}
		if d.Redriven {
			text += "!"
		}
		events = append(events, text)
	}
	return strings.Join(events, " ")
}

func (b *bench) pass(d time.Duration) { b.now = b.now.Add(d) }

func (b *bench) ack(d Delivery) string { return short(b.q.ack(d.ID, b.now)) }

func (b *bench) nack(d Delivery, action ordergatev1.NackAction, delay time.Duration) string {
	nack := &ordergatev1.Nack{DeliveryId: d.ID, Action: action}
	if delay >= 0 {
		nack.Delay = durationpb.New(delay)
	}
	return short(b.q.nack(nack, b.now))
}

func short(code ordergatev1.DeliveryResultCode) string {
	return strings.TrimPrefix(code.String(), "DELIVERY_RESULT_CODE_")
}

func (b *bench) want(what, got, want string) {
	b.t.Helper()
	if got != want {
		b.t.Errorf("%s: %q, want %q", what, got, want)
	}
}

const (
	retry  = ordergatev1.NackAction_NACK_ACTION_RETRY
	skip   = ordergatev1.NackAction_NACK_ACTION_SKIP
	reject = ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER
)

func TestOneEventOfAnOrderAtATime(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	one, two := b.attach("one", 10), b.attach("two", 10)
	b.store("a", "a", "a")
	first := b.take(one)
	b.want("the first", first[0].Record.OrderID, "a")
	b.want("the second meanwhile", b.given(two), "")
	b.want("ack", b.ack(first[0]), "OK")
	b.want("the second", b.given(one)+b.given(two), "a2")
}

func TestWorkersShareEvenly(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	workers := []*Worker{b.attach("a", 100), b.attach("b", 100), b.attach("c", 100)}
	for i := range 90 {
		b.store(fmt.Sprintf("order%d", i))
	}
	var held []Delivery
	for _, w := range workers {
		got := b.take(w)
		if len(got) != 30 {
			t.Errorf("a worker has %d of 90 events", len(got))
		}
		held = append(held, got...)
	}
	// Those who are done get the next ones.
	for _, d := range held[:30] {
		b.ack(d)
	}
	for i := range 30 {
		b.store(fmt.Sprintf("later%d", i))
	}
	if n := len(b.take(workers[0])); n != 30 {
		t.Errorf("the worker that is done has %d of 30 events", n)
	}
}

func TestWindowIsCountedPerClient(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	old, renewed, other := b.attach("a", 3), b.attach("a", 3), b.attach("b", 2)
	for i := range 10 {
		b.store(fmt.Sprintf("order%d", i))
	}
	b.work()
	if n := len(b.take(old)) + len(b.take(renewed)); n != 3 {
		t.Errorf("two streams of a client have %d events, their window is 3", n)
	}
	if n := len(b.take(other)); n != 2 {
		t.Errorf("another client has %d events, its window is 2", n)
	}
	if n := b.q.demand(); n > 0 {
		t.Errorf("with full windows, %d more events are to be read", n)
	}
	if n := len(b.q.lanes); n > 5+minReadBatch {
		t.Errorf("%d orders are in memory", n)
	}
}

func TestWindowIsKeptWhenMoreIsRead(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("a", 3)
	for i := range 10 {
		b.store(fmt.Sprintf("order%d", i))
		b.q.arrive(b.log[i], true, b.now)
	}
	b.q.dispatch(b.now)
	if n := len(b.q.take(w, b.now)); n != 3 {
		t.Errorf("%d events are out, the window is 3", n)
	}
}

func TestWindowOfBytes(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("a", 100)
	w.client.maxBytes = 10
	for i := range 3 {
		b.store(fmt.Sprintf("order%d", i))
		b.q.arrive(b.log[i], true, b.now)
	}
	for _, l := range b.q.lanes {
		l.size = 8
	}
	b.q.dispatch(b.now)
	if n := len(b.q.take(w, b.now)); n != 1 {
		t.Errorf("%d events of 8 bytes are out, the window is 10 bytes", n)
	}
}

func TestLeaseEndsAtItsDeadline(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	slow, quick := b.attach("slow", 1), b.attach("quick", 10)
	b.q.workers = b.q.workers[:1]
	b.store("a", "b")
	d := b.take(slow)[0]
	b.q.workers = append(b.q.workers, quick)
	b.want("the other order", b.given(quick), "b2")
	b.pass(29 * time.Second)
	b.want("before the deadline", b.given(quick), "")
	code, end := b.q.extend(d.ID, time.Minute, b.now)
	if code != ok || !end.Equal(b.now.Add(time.Minute)) {
		t.Errorf("extension: %v to %v", code, end)
	}
	b.pass(59 * time.Second)
	slow.stopped = true
	b.want("before the extended deadline", b.given(quick), "b2x2")
	b.pass(time.Second)
	b.want("at the extended deadline", b.given(quick), "a1x2")
	b.want("the late ack", b.ack(d), "STALE_ATTEMPT")
}

func TestLateAcknowledgementCountsUntilTheEventIsOutAgain(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("w", 1)
	b.store("a", "a")
	d := b.take(w)[0]
	w.stopped = true
	b.pass(time.Minute)
	b.work()
	code, _ := b.q.extend(d.ID, time.Minute, b.now)
	b.want("an extension when the lease is over", short(code), "EXPIRED")
	b.want("a nack when the lease is over", b.nack(d, retry, 0), "EXPIRED")
	b.want("an ack when the lease is over", b.ack(d), "OK")
	b.want("the same again", b.ack(d), "OK")
	w.stopped = false
	b.want("the next event", b.given(w), "a2")
}

func TestOnlyTheNewestDeliveryCanBeSettled(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("w", 1)
	b.store("a")
	first := b.take(w)[0]
	before, _ := decodeDeliveryID(first.ID, "uid")
	before.life = 7 // of another gateway
	b.nack(first, retry, 0)
	second := b.take(w)[0]
	b.want("an ack of the first", b.ack(first), "STALE_ATTEMPT")
	b.want("an ack from before a restart", short(b.q.ack(before.encode("uid"), b.now)), "STALE_ATTEMPT")
	w.stopped = true
	b.q.giveBack(b.q.lanes["a"], "", b.now)
	b.want("an ack of the first while none is out", b.ack(first), "STALE_ATTEMPT")
	b.want("an ack of the second", b.ack(second), "OK")
}

func TestAttemptsOutliveARestart(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("w", 1)
	b.store("a")
	for range 3 {
		b.nack(b.take(w)[0], retry, 0)
	}
	p, err := decodePlace(b.storeAll().place)
	if err != nil || len(p.heads) != 1 {
		t.Fatal(p, err)
	}
	b.q = newQueue("uid", b.q.settings, 2)
	b.q.position = p.position
	b.q.restoreHead("a", p.heads[0], 0, b.now)
	b.q.restored(b.now)
	b.want("after the restart", b.given(b.attach("w", 1)), "a1x4")
}

func TestLeasesEndWithTheirStream(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	dies, pulls, lives := b.attach("dies", 10), b.attach("pulls", 10), b.attach("lives", 10)
	pulls.limit, pulls.limitBytes = 1, 1
	lives.stopped = true
	b.store("a", "b")
	b.work()
	d := append(b.take(dies), b.take(pulls)...)
	b.q.detach(dies, b.now)
	b.q.detach(pulls, b.now)
	lives.stopped = false
	b.want("after the streams ended", b.given(lives), d[0].Record.OrderID+fmt.Sprint(d[0].Record.Sequence)+"x2")
	b.want("an ack of what was pulled", b.ack(d[1]), "OK")
	if len(b.q.clients) != 1 {
		t.Errorf("%d clients are remembered", len(b.q.clients))
	}
}

func TestUnsentEventsAreNoAttempt(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{MaxAttempts: 1})
	stuck, other := b.attach("stuck", 10), b.attach("other", 10)
	other.stopped = true
	b.store("a")
	b.work()
	b.pass(time.Minute) // the stream does not take it
	other.stopped = false
	stuck.stopped = true
	b.want("at the first delivery", b.given(other), "a1")
}

func TestRetryHoldsBackItsOrderOnly(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{MinBackoff: durationpb.New(time.Second), MaxBackoff: durationpb.New(5 * time.Second)})
	w := b.attach("w", 10)
	b.store("a", "b", "a", "b")
	for attempt, backoff := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 5 * time.Second} {
		d := b.take(w)[0]
		b.want("the event", fmt.Sprint(d.Record.OrderID, d.Attempt), fmt.Sprint("a", attempt+1))
		b.want("nack", b.nack(d, retry, -1), "OK")
		b.want("an ack after the nack", b.ack(d), "EXPIRED")
		b.pass(backoff - time.Millisecond)
		b.want("before the backoff is over", b.given(w), "")
		b.pass(time.Millisecond)
		if attempt == 0 { // the other order went on meanwhile
			continue
		}
	}
	if got := b.given(w); got != "a1x5" {
		t.Errorf("at last %q", got)
	}
}

func TestOthersGoOnWhileManyOrdersAreHeldBack(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("w", 100)
	const held = 5000
	for i := range held {
		b.store(fmt.Sprintf("bad%d", i))
	}
	for nacked := 0; nacked < held; {
		for _, d := range b.take(w) {
			b.want("nack", b.nack(d, retry, time.Hour), "OK")
			nacked++
		}
		b.storeAll()
	}
	b.store("good", "bad1", "good", "bad1")
	d := b.take(w)
	if len(d) != 1 || d[0].Record.OrderID != "good" {
		t.Fatalf("%d deliveries", len(d))
	}
	b.ack(d[0])
	if n := len(b.q.loose); n != 1 {
		t.Errorf("a store looks at %d orders, 1 is not held back", n)
	}
	if c := b.storeAll(); len(c.records) != 0 || len(c.place) > 20 {
		t.Errorf("an ack stores %d records and a place of %d bytes", len(c.records), len(c.place))
	}
	b.want("the next", b.given(w), fmt.Sprintf("good%d", held+3))
	b.pass(time.Hour)
	if got := b.given(w); !strings.HasPrefix(got, "bad0") {
		t.Errorf("after the delay %.40q", got)
	}
}

// Orders that come back from their delays, more than there is room for, leave
// room to those that are new, and the other way round.
func TestRetriesLeaveRoom(t *testing.T) {
	for _, window := range []int{1, 10, 11} {
		b := newBench(t, &ordergatev1.Subscription{MaxAttempts: 1000})
		w := b.attach("w", window)
		for i := range 100 {
			b.store(fmt.Sprintf("bad%d", i))
		}
		for nacked := 0; nacked < 100; {
			for _, d := range b.take(w) {
				b.nack(d, retry, time.Second)
				nacked++
			}
		}
		for i := range 1000 {
			b.store(fmt.Sprintf("good%d", i))
		}
		b.pass(time.Second)
		good, bad := 0, 0
		for range 40 {
			for _, d := range b.take(w) {
				if strings.HasPrefix(d.Record.OrderID, "good") {
					good++
					b.ack(d)
				} else {
					bad++
					b.nack(d, retry, time.Second)
				}
			}
			b.pass(time.Second) // all of them come back
		}
		if all := good + bad; all < 40*window || good < all/3 || bad < all/4 {
			t.Errorf("window %d: %d events of new orders, %d of retried ones", window, good, bad)
		}
	}
}

func TestDeadLetters(t *testing.T) {
	for policy, behind := range map[ordergatev1.DeadLetterPolicy]string{
		ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_BLOCK: "", ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_SKIP: "a2"} {
		b := newBench(t, &ordergatev1.Subscription{DeadLetterPolicy: policy, MaxAttempts: 2})
		w := b.attach("w", 10)
		b.store("a", "a", "b")
		first := b.take(w)
		b.want("reject", b.nack(first[0], reject, -1), "OK")
		b.want("behind a dead letter", b.given(w), behind)
		b.want("ack of a dead letter", b.ack(first[0]), "EXPIRED")
		// The other order uses its attempts up.
		b.want("nack", b.nack(first[1], retry, 0), "OK")
		again := b.take(w)[0]
		b.want("nack", b.nack(again, retry, 0), "OK")
		b.want("after the last attempt", b.given(w), "")

		letters := b.q.lanes["a"].letters[0]
		if letters.reason != ordergatev1.DeadLetterReason_DEAD_LETTER_REASON_SUBSCRIBER_REJECTED {
			t.Errorf("reason %v", letters.reason)
		}
		letters = b.q.lanes["b"].letters[0]
		if letters.reason != ordergatev1.DeadLetterReason_DEAD_LETTER_REASON_ATTEMPTS_EXHAUSTED || letters.attempts != 2 {
			t.Errorf("reason %v after %d attempts", letters.reason, letters.attempts)
		}
		if n := b.q.discard(b.q.lanes["b"], []uint64{3}, b.now); n != 1 || b.q.lanes["b"] != nil {
			t.Errorf("discarded %d", n)
		}
	}
}

func TestEventThatCannotBeSentIsADeadLetter(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("w", 10)
	b.store("a", "b", "a")
	d := b.take(w)
	b.q.fault(d[0].ID, "it is damaged", b.now)
	letter := b.q.lanes["a"].letters[0]
	if letter.reason != ordergatev1.DeadLetterReason_DEAD_LETTER_REASON_GATEWAY_FAULT || letter.detail != "it is damaged" {
		t.Errorf("dead letter %+v", letter)
	}
	b.want("behind it", b.given(w), "")
	b.want("another order", b.ack(d[1]), "OK")
}

func TestRedriveNeverOvertakesItsOrder(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{DeadLetterPolicy: ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_SKIP})
	w := b.attach("w", 10)
	b.store("a", "a", "a")
	b.nack(b.take(w)[0], reject, -1)
	second := b.take(w)[0]
	b.q.redrive(b.q.lanes["a"], []uint64{1}, b.now)
	b.want("while another event of the order is out", b.given(w), "")
	b.ack(second)
	redriven := b.take(w)
	b.want("then", fmt.Sprint(redriven[0].Record.Sequence, redriven[0].Redriven, redriven[0].Attempt), "1 true 1")
	b.want("meanwhile", b.given(w), "")
	b.ack(redriven[0])
	b.want("then", b.given(w), "a3")
	if n := len(b.q.lanes["a"].letters); n != 0 {
		t.Errorf("%d dead letters are left", n)
	}
}

func TestBlockedOrderGoesOnAfterItsDeadLetter(t *testing.T) {
	for _, how := range []string{"redrive", "discard"} {
		b := newBench(t, &ordergatev1.Subscription{})
		w := b.attach("w", 10)
		b.store("a", "a", "a")
		b.nack(b.take(w)[0], reject, -1)
		b.want("blocked", b.given(w), "")
		if how == "discard" {
			b.q.discard(b.q.lanes["a"], []uint64{1}, b.now)
		} else {
			b.q.redrive(b.q.lanes["a"], []uint64{1}, b.now)
			d := b.take(w)[0]
			b.want("redriven", fmt.Sprint(d.Record.Sequence, d.Redriven), "1 true")
			b.ack(d)
		}
		d := b.take(w)[0]
		b.want("after "+how, fmt.Sprint(d.Record.Sequence, d.Redriven), "2 false")
		b.ack(d)
		b.want("then", b.given(w), "a3")
	}
}

func TestSkip(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("w", 10)
	b.store("a", "a")
	d := b.take(w)[0]
	b.want("skip", b.nack(d, skip, -1), "OK")
	b.want("the next", b.given(w), "a2")
	b.want("an ack of it", b.ack(d), "OK")
}

func TestSeekVoidsWhatIsOut(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("w", 10)
	b.store("a", "b", "c", "c")
	out := b.take(w)
	b.ack(out[0])
	b.nack(out[1], reject, -1)
	b.q.seek(0, b.now)
	b.want("an ack of what was out", b.ack(out[2]), "UNKNOWN")
	if w.client.events != 0 {
		t.Errorf("the client still has %d events", w.client.events)
	}
	b.want("again", b.given(w), "a1 b2 c3")
	if l := b.q.lanes["b"]; len(l.letters) != 1 || l.letters[0].blocks {
		t.Errorf("the dead letter is %+v", l.letters)
	}
	b.q.seek(4, b.now)
	b.want("at the end", b.given(w), "")
}

func TestStoppedWorkerSettlesWhatItHas(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w, other := b.attach("w", 10), b.attach("other", 10)
	other.stopped = true
	b.store("a", "a")
	d := b.take(w)[0]
	b.q.stop(w, b.now)
	b.want("ack", b.ack(d), "OK")
	b.want("after the stop", b.given(w), "")
	if len(w.leased) != 0 {
		t.Error("the worker is not idle")
	}
	other.stopped = false
	b.want("the other", b.given(other), "a2")
}

func TestStuckWorkerGetsNoMore(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	b.attach("stuck", 10_000)
	for i := range 1000 {
		b.store(fmt.Sprintf("order%d", i))
	}
	b.work()
	if n := len(b.q.workers[0].unsent); n != maxUnsent {
		t.Errorf("%d deliveries wait for a stream that takes none", n)
	}
}

func TestDeliveryIDs(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("w", 10)
	b.store("a")
	d := b.take(w)[0]
	foreign, _ := decodeDeliveryID(d.ID, "uid")
	for what, id := range map[string]string{
		"empty": "", "garbage": "%%%", "cut": d.ID[:len(d.ID)-2], "of another subscription": foreign.encode("other"),
		"of another epoch": deliveryID{epoch: 9, sequence: 1, life: 1, lease: 1, order: "a"}.encode("uid"),
		"ahead":            deliveryID{epoch: 1, sequence: 99, life: 1, lease: 1, order: "a"}.encode("uid"),
	} {
		b.want(what, short(b.q.ack(id, b.now)), "UNKNOWN")
	}
	b.want("the real one", b.ack(d), "OK")
}

func FuzzDecodeDeliveryID(f *testing.F) {
	f.Add(deliveryID{1, 2, 3, 4, 5, "cs_1"}.encode("uid"))
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		if d, ok := decodeDeliveryID(text, "uid"); ok && d.encode("uid") != text {
			t.Errorf("%q is another spelling of %q", text, d.encode("uid"))
		}
	})
}

func FuzzDecodePlace(f *testing.F) {
	f.Add(place{3, 99, []head{{7, 1}, {9, 0}}}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePlace(b)
		if err != nil {
			return
		}
		again, err := decodePlace(p.encode())
		if err != nil || again.epoch != p.epoch || again.position != p.position || len(again.heads) != len(p.heads) || !slices.Equal(again.heads, p.heads) {
			t.Errorf("%v became %v, %v", p, again, err)
		}
	})
}
