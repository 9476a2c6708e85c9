package ingress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stripe/stripe-go/v76/webhook"

	"github.com/ordergate/ordergate/internal/eventlog"
)

const (
	secret = "whsec_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	body   = `{"id":"evt_1","object":"event","type":"checkout.session.completed","livemode":true,"data":{"object":{"id":"cs_1"}}}`
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// door is an ingress in front of a real log, or of one that fails.
type door struct {
	http.Handler
	log     strings.Builder
	metrics *prometheus.Registry
}

func newDoor(t *testing.T, inbox Inbox) *door {
	t.Helper()
	secrets, err := LoadSecrets("whsec_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb,"+secret, "", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	d := &door{metrics: prometheus.NewRegistry()}
	d.Handler = New(Config{
		Path: "/api/webhook", Secrets: secrets, MaxBodyBytes: 1000, Inbox: inbox, Metrics: d.metrics,
		Logger: slog.New(slog.NewTextHandler(&d.log, nil)), Now: func() time.Time { return now },
	})
	return d
}

func realInbox(t *testing.T) Inbox {
	t.Helper()
	l, err := eventlog.Open(t.Context(), eventlog.Config{Dir: t.TempDir(), MaxEventBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func sign(secret, body string, at time.Time) string {
	return webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: []byte(body), Secret: secret, Timestamp: at}).Header
}

// request is a good request, to be spoiled by a test.
func request(body string) *http.Request {
	r := httptest.NewRequest("POST", "/api/webhook", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json; charset=utf-8")
	r.Header.Set("Stripe-Signature", sign(secret, body, now))
	return r
}

func (d *door) send(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	return w
}

func TestAnswers(t *testing.T) {
	const refusedSignature = `{"error":"the signature could not be verified"}`
	with := func(change func(*http.Request)) *http.Request {
		r := request(body)
		change(r)
		return r
	}
	header := func(name, value string) *http.Request {
		return with(func(r *http.Request) { r.Header.Set(name, value) })
	}
	tests := []struct {
		name    string
		request *http.Request
		status  int
		answer  string
		log     string // a part of the log line; empty: no line
		outcome string
	}{
		{"stored", request(body), 200, `{"received":true}`, "", "stored"},
		{"copy", request(body), 200, `{"received":true}`, "DUPLICATE", "duplicate"},
		{"type that is not used", request(`{"id":"evt_2","type":"price.created"}`), 200, `{"received":true}`, "", "stored"},
		{"thin", request(`{"id":"evt_3","object":"v2.core.event","type":"v1.charge.refunded","created":"2026-03-01T12:00:00Z"}`), 200, `{"received":true}`, "Snapshot", "thin"},
		{"unsigned", with(func(r *http.Request) { r.Header.Del("Stripe-Signature") }), 400, `{"error":"the Stripe-Signature header is missing"}`, "proxy drops", "unsigned"},
		{"other secret", header("Stripe-Signature", sign("whsec_cccccccccccccccccccccccccccccccc", body, now)), 400, refusedSignature, "STRIPE_WEBHOOK_SECRET", "mismatch"},
		{"altered body", with(func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(body + " ")) }), 400, refusedSignature, "alters the body", "mismatch"},
		{"stale", header("Stripe-Signature", sign(secret, body, now.Add(-time.Hour))), 400, refusedSignature, "clock", "stale"},
		{"future", header("Stripe-Signature", sign(secret, body, now.Add(time.Hour))), 400, refusedSignature, "clock", "future"},
		{"junk signature", header("Stripe-Signature", "junk"), 400, refusedSignature, "malformed", "malformed_signature"},
		{"signed with the empty key", header("Stripe-Signature", sign("", body, now)), 400, refusedSignature, "mismatch", "mismatch"},
		{"not an event", request(`{"hello":1}`), 400, `{"error":"the body is not a Stripe event"}`, "no event", "unreadable"},
		{"not JSON", request(`hello`), 400, `{"error":"the body is not a Stripe event"}`, "no event", "unreadable"},
		{"get", with(func(r *http.Request) { r.Method = "GET" }), 405, `{"error":"use POST"}`, "method GET", "method"},
		{"form", header("Content-Type", "application/x-www-form-urlencoded"), 415, `{"error":"use Content-Type: application/json"}`, "content type", "media_type"},
		{"no content type", with(func(r *http.Request) { r.Header.Del("Content-Type") }), 415, `{"error":"use Content-Type: application/json"}`, "content type", "media_type"},
		{"compressed", header("Content-Encoding", "gzip"), 415, `{"error":"send the body without Content-Encoding"}`, "compresses", "media_type"},
		{"announced too large", request(strings.Repeat(" ", 1001)), 413, `{"error":"the body is larger than 1000 bytes"}`, "--max-body-bytes", "too_large"},
		{"too large, not announced", with(func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat(" ", 1001))), -1
		}), 413, `{"error":"the body is larger than 1000 bytes"}`, "--max-body-bytes", "too_large"},
		{"other path", with(func(r *http.Request) { r.URL.Path = "/" }), 404, `{"error":"not found"}`, "/api/webhook", "not_found"},
		{"hung up", with(func(r *http.Request) { r.Body = io.NopCloser(brokenReader{}) }), 400, `{"error":"the body could not be read"}`, "hung up", "incomplete"},
	}
	d := newDoor(t, realInbox(t))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d.log.Reset()
			before := outcomes(t, d)[tt.outcome]
			w := d.send(tt.request)
			if w.Code != tt.status || strings.TrimSpace(w.Body.String()) != tt.answer {
				t.Errorf("answer = %d %s, want %d %s", w.Code, w.Body, tt.status, tt.answer)
			}
			if line := d.log.String(); !strings.Contains(line, tt.log) || (tt.log == "") != (line == "") || strings.Count(line, "\n") > 1 {
				t.Errorf("log = %q, want a line with %q", line, tt.log)
			}
			if after := outcomes(t, d)[tt.outcome]; after != before+1 {
				t.Errorf("the counter of %q went from %v to %v", tt.outcome, before, after)
			}
			if allow := w.Header().Get("Allow"); (tt.status == 405) != (allow == "POST") {
				t.Errorf("Allow = %q", allow)
			}
		})
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func outcomes(t *testing.T, d *door) map[string]float64 {
	t.Helper()
	return counters(t, d, "ordergate_ingress_requests_total")
}

