package adminhttp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/auth"
)

// endless is a subscription and order service whose watches end with their callers.
type endless struct {
	ordergatev1.UnimplementedOrderServiceServer
	ordergatev1.UnimplementedSubscriptionServiceServer
}

func (endless) WatchOrders(_ *ordergatev1.WatchOrdersRequest, stream grpc.ServerStreamingServer[ordergatev1.WatchOrdersResponse]) error {
	if err := stream.Send(&ordergatev1.WatchOrdersResponse{ResumeToken: "first"}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (endless) HoldOrder(context.Context, *ordergatev1.HoldOrderRequest) (*ordergatev1.HoldOrderResponse, error) {
	return &ordergatev1.HoldOrderResponse{}, nil
}

func (endless) EraseOrders(_ *ordergatev1.EraseOrdersRequest, stream grpc.ServerStreamingServer[ordergatev1.EraseOrdersResponse]) error {
	return stream.Send(&ordergatev1.EraseOrdersResponse{Done: true})
}

func (endless) ListOrders(context.Context, *ordergatev1.ListOrdersRequest) (*ordergatev1.ListOrdersResponse, error) {
	return &ordergatev1.ListOrdersResponse{}, nil
}

func (endless) CreateSubscription(context.Context, *ordergatev1.CreateSubscriptionRequest) (*ordergatev1.CreateSubscriptionResponse, error) {
	return &ordergatev1.CreateSubscriptionResponse{}, nil
}

func (endless) UpdateSubscription(_ context.Context, r *ordergatev1.UpdateSubscriptionRequest) (*ordergatev1.UpdateSubscriptionResponse, error) {
	return &ordergatev1.UpdateSubscriptionResponse{Subscription: r.GetSubscription()}, nil
}

func (endless) DeleteSubscription(context.Context, *ordergatev1.DeleteSubscriptionRequest) (*ordergatev1.DeleteSubscriptionResponse, error) {
	return &ordergatev1.DeleteSubscriptionResponse{}, nil
}

// newGuarded serves the admin handler in front of an endless server.
func newGuarded(t *testing.T, access *auth.Access, hosts ...string) *httptest.Server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.MaxConcurrentStreams(1000))
	ordergatev1.RegisterOrderServiceServer(server, endless{})
	ordergatev1.RegisterSubscriptionServiceServer(server, endless{})
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	dial := func() *grpc.ClientConn {
		conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	handler, err := New(t.Context(), Config{Conn: dial(), Streams: dial(), Addr: "127.0.0.1:8080", Hosts: hosts,
		Ready: func() error { return nil }, Metrics: prometheus.NewRegistry(), Access: access})
	if err != nil {
		t.Fatal(err)
	}
	admin := httptest.NewServer(handler)
	t.Cleanup(admin.Close)
	return admin
}

// accessOf returns an access list with one operator, and the operator's token.
func accessOf(t *testing.T) (access *auth.Access, token string) {
	t.Helper()
	token = auth.NewToken()
	hash := sha256.Sum256([]byte(token))
	file := filepath.Join(t.TempDir(), "access")
	if err := os.WriteFile(file, []byte("alice operator sha256:"+hex.EncodeToString(hash[:])+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	access, err := auth.Load(auth.Config{File: file, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return access, token
}

// A page whose name was rebound to this machine gets nothing, on any path.
func TestHosts(t *testing.T) {
	access, token := accessOf(t)
	open, closed := newGuarded(t, auth.Everybody(), "gate.internal"), newGuarded(t, access)
	ask := func(admin *httptest.Server, path, host string, header ...string) int {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, admin.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = host
		for i := 0; i < len(header); i += 2 {
			request.Header.Set(header[i], header[i+1])
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.Header.Get("X-Content-Type-Options") != "nosniff" || response.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s of %s: header %v", path, host, response.Header)
		}
		return response.StatusCode
	}
	for _, path := range []string{"/v1/orders", "/metrics", "/healthz", "/readyz", "/openapi.json", "/debug/pprof/", "/grpc.channelz.v1.Channelz/GetServers", "/"} {
		for _, host := range []string{"evil.example", "evil.example:8080", "10.0.0.7", "127.0.0.1.evil.example", "localhost.evil.example", "[2001:db8::1]:80", "gate.internal.evil"} {
			if got := ask(open, path, host); got != http.StatusMisdirectedRequest {
				t.Errorf("%s of %s: %d", path, host, got)
			}
			if got := ask(open, path, host, "Authorization", "Bearer "+token); got != http.StatusMisdirectedRequest {
				t.Errorf("%s of %s with a token that no list has: %d", path, host, got)
			}
			if got := ask(closed, path, host); got != http.StatusMisdirectedRequest {
				t.Errorf("%s of %s without a credential: %d", path, host, got)
			}
		}
		for _, host := range []string{"localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1", "127.8.8.8:1", "[::1]:8080", "gate.internal", "Gate.Internal:443"} {
			if got := ask(open, path, host); got == http.StatusMisdirectedRequest {
				t.Errorf("%s of %s is refused", path, host)
			}
		}
	}
	if got := ask(closed, "/metrics", "gate.example", "Authorization", "Bearer "+token); got != http.StatusOK {
		t.Errorf("with a credential: %d", got)
	}
}

// A request with a name that the API does not have does nothing, and the answer names all of them.
func TestStrictRequests(t *testing.T) {
	admin := newGuarded(t, auth.Everybody())
	for _, tt := range []struct {
		method, path, body string
		code               int
		fields             string
	}{
		{"POST", "/v1/orders:erase", `{"orderIds":["cs_1"],"dryrun":true,"Customers":[]}`, 400, "dryrun Customers"},
		{"POST", "/v1/orders:erase", `{"orderIds":["cs_1"],"dryRun":true,"dry_run":false}`, 400, "dry_run"},
		{"POST", "/v1/orders:erase", `{"orderIds":["cs_1"],"dryRun":true,"dryRun":false}`, 400, "dryRun"},
		{"POST", "/v1/orders:erase?dryRun=true", `{"orderIds":["cs_1"]}`, 400, "dryRun"},
		{"POST", "/v1/orders:erase", `{"orderIds":["cs_1"]}`, 400, "confirm"},
		{"POST", "/v1/orders:erase", `{"orderIds":["cs_1"],"confirm":"yes"}`, 400, "confirm"},
		{"POST", "/v1/orders:erase", "", 400, "confirm"},
		{"POST", "/v1/orders:erase", `{"orderIds":["cs_1"]}x`, 400, "body"},
		{"POST", "/v1/orders:erase", `{"orderIds":["cs_1"]}{"dryRun":true}`, 400, "body"},
		{"POST", "/v1/orders:erase", `{"orderIds":["cs_1"],"dryRun":"maybe"}`, 400, "body"},
		{"POST", "/v1/orders:erase", `{"orderIds":["cs_1"],"confirm":"erase"}`, 200, ""},
		{"POST", "/v1/orders:erase", `{"order_ids":["cs_1"],"dry_run":true}`, 200, ""},
		{"GET", "/v1/orders?filter.livmode=true&pagesize=3", "", 400, "filter.livmode pagesize"},
		{"GET", "/v1/orders?pageSize=3&page_size=4", "", 400, "page_size"},
		{"DELETE", "/v1/subscriptions/a:b", "", 404, ""},
		{"DELETE", "/v1/subscriptions/a:b?confirm=a:b", "", 404, ""},
		{"GET", "/v1/orders?pageToken=%ff", "", 400, "pageToken"},
		{"GET", "/v1/orders?page%ffToken=x", "", 400, "page\uFFFDToken"},
		{"POST", "/v1/orders/cs_%8a:hold", `{"reason":"x"}`, 400, "path"},
		{"GET", "/v1/orders?pageSize=3&pageSize=4", "", 400, "pageSize"},
		{"GET", "/v1/orders?filter=x", "", 400, "filter"},
		{"GET", "/v1/orders?filter.directives=DIRECTIVE_SHIP&filter.directives=DIRECTIVE_HOLD&page_size=2", "", 200, ""},
		{"GET", "/v1/orders", `{"pageSize":1}`, 400, "body"},
		{"POST", "/v1/orders/cs_1:hold?reason=x", `{"reason":"y"}`, 400, "reason"},
		{"POST", "/v1/orders/cs_1:hold", `{"reason":"y"}`, 200, ""},
		{"POST", "/v1/subscriptions", `{"subscription":{"name":"a","filter":{"livemod":true,"metadata":{"k":"1","k":"2"}}}}`, 400, "subscription.filter.livemod subscription.filter.metadata.k"},
		{"POST", "/v1/subscriptions", `{"subscription":{"name":"a","filter":{"livemode":true},"ackDeadline":"10s"},"start":{"end":true}}`, 200, ""},
		{"PATCH", "/v1/subscriptions/a?updateMask=ackDeadline&subscription.maxAttempts=3", `{"ackDeadline":"10s","maxAtempts":3}`, 400, "subscription.maxAttempts maxAtempts"},
		{"PATCH", "/v1/subscriptions/a?updateMask=ackDeadline", `{"ackDeadline":"10s"}`, 200, ""},
		{"DELETE", "/v1/subscriptions/a", "", 400, "confirm"},
		{"DELETE", "/v1/subscriptions/a?confirm=b", "", 400, "confirm"},
		{"DELETE", "/v1/subscriptions/a?confirm=a", "", 200, ""},
		{"POST", "/v1/orders/cs_1:hold", `{"reason":"` + strings.Repeat("x", maxBody) + `"}`, 413, ""},
	} {
		response, body := do(t, tt.method, admin.URL+tt.path, tt.body)
		if response.StatusCode != tt.code {
			t.Errorf("%s %s %.100s: %d %.300s", tt.method, tt.path, tt.body, response.StatusCode, body)
			continue
		}
		var status struct {
			Details []struct {
				Reason          string
				FieldViolations []struct{ Field string }
			}
		}
		if err := json.Unmarshal([]byte(body), &status); err != nil && tt.code != 200 {
			t.Errorf("%s: %v", body, err)
		}
		var fields []string
		for _, detail := range status.Details {
			for _, v := range detail.FieldViolations {
				fields = append(fields, v.Field)
			}
		}
		if got := strings.Join(fields, " "); got != tt.fields {
			t.Errorf("%s %s %.100s: fields %q, want %q", tt.method, tt.path, tt.body, got, tt.fields)
		}
	}
}

// unread is a body that must not be read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body of a caller that is not known was read")
	return 0, io.EOF
}

// The body of a caller without a credential is not read.
func TestBodyBehindAuthentication(t *testing.T) {
	access, token := accessOf(t)
	guard := &restGuard{access: access, next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })}
	request := httptest.NewRequest(http.MethodPost, "/v1/orders/cs_1:hold", unread{t})
	guard.ServeHTTP(httptest.NewRecorder(), request)

	admin := newGuarded(t, access)
	response, body := do(t, http.MethodPost, admin.URL+"/v1/orders/cs_1:hold", `{"reasn":"x"}`, "Authorization", "Bearer "+token)
	if response.StatusCode != http.StatusBadRequest || !strings.Contains(body, "reasn") {
		t.Errorf("with a credential: %d %s", response.StatusCode, body)
	}
}

// As many watches as a caller can open make neither calls nor other callers wait.
func TestStreamLimit(t *testing.T) {
	admin := newGuarded(t, auth.Everybody())
	for i := range maxStreams {
		response, err := http.Get(admin.URL + "/v1/orders:watch")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { response.Body.Close() })
		if response.StatusCode != http.StatusOK || response.Header.Get("X-Accel-Buffering") != "no" {
			t.Fatalf("watch %d: %d %v", i, response.StatusCode, response.Header)
		}
	}
	response, body := get(t, admin.URL+"/v1/orders:watch")
	if response.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "TOO_MANY_STREAMS") || !strings.Contains(body, `"code":8`) {
		t.Errorf("one watch more: %d %s", response.StatusCode, body)
	}
	if response, body := do(t, http.MethodPost, admin.URL+"/v1/orders/cs_1:hold", `{"reason":"x"}`); response.StatusCode != http.StatusOK {
		t.Errorf("hold: %d %s", response.StatusCode, body)
	}
}

func TestRoutes(t *testing.T) {
	routes, err := readRoutes(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, r := range routes {
		known[fmt.Sprint(r.method.Name())] = true
	}
	for _, name := range []string{"GetOrder", "WatchOrders", "EraseOrders", "DismissEvents", "UpdateSubscription", "DeleteSubscription", "Pull"} {
		if !known[name] {
			t.Errorf("no route of %s", name)
		}
	}
}
