package orders

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

func TestParseEnvelope(t *testing.T) {
	e := parse(t, []byte(` {"id":"evt_1","type":"checkout.session.completed","api_version":"2023-10-16","account":"acct_1","created":1700000000,
		"livemode":true,"data":{"object":{"id":"cs_live_1","object":"checkout.session","livemode":true`+isPaid+`}}} `))
	if e.ID != "evt_1" || e.Type != "checkout.session.completed" || e.APIVersion != "2023-10-16" || e.Account != "acct_1" ||
		!e.Livemode || !e.Created.Equal(time.Unix(1700000000, 0)) || e.Created.Location() != time.UTC || e.OrderID() != "cs_live_1" {
		t.Errorf("envelope %+v", e)
	}
	o := applied(t, nil, e, noKey).Order
	if o.GetAccount() != "acct_1" || !o.GetLivemode() || o.GetApiVersion() != "2023-10-16" || o.GetId() != "cs_live_1" {
		t.Errorf("order %v", o)
	}
}

func TestLivemode(t *testing.T) {
	for _, test := range []struct {
		event, session string
		want           bool
	}{
		{"true", "true", true}, {"true", "null", true}, {"null", "true", true},
		{"true", "false", false}, {"false", "true", false}, {"null", "null", false}, {"false", "false", false},
	} {
		e := parse(t, fmt.Appendf(nil, `{"id":"evt_1","type":"checkout.session.completed","livemode":%s,`+
			`"data":{"object":{"id":"cs_1","object":"checkout.session","livemode":%s%s}}}`, test.event, test.session, isPaid))
		o := applied(t, nil, e, noKey).Order
		if e.Livemode != test.want || o.Livemode == nil || *o.Livemode != test.want {
			t.Errorf("event %s, session %s: %v, order %v; want %v and set", test.event, test.session, e.Livemode, o.Livemode, test.want)
		}
	}
}

func TestIgnored(t *testing.T) {
	for name, raw := range map[string]string{
		"setup mode":         string(event{typ: "completed", session: `,"mode":"setup","payment_status":"no_payment_required"`}.json()),
		"another type":       `{"id":"evt_1","type":"customer.created","data":{"object":{"id":"cus_1"}}}`,
		"a type not used":    `{"id":"evt_1","type":"checkout.session.renamed","data":{"object":{"object":"checkout.session","id":"cs_1"}}}`,
		"another, no object": `{"id":"evt_1","type":"customer.created","data":null}`,
		"thin":               `{"id":"evt_1","object":"v2.core.event","type":"v1.checkout.session.completed","created":"2026-09-30T10:00:00Z","livemode":false}`,
	} {
		e := parse(t, []byte(raw))
		if e.OrderID() != "" {
			t.Errorf("%s: order %q, want none", name, e.OrderID())
		}
		if c := applied(t, nil, e, noKey); c != nil {
			t.Errorf("%s: made %v", name, c.Order)
		}
	}
}

