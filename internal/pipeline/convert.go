package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/stripeapi"
)

const (
	// maxConflicts is the number of times a change is decided again because another writer was
	// faster.
	maxConflicts     = 10
	maxConflictPause = 10 * time.Millisecond
)

// result is the conversion of one event.
type result struct {
	stored  *eventlog.StoredEvent
	message *eventlog.InboxMessage // nil unless the inbox has just delivered it
	event   *orders.Event          // nil if it could not be read
	span    trace.Span             // nil if it is not traced
	// asks reports whether Stripe may be asked now. An event that needs Stripe is otherwise
	// scheduled as a task.
	asks bool
	// attempts is the number of earlier attempts of the task that converts the event.
	attempts int
	// again reports whether the event may have been converted, parked or indexed before.
	again bool
	// waited and parked report whether the event is in the waiting index, and parked.
	waited, parked bool

	orderID string
	change  *orders.Change // the change that the event is part of; nil if it added nothing
	outcome Outcome        // empty until it is decided
	detail  string         // the reason for the outcome
	err     error          // the cause of FAILED, UNMATCHED and RETRIED

	// learned are keys that the event does not name, under which it is to wait; waits are the
	// keys under which it waits.
	learned, waits []string
	// task is the task that was scheduled for the event, due at a time; empty if there is none.
	task taskKind
	due  task
	// rebuilt is the sale that Stripe was asked for, which precedes this event in its order.
	rebuilt *result
	// puts are writes that must be complete before the flush.
	puts []eventlog.Putting
	// folded are the waiting events that became part of the order with this one, and stale index
	// entries without an event.
	folded []*result
	stale  []string
}

// failed gives a result the outcome of an error. Only errors that are listed here are tried again.
func (p *Pipeline) failed(ctx context.Context, r *result, err error) {
	if r.err = err; isTransient(ctx, err) {
		r.outcome = retried
		return
	}
	outcome := Failed
	if isRefusal(err) { // it stays refused until somebody changes the key
		outcome = Unmatched
	}
	if err := p.park(ctx, r, outcome); err != nil {
		r.outcome, r.err = retried, errors.Join(r.err, err)
	}
}

// isTransient reports whether an error comes from the environment rather than from the event: the
// log is unavailable or full, another writer was faster, Stripe is unavailable, or the gateway
// stops.
func isTransient(ctx context.Context, err error) bool {
	return ctx.Err() != nil || errors.Is(err, eventlog.ErrUnavailable) || errors.Is(err, eventlog.ErrFull) ||
		errors.Is(err, eventlog.ErrConflict) || errors.Is(err, stripeapi.ErrUnavailable)
}

// isRefusal reports whether Stripe answered a lookup with a refusal, which leaves open whose order
// the event is about.
func isRefusal(err error) bool {
	var refused *lookupError
	return errors.As(err, &refused)
}

// guard runs f, and returns a panic of it as an error.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

// read decodes an event.
func (p *Pipeline) read(r *result) {
	if r.stored.Erased {
		return
	}
	r.err = guard(func() (err error) {
		r.event, err = orders.Parse(r.stored.Body, p.Sources)
		return err
	})
}

// convert converts events that share references, in their order. Each result has an outcome then,
// or a task.
func (p *Pipeline) convert(ctx context.Context, family []*result) {
	owners := p.salesOf(family)
	var ids []string
	byOrder := map[string][]*result{}
	for _, r := range family {
		switch {
		case r.stored.Erased:
			r.outcome = Erased
			continue
		case r.event == nil:
			p.failed(ctx, r, r.err)
			continue
		}
		traced := p.traced(ctx, r)
		if err := guard(func() error { return p.resolve(traced, r, owners) }); err != nil {
			p.failed(ctx, r, err)
		}
		if r.outcome != "" || r.task != "" {
			continue
		}
		if byOrder[r.orderID] == nil {
			ids = append(ids, r.orderID)
		}
		if r.rebuilt != nil {
			byOrder[r.orderID] = append(byOrder[r.orderID], r.rebuilt)
		}
		byOrder[r.orderID] = append(byOrder[r.orderID], r)
	}
	for _, id := range ids {
		p.commit(ctx, id, byOrder[id], idsOf(byOrder[id]))
	}
	for _, r := range family {
		if err := r.waitPuts(ctx); err != nil {
			r.outcome, r.err = retried, errors.Join(r.err, err)
		}
	}
}

