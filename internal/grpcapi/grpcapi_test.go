package grpcapi

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/pipeline"
	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/subscription"
)

// gateway is a real server on loopback, in front of a real log and its pipeline.
type gateway struct {
	log      *eventlog.Log
	pipeline *pipeline.Pipeline
	server   *Server
	client   ordergatev1.OrderServiceClient
	events   ordergatev1.EventServiceClient
	work     ordergatev1.SubscriptionServiceClient
	health   healthv1.HealthClient
	addr     string
	own      *bufconn.Listener // within the process
}

func newGateway(t testing.TB, dir string) *gateway {
	t.Helper()
	return newGatewayWith(t, dir, nil)
}

// newGatewayWith makes a gateway with a client of Stripe's API, or without one.
func newGatewayWith(t testing.TB, dir string, stripe *stripeapi.Client) *gateway {
	t.Helper()
	return newGuardedGateway(t, dir, stripe, Security{Access: auth.Everybody()}, nil)
}

// newGuardedGateway makes a gateway that not everybody may use. Its listener is
// what wrap makes of one on loopback.
func newGuardedGateway(t testing.TB, dir string, stripe *stripeapi.Client, security Security, wrap func(net.Listener) net.Listener) *gateway {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	log, err := eventlog.Open(t.Context(), eventlog.Config{Dir: dir, MaxEventBytes: 1 << 20, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	pipeline := pipeline.New(pipeline.Config{Log: log, Stripe: stripe, Sources: orders.DefaultSources(), ItemsDeadline: 30 * time.Second, Logger: logger, Metrics: prometheus.NewRegistry()})
	subscriptions := subscription.New(log, logger)
	t.Cleanup(subscriptions.Close)
	server := New(log, pipeline, subscriptions, nil, security, logger)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr, own := listener.Addr().String(), bufconn.Listen(1<<16)
	if wrap != nil {
		listener = wrap(listener)
	}
	go server.Serve(listener)
	go server.ServeInProcess(own)
	t.Cleanup(func() {
		ended, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		server.Shutdown(ended)
	})
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &gateway{log, pipeline, server, ordergatev1.NewOrderServiceClient(conn), ordergatev1.NewEventServiceClient(conn), ordergatev1.NewSubscriptionServiceClient(conn), healthv1.NewHealthClient(conn), addr, own}
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// change is an event to store: an order's id and revision, with what filters
// look at.
type change struct {
	order    string
	revision int64
	kind     ordergatev1.OrderEventKind
	test     bool
	account  string
	country  string
	// SHIP if it is unset.
	directive ordergatev1.Directive
}

// store appends order events and flushes them.
func (g *gateway) store(t testing.TB, changes ...change) {
	t.Helper()
	for _, c := range changes {
		var previous uint64
		if record, err := g.log.NewestOrder(deadline(t), c.order); err == nil {
			previous = record.Sequence
		}
		if c.kind == 0 {
			c.kind = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID
		}
		order := &ordergatev1.Order{Id: c.order, Revision: c.revision, Livemode: new(!c.test), Account: c.account,
			Status: ordergatev1.OrderStatus_ORDER_STATUS_PAID, Directive: c.directive}
		if c.directive == ordergatev1.Directive_DIRECTIVE_UNSPECIFIED {
			order.Directive = ordergatev1.Directive_DIRECTIVE_SHIP
		}
		if c.country != "" {
			order.Shipping = &ordergatev1.Shipping{Address: &ordergatev1.Address{Country: c.country}}
		}
		event := &ordergatev1.OrderEvent{Id: fmt.Sprintf("%s.%d", c.order, c.revision), Kind: c.kind, Order: order}
		if _, err := g.log.AppendOrder(deadline(t), event, previous); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.log.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
}

type stream struct {
	t *testing.T
	grpc.ServerStreamingClient[ordergatev1.WatchOrdersResponse]
	token string // of the last message
}

func (g *gateway) watch(t *testing.T, request *ordergatev1.WatchOrdersRequest) *stream {
	t.Helper()
	s, err := g.client.WatchOrders(deadline(t), request)
	if err != nil {
		t.Fatal(err)
	}
	return &stream{t: t, ServerStreamingClient: s}
}

// next returns the next message in short: an event's id, "heartbeat" or
// "caught up".
func (s *stream) next() string {
	s.t.Helper()
	response, err := s.Recv()
	if err != nil {
		s.t.Fatal(err)
	}
	s.token = response.GetResumeToken()
	if s.token == "" {
		s.t.Errorf("no resume token in %v", response)
	}
	switch payload := response.GetPayload().(type) {
	case *ordergatev1.WatchOrdersResponse_Event:
		if payload.Event.GetSequence() == 0 || payload.Event.GetCreateTime() == nil {
			s.t.Errorf("event without sequence or time: %v", payload.Event)
		}
		return payload.Event.GetId()
	case *ordergatev1.WatchOrdersResponse_Heartbeat:
		return "heartbeat"
	case *ordergatev1.WatchOrdersResponse_CaughtUp:
		return "caught up"
	}
	s.t.Fatalf("unknown message %v", response)
	return ""
}

func (s *stream) expect(want ...string) {
	s.t.Helper()
	for _, w := range want {
		if got := s.next(); got != w {
			s.t.Fatalf("got %q, want %q", got, w)
		}
	}
}

// problem is an error as a client sees it.
type problem struct {
	Code     codes.Code
	Reason   string
	Field    string
	Subject  string // of a failed precondition
	Retry    bool
	Metadata map[string]string
}

func problemOf(t testing.TB, err error) problem {
	t.Helper()
	s := status.Convert(err)
	p := problem{Code: s.Code()}
	for _, detail := range s.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() != "ordergate" {
				t.Errorf("domain = %q", d.GetDomain())
			}
			p.Reason, p.Metadata = d.GetReason(), d.GetMetadata()
		case *errdetails.BadRequest:
			p.Field = d.GetFieldViolations()[0].GetField()
		case *errdetails.PreconditionFailure:
			p.Subject = d.GetViolations()[0].GetSubject()
		case *errdetails.RetryInfo:
			p.Retry = d.GetRetryDelay().AsDuration() > 0
		}
	}
	return p
}

func expectProblem(t *testing.T, err error, want problem) {
	t.Helper()
	if diff := cmp.Diff(want, problemOf(t, err)); diff != "" {
		t.Errorf("%v: %s", err, diff)
	}
}

func TestWatchFromNow(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.store(t, change{order: "cs_old", revision: 1})
	s := g.watch(t, &ordergatev1.WatchOrdersRequest{})
	s.expect("caught up")
	g.store(t, change{order: "cs_1", revision: 1}, change{order: "cs_1", revision: 2})
	s.expect("cs_1.1", "cs_1.2")
	// False is the same as unset.
	s = g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_FromBeginning{}})
	s.expect("caught up")
}