func TestParseFails(t *testing.T) {
	completed := func(session string) string {
		return string(event{typ: "completed", session: session}.json())
	}
	object := func(raw string) string {
		return `{"id":"evt_1","type":"checkout.session.completed","data":` + raw + `}`
	}
	for _, test := range []struct{ name, raw, want string }{
		{"empty", ``, "not a JSON object"},
		{"not JSON", `{`, "not a JSON object"},
		{"two values", `{}{}`, "not a JSON object"},
		{"null", `null`, "not a JSON object"},
		{"array", `[]`, "not a JSON object"},
		{"no id", `{"type":"a.b"}`, "id"},
		{"id with a dot", `{"id":"evt_1.2","type":"a.b"}`, "id"},
		{"id a number", `{"id":7,"type":"a.b"}`, "id"},
		{"no type", `{"id":"evt_1"}`, "type"},
		{"type a number", `{"id":"evt_1","type":7}`, "type"},
		{"account a number", `{"id":"evt_1","type":"a.b","account":7}`, "account"},
		{"account with a space", `{"id":"evt_1","type":"a.b","account":"acct 1"}`, "account"},
		{"livemode a string", `{"id":"evt_1","type":"a.b","livemode":"true"}`, "livemode is a string"},
		{"data absent", `{"id":"evt_1","type":"checkout.session.completed"}`, "data.object"},
		{"data null", object(`null`), "data.object"},
		{"data an array", object(`[]`), "data.object"},
		{"object absent", object(`{}`), "data.object"},
		{"object null", object(`{"object":null}`), "data.object"},
		{"object an array", object(`{"object":[]}`), "data.object"},
		{"object a string", object(`{"object":"cs_1"}`), "data.object"},
		{"another object", object(`{"object":{"object":"payment_intent","id":"pi_1","payment_status":"paid"}}`), "data.object.object"},
		{"object unnamed", object(`{"object":{"id":"cs_1","payment_status":"paid"}}`), "data.object.object"},
		{"session without id", object(`{"object":{"object":"checkout.session","payment_status":"paid"}}`), "data.object.id"},
		{"session id with a star", object(`{"object":{"object":"checkout.session","id":"cs.*","payment_status":"paid"}}`), "data.object.id"},
		{"too many pairs that are no strings", object(`{"object":{"object":"checkout.session","id":"cs_1","payment_status":"paid","metadata":{` + numbers(101) + `}}}`), "data.object.metadata"},
		{"session id too long", object(`{"object":{"object":"checkout.session","id":"` + strings.Repeat("c", 201) + `","payment_status":"paid"}}`), "data.object.id"},
		{"session livemode a number", completed(isPaid + `,"livemode":1`), "data.object.livemode"},
		{"unknown mode", completed(`,"mode":"lottery","payment_status":"paid"`), `mode is "lottery"`},
		{"mode a number", completed(`,"mode":7,"payment_status":"paid"`), "mode is a number"},
		{"no payment_status", completed(``), "payment_status is absent"},
		{"payment_status null", completed(`,"payment_status":null`), "payment_status is null"},
		{"payment_status a boolean", completed(`,"payment_status":true`), "payment_status is a boolean"},
		{"unknown payment_status", completed(`,"payment_status":"partially_paid"`), `"partially_paid"`},
		{"context a number", `{"id":"evt_1","type":"a.b","context":7}`, "context"},
		{"context a path", `{"id":"evt_1","type":"a.b","context":"org_1/acct_1"}`, "context"},
		{"amount a string", completed(`,"payment_status":"paid","amount_total":"4200"`), "amount_total"},
		{"amount with a fraction", completed(`,"payment_status":"paid","amount_total":42.5`), "amount_total"},
		{"amount too large", completed(`,"payment_status":"paid","amount_subtotal":9223372036854775808`), "amount_subtotal"},
		{"tax an object", completed(`,"payment_status":"paid","total_details":{"amount_tax":{}}`), "total_details.amount_tax"},
		{"shipping amount a string", completed(`,"payment_status":"paid","shipping_cost":{"amount_total":"1"}`), "shipping_cost.amount_total"},
		{"currency a number", completed(`,"payment_status":"paid","currency":978`), "currency"},
		{"currency in upper case", completed(`,"payment_status":"paid","currency":"EUR"`), "currency"},
	} {
		t.Run(test.name, func(t *testing.T) {
			e, err := Parse([]byte(test.raw), allSources)
			if err == nil || e != nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Parse = %v, %v; want an error with %q", e, err, test.want)
			}
		})
	}
}

