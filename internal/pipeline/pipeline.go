// Package pipeline turns the stored Stripe events into order events: it reads INBOX, finds the order
// of each event, asks the orders package for the change that the event makes, and writes that to
// ORDERS. It is the only writer of ORDERS, for operators too.
//
// Its promises:
//
//   - An order is only ever changed by compare-and-set.
//   - An event is acknowledged only when its outcome is on disk. An event that cannot be converted
//     leaves the queue at once: it is parked with the reason (FAILED), indexed under its references
//     until its order appears (WAITING), or becomes a task if Stripe must be asked first. So no
//     event waits in the queue that others need.
//   - A change of an order includes everything that waits for the order, in the same revision.
//     Events that are converted together become one revision if a revision on the way would say
//     SHIP and the last one does not.
//
// The files: convert.go decides and writes, waiting.go keeps the index of events without an order,
// resolve.go asks Stripe for orders, items.go for line items, agenda.go runs tasks that are due
// later, outcome.go stores the result of each event.
package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const (
	// parallel is the number of orders that are converted at a time, and parallelShared that in a
	// cluster, where each step waits for the network.
	parallel, parallelShared = 8, 64
	// maxFinishing is the number of batches that may wait for their flush while the next one is
	// converted.
	maxFinishing = 4
	// firstRetry and lastRetry bound the delays between attempts, which double.
	firstRetry, lastRetry = time.Second, time.Minute
	// maxLookupRetry bounds the delay between attempts to look up a waiting event.
	maxLookupRetry = time.Hour
)

// Config is the configuration of a Pipeline.
type Config struct {
	// Log holds the events and takes the orders.
	Log *eventlog.Log
	// Stripe answers questions about line items and about sales that are not known. Nil without an
	// API key.
	Stripe *stripeapi.Client
	// Sources are the objects that make orders beside Checkout Sessions.
	Sources orders.Sources
	// ItemsDeadline is the time from the storage of an order's event until the order goes out
	// without its line items.
	ItemsDeadline time.Duration
	// ShipDelay is the settling period of a paid order, before it may be shipped. 0 is none.
	ShipDelay time.Duration
	// Logger gets one line for each event.
	Logger *slog.Logger
	// Metrics is the registry of the metrics.
	Metrics prometheus.Registerer
	// Tracer makes the spans of events that were traced; nil makes none.
	Tracer trace.Tracer
}

// Pipeline converts events. Make one with New.
type Pipeline struct {
	Config
	measures *measures

	// replayed is the newest sequence of the inbox when Run began: events up to it may have been
	// converted before.
	replayed uint64

	// erased reports whether an order may have been erased, and so whether references of erased
	// orders are to be looked for. It is false only if this gateway has the log alone and found
	// none when it began.
	erased atomic.Bool

	finishing errgroup.Group // batches that are being flushed
	items     itemReader
	agenda    *agenda

	backfills backfills

	// Delays that tests make shorter.
	retryDelay    func(attempts int) time.Duration
	lookupDelay   time.Duration
	itemsInterval time.Duration
	itemsPause    time.Duration
	backlogAge    time.Duration
	listInterval  time.Duration
}

// New returns a pipeline from the inbox of a log to its orders.
func New(cfg Config) *Pipeline {
	p := &Pipeline{
		Config:        cfg,
		agenda:        newAgenda(cfg.Log),
		retryDelay:    retryDelay,
		lookupDelay:   lookupDelay,
		itemsInterval: itemsInterval,
		itemsPause:    itemsPause,
		backlogAge:    backlogAge,
		listInterval:  listInterval,
	}
	p.finishing.SetLimit(maxFinishing)
	p.erased.Store(true)
	p.measures = newMeasures(p, cfg.Metrics)
	return p
}

// Run converts events until ctx ends or the log is closed, and returns when the last one in hand
// is dealt with.
func (p *Pipeline) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	p.replayed = math.MaxUint64
	if state, err := p.Log.InboxState(ctx); err == nil {
		p.replayed = state.Last
	}
	p.erased.Store(p.Log.Shared() || p.hasErased(ctx))
	if err := p.indexBacklog(ctx); err != nil && ctx.Err() == nil {
		p.Logger.Warn("the backlog could not be indexed; a sale in it may be published before a later event about it", "error", err)
	}
	var background sync.WaitGroup
	background.Go(func() { p.runTasks(ctx) })
	background.Go(func() { p.completeItems(ctx) })
	background.Go(func() { p.keepCursor(ctx) })
	background.Go(func() { p.shareBudget(ctx) })
	defer background.Wait()
	defer p.finishing.Wait()
	defer stop()
	return p.Log.ConsumeInbox(ctx, p.handle)
}

