package stripeapi

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// The shapes are those of Stripe's documentation; see lineitem.go.
const (
	sessionLine = `{
		"id": "li_1", "object": "item", "amount_discount": 100, "amount_subtotal": 2198, "amount_tax": 0, "amount_total": 2098,
		"currency": "usd", "description": "T-shirt", "metadata": {"gift": "yes"},
		"taxes": "in a shape of tomorrow",
		"price": {
			"id": "price_1", "object": "price", "metadata": {"not": "the line's"},
			"product": {
				"id": "prod_1", "object": "product", "name": "T-shirt", "metadata": {"sku": "TS-1"}, "shippable": true,
				"package_dimensions": {"height": 1.5, "length": 10, "weight": 4.25, "width": 8},
				"images": ["https://shop.test/1.png", "https://shop.test/2.png"],
				"tax_code": {"id": "txcd_99999999", "object": "tax_code"}
			}
		},
		"quantity": 2
	}`
	invoiceLine = `{
		"id": "il_1", "object": "line_item", "amount": 1000, "currency": "eur", "description": "1 × Box (at €10.00 / month)",
		"discount_amounts": [{"amount": 100, "discount": "di_1"}, {"amount": 50, "discount": "di_2"}],
		"metadata": {}, "quantity": 1,
		"price": {"id": "price_1", "object": "price", "product": {"id": "prod_1", "object": "product", "name": "Box", "shippable": null, "package_dimensions": null, "tax_code": "txcd_1"}},
		"tax_amounts": [{"amount": 136, "inclusive": true, "tax_rate": "txr_1"}, {"amount": 20, "inclusive": false, "tax_rate": "txr_2"}]
	}`
	basilInvoiceLine = `{
		"id": "il_1", "object": "line_item", "amount": 1000, "subtotal": 1000, "discount_amounts": [], "quantity": 3,
		"pricing": {"type": "price_details", "price_details": {"price": "price_1", "product": "prod_1"}, "unit_amount_decimal": "333.33"},
		"taxes": [{"amount": 190, "tax_behavior": "exclusive", "taxable_amount": 1000}, {"amount": 70, "tax_behavior": "inclusive"}]
	}`
)

