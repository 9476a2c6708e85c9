// Package sample makes Stripe events as Stripe would send them, about people
// and orders that do not exist: for `ordergate trigger` and for tests.
//
// Each *.json is a Stripe object. Of its values, `$session`, `$now` and so on
// become what they are in one story (see newCast); `$self` is its own id.
package sample

import (
	"crypto/rand"
	"embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// apiVersion is the Stripe API version that the samples are in the shape of.
const apiVersion = "2025-09-30.clover"

//go:embed *.json
var templates embed.FS

// Event is a sample event.
type Event struct {
	// ID and Type are the event's, OrderID that of the order it is about.
	ID, Type, OrderID string
	// Body is what Stripe would send.
	Body []byte
}

// Summary is a scenario in short.
type Summary struct {
	// Name is the scenario's, Type that of its last event.
	Name, Type string
	// About says in a line what happens.
	About string
}

// Scenarios lists the scenarios, the simplest of each type first.
func Scenarios() (list []Summary) {
	for _, s := range stories {
		list = append(list, Summary{Name: s.name, Type: s.endsWith(), About: s.about})
	}
	return list
}

// Types returns the types that there are samples of.
func Types() (types []string) {
	for _, s := range stories {
		if !slices.Contains(types, s.endsWith()) {
			types = append(types, s.endsWith())
		}
	}
	return types
}

// Story returns the events about one new order that lead to an event of a type,
// that event last: the first of the scenarios that end with it. now becomes
// their `created`.
func Story(eventType string, now time.Time) ([]Event, error) {
	i := slices.IndexFunc(stories, func(s story) bool { return s.endsWith() == eventType })
	if i < 0 {
		return nil, fmt.Errorf("there is no sample of %q: try one of %s", eventType, strings.Join(Types(), ", "))
	}
	return stories[i].events(now)
}

// Scenario returns the events of the scenario with this name, about a new order.
// now becomes their `created`.
func Scenario(name string, now time.Time) ([]Event, error) {
	i := slices.IndexFunc(stories, func(s story) bool { return s.name == name })
	if i < 0 {
		var names []string
		for _, s := range stories {
			names = append(names, s.name)
		}
		return nil, fmt.Errorf("there is no scenario %q: try one of %s", name, strings.Join(names, ", "))
	}
	return stories[i].events(now)
}

func (s story) endsWith() string { return s.steps[len(s.steps)-1].eventType }

func (s story) events(now time.Time) (events []Event, err error) {
	cast := newCast(now)
	for _, step := range s.steps {
		event, err := step.event(cast, now)
		if err != nil {
			return nil, fmt.Errorf("sample %s of %s: %w", step.eventType, s.name, err)
		}
		events = append(events, event)
	}
	return events, nil
}

// newCast returns what `$session` and so on are in one story: pairs for a
// strings.Replacer. A time is a number, so it takes the quotes with it.
func newCast(now time.Time) *strings.Replacer {
	key := rand.Text()[:24]
	at := func(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }
	return strings.NewReplacer(
		"$session", "cs_test_a1"+key,
		"$payment_intent", "pi_3"+key,
		"$charge", "ch_3"+key,
		"$refund", "re_3"+key,
		"$dispute", "du_1"+key,
		"$review", "prv_1"+key,
		"$warning", "issfr_1"+key,
		"$customer", "cus_"+key[:14],
		"$subscription", "sub_1"+key,
		"$invoice", "in_1"+key,
		"$next_invoice", "in_2"+key,
		`"$last_month"`, at(now.AddDate(0, -1, 0)),
		`"$minute_ago"`, at(now.Add(-time.Minute)),
		`"$now"`, at(now),
		`"$tomorrow"`, at(now.AddDate(0, 0, 1)),
		`"$next_week"`, at(now.AddDate(0, 0, 7)),
		`"$next_month"`, at(now.AddDate(0, 1, 0)),
	)
}

func (s step) event(cast *strings.Replacer, now time.Time) (Event, error) {
	about, err := s.object(cast)
	if err != nil {
		return Event{}, err
	}
	e := Event{ID: "evt_1" + rand.Text(), Type: s.eventType, OrderID: cast.Replace("$session")}
	if s.order != "" {
		e.OrderID = cast.Replace(s.order)
	}
	e.Body, err = json.MarshalIndent(map[string]any{
		"id":               e.ID,
		"object":           "event",
		"api_version":      apiVersion,
		"created":          now.Unix(),
		"data":             map[string]any{"object": about},
		"livemode":         false,
		"pending_webhooks": 1,
		"request":          map[string]any{"id": nil, "idempotency_key": nil},
		"type":             e.Type,
	}, "", "  ")
	return e, err
}

// object fills in the template.
func (s step) object(cast *strings.Replacer) (json.RawMessage, error) {
	template, err := templates.ReadFile(s.template + ".json")
	if err != nil {
		return nil, err
	}
	var object map[string]any
	if err := json.Unmarshal(template, &object); err != nil {
		return nil, fmt.Errorf("%s.json: %w", s.template, err)
	}
	maps.Copy(object, s.with)
	text, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	id, _ := object["id"].(string)
	return json.RawMessage(cast.Replace(strings.ReplaceAll(string(text), "$self", id))), nil
}
