// Package pipeline turns the stored events into order events: it reads INBOX,
// asks the orders package what each event does to its order, and writes the
// result to ORDERS.
//
// It promises that the events of one order are applied one after the other,
// that an event is done with only when what was made of it is on disk, and that
// an event that cannot be converted neither stops the ones behind it nor is
// lost: it is parked, with the reason, and stays in INBOX.
package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const (
	// maxDeliveries is how often an event is tried before it is parked, for a
	// reason that may pass. An unavailable log does not count against it.
	maxDeliveries = 5
	// maxConflicts is how often one delivery applies an event again because
	// another writer was faster.
	maxConflicts = 10
	// parallel is how many orders are worked on at a time.
	parallel = 8
	// Delays between deliveries of an event: they double.
	firstRetry, lastRetry = time.Second, time.Minute
)

// What became of an event.
const (
	outcomeConverted = "CONVERTED" // an order event was made of it
	outcomeUnchanged = "UNCHANGED" // its order knew all that already
	outcomeIgnored   = "IGNORED"   // it is not about an order
	outcomeFailed    = "FAILED"    // it could not be read, and is parked
	outcomeRetried   = "RETRIED"   // it will be tried again
)

// Pipeline converts events. Make one with New.
type Pipeline struct {
	log      *eventlog.Log
	logger   *slog.Logger
	outcomes *prometheus.CounterVec
}

// New returns a pipeline from the inbox of a log to its orders.
func New(log *eventlog.Log, logger *slog.Logger, metrics prometheus.Registerer) *Pipeline {
	p := &Pipeline{
		log:    log,
		logger: logger,
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ordergate_pipeline_events_total",
			Help: "Events taken from the inbox by what became of them.",
		}, []string{"outcome"}),
	}
	metrics.MustRegister(p.outcomes)
	return p
}

// Run converts events until ctx ends or the log is closed.
func (p *Pipeline) Run(ctx context.Context) error {
	return p.log.ConsumeInbox(ctx, p.handle)
}

// result is what became of one event in one delivery.
type result struct {
	message *eventlog.InboxMessage
	event   *orders.Event // nil when it could not be read
	change  *orders.Change
	outcome string
	err     error
}

// handle converts a batch: the orders beside each other, the events of one
// order after each other. One flush covers the whole batch.
func (p *Pipeline) handle(ctx context.Context, batch []*eventlog.InboxMessage) {
	results := make([]*result, len(batch))
	byOrder := map[string][]*result{}
	for i, message := range batch {
		results[i] = p.read(message)
		id := message.ID // an event without an order is alone
		if e := results[i].event; e != nil && e.OrderID() != "" {
			id = e.OrderID()
		}
		byOrder[id] = append(byOrder[id], results[i])
	}
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, sameOrder := range byOrder {
		group.Go(func() error {
			for _, r := range sameOrder {
				p.convert(ctx, r)
			}
			return nil
		})
	}
	group.Wait()
	if err := p.log.Flush(ctx); err != nil {
		// Nothing is acked: the whole batch comes again.
		if ctx.Err() == nil {
			p.logger.Error("converted events could not be flushed; they will be converted again", "events", len(batch), "error", err)
		}
		return
	}
	for _, r := range results {
		p.settle(r)
	}
}

// read decodes an event; a panic in the decoding is an error of that event.
func (p *Pipeline) read(message *eventlog.InboxMessage) *result {
	r := &result{message: message}
	r.err = guard(func() (err error) {
		r.event, err = orders.Parse(message.Body, orders.Sources{})
		return err
	})
	return r
}

