package eventlog

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/semaphore"
)

const (
	// farBehind is how many events a reader has before it for whom the engine reads ahead.
	farBehind = 1024
	// maxAheads is for how many readers it does so at a time.
	maxAheads = 16
	// aheadBatch and aheadBytes bound what waits for one reader; beside it there are the
	// bytes of one of the largest messages on their way.
	aheadBatch, aheadBytes = 512, 1 << 20
	// aheadIdle is how long a reader may stay away.
	aheadIdle = 10 * time.Second
	// aheadWait is how long a reader waits for what was to be sent ahead, before it
	// asks for it.
	aheadWait = 2 * time.Second
)

// ahead is a place in ORDERS from which the engine sends on what comes behind it: to one
// who reads on and on it costs a third of asking for each batch, and comes while the batch
// before it is dealt with.
type ahead struct {
	after    uint64 // what comes next is behind this sequence
	records  chan *OrderRecord
	room     *semaphore.Weighted // bytes
	received *OrderRecord        // and not read
	end      func()
	expiry   *time.Timer
}

// aheads are the places at which somebody may read on.
type aheads struct {
	stay time.Duration // how long an idle one is kept

	mu      sync.Mutex
	idle    []*ahead
	places  int // idle or in use
	changes int // how often what is stored was changed
}

// take returns the place behind a sequence: one at which somebody stopped reading, or
// an empty one, or none. changes is to be given back with it.
func (s *aheads) take(after uint64) (a *ahead, changes int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.idle, func(a *ahead) bool { return a.after == after }); i >= 0 {
		a = s.idle[i]
		s.idle = slices.Delete(s.idle, i, i+1)
		a.expiry.Stop()
		return a, s.changes
	}
	if s.places == maxAheads {
		return nil, 0
	}
	s.places++
	return &ahead{after: after}, s.changes
}

// give has the place used again. It reports whether what was read there is still stored.
func (s *aheads) give(a *ahead, changes int, usable bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !usable || changes != s.changes {
		s.drop(a)
		return false
	}
	s.idle = append(s.idle, a)
	a.expiry = time.AfterFunc(s.stay, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if i := slices.Index(s.idle, a); i >= 0 {
			s.idle = slices.Delete(s.idle, i, i+1)
			s.drop(a)
		}
	})
	return true
}

// forget drops what was sent ahead: some of it is stored no more.
func (s *aheads) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	for _, a := range s.idle {
		a.expiry.Stop()
		s.drop(a)
	}
	s.idle = nil
}

// drop gives up a place. Call it with the lock held.
func (s *aheads) drop(a *ahead) {
	s.places--
	if a.end != nil {
		a.end()
	}
}

// readAhead returns durable events behind a sequence below the frontier. ok is false when
// they have to be asked for.
func (e *engine) readAhead(ctx context.Context, after, frontier uint64, limit int) (records []*OrderRecord, ok bool) {
	a, changes := e.aheads.take(after)
	if a == nil {
		return nil, false
	}
	defer func() { ok = e.aheads.give(a, changes, ok) }()
	if a.records == nil {
		if after+farBehind > frontier || e.sendAhead(ctx, a) != nil {
			return nil, false
		}
	}
	if !a.await(ctx, e.dead) {
		return nil, false
	}
	for bytes := 0; len(records) < limit && bytes < readBytes && a.receive(); {
		r := a.received
		if r.Sequence > frontier || r.Sequence != a.after+1 { // whoever asks is told what is missing
			break
		}
		a.received = nil
		records, bytes, a.after = append(records, r), bytes+r.Size(), r.Sequence
	}
	return records, len(records) > 0
}

// receive reports whether something was received that was not read.
func (a *ahead) receive() bool {
	if a.received != nil {
		return true
	}
	select {
	case r := <-a.records:
		a.keep(r)
		return true
	default:
		return false
	}
}

// await is receive that waits, not for long: what comes next may have been removed.
func (a *ahead) await(ctx, dead context.Context) bool {
	if a.receive() {
		return true
	}
	wait := time.NewTimer(aheadWait)
	defer wait.Stop()
	select {
	case r := <-a.records:
		a.keep(r)
		return true
	case <-wait.C:
	case <-ctx.Done():
	case <-dead.Done():
	}
	return false
}

func (a *ahead) keep(r *OrderRecord) {
	a.received = r
	a.room.Release(r.room())
}

// sendAhead has the engine begin.
func (e *engine) sendAhead(ctx context.Context, a *ahead) error {
	consumer, err := e.orders.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: a.after + 1, InactiveThreshold: aheadIdle,
	})
	if err != nil {
		return err
	}
	a.records, a.room = make(chan *OrderRecord, aheadBatch), semaphore.NewWeighted(aheadBytes)
	wanted, cancel := context.WithCancel(e.dead)
	largest := int(e.conn.MaxPayload()) + headerBytes
	sending, err := consumer.Consume(func(msg jetstream.Msg) {
		place, err := msg.Metadata()
		if err != nil { // it is of no stream
			return
		}
		r := orderRecord(msg.Subject(), place.Sequence.Stream, place.Timestamp, msg.Headers(), msg.Data())
		if a.room.Acquire(wanted, r.room()) != nil {
			return
		}
		select {
		case a.records <- r:
		case <-wanted.Done():
		}
	}, jetstream.PullMaxBytes(largest))
	if err != nil {
		cancel()
		return fmt.Errorf("read ahead: %w", err)
	}
	a.end = func() {
		cancel()
		sending.Stop()
		go func() { // it would end by itself, after a while
			ctx, cancel := context.WithTimeout(e.dead, requestTimeout)
			defer cancel()
			_ = e.orders.DeleteConsumer(ctx, consumer.CachedInfo().Name)
		}()
	}
	return nil
}

// room is what the event takes of the room for one reader.
func (r *OrderRecord) room() int64 { return min(int64(r.Size()), aheadBytes) }
