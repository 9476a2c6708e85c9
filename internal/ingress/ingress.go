// Package ingress takes Stripe's webhooks from the internet: one verified POST
// becomes one durable append to the log, and only then a 200.
//
// It promises that nothing forged gets in, that a 200 means the event is on
// disk, and that a refusal says no more to a forger than that it was refused;
// the log line says the rest.
package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/semaphore"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const (
	// appendTimeout bounds how long an event may take to become durable.
	// Checkout waits up to 10 s for the answer to checkout.session.completed
	// (https://docs.stripe.com/checkout/fulfillment).
	appendTimeout = 8 * time.Second
	// retryAfter is what a sender is told while nothing can be stored, in
	// seconds. Stripe has a schedule of its own; proxies and tests listen.
	retryAfter = 5
	// maxHeldBytes bounds the bodies in memory at one time, together. A body
	// takes its share as it arrives, from bodyStep on: MaxConnections senders
	// that only announce bodies do not fill it.
	maxHeldBytes = 64 << 20
	bodyStep     = 8 << 10
)

// Inbox stores verified events; *eventlog.Log is one.
type Inbox interface {
	AppendInbox(ctx context.Context, event eventlog.RawEvent) (duplicate bool, err error)
}

// Config says what to accept.
type Config struct {
	// Path is the only path that is served, such as /api/webhook.
	Path string
	// Secrets are the signing secrets, one of which must match.
	Secrets *Secrets
	// MaxBodyBytes is the largest body, in bytes.
	MaxBodyBytes int64
	// Inbox stores what was accepted.
	Inbox Inbox
	// Proxies are believed about who sent a request. The zero value believes none.
	Proxies Proxies
	// Logger gets a line for every request that the pipeline will not log.
	Logger *slog.Logger
	// Metrics is where the counters are registered.
	Metrics prometheus.Registerer
	// Tracer makes a span of each verified request; nil makes none.
	Tracer trace.Tracer
	// Now is the clock that signatures are compared with.
	Now func() time.Time
}

type handler struct {
	Config
	measures *measures
	matched  *matches
	held     *semaphore.Weighted // bytes of bodies
}

// New returns the handler of the ingress.
func New(cfg Config) http.Handler {
	h := &handler{
		Config:   cfg,
		held:     semaphore.NewWeighted(maxHeldBytes),
		measures: newMeasures(cfg.Metrics),
		matched:  newMatches(),
	}
	cfg.Metrics.MustRegister(h.matched.total, h.matched.last, h.matched.needed)
	cfg.Secrets.follow(h.matched.show)
	return h
}

// refusal is an answer other than 200.
type refusal struct {
	status  int
	outcome string // of the metric
	answer  string // what the sender is told
	cause   error  // what the log is told
	check   string // what the operator should look at
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	outcome, refused := h.receive(w, r, began)
	h.measures.answered(outcome, refused, began)
	if refused == nil {
		answer(w, http.StatusOK, map[string]any{"received": true})
		return
	}
	h.logRefusal(r, refused)
	switch refused.status {
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", http.MethodPost)
	case http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	}
	// Whoever is refused does not keep a connection, which would be one of few.
	// Stripe's own do not end because the log cannot store.
	if refused.outcome != "unavailable" {
		w.Header().Set("Connection", "close")
	}
	answer(w, refused.status, map[string]any{"error": refused.answer})
}

