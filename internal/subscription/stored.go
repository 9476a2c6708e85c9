package subscription

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// place is what is stored of a subscription with each acknowledgement: the
// position, and the events before it that are not done with and that no record of
// a held order tells of. Everything else before the position is done.
type place struct {
	epoch    uint64
	position uint64
	heads    []head
}

// head is the oldest event of an order that is not done with.
type head struct {
	sequence uint64
	attempts uint64
}

const placeFormat = 1

// encode writes a place: the format, and numbers as varints. It is written with
// every acknowledgement, which is why it is small and not JSON.
func (p place) encode() []byte {
	slices.SortFunc(p.heads, func(a, b head) int { return cmp.Compare(a.sequence, b.sequence) })
	b := []byte{placeFormat}
	b = binary.AppendUvarint(b, p.epoch)
	b = binary.AppendUvarint(b, p.position)
	last := uint64(0)
	for _, h := range p.heads {
		b = binary.AppendUvarint(b, h.sequence-last)
		b = binary.AppendUvarint(b, h.attempts)
		last = h.sequence
	}
	return b
}

func decodePlace(b []byte) (place, error) {
	if len(b) == 0 || b[0] != placeFormat {
		return place{}, errors.New("the place is in a format of another version of ordergate")
	}
	b = b[1:]
	next := func() uint64 {
		n, size := binary.Uvarint(b)
		if size <= 0 {
			b = nil
			return 0
		}
		b = b[size:]
		return n
	}
	p := place{epoch: next(), position: next()}
	last := uint64(0)
	for len(b) > 0 {
		last += next()
		p.heads = append(p.heads, head{last, next()})
	}
	if p.epoch == 0 {
		return place{}, errors.New("the place is cut off")
	}
	return p, nil
}

// heldOrder is the record of an order that is held back, or has dead letters. It
// tells of all its events from the head on, as far as the position reaches.
type heldOrder struct {
	Epoch       uint64       `json:"epoch"`
	Head        *heldEvent   `json:"head,omitempty"`
	DeadLetters []heldLetter `json:"dead_letters,omitempty"`
}

// heldEvent is an event of a held order.
type heldEvent struct {
	Sequence uint64    `json:"sequence"`
	Stored   time.Time `json:"stored,omitzero"`
	Attempts int       `json:"attempts,omitempty"`
	Retry    time.Time `json:"retry,omitzero"`
	Goods    goods     `json:"goods,omitempty"`
}

// heldLetter is a dead letter of a held order.
type heldLetter struct {
	heldEvent
	EventID  string    `json:"event_id"`
	Kind     int32     `json:"kind"`
	Reason   int32     `json:"reason"`
	Detail   string    `json:"detail,omitempty"`
	Died     time.Time `json:"died"`
	Epoch    uint64    `json:"epoch"`
	Blocks   bool      `json:"blocks,omitempty"`
	Redriven bool      `json:"redriven,omitempty"`
}

func (i *item) held() heldEvent { return heldEvent{i.sequence, i.stored, i.attempts, i.retry, i.goods} }

func (h heldEvent) item() item { return item{h.Sequence, h.Stored, h.Goods, h.Attempts, h.Retry} }

// record is what is stored of a lane.
func (l *lane) record(epoch uint64) heldOrder {
	record := heldOrder{Epoch: epoch}
	if l.head != nil {
		head := l.head.held()
		record.Head = &head
	}
	for _, letter := range l.letters {
		record.DeadLetters = append(record.DeadLetters, heldLetter{
			heldEvent: letter.item.held(), EventID: letter.eventID, Kind: int32(letter.kind), Reason: int32(letter.reason),
			Detail: letter.detail, Died: letter.died, Epoch: letter.epoch, Blocks: letter.blocks, Redriven: letter.redriven,
		})
	}
	return record
}

