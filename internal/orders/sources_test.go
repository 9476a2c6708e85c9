package orders

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// TestSurface is what the caller learns of each type of event.
func TestSurface(t *testing.T) {
	invoice := func(reason, more string) string {
		return fmt.Sprintf(`"id":"in_1","billing_reason":%q,"status":"paid","currency":"eur","total":1%s`, reason, more)
	}
	const (
		oldPaid   = `,"payment_intent":"pi_1","charge":"ch_1","subscription":"sub_1"`
		basilPaid = `,"parent":{"type":"subscription_details","subscription_details":{"subscription":"sub_1"}},"payments":{"object":"list","data":[` +
			`{"object":"invoice_payment","status":"canceled","payment":{"type":"payment_intent","payment_intent":"pi_0"}},` +
			`{"object":"invoice_payment","status":"paid","payment":{"type":"payment_intent","payment_intent":"pi_1"}},` +
			`{"object":"invoice_payment","status":"paid","payment":{"type":"charge","charge":"ch_2"}}]}`
	)
	elements := Sources{PaymentIntents: true}
	for _, test := range []struct {
		name    string
		event   story
		sources Sources
		order   string
		refs    string
		flags   string // claim, optional, ignored
	}{
		{"session", paidSession, Sources{}, "cs_1", "payment_intent pi_1", ""},
		{"session of a subscription", session("completed", `,"payment_status":"paid","payment_intent":null,"invoice":"in_1","subscription":"sub_1"`), Sources{}, "cs_1", "invoice in_1, subscription sub_1", ""},
		{"session in setup mode", story{"checkout.session.completed", `"id":"cs_1","mode":"setup","payment_status":"no_payment_required"`}, Sources{}, "", "", "ignored"},

		{"charge", refunded(1), Sources{}, "", "payment_intent pi_1, charge ch_1", ""},
		{"charge of an old invoice", story{"charge.refunded", `"id":"ch_1","amount":1,"amount_refunded":1,"invoice":"in_1","payment_intent":"pi_1"`}, Sources{}, "", "payment_intent pi_1, charge ch_1, invoice in_1", ""},
		{"refund", refund("refund.created", "re_1", 1, "succeeded"), Sources{}, "", "payment_intent pi_1, charge ch_1", ""},
		{"refund, the older name", refund("charge.refund.updated", "re_1", 1, "succeeded"), Sources{}, "", "payment_intent pi_1, charge ch_1", ""},
		{"refund, expanded", story{"refund.updated", `"id":"re_1","amount":1,"status":"pending","payment_intent":{"id":"pi_1"},"charge":{"id":"ch_1"}`}, Sources{}, "", "payment_intent pi_1, charge ch_1", ""},
		{"refund of a customer's balance", story{"refund.created", `"id":"re_1","amount":1,"status":"succeeded","payment_intent":null,"charge":null`}, Sources{}, "", "", "ignored"},
		{"dispute", dispute("created", "dp_1", "lost"), Sources{}, "", "payment_intent pi_1, charge ch_1", ""},
		{"review", review("opened", "prv_1", `"open":true`), Sources{}, "", "payment_intent pi_1, charge ch_1", ""},
		{"review without a charge", story{"review.opened", `"id":"prv_1","open":true,"charge":null,"payment_intent":"pi_1"`}, Sources{}, "", "payment_intent pi_1", ""},
		{"fraud warning of an old version", story{"radar.early_fraud_warning.created", `"id":"issfr_1","actionable":true,"charge":"ch_1"`}, Sources{}, "", "charge ch_1", ""},
		{"what a dispute does to the balance", dispute("funds_withdrawn", "dp_1", "needs_response"), Sources{}, "", "", "ignored"},

		{"box", story{"invoice.paid", invoice("subscription_cycle", oldPaid)}, DefaultSources(), "in_1", "invoice in_1, payment_intent pi_1, charge ch_1", ""},
		{"box, basil", story{"invoice.paid", invoice("subscription_cycle", basilPaid)}, DefaultSources(), "in_1", "invoice in_1, payment_intent pi_1, charge ch_2", ""},
		{"box, basil without payments", story{"invoice.paid", invoice("subscription_cycle", `,"parent":{"subscription_details":{"subscription":"sub_1"}}`)}, DefaultSources(), "in_1", "invoice in_1", ""},
		{"first box", story{"invoice.paid", invoice("subscription_create", oldPaid)}, DefaultSources(), "in_1", "invoice in_1, payment_intent pi_1, charge ch_1, subscription sub_1", "claim"},
		{"first box, basil", story{"invoice.paid", invoice("subscription_create", basilPaid)}, DefaultSources(), "in_1", "invoice in_1, payment_intent pi_1, charge ch_2, subscription sub_1", "claim"},
		{"first box, not a source", story{"invoice.paid", invoice("subscription_create", oldPaid)}, Sources{}, "", "invoice in_1, payment_intent pi_1, charge ch_1, subscription sub_1", "optional"},
		{"update", story{"invoice.paid", invoice("subscription_update", oldPaid)}, DefaultSources(), "", "invoice in_1, payment_intent pi_1, charge ch_1", "optional"},
		{"update, configured", story{"invoice.paid", invoice("subscription_update", oldPaid)}, Sources{Invoices: []string{"subscription_update"}}, "in_1", "invoice in_1, payment_intent pi_1, charge ch_1", ""},
		{"by hand", story{"invoice.paid", invoice("manual", oldPaid)}, DefaultSources(), "", "invoice in_1, payment_intent pi_1, charge ch_1", "optional"},
		{"by hand, nothing to tie to it", story{"invoice.paid", invoice("manual", "")}, DefaultSources(), "", "invoice in_1", "optional"},
		{"by hand, configured", story{"invoice.paid", invoice("manual", "")}, Sources{Invoices: []string{"manual"}}, "in_1", "invoice in_1", "claim"},
		{"no reason", story{"invoice.paid", `"id":"in_1","status":"paid","billing_reason":null`}, DefaultSources(), "", "invoice in_1", "optional"},
		{"a negative total", story{"invoice.paid", `"id":"in_1","status":"paid","billing_reason":"subscription_cycle","currency":"eur","total":-1`}, DefaultSources(), "", "invoice in_1", "optional"},
		{"credit note", story{"credit_note.created", `"id":"cn_1","invoice":"in_1","amount":1,"status":"issued"`}, Sources{}, "", "invoice in_1", "optional"},
		{"capture", story{"charge.captured", `"id":"ch_1","payment_intent":"pi_1","amount":1,"amount_refunded":0,"captured":true`}, Sources{}, "", "payment_intent pi_1, charge ch_1", "optional"},
		{"expired authorization", story{"charge.expired", `"id":"ch_1","payment_intent":"pi_1","amount":1,"amount_refunded":0,"captured":false`}, Sources{}, "", "payment_intent pi_1, charge ch_1", "optional"},
		{"payment of an invoice", story{"invoice_payment.paid@2025-03-31.basil", `"id":"inpay_1","invoice":"in_1","payment":{"type":"payment_intent","payment_intent":"pi_1"}`}, Sources{}, "", "invoice in_1, payment_intent pi_1", "optional"},
		{"payment of an invoice, recorded elsewhere", story{"invoice_payment.paid", `"id":"inpay_1","invoice":"in_1","payment":{"type":"payment_record","payment_record":"prec_1"}`}, Sources{}, "", "", "ignored"},

		{"payment intent", intent("succeeded", `,"status":"succeeded"`), elements, "pi_1", "payment_intent pi_1, charge ch_1", "claim"},
		{"payment intent, processing", intent("processing", `,"status":"processing"`), elements, "pi_1", "payment_intent pi_1, charge ch_1", "claim"},
		{"payment intent, cancelled", intent("canceled", `,"status":"canceled"`), elements, "", "payment_intent pi_1, charge ch_1", "optional"},
		{"payment intent, not a source", intent("succeeded", `,"status":"succeeded"`), DefaultSources(), "", "payment_intent pi_1, charge ch_1", "optional"},
		{"payment intent, processing, not a source", intent("processing", `,"status":"processing"`), DefaultSources(), "", "", "ignored"},
		{"payment intent of an old invoice", intent("succeeded", `,"status":"succeeded","invoice":"in_1"`), elements, "", "payment_intent pi_1, charge ch_1, invoice in_1", "optional"},
		{"payment intent with its charges", story{"payment_intent.succeeded@2022-08-01", `"id":"pi_1","status":"succeeded","amount":1,"currency":"eur","charges":{"object":"list","data":[` +
			`{"id":"ch_0","object":"charge","status":"failed"},{"id":"ch_1","object":"charge","status":"succeeded"}]}`}, elements, "pi_1", "payment_intent pi_1, charge ch_1", "claim"},
		{"payment intent, authorized", intent("amount_capturable_updated", `,"status":"requires_capture"`), elements, "pi_1", "payment_intent pi_1, charge ch_1", "claim"},
		{"payment intent, authorized, not a source", intent("amount_capturable_updated", `,"status":"requires_capture"`), DefaultSources(), "", "payment_intent pi_1, charge ch_1", "optional"},
		{"payment intent, capturable in another status", intent("amount_capturable_updated", `,"status":"requires_action"`), elements, "", "", "ignored"},
		{"payment intent that failed", intent("payment_failed", `,"status":"requires_payment_method"`), elements, "", "payment_intent pi_1, charge ch_1", "optional"},
		{"payment intent that failed, by its error", story{"payment_intent.payment_failed", `"id":"pi_1","amount":1,"currency":"eur","last_payment_error":{"charge":"ch_1"}`}, elements, "", "payment_intent pi_1, charge ch_1", "optional"},
		{"payment intent that failed without a charge", story{"payment_intent.payment_failed", `"id":"pi_1","amount":1,"currency":"eur","latest_charge":null`}, elements, "", "", "ignored"},
		{"payment intent that failed, not a source", intent("payment_failed", `,"status":"requires_payment_method"`), DefaultSources(), "", "", "ignored"},
		{"payment intent that contradicts itself, not a source", intent("succeeded", `,"status":"processing"`), DefaultSources(), "", "payment_intent pi_1, charge ch_1", "optional"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e, err := Parse(test.event.json(1), test.sources)
			if err != nil {
				t.Fatal(err)
			}
			var refs, flags []string
			for _, r := range e.References() {
				refs = append(refs, fmt.Sprintf("%s %s", r.Kind, r.ID))
			}
			for flag, set := range map[string]bool{"claim": e.MustClaim(), "optional": e.Optional(), "ignored": e.Ignored()} {
				if set {
					flags = append(flags, flag)
				}
			}
			if got := strings.Join(refs, ", "); e.OrderID() != test.order || got != test.refs || strings.Join(flags, " ") != test.flags {
				t.Errorf("order %q, references %q, %q; want %q, %q, %q", e.OrderID(), got, flags, test.order, test.refs, test.flags)
			}
		})
	}
}

