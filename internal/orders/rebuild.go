package orders

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// ErrIncomplete means that an order cannot be made of the given events alone.
var ErrIncomplete = errors.New("the order cannot be rebuilt from its events")

// Rebuild makes an order anew of its events, as after a mend of how events are
// read, and says what that changes. The result is nil when it changes nothing.
//
// events are all that ever changed the order, and any others that are about it.
// What no event told stays as it is: line items, and what operators did. An
// order that was made from a lookup, was erased, or would not come about by
// these events, is ErrIncomplete.
func Rebuild(current *ordergatev1.Order, events []*Event) (*Change, error) {
	if current.GetRecovered() || Erased(current) {
		return nil, fmt.Errorf("%w: it was not made from events alone", ErrIncomplete)
	}
	var next *ordergatev1.Order
	var warnings []string
	// A follow-up changes nothing before its sale: a second round takes it in.
	for range 2 {
		for _, e := range events {
			c, err := Apply(next, e, LineItems{
				State: current.GetLineItemsState(), Items: current.GetLineItems(), ShippingRate: current.GetShippingRate(),
			})
			if err != nil {
				return nil, err
			}
			if c != nil {
				next = c.Order
				warnings = append(warnings, c.Warnings...)
			}
		}
	}
	if next.GetId() != current.GetId() {
		return nil, fmt.Errorf("%w: its sale is not among them", ErrIncomplete)
	}
	next.Revision = current.GetRevision()
	next.OperatorHold = proto.CloneOf(current.GetOperatorHold())
	next.SettleTime, next.OmittedContent = proto.CloneOf(current.GetSettleTime()), current.GetOmittedContent()
	next.HoldReleases = nil
	for _, release := range current.GetHoldReleases() {
		next.HoldReleases = append(next.HoldReleases, proto.CloneOf(release))
	}
	next.Reinstatements = nil
	for _, reinstatement := range current.GetReinstatements() {
		next.Reinstatements = append(next.Reinstatements, proto.CloneOf(reinstatement))
	}
	return change(current, next, paymentOf(next), warnings), nil
}
