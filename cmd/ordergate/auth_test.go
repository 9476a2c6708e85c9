package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/authtest"
	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/stripehook"
	"github.com/ordergate/ordergate/internal/stripetest"
)

const testSecret = "whsec_1234567890123456789012345678901234"

// guarded is a gateway with TLS and an access file, which knows alice, an
// operator; rita, a reader; and robot, an operator with a certificate.
type guarded struct {
	*gateway
	ca          *authtest.CA
	file        string
	alice, rita string // tokens
	aliceLine   string
}

func startGuarded(t *testing.T) *guarded {
	t.Helper()
	g := &guarded{ca: authtest.NewCA(t), file: filepath.Join(t.TempDir(), "access")}
	var rita string
	g.alice, g.aliceLine = authtest.Token(t, "alice", "operator")
	g.rita, rita = authtest.Token(t, "rita", "reader")
	authtest.WriteFile(t, g.file, g.aliceLine+rita+"robot operator san:spiffe://shop/robot\n")
	g.gateway = startGateway(t, testSecret, func(c *config.Config) {
		c.TLSCert, c.TLSKey = g.ca.Issue(t, "localhost", "127.0.0.1")
		c.TLSClientCA, c.AccessFile = g.ca.File, g.file
	})
	return g
}

func (g *guarded) robot(t *testing.T) *tls.Config {
	t.Helper()
	cert, key := g.ca.Issue(t, "spiffe://shop/robot")
	return g.ca.Client(t, cert, key)
}

// ask sends a request to the admin listener, with header names and values.
func (g *guarded) ask(t *testing.T, cfg *tls.Config, method, path, body string, header ...string) *http.Response {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	request, err := http.NewRequestWithContext(ctx, method, "https://"+g.adminListener.Addr().String()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		request.Header.Add(header[i], header[i+1])
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	return response
}

func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(all)
}

