package subscription

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

var (
	modelSeeds = flag.Int("model.seeds", 4000, "how many random histories TestModel tells")
	modelSeed  = flag.Uint64("model.seed", 0, "tell only this history")
)

// TestModel tells random histories of a queue, on virtual time: events arrive,
// workers come, take, acknowledge, nack, stall and go, operators redrive, discard
// and seek, the gateway is stopped, killed, and loses its power at every point of
// a store. What must hold is checked at each delivery and at the end. Half of the
// histories deliver every event, the others the newest revisions.
func TestModel(t *testing.T) {
	if *modelSeed != 0 {
		tell(t, *modelSeed)
		return
	}
	for seed := range uint64(*modelSeeds) {
		tell(t, seed+1)
		if t.Failed() {
			t.Fatalf("repeat it with -model.seed=%d", seed+1)
		}
	}
}

// world is all that there is beside the queue, and what must be true of it.
type world struct {
	t      *testing.T
	random *rand.Rand
	now    time.Time
	life   uint64
	log    []*eventlog.OrderRecord
	q      *queue

	places  []string            // every version of the place, the last flushed ones first
	held    []map[string]string // every version of the records
	flushed [2]int              // how many versions of each are on disk

	workers   []*Worker
	out       []handed // deliveries that workers were given, old ones too
	seekFloor uint64   // nothing up to here is wanted any more

	acked    map[uint64]bool // settled for good, as far as any worker was told or may have been
	lately   map[uint64]bool // of these, those of this life
	stored   map[uint64]bool // of these, those that are stored and whose power was not cut
	buried   map[uint64]bool // died, and block nothing
	newest   map[string]uint64
	erased   map[string]uint64 // the tombstones of orders
	gone     map[uint64]bool   // events that were erased
	history  []string
	settings *ordergatev1.Subscription
}

type handed struct {
	worker   *Worker
	id       string
	order    string
	sequence uint64
	redriven bool
	target   uint64   // the oldest event that it stands for
	covers   []uint64 // all events that settling it settles, sequence included
}

func tell(t *testing.T, seed uint64) {
	w := &world{
		t: t, random: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1_800_000_000, 0), life: 1,
		acked: map[uint64]bool{}, lately: map[uint64]bool{}, stored: map[uint64]bool{}, buried: map[uint64]bool{}, newest: map[string]uint64{},
		erased: map[string]uint64{}, gone: map[uint64]bool{},
		held: []map[string]string{{}}, flushed: [2]int{1, 1},
	}
	w.settings = withDefaults(&ordergatev1.Subscription{Name: "model", MaxAttempts: int32(2 + w.random.IntN(6)), AckDeadline: durationpb.New(10 * time.Second)})
	if w.random.IntN(2) == 0 {
		w.settings.DeadLetterPolicy = ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_SKIP
	}
	w.settings.Delivery = ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT
	if w.random.IntN(2) == 0 {
		w.settings.Delivery = ordergatev1.DeliveryMode_DELIVERY_MODE_LATEST
	}
	w.q = w.newQueue()
	w.places = []string{string(place{epoch: 1}.encode())}
	defer func() {
		if t.Failed() {
			for _, line := range w.history[max(0, len(w.history)-80):] {
				t.Log(line)
			}
		}
	}()
	seeks, erasures := w.random.IntN(4) == 0, w.random.IntN(3) == 0
	for range 300 {
		w.step(seeks)
		if erasures && w.random.IntN(60) == 0 {
			w.erase()
			w.check()
		}
		if t.Failed() {
			return
		}
	}
	w.finish()
}

func (w *world) newQueue() *queue {
	q := newQueue("uid", w.settings, w.life)
	q.maxDeferred, q.revision = w.random.IntN(4), sequenceOf
	return q
}

func (w *world) note(format string, args ...any) {
	w.history = append(w.history, fmt.Sprintf(format, args...))
}