func TestWatchFromThePast(t *testing.T) {
	g := newGateway(t, t.TempDir())
	var want []string
	for i := range watchBatch + 10 { // more than one batch
		g.store(t, change{order: fmt.Sprintf("cs_%d", i), revision: 1})
		want = append(want, fmt.Sprintf("cs_%d.1", i))
	}
	s := g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_FromBeginning{FromBeginning: true}})
	s.expect(want[:5]...)
	token := s.token
	s.expect(want[5:]...)
	s.expect("caught up")
	g.store(t, change{order: "cs_new", revision: 1})
	s.expect("cs_new.1")

	s = g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_ResumeToken{ResumeToken: token}})
	s.expect(want[5:]...)
	s.expect("cs_new.1", "caught up")
	// The caught-up marker's token goes on there too.
	s = g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_ResumeToken{ResumeToken: s.token}})
	s.expect("caught up")

	record, err := g.log.NewestOrder(deadline(t), "cs_new")
	if err != nil {
		t.Fatal(err)
	}
	s = g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_StartTime{StartTime: timestamppb.New(record.Time)}})
	s.expect("cs_new.1", "caught up")
	s = g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_StartTime{StartTime: timestamppb.New(record.Time.Add(time.Hour))}})
	s.expect("caught up")
}

func TestWatchFilters(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.store(t,
		change{order: "cs_1", revision: 1, country: "DE"},
		change{order: "cs_2", revision: 1, test: true, country: "FR"},
		change{order: "cs_3", revision: 1, account: "acct_1", country: "DE"},
		change{order: "cs_4", revision: 1, kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PLACED},
		change{order: "cs_1", revision: 2, kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD, country: "DE"},
	)
	tests := []struct {
		name   string
		filter *ordergatev1.OrderEventFilter
		want   []string
	}{
		{"none", nil, []string{"cs_1.1", "cs_2.1", "cs_3.1", "cs_4.1", "cs_1.2"}},
		{"empty", &ordergatev1.OrderEventFilter{}, []string{"cs_1.1", "cs_2.1", "cs_3.1", "cs_4.1", "cs_1.2"}},
		{"live", &ordergatev1.OrderEventFilter{Livemode: new(true)}, []string{"cs_1.1", "cs_3.1", "cs_4.1", "cs_1.2"}},
		{"test", &ordergatev1.OrderEventFilter{Livemode: new(false)}, []string{"cs_2.1"}},
		{"kinds", &ordergatev1.OrderEventFilter{Kinds: []ordergatev1.OrderEventKind{ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PLACED, ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD}}, []string{"cs_4.1", "cs_1.2"}},
		{"orders", &ordergatev1.OrderEventFilter{OrderIds: []string{"cs_1"}}, []string{"cs_1.1", "cs_1.2"}},
		{"the platform's own", &ordergatev1.OrderEventFilter{Accounts: []string{""}}, []string{"cs_1.1", "cs_2.1", "cs_4.1", "cs_1.2"}},
		{"country and account", &ordergatev1.OrderEventFilter{ShipToCountries: []string{"DE"}, Accounts: []string{"acct_1"}}, []string{"cs_3.1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := g.watch(t, &ordergatev1.WatchOrdersRequest{Filter: tt.filter, Start: &ordergatev1.WatchOrdersRequest_FromBeginning{FromBeginning: true}})
			s.expect(tt.want...)
			s.expect("caught up")
		})
	}
}

