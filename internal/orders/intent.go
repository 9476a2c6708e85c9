package orders

import (
	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// The types of event about a PaymentIntent.
const (
	intentSucceeded  = "payment_intent.succeeded"
	intentProcessing = "payment_intent.processing"
	intentCanceled   = "payment_intent.canceled"
)

// readPaymentIntent reads a PaymentIntent. It makes an order only where the shop
// takes orders by PaymentIntents; of any other order it says that the money has
// arrived (a Session with manual capture never says so itself) or will not.
// https://docs.stripe.com/api/payment_intents/object
func (e *Event) readPaymentIntent(intent object, sources Sources) {
	id, ok := intent.named("payment_intent")
	if !ok {
		return
	}
	money := e.intentPayment(intent)
	if money == unknown {
		return
	}
	invoice := intent.reference("invoice") // until 2025-03-31.basil
	// What an invoice asks for is the invoice's sale.
	source := sources.PaymentIntents && invoice == ""
	if money == awaiting && !source {
		return // of another order's money it says nothing that is not known
	}
	charge := intent.reference("latest_charge")
	if charge == "" {
		charge = intentCharge(intent)
	}
	e.belongsTo(PaymentIntent, id)
	e.belongsTo(Charge, charge)
	e.belongsTo(Invoice, invoice)

	switch money {
	case paid:
		e.isPaid()
	case canceled:
		e.followUp = &followUp{payment: canceled}
	}
	if money == canceled || !source {
		e.optional = true // most of them are abandoned carts, or other objects' sales
		return
	}
	e.mustClaim = true

	received := intent.amount("amount")
	if money == paid && intent.has("amount_received") {
		received = intent.amount("amount_received")
	}
	o := &ordergatev1.Order{
		Id:       id,
		Source:   ordergatev1.OrderSource_ORDER_SOURCE_PAYMENT_INTENT,
		Livemode: proto.Bool(e.Livemode),
		Account:  e.Account,
		Currency: readCurrency(intent),
		Metadata: intent.texts("metadata"),
		References: &ordergatev1.StripeReferences{
			PaymentIntent: id,
			Charge:        charge,
		},
		CreateTime: intent.time("created"),
		ApiVersion: e.APIVersion,
	}
	if received != nil {
		o.Amounts = &ordergatev1.Amounts{Total: received}
	}
	customer, _ := intent.expandable("customer")
	if email := intent.text("receipt_email"); customer != "" || email != "" {
		o.Customer = &ordergatev1.Customer{Id: customer, Email: email}
	}
	o.Shipping, o.AddressState = readShipTo(intent, []place{readPlace(intent, "shipping")}, "", "")
	e.sells(intent, o, money)
}

// intentPayment says how far the money got by this event, or by the status of a
// PaymentIntent that was looked up.
func (e *Event) intentPayment(intent object) payment {
	status := intent.text("status")
	if e.lookup {
		switch status {
		case "succeeded":
			return paid
		case "processing":
			return awaiting
		}
		return unknown
	}
	money, want := paid, "succeeded"
	switch e.Type {
	case intentProcessing:
		money, want = awaiting, "processing"
	case intentCanceled:
		money, want = canceled, "canceled"
	}
	if status != want {
		intent.fail(intent.at("status"), "is "+shown(intent, "status")+", which contradicts "+e.Type)
		return unknown
	}
	return money
}

// intentCharge reads the charge from where it was before 2022-11-15.
func intentCharge(intent object) string {
	if !intent.has("charges") {
		return ""
	}
	charges, _ := intent.object("charges")
	for _, charge := range charges.objects("data") {
		if id, ok := charge.named("charge"); ok && charge.text("status") == "succeeded" {
			return id
		}
	}
	return ""
}