func (w *world) step(seeks bool) {
	switch n := w.random.IntN(100); {
	case n < 15:
		for range 1 + w.random.IntN(4) {
			w.append()
		}
	case n < 35:
		w.read()
	case n < 40:
		w.attach()
	case n < 43:
		w.detach()
	case n < 45 && len(w.workers) > 0:
		w.q.stop(w.workers[w.random.IntN(len(w.workers))], w.now)
	case n < 60:
		w.take()
	case n < 80:
		w.settle()
	case n < 84:
		w.now = w.now.Add(time.Duration(w.random.IntN(8000)) * time.Millisecond)
	case n < 91:
		w.store(4)
	case n < 92:
		w.store(w.random.IntN(4)) // and then the log fails
	case n < 94:
		w.deadLetters()
	case n < 95:
		w.restart("stop", func() { w.store(4) })
	case n < 97:
		w.restart("kill", func() { w.store(w.random.IntN(5)) })
	case n < 98:
		w.restart("power cut", func() { w.store(w.random.IntN(5)); w.cutPower() })
	case n < 99:
		w.note("the log is opened again")
		w.cutPower()
		w.q.doubt()
	case seeks:
		w.seek()
	}
	w.q.tick(w.now)
	w.q.dispatch(w.now)
	w.check()
}

func (w *world) append() {
	record := &eventlog.OrderRecord{Sequence: uint64(len(w.log) + 1), Time: w.now, OrderID: fmt.Sprintf("cs_%d", w.random.IntN(6))}
	if w.erased[record.OrderID] == 0 {
		w.log = append(w.log, record)
	}
}

// erase leaves a tombstone of an order, and nothing else. Sometimes the gateway
// ends before the subscription has done its part, and it is done again then.
func (w *world) erase() {
	order := fmt.Sprintf("cs_%d", w.random.IntN(6))
	if w.erased[order] != 0 {
		return
	}
	tombstone := &eventlog.OrderRecord{Sequence: uint64(len(w.log) + 1), Time: w.now, OrderID: order, Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED}
	w.log = append(w.log, tombstone)
	w.erased[order] = tombstone.Sequence
	w.note("erase %s at %d", order, tombstone.Sequence)
	if w.random.IntN(3) == 0 {
		w.readOn(w.random.IntN(20))
	}
	for w.q.erase(tombstone, wanted(tombstone), w.now); w.random.IntN(4) == 0; w.q.erase(tombstone, wanted(tombstone), w.now) {
		w.restart("kill while erasing", func() { w.store(w.random.IntN(4)) })
	}
	w.store(4)
	w.flushed = [2]int{len(w.places), len(w.held)}
	for _, r := range w.log[:tombstone.Sequence-1] {
		if r.OrderID == order {
			w.gone[r.Sequence] = true
		}
	}
}

// selects is the filter: every seventh event is of no interest, and neither is an order
// after every eleventh, unless that erased it.
func selects(r *eventlog.OrderRecord) (event, order bool) {
	order = r.Sequence%11 != 0 || r.Kind == ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED
	return order && r.Sequence%7 != 0, order
}

func wanted(r *eventlog.OrderRecord) bool {
	event, _ := selects(r)
	return event
}

// read does a part of what a Subscription reads.
func (w *world) read() {
	lanes, want := w.q.wanted(w.q.position < uint64(len(w.log)))
	for _, read := range lanes {
		f := w.lookUp(read)
		if w.random.IntN(8) == 0 {
			w.q.readAgain(read) // the log did not answer
			continue
		}
		if w.random.IntN(3) == 0 { // other things happen while the log is read
			for range w.random.IntN(3) {
				w.append()
			}
			w.readOn(w.random.IntN(20))
			w.settle()
			w.q.tick(w.now)
		}
		w.supersede(read, f)
		if !w.q.apply(read, f, w.now) && !w.gone[read.sequence] {
			w.t.Errorf("event %d is taken for lost", read.sequence)
		}
	}
	if want > len(lanes) {
		w.readOn(1 + w.random.IntN(5))
	}
}

func (w *world) lookUp(read laneRead) found {
	log := slices.Clone(w.log)
	for sequence := range w.gone {
		log[sequence-1] = nil
	}
	return lookUpIn(log, read, w.q.position, selects)
}

// supersede notes which events are settled without a delivery, because the filter
// excludes the order as it is now, or because a newer event replaces them later.
func (w *world) supersede(read laneRead, f found) {
	l := read.lane
	if !read.latest || f.record == nil || w.q.lanes[l.order] != l || l.state != laneUnread || l.current != read.sequence ||
		w.q.epoch != read.epoch || l.arrived && w.q.position > f.checked {
		return
	}
	later := f.last > w.q.position
	if later && (w.q.deferred.Len() < w.q.maxDeferred || l.redriving()) || !later && !f.excluded {
		return
	}
	through := min(f.checked, w.q.position)
	w.note("%s is settled up to %d without a delivery", l.order, through)
	for _, sequence := range w.covered(l.order, read.sequence, through) {
		w.done(sequence, l.redriving())
	}
}