// The admin listener knows its callers as gRPC does: by token, or by certificate.
func TestAdminAccess(t *testing.T) {
	g := startGuarded(t)
	plain, robot := g.ca.Client(t, "", ""), g.robot(t)
	stranger := func() *tls.Config {
		cert, key := g.ca.Issue(t, "spiffe://shop/stranger")
		return g.ca.Client(t, cert, key)
	}()
	alice, rita := "Bearer "+g.alice, "Bearer "+g.rita
	// Tickets as they are handed over within the process.
	ticket, done := g.access.HandOver(auth.Own())
	defer done()
	for _, tt := range []struct {
		name, method, path string
		cfg                *tls.Config
		header             []string
		status             int
		says               string
	}{
		{"health", "GET", "/healthz", plain, nil, 200, "alive"},
		{"readiness", "GET", "/readyz", plain, nil, 200, "ready"},
		{"metrics by nobody", "GET", "/metrics", plain, nil, 401, "no credential"},
		{"metrics by a reader", "GET", "/metrics", plain, []string{"Authorization", rita}, 200, "go_goroutines"},
		{"metrics by a certificate", "GET", "/metrics", robot, nil, 200, "go_goroutines"},
		{"metrics by an unknown token", "GET", "/metrics", plain, []string{"Authorization", "Bearer " + auth.NewToken()}, 401, "not accepted"},
		{"OpenAPI by nobody", "GET", "/openapi.json", plain, nil, 401, "no credential"},
		{"OpenAPI by a reader", "GET", "/openapi.json", plain, []string{"Authorization", rita}, 200, "swagger"},
		{"orders by nobody", "GET", "/v1/orders", plain, nil, 401, "UNAUTHENTICATED"},
		{"orders by a reader", "GET", "/v1/orders", plain, []string{"Authorization", rita}, 200, "orders"},
		{"orders by an unknown certificate", "GET", "/v1/orders", stranger, nil, 401, "UNAUTHENTICATED"},
		{"events by a reader", "GET", "/v1/events", plain, []string{"Authorization", rita}, 403, "PERMISSION_DENIED"},
		{"events by an operator", "GET", "/v1/events", plain, []string{"Authorization", alice}, 200, "events"},
		{"events by a certificate", "GET", "/v1/events", robot, nil, 200, "events"},
		{"a token counts before a certificate", "GET", "/v1/events", robot, []string{"Authorization", rita}, 403, "PERMISSION_DENIED"},
		{"two tokens", "GET", "/v1/events", plain, []string{"Authorization", rita, "Authorization", alice}, 401, "UNAUTHENTICATED"},
		{"a hold by a reader", "POST", "/v1/orders/cs_1:hold", plain, []string{"Authorization", rita}, 403, "operator"},
		{"a hold by an operator", "POST", "/v1/orders/cs_1:hold", plain, []string{"Authorization", alice}, 404, "ORDER_NOT_FOUND"},
		{"a watch by nobody", "GET", "/v1/orders:watch", plain, nil, 401, "UNAUTHENTICATED"},
		// What a caller from outside may try.
		{"a ticket in a header", "GET", "/v1/events", plain, []string{"Grpc-Metadata-" + auth.TicketKey, ticket}, 401, "UNAUTHENTICATED"},
		{"a ticket in a plain header", "GET", "/v1/events", plain, []string{auth.TicketKey, ticket}, 401, "UNAUTHENTICATED"},
		{"a ticket beside a token", "GET", "/v1/events", plain, []string{"Authorization", rita, "Grpc-Metadata-" + auth.TicketKey, ticket}, 403, "PERMISSION_DENIED"},
		{"a token as metadata", "GET", "/v1/events", plain, []string{"Grpc-Metadata-Authorization", alice}, 401, "UNAUTHENTICATED"},
		{"a certificate in a header", "GET", "/v1/events", plain, []string{"X-Forwarded-Client-Cert", "URI=spiffe://shop/robot"}, 401, "UNAUTHENTICATED"},
	} {
		body := ""
		if tt.method == "POST" {
			body = `{"reason": "x"}`
		}
		response := g.ask(t, tt.cfg, tt.method, tt.path, body, tt.header...)
		status, header, answer := response.StatusCode, response.Header, readAll(t, response.Body)
		if status != tt.status || !strings.Contains(answer, tt.says) {
			t.Errorf("%s: %d %.300s", tt.name, status, answer)
		}
		if (status == 401) != (header.Get("WWW-Authenticate") == "Bearer") {
			t.Errorf("%s: WWW-Authenticate: %q", tt.name, header.Get("WWW-Authenticate"))
		}
	}
	if response, err := http.Get("http://" + g.adminListener.Addr().String() + "/healthz"); err == nil {
		response.Body.Close()
		if response.StatusCode == 200 {
			t.Error("the admin listener answers without TLS")
		}
	}
}

// A watch over HTTP ends, too, when its caller's line is gone.
func TestAdminWatchEndsWithAccess(t *testing.T) {
	g := startGuarded(t)
	watches := map[string]*http.Response{
		"a token":       g.ask(t, g.ca.Client(t, "", ""), "GET", "/v1/orders:watch", "", "Authorization", "Bearer "+g.rita),
		"a certificate": g.ask(t, g.robot(t), "GET", "/v1/orders:watch", "", "Accept", "text/event-stream"),
	}
	for name, watch := range watches {
		if watch.StatusCode != 200 {
			t.Fatalf("%s: %d %s", name, watch.StatusCode, readAll(t, watch.Body))
		}
	}
	authtest.WriteFile(t, g.file, g.aliceLine)
	for name, watch := range watches {
		if answer := readAll(t, watch.Body); !strings.Contains(answer, "caughtUp") || !strings.Contains(answer, "UNAUTHENTICATED") {
			t.Errorf("%s: %s", name, answer)
		}
	}
}