// A heartbeat's token moves past what was filtered.
func TestHeartbeatMovesPastFilteredEvents(t *testing.T) {
	g := newGateway(t, t.TempDir())
	request := &ordergatev1.WatchOrdersRequest{
		Filter:            &ordergatev1.OrderEventFilter{OrderIds: []string{"cs_wanted"}},
		HeartbeatInterval: durationpb.New(time.Second),
	}
	s := g.watch(t, request)
	s.expect("caught up")
	before := s.token
	g.store(t, change{order: "cs_other", revision: 1})
	for s.token == before {
		s.expect("heartbeat")
	}
	// Going on from there without the filter, cs_other is not seen again.
	again := g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_ResumeToken{ResumeToken: s.token}})
	again.expect("caught up")
}

func TestWatchErrors(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.store(t, change{order: "cs_1", revision: 1})
	state, err := g.log.OrdersState(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	resume := func(token string) *ordergatev1.WatchOrdersRequest {
		return &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_ResumeToken{ResumeToken: token}}
	}
	filter := func(f *ordergatev1.OrderEventFilter) *ordergatev1.WatchOrdersRequest {
		return &ordergatev1.WatchOrdersRequest{Filter: f}
	}
	good := encodeToken(resumeToken, state.LogID, 1)
	badToken := problem{Code: codes.InvalidArgument, Reason: "RESUME_TOKEN_INVALID", Field: "resume_token"}
	badField := func(field string) problem {
		return problem{Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: field}
	}
	flipped := []byte(good)
	flipped[3] ^= 1
	tests := []struct {
		name    string
		request *ordergatev1.WatchOrdersRequest
		want    problem
	}{
		{"empty token", resume(""), badToken},
		{"junk", resume("hello"), badToken},
		{"not base64", resume("%%%"), badToken},
		{"altered", resume(string(flipped)), badToken},
		{"cut", resume(good[:len(good)-2]), badToken},
		{"of another log", resume(encodeToken(resumeToken, "other", 1)), badToken},
		{"a page token", resume(encodeToken(eventPageToken, state.LogID, 1)), badToken},
		{"ahead of the log", resume(encodeToken(resumeToken, state.LogID, 99)), badToken},
		{"heartbeat too short", &ordergatev1.WatchOrdersRequest{HeartbeatInterval: durationpb.New(time.Millisecond)}, badField("heartbeat_interval")},
		{"heartbeat too long", &ordergatev1.WatchOrdersRequest{HeartbeatInterval: durationpb.New(time.Hour)}, badField("heartbeat_interval")},
		{"heartbeat invalid", &ordergatev1.WatchOrdersRequest{HeartbeatInterval: &durationpb.Duration{Seconds: 1, Nanos: -1}}, badField("heartbeat_interval")},
		{"time invalid", &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_StartTime{StartTime: &timestamppb.Timestamp{Seconds: -1 << 60}}}, badField("start_time")},
		{"unknown kind", filter(&ordergatev1.OrderEventFilter{Kinds: []ordergatev1.OrderEventKind{99}}), badField("filter.kinds")},
		{"unspecified kind", filter(&ordergatev1.OrderEventFilter{Kinds: []ordergatev1.OrderEventKind{0}}), badField("filter.kinds")},
		{"bad order id", filter(&ordergatev1.OrderEventFilter{OrderIds: []string{"cs.>"}}), badField("filter.order_ids")},
		{"many order ids", filter(&ordergatev1.OrderEventFilter{OrderIds: make([]string, 101)}), badField("filter.order_ids")},
		{"many accounts", filter(&ordergatev1.OrderEventFilter{Accounts: make([]string, 101)}), badField("filter.accounts")},
		{"bad country", filter(&ordergatev1.OrderEventFilter{ShipToCountries: []string{"Germany"}}), badField("filter.ship_to_countries")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := g.watch(t, tt.request).Recv()
			expectProblem(t, err, tt.want)
		})
	}
}