// TestFollowUpsFail has the objects that must not be guessed at.
func TestFollowUpsFail(t *testing.T) {
	for _, test := range []struct {
		event story
		want  string
	}{
		{story{"charge.refunded", `"id":"ch 1"`}, "data.object.id"},
		{story{"charge.refunded", `"id":"ch_1","amount":1,"payment_intent":"pi_1"`}, "amount_refunded is not an amount"},
		{story{"charge.refunded", `"id":"ch_1","amount":1,"amount_refunded":-1`}, "amount_refunded is not an amount"},
		{story{"charge.refunded", `"id":"ch_1","amount":1,"amount_refunded":"1"`}, "amount_refunded is not a whole number"},
		{story{"charge.refunded", `"id":"ch_1","amount":1,"amount_refunded":1,"currency":"EUR"`}, "currency"},
		{story{"charge.refunded", `"id":"ch_1","amount":1,"amount_refunded":1,"refunds":{"data":[{"id":"re_1","object":"refund","amount":1.5}]}`}, "refunds.data[0].amount"},
		{story{"refund.created", `"id":"","amount":1`}, "data.object.id"},
		{story{"refund.created", `"id":"re_1","payment_intent":"pi_1"`}, "amount"},
		{story{"refund.created", `"object":"charge"`}, "object is not refund"},
		{story{"charge.dispute.created", `"id":7`}, "data.object.id"},
		{story{"review.closed", `"id":"prv_1","open":"no"`}, "open is a string"},
		{story{"radar.early_fraud_warning.created", `"id":"issfr_1","actionable":1`}, "actionable is a number"},
		{story{"invoice.paid", `"id":"in_1","status":"open"`}, "contradicts invoice.paid"},
		{story{"invoice.paid", `"id":"in_1","paid":false`}, "contradicts invoice.paid"},
		{story{"invoice.paid", `"id":"in_1","status":"paid","billing_reason":"manual","total":"1"`}, "total is not a whole number"},
		{story{"payment_intent.succeeded", `"id":"pi_1","status":7`}, "status is a number"},
		{story{"charge.refunded", `"id":"ch_1","amount":1,"amount_refunded":1,"amount_captured":-1`}, "amount_captured is not an amount"},
		{story{"charge.captured", `"id":"ch_1","amount":1,"amount_refunded":1,"captured":"yes"`}, "captured is a string"},
		{story{"credit_note.created", `"id":"cn_1","invoice":"in_1"`}, "amount is not an amount"},
		{story{"credit_note.created", `"id":"cn_1","invoice":"in_1","amount":1,"lines":{"data":[{"id":"cnli_1","quantity":1.5}]}`}, "quantity is not a whole number"},
		{story{"payment_intent.succeeded", `"id":"pi_1","status":"succeeded","amount":1e99`}, "amount is not a whole number"},
	} {
		if e, err := Parse(test.event.json(1), allSources); err == nil || e != nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s %s: %v, %v; want an error with %q", test.event.typ, test.event.object, e, err, test.want)
		}
	}
}

