package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stripe/stripe-go/v76/webhook"
	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/sample"
)

// collector is a stand-in for an OpenTelemetry collector.
type collector struct {
	collectorv1.UnimplementedTraceServiceServer
	url string

	mu      sync.Mutex
	spans   []*tracev1.Span
	arrived chan struct{} // holds one
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{url: "http://" + listener.Addr().String(), arrived: make(chan struct{}, 1)}
	server := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(server, c)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return c
}

func (c *collector) Export(_ context.Context, request *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range request.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			c.spans = append(c.spans, scope.GetSpans()...)
		}
	}
	select {
	case c.arrived <- struct{}{}:
	default:
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// await returns the spans, by name, once there are n of them.
func (c *collector) await(t *testing.T, n int) map[string]*tracev1.Span {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		c.mu.Lock()
		spans := c.spans
		c.mu.Unlock()
		if len(spans) >= n {
			named := map[string]*tracev1.Span{}
			for _, span := range spans {
				named[span.GetName()] = span
			}
			return named
		}
		select {
		case <-c.arrived:
		case <-ctx.Done():
			t.Fatalf("%d spans came, want %d: %v", len(spans), n, spans)
		}
	}
}

func attributesOf(span *tracev1.Span) map[string]any {
	all := map[string]any{}
	for _, a := range span.GetAttributes() {
		switch v := a.GetValue(); {
		case v.GetStringValue() != "":
			all[a.GetKey()] = v.GetStringValue()
		case v.GetIntValue() != 0:
			all[a.GetKey()] = v.GetIntValue()
		default:
			all[a.GetKey()] = v.GetBoolValue()
		}
	}
	return all
}

// foreignTrace is what somebody on the internet says.
const foreignTrace = "0af7651916cd43dd8448eb211c80319c"

// sendTraced posts a sample sale as one would who wants to be traced.
func sendTraced(t *testing.T, g *gateway) sample.Event {
	t.Helper()
	story, err := sample.Scenario("paid", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	event := story[0]
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.webhookURL(), bytes.NewReader(event.Body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Traceparent", "00-"+foreignTrace+"-b7ad6b7169203331-01")
	request.Header.Set("Stripe-Signature", webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: event.Body, Secret: testSecret}).Header)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != 200 {
		t.Fatalf("answered %d", response.StatusCode)
	}
	return event
}

// work pulls and acknowledges one event of a subscription.
func work(t *testing.T, g *gateway) {
	t.Helper()
	if _, err := g.subscriptions.Create(t.Context(), &ordergatev1.Subscription{Name: "shipping"}, 0); err != nil {
		t.Fatal(err)
	}
	client := ordergatev1.NewSubscriptionServiceClient(g.conn)
	pulled, err := client.Pull(t.Context(), &ordergatev1.PullRequest{Subscription: "shipping", Wait: durationpb.New(20 * time.Second)})
	if err != nil || len(pulled.GetDeliveries()) != 1 {
		t.Fatal(pulled, err)
	}
	if _, err := client.Acknowledge(t.Context(), &ordergatev1.AcknowledgeRequest{Subscription: "shipping", DeliveryIds: []string{pulled.GetDeliveries()[0].GetDeliveryId()}}); err != nil {
		t.Fatal(err)
	}
}

// From the webhook to the acknowledgement is one trace, of which each span is the
// child of the one before, and in which nothing tells of a customer.
func TestTrace(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
	c := startCollector(t)
	g := startGateway(t, testSecret, func(cfg *config.Config) { cfg.OTLPEndpoint, cfg.TraceRatio = c.url, 1 })
	event := sendTraced(t, g)
	work(t, g)
	spans := c.await(t, 4)
	parent := ""
	for i, name := range []string{"webhook", "append", "convert", "deliver"} {
		span := spans[name]
		if span == nil {
			t.Fatalf("there is no span %q", name)
		}
		if got := hex.EncodeToString(span.GetParentSpanId()); got != parent {
			t.Errorf("the parent of %s is %q, want %q", name, got, parent)
		}
		parent = hex.EncodeToString(span.GetSpanId())
		if id := hex.EncodeToString(span.GetTraceId()); id != hex.EncodeToString(spans["webhook"].GetTraceId()) || id == foreignTrace {
			t.Errorf("%s is in the trace %s", name, id)
		}
		if span.GetEndTimeUnixNano() < span.GetStartTimeUnixNano() || i > 0 && span.GetStartTimeUnixNano() < spans["webhook"].GetStartTimeUnixNano() {
			t.Errorf("%s lasts from %d to %d", name, span.GetStartTimeUnixNano(), span.GetEndTimeUnixNano())
		}
	}
	want := map[string]map[string]any{
		"webhook": {"http.request.method": "POST", "url.path": "/api/webhook", "http.response.status_code": int64(200),
			"ordergate.event.id": event.ID, "ordergate.event.type": "checkout.session.completed", "ordergate.livemode": false, "ordergate.outcome": "stored"},
		"append": {},
		"convert": {"ordergate.event.id": event.ID, "ordergate.event.type": "checkout.session.completed", "ordergate.livemode": false, "ordergate.outcome": "CONVERTED",
			"ordergate.order.id": event.OrderID, "ordergate.order.revision": int64(1), "ordergate.delivery": int64(1), "ordergate.asked_stripe": false},
		"deliver": {"ordergate.subscription": "shipping", "ordergate.attempt": int64(1), "ordergate.order.id": event.OrderID, "ordergate.order.revision": int64(1),
			"ordergate.livemode": false, "ordergate.outcome": "ACKED"},
	}
	for name, span := range spans {
		if diff := cmp.Diff(want[name], attributesOf(span)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		text := protojson.Format(span)
		for _, personal := range []string{"Erika", "Mustermann", "Berlin", "@", testSecret} {
			if strings.Contains(text, personal) {
				t.Errorf("%s tells %q:\n%s", name, personal, text)
			}
		}
	}
}

// What is not traced leaves nothing in the log: without a collector, and beyond the
// ratio.
func TestUntraced(t *testing.T) {
	c := startCollector(t)
	for name, set := range map[string]func(*config.Config){
		"no endpoint": func(cfg *config.Config) { cfg.TraceRatio = 1 },
		"no ratio":    func(cfg *config.Config) { cfg.OTLPEndpoint = c.url },
	} {
		g := startGateway(t, testSecret, set)
		event := sendTraced(t, g)
		work(t, g)
		stored, err := g.log.InboxEvent(t.Context(), event.ID)
		if err != nil {
			t.Fatal(err)
		}
		if _, traced := stored.Trace(t.Context()); traced {
			t.Errorf("%s: the event has a trace", name)
		}
		order, err := g.log.NewestOrder(t.Context(), event.OrderID)
		if err != nil {
			t.Fatal(err)
		}
		if _, traced := order.Trace(t.Context()); traced {
			t.Errorf("%s: the order event has a trace", name)
		}
	}
}
