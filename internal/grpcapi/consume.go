package grpcapi

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/subscription"
)

const (
	defaultWindowEvents = 100
	maxWindowEvents     = 10_000
	defaultWindowBytes  = 16 << 20
	maxWindowBytes      = 256 << 20
	// openTimeout is how long a stream may be there before its first message.
	openTimeout = 30 * time.Second
	// maxUnanswered is how many messages of a worker may wait for their results;
	// then no more are read.
	maxUnanswered = 256
	// currentBatch is how many deliveries are compared with the newest revisions of their
	// orders before they are sent.
	currentBatch = 8
)

// Consume hands out events and takes what becomes of them. The handler's
// goroutine alone sends.
func (s *subscriptionService) Consume(stream grpc.BidiStreamingServer[ordergatev1.ConsumeRequest, ordergatev1.ConsumeResponse]) error {
	c := &consumer{stream: stream, sent: s.measures.consumed, requests: make(chan *ordergatev1.ConsumeRequest), broken: make(chan error, 1)}
	go c.receive(stream.Context())
	first, err := c.first()
	if err != nil {
		return err
	}
	err = c.open(stream.Context(), s, first)
	if member := otherGateway(err, s.peers); member != "" {
		return c.passOn(stream.Context(), s.peers, member, first)
	}
	if err != nil {
		return err
	}
	defer c.worker.Detach()
	s.measures.consuming.Inc()
	defer s.measures.consuming.Dec()
	return c.run(s.drains)
}

// consumer is one stream of Consume.
type consumer struct {
	stream    grpc.BidiStreamingServer[ordergatev1.ConsumeRequest, ordergatev1.ConsumeResponse]
	requests  chan *ordergatev1.ConsumeRequest // closed when the worker half-closed the stream
	broken    chan error                       // why nothing more comes
	sent      prometheus.Counter               // events
	heartbeat time.Duration
	silence   *time.Timer // fires when a heartbeat is due

	subscription *subscription.Subscription
	worker       *subscription.Worker
	// Settlements whose results are to be sent, in their order.
	unanswered []*subscription.Settlement
	stopped    bool  // nothing more is delivered
	end        error // what the stream ends with when nothing is left to do
}

// receive passes on what the worker says, until the stream ends.
func (c *consumer) receive(ctx context.Context) {
	for {
		request, err := c.stream.Recv()
		if errors.Is(err, io.EOF) {
			close(c.requests)
			return
		}
		if err != nil {
			c.broken <- err
			return
		}
		select {
		case c.requests <- request:
		case <-ctx.Done():
			return
		}
	}
}

// first waits for the first message.
func (c *consumer) first() (*ordergatev1.ConsumeRequest, error) {
	timeout := time.NewTimer(openTimeout)
	defer timeout.Stop()
	select {
	case request := <-c.requests:
		if request.GetOpen() == nil {
			return nil, invalid("open", "is required in the first message: the subscription to consume")
		}
		return request, nil
	case err := <-c.broken:
		return nil, err
	case <-c.stream.Context().Done():
		return nil, context.Cause(c.stream.Context())
	case <-timeout.C:
		return nil, invalid("open", "did not come within %v: send it first", openTimeout)
	}
}

