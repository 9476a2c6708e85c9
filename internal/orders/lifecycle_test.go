package orders

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

const (
	statusCanceled = ordergatev1.OrderStatus_ORDER_STATUS_CANCELED
	partlyRefunded = ordergatev1.OrderStatus_ORDER_STATUS_PARTIALLY_REFUNDED
	statusRefunded = ordergatev1.OrderStatus_ORDER_STATUS_REFUNDED
	isAuthorized   = ordergatev1.OrderStatus_ORDER_STATUS_AUTHORIZED

	kindCanceled = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_CANCELED
	kindRefunded = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_REFUNDED

	disputed      = ordergatev1.HoldReason_HOLD_REASON_DISPUTED
	inReview      = ordergatev1.HoldReason_HOLD_REASON_IN_REVIEW
	fraudWarning  = ordergatev1.HoldReason_HOLD_REASON_FRAUD_WARNING
	isRecovered   = ordergatev1.HoldReason_HOLD_REASON_RECOVERED
	noAddress     = ordergatev1.HoldReason_HOLD_REASON_ADDRESS_UNREADABLE
	byOperator    = ordergatev1.HoldReason_HOLD_REASON_OPERATOR
	refundUnclear = ordergatev1.HoldReason_HOLD_REASON_REFUND_UNCLEAR
	halfAddress   = ordergatev1.HoldReason_HOLD_REASON_ADDRESS_INCOMPLETE
	addressLost   = ordergatev1.HoldReason_HOLD_REASON_ADDRESS_MISSING
	isCredited    = ordergatev1.HoldReason_HOLD_REASON_CREDITED
	moneyUnclear  = ordergatev1.HoldReason_HOLD_REASON_PAYMENT_UNCLEAR
	disputeLost   = ordergatev1.HoldReason_HOLD_REASON_DISPUTE_LOST
)

// story is one event, by its type and the fields of its object that matter.
type story struct {
	typ    string
	object string // JSON, after the opening brace
}

// objectOf is what the object of a type of event is.
func objectOf(typ string) string {
	switch {
	case strings.HasPrefix(typ, "checkout.session."):
		return "checkout.session"
	case strings.HasPrefix(typ, "refund.") || typ == "charge.refund.updated":
		return "refund"
	case strings.HasPrefix(typ, "charge.dispute."):
		return "dispute"
	default:
		return typ[:strings.LastIndex(typ, ".")]
	}
}

func (s story) json(n int) []byte {
	typ, version, _ := strings.Cut(s.typ, "@")
	if version == "" {
		version = "2023-10-16"
	}
	return fmt.Appendf(nil, `{"id":"evt_%d","object":"event","api_version":%q,"created":%d,"livemode":false,"type":%q,"data":{"object":{"object":%q,%s}}}`,
		n, version, 1700000000+n, typ, objectOf(typ), s.object)
}

func parseStories(t *testing.T, stories []story) (events []*Event) {
	t.Helper()
	for i, s := range stories {
		events = append(events, parse(t, s.json(i+1)))
	}
	return events
}

// The events of a sale of 42.00 EUR through pi_1 and ch_1.
const ofPi1 = `,"payment_intent":"pi_1","charge":"ch_1"`

func session(typ, fields string) story {
	return story{"checkout.session." + typ, `"id":"cs_1","payment_intent":"pi_1","mode":"payment","currency":"eur","amount_total":4200` + shipTo + fields}
}

var (
	paidSession   = session("completed", `,"payment_status":"paid"`)
	placedSession = session("completed", `,"payment_status":"unpaid"`)
)

func refund(typ, id string, amount int, status string) story {
	return story{typ, fmt.Sprintf(`"id":%q,"amount":%d,"currency":"eur","status":%q`, id, amount, status) + ofPi1}
}

func refunded(total int) story {
	return story{"charge.refunded", fmt.Sprintf(`"id":"ch_1","payment_intent":"pi_1","amount":4200,"currency":"eur","amount_refunded":%d`, total)}
}

func dispute(what, id, status string) story {
	return story{"charge.dispute." + what, fmt.Sprintf(`"id":%q,"amount":4200,"currency":"eur","reason":"fraudulent","status":%q`, id, status) + ofPi1}
}

func partialDispute(what, id, status string, amount int) story {
	return story{"charge.dispute." + what, fmt.Sprintf(`"id":%q,"amount":%d,"currency":"eur","status":%q`, id, amount, status) + ofPi1}
}

// charge is ch_1, of 4200, with these captured and refunded sums.
func charge(what string, captured, refunded int, fields string) story {
	return story{"charge." + what, fmt.Sprintf(`"id":"ch_1","payment_intent":"pi_1","amount":4200,"currency":"eur","amount_captured":%d,"amount_refunded":%d`, captured, refunded) + fields}
}

// creditNote is on the invoice in_1.
func creditNote(what, id, status string, amount int) story {
	return story{"credit_note." + what, fmt.Sprintf(`"id":%q,"invoice":"in_1","amount":%d,"total":%d,"currency":"eur","status":%q,"reason":"order_change",`+
		`"lines":{"has_more":false,"data":[{"id":"cnli_1","invoice_line_item":"il_1","amount":%d,"quantity":1,"description":"Box"}]}`, id, amount, amount, status, amount)}
}

func review(what, id, fields string) story {
	return story{"review." + what, fmt.Sprintf(`"id":%q,%s`, id, fields) + ofPi1}
}

func warning(what, id, fields string) story {
	return story{"radar.early_fraud_warning." + what, fmt.Sprintf(`"id":%q,"fraud_type":"misc",%s`, id, fields) + ofPi1}
}

func intent(what, fields string) story {
	return story{"payment_intent." + what, `"id":"pi_1","amount":4200,"currency":"eur","latest_charge":"ch_1"` + fields}
}

const (
	oldInvoice = `"id":"in_1","billing_reason":"subscription_cycle","status":"paid","paid":true,"currency":"eur","total":4200,"amount_paid":4200,` +
		`"charge":"ch_1","payment_intent":"pi_1","subscription":"sub_1","customer_name":"Ada Sample","shipping_details":{"name":"Ada Sample","phone":"+1","address":` + street + `},` +
		`"lines":{"has_more":false,"data":[{"id":"il_1","object":"line_item","amount":4200,"quantity":1,"description":"Box","price":{"id":"price_1","product":"prod_1"}}]}`
	basilInvoice = `"id":"in_1","billing_reason":"subscription_cycle","status":"paid","currency":"eur","total":4200,"amount_paid":4200,` +
		`"parent":{"type":"subscription_details","subscription_details":{"subscription":"sub_1","metadata":{"box":"1"}}},"customer_name":"Ada Sample",` +
		`"shipping_details":{"name":"Ada Sample","address":` + street + `},` +
		`"lines":{"has_more":false,"data":[{"id":"il_1","object":"line_item","amount":4200,"subtotal":4200,"quantity":1,"description":"The box","pricing":{"price_details":{"price":"price_1","product":"prod_1"}}}]}`
)

