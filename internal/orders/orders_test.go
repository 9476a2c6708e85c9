package orders

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// Short names for the generated constants.
const (
	awaitingPayment = ordergatev1.OrderStatus_ORDER_STATUS_AWAITING_PAYMENT
	statusPaid      = ordergatev1.OrderStatus_ORDER_STATUS_PAID
	paymentFailed   = ordergatev1.OrderStatus_ORDER_STATUS_PAYMENT_FAILED
	statusExpired   = ordergatev1.OrderStatus_ORDER_STATUS_EXPIRED

	wait   = ordergatev1.Directive_DIRECTIVE_WAIT
	ship   = ordergatev1.Directive_DIRECTIVE_SHIP
	hold   = ordergatev1.Directive_DIRECTIVE_HOLD
	cancel = ordergatev1.Directive_DIRECTIVE_CANCEL

	present      = ordergatev1.AddressState_ADDRESS_STATE_PRESENT
	notCollected = ordergatev1.AddressState_ADDRESS_STATE_NOT_COLLECTED
	unreadable   = ordergatev1.AddressState_ADDRESS_STATE_UNREADABLE
	incomplete   = ordergatev1.AddressState_ADDRESS_STATE_INCOMPLETE
	notNeeded    = ordergatev1.AddressState_ADDRESS_STATE_NOT_NEEDED

	complete    = ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE
	pending     = ordergatev1.LineItemsState_LINE_ITEMS_STATE_PENDING
	unavailable = ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE

	kindPlaced   = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PLACED
	kindPaid     = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID
	kindFailed   = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAYMENT_FAILED
	kindExpired  = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_EXPIRED
	kindHeld     = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD
	kindReleased = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_RELEASED
	kindUpdated  = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UPDATED
)

// noKey is what is known of the line items without an API key.
var noKey = LineItems{State: unavailable}

// event writes an event about the session cs_test_1. session holds the fields
// of the session that matter, as JSON after a comma.
type event struct {
	id      string // evt_1 unless set
	typ     string // without `checkout.session.`
	version string // 2023-10-16 unless set; "none" is none
	created int64  // 1700000000 unless set
	session string
}

func (e event) json() []byte {
	if e.id == "" {
		e.id = "evt_1"
	}
	switch e.version {
	case "":
		e.version = "2023-10-16"
	case "none":
		e.version = ""
	}
	if e.created == 0 {
		e.created = 1700000000
	}
	return fmt.Appendf(nil, `{"id":%q,"object":"event","api_version":"%s","created":%d,"livemode":false,`+
		`"type":"checkout.session.%s","data":{"object":{"id":"cs_test_1","object":"checkout.session"%s}}}`,
		e.id, e.version, e.created, e.typ, e.session)
}

const (
	isPaid   = `,"mode":"payment","payment_status":"paid","currency":"eur","amount_total":4200`
	isUnpaid = `,"mode":"payment","payment_status":"unpaid","currency":"eur","amount_total":4200`
	street   = `{"line1":"Musterstraße 1","line2":null,"city":"Musterstadt","postal_code":"12345","country":"DE","state":null}`
	shipTo   = `,"shipping_details":{"name":"Ada Sample","phone":"+49301","address":` + street + `}`
	collect  = `,"shipping_address_collection":{"allowed_countries":["DE"]}`
)

// allSources is everything that can make orders.
var allSources = Sources{PaymentIntents: true, Invoices: []string{"subscription_create", "subscription_cycle", "subscription_update", "manual"}}

// applied applies one event, which must not fail.
func applied(t *testing.T, current *ordergatev1.Order, e *Event, items LineItems) *Change {
	t.Helper()
	c, err := Apply(current, e, items)
	if err != nil {
		t.Fatalf("Apply: %v", err)
	}
	return c
}

func parse(t *testing.T, raw []byte) *Event {
	t.Helper()
	e, err := Parse(raw, allSources)
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return e
}

func parseAll(t *testing.T, events []event) (parsed []*Event) {
	t.Helper()
	for _, e := range events {
		parsed = append(parsed, parse(t, e.json()))
	}
	return parsed
}

func ids(events []*Event) string {
	var list []string
	for _, e := range events {
		list = append(list, e.ID)
	}
	return strings.Join(list, ", ")
}

