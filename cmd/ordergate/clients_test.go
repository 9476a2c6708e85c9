package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripetest"
	"github.com/ordergate/ordergate/internal/telemetry"
)

// startGateway runs a gateway on free ports until the test ends.
func startGateway(t *testing.T, secret string, settings ...func(*config.Config)) *gateway {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	g := makeGateway(t, ctx, secret, settings...)
	ended := make(chan error)
	go func() { ended <- g.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return g
}

// makeGateway makes a gateway that does not run yet.
func makeGateway(t *testing.T, ctx context.Context, secret string, settings ...func(*config.Config)) *gateway {
	t.Helper()
	cfg := config.Config{
		IngressAddr: "127.0.0.1:0", GRPCAddr: "127.0.0.1:0", AdminAddr: "127.0.0.1:0", WebhookPath: "/api/webhook",
		DataDir: t.TempDir(), ShutdownTimeout: 10 * time.Second,
		Limits:              config.Limits{MaxBodyBytes: 1 << 20, InboxMaxAge: 840 * time.Hour, OrdersMaxAge: 9600 * time.Hour},
		StripeWebhookSecret: secret, StripeRate: 20,
	}
	for _, set := range settings {
		set(&cfg)
	}
	g, err := newGateway(ctx, cfg, telemetry.NewLogger(t.Output(), "text", "info"))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *gateway) webhookURL() string {
	return "http://" + g.ingressListener.Addr().String() + g.cfg.WebhookPath
}

// grpcurlWatch reads the stream with the stock grpcurl until n events came, and
// returns their ids.
func grpcurlWatch(t *testing.T, g *gateway, n int) []string {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	command := exec.CommandContext(ctx, stripetest.Tool(t, "grpcurl"), "-plaintext", "-d", `{"from_beginning": true}`, g.grpcListener.Addr().String(), "ordergate.v1.OrderService/WatchOrders")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer command.Wait()
	defer stop()
	var ids []string
	decoder := json.NewDecoder(stdout)
	for len(ids) < n {
		var response struct {
			Event *struct {
				ID       string
				Sequence string
				Order    struct {
					ID        string
					Directive string
					Livemode  *bool
					Shipping  struct{ Address struct{ Country string } }
				}
			}
			ResumeToken string
		}
		if err := decoder.Decode(&response); err != nil {
			t.Fatalf("after %d events: %v\n%s", len(ids), err, stderr.Bytes())
		}
		if response.ResumeToken == "" {
			t.Error("a message without a resume token")
		}
		if e := response.Event; e != nil {
			ids = append(ids, e.ID)
			if e.Order.Livemode == nil || *e.Order.Livemode || e.Order.Shipping.Address.Country != "DE" || e.Sequence == "" {
				t.Errorf("event = %+v", e)
			}
		}
	}
	return ids
}

// The way that a shop's developer tries it: the real Stripe CLI forwards signed
// events to the gateway, and grpcurl shows the orders.
func TestStripeCLIToGRPCurl(t *testing.T) {
	stripe := stripetest.NewServer(t)
	stripe.Handle("GET /v1/checkout/sessions/{id}/line_items", stripetest.List(func(*http.Request) []json.RawMessage {
		return []json.RawMessage{json.RawMessage(`{"id":"li_1","object":"item","quantity":2,"price":{"id":"price_1","object":"price","product":{"id":"prod_1","object":"product","name":"Shirt"}}}`)}
	}))
	g := startGateway(t, stripe.WebhookSecret, func(c *config.Config) {
		c.StripeAPIKey, c.StripeAPIBase, c.LineItemsDeadline = []string{"rk_test_clients"}, stripe.URL, patience
	})
	cli := stripe.Listen(t, g.webhookURL(), sample.Types()...)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var want []string
	for _, eventType := range []string{sample.Completed, sample.Completed} {
		story, err := sample.Story(eventType, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for i, event := range story {
			response, err := cli.Send(ctx, event.Body)
			if err != nil {
				t.Fatal(err)
			}
			if response.Status != 200 || strings.TrimSpace(response.Body) != `{"received":true}` {
				t.Fatalf("the gateway answered %d %s", response.Status, response.Body)
			}
			want = append(want, fmt.Sprintf("%s.%d", event.OrderID, i+1))
		}
	}
	if diff := cmp.Diff(want, grpcurlWatch(t, g, len(want)), cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Error(diff)
	}
	record, err := g.log.DurableOrder(ctx, strings.TrimSuffix(want[0], ".1"))
	if err != nil {
		t.Fatal(err)
	}
	event, err := record.Event()
	if err != nil || len(event.GetOrder().GetLineItems()) != 1 || event.GetOrder().GetLineItems()[0].GetProduct().GetName() != "Shirt" {
		t.Errorf("line items = %v, %v", event.GetOrder().GetLineItems(), err)
	}
}

// Stripe's own Node client signs what the gateway takes, and only with the right
// secret.
func TestNodeSignedEvent(t *testing.T) {
	const secret = "whsec_1234567890123456789012345678901234"
	g := startGateway(t, secret)
	story, err := sample.Story(sample.Completed, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		secret string
		status int
	}{{"whsec_wrongwrongwrongwrongwrongwrongwrong", 400}, {secret, 200}, {secret, 200}} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, g.webhookURL(), bytes.NewReader(story[0].Body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json; charset=utf-8")
		request.Header.Set("Stripe-Signature", stripetest.NodeSign(t, story[0].Body, tt.secret))
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != tt.status {
			t.Errorf("status = %d, want %d", response.StatusCode, tt.status)
		}
	}
	if diff := cmp.Diff([]string{story[0].OrderID + ".1"}, grpcurlWatch(t, g, 1)); diff != "" {
		t.Error(diff)
	}
}

// The one-liner of the README works as it stands, and reflection shows the
// services.
func TestGRPCurlOneLiner(t *testing.T) {
	g := startGateway(t, "whsec_1234567890123456789012345678901234")
	grpcurl, addr := stripetest.Tool(t, "grpcurl"), g.grpcListener.Addr().String()
	list, err := exec.CommandContext(t.Context(), grpcurl, "-plaintext", addr, "list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{"ordergate.v1.OrderService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"} {
		if !strings.Contains(string(list), service+"\n") {
			t.Errorf("%s is not listed in:\n%s", service, list)
		}
	}
	healthy, err := exec.CommandContext(t.Context(), grpcurl, "-plaintext", addr, "grpc.health.v1.Health/Check").Output()
	if err != nil || !strings.Contains(string(healthy), "SERVING") {
		t.Errorf("health: %s %v", healthy, err)
	}
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	watching := exec.CommandContext(ctx, grpcurl, "-plaintext", addr, "ordergate.v1.OrderService/WatchOrders")
	stdout, err := watching.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watching.Start(); err != nil {
		t.Fatal(err)
	}
	var first map[string]any
	if err := json.NewDecoder(stdout).Decode(&first); err != nil || first["caughtUp"] == nil {
		t.Errorf("first message %v, %v", first, err)
	}
	stop()
	var exit *exec.ExitError
	if err := watching.Wait(); err != nil && !errors.As(err, &exit) {
		t.Error(err)
	}
	problem, err := exec.CommandContext(t.Context(), grpcurl, "-plaintext", "-d", `{"resume_token":"junk"}`, addr, "ordergate.v1.OrderService/WatchOrders").CombinedOutput()
	if err == nil || !strings.Contains(string(problem), "RESUME_TOKEN_INVALID") {
		t.Errorf("with a bad token: %v\n%s", err, problem)
	}
}
