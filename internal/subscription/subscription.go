package subscription

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

const (
	// readBatch is how many events are looked at together.
	readBatch = 256
	// minReadBatch is how many are looked at when fewer are wanted.
	minReadBatch = 32
	// laneBatch is how many orders' events are read before the log is read on.
	laneBatch = 64
	// laneEvents is how many events of an order are read together.
	laneEvents = 8
	// newestEvents is how many events of an order are read together to find those that
	// its newest one replaces.
	newestEvents = 64
	// currentReads is how many deliveries are compared with the newest revisions of their
	// orders at once.
	currentReads = 8
	// unsavedEvents is after how many events that nobody wanted the position is
	// stored.
	unsavedEvents = 5_000
	// storeTimeout bounds one store.
	storeTimeout = 20 * time.Second
	// maxWorkers is how many workers may have a subscription open.
	maxWorkers = 1000
)

// Subscription is a subscription that is loaded. Its methods may be called from
// many goroutines.
type Subscription struct {
	name   string
	uid    string
	log    *eventlog.Log
	logger *slog.Logger

	places, held eventlog.Bucket // behind a fence
	term         int64           // of the log, when it was loaded

	stop       context.CancelFunc
	background sync.WaitGroup
	wakeRead   chan struct{} // holds one
	wakeStore  chan struct{} // holds one

	mu      sync.Mutex
	q       *queue
	timer   *time.Timer   // fires when a lease or a delay is over
	err     error         // why nothing is delivered any more
	ended   chan struct{} // closed when err is set
	waiting *store        // the next store, once somebody waits for it
	storing *store        // the one that is under way
	saved   uint64        // the position that is stored
	reading int           // how many orders' events are being read
	full    bool          // it was said that too many orders are held back

	ahead ahead
}

// store is one store of what was settled. err is set before done is closed.
type store struct {
	done chan struct{}
	err  error
}

// run begins the work on a loaded queue.
func (s *Subscription) run() {
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.background.Go(func() { s.readAll(ctx) })
	s.background.Go(func() { s.storeAll(ctx) })
	s.update(func(*queue, time.Time) {})
}

// end stops the work. What was settled is stored, unless the subscription is
// deleted.
func (s *Subscription) end(err error) {
	s.mu.Lock()
	if s.err == nil {
		s.err = err
		close(s.ended)
		s.timer.Stop()
	}
	s.mu.Unlock()
	s.stop()
	s.background.Wait()
}

// Ended is closed when the subscription is deleted or the gateway ends; Err says
// which.
func (s *Subscription) Ended() <-chan struct{} { return s.ended }

// Err returns why nothing is delivered any more; nil while it is.
func (s *Subscription) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// update changes the queue, and sets in motion what follows from that.
func (s *Subscription) update(change func(q *queue, now time.Time)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !s.log.Holds(s.term) {
		s.lapse()
	}
	change(s.q, now)
	if s.err != nil {
		return
	}
	next := s.q.tick(now)
	s.q.dispatch(now)
	if next.IsZero() {
		s.timer.Stop()
	} else {
		s.timer.Reset(next.Sub(now))
	}
	if s.q.demand() > 0 {
		wake(s.wakeRead)
	}
	if s.q.changed || s.waiting != nil || s.q.position > s.saved+unsavedEvents {
		wake(s.wakeStore)
	}
}

func wake(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}

// stored returns the store that covers all that was settled until now; nil when
// nothing is left to be stored. Call it with the lock held.
func (s *Subscription) stored() *store {
	if !s.q.changed {
		return s.storing
	}
	if s.waiting == nil {
		s.waiting = &store{done: make(chan struct{})}
	}
	return s.waiting
}

// storeAll stores what was settled, as much together as there is, until ctx ends;
// then once more.
func (s *Subscription) storeAll(ctx context.Context) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, 5*time.Second
	for {
		select {
		case <-ctx.Done():
		case <-s.wakeStore:
		}
		last := ctx.Err() != nil
		err := s.store(context.WithoutCancel(ctx))
		if err != nil {
			s.logger.Warn("what was settled could not be stored", "error", err)
		}
		if errors.Is(err, eventlog.ErrFenced) {
			s.mu.Lock()
			s.lapse()
			s.mu.Unlock()
			return
		}
		switch {
		case last:
			return
		case err == nil:
			pause.Reset()
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause.NextBackOff()):
		}
		wake(s.wakeStore)
	}
}

