// Package subscription keeps durable subscriptions to order events: which events
// of the log a subscription's workers are done with, and who has which of the
// others.
//
// It promises:
//
//   - Every event that the filter selects is delivered until it is acknowledged,
//     skipped, or made a dead letter, whatever ends in between. In LATEST, the
//     newest revision of its order is delivered in its place, and nothing older
//     than the newest stored revision ever is.
//   - The events of one order are delivered in their order, one at a time: the
//     next one when the one before is settled. An order that is held back, by a
//     delay or a dead letter, holds back no other.
//   - A settlement that was answered OK survives a kill of the gateway: it was
//     written to the log. A power cut may undo the last moments of it, and then
//     events are delivered again, each order from its earliest one on.
//   - No event is copied. What is kept of a subscription is its position, the
//     oldest event that is not done with of each order that is out, and a record
//     for each order that is held back. Events are read again when they are
//     delivered again.
//
// A queue decides; a Subscription has it decide, reads for it and stores for it;
// the Manager has the subscriptions.
package subscription

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nuid"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

// What can go wrong, for errors.Is.
var (
	// ErrNotFound means that there is no such subscription, or no longer.
	ErrNotFound = errors.New("there is no such subscription")
	// ErrExists means that there is a subscription of that name.
	ErrExists = errors.New("there is a subscription of that name")
	// ErrTooMany means that there are as many subscriptions as there may be.
	ErrTooMany = errors.New("there are too many subscriptions")
	// ErrBusy means that a subscription has as many workers as it may have.
	ErrBusy = errors.New("the subscription has too many workers")
	// ErrClosed means that the gateway is ending.
	ErrClosed = errors.New("subscriptions are closed")
	// ErrNoDeadLetter means that an event is not a dead letter.
	ErrNoDeadLetter = errors.New("it is not a dead letter")
)

const (
	// maxSubscriptions is how many there may be.
	maxSubscriptions = 10_000
	// loadReads is how many events are read at once when a subscription is loaded.
	loadReads = 8

	defaultAckDeadline = 30 * time.Second
	defaultMaxAttempts = 20
	defaultMinBackoff  = time.Second
	defaultMaxBackoff  = 10 * time.Minute
)

var nameShape = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

// ValidName reports whether a subscription can have that name.
func ValidName(name string) bool { return nameShape.MatchString(name) }

// Manager has the subscriptions of a log. Its methods may be called from many
// goroutines.
type Manager struct {
	log    *eventlog.Log
	logger *slog.Logger
	life   uint64
	tracer trace.Tracer // nil: none

	stop       context.CancelFunc
	background sync.WaitGroup

	// mu guards the fields below. It is never held during a read or write of the log: the lock of
	// a name is, which delays nobody but those who want to load or change that subscription.
	mu      sync.Mutex
	loaded  map[string]*Subscription
	busy    map[string]chan struct{} // closed when the lock of the name is free
	count   int                      // of subscriptions, as of counted
	counted time.Time
	closed  bool
}

// countInterval is the age at which the number of subscriptions is counted again: other gateways
// make and delete some.
const countInterval = time.Minute

// lock takes the lock of a name.
func (m *Manager) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		m.mu.Lock()
		taken := m.busy[name]
		if taken == nil {
			free := make(chan struct{})
			m.busy[name] = free
			m.mu.Unlock()
			return func() {
				m.mu.Lock()
				defer m.mu.Unlock()
				delete(m.busy, name)
				close(free)
			}, nil
		}
		m.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-taken:
		}
	}
}

// New returns the manager of a log's subscriptions. Each is loaded when it is
// first asked for.
func New(log *eventlog.Log, logger *slog.Logger) *Manager {
	m := &Manager{log: log, logger: logger, life: rand.Uint64(), loaded: map[string]*Subscription{}, busy: map[string]chan struct{}{}}
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	m.background.Go(func() { m.watchLog(ctx) })
	m.background.Go(func() { m.upkeep(ctx) })
	return m
}

