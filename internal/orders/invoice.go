package orders

import (
	"math"

	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/quantity"
)

const (
	invoicePaid = "invoice.paid"

	// subscriptionCreate is the billing reason of a subscription's first
	// invoice: the sale of the Session that created the subscription, if one
	// did.
	subscriptionCreate = "subscription_create"
	// manual is the billing reason of an invoice that a shop made by hand, or a
	// Session with `invoice_creation`.
	manual = "manual"
)

// readInvoice reads a paid invoice, in the shapes before and since
// 2025-03-31.basil. https://docs.stripe.com/api/invoices/object
func (e *Event) readInvoice(invoice object, sources Sources) {
	id, ok := invoice.named("invoice")
	if !ok {
		return
	}
	if !invoiceSettled(invoice) {
		if !e.lookup {
			invoice.fail(invoice.at("status"), "is "+shown(invoice, "status")+", which contradicts "+e.Type)
		}
		return
	}
	reason := invoice.constant("billing_reason")
	subscription, subscriptionMetadata := readSubscription(invoice)
	intents, charges := invoicePayments(invoice)
	e.belongsTo(Invoice, id)
	e.belongsTo(PaymentIntent, intents...)
	e.belongsTo(Charge, charges...)
	if reason == subscriptionCreate {
		// Only the first invoice is the sale of the Session that made the subscription.
		e.belongsTo(Subscription, subscription)
	}
	// Any invoice may be the one of a Session, which it then pays.
	e.isPaid()
	total := invoice.amount("total")
	if !sources.listed(reason) || total != nil && *total < 0 {
		e.optional = true
		return
	}
	// Checkout makes invoices for these reasons only.
	e.mustClaim = reason == subscriptionCreate || reason == manual

	metadata := invoice.texts("metadata")
	for key, value := range subscriptionMetadata {
		if _, own := metadata[key]; !own {
			metadata[key] = value
		}
	}
	o := &ordergatev1.Order{
		Id:           id,
		Source:       ordergatev1.OrderSource_ORDER_SOURCE_INVOICE,
		Livemode:     proto.Bool(e.Livemode),
		Account:      e.Account,
		Customer:     readInvoiceCustomer(invoice),
		ShippingRate: readShippingRate(invoice),
		Amounts:      readInvoiceAmounts(invoice),
		Currency:     readCurrency(invoice),
		Discounts:    readInvoiceDiscounts(invoice),
		Metadata:     metadata,
		References: &ordergatev1.StripeReferences{
			Invoice:       id,
			Subscription:  subscription,
			PaymentIntent: only(intents),
			Charge:        only(charges),
		},
		CreateTime:    invoice.time("created"),
		ApiVersion:    e.APIVersion,
		BillingReason: reason,
	}
	if due := invoice.amount("amount_due"); due != nil {
		o.PaymentRequired = new(*due > 0)
	}
	// The customer's address is used where the invoice has none of its own
	// (https://docs.stripe.com/api/invoices/object#invoice_object-shipping_details).
	// Unlike a session's places, the two may be different people's.
	at := "customer_shipping"
	if invoice.has("shipping_details") {
		at = "shipping_details"
	}
	sign := ""
	if invoice.has("shipping_cost") {
		sign = "shipping_cost"
	}
	o.Shipping, o.AddressState = readShipTo(invoice, []place{readPlace(invoice, at)}, sign,
		recipient{name: invoice.text("customer_name"), phone: invoice.text("customer_phone")})
	e.sells(invoice, o, paid)
	e.sale.items = readInvoiceLines(invoice)
}

// invoiceSettled reports whether an invoice is paid. Old ones also say so in
// `paid`.
func invoiceSettled(invoice object) bool {
	if invoice.has("status") {
		return invoice.text("status") == "paid"
	}
	settled := invoice.boolean("paid")
	return settled != nil && *settled
}

// only returns the one element; "" where there is none, or it is not the only
// one.
func only(ids []string) string {
	if len(ids) != 1 {
		return ""
	}
	return ids[0]
}

