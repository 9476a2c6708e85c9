package client_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/freeport"
	"github.com/ordergate/ordergate/internal/grpcapi"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/pipeline"
	"github.com/ordergate/ordergate/internal/subscription"
)

type (
	request  = ordergatev1.WatchOrdersRequest
	response = ordergatev1.WatchOrdersResponse
	stream   = grpc.ServerStreamingServer[response]
)

// host is a gRPC server behind a network in memory, so that it may live in a
// synctest bubble.
type host struct {
	register func(*grpc.Server)

	mu       sync.Mutex
	server   *grpc.Server
	listener *bufconn.Listener
	dials    int
}

// start brings the server up, for the first time or after it was stopped.
func (h *host) start() {
	server, listener := grpc.NewServer(), bufconn.Listen(1<<16)
	h.register(server)
	h.mu.Lock()
	h.server, h.listener = server, listener
	h.mu.Unlock()
	go server.Serve(listener)
}

func (h *host) dial(ctx context.Context, _ string) (net.Conn, error) {
	h.mu.Lock()
	h.dials++
	listener := h.listener
	h.mu.Unlock()
	return listener.DialContext(ctx)
}

func (h *host) client(t testing.TB, options ...grpc.DialOption) *client.Client {
	t.Helper()
	c, err := client.New("passthrough:gateway", append([]grpc.DialOption{grpc.WithContextDialer(h.dial), grpc.WithTransportCredentials(insecure.NewCredentials())}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// gateway is a scripted OrderService. Each WatchOrders call plays the next
// scene; after the last one, streams stay silent until they end.
type gateway struct {
	ordergatev1.UnimplementedOrderServiceServer
	host

	scenes   []func(stream) error
	requests []*request // one of each call
}

func newGateway(t *testing.T, scenes ...func(stream) error) *gateway {
	g := &gateway{scenes: scenes}
	g.register = func(s *grpc.Server) { ordergatev1.RegisterOrderServiceServer(s, g) }
	g.start()
	t.Cleanup(func() { g.server.Stop() })
	return g
}

func (g *gateway) WatchOrders(r *request, s stream) error {
	g.mu.Lock()
	g.requests = append(g.requests, r)
	scene := func(s stream) error { <-s.Context().Done(); return s.Context().Err() }
	if n := len(g.requests); n <= len(g.scenes) {
		scene = g.scenes[n-1]
	}
	g.mu.Unlock()
	return scene(s)
}

// starts tells of each call where it began: "" is now.
func (g *gateway) starts() (starts []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range g.requests {
		start := r.GetResumeToken()
		switch {
		case r.GetFromBeginning():
			start = "beginning"
		case r.GetStartTime() != nil:
			start = r.GetStartTime().AsTime().Format(time.RFC3339)
		}
		starts = append(starts, start)
	}
	return starts
}

// event's token is its id.
func event(id string) *response {
	return &response{Payload: &ordergatev1.WatchOrdersResponse_Event{Event: &ordergatev1.OrderEvent{Id: id}}, ResumeToken: id}
}

func heartbeat(token string) *response {
	return &response{Payload: &ordergatev1.WatchOrdersResponse_Heartbeat{Heartbeat: &ordergatev1.Heartbeat{}}, ResumeToken: token}
}

func caughtUp(token string) *response {
	return &response{Payload: &ordergatev1.WatchOrdersResponse_CaughtUp{CaughtUp: &ordergatev1.CaughtUp{}}, ResumeToken: token}
}

// send is a scene: these messages, and then the error; nil ends the stream
// with OK.
func send(err error, messages ...*response) func(stream) error {
	return func(s stream) error {
		for _, m := range messages {
			if err := s.Send(m); err != nil {
				return err
			}
		}
		return err
	}
}

// silent is a scene: these messages, and then nothing any more.
func silent(messages ...*response) func(stream) error {
	return func(s stream) error {
		if err := send(nil, messages...)(s); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}
}

func problem(code codes.Code, details ...protoadapt.MessageV1) error {
	s, err := status.New(code, "a problem").WithDetails(details...)
	if err != nil {
		panic(err)
	}
	return s.Err()
}

var errAway = status.Error(codes.Unavailable, "away for a while")

// read ranges until n events came, and returns the tokens of all messages. It
// gives up after a day, of virtual time.
func read(t *testing.T, c *client.Client, options client.WatchOptions, n int) (tokens []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
	defer cancel()
	for m, err := range c.Watch(ctx, options) {
		if err != nil {
			t.Fatalf("after %q: %v", tokens, err)
		}
		tokens = append(tokens, m.GetResumeToken())
		if m.GetEvent() != nil {
			n--
		}
		if n == 0 {
			return tokens
		}
	}
	t.Fatalf("%d events did not come; only %q", n, tokens)
	return tokens
}

func expect[T any](t *testing.T, what string, want, got T) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform(), cmpopts.IgnoreUnexported(client.Delivery{})); diff != "" {
		t.Errorf("%s: %s", what, diff)
	}
}

func TestWatchGoesOnBehindTheLastMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.scenes = []func(stream) error{
			send(errAway, event("1"), event("2")),
			send(errAway),
			send(nil, caughtUp("2c"), heartbeat("5h")), // ends with OK
			send(status.Error(codes.Internal, "a bug"), event("6")),
			func(s stream) error { // is cut off: nothing listens any more for a while
				err := send(nil, event("7"))(s)
				go func() {
					synctest.Wait() // what was sent has arrived
					g.server.Stop()
					time.Sleep(time.Minute)
					g.start()
				}()
				<-s.Context().Done()
				return err
			},
			send(nil, event("8")),
		}
		tokens := read(t, g.client(t), client.WatchOptions{FromBeginning: true, OnRetry: func(err error, _ time.Duration) {
			if code := status.Code(err); code != codes.Unavailable && code != codes.Internal {
				t.Errorf("%v", err)
			}
		}}, 5)
		expect(t, "messages", []string{"1", "2", "2c", "5h", "6", "7", "8"}, tokens)
		expect(t, "starts", []string{"beginning", "2", "2", "5h", "6", "7"}, g.starts())
	})
}

