package adminhttp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/auth"
)

// orderServer answers as the gateway would, and notes what it was asked.
type orderServer struct {
	ordergatev1.UnimplementedOrderServiceServer
	watched atomic.Pointer[ordergatev1.WatchOrdersRequest]
}

func (s *orderServer) GetOrder(_ context.Context, r *ordergatev1.GetOrderRequest) (*ordergatev1.GetOrderResponse, error) {
	if r.GetOrderId() != "cs_1" {
		return nil, status.Error(codes.NotFound, "no such order")
	}
	return &ordergatev1.GetOrderResponse{Order: &ordergatev1.Order{Id: "cs_1", Revision: 1 << 60, Livemode: new(false), Directive: ordergatev1.Directive_DIRECTIVE_HOLD,
		Amounts: &ordergatev1.Amounts{Total: new(int64(0))}}}, nil
}

func (s *orderServer) HoldOrder(_ context.Context, r *ordergatev1.HoldOrderRequest) (*ordergatev1.HoldOrderResponse, error) {
	return &ordergatev1.HoldOrderResponse{Order: &ordergatev1.Order{Id: r.GetOrderId(), OperatorHold: &ordergatev1.OperatorHold{Note: r.GetReason()}}}, nil
}

// eventServer has one event, and nothing to reprocess.
type eventServer struct {
	ordergatev1.UnimplementedEventServiceServer
}

func (eventServer) GetEvent(_ context.Context, r *ordergatev1.GetEventRequest) (*ordergatev1.GetEventResponse, error) {
	return &ordergatev1.GetEventResponse{Event: &ordergatev1.StripeEvent{Id: r.GetEventId()}, Body: &ordergatev1.GetEventResponse_Raw{Raw: "{\"n\": 1.10}\n"}}, nil
}

func (eventServer) ListEvents(_ context.Context, r *ordergatev1.ListEventsRequest) (*ordergatev1.ListEventsResponse, error) {
	if !r.GetFilter().GetParkedOnly() {
		return nil, status.Error(codes.InvalidArgument, "want parked ones")
	}
	return &ordergatev1.ListEventsResponse{Events: []*ordergatev1.StripeEvent{{Id: "evt_1", Livemode: new(false)}}}, nil
}

func (eventServer) ReprocessEvents(r *ordergatev1.ReprocessEventsRequest, stream grpc.ServerStreamingServer[ordergatev1.ReprocessEventsResponse]) error {
	for i := range r.GetEventIds() {
		if err := stream.Send(&ordergatev1.ReprocessEventsResponse{Examined: int64(i + 1)}); err != nil {
			return err
		}
	}
	return stream.Send(&ordergatev1.ReprocessEventsResponse{Examined: int64(len(r.GetEventIds())), Done: true})
}

func (eventServer) Backfill(*ordergatev1.BackfillRequest, grpc.ServerStreamingServer[ordergatev1.BackfillResponse]) error {
	return status.Error(codes.FailedPrecondition, "no API key")
}

func (s *orderServer) WatchOrders(r *ordergatev1.WatchOrdersRequest, stream grpc.ServerStreamingServer[ordergatev1.WatchOrdersResponse]) error {
	s.watched.Store(r)
	if r.GetResumeToken() == "junk" {
		return status.Error(codes.InvalidArgument, "bad token")
	}
	for _, id := range []string{"cs_1.1", "cs_2.1"} {
		response := &ordergatev1.WatchOrdersResponse{ResumeToken: "token-" + id, Payload: &ordergatev1.WatchOrdersResponse_Event{Event: &ordergatev1.OrderEvent{Id: id}}}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
	return status.Error(codes.Unavailable, "shutting down")
}

func newAdmin(t *testing.T, ready func() error) (*httptest.Server, *orderServer) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	orders := &orderServer{}
	server := grpc.NewServer()
	ordergatev1.RegisterOrderServiceServer(server, orders)
	ordergatev1.RegisterEventServiceServer(server, eventServer{})
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	handler, err := New(t.Context(), Config{Conn: conn, Streams: conn, Ready: ready, Metrics: prometheus.NewRegistry(), Access: auth.Everybody()})
	if err != nil {
		t.Fatal(err)
	}
	admin := httptest.NewServer(handler)
	t.Cleanup(admin.Close)
	return admin, orders
}

func get(t *testing.T, url string, header ...string) (*http.Response, string) {
	t.Helper()
	return do(t, http.MethodGet, url, "", header...)
}

func do(t *testing.T, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(answer)
}

func TestREST(t *testing.T) {
	admin, _ := newAdmin(t, func() error { return nil })
	// A browser's Accept does not change the form of a single answer.
	response, body := get(t, admin.URL+"/v1/orders/cs_1", "Accept", "text/event-stream")
	if response.StatusCode != 200 || response.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %s", response.StatusCode, response.Header.Get("Content-Type"))
	}
	var answer struct{ Order map[string]any }
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatal(err)
	}
	order := answer.Order
	if order["revision"] != "1152921504606846976" || order["livemode"] != false || order["directive"] != "DIRECTIVE_HOLD" || order["lineItems"] == nil {
		t.Errorf("order = %s", body)
	}
	if amounts := order["amounts"].(map[string]any); amounts["total"] != "0" || amounts["tax"] != nil {
		t.Errorf("a zero must be written and an unknown amount not: %v", amounts)
	}
	response, body = get(t, admin.URL+"/v1/orders/cs_2")
	if response.StatusCode != 404 || !strings.Contains(body, "no such order") {
		t.Errorf("%d %s", response.StatusCode, body)
	}
	if response, _ := get(t, admin.URL+"/v1/nothing"); response.StatusCode != 404 {
		t.Errorf("unknown path: %d", response.StatusCode)
	}
}

