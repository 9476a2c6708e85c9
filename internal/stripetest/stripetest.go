// Package stripetest lets tests use Stripe's real clients without Stripe.
//
// [Server] stands in for Stripe's API on a local port. It knows what the Stripe
// CLI asks for, so that a test runs the real `stripe listen` and sends events
// through it; what else of the API a test needs, it adds with [Server.Handle],
// from [List], [Events] and [Error]. [NewMemoryServer] is the same server without
// a network, for tests in virtual time. [StripeMock] is Stripe's own stand-in.
// [NodeSign] signs a body with Stripe's Node client.
//
// The bash script .ci/install puts the CLI and the Node client in place. [Tool]
// says what happens to a test where they are missing.
package stripetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
	"github.com/stripe/stripe-go/v76"
	"github.com/stripe/stripe-go/v76/webhook"
)

const (
	// apiKey has the form of a restricted test-mode key, which the CLI checks
	// before it sends anything. The server accepts every key.
	apiKey = "rk_test_stripetest"

	// startTimeout bounds how long a program may take until it can be used: the
	// CLI to open its websocket, stripe-mock to listen. Both take well below a
	// second on an idle machine.
	startTimeout = 30 * time.Second
)

// Server is a small local stand-in for Stripe's API. Make one with [NewServer] or
// [NewMemoryServer].
type Server struct {
	// URL is the server's address in the only form that the CLI accepts for
	// --api-base: "http://127.0.0.1:PORT".
	URL string

	// Transport reaches the server. It is nil where every HTTP client does.
	Transport http.RoundTripper

	// WebhookSecret is the signing secret that the CLI is told and that events
	// are signed with: "whsec_…", another one for each server.
	WebhookSecret string

	mux     *http.ServeMux
	closed  context.Context // done when the test is over; ends the websockets
	sockets sync.WaitGroup  // handlers of websockets, for which httptest does not wait

	mu        sync.Mutex
	listeners map[string]*Listener // by the device name that their CLI was given
}

// NewServer starts a server that stops when the test is over.
func NewServer(t testing.TB) *Server {
	t.Helper()
	s, closeSockets := newServer(t)
	server := httptest.NewServer(s.mux)
	s.URL = server.URL
	t.Cleanup(func() {
		closeSockets()
		server.Close() // from here on there are no new websockets
		s.sockets.Wait()
	})
	return s
}

// newServer makes a server that does not listen yet.
func newServer(t testing.TB) (_ *Server, closeSockets func()) {
	var secret [32]byte
	rand.Read(secret[:]) // never fails
	closed, closeSockets := context.WithCancel(context.Background())
	s := &Server{
		WebhookSecret: "whsec_" + hex.EncodeToString(secret[:]),
		mux:           http.NewServeMux(),
		closed:        closed,
		listeners:     make(map[string]*Listener),
	}
	s.mux.HandleFunc("POST /v1/stripecli/sessions", s.createSession)
	s.mux.HandleFunc("GET /subscribe/{device}", s.subscribe)
	s.mux.HandleFunc("GET /v1/shipping_rates/{id}", shippingRate)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		t.Logf("stripetest: nothing handles %s %s: add it with Server.Handle", r.Method, r.URL.Path)
		writeError(w, http.StatusNotFound, "not part of this stand-in: "+r.Method+" "+r.URL.Path)
	})
	return s, closeSockets
}

// shippingRate answers for any shipping rate: the orders of package sample have one.
func shippingRate(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{"id": r.PathValue("id"), "object": "shipping_rate", "display_name": "Parcel", "metadata": map[string]string{}})
}

// Handle adds an endpoint of Stripe's API, such as "GET /v1/events". Patterns
// are those of [http.ServeMux]. It may be called while the server is in use.
func (s *Server) Handle(pattern string, handler http.Handler) {
	s.mux.Handle(pattern, handler)
}

// Listener is a running `stripe listen`. Make one with [Server.Listen].
type Listener struct {
	secret string
	ready  chan struct{}   // closed when the CLI has opened its websocket
	ended  context.Context // done when the CLI has ended; its cause says how

	mu      sync.Mutex
	conn    *websocket.Conn            // the newest: the CLI opens another when it loses one
	waiting map[string]chan<- Response // by conversation; each has room for its one answer
}

// Response is what the endpoint that an event was forwarded to has answered.
type Response struct {
	Status int
	Body   string
}

// Listen starts the real Stripe CLI, `stripe listen --forward-to forwardTo`, and
// returns when events can be sent through it. The CLI drops events that are
// not of the given types; with no types given, it forwards every snapshot event.
// It is killed when the test is over, and what it printed goes to the test's
// log if the test has failed.
func (s *Server) Listen(t testing.TB, forwardTo string, types ...string) *Listener {
	t.Helper()
	stripeCLI := Tool(t, "stripe")
	ended, end := context.WithCancelCause(context.Background())
	l := &Listener{
		secret:  s.WebhookSecret,
		ready:   make(chan struct{}),
		ended:   ended,
		waiting: make(map[string]chan<- Response),
	}
	// The name comes back in the CLI's request for a session. It tells several
	// CLIs of one test apart.
	device := "stripetest-" + rand.Text()
	s.mu.Lock()
	s.listeners[device] = l
	s.mu.Unlock()

	args := []string{
		"listen", "--forward-to", forwardTo,
		"--api-base", s.URL, "--api-key", apiKey, "--device-name", device,
		"--skip-update", "--color", "off",
	}
	if len(types) > 0 {
		args = append(args, "--events", strings.Join(types, ","))
	} else {
		args = append(args, "--all-snapshot")
	}
	cmd := exec.CommandContext(t.Context(), stripeCLI, args...)
	// Nothing of a developer's own: no login, no key, no proxy, no telemetry.
	cmd.Env = []string{
		"HOME=" + t.TempDir(),
		"PATH=" + os.Getenv("PATH"),
		"STRIPE_CLI_TELEMETRY_OPTOUT=1",
	}
	var output bytes.Buffer // the command's until it has ended
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatalf("starting the Stripe CLI: %v", err)
	}
	go func() {
		err := cmd.Wait()
		end(fmt.Errorf("stripe listen has ended: %v", err))
	}()
	t.Cleanup(func() {
		<-ended.Done() // t.Context is done by now, which kills the CLI
		if t.Failed() {
			t.Logf("stripe listen printed:\n%s", output.Bytes())
		}
	})

	select {
	case <-l.ready:
	case <-ended.Done():
		t.Fatalf("%v: its output below says why", context.Cause(ended))
	case <-time.After(startTimeout):
		t.Fatalf("stripe listen has not opened its websocket in %v: its output below may say why", startTimeout)
	}
	return l
}