// TestOddFollowUps: what cannot be read of a follow-up is taken for the safe
// side, and said.
func TestOddFollowUps(t *testing.T) {
	o := applied(t, nil, parse(t, paidSession.json(1)), noKey).Order
	for _, test := range []struct {
		event     story
		directive ordergatev1.Directive
		warning   string
	}{
		{story{"charge.dispute.created", `"id":"dp_1","payment_intent":"pi_1","amount":"much","reason":"No Reason!","status":7`}, hold, "amount is not a whole number|reason is not one of Stripe's words|status is a number|taken for open"},
		{story{"charge.dispute.created", `"id":"dp_1","payment_intent":"pi_1","amount":9223372036854775808,"status":"lost"`}, hold, "amount is not a whole number"},
		{refund("refund.created", "re_1", 4200, "on_its_way"), cancel, "taken for pending"},
		{story{"refund.created", `"id":"re_1","payment_intent":"pi_1","amount":4200,"currency":"eur","status":null`}, cancel, ""},
		{review("closed", "prv_1", `"open":false,"closed_reason":"something_new"`), hold, ""},
		{review("closed", "prv_1", `"open":false`), hold, ""},
		{story{"review.opened", `"id":"prv_1","payment_intent":"pi_1"`}, hold, ""},
		{story{"refund.failed", `"id":"re_1","payment_intent":"pi_1","amount":100,"currency":"eur","status":"pending"`}, ship, ""},
	} {
		c := applied(t, o, parse(t, test.event.json(2)), noKey)
		if c.Order.GetDirective() != test.directive {
			t.Errorf("%s %s: %v, want %v", test.event.typ, test.event.object, c.Order.GetDirective(), test.directive)
		}
		var wants []string
		if test.warning != "" {
			wants = strings.Split(test.warning, "|")
		}
		for _, want := range wants {
			if !strings.Contains(strings.Join(c.Warnings, "\n"), want) {
				t.Errorf("%s: warnings %q, want one with %q", test.event.typ, c.Warnings, want)
			}
		}
		if test.event.typ == "refund.failed" && c.Order.GetRefunds()[0].GetState() != ordergatev1.RefundState_REFUND_STATE_FAILED {
			t.Errorf("a refund that failed is %v", c.Order.GetRefunds())
		}
		for _, d := range c.Order.GetDisputes() {
			if d.GetAmount() != 0 {
				t.Errorf("an amount that cannot be read is %d", d.GetAmount())
			}
		}
		if len(wants) == 0 && len(c.Warnings) > 0 {
			t.Errorf("%s: warnings %q, want none", test.event.typ, c.Warnings)
		}
	}
}

