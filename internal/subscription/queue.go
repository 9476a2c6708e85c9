package subscription

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

const (
	// maxLanes is how many orders a subscription may have held back before it
	// looks at no further events.
	maxLanes = 100_000
	// maxDeferred is how many orders may wait for the position to reach a newer event.
	// Beyond it, that event alone is delivered, and replaces nothing.
	maxDeferred = 50_000
	// maxReplaced is how many replaced revisions a delivery lists.
	maxReplaced = 1000
	// maxUnsent is how many deliveries wait for a worker's stream at most: one
	// that does not read gets no more.
	maxUnsent = 64
)

// The results of settling a delivery.
const (
	ok        = ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK
	expired   = ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_EXPIRED
	stale     = ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_STALE_ATTEMPT
	unknown   = ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_UNKNOWN
	retryable = ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_RETRYABLE
)

// queue is what a subscription has looked at and is not done with, and who works
// on it. It does no I/O and has no clock, and is guarded by its Subscription.
type queue struct {
	uid      string
	settings *ordergatev1.Subscription
	life     uint64       // of the gateway
	leases   uint64       // deliveries made in this life
	turn     uint64       // assignments made in this life
	tracer   trace.Tracer // nil: none

	epoch    uint64
	position uint64           // every event up to here was looked at
	lanes    map[string]*lane // of the orders that are not done with, by their ids
	loose    map[*lane]bool   // those of which no record on disk tells all

	unread []*lane // lanes whose targets are to be read, oldest first
	odd    bool    // whose turn it is, when there is room for one
	ready  laneHeap
	timed  laneHeap // leased and delayed lanes

	deferred    laneHeap
	maxDeferred int
	revision    func(*eventlog.OrderRecord) int64 // a test's events have no payload to read it from

	workers []*Worker
	clients map[string]*client

	changed bool            // something is to be stored
	seeked  bool            // the epoch began after the last store
	doubted bool            // something else may be stored than what was
	gone    map[string]bool // orders whose records are to be removed
}

// client is one or more workers that share a window.
type client struct {
	id        string // as the worker gave it
	key       string // in the queue's map
	workers   int
	events    int // leased
	bytes     int64
	maxEvents int
	maxBytes  int64
}

func newQueue(uid string, settings *ordergatev1.Subscription, life uint64) *queue {
	return &queue{
		uid: uid, settings: settings, life: life, epoch: 1,
		lanes: map[string]*lane{}, loose: map[*lane]bool{}, clients: map[string]*client{}, gone: map[string]bool{},
		ready: byTarget(), timed: byDue(), deferred: byAwaited(), maxDeferred: maxDeferred,
		revision: (*eventlog.OrderRecord).Revision,
	}
}

// latest reports whether an order's newest revision is delivered in place of all its
// pending events.
func (q *queue) latest() bool {
	return q.settings.GetDelivery() == ordergatev1.DeliveryMode_DELIVERY_MODE_LATEST
}

// arrive takes the next event of the log into account. wanted says whether the
// filter selects it.
func (q *queue) arrive(record *eventlog.OrderRecord, wanted bool, now time.Time) {
	q.position = record.Sequence
	if !wanted {
		return
	}
	l := q.lanes[record.OrderID]
	if l == nil {
		l = &lane{order: record.OrderID}
		q.lanes[l.order] = l
		q.loose[l] = true
	}
	switch {
	case l.head == nil:
		l.head = &item{sequence: record.Sequence, stored: record.Time, goods: goodsOf(record)}
		q.note(l)
		if l.state == laneIdle {
			q.place(l, now)
			if l.state == laneUnread && l.current == record.Sequence {
				q.read(l, found{record: record, stored: record.Time, checked: record.Sequence, last: record.Sequence}, now)
			}
		}
	case l.newest && record.Sequence <= l.through:
		return // it is covered by the event that was read
	case l.newest && l.state == laneReady && l.next == 0 && !l.more:
		q.replaceReady(l, record)
	case l.next == 0 && !l.more:
		l.next = record.Sequence
	default:
		l.more = true
	}
	l.arrived = true
}

