package pipeline

import (
	"context"
	"errors"
	"fmt"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
)

// Pending is the outcome of an event that was not dealt with yet.
const Pending Outcome = "PENDING"

// historyPage is how many events of an order are read at a time.
const historyPage = 200

// Status is what became of an event.
type Status struct {
	// Outcome is CONVERTED, IGNORED, UNMATCHED, FAILED, ERASED or PENDING. An event that
	// told its order nothing new is CONVERTED too.
	Outcome Outcome
	// Type is the event's type; empty when it cannot be read.
	Type string
	// OrderID is the order it is about; empty when there is none.
	OrderID string
	// Detail says what was wrong with an event that was parked.
	Detail string
}

// StatusOf says what became of a stored event. It is derived: nothing is kept of
// an event but that it is parked. converted is the inbox's state of that name.
func (p *Pipeline) StatusOf(ctx context.Context, stored *eventlog.StoredEvent, converted uint64) (Status, error) {
	r := &result{stored: stored}
	p.read(r)
	status := Status{Type: r.eventType()}
	if stored.Erased {
		status.Outcome = Erased
		return status, nil
	}
	parked, err := p.ParkedEvent(ctx, stored.ID)
	switch {
	case err == nil:
		status.Outcome, status.Detail = parked.Outcome, parked.Detail
		return status, nil
	case !errors.Is(err, eventlog.ErrNotFound):
		return Status{}, err
	case r.event != nil && r.event.Ignored():
		status.Outcome = Ignored
		return status, nil
	case r.event == nil:
		status.Outcome, status.Detail = Pending, r.err.Error()
		return status, nil
	}
	if status.OrderID, err = p.knownOrder(ctx, r.event); err != nil {
		return Status{}, err
	}
	switch {
	case stored.Sequence > converted && status.OrderID == "":
		status.Outcome = Pending
	case stored.Sequence > converted:
		// The inbox's state counts up to the first event that is pending; this
		// one may be done with all the same.
		done, err := p.changedBy(ctx, status.OrderID, stored.ID)
		if err != nil {
			return Status{}, err
		}
		if status.Outcome = Pending; done {
			status.Outcome = Converted
		}
	case status.OrderID == "":
		status.Outcome = Ignored // its order never came, and it need not have one
	default:
		status.Outcome = Converted
	}
	return status, nil
}

// knownOrder returns the order that an event is about as far as is known here;
// empty when it is not.
func (p *Pipeline) knownOrder(ctx context.Context, e *orders.Event) (string, error) {
	if e.OrderID() != "" && !e.MustClaim() {
		return e.OrderID(), nil
	}
	owner, err := p.owner(ctx, e)
	if errors.Is(err, eventlog.ErrNotFound) {
		return "", nil
	}
	return owner, err
}

// Reprocess converts stored events again, as after a mend of the conversion: a
// parked event is applied if it can be now, and the order of a converted one is
// made anew of all its events. changed is the new revision of an order that is
// another one now, nil when nothing changed. The order is on disk when it
// returns.
func (p *Pipeline) Reprocess(ctx context.Context, stored *eventlog.StoredEvent) (status Status, changed *ordergatev1.Order, err error) {
	parked, err := p.ParkedEvent(ctx, stored.ID)
	switch {
	case err == nil:
		changed, err = p.reprocessParked(ctx, stored, parked)
	case errors.Is(err, eventlog.ErrNotFound):
		err = guard(func() (err error) {
			changed, err = p.rebuild(ctx, stored)
			return err
		})
	}
	if err != nil {
		return Status{}, nil, err
	}
	if err := p.Log.Flush(ctx); err != nil {
		return Status{}, nil, err
	}
	state, err := p.Log.InboxState(ctx)
	if err != nil {
		return Status{}, nil, err
	}
	status, err = p.StatusOf(ctx, stored, state.Converted)
	return status, changed, err
}

