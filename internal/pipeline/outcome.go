package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/ordergate/ordergate/internal/eventlog"
)

// Outcome is the result of the conversion of an event.
type Outcome string

// The outcomes. All but PENDING are stored: CONVERTED by the order event that names the Stripe
// event, UNMATCHED and FAILED with the parked event, ERASED by the tombstone of the event, and the
// others in the bucket Outcomes.
const (
	Pending   Outcome = "PENDING"   // not converted yet, or Stripe is being asked first
	Converted Outcome = "CONVERTED" // an order event was made of it
	Unchanged Outcome = "UNCHANGED" // its order had all of its content already
	Waiting   Outcome = "WAITING"   // its order is not known yet; it is indexed
	Ignored   Outcome = "IGNORED"   // it is not about an order
	Unmatched Outcome = "UNMATCHED" // Stripe could not name its order; it is parked and indexed
	Failed    Outcome = "FAILED"    // it could not be converted; it is parked
	Erased    Outcome = "ERASED"    // its body was erased
	retried   Outcome = "RETRIED"   // it will be tried again; never stored
)

// maxDetail bounds the stored reason of an outcome, in bytes.
const maxDetail = 4 << 10

// record is the stored outcome of an event.
type record struct {
	Outcome Outcome `json:"outcome"`
	// Detail is the reason for the outcome.
	Detail string `json:"detail,omitempty"`
	// OrderID is the order that the event is about, if that is known.
	OrderID string `json:"order,omitempty"`
	// Waits are the keys under which a WAITING event is indexed.
	Waits []string `json:"waits,omitempty"`
}

func (p *Pipeline) putRecord(eventID string, r record) eventlog.Putting {
	r.Detail = truncated(r.Detail)
	return p.Log.Bucket(eventlog.Outcomes).Begin(eventID, encoded(r))
}

// recordOf returns the stored outcome of an event, or eventlog.ErrNotFound.
func (p *Pipeline) recordOf(ctx context.Context, eventID string) (r record, err error) {
	value, err := p.Log.Bucket(eventlog.Outcomes).Get(ctx, eventID)
	if err != nil {
		return record{}, err
	}
	if err := json.Unmarshal(value, &r); err != nil {
		return record{}, fmt.Errorf("outcome of event %s: %w", eventID, err)
	}
	return r, nil
}

func truncated(detail string) string { return detail[:min(len(detail), maxDetail)] }

// encoded returns the JSON of one of the package's own records.
func encoded(record any) []byte {
	value, err := json.Marshal(record)
	if err != nil { // they hold nothing that JSON has no form for
		panic(err)
	}
	return value
}

// Status is the outcome of an event, with its reason.
type Status struct {
	// Outcome is any outcome that is stored, or PENDING.
	Outcome Outcome
	// Type is the event's type; empty if it cannot be read.
	Type string
	// OrderID is the order that the event is about; empty if there is none, or it is not known.
	OrderID string
	// Detail is the reason for the outcome; empty for CONVERTED, UNCHANGED and ERASED.
	Detail string
}

// StatusOf returns the status of a stored event. converted is the inbox's state of that name.
func (p *Pipeline) StatusOf(ctx context.Context, stored *eventlog.StoredEvent, converted uint64) (Status, error) {
	r := &result{stored: stored}
	p.read(r)
	status := Status{Type: r.eventType()}
	if stored.Erased {
		status.Outcome = Erased
		return status, nil
	}
	parked, err := p.ParkedEvent(ctx, stored.ID)
	if err == nil {
		status.Outcome, status.Detail = parked.Outcome, parked.Detail
		return status, nil
	}
	if !errors.Is(err, eventlog.ErrNotFound) {
		return Status{}, err
	}
	kept, err := p.recordOf(ctx, stored.ID)
	if err != nil && !errors.Is(err, eventlog.ErrNotFound) {
		return Status{}, err
	}
	status.Outcome, status.Detail, status.OrderID = kept.Outcome, kept.Detail, kept.OrderID
	if r.event == nil {
		if kept.Outcome == "" {
			status.Outcome, status.Detail = Pending, r.err.Error()
		}
		return status, nil
	}
	if status.OrderID == "" && kept.Outcome != Ignored {
		if status.OrderID, err = p.knownOrder(ctx, r.event); err != nil {
			return Status{}, err
		}
	}
	switch {
	case kept.Outcome == Waiting && status.OrderID == "", kept.Outcome != "" && kept.Outcome != Waiting:
		return status, nil
	case kept.Outcome == "" && stored.Sequence <= converted && !p.agenda.has(ctx, stored.ID):
		status.Outcome = Converted
		return status, nil
	}
	// The inbox counts up to the first event that is not acknowledged, and a kill may have come
	// between an order event and the record of it: the order event decides.
	done := false
	if status.OrderID != "" {
		if done, err = p.changedBy(ctx, status.OrderID, stored.ID); err != nil {
			return Status{}, err
		}
	}
	switch {
	case done:
		status.Outcome, status.Detail = Converted, ""
	case kept.Outcome == "":
		status.Outcome = Pending
	}
	return status, nil
}