// A gateway that drains tells its watchers to come back, and finishes.
func TestWatchOutlivesADrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.scenes = []func(stream) error{
			func(s stream) error {
				if err := s.Send(event("1")); err != nil {
					return err
				}
				drained := make(chan struct{})
				go func() {
					close(drained)
					g.server.GracefulStop()
					g.start()
				}()
				<-drained
				return problem(codes.Unavailable, &errdetails.RetryInfo{RetryDelay: durationpb.New(2 * time.Second)})
			},
			send(nil, event("2")),
		}
		expect(t, "messages", []string{"1", "2"}, read(t, g.client(t), client.WatchOptions{}, 2))
		expect(t, "starts", []string{"", "1"}, g.starts())
	})
}

// "Now" is now until the first message; then it is a place like any other.
func TestWatchFromNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, send(errAway), send(errAway), send(errAway, caughtUp("1")), send(errAway), send(nil, event("2")))
		read(t, g.client(t), client.WatchOptions{}, 1)
		expect(t, "starts", []string{"", "", "", "1", "1"}, g.starts())
	})
}

func TestWatchRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		since := time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC)
		filter := &ordergatev1.OrderEventFilter{OrderIds: []string{"cs_1"}, Livemode: new(true)}
		for _, tt := range []struct {
			options   client.WatchOptions
			start     string
			heartbeat time.Duration
		}{
			{client.WatchOptions{}, "", 15 * time.Second},
			{client.WatchOptions{FromBeginning: true, Filter: filter, Heartbeat: time.Minute}, "beginning", time.Minute},
			{client.WatchOptions{FromBeginning: true, Since: since}, "2026-01-31T08:00:00Z", 15 * time.Second},
			{client.WatchOptions{FromBeginning: true, Since: since, ResumeToken: "t"}, "t", 15 * time.Second},
		} {
			g := newGateway(t, send(nil, event("1")), send(nil, event("1")))
			c := g.client(t)
			watch := c.Watch(t.Context(), tt.options)
			for range 2 { // each range is a watch of its own
				for range watch {
					break
				}
			}
			expect(t, "starts", []string{tt.start, tt.start}, g.starts())
			expect(t, "filter", tt.options.Filter, g.requests[0].GetFilter())
			expect(t, "heartbeat", tt.heartbeat, g.requests[0].GetHeartbeatInterval().AsDuration())
		}
	})
}

