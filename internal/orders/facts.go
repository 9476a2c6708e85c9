package orders

import (
	"slices"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// payment is how far an order's money got. The values are ordered: a snapshot
// that says more outranks one that says less, whichever comes first, so that
// once paid is never un-paid by an older event. A failed payment outranks an
// expiry because it says more about the same end.
type payment int

const (
	unknown  payment = iota // there is no order yet
	awaiting                // placed, the money has not arrived
	expired                 // the session expired before it was paid
	failed                  // the delayed payment failed
	paid                    // paid, or nothing was to be paid
)

// paymentOf reads back from an order what facts.decide wrote into its status.
func paymentOf(o *ordergatev1.Order) payment {
	switch o.GetStatus() {
	case ordergatev1.OrderStatus_ORDER_STATUS_AWAITING_PAYMENT:
		return awaiting
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
// is to have a say gets a field here, of a kind that can be added up in any
// order (a maximum, a set, a latest state that is never left), and a line in
// one of the methods; it never writes to the order by itself.
type facts struct {
	payment payment
	address ordergatev1.AddressState
	items   ordergatev1.LineItemsState
}

// decide writes the order's status, its directive and all reasons.
func (f facts) decide(o *ordergatev1.Order) {
	waits, holds, cancels := f.waits(), f.holds(), f.cancels()
	o.Status = f.status()
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
	switch f.payment {
	case awaiting:
		return ordergatev1.OrderStatus_ORDER_STATUS_AWAITING_PAYMENT
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
	// An unset state is treated as UNREADABLE.
	switch f.address {
	case ordergatev1.AddressState_ADDRESS_STATE_PRESENT,
		ordergatev1.AddressState_ADDRESS_STATE_NOT_COLLECTED:
	default:
		reasons = append(reasons, ordergatev1.HoldReason_HOLD_REASON_ADDRESS_UNREADABLE)
	}
	return reasons
}

func (f facts) cancels() (reasons []ordergatev1.CancelReason) {
	switch f.payment {
	case failed:
		reasons = append(reasons, ordergatev1.CancelReason_CANCEL_REASON_PAYMENT_FAILED)
	case expired:
		reasons = append(reasons, ordergatev1.CancelReason_CANCEL_REASON_EXPIRED)
	}
	return reasons
}

// kindOf names the change from one state of an order (nil: none) to the next.
// The money comes first, then a reason to hold that came up, then one that is
// gone.
func kindOf(before, after *ordergatev1.Order) ordergatev1.OrderEventKind {
	if after.GetStatus() != before.GetStatus() {
		switch after.GetStatus() {
		case ordergatev1.OrderStatus_ORDER_STATUS_AWAITING_PAYMENT:
			return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PLACED
		case ordergatev1.OrderStatus_ORDER_STATUS_PAID:
			return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID
		case ordergatev1.OrderStatus_ORDER_STATUS_PAYMENT_FAILED:
			return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAYMENT_FAILED
		case ordergatev1.OrderStatus_ORDER_STATUS_EXPIRED:
			return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_EXPIRED
		}
	}
	switch {
	case !containsAll(before.GetHoldReasons(), after.GetHoldReasons()):
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD
	case !containsAll(after.GetHoldReasons(), before.GetHoldReasons()):
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_RELEASED
	default:
		return ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UPDATED
	}
}

func containsAll(reasons, all []ordergatev1.HoldReason) bool {
	return !slices.ContainsFunc(all, func(r ordergatev1.HoldReason) bool {
		return !slices.Contains(reasons, r)
	})
}