// TestInvoiceShipTo: the invoice's own ship-to and the customer's may be
// different people's; they are never mixed.
func TestInvoiceShipTo(t *testing.T) {
	at := func(key, name, line1 string) string {
		return fmt.Sprintf(`,%q:{"name":%q,"address":{"line1":%q,"city":"Testdorf","country":"DE"}}`, key, name, line1)
	}
	for _, test := range []struct {
		name, fields string
		state        ordergatev1.AddressState
		want         *ordergatev1.Shipping
	}{
		{"its own", at("shipping_details", "Ada", "A") + at("customer_shipping", "Bob", "B"), present, &ordergatev1.Shipping{Name: "Ada", Phone: "+9", Address: &ordergatev1.Address{Line1: "A", City: "Testdorf", Country: "DE"}}},
		{"the customer's", `,"shipping_details":null` + at("customer_shipping", "Bob", "B"), present, &ordergatev1.Shipping{Name: "Bob", Phone: "+9", Address: &ordergatev1.Address{Line1: "B", City: "Testdorf", Country: "DE"}}},
		{"its own cannot be read", `,"shipping_details":"moved"` + at("customer_shipping", "Bob", "B"), unreadable, nil},
		{"none", `,"shipping_details":null,"customer_shipping":null`, notCollected, nil},
		{"none, though shipping was paid", `,"shipping_cost":{"amount_total":500}`, unreadable, nil},
	} {
		o := applied(t, nil, parse(t, story{"invoice.paid", `"id":"in_1","billing_reason":"subscription_cycle","status":"paid","customer_phone":"+9"` + test.fields}.json(1)), noKey).Order
		if diff := cmp.Diff(test.want, o.GetShipping(), protocmp.Transform()); diff != "" || o.GetAddressState() != test.state {
			t.Errorf("%s: %v (-want +got):\n%s", test.name, o.GetAddressState(), diff)
		}
	}
}

