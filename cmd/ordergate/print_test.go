package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

func TestFormatAmount(t *testing.T) {
	for _, tt := range []struct {
		minor    int64
		currency string
		want     string
	}{
		{1299, "eur", "12.99 EUR"}, {5, "usd", "0.05 USD"}, {0, "usd", "0.00 USD"}, {-250, "usd", "-2.50 USD"},
		{1299, "jpy", "1299 JPY"}, {1299, "kwd", "1.299 KWD"}, {7, "kwd", "0.007 KWD"}, {100, "isk", "1.00 ISK"},
		{-9223372036854775808, "usd", "-92233720368547758.08 USD"},
	} {
		if got := formatAmount(tt.minor, tt.currency); got != tt.want {
			t.Errorf("formatAmount(%d, %s) = %q, want %q", tt.minor, tt.currency, got, tt.want)
		}
	}
}

func TestOrderLine(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 30, 45, 0, time.Local)
	event := &ordergatev1.OrderEvent{
		Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID, CreateTime: timestamppb.New(at),
		Order: &ordergatev1.Order{
			Id: "cs_1", Revision: 2, Livemode: new(true), Currency: "jpy", Amounts: &ordergatev1.Amounts{Total: new(int64(500))},
			Directive:    ordergatev1.Directive_DIRECTIVE_HOLD,
			HoldReasons:  []ordergatev1.HoldReason{ordergatev1.HoldReason_HOLD_REASON_ADDRESS_UNREADABLE},
			AddressState: ordergatev1.AddressState_ADDRESS_STATE_UNREADABLE,
		},
	}
	if got, want := orderLine(event), "12:30:45  HOLD (ADDRESS_UNREADABLE)  PAID      cs_1 r2  500 JPY  no address: UNREADABLE"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	event.Order.Livemode = new(false)
	event.Order.Amounts = nil
	event.Order.Shipping = &ordergatev1.Shipping{Address: &ordergatev1.Address{City: "Oslo", Country: "NO"}}
	if got, want := orderLine(event), "12:30:45  HOLD (ADDRESS_UNREADABLE)  PAID      cs_1 r2  to Oslo, NO  TEST"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// What a buyer typed does nothing to an operator's terminal.
func TestDeliveryLine(t *testing.T) {
	d := &client.Delivery{
		Event:   &ordergatev1.OrderEvent{Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID, Order: &ordergatev1.Order{Id: "cs_1", Revision: 8}},
		Attempt: 2, Redriven: true, ReplacedRevisions: []int64{1, 2, 3, 4, 5, 6, 7}, LatestRevision: 9, LatestDirective: ordergatev1.Directive_DIRECTIVE_CANCEL,
	}
	if got, want := deliveryLine(d), "  attempt 2  redriven  replaces r1, r2, r3, r4, r5, 2 more  outdated: r9 is CANCEL"; !strings.HasSuffix(got, want) {
		t.Errorf("%q does not end with %q", got, want)
	}
	d = &client.Delivery{Event: d.Event, Attempt: 1, ReplacedRevisions: []int64{7}, LatestRevision: 8}
	if got := deliveryLine(d); !strings.HasSuffix(got, "  replaces r7") {
		t.Errorf("%q", got)
	}
}

