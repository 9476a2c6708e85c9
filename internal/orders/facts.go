package orders

import (
	"cmp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// payment is how far an order's money got. The values are ordered: what says
// more outranks what says less, whichever comes first, so that once paid is
// never un-paid by an older event. Of two ways to the same end, the one that says
// more about it outranks the other: Stripe cancels the PaymentIntent of a session
// that expires.
type payment int

const (
	unknown    payment = iota // there is no order yet
	awaiting                  // placed, the money has not arrived
	authorized                // the money is reserved and not captured
	canceled                  // the payment was cancelled
	expired                   // the session expired before it was paid
	failed                    // the delayed payment failed
	paid                      // paid, or nothing was to be paid
)

// status is how an order shows a payment of which nothing was given back.
func (p payment) status() ordergatev1.OrderStatus {
	switch p {
	case awaiting:
		return ordergatev1.OrderStatus_ORDER_STATUS_AWAITING_PAYMENT
	case authorized:
		return ordergatev1.OrderStatus_ORDER_STATUS_AUTHORIZED
	case canceled:
		return ordergatev1.OrderStatus_ORDER_STATUS_CANCELED
	case expired:
		return ordergatev1.OrderStatus_ORDER_STATUS_EXPIRED
	case failed:
		return ordergatev1.OrderStatus_ORDER_STATUS_PAYMENT_FAILED
	case paid:
		return ordergatev1.OrderStatus_ORDER_STATUS_PAID
	default:
		return ordergatev1.OrderStatus_ORDER_STATUS_UNSPECIFIED
	}
}

// paymentOf reads the payment back from the status that facts.decide wrote. The
// failure of a PaymentIntent's order is derived from its charges (see
// failedCharges) and is not a payment that later events are compared with.
func paymentOf(o *ordergatev1.Order) payment {
	known := paymentIn(o.GetStatus())
	if known == failed && o.GetSource() == ordergatev1.OrderSource_ORDER_SOURCE_PAYMENT_INTENT {
		return awaiting
	}
	return known
}

// saleOf is how far the money got in the snapshot that the order's details are
// from.
func saleOf(o *ordergatev1.Order) payment {
	if o.GetSaleStatus() == ordergatev1.OrderStatus_ORDER_STATUS_UNSPECIFIED {
		return paymentOf(o) // stored before there was a sale_status
	}
	return paymentIn(o.GetSaleStatus())
}

func paymentIn(status ordergatev1.OrderStatus) payment {
	switch status {
	case ordergatev1.OrderStatus_ORDER_STATUS_AWAITING_PAYMENT:
		return awaiting
	case ordergatev1.OrderStatus_ORDER_STATUS_AUTHORIZED:
		return authorized
	case ordergatev1.OrderStatus_ORDER_STATUS_CANCELED:
		return canceled
	case ordergatev1.OrderStatus_ORDER_STATUS_EXPIRED:
		return expired
	case ordergatev1.OrderStatus_ORDER_STATUS_PAYMENT_FAILED:
		return failed
	case ordergatev1.OrderStatus_ORDER_STATUS_PAID,
		ordergatev1.OrderStatus_ORDER_STATUS_PARTIALLY_REFUNDED,
		ordergatev1.OrderStatus_ORDER_STATUS_REFUNDED:
		return paid
	default:
		return unknown
	}
}

// facts is everything that decides what is to be done with an order. Whatever
// is to have a say is kept in the order itself, in a form that can be added up
// in any order (a maximum, a set, a latest state that is never left), and gets a
// line in one of the methods; it never writes to the order by itself.
type facts struct {
	payment payment
	items   ordergatev1.LineItemsState
	money   collected
	refunds refundSum
	losses  losses
	// address is the address state that follows from the stored one and the
	// line items.
	address ordergatev1.AddressState
	// onAuthorization means that the order ships before its payment is captured.
	onAuthorization bool
	// holding are the causes that hold the order, those it was released from
	// left out.
	holding  []*ordergatev1.HoldRelease
	settling bool // the settling period of a paid order has not ended
}

// factsOf reads an order whose payment got as far as known.
func factsOf(o *ordergatev1.Order, known payment) facts {
	f := facts{
		payment:         known,
		items:           o.GetLineItemsState(),
		money:           collectedOf(o),
		address:         addressState(o),
		onAuthorization: o.GetShipOnAuthorization(),
		settling:        o.GetSettleTime() != nil,
	}
	if known == awaiting && failedCharges(o) {
		f.payment = failed
	}
	f.refunds = sumRefunds(o, f.money)
	f.losses = lostDisputes(o, f.money, f.refunds)
	for _, cause := range f.causes(o) {
		if !slices.ContainsFunc(o.GetHoldReleases(), func(r *ordergatev1.HoldRelease) bool { return proto.Equal(r, cause) }) {
			f.holding = append(f.holding, cause)
		}
	}
	return f
}

// failedCharges reports whether every charge of a PaymentIntent's order failed.
// Other orders are canceled by events of their own: a PaymentIntent of theirs also
// fails for each card that the buyer tries before the sale.
func failedCharges(o *ordergatev1.Order) bool {
	if o.GetSource() != ordergatev1.OrderSource_ORDER_SOURCE_PAYMENT_INTENT {
		return false
	}
	failures := 0
	for _, c := range o.GetCharges() {
		switch c.GetState() {
		case ordergatev1.ChargeState_CHARGE_STATE_PENDING, ordergatev1.ChargeState_CHARGE_STATE_AUTHORIZED:
			return false
		case ordergatev1.ChargeState_CHARGE_STATE_FAILED:
			failures++
		}
	}
	return failures > 0
}

// causes lists all that ever held the order and is not over.
func (f facts) causes(o *ordergatev1.Order) (all []*ordergatev1.HoldRelease) {
	holds := func(reason ordergatev1.HoldReason, cause string) {
		all = append(all, &ordergatev1.HoldRelease{Reason: reason, Cause: cause})
	}
	for _, d := range o.GetDisputes() {
		switch d.GetState() {
		case ordergatev1.DisputeState_DISPUTE_STATE_INQUIRY_CLOSED,
			ordergatev1.DisputeState_DISPUTE_STATE_WON,
			ordergatev1.DisputeState_DISPUTE_STATE_LOST: // see losses
		default:
			holds(ordergatev1.HoldReason_HOLD_REASON_DISPUTED, d.GetId())
		}
	}
	for _, r := range o.GetReviews() {
		disputed := r.GetState() == ordergatev1.ReviewState_REVIEW_STATE_DISPUTED && len(o.GetDisputes()) > 0
		if r.GetState() != ordergatev1.ReviewState_REVIEW_STATE_APPROVED && !disputed {
			holds(ordergatev1.HoldReason_HOLD_REASON_IN_REVIEW, r.GetId())
		}
	}
	for _, w := range o.GetEarlyFraudWarnings() {
		holds(ordergatev1.HoldReason_HOLD_REASON_FRAUD_WARNING, w.GetId())
	}
	if o.GetRecovered() {
		holds(ordergatev1.HoldReason_HOLD_REASON_RECOVERED, "")
	}
	// An unset state is treated as UNREADABLE.
	switch f.address {
	case ordergatev1.AddressState_ADDRESS_STATE_PRESENT,
		ordergatev1.AddressState_ADDRESS_STATE_NOT_NEEDED:
	case ordergatev1.AddressState_ADDRESS_STATE_NOT_COLLECTED:
		// Whether the box needs an address is not known before its line items are.
		if isLaterBox(o) && !f.itemsPending() {
			holds(ordergatev1.HoldReason_HOLD_REASON_ADDRESS_MISSING, "")
		}
	case ordergatev1.AddressState_ADDRESS_STATE_INCOMPLETE:
		holds(ordergatev1.HoldReason_HOLD_REASON_ADDRESS_INCOMPLETE, "")
	default:
		holds(ordergatev1.HoldReason_HOLD_REASON_ADDRESS_UNREADABLE, "")
	}
	if o.GetOperatorHold() != nil {
		holds(ordergatev1.HoldReason_HOLD_REASON_OPERATOR, "")
	}
	for _, id := range f.refunds.unclear {
		holds(ordergatev1.HoldReason_HOLD_REASON_REFUND_UNCLEAR, id)
	}
	for _, id := range f.losses.partial {
		holds(ordergatev1.HoldReason_HOLD_REASON_DISPUTE_LOST, id)
	}
	for _, id := range creditedInFull(o) {
		holds(ordergatev1.HoldReason_HOLD_REASON_CREDITED, id)
	}
	if o.GetPaymentUnclear() && f.payment <= authorized {
		holds(ordergatev1.HoldReason_HOLD_REASON_PAYMENT_UNCLEAR, "")
	}
	if o.GetOmittedContent() == ordergatev1.OmittedContent_OMITTED_CONTENT_LINE_ITEMS {
		holds(ordergatev1.HoldReason_HOLD_REASON_TOO_LARGE, "")
	}
	return all
}

// isLaterBox reports whether an order is the invoice of a later period of a
// subscription. Its address is the Customer's, not the one that a Session
// collected.
func isLaterBox(o *ordergatev1.Order) bool {
	reason := o.GetBillingReason()
	return strings.HasPrefix(reason, "subscription_") && reason != subscriptionCreate
}

// funded reports whether the money allows the order to ship.
func (f facts) funded() bool {
	return f.payment == paid || f.payment == authorized && f.onAuthorization
}

// itemsPending reports whether the line items are still to be read. An unset
// state is treated as PENDING. Without an API key (UNAVAILABLE) they will never
// come.
func (f facts) itemsPending() bool {
	return f.items != ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE &&
		f.items != ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE
}

// decide writes everything that is derived: the order's status, the sums that were
// collected and given back, its directive and all reasons.
func (f facts) decide(o *ordergatev1.Order) {
	waits, holds, cancels := f.waits(), f.holds(), standing(o, f.cancels())
	o.Status = f.status()
	o.AddressState = f.address
	f.showAmounts(o)
	if f.payment > authorized {
		o.CaptureBeforeTime = nil
	}
	o.Directive = ordergatev1.Directive_DIRECTIVE_SHIP
	switch {
	case len(cancels) > 0:
		o.Directive = ordergatev1.Directive_DIRECTIVE_CANCEL
	case slices.Contains(holds, ordergatev1.HoldReason_HOLD_REASON_PAYMENT_UNCLEAR):
		o.Directive = ordergatev1.Directive_DIRECTIVE_HOLD
	case !f.funded():
		o.Directive = ordergatev1.Directive_DIRECTIVE_WAIT
	case len(holds) > 0:
		o.Directive = ordergatev1.Directive_DIRECTIVE_HOLD
	case len(waits) > 0:
		o.Directive = ordergatev1.Directive_DIRECTIVE_WAIT
	}
	// The reasons to wait and to cancel belong to their directive; the reasons
	// to hold are told in any case.
	if o.Directive != ordergatev1.Directive_DIRECTIVE_WAIT {
		waits = nil
	}
	o.WaitReasons, o.HoldReasons, o.CancelReasons = waits, holds, cancels
}

func (f facts) status() ordergatev1.OrderStatus {
	switch {
	case f.payment == paid && f.refunds.full:
		return ordergatev1.OrderStatus_ORDER_STATUS_REFUNDED
	case f.payment == paid && f.refunds.some:
		return ordergatev1.OrderStatus_ORDER_STATUS_PARTIALLY_REFUNDED
	default:
		return f.payment.status()
	}
}

func (f facts) waits() (reasons []ordergatev1.WaitReason) {
	switch {
	case f.funded():
	case f.payment == authorized:
		reasons = append(reasons, ordergatev1.WaitReason_WAIT_REASON_AWAITING_CAPTURE)
	default:
		reasons = append(reasons, ordergatev1.WaitReason_WAIT_REASON_AWAITING_PAYMENT)
	}
	if f.itemsPending() {
		reasons = append(reasons, ordergatev1.WaitReason_WAIT_REASON_LINE_ITEMS_PENDING)
	}
	if f.settling {
		reasons = append(reasons, ordergatev1.WaitReason_WAIT_REASON_SETTLING)
	}
	return reasons
}

func (f facts) holds() (reasons []ordergatev1.HoldReason) {
	for _, cause := range f.holding {
		if !slices.Contains(reasons, cause.GetReason()) {
			reasons = append(reasons, cause.GetReason())
		}
	}
	slices.Sort(reasons)
	return reasons
}

func (f facts) cancels() (reasons []ordergatev1.CancelReason) {
	switch f.payment {
	case canceled:
		reasons = append(reasons, ordergatev1.CancelReason_CANCEL_REASON_CANCELED)
	case expired:
		reasons = append(reasons, ordergatev1.CancelReason_CANCEL_REASON_EXPIRED)
	case failed:
		reasons = append(reasons, ordergatev1.CancelReason_CANCEL_REASON_PAYMENT_FAILED)
	case paid:
		if f.refunds.full {
			reasons = append(reasons, ordergatev1.CancelReason_CANCEL_REASON_REFUNDED)
		}
	}
	if f.losses.all {
		reasons = append(reasons, ordergatev1.CancelReason_CANCEL_REASON_DISPUTE_LOST)
	}
	return reasons
}

// kindOf names the change from one state of an order (nil: none) to the next.
// The money comes first, then what cancels the order, then a reason to hold that
// came up, then one that is gone.
func kindOf(before, after *ordergatev1.Order) ordergatev1.OrderEventKind {
	if now := paymentIn(after.GetStatus()); now != paymentIn(before.GetStatus()) && after.GetStatus() != ordergatev1.OrderStatus_ORDER_STATUS_REFUNDED {
		switch now {
		case awaiting:
			return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PLACED
		case authorized:
			if before == nil {
				return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PLACED
			}
		case canceled:
			return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_CANCELED
		case expired:
			return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_EXPIRED
		case failed:
			return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAYMENT_FAILED
		case paid:
			return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID
		}
	}
	const lost = ordergatev1.CancelReason_CANCEL_REASON_DISPUTE_LOST
	switch {
	case giveback(after.GetStatus()) != giveback(before.GetStatus()),
		after.GetAmounts().GetRefunded() != before.GetAmounts().GetRefunded(),
		failures(after) != failures(before):
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_REFUNDED
	case slices.Contains(after.GetCancelReasons(), lost) && !slices.Contains(before.GetCancelReasons(), lost):
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_CANCELED
	case !containsAll(before.GetHoldReasons(), after.GetHoldReasons()):
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD
	case !containsAll(after.GetHoldReasons(), before.GetHoldReasons()),
		slices.Contains(before.GetCancelReasons(), lost) && !slices.Contains(after.GetCancelReasons(), lost):
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_RELEASED
	default:
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UPDATED
	}
}

// giveback returns a status that refunds make, or unspecified.
func giveback(status ordergatev1.OrderStatus) ordergatev1.OrderStatus {
	switch status {
	case ordergatev1.OrderStatus_ORDER_STATUS_PARTIALLY_REFUNDED, ordergatev1.OrderStatus_ORDER_STATUS_REFUNDED:
		return status
	default:
		return ordergatev1.OrderStatus_ORDER_STATUS_UNSPECIFIED
	}
}

// failures counts the refunds that came to nothing.
func failures(o *ordergatev1.Order) (n int) {
	for _, r := range o.GetRefunds() {
		if !counts(r) {
			n++
		}
	}
	return n
}

func containsAll(reasons, all []ordergatev1.HoldReason) bool {
	return !slices.ContainsFunc(all, func(r ordergatev1.HoldReason) bool {
		return !slices.Contains(reasons, r)
	})
}

// byCause sorts releases.
func byCause(a, b *ordergatev1.HoldRelease) int {
	return cmp.Or(cmp.Compare(a.GetReason(), b.GetReason()), cmp.Compare(a.GetCause(), b.GetCause()))
}
