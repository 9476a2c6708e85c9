// Package orders turns Stripe events into orders: [Parse] reads an event, and
// [Apply] says what it does to the order it is about.
//
// It is pure: no clock, no I/O, no log. The same calls give the same result,
// and nothing that is passed in is modified.
//
// Stripe delivers events in any order, some of them twice, and its `created`
// must not be used to put them in order
// (https://docs.stripe.com/webhooks#event-ordering). So an order is not the
// last thing that was heard of it; it is the sum of everything that was heard,
// added up such that neither order nor repetition matters:
//
//   - How far the money got only ever moves forward (see payment).
//   - The details of the sale are those of the snapshot that leads: the one
//     that got furthest and, among equals, has the newest API version. Any
//     other snapshot may add what the leading one lacks and takes nothing away.
//     (What is filled in this way comes from whichever such snapshot was heard
//     first. Stripe writes these fields once, so that they do not differ.)
//   - What came after the sale (refunds, disputes, reviews, warnings) is kept in
//     the order as sets of facts. Of one fact, the furthest state that was heard
//     of counts (see join).
//   - Status, refunded sum, directive and all reasons are computed from that in
//     one place (see facts). No event sets them.
//
// An event that only follows up an order changes nothing while its order is not
// known: it is to come again when it is.
//
// What an operator does ([Hold], [Release], [Reinstate]) has its place in time: it is about
// the order as it stands.
//
// What an incomplete order lacks is said in a field, never by being empty.
package orders

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// LineItems is what the caller knows about an order's line items, which are
// not part of any event.
type LineItems struct {
	// State says whether Items is there. The zero value counts as PENDING for a
	// new order and says nothing about an order that is known already.
	State ordergatev1.LineItemsState
	// Items is the whole list when State is COMPLETE, and not looked at
	// otherwise: half a list must never be shipped. It is copied.
	Items []*ordergatev1.LineItem
	// ShippingRate has the details of the order's shipping rate when State is
	// COMPLETE. Nil adds nothing. It is copied.
	ShippingRate *ordergatev1.ShippingRate
}

// Change is what happened to an order.
type Change struct {
	// Order is the whole order after the change, one revision further. It
	// shares no memory with what the change was made from.
	Order *ordergatev1.Order
	// Kind says what changed.
	Kind ordergatev1.OrderEventKind
	// Warnings say, for the log, what of the event could not be read. They name
	// the event, its API version and the field, and hold no personal data.
	Warnings []string
	// Note is why an operator held, released or reinstated the order, for
	// OrderEvent.note.
	Note string
	// PreviousDirective is the order's directive before the change, for
	// OrderEvent.previous_directive. Unspecified for a new order.
	PreviousDirective ordergatev1.Directive
}

var (
	// ErrMismatch means that an event is not of the account or the mode of the
	// order it was to be applied to.
	ErrMismatch = errors.New("the event is of another account or mode than the order")
	// ErrTooMany means that an order has as many refunds, disputes, reviews,
	// warnings or charges as it may have. Nothing is lost silently: the event
	// is not applied.
	ErrTooMany = fmt.Errorf("the order has %d of these already", maxFacts)
)

// maxFacts bounds each of an order's lists of facts, so that every order can be
// sent whole.
const maxFacts = 100

// Apply says what an event does to its order. The result is nil when it changes
// nothing: the event says what is known already, is about no order, follows up
// an order that is not there, or is of an order that was erased.
//
// current is the order as it stands, or nil when there is none yet. A sale makes
// and changes the order with the id e.OrderID(). A follow-up changes the order
// that was found by e.References(), and so does a sale that turned out to be
// another order's (see [Event.MustClaim]); a Session's is never another's.
//
// An error wraps ErrMismatch or ErrTooMany; the order stays as it is.
func Apply(current *ordergatev1.Order, e *Event, items LineItems) (*Change, error) {
	if e.Ignored() || Erased(current) {
		return nil, nil
	}
	if current != nil && !e.Concerns(current) {
		return nil, fmt.Errorf("order %s: %w", current.GetId(), ErrMismatch)
	}
	var (
		next  *ordergatev1.Order
		known payment
		err   error
	)
	switch {
	case e.sale != nil && (current == nil || current.GetId() == e.OrderID()):
		next, known, err = applySale(current, e, items)
	case e.followUp != nil && current != nil:
		next, known, err = applyFollowUp(current, e.followUp)
		mergeLineItems(next, items)
	}
	if next == nil || err != nil {
		return nil, err
	}
	return change(current, next, known, e.warnings), nil
}

