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
//   - Status, directive and all reasons are computed from that in one place
//     (see facts). No event sets them.
//
// What an incomplete order lacks is said in a field, never by being empty.
package orders

import (
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
}

// Apply says what an event does to its order. The result is nil when it changes
// nothing: the event says what is known already, is about no order, or is of an
// order that was erased.
//
// current is the order with the id e.OrderID() as it stands, or nil when there
// is none yet. The event changes no other order.
func Apply(current *ordergatev1.Order, e *Event, items LineItems) *Change {
	if e.sale == nil || current != nil && current.GetId() != e.OrderID() || erased(current) {
		return nil
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
		return nil
	}
	next, known := merge(current, e.sale)
	mergeLineItems(next, items)
	return change(current, next, known, e.warnings)
}

// SetLineItems gives an order its line items when they are read after the event
// that asked for them. The result is nil when it changes nothing.
func SetLineItems(current *ordergatev1.Order, items LineItems) *Change {
	if current == nil || erased(current) {
		return nil
	}
	next := proto.CloneOf(current)
	mergeLineItems(next, items)
	return change(current, next, paymentOf(current), nil)
}

// change completes next, the order after a change, and compares it with the
// order before.
func change(current, next *ordergatev1.Order, money payment, warnings []string) *Change {
	facts{
		payment: money,
		address: next.GetAddressState(),
		items:   next.GetLineItemsState(),
	}.decide(next)
	if proto.Equal(current, next) {
		return nil
	}
	next.Revision++
	return &Change{Order: next, Kind: kindOf(current, next), Warnings: warnings}
}

// erased reports whether the order is a tombstone: its personal data was
// erased, and no late event may bring it back.
func erased(o *ordergatev1.Order) bool {
	return slices.Contains(o.GetCancelReasons(), ordergatev1.CancelReason_CANCEL_REASON_ERASED)
}

// merge adds a snapshot to an order and returns the sum and how far its money
// got. It leaves the line items and all that facts.decide writes to its caller.
func merge(current *ordergatev1.Order, s *sale) (*ordergatev1.Order, payment) {
	high, low := proto.CloneOf(s.order), proto.CloneOf(current)
	if low == nil {
		low = &ordergatev1.Order{}
	}
	if !leads(s, current) {
		high, low = low, high
	}
	address := better(high.GetAddressState(), low.GetAddressState())
	paidTime := earlier(high.GetPaidTime(), low.GetPaidTime())
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
	return next, max(s.payment, paymentOf(current))
}

// leads reports whether the details of the sale are to be those of the
// snapshot rather than those the order has. Between two snapshots that say the
// same of the money, the API version decides, in whichever order they come; two
// of the same version are taken for copies of each other.
func leads(s *sale, current *ordergatev1.Order) bool {
	if known := paymentOf(current); s.payment != known {
		return s.payment > known
	}
	return s.order.GetApiVersion() > current.GetApiVersion()
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

// dropMoney removes what a snapshot says about money. (Amounts.refunded is not
// the snapshot's and stays.)
func dropMoney(o *ordergatev1.Order) {
	o.Currency = ""
	if a := o.GetAmounts(); a != nil {
		o.Amounts = nil
		if a.Refunded != nil {
			o.Amounts = &ordergatev1.Amounts{Refunded: a.Refunded}
		}
	}
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
	switch {
	case said == complete:
		o.LineItemsState = complete
		o.LineItems = nil
		for _, item := range items.Items {
			o.LineItems = append(o.LineItems, proto.CloneOf(item))
		}
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