// TestInvoiceLines: an invoice's own lines count where the caller has none, and
// only when they are all there and can be read.
func TestInvoiceLines(t *testing.T) {
	with := func(lines string) *Event {
		return parse(t, story{"invoice.paid", `"id":"in_1","billing_reason":"subscription_cycle","status":"paid","currency":"eur","total":1,"customer_shipping":{"address":` + street + `},"lines":` + lines}.json(1))
	}
	const (
		line = `{"id":"il_1","object":"line_item","amount":1000,"quantity":2,"description":"Box","metadata":{"sku":"B1"},"price":{"id":"price_1","product":"prod_1"},` +
			`"discount_amounts":[{"amount":100,"discount":"di_1"}],"tax_amounts":[{"amount":90,"inclusive":false},{"amount":7,"inclusive":true}]}`
		basil = `{"id":"il_1","object":"line_item","amount":1000,"subtotal":1000,"quantity":2,"description":"Box","metadata":{"sku":"B1"},"pricing":{"type":"price_details","price_details":{"price":"price_1","product":"prod_1"}},` +
			`"discount_amounts":[{"amount":100,"discount":"di_1"}],"taxes":[{"amount":90,"tax_behavior":"exclusive"},{"amount":7,"tax_behavior":"inclusive"}]}`
	)
	want := []*ordergatev1.LineItem{{
		Id: "il_1", Quantity: new(int64(2)), Description: "Box", Price: "price_1", Product: &ordergatev1.Product{Id: "prod_1", ReferenceOnly: true},
		AmountSubtotal: new(int64(1000)), AmountDiscount: new(int64(100)), AmountTax: new(int64(97)), AmountTotal: new(int64(990)), Metadata: map[string]string{"sku": "B1"},
		PriceDetails: &ordergatev1.PriceDetails{Id: "price_1"},
	}}
	for name, lines := range map[string]string{"old": line, "basil": basil} {
		o := applied(t, nil, with(`{"has_more":false,"data":[`+lines+`]}`), noKey).Order
		if diff := cmp.Diff(want, o.GetLineItems(), protocmp.Transform()); diff != "" || o.GetLineItemsState() != complete || o.GetDirective() != ship {
			t.Errorf("%s: %v, %v (-want +got):\n%s", name, o.GetLineItemsState(), o.GetDirective(), diff)
		}
	}

	whole := `{"has_more":false,"data":[` + line + `]}`
	full := []*ordergatev1.LineItem{{Id: "il_1", Product: &ordergatev1.Product{Id: "prod_1", Name: "Box"}}}
	for _, test := range []struct {
		name, lines string
		said        LineItems
		state       ordergatev1.LineItemsState
		items       int
	}{
		{"the caller reads them", whole, LineItems{State: pending}, pending, 0},
		{"the caller says nothing yet", whole, LineItems{}, pending, 0},
		{"the caller has read them", whole, LineItems{State: complete, Items: full}, complete, 1},
		{"there are more", `{"has_more":true,"data":[` + line + `]}`, noKey, unavailable, 0},
		{"it does not say whether there are more", `{"data":[` + line + `]}`, noKey, unavailable, 0},
		{"an amount is text", `{"has_more":false,"data":[{"id":"il_1","amount":"1"}]}`, noKey, unavailable, 0},
		{"a line is no object", `{"has_more":false,"data":[7]}`, noKey, unavailable, 0},
		{"another shape", `[]`, noKey, unavailable, 0},
		{"no list", `{"has_more":false,"data":null}`, noKey, unavailable, 0},
		{"none", `{"has_more":false,"data":[]}`, noKey, unavailable, 0},
		{"too many", `{"has_more":false,"data":[` + strings.Repeat(line+",", 100) + line + `]}`, noKey, unavailable, 0},
	} {
		o := applied(t, nil, with(test.lines), test.said).Order
		if o.GetLineItemsState() != test.state || len(o.GetLineItems()) != test.items {
			t.Errorf("%s: %v, %v; want %v, %d items", test.name, o.GetLineItemsState(), o.GetLineItems(), test.state, test.items)
		}
	}

	t.Run("with the products they stay", func(t *testing.T) {
		o := applied(t, nil, with(whole), noKey).Order
		o = SetLineItems(o, LineItems{State: complete, Items: full}).Order
		if c := applied(t, o, with(whole), noKey); c != nil {
			t.Errorf("the invoice again made %v", c.Order)
		}
		newer := parse(t, story{"invoice.paid@2025-03-31.basil", basilInvoice}.json(2))
		if c := applied(t, o, newer, noKey); c.Order.GetLineItems()[0].GetProduct().GetName() != "Box" {
			t.Errorf("the newer invoice made %v", c.Order.GetLineItems())
		}
	})
	t.Run("a tax of unknown kind leaves the total open", func(t *testing.T) {
		o := applied(t, nil, with(`{"has_more":false,"data":[{"id":"il_1","amount":5,"taxes":[{"amount":1,"tax_behavior":"unspecified"}]}]}`), noKey).Order
		if item := o.GetLineItems()[0]; item.AmountTotal != nil || item.GetAmountTax() != 1 {
			t.Errorf("item %v", item)
		}
	})
}