// The waits grow, have jitter and a bound, and begin anew after a message.
func TestWatchBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const refused = 30
		scenes := slices.Repeat([]func(stream) error{send(errAway)}, refused)
		scenes = append(scenes, send(errAway, event("1")), send(nil, event("2")))
		g := newGateway(t, scenes...)
		var waits []time.Duration
		var last time.Time
		read(t, g.client(t), client.WatchOptions{OnRetry: func(err error, wait time.Duration) {
			if status.Code(err) != codes.Unavailable {
				t.Error(err)
			}
			if n := len(waits); n > 0 && time.Since(last) != waits[n-1] {
				t.Errorf("waited %v, said %v", time.Since(last), waits[n-1])
			}
			waits, last = append(waits, wait), time.Now()
		}}, 2)
		if len(waits) != refused+1 {
			t.Fatalf("waited %d times", len(waits))
		}
		interval := 500 * time.Millisecond
		for i, wait := range waits {
			if i == refused {
				interval = 500 * time.Millisecond
			}
			if wait < interval/2 || wait > interval*3/2 {
				t.Errorf("wait %d is %v, want about %v", i, wait, interval)
			}
			interval = min(interval*3/2, 10*time.Second)
		}
		slices.Sort(waits)
		if len(slices.Compact(waits)) < refused/2 {
			t.Errorf("no jitter: %v", waits)
		}
	})
}

func TestWatchWaitsAsTheGatewayAsks(t *testing.T) {
	for asked, want := range map[time.Duration]time.Duration{7 * time.Second: 7 * time.Second, 24 * time.Hour: time.Minute, -time.Hour: 0} {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, send(problem(codes.Unavailable, &errdetails.RetryInfo{RetryDelay: durationpb.New(asked)})), send(nil, event("1")))
			began := time.Now()
			read(t, g.client(t), client.WatchOptions{}, 1)
			if waited := time.Since(began); waited < want || waited == want || waited > want+time.Second {
				t.Errorf("asked for %v, waited %v, want %v and jitter", asked, waited, want)
			}
		})
	}
}

// A gateway that is there but says nothing is left, and asked again.
func TestWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var brokenOff []time.Duration
		lying := func(messages ...*response) func(stream) error {
			return func(s stream) error {
				began := time.Now()
				err := silent(messages...)(s)
				brokenOff = append(brokenOff, time.Since(began))
				return err
			}
		}
		g := newGateway(t, lying(), lying(event("1")), send(nil, event("2")))
		var reasons []string
		read(t, g.client(t), client.WatchOptions{Heartbeat: 5 * time.Second, OnRetry: func(err error, _ time.Duration) { reasons = append(reasons, err.Error()) }}, 2)
		expect(t, "broken off", []time.Duration{15 * time.Second, 15 * time.Second}, brokenOff)
		expect(t, "reasons", slices.Repeat([]string{"nothing came from the gateway for 15s"}, 2), reasons)
		expect(t, "starts", []string{"", "", "1"}, g.starts())
	})
}

// Heartbeats keep a stream, and so does a loop whose body takes its time.
func TestWatchdogIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, func(s stream) error {
			for range 100 {
				if err := s.Send(heartbeat("h")); err != nil {
					return err
				}
				time.Sleep(40 * time.Second)
			}
			return send(nil, event("1"), event("2"))(s)
		})
		for m, err := range g.client(t).Watch(t.Context(), client.WatchOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
			if m.GetEvent().GetId() == "1" {
				time.Sleep(time.Hour)
			}
			if m.GetEvent().GetId() == "2" {
				break
			}
		}
		expect(t, "starts", []string{""}, g.starts())
	})
}

func TestWatchErrors(t *testing.T) {
	permanent := []codes.Code{codes.InvalidArgument, codes.OutOfRange, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition,
		codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, send(status.Error(code, "a problem"), event("1")), send(nil, event("2")))
			var got []string
			for m, err := range g.client(t).Watch(t.Context(), client.WatchOptions{}) {
				if err != nil {
					if m != nil || status.Code(err) != code {
						t.Errorf("%v: %v, %v", code, m, err)
					}
					got = append(got, "error")
					continue // nothing comes after it
				}
				got = append(got, m.GetResumeToken())
				if m.GetResumeToken() == "2" {
					break
				}
			}
			want := []string{"1", "2"}
			if slices.Contains(permanent, code) {
				want = []string{"1", "error"}
			}
			expect(t, code.String(), want, got)
		})
	}
}

func TestWatchExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		info := &errdetails.ErrorInfo{Domain: "ordergate", Reason: "RESUME_TOKEN_EXPIRED", Metadata: map[string]string{"earliest_resume_token": "9"}}
		g := newGateway(t, send(problem(codes.OutOfRange, info)))
		calls := 0
		for _, err := range g.client(t).Watch(t.Context(), client.WatchOptions{ResumeToken: "3"}) {
			calls++
			var expired *client.ExpiredError
			if !errors.As(err, &expired) || expired.EarliestResumeToken != "9" || status.Code(err) != codes.OutOfRange {
				t.Errorf("%v", err)
			}
			expect(t, "text", "resume token expired: a problem", err.Error())
		}
		expect(t, "errors", 1, calls)
		// Of others, the reason is not the gateway's.
		info.Domain = "example.com"
		g = newGateway(t, send(problem(codes.OutOfRange, info)))
		for _, err := range g.client(t).Watch(t.Context(), client.WatchOptions{}) {
			if expired := new(client.ExpiredError); errors.As(err, &expired) {
				t.Error(err)
			}
		}
	})
}

// What a later gateway sends is left out, and its token used.
func TestWatchUnknownMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		unknown := &response{ResumeToken: "2"}
		unknown.ProtoReflect().SetUnknown([]byte{0xfa, 0x01, 0x01, 'x'}) // field 31
		g := newGateway(t, send(errAway, event("1"), unknown), send(errAway, &response{}), send(nil, event("3")))
		expect(t, "messages", []string{"1", "3"}, read(t, g.client(t), client.WatchOptions{}, 2))
		expect(t, "starts", []string{"", "2", "2"}, g.starts())
	})
}

// goroutines counts those in the bubble; the runtime has others that come and
// go.
func goroutines() int {
	stacks := make([]byte, 1<<20)
	return bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte(", synctest bubble "))
}

func TestLeavingTheLoopLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var streams atomic.Int32
		scene := func(s stream) error {
			streams.Add(1)
			defer streams.Add(-1)
			return silent(event("1"), event("2"))(s)
		}
		g := newGateway(t, send(nil, event("0")), scene, scene)
		c := g.client(t)
		read(t, c, client.WatchOptions{}, 1) // connects
		synctest.Wait()
		before := goroutines()
		read(t, c, client.WatchOptions{}, 1)
		synctest.Wait()
		expect(t, "open streams", 0, streams.Load())
		expect(t, "goroutines", before, goroutines())
		func() {
			defer func() { expect(t, "panic", any("in the loop"), recover()) }()
			for range c.Watch(t.Context(), client.WatchOptions{}) {
				panic("in the loop")
			}
		}()
		synctest.Wait()
		expect(t, "open streams", 0, streams.Load())
		expect(t, "goroutines", before, goroutines())
	})
}

// The end of the context is the end of the loop, and no error.
func TestWatchEndsWithItsContext(t *testing.T) {
	for name, scene := range map[string]func(stream) error{
		"while a stream is open":       silent(event("1"), event("2"), event("3")),
		"while it waits for a try":     send(problem(codes.Unavailable, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Minute)}), event("1")),
		"while the error is permanent": send(problem(codes.NotFound), event("1")),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				began := time.Now()
				var got []string
				for m, err := range newGateway(t, scene).client(t).Watch(ctx, client.WatchOptions{}) {
					if name == "while the error is permanent" {
						cancel()
					}
					if err != nil {
						t.Error(err)
					}
					got = append(got, m.GetResumeToken())
				}
				if ctx.Err() == nil || time.Since(began) > 10*time.Second || got[0] != "1" {
					t.Errorf("ended after %v: %v", time.Since(began), got)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		g := newGateway(t, silent(event("1"), event("2")))
		n := 0
		for range g.client(t).Watch(ctx, client.WatchOptions{}) {
			n++
			synctest.Wait() // the second is there
			cancel()
		}
		expect(t, "messages after the end", 1, n)
		for m, err := range g.client(t).Watch(ctx, client.WatchOptions{}) {
			t.Errorf("%v, %v", m, err)
		}
		expect(t, "calls", 1, len(g.starts()))
	})
}

func TestClosedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newGateway(t, silent(event("1"))).client(t)
		for range 2 { // closed meanwhile, and before
			var last error
			for _, err := range c.Watch(t.Context(), client.WatchOptions{}) {
				c.Close()
				last = err
			}
			if status.Code(last) != codes.Canceled {
				t.Errorf("ended with %v", last)
			}
		}
	})
}