// apply applies one event to no order, and demands an order.
func apply(t *testing.T, e event) *Change {
	t.Helper()
	c := applied(t, nil, parse(t, e.json()), noKey)
	if c == nil {
		t.Fatal("Apply changed nothing")
	}
	return c
}

// replay applies events one after the other and returns what became of it.
func replay(t *testing.T, events []*Event, items LineItems) (*ordergatev1.Order, []ordergatev1.OrderEventKind) {
	t.Helper()
	var (
		o     *ordergatev1.Order
		kinds []ordergatev1.OrderEventKind
	)
	for _, e := range events {
		before := proto.CloneOf(o)
		c := applied(t, o, e, items)
		if !proto.Equal(o, before) {
			t.Fatal("Apply modified the order it was given")
		}
		if c == nil {
			continue
		}
		if c.Order.GetRevision() != o.GetRevision()+1 {
			t.Fatalf("revision %d follows %d", c.Order.GetRevision(), o.GetRevision())
		}
		if (c.Order.GetShipping() != nil) != (c.Order.GetAddressState() == present) {
			t.Fatalf("shipping %v with address state %v", c.Order.GetShipping(), c.Order.GetAddressState())
		}
		o, kinds = c.Order, append(kinds, c.Kind)
	}
	return o, kinds
}

// permutations returns every order in which events can arrive, without telling
// copies apart.
func permutations(events []*Event) [][]*Event {
	if len(events) == 0 {
		return [][]*Event{nil}
	}
	var all [][]*Event
	for i, e := range events {
		if slices.Contains(events[:i], e) {
			continue
		}
		rest := slices.Delete(slices.Clone(events), i, i+1)
		for _, p := range permutations(rest) {
			all = append(all, append([]*Event{e}, p...))
		}
	}
	return all
}