// TestPaymentIntentHasNoItems: there is nothing that could be waited for.
func TestPaymentIntentHasNoItems(t *testing.T) {
	e := parse(t, intent("succeeded", `,"status":"succeeded"`).json(1))
	for _, said := range []LineItems{{}, {State: pending}, noKey} {
		o := applied(t, nil, e, said).Order
		if o.GetDirective() != ship || o.GetLineItemsState() != unavailable {
			t.Errorf("%v: %v, %v; want SHIP, UNAVAILABLE", said.State, o.GetDirective(), o.GetLineItemsState())
		}
		if c := SetLineItems(o, LineItems{State: pending}); c != nil {
			t.Errorf("pending made %v", c.Order)
		}
	}
}

// TestAnotherObjectsSale: a sale that must be claimed, applied to the order that
// claims it, is a follow-up of that order.
func TestAnotherObjectsSale(t *testing.T) {
	placed := applied(t, nil, parse(t, placedSession.json(1)), noKey).Order
	c := applied(t, placed, parse(t, intent("succeeded", `,"status":"succeeded","metadata":{"not":"the session's"}`).json(2)), noKey)
	if c.Order.GetId() != "cs_1" || c.Order.GetStatus() != statusPaid || len(c.Order.GetMetadata()) > 0 || c.Order.GetPaidTime().GetSeconds() != 1700000002 {
		t.Errorf("%v", c.Order)
	}
	c = applied(t, placed, parse(t, story{"invoice.paid", oldInvoice}.json(2)), noKey)
	if c.Order.GetId() != "cs_1" || c.Order.GetStatus() != statusPaid || c.Order.GetCustomer() != nil || c.Order.GetPaidTime().GetSeconds() != 1700000002 {
		t.Errorf("an invoice of the session made %v", c.Order)
	}
	if c := applied(t, placed, parse(t, story{"invoice_payment.paid", `"id":"inpay_1","invoice":"in_1","payment":{"payment_intent":"pi_1"}`}.json(2)), noKey); c != nil {
		t.Errorf("its payment made %v", c.Order)
	}
	invoiced := applied(t, nil, parse(t, story{"invoice.paid", oldInvoice}.json(2)), noKey).Order
	if c := applied(t, invoiced, parse(t, paidSession.json(1)), noKey); c != nil {
		t.Errorf("a session changed an invoice's order: %v", c.Order)
	}
}

