package orders

import (
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// The types of event that say something about an order that exists. What a
// dispute does to the shop's balance (charge.dispute.funds_withdrawn and
// funds_reinstated) is not shipping's.
const (
	chargeRefunded      = "charge.refunded"
	chargeRefundUpdated = "charge.refund.updated" // the older name of refund.updated
	refundCreated       = "refund.created"
	refundUpdated       = "refund.updated"
	refundFailed        = "refund.failed"
	disputeCreated      = "charge.dispute.created"
	disputeUpdated      = "charge.dispute.updated"
	disputeClosed       = "charge.dispute.closed"
	reviewOpened        = "review.opened"
	reviewClosed        = "review.closed"
	warningCreated      = "radar.early_fraud_warning.created"
	warningUpdated      = "radar.early_fraud_warning.updated"
	invoicePaymentPaid  = "invoice_payment.paid"
	chargeCaptured      = "charge.captured"
	chargeExpired       = "charge.expired" // an uncaptured charge expired
	creditNoteCreated   = "credit_note.created"
	creditNoteUpdated   = "credit_note.updated"
	creditNoteVoided    = "credit_note.voided"
)

// tells makes the event a follow-up with these facts. One that names no payment
// belongs to no order (a customer's cash balance can be refunded, too).
func (e *Event) tells(facts *ordergatev1.Order) {
	if len(e.references) > 0 {
		e.followUp = &followUp{facts: facts}
	}
}

// links makes the event a follow-up that only ties other objects to the order of
// its first reference.
func (e *Event) links() {
	if len(e.references) < 2 {
		e.references = nil
		return
	}
	e.followUp, e.optional = &followUp{}, true
}

// isPaid makes the event a follow-up that says the money has arrived.
func (e *Event) isPaid() {
	e.followUp = &followUp{payment: paid, facts: &ordergatev1.Order{PaidTime: e.createdTime()}}
}

func (e *Event) createdTime() *timestamppb.Timestamp {
	if e.Created.IsZero() {
		return nil
	}
	return timestamppb.New(e.Created)
}

// ofPayment reads the payment that an object belongs to. The PaymentIntent is
// the better reference: a Session names it.
func (e *Event) ofPayment(o object) (charge string) {
	charge = o.reference("charge")
	e.belongsTo(PaymentIntent, o.reference("payment_intent"))
	e.belongsTo(Charge, charge)
	return charge
}

// readCharge reads how much of a charge was captured and refunded. Before
// 2022-11-15 a charge contained its refunds.
// https://docs.stripe.com/api/charges/object
func (e *Event) readCharge(charge object) {
	id, ok := charge.named("charge")
	if !ok {
		return
	}
	e.belongsTo(PaymentIntent, charge.reference("payment_intent"))
	e.belongsTo(Charge, id)
	e.belongsTo(Invoice, charge.reference("invoice")) // until 2025-03-31.basil
	c := &ordergatev1.Charge{Id: id, Amount: charge.sum("amount"), Currency: readCurrency(charge)}
	if e.Type == chargeRefunded || charge.has("amount_refunded") {
		c.AmountRefunded = charge.sum("amount_refunded")
	}
	if charge.has("amount_captured") {
		c.AmountCaptured = new(charge.sum("amount_captured"))
	}
	money, unclear := e.chargePayment(charge, c)
	facts := &ordergatev1.Order{
		Charges:           []*ordergatev1.Charge{c},
		CaptureBeforeTime: captureBefore(charge),
		PaymentUnclear:    unclear,
	}
	if money == paid {
		facts.PaidTime = e.createdTime()
	}
	if list, ok := charge.object("refunds"); ok {
		for _, refund := range list.objects("data") {
			if r := readRefund(refund, id); r != nil {
				facts.Refunds = append(facts.Refunds, r)
			}
		}
	}
	e.tells(facts)
	e.followUp.payment = money            // its own id is a reference: there is a follow-up
	e.optional = e.Type != chargeRefunded // most captures are of no order
}

// chargePayment completes c with the state of a charge, and returns how far the
// payment got by it; unknown if the event does not state that. The payment is
// unclear if the charge contradicts the type of the event.
func (e *Event) chargePayment(charge object, c *ordergatev1.Charge) (_ payment, unclear bool) {
	captured := charge.boolean("captured")
	// That a charge without refunds is not refunded adds nothing.
	if refunded := charge.boolean("refunded"); refunded != nil && (*refunded || c.GetAmountRefunded() > 0) {
		c.Refunded = refunded
	}
	switch {
	case captured == nil:
	case *captured:
		c.State = ordergatev1.ChargeState_CHARGE_STATE_CAPTURED
	case c.GetRefunded() || e.Type == chargeExpired:
		c.State = ordergatev1.ChargeState_CHARGE_STATE_RELEASED
	}
	isCaptured := c.State == ordergatev1.ChargeState_CHARGE_STATE_CAPTURED
	switch {
	case e.Type == chargeCaptured && captured != nil && !isCaptured, e.Type == chargeExpired && isCaptured:
		charge.warn(charge.at("captured"), "contradicts "+e.Type+": the order is held")
		return unknown, true
	case e.Type == chargeCaptured:
		return paid, false
	case e.Type == chargeExpired, c.State == ordergatev1.ChargeState_CHARGE_STATE_RELEASED:
		return canceled, false
	default:
		return unknown, false
	}
}

// maxCreditedLines bounds the lines of one credit note. Stripe's events carry 10.
const maxCreditedLines = 20

// readCreditNote reads a credit note on an invoice.
// https://docs.stripe.com/api/credit_notes/object
func (e *Event) readCreditNote(note object) {
	id, ok := note.named("credit_note")
	if !ok {
		return
	}
	e.belongsTo(Invoice, note.reference("invoice"))
	n := &ordergatev1.CreditNote{
		Id:         id,
		Currency:   readCurrency(note),
		State:      ordergatev1.CreditNoteState_CREDIT_NOTE_STATE_ISSUED,
		Reason:     note.constant("reason"),
		CreateTime: note.time("created"),
	}
	if note.has("total") {
		n.Amount = note.sum("total")
	} else {
		n.Amount = note.sum("amount")
	}
	switch status := note.text("status"); {
	case status == "void" || e.Type == creditNoteVoided:
		n.State = ordergatev1.CreditNoteState_CREDIT_NOTE_STATE_VOID
	case status != "issued":
		note.warn(note.at("status"), "is not a status this version knows: taken for issued")
	}
	lines, _ := note.object("lines")
	data := lines.objects("data")
	for _, line := range data[:min(len(data), maxCreditedLines)] {
		n.Lines = append(n.Lines, &ordergatev1.CreditNoteLine{
			Id:              line.reference("id"),
			InvoiceLineItem: line.reference("invoice_line_item"),
			Amount:          line.amount("amount"),
			Quantity:        line.amount("quantity"),
			Description:     line.text("description"),
		})
	}
	more := lines.boolean("has_more")
	n.LinesTruncated = more != nil && *more || len(data) > maxCreditedLines
	e.tells(&ordergatev1.Order{CreditNotes: []*ordergatev1.CreditNote{n}})
	e.optional = true // most invoices are of no order
}

// readRefundEvent reads a refund. https://docs.stripe.com/api/refunds/object
func (e *Event) readRefundEvent(refund object) {
	r := readRefund(refund, e.ofPayment(refund))
	if r == nil {
		return
	}
	if e.Type == refundFailed {
		// It may say pending still.
		r.State = max(r.State, ordergatev1.RefundState_REFUND_STATE_FAILED)
	}
	e.tells(&ordergatev1.Order{Refunds: []*ordergatev1.Refund{r}})
}

func readRefund(refund object, charge string) *ordergatev1.Refund {
	id, ok := refund.named("refund")
	if !ok {
		return nil
	}
	r := &ordergatev1.Refund{
		Id:       id,
		Amount:   refund.sum("amount"),
		Currency: readCurrency(refund),
		Reason:   refund.constant("reason"),
		Charge:   charge,

		Metadata:      refund.texts("metadata"),
		Description:   refund.text("description"),
		FailureReason: refund.constant("failure_reason"),
		CreateTime:    refund.time("created"),
	}
	switch refund.text("status") {
	case "succeeded":
		r.State = ordergatev1.RefundState_REFUND_STATE_SUCCEEDED
	case "canceled":
		r.State = ordergatev1.RefundState_REFUND_STATE_CANCELED
	case "failed":
		r.State = ordergatev1.RefundState_REFUND_STATE_FAILED
	case "pending", "requires_action", "": // old refunds may have none
		r.State = ordergatev1.RefundState_REFUND_STATE_PENDING
	default:
		// What is refunded must not be shipped: it counts until more is known.
		refund.warn(refund.at("status"), "is not a status this version knows: taken for pending")
		r.State = ordergatev1.RefundState_REFUND_STATE_PENDING
	}
	return r
}

// readDispute reads a dispute. https://docs.stripe.com/api/disputes/object
func (e *Event) readDispute(dispute object) {
	id, ok := dispute.named("dispute")
	if !ok {
		return
	}
	d := &ordergatev1.Dispute{
		Id:         id,
		Charge:     e.ofPayment(dispute),
		Reason:     dispute.constant("reason"),
		CreateTime: dispute.time("created"),
	}
	evidence, _ := dispute.object("evidence_details")
	d.EvidenceDueTime = evidence.time("due_by")
	// An amount that cannot be read is 0: if the dispute is lost, that holds the
	// order instead of canceling it.
	d.Amount, d.Currency = dispute.number("amount"), dispute.constant("currency")
	switch dispute.text("status") {
	case "warning_needs_response", "warning_under_review":
		d.State = ordergatev1.DisputeState_DISPUTE_STATE_INQUIRY
	case "warning_closed":
		d.State = ordergatev1.DisputeState_DISPUTE_STATE_INQUIRY_CLOSED
	case "needs_response", "under_review":
		d.State = ordergatev1.DisputeState_DISPUTE_STATE_OPEN
	case "won":
		d.State = ordergatev1.DisputeState_DISPUTE_STATE_WON
	case "prevented", "charge_refunded":
		d.State = ordergatev1.DisputeState_DISPUTE_STATE_PREVENTED
	case "lost", "appeal_needs_response", "appeal_under_review":
		// Only what was lost is appealed.
		d.State = ordergatev1.DisputeState_DISPUTE_STATE_LOST
	default:
		// To hold is on the safe side; not to be able to read it is not.
		dispute.warn(dispute.at("status"), "is not a status this version knows: taken for open")
		d.State = ordergatev1.DisputeState_DISPUTE_STATE_OPEN
	}
	e.tells(&ordergatev1.Order{Disputes: []*ordergatev1.Dispute{d}})
}

// readReview reads a review. https://docs.stripe.com/api/radar/reviews/object
func (e *Event) readReview(review object) {
	id, ok := review.named("review")
	if !ok {
		return
	}
	e.ofPayment(review)
	r := &ordergatev1.Review{Id: id, State: ordergatev1.ReviewState_REVIEW_STATE_OPEN}
	// A review that cannot be read is open: it holds the order.
	open := review.boolean("open")
	if e.Type == reviewClosed || open != nil && !*open {
		r.ClosedReason = first(review.constant("closed_reason"), review.constant("reason"))
		switch r.ClosedReason {
		case "approved":
			r.State = ordergatev1.ReviewState_REVIEW_STATE_APPROVED
		case "disputed":
			r.State = ordergatev1.ReviewState_REVIEW_STATE_DISPUTED
		case "refunded", "refunded_as_fraud":
			r.State = ordergatev1.ReviewState_REVIEW_STATE_REFUNDED
		default:
			r.State = ordergatev1.ReviewState_REVIEW_STATE_CLOSED
		}
	}
	e.tells(&ordergatev1.Order{Reviews: []*ordergatev1.Review{r}})
}

// readFraudWarning reads an early fraud warning.
// https://docs.stripe.com/api/radar/early_fraud_warnings/object
func (e *Event) readFraudWarning(warning object) {
	id, ok := warning.named("radar.early_fraud_warning")
	if !ok {
		return
	}
	e.ofPayment(warning)
	actionable := warning.boolean("actionable")
	e.tells(&ordergatev1.Order{EarlyFraudWarnings: []*ordergatev1.EarlyFraudWarning{{
		Id:        id,
		FraudType: warning.constant("fraud_type"),
		Settled:   actionable != nil && !*actionable,
	}}})
}

// readInvoicePayment reads which payment paid an invoice. It adds nothing to the
// order, but since 2025-03-31.basil no other event ties the refunds and disputes
// of that payment to it.
// https://docs.stripe.com/api/invoice-payment/object
func (e *Event) readInvoicePayment(invoicePayment object) {
	if _, ok := invoicePayment.named("invoice_payment"); !ok {
		return
	}
	invoice := invoicePayment.reference("invoice")
	if invoice == "" {
		return
	}
	e.belongsTo(Invoice, invoice)
	if payment, ok := invoicePayment.object("payment"); ok {
		e.ofPayment(payment)
	}
	e.links()
}

// constant reads one of Stripe's own words; anything else is not read.
func (o object) constant(key string) string {
	word := o.text(key)
	if word != "" && !isConstant(word) {
		o.warn(o.at(key), "is not one of Stripe's words")
		return ""
	}
	return word
}

// named checks what an object is, and returns its id.
func (o object) named(kind string) (id string, ok bool) {
	if o.text("object") != kind {
		o.fail(o.at("object"), "is not "+kind)
		return "", false
	}
	id = o.text("id")
	if !isID(id) {
		o.fail(o.at("id"), "is not a Stripe id")
		return "", false
	}
	return id, true
}

// listed reports whether reason is one of the billing reasons that make orders.
func (s Sources) listed(reason string) bool { return slices.Contains(s.Invoices, reason) }
