package pipeline

import (
	"context"
	"errors"
	"fmt"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
)

// historyPage is how many events of an order are read at a time.
const historyPage = 200

// knownOrder returns the order that an event is about as far as is known here;
// empty when it is not.
func (p *Pipeline) knownOrder(ctx context.Context, e *orders.Event) (string, error) {
	if e.OrderID() != "" && !e.MayBelong() {
		return e.OrderID(), nil
	}
	owner, err := p.owner(ctx, e)
	switch {
	case !errors.Is(err, eventlog.ErrNotFound):
		return owner, err
	case e.MustClaim():
		return "", nil
	}
	return e.OrderID(), nil // empty for a follow-up
}

// Reprocess converts a stored event again, for example with a corrected version: a parked or
// waiting event is applied if that is possible now, and Stripe is asked at once; the order of a
// converted event is rebuilt from all its events. changed is the new revision of an order that
// differs now, nil if nothing changed. The order is on disk when Reprocess returns.
func (p *Pipeline) Reprocess(ctx context.Context, stored *eventlog.StoredEvent) (status Status, changed *ordergatev1.Order, err error) {
	unfinished, err := p.isUnfinished(ctx, stored.ID)
	switch {
	case err != nil:
	case unfinished:
		changed, err = p.convertNow(ctx, stored)
	default:
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

// isUnfinished reports whether an event is parked, waits, or was ignored.
func (p *Pipeline) isUnfinished(ctx context.Context, eventID string) (bool, error) {
	_, err := p.ParkedEvent(ctx, eventID)
	if !errors.Is(err, eventlog.ErrNotFound) {
		return err == nil, err
	}
	kept, err := p.recordOf(ctx, eventID)
	if err != nil && !errors.Is(err, eventlog.ErrNotFound) {
		return false, err
	}
	return kept.Outcome == Waiting || kept.Outcome == Ignored, nil
}

func (p *Pipeline) convertNow(ctx context.Context, stored *eventlog.StoredEvent) (*ordergatev1.Order, error) {
	r := &result{stored: stored, asks: true, again: true}
	p.convertAsking(ctx, r)
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

// changedBy reports whether an event changed an order, which need not exist.
func (p *Pipeline) changedBy(ctx context.Context, orderID, eventID string) (changed bool, err error) {
	// Only what is on disk can be listed.
	if _, err := p.Log.DurableOrder(ctx, orderID); err != nil {
		if errors.Is(err, eventlog.ErrNotFound) {
			return false, nil
		}
		return false, err
	}
	err = p.eachSource(ctx, orderID, func(id string) error {
		changed = changed || id == eventID
		return nil
	})
	return changed, err
}

// eachSource calls visit with each Stripe event of each change of an order; empty
// for a change that no event made.
func (p *Pipeline) eachSource(ctx context.Context, orderID string, visit func(eventID string) error) error {
	return p.eachRecord(ctx, orderID, func(record *eventlog.OrderRecord) error {
		event, err := record.Event()
		if err != nil {
			return err
		}
		for _, id := range append([]string{event.GetSourceEventId()}, event.GetIncludedEventIds()...) {
			if err := visit(id); err != nil {
				return err
			}
		}
		return nil
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
