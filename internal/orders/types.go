package orders

// EventTypes are the types of Stripe event that are looked at: what a webhook
// endpoint is to be subscribed to. https://docs.stripe.com/api/events/types
func EventTypes() []string {
	return []string{
		sessionCompleted, sessionPaymentSucceeded, sessionPaymentFailed, sessionExpired,
		invoicePaid, invoicePaymentPaid,
		creditNoteCreated, creditNoteUpdated, creditNoteVoided,
		intentSucceeded, intentProcessing, intentCanceled, intentCapturable, intentFailed,
		chargeRefunded, chargeCaptured, chargeExpired, refundCreated, refundUpdated, refundFailed, chargeRefundUpdated,
		disputeCreated, disputeUpdated, disputeClosed,
		warningCreated, warningUpdated,
		reviewOpened, reviewClosed,
	}
}