// TestShipTo has the three places, alone and against each other.
func TestShipTo(t *testing.T) {
	in := func(line1 string, more ...string) string {
		return `{"address":{"line1":"` + line1 + `","city":"Testdorf","country":"DE"}` + strings.Join(more, "") + `}`
	}
	const (
		newest = `,"collected_information":{"shipping_details":%s}`
		middle = `,"shipping_details":%s`
		oldest = `,"shipping":%s`
		phone  = `,"customer_details":{"phone":"+1"}`
	)
	at := func(place, value string) string { return fmt.Sprintf(place, value) }
	for _, test := range []struct {
		name, session string
		want          ordergatev1.AddressState
		line1         string
		phone         string
		warning       string // "" is none
	}{
		{"nothing", ``, notCollected, "", "", ""},
		{"all null", at(newest, `null`) + at(middle, `null`) + at(oldest, `null`) + `,"shipping_address_collection":null,"shipping_cost":null,"shipping_options":[],"shipping_rate":null`, notCollected, "", "", ""},
		{"collected_information null", `,"collected_information":null`, notCollected, "", "", ""},

		{"newest", at(newest, in("N")), present, "N", "", ""},
		{"middle", at(middle, in("M")), present, "M", "", ""},
		{"oldest", at(oldest, in("O")), present, "O", "", ""},
		{"newest before middle", at(newest, in("N")) + at(middle, in("M")), present, "N", "", ""},
		{"middle before oldest", at(oldest, in("O")) + at(middle, in("M")), present, "M", "", ""},
		{"all three", at(oldest, in("O")) + at(middle, in("M")) + at(newest, in("N")), present, "N", "", ""},

		{"its own phone", at(middle, in("M", `,"phone":"+2"`)) + phone, present, "M", "+2", ""},
		{"the customer's phone", at(newest, in("N")) + phone, present, "N", "+1", ""},
		{"the phone of another place", at(newest, in("N")) + at(middle, in("M", `,"phone":"+2"`)) + phone, present, "N", "+2", ""},
		{"a phone that is none", at(middle, in("M", `,"phone":7`)) + phone, present, "M", "+1", "shipping_details.phone is a number"},

		{"line1 and country are enough", at(middle, `{"address":{"line1":"X","country":"DE"}}`), present, "X", "", ""},
		{"only a city", at(middle, `{"address":{"city":"X"}}`), incomplete, "", "", "an address without line1"},
		{"only a postal code", at(middle, `{"address":{"postal_code":"X"}}`), incomplete, "", "", "an address without line1"},
		{"only a country", at(middle, `{"address":{"country":"DE"}}`), incomplete, "", "", "an address without line1"},
		{"a blank line1", at(middle, `{"address":{"line1":" ","city":"X","country":"DE"}}`), incomplete, "", "", "an address without line1"},
		{"no country", at(middle, `{"address":{"line1":"X","city":"Y","country":null}}`), incomplete, "", "", "an address without country"},
		{"incomplete in two places", at(newest, `{"address":{"country":"DE"}}`) + at(middle, `{"address":{"line1":"X"}}`), incomplete, "", "", "without country"},
		{"incomplete in one of two places", at(newest, `{"address":{"country":"DE"}}`) + at(middle, in("M")), present, "M", "", "an address without line1"},
		{"incomplete, and unreadable elsewhere", at(newest, `{"address":{"country":"DE"}}`) + at(middle, `7`), unreadable, "", "", "shipping_details is a number"},

		{"a string", at(middle, `"Musterstraße 1"`), unreadable, "", "", "shipping_details is a string"},
		{"a number", at(oldest, `7`), unreadable, "", "", "shipping is a number"},
		{"an array", at(newest, `[]`), unreadable, "", "", "collected_information.shipping_details is an array"},
		{"an empty object", at(middle, `{}`), unreadable, "", "", "has no address"},
		{"only a name", at(middle, `{"name":"Ada"}`), unreadable, "", "", "has no address"},
		{"address null", at(middle, `{"address":null}`), unreadable, "", "", "has no address"},
		{"address empty", at(middle, `{"address":{}}`), unreadable, "", "", "has no address"},
		{"address of nulls", at(middle, `{"address":{"line1":null,"city":null}}`), unreadable, "", "", "has no address"},
		{"address of blanks", at(middle, `{"address":{"line1":" ","city":""}}`), unreadable, "", "", "has no address"},
		{"only a second line", at(middle, `{"address":{"line2":"Flat B","state":"XX"}}`), unreadable, "", "", "has no address"},
		{"address a string", at(middle, `{"address":"Musterstraße 1"}`), unreadable, "", "", "address that is a string"},
		{"half an address", at(middle, `{"address":{"line1":{"street":"X"},"city":"Testdorf"}}`), unreadable, "", "", "line1 is an object"},
		{"collected_information a string", `,"collected_information":"moved"`, unreadable, "", "", "collected_information is a string"},

		{"the unreadable does not hide the readable", at(newest, `"moved"`) + at(middle, in("M")), present, "M", "", "collected_information.shipping_details is a string"},
		{"nor from below", at(newest, in("N")) + at(oldest, `7`), present, "N", "", "shipping is a number"},
		{"nor a whole part", `,"collected_information":[]` + at(oldest, in("O")), present, "O", "", "collected_information is an array"},
		{"two unreadable", at(newest, `1`) + at(middle, `""`), unreadable, "", "", "shipping_details is a number; data.object.shipping_details is a string"},

		{"asked for, not found", collect, unreadable, "", "", "though there is a shipping_address_collection"},
		{"asked for, moved", collect + `,"collected_information":{"delivery":` + in("X") + `}`, unreadable, "", "", "none of the known places"},
		{"a cost", `,"shipping_cost":{"amount_total":0}`, unreadable, "", "", "though there is a shipping_cost"},
		{"a rate", `,"shipping_rate":"shr_1"`, unreadable, "", "", "though there is a shipping_rate"},
		{"options", `,"shipping_options":[{"shipping_rate":"shr_1"}]`, unreadable, "", "", "though there is a shipping_options"},
		{"options of another shape", `,"shipping_options":{}`, unreadable, "", "", "though there is a shipping_options"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := apply(t, event{id: "evt_42", typ: "completed", version: "2027-01-01.x", session: isPaid + test.session})
			o := c.Order
			if o.GetAddressState() != test.want || o.GetShipping().GetAddress().GetLine1() != test.line1 || o.GetShipping().GetPhone() != test.phone {
				t.Errorf("%v, %v; want %v, line1 %q, phone %q", o.GetAddressState(), o.GetShipping(), test.want, test.line1, test.phone)
			}
			wantDirective := ship
			if test.want == unreadable || test.want == incomplete {
				wantDirective = hold
			}
			if o.GetDirective() != wantDirective {
				t.Errorf("directive %v, want %v", o.GetDirective(), wantDirective)
			}
			switch {
			case test.warning == "" && len(c.Warnings) > 0:
				t.Errorf("warnings %q, want none", c.Warnings)
			case test.warning != "" && (len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], test.warning)):
				t.Errorf("warnings %q, want one with %q", c.Warnings, test.warning)
			}
			for _, w := range c.Warnings {
				if !strings.HasPrefix(w, `event evt_42 (API version "2027-01-01.x"): `) {
					t.Errorf("warning %q does not name the event and its version", w)
				}
			}
		})
	}
}

