package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

// model is a gateway that keeps its contract, on an unlucky day: streams break,
// drain and fall silent, the log is away for a while, results come late.
type model struct {
	ordergatev1.UnimplementedSubscriptionServiceServer
	host
	t        *testing.T
	deadline time.Duration
	luck     func(n int) bool // whether a chance of one in n comes

	state  sync.Mutex
	orders map[string]*modelOrder
	leases map[string]*modelLease // by delivery id
	serial int
	faults map[string]int
}

type modelOrder struct {
	id       string
	next     int // the event that is next, from 1
	events   int
	attempts int
	lease    *modelLease // nil when none is out
	wait     time.Time   // after a nack
}

type modelLease struct {
	id, client string
	order      *modelOrder
	event      int
	stream     int
	ends       time.Time
}

func (m *model) fault(name string, oneIn int) bool {
	if !m.luck(oneIn) {
		return false
	}
	m.faults[name]++
	return true
}

// ready hands out the next event that may be delivered, as a lease.
func (m *model) ready(open *ordergatev1.ConsumeOpen, stream int) *ordergatev1.ConsumeResponse {
	m.state.Lock()
	defer m.state.Unlock()
	out := 0
	for _, lease := range m.leases {
		if lease.client == open.GetClientId() && lease.order.lease == lease {
			out++
		}
	}
	if out >= int(open.GetMaxOutstandingEvents()) {
		return nil
	}
	for _, id := range slices.Sorted(maps.Keys(m.orders)) {
		o := m.orders[id]
		if o.next > o.events || o.lease != nil || time.Now().Before(o.wait) {
			continue
		}
		m.serial++
		o.attempts++
		o.lease = &modelLease{fmt.Sprintf("d%d", m.serial), open.GetClientId(), o, o.next, stream, time.Now().Add(m.deadline)}
		m.leases[o.lease.id] = o.lease
		return &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: &ordergatev1.Delivery{
			DeliveryId: o.lease.id, Attempt: int32(o.attempts), LeaseExpireTime: timestamppb.New(o.lease.ends),
			Event: &ordergatev1.OrderEvent{Id: fmt.Sprintf("%s.%d", id, o.next), Order: &ordergatev1.Order{Id: id, Revision: int64(o.next)}},
		}}}
	}
	return nil
}

// expire takes back the leases that ran out, and those of a stream that ended.
func (m *model) expire(stream int) {
	m.state.Lock()
	defer m.state.Unlock()
	for _, o := range m.orders {
		if l := o.lease; l != nil && (l.stream == stream || time.Now().After(l.ends)) {
			if l.stream != stream {
				m.faults["a lease ran out"]++
			}
			o.lease = nil
		}
	}
}

func (m *model) settle(id string, nack *ordergatev1.Nack) *ordergatev1.DeliveryResult {
	m.state.Lock()
	defer m.state.Unlock()
	result := &ordergatev1.DeliveryResult{DeliveryId: id, Code: ok}
	l := m.leases[id]
	switch {
	case l == nil:
		m.t.Errorf("%s was never delivered", id)
		result.Code = unknown
	case m.fault("the log is away", 8):
		result.Code = retryable
	case l.event < l.order.next: // done with before
	case l.order.lease != l && l.order.lease != nil:
		result.Code = stale
	case l.order.lease != l && (nack != nil || l.event != l.order.next):
		result.Code = expired
	default:
		l.order.lease = nil
		if nack == nil {
			l.order.next++
			l.order.attempts = 0
		} else {
			l.order.wait = time.Now().Add(nack.GetDelay().AsDuration())
		}
		if m.fault("stored, but it is not known", 30) {
			result.Code = retryable
		}
	}
	return result
}