// convert applies one event, and decides what becomes of it.
func (p *Pipeline) convert(ctx context.Context, r *result) {
	transient := false
	if r.err == nil {
		r.err = guard(func() error { return p.apply(ctx, r) })
		// What cannot be read now never can. The rest may pass.
		transient = r.message.Deliveries < maxDeliveries
	}
	switch {
	case r.err == nil:
		return
	case errors.Is(r.err, eventlog.ErrUnavailable), errors.Is(r.err, eventlog.ErrFull), ctx.Err() != nil, transient:
		r.outcome = outcomeRetried
	default:
		r.outcome = outcomeFailed
		parked := eventlog.Parked{Reason: outcomeFailed, Detail: r.err.Error(), Type: r.eventType()}
		if err := p.log.Park(ctx, r.message.ID, parked); err != nil {
			r.outcome, r.err = outcomeRetried, errors.Join(r.err, err)
		}
	}
}

// apply makes the order event, with compare-and-set: when another writer was
// faster, the order is read and the event applied again.
func (p *Pipeline) apply(ctx context.Context, r *result) error {
	orderID := r.event.OrderID()
	if orderID == "" {
		r.outcome = outcomeIgnored
		return nil
	}
	for range maxConflicts {
		current, previous, err := p.newest(ctx, orderID)
		if err != nil {
			return err
		}
		r.change, err = orders.Apply(current, r.event, orders.LineItems{State: ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE})
		if err != nil {
			return err
		}
		if r.change == nil {
			r.outcome = outcomeUnchanged
			return nil
		}
		_, err = p.log.AppendOrder(ctx, orderEvent(r.change, r.event), previous)
		if !errors.Is(err, eventlog.ErrConflict) {
			r.outcome = outcomeConverted
			return err
		}
	}
	return fmt.Errorf("order %s changes too fast: %w", orderID, eventlog.ErrConflict)
}

// newest returns an order as it stands and the sequence of its newest event;
// nil and 0 for an order that does not exist yet.
func (p *Pipeline) newest(ctx context.Context, orderID string) (*ordergatev1.Order, uint64, error) {
	record, err := p.log.NewestOrder(ctx, orderID)
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

func orderEvent(change *orders.Change, source *orders.Event) *ordergatev1.OrderEvent {
	return &ordergatev1.OrderEvent{
		Id:            change.Order.GetId() + "." + strconv.FormatInt(change.Order.GetRevision(), 10),
		Kind:          change.Kind,
		Order:         change.Order,
		SourceEventId: source.ID,
	}
}

// settle acks an event or asks for it again, and logs what became of it.
func (p *Pipeline) settle(r *result) {
	p.outcomes.WithLabelValues(r.outcome).Inc()
	p.logResult(r)
	var err error
	if r.outcome == outcomeRetried {
		err = r.message.Retry(retryDelay(r.message.Deliveries))
	} else {
		err = r.message.Ack()
	}
	if err != nil {
		p.logger.Debug("an event could not be acked; it will come again", "event", r.message.ID, "error", err)
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
	args := []any{"type", r.eventType(), "event", r.message.ID, "outcome", r.outcome}
	if e := r.event; e != nil && e.OrderID() != "" {
		args = append(args, "order", e.OrderID(), "mode", mode(e.Livemode))
	}
	if r.outcome == outcomeConverted {
		order := r.change.Order
		args = append(args, "revision", order.GetRevision(),
			"kind", shortName(r.change.Kind.String(), "ORDER_EVENT_KIND_"), "directive", shortName(order.GetDirective().String(), "DIRECTIVE_"))
	}
	args = append(args, "secret", r.message.SecretLabel)
	switch r.outcome {
	case outcomeFailed:
		p.logger.Error("event", append(args, "error", r.err, "check", "the event is kept; it can be converted again once ordergate can read it")...)
	case outcomeRetried:
		p.logger.Warn("event", append(args, "error", r.err, "delivery", r.message.Deliveries)...)
	default:
		p.logger.Info("event", args...)
	}
	if r.change != nil {
		for _, warning := range r.change.Warnings {
			p.logger.Warn(warning, "event", r.message.ID, "order", r.change.Order.GetId())
		}
	}
}

func (r *result) eventType() string {
	if r.event != nil {
		return r.event.Type
	}
	envelope, err := stripehook.ReadEnvelope(r.message.Body)
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
