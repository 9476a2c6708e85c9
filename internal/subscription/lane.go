package subscription

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

// lane is what is known of one order that has events which are not done with.
// It holds no more than one event: the log has them all.
//
// The events of an order that a subscription has looked at are done, but for the
// head and those behind it, and the dead letters.
type lane struct {
	order   string
	head    *item    // the oldest event that is not done with; nil: none
	next    uint64   // the one behind the head; 0: none, or not known
	more    bool     // there may be others behind next, or behind the head when that is 0
	arrived bool     // an event arrived since the log was last asked what is behind the head
	letters []letter // dead letters, by sequence

	state  laneState
	index  int        // in the heap that the state goes with
	listed bool       // in the queue's list of unread lanes
	due    time.Time  // when the lease or the delay ends
	lease  uint64     // the newest delivery of the lane in this life; 0: none
	worker *Worker    // who has the target, while it is leased
	span   trace.Span // of the delivery that is out; nil when it is not traced

	// Of the target: its sequence, and, since it was read, its size in bytes, its
	// kind and its id. The event itself while the lane is ready, or assigned and
	// not sent.
	current uint64
	size    int
	kind    ordergatev1.OrderEventKind
	eventID string
	event   *eventlog.OrderRecord
	readFor uint64 // the target that event was read for

	// through is the sequence of the event that was read for the target last; 0 if none
	// was. It is the target's own, or, if newest is set, that of the order's newest event:
	// settling that settles everything of the order up to it, and next and more are about
	// the events after it.
	through  uint64
	newest   bool
	pending  bool    // the filter selects event
	checked  uint64  // event was the order's newest up to this sequence of the log
	replaced []int64 // revisions that event replaces, until it is sent
	awaits   uint64  // the position that a deferred lane waits for

	held    bool // a record of the lane is, or is to be, in the bucket
	covered bool // that record is on disk, and tells of the head
	dirty   bool // the record is to be written
	fresh   bool // it tells of dead letters that the one before did not
}

// laneState is where a lane's target is.
type laneState int

const (
	laneIdle     laneState = iota // there is no target
	laneUnread                    // its event must be read, or is being read
	laneReady                     // it waits for a worker
	laneLeased                    // a worker has it, until due
	laneDelayed                   // it waits for another attempt, until due
	laneDeferred                  // a newer event replaces it once the position reaches that one
)

// item is an event that is not done with.
type item struct {
	sequence uint64
	stored   time.Time // when the event was stored; zero: not known yet
	goods    goods     // known with stored
	attempts int
	retry    time.Time // when it may be delivered again, after a nack; zero: at once
}

// letter is an event that became a dead letter.
type letter struct {
	item
	eventID  string
	kind     ordergatev1.OrderEventKind
	reason   ordergatev1.DeadLetterReason
	detail   string
	died     time.Time
	epoch    uint64 // in which it died
	blocks   bool   // the head waits for it
	redriven bool   // it is to be delivered again
}

// choose returns what the lane is to deliver next: the head, or a redriven letter,
// whichever is older; nil when there is nothing, for now.
func (l *lane) choose() *item {
	var redriven *item
	blocked := false
	for i := range l.letters {
		switch letter := &l.letters[i]; {
		case letter.redriven && redriven == nil:
			redriven = &letter.item
		case !letter.redriven && letter.blocks:
			blocked = true
		}
	}
	if l.head == nil || blocked || redriven != nil && redriven.sequence <= l.head.sequence {
		return redriven
	}
	return l.head
}

// target is what the lane is about to deliver, or has delivered.
func (l *lane) target() *item {
	if i := l.letter(l.current); i >= 0 && l.letters[i].redriven {
		return &l.letters[i].item
	}
	return l.head
}

// end is the sequence up to which a delivery of the target settles the order.
func (l *lane) end() uint64 { return cmp.Or(l.through, l.current) }

