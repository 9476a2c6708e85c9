package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/ordergate/ordergate/internal/eventlog"
)

// ErrNotParked means that an event is neither UNMATCHED nor FAILED.
var ErrNotParked = errors.New("the event is not parked")

// Parked is the stored form of an event that needs a person. It holds the whole event, because the
// inbox forgets events by age.
type Parked struct {
	// Outcome is UNMATCHED or FAILED.
	Outcome Outcome `json:"outcome"`
	// Detail is the reason.
	Detail string `json:"detail"`
	// Event is the raw event.
	Event []byte `json:"event"`
	// SecretLabel names the secret that signed it.
	SecretLabel string `json:"secret"`
	// Waits are the keys under which an UNMATCHED event is indexed.
	Waits []string `json:"waits,omitempty"`
}

// park keeps an event that cannot be converted now.
func (p *Pipeline) park(ctx context.Context, r *result, outcome Outcome) error {
	parked := Parked{Outcome: outcome, Detail: truncated(r.err.Error()), Event: r.stored.Body, SecretLabel: r.stored.SecretLabel}
	if outcome == Unmatched {
		parked.Waits = append(referenceKeys(r.event), r.learned...)
	}
	r.outcome = outcome
	if err := p.Log.Bucket(eventlog.ParkedEvents).Put(ctx, r.stored.ID, encoded(parked)); err != nil {
		return err
	}
	for _, key := range parked.Waits {
		if err := p.addWaiting(ctx, key, r.stored.ID); err != nil && !errors.Is(err, errTooManyWait) {
			return err
		}
	}
	if outcome != Unmatched {
		return nil
	}
	// The order may have appeared during the writes, and then nobody would look here again.
	owner, err := p.owner(ctx, r.event)
	if errors.Is(err, eventlog.ErrNotFound) {
		return nil
	}
	current, _, newestErr := p.newest(ctx, owner)
	if err = errors.Join(err, newestErr); err != nil || current == nil {
		return err
	}
	return errors.Join(fmt.Errorf("order %s has just appeared: %w", owner, eventlog.ErrConflict), p.unpark(ctx, r.stored.ID))
}

// unpark removes a parked event that was dealt with. Its index entries go last: an entry without
// its event is removed later, and an event without its entry would stay parked.
func (p *Pipeline) unpark(ctx context.Context, id string) error {
	parked, err := p.ParkedEvent(ctx, id)
	if errors.Is(err, eventlog.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := p.Log.Bucket(eventlog.ParkedEvents).Erase(ctx, id); err != nil {
		return err
	}
	return p.unindex(ctx, id, parked.Waits)
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

// Dismiss ends a parked event for an operator's reason: it becomes IGNORED. It fails with
// ErrNotParked if the event is not parked. The new outcome is on disk when it returns.
func (p *Pipeline) Dismiss(ctx context.Context, eventID, reason string) error {
	if _, err := p.ParkedEvent(ctx, eventID); errors.Is(err, eventlog.ErrNotFound) {
		return fmt.Errorf("event %s: %w", eventID, ErrNotParked)
	} else if err != nil {
		return err
	}
	if err := p.putRecord(eventID, record{Outcome: Ignored, Detail: "dismissed: " + reason}).Wait(ctx); err != nil {
		return err
	}
	if err := p.Log.Flush(ctx); err != nil {
		return err
	}
	if err := p.unpark(ctx, eventID); err != nil {
		return err
	}
	p.Logger.Info("event dismissed", "event", eventID, "reason", reason)
	return p.Log.Flush(ctx)
}