// laneRead is a lane whose target is to be read.
type laneRead struct {
	lane     *lane
	epoch    uint64
	sequence uint64
	behind   bool // also find out what is behind it
	latest   bool // read the order's newest event
}

// found is the result of reading a lane.
type found struct {
	record *eventlog.OrderRecord // nil if the target is no longer kept
	// next is the sequence of the first event after the target that the filter selects, up
	// to the position upTo; 0 if there is none. Only if behind was set.
	next, upTo uint64

	stored  time.Time // when the oldest event that record stands for was stored
	checked uint64    // record is the order's newest event up to here

	// The rest is set only if latest was.

	last     uint64  // the last pending event
	replaced []int64 // the revisions of the pending events before record
	excluded bool    // the filter does not select the order as it is in record
}

// wanted returns what is to be read: lanes, and how many events in all, so that
// the workers have what they have room for. behind says whether there are events
// that were not looked at: these get half of the room, however many orders come
// back from a delay.
func (q *queue) wanted(behind bool) (lanes []laneRead, want int) {
	want = q.demand()
	room := want
	if behind {
		room = want / 2
		if want > 0 && want%2 == 1 {
			if q.odd = !q.odd; q.odd {
				room++
			}
		}
	}
	for len(q.unread) > 0 && len(lanes) < min(room, laneBatch) {
		l := q.unread[0]
		q.unread = q.unread[1:]
		l.listed = false
		if q.lanes[l.order] != l || l.state != laneUnread {
			continue
		}
		if l.newest && !q.latest() { // the mode was changed
			l.abandon()
		}
		l.arrived = false
		lanes = append(lanes, laneRead{l, q.epoch, l.current, l.vague(), q.latest()})
	}
	if q.full() {
		want = min(want, len(lanes))
	}
	return lanes, max(want, 0)
}

// full reports whether so many orders are held back that no further events are looked
// at. Deferred lanes do not count: only further events end their wait.
func (q *queue) full() bool { return len(q.lanes)-q.deferred.Len() >= maxLanes }

// readAgain puts a lane back whose target could not be read.
func (q *queue) readAgain(read laneRead) {
	if l := read.lane; q.lanes[l.order] == l && l.state == laneUnread {
		q.list(l)
	}
}

// list has the target of an unread lane read, once.
func (q *queue) list(l *lane) {
	if !l.listed {
		l.listed = true
		q.unread = append(q.unread, l)
	}
}

// apply takes the result of reading a lane. It reports whether its target is still kept.
func (q *queue) apply(read laneRead, f found, now time.Time) (kept bool) {
	l := read.lane
	switch {
	case q.lanes[l.order] != l || q.epoch != read.epoch || l.state != laneUnread || l.current != read.sequence:
		return true // something happened to it meanwhile
	case read.latest != q.latest():
		q.readAgain(read)
		return true
	case read.latest:
		return q.applyNewest(read, f, now)
	}
	if read.behind && l.next == 0 {
		if f.next == 0 && l.arrived && q.position > f.upTo {
			q.readAgain(read)
			return true
		}
		l.next, l.more = f.next, f.next != 0
	}
	if f.record == nil {
		q.finish(l, now)
		return false
	}
	q.read(l, f, now)
	return true
}

// applyNewest is apply for the newest event of an order, which replaces the target and
// all pending events after it.
func (q *queue) applyNewest(read laneRead, f found, now time.Time) (kept bool) {
	l := read.lane
	switch {
	case l.arrived && q.position > f.checked:
		q.readAgain(read) // the arrived event may be newer still
		return true
	case f.last > q.position && (q.deferred.Len() < q.maxDeferred || l.redriving()):
		l.target().goods = goodsOf(f.record)
		l.state, l.awaits = laneDeferred, f.last
		q.deferred.add(l)
		return true
	}
	l.next, l.more = 0, false
	if f.record == nil || f.excluded || f.last > q.position {
		l.through, l.newest = f.checked, true
		q.finish(l, now)
		return f.record != nil
	}
	q.read(l, f, now)
	return true
}

