package eventlog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

const (
	// tailBytes bounds what is kept of the newest order events, and tailAge for how
	// long after they were stored.
	tailBytes = 32 << 20
	tailAge   = time.Hour
	// loadTimeout is how long readers wait for the tail after an opening, before they
	// read for themselves.
	loadTimeout = 3 * time.Second
	// tailBatch and tailBatchBytes bound what the engine sends ahead to the tail.
	tailBatch, tailBatchBytes = 1000, 16 << 20
)

// tail holds the newest order events, for all who follow the log at its end, and all
// who come back to it: the engine is asked for each of them once. Events get there
// when they are written, and are shown by the frontier, when they are on disk.
type tail struct {
	age    time.Duration
	loaded chan struct{} // closed when what was there at the opening is there

	mu sync.Mutex
	// records are all events behind the sequence from, up to to.
	records  []*OrderRecord
	from, to uint64
	bytes    int
	// newest is the newest of records of each order, by the order's id.
	newest map[string]*OrderRecord
}

// begin has the tail hold what is behind a sequence, which is to be added.
func (t *tail) begin(after uint64, age time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.age = tailAge; age > 0 {
		t.age = min(t.age, age)
	}
	t.records, t.from, t.to, t.bytes, t.newest = nil, after, after, 0, map[string]*OrderRecord{}
}

// await returns when the tail is loaded, unless it does not reach behind a sequence.
func (t *tail) await(ctx context.Context, after uint64) error {
	t.mu.Lock()
	reaches := after >= t.from
	t.mu.Unlock()
	if !reaches {
		return nil
	}
	select {
	case <-t.loaded:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// behind returns events behind the sequence after, up to last, as ReadOrders does.
// ok is false when the tail does not reach there, or not yet.
func (t *tail) behind(after, last uint64, limit int) (records []*OrderRecord, next uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trim()
	if after < t.from || t.to < last {
		return nil, 0, false
	}
	i, _ := slices.BinarySearchFunc(t.records, after+1, func(r *OrderRecord, sequence uint64) int { return int(r.Sequence) - int(sequence) })
	bytes := 0
	for _, r := range t.records[i:] {
		if r.Sequence > last {
			break
		}
		if len(records) == limit || bytes >= readBytes {
			return records, records[len(records)-1].Sequence, true
		}
		records = append(records, r)
		bytes += r.Size()
	}
	return records, max(after, last), true
}

// add appends the event that is stored behind the last one.
func (t *tail) add(r *OrderRecord) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records, t.to = append(t.records, r), r.Sequence
	t.newest[r.OrderID] = r
	t.bytes += r.Size()
	t.trim()
}

// newestAfter returns the newest event of an order after a sequence, nil if there is
// none. ok is false if the tail does not reach back to the sequence, or does not reach
// last yet.
func (t *tail) newestAfter(orderID string, after, last uint64) (r *OrderRecord, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if after < t.from || t.to < last {
		return nil, false
	}
	if r = t.newest[orderID]; r != nil && r.Sequence <= after {
		r = nil
	}
	return r, true
}

// trim drops what is too much and what is too old. Call it with the lock held.
func (t *tail) trim() {
	oldest := time.Now().Add(-t.age)
	drop := 0
	for ; drop < len(t.records) && (t.bytes > tailBytes || t.records[drop].Time.Before(oldest)); drop++ {
		r := t.records[drop]
		t.bytes -= r.Size()
		t.from = r.Sequence
		if t.newest[r.OrderID] == r {
			delete(t.newest, r.OrderID)
		}
		t.records[drop] = nil // the room is used again only when append makes more
	}
	t.records = t.records[drop:]
}

// forget drops the events of an order that was erased.
func (t *tail) forget(orderID string, below uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records = slices.DeleteFunc(slices.Clone(t.records), func(r *OrderRecord) bool { return r.OrderID == orderID && r.Sequence < below })
	if r := t.newest[orderID]; r != nil && r.Sequence < below {
		delete(t.newest, orderID)
	}
	t.bytes = 0
	for _, r := range t.records {
		t.bytes += r.Size()
	}
}

// follow has the engine send the newest events of ORDERS to the tail, and then what
// is written.
func (e *engine) follow(ctx context.Context, state jetstream.StreamState, age time.Duration) error {
	after := max(state.LastSeq-min(state.LastSeq, tailEvents(state)), max(state.FirstSeq, 1)-1)
	e.tail.begin(after, age)
	consumer, err := e.orders.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: after + 1})
	if err != nil {
		return err
	}
	loaded := sync.OnceFunc(func() { close(e.tail.loaded) })
	time.AfterFunc(loadTimeout, loaded)
	if info := consumer.CachedInfo(); info != nil && info.NumPending == 0 {
		loaded()
	}
	options := []jetstream.PullConsumeOpt{jetstream.PullMaxMessagesWithBytesLimit(tailBatch, tailBatchBytes)}
	if e.shared {
		options = append(options, jetstream.PullHeartbeat(beatInterval), jetstream.PullExpiry(sharedExpiry))
	}
	following, err := consumer.Consume(func(msg jetstream.Msg) {
		place, err := msg.Metadata()
		if err != nil { // it is of no stream
			return
		}
		record := orderRecord(msg.Subject(), place.Sequence.Stream, place.Timestamp, msg.Headers(), msg.Data())
		if record.Kind == ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED {
			e.tail.forget(record.OrderID, record.Sequence)
		}
		e.tail.add(record)
		e.arrive(place.Sequence.Stream)
		if place.NumPending == 0 {
			loaded()
		}
	}, append(options, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		if e.dead.Err() == nil {
			e.logger.Warn("following the order events was interrupted; going on", "error", err)
		}
	}))...)
	if err != nil {
		return err
	}
	e.background.Go(func() {
		<-e.dead.Done()
		following.Stop()
	})
	return nil
}

// tailEvents is about how many events the tail can hold.
func tailEvents(state jetstream.StreamState) uint64 {
	return tailBytes / 2 * state.Msgs / max(state.Bytes, 1)
}

// readNewest reads durable events behind the sequence after: the newest ones from
// memory.
func (e *engine) readNewest(ctx context.Context, after uint64, limit int) (records []*OrderRecord, next uint64, err error) {
	if err := e.tail.await(ctx, after); err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	frontier, _ := e.durable()
	if records, next, ok := e.tail.behind(after, frontier, limit); ok {
		return records, next, nil
	}
	if limit > 1 && after < frontier && !e.shared {
		if records, ok := e.readAhead(ctx, after, frontier, limit); ok {
			return records, records[len(records)-1].Sequence, nil
		}
	}
	return e.readDurable(ctx, after, limit)
}