func (m *model) extend(id string) *ordergatev1.DeliveryResult {
	m.state.Lock()
	defer m.state.Unlock()
	l := m.leases[id]
	switch {
	case m.fault("not extended", 20):
		return &ordergatev1.DeliveryResult{DeliveryId: id, Code: retryable}
	case l.order.lease == l:
		l.ends = time.Now().Add(m.deadline)
		return &ordergatev1.DeliveryResult{DeliveryId: id, Code: ok, LeaseExpireTime: timestamppb.New(l.ends)}
	case l.order.lease != nil:
		return &ordergatev1.DeliveryResult{DeliveryId: id, Code: stale}
	default:
		return &ordergatev1.DeliveryResult{DeliveryId: id, Code: expired}
	}
}

func (m *model) Acknowledge(_ context.Context, r *ordergatev1.AcknowledgeRequest) (*ordergatev1.AcknowledgeResponse, error) {
	m.state.Lock()
	away := m.fault("Acknowledge refused", 2)
	m.state.Unlock()
	if away {
		return nil, errAway
	}
	response := &ordergatev1.AcknowledgeResponse{}
	for _, id := range r.GetDeliveryIds() {
		response.Results = append(response.Results, m.settle(id, nil))
	}
	for _, n := range r.GetNacks() {
		response.Results = append(response.Results, m.settle(n.GetDeliveryId(), n))
	}
	return response, nil
}

func (m *model) Consume(s grpc.BidiStreamingServer[ordergatev1.ConsumeRequest, ordergatev1.ConsumeResponse]) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	open := first.GetOpen()
	m.state.Lock()
	m.serial++
	stream := m.serial
	refused, never := m.fault("refused", 5), m.fault("never opened", 20)
	m.state.Unlock()
	if refused {
		return errAway
	}
	if never {
		<-s.Context().Done()
		return nil
	}
	defer m.expire(stream)
	incoming := make(chan *ordergatev1.ConsumeRequest)
	halfClosed := make(chan struct{})
	go func() {
		for {
			r, err := s.Recv()
			if errors.Is(err, io.EOF) {
				close(halfClosed)
			}
			if err != nil {
				return
			}
			select {
			case incoming <- r:
			case <-s.Context().Done():
				return
			}
		}
	}()
	if err := s.Send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Opened{Opened: &ordergatev1.ConsumeOpened{AckDeadline: durationpb.New(m.deadline)}}}); err != nil {
		return err
	}
	stopped, draining := false, false
	beat := time.NewTicker(500 * time.Millisecond)
	defer beat.Stop()
	for {
		m.expire(0)
		for !stopped && !draining {
			d := m.ready(open, stream)
			if d == nil {
				break
			}
			if err := s.Send(d); err != nil {
				return err
			}
		}
		mine := 0
		m.state.Lock()
		for _, o := range m.orders {
			if o.lease != nil && o.lease.stream == stream {
				mine++
			}
		}
		broken, drain := m.fault("broken", 150), !draining && m.fault("drained", 200)
		silent, over := m.fault("silent", 300), draining && m.fault("drained for too long", 20)
		brokenLate := stopped && mine > 0 && m.fault("broken while it stops", 10)
		m.state.Unlock()
		switch {
		case stopped && mine == 0:
			return nil
		case draining && mine == 0, broken, over, brokenLate:
			return errAway
		case silent:
			<-s.Context().Done()
			return nil
		case drain:
			draining = true
			s.Send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Draining{Draining: &ordergatev1.Draining{}}})
		}
		select {
		case <-s.Context().Done():
			return nil
		case <-halfClosed:
			stopped = true
			halfClosed = nil
		case <-beat.C:
			s.Send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Heartbeat{Heartbeat: &ordergatev1.Heartbeat{}}})
		case r := <-incoming:
			if n := len(r.GetAcks()) + len(r.GetNacks()); n > 1000 {
				return status.Error(codes.InvalidArgument, "too many")
			}
			stopped = stopped || r.GetStop()
			results := &ordergatev1.DeliveryResults{}
			for _, e := range r.GetExtensions() {
				results.Results = append(results.Results, m.extend(e.GetDeliveryId()))
			}
			for _, id := range r.GetAcks() {
				results.Results = append(results.Results, m.settle(id, nil))
			}
			for _, n := range r.GetNacks() {
				results.Results = append(results.Results, m.settle(n.GetDeliveryId(), n))
			}
			if len(results.GetResults()) > 0 {
				s.Send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Results{Results: results}})
			}
		}
	}
}

