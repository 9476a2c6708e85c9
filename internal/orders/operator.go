package orders

import (
	"cmp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// Hold is an operator stopping an order, for a reason in the operator's own
// words. The result is nil when there is no order, it was erased, or is held by
// an operator for the same reason already.
//
// Hold, Release and Reinstate are about the order as it stands: unlike events, they are not
// to be applied a second time, or to another revision.
func Hold(current *ordergatev1.Order, reason string) *Change {
	return operate(current, reason, func(next *ordergatev1.Order, note string) {
		next.OperatorHold = &ordergatev1.OperatorHold{Note: note}
	})
}

// Release is an operator releasing an order, for a reason in the operator's own
// words, from each cause that holds it at this moment: this dispute, this
// review, this warning, not having been seen before. Later events about the same
// cause do not hold the order again; another cause does. The result is nil if
// nothing holds the order.
//
// It does not ship what is to be cancelled, or is not paid.
func Release(current *ordergatev1.Order, reason string) *Change {
	return release(current, reason, func(*ordergatev1.HoldRelease) bool { return true })
}

// ReleaseCause is Release from a single cause, or, if the cause has no id, from all
// causes with its reason.
func ReleaseCause(current *ordergatev1.Order, reason string, only *ordergatev1.HoldRelease) *Change {
	return release(current, reason, func(cause *ordergatev1.HoldRelease) bool {
		return cause.GetReason() == only.GetReason() && (only.GetCause() == "" || cause.GetCause() == only.GetCause())
	})
}

func release(current *ordergatev1.Order, reason string, chosen func(*ordergatev1.HoldRelease) bool) *Change {
	return operate(current, reason, func(next *ordergatev1.Order, _ string) {
		for _, cause := range Holding(next) {
			switch {
			case !chosen(cause):
			case cause.GetReason() == ordergatev1.HoldReason_HOLD_REASON_OPERATOR:
				next.OperatorHold = nil // it may come again
			default:
				next.HoldReleases = append(next.HoldReleases, cause)
			}
		}
		slices.SortFunc(next.HoldReleases, byCause)
	})
}

// Holding returns the causes that hold an order now, sorted by reason and cause.
func Holding(o *ordergatev1.Order) []*ordergatev1.HoldRelease {
	holding := factsOf(o, paymentOf(o)).holding
	slices.SortFunc(holding, byCause)
	return holding
}

// Reinstate is an operator restoring a canceled order, for a reason in the
// operator's own words: each cause that cancels it at this moment is set aside and
// kept in Order.reinstatements. Another cause cancels the order again. Everything
// else that is known decides the directive, so an order that is not paid becomes
// WAIT. The result is nil if nothing cancels the order, or it was erased.
func Reinstate(current *ordergatev1.Order, reason string) *Change {
	if len(Canceling(current)) == 0 {
		return nil
	}
	c := operate(current, reason, func(next *ordergatev1.Order, _ string) {
		next.Reinstatements = append(next.Reinstatements, Canceling(next)...)
		slices.SortFunc(next.Reinstatements, byCancelCause)
	})
	if c != nil {
		c.Kind = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_RELEASED
	}
	return c
}

// Canceling returns the causes that cancel an order now, sorted by reason and cause.
func Canceling(o *ordergatev1.Order) []*ordergatev1.CancelReinstatement {
	var all []*ordergatev1.CancelReinstatement
	for _, reason := range o.GetCancelReasons() {
		for _, cause := range cancelCauses(o, reason) {
			if !reinstated(o, cause) {
				all = append(all, cause)
			}
		}
	}
	slices.SortFunc(all, byCancelCause)
	return all
}

// standing returns those reasons to cancel an order that operators have not set aside.
func standing(o *ordergatev1.Order, reasons []ordergatev1.CancelReason) []ordergatev1.CancelReason {
	return slices.DeleteFunc(reasons, func(reason ordergatev1.CancelReason) bool {
		return !slices.ContainsFunc(cancelCauses(o, reason), func(cause *ordergatev1.CancelReinstatement) bool { return !reinstated(o, cause) })
	})
}

func reinstated(o *ordergatev1.Order, cause *ordergatev1.CancelReinstatement) bool {
	return slices.ContainsFunc(o.GetReinstatements(), func(r *ordergatev1.CancelReinstatement) bool { return proto.Equal(r, cause) })
}

// cancelCauses lists the causes of one reason to cancel an order. A refund or a lost
// dispute can come again with another id; any other reason an order has once.
func cancelCauses(o *ordergatev1.Order, reason ordergatev1.CancelReason) (all []*ordergatev1.CancelReinstatement) {
	cancels := func(cause string) {
		all = append(all, &ordergatev1.CancelReinstatement{Reason: reason, Cause: cause})
	}
	switch reason {
	case ordergatev1.CancelReason_CANCEL_REASON_REFUNDED:
		refunded := map[string]int64{} // by charge, as far as refunds tell
		for _, r := range o.GetRefunds() {
			if counts(r) {
				cancels(r.GetId())
				refunded[r.GetCharge()] = add(refunded[r.GetCharge()], r.GetAmount())
			}
		}
		for _, c := range o.GetCharges() {
			// One of which the refunds tell everything is no cause of its own.
			if c.GetAmountRefunded() > add(refunded[c.GetId()], refunded[""]) {
				cancels(c.GetId())
			}
		}
	case ordergatev1.CancelReason_CANCEL_REASON_DISPUTE_LOST:
		for _, d := range o.GetDisputes() {
			if d.GetState() == ordergatev1.DisputeState_DISPUTE_STATE_LOST {
				cancels(d.GetId())
			}
		}
	}
	if len(all) == 0 {
		cancels("")
	}
	return all
}

// byCancelCause sorts causes of cancellation.
func byCancelCause(a, b *ordergatev1.CancelReinstatement) int {
	return cmp.Or(cmp.Compare(a.GetReason(), b.GetReason()), cmp.Compare(a.GetCause(), b.GetCause()))
}

// operate makes a change of an operator's.
func operate(current *ordergatev1.Order, reason string, do func(next *ordergatev1.Order, note string)) *Change {
	if current == nil || Erased(current) {
		return nil
	}
	next := proto.CloneOf(current)
	note := strings.ToValidUTF8(reason, "\uFFFD") // or it could not be sent
	do(next, note)
	c := change(current, next, paymentOf(current), nil)
	if c != nil {
		c.Note = note
	}
	return c
}
