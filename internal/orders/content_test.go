package orders

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// An order needs no address if nothing was collected and every product is marked
// as not shipped.
func TestDigitalOrders(t *testing.T) {
	line := func(shippable *bool) *ordergatev1.LineItem {
		return &ordergatev1.LineItem{Id: "li_1", Product: &ordergatev1.Product{Id: "prod_1", Shippable: shippable}}
	}
	digital, goods, unmarked := line(new(false)), line(new(true)), line(nil)
	money := &ordergatev1.LineItem{Id: "il_2", Proration: true, Product: &ordergatev1.Product{Id: "prod_1"}}
	read := func(items ...*ordergatev1.LineItem) LineItems { return LineItems{State: complete, Items: items} }
	sale := event{typ: "completed", session: isPaid}
	box := story{"invoice.paid", strings.Replace(oldInvoice, "shipping_details", "no_details", 1)}
	for _, test := range []struct {
		name       string
		sale, box  LineItems
		state      ordergatev1.AddressState
		saleIs     ordergatev1.Directive
		laterBoxIs ordergatev1.Directive
	}{
		{name: "a file", sale: read(digital), state: notNeeded, saleIs: ship, laterBoxIs: ship},
		{name: "a file and a proration", sale: read(digital, money), state: notNeeded, saleIs: ship, laterBoxIs: ship},
		{name: "a mug", sale: read(goods), state: notCollected, saleIs: ship, laterBoxIs: hold},
		{name: "a file and a mug", sale: read(digital, goods), state: notCollected, saleIs: ship, laterBoxIs: hold},
		{name: "not marked", sale: read(digital, unmarked), state: notCollected, saleIs: ship, laterBoxIs: hold},
		{name: "no product", sale: read(&ordergatev1.LineItem{Id: "li_1"}), state: notCollected, saleIs: ship, laterBoxIs: hold},
		{name: "nothing but a proration", sale: read(money), state: notCollected, saleIs: ship, laterBoxIs: hold},
		{name: "no lines", sale: read(), state: notCollected, saleIs: ship, laterBoxIs: hold},
		{name: "not read yet", sale: LineItems{State: pending}, state: notCollected, saleIs: wait, laterBoxIs: wait},
	} {
		o := applied(t, nil, parse(t, sale.json()), test.sale).Order
		if o.GetAddressState() != test.state || o.GetDirective() != test.saleIs {
			t.Errorf("%s: %v, %v; want %v, %v", test.name, o.GetAddressState(), o.GetDirective(), test.state, test.saleIs)
		}
		o = applied(t, nil, parse(t, box.json(1)), test.sale).Order
		if o.GetAddressState() != test.state || o.GetDirective() != test.laterBoxIs {
			t.Errorf("%s, a later box: %v, %v; want %v, %v", test.name, o.GetAddressState(), o.GetDirective(), test.state, test.laterBoxIs)
		}
	}

	t.Run("it follows the line items and the address", func(t *testing.T) {
		o := applied(t, nil, parse(t, box.json(1)), LineItems{State: pending}).Order
		o = SetLineItems(o, read(digital)).Order
		if o.GetAddressState() != notNeeded || o.GetDirective() != ship {
			t.Errorf("digital: %v, %v", o.GetAddressState(), o.GetDirective())
		}
		o = SetLineItems(o, read(goods)).Order
		if o.GetAddressState() != notCollected || o.GetDirective() != hold {
			t.Errorf("goods: %v, %v", o.GetAddressState(), o.GetDirective())
		}
		o = applied(t, o, parse(t, story{"invoice.paid@2025-03-31.basil", basilInvoice}.json(2)), read(digital)).Order
		if o.GetAddressState() != present || o.GetDirective() != ship {
			t.Errorf("with an address: %v, %v", o.GetAddressState(), o.GetDirective())
		}
	})
	t.Run("in any order", func(t *testing.T) {
		var want *ordergatev1.Order
		for _, arrival := range permutations([]*Event{parse(t, sale.json()), parse(t, event{id: "evt_2", typ: "completed", version: "2025-09-30.clover", session: isPaid}.json())}) {
			o, _ := replay(t, arrival, read(digital))
			if o.Revision = 0; want == nil {
				want = o
			}
			if !proto.Equal(want, o) || o.GetAddressState() != notNeeded {
				t.Errorf("another order (-first +now):\n%s", cmp.Diff(want, o, protocmp.Transform()))
			}
		}
	})
}

