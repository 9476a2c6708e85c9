// Package pipeline turns the stored events into order events: it reads INBOX,
// finds the order that each event is about, asks the orders package what the
// event does to it, and writes the result to ORDERS. It is the only writer of
// ORDERS, for operators too.
//
// It promises that an order is only ever changed by compare-and-set, that an
// event is done with only when what was made of it is on disk, and that an event
// that cannot be converted neither stops the ones behind it nor is lost: it is
// parked, with the reason, and comes again when its order appears or an operator
// asks for it.
//
// What can be decided here and now is done in the fast lane, in batches that
// share a flush. What has to ask Stripe first goes through the slow lane, one
// goroutine an event, bounded in number and time.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const (
	// maxDeliveries is how often an event is tried before it is given up, for a
	// reason that may pass: its order is not known yet, or something is wrong
	// with it. With the delays between them that is half a minute. An
	// unavailable log does not count against it.
	maxDeliveries = 6
	// maxOptional is the same for an event that need not have an order: most of
	// its kind have none, and must not hold up the others. A few seconds.
	maxOptional = 4
	// maxLookups is how often an event is tried while Stripe's API is away: with
	// the delays between them, more than an hour.
	maxLookups = 70
	// maxConflicts is how often one delivery applies an event again because
	// another writer was faster.
	maxConflicts     = 10
	maxConflictPause = 10 * time.Millisecond
	// parallel is how many orders the fast lane works on at a time, and parallelShared
	// how many in a cluster, where each of their steps waits for the network.
	parallel, parallelShared = 8, 64
	// maxFinishing is how many batches may wait for their flush while the next one
	// is converted.
	maxFinishing = 4
	// maxSlow is how many events are in the slow lane at most.
	maxSlow = 256
	// lookupTimeout bounds the slow lane's questions about one event.
	lookupTimeout = time.Minute
	// Delays between deliveries of an event: they double.
	firstRetry, lastRetry = time.Second, time.Minute
)

// Outcome is what became of an event.
type Outcome string

// What becomes of an event.
const (
	Converted Outcome = "CONVERTED" // an order event was made of it
	Unchanged Outcome = "UNCHANGED" // its order knew all that already
	Ignored   Outcome = "IGNORED"   // it is not about an order
	Unmatched Outcome = "UNMATCHED" // its order is not known; it is parked until then
	Failed    Outcome = "FAILED"    // it could not be converted, and is parked
	retried   Outcome = "RETRIED"   // it will be tried again
)

var (
	// errUnmatched means that the order of an event is not known.
	errUnmatched = errors.New("its order is not known")
	// errOfInvoice means that a PaymentIntent pays an invoice, and that no order
	// is known that the invoice is the sale of. There need be none.
	errOfInvoice = errors.New("no order is known of its invoice")
	// errAskStripe means that an event belongs into the slow lane.
	errAskStripe = errors.New("it needs an answer of Stripe's API first")
)

// Config says what to convert, and how.
type Config struct {
	// Log holds the events and takes the orders.
	Log *eventlog.Log
	// Stripe is asked for line items and for sales that were not heard of. Nil
	// without an API key.
	Stripe *stripeapi.Client
	// Sources says what makes orders beside Checkout Sessions.
	Sources orders.Sources
	// ItemsDeadline is how long an order waits for its line items, from when its
	// event was stored, before it goes out without them.
	ItemsDeadline time.Duration
	// Logger gets one line for each event.
	Logger *slog.Logger
	// Metrics is where the metrics are registered.
	Metrics prometheus.Registerer
	// Tracer makes the spans of events that were traced; nil makes none.
	Tracer trace.Tracer
}

// Pipeline converts events. Make one with New.
type Pipeline struct {
	Config
	measures *measures

	// replayed is the sequence up to which events may have been delivered before
	// the gateway was started. Set by Run.
	replayed uint64

	finishing errgroup.Group // batches that are being flushed
	slow      sync.WaitGroup // events in the slow lane
	slowSlots *semaphore.Weighted
	items     itemReader

	backfills backfills

	// What a test makes shorter.
	retryDelay    func(deliveries int) time.Duration
	itemsInterval time.Duration
	itemsPause    time.Duration
	backlogAge    time.Duration
}

// New returns a pipeline from the inbox of a log to its orders.
func New(cfg Config) *Pipeline {
	p := &Pipeline{
		Config:        cfg,
		slowSlots:     semaphore.NewWeighted(maxSlow),
		retryDelay:    retryDelay,
		itemsInterval: itemsInterval,
		itemsPause:    itemsPause,
		backlogAge:    backlogAge,
	}
	p.finishing.SetLimit(maxFinishing)
	p.measures = newMeasures(p, cfg.Metrics)
	return p
}