// deliver is the caller as Event's documentation wants it: a follow-up whose
// order is not there comes again when it is, and so does a sale that must be
// claimed and is another object's: that of the order named owner. At every step
// it checks what Apply promises.
func deliver(t *testing.T, start *ordergatev1.Order, owner string, events []*Event, items LineItems) (o *ordergatev1.Order, kinds []ordergatev1.OrderEventKind) {
	t.Helper()
	o = start
	var unmatched []*Event
	for _, e := range events {
		if o == nil && e.MustClaim() && e.OrderID() != owner {
			unmatched = append(unmatched, e)
			continue
		}
		c := step(t, o, e, items)
		if o == nil && c == nil && !e.Ignored() {
			unmatched = append(unmatched, e)
		}
		made := o == nil && c != nil
		if c != nil {
			o, kinds = c.Order, append(kinds, c.Kind)
		}
		if made {
			for _, e := range unmatched {
				if c := step(t, o, e, items); c != nil {
					o, kinds = c.Order, append(kinds, c.Kind)
				}
			}
		}
	}
	return o, kinds
}

func step(t *testing.T, o *ordergatev1.Order, e *Event, items LineItems) *Change {
	t.Helper()
	before := proto.CloneOf(o)
	c := applied(t, o, e, items)
	if !proto.Equal(o, before) {
		t.Fatal("Apply modified the order it was given")
	}
	if c == nil {
		return nil
	}
	if c.Order.GetRevision() != o.GetRevision()+1 {
		t.Fatalf("revision %d follows %d", c.Order.GetRevision(), o.GetRevision())
	}
	same := proto.CloneOf(c.Order)
	same.Revision = o.GetRevision()
	if proto.Equal(same, o) {
		t.Fatalf("%s changed nothing, and made revision %d", e.Type, c.Order.GetRevision())
	}
	if again := applied(t, c.Order, e, items); again != nil {
		t.Fatalf("%s a second time made %v\nafter %v", e.Type, again.Order, c.Order)
	}
	checkSets(t, c.Order)
	// The change must share no memory with the event: spoil it.
	spoiled := proto.CloneOf(c.Order)
	for _, r := range c.Order.GetRefunds() {
		r.Amount, r.State = -1, 0
	}
	for _, d := range c.Order.GetDisputes() {
		d.State = 0
	}
	if c.Order.PaidTime != nil {
		c.Order.PaidTime.Seconds = -1
	}
	for _, item := range c.Order.GetLineItems() {
		item.Id = "spoiled"
	}
	c.Order = spoiled
	return c
}

// checkSets checks that the lists of facts are sets, sorted by id.
func checkSets(t *testing.T, o *ordergatev1.Order) {
	t.Helper()
	check(t, o.GetRefunds())
	check(t, o.GetDisputes())
	check(t, o.GetReviews())
	check(t, o.GetEarlyFraudWarnings())
	check(t, o.GetCharges())
}

func check[F fact](t *testing.T, facts []F) {
	t.Helper()
	for i := 1; i < len(facts); i++ {
		if facts[i-1].GetId() >= facts[i].GetId() {
			t.Fatalf("%s after %s", facts[i].GetId(), facts[i-1].GetId())
		}
	}
}

// arrivals returns the orders in which events can arrive, each of them twice:
// all of them, or where they are too many, all without copies and the same
// hundred and fifty with.
func arrivals(events []*Event) [][]*Event {
	twice := slices.Concat(events, events)
	if len(events) <= 3 {
		return permutations(twice)
	}
	all := permutations(events)
	shuffle := rand.New(rand.NewPCG(1, 2))
	for range 150 {
		arrival := slices.Clone(twice)
		shuffle.Shuffle(len(arrival), func(i, j int) { arrival[i], arrival[j] = arrival[j], arrival[i] })
		all = append(all, arrival)
	}
	return all
}

