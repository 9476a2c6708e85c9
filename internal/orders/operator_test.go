package orders

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

func orderOf(t *testing.T, events ...story) *ordergatev1.Order {
	t.Helper()
	o, _ := deliver(t, nil, "cs_1", parseStories(t, events), noKey)
	return o
}

func heard(t *testing.T, o *ordergatev1.Order, events ...story) *ordergatev1.Order {
	t.Helper()
	for _, e := range parseStories(t, events) {
		if c := applied(t, o, e, noKey); c != nil {
			o = c.Order
		}
	}
	return o
}

func TestReinstate(t *testing.T) {
	lost := func(id string) story { return dispute("closed", id, "lost") }
	refundOf := func(id string) story { return refund("refund.created", id, 4200, "succeeded") }
	for _, test := range []struct {
		name   string
		events []story
		want   ordergatev1.Directive
		causes []string
		again  []story // which change nothing of that
		other  []story // which do
		then   ordergatev1.Directive
	}{
		{"lost dispute", []story{paidSession, lost("dp_1")}, ship, []string{"dp_1"}, []story{lost("dp_1"), paidSession}, []story{lost("dp_2")}, cancel},
		{"refund", []story{paidSession, refundOf("re_1")}, ship, []string{"re_1"}, []story{refundOf("re_1"), refund("refund.updated", "re_1", 4200, "succeeded")},
			[]story{refundOf("re_2")}, cancel},
		{"refund that fails", []story{paidSession, refundOf("re_1")}, ship, []string{"re_1"}, nil, []story{refund("refund.failed", "re_1", 4200, "failed"), refundOf("re_2")}, cancel},
		{"refunded charge", []story{paidSession, refunded(4200)}, ship, nil, []story{refunded(4200), refunded(1000)}, []story{lost("dp_1")}, cancel},
		{"held as well", []story{paidSession, lost("dp_1"), warning("created", "issfr_1", `"actionable":true`)}, hold, []string{"dp_1"}, nil, nil, hold},
		{"canceled payment", []story{placedSession, intent("canceled", `,"status":"canceled"`)}, wait, []string{""}, []story{placedSession},
			[]story{intent("succeeded", `,"status":"succeeded"`)}, ship},
		{"failed payment", []story{placedSession, session("async_payment_failed", `,"payment_status":"unpaid"`)}, wait, []string{""}, nil, []story{lost("dp_1")}, cancel},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := orderOf(t, test.events...)
			if before.GetDirective() != cancel {
				t.Fatalf("the order is not canceled: %v", before)
			}
			c := Reinstate(before, "the buyer keeps it")
			if c.Kind != kindReleased || c.Note != "the buyer keeps it" || c.PreviousDirective != cancel || c.Order.GetDirective() != test.want ||
				c.Order.GetStatus() != before.GetStatus() || c.Order.GetRevision() != before.GetRevision()+1 {
				t.Errorf("reinstated: %v, %v", c.Kind, c.Order)
			}
			var causes []string
			for _, cause := range c.Order.GetReinstatements() {
				causes = append(causes, cause.GetCause())
			}
			if test.causes != nil && !slices.Equal(causes, test.causes) || len(Canceling(c.Order)) > 0 {
				t.Errorf("causes %v, want %v", causes, test.causes)
			}
			if Reinstate(c.Order, "again") != nil {
				t.Error("it is reinstated twice")
			}
			for _, s := range test.again {
				if o := heard(t, c.Order, s); o.GetDirective() != test.want {
					t.Errorf("%s canceled it again: %v", s.typ, o)
				}
			}
			if o := heard(t, c.Order, test.other...); o.GetDirective() != test.then {
				t.Errorf("after something else: %v, want %v", o, test.then)
			}
		})
	}

	t.Run("in any order", func(t *testing.T) {
		o := Reinstate(orderOf(t, paidSession, lost("dp_1"), refundOf("re_1")), "x").Order
		events := parseStories(t, []story{lost("dp_1"), refundOf("re_1"), refund("refund.created", "re_2", 100, "succeeded"), paidSession, review("opened", "prv_1", `"open":true`)})
		var want *ordergatev1.Order
		for _, arrival := range permutations(events) {
			got, _ := deliver(t, o, "cs_1", arrival, noKey)
			got = proto.CloneOf(got)
			got.Revision = 0
			if want == nil {
				want = got
			}
			if !proto.Equal(got, want) {
				t.Fatalf("%v, want %v", got, want)
			}
		}
	})

	t.Run("never", func(t *testing.T) {
		tombstone := Erase(orderOf(t, paidSession, lost("dp_1"))).Order
		for _, o := range []*ordergatev1.Order{nil, tombstone, orderOf(t, paidSession), orderOf(t, placedSession)} {
			if c := Reinstate(o, "x"); c != nil {
				t.Errorf("%v became %v", o, c.Order)
			}
		}
	})

	t.Run("rebuilt", func(t *testing.T) {
		events := parseStories(t, []story{paidSession, lost("dp_1")})
		o := Reinstate(orderOf(t, paidSession, lost("dp_1")), "x").Order
		if c, err := Rebuild(o, events); err != nil || c != nil {
			t.Errorf("rebuilt: %v, %v", c, err)
		}
	})
}

func TestReleaseCause(t *testing.T) {
	o := Hold(orderOf(t, paidSession, dispute("created", "dp_1", "needs_response"), dispute("created", "dp_2", "needs_response"),
		review("opened", "prv_1", `"open":true`)), "wait").Order
	for _, test := range []struct {
		reason ordergatev1.HoldReason
		cause  string
		left   int // of four causes
	}{
		{disputed, "dp_1", 3},
		{disputed, "", 2},
		{byOperator, "", 3},
		{disputed, "dp_3", 4},
		{ordergatev1.HoldReason_HOLD_REASON_RECOVERED, "", 4},
	} {
		c := ReleaseCause(o, "x", &ordergatev1.HoldRelease{Reason: test.reason, Cause: test.cause})
		if test.left == 4 {
			if c != nil {
				t.Errorf("%v %s: %v", test.reason, test.cause, c.Order)
			}
			continue
		}
		if c == nil || len(Holding(c.Order)) != test.left || c.Order.GetDirective() != hold || (c.Order.GetOperatorHold() == nil) != (test.reason == byOperator) {
			t.Errorf("%v %s: %v", test.reason, test.cause, c)
		}
	}
}
