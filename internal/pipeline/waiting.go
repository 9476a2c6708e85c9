package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
)

const (
	// maxWaiting bounds the events that wait under one key. The next one is FAILED: nobody would
	// find it otherwise. An order takes 100 refunds, disputes and so on, each of which may come in
	// several events.
	maxWaiting = 2000
	// lookupDelay is the time from the first miss of an event's order until Stripe is asked for
	// it: most sales are only late.
	lookupDelay = 30 * time.Second
)

var errTooManyWait = fmt.Errorf("%d events wait for the order of this payment already", maxWaiting)

// index makes an event wait for its order, under all its references. In the end the order may have
// appeared during the writes: ready is then true, and the event is to be converted now.
func (p *Pipeline) index(ctx context.Context, r *result) (ready bool, err error) {
	waits := append(referenceKeys(r.event), r.learned...)
	for _, key := range waits {
		if err := p.addWaiting(ctx, key, r.stored.ID); err != nil {
			return false, err
		}
	}
	// An erasure at this moment finds the stored event itself.
	owner, err := p.ownerOf(ctx, r.event, referenceKeys(r.event))
	switch {
	case errors.Is(err, eventlog.ErrNotFound):
	case err != nil:
		return false, err
	case owner != r.orderID: // it has just become known
		return true, nil
	default: // known from its references, and not there: it may be on its way
		current, _, err := p.newest(ctx, owner)
		if err != nil || current != nil {
			return current != nil, err
		}
	}
	r.outcome, r.waits = Waiting, waits
	r.puts = append(r.puts, p.putRecord(r.stored.ID, record{Outcome: Waiting, Detail: r.detail, Waits: waits}))
	if p.hasKey(r.event.Livemode) && !r.event.Optional() && r.task == "" {
		p.schedule(r, taskLookup, task{Due: time.Now().Add(p.lookupDelay)})
	}
	return false, nil
}

// backlogBatch is the number of events of the backlog that are read at a time.
const backlogBatch = 200

// indexBacklog indexes the follow-ups among the events that were stored and not converted when the
// gateway begins. A sale is converted in an earlier batch than a refund that was stored thousands of
// events later, and includes it all the same.
func (p *Pipeline) indexBacklog(ctx context.Context) error {
	state, err := p.Log.InboxState(ctx)
	if err != nil {
		return err
	}
	for after := state.Converted; after < state.Last; {
		batch, err := p.Log.ReadInbox(ctx, after, backlogBatch)
		if err != nil || len(batch) == 0 {
			return err
		}
		after = batch[len(batch)-1].Sequence
		results := make([]*result, len(batch))
		for i, stored := range batch {
			results[i] = &result{stored: stored}
		}
		var failed atomic.Pointer[error]
		each(results, p.parallel(), func(r *result) {
			if err := guard(func() error { return p.indexEarly(ctx, r) }); err != nil {
				failed.Store(&err)
			}
		})
		if err := failed.Load(); err != nil {
			return *err
		}
	}
	return nil
}

// indexEarly indexes an event before it is converted, if it is a follow-up without a known order.
func (p *Pipeline) indexEarly(ctx context.Context, r *result) error {
	p.read(r)
	if r.event == nil || r.event.Ignored() || r.event.OrderID() != "" {
		return nil
	}
	if _, err := p.owner(ctx, r.event); !errors.Is(err, eventlog.ErrNotFound) {
		return err
	}
	r.detail = "its order is not known yet"
	if _, err := p.index(ctx, r); err != nil {
		return err
	}
	return r.waitPuts(ctx)
}

// schedule stores a task for an event; it is begun once that is on disk.
func (p *Pipeline) schedule(r *result, kind taskKind, t task) {
	r.task, r.due = kind, t
	r.puts = append(r.puts, p.agenda.begin(kind, r.stored.ID, t))
}

