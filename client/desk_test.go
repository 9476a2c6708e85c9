package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

const (
	ok        = ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK
	expired   = ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_EXPIRED
	stale     = ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_STALE_ATTEMPT
	unknown   = ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_UNKNOWN
	retryable = ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_RETRYABLE
)

// desk is a scripted SubscriptionService. Each Consume call plays the next
// scene; after the last one, streams are opened and well served, but nothing new
// is delivered.
type desk struct {
	ordergatev1.UnimplementedSubscriptionServiceServer
	host
	t           testing.TB
	scenes      []func(*line) error
	acknowledge func(*ordergatev1.AcknowledgeRequest) (*ordergatev1.AcknowledgeResponse, error)

	log          sync.Mutex
	opens        []*ordergatev1.ConsumeOpen // of each call
	called       []time.Time                // when
	acknowledged []string                   // what was said by Acknowledge
}

func newDesk(t testing.TB, scenes ...func(*line) error) *desk {
	d := &desk{t: t, scenes: scenes}
	d.register = func(s *grpc.Server) { ordergatev1.RegisterSubscriptionServiceServer(s, d) }
	d.start()
	t.Cleanup(func() { d.server.Stop() })
	return d
}

// calls is how many streams there have been.
func (d *desk) calls() int {
	d.log.Lock()
	defer d.log.Unlock()
	return len(d.opens)
}

func (d *desk) Consume(s grpc.BidiStreamingServer[ordergatev1.ConsumeRequest, ordergatev1.ConsumeResponse]) (err error) {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	d.log.Lock()
	d.opens, d.called = append(d.opens, first.GetOpen()), append(d.called, time.Now())
	scene := func(l *line) error { l.opened(30 * time.Second); return l.serve() }
	if n := len(d.opens); n <= len(d.scenes) {
		scene = d.scenes[n-1]
	}
	d.log.Unlock()
	defer func() {
		switch over := recover().(type) {
		case nil:
		case broken:
			err = over.error
		default:
			panic(over)
		}
	}()
	return scene(&line{s: s, t: d.t, out: map[string]bool{}})
}

func (d *desk) Acknowledge(_ context.Context, r *ordergatev1.AcknowledgeRequest) (*ordergatev1.AcknowledgeResponse, error) {
	said := words(&ordergatev1.ConsumeRequest{Acks: r.GetDeliveryIds(), Nacks: r.GetNacks()})
	d.log.Lock()
	d.acknowledged = append(d.acknowledged, said...)
	d.log.Unlock()
	if d.acknowledge != nil {
		return d.acknowledge(r)
	}
	response := &ordergatev1.AcknowledgeResponse{}
	for _, word := range said {
		response.Results = append(response.Results, &ordergatev1.DeliveryResult{DeliveryId: idOf(word), Code: ok})
	}
	return response, nil
}

// line is the gateway's end of a stream.
type line struct {
	s   grpc.BidiStreamingServer[ordergatev1.ConsumeRequest, ordergatev1.ConsumeResponse]
	t   testing.TB
	out map[string]bool // delivered and not settled

	stopped, halfClosed bool // was told to, and is
}

// broken ends a scene whose stream is over.
type broken struct{ error }

func (l *line) send(m *ordergatev1.ConsumeResponse) {
	if err := l.s.Send(m); err != nil {
		panic(broken{err})
	}
}

func (l *line) opened(deadline time.Duration) {
	l.send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Opened{Opened: &ordergatev1.ConsumeOpened{AckDeadline: durationpb.New(deadline)}}})
}

// deliver delivers events: `cs_1.2#3` is the third delivery of an event of the
// order cs_1. All of it is the delivery's id.
func (l *line) deliver(ids ...string) {
	for _, id := range ids {
		l.out[id] = true
		l.send(delivery(id))
	}
}

func delivery(id string) *ordergatev1.ConsumeResponse {
	event, number, _ := strings.Cut(id, "#")
	attempt, _ := strconv.Atoi(number)
	order, _, _ := strings.Cut(event, ".")
	return &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: &ordergatev1.Delivery{
		DeliveryId: id, Attempt: int32(attempt), Event: &ordergatev1.OrderEvent{Id: event, Order: &ordergatev1.Order{Id: order}},
	}}}
}

// rest lets everything else come to rest, on virtual time. synctest.Wait is the
// test's own: only one may call it at a time.
func (l *line) rest() { l.sleep(time.Millisecond) }

func (l *line) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-l.s.Context().Done():
		panic(broken{l.s.Context().Err()})
	}
}

func (l *line) heartbeat() {
	l.send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Heartbeat{Heartbeat: &ordergatev1.Heartbeat{}}})
}

func (l *line) drain() {
	l.send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Draining{Draining: &ordergatev1.Draining{}}})
}