// TestArrivalOrder is the promise of this package: the events of an order in
// any order, each of them twice, and some as a second event with another id,
// give the same order and the same last word to shipping.
func TestArrivalOrder(t *testing.T) {
	const (
		refs    = `,"payment_intent":"pi_1","metadata":{"a":"1"}`
		fuller  = `,"payment_intent":"pi_1","invoice":"in_1","customer":"cus_1","metadata":{"a":"1","b":"2"}`
		details = `,"customer_details":{"name":"Ada Sample","email":"ada@example.com","phone":"+49302","address":null}`
		basil   = `,"collected_information":{"shipping_details":{"name":"Ada Sample","address":` + street + `}}`
	)
	unpaid := event{id: "evt_unpaid", typ: "completed", created: 1700000010, session: isUnpaid + collect + shipTo + refs + details}
	for _, test := range []struct {
		name      string
		events    []event
		first     []event // heard before all others
		status    ordergatev1.OrderStatus
		directive ordergatev1.Directive
		address   ordergatev1.AddressState
	}{
		{
			name:   "paid",
			events: []event{{typ: "completed", session: isPaid + collect + shipTo + refs}},
			status: statusPaid, directive: ship, address: present,
		},
		{
			name: "unpaid, then paid",
			events: []event{
				unpaid,
				{id: "evt_2", typ: "async_payment_succeeded", created: 1700000090, session: isPaid + collect + shipTo + fuller + details},
				{id: "evt_3", typ: "async_payment_succeeded", created: 1700000080, session: isPaid + collect + shipTo + fuller + details},
			},
			status: statusPaid, directive: ship, address: present,
		},
		{
			name: "unpaid, then paid by an event without the ship-to",
			events: []event{
				unpaid,
				{id: "evt_2", typ: "async_payment_succeeded", version: "2025-09-30.clover", created: 1700000090, session: isPaid + collect + `,"metadata":{}`},
			},
			status: statusPaid, directive: ship, address: present,
		},
		{
			name: "unpaid, then failed",
			events: []event{
				unpaid,
				{id: "evt_2", typ: "async_payment_failed", created: 1700000090, session: isUnpaid + collect + shipTo + fuller},
			},
			status: paymentFailed, directive: cancel, address: present,
		},
		{
			// Only with the completion first: see Apply, and TestExpiredFirst.
			name:  "unpaid, then expired",
			first: []event{unpaid},
			events: []event{
				unpaid,
				{id: "evt_2", typ: "expired", created: 1700000090, session: isUnpaid + collect + fuller},
			},
			status: statusExpired, directive: cancel, address: present,
		},
		{
			name: "everything that contradicts the money",
			events: []event{
				unpaid,
				{id: "evt_2", typ: "async_payment_failed", created: 1700000020, session: isUnpaid + collect + shipTo + refs},
				{id: "evt_3", typ: "expired", created: 1700000030, session: isUnpaid + collect},
				{id: "evt_4", typ: "async_payment_succeeded", created: 1700000090, session: isPaid + collect + shipTo + fuller},
			},
			status: statusPaid, directive: ship, address: present,
		},
		{
			name: "failed and expired",
			events: []event{
				unpaid,
				{id: "evt_2", typ: "async_payment_failed", created: 1700000020, session: isUnpaid + collect + shipTo + refs},
				{id: "evt_3", typ: "expired", created: 1700000030, session: isUnpaid + collect},
			},
			status: paymentFailed, directive: cancel, address: present,
		},
		{
			name: "a leading event that names no version",
			events: []event{
				unpaid,
				{id: "evt_2", typ: "completed", version: "none", session: isPaid + `,"metadata":{"v":"none"}`},
				{id: "evt_3", typ: "completed", version: "2022-11-15", session: isPaid + `,"metadata":{"v":"2022"}`},
			},
			status: statusPaid, directive: ship, address: present,
		},
		{
			name: "paid twice, in versions of which only the older has the address",
			events: []event{
				{id: "evt_1", typ: "completed", created: 1700000011, session: isPaid + collect + shipTo + refs},
				{id: "evt_2", typ: "completed", version: "2025-09-30.clover", created: 1700000010, session: isPaid + collect + refs + details},
			},
			status: statusPaid, directive: ship, address: present,
		},
		{
			name: "paid twice, in versions of which only the newer has the address",
			events: []event{
				{id: "evt_1", typ: "completed", created: 1700000010, session: isPaid + collect + refs},
				{id: "evt_2", typ: "completed", version: "2025-09-30.clover", created: 1700000011, session: isPaid + collect + basil + refs + details},
			},
			status: statusPaid, directive: ship, address: present,
		},
		{
			name: "paid in three versions, with the currency of each",
			events: []event{
				{id: "evt_1", typ: "completed", session: `,"payment_status":"paid","currency":"usd","amount_total":4700,"amount_subtotal":4700` + shipTo},
				{id: "evt_2", typ: "completed", version: "2024-06-20", session: `,"payment_status":"paid","shipping_details":"moved"`},
				{id: "evt_3", typ: "completed", version: "2025-09-30.clover", session: isPaid + basil + details},
			},
			status: statusPaid, directive: ship, address: present,
		},
		{
			name: "an address that one of two cannot find",
			events: []event{
				{id: "evt_1", typ: "completed", session: isPaid},
				{id: "evt_2", typ: "completed", version: "2025-09-30.clover", session: isPaid + collect},
			},
			status: statusPaid, directive: hold, address: unreadable,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			events := parseAll(t, test.events)
			first := parseAll(t, test.first)
			var want *ordergatev1.Order
			for _, arrival := range permutations(append(events, events...)) {
				got, _ := replay(t, append(slices.Clip(first), arrival...), noKey)
				if got.GetStatus() != test.status || got.GetDirective() != test.directive || got.GetAddressState() != test.address {
					t.Fatalf("%v, %v, %v; want %v, %v, %v after %s", got.GetStatus(), got.GetDirective(), got.GetAddressState(),
						test.status, test.directive, test.address, ids(arrival))
				}
				got.Revision = 0
				if want == nil {
					want = got
				}
				if !proto.Equal(want, got) {
					t.Fatalf("another order after %s (-first +now):\n%s", ids(arrival), cmp.Diff(want, got, protocmp.Transform()))
				}
			}
			if want.GetStatus() == statusPaid {
				first := int64(1 << 62)
				for _, e := range events {
					if e.sale.payment == paid {
						first = min(first, e.Created.Unix())
					}
				}
				if got := want.GetPaidTime().GetSeconds(); got != first {
					t.Errorf("paid_time %d, want %d, the earliest that says so", got, first)
				}
			}
		})
	}
}