func TestParseLine(t *testing.T) {
	tests := []struct {
		name, raw, want string
		expanded        bool
	}{
		{"session", sessionLine, `
			id: "li_1" quantity: 2 description: "T-shirt" price: "price_1"
			price_details { id: "price_1" metadata { key: "not" value: "the line's" } }
			product {
				id: "prod_1" name: "T-shirt" metadata { key: "sku" value: "TS-1" } shippable: true
				package_dimensions { height: 1.5 length: 10 weight: 4.25 width: 8 }
				images: "https://shop.test/1.png" images: "https://shop.test/2.png" tax_code: "txcd_99999999"
			}
			amount_subtotal: 2198 amount_total: 2098 amount_discount: 100 amount_tax: 0
			metadata { key: "gift" value: "yes" }`, true},
		{"session, nothing but an id", `{"id":"li_1","object":"item"}`, `id: "li_1"`, false},
		{"session, all null", `{"id":"li_1","object":"item","amount_discount":null,"amount_subtotal":null,"amount_tax":null,"amount_total":null,"description":null,"metadata":null,"price":null,"quantity":null,"pricing":null}`, `id: "li_1"`, false},
		{"price not expanded", `{"id":"li_1","price":"price_1"}`, `id: "li_1" price: "price_1" price_details { id: "price_1" }`, false},
		{"product not expanded", `{"id":"li_1","price":{"id":"price_1","product":"prod_1"}}`, `id: "li_1" price: "price_1" price_details { id: "price_1" } product { id: "prod_1" }`, false},
		{"product deleted", `{"id":"li_1","price":{"id":"price_1","product":{"id":"prod_1","object":"product","deleted":true}}}`, `id: "li_1" price: "price_1" price_details { id: "price_1" } product { id: "prod_1" }`, true},
		{"what may have any shape", `{"id":"li_1","description":{"de":"Hemd"},"metadata":{"a":"1","b":2,"c":{}},"price":{"id":"price_1","product":{"id":"prod_1","name":7,"metadata":[],"shippable":"yes","package_dimensions":{"height":1},"images":["a",1,null,""],"tax_code":5}}}`,
			`id: "li_1" price: "price_1" price_details { id: "price_1" } product { id: "prod_1" images: "a" } metadata { key: "a" value: "1" }`, true},
		{"not UTF-8", "{\"id\":\"li_1\",\"description\":\"a\xffb\",\"metadata\":{\"k\xff\":\"\\ud800\"}}", `id: "li_1" description: "a�b" metadata { key: "k�" value: "�" }`, false},
		{"invoice", invoiceLine, `
			id: "il_1" quantity: 1 description: "1 × Box (at €10.00 / month)" price: "price_1" price_details { id: "price_1" }
			product { id: "prod_1" name: "Box" tax_code: "txcd_1" }
			amount_subtotal: 1000 amount_discount: 150 amount_tax: 156 amount_total: 870`, true},
		{"invoice, basil", basilInvoiceLine, `
			id: "il_1" quantity: 3 price: "price_1" price_details { id: "price_1" } product { id: "prod_1" }
			amount_subtotal: 1000 amount_discount: 0 amount_tax: 260 amount_total: 1190`, false},
		{"invoice, basil, expanded", `{"id":"il_1","object":"line_item","pricing":{"price_details":{"price":{"id":"price_1","product":"prod_0"},"product":{"id":"prod_1","name":"Box"}}}}`,
			`id: "il_1" price: "price_1" price_details { id: "price_1" } product { id: "prod_1" name: "Box" }`, true},
		{"invoice, price_details with the product in the price", `{"id":"il_1","object":"line_item","pricing":{"price_details":{"price":{"id":"price_1","product":"prod_1"}}}}`,
			`id: "il_1" price: "price_1" price_details { id: "price_1" } product { id: "prod_1" }`, false},
		{"invoice, no discounts stated", `{"id":"il_1","object":"line_item","amount":1000,"discount_amounts":null,"taxes":[]}`, `id: "il_1" amount_subtotal: 1000 amount_tax: 0`, false},
		{"invoice, no taxes stated", `{"id":"il_1","object":"line_item","amount":1000,"discount_amounts":[],"taxes":null}`, `id: "il_1" amount_subtotal: 1000 amount_discount: 0`, false},
		{"invoice, a tax of a kind unknown", `{"id":"il_1","object":"line_item","amount":1000,"discount_amounts":[],"taxes":[{"amount":5,"tax_behavior":"new"}]}`, `id: "il_1" amount_subtotal: 1000 amount_discount: 0 amount_tax: 5`, false},
		{"invoice, credit", `{"id":"il_1","object":"line_item","amount":-500,"quantity":1,"discount_amounts":[],"tax_amounts":[]}`, `id: "il_1" quantity: 1 amount_subtotal: -500 amount_discount: 0 amount_tax: 0 amount_total: -500`, false},
		{"a variant", `{"id":"li_1","quantity":2,"price":{"id":"price_1","lookup_key":"shirt-xl","nickname":"XL","metadata":{"sku":"TS-XL","n":1}}}`,
			`id: "li_1" quantity: 2 price: "price_1" price_details { id: "price_1" lookup_key: "shirt-xl" nickname: "XL" metadata { key: "sku" value: "TS-XL" } }`, false},
		{"a product in full", `{"id":"li_1","price":{"id":"price_1","product":{"id":"prod_1","description":"Of cotton","url":"https://shop.test/p"}}}`,
			`id: "li_1" price: "price_1" price_details { id: "price_1" } product { id: "prod_1" description: "Of cotton" url: "https://shop.test/p" }`, true},
		{"a decimal quantity", `{"id":"li_1","quantity":1,"quantity_decimal":"1.5"}`, `id: "li_1" quantity_decimal: "1.5"`, false},
		{"a decimal quantity that is whole", `{"id":"li_1","quantity":2,"quantity_decimal":"2.00"}`, `id: "li_1" quantity: 2 quantity_decimal: "2.00"`, false},
		{"a quantity with a fraction", `{"id":"li_1","quantity":1.5}`, `id: "li_1" quantity_decimal: "1.5"`, false},
		{"a proration", `{"id":"il_1","object":"line_item","amount":-500,"proration":true,"period":{"start":1700000000,"end":1702592000}}`,
			`id: "il_1" amount_subtotal: -500 proration: true period_start_time { seconds: 1700000000 } period_end_time { seconds: 1702592000 }`, false},
		{"a proration, basil", `{"id":"il_1","object":"line_item","parent":{"type":"subscription_item_details","invoice_item_details":null,"subscription_item_details":{"proration":true}}}`,
			`id: "il_1" proration: true`, false},
		{"a proration of an invoice item, basil", `{"id":"il_1","object":"line_item","parent":{"type":"invoice_item_details","invoice_item_details":{"proration":true}}}`,
			`id: "il_1" proration: true`, false},
		{"a period that is none", `{"id":"il_1","period":{"start":-1,"end":253402300800}}`, `id: "il_1"`, false},
		{"negative taxes and discounts", `{"id":"il_1","object":"line_item","amount":-500,"discount_amounts":[{"amount":-100}],"taxes":[{"amount":-76,"tax_behavior":"exclusive"}]}`,
			`id: "il_1" amount_subtotal: -500 amount_discount: -100 amount_tax: -76 amount_total: -476`, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			want := new(ordergatev1.LineItem)
			if err := prototext.Unmarshal([]byte(test.want), want); err != nil {
				t.Fatal(err)
			}
			line, err := parseLine([]byte(test.raw))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, line.item, protocmp.Transform()); diff != "" {
				t.Errorf("line item (-want +got):\n%s", diff)
			}
			if line.productExpanded != test.expanded {
				t.Errorf("the product came with it: %t", line.productExpanded)
			}
		})
	}
}