// handle converts a batch: events that share references in their order, others beside each other.
// One flush covers the whole batch.
func (p *Pipeline) handle(ctx context.Context, batch []*eventlog.InboxMessage) {
	results := make([]*result, len(batch))
	for i, message := range batch {
		results[i] = &result{
			stored: &message.StoredEvent, message: message,
			again: message.Deliveries > 1 || message.Sequence <= p.replayed,
		}
	}
	each(results, runtime.GOMAXPROCS(0), p.read)
	each(families(results), p.parallel(), func(family []*result) { p.convert(ctx, family) })
	// The next batch need not wait for this one's flush.
	p.finishing.Go(func() error { p.finish(ctx, results); return nil })
}

// families groups results whose events share a reference or an order, directly or through others.
func families(results []*result) [][]*result {
	byKey := map[string]int{} // family by reference
	byFamily := map[int][]*result{}
	for i, r := range results {
		family, members := i, []*result{r}
		keys := r.familyKeys()
		for _, key := range keys {
			other, found := byKey[key]
			if !found || other == family {
				continue
			}
			// The keys of the other family move with its members.
			members = append(slices.Clone(byFamily[other]), members...)
			for _, m := range byFamily[other] {
				for _, k := range m.familyKeys() {
					byKey[k] = family
				}
			}
			delete(byFamily, other)
		}
		for _, key := range keys {
			byKey[key] = family
		}
		byFamily[family] = members
	}
	all := slices.Collect(maps.Values(byFamily))
	for _, members := range all { // members of merged families are in the order of their arrival
		slices.SortStableFunc(members, func(a, b *result) int { return int(a.stored.Sequence) - int(b.stored.Sequence) })
	}
	return all
}

// familyKeys are the keys that an event shares with the events of the same sale.
func (r *result) familyKeys() []string {
	if r.event == nil || r.event.Ignored() {
		return nil
	}
	keys := referenceKeys(r.event)
	if id := r.event.OrderID(); id != "" {
		keys = append(keys, id)
	}
	return keys
}

// each calls do with each part, from a number of goroutines.
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

// convertTask converts the event of a task, and returns the task as it is to be tried again.
func (p *Pipeline) convertTask(ctx context.Context, kind taskKind, id string, t task) (again *task, err error) {
	stored, err := p.Log.InboxEvent(ctx, id)
	if errors.Is(err, eventlog.ErrNotFound) {
		return nil, nil // raw events are no longer kept
	}
	if err != nil {
		return nil, err
	}
	kept, err := p.recordOf(ctx, id)
	if err != nil && !errors.Is(err, eventlog.ErrNotFound) {
		return nil, err
	}
	if kept.Outcome != "" && kept.Outcome != Waiting {
		return nil, nil // the event was dealt with
	}
	r := &result{stored: stored, asks: true, again: true, attempts: t.Attempts}
	p.convertAsking(ctx, r)
	switch {
	case r.outcome == retried:
		delay := p.retryDelay(t.Attempts + 1)
		if kind == taskLookup {
			delay = min(p.lookupDelay<<min(t.Attempts, 10), maxLookupRetry)
		}
		return &task{Due: time.Now().Add(delay), Attempts: t.Attempts + 1}, nil
	case r.task == kind:
		return &r.due, nil
	}
	return nil, nil
}

// convertAsking converts one event, and asks Stripe if need be.
func (p *Pipeline) convertAsking(ctx context.Context, r *result) {
	p.read(r)
	p.convert(ctx, []*result{r})
	p.finish(ctx, []*result{r})
}

// finish flushes the changes of converted events, and then is done with the events.
func (p *Pipeline) finish(ctx context.Context, results []*result) {
	defer func() {
		for _, r := range results {
			r.endSpan()
		}
	}()
	if ctx.Err() != nil {
		for _, r := range results {
			r.outcome, r.err = retried, ctx.Err()
		}
		return
	}
	if err := p.Log.Flush(ctx); err != nil {
		// Nothing is acknowledged: all of them come again.
		if ctx.Err() == nil {
			p.Logger.Error("converted events could not be flushed; they will be converted again", "events", len(results), "error", err)
		}
		for _, r := range results {
			r.outcome, r.err = retried, err
		}
		return
	}
	for _, r := range results {
		p.settle(ctx, r)
	}
}