func TestPlain(t *testing.T) {
	for text, want := range map[string]string{
		"Erika Müßig-Łukasz 李 🎁":         "Erika Müßig-Łukasz 李 🎁",
		"a\tb\nc\u00a0d":                 "a b c d",
		"\x1b]0;owned\x07\u009b2J\u202e": "\ufffd]0;owned\ufffd\ufffd2J\ufffd",
	} {
		if got := plain(text); got != want {
			t.Errorf("plain(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestEnumValues(t *testing.T) {
	got, err := enumValues[ordergatev1.Directive]("directive", []string{"ship", "HOLD"})
	if diff := cmp.Diff([]ordergatev1.Directive{ordergatev1.Directive_DIRECTIVE_SHIP, ordergatev1.Directive_DIRECTIVE_HOLD}, got); diff != "" || err != nil {
		t.Errorf("%s, %v", diff, err)
	}
	for _, name := range []string{"", "UNSPECIFIED", "DIRECTIVE_SHIP", "sail"} {
		if _, err := enumValues[ordergatev1.Directive]("directive", []string{name}); err == nil || !strings.Contains(err.Error(), "write one of WAIT, SHIP, HOLD, CANCEL") {
			t.Errorf("%q: %v", name, err)
		}
	}
	if got := enumName(ordergatev1.Directive(99)); got != "99" {
		t.Errorf("a value of a later version is %q", got)
	}
}

func TestShowOrder(t *testing.T) {
	at := timestamppb.New(time.Date(2026, 3, 1, 12, 30, 45, 0, time.Local))
	order := &ordergatev1.Order{
		Id: "cs_1", Revision: 3, Livemode: new(true), Account: "acct_1", Currency: "eur",
		Status: ordergatev1.OrderStatus_ORDER_STATUS_PAID, Directive: ordergatev1.Directive_DIRECTIVE_HOLD,
		Source:       ordergatev1.OrderSource_ORDER_SOURCE_CHECKOUT_SESSION,
		HoldReasons:  []ordergatev1.HoldReason{ordergatev1.HoldReason_HOLD_REASON_OPERATOR},
		OperatorHold: &ordergatev1.OperatorHold{Note: "call the buyer"},
		HoldReleases: []*ordergatev1.HoldRelease{{Reason: ordergatev1.HoldReason_HOLD_REASON_DISPUTED, Cause: "du_1"}, {Reason: ordergatev1.HoldReason_HOLD_REASON_RECOVERED}},
		Recovered:    true,
		Amounts:      &ordergatev1.Amounts{Total: new(int64(1500)), Shipping: new(int64(0))},
		Customer:     &ordergatev1.Customer{Name: "Erika\x1b[2J", Email: "erika@example.com"},
		Shipping:     &ordergatev1.Shipping{Name: "Max", Address: &ordergatev1.Address{Line1: "Weg 1", City: "Oslo", Country: "NO"}},
		AddressState: ordergatev1.AddressState_ADDRESS_STATE_PRESENT, LineItemsState: ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE,
		LineItems: []*ordergatev1.LineItem{
			{Quantity: new(int64(2)), Description: "Mug", AmountTotal: new(int64(1500)), Product: &ordergatev1.Product{Id: "prod_1", Metadata: map[string]string{"sku": "M-1", "bin": "7"}}},
			{Description: "Greeting card", Product: &ordergatev1.Product{Id: "prod_22", Shippable: new(false)}},
		},
		Metadata:   map[string]string{"b": "2", "a": "1"},
		Reviews:    []*ordergatev1.Review{{Id: "prv_1", State: ordergatev1.ReviewState_REVIEW_STATE_OPEN}},
		CreateTime: at,
	}
	history := []*ordergatev1.OrderEvent{
		{Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID, CreateTime: at, SourceEventId: "evt_1", Order: &ordergatev1.Order{Id: "cs_1", Revision: 1, Directive: ordergatev1.Directive_DIRECTIVE_SHIP}},
		{Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UPDATED, CreateTime: at, Order: &ordergatev1.Order{Id: "cs_1", Revision: 2, Directive: ordergatev1.Directive_DIRECTIVE_SHIP}},
		{Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD, CreateTime: at, Note: "call the buyer", Order: order},
	}
	const want = `Order                cs_1 r3
Directive            HOLD (OPERATOR)
Status               PAID
Held by an operator  call the buyer
Released from        DISPUTED, du_1
Released from        RECOVERED
Recovered            rebuilt from a lookup at Stripe: its sale event never came
Source               CHECKOUT_SESSION
Account              acct_1
Created              2026-03-01 12:30:45
Total                15.00 EUR
Shipping             0.00 EUR
Customer             Erika�[2J, erika@example.com
Ship to              Max, Weg 1, Oslo, NO
Line items           COMPLETE

Line items
   2 x  Mug            15.00 EUR  prod_1   bin=7, sku=M-1
   ? x  Greeting card             prod_22  not shippable

Metadata
   a  1
   b  2

Reviews
   prv_1  OPEN

History
   2026-03-01 12:30:45  r1  PAID     SHIP             evt_1
   2026-03-01 12:30:45  r2  UPDATED  SHIP             the gateway
   2026-03-01 12:30:45  r3  HELD     HOLD (OPERATOR)  an operator: call the buyer
`
	var out bytes.Buffer
	if err := showOrder(&out, order, history); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}