func (p *Pipeline) reprocessParked(ctx context.Context, stored *eventlog.StoredEvent, parked Parked) (*ordergatev1.Order, error) {
	r := &result{stored: stored, deliveries: maxLookups, slow: true}
	p.read(r)
	p.convert(ctx, r)
	if r.outcome == retried {
		return nil, r.err
	}
	if r.outcome != Failed && r.outcome != Unmatched {
		r.after = append(r.after, func(ctx context.Context) error { return p.unpark(ctx, stored.ID, parked) })
	}
	p.finish(ctx, []*result{r})
	if r.outcome == retried {
		return nil, r.err
	}
	if r.change == nil {
		return nil, nil
	}
	return r.change.Order, nil
}

// rebuild makes the order of a converted event anew.
func (p *Pipeline) rebuild(ctx context.Context, stored *eventlog.StoredEvent) (*ordergatev1.Order, error) {
	if stored.Erased {
		return nil, nil
	}
	event, err := orders.Parse(stored.Body, p.Sources)
	if err != nil || event.Ignored() {
		return nil, nil // an event that is still pending is the pipeline's
	}
	orderID, err := p.knownOrder(ctx, event)
	if err != nil || orderID == "" {
		return nil, err
	}
	change, err := p.change(ctx, orderID, stored.ID, func(current *ordergatev1.Order) (*orders.Change, error) {
		if current == nil {
			return nil, nil
		}
		events, err := p.history(ctx, orderID, stored.ID)
		if err != nil {
			return nil, err
		}
		return orders.Rebuild(current, append(events, event))
	})
	if errors.Is(err, orders.ErrIncomplete) {
		p.Logger.Warn("an order cannot be made anew, and stays as it is", "order", orderID, "event", stored.ID, "error", err)
		return nil, nil
	}
	if err != nil || change == nil {
		return nil, err
	}
	p.Logger.Info("reprocessed", "order", orderID, "event", stored.ID, "revision", change.Order.GetRevision(),
		"directive", shortName(change.Order.GetDirective().String(), "DIRECTIVE_"))
	return change.Order, nil
}

// history returns the events that changed an order, but for one of them. It
// fails with orders.ErrIncomplete when one is no longer kept.
func (p *Pipeline) history(ctx context.Context, orderID, except string) ([]*orders.Event, error) {
	if err := p.Log.Flush(ctx); err != nil { // OrderEvents shows what is on disk
		return nil, err
	}
	var events []*orders.Event
	seen := map[string]bool{"": true, except: true}
	err := p.eachSource(ctx, orderID, func(id string) error {
		if seen[id] {
			return nil
		}
		seen[id] = true
		stored, err := p.Log.InboxEvent(ctx, id)
		if errors.Is(err, eventlog.ErrNotFound) || err == nil && stored.Erased {
			return fmt.Errorf("%w: its event %s is no longer kept", orders.ErrIncomplete, id)
		}
		if err != nil {
			return err
		}
		event, err := orders.Parse(stored.Body, p.Sources)
		if err != nil {
			return fmt.Errorf("%w: its event %s cannot be read: %w", orders.ErrIncomplete, id, err)
		}
		events = append(events, event)
		return nil
	})
	return events, err
}

// changedBy reports whether an event changed an order.
func (p *Pipeline) changedBy(ctx context.Context, orderID, eventID string) (changed bool, err error) {
	err = p.eachSource(ctx, orderID, func(id string) error {
		changed = changed || id == eventID
		return nil
	})
	return changed, err
}

// eachSource calls visit with the Stripe event behind each change of an order;
// empty for a change that no event made.
func (p *Pipeline) eachSource(ctx context.Context, orderID string, visit func(eventID string) error) error {
	return p.eachRecord(ctx, orderID, func(record *eventlog.OrderRecord) error {
		event, err := record.Event()
		if err != nil {
			return err
		}
		return visit(event.GetSourceEventId())
	})
}

// eachRecord calls visit with each event of an order.
func (p *Pipeline) eachRecord(ctx context.Context, orderID string, visit func(*eventlog.OrderRecord) error) error {
	for after := uint64(0); ; {
		records, err := p.Log.OrderEvents(ctx, orderID, after, historyPage)
		if err != nil || len(records) == 0 {
			return err
		}
		for _, record := range records {
			after = record.Sequence
			if err := visit(record); err != nil {
				return err
			}
		}
	}
}