func TestOperatorsREST(t *testing.T) {
	admin, _ := newAdmin(t, func() error { return nil })
	for _, tt := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/v1/orders/cs_1:hold", `{"reason": "the buyer called"}`, 200, `"operatorHold":{"note":"the buyer called"}`},
		{"POST", "/v1/orders/cs_1:release", `{"reason": "x"}`, 501, `not implemented`},
		{"GET", "/v1/orders/cs_1:hold", "", 404, ``},
		{"GET", "/v1/events?filter.parked_only=true", "", 200, `"id":"evt_1"`},
		{"GET", "/v1/events/evt_1", "", 200, `"raw":"{\"n\": 1.10}\n"`},
		{"POST", "/v1/events:reprocess", `{"event_ids": ["evt_1"]}`, 200, `{"result":{"examined":"1"`},
		{"POST", "/v1/events:backfill", `{"since": "2026-01-01T00:00:00Z"}`, 400, `no API key`},
		{"POST", "/v1/events:backfill", `{"since": "yesterday"}`, 400, `Timestamp`},
	} {
		response, body := do(t, tt.method, admin.URL+tt.path, tt.body)
		if response.StatusCode != tt.status || !strings.Contains(strings.ReplaceAll(body, `": `, `":`), strings.ReplaceAll(tt.want, `": `, `":`)) {
			t.Errorf("%s %s: %d %s", tt.method, tt.path, response.StatusCode, body)
		}
	}
	// What a web page has a browser send is not an operator's will.
	for _, header := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Origin", "https://example.com"}} {
		if response, body := do(t, "POST", admin.URL+"/v1/orders/cs_1:hold", `{"reason": "x"}`, header...); response.StatusCode != 403 {
			t.Errorf("%v: %d %s", header, response.StatusCode, body)
		}
	}
}

func TestWatchAsNDJSON(t *testing.T) {
	admin, orders := newAdmin(t, func() error { return nil })
	response, body := get(t, admin.URL+"/v1/orders:watch?from_beginning=true&filter.livemode=true&filter.kinds=ORDER_EVENT_KIND_PAID")
	if got := response.Header.Get("Content-Type"); got != "application/x-ndjson" {
		t.Errorf("Content-Type = %q", got)
	}
	lines := strings.Split(strings.TrimSpace(body), "\n")
	if len(lines) != 3 {
		t.Fatalf("lines = %q", lines)
	}
	for i, want := range []string{`"cs_1.1"`, `"cs_2.1"`, `"shutting down"`} {
		if !json.Valid([]byte(lines[i])) || !strings.Contains(lines[i], want) {
			t.Errorf("line %d = %s, want JSON with %s", i, lines[i], want)
		}
	}
	asked := orders.watched.Load()
	if !asked.GetFromBeginning() || !asked.GetFilter().GetLivemode() || len(asked.GetFilter().GetKinds()) != 1 {
		t.Errorf("asked = %v", asked)
	}
	if response, body := get(t, admin.URL+"/v1/orders:watch?resume_token=junk"); response.StatusCode != 400 || !strings.Contains(body, "bad token") {
		t.Errorf("%d %s", response.StatusCode, body)
	}
}

func TestWatchAsServerSentEvents(t *testing.T) {
	admin, orders := newAdmin(t, func() error { return nil })
	// As a browser sends it when it connects again.
	response, body := get(t, admin.URL+"/v1/orders:watch?from_beginning=true", "Accept", "text/event-stream, */*;q=0.1", "Last-Event-ID", "token-before")
	if got := response.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("Content-Type = %q", got)
	}
	var ids, data []string
	lines := bufio.NewScanner(strings.NewReader(body))
	for lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			ids = append(ids, id)
		}
		if d, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
			data = append(data, d)
		}
	}
	if strings.Join(ids, " ") != "token-cs_1.1 token-cs_2.1" || len(data) != 3 || !strings.Contains(data[2], "shutting down") {
		t.Errorf("ids = %q, data = %q", ids, data)
	}
	if strings.Count(body, "\n\n") != 3 {
		t.Errorf("events are not ended by an empty line: %q", body)
	}
	if asked := orders.watched.Load(); asked.GetResumeToken() != "token-before" {
		t.Errorf("asked = %v, want the browser's last event id as the start", asked)
	}
}

func TestHealthAndReadiness(t *testing.T) {
	var problem error
	admin, _ := newAdmin(t, func() error { return problem })
	for path, want := range map[string]string{"/healthz": `{"alive":true}`, "/readyz": `{"ready":true}`, "/openapi.json": `"/v1/orders:watch"`, "/metrics": ""} {
		if response, body := get(t, admin.URL+path); response.StatusCode != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %.200s", path, response.StatusCode, body)
		}
	}
	problem = errors.New("the disk is on fire")
	if response, body := get(t, admin.URL+"/readyz"); response.StatusCode != 503 || !strings.Contains(body, "on fire") {
		t.Errorf("%d %s", response.StatusCode, body)
	}
	if response, _ := get(t, admin.URL+"/healthz"); response.StatusCode != 200 {
		t.Errorf("healthz: %d: alive is not ready", response.StatusCode)
	}
	if response, _ := get(t, admin.URL+"/"); response.StatusCode != 404 {
		t.Errorf("/: %d", response.StatusCode)
	}
}