func (s *Subscription) store(ctx context.Context) error {
	s.mu.Lock()
	if errors.Is(s.err, ErrNotFound) { // it was deleted
		if s.waiting != nil {
			s.waiting.finish(s.err)
			s.waiting = nil
		}
		s.mu.Unlock()
		return nil
	}
	if !s.q.changed && s.waiting == nil && s.q.position == s.saved {
		s.mu.Unlock()
		return nil
	}
	group, position := s.waiting, s.q.position
	if group == nil {
		group = &store{done: make(chan struct{})}
	}
	s.waiting, s.storing = nil, group
	c := s.q.collect()
	s.mu.Unlock()

	err := s.write(ctx, c)

	s.mu.Lock()
	defer s.mu.Unlock()
	s.storing = nil
	if err != nil {
		s.q.undo(c)
	} else {
		s.q.done(c)
		s.saved = position
	}
	group.finish(err)
	return err
}

func (s *store) finish(err error) {
	s.err = err
	close(s.done)
}

// write stores changes.
func (s *Subscription) write(ctx context.Context, c *changes) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	for _, step := range c.steps() {
		if err := s.do(ctx, step, c); err != nil {
			return err
		}
	}
	return nil
}

func (s *Subscription) do(ctx context.Context, step storeStep, c *changes) error {
	switch step {
	case storePlace:
		return s.places.Put(ctx, s.uid, c.place)
	case storeFlush:
		return s.log.Flush(ctx)
	case storeRecords:
		for order, record := range c.records {
			if err := s.held.Put(ctx, s.heldKey(order), record); err != nil {
				return err
			}
		}
	case storeRemovals:
		if c.sweep {
			if err := s.findUnknown(ctx, c); err != nil {
				return err
			}
		}
		for _, order := range c.gone {
			if err := s.held.Delete(ctx, s.heldKey(order)); err != nil {
				return err
			}
		}
	}
	return nil
}

// findUnknown adds the records that should not be there to those that go.
func (s *Subscription) findUnknown(ctx context.Context, c *changes) error {
	return s.held.EntriesUnder(ctx, s.uid, func(key string, _ []byte) error {
		if order := strings.TrimPrefix(key, s.heldKey("")); c.records[order] == nil {
			c.gone = append(c.gone, order)
		}
		return nil
	})
}

func (s *Subscription) heldKey(order string) string { return s.uid + "." + order }

// readAll reads what the workers can be given, until ctx ends.
func (s *Subscription) readAll(ctx context.Context) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 50*time.Millisecond, 5*time.Second
	for ctx.Err() == nil {
		durable, moved := s.log.Frontier()
		lanes, position, epoch, want := s.wanted(durable)
		var err error
		for _, read := range lanes {
			err = errors.Join(err, s.readLane(ctx, read))
		}
		readOn := want > len(lanes) && durable > position
		if err == nil && readOn {
			err = s.readOn(ctx, epoch, position, want-len(lanes))
		}
		switch {
		case err != nil:
			s.logger.Warn("the log could not be read for a subscription; trying again", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause.NextBackOff()):
			}
			continue
		case len(lanes) > 0 || readOn:
			pause.Reset()
			continue
		case want == 0:
			moved = nil
		default:
			s.rest()
		}
		select {
		case <-ctx.Done():
		case <-s.wakeRead:
		case <-moved:
		}
	}
}

// rest tells those who wait for a limited number of events that there are none.
func (s *Subscription) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.q.workers {
		if w.limit > 0 {
			w.wake()
		}
	}
}

// CaughtUp reports whether there is nothing that could be delivered now.
func (s *Subscription) CaughtUp() bool {
	durable, _ := s.log.Frontier()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.q.position >= durable && len(s.q.unread) == 0 && s.reading == 0 && s.q.ready.Len() == 0
}