// receive verifies and stores the event of a request. What costs least to
// refuse is refused first.
func (h *handler) receive(w http.ResponseWriter, r *http.Request, began time.Time) (outcome string, _ *refusal) {
	if refused := h.checkHead(r); refused != nil {
		return "", refused
	}
	held := share{budget: h.held}
	defer held.release()
	body, refused := h.readBody(w, r, &held)
	if refused != nil {
		return "", refused
	}
	now := h.Now()
	matching, err := stripehook.Verify(body, r.Header.Get("Stripe-Signature"), h.Secrets.Current(), now, stripehook.Tolerance)
	if err != nil {
		return "", h.signatureRefusal(err)
	}
	h.matched.count(matching, now)
	event, err := stripehook.ReadEnvelope(body)
	if err != nil {
		return "", &refusal{http.StatusBadRequest, "unreadable", "the body is not a Stripe event", err,
			"the body was signed with a configured secret but is no event: is another product's webhook signed with it?"}
	}
	allowed := stripehook.Signs(matching, event.Livemode)
	if len(allowed) == 0 {
		return "", &refusal{http.StatusBadRequest, "wrong_mode", "the event is of another mode than the secret that signed it",
			fmt.Errorf("event %s (%s) with livemode %v is signed with %s, a secret of %s mode", event.ID, event.Type, event.Livemode, matching[0], matching[0].Mode()),
			"if this is Stripe's own event, correct the prefix live: or test: of the secret; otherwise the secret may have leaked: roll it"}
	}
	ctx, span := h.startSpan(r.Context(), event, began)
	outcome, refused = h.store(ctx, event, allowed[0], body)
	endSpan(span, outcome, refused)
	return outcome, refused
}

// store appends the event, and goes on when the sender hangs up meanwhile: what
// is stored is stored.
func (h *handler) store(ctx context.Context, event stripehook.Envelope, secret stripehook.Secret, body []byte) (outcome string, _ *refusal) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), appendTimeout)
	defer cancel()
	log := func(level slog.Level, args ...any) {
		h.Logger.With("type", event.Type, "event", event.ID, "livemode", event.Livemode, "secret", secret).Log(ctx, level, "event", args...)
	}
	duplicate, err := h.Inbox.AppendInbox(ctx, eventlog.RawEvent{ID: event.ID, Body: body, SecretLabel: secret.Label()})
	if err != nil {
		return "", &refusal{http.StatusServiceUnavailable, "unavailable", "the event could not be stored; send it again", fmt.Errorf("event %s (%s): %w", event.ID, event.Type, err),
			"the lines before this one; the disk of the data directory, its space and its health, or the NATS cluster; Stripe sends the event again"}
	}
	if duplicate {
		log(slog.LevelInfo, "outcome", "DUPLICATE")
		return "duplicate", nil
	}
	if event.Thin {
		log(slog.LevelWarn, "outcome", "THIN", "check", "thin events carry no order: at Stripe, create the event destination with the payload style Snapshot")
		return "thin", nil
	}
	// The pipeline logs what becomes of the event, in one line.
	if h.Logger.Enabled(ctx, slog.LevelDebug) {
		log(slog.LevelDebug, "outcome", "STORED", "object", event.ObjectID)
	}
	return "stored", nil
}

// checkHead refuses by what the request says about itself.
func (h *handler) checkHead(r *http.Request) *refusal {
	if r.URL.Path != h.Path {
		return &refusal{http.StatusNotFound, "not_found", "not found", fmt.Errorf("no such path %.100q", r.URL.Path),
			"the endpoint's URL at Stripe must end with " + h.Path}
	}
	if r.Method != http.MethodPost {
		return &refusal{http.StatusMethodNotAllowed, "method", "use POST", fmt.Errorf("method %.20s", r.Method), "Stripe sends POST: something else calls this URL"}
	}
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/json" {
		return &refusal{http.StatusUnsupportedMediaType, "media_type", "use Content-Type: application/json", fmt.Errorf("content type %.100q", r.Header.Get("Content-Type")),
			"Stripe sends application/json: something else calls this URL, or a proxy changes the header"}
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return &refusal{http.StatusUnsupportedMediaType, "media_type", "send the body without Content-Encoding", fmt.Errorf("content encoding %.100q", encoding),
			"a proxy compresses the body: it must be passed on as it is"}
	}
	if r.ContentLength > h.MaxBodyBytes {
		return h.tooLarge(fmt.Errorf("a body of %d bytes", r.ContentLength))
	}
	if err := stripehook.CheckHeader(r.Header.Get("Stripe-Signature")); err != nil {
		return h.signatureRefusal(err)
	}
	return nil
}