// TestExpiredFirst shows the one arrival that is not like its reverse, and that
// it sends nothing: see Apply for why Stripe does not let it happen.
func TestExpiredFirst(t *testing.T) {
	exp := parse(t, event{id: "evt_2", typ: "expired", session: isUnpaid}.json())
	if c := applied(t, nil, exp, noKey); c != nil {
		t.Errorf("the expiry of a session that was never placed made the order %v", c.Order)
	}
	o, _ := replay(t, []*Event{exp, parse(t, event{typ: "completed", session: isUnpaid}.json())}, noKey)
	if o.GetDirective() != wait {
		t.Errorf("directive %v, want WAIT", o.GetDirective())
	}
	// A second copy of the expiry, as Stripe would resend it, puts it right.
	o, _ = replay(t, []*Event{exp, parse(t, event{typ: "completed", session: isUnpaid}.json()), exp}, noKey)
	if o.GetDirective() != cancel {
		t.Errorf("directive %v, want CANCEL", o.GetDirective())
	}
}

// TestKinds is the way of an order as a subscriber sees it: what is emitted,
// and that nothing is when nothing changed.
func TestKinds(t *testing.T) {
	unpaid := event{id: "evt_1", typ: "completed", session: isUnpaid + collect}
	for _, test := range []struct {
		name   string
		events []event
		want   []ordergatev1.OrderEventKind
	}{
		{"paid", []event{{typ: "completed", session: isPaid}, {typ: "completed", session: isPaid}, {id: "evt_2", typ: "completed", session: isPaid}},
			[]ordergatev1.OrderEventKind{kindPaid}},
		{"nothing to pay", []event{{typ: "completed", session: `,"payment_status":"no_payment_required"`}},
			[]ordergatev1.OrderEventKind{kindPaid}},
		{"placed, paid", []event{unpaid, {typ: "async_payment_succeeded", session: isPaid}, unpaid},
			[]ordergatev1.OrderEventKind{kindPlaced, kindPaid}},
		{"paid, then the older event", []event{{typ: "async_payment_succeeded", session: isPaid + collect}, unpaid},
			[]ordergatev1.OrderEventKind{kindPaid}},
		{"placed, failed", []event{unpaid, {typ: "async_payment_failed", session: isUnpaid}},
			[]ordergatev1.OrderEventKind{kindPlaced, kindFailed}},
		{"placed, expired", []event{unpaid, {typ: "expired", session: isUnpaid}},
			[]ordergatev1.OrderEventKind{kindPlaced, kindExpired}},
		{"expired after all", []event{{typ: "completed", session: isPaid}, {typ: "expired", session: isUnpaid}},
			[]ordergatev1.OrderEventKind{kindPaid}},
		{"a reference that was missing", []event{{typ: "completed", session: isPaid}, {typ: "completed", session: isPaid + `,"invoice":"in_1"`}, {typ: "completed", session: isPaid}},
			[]ordergatev1.OrderEventKind{kindPaid, kindUpdated}},
		{"a copy that differs", []event{{typ: "completed", session: isPaid + `,"metadata":{"a":"1"}`}, {id: "evt_2", typ: "completed", session: isPaid + `,"metadata":{"a":"2"}`}},
			[]ordergatev1.OrderEventKind{kindPaid}},
		{"the address turns up", []event{{typ: "completed", session: isPaid + collect}, {typ: "completed", session: isPaid + shipTo}},
			[]ordergatev1.OrderEventKind{kindPaid, kindReleased}},
		{"the address turns out unreadable", []event{{typ: "completed", session: isPaid}, {typ: "completed", session: isPaid + collect}},
			[]ordergatev1.OrderEventKind{kindPaid, kindHeld}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if _, got := replay(t, parseAll(t, test.events), noKey); !slices.Equal(got, test.want) {
				t.Errorf("kinds %v, want %v", got, test.want)
			}
		})
	}
}

