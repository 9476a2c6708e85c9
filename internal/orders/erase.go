package orders

import (
	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// Erase makes a tombstone of an order: what is left says that there was an order
// of that id, of which mode and account, how far its money got, and that nothing
// is to be sent any more. No event changes it. The result is nil for an order
// that was erased.
func Erase(current *ordergatev1.Order) *Change {
	if Erased(current) {
		return nil
	}
	return &Change{
		Kind:              ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED,
		PreviousDirective: current.GetDirective(),
		Order: &ordergatev1.Order{
			Id:             current.GetId(),
			Revision:       current.GetRevision() + 1,
			Source:         current.GetSource(),
			Status:         current.GetStatus(),
			Directive:      ordergatev1.Directive_DIRECTIVE_CANCEL,
			CancelReasons:  []ordergatev1.CancelReason{ordergatev1.CancelReason_CANCEL_REASON_ERASED},
			Livemode:       current.Livemode,
			Account:        current.GetAccount(),
			AddressState:   ordergatev1.AddressState_ADDRESS_STATE_NOT_COLLECTED,
			LineItemsState: ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE,
		},
	}
}