// applySale returns the order after its sale, or nil when there is none.
func applySale(current *ordergatev1.Order, e *Event, items LineItems) (*ordergatev1.Order, payment, error) {
	// What was looked up rebuilds an order. One that is known already was not
	// rebuilt, and needs no operator to look at it.
	if e.lookup && current != nil {
		return nil, unknown, nil
	}
	// A session that was never completed is not an order, and most sessions
	// that expire never were.
	//
	// Should the expiry of a session be heard before its completion, the
	// completion then makes an order that waits for its money, which is safe:
	// nothing is sent for it. It cannot happen at Stripe, where only an open
	// session expires and a completed one is no longer open
	// (https://docs.stripe.com/api/checkout/sessions/object, `status`).
	if e.sale.payment == expired && paymentOf(current) == unknown {
		return nil, unknown, nil
	}
	next, known := merge(current, e.sale)
	if !e.lookup { // the sale event has come after all, as if it had only been late
		next.Recovered = false
	}
	mergeLineItems(next, items)
	mergeOwnItems(next, current, e.sale)
	err := addFacts(&next.Charges, e.sale.charges)
	if e.followUp != nil {
		err = errors.Join(err, addAll(next, e.followUp.facts))
	}
	return next, known, err
}

// applyFollowUp returns the order after an event that adds facts to it.
func applyFollowUp(current *ordergatev1.Order, f *followUp) (*ordergatev1.Order, payment, error) {
	next := proto.CloneOf(current)
	if f.onlyIntents && current.GetSource() != ordergatev1.OrderSource_ORDER_SOURCE_PAYMENT_INTENT {
		return next, paymentOf(current), nil
	}
	// The sale itself knows best when it was paid (see merge).
	if saleOf(current) != paid {
		next.PaidTime = proto.CloneOf(earlier(next.GetPaidTime(), f.facts.GetPaidTime()))
	}
	return next, max(paymentOf(current), f.payment), addAll(next, f.facts)
}

// addAll adds all facts of an event to an order.
func addAll(o, news *ordergatev1.Order) error {
	o.PaymentUnclear = o.GetPaymentUnclear() || news.GetPaymentUnclear()
	if isLater(news.GetCaptureBeforeTime(), o.GetCaptureBeforeTime()) {
		o.CaptureBeforeTime = proto.CloneOf(news.GetCaptureBeforeTime())
	}
	return errors.Join(
		addFacts(&o.Refunds, news.GetRefunds()),
		addFacts(&o.Disputes, news.GetDisputes()),
		addFacts(&o.Reviews, news.GetReviews()),
		addFacts(&o.EarlyFraudWarnings, news.GetEarlyFraudWarnings()),
		addFacts(&o.Charges, news.GetCharges()),
		addFacts(&o.CreditNotes, news.GetCreditNotes()),
	)
}

// fact is something that came after the sale, with an id of its own.
type fact interface {
	proto.Message
	GetId() string
}

// addFacts adds news to a set of facts, which is kept sorted by id.
func addFacts[F fact](known *[]F, news []F) error {
	for _, n := range news {
		i, found := slices.BinarySearchFunc(*known, n, func(a, b F) int { return cmp.Compare(a.GetId(), b.GetId()) })
		switch {
		case found:
			join((*known)[i].ProtoReflect(), proto.CloneOf(n).ProtoReflect())
		case len(*known) == maxFacts:
			return fmt.Errorf("%s %s: %w", n.ProtoReflect().Descriptor().Name(), n.GetId(), ErrTooMany)
		default:
			*known = slices.Insert(*known, i, proto.CloneOf(n))
		}
	}
	return nil
}