// waitPuts returns when the writes of a result, and of the events that were folded in with it, are
// complete.
func (r *result) waitPuts(ctx context.Context) (err error) {
	for _, put := range r.puts {
		err = errors.Join(err, put.Wait(ctx))
	}
	for _, folded := range r.folded {
		err = errors.Join(err, folded.waitPuts(ctx))
	}
	return err
}

// salesOf returns the order of each reference of the sales among some events.
func (p *Pipeline) salesOf(family []*result) map[string]string {
	owners := map[string]string{}
	for _, r := range family {
		if r.event != nil && r.event.OrderID() != "" && !r.event.MayBelong() {
			for _, key := range referenceKeys(r.event) {
				owners[key] = r.event.OrderID()
			}
		}
	}
	return owners
}

// resolve finds the order of an event. Without one, the event waits for it. owners are orders that
// are about to be made, by their references.
func (p *Pipeline) resolve(ctx context.Context, r *result, owners map[string]string) error {
	e := r.event
	if e.Ignored() {
		p.ignore(r, e.IgnoredReason())
		return nil
	}
	if err := p.rememberAccount(ctx, e); err != nil {
		return err
	}
	if e.OrderID() != "" && !e.MayBelong() {
		r.orderID = e.OrderID()
		return nil
	}
	for _, key := range referenceKeys(e) {
		if r.orderID = owners[key]; r.orderID != "" {
			return nil
		}
	}
	owner, err := p.owner(ctx, e)
	switch {
	case err == nil:
		r.orderID = owner
		return nil
	case !errors.Is(err, eventlog.ErrNotFound):
		return err
	case e.MustClaim():
		return p.claim(ctx, r)
	case e.OrderID() != "":
		r.orderID = e.OrderID()
		return nil
	case r.asks:
		return p.lookUp(ctx, r)
	}
	return p.wait(ctx, r, "its order is not known yet")
}

func (p *Pipeline) ignore(r *result, reason string) {
	r.outcome, r.detail = Ignored, reason
	r.puts = append(r.puts, p.putRecord(r.stored.ID, record{Outcome: Ignored, Detail: reason}))
}

// wait makes an event wait for its order, for a reason.
func (p *Pipeline) wait(ctx context.Context, r *result, reason string) error {
	r.detail = reason
	ready, err := p.index(ctx, r)
	if err != nil || !ready {
		return err
	}
	// Once more, with the order that is there now.
	r.again, r.task = true, ""
	r.orderID, err = p.owner(ctx, r.event)
	return err
}

// commit changes an order by events that are about it. Waiting events in known are left out; those
// that are folded in are added to known.
func (p *Pipeline) commit(ctx context.Context, orderID string, events []*result, known map[string]bool) {
	events, items := p.withItems(ctx, orderID, events)
	if len(events) == 0 {
		return
	}
	err := guard(func() error {
		if err := p.tryCommit(ctx, orderID, events, known, items); err != nil {
			return err
		}
		return p.commitLate(ctx, orderID, events, known)
	})
	if err != nil {
		for _, r := range events {
			if r.outcome == "" || isTransient(ctx, err) {
				p.failed(ctx, r, err)
			}
		}
	}
}

// tryCommit decides the changes of an order and writes them, with compare-and-set.
func (p *Pipeline) tryCommit(ctx context.Context, orderID string, events []*result, known map[string]bool, items orders.LineItems) error {
	for _, r := range events {
		r.orderID = orderID
	}
	waiting, stale, err := p.collect(ctx, keysOf(events), known)
	if err != nil {
		return err
	}
	events[0].folded, events[0].stale = waiting, stale
	for _, r := range waiting {
		r.orderID = orderID
	}
	// Most sales are new: the write finds out, without a read of the order.
	unread := slices.ContainsFunc(events, func(r *result) bool { return r.event.OrderID() == orderID && !r.again })
	for range maxConflicts {
		var current *ordergatev1.Order
		var previous uint64
		if !unread {
			if current, previous, err = p.newest(ctx, orderID); err != nil {
				return err
			}
		}
		if orders.Erased(current) {
			for _, r := range append(slices.Clone(waiting), events...) {
				r.outcome = Erased
			}
			return nil
		}
		if current == nil && !slices.ContainsFunc(events, func(r *result) bool { return r.event.OrderID() == orderID }) {
			return p.waitAll(ctx, events)
		}
		revisions := plan(current, events, waiting, items)
		if unread && !slices.ContainsFunc(revisions, func(rev revision) bool { return rev.change != nil }) {
			unread = false // nothing new for a new order, but perhaps for one that is there
			continue
		}
		recorded := p.beginReferences(orderID, append(slices.Clone(waiting), events...))
		err := p.write(ctx, current, previous, revisions)
		if recordErr := recorded(ctx); err == nil {
			err = recordErr // the events of the order must find it
		}
		if err == nil {
			return p.conclude(ctx, events, waiting)
		}
		if !errors.Is(err, eventlog.ErrConflict) {
			return err
		}
		if unread {
			unread = false
			continue
		}
		if err := pause(ctx, rand.N(maxConflictPause)); err != nil { // the other write may still be on its way
			return err
		}
	}
	return fmt.Errorf("order %s changes too fast: %w", orderID, eventlog.ErrConflict)
}

