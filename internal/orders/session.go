package orders

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// The types of event about a Checkout Session.
// https://docs.stripe.com/api/events/types#event_types-checkout.session.completed
const (
	sessionCompleted        = "checkout.session.completed"
	sessionPaymentSucceeded = "checkout.session.async_payment_succeeded"
	sessionPaymentFailed    = "checkout.session.async_payment_failed"
	sessionExpired          = "checkout.session.expired"
)

// readSession reads a Checkout Session as it was when the event was made.
// https://docs.stripe.com/api/checkout/sessions/object
func (e *Event) readSession(session object, sources Sources) {
	id, ok := session.named("checkout.session")
	if !ok {
		return
	}
	// A session in setup mode says that nothing was to be paid, just as a free
	// order does: a mode that cannot be read must not ship. Without a mode it is
	// a sale (sessions of old API versions have none).
	switch mode := session.text("mode"); {
	case mode == "setup":
		return
	case session.has("mode") && mode != "payment" && mode != "subscription":
		session.fail(session.at("mode"), fmt.Sprintf("is %s: not a mode this version knows", shown(session, "mode")))
		return
	}
	var money payment
	var unclear bool
	if e.lookup {
		if money = lookedUpPayment(session); money == unknown {
			return
		}
	} else {
		status := session.text("payment_status")
		if !slices.Contains([]string{"paid", "unpaid", noPaymentRequired}, status) {
			session.fail(session.at("payment_status"), fmt.Sprintf("is %s: not a status this version knows", shown(session, "payment_status")))
			return
		}
		if money, unclear = sessionPayment(e.Type, status); unclear {
			session.warn(session.at("payment_status"), fmt.Sprintf("is %q, which contradicts %s: the order is held", status, e.Type))
		}
	}

	details, hasDetails := session.object("customer_details")
	o := &ordergatev1.Order{
		Id:                id,
		Source:            ordergatev1.OrderSource_ORDER_SOURCE_CHECKOUT_SESSION,
		Livemode:          proto.Bool(e.Livemode),
		Account:           e.Account,
		Customer:          readCustomer(session, details, hasDetails),
		ShippingRate:      readShippingRate(session),
		Amounts:           readAmounts(session),
		Mode:              session.text("mode"),
		Currency:          readCurrency(session),
		Discounts:         readDiscounts(session),
		CustomFields:      readCustomFields(session),
		ClientReferenceId: session.text("client_reference_id"),
		Metadata:          session.texts("metadata"),
		References: &ordergatev1.StripeReferences{
			CheckoutSession: id,
			PaymentIntent:   session.reference("payment_intent"),
			Invoice:         session.reference("invoice"),
			Subscription:    session.reference("subscription"),
			PaymentLink:     session.reference("payment_link"),
		},
		CreateTime:          session.time("created"),
		ApiVersion:          e.APIVersion,
		ShipOnAuthorization: sources.ShipOnAuthorization,
		PaymentUnclear:      unclear,
	}
	o.PaymentRequired = readPaymentRequired(session, totalOf(o))
	readPresentment(session, o)
	o.Shipping, o.AddressState = readShipTo(session, shipToPlaces(session), signOfShipping(session), recipient{
		name:     first(details.text("name"), o.GetCustomer().GetIndividualName()),
		business: collectedBusiness(session, details),
		phone:    details.text("phone"),
	})
	e.belongsTo(PaymentIntent, o.References.PaymentIntent)
	e.belongsTo(Invoice, o.References.Invoice)
	e.belongsTo(Subscription, o.References.Subscription)
	e.sells(session, o, money)
}

// sells makes the event the sale of an order that was read from a snapshot.
func (e *Event) sells(snapshot object, o *ordergatev1.Order, money payment) {
	o.SaleStatus = money.status()
	o.CurrencyExponent = currencyExponent(o.GetCurrency())
	if money == paid {
		o.PaidTime = e.createdTime()
	}
	if o.Amounts != nil && o.Currency == "" {
		snapshot.warn(snapshot.path, "has amounts without a currency")
	}
	e.sale = &sale{payment: money, order: o}
}