// open attaches the worker, and deals with the rest of the first message.
func (c *consumer) open(ctx context.Context, s *subscriptionService, first *ordergatev1.ConsumeRequest) error {
	open := first.GetOpen()
	config := subscription.WorkerConfig{
		ClientID: open.GetClientId(), MaxEvents: int(open.GetMaxOutstandingEvents()), MaxBytes: open.GetMaxOutstandingBytes(),
		AckDeadline: open.GetAckDeadline().AsDuration(),
	}
	if config.MaxEvents == 0 {
		config.MaxEvents = defaultWindowEvents
	}
	if config.MaxBytes == 0 {
		config.MaxBytes = defaultWindowBytes
	}
	heartbeat, heartbeatErr := checkHeartbeat("open.heartbeat_interval", open.GetHeartbeatInterval())
	err := errors.Join(
		checkClientID("open.client_id", open.GetClientId()),
		checkRange("open.max_outstanding_events", config.MaxEvents, 1, maxWindowEvents),
		checkRange("open.max_outstanding_bytes", int(config.MaxBytes), 1, maxWindowBytes),
		checkDuration("open.ack_deadline", open.GetAckDeadline(), minAckDeadline, maxAckDeadline),
		heartbeatErr,
	)
	if err != nil {
		return err
	}
	c.heartbeat = heartbeat
	c.silence = time.NewTimer(c.heartbeat)
	var created bool
	if c.subscription, created, err = s.openOrCreate(ctx, open); err != nil {
		return err
	}
	if c.worker, err = c.subscription.Attach(config); err != nil {
		return err
	}
	opened := &ordergatev1.ConsumeOpened{
		Subscription: c.subscription.Settings(), Created: created, AckDeadline: durationpb.New(c.worker.AckDeadline()),
	}
	if created {
		opened.Warnings = s.warn(opened.GetSubscription())
	}
	err = c.send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Opened{Opened: opened}})
	if err == nil {
		first.Open = nil
		err = c.take(first)
	}
	if err != nil {
		c.worker.Detach()
	}
	return err
}

// openOrCreate opens the subscription of a stream, and creates it when there is
// none and the worker gave its settings.
func (s *subscriptionService) openOrCreate(ctx context.Context, open *ordergatev1.ConsumeOpen) (opened *subscription.Subscription, created bool, err error) {
	if settings := open.GetCreate(); settings != nil {
		switch settings.GetName() {
		case "", open.GetSubscription():
			settings.Name = open.GetSubscription()
		default:
			return nil, false, invalid("open.create.name", "is %.70q: leave it out, or make it the same as open.subscription", settings.GetName())
		}
	}
	opened, err = s.open(ctx, open.GetSubscription())
	if open.GetCreate() == nil || !errors.Is(err, subscription.ErrNotFound) {
		return opened, false, err
	}
	opened, err = s.create(ctx, open.GetCreate(), open.GetStart(), "open.start")
	if errors.Is(err, subscription.ErrExists) { // another worker was faster
		opened, err = s.open(ctx, open.GetSubscription())
		return opened, false, err
	}
	return opened, true, err
}

// run delivers and settles until the stream ends.
func (c *consumer) run(drains *drains) error {
	draining := drains.draining.Done()
	old := time.NewTimer(drainAge - connectionAgeOf(c.stream.Context()))
	defer old.Stop()
	cutOff := time.NewTimer(0) // set when the stream is drained
	cutOff.Stop()
	defer cutOff.Stop()
	defer c.silence.Stop()
	drain := func(end error, by time.Time) error {
		draining = nil
		c.stop(end)
		cutOff.Reset(time.Until(by))
		return c.send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Draining{Draining: &ordergatev1.Draining{EndTime: timestamppb.New(by)}}})
	}
	requests := c.requests
	for {
		if c.stopped && len(c.unanswered) == 0 && c.worker.Idle() {
			return c.end
		}
		listen := requests
		if len(c.unanswered) >= maxUnanswered {
			listen = nil
		}
		var stored <-chan struct{}
		if len(c.unanswered) > 0 {
			stored = c.unanswered[0].Stored()
		}
		var err error
		select {
		case request, more := <-listen:
			if !more {
				requests = nil
				c.stop(c.end)
				break
			}
			err = c.take(request)
		case <-c.worker.Signal():
			err = c.deliver()
		case <-stored:
			err = c.answer()
		case <-c.silence.C:
			err = c.beat()
		case <-draining:
			err = drain(errShuttingDown, drains.end)
		case <-old.C:
			err = drain(errRenew, time.Now().Add(drainTime))
		case <-cutOff.C:
			return c.end
		case <-c.subscription.Ended():
			return c.subscription.Err()
		case err = <-c.broken:
		case <-c.stream.Context().Done():
			// Not only of itself, which broken tells of too: also when the worker's
			// access has ended.
			err = context.Cause(c.stream.Context())
		}
		if err != nil {
			return err
		}
	}
}