func TestDecide(t *testing.T) {
	waitsFor := func(r ...ordergatev1.WaitReason) []ordergatev1.WaitReason { return r }
	const (
		money   = ordergatev1.WaitReason_WAIT_REASON_AWAITING_PAYMENT
		items   = ordergatev1.WaitReason_WAIT_REASON_LINE_ITEMS_PENDING
		address = ordergatev1.HoldReason_HOLD_REASON_ADDRESS_UNREADABLE
	)
	unread := []ordergatev1.HoldReason{address}
	lapsed := []ordergatev1.CancelReason{ordergatev1.CancelReason_CANCEL_REASON_EXPIRED}
	bounced := []ordergatev1.CancelReason{ordergatev1.CancelReason_CANCEL_REASON_PAYMENT_FAILED}
	type in struct {
		payment payment
		address ordergatev1.AddressState
		items   ordergatev1.LineItemsState
	}
	for _, test := range []struct {
		in
		want *ordergatev1.Order
	}{
		{in{paid, present, complete}, &ordergatev1.Order{Status: statusPaid, Directive: ship}},
		{in{paid, notCollected, complete}, &ordergatev1.Order{Status: statusPaid, Directive: ship}},
		{in{paid, present, unavailable}, &ordergatev1.Order{Status: statusPaid, Directive: ship}},
		{in{paid, present, pending}, &ordergatev1.Order{Status: statusPaid, Directive: wait, WaitReasons: waitsFor(items)}},
		{in{paid, present, 0}, &ordergatev1.Order{Status: statusPaid, Directive: wait, WaitReasons: waitsFor(items)}},
		{in{paid, unreadable, complete}, &ordergatev1.Order{Status: statusPaid, Directive: hold, HoldReasons: unread}},
		{in{paid, 0, complete}, &ordergatev1.Order{Status: statusPaid, Directive: hold, HoldReasons: unread}},
		{in{paid, unreadable, pending}, &ordergatev1.Order{Status: statusPaid, Directive: hold, HoldReasons: unread}},
		{in{awaiting, present, complete}, &ordergatev1.Order{Status: awaitingPayment, Directive: wait, WaitReasons: waitsFor(money)}},
		{in{awaiting, present, unavailable}, &ordergatev1.Order{Status: awaitingPayment, Directive: wait, WaitReasons: waitsFor(money)}},
		{in{awaiting, present, pending}, &ordergatev1.Order{Status: awaitingPayment, Directive: wait, WaitReasons: waitsFor(money, items)}},
		{in{awaiting, unreadable, complete}, &ordergatev1.Order{Status: awaitingPayment, Directive: wait, WaitReasons: waitsFor(money), HoldReasons: unread}},
		{in{failed, present, pending}, &ordergatev1.Order{Status: paymentFailed, Directive: cancel, CancelReasons: bounced}},
		{in{failed, unreadable, complete}, &ordergatev1.Order{Status: paymentFailed, Directive: cancel, CancelReasons: bounced, HoldReasons: unread}},
		{in{expired, present, complete}, &ordergatev1.Order{Status: statusExpired, Directive: cancel, CancelReasons: lapsed}},
		{in{expired, unreadable, pending}, &ordergatev1.Order{Status: statusExpired, Directive: cancel, CancelReasons: lapsed, HoldReasons: unread}},
		{in{unknown, present, complete}, &ordergatev1.Order{Directive: wait, WaitReasons: waitsFor(money)}},
	} {
		got := &ordergatev1.Order{AddressState: test.address, LineItemsState: test.items}
		factsOf(got, test.payment).decide(got)
		if diff := cmp.Diff(test.want, got, protocmp.Transform(), protocmp.IgnoreFields(got, "address_state", "line_items_state")); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", test.in, diff)
		}
		if got := paymentOf(got); got != test.payment {
			t.Errorf("%+v: the payment reads back as %v", test.in, got)
		}
	}
}