// lookedUpPayment says how far the money got by a session that was looked up. One
// that was not completed is not a sale.
func lookedUpPayment(session object) payment {
	switch session.text("payment_status") {
	case "paid":
		return paid
	case "no_payment_required":
		if session.text("status") == "complete" {
			return paid
		}
	case "unpaid":
		if session.text("status") == "complete" {
			return awaiting
		}
	}
	return unknown
}

// noPaymentRequired is the payment_status of a session with nothing to pay.
const noPaymentRequired = "no_payment_required"

// sessionPayment returns how far the payment got by an event of this type whose
// session has this payment_status
// (https://docs.stripe.com/checkout/fulfillment#create-fulfillment-function). A
// status that contradicts the type is unclear and not a guess: one guess would ship
// goods that are not paid, the other cancel goods that are.
func sessionPayment(eventType, status string) (_ payment, unclear bool) {
	settled := status == "paid" || status == noPaymentRequired
	switch {
	case eventType == sessionCompleted && settled:
		return paid, false
	case eventType == sessionCompleted:
		return awaiting, false
	case eventType == sessionPaymentSucceeded && settled:
		return paid, false
	case eventType == sessionPaymentFailed && status != "paid":
		return failed, false
	case eventType == sessionExpired && status != "paid":
		// A session where nothing is to be paid says so from the beginning:
		// when it expires, it was given up all the same.
		return expired, false
	}
	return awaiting, true
}

// readPaymentRequired reports whether the buyer had something to pay; nil if the
// session has no amount.
func readPaymentRequired(session object, total *int64) *bool {
	switch {
	case session.text("payment_status") == noPaymentRequired:
		return new(false)
	case total == nil:
		return nil
	default:
		return new(*total != 0)
	}
}

// totalOf returns the total of an order; nil if it is not stated.
func totalOf(o *ordergatev1.Order) *int64 {
	if o.GetAmounts() == nil {
		return nil
	}
	return o.Amounts.Total
}

// collectedBusiness returns the business that the label names.
func collectedBusiness(session, details object) string {
	return first(collectedInformation(session).text("business_name"), details.text("business_name"))
}

// collectedInformation returns the details that Checkout asked the buyer for.
// shipToPlaces warns of another shape.
func collectedInformation(session object) object {
	if !session.field("collected_information").IsObject() {
		return object{report: session.report}
	}
	collected, _ := session.object("collected_information")
	return collected
}

// readPresentment reads the total of a Session or a PaymentIntent in the currency
// that the buyer saw. Before 2025-03-31.basil, a converted Session was in that
// currency itself.
// https://docs.stripe.com/payments/currencies/localize-prices/adaptive-pricing
func readPresentment(sale object, o *ordergatev1.Order) {
	if details, ok := sale.object("presentment_details"); ok {
		o.PresentmentAmount, o.PresentmentCurrency = details.amount("presentment_amount"), details.currency("presentment_currency")
	} else if sale.has("currency_conversion") {
		o.PresentmentAmount, o.PresentmentCurrency = totalOf(o), o.GetCurrency()
	}
}

// shown returns a value that may be shown: one of Stripe's constants.
func shown(o object, key string) string {
	if shape := shapeOf(o.field(key)); shape != "a string" {
		return shape
	}
	return fmt.Sprintf("%.40q", o.text(key))
}

func readCustomer(session, details object, hasDetails bool) *ordergatev1.Customer {
	id := readCustomerID(session)
	if id == "" && !hasDetails {
		return nil
	}
	collected := collectedInformation(session)
	c := &ordergatev1.Customer{
		Id:             id,
		Name:           details.text("name"),
		Email:          details.text("email"),
		Phone:          details.text("phone"),
		BusinessName:   first(details.text("business_name"), collected.text("business_name")),
		IndividualName: first(details.text("individual_name"), collected.text("individual_name")),
		TaxIds:         readTaxIDs(details, "tax_ids"),
		TaxExempt:      details.constant("tax_exempt"),
	}
	c.Address = readBillingAddress(details, "address")
	return c
}

