package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/peers"
	"github.com/ordergate/ordergate/internal/subscription"
)

// Gateways that share a log have each subscription at one of them. What the others are
// asked about it they pass on, to the server for peers: it has SubscriptionService, and
// a service of its own, for what only gateways ask each other. Callers were let in by
// the gateway that they called.

const (
	peerService = "ordergate.peer.Peer"
	forgetOrder = "/" + peerService + "/ForgetOrder"
	// peerPings is how often a peer may ask whether this end is there. A peer that says
	// nothing is asked after peerSilence, and its streams end peerPatience later: nothing
	// else tells that it is gone, and its workers' events are wanted elsewhere.
	peerPings    = 5 * time.Second
	peerSilence  = 2 * time.Second
	peerPatience = 3 * time.Second
)

// Peers are the gateways that share the log; *peers.Peers are.
type Peers interface {
	Conn(member string) (*grpc.ClientConn, error)
}

// newPeerServer returns the server for peers.
func newPeerServer(subscriptions *subscriptionService, guard guard) *grpc.Server {
	server := grpc.NewServer(
		grpc.ForceServerCodecV2(newWireCodec()),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.StaticStreamWindowSize(peers.StreamWindow), grpc.StaticConnWindowSize(peers.ConnWindow),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: peerPings, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: peerSilence, Timeout: peerPatience}),
		grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
			defer func() { err = guard.finish(ctx, info.FullMethod, nil, err, recover()) }()
			return handler(ctx, request)
		}),
		grpc.StreamInterceptor(func(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
			defer func() { err = guard.finish(stream.Context(), info.FullMethod, nil, err, recover()) }()
			return handler(service, stream)
		}),
	)
	ordergatev1.RegisterSubscriptionServiceServer(server, subscriptions)
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: peerService, HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{{MethodName: "ForgetOrder", Handler: forgetOrderHandler}},
	}, subscriptions)
	return server
}

func forgetOrderHandler(service any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
	request := &wrapperspb.StringValue{}
	if err := decode(request); err != nil {
		return nil, err
	}
	return interceptor(ctx, request, &grpc.UnaryServerInfo{Server: service, FullMethod: forgetOrder}, func(ctx context.Context, _ any) (any, error) {
		return &emptypb.Empty{}, service.(*subscriptionService).forgetOrder(ctx, request.GetValue())
	})
}

// forgetOrder has the subscriptions of this gateway forget an order that was erased.
func (s *subscriptionService) forgetOrder(ctx context.Context, orderID string) error {
	tombstone, err := s.log.DurableOrder(ctx, orderID)
	if err != nil {
		return err
	}
	if tombstone.Kind != ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED {
		return invalid("order_id", "%s is not erased", orderID)
	}
	_, err = s.subscriptions.Erase(ctx, tombstone)
	return err
}

// forgetEverywhere has all subscriptions forget an order that was erased.
func (s *orderService) forgetEverywhere(ctx context.Context, tombstone *eventlog.OrderRecord) error {
	others, err := s.subscriptions.Erase(ctx, tombstone)
	if err != nil {
		return err
	}
	for _, member := range others {
		conn, err := s.peers.Conn(member)
		if err == nil {
			err = conn.Invoke(ctx, forgetOrder, wrapperspb.String(tombstone.OrderID), &emptypb.Empty{})
		}
		if err != nil {
			return fmt.Errorf("%w: the gateway %s, which has subscriptions: %w", eventlog.ErrUnavailable, member, err)
		}
	}
	return nil
}

// otherGateway returns the gateway that a call is to be passed on to; empty when there is
// none.
func otherGateway(err error, peers Peers) string {
	var there *subscription.ElsewhereError
	if peers != nil && errors.As(err, &there) {
		return there.Member
	}
	return ""
}

// passOn has another gateway answer a call.
func passOn(ctx context.Context, peers Peers, member, method string, request any) (proto.Message, error) {
	response, err := newResponse(method)
	if err != nil {
		return nil, err
	}
	conn, err := peers.Conn(member)
	if err != nil {
		return nil, err
	}
	if err := conn.Invoke(ctx, method, request, response); err != nil {
		return nil, peerError(ctx, err)
	}
	return response, nil
}

// newResponse makes an empty response of a method.
func newResponse(method string) (proto.Message, error) {
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", "."))
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return nil, err
	}
	described, ok := found.(protoreflect.MethodDescriptor)
	if !ok {
		return nil, fmt.Errorf("%s is no method", name)
	}
	response, err := protoregistry.GlobalTypes.FindMessageByName(described.Output().FullName())
	if err != nil {
		return nil, err
	}
	return response.New().Interface(), nil
}

// peerError tells a gateway that does not answer, or whose connection was closed because
// it is gone, from one that answers with an error.
func peerError(ctx context.Context, err error) error {
	s, ok := status.FromError(err)
	if ok && (s.Code() == codes.Unavailable && reasonOf(s) == "" || s.Code() == codes.Canceled && ctx.Err() == nil) {
		return fmt.Errorf("%w: %w", peers.ErrAway, err)
	}
	return err
}

// passOn has another gateway serve a worker's stream.
func (c *consumer) passOn(ctx context.Context, peers Peers, member string, first *ordergatev1.ConsumeRequest) error {
	conn, err := peers.Conn(member)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	there, err := conn.NewStream(ctx, &ordergatev1.SubscriptionService_ServiceDesc.Streams[0], ordergatev1.SubscriptionService_Consume_FullMethodName, grpc.ForceCodecV2(newWireCodec()))
	if err != nil {
		return peerError(ctx, err)
	}
	if err := there.SendMsg(first); err != nil && !errors.Is(err, io.EOF) {
		return peerError(ctx, err)
	}
	go func() {
		defer there.CloseSend()
		for {
			select {
			case request, more := <-c.requests:
				if !more || there.SendMsg(request) != nil { // RecvMsg has the reason
					return
				}
			case <-c.broken:
				cancel()
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		var response wire
		err := there.RecvMsg(&response)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && c.stream.Context().Err() != nil:
			return context.Cause(c.stream.Context())
		case err != nil:
			return peerError(ctx, err)
		}
		if err := c.stream.SendMsg(response); err != nil {
			return err
		}
	}
}

// Unmarshal is for grpc: a wire takes what comes as it is.
func (c wireCodec) Unmarshal(data mem.BufferSlice, v any) error {
	if w, ok := v.(*wire); ok {
		*w = newWire(data.Materialize())
		return nil
	}
	return c.CodecV2.Unmarshal(data, v)
}