// readSubscription reads the subscription that an invoice is for, and the shop's
// key–value pairs on it.
func readSubscription(invoice object) (id string, metadata map[string]string) {
	details := invoice
	if invoice.has("parent") {
		details, _ = invoice.object("parent")
	}
	if details.has("subscription_details") {
		details, _ = details.object("subscription_details")
		metadata = details.texts("metadata")
		id = details.reference("subscription")
	}
	if id == "" {
		id = invoice.reference("subscription")
	}
	return id, metadata
}

// invoicePayments reads what paid an invoice. Since 2025-03-31.basil there may
// be several payments, and events do not always carry them.
func invoicePayments(invoice object) (intents, charges []string) {
	add := func(list *[]string, id string) {
		if id != "" {
			*list = append(*list, id)
		}
	}
	add(&intents, invoice.reference("payment_intent"))
	add(&charges, invoice.reference("charge"))
	if !invoice.has("payments") {
		return intents, charges
	}
	payments, _ := invoice.object("payments")
	for _, p := range payments.objects("data") {
		if p.text("status") != "paid" {
			continue
		}
		payment, _ := p.object("payment")
		add(&intents, payment.reference("payment_intent"))
		add(&charges, payment.reference("charge"))
	}
	return intents, charges
}

func readInvoiceCustomer(invoice object) *ordergatev1.Customer {
	c := &ordergatev1.Customer{
		Id:        readCustomerID(invoice),
		Name:      invoice.text("customer_name"),
		Email:     invoice.text("customer_email"),
		Phone:     invoice.text("customer_phone"),
		Address:   readBillingAddress(invoice, "customer_address"),
		TaxIds:    readTaxIDs(invoice, "customer_tax_ids"),
		TaxExempt: invoice.constant("customer_tax_exempt"),
	}
	if proto.Size(c) == 0 {
		return nil
	}
	return c
}

func readInvoiceAmounts(invoice object) *ordergatev1.Amounts {
	a := &ordergatev1.Amounts{
		Subtotal: invoice.amount("subtotal"),
		Total:    invoice.amount("total"),
		Shipping: invoice.amount("amount_shipping"),
		Tax:      invoice.amount("tax"),
		Discount: invoice.amountOf("total_discount_amounts"),
		Paid:     invoice.amount("amount_paid"),
	}
	for _, list := range []string{"total_taxes", "total_tax_amounts"} {
		if a.Tax == nil {
			a.Tax = invoice.amountOf(list)
		}
	}
	if proto.Size(a) == 0 {
		return nil
	}
	return a
}

// readInvoiceDiscounts reads the discounts that an invoice has with it: the
// newer shapes only name them, unless they are expanded.
func readInvoiceDiscounts(invoice object) []*ordergatev1.Discount {
	var expanded []object
	if invoice.field("discount").IsObject() {
		discount, _ := invoice.object("discount")
		expanded = append(expanded, discount)
	}
	for _, entry := range invoice.list("discounts") {
		if entry.IsObject() {
			expanded = append(expanded, object{report: invoice.report, path: invoice.at("discounts"), value: entry})
		}
	}
	return discountsOf(expanded)
}

// readInvoiceLines returns the lines of an invoice, or nil when they are not all
// there, there are none, or one cannot be read: then the caller has to read them. An invoice
// names its products, and says nothing else of them.
func readInvoiceLines(invoice object) (items []*ordergatev1.LineItem) {
	// What is wrong with a line does not make the sale unreadable.
	reading := &report{event: invoice.event}
	invoice.report = reading
	if !invoice.field("lines").IsObject() {
		return nil
	}
	list, _ := invoice.object("lines")
	more := list.boolean("has_more")
	if more == nil || *more {
		return nil
	}
	for _, line := range list.objects("data") {
		items = append(items, readInvoiceLine(line))
	}
	if reading.err != nil || len(reading.warnings) > 0 {
		return nil
	}
	return items
}

