package orders

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// Hold is an operator stopping an order, for a reason in the operator's own
// words. The result is nil when there is no order, it was erased, or is held by
// an operator for the same reason already.
//
// Hold and Release are about the order as it stands: unlike events, they are not
// to be applied a second time, or to another revision.
func Hold(current *ordergatev1.Order, reason string) *Change {
	return operate(current, reason, func(next *ordergatev1.Order, note string) {
		next.OperatorHold = &ordergatev1.OperatorHold{Note: note}
	})
}

// Release is an operator freeing an order, for a reason in the operator's own
// words, from each cause that holds it at this moment: this dispute, this
// review, this warning, not having been seen before. What is heard of the same
// cause later does not hold the order again; another cause does. The result is
// nil when nothing holds the order.
//
// It does not ship what is to be cancelled, or is not paid.
func Release(current *ordergatev1.Order, reason string) *Change {
	return operate(current, reason, func(next *ordergatev1.Order, _ string) {
		for _, cause := range factsOf(next, paymentOf(next)).holding {
			// The operator's own hold may come again.
			if cause.GetReason() != ordergatev1.HoldReason_HOLD_REASON_OPERATOR {
				next.HoldReleases = append(next.HoldReleases, cause)
			}
		}
		slices.SortFunc(next.HoldReleases, byCause)
		next.OperatorHold = nil
	})
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
