package stripehook

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/ordergate/ordergate/internal/rawjson"
)

// ErrUnreadable means that a body is not a Stripe event: not JSON, or without
// a usable id and type.
var ErrUnreadable = errors.New("not a readable Stripe event")

var (
	// An event id becomes part of a subject of the log: nothing but letters,
	// digits and underscores may be in it.
	eventIDShape   = regexp.MustCompile(`^evt_[A-Za-z0-9_]{1,200}$`)
	eventTypeShape = regexp.MustCompile(`^[A-Za-z0-9_.\[\]-]{1,200}$`)
)

// ValidEventID reports whether a string has the shape of an event's id.
func ValidEventID(id string) bool { return eventIDShape.MatchString(id) }

// Envelope is what an event says about itself, whatever it is about.
type Envelope struct {
	// ID is the event's id: `evt_` and letters, digits and underscores.
	ID string
	// Type is the event's type, such as `checkout.session.completed`.
	Type string
	// APIVersion is the version that fixed the shape of the event's object.
	// Empty when the event names none.
	APIVersion string
	// Account is the connected account the event is of; empty for the
	// platform's own.
	Account string
	// Livemode is false for a test-mode event.
	Livemode bool
	// ObjectID is the id of the object that the event is about. Empty when
	// there is none.
	ObjectID string
	// Thin means an event that carries no object
	// (https://docs.stripe.com/event-destinations#thin-events): nothing can be
	// made of it without reading the object from Stripe.
	Thin bool
}

// thinObject is the `object` of a thin event; a snapshot event says `event`.
const thinObject = "v2.core.event"

// ReadEnvelope reads the envelope of an event, thin or snapshot. An error
// wraps ErrUnreadable.
func ReadEnvelope(body []byte) (Envelope, error) {
	members, ok := rawjson.Object(body)
	if !ok {
		return Envelope{}, fmt.Errorf("%w: it is not a JSON object", ErrUnreadable)
	}
	e := Envelope{
		ID:         text(members["id"]),
		Type:       text(members["type"]),
		APIVersion: text(members["api_version"]),
		Account:    text(members["account"]),
		Livemode:   string(members["livemode"]) == "true",
		Thin:       text(members["object"]) == thinObject,
	}
	if !eventIDShape.MatchString(e.ID) {
		return Envelope{}, fmt.Errorf("%w: id %.40q is not an event id", ErrUnreadable, e.ID)
	}
	if !eventTypeShape.MatchString(e.Type) {
		return Envelope{}, fmt.Errorf("%w: type %.40q is not an event type", ErrUnreadable, e.Type)
	}
	about := "data"
	if e.Thin {
		e.Account, about = text(members["context"]), "related_object"
	}
	// The object of some types has no id (balance): that is not an error here.
	object, _ := rawjson.ValidObject(members[about])
	if !e.Thin {
		object, _ = rawjson.ValidObject(object["object"])
	}
	e.ObjectID = text(object["id"])
	return e, nil
}

// text reads a string. Anything else is empty: only the id and the type are needed
// to store an event.
func text(raw []byte) string {
	s, _ := rawjson.ValidString(raw)
	return s
}