// A connection whose other end is gone without a word is dialled anew; another
// stream on it would be as silent.
func TestDeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, silent(event("1")), send(nil, event("2")))
		var cut *deafConn
		c := g.client(t, grpc.WithContextDialer(func(ctx context.Context, target string) (net.Conn, error) {
			conn, err := g.dial(ctx, target)
			if err == nil && cut == nil {
				cut = &deafConn{Conn: conn}
				return cut, nil
			}
			return conn, err
		}))
		var got []string
		for m, err := range c.Watch(t.Context(), client.WatchOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
			if got = append(got, m.GetResumeToken()); len(got) == 2 {
				break
			}
			cut.deaf.Store(true)
		}
		expect(t, "messages", []string{"1", "2"}, got)
		expect(t, "connections", 2, g.dials)
	})
}

// deafConn loses what is written to it, once it is told to.
type deafConn struct {
	net.Conn
	deaf atomic.Bool
}

func (c *deafConn) Write(b []byte) (int, error) {
	if c.deaf.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// After hours without a gateway, it is found again in half a minute.
func TestLongOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, send(nil, event("1")))
		g.server.Stop()
		var back time.Time
		time.AfterFunc(3*time.Hour+7*time.Second, func() {
			back = time.Now()
			g.start()
		})
		read(t, g.client(t), client.WatchOptions{}, 1)
		if took := time.Since(back); took > 30*time.Second {
			t.Errorf("found again after %v", took)
		}
	})
}

// The largest events are larger than what grpc takes by default.
func TestLargeMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		large := event("1")
		large.GetEvent().Note = strings.Repeat("x", 20<<20)
		read(t, newGateway(t, send(nil, large)).client(t), client.WatchOptions{}, 1)
	})
}

func TestNewNeedsCredentials(t *testing.T) {
	if _, err := client.New("localhost:1"); err == nil {
		t.Error("a connection in the clear that nobody asked for")
	}
}

// A real gateway is stopped and started while it is watched: every event comes,
// in order.
func TestRealGatewayRestarts(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	const restarts, perRun = 3, 20
	dir := t.TempDir()
	addr := freeport.Addrs(t, 1)[0]
	c, err := client.New(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()

	received := make(chan uint64)
	ended := make(chan error, 1)
	go func() {
		defer close(received)
		for m, err := range c.Watch(ctx, client.WatchOptions{FromBeginning: true, Heartbeat: time.Second}) {
			if err != nil {
				ended <- err
				return
			}
			if e := m.GetEvent(); e != nil {
				received <- uint64(e.GetSequence())
			}
		}
	}()
	var sequence, next uint64 = 0, 1
	for run := range restarts {
		stop := runGateway(t, ctx, dir, addr, func(log *eventlog.Log) {
			for range perRun {
				event := &ordergatev1.OrderEvent{Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UPDATED, Order: &ordergatev1.Order{Id: "cs_1", Revision: int64(sequence + 1)}}
				var err error
				if sequence, err = log.AppendOrder(ctx, event, sequence); err != nil {
					t.Fatal(err)
				}
			}
			if err := log.Flush(ctx); err != nil {
				t.Fatal(err)
			}
		})
		// Stopped in the middle of what there is, but the last time.
		until := uint64(run*perRun + perRun/2)
		if run == restarts-1 {
			until = restarts * perRun
		}
		for next <= until {
			got, ok := <-received
			if !ok {
				t.Fatalf("the watch ended before event %d: %v", next, errors.Join(ctx.Err(), <-ended))
			}
			if got != next {
				t.Fatalf("event %d came, want %d", got, next)
			}
			next++
		}
		stop()
	}
}

// runGateway serves a log on an address; stop ends it as a gateway stops.
func runGateway(t *testing.T, ctx context.Context, dir, addr string, fill func(*eventlog.Log)) (stop func()) {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	log, err := eventlog.Open(ctx, eventlog.Config{Dir: dir, MaxEventBytes: 1 << 20, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	fill(log)
	server := grpcapi.New(log, pipeline.New(pipeline.Config{Log: log, Sources: orders.DefaultSources(), ItemsDeadline: 30 * time.Second, Logger: logger, Metrics: prometheus.NewRegistry()}), subscription.New(log, logger), nil, grpcapi.Security{Access: auth.Everybody()}, logger)
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(listener)
	return func() {
		server.Shutdown(ctx)
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	}
}