// TestLifecycles: all that happens to an order, in any order and twice, ends in
// the same order.
func TestLifecycles(t *testing.T) {
	type holds = []ordergatev1.HoldReason
	for _, test := range []struct {
		name      string
		events    []story
		status    ordergatev1.OrderStatus
		directive ordergatev1.Directive
		holds     holds
		refunded  int64
	}{
		{"partial refund", []story{paidSession, refunded(1000)}, partlyRefunded, ship, nil, 1000},
		{"partial, then full refund", []story{paidSession, refunded(1000), refunded(4200)}, statusRefunded, cancel, nil, 4200},
		{"the same with its refunds", []story{paidSession, refunded(1000), refunded(4200), refund("refund.created", "re_1", 1000, "succeeded"), refund("refund.created", "re_2", 3200, "succeeded")},
			statusRefunded, cancel, nil, 4200},
		{"the same with its refunds only", []story{paidSession, refund("refund.created", "re_1", 1000, "succeeded"), refund("refund.created", "re_2", 3200, "pending"), refund("refund.updated", "re_2", 3200, "succeeded")},
			statusRefunded, cancel, nil, 4200},
		{"refund pending, then succeeded", []story{paidSession, refund("refund.created", "re_1", 1000, "pending"), refunded(1000), refund("refund.updated", "re_1", 1000, "succeeded")},
			partlyRefunded, ship, nil, 1000},
		{"partial refund fails", []story{paidSession, refund("refund.created", "re_1", 1000, "pending"), refunded(1000), refund("refund.failed", "re_1", 1000, "failed")},
			statusPaid, ship, nil, 0},
		{"a refund that succeeded fails", []story{paidSession, refund("refund.created", "re_1", 1000, "succeeded"), refunded(1000), refund("charge.refund.updated", "re_1", 1000, "failed")},
			statusPaid, ship, nil, 0},
		{"full refund fails", []story{paidSession, refund("refund.created", "re_1", 4200, "pending"), refunded(4200), refund("refund.failed", "re_1", 4200, "failed")},
			statusPaid, hold, holds{refundUnclear}, 0},
		{"full refund is cancelled, by its refunds only", []story{paidSession, refund("refund.created", "re_1", 4200, "requires_action"), refund("refund.updated", "re_1", 4200, "canceled")},
			statusPaid, hold, holds{refundUnclear}, 0},
		{"a failed refund, then another", []story{paidSession, refunded(1000), refund("refund.failed", "re_1", 1000, "failed"), refunded(500), refund("refund.created", "re_2", 500, "succeeded")},
			partlyRefunded, ship, nil, 500},
		{"half of it fails, and is refunded again", []story{paidSession, refunded(2100), refund("refund.failed", "re_1", 2100, "failed"), refund("refund.created", "re_2", 2100, "succeeded")},
			partlyRefunded, ship, nil, 2100},
		{"a failed full refund, then another", []story{paidSession, refunded(4200), refund("refund.failed", "re_1", 4200, "failed"), refund("refund.created", "re_2", 4200, "succeeded")},
			statusRefunded, cancel, nil, 4200},
		{"two refunds, one of which fails", []story{paidSession, refunded(1000), refunded(1500), refund("refund.created", "re_2", 500, "succeeded"), refund("refund.updated", "re_1", 1000, "failed")},
			partlyRefunded, ship, nil, 500},
		{"a charge with its refunds", []story{paidSession,
			{"charge.refunded@2022-08-01", `"id":"ch_1","payment_intent":"pi_1","amount":4200,"currency":"eur","amount_refunded":1500,"refunds":{"data":[{"id":"re_2","object":"refund","amount":500,"currency":"eur","status":"succeeded"},{"id":"re_1","object":"refund","amount":1000,"currency":"eur","status":"succeeded"}]}`},
			refund("charge.refund.updated", "re_1", 1000, "failed")}, partlyRefunded, ship, nil, 500},
		{"refund without a charge", []story{paidSession, refunded(1000), {"refund.created", `"id":"re_1","amount":1000,"currency":"eur","status":"succeeded","payment_intent":"pi_1"`}},
			partlyRefunded, ship, nil, 1000},
		{"full refund in another currency", []story{paidSession, {"charge.refunded", `"id":"ch_1","payment_intent":"pi_1","amount":4700,"currency":"usd","amount_refunded":4700`}},
			statusRefunded, cancel, nil, 0},
		{"partial refund in another currency", []story{paidSession, {"charge.refunded", `"id":"ch_1","payment_intent":"pi_1","amount":4700,"currency":"usd","amount_refunded":1000`},
			{"refund.created", `"id":"re_1","amount":1000,"currency":"usd","status":"succeeded"` + ofPi1}}, partlyRefunded, ship, nil, 0},
		{"a refund in another currency of which nothing else is known", []story{paidSession, {"refund.created", `"id":"re_1","amount":1000,"currency":"usd","status":"succeeded"` + ofPi1}},
			partlyRefunded, hold, holds{refundUnclear}, 0},
		{"full refund where a credit paid a part", []story{paidSession, {"charge.refunded", `"id":"ch_1","payment_intent":"pi_1","amount":3000,"currency":"eur","amount_refunded":3000`}},
			statusRefunded, cancel, nil, 3000},

		{"dispute opened", []story{paidSession, dispute("created", "dp_1", "needs_response")}, statusPaid, hold, holds{disputed}, 0},
		{"dispute won", []story{paidSession, dispute("created", "dp_1", "needs_response"), dispute("updated", "dp_1", "under_review"), dispute("closed", "dp_1", "won")},
			statusPaid, ship, nil, 0},
		{"dispute lost", []story{paidSession, dispute("created", "dp_1", "needs_response"), dispute("updated", "dp_1", "under_review"), dispute("closed", "dp_1", "lost")},
			statusPaid, cancel, nil, 0},
		{"dispute lost, appealed and won", []story{paidSession, dispute("created", "dp_1", "needs_response"), dispute("closed", "dp_1", "lost"), dispute("updated", "dp_1", "appeal_under_review"), dispute("closed", "dp_1", "won")},
			statusPaid, ship, nil, 0},
		{"dispute lost, appealed and lost again", []story{paidSession, dispute("closed", "dp_1", "lost"), dispute("updated", "dp_1", "appeal_needs_response"), dispute("closed", "dp_1", "lost")},
			statusPaid, cancel, nil, 0},
		{"a part is disputed", []story{paidSession, partialDispute("created", "dp_1", "needs_response", 1000)}, statusPaid, hold, holds{disputed}, 0},
		{"a partial dispute is lost", []story{paidSession, partialDispute("created", "dp_1", "needs_response", 1000), partialDispute("closed", "dp_1", "lost", 1000)},
			statusPaid, hold, holds{disputeLost}, 0},
		{"a partial dispute is won on appeal", []story{paidSession, partialDispute("closed", "dp_1", "lost", 1000), partialDispute("closed", "dp_1", "won", 1000)}, statusPaid, ship, nil, 0},
		{"two partial disputes are lost", []story{paidSession, partialDispute("closed", "dp_1", "lost", 1200), partialDispute("closed", "dp_2", "lost", 3000)}, statusPaid, cancel, nil, 0},
		{"a part is refunded, the rest is lost", []story{paidSession, refunded(3200), partialDispute("closed", "dp_1", "lost", 1000)}, partlyRefunded, cancel, nil, 3200},
		{"a dispute in another currency is lost", []story{paidSession, {"charge.dispute.closed", `"id":"dp_1","amount":4700,"currency":"usd","status":"lost"` + ofPi1}}, statusPaid, hold, holds{disputeLost}, 0},
		{"a dispute over a charge in another currency is lost", []story{paidSession, {"charge.dispute.closed", `"id":"dp_1","amount":4700,"currency":"usd","status":"lost"` + ofPi1},
			{"charge.captured", `"id":"ch_1","payment_intent":"pi_1","amount":4700,"amount_captured":4700,"amount_refunded":0,"currency":"usd","captured":true`}}, statusPaid, cancel, nil, 0},
		{"all that was captured is lost", []story{placedSession, charge("captured", 3000, 0, `,"captured":true`), partialDispute("closed", "dp_1", "lost", 3000)}, statusPaid, cancel, nil, 0},
		{"dispute lost and appealed", []story{paidSession, dispute("closed", "dp_1", "lost"), dispute("updated", "dp_1", "appeal_under_review")}, statusPaid, cancel, nil, 0},
		{"dispute appealed, the loss not heard of", []story{paidSession, dispute("updated", "dp_1", "appeal_needs_response")}, statusPaid, cancel, nil, 0},
		{"one dispute won, another open", []story{paidSession, dispute("created", "dp_1", "needs_response"), dispute("closed", "dp_1", "won"), dispute("created", "dp_2", "under_review")},
			statusPaid, hold, holds{disputed}, 0},
		{"inquiry closed", []story{paidSession, dispute("created", "dp_1", "warning_needs_response"), dispute("updated", "dp_1", "warning_under_review"), dispute("closed", "dp_1", "warning_closed")},
			statusPaid, ship, nil, 0},
		{"inquiry becomes a dispute", []story{paidSession, dispute("created", "dp_1", "warning_needs_response"), dispute("updated", "dp_1", "needs_response")},
			statusPaid, hold, holds{disputed}, 0},
		{"dispute prevented by a refund", []story{paidSession, dispute("created", "dp_1", "prevented"), refunded(4200)}, statusRefunded, cancel, holds{disputed}, 4200},
		{"a dispute with a new status", []story{paidSession, dispute("updated", "dp_1", "in_arbitration")}, statusPaid, hold, holds{disputed}, 0},

		{"review opened", []story{paidSession, review("opened", "prv_1", `"open":true,"reason":"rule","closed_reason":null`)}, statusPaid, hold, holds{inReview}, 0},
		{"review approved", []story{paidSession, review("opened", "prv_1", `"open":true,"reason":"rule"`), review("closed", "prv_1", `"open":false,"reason":"approved","closed_reason":"approved"`)},
			statusPaid, ship, nil, 0},
		{"review approved, without a closed_reason", []story{paidSession, review("opened", "prv_1", `"open":true,"reason":"rule"`), review("closed", "prv_1", `"open":false,"reason":"approved"`)},
			statusPaid, ship, nil, 0},
		{"review approved, not said to be closed", []story{paidSession, review("closed", "prv_1", `"closed_reason":"approved"`)}, statusPaid, ship, nil, 0},
		{"review refunded", []story{paidSession, review("opened", "prv_1", `"open":true,"reason":"rule"`), review("closed", "prv_1", `"open":false,"closed_reason":"refunded_as_fraud"`), refunded(4200)},
			statusRefunded, cancel, holds{inReview}, 4200},
		{"review refunded, the refund not heard of", []story{paidSession, review("closed", "prv_1", `"open":false,"closed_reason":"refunded"`)}, statusPaid, hold, holds{inReview}, 0},
		{"review ended by a dispute that is won", []story{paidSession, review("closed", "prv_1", `"open":false,"closed_reason":"disputed"`), dispute("created", "dp_1", "needs_response"), dispute("closed", "dp_1", "won")},
			statusPaid, ship, nil, 0},
		{"review ended by a dispute not heard of", []story{paidSession, review("closed", "prv_1", `"open":false,"closed_reason":"disputed"`)}, statusPaid, hold, holds{inReview}, 0},
		{"review ended without a word", []story{paidSession, review("opened", "prv_1", `"open":true,"reason":"manual"`), review("closed", "prv_1", `"open":false,"closed_reason":"redacted"`)},
			statusPaid, hold, holds{inReview}, 0},

		{"fraud warning", []story{paidSession, warning("created", "issfr_1", `"actionable":true`)}, statusPaid, hold, holds{fraudWarning}, 0},
		{"fraud warning, then refund", []story{paidSession, warning("created", "issfr_1", `"actionable":true`), warning("updated", "issfr_1", `"actionable":false`), refunded(4200)},
			statusRefunded, cancel, holds{fraudWarning}, 4200},
		{"everything at once", []story{paidSession, warning("created", "issfr_1", `"actionable":true`), review("opened", "prv_1", `"open":true`), dispute("created", "dp_1", "needs_response"), refunded(1000)},
			partlyRefunded, hold, holds{disputed, inReview, fraudWarning}, 1000},

		{"placed, paid, refunded", []story{placedSession, session("async_payment_succeeded", `,"payment_status":"paid","metadata":{"a":"1"}`), refunded(4200)},
			statusRefunded, cancel, nil, 4200},
		{"placed, refunded in part, never paid", []story{placedSession, refunded(1000)}, awaitingPayment, wait, nil, 1000},
		{"placed, captured by hand", []story{placedSession, intent("succeeded", `,"status":"succeeded","amount_received":4200`)}, statusPaid, ship, nil, 0},
		{"placed, captured, and then said by the session too", []story{placedSession, intent("succeeded", `,"status":"succeeded"`), session("async_payment_succeeded", `,"payment_status":"paid","metadata":{"a":"1"}`)},
			statusPaid, ship, nil, 0},
		{"placed, cancelled", []story{placedSession, intent("canceled", `,"status":"canceled"`)}, statusCanceled, cancel, nil, 0},
		{"placed in two versions, cancelled", []story{placedSession, {"checkout.session.completed@2025-09-30.clover", session("", `,"payment_status":"unpaid","metadata":{"v":"clover"}`).object}, intent("canceled", `,"status":"canceled"`)},
			statusCanceled, cancel, nil, 0},
		{"placed, cancelled, failed", []story{placedSession, intent("canceled", `,"status":"canceled"`), session("async_payment_failed", `,"payment_status":"unpaid"`)},
			paymentFailed, cancel, nil, 0},
		{"paid after all", []story{placedSession, intent("canceled", `,"status":"canceled"`), session("async_payment_succeeded", `,"payment_status":"paid"`)}, statusPaid, ship, nil, 0},

		{"authorized", []story{placedSession, intent("amount_capturable_updated", `,"status":"requires_capture","amount_capturable":4200`)}, isAuthorized, wait, nil, 0},
		{"authorized, then captured in part", []story{placedSession, intent("amount_capturable_updated", `,"status":"requires_capture"`), charge("captured", 3000, 0, `,"captured":true,"refunded":false`),
			intent("succeeded", `,"status":"succeeded","amount_received":3000`)}, statusPaid, ship, nil, 0},
		{"the uncaptured rest is counted as refunded", []story{placedSession, charge("captured", 3000, 1200, `,"captured":true,"refunded":false`)}, statusPaid, ship, nil, 0},
		{"the uncaptured rest is counted as refunded, and so is a refund", []story{placedSession, charge("captured", 3000, 1200, `,"captured":true,"refunded":false`),
			charge("refunded", 3000, 2200, `,"captured":true,"refunded":false`), refund("refund.created", "re_1", 1000, "succeeded")}, partlyRefunded, ship, nil, 1000},
		{"the uncaptured rest is not counted as refunded", []story{placedSession, charge("captured", 3000, 0, `,"captured":true,"refunded":false`),
			charge("refunded", 3000, 1000, `,"captured":true,"refunded":false`), refund("refund.created", "re_1", 1000, "succeeded")}, partlyRefunded, ship, nil, 1000},
		{"all that was captured is refunded", []story{placedSession, intent("succeeded", `,"status":"succeeded","amount_received":3000`), refund("refund.created", "re_1", 3000, "succeeded"),
			charge("refunded", 3000, 3000, `,"captured":true,"refunded":true`)}, statusRefunded, cancel, nil, 3000},
		{"all that was captured is refunded, the rest counted", []story{placedSession, charge("refunded", 3000, 4200, `,"captured":true,"refunded":true`), charge("captured", 3000, 1200, `,"captured":true,"refunded":false`)},
			statusRefunded, cancel, nil, 3000},
		{"a charge that says so is refunded in full", []story{paidSession, charge("refunded", 4000, 100, `,"captured":true,"refunded":true`)}, statusRefunded, cancel, nil, 4000},
		{"a full refund of a captured part fails", []story{placedSession, charge("captured", 3000, 0, `,"captured":true`), charge("refunded", 3000, 3000, `,"captured":true,"refunded":true`), refund("refund.failed", "re_1", 3000, "failed")},
			statusPaid, hold, holds{refundUnclear}, 0},
		{"a received sum of zero is not stated", []story{placedSession, intent("succeeded", `,"status":"succeeded","amount_received":0`), refund("refund.created", "re_1", 4200, "succeeded")}, statusRefunded, cancel, nil, 4200},
		{"a captured sum of zero is not stated", []story{placedSession, charge("captured", 0, 0, `,"captured":true`), refund("refund.created", "re_1", 4200, "succeeded")}, statusRefunded, cancel, nil, 4200},
		{"authorization expired", []story{placedSession, intent("amount_capturable_updated", `,"status":"requires_capture"`), charge("expired", 0, 4200, `,"captured":false,"refunded":true`)}, statusCanceled, cancel, nil, 0},
		{"authorization released", []story{placedSession, charge("refunded", 0, 4200, `,"captured":false,"refunded":true`), intent("canceled", `,"status":"canceled"`)}, statusCanceled, cancel, nil, 0},

		{"succeeded, but unpaid", []story{placedSession, session("async_payment_succeeded", `,"payment_status":"unpaid"`)}, awaitingPayment, hold, holds{moneyUnclear}, 0},
		{"succeeded, but unpaid, without a completion", []story{session("async_payment_succeeded", `,"payment_status":"unpaid"`)}, awaitingPayment, hold, holds{moneyUnclear}, 0},
		{"succeeded, but unpaid, then paid", []story{placedSession, session("async_payment_succeeded", `,"payment_status":"unpaid"`), intent("succeeded", `,"status":"succeeded","amount_received":4200`)}, statusPaid, ship, nil, 0},
		{"succeeded, but unpaid, then failed", []story{placedSession, session("async_payment_succeeded", `,"payment_status":"unpaid"`), session("async_payment_failed", `,"payment_status":"unpaid"`)}, paymentFailed, cancel, nil, 0},
		{"failed, but paid", []story{placedSession, session("async_payment_failed", `,"payment_status":"paid"`)}, awaitingPayment, hold, holds{moneyUnclear}, 0},
		{"expired, but paid", []story{placedSession, session("expired", `,"payment_status":"paid"`)}, awaitingPayment, hold, holds{moneyUnclear}, 0},
		{"payment succeeded, but processing", []story{placedSession, intent("succeeded", `,"status":"processing"`)}, awaitingPayment, hold, holds{moneyUnclear}, 0},
		{"captured, but not captured", []story{placedSession, charge("captured", 0, 0, `,"captured":false`)}, awaitingPayment, hold, holds{moneyUnclear}, 0},
		{"expired, but captured", []story{placedSession, charge("expired", 4200, 0, `,"captured":true`)}, awaitingPayment, hold, holds{moneyUnclear}, 0},

		{"a session with its invoice", []story{session("completed", `,"payment_status":"unpaid","invoice":"in_1"`), {"invoice.paid", strings.Replace(oldInvoice, "subscription_cycle", "manual", 1)}}, statusPaid, ship, nil, 0},
		{"a session whose invoice is paid after a failed debit", []story{session("completed", `,"payment_status":"unpaid","invoice":"in_1"`), session("async_payment_failed", `,"payment_status":"unpaid"`),
			{"invoice.paid", strings.Replace(oldInvoice, "subscription_cycle", "subscription_create", 1)}}, statusPaid, ship, nil, 0},
		{"a session with an invoice for no reason of ours", []story{session("completed", `,"payment_status":"unpaid","invoice":"in_1"`), {"invoice.paid", `"id":"in_1","status":"paid","billing_reason":"upcoming"`}}, statusPaid, ship, nil, 0},

		{"credited in part", []story{{"invoice.paid", oldInvoice}, creditNote("created", "cn_1", "issued", 1000)}, statusPaid, ship, nil, 0},
		{"credited in full", []story{{"invoice.paid", oldInvoice}, creditNote("created", "cn_1", "issued", 4200)}, statusPaid, hold, holds{isCredited}, 0},
		{"credited in full by two", []story{{"invoice.paid", oldInvoice}, creditNote("created", "cn_1", "issued", 4000), creditNote("created", "cn_2", "issued", 200)}, statusPaid, hold, holds{isCredited}, 0},
		{"credited in full, voided", []story{{"invoice.paid", oldInvoice}, creditNote("created", "cn_1", "issued", 4200), creditNote("updated", "cn_1", "issued", 4200), creditNote("voided", "cn_1", "void", 4200)}, statusPaid, ship, nil, 0},
		{"credited in full and refunded", []story{{"invoice.paid", oldInvoice}, creditNote("created", "cn_1", "issued", 4200), refund("refund.created", "re_1", 4200, "succeeded")}, statusRefunded, cancel, holds{isCredited}, 4200},

		{"a later box without an address", []story{{"invoice.paid", strings.Replace(oldInvoice, "shipping_details", "no_details", 1)}}, statusPaid, hold, holds{addressLost}, 0},
		{"a later box with half an address", []story{{"invoice.paid", strings.Replace(oldInvoice, `"line1":"Musterstraße 1"`, `"line1":null`, 1)}}, statusPaid, hold, holds{halfAddress}, 0},
		{"a manual invoice without an address", []story{{"invoice.paid", strings.Replace(strings.Replace(oldInvoice, "shipping_details", "no_details", 1), "subscription_cycle", "manual", 1)}}, statusPaid, ship, nil, 0},

		{"invoice", []story{{"invoice.paid@2022-11-15", oldInvoice}, refunded(1000)}, partlyRefunded, ship, nil, 1000},
		{"invoice in both shapes", []story{{"invoice.paid@2022-11-15", oldInvoice}, {"invoice.paid@2025-03-31.basil", basilInvoice}, refunded(4200)}, statusRefunded, cancel, nil, 4200},
		{"an invoice with a credit, refunded", []story{{"invoice.paid", strings.Replace(oldInvoice, `"amount_paid":4200`, `"amount_paid":3000`, 1)},
			{"charge.refunded", `"id":"ch_1","payment_intent":"pi_1","amount":3000,"currency":"eur","amount_refunded":3000`}}, statusRefunded, cancel, nil, 3000},
		{"an invoice with two payments, one refunded", []story{{"invoice.paid@2026-03-25.dahlia", basilInvoice},
			{"charge.refunded", `"id":"ch_1","payment_intent":"pi_1","amount":2000,"currency":"eur","amount_refunded":2000`}}, partlyRefunded, ship, nil, 2000},
		{"an invoice with two payments, both refunded", []story{{"invoice.paid@2026-03-25.dahlia", basilInvoice},
			{"charge.refunded", `"id":"ch_1","payment_intent":"pi_1","amount":2000,"currency":"eur","amount_refunded":2000`},
			{"charge.refunded", `"id":"ch_2","payment_intent":"pi_2","amount":2200,"currency":"eur","amount_refunded":2200`}}, statusRefunded, cancel, nil, 4200},

		{"payment intent", []story{intent("succeeded", `,"status":"succeeded","amount_received":4200,"shipping":{"name":"Ada","phone":"+1","address":`+street+`}`), refunded(1000)},
			partlyRefunded, ship, nil, 1000},
		{"payment intent, processing at first", []story{intent("processing", `,"status":"processing"`), intent("succeeded", `,"status":"succeeded","amount_received":4000`), refunded(4000)},
			statusRefunded, cancel, nil, 4000},
		{"payment intent, authorized", []story{intent("amount_capturable_updated", `,"status":"requires_capture"`)}, isAuthorized, wait, nil, 0},
		{"payment intent, authorized, then captured", []story{intent("amount_capturable_updated", `,"status":"requires_capture"`), intent("succeeded", `,"status":"succeeded","amount_received":3000,"capture_method":"manual"`), charge("captured", 3000, 0, `,"captured":true`)},
			statusPaid, ship, nil, 0},
		{"payment intent that contradicts itself", []story{intent("succeeded", `,"status":"processing"`)}, awaitingPayment, hold, holds{moneyUnclear}, 0},
		{"payment intent failed", []story{intent("processing", `,"status":"processing"`), intent("payment_failed", `,"status":"requires_payment_method"`)}, paymentFailed, cancel, nil, 0},
		{"payment intent failed, then paid by another charge", []story{intent("processing", `,"status":"processing"`), intent("payment_failed", `,"status":"requires_payment_method"`),
			{"payment_intent.succeeded", `"id":"pi_1","amount":4200,"currency":"eur","latest_charge":"ch_2","status":"succeeded","amount_received":4200`}}, statusPaid, ship, nil, 0},
		{"payment intent, a card failed before the debit", []story{intent("processing", `,"status":"processing"`),
			{"payment_intent.payment_failed", `"id":"pi_1","amount":4200,"currency":"eur","latest_charge":"ch_0","status":"requires_payment_method"`}}, awaitingPayment, wait, nil, 0},
		{"payment intent, the debit failed and another is under way", []story{intent("processing", `,"status":"processing"`), intent("payment_failed", `,"status":"requires_payment_method"`),
			{"payment_intent.processing", `"id":"pi_1","amount":4200,"currency":"eur","latest_charge":"ch_2","status":"processing"`}}, awaitingPayment, wait, nil, 0},
		{"a session, a card failed before the debit", []story{placedSession, intent("payment_failed", `,"status":"requires_payment_method"`)}, awaitingPayment, wait, nil, 0},
		{"payment intent cancelled", []story{intent("processing", `,"status":"processing"`), intent("canceled", `,"status":"canceled"`)}, statusCanceled, cancel, nil, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			events := parseStories(t, test.events)
			var want *ordergatev1.Order
			for _, arrival := range arrivals(events) {
				got, _ := deliver(t, nil, events[0].OrderID(), arrival, noKey)
				if got.GetStatus() != test.status || got.GetDirective() != test.directive || !slices.Equal(got.GetHoldReasons(), test.holds) || got.GetAmounts().GetRefunded() != test.refunded {
					t.Fatalf("%v, %v, %v, refunded %d; want %v, %v, %v, %d after %s", got.GetStatus(), got.GetDirective(), got.GetHoldReasons(), got.GetAmounts().GetRefunded(),
						test.status, test.directive, test.holds, test.refunded, ids(arrival))
				}
				got.Revision = 0
				if want == nil {
					want = got
				}
				if !proto.Equal(want, got) {
					t.Fatalf("another order after %s (-first +now):\n%s", ids(arrival), cmp.Diff(want, got, protocmp.Transform()))
				}
			}
			if (want.GetAmounts().Refunded != nil) != (test.refunded != 0) {
				t.Errorf("amounts %v", want.GetAmounts())
			}
			if (want.GetPaidTime() != nil) != (paymentOf(want) == paid) {
				t.Errorf("paid_time %v of an order that is %v", want.GetPaidTime(), want.GetStatus())
			}
		})
	}
}