// restore is the lane of a record. The head of another epoch is from before a
// seek, and so is what its dead letters block.
func (record heldOrder) restore(order string, epoch uint64) *lane {
	l := &lane{order: order, held: true}
	if record.Head != nil && record.Epoch == epoch {
		head := record.Head.item()
		l.head, l.more, l.covered = &head, true, true
	}
	for _, stored := range record.DeadLetters {
		l.put(letter{
			item: stored.item(), eventID: stored.EventID, kind: ordergatev1.OrderEventKind(stored.Kind), reason: ordergatev1.DeadLetterReason(stored.Reason),
			detail: stored.Detail, died: stored.Died, epoch: stored.Epoch, blocks: stored.Blocks && record.Epoch == epoch, redriven: stored.Redriven,
		})
	}
	return l
}

// changes is what is to be stored of a queue: a picture of it at one moment.
type changes struct {
	place   []byte
	seeked  bool // the place begins an epoch
	records map[string][]byte
	gone    []string
	sweep   bool // remove records that are not among these
	flush   bool // the place relies on records that are not on disk yet
	lanes   []*lane
	heads   []bool // whether the record of a lane tells of its head
}

// storeStep is a part of storing changes.
type storeStep int

const (
	storeRecords storeStep = iota
	storeFlush
	storePlace
	storeRemovals
)

// steps is the order in which changes are stored, so that whatever is cut off
// leaves events to be delivered again, and none to be lost: records are on disk
// before a place relies on them, and are removed when a place tells the rest. What
// records tell of the epochs before a seek is void with the place.
func (c *changes) steps() []storeStep {
	switch {
	case c.seeked:
		return []storeStep{storePlace, storeRecords, storeFlush, storeRemovals}
	case c.flush:
		return []storeStep{storeRecords, storeFlush, storePlace, storeRemovals}
	}
	return []storeStep{storeRecords, storePlace, storeRemovals}
}

// collect takes what is to be stored out of the queue. done or undo must follow.
func (q *queue) collect() *changes {
	c := &changes{seeked: q.seeked, sweep: q.doubted, records: map[string][]byte{}}
	p := place{epoch: q.epoch, position: q.position}
	for l := range q.loose {
		if l.dirty {
			value, err := json.Marshal(l.record(q.epoch))
			if err != nil {
				panic(err) // there is nothing in it that could not be encoded
			}
			c.records[l.order] = value
			c.lanes = append(c.lanes, l)
			c.heads = append(c.heads, l.head != nil)
			c.flush = c.flush || l.fresh || l.head != nil && !l.covered
			l.dirty, l.fresh = false, false
			continue
		}
		if l.head != nil {
			p.heads = append(p.heads, head{l.head.sequence, uint64(l.head.attempts)})
		}
	}
	for order := range q.gone {
		c.gone = append(c.gone, order)
	}
	c.place = p.encode()
	q.changed, q.seeked, q.doubted = false, false, false
	clear(q.gone)
	return c
}

// doubt has everything stored again: some of what was stored last may be gone, or
// back.
func (q *queue) doubt() {
	q.changed, q.doubted = true, true
	for _, l := range q.lanes {
		if l.held {
			l.dirty, l.fresh, l.covered = true, true, false
			q.loose[l] = true
		}
	}
}

// done notes that changes were stored.
func (q *queue) done(c *changes) {
	for i, l := range c.lanes {
		if l.held && !l.dirty {
			l.covered = c.heads[i]
		} else if !c.heads[i] {
			l.covered = false
		}
		if l.held && !l.dirty && (l.covered || l.head == nil) {
			delete(q.loose, l)
		}
	}
}

// undo puts changes back that could not be stored, or not in whole.
func (q *queue) undo(c *changes) {
	q.changed = true
	q.seeked = q.seeked || c.seeked
	q.doubted = q.doubted || c.sweep
	for _, l := range c.lanes {
		if l.held {
			l.dirty, l.fresh = true, true
			q.loose[l] = true
		}
	}
	for _, order := range c.gone {
		if l := q.lanes[order]; l == nil || !l.held {
			q.gone[order] = true
		}
	}
}
