package adminhttp

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/protofuzz"
)

// fuzzPatience bounds a request.
const fuzzPatience = 10 * time.Second

// recorder is a gRPC server that answers every call with one empty message, and keeps the calls.
type recorder struct {
	mu    sync.Mutex
	calls []recordedCall
}

type recordedCall struct {
	method  string
	request []byte // encoded
}

func (r *recorder) handle(_ any, stream grpc.ServerStream) error {
	var request emptypb.Empty // its unknown fields are the request
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	method, _ := grpc.MethodFromServerStream(stream)
	r.mu.Lock()
	r.calls = append(r.calls, recordedCall{method, request.ProtoReflect().GetUnknown()})
	r.mu.Unlock()
	return stream.SendMsg(new(emptypb.Empty))
}

// take returns the calls since the last one.
func (r *recorder) take() []recordedCall {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

// serveRecorder returns the admin handler in front of a recorder.
func serveRecorder(f *testing.F) (http.Handler, *recorder) {
	f.Helper()
	calls := new(recorder)
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(grpc.UnknownServiceHandler(calls.handle))
	go server.Serve(listener)
	f.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:recorder", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { conn.Close() })
	handler, err := New(f.Context(), Config{Conn: conn, Streams: conn, Addr: "127.0.0.1:8080",
		Ready: func() error { return nil }, Metrics: prometheus.NewRegistry(), Access: auth.Everybody()})
	if err != nil {
		f.Fatal(err)
	}
	return handler, calls
}

// FuzzREST sends requests to the admin handler. None causes a panic, an answer with the status 500 or
// more, or a hang; and nothing is erased or deleted without its confirmation.
func FuzzREST(f *testing.F) {
	handler, calls := serveRecorder(f)
	routes, err := readRoutes(openAPI)
	if err != nil {
		f.Fatal(err)
	}
	for _, r := range routes {
		path := strings.NewReplacer("[^/:]+", "work", `\.`, ".", "^", "", "$", "").Replace(r.path.String())
		f.Add(r.verb, path, []byte(nil), "")
		if r.body == nil {
			f.Add(r.verb, path+"?page_size=1&filter.livemode=true&filter.start_time=9999-12-31T23:59:59Z&confirm=work", []byte(nil), eventStream)
			continue
		}
		for _, choices := range []string{"", "\x01\x01\x01\x01\x01\x01", "\x01\x10\x01\x01\x01\x10\x01\x02\x01\x03\x01\x04\x01\xff"} {
			request := dynamicpb.NewMessage(r.body)
			protofuzz.Fill(request, []byte(choices), "cs_1")
			if body, err := protojson.Marshal(request); err == nil { // a time may have no JSON
				f.Add(r.verb, path, body, "")
			}
		}
	}
	f.Add("POST", "/v1/orders:erase", []byte(`{"orderIds":["cs_1"],"dryRun":true,"confirm":"erase"}`), "")
	f.Add("POST", "/v1/orders:erase", []byte(`{"orderIds":["cs_1"],"dry_run":false,"confirm":"erase"}`), "")
	f.Add("GET", "/metrics", []byte(nil), "")
	f.Fuzz(func(t *testing.T, verb, target string, body []byte, accept string) {
		at, err := url.ParseRequestURI(target)
		if err != nil || at.Host != "" || strings.HasPrefix(at.Path, "/debug/") { // profiles take their time
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), fuzzPatience)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, verb, target, bytes.NewReader(body))
		if err != nil {
			return
		}
		request.Host = "localhost"
		request.Header["Accept"] = []string{accept}
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, request)
		if answer.Code >= http.StatusInternalServerError && answer.Code != http.StatusNotImplemented {
			t.Errorf("%s %q: %d %.300s", verb, target, answer.Code, answer.Body)
		}
		if ctx.Err() != nil {
			t.Errorf("%s %q takes more than %v", verb, target, fuzzPatience)
		}
		for _, call := range calls.take() {
			if err := checkConfirmed(call, request); err != nil {
				t.Errorf("%s %q with %q: %v", verb, target, body, err)
			}
		}
	})
}

// checkConfirmed returns an error if a call cannot be undone and its request does not confirm it.
func checkConfirmed(call recordedCall, r *http.Request) error {
	decode := func(request proto.Message) {
		if err := proto.Unmarshal(call.request, request); err != nil {
			panic(err) // it was encoded by the handler
		}
	}
	switch call.method {
	case ordergatev1.OrderService_EraseOrders_FullMethodName:
		var request ordergatev1.EraseOrdersRequest
		if decode(&request); !request.GetDryRun() && request.GetConfirm() != "erase" {
			return fmt.Errorf("erases %v without a confirmation", request.GetOrderIds())
		}
	case ordergatev1.SubscriptionService_DeleteSubscription_FullMethodName:
		var request ordergatev1.DeleteSubscriptionRequest
		if decode(&request); r.URL.Query().Get("confirm") != request.GetSubscription() {
			return fmt.Errorf("deletes %q without a confirmation", request.GetSubscription())
		}
	}
	return nil
}
