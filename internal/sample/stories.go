package sample

// Types of events, as Stripe names them.
const (
	Completed        = "checkout.session.completed"
	PaymentSucceeded = "checkout.session.async_payment_succeeded"
	PaymentFailed    = "checkout.session.async_payment_failed"
	Expired          = "checkout.session.expired"
	ChargeRefunded   = "charge.refunded"
	RefundCreated    = "refund.created"
	RefundUpdated    = "refund.updated"
	RefundFailed     = "refund.failed"
	DisputeCreated   = "charge.dispute.created"
	DisputeClosed    = "charge.dispute.closed"
	FraudWarning     = "radar.early_fraud_warning.created"
	ReviewOpened     = "review.opened"
	ReviewClosed     = "review.closed"
	InvoicePaid      = "invoice.paid"
	IntentSucceeded  = "payment_intent.succeeded"
	IntentCanceled   = "payment_intent.canceled"
)

// story is a list of events about one order; only the scenario `subscription`
// is about two, for each box is an order.
type story struct {
	name, about string
	steps       []step
}

// step is one event of a story.
type step struct {
	eventType string
	template  string // the object that the event is about
	with      fields // what the object says otherwise than the template
	order     string // the id of the order it is about; $session unless set
}

type fields map[string]any

// stories are what this package can tell. The story of a type is the first one
// that ends with it.
var stories = []story{
	{"paid", "an order that is paid at once", []step{paid}},
	{"paid-later", "placed, and paid later", []step{placed, paidLater}},
	{"payment-fails", "placed, then the payment fails", []step{placed, paymentFails}},
	{"expires", "placed, then the session expires", []step{placed, expires}},

	{"refunded", "paid, then refunded in full", []step{paid, refunded}},
	{"partly-refunded", "paid, then refunded in part", []step{paid, refund(RefundCreated, 1900, "succeeded")}},
	{"refund-arrives", "paid, then a refund in part is on its way, and arrives",
		[]step{paid, refund(RefundCreated, 1900, "pending"), refund(RefundUpdated, 1900, "succeeded")}},
	{"refund-fails", "paid, then a refund in full fails: an operator has to decide",
		[]step{paid, refund(RefundCreated, 5890, "pending"), refund(RefundFailed, 5890, "failed")}},

	{"disputed", "paid, then disputed", []step{paid, dispute(DisputeCreated, 5890, "needs_response")}},
	{"disputed-won", "paid, disputed, and the shop wins",
		[]step{paid, dispute(DisputeCreated, 5890, "needs_response"), dispute(DisputeClosed, 5890, "won")}},
	{"disputed-lost", "paid, disputed, and the shop loses",
		[]step{paid, dispute(DisputeCreated, 5890, "needs_response"), dispute(DisputeClosed, 5890, "lost")}},
	{"partly-refunded-disputed-won", "paid, refunded in part, the rest disputed, and the shop wins",
		[]step{paid, refund(RefundCreated, 1900, "succeeded"), dispute(DisputeCreated, 3990, "needs_response"), dispute(DisputeClosed, 3990, "won")}},

	{"fraud-warning", "paid, then the card's bank warns of fraud", []step{paid, warned}},
	{"fraud-warning-refunded", "paid, a warning of fraud, then refunded in full", []step{paid, warned, refunded}},
	{"reviewed", "paid, then put under review", []step{paid, reviewed}},
	{"reviewed-approved", "paid, put under review, and approved", []step{paid, reviewed, approved}},

	{"next-box", "a later box of a subscription", []step{nextBox}},
	{"subscription", "a subscription: its first box, and the next as an order of its own",
		[]step{subscribed, firstInvoice, nextBox}},

	{"elements", "an order without Checkout; the gateway must take orders from PaymentIntents", []step{intentPaid}},
	{"authorized-captured", "placed with the card authorized, and captured later", []step{placed, captured}},
	{"authorized-canceled", "placed with the card authorized, then given up", []step{placed, canceled}},
}

// The templates are of an order that is paid, and refunded in full; these are the
// steps of more than one story, and those that need more than a line.
var (
	paid         = step{eventType: Completed, template: "session"}
	placed       = step{eventType: Completed, template: "session", with: fields{"payment_status": "unpaid"}}
	paidLater    = step{eventType: PaymentSucceeded, template: "session"}
	paymentFails = step{eventType: PaymentFailed, template: "session", with: fields{"payment_status": "unpaid"}}
	expires      = step{eventType: Expired, template: "session", with: fields{"status": "expired", "payment_status": "unpaid"}}

	refunded = step{eventType: ChargeRefunded, template: "charge"}
	warned   = step{eventType: FraudWarning, template: "early_fraud_warning"}
	reviewed = step{eventType: ReviewOpened, template: "review"}
	approved = step{eventType: ReviewClosed, template: "review", with: fields{"open": false, "closed_reason": "approved", "reason": "approved"}}

	intentPaid = step{eventType: IntentSucceeded, template: "payment_intent", order: "$payment_intent"}
	captured   = step{eventType: IntentSucceeded, template: "payment_intent", with: fields{"capture_method": "manual"}}
	canceled   = step{eventType: IntentCanceled, template: "payment_intent", with: fields{
		"capture_method": "manual", "status": "canceled", "amount_received": 0,
		"canceled_at": "$now", "cancellation_reason": "requested_by_customer",
	}}

	// A subscription's session names no PaymentIntent, but its first invoice.
	subscribed = step{eventType: Completed, template: "session", with: fields{
		"mode": "subscription", "customer": "$customer", "customer_creation": "always",
		"payment_intent": nil, "invoice": "$invoice", "subscription": "$subscription",
		"payment_method_types": []string{"card"}, "custom_fields": []string{},
		"amount_total": 5400, "shipping_cost": nil, "shipping_options": []string{},
		"total_details": fields{"amount_discount": 0, "amount_shipping": 0, "amount_tax": 862},
	}}
	firstInvoice = step{eventType: InvoicePaid, template: "invoice", with: fields{
		"id": "$invoice", "number": "SAMPLE-0001", "billing_reason": "subscription_create", "period_start": "$now",
	}}
	nextBox = step{eventType: InvoicePaid, template: "invoice", order: "$next_invoice"}
)

func refund(eventType string, amount int, status string) step {
	with := fields{"amount": amount, "status": status}
	switch status {
	case "pending":
		with["pending_reason"] = "processing"
	case "failed":
		with["failure_reason"] = "expired_or_canceled_card"
		with["failure_balance_transaction"] = "txn_3SampleFailure0000000000"
	}
	return step{eventType: eventType, template: "refund", with: with}
}

func dispute(eventType string, amount int, status string) step {
	return step{eventType: eventType, template: "dispute", with: fields{"amount": amount, "status": status}}
}
