package orders

import (
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// Folded is the part of one event in a change of several events.
type Folded struct {
	// Changed reports whether the event added something to the order.
	Changed bool
	// Err is the error of the event alone. The change leaves the event out.
	Err error
}

// ApplyAll applies several events of one order as a single change: one revision further, whatever
// the number of events. The events of a sale come first, because a follow-up changes nothing
// before its sale. The result for each event is at its place in the second value. The change is
// nil if no event changed anything.
//
// The error of one event (see [Apply]) does not affect the others.
func ApplyAll(current *ordergatev1.Order, events []*Event, items LineItems) (*Change, []Folded) {
	folded := make([]Folded, len(events))
	next := current
	var warnings []string
	step := func(i int) {
		c, err := Apply(next, events[i], items)
		folded[i] = Folded{Changed: c != nil, Err: err}
		if c != nil {
			next = c.Order
			warnings = append(warnings, c.Warnings...)
		}
	}
	for _, sale := range []bool{true, false} {
		for i, e := range events {
			if (e.sale != nil) == sale {
				step(i)
			}
		}
	}
	if next == current {
		return nil, folded
	}
	next.Revision = current.GetRevision() + 1
	if proto.Equal(withRevision(current, next.GetRevision()), next) {
		return nil, folded
	}
	return &Change{Order: next, Kind: kindOf(current, next), Warnings: warnings, PreviousDirective: current.GetDirective()}, folded
}

func withRevision(o *ordergatev1.Order, revision int64) *ordergatev1.Order {
	c := proto.CloneOf(o)
	if c != nil {
		c.Revision = revision
	}
	return c
}

// StartSettling keeps an order from being shipped until a time, if its money allows that only since
// the change. It returns all other changes as they are.
func StartSettling(current *ordergatev1.Order, c *Change, until *timestamppb.Timestamp) *Change {
	if c == nil || Erased(c.Order) || isFunded(current) || !isFunded(c.Order) {
		return c
	}
	next := proto.CloneOf(c.Order)
	next.SettleTime = proto.CloneOf(until)
	factsOf(next, paymentOf(next)).decide(next)
	return &Change{Order: next, Kind: c.Kind, Warnings: c.Warnings, Note: c.Note, PreviousDirective: c.PreviousDirective}
}

func isFunded(o *ordergatev1.Order) bool { return factsOf(o, paymentOf(o)).funded() }

// EndSettling ends the settling period of an order. The result is nil if there is none.
func EndSettling(current *ordergatev1.Order) *Change {
	if current.GetSettleTime() == nil || Erased(current) {
		return nil
	}
	next := proto.CloneOf(current)
	next.SettleTime = nil
	return change(current, next, paymentOf(current), nil)
}

// Reduce makes the order of a change smaller, for an order that is too large to store: first
// without the details of its line items, then without its line items, which holds the order. It
// reports whether anything was left to take away.
func Reduce(current *ordergatev1.Order, c *Change) (smaller *Change, ok bool) {
	next := proto.CloneOf(c.Order)
	switch next.GetOmittedContent() {
	case ordergatev1.OmittedContent_OMITTED_CONTENT_UNSPECIFIED:
		next.OmittedContent = ordergatev1.OmittedContent_OMITTED_CONTENT_ITEM_DETAILS
	case ordergatev1.OmittedContent_OMITTED_CONTENT_ITEM_DETAILS:
		next.OmittedContent = ordergatev1.OmittedContent_OMITTED_CONTENT_LINE_ITEMS
	default:
		return nil, false
	}
	reduceItems(next)
	factsOf(next, paymentOf(next)).decide(next)
	return &Change{Order: next, Kind: kindOf(current, next), Warnings: c.Warnings, Note: c.Note, PreviousDirective: c.PreviousDirective}, true
}

// reduceItems removes the content of the line items that omitted_content names.
func reduceItems(o *ordergatev1.Order) {
	switch o.GetOmittedContent() {
	case ordergatev1.OmittedContent_OMITTED_CONTENT_ITEM_DETAILS:
		for _, item := range o.GetLineItems() {
			item.Metadata = nil
			if price := item.GetPriceDetails(); price != nil {
				price.Metadata = nil
			}
			if product := item.GetProduct(); product != nil {
				product.Metadata, product.Images, product.Description = nil, nil, ""
			}
		}
	case ordergatev1.OmittedContent_OMITTED_CONTENT_LINE_ITEMS:
		o.LineItems = nil
		o.LineItemsState = ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE
	}
}

// IgnoredReason is the reason why an event is not about an order. Empty if it is about one.
func (e *Event) IgnoredReason() string {
	switch {
	case !e.Ignored():
		return ""
	case !slices.Contains(EventTypes(), e.Type):
		return "events of this type concern no order"
	default:
		return "the object is not part of a sale of the configured order sources"
	}
}
