package subscription

import "github.com/ordergate/ordergate/internal/token"

// deliveryIDFormat is the kind of token that a delivery id is. Ids of the first format
// have no through, which is then their sequence.
const (
	firstDeliveryIDFormat = 1
	deliveryIDFormat      = 2
)

// deliveryID says which delivery of which event is meant. It tells enough to
// find out what became of the event when nothing else is known of the delivery.
type deliveryID struct {
	epoch    uint64 // of the subscription's position: a seek begins another one
	sequence uint64
	through  uint64 // of the event that was sent, which may be a newer one of the order
	life     uint64 // of the gateway
	lease    uint64 // of the event's deliveries in that life
	order    string
}

// encode returns the id as workers see it: opaque, and bound to the subscription.
func (d deliveryID) encode(uid string) string {
	return token.Encode(deliveryIDFormat, uid, d.order, d.epoch, d.sequence, d.life, d.lease, d.through)
}

// decodeDeliveryID reads an id; ok is false when it is not one of the
// subscription's.
func decodeDeliveryID(text, uid string) (d deliveryID, ok bool) {
	if d.order, ok = token.Decode(text, deliveryIDFormat, uid, &d.epoch, &d.sequence, &d.life, &d.lease, &d.through); ok {
		return d, true
	}
	d.order, ok = token.Decode(text, firstDeliveryIDFormat, uid, &d.epoch, &d.sequence, &d.life, &d.lease)
	d.through = d.sequence
	return d, ok
}
