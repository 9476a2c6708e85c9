package grpcapi

import (
	"slices"

	"google.golang.org/grpc/encoding"
	encodingproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/subscription"
)

// wire is a message that is encoded already, in parts. The events of the log are
// passed on as they are stored: to decode and encode one for each of a thousand
// watchers would cost more than all the rest.
type wire mem.BufferSlice

func newWire(parts ...[]byte) wire {
	w := make(wire, len(parts))
	for i, part := range parts {
		w[i] = mem.SliceBuffer(part) // nobody changes it
	}
	return w
}

// wireCodec is the usual codec, which passes a wire on as it is.
type wireCodec struct{ encoding.CodecV2 }

func newWireCodec() wireCodec { return wireCodec{encoding.GetCodecV2(encodingproto.Name)} }

// Marshal is for grpc.
func (c wireCodec) Marshal(v any) (mem.BufferSlice, error) {
	w, ok := v.(wire)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	return slices.Clone(mem.BufferSlice(w)), nil
}

// Numbers of fields, as the API's descriptors have them.
var (
	watchedEvent    = numberOf(&ordergatev1.WatchOrdersResponse{}, "event")
	watchedToken    = numberOf(&ordergatev1.WatchOrdersResponse{}, "resume_token")
	consumeDelivery = numberOf(&ordergatev1.ConsumeResponse{}, "delivery")
	deliveredEvent  = numberOf(&ordergatev1.Delivery{}, "event")
)

func numberOf(of proto.Message, field protoreflect.Name) protowire.Number {
	return of.ProtoReflect().Descriptor().Fields().ByName(field).Number()
}

// wireEvent is a WatchOrdersResponse with an event of a log. It is encoded once for all
// who watch.
func wireEvent(record *eventlog.OrderRecord, logID string) (wire, error) {
	encoded, err := record.Shared(func() (any, error) { return encodeEvent(record, encodeToken(resumeToken, logID, record.Sequence)) })
	if err != nil {
		return nil, err
	}
	return encoded.(wire), nil
}

func encodeEvent(record *eventlog.OrderRecord, token string) (wire, error) {
	stored, place, err := record.Wire()
	if err != nil {
		return nil, err
	}
	head := protowire.AppendTag(nil, watchedEvent, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(stored)+len(place)))
	tail := protowire.AppendTag(place, watchedToken, protowire.BytesType)
	tail = protowire.AppendString(tail, token)
	return newWire(head, stored, tail), nil
}

// wireDelivery is a ConsumeResponse with a delivery.
func wireDelivery(delivery subscription.Delivery) (wire, error) {
	stored, place, err := delivery.Record.Wire()
	if err != nil {
		return nil, err
	}
	rest, err := proto.Marshal(leaseOf(delivery))
	if err != nil {
		return nil, err
	}
	rest = protowire.AppendTag(rest, deliveredEvent, protowire.BytesType)
	rest = protowire.AppendVarint(rest, uint64(len(stored)+len(place)))
	head := protowire.AppendTag(nil, consumeDelivery, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(rest)+len(stored)+len(place)))
	return newWire(append(head, rest...), stored, place), nil
}