// join adds the fields of src, a fact, to dst: of each field, the greater value
// counts. That is commutative and idempotent; a state goes forward because states
// are compared in the order in which a fact goes through them. The other fields
// Stripe writes once. dst may share memory with src afterwards.
func join(dst, src protoreflect.Message) {
	src.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			joinMap(dst.Mutable(field).Map(), value.Map())
		case !dst.Has(field) || greater(field, value, dst.Get(field)):
			dst.Set(field, value)
		}
		return true
	})
}

// joinMap adds a map of strings: of each key, the greater value counts.
func joinMap(dst, src protoreflect.Map) {
	src.Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
		if !dst.Has(key) || value.String() > dst.Get(key).String() {
			dst.Set(key, value)
		}
		return true
	})
}

// greater compares two values of a field of a fact.
func greater(field protoreflect.FieldDescriptor, a, b protoreflect.Value) bool {
	if field.IsList() {
		return cmp.Or(cmp.Compare(a.List().Len(), b.List().Len()), cmp.Compare(encoded(a.List()), encoded(b.List()))) > 0
	}
	switch kind := field.Kind(); kind {
	case protoreflect.EnumKind:
		return rank(field, a.Enum()) > rank(field, b.Enum())
	case protoreflect.MessageKind: // a time
		return isLater(timeIn(a), timeIn(b))
	case protoreflect.Int64Kind:
		return a.Int() > b.Int()
	case protoreflect.BoolKind:
		return a.Bool() && !b.Bool()
	case protoreflect.StringKind:
		return a.String() > b.String()
	default:
		panic("orders: a fact has a field of a kind that cannot be compared: " + kind.String())
	}
}

// disputeStates are the states of a dispute in the order in which it goes through
// them: one that was lost may be won on appeal.
var disputeStates = []ordergatev1.DisputeState{
	ordergatev1.DisputeState_DISPUTE_STATE_UNSPECIFIED,
	ordergatev1.DisputeState_DISPUTE_STATE_INQUIRY,
	ordergatev1.DisputeState_DISPUTE_STATE_INQUIRY_CLOSED,
	ordergatev1.DisputeState_DISPUTE_STATE_OPEN,
	ordergatev1.DisputeState_DISPUTE_STATE_PREVENTED,
	ordergatev1.DisputeState_DISPUTE_STATE_LOST,
	ordergatev1.DisputeState_DISPUTE_STATE_WON,
}

// rank returns the place of a state among those of its enum. The numbers of all
// enums but DisputeState are in the order in which a fact goes through the states.
func rank(field protoreflect.FieldDescriptor, state protoreflect.EnumNumber) int {
	if field.Enum().FullName() == ordergatev1.DisputeState(0).Descriptor().FullName() {
		return slices.Index(disputeStates, ordergatev1.DisputeState(state))
	}
	return int(state)
}

// encoded returns a list of messages in a form that can be compared.
func encoded(list protoreflect.List) string {
	var all []byte
	for i := range list.Len() {
		// It cannot fail: every string of a fact is valid UTF-8.
		all, _ = proto.MarshalOptions{Deterministic: true}.MarshalAppend(all, list.Get(i).Message().Interface())
	}
	return string(all)
}

// timeIn returns a field's time.
func timeIn(v protoreflect.Value) *timestamppb.Timestamp {
	t, _ := v.Message().Interface().(*timestamppb.Timestamp)
	return t
}

// isLater reports whether a is later than b; nil is before all times.
func isLater(a, b *timestamppb.Timestamp) bool {
	return a != nil && (b == nil || a.AsTime().After(b.AsTime()))
}

// SetLineItems gives an order its line items when they are read after the event
// that asked for them. The result is nil when it changes nothing.
func SetLineItems(current *ordergatev1.Order, items LineItems) *Change {
	if current == nil || Erased(current) {
		return nil
	}
	next := proto.CloneOf(current)
	mergeLineItems(next, items)
	return change(current, next, paymentOf(current), nil)
}