// waitAll makes events wait for an order that is not there.
func (p *Pipeline) waitAll(ctx context.Context, events []*result) error {
	for _, r := range events {
		r.folded, r.stale = nil, nil
		if err := p.wait(ctx, r, "its order "+r.orderID+" is not there yet"); err != nil {
			p.failed(ctx, r, err)
		} else if r.outcome == "" { // the order has just appeared
			r.outcome, r.err = retried, fmt.Errorf("order %s has just appeared: %w", r.orderID, eventlog.ErrConflict)
		}
	}
	return nil
}

// commitLate folds in events that looked for the order before its references were recorded, and
// that were indexed since tryCommit looked: a further revision.
func (p *Pipeline) commitLate(ctx context.Context, orderID string, events []*result, known map[string]bool) error {
	first := events[0]
	if first.outcome != Converted && first.outcome != Unchanged {
		return nil
	}
	late, _, err := p.collect(ctx, keysOf(events), known)
	if err != nil || len(late) == 0 {
		return err
	}
	p.commit(ctx, orderID, late, known)
	first.folded = append(first.folded, late...)
	if i := slices.IndexFunc(late, func(r *result) bool { return r.outcome == retried }); i >= 0 {
		return late[i].err
	}
	return nil
}

func keysOf(events []*result) (keys []string) {
	for _, r := range events {
		keys = append(keys, referenceKeys(r.event)...)
	}
	return keys
}

func idsOf(events []*result) map[string]bool {
	ids := map[string]bool{}
	for _, r := range events {
		ids[r.stored.ID] = true
	}
	return ids
}

// revision is a planned change of an order, and the events that it consists of.
type revision struct {
	change *orders.Change
	events []*result
	folded []orders.Folded
}

// plan decides the changes that events make to an order: one for each event, and the waiting
// events with the first. If a change on the way would be SHIP although the last one is not, all
// events become one change: the gateway knows already that the order is not to be shipped.
func plan(current *ordergatev1.Order, events, waiting []*result, items orders.LineItems) []revision {
	if current == nil { // a follow-up changes nothing before its sale
		events = slices.Clone(events)
		slices.SortStableFunc(events, func(a, b *result) int { return rank(a) - rank(b) })
	}
	var revisions []revision
	order, ships := current, false
	for i, r := range events {
		group := []*result{r}
		if i == 0 {
			group = append(group, waiting...)
		}
		next := revisionOf(order, group, items)
		revisions = append(revisions, next)
		if next.change != nil {
			order = next.change.Order
			ships = ships || order.GetDirective() == ordergatev1.Directive_DIRECTIVE_SHIP
		}
	}
	if ships && order.GetDirective() != ordergatev1.Directive_DIRECTIVE_SHIP {
		return []revision{revisionOf(current, append(slices.Clone(events), waiting...), items)}
	}
	return revisions
}

func rank(r *result) int {
	if r.event.OrderID() == r.orderID {
		return 0
	}
	return 1
}

func revisionOf(current *ordergatev1.Order, group []*result, items orders.LineItems) revision {
	var events []*orders.Event
	for _, r := range group {
		events = append(events, r.event)
	}
	change, folded := orders.ApplyAll(current, events, items)
	return revision{change, group, folded}
}

// write appends planned revisions after the order's newest event, whose sequence is previous.
func (p *Pipeline) write(ctx context.Context, current *ordergatev1.Order, previous uint64, revisions []revision) error {
	for _, rev := range revisions {
		for i, r := range rev.events {
			r.err = rev.folded[i].Err
		}
		if rev.change == nil {
			continue
		}
		change, sequence, err := p.append(rev.traced(ctx), current, rev.change, sourcesOf(rev), previous)
		if err != nil {
			return err
		}
		for i, r := range rev.events {
			if rev.folded[i].Changed {
				r.change = change
			}
		}
		current, previous = change.Order, sequence
	}
	return nil
}