// Whatever befalls the gateway: workers that come and go deal with every event,
// in the order of each order, and a worker never with two of an order at once.
func TestConsumeOnAnUnluckyDay(t *testing.T) {
	faults := map[string]int{}
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			const orders, events, workers = 30, 8, 3
			// One under the model's lock, one under the workers'.
			fate, random := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 2))
			m := &model{t: t, deadline: 10 * time.Second, orders: map[string]*modelOrder{}, leases: map[string]*modelLease{}, faults: faults}
			m.luck = func(n int) bool { return fate.IntN(n) == 0 }
			for i := range orders {
				id := fmt.Sprintf("cs_%d", i)
				m.orders[id] = &modelOrder{id: id, next: 1, events: events}
			}
			m.register = func(s *grpc.Server) { ordergatev1.RegisterSubscriptionServiceServer(s, m) }
			m.start()
			t.Cleanup(func() { m.server.Stop() })
			c := m.client(t)

			var mu sync.Mutex
			handled := map[string]int{} // the newest event of each order
			running := map[string]bool{}
			var handler = func(worker int) client.Handler {
				return func(ctx context.Context, d *client.Delivery) error {
					order, n := d.Event.GetOrder().GetId(), int(d.Event.GetOrder().GetRevision())
					at := fmt.Sprint(worker, order)
					mu.Lock()
					if running[at] {
						t.Errorf("two handlers of %s at once", order)
					}
					running[at] = true
					if n > handled[order]+1 {
						t.Errorf("seed %d: %s comes after %d", seed, d.Event.GetId(), handled[order])
					}
					work := time.Duration(random.IntN(1000)) * time.Millisecond
					if random.IntN(20) == 0 {
						work = time.Duration(random.IntN(60)) * time.Second
					}
					fails := random.IntN(10)
					mu.Unlock()
					select {
					case <-time.After(work):
					case <-ctx.Done():
					}
					mu.Lock()
					defer mu.Unlock()
					delete(running, at)
					switch {
					case ctx.Err() != nil:
						return ctx.Err()
					case fails == 0:
						return client.RetryAfter(errors.New("failed"), 0)
					case fails == 1:
						return client.RetryAfter(errors.New("failed"), 5*time.Second)
					}
					handled[order] = max(handled[order], n)
					return nil
				}
			}
			done := func() bool {
				m.state.Lock()
				defer m.state.Unlock()
				for _, o := range m.orders {
					if o.next <= o.events {
						return false
					}
				}
				return true
			}
			var all sync.WaitGroup
			for w := range workers {
				all.Go(func() {
					for !done() {
						mu.Lock()
						life := time.Duration(30+random.IntN(120)) * time.Second
						mu.Unlock()
						ctx, cancel := context.WithTimeout(t.Context(), life)
						began := time.Now()
						err := c.Consume(ctx, "shipping", handler(w), client.ConsumeOptions{Concurrency: 5, Heartbeat: time.Second, DrainTimeout: 20 * time.Second})
						cancel()
						if took := time.Since(began); err != nil || took > life+22*time.Second {
							t.Errorf("seed %d: %v after %v of %v", seed, err, took, life)
						}
						if took := time.Since(began); took < life {
							t.Errorf("ended after %v of %v", took, life)
						}
						if time.Since(began) > time.Hour {
							t.Error("an hour")
						}
					}
				})
			}
			all.Wait()
			for order, n := range handled {
				expect(t, order, events, n)
			}
			expect(t, "orders", orders, len(handled))
		})
	}
	for _, fault := range []string{"refused", "never opened", "broken", "broken while it stops", "drained", "silent", "the log is away", "stored, but it is not known", "not extended", "Acknowledge refused", "drained for too long"} {
		if faults[fault] == 0 {
			t.Errorf("this never happened: %s", fault)
		}
	}
	t.Log(faults)
}
