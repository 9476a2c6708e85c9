package clienttest

import (
	"cmp"
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

const (
	defaultWindow      = 100
	defaultAckDeadline = 30 * time.Second
	defaultHeartbeat   = 15 * time.Second
)

// service is the SubscriptionService of a gateway.
type service struct {
	ordergatev1.UnimplementedSubscriptionServiceServer
	gateway *Gateway
}

// stream is a call of Consume. Guarded by Gateway.mu.
type stream struct {
	window     int
	deadline   time.Duration
	results    []*ordergatev1.DeliveryResult // to be sent
	deliveries int
	stopped    bool
	draining   bool
	drainSent  bool // draining was sent
	broken     bool
}

func (s *service) Consume(server grpc.BidiStreamingServer[ordergatev1.ConsumeRequest, ordergatev1.ConsumeResponse]) error {
	first, err := server.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	if open == nil {
		return status.Error(codes.InvalidArgument, "the first message has no open")
	}
	g := s.gateway
	st := &stream{
		window:   cmp.Or(int(open.GetMaxOutstandingEvents()), defaultWindow),
		deadline: cmp.Or(open.GetAckDeadline().AsDuration(), defaultAckDeadline),
	}
	g.change(func() {
		g.streams[st] = true
		g.maxAttempts = cmp.Or(int(open.GetCreate().GetMaxAttempts()), g.maxAttempts)
	})
	defer g.change(func() {
		delete(g.streams, st)
		g.release(st)
	})
	opened := &ordergatev1.ConsumeOpened{
		Subscription: &ordergatev1.Subscription{Name: open.GetSubscription()}, Created: open.GetCreate() != nil, AckDeadline: durationpb.New(st.deadline),
	}
	if err := server.Send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Opened{Opened: opened}}); err != nil {
		return err
	}
	go func() {
		for {
			request, err := server.Recv()
			if err != nil {
				return
			}
			g.change(func() { g.take(st, request) })
		}
	}()
	return g.serve(st, server, cmp.Or(open.GetHeartbeatInterval().AsDuration(), defaultHeartbeat))
}

// serve sends messages until the stream ends.
func (g *Gateway) serve(st *stream, server grpc.BidiStreamingServer[ordergatev1.ConsumeRequest, ordergatev1.ConsumeResponse], heartbeat time.Duration) error {
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		g.mu.Lock()
		message, changed := g.message(st), g.changed
		ended, broken := message == nil && (st.stopped || st.draining) && g.outstanding(st) == 0, st.broken
		g.mu.Unlock()
		switch {
		case broken:
			return status.Error(codes.Unavailable, "the connection is broken")
		case ended:
			return nil
		case message == nil:
			select {
			case <-server.Context().Done():
				return server.Context().Err()
			case <-changed:
				continue
			case <-beat.C:
				message = &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Heartbeat{Heartbeat: &ordergatev1.Heartbeat{}}}
			}
		}
		if err := server.Send(message); err != nil {
			return err
		}
	}
}

// message returns the next message for a stream, or nil.
func (g *Gateway) message(st *stream) *ordergatev1.ConsumeResponse {
	switch {
	case len(st.results) > 0:
		results := &ordergatev1.DeliveryResults{Results: st.results}
		st.results = nil
		return &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Results{Results: results}}
	case st.draining && !st.drainSent:
		st.drainSent = true
		return &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Draining{Draining: &ordergatev1.Draining{}}}
	case st.stopped || st.draining || st.broken || g.outstanding(st) >= st.window:
		return nil
	}
	if e := g.next(time.Now()); e != nil {
		return &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: g.deliver(e, st)}}
	}
	return nil
}

// take handles a request of a stream.
func (g *Gateway) take(st *stream, request *ordergatev1.ConsumeRequest) {
	st.stopped = st.stopped || request.GetStop()
	for _, id := range request.GetAcks() {
		st.results = append(st.results, g.settle(id, nil))
	}
	for _, nack := range request.GetNacks() {
		st.results = append(st.results, g.settle(nack.GetDeliveryId(), nack))
	}
	for _, extension := range request.GetExtensions() {
		result := &ordergatev1.DeliveryResult{DeliveryId: extension.GetDeliveryId(), Code: ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_STALE_ATTEMPT}
		if g.find(extension.GetDeliveryId()) != nil {
			result.Code = ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK
			result.LeaseExpireTime = timestamppb.New(time.Now().Add(st.deadline))
		}
		st.results = append(st.results, result)
	}
}

func (s *service) Acknowledge(_ context.Context, request *ordergatev1.AcknowledgeRequest) (*ordergatev1.AcknowledgeResponse, error) {
	response := &ordergatev1.AcknowledgeResponse{}
	s.gateway.change(func() {
		for _, id := range request.GetDeliveryIds() {
			response.Results = append(response.Results, s.gateway.settle(id, nil))
		}
		for _, nack := range request.GetNacks() {
			response.Results = append(response.Results, s.gateway.settle(nack.GetDeliveryId(), nack))
		}
	})
	return response, nil
}
