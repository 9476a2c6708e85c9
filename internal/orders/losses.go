package orders

import (
	"slices"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// losses compares the lost disputes of an order with its money.
type losses struct {
	all bool // with the refunds, they cover all of the money
	// partial are the lost disputes if they do not, or cannot be compared.
	partial []string
}

// lostDisputes returns the losses of an order.
func lostDisputes(o *ordergatev1.Order, money collected, refunds refundSum) (l losses) {
	sum := int64(0) // in the order's currency
	for _, d := range o.GetDisputes() {
		if d.GetState() != ordergatev1.DisputeState_DISPUTE_STATE_LOST {
			continue
		}
		l.partial = append(l.partial, d.GetId())
		if first(d.GetCurrency(), o.GetCurrency()) == o.GetCurrency() {
			sum = add(sum, max(d.GetAmount(), 0))
		}
		l.all = l.all || coversCharge(o, d)
	}
	due := money.due(o)
	l.all = l.all || sum > 0 && due > 0 && add(sum, refunds.back) >= due
	if l.all {
		l.partial = nil
	}
	return l
}

// coversCharge reports whether a dispute is over all of a charge, which is all of
// the order's money unless the order is an invoice.
func coversCharge(o *ordergatev1.Order, d *ordergatev1.Dispute) bool {
	return o.GetSource() != ordergatev1.OrderSource_ORDER_SOURCE_INVOICE &&
		slices.ContainsFunc(o.GetCharges(), func(c *ordergatev1.Charge) bool {
			return c.GetId() == d.GetCharge() && first(c.GetCurrency(), o.GetCurrency()) == first(d.GetCurrency(), o.GetCurrency()) &&
				capturedOf(c) > 0 && d.GetAmount() >= capturedOf(c)
		})
}

// creditedInFull returns the valid credit notes of an order if they cover its
// total, or cannot be compared with it.
func creditedInFull(o *ordergatev1.Order) (notes []string) {
	sum, comparable := int64(0), o.GetAmounts().GetTotal() > 0
	for _, n := range o.GetCreditNotes() {
		if n.GetState() == ordergatev1.CreditNoteState_CREDIT_NOTE_STATE_VOID || n.GetAmount() == 0 {
			continue
		}
		notes = append(notes, n.GetId())
		sum = add(sum, n.GetAmount())
		comparable = comparable && first(n.GetCurrency(), o.GetCurrency()) == o.GetCurrency()
	}
	if comparable && sum < o.GetAmounts().GetTotal() {
		return nil
	}
	return notes
}