// Send signs payload, a snapshot event's JSON, has the CLI forward it, and
// returns what the endpoint answered. Calls may overlap; the CLI then forwards
// in no particular order, as it does with real events. The CLI answers nothing,
// and Send waits until ctx is done, when the event is not of a type that it was
// told to listen for, and when the endpoint could not be reached.
func (l *Listener) Send(ctx context.Context, payload []byte) (Response, error) {
	if !utf8.Valid(payload) {
		return Response{}, fmt.Errorf("stripetest: the CLI's protocol carries an event as a JSON string: the payload must be UTF-8")
	}
	signed := webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{
		Payload:   payload,
		Secret:    l.secret,
		Timestamp: time.Now(),
	})
	conversation := "wc_" + rand.Text()
	response := make(chan Response, 1)

	l.mu.Lock()
	conn := l.conn
	l.waiting[conversation] = response
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, conversation)
		l.mu.Unlock()
	}()

	err := wsjson.Write(ctx, conn, map[string]any{
		"type":          "webhook_event",
		"endpoint":      map[string]any{"api_version": nil},
		"event_payload": string(payload),
		"http_headers": map[string]string{
			"Accept":           "*/*; q=0.5, application/xml",
			"Cache-Control":    "no-cache",
			"Content-Type":     "application/json; charset=utf-8",
			"Stripe-Signature": signed.Header,
			"User-Agent":       "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
		},
		"webhook_conversation_id": conversation,
		"webhook_id":              "wh_" + rand.Text(),
	})
	if err != nil {
		return Response{}, fmt.Errorf("stripetest: sending an event to the CLI: %w", err)
	}
	select {
	case r := <-response:
		return r, nil
	case <-l.ended.Done():
		return Response{}, fmt.Errorf("stripetest: waiting for the CLI's answer: %w", context.Cause(l.ended))
	case <-ctx.Done():
		return Response{}, fmt.Errorf("stripetest: waiting for the CLI's answer (is the event's type one it listens for, and the endpoint up?): %w", ctx.Err())
	}
}

// createSession answers the CLI's first request with the address of its
// websocket.
func (s *Server) createSession(w http.ResponseWriter, r *http.Request) {
	device := r.FormValue("device_name")
	if s.listener(device) == nil {
		writeError(w, http.StatusBadRequest, "only a CLI started by Server.Listen gets a session")
		return
	}
	writeJSON(w, http.StatusOK, map[string]any{
		"default_version":              stripe.APIVersion,
		"device_token":                 "stripetest",
		"latest_version":               stripe.APIVersion,
		"reconnect_delay":              3600, // seconds; longer than any test
		"secret":                       s.WebhookSecret,
		"websocket_authorized_feature": "webhooks",
		"websocket_id":                 "cliws_" + rand.Text(),
		"websocket_url":                "ws" + strings.TrimPrefix(s.URL, "http") + "/subscribe/" + device,
	})
}

// subscribe is the CLI's websocket: events go out in Send, answers come in here.
func (s *Server) subscribe(w http.ResponseWriter, r *http.Request) {
	l := s.listener(r.PathValue("device"))
	if l == nil {
		writeError(w, http.StatusNotFound, "no such session")
		return
	}
	s.sockets.Add(1)
	defer s.sockets.Done()
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"stripecli-devproxy-v1"}})
	if err != nil {
		return // Accept has answered; Listen will say that nothing was opened
	}
	defer conn.CloseNow()
	conn.SetReadLimit(-1) // an answer brings the endpoint's whole body

	l.mu.Lock()
	first := l.conn == nil
	l.conn = conn
	l.mu.Unlock()
	if first {
		close(l.ready)
	}

	for {
		var message struct {
			Type         string `json:"type"`
			Conversation string `json:"webhook_conversation_id"`
			Status       int    `json:"status"`
			Body         string `json:"body"`
		}
		if err := wsjson.Read(s.closed, conn, &message); err != nil {
			return // the CLI is gone, or the server; or the CLI opens another
		}
		if message.Type != "webhook_response" {
			continue // "event_ack" says only that the CLI has the event
		}
		l.mu.Lock()
		response := l.waiting[message.Conversation]
		delete(l.waiting, message.Conversation)
		l.mu.Unlock()
		if response != nil {
			response <- Response{Status: message.Status, Body: message.Body}
		}
	}
}

func (s *Server) listener(device string) *Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listeners[device]
}

// writeError answers with an error in the shape of Stripe's.
func writeError(w http.ResponseWriter, status int, message string) {
	writeJSON(w, status, map[string]any{
		"error": map[string]any{"type": "invalid_request_error", "message": "stripetest: " + message},
	})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // a client that is gone needs no answer
}