// wanted returns what is to be read: lanes, and how many events in all.
func (s *Subscription) wanted(durable uint64) (lanes []laneRead, position, epoch uint64, want int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, 0, 0, 0
	}
	lanes, want = s.q.wanted(durable > s.q.position)
	s.reading = len(lanes)
	full := s.q.full()
	if full && !s.full {
		s.logger.Error("too many orders are held back: no further events are looked at",
			"orders", len(s.q.lanes), "mend", "see why they fail (ordergate dead-letters list), then redrive or discard them")
	}
	s.full = full
	return lanes, s.q.position, s.q.epoch, want
}

// readLane reads the event that a lane delivers next.
func (s *Subscription) readLane(ctx context.Context, read laneRead) error {
	var f found
	var err error
	if read.latest {
		f, err = s.lookUpNewest(ctx, read.lane.order, read.sequence)
	} else {
		f, err = s.lookUp(ctx, read.lane.order, read.sequence, read.behind)
	}
	s.update(func(q *queue, now time.Time) {
		switch {
		case err != nil:
			q.readAgain(read)
		case !q.apply(read, f, now):
			s.logger.Error(noLongerKept, "order", read.lane.order, "sequence", read.sequence)
		}
	})
	return err
}

// lookUp reads an event of an order and, if behind is set, finds the event after it.
func (s *Subscription) lookUp(ctx context.Context, order string, sequence uint64, behind bool) (f found, err error) {
	s.mu.Lock()
	filter := s.q.settings.GetFilter()
	f.upTo = s.q.position
	s.mu.Unlock()
	limit := 1
	if behind {
		limit = laneEvents
	}
	for after := sequence - 1; ; {
		records, err := s.log.OrderEvents(ctx, order, after, limit)
		if err != nil {
			return found{}, err
		}
		for _, r := range records {
			switch wanted, err := r.Matches(filter); {
			case r.Sequence > f.upTo && r.Sequence != sequence:
				return f, nil
			case r.Sequence == sequence:
				f.record, f.stored, f.checked = r, r.Time, r.Sequence
			case behind && (wanted || err != nil):
				f.next = r.Sequence
				return f, nil
			}
			after = r.Sequence
		}
		if len(records) == 0 || !behind {
			return f, nil
		}
	}
}

// lookUpNewest reads the newest event of an order, and finds the pending events from a
// sequence on that it replaces.
func (s *Subscription) lookUpNewest(ctx context.Context, order string, sequence uint64) (f found, err error) {
	filter := s.Settings().GetFilter()
	f.checked, _ = s.log.Frontier()
	f.record, err = s.log.NewestAfter(ctx, order, sequence-1, false)
	if err != nil || f.record == nil {
		return found{checked: f.checked}, err
	}
	f.checked = max(f.checked, f.record.Sequence)
	pending := func(r *eventlog.OrderRecord) bool {
		wanted, err := r.Matches(filter)
		if !wanted && err == nil && r.Sequence != sequence {
			return false
		}
		if f.last = r.Sequence; f.stored.IsZero() {
			f.stored = r.Time
		}
		return true
	}
	for after := sequence - 1; after < f.record.Sequence-1; {
		records, err := s.log.OrderEvents(ctx, order, after, newestEvents)
		if err != nil {
			return found{}, err
		}
		if len(records) == 0 {
			break // they were removed, by their age or with an erasure
		}
		for _, r := range records {
			if after = r.Sequence; after < f.record.Sequence && pending(r) {
				f.replaced = append(f.replaced, r.Revision())
			}
		}
	}
	f.replaced = f.replaced[max(0, len(f.replaced)-maxReplaced):]
	if !pending(f.record) && f.last == 0 {
		return found{checked: f.checked}, nil // the target was removed, and nothing is pending after it
	}
	matches, err := f.record.MatchesOrder(filter)
	f.excluded = !matches && err == nil // one that cannot be read is delivered, which reports it
	return f, nil
}