// covered are the pending events of an order up to a sequence. From the target on, they
// include those of a dead letter that a power cut undid.
func (w *world) covered(order string, target, through uint64) (all []uint64) {
	for _, r := range w.log[:through] {
		if r.OrderID == order && wanted(r) && r.Sequence > w.seekFloor && !w.gone[r.Sequence] && !w.acked[r.Sequence] && (!w.buried[r.Sequence] || r.Sequence >= target) {
			all = append(all, r.Sequence)
		}
	}
	return all
}

func (w *world) readOn(limit int) {
	for _, r := range w.log[w.q.position:min(len(w.log), int(w.q.position)+limit)] {
		if w.q.position = r.Sequence; !w.gone[r.Sequence] {
			w.q.arrive(r, wanted(r), w.now)
		}
	}
}

func (w *world) attach() {
	if len(w.workers) >= 4 {
		return
	}
	worker := &Worker{signal: make(chan struct{}, 1), ackDeadline: 10 * time.Second}
	id := []string{"", "a", "b"}[w.random.IntN(3)]
	if w.random.IntN(4) == 0 {
		worker.limit, worker.limitBytes = 1+w.random.IntN(3), 1000
	}
	w.q.attach(worker, id, 1+w.random.IntN(4), 1<<20)
	w.workers = append(w.workers, worker)
}

func (w *world) detach() {
	if len(w.workers) == 0 {
		return
	}
	i := w.random.IntN(len(w.workers))
	w.q.detach(w.workers[i], w.now)
	w.workers = slices.Delete(w.workers, i, i+1)
}

// take hands a worker what it was assigned, and checks that it may have it.
func (w *world) take() {
	if len(w.workers) == 0 {
		return
	}
	worker := w.workers[w.random.IntN(len(w.workers))]
	w.bury()
	for _, d := range w.q.take(worker, w.now) {
		if w.q.latest() {
			w.takeNewest(worker, d)
			continue
		}
		r := d.Record
		w.note("%v deliver %d of %s attempt %d redriven %v", w.now.Unix(), r.Sequence, r.OrderID, d.Attempt, d.Redriven)
		if !wanted(r) {
			w.t.Errorf("event %d was filtered, and is delivered", r.Sequence)
		}
		if r.Sequence <= w.seekFloor && !d.Redriven {
			w.t.Errorf("event %d is delivered after a seek behind %d", r.Sequence, w.seekFloor)
		}
		if w.stored[r.Sequence] && !d.Redriven {
			w.t.Errorf("event %d was acknowledged and stored, and is delivered again", r.Sequence)
		}
		for _, earlier := range w.log[:r.Sequence-1] {
			if earlier.OrderID == r.OrderID && wanted(earlier) && earlier.Sequence > w.seekFloor && !w.gone[earlier.Sequence] && !w.acked[earlier.Sequence] && !w.buried[earlier.Sequence] && !d.Redriven {
				w.t.Errorf("event %d of %s is delivered before %d was settled", r.Sequence, r.OrderID, earlier.Sequence)
			}
		}
		if !d.Redriven && r.Sequence < w.newest[r.OrderID] {
			w.t.Errorf("event %d of %s is delivered after %d", r.Sequence, r.OrderID, w.newest[r.OrderID])
		}
		if !d.Redriven {
			w.newest[r.OrderID] = r.Sequence
		}
		w.out = append(w.out, handed{worker, d.ID, r.OrderID, r.Sequence, d.Redriven, r.Sequence, []uint64{r.Sequence}})
	}
}