func TestLineItems(t *testing.T) {
	mug := []*ordergatev1.LineItem{{Id: "li_1", Description: "Mug"}}
	cup := []*ordergatev1.LineItem{{Id: "li_1", Description: "Cup"}}
	for _, test := range []struct {
		name      string
		said      []LineItems
		state     ordergatev1.LineItemsState
		items     []*ordergatev1.LineItem
		directive ordergatev1.Directive
		changes   int64
	}{
		{"nothing said", []LineItems{{}, {}}, pending, nil, wait, 1},
		{"complete at once", []LineItems{{State: complete, Items: mug}}, complete, mug, ship, 1},
		{"complete and empty", []LineItems{{State: complete}}, complete, nil, ship, 1},
		{"complete later", []LineItems{{State: pending}, {}, {State: complete, Items: mug}}, complete, mug, ship, 2},
		{"complete stays", []LineItems{{State: complete, Items: mug}, {State: pending}, {State: unavailable}, {}}, complete, mug, ship, 1},
		{"complete again, the same", []LineItems{{State: complete, Items: mug}, {State: complete, Items: mug}}, complete, mug, ship, 1},
		{"complete again, renamed", []LineItems{{State: complete, Items: mug}, {State: complete, Items: cup}}, complete, cup, ship, 2},
		{"pending stays", []LineItems{{State: pending}, {State: unavailable}}, pending, nil, wait, 1},
		{"half a list is none", []LineItems{{State: pending, Items: mug}}, pending, nil, wait, 1},
		{"no key, then a key", []LineItems{{State: unavailable}, {State: complete, Items: mug}}, complete, mug, ship, 2},
		{"SHIP is not taken back", []LineItems{{State: unavailable}, {State: pending}}, unavailable, nil, ship, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := parse(t, event{typ: "completed", session: isPaid}.json())
			byEvent := applied(t, nil, e, test.said[0]).Order
			alone := byEvent
			for _, said := range test.said[1:] {
				if c := applied(t, byEvent, e, said); c != nil {
					byEvent = c.Order
				}
				if c := SetLineItems(alone, said); c != nil {
					if c.Kind != kindUpdated {
						t.Errorf("kind %v, want UPDATED", c.Kind)
					}
					alone = c.Order
				}
			}
			if diff := cmp.Diff(byEvent, alone, protocmp.Transform()); diff != "" {
				t.Errorf("Apply and SetLineItems differ:\n%s", diff)
			}
			if alone.GetLineItemsState() != test.state || alone.GetDirective() != test.directive || alone.GetRevision() != test.changes {
				t.Errorf("%v, %v, revision %d; want %v, %v, %d", alone.GetLineItemsState(), alone.GetDirective(), alone.GetRevision(),
					test.state, test.directive, test.changes)
			}
			if diff := cmp.Diff(test.items, alone.GetLineItems(), protocmp.Transform()); diff != "" {
				t.Errorf("items (-want +got):\n%s", diff)
			}
		})
	}

	t.Run("before it is paid, pending replaces unavailable", func(t *testing.T) {
		placed := apply(t, event{typ: "completed", session: isUnpaid}).Order
		c := applied(t, placed, parse(t, event{typ: "async_payment_succeeded", session: isPaid}.json()), LineItems{State: pending})
		if c.Order.GetDirective() != wait || c.Order.GetLineItemsState() != pending {
			t.Errorf("%v, %v; want WAIT, PENDING", c.Order.GetDirective(), c.Order.GetLineItemsState())
		}
	})
	t.Run("the caller's items are copied", func(t *testing.T) {
		items := []*ordergatev1.LineItem{{Id: "li_1"}}
		c := applied(t, nil, parse(t, event{typ: "completed", session: isPaid}.json()), LineItems{State: complete, Items: items})
		items[0].Id = "li_2"
		if got := c.Order.GetLineItems()[0].GetId(); got != "li_1" {
			t.Errorf("the order's item became %s", got)
		}
	})
}

func TestErasedStaysErased(t *testing.T) {
	whole := applied(t, nil, parse(t, event{typ: "completed", session: isPaid + shipTo}.json()), noKey).Order
	erased := Erase(whole)
	tombstone := erased.Order
	want := &ordergatev1.Order{
		Id: whole.GetId(), Revision: 2, Source: whole.GetSource(), Status: whole.GetStatus(), Livemode: whole.Livemode, Directive: cancel,
		CancelReasons:  []ordergatev1.CancelReason{ordergatev1.CancelReason_CANCEL_REASON_ERASED},
		AddressState:   ordergatev1.AddressState_ADDRESS_STATE_NOT_COLLECTED,
		LineItemsState: ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE,
	}
	if !proto.Equal(tombstone, want) || erased.Kind != ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED {
		t.Errorf("what is left is %v (%v)", tombstone, erased.Kind)
	}
	if c := Erase(tombstone); c != nil {
		t.Errorf("erased twice: %v", c.Order)
	}
	if c := applied(t, tombstone, parse(t, event{typ: "completed", session: isPaid + shipTo}.json()), noKey); c != nil {
		t.Errorf("an event brought the order back: %v", c.Order)
	}
	if c := SetLineItems(tombstone, LineItems{State: complete}); c != nil {
		t.Errorf("line items brought the order back: %v", c.Order)
	}
}