// Run converts events until ctx ends or the log is closed, and returns when the
// last one in hand is dealt with.
func (p *Pipeline) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	p.replayed = math.MaxUint64
	if state, err := p.Log.InboxState(ctx); err == nil {
		p.replayed = state.Last
	}
	var background sync.WaitGroup
	background.Go(func() { p.completeItems(ctx) })
	background.Go(func() { p.keepCursor(ctx) })
	background.Go(func() { p.shareBudget(ctx) })
	defer background.Wait()
	defer p.slow.Wait()
	defer p.finishing.Wait()
	defer stop()
	return p.Log.ConsumeInbox(ctx, p.handle)
}

// result is what became of one event in one delivery.
type result struct {
	stored     *eventlog.StoredEvent
	message    *eventlog.InboxMessage // nil when it does not come from the inbox now
	deliveries int
	event      *orders.Event // nil when it could not be read
	slow       bool          // it is in the slow lane, where Stripe is asked
	waited     bool          // it was parked until its order came
	orderID    string
	change     *orders.Change
	outcome    Outcome
	err        error
	span       trace.Span // nil when it is not traced
	// after is what is to be done once the event is on disk.
	after []func(context.Context) error
}

// handle converts a batch: the orders beside each other, the events of one
// order after each other. One flush covers the whole batch.
func (p *Pipeline) handle(ctx context.Context, batch []*eventlog.InboxMessage) {
	results := make([]*result, len(batch))
	for i, message := range batch {
		results[i] = &result{stored: &message.StoredEvent, message: message, deliveries: message.Deliveries}
	}
	each(results, runtime.GOMAXPROCS(0), p.read)
	families := map[string][]*result{}
	for _, r := range results {
		family := r.family()
		families[family] = append(families[family], r)
	}
	var (
		mu   sync.Mutex
		done []*result
	)
	each(slices.Collect(maps.Values(families)), p.parallel(), func(family []*result) {
		for _, r := range family {
			p.convert(ctx, r)
			if errors.Is(r.err, errAskStripe) {
				p.goSlow(ctx, r)
				continue
			}
			mu.Lock()
			done = append(done, r)
			mu.Unlock()
		}
	})
	// The next batch need not wait for this one's flush.
	p.finishing.Go(func() error { p.finish(ctx, done); return nil })
}

// each has a number of goroutines do what is to be done with the parts of a batch.
func each[T any](parts []T, goroutines int, do func(T)) {
	var (
		next    atomic.Int64
		workers sync.WaitGroup
	)
	for range min(goroutines, len(parts)) {
		workers.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(parts)); i = next.Add(1) - 1 {
				do(parts[i])
			}
		})
	}
	workers.Wait()
}

func (p *Pipeline) parallel() int {
	if p.Log.Shared() {
		return parallelShared
	}
	return parallel
}

// goSlow moves an event to the slow lane, or has it come again when that is
// full.
func (p *Pipeline) goSlow(ctx context.Context, r *result) {
	if !p.slowSlots.TryAcquire(1) {
		r.message.Retry(p.retryDelay(1))
		r.endSpan()
		return
	}
	r.slow, r.err = true, nil
	p.slow.Go(func() {
		defer p.slowSlots.Release(1)
		defer p.keep(r)()
		p.convert(ctx, r)
		p.finish(ctx, []*result{r})
	})
}

// keep has an event not come again, to this or another gateway, until stop.
func (p *Pipeline) keep(r *result) (stop func()) {
	tick, stopped := time.NewTicker(eventlog.KeepInterval), make(chan struct{})
	go func() {
		defer tick.Stop()
		for {
			select {
			case <-stopped:
				return
			case <-tick.C:
				_ = r.message.Keep() // it comes again then, which changes nothing
			}
		}
	}()
	return func() { close(stopped) }
}

// finish flushes what was made of events, and then is done with them.
func (p *Pipeline) finish(ctx context.Context, results []*result) {
	defer func() {
		for _, r := range results {
			r.endSpan()
		}
	}()
	if len(results) == 0 || ctx.Err() != nil {
		return
	}
	if err := p.Log.Flush(ctx); err != nil {
		// Nothing is acked: all of them come again.
		if ctx.Err() == nil {
			p.Logger.Error("converted events could not be flushed; they will be converted again", "events", len(results), "error", err)
		}
		return
	}
	for _, r := range results {
		p.settle(ctx, r)
	}
}