// takeNewest is take for a delivery that replaces all pending events of its order.
func (w *world) takeNewest(worker *Worker, d Delivery) {
	r := d.Record
	newest := newestIn(w.log, r.OrderID)
	if newest.Sequence > d.checked {
		w.note("recall %d of %s", r.Sequence, r.OrderID)
		w.q.recall(d.ID, w.now)
		return
	}
	w.note("%v deliver %d of %s attempt %d redriven %v, replaces %v", w.now.Unix(), r.Sequence, r.OrderID, d.Attempt, d.Redriven, d.Replaced)
	id, _ := decodeDeliveryID(d.ID, "uid")
	covers := w.covered(r.OrderID, id.sequence, r.Sequence)
	switch _, selected := selects(r); {
	case r != newest:
		w.t.Errorf("event %d of %s is delivered, the newest is %d", r.Sequence, r.OrderID, newest.Sequence)
	case !selected:
		w.t.Errorf("event %d is delivered, after which the filter excludes %s", r.Sequence, r.OrderID)
	case !d.Redriven && r.Sequence <= w.seekFloor:
		w.t.Errorf("event %d is delivered after a seek behind %d", r.Sequence, w.seekFloor)
	case !d.Redriven && !slices.ContainsFunc(covers, func(sequence uint64) bool { return !w.stored[sequence] }) && w.allStored(r):
		w.t.Errorf("everything of %s up to %d was acknowledged and stored, and is delivered again", r.OrderID, r.Sequence)
	case !slices.IsSorted(d.Replaced) || slices.Contains(d.Replaced, int64(r.Sequence)):
		w.t.Errorf("event %d of %s replaces %v", r.Sequence, r.OrderID, d.Replaced)
	}
	for _, sequence := range d.Replaced {
		if other := w.log[sequence-1]; other.OrderID != r.OrderID || !wanted(other) {
			w.t.Errorf("event %d of %s replaces %d", r.Sequence, r.OrderID, sequence)
		}
	}
	for _, sequence := range covers {
		if sequence >= id.sequence && sequence != r.Sequence && !d.Redriven && !slices.Contains(d.Replaced, int64(sequence)) {
			w.t.Errorf("event %d of %s does not list %d, which it replaces: %v", r.Sequence, r.OrderID, sequence, d.Replaced)
		}
	}
	w.out = append(w.out, handed{worker, d.ID, r.OrderID, r.Sequence, d.Redriven, id.sequence, append(covers, r.Sequence)})
}

// allStored reports whether every event of an order up to one was acknowledged and
// stored.
func (w *world) allStored(upTo *eventlog.OrderRecord) bool {
	for _, r := range w.log[:upTo.Sequence] {
		if r.OrderID == upTo.OrderID && wanted(r) && r.Sequence > w.seekFloor && !w.gone[r.Sequence] && !w.stored[r.Sequence] {
			return false
		}
	}
	return true
}

// bury notes what died and blocks nothing.
func (w *world) bury() {
	for _, l := range w.q.lanes {
		for i := range l.letters {
			if !l.letters[i].blocks && !l.letters[i].redriven {
				for _, sequence := range w.in(l.letters[i]) {
					w.buried[sequence] = true
				}
			}
		}
	}
}

// in are the events that a dead letter stands for: those that its last delivery covered.
func (w *world) in(letter letter) []uint64 {
	for _, d := range slices.Backward(w.out) {
		if d.target == letter.sequence {
			return d.covers
		}
	}
	return []uint64{letter.sequence}
}

func (w *world) redrive(l *lane, letter letter) {
	w.q.redrive(l, []uint64{letter.sequence}, w.now)
	w.note("redrive %d of %s", letter.sequence, l.order)
	if w.q.latest() {
		for _, sequence := range w.in(letter) {
			delete(w.buried, sequence)
		}
	}
}

// settle says something about some delivery, most often one of the newest.
func (w *world) settle() {
	if len(w.out) == 0 {
		return
	}
	i := len(w.out) - 1 - min(w.random.IntN(6), len(w.out)-1)
	if w.random.IntN(10) == 0 {
		i = w.random.IntN(len(w.out))
	}
	d := w.out[i]
	switch n := w.random.IntN(10); {
	case n < 6:
		code := w.q.ack(d.id, w.now)
		w.note("ack %d of %s: %v", d.sequence, d.order, code)
		if code == ok {
			w.settled(d)
		}
	case n < 8:
		nack := &ordergatev1.Nack{DeliveryId: d.id, Action: ordergatev1.NackAction(w.random.IntN(4))}
		if w.random.IntN(2) == 0 {
			nack.Delay = durationpb.New(time.Duration(w.random.IntN(20_000)) * time.Millisecond)
		}
		code := w.q.nack(nack, w.now)
		w.note("nack %v %d of %s: %v", nack.Action, d.sequence, d.order, code)
		if code == ok && nack.Action == ordergatev1.NackAction_NACK_ACTION_SKIP {
			w.settled(d)
		}
	default:
		w.q.extend(d.id, time.Duration(w.random.IntN(2)*w.random.IntN(10))*time.Second, w.now)
	}
}