// A token whose events are gone is another error than a bad one, and says where
// one can go on.
func TestExpiredResumeToken(t *testing.T) {
	state := eventlog.OrdersState{LogID: "log", First: 10, Durable: 20}
	for _, after := range []uint64{9, 20} {
		if got, err := resumeAfter(encodeToken(resumeToken, "log", after), state); err != nil || got != after {
			t.Errorf("%d: %d, %v", after, got, err)
		}
	}
	_, err := resumeAfter(encodeToken(resumeToken, "log", 8), state)
	p := problemOf(t, statusOf(err).Err())
	if p.Code != codes.OutOfRange || p.Reason != "RESUME_TOKEN_EXPIRED" {
		t.Fatalf("problem = %+v", p)
	}
	if got, err := resumeAfter(p.Metadata["earliest_resume_token"], state); err != nil || got != 9 {
		t.Errorf("earliest token: %d, %v", got, err)
	}
}

func TestTokenOutlivesARestart(t *testing.T) {
	dir := t.TempDir()
	g := newGateway(t, dir)
	g.store(t, change{order: "cs_1", revision: 1}, change{order: "cs_2", revision: 1})
	s := g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_FromBeginning{FromBeginning: true}})
	s.expect("cs_1.1")
	token := s.token
	g.server.Shutdown(deadline(t))
	g.log.Close()

	g = newGateway(t, dir)
	s = g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_ResumeToken{ResumeToken: token}})
	s.expect("cs_2.1", "caught up")
}