// family groups the events that are about the same sale, as far as they say so
// themselves.
func (r *result) family() string {
	if r.event == nil {
		return r.stored.ID
	}
	if references := r.event.References(); len(references) > 0 {
		return references[0].ID
	}
	if id := r.event.OrderID(); id != "" {
		return id
	}
	return r.stored.ID
}

// read decodes an event; a panic in the decoding is an error of that event.
func (p *Pipeline) read(r *result) {
	if r.stored.Erased {
		return
	}
	r.err = guard(func() (err error) {
		r.event, err = orders.Parse(r.stored.Body, p.Sources)
		return err
	})
}

// convert applies one event, and decides what becomes of it.
func (p *Pipeline) convert(ctx context.Context, r *result) {
	if r.stored.Erased {
		r.outcome = Erased
		return
	}
	ctx = p.traced(ctx, r)
	if r.event == nil { // what cannot be read now never can
		p.park(ctx, r, Failed)
		return
	}
	r.err = guard(func() error { return p.apply(ctx, r) })
	switch {
	case r.err == nil, errors.Is(r.err, errAskStripe) && !r.slow:
	case passing(ctx, r.err):
		r.outcome = retried
	case errors.Is(r.err, stripeapi.ErrUnavailable) && r.deliveries < maxLookups:
		r.outcome = retried
	case (errors.Is(r.err, errUnmatched) && r.event.Optional() || errors.Is(r.err, errOfInvoice)) && r.deliveries >= maxOptional:
		r.outcome, r.err = Ignored, nil
	case r.deliveries < maxDeliveries:
		r.outcome = retried
	case errors.Is(r.err, errUnmatched), errors.Is(r.err, stripeapi.ErrUnavailable):
		p.park(ctx, r, Unmatched)
	default:
		p.park(ctx, r, Failed)
	}
}

// passing reports whether an error is not the event's: the log is away, or the
// gateway stops.
func passing(ctx context.Context, err error) bool {
	return errors.Is(err, eventlog.ErrUnavailable) || errors.Is(err, eventlog.ErrFull) || ctx.Err() != nil
}

// apply finds the order of an event and changes it.
func (p *Pipeline) apply(ctx context.Context, r *result) error {
	if r.event.Ignored() {
		r.outcome = Ignored
		return nil
	}
	if err := p.rememberAccount(ctx, r.event); err != nil {
		return err
	}
	var err error
	if r.orderID, err = p.orderOf(ctx, r); err != nil {
		return err
	}
	recorded := p.record(r)
	err = p.applyTo(ctx, r)
	if recordErr := recorded(ctx); err == nil {
		err = recordErr // whoever waits for the order must find it
	}
	if errors.Is(err, errErased) {
		p.eraseLate(r)
		return nil
	}
	if err != nil {
		return err
	}
	r.outcome = Unchanged
	if r.change != nil {
		r.outcome = Converted
	}
	p.forgetParked(r)
	return p.match(ctx, r)
}

// applyTo changes the order of an event.
func (p *Pipeline) applyTo(ctx context.Context, r *result) error {
	items, err := p.lineItems(ctx, r)
	if err != nil {
		return err
	}
	if err := p.rememberPending(ctx, r, items); err != nil {
		return err
	}
	if r.event.OrderID() == r.orderID {
		// Most sales are new: the write finds out, without a look.
		change, err := orders.Apply(nil, r.event, items)
		if err == nil && change != nil {
			err = p.append(ctx, change, r.stored.ID, 0)
		}
		if change != nil && !errors.Is(err, eventlog.ErrConflict) {
			r.change = change
			return err
		}
	}
	r.change, err = p.change(ctx, r.orderID, r.stored.ID, func(current *ordergatev1.Order) (*orders.Change, error) {
		if current == nil && r.event.OrderID() != r.orderID {
			return nil, errUnmatched // it only adds to an order that is still to come
		}
		if orders.Erased(current) {
			return nil, errErased
		}
		return orders.Apply(current, r.event, items)
	})
	return err
}

// change makes an order event of what decide says of an order, with
// compare-and-set: when another writer was faster, decide is asked again. It
// returns nil when nothing changes.
func (p *Pipeline) change(ctx context.Context, orderID, sourceEventID string, decide func(current *ordergatev1.Order) (*orders.Change, error)) (*orders.Change, error) {
	for range maxConflicts {
		current, previous, err := p.newest(ctx, orderID)
		if err != nil {
			return nil, err
		}
		change, err := decide(current)
		if err != nil || change == nil {
			return nil, err
		}
		err = p.append(ctx, change, sourceEventID, previous)
		if !errors.Is(err, eventlog.ErrConflict) {
			return change, err
		}
		select { // the other write may still be on its way
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(rand.N(maxConflictPause)):
		}
	}
	return nil, fmt.Errorf("order %s changes too fast: %w", orderID, eventlog.ErrConflict)
}

