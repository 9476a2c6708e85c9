package orders

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// Several events make one revision, whatever their order, and the error of one of them is its own.
func TestApplyAll(t *testing.T) {
	foreign := parse(t, []byte(strings.Replace(string(refunded(1000).json(9)), `"livemode":false`, `"livemode":true`, 1)))
	events := append(parseStories(t, []story{review("opened", "prv_1", `"open":true`), paidSession, refunded(1000), refunded(1000)}), foreign)
	c, folded := ApplyAll(nil, events, noKey)
	if c.Order.GetRevision() != 1 || c.Order.GetDirective() != hold || c.Order.GetStatus() != partlyRefunded || c.Kind != kindPaid {
		t.Errorf("%v, %v", c.Kind, c.Order)
	}
	var changed []bool
	for _, f := range folded {
		changed = append(changed, f.Changed)
	}
	if !slices.Equal(changed, []bool{true, true, true, false, false}) || !errors.Is(folded[4].Err, ErrMismatch) || folded[3].Err != nil {
		t.Errorf("folded = %v", folded)
	}
	if again, _ := ApplyAll(c.Order, events[:4], noKey); again != nil {
		t.Errorf("the same events change it again: %v", again.Order)
	}
	next, _ := ApplyAll(c.Order, parseStories(t, []story{refunded(4200), warning("created", "issfr_1", `"actionable":true`)}), noKey)
	if next.Order.GetRevision() != 2 || next.PreviousDirective != hold || next.Order.GetDirective() != cancel {
		t.Errorf("%v", next.Order)
	}
	if c, _ := ApplyAll(nil, events[:1], noKey); c != nil {
		t.Errorf("a follow-up made %v", c.Order)
	}
}

// An order settles once its money allows it to ship, and no later change starts that again.
func TestSettling(t *testing.T) {
	until := timestamppb.New(time.Unix(1800000000, 0))
	first := applied(t, nil, parse(t, placedSession.json(1)), noKey)
	if c := StartSettling(nil, first, until); c != first {
		t.Errorf("an order that is not paid settles: %v", c.Order)
	}
	paid := StartSettling(first.Order, applied(t, first.Order, parse(t, session("async_payment_succeeded", `,"payment_status":"paid"`).json(2)), noKey), until)
	if o := paid.Order; o.GetDirective() != wait || !slices.Equal(o.GetWaitReasons(), []ordergatev1.WaitReason{ordergatev1.WaitReason_WAIT_REASON_SETTLING}) || o.GetSettleTime().AsTime() != until.AsTime() {
		t.Errorf("paid: %v", o)
	}
	more := StartSettling(paid.Order, applied(t, paid.Order, parse(t, refunded(1000).json(3)), noKey), timestamppb.Now())
	if more.Order.GetSettleTime().AsTime() != until.AsTime() || more.Order.GetDirective() != wait {
		t.Errorf("settles anew: %v", more.Order)
	}
	ended := EndSettling(more.Order)
	if ended.Order.GetDirective() != ship || ended.Order.SettleTime != nil || EndSettling(ended.Order) != nil || EndSettling(nil) != nil {
		t.Errorf("ended: %v", ended.Order)
	}
	authorized, err := Parse(intent("amount_capturable_updated", `,"status":"requires_capture"`).json(4), Sources{PaymentIntents: true, ShipOnAuthorization: true})
	if err != nil {
		t.Fatal(err)
	}
	if c := StartSettling(nil, applied(t, nil, authorized, noKey), until); c.Order.GetSettleTime() == nil || c.Order.GetDirective() == ship {
		t.Errorf("authorized: %v", c.Order)
	}
}

// A large order loses the details of its items first, and then its items, which holds it. Nothing
// brings the details back.
func TestReduce(t *testing.T) {
	items := LineItems{State: ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE, Items: []*ordergatev1.LineItem{{
		Id: "li_1", Description: "Shirt", Metadata: map[string]string{"k": "v"}, PriceDetails: &ordergatev1.PriceDetails{Id: "price_1", Nickname: "L", Metadata: map[string]string{"k": "v"}},
		Product: &ordergatev1.Product{Id: "prod_1", Name: "Shirt", Description: "long", Images: []string{"x"}, Metadata: map[string]string{"sku": "S"}},
	}}}
	full := applied(t, nil, parse(t, paidSession.json(1)), items)
	less, ok := Reduce(nil, full)
	if item := less.Order.GetLineItems()[0]; !ok || item.GetMetadata() != nil || item.GetPriceDetails().GetMetadata() != nil || item.GetPriceDetails().GetNickname() != "L" ||
		item.GetProduct().GetMetadata() != nil || item.GetProduct().GetImages() != nil || item.GetProduct().GetName() != "Shirt" || less.Order.GetDirective() != ship {
		t.Errorf("reduced: %v", less.Order)
	}
	if len(full.Order.GetLineItems()[0].GetMetadata()) == 0 {
		t.Error("the change was modified")
	}
	if c := SetLineItems(less.Order, items); c != nil {
		t.Errorf("the details are back: %v", c.Order)
	}
	least, ok := Reduce(nil, less)
	if o := least.Order; !ok || len(o.GetLineItems()) > 0 || o.GetDirective() != hold || !slices.Contains(o.GetHoldReasons(), ordergatev1.HoldReason_HOLD_REASON_TOO_LARGE) {
		t.Errorf("reduced twice: %v", o)
	}
	if _, ok := Reduce(nil, least); ok {
		t.Error("there is more to take away")
	}
}