// addWaiting adds an event to the list of those that wait under a key.
func (p *Pipeline) addWaiting(ctx context.Context, key, eventID string) error {
	alone := encoded([]string{eventID})
	list, err := p.Log.Bucket(eventlog.Waiting).Claim(ctx, key, alone)
	if err != nil || slices.Contains(waitingIDs(list), eventID) {
		return err
	}
	full := false
	err = p.Log.Bucket(eventlog.Waiting).Update(ctx, key, func(old []byte) []byte {
		ids := waitingIDs(old)
		if slices.Contains(ids, eventID) {
			return old
		}
		if full = len(ids) >= maxWaiting; full {
			return old
		}
		return encoded(append(ids, eventID))
	})
	if err == nil && full {
		return fmt.Errorf("%s: %w", key, errTooManyWait)
	}
	return err
}

// unindex removes an event from the lists under some keys. An empty list is removed.
func (p *Pipeline) unindex(ctx context.Context, eventID string, keys []string) error {
	for _, key := range keys {
		if _, err := p.Log.Bucket(eventlog.Waiting).Get(ctx, key); errors.Is(err, eventlog.ErrNotFound) {
			continue
		}
		err := p.Log.Bucket(eventlog.Waiting).Update(ctx, key, func(old []byte) []byte {
			ids := slices.DeleteFunc(waitingIDs(old), func(id string) bool { return id == eventID })
			if len(ids) == 0 {
				return nil
			}
			return encoded(ids)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func waitingIDs(list []byte) (ids []string) {
	if json.Unmarshal(list, &ids) != nil { // there is no list
		return nil
	}
	return ids
}

// collect returns the events that wait under some keys, and under the references of those events
// in turn: a payment may be tied to an invoice by a waiting event only. Events in known are left
// out. stale are entries without an event.
func (p *Pipeline) collect(ctx context.Context, keys []string, known map[string]bool) (waiting []*result, stale []string, err error) {
	keys = slices.Clone(keys)
	for i := 0; i < len(keys); i++ {
		list, err := p.Log.Bucket(eventlog.Waiting).Get(ctx, keys[i])
		if errors.Is(err, eventlog.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		for _, id := range waitingIDs(list) {
			if known[id] {
				continue
			}
			known[id] = true
			r, err := p.waitingEvent(ctx, id)
			if err != nil {
				return nil, nil, err
			}
			if r == nil {
				stale = append(stale, id)
				continue
			}
			waiting = append(waiting, r)
			for _, key := range r.waits {
				if !slices.Contains(keys, key) {
					keys = append(keys, key)
				}
			}
		}
	}
	return waiting, stale, nil
}

// waitingEvent reads an event that is in the index: from the inbox, or with the parked ones. It
// returns nil if the event is no longer kept, or cannot be read.
func (p *Pipeline) waitingEvent(ctx context.Context, id string) (*result, error) {
	parked, err := p.ParkedEvent(ctx, id)
	isParked := err == nil
	if err != nil && !errors.Is(err, eventlog.ErrNotFound) {
		return nil, err
	}
	stored := &eventlog.StoredEvent{RawEvent: eventlog.RawEvent{ID: id, Body: parked.Event, SecretLabel: parked.SecretLabel}}
	var learned []string
	if !isParked {
		stored, err = p.Log.InboxEvent(ctx, id)
		if errors.Is(err, eventlog.ErrNotFound) || err == nil && stored.Erased {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		kept, err := p.recordOf(ctx, id)
		if err != nil && !errors.Is(err, eventlog.ErrNotFound) {
			return nil, err
		}
		learned = kept.Waits
	}
	event, err := orders.Parse(stored.Body, p.Sources)
	if err != nil || event.Ignored() { // the order sources were others when it was indexed
		return nil, nil
	}
	waits := referenceKeys(event)
	for _, key := range learned {
		if !slices.Contains(waits, key) {
			waits = append(waits, key)
		}
	}
	return &result{stored: stored, event: event, waits: waits, waited: true, parked: isParked}, nil
}
