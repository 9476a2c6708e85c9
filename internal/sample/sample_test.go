package sample

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/orders"
)

// ledger makes orders of events as the pipeline does, with what the references
// of the events say and nothing else.
type ledger struct {
	orders map[string]*ordergatev1.Order
	known  map[orders.Reference]string
	last   string // the order that the last event was about
}

// tell adds a sample. It must convert without a warning, and be about the order
// that it says.
func (l *ledger) tell(t *testing.T, s Event) {
	t.Helper()
	sources := orders.DefaultSources()
	sources.PaymentIntents = true
	e, err := orders.Parse(s.Body, sources)
	if err != nil {
		t.Fatalf("%s: %v", s.Type, err)
	}
	if e.ID != s.ID || e.Type != s.Type || e.Livemode || e.Ignored() {
		t.Fatalf("%s %s: parsed as %+v", s.Type, s.ID, e)
	}
	id := e.OrderID()
	if id == "" || e.MustClaim() {
		for _, r := range slices.Backward(e.References()) { // the first that is known tells
			if of, ok := l.known[r]; ok {
				id = of
			}
		}
	}
	if id != s.OrderID {
		t.Fatalf("%s says it is of order %q; by its references it is of %q", s.Type, s.OrderID, id)
	}
	for _, r := range e.References() {
		l.known[r] = id
	}
	l.last = id

	noKey := orders.LineItems{State: ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE}
	change, err := orders.Apply(l.orders[id], e, noKey)
	if err != nil {
		t.Fatalf("%s: %v", s.Type, err)
	}
	if change == nil {
		// Only the invoice of an order that its session made changes nothing.
		// It is well formed if it could have made one.
		if change, err = orders.Apply(nil, e, noKey); err != nil || change == nil {
			t.Fatalf("%s changes nothing: %v", s.Type, err)
		}
	} else {
		l.orders[id] = change.Order
	}
	if len(change.Warnings) > 0 {
		t.Errorf("%s: %v", s.Type, change.Warnings)
	}
}

// state says in short how an order ended.
func state(o *ordergatev1.Order) string {
	text := fmt.Sprint(strings.TrimPrefix(o.GetStatus().String(), "ORDER_STATUS_"), " ", strings.TrimPrefix(o.GetDirective().String(), "DIRECTIVE_"))
	for _, r := range o.GetHoldReasons() {
		text += " " + strings.TrimPrefix(r.String(), "HOLD_REASON_")
	}
	for _, r := range o.GetCancelReasons() {
		text += " " + strings.TrimPrefix(r.String(), "CANCEL_REASON_")
	}
	if refunded := o.GetAmounts().GetRefunded(); refunded > 0 {
		text += fmt.Sprint(" ", refunded)
	}
	return text
}

// check replays a story and compares how its last order ends.
func check(t *testing.T, events []Event, want string) *ledger {
	t.Helper()
	l := &ledger{orders: map[string]*ordergatev1.Order{}, known: map[orders.Reference]string{}}
	for _, e := range events {
		l.tell(t, e)
	}
	for _, o := range l.orders {
		if o.GetShipping().GetAddress().GetCountry() != "DE" || o.GetShipping().GetPhone() == "" ||
			o.GetCustomer().GetEmail() == "" || o.GetAmounts().GetTotal() == 0 || o.GetCurrency() != "eur" ||
			o.GetMetadata()["warehouse"] != "berlin-1" || o.GetAddressState() != ordergatev1.AddressState_ADDRESS_STATE_PRESENT {
			t.Errorf("the order lacks something: %v", o)
		}
	}
	if got := state(l.orders[l.last]); got != want {
		t.Errorf("the order ends %s, want %s", got, want)
	}
	return l
}

// How each scenario ends.
var ends = map[string]string{
	"paid":                         "PAID SHIP",
	"paid-later":                   "PAID SHIP",
	"payment-fails":                "PAYMENT_FAILED CANCEL PAYMENT_FAILED",
	"expires":                      "EXPIRED CANCEL EXPIRED",
	"refunded":                     "REFUNDED CANCEL REFUNDED 5890",
	"partly-refunded":              "PARTIALLY_REFUNDED SHIP 1900",
	"refund-arrives":               "PARTIALLY_REFUNDED SHIP 1900",
	"refund-fails":                 "PAID HOLD REFUND_UNCLEAR",
	"disputed":                     "PAID HOLD DISPUTED",
	"disputed-won":                 "PAID SHIP",
	"disputed-lost":                "PAID CANCEL DISPUTE_LOST",
	"partly-refunded-disputed-won": "PARTIALLY_REFUNDED SHIP 1900",
	"fraud-warning":                "PAID HOLD FRAUD_WARNING",
	"fraud-warning-refunded":       "REFUNDED CANCEL FRAUD_WARNING REFUNDED 5890",
	"reviewed":                     "PAID HOLD IN_REVIEW",
	"reviewed-approved":            "PAID SHIP",
	"next-box":                     "PAID SHIP",
	"subscription":                 "PAID SHIP",
	"elements":                     "PAID SHIP",
	"authorized-captured":          "PAID SHIP",
	"authorized-canceled":          "CANCELED CANCEL CANCELED",
}