func TestParseLookup(t *testing.T) {
	from := Lookup{Account: "acct_1", Livemode: true, APIVersion: "2023-10-16"}
	of := func(object, fields string) string { return fmt.Sprintf(`{"object":%q,%s}`, object, fields) }
	sale := func(status, paymentStatus string) string {
		return of("checkout.session", fmt.Sprintf(`"id":"cs_1","livemode":true,"mode":"payment","status":%q,"payment_status":%q,"payment_intent":"pi_1","currency":"eur","amount_total":1`, status, paymentStatus))
	}
	for _, test := range []struct {
		name, raw string
		sources   Sources
		order     string
		status    ordergatev1.OrderStatus
	}{
		{"paid session", sale("complete", "paid"), Sources{}, "cs_1", statusPaid},
		{"free session", sale("complete", "no_payment_required"), Sources{}, "cs_1", statusPaid},
		{"placed session", sale("complete", "unpaid"), Sources{}, "cs_1", awaitingPayment},
		{"open session", sale("open", "unpaid"), Sources{}, "", 0},
		{"open free session", sale("open", "no_payment_required"), Sources{}, "", 0},
		{"expired session", sale("expired", "unpaid"), Sources{}, "", 0},
		{"setup session", of("checkout.session", `"id":"cs_1","mode":"setup","status":"complete","payment_status":"no_payment_required"`), Sources{}, "", 0},
		{"invoice", of("invoice", `"id":"in_1","status":"paid","billing_reason":"subscription_cycle","currency":"eur","total":1,"status_transitions":{"paid_at":1700000000}`), DefaultSources(), "in_1", statusPaid},
		{"invoice, not a source", of("invoice", `"id":"in_1","status":"paid","billing_reason":"manual"`), DefaultSources(), "", 0},
		{"open invoice", of("invoice", `"id":"in_1","status":"open","billing_reason":"subscription_cycle"`), DefaultSources(), "", 0},
		{"payment intent", of("payment_intent", `"id":"pi_1","status":"succeeded","amount":1,"currency":"eur"`), allSources, "pi_1", statusPaid},
		{"payment intent, processing", of("payment_intent", `"id":"pi_1","status":"processing","amount":1,"currency":"eur"`), allSources, "pi_1", awaitingPayment},
		{"payment intent, not a source", of("payment_intent", `"id":"pi_1","status":"succeeded"`), DefaultSources(), "", 0},
		{"payment intent, cancelled", of("payment_intent", `"id":"pi_1","status":"canceled"`), allSources, "", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			e, err := ParseLookup([]byte(test.raw), from, test.sources)
			if err != nil {
				t.Fatal(err)
			}
			if e.OrderID() != test.order || e.Ignored() != (test.order == "") || (test.order == "") != (len(e.References()) == 0) || e.Optional() {
				t.Fatalf("order %q, ignored %v, references %v", e.OrderID(), e.Ignored(), e.References())
			}
			c := applied(t, nil, e, noKey)
			if test.order == "" {
				if c != nil {
					t.Errorf("made %v", c.Order)
				}
				return
			}
			o := c.Order
			if o.GetStatus() != test.status || !o.GetRecovered() || !o.GetLivemode() || o.GetAccount() != "acct_1" || o.GetApiVersion() != "2023-10-16" || !slices.Contains(o.GetHoldReasons(), isRecovered) {
				t.Errorf("%v", o)
			}
			if o.GetDirective() == ship {
				t.Errorf("SHIP of what was looked up: %v", o)
			}
		})
	}
	for name, raw := range map[string]string{
		"nothing":            ``,
		"a list":             `{"object":"list","data":[]}`,
		"a deleted object":   `{"id":"cs_1","deleted":true}`,
		"an invalid id":      `{"object":"checkout.session","id":"cs 1","payment_status":"paid"}`,
		"livemode is a text": `{"object":"checkout.session","id":"cs_1","payment_status":"paid","livemode":"true"}`,
	} {
		if e, err := ParseLookup([]byte(raw), from, allSources); err == nil {
			t.Errorf("%s: %v, want an error", name, e)
		}
	}
	t.Run("a test object of a live key is a test", func(t *testing.T) {
		e, err := ParseLookup([]byte(strings.Replace(sale("complete", "paid"), `"livemode":true`, `"livemode":false`, 1)), from, Sources{})
		if err != nil || e.Livemode {
			t.Errorf("%v, %v", e, err)
		}
	})
}

// TestCurrencies: amounts are in minor units, whatever a currency's minor unit
// is.
func TestCurrencies(t *testing.T) {
	for currency, total := range map[string]int64{"jpy": 5000, "eur": 4200, "kwd": 12500} {
		fields := fmt.Sprintf(`"id":"cs_1","payment_intent":"pi_1","payment_status":"paid","currency":%q,"amount_total":%d`, currency, total)
		part := fmt.Sprintf(`"id":"re_1","payment_intent":"pi_1","charge":"ch_1","currency":%q,"status":"succeeded","amount":1`, currency)
		rest := fmt.Sprintf(`"id":"re_2","payment_intent":"pi_1","charge":"ch_1","currency":%q,"status":"succeeded","amount":%d`, currency, total-1)
		o := applied(t, nil, parse(t, story{"checkout.session.completed", fields}.json(1)), noKey).Order
		o = applied(t, o, parse(t, story{"refund.created", part}.json(2)), noKey).Order
		if o.GetStatus() != partlyRefunded || o.GetAmounts().GetRefunded() != 1 || o.GetDirective() != ship {
			t.Errorf("%s: one minor unit refunded: %v", currency, o)
		}
		o = applied(t, o, parse(t, story{"refund.created", rest}.json(3)), noKey).Order
		if o.GetStatus() != statusRefunded || o.GetAmounts().GetRefunded() != total || o.GetDirective() != cancel || o.GetCurrency() != currency {
			t.Errorf("%s: all refunded: %v", currency, o)
		}
	}
}

// TestLargeSums: sums that no int64 can hold stay sums.
func TestLargeSums(t *testing.T) {
	o := applied(t, nil, parse(t, paidSession.json(1)), noKey).Order
	for i, status := range []string{"succeeded", "succeeded", "failed", "failed"} {
		e := parse(t, story{"refund.created", fmt.Sprintf(`"id":"re_%d","amount":9223372036854775807,"currency":"eur","status":%q`, i, status) + ofPi1}.json(i))
		o = applied(t, o, e, noKey).Order
	}
	if o.GetAmounts().GetRefunded() != 9223372036854775807 || o.GetStatus() != statusRefunded {
		t.Errorf("%v", o.GetAmounts())
	}
}