// read gives an unread lane the event that is to be delivered for its target.
func (q *queue) read(l *lane, f found, now time.Time) {
	target := l.target()
	if l.newest && l.readFor == l.current && l.through != f.record.Sequence {
		target.attempts = 0 // they were attempts of another revision
	}
	l.setEvent(f)
	l.newest, l.readFor = q.latest(), l.current
	target.stored, target.goods = f.stored, goodsOf(f.record)
	q.place(l, now)
}

// replaceReady puts a newer event in the place of the one that a ready lane has.
func (q *queue) replaceReady(l *lane, record *eventlog.OrderRecord) {
	if l.pending {
		l.replaced = append(l.replaced, q.revision(l.event))
		l.replaced = l.replaced[max(0, len(l.replaced)-maxReplaced):]
	}
	l.setEvent(found{record: record, checked: record.Sequence, last: record.Sequence, replaced: l.replaced})
	l.target().goods = goodsOf(record)
}

// reached ends the wait of the lanes whose awaited events the position has reached.
func (q *queue) reached(now time.Time) {
	for l := q.deferred.first(); l != nil && l.awaits <= q.position; l = q.deferred.first() {
		q.lift(l)
		q.place(l, now)
	}
}

// place puts a lane that is nowhere where its target belongs.
func (q *queue) place(l *lane, now time.Time) {
	target := l.choose()
	if target == nil || l.readFor != target.sequence {
		l.abandon()
	}
	if target == nil {
		l.state, l.current = laneIdle, 0
		if l.head == nil && len(l.letters) == 0 {
			delete(q.lanes, l.order)
			delete(q.loose, l)
		}
		return
	}
	l.current = target.sequence
	switch {
	case target.retry.After(now):
		l.state, l.due, l.event = laneDelayed, target.retry, nil
		q.timed.add(l)
	case l.event != nil:
		l.state = laneReady
		q.ready.add(l)
	default:
		l.state = laneUnread
		q.list(l)
	}
}

// lift takes a lane from where it is, and from the worker that has it.
func (q *queue) lift(l *lane) {
	switch l.state {
	case laneReady:
		q.ready.remove(l)
	case laneLeased:
		q.timed.remove(l)
		q.release(l)
	case laneDelayed:
		q.timed.remove(l)
	case laneDeferred:
		q.deferred.remove(l)
	}
	l.state = laneIdle
}

// release takes a leased lane's target from its worker.
func (q *queue) release(l *lane) {
	w := l.worker
	l.worker = nil
	l.endSpan(outcomeReturned)
	delete(w.leased, l)
	if l.event != nil {
		w.unsent = slices.DeleteFunc(w.unsent, func(other *lane) bool { return other == l })
	}
	w.client.events--
	w.client.bytes -= int64(l.size)
	q.forget(w.client)
	if w.stopped && len(w.leased) == 0 {
		w.wake()
	}
}

// forget drops a client that nothing is left of.
func (q *queue) forget(c *client) {
	if c.workers == 0 && c.events == 0 {
		delete(q.clients, c.key)
	}
}

// touch notes that something was settled, which is to be stored.
func (q *queue) touch(l *lane) {
	q.changed = true
	q.note(l)
}

// note keeps up whether a lane has a record, and whether that is right.
func (q *queue) note(l *lane) {
	if len(l.letters) > 0 || l.head != nil && (l.held || !l.head.retry.IsZero()) {
		l.held, l.dirty = true, true
		q.loose[l] = true
		delete(q.gone, l.order)
		return
	}
	if l.held {
		l.held, l.covered, l.dirty = false, false, false
		q.loose[l] = true
		q.gone[l.order] = true
	}
}

// finish settles the target of a lane, and every event that was delivered with it.
func (q *queue) finish(l *lane, now time.Time) {
	q.lift(l)
	l.settle()
	q.touch(l)
	q.place(l, now)
}

// advance makes the event behind the head the head.
func (l *lane) advance() {
	l.head = nil
	if l.next != 0 {
		l.head = &item{sequence: l.next}
	}
	l.next = 0
}

