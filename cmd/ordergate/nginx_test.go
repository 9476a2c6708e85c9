package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/internal/authtest"
	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/freeport"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripetest"
)

// proxied is a gateway behind an nginx with the configuration of deploy/nginx.
type proxied struct {
	*gateway
	ca                   *authtest.CA
	token                string // of an operator
	ingress, grpc, admin string // addresses of nginx
}

// startProxied starts a gateway and an nginx in front of it. Of the configuration, only ports and paths
// are replaced.
func startProxied(t *testing.T) *proxied {
	t.Helper()
	nginx := stripetest.Tool(t, "nginx")
	p := &proxied{ca: authtest.NewCA(t)}
	dir := t.TempDir()
	access := filepath.Join(dir, "access")
	token, line := authtest.Token(t, "alice", "operator")
	p.token = token
	authtest.WriteFile(t, access, line)
	p.gateway = startGateway(t, testSecret, func(c *config.Config) {
		c.AccessFile, c.AdminHosts = access, []string{"ordergate.example.com"}
	})
	addrs := freeport.Addrs(t, 3)
	p.ingress, p.grpc, p.admin = addrs[0], addrs[1], addrs[2]
	cert, key := p.ca.Issue(t, "hooks.example.com", "ordergate.example.com", "127.0.0.1")
	configuration := deployed(t, "nginx/nginx.conf")
	for _, r := range []struct{ from, to string }{
		{"listen 443 ssl", "listen " + p.ingress + " ssl"},
		{"listen 8443 ssl", "listen " + p.grpc + " ssl"},
		{"listen 9443 ssl", "listen " + p.admin + " ssl"},
		{"http://127.0.0.1:3000", "http://" + p.ingressListener.Addr().String()},
		{"grpc://127.0.0.1:50051", "grpc://" + p.grpcListener.Addr().String()},
		{"http://127.0.0.1:8080", "http://" + p.adminListener.Addr().String()},
		{"/etc/nginx/tls/ordergate.crt", cert},
		{"/etc/nginx/tls/ordergate.key", key},
		{"http {", "http {\n" + temporaryPaths(dir)},
	} {
		if strings.Count(configuration, r.from) != 1 {
			t.Fatalf("nginx.conf contains %q %d times, want once", r.from, strings.Count(configuration, r.from))
		}
		configuration = strings.Replace(configuration, r.from, r.to, 1)
	}
	file := filepath.Join(dir, "nginx.conf")
	authtest.WriteFile(t, file, configuration)
	command := exec.Command(nginx, "-e", "stderr", "-p", dir, "-c", file, "-g", "daemon off; pid "+filepath.Join(dir, "pid")+";")
	command.Stdout, command.Stderr = t.Output(), t.Output()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		command.Process.Signal(os.Interrupt)
		if err := command.Wait(); err != nil {
			t.Errorf("nginx: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	waitFor(ctx, t, "nginx and the gateway are ready", func() bool {
		response, err := p.http(t).Get("https://" + p.admin + "/readyz")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return p
}

// temporaryPaths moves nginx's temporary files to dir.
func temporaryPaths(dir string) string {
	var b strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&b, "%s_temp_path %s;\n", kind, filepath.Join(dir, kind))
	}
	return b.String()
}

func (p *proxied) http(t *testing.T) *http.Client {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.ca.Pool, MinVersion: tls.VersionTLS12}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// send posts an event to the ingress through nginx and returns the status.
func (p *proxied) send(ctx context.Context, t *testing.T, path, secret string, body []byte) int {
	t.Helper()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+p.ingress+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json; charset=utf-8")
	request.Header.Set("Stripe-Signature", webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: body, Secret: secret}).Header)
	response, err := p.http(t).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode
}