// A watcher that never reads is in nobody's way, and costs no memory without
// bound: its own stream just stops.
func TestSlowWatcherDelaysNobody(t *testing.T) {
	g := newGateway(t, t.TempDir())
	slow := g.watch(t, &ordergatev1.WatchOrdersRequest{})
	slow.expect("caught up")
	fast := g.watch(t, &ordergatev1.WatchOrdersRequest{})
	fast.expect("caught up")
	var want []string
	for i := range 300 {
		c := change{order: fmt.Sprintf("cs_%d", i), revision: 1, account: strings.Repeat("a", 2000)}
		g.store(t, c)
		fast.expect(c.order + ".1")
		want = append(want, c.order+".1")
	}
	// 600 kB wait for the slow one, more than the transport takes.
	slow.expect(want...)
}

func TestShutdownEndsStreamsWithAHint(t *testing.T) {
	g := newGateway(t, t.TempDir())
	s := g.watch(t, &ordergatev1.WatchOrdersRequest{})
	s.expect("caught up")
	g.server.Shutdown(deadline(t))
	_, err := s.Recv()
	expectProblem(t, err, problem{Code: codes.Unavailable, Reason: "SHUTTING_DOWN", Retry: true})
}

func TestClosedLogIsUnavailable(t *testing.T) {
	g := newGateway(t, t.TempDir())
	s := g.watch(t, &ordergatev1.WatchOrdersRequest{})
	s.expect("caught up")
	g.log.Close()
	unavailable := problem{Code: codes.Unavailable, Reason: "LOG_UNAVAILABLE", Retry: true}
	_, err := s.Recv()
	expectProblem(t, err, unavailable)
	_, err = g.client.GetOrder(deadline(t), &ordergatev1.GetOrderRequest{OrderId: "cs_1"})
	expectProblem(t, err, unavailable)
	g.server.reportHealth()
	for _, service := range []string{"", "ordergate.v1.OrderService", "ordergate.v1.EventService"} {
		if r, err := g.health.Check(deadline(t), &healthv1.HealthCheckRequest{Service: service}); err != nil || r.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
			t.Errorf("health of %q = %v, %v", service, r, err)
		}
	}
}

func TestGetOrder(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.store(t, change{order: "cs_1", revision: 1}, change{order: "cs_1", revision: 2})
	response, err := g.client.GetOrder(deadline(t), &ordergatev1.GetOrderRequest{OrderId: "cs_1"})
	if err != nil || response.GetOrder().GetRevision() != 2 {
		t.Errorf("order = %v, %v", response, err)
	}
	for id, want := range map[string]problem{
		"cs_2": {Code: codes.NotFound, Reason: "ORDER_NOT_FOUND"},
		"":     {Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: "order_id"},
		"a.b":  {Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: "order_id"},
	} {
		_, err := g.client.GetOrder(deadline(t), &ordergatev1.GetOrderRequest{OrderId: id})
		expectProblem(t, err, want)
		_, err = g.client.ListOrderEvents(deadline(t), &ordergatev1.ListOrderEventsRequest{OrderId: id})
		expectProblem(t, err, want)
	}
	if r, err := g.health.Check(deadline(t), &healthv1.HealthCheckRequest{}); err != nil || r.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health = %v, %v", r, err)
	}
}

