package eventlog

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// tailBytes bounds what is kept of the newest order events, and tailAge for how
	// long after the last of them was read.
	tailBytes = 8 << 20
	tailAge   = time.Minute
	// tailReach is how far behind the newest event one may be who reads for all.
	tailReach = 10_000
	// tailBatch is how many are read at a time.
	tailBatch = 500
)

// tail holds the newest order events that were read, for all who follow the log
// at its end: they read each event once, together.
type tail struct {
	filling sync.Mutex // held by the one who reads for the others

	mu sync.Mutex
	// records are all durable events behind the sequence from, up to to.
	records  []*OrderRecord
	from, to uint64
	bytes    int
	read     time.Time // when the newest of them were read
}

// behind returns events behind the sequence after, as ReadOrders does. ok is false
// when the tail does not reach there.
func (t *tail) behind(after uint64, limit int) (records []*OrderRecord, next uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if after < t.from || after >= t.to || time.Since(t.read) > tailAge {
		return nil, 0, false
	}
	i, _ := slices.BinarySearchFunc(t.records, after+1, func(r *OrderRecord, sequence uint64) int { return int(r.Sequence) - int(sequence) })
	bytes := 0
	for _, r := range t.records[i:] {
		if len(records) == limit || bytes >= readBytes {
			return records, records[len(records)-1].Sequence, true
		}
		records = append(records, r)
		bytes += r.Size()
	}
	return records, t.to, true
}

// end returns where to read on for all who follow the log, one of whom is at a
// sequence. ok is false for one who is too far behind for that.
func (t *tail) end(after uint64) (end uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(after, t.to), after >= t.from
}

// add appends what was read behind the sequence after, up to next.
func (t *tail) add(records []*OrderRecord, after, next uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if after != t.to { // nobody was there for a while
		t.records, t.from, t.bytes = nil, after, 0
	}
	t.records, t.to, t.read = append(t.records, records...), next, time.Now()
	for _, r := range records {
		t.bytes += r.Size()
	}
	drop := 0
	for ; drop < len(t.records) && t.bytes > tailBytes; drop++ {
		t.bytes -= t.records[drop].Size()
		t.from = t.records[drop].Sequence
	}
	t.records = slices.Delete(t.records, 0, drop)
}

// forget drops the events of an order that was erased.
func (t *tail) forget(orderID string, below uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records = slices.DeleteFunc(slices.Clone(t.records), func(r *OrderRecord) bool { return r.OrderID == orderID && r.Sequence < below })
	t.bytes = 0
	for _, r := range t.records {
		t.bytes += r.Size()
	}
}

// readNewest reads durable events behind the sequence after, together with all who
// follow the log at its end.
func (e *engine) readNewest(ctx context.Context, after uint64, limit int) (records []*OrderRecord, next uint64, err error) {
	if err := e.extendTail(ctx, after); err != nil {
		return nil, 0, err
	}
	if records, next, ok := e.tail.behind(after, limit); ok {
		return records, next, nil
	}
	return e.readDurable(ctx, after, limit)
}

// extendTail reads what is new for all who wait for it, one of whom is at a sequence.
func (e *engine) extendTail(ctx context.Context, after uint64) error {
	news := func() (end uint64, ok bool) {
		frontier, _ := e.durable()
		end, ok = e.tail.end(after)
		return end, ok && end < frontier && frontier-end <= tailReach
	}
	if _, ok := news(); !ok {
		return nil
	}
	e.tail.filling.Lock()
	defer e.tail.filling.Unlock()
	end, ok := news()
	if !ok { // another one was faster
		return nil
	}
	records, next, err := e.readDurable(ctx, end, tailBatch)
	if err == nil {
		e.tail.add(records, end, next)
	}
	return err
}