// settle takes the target off the lane, with everything that was delivered with it.
func (l *lane) settle() {
	l.letters = slices.DeleteFunc(l.letters, func(letter letter) bool {
		return letter.sequence == l.current || l.newest && letter.redriven && letter.sequence <= l.through
	})
	if l.head != nil && (l.head.sequence == l.current || l.newest && l.head.sequence <= l.through) {
		l.advance()
	}
	l.unread()
}

// setEvent has the lane deliver an event for its target.
func (l *lane) setEvent(f found) {
	l.event, l.size, l.kind, l.eventID = f.record, f.record.Size(), f.record.Kind, f.record.EventID()
	l.through, l.checked, l.replaced, l.pending = f.record.Sequence, f.checked, f.replaced, f.last == f.record.Sequence
}

// unread forgets the event that was read for the target.
func (l *lane) unread() { l.event, l.through, l.newest, l.replaced = nil, 0, false, nil }

// abandon is unread for a target that was not settled: which event follows the head is
// then to be read again.
func (l *lane) abandon() {
	if l.newest {
		l.next, l.more = 0, l.head != nil
	}
	l.unread()
}

// letter returns the index of the dead letter with a sequence, -1 when there is
// none.
func (l *lane) letter(sequence uint64) int {
	return slices.IndexFunc(l.letters, func(letter letter) bool { return letter.sequence == sequence })
}

// vague reports whether the target is the head, and what is behind it has to be
// read: until then the head cannot be done with.
func (l *lane) vague() bool {
	return l.head != nil && l.head.sequence == l.current && l.next == 0 && l.more
}

// redriving reports whether the target is a redriven letter.
func (l *lane) redriving() bool { return l.target() != l.head }

// put adds a letter, in the order of the sequences.
func (l *lane) put(added letter) {
	at, found := slices.BinarySearchFunc(l.letters, added.sequence, func(letter letter, sequence uint64) int {
		return cmp.Compare(letter.sequence, sequence)
	})
	if found {
		l.letters[at] = added
		return
	}
	l.letters = slices.Insert(l.letters, at, added)
}

// laneHeap is a heap of lanes that know their place in it. A lane is in one of
// them at most.
type laneHeap struct {
	lanes []*lane
	less  func(a, b *lane) bool
}

// byTarget orders lanes by what they deliver, the oldest event first.
func byTarget() laneHeap {
	return laneHeap{less: func(a, b *lane) bool { return a.current < b.current }}
}

// byAwaited orders deferred lanes by the positions that they wait for.
func byAwaited() laneHeap {
	return laneHeap{less: func(a, b *lane) bool { return a.awaits < b.awaits }}
}

// byDue orders lanes by when something is to be done, the earliest first.
func byDue() laneHeap {
	return laneHeap{less: func(a, b *lane) bool {
		return a.due.Before(b.due) || a.due.Equal(b.due) && a.current < b.current
	}}
}

func (h *laneHeap) Len() int           { return len(h.lanes) }
func (h *laneHeap) Less(i, j int) bool { return h.less(h.lanes[i], h.lanes[j]) }
func (h *laneHeap) Swap(i, j int) {
	h.lanes[i], h.lanes[j] = h.lanes[j], h.lanes[i]
	h.lanes[i].index, h.lanes[j].index = i, j
}

// Push is for package heap; add is for the others.
func (h *laneHeap) Push(x any) {
	l := x.(*lane)
	l.index = len(h.lanes)
	h.lanes = append(h.lanes, l)
}

// Pop is for package heap; remove is for the others.
func (h *laneHeap) Pop() any {
	last := len(h.lanes) - 1
	l := h.lanes[last]
	h.lanes[last] = nil
	h.lanes = h.lanes[:last]
	return l
}

func (h *laneHeap) add(l *lane)    { heap.Push(h, l) }
func (h *laneHeap) remove(l *lane) { heap.Remove(h, l.index) }
func (h *laneHeap) moved(l *lane)  { heap.Fix(h, l.index) }

// first returns the lane on top, nil when there is none.
func (h *laneHeap) first() *lane {
	if len(h.lanes) == 0 {
		return nil
	}
	return h.lanes[0]
}