// next is the next message, in words. It is nothing, once, at a half-close.
func (l *line) next() []string {
	request, err := l.s.Recv()
	if errors.Is(err, io.EOF) && !l.halfClosed {
		l.halfClosed = true
		return nil
	}
	if err != nil {
		panic(broken{err})
	}
	l.stopped = l.stopped || request.GetStop()
	return words(request)
}

// hear receives until n things were said, other than extensions, and returns
// them, sorted.
func (l *line) hear(n int) (said []string) {
	for len(said) < n {
		next := l.next()
		if next == nil {
			break
		}
		for _, word := range next {
			if strings.HasPrefix(word, "extend ") {
				l.answerExtension(ok, idOf(word))
			} else {
				said = append(said, word)
			}
		}
	}
	slices.Sort(said)
	return said
}

// answer tells what became of settlements.
func (l *line) answer(code ordergatev1.DeliveryResultCode, ids ...string) {
	results := &ordergatev1.DeliveryResults{}
	for _, id := range ids {
		if code != retryable {
			delete(l.out, id)
		}
		results.Results = append(results.Results, &ordergatev1.DeliveryResult{DeliveryId: id, Code: code})
	}
	l.send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Results{Results: results}})
}

func (l *line) answerExtension(code ordergatev1.DeliveryResultCode, ids ...string) {
	results := &ordergatev1.DeliveryResults{}
	for _, id := range ids {
		result := &ordergatev1.DeliveryResult{DeliveryId: id, Code: code}
		if code == ok {
			result.LeaseExpireTime = timestamppb.Now()
		}
		results.Results = append(results.Results, result)
	}
	l.send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Results{Results: results}})
}

// serve answers OK to everything, with heartbeats, until the worker stops or
// half-closes and nothing is out.
func (l *line) serve(saying ...*[]string) error {
	incoming := make(chan []string)
	go func() {
		defer close(incoming)
		for {
			request, err := l.s.Recv()
			if err != nil {
				return
			}
			select {
			case incoming <- words(request):
			case <-l.s.Context().Done():
				return
			}
		}
	}()
	for !l.stopped || len(l.out) > 0 {
		select {
		case said, more := <-incoming:
			if !more {
				return l.s.Context().Err()
			}
			for _, s := range saying {
				*s = append(*s, said...)
			}
			for _, word := range said {
				switch {
				case word == "stop":
					l.stopped = true
				case strings.HasPrefix(word, "extend "):
					l.answerExtension(ok, idOf(word))
				default:
					l.answer(ok, idOf(word))
				}
			}
		case <-time.After(15 * time.Second):
			l.heartbeat()
		}
	}
	return nil
}

// words puts a request in words: `stop`, `ack ID`, `retry ID DELAY REASON`,
// `extend ID`.
func words(r *ordergatev1.ConsumeRequest) (said []string) {
	if r.GetStop() {
		said = append(said, "stop")
	}
	for _, id := range r.GetAcks() {
		said = append(said, "ack "+id)
	}
	for _, n := range r.GetNacks() {
		action := strings.ToLower(strings.TrimPrefix(n.GetAction().String(), "NACK_ACTION_"))
		delay := "-"
		if n.GetDelay() != nil {
			delay = n.GetDelay().AsDuration().String()
		}
		said = append(said, fmt.Sprintf("%s %s %s %s", action, n.GetDeliveryId(), delay, n.GetReason()))
	}
	for _, e := range r.GetExtensions() {
		said = append(said, "extend "+e.GetDeliveryId())
	}
	return said
}

func idOf(word string) string { return strings.Fields(word)[1] }

// consuming is a Consume that runs.
type consuming struct {
	t      testing.TB
	cancel context.CancelFunc
	result chan error
}

// idle is a handler that does nothing.
func idle(context.Context, *client.Delivery) error { return nil }

func consume(t testing.TB, c *client.Client, handler client.Handler, options client.ConsumeOptions) *consuming {
	ctx, cancel := context.WithCancel(t.Context())
	w := &consuming{t, cancel, make(chan error, 1)}
	go func() { w.result <- c.Consume(ctx, "shipping", handler, options) }()
	t.Cleanup(cancel)
	return w
}

// stop ends it as its user does, and returns how long that took.
func (w *consuming) stop() time.Duration {
	w.t.Helper()
	began := time.Now()
	w.cancel()
	err := w.wait()
	took := time.Since(began)
	if err != nil {
		w.t.Errorf("ended with %v", err)
	}
	return took
}

func (w *consuming) wait() error {
	w.t.Helper()
	select {
	case err := <-w.result:
		synctest.Wait() // the gateway too
		return err
	case <-time.After(48 * time.Hour):
		w.t.Error("does not end")
		return nil
	}
}

// pass lets virtual time pass, and everything come to rest.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// notes is a list that several goroutines write.
type notes struct {
	mu   sync.Mutex
	list []string
}

func (n *notes) add(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, fmt.Sprintf(format, args...))
}

func (n *notes) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.list)
}

func (n *notes) sorted() []string {
	all := n.all()
	slices.Sort(all)
	return all
}