// watchLog has everything stored again whenever the log was opened again; where others
// share the log, loaded again.
func (m *Manager) watchLog(ctx context.Context) {
	known, _ := m.log.Opened()
	for {
		times, changed := m.log.Opened()
		switch {
		case times == known:
		case m.log.Shared():
			known = times
			m.dropAll()
		default:
			known = times
			for _, s := range m.all() {
				s.update(func(q *queue, _ time.Time) { q.doubt() })
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// Close ends every subscription, and stores what was settled.
func (m *Manager) Close() {
	m.stop()
	m.background.Wait()
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	var ending errgroup.Group
	ending.SetLimit(loadReads)
	for _, s := range m.all() {
		ending.Go(func() error { s.end(ErrClosed); return nil })
	}
	_ = ending.Wait() // it has no errors
}

// all returns the subscriptions that are loaded.
func (m *Manager) all() []*Subscription {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.loaded))
}

// storedSubscription is what is kept of a subscription's settings.
type storedSubscription struct {
	UID      string          `json:"uid"` // of everything else that is kept of it
	Settings json.RawMessage `json:"settings"`
}

func (m *Manager) settings() eventlog.Bucket { return m.log.Bucket(eventlog.Subscriptions) }

// Create makes a subscription that begins behind a sequence of the log. Its
// settings must be valid; those that are not set get their defaults.
func (m *Manager) Create(ctx context.Context, settings *ordergatev1.Subscription, after uint64) (*Subscription, error) {
	unlock, err := m.lock(ctx, settings.GetName())
	if err != nil {
		return nil, err
	}
	defer unlock()
	exists := fmt.Errorf("%w: %s", ErrExists, settings.GetName())
	if _, err := m.settings().Get(ctx, settings.GetName()); err == nil {
		return nil, exists
	} else if !errors.Is(err, eventlog.ErrNotFound) {
		return nil, err
	}
	if err := m.reserve(ctx); err != nil {
		return nil, err
	}
	settings = withDefaults(settings)
	settings.CreateTime = timestamppb.Now()
	uid := nuid.Next()
	begin := place{epoch: 1, position: after}
	places := m.log.Bucket(eventlog.Places)
	if err := places.Put(ctx, uid, begin.encode()); err != nil {
		return nil, err
	}
	// Before anybody can find it: else another gateway may be its first owner.
	if err := m.claim(ctx, uid); err != nil {
		return nil, err
	}
	value, err := encodeSettings(uid, settings)
	if err != nil {
		return nil, err
	}
	claimed, err := m.settings().Claim(ctx, settings.GetName(), value)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(claimed, value) { // another gateway was faster
		return nil, errors.Join(exists, places.Forget(ctx, uid), m.log.Bucket(eventlog.Owners).Forget(ctx, uid))
	}
	if err := m.log.Flush(ctx); err != nil {
		return nil, err
	}
	return m.load(ctx, settings.GetName())
}

// reserve counts one subscription more, or fails with ErrTooMany.
func (m *Manager) reserve(ctx context.Context) error {
	m.mu.Lock()
	current := time.Since(m.counted) < countInterval
	m.mu.Unlock()
	if !current {
		names, err := m.settings().Keys(ctx)
		if err != nil {
			return err
		}
		m.mu.Lock()
		m.count, m.counted = len(names), time.Now()
		m.mu.Unlock()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.count >= maxSubscriptions {
		return ErrTooMany
	}
	m.count++
	return nil
}

func encodeSettings(uid string, settings *ordergatev1.Subscription) ([]byte, error) {
	text, err := protojson.Marshal(settings)
	if err != nil {
		return nil, fmt.Errorf("encode the settings of a subscription: %w", err)
	}
	value, err := json.Marshal(storedSubscription{uid, text})
	if err != nil {
		return nil, fmt.Errorf("encode the settings of a subscription: %w", err)
	}
	return value, nil
}

// withDefaults returns settings in which everything has a value.
func withDefaults(settings *ordergatev1.Subscription) *ordergatev1.Subscription {
	settings = proto.CloneOf(settings)
	settings.Stats = nil
	if settings.AckDeadline == nil {
		settings.AckDeadline = durationpb.New(defaultAckDeadline)
	}
	if settings.MaxAttempts == 0 {
		settings.MaxAttempts = defaultMaxAttempts
	}
	if settings.MaxBackoff == nil {
		settings.MaxBackoff = durationpb.New(max(defaultMaxBackoff, settings.MinBackoff.AsDuration()))
	}
	if settings.MinBackoff == nil {
		settings.MinBackoff = durationpb.New(min(defaultMinBackoff, settings.MaxBackoff.AsDuration()))
	}
	if settings.DeadLetterPolicy == ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_UNSPECIFIED {
		settings.DeadLetterPolicy = ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_BLOCK
	}
	if settings.Delivery == ordergatev1.DeliveryMode_DELIVERY_MODE_UNSPECIFIED {
		settings.Delivery = ordergatev1.DeliveryMode_DELIVERY_MODE_LATEST
	}
	return settings
}

// Open returns a subscription. ErrNotFound when there is none of that name.
func (m *Manager) Open(ctx context.Context, name string) (*Subscription, error) {
	if s, err := m.inUse(name); s != nil || err != nil {
		return s, err
	}
	unlock, err := m.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return m.load(ctx, name)
}

// inUse returns a subscription that is loaded and is this gateway's, or nil.
func (m *Manager) inUse(name string) (*Subscription, error) {
	m.mu.Lock()
	s, closed := m.loaded[name], m.closed
	m.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	if s == nil {
		return nil, nil
	}
	s.update(func(*queue, time.Time) {}) // it may lapse
	if errors.Is(s.Err(), ErrMoved) {
		return nil, nil
	}
	return s, nil
}

// List returns the names of all subscriptions, sorted.
func (m *Manager) List(ctx context.Context) ([]string, error) {
	names, err := m.settings().Keys(ctx)
	slices.SortFunc(names, strings.Compare)
	return names, err
}

// Update changes settings. What change returns must be valid.
func (m *Manager) Update(ctx context.Context, name string, change func(*ordergatev1.Subscription) (*ordergatev1.Subscription, error)) (*Subscription, error) {
	unlock, err := m.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s, err := m.load(ctx, name)
	if err != nil {
		return nil, err
	}
	settings, err := change(proto.CloneOf(s.Settings()))
	if err != nil {
		return nil, err
	}
	settings = withDefaults(settings)
	value, err := encodeSettings(s.uid, settings)
	if err != nil {
		return nil, err
	}
	if err := m.settings().Put(ctx, name, value); err != nil {
		return nil, err
	}
	if err := m.log.Flush(ctx); err != nil {
		return nil, err
	}
	s.update(func(q *queue, _ time.Time) { q.settings = settings })
	return s, nil
}

// Delete removes a subscription.
func (m *Manager) Delete(ctx context.Context, name string) error {
	unlock, err := m.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	s, err := m.load(ctx, name)
	if err != nil {
		return err
	}
	if err := m.settings().Delete(ctx, name); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.loaded, name)
	m.count--
	m.mu.Unlock()
	s.end(fmt.Errorf("%w: it was deleted", ErrNotFound))
	// Without its settings, nothing finds the rest.
	if err := m.log.Bucket(eventlog.Places).Forget(ctx, s.uid); err != nil {
		return err
	}
	if err := m.log.Bucket(eventlog.HeldOrders).ForgetUnder(ctx, s.uid); err != nil {
		return err
	}
	if m.log.Shared() {
		if err := m.log.Bucket(eventlog.Places).ForgetUnder(ctx, s.uid); err != nil {
			return err
		}
		if err := m.log.Bucket(eventlog.Owners).Forget(ctx, s.uid); err != nil {
			return err
		}
	}
	return m.log.Flush(ctx)
}

// load returns a subscription, from what is stored unless it is loaded. Its name is locked.
func (m *Manager) load(ctx context.Context, name string) (*Subscription, error) {
	if s, err := m.inUse(name); s != nil || err != nil {
		return s, err
	}
	m.mu.Lock()
	moved := m.loaded[name]
	m.mu.Unlock()
	if moved != nil {
		moved.background.Wait()
		m.mu.Lock()
		if m.loaded[name] == moved {
			delete(m.loaded, name)
		}
		m.mu.Unlock()
	}
	value, err := m.settings().Get(ctx, name)
	if errors.Is(err, eventlog.ErrNotFound) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return nil, err
	}
	var stored storedSubscription
	settings := &ordergatev1.Subscription{}
	if err := json.Unmarshal(value, &stored); err != nil {
		return nil, fmt.Errorf("read the settings of the subscription %s: %w", name, err)
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(stored.Settings, settings); err != nil {
		return nil, fmt.Errorf("read the settings of the subscription %s: %w", name, err)
	}
	if settings.Delivery == ordergatev1.DeliveryMode_DELIVERY_MODE_UNSPECIFIED {
		// It was stored by a version that delivered every event.
		settings.Delivery = ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT
	}
	s := &Subscription{
		name: name, uid: stored.UID, term: m.log.Term(), log: m.log, logger: m.logger.With("subscription", name),
		wakeRead: make(chan struct{}, 1), wakeStore: make(chan struct{}, 1), ended: make(chan struct{}),
		q: newQueue(stored.UID, settings, m.life),
	}
	s.q.tracer = m.tracer
	if err := m.claim(ctx, s.uid); err != nil {
		return nil, err
	}
	if err := s.fence(ctx); err != nil {
		return nil, err
	}
	if err := s.restore(ctx); err != nil {
		return nil, fmt.Errorf("load the subscription %s: %w", name, err)
	}
	s.timer = time.AfterFunc(time.Hour, func() { s.update(func(*queue, time.Time) {}) })
	s.run()
	m.mu.Lock()
	closed := m.closed
	if !closed {
		m.loaded[name] = s
	}
	m.mu.Unlock()
	if closed {
		s.end(ErrClosed)
		return nil, ErrClosed
	}
	return s, nil
}

// restore makes the queue what was stored of it.
func (s *Subscription) restore(ctx context.Context) error {
	value, err := s.places.Get(ctx, s.uid)
	if err != nil {
		return err
	}
	stored, err := decodePlace(value)
	if err != nil {
		return err
	}
	q := s.q
	q.epoch, q.position = stored.epoch, stored.position
	if err := s.log.CatchUp(ctx, q.position); err != nil {
		return err
	}
	if durable, _ := s.log.Frontier(); q.position > durable {
		s.logger.Error("the subscription is ahead of the log: was the data directory put together of two? It goes on at the log's end",
			"position", q.position, "log", durable)
		q.position = durable
	}
	s.saved = q.position
	err = s.held.EntriesUnder(ctx, s.uid, func(key string, value []byte) error {
		var record heldOrder
		if err := json.Unmarshal(value, &record); err != nil {
			return fmt.Errorf("read what is held at %s: %w", key, err)
		}
		order := strings.TrimPrefix(key, s.heldKey(""))
		q.lanes[order] = record.restore(order, q.epoch)
		return nil
	})
	if err != nil {
		return err
	}
	if err := s.restoreHeads(ctx, stored.heads); err != nil {
		return err
	}
	q.restored(time.Now())
	return nil
}

// restored puts the lanes to work, once all that was stored has been put back.
func (q *queue) restored(now time.Time) {
	for _, l := range q.lanes {
		q.comesAgain(l)
		q.place(l, now)
	}
}

// restoreHeads finds the orders of events that were not done with, and what is
// behind them.
func (s *Subscription) restoreHeads(ctx context.Context, heads []head) error {
	var mu sync.Mutex
	gone := s.q.position + 1 // the first that is not kept
	reading, readingCtx := errgroup.WithContext(ctx)
	reading.SetLimit(loadReads)
	for _, h := range heads {
		reading.Go(func() error {
			records, _, err := s.log.ReadOrders(readingCtx, h.sequence-1, 1)
			if err != nil && !errors.Is(err, eventlog.ErrExpired) {
				return err
			}
			if err != nil || len(records) == 0 || records[0].Sequence != h.sequence {
				s.logger.Error(noLongerKept, "sequence", h.sequence)
				mu.Lock()
				defer mu.Unlock()
				gone = min(gone, h.sequence)
				return nil
			}
			order := records[0].OrderID
			f, err := s.lookUp(readingCtx, order, h.sequence, true)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			s.q.restoreHead(order, h, f.next, records[0].Time)
			s.q.lanes[order].head.goods = goodsOf(records[0])
			return nil
		})
	}
	if err := reading.Wait(); err != nil {
		return err
	}
	return s.restoreTombstones(ctx, gone)
}

// noLongerKept is said of an event that should be there.
const noLongerKept = "an event that was not acknowledged is no longer kept, by its age or because its order was erased: it is left out"

// restoreTombstones has the tombstones from a sequence on delivered, again if need
// be. An order of which an event is gone may have been erased, and it is not known
// any more which one that was.
func (s *Subscription) restoreTombstones(ctx context.Context, from uint64) error {
	return s.log.ScanOrders(ctx, from-1, s.q.position, func(records []*eventlog.OrderRecord, _ uint64) error {
		for _, r := range records {
			if wanted, err := r.Matches(s.q.settings.GetFilter()); err == nil && wanted {
				s.q.restoreTombstone(r)
			}
		}
		return nil
	})
}

// Erase has every subscription drop what it has of an order before its tombstone,
// and go on with that, if its filter selects it. The order's earlier events can be
// removed from the log when it returns, and when the gateways that it names have done
// the same: they have the other subscriptions.
func (m *Manager) Erase(ctx context.Context, tombstone *eventlog.OrderRecord) (others []string, err error) {
	names, err := m.List(ctx)
	if err != nil {
		return nil, err
	}
	elsewhere := map[string]bool{}
	for _, name := range names {
		s, err := m.Open(ctx, name)
		var there *ElsewhereError
		switch {
		case errors.Is(err, ErrNotFound):
			continue // it was deleted meanwhile
		case errors.As(err, &there):
			elsewhere[there.Member] = true
			continue
		case err != nil:
			return nil, err
		}
		err = s.change(ctx, func(q *queue, now time.Time) error {
			wanted, err := tombstone.Matches(q.settings.GetFilter())
			if err == nil {
				q.erase(tombstone, wanted, now)
			}
			return err
		})
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, fmt.Errorf("subscription %s: %w", name, err)
		}
	}
	return slices.Sorted(maps.Keys(elsewhere)), nil
}

// restoreHead puts the head of an order back, and what is behind it. A record of
// the order is older than the place, or came with one that was lost.
func (q *queue) restoreHead(order string, h head, next uint64, stored time.Time) {
	l := q.lanes[order]
	if l == nil {
		l = &lane{order: order}
		q.lanes[order] = l
	}
	l.head, l.next, l.more, l.covered = &item{sequence: h.sequence, stored: stored, attempts: int(h.attempts)}, next, next != 0, false
	q.loose[l] = true
}

// restoreTombstone has an event delivered that is a tombstone, unless what is known
// of its order leads there.
func (q *queue) restoreTombstone(r *eventlog.OrderRecord) {
	if r.Kind == ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED && q.lanes[r.OrderID] == nil {
		q.restoreHead(r.OrderID, head{sequence: r.Sequence}, 0, r.Time)
	}
}

// comesAgain drops what is known of events of a lane that come again anyway: the
// place that was stored behind them was lost.
func (q *queue) comesAgain(l *lane) {
	letters := len(l.letters)
	if l.head != nil && l.head.sequence > q.position {
		l.head, l.next, l.more, l.covered = nil, 0, false, false
	}
	l.letters = slices.DeleteFunc(l.letters, func(letter letter) bool {
		return letter.epoch == q.epoch && (letter.sequence > q.position || l.head != nil && letter.sequence >= l.head.sequence)
	})
	if l.held && (len(l.letters) < letters || l.head == nil) {
		q.note(l)
	}
}