// https://docs.stripe.com/api/invoice-line-item/object
func readInvoiceLine(line object) *ordergatev1.LineItem {
	item := &ordergatev1.LineItem{
		Id:             line.reference("id"),
		Description:    line.text("description"),
		AmountSubtotal: line.amount("amount"),
		AmountDiscount: line.amountOf("discount_amounts"),
		Metadata:       line.texts("metadata"),
		Proration:      isProration(line),
	}
	item.Quantity, item.QuantityDecimal = readQuantity(line)
	period, _ := line.object("period")
	item.PeriodStartTime, item.PeriodEndTime = period.time("start"), period.time("end")
	if line.has("subtotal") {
		item.AmountSubtotal = line.amount("subtotal")
	}
	var product string
	if line.has("pricing") { // since 2025-03-31.basil
		pricing, _ := line.object("pricing")
		if pricing.has("price_details") {
			details, _ := pricing.object("price_details")
			item.Price, _ = details.expandable("price")
			product = details.reference("product")
		}
	} else {
		var price object
		item.Price, price = line.expandable("price")
		product = price.reference("product")
		if price.has("id") {
			item.PriceDetails = &ordergatev1.PriceDetails{
				LookupKey: price.text("lookup_key"), Nickname: price.text("nickname"), Metadata: price.texts("metadata"),
			}
		}
	}
	if item.Price != "" {
		if item.PriceDetails == nil {
			item.PriceDetails = &ordergatev1.PriceDetails{}
		}
		item.PriceDetails.Id = item.Price
	}
	if product != "" {
		item.Product = &ordergatev1.Product{Id: product, ReferenceOnly: true}
	}
	readLineTaxes(line, item)
	return item
}

// readQuantity reads the quantity of a line. Since 2026-03-25.dahlia `quantity` is
// the whole part of `quantity_decimal`.
func readQuantity(line object) (whole *int64, exact string) {
	if line.has("quantity_decimal") {
		exact = line.text("quantity_decimal")
	} else if _, isWhole := line.integer("quantity"); !isWhole && line.has("quantity") {
		exact = string(line.field("quantity").Raw())
	} else {
		return line.amount("quantity"), ""
	}
	whole, err := quantity.Whole(exact)
	if err != nil {
		line.fail(line.at("quantity"), "is not a decimal number")
	}
	return whole, exact
}

// isProration reports whether a line is a proration.
func isProration(line object) bool {
	details := line
	if parent, ok := line.object("parent"); ok { // since 2025-03-31.basil
		for _, kind := range []string{"subscription_item_details", "invoice_item_details"} {
			if parent.has(kind) {
				details, _ = parent.object(kind)
			}
		}
	}
	proration := details.boolean("proration")
	return proration != nil && *proration
}

// readLineTaxes reads the taxes of a line, and its total: what is on top of the
// price is added, what is in it is not.
func readLineTaxes(line object, item *ordergatev1.LineItem) {
	taxes := "taxes" // since 2025-03-31.basil
	if line.has("tax_amounts") {
		taxes = "tax_amounts"
	}
	total := item.AmountSubtotal
	if total != nil {
		total = plus(total, new(-item.GetAmountDiscount()))
	}
	if line.has(taxes) {
		item.AmountTax = new(int64(0))
	}
	for _, tax := range line.objects(taxes) {
		amount := tax.amount("amount")
		if amount == nil {
			amount = new(int64(0))
		}
		item.AmountTax = plus(item.AmountTax, amount)
		inclusive := tax.boolean("inclusive")
		switch behavior := tax.text("tax_behavior"); {
		case behavior == "exclusive" || inclusive != nil && !*inclusive:
			total = plus(total, amount)
		case behavior == "inclusive" || inclusive != nil && *inclusive:
		default:
			total = nil
		}
	}
	item.AmountTotal = total
}

// plus adds two amounts; nil where there is none, or no such number.
func plus(a, b *int64) *int64 {
	if a == nil || b == nil || *b > 0 && *a > math.MaxInt64-*b || *b < 0 && *a < math.MinInt64-*b {
		return nil
	}
	return new(*a + *b)
}
