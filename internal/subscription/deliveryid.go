package subscription

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
)

// deliveryIDFormat is the first byte of a delivery id.
const deliveryIDFormat = 1

// deliveryID says which delivery of which event is meant. It tells enough to
// find out what became of the event when nothing else is known of the delivery.
type deliveryID struct {
	epoch    uint64 // of the subscription's position: a seek begins another one
	sequence uint64
	life     uint64 // of the gateway
	lease    uint64 // of the event's deliveries in that life
	order    string
}

// encode returns the id as workers see it: opaque, and bound to the subscription
// by a checksum.
func (d deliveryID) encode(uid string) string {
	b := []byte{deliveryIDFormat}
	for _, n := range []uint64{d.epoch, d.sequence, d.life, d.lease} {
		b = binary.AppendUvarint(b, n)
	}
	b = append(b, d.order...)
	b = binary.BigEndian.AppendUint32(b, deliveryChecksum(b, uid))
	return base64.RawURLEncoding.EncodeToString(b)
}

// decodeDeliveryID reads an id; ok is false when it is not one of the
// subscription's.
func decodeDeliveryID(text, uid string) (d deliveryID, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 5 {
		return deliveryID{}, false
	}
	b, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if deliveryChecksum(b, uid) != sum || b[0] != deliveryIDFormat {
		return deliveryID{}, false
	}
	b = b[1:]
	for _, n := range []*uint64{&d.epoch, &d.sequence, &d.life, &d.lease} {
		value, size := binary.Uvarint(b)
		if size <= 0 {
			return deliveryID{}, false
		}
		*n, b = value, b[size:]
	}
	d.order = string(b)
	return d, d.encode(uid) == text // varints can be written in more than one way; ids cannot
}

func deliveryChecksum(b []byte, uid string) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(b), crc32.IEEETable, []byte(uid))
}