// kill makes the target of a lane a dead letter.
func (q *queue) kill(l *lane, reason ordergatev1.DeadLetterReason, detail string, now time.Time) {
	target := *l.target()
	l.endSpan(outcomeDeadLetter)
	q.lift(l)
	target.retry = time.Time{}
	l.settle()
	l.put(letter{
		item: target, eventID: l.eventID, kind: l.kind, reason: reason, detail: detail, died: now, epoch: q.epoch,
		blocks: q.settings.GetDeadLetterPolicy() != ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_SKIP,
	})
	l.fresh = true
	q.touch(l)
	q.place(l, now)
}

// erase drops what there is of an order before its tombstone. What a worker has in
// hand it keeps; the tombstone comes behind that.
func (q *queue) erase(tombstone *eventlog.OrderRecord, wanted bool, now time.Time) {
	l := q.lanes[tombstone.OrderID]
	if l == nil {
		return
	}
	out := uint64(0)
	if l.state == laneLeased {
		out = l.current
	}
	l.letters = slices.DeleteFunc(l.letters, func(letter letter) bool { return letter.sequence < tombstone.Sequence && letter.sequence != out })
	for i := range l.letters {
		l.letters[i].detail = ""
	}
	if l.head != nil && l.head.sequence < tombstone.Sequence {
		l.next, l.more = 0, false
		if wanted && q.position >= tombstone.Sequence {
			l.next = tombstone.Sequence
		}
		if l.head.sequence != out {
			l.advance()
		}
	}
	q.replace(l, now)
}

// giveBack ends a lease whose event was not settled.
func (q *queue) giveBack(l *lane, why string, now time.Time) {
	if sent := l.event == nil; sent && l.target().attempts >= int(q.settings.GetMaxAttempts()) {
		q.kill(l, ordergatev1.DeadLetterReason_DEAD_LETTER_REASON_ATTEMPTS_EXHAUSTED, why, now)
		return
	}
	q.lift(l)
	q.place(l, now)
}

// recall takes back a delivery that was not sent: its order has a newer event, or the
// newest one could not be read.
func (q *queue) recall(text string, now time.Time) {
	l, _ := q.findLeased(text)
	if l == nil {
		return
	}
	l.target().attempts--
	if w := l.worker; w.limit > 0 {
		w.served--
		w.servedBytes -= int64(l.size)
	}
	q.lift(l)
	q.place(l, now)
}

// tick ends the leases, delays and deferments that are over. It returns when to come
// again; zero: not before something changes.
func (q *queue) tick(now time.Time) (next time.Time) {
	q.reached(now)
	for {
		l := q.timed.first()
		switch {
		case l == nil:
			return time.Time{}
		case l.due.After(now):
			return l.due
		case l.state == laneLeased:
			l.endSpan(outcomeExpired)
			q.giveBack(l, "its last lease ran out", now)
		default:
			q.lift(l)
			q.place(l, now)
		}
	}
}

// dispatch assigns ready events to workers that have room, the oldest first.
func (q *queue) dispatch(now time.Time) {
	for l := q.ready.first(); l != nil; l = q.ready.first() {
		w := q.pick(int64(l.size))
		if w == nil {
			return
		}
		q.ready.remove(l)
		l.state, l.worker, l.due = laneLeased, w, now.Add(w.ackDeadline)
		q.timed.add(l)
		w.leased[l] = struct{}{}
		w.unsent = append(w.unsent, l)
		w.client.events++
		w.client.bytes += int64(l.size)
		w.served++
		w.servedBytes += int64(l.size)
		q.turn++
		w.turn = q.turn
		w.wake()
	}
}

// pick returns the worker that gets an event of a size: of those with room, the
// one whose client has the least in hand; nil when there is none.
func (q *queue) pick(size int64) *Worker {
	var best *Worker
	for _, w := range q.workers {
		if !w.room(size) {
			continue
		}
		if best == nil || w.client.events < best.client.events || w.client.events == best.client.events && w.turn < best.turn {
			best = w
		}
	}
	return best
}

// room reports whether a worker can be given an event of a size.
func (w *Worker) room(size int64) bool {
	c := w.client
	return !w.stopped && len(w.unsent) < max(maxUnsent, w.limit) &&
		(w.limit == 0 || w.served == 0 || w.served < w.limit && w.servedBytes+size <= w.limitBytes) &&
		c.events < c.maxEvents && (c.events == 0 || c.bytes+size <= c.maxBytes)
}