// The stock grpcurl and the commands get in with a token or a certificate.
func TestClientsWithTLS(t *testing.T) {
	g := startGuarded(t)
	addr := g.grpcListener.Addr().String()
	grpcurl := stripetest.Tool(t, "grpcurl")
	list := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		out, _ := exec.CommandContext(ctx, grpcurl, append(append([]string{"-cacert", g.ca.File}, args...), addr, "ordergate.v1.EventService/ListEvents")...).CombinedOutput()
		return string(out)
	}
	cert, key := g.ca.Issue(t, "spiffe://shop/robot")
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"a token":       {[]string{"-H", "authorization: Bearer " + g.alice}, "{}"},
		"a certificate": {[]string{"-cert", cert, "-key", key}, "{}"},
		"nothing":       {nil, "Unauthenticated"},
		"a reader":      {[]string{"-H", "authorization: Bearer " + g.rita}, "PERMISSION_DENIED"},
	} {
		if out := list(tt.args...); !strings.Contains(strings.ReplaceAll(out, "\n", ""), tt.want) {
			t.Errorf("%s: %s", name, out)
		}
	}
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"a token":        {[]string{"--tls-ca", g.ca.File, "--token", g.alice}, ""},
		"a certificate":  {[]string{"--tls-ca", g.ca.File, "--tls-cert", cert, "--tls-key", key}, ""},
		"a reader":       {[]string{"--tls-ca", g.ca.File, "--token", g.rita}, "rita has the role reader"},
		"nothing":        {[]string{"--tls-ca", g.ca.File}, "no credential came"},
		"no TLS":         {nil, "cannot be reached"},
		"half a pair":    {[]string{"--tls-cert", cert}, "belong together"},
		"no authorities": {[]string{"--tls-ca", key}, "there is no certificate in it"},
	} {
		var out bytes.Buffer
		err := run(t.Context(), append([]string{"events", "list", "--addr", addr}, tt.args...), nil, &out, &out)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A token is not sent in plaintext to another machine unless one says so.
func TestTokenIsNotSentInPlaintext(t *testing.T) {
	token := auth.NewToken()
	for _, command := range [][]string{{"events", "list"}, {"watch"}, {"orders", "show", "cs_1"}, {"consume", "s"}, {"subscriptions", "list"}} {
		var out bytes.Buffer
		err := run(t.Context(), append(command, "--addr", "192.0.2.1:50051", "--token", token), nil, &out, &out)
		if err == nil || !strings.Contains(err.Error(), "in plaintext") || !strings.Contains(err.Error(), "--insecure") || strings.Contains(err.Error(), token) {
			t.Errorf("%v: %v", command, err)
		}
	}
}

// Settings that name what cannot be used refuse to start, all together.
func TestSecuritySettingsAreChecked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "access")
	authtest.WriteFile(t, file, "alice\nbob reader x\n")
	var out bytes.Buffer
	err := run(t.Context(), []string{"serve", "--data-dir", t.TempDir(), "--stripe-webhook-secret", testSecret, "--access-file", file, "--tls-cert", file, "--tls-key", file, "--max-body-bytes", "1"}, nil, &out, &out)
	for _, want := range []string{"line 1: has 1 fields", "line 2: the credential is none", "--tls-cert", "--max-body-bytes"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
}

// With an access file, dev goes on printing orders.
func TestDevWithAnAccessFile(t *testing.T) {
	g := startGuarded(t)
	printed, out := io.Pipe()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	go func() {
		out.CloseWithError((&devCommand{}).printOrders(ctx, g.gateway, console{nil, out, out}))
	}()
	secrets, err := stripehook.ParseSecrets(testSecret)
	if err != nil {
		t.Fatal(err)
	}
	go func() { // it prints what comes after it has begun
		b := books{sent: map[string]bool{}, answered: map[string]bool{}}
		b.send(ctx, g.webhookURL(), secrets[0])
	}()
	line, err := bufio.NewReader(printed).ReadString('\n')
	if err != nil || !strings.Contains(line, "PAID") {
		t.Errorf("%q, %v", line, err)
	}
	printed.Close()
	cancel()
}

// The exported options of the client package reach a gateway with TLS.
func TestClientWithToken(t *testing.T) {
	g := startGuarded(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	addr := g.grpcListener.Addr().String()
	options, err := client.Credentials{Token: g.rita, CAFile: g.ca.File}.DialOptions(addr)
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := client.New(addr, options...)
	if err != nil {
		t.Fatal(err)
	}
	defer gateway.Close()
	for message, err := range gateway.Watch(ctx, client.WatchOptions{}) {
		if err != nil || message.GetCaughtUp() == nil {
			t.Errorf("%v, %v", message, err)
		}
		break
	}
	for _, err := range gateway.Watch(ctx, client.WatchOptions{}) {
		if err != nil {
			if status.Code(err) != codes.Unauthenticated {
				t.Error(err)
			}
			break // and it does not try again
		}
		authtest.WriteFile(t, g.file, g.aliceLine)
	}
}