// append writes a change behind the order's newest event, whose sequence is
// previous.
func (p *Pipeline) append(ctx context.Context, change *orders.Change, sourceEventID string, previous uint64) error {
	_, err := p.Log.AppendOrder(ctx, &ordergatev1.OrderEvent{
		Id:                change.Order.GetId() + "." + strconv.FormatInt(change.Order.GetRevision(), 10),
		Kind:              change.Kind,
		Order:             change.Order,
		SourceEventId:     sourceEventID,
		Note:              change.Note,
		PreviousDirective: change.PreviousDirective,
	}, previous)
	return err
}

// newest returns an order as it stands and the sequence of its newest event;
// nil and 0 for an order that does not exist yet.
func (p *Pipeline) newest(ctx context.Context, orderID string) (*ordergatev1.Order, uint64, error) {
	record, err := p.Log.NewestOrder(ctx, orderID)
	if errors.Is(err, eventlog.ErrNotFound) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	event, err := record.Event()
	if err != nil {
		return nil, 0, err
	}
	return event.GetOrder(), record.Sequence, nil
}

// settle acks an event or asks for it again, and logs what became of it. What
// was made of the event is on disk.
func (p *Pipeline) settle(ctx context.Context, r *result) {
	for _, do := range r.after {
		if err := do(ctx); err != nil {
			// It is done again with the next delivery.
			r.outcome, r.err = retried, errors.Join(r.err, err)
		}
	}
	p.measures.settled(r)
	p.logResult(r)
	if r.message == nil {
		return
	}
	if r.outcome == retried && ctx.Err() != nil && !p.Log.Shared() {
		// The next converter begins with it. Asked for now, it may get lost when the
		// engine resets the converter at that moment, and come two minutes later.
		return
	}
	var err error
	if r.outcome == retried {
		err = r.message.Retry(p.retryDelay(r.deliveries))
	} else {
		err = r.message.Ack()
	}
	if err != nil {
		p.Logger.Debug("an event could not be acked; it will come again", "event", r.stored.ID, "error", err)
	}
}

func retryDelay(deliveries int) time.Duration {
	delay := firstRetry
	for range deliveries - 1 {
		if delay *= 2; delay >= lastRetry {
			return lastRetry
		}
	}
	return delay
}

// logResult writes the one line of an event.
func (p *Pipeline) logResult(r *result) {
	args := []any{"type", r.eventType(), "event", r.stored.ID, "outcome", string(r.outcome)}
	if r.orderID != "" {
		args = append(args, "order", r.orderID, "mode", mode(r.event.Livemode))
	}
	if r.change != nil {
		order := r.change.Order
		args = append(args, "revision", order.GetRevision(),
			"kind", shortName(r.change.Kind.String(), "ORDER_EVENT_KIND_"), "directive", shortName(order.GetDirective().String(), "DIRECTIVE_"))
	}
	args = append(args, "secret", r.stored.SecretLabel)
	switch {
	case r.outcome == Failed:
		p.Logger.Error("event", append(args, "error", r.err, "check", "the event is kept; it can be reprocessed once ordergate can read it")...)
	case r.outcome == Unmatched:
		p.Logger.Warn("event", append(args, "error", r.err, "check", "the event is kept, and applied when its order appears")...)
	case r.outcome == retried && errors.Is(r.err, errUnmatched):
		p.Logger.Debug("event", append(args, "error", r.err, "delivery", r.deliveries)...)
	case r.outcome == retried:
		p.Logger.Warn("event", append(args, "error", r.err, "delivery", r.deliveries)...)
	default:
		p.Logger.Info("event", args...)
	}
	if r.change != nil {
		for _, warning := range r.change.Warnings {
			p.Logger.Warn(warning, "event", r.stored.ID, "order", r.orderID)
		}
	}
}

func (r *result) eventType() string {
	if r.event != nil {
		return r.event.Type
	}
	envelope, err := stripehook.ReadEnvelope(r.stored.Body)
	if err != nil {
		return ""
	}
	return envelope.Type
}

func mode(live bool) string {
	if live {
		return "live"
	}
	return "test"
}

func shortName(name, prefix string) string { return strings.TrimPrefix(name, prefix) }

// guard runs f and makes an error of a panic: one event must not stop the
// others.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}