// A shop that captures on shipment gets SHIP once the payment is authorized. The
// setting is the sale's.
func TestShipOnAuthorization(t *testing.T) {
	early := Sources{PaymentIntents: true, ShipOnAuthorization: true}
	read := func(s story, n int) *Event {
		e, err := Parse(s.json(n), early)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	authorized := intent("amount_capturable_updated", `,"status":"requires_capture"`)
	for _, test := range []struct {
		name      string
		events    []story
		status    ordergatev1.OrderStatus
		directive ordergatev1.Directive
	}{
		{"placed", []story{placedSession}, awaitingPayment, wait},
		{"authorized", []story{placedSession, authorized}, isAuthorized, ship},
		{"authorized and in review", []story{placedSession, authorized, review("opened", "prv_1", `"open":true`)}, isAuthorized, hold},
		{"authorized and captured", []story{placedSession, authorized, charge("captured", 3000, 0, `,"captured":true`)}, statusPaid, ship},
		{"authorized and released", []story{placedSession, authorized, intent("canceled", `,"status":"canceled"`)}, statusCanceled, cancel},
		{"authorized and expired", []story{placedSession, authorized, charge("expired", 0, 4200, `,"captured":false`)}, statusCanceled, cancel},
		{"a payment intent", []story{authorized}, isAuthorized, ship},
	} {
		t.Run(test.name, func(t *testing.T) {
			var events []*Event
			for i, s := range test.events {
				events = append(events, read(s, i+1))
			}
			for _, arrival := range arrivals(events) {
				o, _ := deliver(t, nil, events[0].OrderID(), arrival, noKey)
				if o.GetStatus() != test.status || o.GetDirective() != test.directive || !o.GetShipOnAuthorization() || len(o.GetWaitReasons()) > 0 && test.directive != wait {
					t.Fatalf("%v, %v, %v; want %v, %v after %s", o.GetStatus(), o.GetDirective(), o.GetWaitReasons(), test.status, test.directive, ids(arrival))
				}
			}
		})
	}
	t.Run("not for orders of before", func(t *testing.T) {
		o := applied(t, nil, parse(t, placedSession.json(1)), noKey).Order
		if o = applied(t, o, read(authorized, 2), noKey).Order; o.GetDirective() != wait {
			t.Errorf("directive %v", o.GetDirective())
		}
	})
}

// The latest time of any event counts as the time until which a payment can be
// captured. It is unset once the payment is settled.
func TestCaptureBefore(t *testing.T) {
	until := func(seconds int) story {
		return intent("amount_capturable_updated", fmt.Sprintf(`,"status":"requires_capture","latest_charge":{"id":"ch_1","object":"charge","payment_method_details":{"type":"card","card":{"capture_before":%d}}}`, seconds))
	}
	old := story{"payment_intent.amount_capturable_updated@2022-08-01", `"id":"pi_1","amount":4200,"currency":"eur","status":"requires_capture","charges":{"data":[` +
		`{"id":"ch_1","object":"charge","status":"succeeded","payment_method_details":{"type":"card_present","card_present":{"capture_before":1800000000}}}]}`}
	for _, arrival := range arrivals(parseStories(t, []story{placedSession, until(1700000000), until(1700600000)})) {
		if o, _ := deliver(t, nil, "cs_1", arrival, noKey); o.GetCaptureBeforeTime().GetSeconds() != 1700600000 {
			t.Fatalf("until %v after %s", o.GetCaptureBeforeTime(), ids(arrival))
		}
	}
	if o, _ := deliver(t, nil, "cs_1", parseStories(t, []story{placedSession, old}), noKey); o.GetCaptureBeforeTime().GetSeconds() != 1800000000 {
		t.Errorf("an old version: until %v", o.GetCaptureBeforeTime())
	}
	for _, arrival := range arrivals(parseStories(t, []story{placedSession, until(1700000000), charge("captured", 4200, 0, `,"captured":true`)})) {
		if o, _ := deliver(t, nil, "cs_1", arrival, noKey); o.CaptureBeforeTime != nil {
			t.Fatalf("captured, but until %v after %s", o.GetCaptureBeforeTime(), ids(arrival))
		}
	}
}

// The details of a shipping rate come with the line items, and stay.
func TestShippingRateDetails(t *testing.T) {
	rated := func(version, more string) *Event {
		return parse(t, event{typ: "completed", version: version, session: isPaid + shipTo + `,"shipping_cost":{"amount_total":500,"shipping_rate":"shr_1"}` + more}.json())
	}
	e := rated("2023-10-16", "")
	if e.ShippingRate() != "shr_1" {
		t.Errorf("rate %q", e.ShippingRate())
	}
	details := &ordergatev1.ShippingRate{
		Id: "shr_1", DisplayName: "Express", Metadata: map[string]string{"carrier": "DHL"}, TaxCode: "txcd_1",
		DeliveryEstimate: &ordergatev1.DeliveryEstimate{Maximum: &ordergatev1.DeliveryEstimateBound{Unit: "day", Value: 2}},
	}
	o := applied(t, nil, e, LineItems{State: pending}).Order
	o = SetLineItems(o, LineItems{State: complete, ShippingRate: details}).Order
	details.Metadata["carrier"] = "spoiled"
	o = applied(t, o, rated("2025-09-30.clover", `,"metadata":{"v":"2"}`), LineItems{}).Order
	rebuilt, err := Rebuild(o, []*Event{e, rated("2025-09-30.clover", `,"metadata":{"v":"2"}`)})
	if err != nil || rebuilt != nil {
		t.Errorf("rebuilding it makes %v, %v; want no change", rebuilt, err)
	}
	details.Metadata["carrier"], details.Amount = "DHL", new(int64(500))
	if diff := cmp.Diff(details, o.GetShippingRate(), protocmp.Transform()); diff != "" {
		t.Errorf("rate (-want +got):\n%s", diff)
	}
	other := applied(t, nil, e, LineItems{State: complete, ShippingRate: &ordergatev1.ShippingRate{Id: "shr_2", DisplayName: "Other"}}).Order
	if other.GetShippingRate().GetDisplayName() != "" || other.GetShippingRate().GetId() != "shr_1" {
		t.Errorf("the details of another rate made %v", other.GetShippingRate())
	}
	for _, id := range []string{"", "shr 1", "price_1", "shr_../x"} {
		if got := ShippingRateOf(&ordergatev1.Order{ShippingRate: &ordergatev1.ShippingRate{Id: id}}); got != "" {
			t.Errorf("rate %q is asked for", got)
		}
	}
}

func TestCurrencyExponent(t *testing.T) {
	for currency, want := range map[string]int32{
		"eur": 2, "jpy": 0, "kwd": 3, "isk": 2, "ugx": 2, "huf": 2, "twd": 2, "mga": 0, "krw": 0, "xof": 0, "tnd": 3,
	} {
		o := apply(t, event{typ: "completed", session: fmt.Sprintf(`,"payment_status":"paid","currency":%q,"amount_total":1`, currency)}).Order
		if o.CurrencyExponent == nil || o.GetCurrencyExponent() != want {
			t.Errorf("%s: %v, want %d", currency, o.CurrencyExponent, want)
		}
	}
	if o := apply(t, event{typ: "completed", session: `,"payment_status":"paid"`}).Order; o.CurrencyExponent != nil {
		t.Errorf("without a currency: %v", *o.CurrencyExponent)
	}
}

func TestPresentment(t *testing.T) {
	for name, test := range map[string]struct {
		session  string
		amount   *int64
		currency string
	}{
		"none":         {isPaid, nil, ""},
		"null":         {isPaid + `,"presentment_details":null,"currency_conversion":null`, nil, ""},
		"converted":    {isPaid + `,"presentment_details":{"presentment_amount":8421,"presentment_currency":"jpy"}`, new(int64(8421)), "jpy"},
		"before basil": {isPaid + `,"currency_conversion":{"amount_total":5000,"source_currency":"usd","fx_rate":"0.84"}`, new(int64(4200)), "eur"},
	} {
		o := apply(t, event{typ: "completed", session: test.session}).Order
		if diff := cmp.Diff(test.amount, o.PresentmentAmount); diff != "" || o.GetPresentmentCurrency() != test.currency {
			t.Errorf("%s: %v %q", name, o.PresentmentAmount, o.GetPresentmentCurrency())
		}
	}
}

// payment_required is false for a box that costs nothing.
func TestPaymentRequired(t *testing.T) {
	for session, want := range map[string]*bool{
		`,"mode":"subscription","payment_status":"no_payment_required","currency":"eur","amount_total":0`: new(false),
		`,"mode":"subscription","payment_status":"paid","currency":"eur","amount_total":0`:                new(false),
		`,"mode":"subscription","payment_status":"unpaid","currency":"eur","amount_total":100`:            new(true),
		`,"mode":"subscription","payment_status":"paid"`:                                                  nil,
	} {
		o := apply(t, event{typ: "completed", session: session}).Order
		if diff := cmp.Diff(want, o.PaymentRequired); diff != "" || o.GetMode() != "subscription" {
			t.Errorf("%s: mode %q, payment_required (-want +got):\n%s", session, o.GetMode(), diff)
		}
	}
}

// An event's account is the connected one, or else its context.
func TestContext(t *testing.T) {
	for fields, want := range map[string]struct {
		account string
		context bool
	}{
		``:                                       {"", false},
		`,"account":null,"context":null`:         {"", false},
		`,"account":"acct_1"`:                    {"acct_1", false},
		`,"context":"acct_2"`:                    {"acct_2", true},
		`,"account":"acct_1","context":"acct_2"`: {"acct_1", false},
	} {
		e := parse(t, []byte(strings.Replace(string(paidSession.json(1)), `,"livemode"`, fields+`,"livemode"`, 1)))
		if e.Account != want.account || e.InContext != want.context {
			t.Errorf("%s: account %q, in context %v", fields, e.Account, e.InContext)
		}
	}
}

// The ship-to has the buyer's name and business if it names nobody itself.
func TestRecipient(t *testing.T) {
	const at = `,"shipping_details":{"name":%s,"address":` + street + `}`
	for name, test := range map[string]struct {
		session string
		want    *ordergatev1.Shipping
	}{
		"its own": {fmt.Sprintf(at, `"Ada"`) + `,"customer_details":{"name":"Bob"}`, &ordergatev1.Shipping{Name: "Ada"}},
		"buyer":   {fmt.Sprintf(at, `null`) + `,"customer_details":{"name":"Bob"}`, &ordergatev1.Shipping{Name: "Bob"}},
		"person":  {fmt.Sprintf(at, `null`) + `,"customer_details":{"individual_name":"Bob","business_name":"B Ltd"}`, &ordergatev1.Shipping{Name: "Bob", BusinessName: "B Ltd"}},
		"collected": {fmt.Sprintf(at, `"Ada"`) + `,"collected_information":{"business_name":"C Ltd"},"customer_details":{"business_name":"B Ltd"}`,
			&ordergatev1.Shipping{Name: "Ada", BusinessName: "C Ltd"}},
	} {
		o := apply(t, event{typ: "completed", session: isPaid + test.session}).Order
		if diff := cmp.Diff(test.want, o.GetShipping(), protocmp.Transform(), protocmp.IgnoreFields(&ordergatev1.Shipping{}, "address")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestCreditNoteLinesAreBounded(t *testing.T) {
	lines := strings.TrimSuffix(strings.Repeat(`{"id":"cnli_1","amount":1},`, maxCreditedLines+1), ",")
	o := applied(t, nil, parse(t, story{"invoice.paid", oldInvoice}.json(1)), noKey).Order
	note := story{"credit_note.created", `"id":"cn_1","invoice":"in_1","amount":1,"status":"issued","lines":{"has_more":false,"data":[` + lines + `]}`}
	o = applied(t, o, parse(t, note.json(2)), noKey).Order
	if n := o.GetCreditNotes()[0]; len(n.GetLines()) != maxCreditedLines || !n.GetLinesTruncated() {
		t.Errorf("%d lines, truncated %v", len(n.GetLines()), n.GetLinesTruncated())
	}
}

// An appeal that is won releases the order.
func TestAppealIsReleased(t *testing.T) {
	o := applied(t, nil, parse(t, paidSession.json(1)), noKey).Order
	lost := applied(t, o, parse(t, dispute("closed", "dp_1", "lost").json(2)), noKey)
	won := applied(t, lost.Order, parse(t, dispute("closed", "dp_1", "won").json(3)), noKey)
	if lost.Kind != kindCanceled || won.Kind != kindReleased || won.Order.GetDirective() != ship {
		t.Errorf("lost: %v; won: %v, %v", lost.Kind, won.Kind, won.Order.GetDirective())
	}
}