// TestDetails has what the goldens, which are as Stripe sends them, do not.
func TestDetails(t *testing.T) {
	for _, test := range []struct {
		name, session string
		want          *ordergatev1.Order // only what the test is about
		warning       string
	}{
		{"expanded", `,"customer":{"id":"cus_1","object":"customer"},"payment_intent":{"id":"pi_1"},"invoice":{"id":"in_1"},"subscription":{"id":"sub_1"},"payment_link":{"id":"plink_1"}`,
			&ordergatev1.Order{Customer: &ordergatev1.Customer{Id: "cus_1"}, References: &ordergatev1.StripeReferences{
				CheckoutSession: "cs_test_1", PaymentIntent: "pi_1", Invoice: "in_1", Subscription: "sub_1", PaymentLink: "plink_1"}}, ""},
		{"a rate in full", `,"shipping_cost":{"amount_total":590,"shipping_rate":{"id":"shr_1","display_name":"Express"}},"shipping_details":{"address":{"line1":"X","country":"DE"}}`,
			&ordergatev1.Order{ShippingRate: &ordergatev1.ShippingRate{Id: "shr_1", Amount: new(int64(590)), DisplayName: "Express"}}, ""},
		{"a cost of another shape", `,"shipping_cost":590,"shipping_details":{"address":{"line1":"X","country":"DE"}}`,
			&ordergatev1.Order{}, "shipping_cost is a number"},
		{"amounts of null", `,"amount_total":null,"amount_subtotal":null,"currency":null,"total_details":null`, &ordergatev1.Order{}, ""},
		{"an amount of zero is set", `,"currency":"eur","amount_total":0`,
			&ordergatev1.Order{Currency: "eur", Amounts: &ordergatev1.Amounts{Total: new(int64(0))}}, ""},
		{"amounts without currency", `,"amount_total":5`,
			&ordergatev1.Order{Amounts: &ordergatev1.Amounts{Total: new(int64(5))}}, "amounts without a currency"},
		{"total_details of another shape", `,"total_details":"none"`, &ordergatev1.Order{}, "total_details is a string"},
		{"metadata with a number", `,"metadata":{"a":"1","b":2,"c":null}`,
			&ordergatev1.Order{Metadata: map[string]string{"a": "1"}}, "metadata has 2 values that are not strings"},
		{"metadata with the same names", `,"metadata":{` + strings.Repeat(`"a":1,"c":"1",`, 100) + `"b":"1","\u0061":"2","c":3}`,
			&ordergatev1.Order{Metadata: map[string]string{"a": "2", "b": "1"}}, "metadata has 1 values that are not strings"},
		{"metadata of another shape", `,"metadata":[]`, &ordergatev1.Order{}, "metadata is an array"},
		{"customer details of another shape", `,"customer_details":"Ada"`, &ordergatev1.Order{}, "customer_details is a string"},
		{"a billing address of another shape", `,"customer_details":{"name":"Ada","phone":7,"address":"X"}`,
			&ordergatev1.Order{Customer: &ordergatev1.Customer{Name: "Ada"}}, "customer_details.phone is a number|customer_details has an address that is a string"},
		{"a billing address of nulls", `,"customer_details":{"name":"Ada","address":{"city":null,"country":null}}`,
			&ordergatev1.Order{Customer: &ordergatev1.Customer{Name: "Ada"}}, ""},
		{"a reference that is no id", `,"payment_intent":"pi 1","invoice":7`, &ordergatev1.Order{}, "payment_intent is not a Stripe id|invoice is a number"},
		{"a coupon with the shop's own id", `,"discounts":[{"coupon":"10% off!","promotion_code":null},{"coupon":null,"promotion_code":{"id":"promo_1"}},{"coupon":null},null]`,
			&ordergatev1.Order{Discounts: []*ordergatev1.Discount{{Coupon: "10% off!"}, {PromotionCode: "promo_1"}}}, "discounts[3] is null"},
		{"a custom field of another type", `,"custom_fields":[{"key":"k","type":"date","label":{"type":"custom"}}]`,
			&ordergatev1.Order{CustomFields: []*ordergatev1.CustomField{{Key: "k"}}}, "custom_fields[0] is of a type that"},
		{"a custom field with a number", `,"custom_fields":[{"key":"k","type":"numeric","numeric":{"value":7}}]`,
			&ordergatev1.Order{CustomFields: []*ordergatev1.CustomField{{Key: "k"}}}, "custom_fields[0].numeric.value is a number"},
		{"a time out of range", `,"created":253402300800`, &ordergatev1.Order{}, "created is not a time"},
		{"a reference of the shop's that is no text", `,"client_reference_id":7`, &ordergatev1.Order{}, "client_reference_id is a number"},
		{"a mode of null", `,"mode":null`, &ordergatev1.Order{}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := apply(t, event{typ: "completed", session: `,"payment_status":"paid"` + test.session})
			got := c.Order
			if test.want.References == nil {
				test.want.References = &ordergatev1.StripeReferences{CheckoutSession: "cs_test_1"}
			}
			diff := cmp.Diff(test.want, got, protocmp.Transform(), protocmp.IgnoreFields(&ordergatev1.Order{},
				"id", "revision", "source", "status", "directive", "hold_reasons", "livemode", "shipping", "address_state",
				"line_items_state", "create_time", "paid_time", "api_version", "sale_status", "currency_exponent", "payment_required"),
				protocmp.FilterField(&ordergatev1.Order{}, "shipping_rate", protocmp.IgnoreEmptyMessages()),
				protocmp.FilterField(&ordergatev1.Order{}, "customer", protocmp.IgnoreEmptyMessages()))
			if diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
			var wants []string
			if test.warning != "" {
				wants = strings.Split(test.warning, "|")
			}
			if len(c.Warnings) != len(wants) {
				t.Fatalf("warnings %q, want %d", c.Warnings, len(wants))
			}
			for _, want := range wants {
				if !strings.Contains(strings.Join(c.Warnings, "\n"), want) {
					t.Errorf("warnings %q, want one with %q", c.Warnings, want)
				}
			}
		})
	}
}

