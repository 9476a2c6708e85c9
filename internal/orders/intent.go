package orders

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// The types of event about a PaymentIntent.
const (
	intentSucceeded  = "payment_intent.succeeded"
	intentProcessing = "payment_intent.processing"
	intentCanceled   = "payment_intent.canceled"
	intentCapturable = "payment_intent.amount_capturable_updated"
	intentFailed     = "payment_intent.payment_failed"
)

// readPaymentIntent reads a PaymentIntent. It makes an order only if the shop takes
// orders by PaymentIntents. For the order of another object it is a follow-up with
// the progress of the payment, which a Session with manual capture does not report.
// https://docs.stripe.com/api/payment_intents/object
func (e *Event) readPaymentIntent(intent object, sources Sources) {
	id, ok := intent.named("payment_intent")
	if !ok {
		return
	}
	money, unclear := e.intentPayment(intent)
	if money == unknown {
		return
	}
	invoice := intent.reference("invoice") // until 2025-03-31.basil
	// What an invoice asks for is the invoice's sale.
	source := sources.PaymentIntents && invoice == ""
	if money == awaiting && !source && !unclear {
		return // of another order's money it says nothing that is not known
	}
	chargeID, charge := intentCharge(intent)
	e.belongsTo(PaymentIntent, id)
	e.belongsTo(Charge, chargeID)
	e.belongsTo(Invoice, invoice)
	facts := &ordergatev1.Order{CaptureBeforeTime: captureBefore(charge), PaymentUnclear: unclear}
	if money == paid {
		facts.PaidTime = e.createdTime()
	}
	e.followUp = &followUp{facts: facts}
	var charges []*ordergatev1.Charge
	if !unclear {
		e.followUp.payment = money
		charges = intentCharges(intent, chargeID, money)
	}
	if money == authorized || capturedApart(intent) {
		facts.Charges = charges
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
			Charge:        chargeID,
		},
		CreateTime:          intent.time("created"),
		ApiVersion:          e.APIVersion,
		ShipOnAuthorization: sources.ShipOnAuthorization,
	}
	if received != nil {
		o.Amounts = &ordergatev1.Amounts{Total: received}
		o.PaymentRequired = new(*received != 0)
	}
	readPresentment(intent, o)
	customer := readCustomerID(intent)
	if email := intent.text("receipt_email"); customer != "" || email != "" {
		o.Customer = &ordergatev1.Customer{Id: customer, Email: email}
	}
	o.Shipping, o.AddressState = readShipTo(intent, []place{readPlace(intent, "shipping")}, "", recipient{})
	e.sells(intent, o, money)
	e.sale.charges = charges
}

// readFailedIntent reads a PaymentIntent of which a payment failed. The failure
// concerns only an order that the PaymentIntent made: the PaymentIntent of a
// Session or an invoice also fails for each card that the buyer tries first.
func (e *Event) readFailedIntent(intent object, sources Sources) {
	id, ok := intent.named("payment_intent")
	if !ok || !sources.PaymentIntents || intent.has("invoice") {
		return
	}
	chargeID, _ := intentCharge(intent)
	if chargeID == "" && intent.has("last_payment_error") {
		failure, _ := intent.object("last_payment_error")
		chargeID = failure.reference("charge")
	}
	if chargeID == "" {
		return // the payment failed before there was a charge, which no order waits for
	}
	e.belongsTo(PaymentIntent, id)
	e.belongsTo(Charge, chargeID)
	e.tells(&ordergatev1.Order{Charges: []*ordergatev1.Charge{{
		Id:       chargeID,
		Amount:   max(intent.number("amount"), 0),
		Currency: readCurrency(intent),
		State:    ordergatev1.ChargeState_CHARGE_STATE_FAILED,
	}}})
	e.followUp.onlyIntents, e.optional = true, true
}

// capturedApart reports whether a PaymentIntent was captured manually or in part. The
// charge of any other payment adds nothing to the order of a Session, which must not
// get a revision for it.
func capturedApart(intent object) bool {
	received, amount := intent.amount("amount_received"), intent.amount("amount")
	return intent.text("status") == "succeeded" && received != nil && *received > 0 &&
		(intent.text("capture_method") == "manual" || amount != nil && *received != *amount)
}

// intentCharges returns the charge of a PaymentIntent; none if it has no id.
func intentCharges(intent object, id string, money payment) []*ordergatev1.Charge {
	amount := intent.amount("amount")
	if id == "" || amount == nil || *amount < 0 {
		return nil
	}
	c := &ordergatev1.Charge{Id: id, Amount: *amount, Currency: readCurrency(intent)}
	switch money {
	case awaiting:
		c.State = ordergatev1.ChargeState_CHARGE_STATE_PENDING
	case authorized:
		c.State, c.AmountCaptured = ordergatev1.ChargeState_CHARGE_STATE_AUTHORIZED, new(int64(0))
	case paid:
		c.State = ordergatev1.ChargeState_CHARGE_STATE_CAPTURED
		if received := intent.amount("amount_received"); received != nil && *received > 0 {
			c.AmountCaptured = received
		}
	default:
		return nil
	}
	return []*ordergatev1.Charge{c}
}

// intentPayment returns how far the payment got by this event, or by the status of
// a PaymentIntent that was looked up. It is unclear if the status contradicts the
// type of the event.
func (e *Event) intentPayment(intent object) (_ payment, unclear bool) {
	status := intent.text("status")
	if e.lookup || e.Type == intentCapturable {
		switch status {
		case "succeeded":
			return paid, false
		case "requires_capture":
			return authorized, false
		case "processing":
			if e.lookup {
				return awaiting, false
			}
		case "canceled":
			if !e.lookup {
				return canceled, false
			}
		}
		return unknown, false
	}
	money, want := paid, "succeeded"
	switch e.Type {
	case intentProcessing:
		money, want = awaiting, "processing"
	case intentCanceled:
		money, want = canceled, "canceled"
	}
	if !isConstant(status) {
		intent.fail(intent.at("status"), "is "+shown(intent, "status"))
		return unknown, false
	}
	if status != want {
		intent.warn(intent.at("status"), fmt.Sprintf("is %q, which contradicts %s: the order is held", status, e.Type))
		return awaiting, true
	}
	return money, false
}

// intentCharge reads the latest charge: its id, and the charge itself if the event
// contains it. Before 2022-11-15 a PaymentIntent had the list of its charges instead.
func intentCharge(intent object) (id string, charge object) {
	id, charge = intent.expandable("latest_charge")
	if id != "" && !isID(id) {
		intent.warn(intent.at("latest_charge"), "is not a Stripe id")
		id = ""
	}
	if charge.has("id") || !intent.has("charges") {
		return id, charge
	}
	charges, _ := intent.object("charges")
	for _, c := range charges.objects("data") {
		if listed, ok := c.named("charge"); ok && (listed == id || id == "" && c.text("status") == "succeeded") {
			return listed, c
		}
	}
	return id, charge
}

// captureBefore reads the latest time at which an authorized charge can be captured.
// https://docs.stripe.com/api/charges/object#charge_object-payment_method_details
func captureBefore(charge object) *timestamppb.Timestamp {
	details, _ := charge.object("payment_method_details")
	method := details.text("type")
	if method == "" {
		method = "card"
	}
	of, _ := details.object(method)
	return of.time("capture_before")
}