// Current compares deliveries with the newest revisions of their orders. Call it right
// before they are sent, and send those that it returns. The others are delivered later:
// in LATEST those that have a newer revision, and those whose newest revision cannot be
// read.
func (s *Subscription) Current(ctx context.Context, deliveries []Delivery) (current []Delivery) {
	latest := s.Settings().GetDelivery() == ordergatev1.DeliveryMode_DELIVERY_MODE_LATEST
	outdated := make([]bool, len(deliveries))
	var reading errgroup.Group
	reading.SetLimit(currentReads)
	for i := range deliveries {
		d := &deliveries[i]
		reading.Go(func() error {
			newest, err := s.log.NewestAfter(ctx, d.Record.OrderID, d.checked, d.Record.ToShip())
			switch {
			case err != nil:
				s.logger.Warn("newest revision not read; delivery postponed", "order", d.Record.OrderID, "error", err)
				outdated[i] = true
			case newest == nil:
				d.Newest = d.Record
			default:
				d.Newest, outdated[i] = newest, latest
			}
			return nil
		})
	}
	_ = reading.Wait() // it has no errors
	var recalled []string
	for i, d := range deliveries {
		if outdated[i] {
			recalled = append(recalled, d.ID)
		} else {
			current = append(current, d)
		}
	}
	if len(recalled) > 0 {
		s.update(func(q *queue, now time.Time) {
			for _, id := range recalled {
				q.recall(id, now)
			}
		})
	}
	return current
}

// readOn looks at further events of the log.
func (s *Subscription) readOn(ctx context.Context, epoch, position uint64, want int) error {
	s.mu.Lock()
	filter := s.q.settings.GetFilter()
	s.mu.Unlock()
	records, next, err := s.log.ReadOrders(ctx, position, min(max(want, minReadBatch), readBatch))
	if errors.Is(err, eventlog.ErrExpired) {
		state, stateErr := s.log.OrdersState(ctx)
		if stateErr != nil {
			return stateErr
		}
		s.logger.Error("events were removed, by their age or because their orders were erased, before the subscription had them; going on with the oldest that are kept",
			"from", position+1, "to", state.First-1)
		records, next, err = nil, state.First-1, nil
	}
	if err != nil {
		return err
	}
	wanted := make([]bool, len(records))
	for i, record := range records {
		matches, err := record.Matches(filter)
		// What cannot be read is delivered, which finds out, and makes it a dead letter.
		wanted[i] = matches || err != nil
	}
	s.update(func(q *queue, now time.Time) {
		if q.epoch != epoch || q.position != position {
			return // there was a seek meanwhile
		}
		for i, record := range records {
			q.arrive(record, wanted[i], now)
		}
		q.position = next
	})
	return nil
}

// Delivery is an event that is leased to a worker.
type Delivery struct {
	// ID is how the worker settles it.
	ID string
	// Record is the event.
	Record *eventlog.OrderRecord
	// Attempt counts the deliveries of the event, from 1.
	Attempt int
	// LeaseEnd is when the lease ends unless it is extended.
	LeaseEnd time.Time
	// Redriven says that the event was a dead letter.
	Redriven bool
	// Replaced are the revisions of the pending events that this delivery replaces.
	Replaced []int64
	// Newest is the newest event of the order. Set by Current.
	Newest *eventlog.OrderRecord

	checked uint64 // Record is the order's newest event up to here
}

// WorkerConfig says what a worker takes.
type WorkerConfig struct {
	// ClientID is whose window counts; a window of its own when empty.
	ClientID string
	// MaxEvents and MaxBytes are the window.
	MaxEvents int
	MaxBytes  int64
	// AckDeadline is how long leases last; the subscription's own when 0.
	AckDeadline time.Duration
	// Limit is how many events the worker takes in all, and then leaves, its
	// leases going on; 0 is a stream, without limit, whose leases end with it.
	Limit int
	// LimitBytes ends what a worker with a Limit takes early. One event is always
	// taken.
	LimitBytes int64
}

// Worker is one who works on a subscription: a stream, or one call of Pull.
type Worker struct {
	s      *Subscription
	signal chan struct{} // holds one

	// Guarded by the subscription.
	client      *client
	ackDeadline time.Duration
	limit       int
	limitBytes  int64
	served      int
	servedBytes int64
	turn        uint64             // of its last assignment
	leased      map[*lane]struct{} // assigned to it
	unsent      []*lane            // of these, those that are not sent
	stopped     bool
}