// numbers are n members of an object, each a number.
func numbers(n int) string {
	var members []string
	for i := range n {
		members = append(members, fmt.Sprintf(`"k%d":%d`, i, i))
	}
	return strings.Join(members, ",")
}

// TestShapes checks against regular expressions, which say the same more slowly.
func TestShapes(t *testing.T) {
	for _, shape := range []struct {
		is   func(string) bool
		want string
	}{
		{isID, `^[A-Za-z0-9_]{1,200}$`},
		{isConstant, `^[a-z_]{1,40}$`},
		{isCurrency, `^[a-z]{3}$`},
	} {
		want := regexp.MustCompile(shape.want)
		check := func(s string) {
			if shape.is(s) != want.MatchString(s) {
				t.Errorf("%s of %q: %v", shape.want, s, shape.is(s))
			}
		}
		for n := range 202 {
			check(strings.Repeat("a", n))
		}
		for c := range 256 {
			check("a" + string([]byte{byte(c)}) + "a")
		}
	}
}

// TestWarningsAreBounded: an event made of nothing but wrong fields says so in
// a few lines, and says that there are more.
func TestWarningsAreBounded(t *testing.T) {
	c := apply(t, event{typ: "completed", session: isPaid + `,"discounts":[7` + strings.Repeat(",7", 99) + `]`})
	if n := len(c.Warnings); n != maxWarnings+1 {
		t.Errorf("%d warnings, want %d", n, maxWarnings+1)
	}
	if last := c.Warnings[len(c.Warnings)-1]; !strings.HasSuffix(last, "80 more warnings left out") {
		t.Errorf("the last warning is %q", last)
	}
}

// TestNoPersonalData: warnings and errors go to the log.
func TestNoPersonalData(t *testing.T) {
	c := apply(t, event{typ: "completed", session: isPaid + collect +
		`,"customer_details":{"name":["Ada Secret"],"email":{"x":"secret@example.com"},"address":"Secret Street"}` +
		`,"shipping_details":"Ada Secret","metadata":{"Secret":["Secret"]},"custom_fields":[{"key":"k","type":"The Secret","The Secret":"Secret"}]`})
	if len(c.Warnings) < 5 {
		t.Errorf("warnings %q, want one for each field", c.Warnings)
	}
	for _, w := range c.Warnings {
		if strings.Contains(strings.ToLower(w), "secret") {
			t.Errorf("warning %q holds personal data", w)
		}
	}
}
