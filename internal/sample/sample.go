// Package sample makes Stripe events as Stripe would send them, about people
// and orders that do not exist: for `ordergate trigger` and for tests.
package sample

import (
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"
)

// apiVersion is the Stripe API version that the samples are in the shape of.
const apiVersion = "2025-09-30.clover"

//go:embed session.json
var sessionJSON []byte

// Event is a sample event.
type Event struct {
	// ID and Type are the event's, OrderID the Checkout Session's.
	ID, Type, OrderID string
	// Body is what Stripe would send.
	Body []byte
}

// step is one event of a story: its type, and what the session says by then.
type step struct {
	eventType     string
	status        string
	paymentStatus string
}

// Types of events, as Stripe names them.
const (
	Completed        = "checkout.session.completed"
	PaymentSucceeded = "checkout.session.async_payment_succeeded"
	PaymentFailed    = "checkout.session.async_payment_failed"
	Expired          = "checkout.session.expired"
)

// placed is how each order that is paid for later begins.
var placed = step{Completed, "complete", "unpaid"}

// stories are the events that lead to an event of a type, and that event.
var stories = map[string][]step{
	Completed:        {{Completed, "complete", "paid"}},
	PaymentSucceeded: {placed, {PaymentSucceeded, "complete", "paid"}},
	PaymentFailed:    {placed, {PaymentFailed, "complete", "unpaid"}},
	Expired:          {placed, {Expired, "expired", "unpaid"}},
}

// Types returns the types that there are samples of.
func Types() []string { return slices.Sorted(maps.Keys(stories)) }

// Story returns the events about one new order that lead to an event of a type,
// that event last. now becomes their `created`.
func Story(eventType string, now time.Time) ([]Event, error) {
	steps, ok := stories[eventType]
	if !ok {
		return nil, fmt.Errorf("there is no sample of %q: try one of %v", eventType, Types())
	}
	key := rand.Text()
	orderID := "cs_test_a1" + key
	var events []Event
	for _, s := range steps {
		body, id, err := s.body(orderID, "pi_3"+key[:24], now)
		if err != nil {
			return nil, err
		}
		events = append(events, Event{ID: id, Type: s.eventType, OrderID: orderID, Body: body})
	}
	return events, nil
}

func (s step) body(orderID, paymentIntent string, now time.Time) (body []byte, id string, err error) {
	var session map[string]any
	if err := json.Unmarshal(sessionJSON, &session); err != nil {
		return nil, "", fmt.Errorf("sample session: %w", err)
	}
	session["id"] = orderID
	session["created"] = now.Add(-time.Minute).Unix()
	session["expires_at"] = now.Add(24 * time.Hour).Unix()
	session["payment_intent"] = paymentIntent
	session["status"] = s.status
	session["payment_status"] = s.paymentStatus
	id = "evt_1" + rand.Text()
	body, err = json.MarshalIndent(map[string]any{
		"id":               id,
		"object":           "event",
		"api_version":      apiVersion,
		"created":          now.Unix(),
		"data":             map[string]any{"object": session},
		"livemode":         false,
		"pending_webhooks": 1,
		"request":          map[string]any{"id": nil, "idempotency_key": nil},
		"type":             s.eventType,
	}, "", "  ")
	return body, id, err
}
