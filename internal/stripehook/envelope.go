package stripehook

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ordergate/ordergate/internal/rawjson"
)

// ErrUnreadable means that a body is not a Stripe event: not JSON, or without
// a usable id and type.
var ErrUnreadable = errors.New("not a readable Stripe event")

// ValidEventID reports whether a string has the shape of an event's id: `evt_` and
// up to 200 letters, digits and underscores. An event id becomes part of a subject
// of the log: nothing else may be in it.
func ValidEventID(id string) bool {
	rest, ok := strings.CutPrefix(id, "evt_")
	return ok && made(rest, "_")
}

func validEventType(name string) bool { return made(name, "_.[]-") }

// made reports whether a string is made of letters, digits and these others, 1 to
// 200 of them.
func made(s, others string) bool {
	for i := range len(s) {
		c := s[i]
		if letter := c | 0x20; (letter < 'a' || letter > 'z') && (c < '0' || c > '9') && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return 1 <= len(s) && len(s) <= 200
}

// Envelope is what an event says about itself, whatever it is about.
type Envelope struct {
	// ID is the event's id: `evt_` and letters, digits and underscores.
	ID string
	// Type is the event's type, such as `checkout.session.completed`.
	Type string
	// APIVersion is the version that fixed the shape of the event's object.
	// Empty when the event names none.
	APIVersion string
	// Account is the account the event is of: a connected account, or one of the
	// organization that owns the event destination (`context`). Empty for the
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
	event, ok := rawjson.Parse(body)
	if !ok || !event.IsObject() {
		return Envelope{}, fmt.Errorf("%w: it is not a JSON object", ErrUnreadable)
	}
	e := Envelope{
		ID:         text(event.Get("id")),
		Type:       text(event.Get("type")),
		APIVersion: text(event.Get("api_version")),
		Account:    text(event.Get("account")),
		Livemode:   string(event.Get("livemode").Raw()) == "true",
		Thin:       text(event.Get("object")) == thinObject,
	}
	if !ValidEventID(e.ID) {
		return Envelope{}, fmt.Errorf("%w: id %.40q is not an event id", ErrUnreadable, e.ID)
	}
	if !validEventType(e.Type) {
		return Envelope{}, fmt.Errorf("%w: type %.40q is not an event type", ErrUnreadable, e.Type)
	}
	about := event.Get("data").Get("object")
	if e.Thin {
		about = event.Get("related_object")
	}
	if e.Account == "" || e.Thin {
		e.Account = text(event.Get("context"))
	}
	// The object of some types has no id (balance): that is not an error here.
	e.ObjectID = text(about.Get("id"))
	return e, nil
}

// text reads a string. Anything else is empty: only the id and the type are needed
// to store an event.
func text(v rawjson.Value) string {
	s, _ := v.Text()
	return s
}