// Attach adds a worker; detach it in the end. ErrBusy when there are too many.
func (s *Subscription) Attach(config WorkerConfig) (*Worker, error) {
	w := &Worker{s: s, signal: make(chan struct{}, 1), ackDeadline: config.AckDeadline, limit: config.Limit, limitBytes: config.LimitBytes}
	err := ErrBusy
	s.update(func(q *queue, _ time.Time) {
		if s.err != nil {
			err = s.err
			return
		}
		if len(q.workers) >= maxWorkers {
			return
		}
		if w.ackDeadline == 0 {
			w.ackDeadline = q.settings.GetAckDeadline().AsDuration()
		}
		err = nil
		q.attach(w, config.ClientID, config.MaxEvents, config.MaxBytes)
	})
	if err != nil {
		return nil, err
	}
	return w, nil
}

// Signal tells, once for any number of causes, that there is something to take,
// that a stopped worker has become idle, or, to a worker with a limit, that there
// is nothing to take.
func (w *Worker) Signal() <-chan struct{} { return w.signal }

func (w *Worker) wake() { wake(w.signal) }

// Take returns what was assigned to the worker. The leases begin.
func (w *Worker) Take() []Delivery {
	var deliveries []Delivery
	w.s.update(func(q *queue, now time.Time) {
		if w.s.err == nil {
			deliveries = q.take(w, now)
		}
	})
	return deliveries
}

// AckDeadline is how long the worker's leases last.
func (w *Worker) AckDeadline() time.Duration { return w.ackDeadline }

// Stop has nothing more assigned to the worker.
func (w *Worker) Stop() { w.s.update(func(q *queue, now time.Time) { q.stop(w, now) }) }

// Idle reports whether the worker has nothing in hand.
func (w *Worker) Idle() bool {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return len(w.leased) == 0
}

// Detach ends the worker.
func (w *Worker) Detach() { w.s.update(func(q *queue, now time.Time) { q.detach(w, now) }) }

// Settlement is what becomes of deliveries, once it is stored.
type Settlement struct {
	results []*ordergatev1.DeliveryResult
	store   *store
}

// Stored is closed when the results are known.
func (s *Settlement) Stored() <-chan struct{} {
	if s.store == nil {
		return closed
	}
	return s.store.done
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Results returns one result for each delivery, in the order in which they were
// given: acks, nacks, extensions. Call it when Stored is closed.
func (s *Settlement) Results() []*ordergatev1.DeliveryResult {
	if s.store != nil && s.store.err != nil {
		for _, result := range s.results {
			if result.Code == ok && result.LeaseExpireTime == nil {
				result.Code = retryable
			}
		}
	}
	return s.results
}

// Settle settles and extends deliveries. The nacks must be valid, and an
// extension's deadline set.
func (s *Subscription) Settle(acks []string, nacks []*ordergatev1.Nack, extensions []*ordergatev1.Extension) *Settlement {
	settlement := &Settlement{}
	s.update(func(q *queue, now time.Time) {
		if s.err != nil {
			settlement.store = &store{done: closed, err: s.err}
		}
		for _, id := range acks {
			settlement.add(id, q.ack(id, now))
		}
		for _, nack := range nacks {
			settlement.add(nack.GetDeliveryId(), q.nack(nack, now))
		}
		for _, extension := range extensions {
			code, end := q.extend(extension.GetDeliveryId(), extension.GetAckDeadline().AsDuration(), now)
			settlement.add(extension.GetDeliveryId(), code)
			if code == ok {
				settlement.results[len(settlement.results)-1].LeaseExpireTime = timestamppb.New(end)
			}
		}
		if len(acks)+len(nacks) > 0 && s.err == nil {
			settlement.store = s.stored()
		}
	})
	return settlement
}

func (s *Settlement) add(deliveryID string, code ordergatev1.DeliveryResultCode) {
	s.results = append(s.results, &ordergatev1.DeliveryResult{DeliveryId: deliveryID, Code: code})
}

// Fault makes a delivery that could not be sent a dead letter.
func (s *Subscription) Fault(deliveryID, detail string) {
	s.update(func(q *queue, now time.Time) { q.fault(deliveryID, detail, now) })
}

// Settings returns the settings, without figures.
func (s *Subscription) Settings() *ordergatev1.Subscription {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.q.settings
}

// await waits for a store; nil is done.
func (s *Subscription) await(ctx context.Context, pending *store) error {
	if pending == nil {
		return nil
	}
	select {
	case <-pending.done:
		return pending.err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", eventlog.ErrUnavailable, ctx.Err())
	}
}
