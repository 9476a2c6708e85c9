package orders

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// Event is a Stripe event, as far as orders need it. It is immutable once
// parsed.
type Event struct {
	// ID is the event's id (`evt_…`): letters, digits and `_` only.
	ID string
	// Type is the event's type, such as `checkout.session.completed`.
	Type string
	// APIVersion is the version that fixed the shape of the event's object.
	// Empty when the event names none.
	APIVersion string
	// Account is the connected account (`acct_…`) the event is of. Empty for
	// the platform's own.
	Account string
	// Livemode is true only when the event, or its object, says so and neither
	// denies it.
	Livemode bool
	// Created is when Stripe made the event, in UTC, to the second; zero when
	// the event does not say. Nothing may be put in order by it.
	Created time.Time

	sale     *sale // nil when the event is not about an order
	warnings []string
}

// sale is what one snapshot of a Stripe object says about an order.
type sale struct {
	// payment is how far the snapshot says the money got.
	payment payment
	// order holds what is read from the snapshot and nothing that is derived:
	// no revision, status, directive or reasons, no line items.
	order *ordergatev1.Order
}

// OrderID is the id of the order that the event is about. It is empty when the
// event is not about an order: its type is not one that the gateway uses, or it
// is about a session that only saves a payment method (`mode: setup`).
func (e *Event) OrderID() string {
	if e.sale == nil {
		return ""
	}
	return e.sale.order.GetId()
}

// Parse reads a snapshot event. An error means that its object is not what the
// type of the event claims, or that something in it on which shipping depends
// cannot be read; its text holds no personal data. The object of a type that
// the gateway does not use is not looked at.
func Parse(raw []byte) (*Event, error) {
	r := &report{event: "event"}
	top := object{report: r}
	if raw = bytes.TrimSpace(raw); shapeOf(raw) != "an object" || json.Unmarshal(raw, &top.fields) != nil {
		return nil, errors.New("the event is not a JSON object")
	}
	e := &Event{ID: top.text("id"), Type: top.text("type"), APIVersion: top.text("api_version")}
	if !idShape.MatchString(e.ID) {
		return nil, fmt.Errorf("id %.40q is not an event id", e.ID)
	}
	if e.Type == "" {
		return nil, errors.New("type is missing")
	}
	r.event = fmt.Sprintf("event %s (API version %.40q)", e.ID, e.APIVersion)
	if created := top.time("created"); created != nil {
		e.Created = created.AsTime()
	}
	e.Account = readAccount(top)
	e.Livemode = agreed(top.boolean("livemode"), nil)
	if r.err == nil {
		e.readObject(top)
	}
	if r.err != nil {
		return nil, r.err
	}
	e.warnings = r.all()
	return e, nil
}

// readObject reads the object that the event is about, if its type is one that
// is used. https://docs.stripe.com/api/events/types
func (e *Event) readObject(top object) {
	switch e.Type {
	case sessionCompleted, sessionPaymentSucceeded, sessionPaymentFailed, sessionExpired:
		data, _ := top.object("data")
		session, ok := data.object("object")
		if !ok {
			top.fail("data.object", "is not an object")
			return
		}
		e.Livemode = agreed(top.boolean("livemode"), session.boolean("livemode"))
		e.readSession(session)
	}
}

// readAccount fails where it cannot be read: an order must not be taken for
// another account's.
func readAccount(top object) string {
	if !top.has("account") {
		return ""
	}
	account := top.text("account")
	if !idShape.MatchString(account) {
		top.fail("account", "is not an account id")
	}
	return account
}

// agreed returns what an event and its object say together: true when one says
// so and neither denies it. (A test must not be shipped.)
func agreed(a, b *bool) bool {
	return (a != nil || b != nil) && (a == nil || *a) && (b == nil || *b)
}