// change completes next, the order after a change, and compares it with the
// order before.
func change(current, next *ordergatev1.Order, money payment, warnings []string) *Change {
	reduceItems(next)
	factsOf(next, money).decide(next)
	if proto.Equal(current, next) {
		return nil
	}
	next.Revision++
	return &Change{Order: next, Kind: kindOf(current, next), Warnings: warnings, PreviousDirective: current.GetDirective()}
}

// Erased reports whether the order is a tombstone: its personal data was
// erased, and no late event may bring it back.
func Erased(o *ordergatev1.Order) bool {
	return slices.Contains(o.GetCancelReasons(), ordergatev1.CancelReason_CANCEL_REASON_ERASED)
}

// merge adds a snapshot to an order and returns the sum and how far its money
// got. It leaves the line items and all that facts.decide writes to its caller.
func merge(current *ordergatev1.Order, s *sale) (*ordergatev1.Order, payment) {
	if current == nil {
		return proto.CloneOf(s.order), s.payment
	}
	high, low := proto.CloneOf(s.order), proto.CloneOf(current)
	if !leads(s, current) {
		high, low = low, high
	}
	address := better(high.GetAddressState(), low.GetAddressState())
	paidTime := earlier(high.GetPaidTime(), low.GetPaidTime())
	if s.payment == paid && saleOf(current) != paid {
		// Until now only a follow-up may have said so.
		paidTime = high.GetPaidTime()
	}
	// The version is never filled in from another snapshot: leads needs the
	// leading one's, even if it is empty.
	version := high.GetApiVersion()

	// Between API versions a session's amounts may be in different currencies
	// (https://docs.stripe.com/payments/currencies/localize-prices/adaptive-pricing).
	// They are never mixed.
	if statesMoney(high) && high.GetCurrency() != low.GetCurrency() {
		dropMoney(low)
	}
	next := low
	overlay(next.ProtoReflect(), high.ProtoReflect())
	next.AddressState, next.PaidTime, next.ApiVersion = address, paidTime, version
	next.SaleStatus = max(s.payment, saleOf(current)).status()
	return next, max(s.payment, paymentOf(current))
}

// leads reports whether the details of the sale are to be those of the
// snapshot rather than those the order has. Between two snapshots that say the
// same of the money, the API version decides, in whichever order they come, and
// then the charge: a PaymentIntent may try several. Two with the same charge are
// taken for copies of each other.
func leads(s *sale, current *ordergatev1.Order) bool {
	if known := saleOf(current); s.payment != known {
		return s.payment > known
	}
	return cmp.Or(cmp.Compare(s.order.GetApiVersion(), current.GetApiVersion()),
		cmp.Compare(s.order.GetReferences().GetCharge(), current.GetReferences().GetCharge())) > 0
}

// overlay copies every field that is set in src over the one in dst; what is
// not set in src stays. Lists, maps and the messages in whole are taken as one.
func overlay(dst, src protoreflect.Message) {
	src.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if field.Message() == nil || field.IsList() || field.IsMap() || whole[field.Message().FullName()] {
			dst.Set(field, value)
		} else {
			overlay(dst.Mutable(field).Message(), value.Message())
		}
		return true
	})
}

// whole are the messages that make sense only as one: the street of one
// address and the city of another are no address.
var whole = map[protoreflect.FullName]bool{
	(&ordergatev1.Address{}).ProtoReflect().Descriptor().FullName():   true,
	(&timestamppb.Timestamp{}).ProtoReflect().Descriptor().FullName(): true,
}

func statesMoney(o *ordergatev1.Order) bool {
	rate := o.GetShippingRate()
	return o.GetCurrency() != "" || o.GetAmounts() != nil || rate != nil && rate.Amount != nil
}

// dropMoney removes the money of a snapshot. (The sums that are derived are
// written again by facts.decide.)
func dropMoney(o *ordergatev1.Order) {
	o.Currency, o.CurrencyExponent, o.Amounts = "", nil, nil
	o.PresentmentAmount, o.PresentmentCurrency = nil, ""
	if r := o.GetShippingRate(); r != nil {
		r.Amount = nil
	}
}