// TestHostileEvents: an event of 1 MiB, made to be slow, costs a glance. Each of
// these would take a second or more if it were read to its end.
func TestHostileEvents(t *testing.T) {
	fill := func(unit string) string { return strings.Repeat(unit, 1<<20/len(unit)) }
	pairs := func(n int) string {
		var b strings.Builder
		for i := 0; b.Len() < n; i++ {
			fmt.Fprintf(&b, `,"k%d":""`, i)
		}
		return b.String()[1:]
	}
	for name, s := range map[string]story{
		"custom fields":    session("completed", `,"payment_status":"paid","custom_fields":[{}`+fill(",{}")+`]`),
		"discounts":        session("completed", `,"payment_status":"paid","discounts":[{}`+fill(",{}")+`]`),
		"shipping options": session("completed", `,"payment_status":"paid","shipping_details":null,"shipping_options":[{}`+fill(",{}")+`]`),
		"metadata":         session("completed", `,"payment_status":"paid","metadata":{`+pairs(1<<20)+`}`),
		"refunds":          {"charge.refunded", `"id":"ch_1","amount":1,"amount_refunded":1,"refunds":{"data":[{}` + fill(",{}") + `]}`},
		"lines":            {"invoice.paid", `"id":"in_1","status":"paid","billing_reason":"manual","lines":{"has_more":false,"data":[{}` + fill(",{}") + `]}`},
		"payments":         {"invoice.paid", `"id":"in_1","status":"paid","billing_reason":"manual","payments":{"data":[{}` + fill(",{}") + `]}`},
		"taxes":            {"invoice.paid", `"id":"in_1","status":"paid","billing_reason":"manual","total_taxes":[{}` + fill(",{}") + `]`},
		"charges":          {"payment_intent.succeeded", `"id":"pi_1","status":"succeeded","charges":{"data":[{}` + fill(",{}") + `]}`},
		"depth":            session("completed", `,"payment_status":"paid","metadata":{"a":`+strings.Repeat(`[`, 5000)+strings.Repeat(`]`, 5000)+`}`),
		"fields":           session("completed", `,"payment_status":"paid",`+pairs(1<<20)),
		"address":          session("completed", `,"payment_status":"paid","shipping_details":{"address":{`+pairs(1<<20)+`}}`),
		"billing reason":   {"invoice.paid", `"id":"in_1","status":"paid","billing_reason":"` + fill("a") + `"`},
	} {
		raw := s.json(1)
		start := time.Now()
		e, err := Parse(raw, allSources)
		if err == nil {
			applied(t, nil, e, noKey)
		}
		took := time.Since(start)
		t.Logf("%-16s %5.0f ms  %.80v", name, took.Seconds()*1000, err)
		// It takes about a tenth of this; the race detector is slow.
		if took > 5*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
}

// TestCaps: at the bound an event is read whole, and beyond it not at all.
func TestCaps(t *testing.T) {
	for _, n := range []int{maxEntries, maxEntries + 1} {
		var pairs []string
		for i := range n {
			pairs = append(pairs, fmt.Sprintf(`"k%d":"v"`, i))
		}
		for field, value := range map[string]string{
			"metadata":      `{` + strings.Join(pairs, ",") + `}`,
			"custom_fields": `[` + strings.Repeat(`{"key":"k","type":"text"},`, n-1) + `{"key":"k","type":"text"}]`,
			"discounts":     `[` + strings.Repeat(`{"coupon":"c"},`, n-1) + `{"coupon":"c"}]`,
		} {
			e, err := Parse(session("completed", `,"payment_status":"paid","`+field+`":`+value).json(1), Sources{})
			if n > maxEntries {
				if err == nil || !strings.Contains(err.Error(), field+" has more than 100 entries") {
					t.Errorf("%d %s: %v", n, field, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%d %s: %v", n, field, err)
				continue
			}
			o := applied(t, nil, e, noKey).Order
			if max(len(o.GetMetadata()), len(o.GetCustomFields()), len(o.GetDiscounts())) != n {
				t.Errorf("%d %s: %v", n, field, o)
			}
		}
	}
}

// TestInvoiceMetadata: the pairs of the subscription are the invoice's, too,
// which wins where both have one.
func TestInvoiceMetadata(t *testing.T) {
	want := map[string]string{"box": "large", "route": "west"}
	for _, at := range []string{`"subscription_details":{"metadata":{"box":"small","route":"west"}}`, `"parent":{"subscription_details":{"metadata":{"box":"small","route":"west"}}}`} {
		o := applied(t, nil, parse(t, story{"invoice.paid", `"id":"in_1","billing_reason":"subscription_cycle","status":"paid","metadata":{"box":"large"},` + at}.json(1)), noKey).Order
		if diff := cmp.Diff(want, o.GetMetadata()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", at, diff)
		}
	}
}