// TestRecovered: an order that was rebuilt from a lookup is held, whatever the order of the events
// after it, until it is canceled, an operator releases it, or its sale event arrives: then it is
// the order that it would be if that event had only been late.
func TestRecovered(t *testing.T) {
	lookup, err := ParseLookup([]byte(`{"object":"checkout.session","status":"complete",`+paidSession.object+`}`), Lookup{APIVersion: "2023-10-16"}, DefaultSources())
	if err != nil {
		t.Fatal(err)
	}
	rebuilt := applied(t, nil, lookup, noKey).Order
	for _, test := range []struct {
		name      string
		events    []story
		directive ordergatev1.Directive
		released  ordergatev1.Directive
		recovered bool
	}{
		{"nothing", nil, hold, ship, true},
		{"partial refund", []story{refunded(1000)}, hold, ship, true},
		{"the sale after all", []story{paidSession, refunded(1000)}, ship, ship, false},
		{"full refund", []story{refund("refund.created", "re_1", 4200, "succeeded"), refunded(4200)}, cancel, cancel, true},
		{"dispute", []story{dispute("created", "dp_1", "needs_response"), dispute("closed", "dp_1", "won")}, hold, ship, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			var want *ordergatev1.Order
			for _, arrival := range arrivals(parseStories(t, test.events)) {
				got, _ := deliver(t, rebuilt, "cs_1", arrival, noKey)
				got = proto.CloneOf(got)
				got.Revision = 0
				if want == nil {
					want = got
				}
				if !proto.Equal(want, got) {
					t.Fatalf("another order after %s (-first +now):\n%s", ids(arrival), cmp.Diff(want, got, protocmp.Transform()))
				}
				if got.GetRecovered() != test.recovered || got.GetDirective() != test.directive || slices.Contains(got.GetHoldReasons(), isRecovered) != test.recovered {
					t.Fatalf("recovered %v, %v, %v; want %v", got.GetRecovered(), got.GetDirective(), got.GetHoldReasons(), test.directive)
				}
				if !test.recovered {
					continue
				}
				c := Release(got, "it was not shipped yet")
				if c.Order.GetDirective() != test.released || len(c.Order.GetHoldReasons()) > 0 || !c.Order.GetRecovered() {
					t.Fatalf("released: %v, %v", c.Order.GetDirective(), c.Order.GetHoldReasons())
				}
				if again := applied(t, c.Order, parse(t, paidSession.json(1)), noKey); again != nil && again.Order.GetDirective() != test.released {
					t.Fatalf("after the sale: %v", again.Order.GetDirective())
				}
			}
		})
	}
	t.Run("to an order that is known, a lookup adds nothing", func(t *testing.T) {
		known := applied(t, nil, parse(t, placedSession.json(1)), noKey).Order
		if c := applied(t, known, lookup, noKey); c != nil {
			t.Errorf("made %v", c.Order)
		}
	})
}