// better returns the more useful of two address states: a ship-to that was seen
// once is never lost, and a failure to read one is never taken for there being
// none.
func better(a, b ordergatev1.AddressState) ordergatev1.AddressState {
	for _, state := range []ordergatev1.AddressState{
		ordergatev1.AddressState_ADDRESS_STATE_PRESENT,
		ordergatev1.AddressState_ADDRESS_STATE_UNREADABLE,
		ordergatev1.AddressState_ADDRESS_STATE_INCOMPLETE,
		ordergatev1.AddressState_ADDRESS_STATE_NOT_NEEDED,
		ordergatev1.AddressState_ADDRESS_STATE_NOT_COLLECTED,
	} {
		if a == state || b == state {
			return state
		}
	}
	return ordergatev1.AddressState_ADDRESS_STATE_UNSPECIFIED
}

// earlier returns the earlier of two times; nil is no time.
func earlier(a, b *timestamppb.Timestamp) *timestamppb.Timestamp {
	if a == nil || b != nil && b.AsTime().Before(a.AsTime()) {
		return b
	}
	return a
}

// mergeLineItems adds what the caller knows about the line items to the order.
// COMPLETE stays; the newest complete list is the one that counts.
func mergeLineItems(o *ordergatev1.Order, items LineItems) {
	const (
		unspecified = ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNSPECIFIED
		pending     = ordergatev1.LineItemsState_LINE_ITEMS_STATE_PENDING
		unavailable = ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE
		complete    = ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE
	)
	known, said := o.GetLineItemsState(), items.State
	if o.GetSource() == ordergatev1.OrderSource_ORDER_SOURCE_PAYMENT_INTENT && said != complete {
		said = unavailable // there is nothing at Stripe that could be waited for
	}
	switch {
	case said == complete:
		o.LineItemsState = complete
		o.LineItems = nil
		for _, item := range items.Items {
			o.LineItems = append(o.LineItems, proto.CloneOf(item))
		}
		completeShippingRate(o.GetShippingRate(), items.ShippingRate)
	case known == unspecified && said == unspecified:
		o.LineItemsState = pending
	case known == unspecified:
		o.LineItemsState = said
	case known == unavailable && said == pending && o.GetDirective() != ordergatev1.Directive_DIRECTIVE_SHIP:
		// The gateway was given an API key since. An order that went out as
		// SHIP without its items stays SHIP: to take that back and say it again
		// later would have it sent twice.
		o.LineItemsState = pending
	}
}

// completeShippingRate adds the details of a rate that the caller read. The amount
// stays the one of the sale.
func completeShippingRate(rate, details *ordergatev1.ShippingRate) {
	if rate.GetId() == "" || rate.GetId() != details.GetId() {
		return
	}
	details = proto.CloneOf(details)
	rate.DisplayName = first(details.GetDisplayName(), rate.GetDisplayName())
	rate.DeliveryEstimate, rate.Metadata, rate.TaxCode = details.GetDeliveryEstimate(), details.GetMetadata(), details.GetTaxCode()
}

// mergeOwnItems gives an order the line items that its sale has with it, where
// the caller has none. They know of their products the id only: a list that the
// caller read says more, and so it is waited for where the caller means to read
// one (PENDING).
func mergeOwnItems(next, current *ordergatev1.Order, s *sale) {
	if s.items == nil {
		return
	}
	switch next.GetLineItemsState() {
	case ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE:
	case ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE:
		if !leads(s, current) || detailed(next.GetLineItems()) {
			return
		}
	default:
		return
	}
	mergeLineItems(next, LineItems{State: ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE, Items: s.items})
}

// detailed reports whether a list of line items was read for its products.
func detailed(items []*ordergatev1.LineItem) bool {
	return slices.ContainsFunc(items, func(item *ordergatev1.LineItem) bool {
		return item.GetProduct() != nil && !item.GetProduct().GetReferenceOnly()
	})
}