// demand is how many events the workers could be given beyond those that are
// ready.
func (q *queue) demand() int {
	room := 0
	seen := map[*client]bool{}
	for _, w := range q.workers {
		switch {
		case !w.room(0):
		case w.limit > 0:
			room += w.limit - w.served
		case !seen[w.client]:
			seen[w.client] = true
			room += w.client.maxEvents - w.client.events
		}
	}
	return room - q.ready.Len()
}

// take hands a worker's stream what was assigned to it. Now the leases begin.
func (q *queue) take(w *Worker, now time.Time) []Delivery {
	var deliveries []Delivery
	for _, l := range w.unsent {
		target := l.target()
		target.attempts++
		q.leases++
		l.lease, l.due = q.leases, now.Add(w.ackDeadline)
		q.timed.moved(l)
		id := deliveryID{epoch: q.epoch, sequence: l.current, through: l.through, life: q.life, lease: l.lease, order: l.order}
		deliveries = append(deliveries, Delivery{
			ID: id.encode(q.uid), Record: l.event, Attempt: target.attempts, LeaseEnd: l.due, Redriven: l.redriving(),
			Replaced: l.replaced, checked: l.checked,
		})
		q.startSpan(l)
		l.event, l.replaced = nil, nil
	}
	w.unsent = nil
	return deliveries
}

// attach adds a worker.
func (q *queue) attach(w *Worker, clientID string, maxEvents int, maxBytes int64) {
	key := "id:" + clientID
	if clientID == "" {
		q.leases++
		key = fmt.Sprintf("stream:%d", q.leases)
	}
	c := q.clients[key]
	if c == nil {
		c = &client{id: clientID, key: key, maxEvents: maxEvents, maxBytes: maxBytes}
		q.clients[key] = c
	}
	if w.limit == 0 {
		c.maxEvents, c.maxBytes = maxEvents, maxBytes
	}
	c.workers++
	w.client, w.leased = c, map[*lane]struct{}{}
	q.workers = append(q.workers, w)
}

// stop gives a worker nothing more; what was assigned and not sent goes back.
func (q *queue) stop(w *Worker, now time.Time) {
	w.stopped = true
	for _, l := range slices.Clone(w.unsent) {
		q.giveBack(l, "", now)
	}
	w.wake()
}

// detach ends a worker. A stream's leases go back.
func (q *queue) detach(w *Worker, now time.Time) {
	q.stop(w, now)
	q.workers = slices.DeleteFunc(q.workers, func(other *Worker) bool { return other == w })
	w.client.workers--
	if w.limit == 0 {
		for l := range maps.Clone(w.leased) {
			q.giveBack(l, "the worker's stream ended", now)
		}
	}
	q.forget(w.client)
}

// find looks a delivery up. With ok it can be settled, as the target of the lane;
// without a lane it was. Other codes come without a lane. through is up to where the
// delivery settles its order.
func (q *queue) find(text string) (l *lane, through uint64, code ordergatev1.DeliveryResultCode) {
	id, valid := decodeDeliveryID(text, q.uid)
	if !valid || id.epoch != q.epoch || id.sequence > q.position {
		return nil, 0, unknown
	}
	l, code = q.findIn(q.lanes[id.order], id)
	return l, id.through, code
}

func (q *queue) findIn(l *lane, id deliveryID) (*lane, ordergatev1.DeliveryResultCode) {
	if l == nil && id.through > q.position {
		return nil, unknown // it was sent before a restart that undid the position
	}
	if l == nil {
		return nil, ok
	}
	if l.current != id.sequence || l.state == laneIdle {
		switch i := l.letter(id.sequence); {
		case i >= 0:
			return nil, expired // it is a dead letter
		case l.head != nil && id.through >= l.head.sequence:
			return nil, unknown // it, or the newer event that was sent, is delivered later
		}
		return nil, ok
	}
	newest := id.life == q.life && id.lease == l.lease
	switch {
	case l.state == laneLeased && l.event == nil && !newest:
		return nil, stale
	case l.state == laneDelayed:
		return nil, expired
	case id.life == q.life && !newest:
		return nil, stale
	}
	return l, ok
}