func TestScenarios(t *testing.T) {
	var names []string
	for _, s := range Scenarios() {
		names = append(names, s.Name)
		t.Run(s.Name, func(t *testing.T) {
			events, err := Scenario(s.Name, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			l := check(t, events, ends[s.Name])
			// Only a subscription's boxes are orders of their own.
			if want := map[bool]int{true: 2, false: 1}[s.Name == "subscription"]; len(l.orders) != want {
				t.Errorf("it makes %d orders, want %d", len(l.orders), want)
			}
			if last := events[len(events)-1]; last.Type != s.Type || s.About == "" {
				t.Errorf("it ends with %s: %+v", last.Type, s)
			}
		})
	}
	if len(names) != len(ends) {
		t.Errorf("scenarios %v, and the ends of %d", names, len(ends))
	}
	if _, err := Scenario("nope", time.Now()); err == nil || !strings.Contains(err.Error(), "partly-refunded-disputed-won") {
		t.Errorf("err = %v, want one that names the scenarios", err)
	}
}

// There is a story for each type of event that the gateway uses. It is about
// one order, and ends with that type.
func TestStories(t *testing.T) {
	want := []struct{ eventType, state string }{
		{"checkout.session.completed", "PAID SHIP"},
		{"checkout.session.async_payment_succeeded", "PAID SHIP"},
		{"checkout.session.async_payment_failed", "PAYMENT_FAILED CANCEL PAYMENT_FAILED"},
		{"checkout.session.expired", "EXPIRED CANCEL EXPIRED"},
		{"charge.refunded", "REFUNDED CANCEL REFUNDED 5890"},
		{"refund.created", "PARTIALLY_REFUNDED SHIP 1900"},
		{"refund.updated", "PARTIALLY_REFUNDED SHIP 1900"},
		{"refund.failed", "PAID HOLD REFUND_UNCLEAR"},
		{"charge.dispute.created", "PAID HOLD DISPUTED"},
		{"charge.dispute.closed", "PAID SHIP"},
		{"radar.early_fraud_warning.created", "PAID HOLD FRAUD_WARNING"},
		{"review.opened", "PAID HOLD IN_REVIEW"},
		{"review.closed", "PAID SHIP"},
		{"invoice.paid", "PAID SHIP"},
		{"payment_intent.succeeded", "PAID SHIP"},
		{"payment_intent.canceled", "CANCELED CANCEL CANCELED"},
	}
	var types []string
	for _, w := range want {
		types = append(types, w.eventType)
		t.Run(w.eventType, func(t *testing.T) {
			events, err := Story(w.eventType, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			l := check(t, events, w.state)
			if last := events[len(events)-1]; last.Type != w.eventType || len(l.orders) != 1 {
				t.Errorf("it ends with %s and makes %d orders", last.Type, len(l.orders))
			}
		})
	}
	if diff := cmp.Diff(types, Types()); diff != "" {
		t.Error(diff)
	}
	if _, err := Story("a.b", time.Now()); err == nil || !strings.Contains(err.Error(), Completed) {
		t.Errorf("err = %v, want one that names the samples", err)
	}
}

// A subscription's first box is its session's order; what is in the second is
// said by its invoice.
func TestSubscription(t *testing.T) {
	events, err := Scenario("subscription", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if len(events) != 3 || events[0].OrderID != events[1].OrderID || events[1].OrderID == events[2].OrderID {
		t.Fatalf("%d events, of orders %s, %s, %s", len(events), events[0].OrderID, events[1].OrderID, events[2].OrderID)
	}
	l := check(t, events, "PAID SHIP")
	first, second := l.orders[events[0].OrderID], l.orders[events[2].OrderID]
	if got := state(first); got != "PAID SHIP" || first.GetAmounts().GetTotal() != second.GetAmounts().GetTotal() {
		t.Errorf("the first box ends %s: %v", got, first.GetAmounts())
	}
	if first.GetReferences().GetSubscription() != second.GetReferences().GetSubscription() || first.GetCustomer().GetId() != second.GetCustomer().GetId() {
		t.Errorf("two subscriptions: %v and %v", first.GetReferences(), second.GetReferences())
	}
	if second.GetLineItemsState() != ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE || len(second.GetLineItems()) != 1 ||
		second.GetLineItems()[0].GetAmountTotal() != second.GetAmounts().GetTotal() {
		t.Errorf("line items = %v", second.GetLineItems())
	}
}

// Every story is about things of its own, and leaves nothing of its template
// unsaid.
func TestEachStoryIsItsOwn(t *testing.T) {
	now := time.Unix(1760000000, 0)
	seen := map[string]string{}
	for range 2 {
		for _, s := range Scenarios() {
			events, err := Scenario(s.Name, now)
			if err != nil {
				t.Fatal(err)
			}
			for i, e := range events {
				story := fmt.Sprintf("%s of %s", s.Name, events[0].OrderID)
				if of, ok := seen[e.OrderID]; ok && of != story || seen[e.ID] != "" {
					t.Errorf("%s shares an id with %s", story, of)
				}
				seen[e.OrderID], seen[e.ID] = story, story
				if bytes.ContainsRune(e.Body, '$') || bytes.Contains(e.Body, []byte(`"livemode": true`)) || !bytes.Contains(e.Body, []byte(`"created": 1760000000,`)) {
					t.Errorf("event %d of %s:\n%s", i+1, s.Name, e.Body)
				}
			}
		}
	}
}