// share is what one body takes of the memory for all.
type share struct {
	budget *semaphore.Weighted
	bytes  int64
}

func (s *share) grow(n int) bool {
	if !s.budget.TryAcquire(int64(n)) {
		return false
	}
	s.bytes += int64(n)
	return true
}

func (s *share) release() { s.budget.Release(s.bytes) }

// readBody takes memory only for what has arrived, whatever was announced.
func (h *handler) readBody(w http.ResponseWriter, r *http.Request, held *share) (body []byte, _ *refusal) {
	limited := http.MaxBytesReader(w, r.Body, h.MaxBodyBytes)
	for {
		if len(body) == cap(body) {
			more := max(len(body), bodyStep)
			if !held.grow(more) {
				return nil, &refusal{http.StatusServiceUnavailable, "busy", "too many requests at once; send the event again", fmt.Errorf("bodies of more than %d bytes at once", int64(maxHeldBytes)),
					"ordergate_ingress_requests_total: who sends so much? Stripe sends the event again"}
			}
			body = append(make([]byte, 0, len(body)+more), body...)
		}
		n, err := limited.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		var tooLarge *http.MaxBytesError
		switch {
		case err == io.EOF:
			return body, nil
		case errors.As(err, &tooLarge):
			return nil, h.tooLarge(fmt.Errorf("a body of more than %d bytes", h.MaxBodyBytes))
		case err != nil:
			return nil, &refusal{http.StatusBadRequest, "incomplete", "the body could not be read", err, "the sender hung up or was too slow; Stripe sends the event again"}
		}
	}
}

func (h *handler) tooLarge(cause error) *refusal {
	return &refusal{http.StatusRequestEntityTooLarge, "too_large", fmt.Sprintf("the body is larger than %d bytes", h.MaxBodyBytes), cause,
		"if Stripe sends events of that size, raise --max-body-bytes"}
}

// signatureRefusal tells the log what is wrong with a signature. The sender is
// told only whether there was one.
func (h *handler) signatureRefusal(cause error) *refusal {
	refused := &refusal{status: http.StatusBadRequest, answer: "the signature could not be verified", cause: cause}
	switch {
	case errors.Is(cause, stripehook.ErrUnsigned):
		refused.answer = "the Stripe-Signature header is missing"
		refused.outcome, refused.check = "unsigned", "it does not come from Stripe, or a proxy drops the Stripe-Signature header"
	case errors.Is(cause, stripehook.ErrMalformed):
		refused.outcome, refused.check = "malformed_signature", "it does not come from Stripe, or a proxy changes the Stripe-Signature header"
	case errors.Is(cause, stripehook.ErrStale):
		refused.outcome, refused.check = "stale", "the clock of this machine (ahead?), or somebody replays an old request"
	case errors.Is(cause, stripehook.ErrFuture):
		refused.outcome, refused.check = "future", "the clock of this machine (behind?)"
	default:
		refused.outcome, refused.check = "mismatch", "STRIPE_WEBHOOK_SECRET: each endpoint has its own, test and live mode differ, and `stripe listen` prints yet another; the same in --stripe-webhook-secret-file; or a proxy alters the body"
	}
	return refused
}

func (h *handler) logRefusal(r *http.Request, refused *refusal) {
	level := slog.LevelWarn
	if refused.status >= 500 {
		level = slog.LevelError
	}
	client := h.Proxies.client(r)
	remote := []any{"remote", client}
	if client != r.RemoteAddr {
		remote = append(remote, "peer", r.RemoteAddr)
	}
	h.Logger.With("status", refused.status, "reason", refused.outcome, "error", refused.cause, "check", refused.check).Log(r.Context(), level, "webhook refused", remote...)
}

func answer(w http.ResponseWriter, status int, body map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body) // the sender may be gone: there is nothing to do about it
}
