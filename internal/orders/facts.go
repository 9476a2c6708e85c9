package orders

import (
	"cmp"
	"slices"

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
	unknown  payment = iota // there is no order yet
	awaiting                // placed, the money has not arrived
	canceled                // the payment was cancelled
	expired                 // the session expired before it was paid
	failed                  // the delayed payment failed
	paid                    // paid, or nothing was to be paid
)

// status is how an order shows a payment of which nothing was given back.
func (p payment) status() ordergatev1.OrderStatus {
	switch p {
	case awaiting:
		return ordergatev1.OrderStatus_ORDER_STATUS_AWAITING_PAYMENT
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

// paymentOf reads back from an order what facts.decide wrote into its status.
func paymentOf(o *ordergatev1.Order) payment { return paymentIn(o.GetStatus()) }

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
	refunds refundSum
	// holding are the causes that hold the order, those it was released from
	// left out.
	holding []*ordergatev1.HoldRelease
	lost    bool // a dispute was lost
}

// factsOf reads an order, whose money got as far as the argument says.
func factsOf(o *ordergatev1.Order, money payment) facts {
	f := facts{payment: money, items: o.GetLineItemsState(), refunds: sumRefunds(o)}
	for _, cause := range causes(o, f.refunds) {
		if !slices.ContainsFunc(o.GetHoldReleases(), func(r *ordergatev1.HoldRelease) bool { return proto.Equal(r, cause) }) {
			f.holding = append(f.holding, cause)
		}
	}
	f.lost = slices.ContainsFunc(o.GetDisputes(), func(d *ordergatev1.Dispute) bool {
		return d.GetState() == ordergatev1.DisputeState_DISPUTE_STATE_LOST
	})
	return f
}

// causes lists all that ever held the order and is not over.
func causes(o *ordergatev1.Order, refunds refundSum) (all []*ordergatev1.HoldRelease) {
	holds := func(reason ordergatev1.HoldReason, cause string) {
		all = append(all, &ordergatev1.HoldRelease{Reason: reason, Cause: cause})
	}
	for _, d := range o.GetDisputes() {
		switch d.GetState() {
		case ordergatev1.DisputeState_DISPUTE_STATE_INQUIRY_CLOSED,
			ordergatev1.DisputeState_DISPUTE_STATE_WON,
			ordergatev1.DisputeState_DISPUTE_STATE_LOST: // it cancels
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
	switch o.GetAddressState() {
	case ordergatev1.AddressState_ADDRESS_STATE_PRESENT,
		ordergatev1.AddressState_ADDRESS_STATE_NOT_COLLECTED:
	default:
		holds(ordergatev1.HoldReason_HOLD_REASON_ADDRESS_UNREADABLE, "")
	}
	if o.GetOperatorHold() != nil {
		holds(ordergatev1.HoldReason_HOLD_REASON_OPERATOR, "")
	}
	for _, id := range refunds.unclear {
		holds(ordergatev1.HoldReason_HOLD_REASON_REFUND_UNCLEAR, id)
	}
	return all
}

// decide writes the order's status, its refunded sum, its directive and all
// reasons.
func (f facts) decide(o *ordergatev1.Order) {
	waits, holds, cancels := f.waits(), f.holds(), standing(o, f.cancels())
	o.Status = f.status()
	f.refunds.show(o)
	o.Directive = ordergatev1.Directive_DIRECTIVE_SHIP
	switch {
	case len(cancels) > 0:
		o.Directive = ordergatev1.Directive_DIRECTIVE_CANCEL
	case f.payment != paid:
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
	if f.payment != paid {
		reasons = append(reasons, ordergatev1.WaitReason_WAIT_REASON_AWAITING_PAYMENT)
	}
	// Without an API key (UNAVAILABLE) the items will never come: nothing is
	// won by waiting. An unset state is treated as PENDING.
	switch f.items {
	case ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE,
		ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE:
	default:
		reasons = append(reasons, ordergatev1.WaitReason_WAIT_REASON_LINE_ITEMS_PENDING)
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
	if f.lost {
		reasons = append(reasons, ordergatev1.CancelReason_CANCEL_REASON_DISPUTE_LOST)
	}
	return reasons
}

// kindOf names the change from one state of an order (nil: none) to the next.
// The money comes first, then what cancels the order, then a reason to hold that
// came up, then one that is gone.
func kindOf(before, after *ordergatev1.Order) ordergatev1.OrderEventKind {
	if now := paymentOf(after); now != paymentOf(before) && after.GetStatus() != ordergatev1.OrderStatus_ORDER_STATUS_REFUNDED {
		switch now {
		case awaiting:
			return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PLACED
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
	case after.GetStatus() != before.GetStatus(),
		after.GetAmounts().GetRefunded() != before.GetAmounts().GetRefunded(),
		failures(after) != failures(before):
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_REFUNDED
	case slices.Contains(after.GetCancelReasons(), lost) && !slices.Contains(before.GetCancelReasons(), lost):
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_CANCELED
	case !containsAll(before.GetHoldReasons(), after.GetHoldReasons()):
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD
	case !containsAll(after.GetHoldReasons(), before.GetHoldReasons()):
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_RELEASED
	default:
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UPDATED
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