func TestAnotherOrderIsLeftAlone(t *testing.T) {
	other := &ordergatev1.Order{Id: "cs_test_2", Revision: 1, Livemode: new(false)}
	if c := applied(t, other, parse(t, event{typ: "completed", session: isPaid}.json()), noKey); c != nil {
		t.Errorf("an event of another order made %v", c.Order)
	}
	if c := SetLineItems(nil, LineItems{State: complete}); c != nil {
		t.Errorf("line items alone made %v", c.Order)
	}
}

func TestMoneyIsNotMixed(t *testing.T) {
	old := event{typ: "completed", session: `,"payment_status":"unpaid","currency":"usd","amount_subtotal":5000,"amount_total":5000,` +
		`"shipping_cost":{"amount_total":500,"shipping_rate":"shr_1"}` + shipTo}
	settled := event{typ: "async_payment_succeeded", session: isPaid}
	o, _ := replay(t, []*Event{parse(t, old.json()), parse(t, settled.json())}, noKey)
	if o.GetCurrency() != "eur" || o.GetAmounts().GetTotal() != 4200 || o.GetAmounts().Subtotal != nil || o.GetShippingRate().Amount != nil {
		t.Errorf("currency %s, amounts %v, rate %v: two currencies in one order", o.GetCurrency(), o.GetAmounts(), o.GetShippingRate())
	}
	if o.GetShippingRate().GetId() != "shr_1" {
		t.Errorf("the rate's id was lost: %v", o.GetShippingRate())
	}

	t.Run("the refunded sum stays", func(t *testing.T) {
		refund := story{"refund.created", `"id":"re_1","amount":200,"currency":"eur","status":"succeeded","payment_intent":"pi_1"`}
		o, _ := replay(t, []*Event{parse(t, old.json()), parse(t, refund.json(2)), parse(t, settled.json())}, noKey)
		if o.GetAmounts().GetTotal() != 4200 || o.GetAmounts().GetRefunded() != 200 {
			t.Errorf("amounts %v, want a total of 4200, of which 200 refunded", o.GetAmounts())
		}
	})
}

// TestAddressesAreNotMixed: of two addresses in full, the leading one counts;
// no line of the other gets into it.
func TestAddressesAreNotMixed(t *testing.T) {
	first := event{typ: "completed", session: isUnpaid + `,"shipping_details":{"phone":"+1","address":{"line1":"1 Old Road","line2":"Rear","city":"Oldtown","country":"GB"}}`}
	second := event{typ: "async_payment_succeeded", session: isPaid + `,"shipping_details":{"name":"Ada","address":{"line1":"2 New Road","city":"Newtown","country":"GB"}}`}
	want := &ordergatev1.Shipping{Name: "Ada", Phone: "+1", Address: &ordergatev1.Address{Line1: "2 New Road", City: "Newtown", Country: "GB"}}
	for _, events := range [][]event{{first, second}, {second, first}} {
		o, _ := replay(t, []*Event{parse(t, events[0].json()), parse(t, events[1].json())}, noKey)
		if diff := cmp.Diff(want, o.GetShipping(), protocmp.Transform()); diff != "" {
			t.Errorf("ship-to (-want +got):\n%s", diff)
		}
	}
}

// TestNastyEvent: whatever a string holds, the order can be sent.
func TestNastyEvent(t *testing.T) {
	nasty := "\xff\xfe\x00 " + `\ud800 \u0000 ` + "\xed\xa0\x80"
	nasty = strings.ReplaceAll(nasty, "\x00", "")
	c := apply(t, event{typ: "completed", version: "v\xff", session: isPaid +
		`,"client_reference_id":"` + nasty + `","metadata":{"k` + nasty + `":"` + nasty + `","n":7},` +
		`"customer_details":{"name":"` + nasty + `","email":7},"customer":"` + nasty + `","payment_intent":"` + nasty + `",` +
		`"custom_fields":[{"key":"` + nasty + `","type":"` + nasty + `","` + nasty + `":7},7,null],` +
		`"discounts":[{"coupon":"` + nasty + `"}],` +
		`"shipping_details":{"name":"` + nasty + `","address":{"line1":"` + nasty + `"}}`})
	if _, err := proto.Marshal(c.Order); err != nil {
		t.Errorf("Marshal: %v", err)
	}
	if _, err := protojson.Marshal(c.Order); err != nil {
		t.Errorf("protojson: %v", err)
	}
	for _, w := range c.Warnings {
		if !utf8.ValidString(w) {
			t.Errorf("a warning is not UTF-8: %q", w)
		}
	}
}