// settle acknowledges an event or asks for it again, and logs its outcome. The changes that were
// made of the event are on disk.
func (p *Pipeline) settle(ctx context.Context, r *result) {
	if r.outcome != retried {
		if err := p.tidy(ctx, r); err != nil {
			r.outcome, r.err = retried, err // it is done again with the next delivery
		}
	}
	if r.outcome != retried && r.task != "" {
		p.agenda.add(r.task, r.stored.ID, r.due)
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
		err = r.message.Retry(p.retryDelay(r.message.Deliveries))
	} else {
		err = r.message.Ack()
	}
	if err != nil {
		p.Logger.Debug("an event could not be acknowledged; it will come again", "event", r.stored.ID, "error", err)
	}
}

// tidy removes the index entries of an event that was dealt with, and of those that were folded
// in, and erases events of erased orders.
func (p *Pipeline) tidy(ctx context.Context, r *result) error {
	for _, folded := range r.folded {
		if folded.outcome == retried || folded.outcome == "" {
			continue
		}
		if err := p.tidyOne(ctx, folded); err != nil {
			return err
		}
		p.measures.settled(folded)
		p.logResult(folded)
	}
	for _, id := range r.stale {
		if err := p.unindex(ctx, id, referenceKeys(r.event)); err != nil {
			return err
		}
	}
	if r.again && r.outcome != Waiting && r.outcome != Unmatched && r.task == "" {
		if err := p.tidyAgain(ctx, r); err != nil {
			return err
		}
	}
	return p.tidyOne(ctx, r)
}

func (p *Pipeline) tidyOne(ctx context.Context, r *result) error {
	if r.outcome == Erased && !r.stored.Erased {
		return p.eraseLate(ctx, r)
	}
	if !r.waited {
		return nil
	}
	if r.parked && r.outcome != Failed {
		if err := p.unpark(ctx, r.stored.ID); err != nil {
			return err
		}
	}
	return p.unindex(ctx, r.stored.ID, r.waits)
}

// tidyAgain replaces the outcome of an earlier conversion of the event.
func (p *Pipeline) tidyAgain(ctx context.Context, r *result) error {
	kept, err := p.recordOf(ctx, r.stored.ID)
	if err != nil && !errors.Is(err, eventlog.ErrNotFound) {
		return err
	}
	if kept.Outcome != "" && kept.Outcome != r.outcome {
		outcome := record{Outcome: r.outcome, OrderID: r.orderID, Detail: r.detail}
		if err := p.putRecord(r.stored.ID, outcome).Wait(ctx); err != nil {
			return err
		}
	}
	if r.event != nil {
		if err := p.unindex(ctx, r.stored.ID, append(referenceKeys(r.event), kept.Waits...)); err != nil {
			return err
		}
	}
	if r.outcome == Failed {
		return nil
	}
	return p.unpark(ctx, r.stored.ID)
}

func retryDelay(attempts int) time.Duration {
	delay := firstRetry
	for range attempts - 1 {
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
	case r.task == taskSale || r.task == taskClaim:
		p.Logger.Debug("event waits for an answer of Stripe's API", args...)
	case r.outcome == Failed:
		p.Logger.Error("event", append(args, "error", r.err, "hint", "the event is kept; reprocess it once the cause is removed, or dismiss it")...)
	case r.outcome == Unmatched:
		p.Logger.Warn("event", append(args, "error", r.err, "hint", "the event is kept, and applied when its order appears")...)
	case r.outcome == retried:
		p.Logger.Warn("event", append(args, "error", r.err, "attempts", r.tries())...)
	case r.detail != "":
		p.Logger.Info("event", append(args, "reason", r.detail)...)
	default:
		p.Logger.Info("event", args...)
	}
	if r.change != nil {
		for _, warning := range r.change.Warnings {
			p.Logger.Warn(warning, "event", r.stored.ID, "order", r.orderID)
		}
	}
}

// tries is the number of attempts to convert the event, this one included.
func (r *result) tries() int {
	if r.message != nil {
		return r.message.Deliveries
	}
	return r.attempts + 1
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