func (w *world) settled(d handed) {
	for _, sequence := range d.covers {
		w.done(sequence, d.redriven)
	}
}

func (w *world) done(sequence uint64, redriven bool) {
	w.acked[sequence] = true
	delete(w.buried, sequence)
	if !redriven { // a dead letter from before a seek may come again all the same
		w.lately[sequence] = true
	}
}

// store does as many steps of a store as it is given, and then the gateway dies;
// four are all.
func (w *world) store(steps int) {
	settled := maps.Clone(w.lately)
	c := w.q.collect()
	if w.random.IntN(2) == 0 { // other things happen while it is written
		w.read()
		w.settle()
		w.q.tick(w.now)
		w.q.dispatch(w.now)
	}
	all := c.steps()
	steps = min(steps, len(all))
	for _, step := range all[:steps] {
		switch step {
		case storeRecords:
			w.held = append(w.held, merged(w.held[len(w.held)-1], c.records, nil))
		case storeFlush:
			w.flushed = [2]int{len(w.places), len(w.held)}
		case storePlace:
			w.places = append(w.places, string(c.place))
		case storeRemovals:
			for order := range w.held[len(w.held)-1] {
				if c.sweep && c.records[order] == nil {
					c.gone = append(c.gone, order)
				}
			}
			w.held = append(w.held, merged(w.held[len(w.held)-1], nil, c.gone))
		}
	}
	if steps < len(all) {
		w.q.undo(c)
		return
	}
	w.q.done(c)
	maps.Copy(w.stored, settled)
	if w.random.IntN(3) == 0 {
		w.flushed = [2]int{len(w.places), len(w.held)}
	}
}

func merged(old map[string]string, put map[string][]byte, gone []string) map[string]string {
	next := maps.Clone(old)
	for order, value := range put {
		next[order] = string(value)
	}
	for _, order := range gone {
		delete(next, order)
	}
	return next
}

// cutPower takes back some of what was not flushed, of each file by itself.
func (w *world) cutPower() {
	for i, unflushed := range []int{len(w.places) - w.flushed[0], len(w.held) - w.flushed[1]} {
		left := w.flushed[i]
		switch w.random.IntN(3) {
		case 0:
			left += unflushed
		case 1:
			left += w.random.IntN(unflushed + 1)
		}
		if i == 0 {
			w.places = w.places[:left]
		} else {
			w.held = w.held[:left]
		}
	}
	w.stored = map[uint64]bool{}
}

// restart ends the gateway in some way and begins a new life.
func (w *world) restart(how string, end func()) {
	end()
	w.note("%s", how)
	w.life++
	w.flushed = [2]int{len(w.places), len(w.held)} // opening the log flushes what it finds
	w.workers, w.newest, w.lately = nil, map[string]uint64{}, map[uint64]bool{}
	p, err := decodePlace([]byte(w.places[len(w.places)-1]))
	if err != nil {
		w.t.Fatal(err)
	}
	w.q = w.newQueue()
	w.q.epoch, w.q.position = p.epoch, p.position
	for order, value := range w.held[len(w.held)-1] {
		var record heldOrder
		if err := json.Unmarshal([]byte(value), &record); err != nil {
			w.t.Fatal(err)
		}
		w.q.lanes[order] = record.restore(order, p.epoch)
	}
	left := p.position + 1
	for _, h := range p.heads {
		if w.gone[h.sequence] {
			left = min(left, h.sequence)
			continue
		}
		r := w.log[h.sequence-1]
		f := w.lookUp(laneRead{lane: &lane{order: r.OrderID}, sequence: h.sequence, behind: true})
		w.q.restoreHead(r.OrderID, h, f.next, r.Time)
	}
	for sequence := left; sequence <= p.position; sequence++ {
		if r := w.log[sequence-1]; wanted(r) && w.erased[r.OrderID] == sequence {
			delete(w.stored, sequence) // it may come again
			w.q.restoreTombstone(r)
		}
	}
	w.q.restored(w.now)
}

func (w *world) deadLetters() {
	w.bury()
	for _, l := range slices.Collect(maps.Values(w.q.lanes)) {
		for _, letter := range slices.Clone(l.letters) {
			switch w.random.IntN(4) {
			case 0:
				w.redrive(l, letter)
			case 1:
				// One that died before a seek may come again all the same.
				if w.q.discard(l, []uint64{letter.sequence}, w.now) == 1 && letter.epoch == w.q.epoch {
					for _, sequence := range w.in(letter) {
						w.done(sequence, false)
					}
					w.note("discard %d of %s", letter.sequence, l.order)
				}
			}
		}
	}
}