// stop has nothing more delivered; the stream ends with end when nothing is left
// to do.
func (c *consumer) stop(end error) {
	c.end = end
	c.stopped = true
	c.worker.Stop()
}

// take deals with a message of the worker.
func (c *consumer) take(request *ordergatev1.ConsumeRequest) error {
	if request.GetOpen() != nil {
		return invalid("open", "came a second time: a stream has one subscription; open another stream")
	}
	n := len(request.GetAcks()) + len(request.GetNacks()) + len(request.GetExtensions())
	err := errors.Join(checkSettlements("acks", n), checkNacks("nacks", request.GetNacks()))
	for _, extension := range request.GetExtensions() {
		if extension.GetAckDeadline() == nil {
			extension.AckDeadline = durationpb.New(c.worker.AckDeadline())
		}
		err = errors.Join(err, checkDuration("extensions.ack_deadline", extension.GetAckDeadline(), minAckDeadline, maxAckDeadline))
	}
	if err != nil {
		return err
	}
	if n > 0 {
		c.unanswered = append(c.unanswered, c.subscription.Settle(request.GetAcks(), request.GetNacks(), request.GetExtensions()))
	}
	if request.GetStop() {
		c.stop(c.end)
	}
	if request.GetPing() {
		return c.beat()
	}
	return nil
}

// deliver sends what was assigned to the worker.
func (c *consumer) deliver() error {
	for batch := range slices.Chunk(c.worker.Take(), currentBatch) {
		for _, delivery := range c.subscription.Current(c.stream.Context(), batch) {
			message, err := wireDelivery(delivery)
			if err != nil {
				c.subscription.Fault(delivery.ID, err.Error())
				continue
			}
			if err := c.send(message); err != nil {
				return err
			}
			c.sent.Inc()
		}
	}
	return nil
}

// encodeDelivery returns the message of a delivery, nil when its event cannot be
// read: it is a dead letter then.
func encodeDelivery(from *subscription.Subscription, delivery subscription.Delivery) *ordergatev1.Delivery {
	event, err := delivery.Record.Event()
	if err != nil {
		from.Fault(delivery.ID, err.Error())
		return nil
	}
	message := leaseOf(delivery)
	message.Event = event
	return message
}

// leaseOf is the message of a delivery without its event.
func leaseOf(delivery subscription.Delivery) *ordergatev1.Delivery {
	return &ordergatev1.Delivery{
		DeliveryId: delivery.ID, Attempt: int32(delivery.Attempt),
		LeaseExpireTime: timestamppb.New(delivery.LeaseEnd), Redriven: delivery.Redriven,
		ReplacedRevisions: delivery.Replaced, LatestRevision: delivery.Newest.Revision(), LatestDirective: delivery.Newest.Directive,
	}
}

// answer sends the results of the settlements that are stored.
func (c *consumer) answer() error {
	results := &ordergatev1.DeliveryResults{}
	for len(c.unanswered) > 0 && len(results.Results) < maxSettlements {
		select {
		case <-c.unanswered[0].Stored():
			results.Results = append(results.Results, c.unanswered[0].Results()...)
			c.unanswered = c.unanswered[1:]
			continue
		default:
		}
		break
	}
	return c.send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Results{Results: results}})
}

func (c *consumer) beat() error {
	return c.send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Heartbeat{Heartbeat: &ordergatev1.Heartbeat{Time: timestamppb.Now()}}})
}

// send sends a ConsumeResponse, or the wire of one.
func (c *consumer) send(response any) error {
	c.silence.Reset(c.heartbeat)
	return c.stream.SendMsg(response)
}