// TestKindsOfFollowUps is what a subscriber sees of each lifecycle, in the order
// in which it happens.
func TestKindsOfFollowUps(t *testing.T) {
	type seen struct {
		kind      ordergatev1.OrderEventKind
		directive ordergatev1.Directive
	}
	for _, test := range []struct {
		name   string
		events []story
		want   []seen
	}{
		{"partial, then full refund", []story{paidSession, refunded(1000), refunded(4200)},
			[]seen{{kindPaid, ship}, {kindRefunded, ship}, {kindRefunded, cancel}}},
		{"refund pending, then succeeded", []story{paidSession, refund("refund.created", "re_1", 1000, "pending"), refund("refund.updated", "re_1", 1000, "succeeded")},
			[]seen{{kindPaid, ship}, {kindRefunded, ship}, {kindUpdated, ship}}},
		{"full refund fails", []story{paidSession, refund("refund.created", "re_1", 4200, "pending"), refund("refund.failed", "re_1", 4200, "failed")},
			[]seen{{kindPaid, ship}, {kindRefunded, cancel}, {kindRefunded, hold}}},
		{"a failed refund that was not heard of before", []story{paidSession, refund("refund.failed", "re_1", 1000, "failed")},
			[]seen{{kindPaid, ship}, {kindRefunded, ship}}},
		{"dispute won", []story{paidSession, dispute("created", "dp_1", "needs_response"), dispute("updated", "dp_1", "needs_response"), dispute("closed", "dp_1", "won")},
			[]seen{{kindPaid, ship}, {kindHeld, hold}, {kindReleased, ship}}},
		{"dispute lost", []story{paidSession, dispute("created", "dp_1", "needs_response"), dispute("closed", "dp_1", "lost")},
			[]seen{{kindPaid, ship}, {kindHeld, hold}, {kindCanceled, cancel}}},
		{"inquiry", []story{paidSession, dispute("created", "dp_1", "warning_needs_response"), dispute("closed", "dp_1", "warning_closed")},
			[]seen{{kindPaid, ship}, {kindHeld, hold}, {kindReleased, ship}}},
		{"review approved", []story{paidSession, review("opened", "prv_1", `"open":true`), review("closed", "prv_1", `"open":false,"closed_reason":"approved"`)},
			[]seen{{kindPaid, ship}, {kindHeld, hold}, {kindReleased, ship}}},
		{"fraud warning", []story{paidSession, warning("created", "issfr_1", `"actionable":true`), warning("updated", "issfr_1", `"actionable":false`)},
			[]seen{{kindPaid, ship}, {kindHeld, hold}, {kindUpdated, hold}}},
		{"cancelled", []story{placedSession, intent("canceled", `,"status":"canceled"`)},
			[]seen{{kindPlaced, wait}, {kindCanceled, cancel}}},
		{"cancelled, paid already", []story{paidSession, intent("canceled", `,"status":"canceled"`)}, []seen{{kindPaid, ship}}},
		{"captured", []story{placedSession, intent("succeeded", `,"status":"succeeded"`)}, []seen{{kindPlaced, wait}, {kindPaid, ship}}},
		{"succeeded, paid already", []story{paidSession, intent("succeeded", `,"status":"succeeded"`)}, []seen{{kindPaid, ship}}},
		{"succeeded in full, paid already", []story{paidSession, intent("succeeded", `,"status":"succeeded","amount_received":4200,"capture_method":"automatic_async"`)}, []seen{{kindPaid, ship}}},
		{"processing, placed already", []story{placedSession, intent("processing", `,"status":"processing"`)}, []seen{{kindPlaced, wait}}},
		{"captured by hand in full", []story{placedSession, intent("succeeded", `,"status":"succeeded","amount_received":4200,"capture_method":"manual"`), charge("captured", 4200, 0, `,"captured":true,"refunded":false`)},
			[]seen{{kindPlaced, wait}, {kindPaid, ship}}},
		{"authorized, then captured", []story{placedSession, intent("amount_capturable_updated", `,"status":"requires_capture"`), charge("captured", 4200, 0, `,"captured":true`)},
			[]seen{{kindPlaced, wait}, {kindUpdated, wait}, {kindPaid, ship}}},
		{"payment intent failed and tried again", []story{intent("processing", `,"status":"processing"`), intent("payment_failed", `,"status":"requires_payment_method"`),
			{"payment_intent.processing", `"id":"pi_1","amount":4200,"currency":"eur","latest_charge":"ch_2","status":"processing"`}},
			[]seen{{kindPlaced, wait}, {kindFailed, cancel}, {kindPlaced, wait}}},
		{"unclear, then clear", []story{placedSession, session("async_payment_succeeded", `,"payment_status":"unpaid"`), intent("succeeded", `,"status":"succeeded"`)},
			[]seen{{kindPlaced, wait}, {kindHeld, hold}, {kindPaid, ship}}},
		{"credited and voided", []story{{"invoice.paid", oldInvoice}, creditNote("created", "cn_1", "issued", 4200), creditNote("voided", "cn_1", "void", 4200)},
			[]seen{{kindPaid, ship}, {kindHeld, hold}, {kindReleased, ship}}},
		{"what does not concern shipping", []story{paidSession, dispute("funds_withdrawn", "dp_1", "needs_response"), dispute("funds_reinstated", "dp_1", "won")}, []seen{{kindPaid, ship}}},
		{"paid when it is refunded already", []story{placedSession, refunded(4200), session("async_payment_succeeded", `,"payment_status":"paid"`)},
			[]seen{{kindPlaced, wait}, {kindRefunded, wait}, {kindRefunded, cancel}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var o *ordergatev1.Order
			var got []seen
			for _, e := range parseStories(t, test.events) {
				if c := step(t, o, e, noKey); c != nil {
					o = c.Order
					got = append(got, seen{c.Kind, o.GetDirective()})
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("saw %v, want %v", got, test.want)
			}
		})
	}
}

func TestOperators(t *testing.T) {
	order := func(events ...story) *ordergatev1.Order {
		o, _ := deliver(t, nil, "cs_1", parseStories(t, append([]story{paidSession}, events...)), noKey)
		return o
	}
	after := func(o *ordergatev1.Order, s story) *ordergatev1.Order {
		if c := applied(t, o, parse(t, s.json(99)), noKey); c != nil {
			return c.Order
		}
		return o
	}

	t.Run("hold and release", func(t *testing.T) {
		o := order()
		c := Hold(o, "the buyer called \xff")
		if c.Kind != kindHeld || c.Note != "the buyer called \uFFFD" || c.Order.GetDirective() != hold || c.Order.GetOperatorHold().GetNote() != c.Note ||
			!slices.Equal(c.Order.GetHoldReasons(), []ordergatev1.HoldReason{byOperator}) || c.Order.GetRevision() != o.GetRevision()+1 {
			t.Errorf("held: %v, %q, %v", c.Kind, c.Note, c.Order)
		}
		if again := Hold(c.Order, c.Note); again != nil {
			t.Errorf("held again: %v", again)
		}
		if other := Hold(c.Order, "another reason"); other.Kind != kindUpdated || other.Order.GetOperatorHold().GetNote() != "another reason" {
			t.Errorf("held for another reason: %v", other)
		}
		freed := Release(c.Order, "settled")
		if freed.Kind != kindReleased || freed.Note != "settled" || freed.Order.GetDirective() != ship || freed.Order.GetOperatorHold() != nil || len(freed.Order.GetHoldReleases()) > 0 {
			t.Errorf("released: %v, %v", freed.Kind, freed.Order)
		}
		if again := Release(freed.Order, "settled"); again != nil {
			t.Errorf("released again: %v", again)
		}
		if held := Hold(freed.Order, "once more"); held.Order.GetDirective() != hold {
			t.Errorf("held once more: %v", held.Order)
		}
	})

	t.Run("a release is from the causes of the moment", func(t *testing.T) {
		o := order(dispute("created", "dp_1", "needs_response"), review("opened", "prv_1", `"open":true`), warning("created", "issfr_1", `"actionable":true`))
		o = Release(Hold(o, "wait").Order, "known buyer").Order
		if o.GetDirective() != ship || len(o.GetHoldReleases()) != 3 {
			t.Fatalf("released: %v", o)
		}
		twice := Release(after(o, dispute("created", "dp_0", "needs_response")), "").Order.GetHoldReleases()
		if len(twice) != 4 || !slices.IsSortedFunc(twice, byCause) {
			t.Errorf("releases %v", twice)
		}
		for _, s := range []story{
			dispute("created", "dp_1", "needs_response"), dispute("updated", "dp_1", "under_review"), review("opened", "prv_1", `"open":true`),
			warning("created", "issfr_1", `"actionable":true`), paidSession,
		} {
			if o = after(o, s); o.GetDirective() != ship {
				t.Fatalf("%s held it again: %v", s.typ, o)
			}
		}
		if held := after(o, dispute("created", "dp_2", "needs_response")); !slices.Equal(held.GetHoldReasons(), []ordergatev1.HoldReason{disputed}) || held.GetDirective() != hold {
			t.Errorf("another dispute: %v", held)
		}
		if held := after(o, warning("created", "issfr_2", `"actionable":true`)); held.GetDirective() != hold {
			t.Errorf("another warning: %v", held)
		}
		if lost := after(o, dispute("closed", "dp_1", "lost")); lost.GetDirective() != cancel {
			t.Errorf("the dispute is lost: %v", lost)
		}
	})

	t.Run("each reason", func(t *testing.T) {
		unread := applied(t, nil, parse(t, event{typ: "completed", session: isPaid + collect}.json()), noKey).Order
		failedRefund := order(refund("refund.failed", "re_1", 4200, "failed"))
		for reason, o := range map[ordergatev1.HoldReason]*ordergatev1.Order{noAddress: unread, refundUnclear: failedRefund} {
			if !slices.Equal(o.GetHoldReasons(), []ordergatev1.HoldReason{reason}) || o.GetDirective() != hold {
				t.Errorf("%v: %v", reason, o)
			}
			c := Release(o, "asked the buyer")
			if c.Order.GetDirective() != ship || c.Kind != kindReleased {
				t.Errorf("%v released: %v", reason, c.Order)
			}
		}
		again := after(Release(failedRefund, "").Order, refund("refund.failed", "re_2", 4200, "failed"))
		if again.GetDirective() != hold {
			t.Errorf("another refund fails: %v", again)
		}
	})

	t.Run("no order to act on", func(t *testing.T) {
		tombstone := &ordergatev1.Order{Id: "cs_1", CancelReasons: []ordergatev1.CancelReason{ordergatev1.CancelReason_CANCEL_REASON_ERASED}}
		for _, o := range []*ordergatev1.Order{nil, tombstone} {
			if Hold(o, "x") != nil || Release(o, "x") != nil {
				t.Errorf("an operator changed %v", o)
			}
		}
		if c := Hold(order(refunded(4200)), "x"); c.Order.GetDirective() != cancel {
			t.Errorf("held: %v", c.Order)
		}
	})
}

func TestMismatch(t *testing.T) {
	for _, raw := range [][]byte{paidSession.json(1), refunded(1000).json(2), dispute("created", "dp_1", "lost").json(3)} {
		for _, with := range []string{`"account":"acct_2","livemode":false`, `"livemode":true`} {
			e := parse(t, []byte(strings.Replace(string(raw), `"livemode":false`, with, 1)))
			o := applied(t, nil, parse(t, placedSession.json(1)), noKey).Order
			if e.Concerns(o) {
				t.Errorf("%s with %s concerns the order", e.Type, with)
			}
			if c, err := Apply(o, e, noKey); c != nil || !errors.Is(err, ErrMismatch) {
				t.Errorf("%s with %s: %v, %v; want ErrMismatch", e.Type, with, c, err)
			}
		}
	}
}

func TestTooMany(t *testing.T) {
	o := applied(t, nil, parse(t, paidSession.json(1)), noKey).Order
	for i := range maxFacts {
		o = applied(t, o, parse(t, refund("refund.created", fmt.Sprintf("re_%d", i), 1, "succeeded").json(i)), noKey).Order
	}
	c, err := Apply(o, parse(t, refund("refund.created", "re_more", 1, "succeeded").json(0)), noKey)
	if c != nil || !errors.Is(err, ErrTooMany) || !strings.Contains(err.Error(), "Refund re_more") {
		t.Errorf("%v, %v; want ErrTooMany with the refund", c, err)
	}
	if c := applied(t, o, parse(t, refund("refund.updated", "re_7", 1, "failed").json(0)), noKey); c == nil || c.Order.GetAmounts().GetRefunded() != maxFacts-1 {
		t.Errorf("a refund that is known was not updated: %v", c)
	}
}

// TestJoin: what is said of one fact adds up in any order.
func TestJoin(t *testing.T) {
	var all []*ordergatev1.Refund
	for i, state := range []ordergatev1.RefundState{0, 1, 2, 3, 4} {
		for _, reason := range []string{"", "duplicate", "fraudulent"} {
			r := &ordergatev1.Refund{Id: "re_1", Amount: int64(len(all) % 3), State: state, Reason: reason}
			if i > 0 {
				r.CreateTime = &timestamppb.Timestamp{Seconds: int64(len(all) % 4)}
				r.Metadata = map[string]string{fmt.Sprint(len(all) % 3): fmt.Sprint(len(all) % 5)}
			}
			all = append(all, r)
		}
	}
	joined := func(a, b *ordergatev1.Refund) *ordergatev1.Refund {
		a = proto.CloneOf(a)
		join(a.ProtoReflect(), b.ProtoReflect())
		return a
	}
	for _, a := range all {
		for _, b := range all {
			if !proto.Equal(joined(a, b), joined(b, a)) || !proto.Equal(joined(joined(a, b), b), joined(a, b)) {
				t.Errorf("%v and %v", a, b)
			}
			for _, c := range all {
				if !proto.Equal(joined(joined(a, b), c), joined(a, joined(b, c))) {
					t.Errorf("%v, %v and %v", a, b, c)
				}
			}
		}
	}
	// Every kind of field that a fact has can be compared.
	for _, f := range []fact{
		&ordergatev1.Refund{Id: "x", Amount: 1, Currency: "eur", State: 1, Reason: "x", Charge: "ch_1",
			Metadata: map[string]string{"x": ""}, Description: "x", FailureReason: "x", CreateTime: &timestamppb.Timestamp{}},
		&ordergatev1.Dispute{Id: "x", Amount: 1, Currency: "eur", State: 1, Reason: "x", Charge: "ch_1",
			EvidenceDueTime: &timestamppb.Timestamp{}, CreateTime: &timestamppb.Timestamp{}},
		&ordergatev1.CreditNote{Id: "x", Amount: 1, Currency: "eur", State: 1, Reason: "x",
			Lines: []*ordergatev1.CreditNoteLine{{Id: "x"}}, LinesTruncated: true, CreateTime: &timestamppb.Timestamp{}},
		&ordergatev1.Review{Id: "x", State: 1, ClosedReason: "x"},
		&ordergatev1.EarlyFraudWarning{Id: "x", FraudType: "x", Settled: true},
		&ordergatev1.Charge{Id: "x", Amount: 1, Currency: "eur", AmountRefunded: 1, AmountCaptured: new(int64(0)), Refunded: new(false), State: 1},
	} {
		fields, set := f.ProtoReflect().Descriptor().Fields().Len(), 0
		empty := f.ProtoReflect().New()
		join(empty, f.ProtoReflect())
		for range empty.Range {
			set++
		}
		if set != fields {
			t.Errorf("%T: %d of %d fields were compared", f, set, fields)
		}
	}
}