func TestListOrders(t *testing.T) {
	g := newGateway(t, t.TempDir())
	for i := range 10 {
		g.store(t, change{order: fmt.Sprintf("cs_%d", i), revision: 1, test: i%2 == 1})
	}
	g.store(t, change{order: "cs_0", revision: 2})
	listFrom := func(filter *ordergatev1.OrderFilter, size int32, token string) (got []string) {
		t.Helper()
		request := &ordergatev1.ListOrdersRequest{PageSize: size, Filter: filter, PageToken: token}
		for {
			page, err := g.client.ListOrders(deadline(t), request)
			if err != nil {
				t.Fatal(err)
			}
			if len(page.GetOrders()) > int(size) {
				t.Errorf("%d orders on a page of %d", len(page.GetOrders()), size)
			}
			for _, o := range page.GetOrders() {
				got = append(got, fmt.Sprintf("%s.%d", o.GetId(), o.GetRevision()))
			}
			if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
				return got
			}
		}
	}
	list := func(filter *ordergatev1.OrderFilter, size int32) []string {
		t.Helper()
		return listFrom(filter, size, "")
	}
	all := []string{"cs_0.2", "cs_9.1", "cs_8.1", "cs_7.1", "cs_6.1", "cs_5.1", "cs_4.1", "cs_3.1", "cs_2.1", "cs_1.1"}
	for _, size := range []int32{1, 3, 10, 100} {
		if diff := cmp.Diff(all, list(nil, size)); diff != "" {
			t.Errorf("page size %d: %s", size, diff)
		}
		if diff := cmp.Diff([]string{"cs_0.2", "cs_8.1", "cs_6.1", "cs_4.1", "cs_2.1"}, list(&ordergatev1.OrderFilter{Livemode: new(true)}, size)); diff != "" {
			t.Errorf("live, page size %d: %s", size, diff)
		}
	}
	if got := list(&ordergatev1.OrderFilter{Directives: []ordergatev1.Directive{ordergatev1.Directive_DIRECTIVE_HOLD}}, 5); got != nil {
		t.Errorf("held: %v", got)
	}

	// A change between two pages takes nothing out of the list.
	first, err := g.client.ListOrders(deadline(t), &ordergatev1.ListOrdersRequest{PageSize: 5})
	if err != nil {
		t.Fatal(err)
	}
	g.store(t, change{order: "cs_2", revision: 2})
	if diff := cmp.Diff(all[5:], listFrom(nil, 5, first.GetNextPageToken())); diff != "" {
		t.Error(diff)
	}

	_, err = g.client.ListOrders(deadline(t), &ordergatev1.ListOrdersRequest{PageToken: "junk"})
	expectProblem(t, err, problem{Code: codes.InvalidArgument, Reason: "PAGE_TOKEN_INVALID", Field: "page_token"})
	_, err = g.client.ListOrders(deadline(t), &ordergatev1.ListOrdersRequest{PageSize: -1})
	expectProblem(t, err, problem{Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: "page_size"})
}

func TestListOrderEvents(t *testing.T) {
	g := newGateway(t, t.TempDir())
	for i := range 5 {
		g.store(t, change{order: "cs_1", revision: int64(i + 1)}, change{order: "cs_2", revision: int64(i + 1)})
	}
	for _, size := range []int32{1, 2, 5, 50} {
		var got []string
		request := &ordergatev1.ListOrderEventsRequest{OrderId: "cs_1", PageSize: size}
		for pages := 0; ; pages++ {
			page, err := g.client.ListOrderEvents(deadline(t), request)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range page.GetEvents() {
				got = append(got, e.GetId())
			}
			if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
				break
			}
			if pages > 10 {
				t.Fatal("the pages do not end")
			}
		}
		if diff := cmp.Diff([]string{"cs_1.1", "cs_1.2", "cs_1.3", "cs_1.4", "cs_1.5"}, got); diff != "" {
			t.Errorf("page size %d: %s", size, diff)
		}
	}
}

