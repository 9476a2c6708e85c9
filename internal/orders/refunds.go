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

// chargeSum is what is known of the refunds of one charge.
type chargeSum struct {
	currency string
	whole    int64 // the charge itself; 0 when it has not told
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

func sumRefunds(o *ordergatev1.Order) (sum refundSum) {
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
	for _, c := range o.GetCharges() {
		s := of(c.GetId(), c.GetCurrency())
		s.whole, s.told = c.GetAmount(), c.GetAmountRefunded()
	}
	ofRefund := func(r *ordergatev1.Refund) *chargeSum {
		charge := r.GetCharge()
		if charge == "" && len(o.GetCharges()) == 1 {
			charge = o.GetCharges()[0].GetId()
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
		back.charge(s.back(), s.whole)
		tried.charge(s.tried(), s.whole)
		if s.currency == o.GetCurrency() {
			back.sum, tried.sum = add(back.sum, s.back()), add(tried.sum, s.tried())
		}
	}
	sum = refundSum{back: back.sum, some: back.some, full: back.all(o)}
	for _, r := range o.GetRefunds() {
		// One in another currency can be compared only with its charge.
		s := ofRefund(r)
		foreign := counts(r) && s.currency != o.GetCurrency() && s.whole == 0
		if !sum.full && (foreign || !counts(r) && tried.all(o)) {
			sum.unclear = append(sum.unclear, r.GetId())
		}
	}
	return sum
}

// cover says how much of an order's money a sum over its charges covers.
type cover struct {
	sum  int64 // in the order's currency
	some bool  // more than nothing
	part bool  // a charge is covered in part, or it is not known
}

// charge adds what is covered of one charge.
func (c *cover) charge(amount, whole int64) {
	c.some = c.some || amount > 0
	c.part = c.part || amount > 0 && (whole == 0 || amount < whole)
}

// all reports whether all of the order's money is covered: as much as the buyer
// paid, or each charge. The latter also tells where the charge is in another
// currency than the order or less than its total (a customer's credit paid the
// rest); but an invoice may have further charges.
func (c *cover) all(o *ordergatev1.Order) bool {
	paid := o.GetAmounts().GetPaid()
	if paid <= 0 {
		paid = o.GetAmounts().GetTotal()
	}
	return c.sum > 0 && paid > 0 && c.sum >= paid ||
		c.some && !c.part && o.GetSource() != ordergatev1.OrderSource_ORDER_SOURCE_INVOICE
}

// show writes the refunded sum into the order's amounts.
func (s refundSum) show(o *ordergatev1.Order) {
	if s.back == 0 {
		if o.GetAmounts() != nil {
			o.Amounts.Refunded = nil
			if proto.Size(o.Amounts) == 0 {
				o.Amounts = nil
			}
		}
		return
	}
	if o.Amounts == nil {
		o.Amounts = &ordergatev1.Amounts{}
	}
	o.Amounts.Refunded = new(s.back)
}

// add adds two sums that are not negative; where it would overflow, it stays at
// the largest number.
func add(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}
