package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
)

// maxWaiting bounds the events that wait for one order.
const maxWaiting = 100

// Parked is an event that could not be converted, as it is kept. The event is
// in it whole: INBOX forgets events by age.
type Parked struct {
	// Outcome is UNMATCHED or FAILED.
	Outcome Outcome `json:"outcome"`
	// Detail says what was wrong.
	Detail string `json:"detail"`
	// Event is the raw event.
	Event []byte `json:"event"`
	// SecretLabel names the secret that signed it.
	SecretLabel string `json:"secret"`
	// Waits are the keys under which it waits for its order.
	Waits []string `json:"waits,omitempty"`
}

// park records an event that cannot be converted now, so that it can be acked.
func (p *Pipeline) park(ctx context.Context, r *result, outcome Outcome) {
	if err := p.tryPark(ctx, r, outcome); err != nil {
		r.outcome, r.err = retried, errors.Join(r.err, err)
		return
	}
	r.outcome = outcome
}

func (p *Pipeline) tryPark(ctx context.Context, r *result, outcome Outcome) error {
	parked := Parked{Outcome: outcome, Detail: r.err.Error(), Event: r.stored.Body, SecretLabel: r.stored.SecretLabel}
	if outcome == Unmatched {
		parked.Waits = referenceKeys(r.event)
	}
	value, err := json.Marshal(parked)
	if err != nil {
		return err
	}
	for _, key := range parked.Waits {
		if err := p.Log.Bucket(eventlog.Waiting).Update(ctx, key, func(old []byte) []byte { return addWaiting(old, r.stored.ID) }); err != nil {
			return err
		}
	}
	if err := p.Log.Bucket(eventlog.ParkedEvents).Put(ctx, r.stored.ID, value); err != nil {
		return err
	}
	if outcome != Unmatched {
		return nil
	}
	// The order may have come between the last look and the notes above, and
	// then nobody would look at them again.
	owner, err := p.owner(ctx, r.event)
	if errors.Is(err, eventlog.ErrNotFound) {
		return nil
	}
	if err == nil {
		if current, _, err := p.newest(ctx, owner); err == nil && current == nil {
			return nil
		}
		err = fmt.Errorf("its order %s has just come", owner)
	}
	return errors.Join(err, p.unpark(ctx, r.stored.ID, parked))
}

// forgetParked has the notes removed of an event that was parked in an earlier
// delivery, which the gateway did not survive to ack.
func (p *Pipeline) forgetParked(r *result) {
	if r.message == nil || r.deliveries <= 1 && r.stored.Sequence > p.replayed {
		return
	}
	r.after = append(r.after, func(ctx context.Context) error {
		parked, err := p.ParkedEvent(ctx, r.stored.ID)
		if errors.Is(err, eventlog.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return p.unpark(ctx, r.stored.ID, parked)
	})
}

// addWaiting adds an event to the list of those that wait. One more than a
// hundred is not in the list, but parked all the same.
func addWaiting(old []byte, eventID string) []byte {
	ids := waitingIDs(old)
	if !slices.Contains(ids, eventID) && len(ids) < maxWaiting {
		ids = append(ids, eventID)
	}
	return waitingList(ids)
}

// removeWaiting takes an event out of the list; an empty list is none.
func removeWaiting(old []byte, eventID string) []byte {
	ids := slices.DeleteFunc(waitingIDs(old), func(id string) bool { return id == eventID })
	if len(ids) == 0 {
		return nil
	}
	return waitingList(ids)
}

func waitingList(ids []string) []byte {
	list, err := json.Marshal(ids)
	if err != nil { // strings can always be marshalled
		panic(err)
	}
	return list
}

func waitingIDs(list []byte) []string {
	var ids []string
	if err := json.Unmarshal(list, &ids); err != nil {
		return nil
	}
	return ids
}

// match applies the parked events that waited for the order of an event. Their
// notes are removed once that is on disk.
func (p *Pipeline) match(ctx context.Context, r *result) error {
	if r.waited {
		return nil // its notes are still there
	}
	for _, key := range referenceKeys(r.event) {
		list, err := p.Log.Bucket(eventlog.Waiting).Get(ctx, key)
		if errors.Is(err, eventlog.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		for _, id := range waitingIDs(list) {
			if err := p.applyParked(ctx, r, id, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// applyParked applies one parked event, which waited under a key, to the order
// of r.
func (p *Pipeline) applyParked(ctx context.Context, r *result, id, key string) error {
	parked, err := p.ParkedEvent(ctx, id)
	if errors.Is(err, eventlog.ErrNotFound) {
		// It is done with; the gateway stopped before this note was removed.
		r.after = append(r.after, func(ctx context.Context) error { return p.stopWaiting(ctx, id, key) })
		return nil
	}
	if err != nil {
		return err
	}
	event, err := orders.Parse(parked.Event, p.Sources)
	if err != nil {
		return nil // it stays parked, for an operator
	}
	waited := &result{
		waited: true,
		slow:   r.slow,
		stored: &eventlog.StoredEvent{RawEvent: eventlog.RawEvent{ID: id, Body: parked.Event, SecretLabel: parked.SecretLabel}},
		event:  event,
	}
	if err := p.apply(ctx, waited); err != nil {
		if passing(ctx, err) {
			return fmt.Errorf("event %s, which waited for this order: %w", id, err)
		}
		// It must not keep its order back, and stays parked for an operator.
		p.Logger.Error("a parked event cannot be applied to the order it waited for", "event", id, "order", r.orderID, "error", err)
		return nil
	}
	r.after = append(r.after, waited.after...)
	r.after = append(r.after, func(ctx context.Context) error {
		p.logResult(waited)
		return p.unpark(ctx, id, parked)
	})
	return nil
}

// unpark removes what was noted of an event that is applied now. What it waits
// for goes last: a note without its event is cleaned up later, an event without
// its note would stay parked.
func (p *Pipeline) unpark(ctx context.Context, id string, parked Parked) error {
	if err := p.Log.Bucket(eventlog.ParkedEvents).Erase(ctx, id); err != nil {
		return err
	}
	return p.stopWaiting(ctx, id, parked.Waits...)
}

func (p *Pipeline) stopWaiting(ctx context.Context, id string, keys ...string) error {
	for _, key := range keys {
		if err := p.Log.Bucket(eventlog.Waiting).Update(ctx, key, func(old []byte) []byte { return removeWaiting(old, id) }); err != nil {
			return err
		}
	}
	return nil
}

// ParkedEvent returns a parked event, or eventlog.ErrNotFound.
func (p *Pipeline) ParkedEvent(ctx context.Context, eventID string) (Parked, error) {
	value, err := p.Log.Bucket(eventlog.ParkedEvents).Get(ctx, eventID)
	if err != nil {
		return Parked{}, err
	}
	var parked Parked
	if err := json.Unmarshal(value, &parked); err != nil {
		return Parked{}, fmt.Errorf("parked event %s: %w", eventID, err)
	}
	return parked, nil
}
