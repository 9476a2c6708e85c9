package orders

import (
	"math"

	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// refundSum is what the refunds of an order come to. It is computed from the
// sets of refunds and charges that were heard of, whatever the order of the
// events was.
type refundSum struct {
	back int64 // given back, in the order's currency
	some bool  // something was given back, in whatever currency
	full bool  // all of the money was
	// unclear are the refunds that leave open whether the goods are still to be
	// sent.
	unclear []string
}

// counts reports whether a refund takes money from the shop.
func counts(r *ordergatev1.Refund) bool {
	switch r.GetState() {
	case ordergatev1.RefundState_REFUND_STATE_CANCELED, ordergatev1.RefundState_REFUND_STATE_FAILED:
		return false
	default:
		return true
	}
}

// collected is the captured sum of an order's charges, in the order's currency.
type collected struct {
	captured int64
	stated   bool // an event stated a captured sum
}

func collectedOf(o *ordergatev1.Order) (sum collected) {
	for _, c := range o.GetCharges() {
		if c.AmountCaptured != nil && first(c.GetCurrency(), o.GetCurrency()) == o.GetCurrency() {
			sum.captured, sum.stated = add(sum.captured, c.GetAmountCaptured()), true
		}
	}
	return sum
}

// paid returns the sum the buyer paid, or 0 if it is not stated separately from the
// total. An invoice states it itself, and may have charges that no event stated.
func (m collected) paid(o *ordergatev1.Order) int64 {
	if o.GetSource() == ordergatev1.OrderSource_ORDER_SOURCE_INVOICE {
		return o.GetAmounts().GetPaid()
	}
	return m.captured
}

// due returns the sum whose return cancels the order: the paid sum, or else the
// total; 0 if neither is known.
func (m collected) due(o *ordergatev1.Order) int64 {
	if paid := m.paid(o); paid > 0 {
		return paid
	}
	return max(o.GetAmounts().GetTotal(), 0)
}

// capturedOf returns how much of a charge was captured: all of it, unless an event
// stated another sum or a state in which nothing is.
func capturedOf(c *ordergatev1.Charge) int64 {
	switch {
	case c.GetAmountCaptured() > 0:
		return c.GetAmountCaptured()
	case c.GetState() == ordergatev1.ChargeState_CHARGE_STATE_UNSPECIFIED,
		c.GetState() == ordergatev1.ChargeState_CHARGE_STATE_CAPTURED:
		return c.GetAmount()
	default:
		return 0
	}
}

// refundedOf returns the refunded sum that a charge stated. Some API versions count
// the part that was never captured as refunded. That part is no refund, so a sum
// that can contain it is reduced by it; if the sum did not contain it, the refunds
// themselves state the difference.
func refundedOf(c *ordergatev1.Charge) int64 {
	captured, refunded := capturedOf(c), c.GetAmountRefunded()
	if c.GetRefunded() || c.Refunded == nil && refunded == captured {
		return captured
	}
	if uncaptured := c.GetAmount() - captured; uncaptured > 0 && refunded >= uncaptured {
		refunded -= uncaptured
	}
	return refunded
}

// chargeSum is what is known of the refunds of one charge.
type chargeSum struct {
	currency string
	stated   bool  // an event stated the charge itself
	whole    int64 // the captured sum of the charge; 0 if it was not stated
	told     int64 // the largest refunded sum that it told
	counted  int64 // its refunds that count
	failed   int64 // its refunds that came to nothing
}

// back is what was given back of the charge. A sum that the charge told is of a
// moment: a refund that was in it may have failed since. So it says that at least
// the told sum less all that failed was given back; and so was, at least, what
// counts. As soon as every refund was heard of, the two meet.
func (c *chargeSum) back() int64 { return max(c.told-c.failed, c.counted, 0) }

// tried is the most that was on its way back at a time. A charge tells that with
// each refund; one that never told may have had all of its refunds at a time.
func (c *chargeSum) tried() int64 {
	if c.told > 0 {
		return max(c.told, c.counted)
	}
	return add(c.counted, c.failed)
}

func sumRefunds(o *ordergatev1.Order, money collected) (sum refundSum) {
	if len(o.GetRefunds()) == 0 && len(o.GetCharges()) == 0 {
		return refundSum{}
	}
	type key struct{ charge, currency string }
	sums := map[key]*chargeSum{}
	of := func(charge, currency string) *chargeSum {
		k := key{charge, first(currency, o.GetCurrency())}
		if sums[k] == nil {
			sums[k] = &chargeSum{currency: k.currency}
		}
		return sums[k]
	}
	var collecting []*ordergatev1.Charge // the charges that collected money
	for _, c := range o.GetCharges() {
		s := of(c.GetId(), c.GetCurrency())
		s.stated, s.whole, s.told = true, capturedOf(c), refundedOf(c)
		if s.whole > 0 {
			collecting = append(collecting, c)
		}
	}
	ofRefund := func(r *ordergatev1.Refund) *chargeSum {
		charge := r.GetCharge()
		if charge == "" && len(collecting) == 1 {
			charge = collecting[0].GetId()
		}
		return of(charge, r.GetCurrency())
	}
	for _, r := range o.GetRefunds() {
		s := ofRefund(r)
		if counts(r) {
			s.counted = add(s.counted, r.GetAmount())
		} else {
			s.failed = add(s.failed, r.GetAmount())
		}
	}

	var back, tried cover
	for _, s := range sums {
		if s.stated && s.whole == 0 {
			continue // nothing was collected that could be given back
		}
		back.charge(s.back(), s.whole)
		tried.charge(s.tried(), s.whole)
		if s.currency == o.GetCurrency() {
			back.sum, tried.sum = add(back.sum, s.back()), add(tried.sum, s.tried())
		}
	}
	due := money.due(o)
	sum = refundSum{back: back.sum, some: back.some, full: back.all(o, due)}
	for _, r := range o.GetRefunds() {
		// One in another currency can be compared only with its charge.
		s := ofRefund(r)
		foreign := counts(r) && s.currency != o.GetCurrency() && s.whole == 0
		if !sum.full && (foreign || !counts(r) && tried.all(o, due)) {
			sum.unclear = append(sum.unclear, r.GetId())
		}
	}
	return sum
}

// cover says how much of an order's money a sum over its charges covers.
type cover struct {
	sum  int64 // in the order's currency
	some bool  // more than nothing
	part bool  // a charge is covered in part or not at all, or it is not known
}

// charge adds what is covered of one charge.
func (c *cover) charge(amount, whole int64) {
	c.some = c.some || amount > 0
	c.part = c.part || amount < whole || whole == 0 && amount > 0
}

// all reports whether all of the order's money is covered: as much as is due, or
// each charge. The charges decide if they are in another currency than the order or
// less than its total (a customer's credit paid the rest); but an invoice may have
// further charges.
func (c *cover) all(o *ordergatev1.Order, due int64) bool {
	return c.sum > 0 && due > 0 && c.sum >= due ||
		c.some && !c.part && o.GetSource() != ordergatev1.OrderSource_ORDER_SOURCE_INVOICE
}

// showAmounts writes the sums that were collected and given back into the order's
// amounts. The paid sum of an invoice is the one that the invoice states.
func (f facts) showAmounts(o *ordergatev1.Order) {
	a := o.GetAmounts()
	if a == nil {
		a = &ordergatev1.Amounts{}
	}
	a.Refunded, a.Captured = nil, nil
	if f.refunds.back > 0 {
		a.Refunded = new(f.refunds.back)
	}
	if f.money.stated {
		a.Captured = new(f.money.captured)
	}
	if o.GetSource() != ordergatev1.OrderSource_ORDER_SOURCE_INVOICE {
		a.Paid = nil
		if paid := f.money.paid(o); paid > 0 {
			a.Paid = new(paid)
		}
	}
	o.Amounts = nil
	if proto.Size(a) > 0 {
		o.Amounts = a
	}
}

// add adds two sums that are not negative; where it would overflow, it stays at
// the largest number.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