func counters(t *testing.T, d *door, name string) map[string]float64 {
	t.Helper()
	families, err := d.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				values[m.GetLabel()[0].GetValue()] = m.GetCounter().GetValue() + m.GetGauge().GetValue() // one of them
			}
		}
	}
	return values
}

// The matching secret is counted by its label, and those that match nothing
// are shown.
func TestMatchedSecretIsCounted(t *testing.T) {
	d := newDoor(t, realInbox(t))
	d.send(request(body))
	d.send(request(body))
	var values []float64
	for label, value := range counters(t, d, "ordergate_ingress_signatures_total") {
		if strings.Contains(label, "aaaa") || strings.Contains(label, "bbbb") {
			t.Errorf("label %q tells the secret", label)
		}
		values = append(values, value)
	}
	if diff := cmp.Diff(map[float64]int{0: 1, 2: 1}, map[float64]int{values[0]: 1, values[1]: 1}); diff != "" {
		t.Error(diff)
	}
	if problems, err := testutil.GatherAndLint(d.metrics); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

// fakeInbox takes the place of a log that must fail.
type fakeInbox func(context.Context, eventlog.RawEvent) (bool, error)

func (f fakeInbox) AppendInbox(ctx context.Context, e eventlog.RawEvent) (bool, error) {
	return f(ctx, e)
}

func TestNoAnswer200WithoutTheLog(t *testing.T) {
	for _, err := range []error{eventlog.ErrUnavailable, eventlog.ErrFull, errors.New("something else")} {
		d := newDoor(t, fakeInbox(func(context.Context, eventlog.RawEvent) (bool, error) { return false, fmt.Errorf("wrapped: %w", err) }))
		w := d.send(request(body))
		if w.Code != 503 || w.Header().Get("Retry-After") != "5" {
			t.Errorf("%v: %d, Retry-After %q", err, w.Code, w.Header().Get("Retry-After"))
		}
		if strings.Contains(w.Body.String(), err.Error()) {
			t.Errorf("the answer tells an inner error: %s", w.Body)
		}
		if !strings.Contains(d.log.String(), "evt_1") || !strings.Contains(d.log.String(), err.Error()) {
			t.Errorf("log = %s", d.log.String())
		}
	}
}

// An event is stored even when the sender hangs up, and in bounded time.
func TestAppendIsBoundedAndOutlivesTheSender(t *testing.T) {
	var got eventlog.RawEvent
	d := newDoor(t, fakeInbox(func(ctx context.Context, e eventlog.RawEvent) (bool, error) {
		if at, ok := ctx.Deadline(); !ok || time.Until(at) > 10*time.Second {
			t.Errorf("deadline = %v, %v", at, ok)
		}
		got = e
		return false, ctx.Err()
	}))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if w := d.send(request(body).WithContext(gone)); w.Code != 200 {
		t.Errorf("status = %d", w.Code)
	}
	if got.ID != "evt_1" || string(got.Body) != body || !strings.HasPrefix(got.SecretLabel, "whsec#") {
		t.Errorf("stored %+v", got)
	}
}

// A forged request never reaches the log.
func TestForgedNeverReachesTheLog(t *testing.T) {
	d := newDoor(t, fakeInbox(func(context.Context, eventlog.RawEvent) (bool, error) {
		t.Error("the log was asked")
		return false, nil
	}))
	for _, signature := range []string{"", "t=1,v1=00", sign("", body, now), sign("whsec_x", body, now), sign(secret, body+"x", now), sign(secret, body, now.Add(6*time.Minute))} {
		r := request(body)
		r.Header.Set("Stripe-Signature", signature)
		if w := d.send(r); w.Code != 400 {
			t.Errorf("%q: %d", signature, w.Code)
		}
	}
}

// The real server refuses headers that are too large, and closes.
func TestServerBoundsTheHeader(t *testing.T) {
	s := httptest.NewUnstartedServer(nil)
	s.Config = Server(newDoor(t, realInbox(t)), slog.New(slog.DiscardHandler))
	s.Start()
	defer s.Close()
	r, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/api/webhook", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Large", strings.Repeat("x", 64<<10))
	answer, err := s.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status = %d", answer.StatusCode)
	}
}