// readCustomerID reads the buyer's Customer, or the account that buys.
// https://docs.stripe.com/connect/accounts-v2
func readCustomerID(sale object) string {
	id, _ := sale.expandable("customer")
	if id == "" {
		id, _ = sale.expandable("customer_account")
	}
	return id
}

func readTaxIDs(parent object, key string) (ids []*ordergatev1.TaxId) {
	if !parent.has(key) {
		return nil
	}
	for _, id := range parent.objects(key) {
		ids = append(ids, &ordergatev1.TaxId{Type: id.constant("type"), Value: id.text("value")})
	}
	return ids
}

func readBillingAddress(parent object, key string) *ordergatev1.Address {
	address, problem := readAddress(parent, key)
	if problem != "" {
		parent.warn(parent.path, problem)
		return nil
	}
	if proto.Size(address) == 0 {
		return nil // Stripe sends an address of nulls when it has none.
	}
	return address
}

func readShippingRate(session object) *ordergatev1.ShippingRate {
	if cost, ok := session.object("shipping_cost"); ok {
		id, rate := cost.expandable("shipping_rate")
		return &ordergatev1.ShippingRate{
			Id:          id,
			Amount:      cost.amount("amount_total"),
			DisplayName: rate.text("display_name"),
		}
	}
	// Before 2022-08-01 there was only the rate.
	if session.has("shipping_rate") {
		id, rate := session.expandable("shipping_rate")
		return &ordergatev1.ShippingRate{Id: id, DisplayName: rate.text("display_name")}
	}
	return nil
}

func readAmounts(session object) *ordergatev1.Amounts {
	details, _ := session.object("total_details")
	a := &ordergatev1.Amounts{
		Subtotal: session.amount("amount_subtotal"),
		Total:    session.amount("amount_total"),
		Shipping: details.amount("amount_shipping"),
		Tax:      details.amount("amount_tax"),
		Discount: details.amount("amount_discount"),
	}
	if proto.Size(a) == 0 {
		return nil
	}
	return a
}

// readCurrency fails where the currency cannot be read: an amount means nothing
// without it.
func readCurrency(session object) string {
	return session.currency("currency")
}

// currency reads a currency code; any other value fails the event.
func (o object) currency(key string) string {
	if !o.has(key) {
		return ""
	}
	currency := o.text(key)
	if !isCurrency(currency) {
		o.fail(o.at(key), "is not a currency code of three lower-case letters")
		return ""
	}
	return currency
}

func readDiscounts(session object) []*ordergatev1.Discount {
	return discountsOf(session.objects("discounts"))
}

func discountsOf(list []object) (discounts []*ordergatev1.Discount) {
	for _, d := range list {
		coupon, _ := d.expandable("coupon")
		if coupon == "" && d.has("source") { // an invoice's, since 2025-09-30.clover
			source, _ := d.object("source")
			coupon, _ = source.expandable("coupon")
		}
		code, _ := d.expandable("promotion_code")
		if coupon != "" || code != "" {
			discounts = append(discounts, &ordergatev1.Discount{Coupon: coupon, PromotionCode: code})
		}
	}
	return discounts
}

// readCustomFields reads the answers to the shop's own questions. The answer is
// the `value` of an object that is named like the field's type
// (https://docs.stripe.com/payments/checkout/custom-fields).
func readCustomFields(session object) (fields []*ordergatev1.CustomField) {
	for _, f := range session.objects("custom_fields") {
		label, _ := f.object("label")
		kind := f.text("type")
		if !isConstant(kind) || !f.has(kind) && !slices.Contains([]string{"text", "numeric", "dropdown"}, kind) {
			f.warn(f.path, "is of a type that this version does not know: the answer is not read")
			kind = ""
		}
		answer, _ := f.object(kind)
		fields = append(fields, &ordergatev1.CustomField{
			Key:   f.text("key"),
			Label: label.text("custom"),
			Value: answer.text("value"),
		})
	}
	return fields
}