// sendOrder sends a new order through nginx and returns its id.
func (p *proxied) sendOrder(ctx context.Context, t *testing.T) string {
	t.Helper()
	story, err := sample.Story(sample.Completed, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got := p.send(ctx, t, "/api/webhook", testSecret, story[0].Body); got != http.StatusOK {
		t.Fatalf("webhook through nginx: %d", got)
	}
	return story[0].OrderID
}

// TestNginxIngress sends webhooks through nginx. Forged and oversized ones are refused, and there is
// no other path.
func TestNginxIngress(t *testing.T) {
	p := startProxied(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p.sendOrder(ctx, t)
	event := []byte(`{"id":"evt_1","object":"event","type":"price.created","umlaut":"ä\u00e4 \/"}`)
	large := append(event[:len(event)-1:len(event)-1], `,"x":"`+strings.Repeat("y", 1_000_000)+`"}`...)
	for name, tt := range map[string]struct {
		path, secret string
		body         []byte
		want         int
	}{
		"signed":         {"/api/webhook", testSecret, event, 200},
		"large":          {"/api/webhook", testSecret, large, 200},
		"too large":      {"/api/webhook", testSecret, append(large, large...), 413},
		"another secret": {"/api/webhook", "whsec_4321098765432109876543210987654321", event, 400},
		"another path":   {"/v1/orders", testSecret, event, 404},
	} {
		if got := p.send(ctx, t, tt.path, tt.secret, tt.body); got != tt.want {
			t.Errorf("%s: %d, want %d", name, got, tt.want)
		}
	}
}

// TestNginxAdmin watches orders through nginx with its default proxy settings: each event arrives at
// once, not when nginx's buffer is full or the next heartbeat comes.
func TestNginxAdmin(t *testing.T) {
	p := startProxied(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ask := func(method, path, token, accept, host string) *http.Response {
		t.Helper()
		request, err := http.NewRequestWithContext(ctx, method, "https://"+p.admin+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Accept", accept)
		request.Host = host
		if token != "" {
			request.Header.Set("Authorization", "Bearer "+token)
		}
		response, err := p.http(t).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { response.Body.Close() })
		return response
	}
	const host = "ordergate.example.com:9443"
	for contentType, accept := range map[string]string{"text/event-stream": "text/event-stream", "application/x-ndjson": "*/*"} {
		watch := ask("GET", "/v1/orders:watch", p.token, accept, host)
		if got := watch.Header.Get("Content-Type"); watch.StatusCode != 200 || got != contentType {
			t.Fatalf("watch: %s, %s", watch.Status, got)
		}
		lines := bufio.NewReader(watch.Body)
		awaitLine(t, lines, "caughtUp")
		for range 3 {
			sent := time.Now()
			awaitLine(t, lines, p.sendOrder(ctx, t))
			if took := time.Since(sent); took > 5*time.Second {
				t.Errorf("%s: the event took %v", contentType, took)
			}
		}
	}
	for name, tt := range map[string]struct {
		path, token, host string
		want              int
	}{
		"with a token":              {"/v1/orders", p.token, host, 200},
		"without a token":           {"/v1/orders", "", host, 401},
		"foreign host":              {"/v1/orders", "", "evil.example", 421},
		"profiles":                  {"/debug/pprof/", p.token, host, 404},
		"metrics without a token":   {"/metrics", "", host, 401},
		"an order that is not here": {"/v1/orders/cs_none", p.token, host, 404},
	} {
		if got := ask("GET", tt.path, tt.token, "", tt.host); got.StatusCode != tt.want {
			t.Errorf("%s: %s, want %d", name, got.Status, tt.want)
		}
	}
}

// awaitLine reads lines until one contains text.
func awaitLine(t *testing.T, lines *bufio.Reader, text string) {
	t.Helper()
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("no line with %s: %v", text, err)
		}
		if strings.Contains(line, text) {
			return
		}
	}
}

// TestNginxGRPC calls, watches and consumes through grpc_pass.
func TestNginxGRPC(t *testing.T) {
	p := startProxied(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dial := func(token string) *client.Client {
		t.Helper()
		options, err := client.Credentials{Token: token, CAFile: p.ca.File}.DialOptions(p.grpc)
		if err != nil {
			t.Fatal(err)
		}
		gateway, err := client.New(p.grpc, options...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { gateway.Close() })
		return gateway
	}
	for _, err := range dial("").Watch(ctx, client.WatchOptions{}) {
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("without a token: %v", err)
		}
		break
	}
	gateway := dial(p.token)
	var sent string
	for message, err := range gateway.Watch(ctx, client.WatchOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		if message.GetCaughtUp() != nil && sent == "" {
			sent = p.sendOrder(ctx, t)
		}
		if id := message.GetEvent().GetOrder().GetId(); id != "" {
			if id != sent {
				t.Errorf("watched %s, want %s", id, sent)
			}
			break
		}
	}
	consuming, stop := context.WithCancel(ctx)
	defer stop()
	var handled []string
	err := gateway.Consume(consuming, "shipping", func(_ context.Context, delivery *client.Delivery) error {
		handled = append(handled, delivery.Event.GetOrder().GetId())
		stop()
		return nil
	}, client.ConsumeOptions{Create: &ordergatev1.Subscription{}, Start: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}})
	if err != nil || len(handled) != 1 || handled[0] != sent {
		t.Errorf("consumed %v, %v, want %s", handled, err, sent)
	}
}