// While the disk fails the answer is 503; when it works again, the events that
// were answered 200 are there, once, and the others can be sent again.
func TestDiskThatFails(t *testing.T) {
	var broken atomic.Bool
	log, err := eventlog.Open(t.Context(), eventlog.Config{Dir: t.TempDir(), MaxEventBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler), Sync: func() error {
		if broken.Load() {
			return errors.New("input/output error")
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	d := newDoor(t, log)
	answered := map[string]bool{}
	for i := range 30 {
		fails := i%10 == 5
		broken.Store(fails)
		before, _ := log.Opened()
		id := fmt.Sprintf("evt_%d", i)
		w := d.send(request(fmt.Sprintf(`{"id":%q,"type":"price.created"}`, id)))
		if want := map[bool]int{false: 200, true: 503}[fails]; w.Code != want {
			t.Errorf("%s: %d, want %d", id, w.Code, want)
		}
		answered[id] = w.Code == 200
		broken.Store(false)
		for now, changed := log.Opened(); fails && now == before; now, changed = log.Opened() {
			<-changed
		}
	}
	events, err := log.ReadInbox(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]int{}
	for _, event := range events {
		stored[event.ID]++
	}
	for id, ok := range answered {
		if ok && stored[id] != 1 || stored[id] > 1 {
			t.Errorf("%s was answered 200: %v, and is stored %d times", id, ok, stored[id])
		}
	}
}

// A secret of one mode does not sign events of the other; one without a prefix signs both.
func TestSecretsOfOneMode(t *testing.T) {
	for _, tt := range []struct {
		prefix   string
		livemode bool
		status   int
	}{
		{"live:", true, 200}, {"live:", false, 400},
		{"test:", false, 200}, {"test:", true, 400},
		{"", true, 200}, {"", false, 200},
	} {
		d := newDoor(t, realInbox(t))
		secrets, err := LoadSecrets(tt.prefix+secret, "", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		d.Handler.(*handler).Secrets = secrets
		body := fmt.Sprintf(`{"id":"evt_1","type":"charge.refunded","livemode":%v,"data":{"object":{"id":"ch_1"}}}`, tt.livemode)
		if got := d.send(request(body)); got.Code != tt.status {
			t.Errorf("%q, livemode %v: %d %s, want %d", tt.prefix, tt.livemode, got.Code, got.Body, tt.status)
		}
	}
}