func (w *world) seek() {
	to := uint64(w.random.IntN(len(w.log) + 1))
	w.note("seek behind %d", to)
	before := *w
	w.q.seek(to, w.now)
	w.seekFloor, w.acked, w.lately, w.stored, w.newest = to, map[uint64]bool{}, map[uint64]bool{}, map[uint64]bool{}, map[string]uint64{}
	w.buried = map[uint64]bool{}
	epoch := w.q.epoch
	if steps := w.random.IntN(6); steps < 4 {
		w.restart("kill while seeking", func() { w.store(steps) })
		if w.q.epoch != epoch { // then nothing has happened
			w.seekFloor, w.acked, w.stored, w.buried = before.seekFloor, before.acked, before.stored, before.buried
		}
		return
	}
	w.store(4)
	w.flushed = [2]int{len(w.places), len(w.held)}
}

// check looks at the queue as it is now.
func (w *world) check() {
	q := w.q
	events := map[*client]int{}
	for order, l := range q.lanes {
		if l.head == nil && len(l.letters) == 0 {
			w.t.Errorf("the lane of %s has nothing", order)
		}
		if l.state == laneLeased {
			events[l.worker.client]++
			if _, has := l.worker.leased[l]; !has {
				w.t.Errorf("the worker of %s does not know of it", order)
			}
		}
		if l.head != nil && l.state == laneIdle && l.choose() != nil {
			w.t.Errorf("nothing is done about %s", order)
		}
		if l.state == laneUnread && !l.listed {
			w.t.Errorf("%s is not read", order)
		}
		if l.head != nil && !l.held && !q.loose[l] || l.dirty && !q.loose[l] {
			w.t.Errorf("%s would not be stored", order)
		}
	}
	for _, c := range q.clients {
		if c.events != events[c] {
			w.t.Errorf("client %q is said to have %d events, it has %d", c.id, c.events, events[c])
		}
	}
	for l := range q.loose {
		if q.lanes[l.order] != l {
			w.t.Errorf("a lane of %s that is gone is to be stored", l.order)
		}
	}
}

// finish has a good worker do all that is left, and looks whether that is all.
func (w *world) finish() {
	for _, worker := range slices.Clone(w.workers) {
		w.q.detach(worker, w.now)
	}
	w.workers = nil
	worker := &Worker{signal: make(chan struct{}, 1), ackDeadline: 10 * time.Second}
	w.q.attach(worker, "good", 100, 1<<20)
	w.workers = []*Worker{worker}
	for round := 0; ; round++ {
		lanes, want := w.q.wanted(w.q.position < uint64(len(w.log)))
		for _, read := range lanes {
			f := w.lookUp(read)
			w.supersede(read, f)
			w.q.apply(read, f, w.now)
		}
		w.readOn(want)
		w.q.tick(w.now)
		w.q.dispatch(w.now)
		before := len(w.out)
		w.take()
		for _, d := range w.out[before:] {
			if code := w.q.ack(d.id, w.now); code != ok {
				w.t.Errorf("the acknowledgement of %d is answered %v", d.sequence, code)
			}
			w.settled(d)
		}
		for _, l := range slices.Collect(maps.Values(w.q.lanes)) {
			for _, letter := range slices.Clone(l.letters) {
				w.redrive(l, letter)
			}
		}
		w.check()
		if w.t.Failed() {
			return
		}
		if w.q.position == uint64(len(w.log)) && len(w.q.lanes) == 0 {
			break
		}
		if round > 2000 {
			w.t.Errorf("it does not end: at %d of %d, %d orders left", w.q.position, len(w.log), len(w.q.lanes))
			for _, l := range w.q.lanes {
				w.t.Logf("%+v head %+v", l, l.head)
			}
			return
		}
		w.now = w.now.Add(30 * time.Second)
	}
	for _, r := range w.log {
		if wanted(r) && r.Sequence > w.seekFloor && !w.gone[r.Sequence] && !w.acked[r.Sequence] {
			w.t.Errorf("event %d of %s was never acknowledged", r.Sequence, r.OrderID)
		}
	}
	w.store(4)
	if n := len(w.held[len(w.held)-1]); n != 0 {
		w.t.Errorf("%d records are left", n)
	}
}