// traced returns ctx with the span of the first of the revision's events that is traced.
func (rev revision) traced(ctx context.Context) context.Context {
	for _, r := range rev.events {
		if r.span != nil {
			return trace.ContextWithSpan(ctx, r.span)
		}
	}
	return ctx
}

// sourcesOf returns the ids of the events that made a change, the one that caused it first.
func sourcesOf(rev revision) (ids []string) {
	for i, r := range rev.events {
		if rev.folded[i].Changed && !slices.Contains(ids, r.stored.ID) {
			ids = append(ids, r.stored.ID)
		}
	}
	return ids
}

// conclude gives events that were applied to their order their outcomes.
func (p *Pipeline) conclude(ctx context.Context, events, waiting []*result) error {
	for _, r := range append(slices.Clone(waiting), events...) {
		if err := r.err; err != nil {
			p.failed(ctx, r, err)
			continue
		}
		r.outcome = Unchanged
		if r.change != nil {
			r.outcome = Converted
		} else if r.again || r.waited {
			converted, err := p.changedBy(ctx, r.orderID, r.stored.ID)
			if err != nil {
				return err
			}
			if converted {
				r.outcome = Converted
			}
		}
		if r.outcome == Unchanged || r.waited {
			r.puts = append(r.puts, p.putRecord(r.stored.ID, record{Outcome: r.outcome, OrderID: r.orderID}))
		}
	}
	return nil
}

// append writes a change of an order after the order's newest event, whose sequence is previous,
// and returns the change as it was written: with a settling period, and without content that makes
// it too large.
func (p *Pipeline) append(ctx context.Context, current *ordergatev1.Order, change *orders.Change, sources []string, previous uint64) (*orders.Change, uint64, error) {
	if p.ShipDelay > 0 {
		until := time.Now().Add(p.ShipDelay)
		change = orders.StartSettling(current, change, timestamppb.New(until))
		if change.Order.GetSettleTime() != nil && current.GetSettleTime() == nil {
			if err := p.startSettling(ctx, change.Order.GetId(), until); err != nil {
				return nil, 0, err
			}
		}
	}
	for {
		event := &ordergatev1.OrderEvent{
			Id:    change.Order.GetId() + "." + strconv.FormatInt(change.Order.GetRevision(), 10),
			Kind:  change.Kind,
			Order: change.Order,
			Note:  change.Note,

			PreviousDirective: change.PreviousDirective,
		}
		if len(sources) > 0 {
			event.SourceEventId, event.IncludedEventIds = sources[0], sources[1:]
		}
		sequence, err := p.Log.AppendOrder(ctx, event, previous)
		if !errors.Is(err, eventlog.ErrTooLarge) {
			return change, sequence, err
		}
		smaller, ok := orders.Reduce(current, change)
		if !ok {
			return nil, 0, err
		}
		p.Logger.Warn("order too large to store; content omitted", "order", change.Order.GetId(),
			"omitted", shortName(smaller.Order.GetOmittedContent().String(), "OMITTED_CONTENT_"), "error", err)
		change = smaller
	}
}

// change writes the change that decide makes of an order, with compare-and-set: if another writer
// was faster, decide is asked again. It returns nil if nothing changes.
func (p *Pipeline) change(ctx context.Context, orderID, sourceEventID string, decide func(current *ordergatev1.Order) (*orders.Change, error)) (*orders.Change, error) {
	var sources []string
	if sourceEventID != "" {
		sources = []string{sourceEventID}
	}
	for range maxConflicts {
		current, previous, err := p.newest(ctx, orderID)
		if err != nil {
			return nil, err
		}
		change, err := decide(current)
		if err != nil || change == nil {
			return nil, err
		}
		change, _, err = p.append(ctx, current, change, sources, previous)
		if !errors.Is(err, eventlog.ErrConflict) {
			return change, err
		}
		if err := pause(ctx, rand.N(maxConflictPause)); err != nil { // the other write may still be on its way
			return nil, err
		}
	}
	return nil, fmt.Errorf("order %s changes too fast: %w", orderID, eventlog.ErrConflict)
}

// newest returns an order as it stands and the sequence of its newest event; nil and 0 for an
// order that does not exist yet.
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

// pause waits for some time, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