func TestParseLineFails(t *testing.T) {
	for name, raw := range map[string]string{
		"no JSON":                    `{"id":"li_1"`,
		"no object":                  `["Jane"]`,
		"null":                       `null`,
		"no id":                      `{"object":"item"}`,
		"quantity is text":           `{"id":"li_1","quantity":"Jane"}`,
		"quantity has no digits":     `{"id":"li_1","quantity_decimal":"Jane"}`,
		"quantity is too exact":      `{"id":"li_1","quantity_decimal":"1.0000000000001"}`,
		"quantity_decimal is none":   `{"id":"li_1","quantity_decimal":1.5}`,
		"proration is text":          `{"id":"il_1","proration":"Jane"}`,
		"an amount is out of range":  `{"id":"il_1","object":"line_item","amount":9223372036854775807,"discount_amounts":[{"amount":-1}],"taxes":[]}`,
		"a tax is out of range":      `{"id":"il_1","object":"line_item","amount":1,"taxes":[{"amount":-9223372036854775808}]}`,
		"quantity is too large":      `{"id":"li_1","quantity":9223372036854775808}`,
		"amount is an object":        `{"id":"li_1","amount_total":{"Jane":1}}`,
		"price is a number":          `{"id":"li_1","price":5}`,
		"price has no id":            `{"id":"li_1","price":{"product":"prod_1"}}`,
		"product is a number":        `{"id":"li_1","price":{"id":"price_1","product":5}}`,
		"product has no id":          `{"id":"li_1","price":{"id":"price_1","product":{"name":"Jane"}}}`,
		"product is a list":          `{"id":"li_1","pricing":{"price_details":{"product":["Jane"]}}}`,
		"pricing is text":            `{"id":"li_1","pricing":"Jane"}`,
		"discounts are text":         `{"id":"il_1","object":"line_item","discount_amounts":"Jane"}`,
		"a discount has no amount":   `{"id":"il_1","object":"line_item","discount_amounts":[{}]}`,
		"a tax's amount is a number": `{"id":"il_1","object":"line_item","taxes":[{"amount":1.5}]}`,
	} {
		line, err := parseLine([]byte(raw))
		if err == nil {
			t.Errorf("%s: read as %v", name, line.item)
		} else if strings.Contains(err.Error(), "Jane") {
			t.Errorf("%s: the error quotes the line: %v", name, err)
		}
	}
}

// FuzzLineItems: whatever Stripe sends, a line that is read can be stored and
// sent, has an id, and is read the same way twice.
func FuzzLineItems(f *testing.F) {
	for _, seed := range []string{
		sessionLine, invoiceLine, basilInvoiceLine,
		`{"id":"li_1","price":{"id":"p","product":"q"},"metadata":{"a":null}}`,
		"{\"id\":\"\xff\\ud800\",\"description\":\"\xfe\"}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		line, err := parseLine(raw)
		if err != nil {
			if !utf8.ValidString(err.Error()) {
				t.Errorf("the error is not UTF-8: %q", err)
			}
			return
		}
		if !json.Valid(raw) {
			t.Errorf("read from what is not JSON: %v", line.item)
		}
		if line.item.GetId() == "" || line.item.Product != nil && line.item.GetProduct().GetId() == "" {
			t.Errorf("no id: %v", line.item)
		}
		wire, err := proto.Marshal(line.item)
		if err != nil {
			t.Fatalf("cannot be stored: %v", err)
		}
		back := new(ordergatev1.LineItem)
		if err := proto.Unmarshal(wire, back); err != nil {
			t.Fatal(err)
		}
		again, err := parseLine(raw)
		if err != nil || !proto.Equal(again.item, line.item) || !proto.Equal(back, line.item) {
			t.Errorf("not the same twice: %v and %v and %v, %v", line.item, again, back, err)
		}
	})
}