// findLeased looks a delivery up that its worker must still have. A lane comes
// with ok only.
func (q *queue) findLeased(text string) (*lane, ordergatev1.DeliveryResultCode) {
	l, _, code := q.find(text)
	switch {
	case code != ok:
		return nil, code
	case l == nil || l.state != laneLeased || l.event != nil:
		return nil, expired
	}
	return l, ok
}

// ack settles a delivery that is done with.
func (q *queue) ack(text string, now time.Time) ordergatev1.DeliveryResultCode {
	l, through, code := q.find(text)
	switch {
	case l == nil:
		return code
	case l.vague():
		return retryable // what is behind it is being read
	case through != l.end() && l.through == 0:
		return retryable // up to where it settles the order is being read
	case through != l.end():
		return expired // a newer revision is delivered in its place
	}
	l.endSpan(outcomeAcked)
	q.finish(l, now)
	return ok
}

// nack settles a delivery that failed.
func (q *queue) nack(nack *ordergatev1.Nack, now time.Time) ordergatev1.DeliveryResultCode {
	l, code := q.findLeased(nack.GetDeliveryId())
	if l == nil {
		return code
	}
	target := l.target()
	switch {
	case nack.GetAction() == ordergatev1.NackAction_NACK_ACTION_SKIP:
		l.endSpan(outcomeSkipped)
		q.finish(l, now)
	case nack.GetAction() == ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER:
		q.kill(l, ordergatev1.DeadLetterReason_DEAD_LETTER_REASON_SUBSCRIBER_REJECTED, nack.GetReason(), now)
	case target.attempts >= int(q.settings.GetMaxAttempts()):
		q.kill(l, ordergatev1.DeadLetterReason_DEAD_LETTER_REASON_ATTEMPTS_EXHAUSTED, nack.GetReason(), now)
	default:
		delay := q.backoff(target.attempts)
		if nack.GetDelay() != nil {
			delay = nack.GetDelay().AsDuration()
		}
		l.endSpan(outcomeRetried)
		q.lift(l)
		target.retry = time.Time{}
		if delay > 0 {
			target.retry = now.Add(delay)
		}
		q.touch(l)
		q.place(l, now)
	}
	return ok
}

// backoff is how long an event waits after a number of attempts.
func (q *queue) backoff(attempts int) time.Duration {
	delay, longest := q.settings.GetMinBackoff().AsDuration(), q.settings.GetMaxBackoff().AsDuration()
	for range attempts - 1 {
		if delay *= 2; delay >= longest {
			break
		}
	}
	return min(delay, longest)
}

// extend moves the end of a lease; 0 ends it now.
func (q *queue) extend(text string, by time.Duration, now time.Time) (ordergatev1.DeliveryResultCode, time.Time) {
	l, code := q.findLeased(text)
	switch {
	case l == nil:
		return code, time.Time{}
	case by == 0:
		q.giveBack(l, "the worker gave it back", now)
		return ok, now
	}
	l.due = now.Add(by)
	q.timed.moved(l)
	return ok, l.due
}

// fault makes a delivery that cannot be sent a dead letter.
func (q *queue) fault(text, detail string, now time.Time) {
	if l, _ := q.findLeased(text); l != nil {
		q.kill(l, ordergatev1.DeadLetterReason_DEAD_LETTER_REASON_GATEWAY_FAULT, detail, now)
	}
}

// seek begins anew behind a position. Dead letters stay, and block nothing.
func (q *queue) seek(position uint64, now time.Time) {
	q.epoch++
	q.position = position
	q.changed, q.seeked = true, true
	for _, l := range slices.Collect(maps.Values(q.lanes)) {
		q.lift(l)
		l.head, l.next, l.more = nil, 0, false
		l.unread()
		for i := range l.letters {
			l.letters[i].blocks = false
		}
		q.touch(l)
		q.place(l, now)
	}
}