func TestUnknownErrorsStayInside(t *testing.T) {
	for err, want := range map[error]problem{
		errors.New("secret detail"):                                        {Code: codes.Internal, Reason: "INTERNAL"},
		fmt.Errorf("%w: disk", eventlog.ErrUnavailable):                    {Code: codes.Unavailable, Reason: "LOG_UNAVAILABLE", Retry: true},
		fmt.Errorf("x: %w", context.Canceled):                              {Code: codes.Canceled},
		fmt.Errorf("x: %w", context.DeadlineExceeded):                      {Code: codes.DeadlineExceeded},
		status.Error(codes.ResourceExhausted, "trying to send too much"):   {Code: codes.ResourceExhausted},
		fmt.Errorf("%w: %w", eventlog.ErrUnavailable, context.Canceled):    {Code: codes.Canceled},
		fmt.Errorf("%w: disk", eventlog.ErrFull):                           {Code: codes.ResourceExhausted, Reason: "LOG_FULL"},
		fmt.Errorf("order: %w", eventlog.ErrConflict):                      {Code: codes.Aborted, Reason: "ORDER_CONFLICT", Retry: true},
		fmt.Errorf("secret: %w", pipeline.ErrNoKey):                        {Code: codes.FailedPrecondition, Reason: "API_KEY_MISSING", Subject: "STRIPE_API_KEY"},
		fmt.Errorf("secret: %w", stripeapi.ErrPermission):                  {Code: codes.FailedPrecondition, Reason: "API_KEY_REFUSED", Subject: "STRIPE_API_KEY"},
		fmt.Errorf("secret: %w", stripeapi.ErrUnauthorized):                {Code: codes.FailedPrecondition, Reason: "API_KEY_REFUSED", Subject: "STRIPE_API_KEY"},
		fmt.Errorf("secret: %w", stripeapi.ErrUnavailable):                 {Code: codes.Unavailable, Reason: "STRIPE_UNAVAILABLE", Retry: true},
		fmt.Errorf("%w: %w", eventlog.ErrUnavailable, io.ErrUnexpectedEOF): {Code: codes.Unavailable, Reason: "LOG_UNAVAILABLE", Retry: true},
	} {
		mapped := statusOf(err)
		expectProblem(t, mapped.Err(), want)
		if strings.Contains(mapped.Message(), "secret") || strings.Contains(mapped.Message(), "disk") {
			t.Errorf("the message tells an inner error: %s", mapped.Message())
		}
	}
}

func TestPanicIsAnInternalError(t *testing.T) {
	m := guard{access: auth.Everybody(), logger: slog.New(slog.DiscardHandler)}
	_, err := m.unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: ordergatev1.OrderService_GetOrder_FullMethodName}, func(context.Context, any) (any, error) { panic("boom") })
	expectProblem(t, err, problem{Code: codes.Internal, Reason: "INTERNAL"})
}

// FuzzDecodeToken looks for a panic, and for a token that is not the one that
// was given out.
func FuzzDecodeToken(f *testing.F) {
	f.Add(encodeToken(resumeToken, "log", 1))
	f.Add(encodeToken(orderPageToken, "log", 1, 1<<63))
	f.Add(base64.RawURLEncoding.EncodeToString([]byte{1, 0xff, 0xff, 0xff, 0xff, 0xff}))
	f.Fuzz(func(t *testing.T, token string) {
		var a, b uint64
		if decodeToken(token, resumeToken, "log", &a) == nil && encodeToken(resumeToken, "log", a) != token {
			t.Errorf("%q is accepted for %d", token, a)
		}
		if decodeToken(token, orderPageToken, "log", &a, &b) == nil && encodeToken(orderPageToken, "log", a, b) != token {
			t.Errorf("%q is accepted for %d, %d", token, a, b)
		}
	})
}

// A stop that comes before the doors are served is no failure.
func TestServeAfterShutdown(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.server.Shutdown(deadline(t))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.server.Serve(listener); err != nil {
		t.Error(err)
	}
}

// A forged page token shows nothing that a power cut could take back.
func TestForgedPageToken(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.store(t, change{order: "cs_durable", revision: 1})
	state, err := g.log.OrdersState(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	order := &ordergatev1.Order{Id: "cs_written", Revision: 1, Livemode: new(true)}
	if _, err := g.log.AppendOrder(deadline(t), &ordergatev1.OrderEvent{Id: "cs_written.1", Order: order}, 0); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"", encodeToken(orderPageToken, state.LogID, 1<<62, 1<<62)} {
		page, err := g.client.ListOrders(deadline(t), &ordergatev1.ListOrdersRequest{PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.GetOrders()) != 1 || page.GetOrders()[0].GetId() != "cs_durable" {
			t.Errorf("token %q: %v", token, page.GetOrders())
		}
	}
}
