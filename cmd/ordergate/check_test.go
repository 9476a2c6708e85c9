package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripehook"
	"github.com/ordergate/ordergate/internal/stripetest"
)

// checked runs `ordergate check` and returns what it prints.
func checked(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	err := run(t.Context(), append([]string{"check", "--ingress-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0"}, args...), nil, &out, &out)
	return out.String(), err
}

func wants(t *testing.T, out string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !regexp.MustCompile("(?m)^" + line).MatchString(out) {
			t.Errorf("there is no line %q in\n%s", line, out)
		}
	}
}

// The check says what a Stripe API key lacks and how wrong the clock is.
func TestCheckStripe(t *testing.T) {
	stripe := stripetest.NewServer(t)
	none := stripetest.List(func(*http.Request) []json.RawMessage { return nil })
	for _, list := range []string{"checkout/sessions", "products", "prices", "shipping_rates", "invoices", "payment_intents"} {
		stripe.Handle("GET /v1/"+list, none)
	}
	stripe.Handle("GET /v1/events", stripetest.Error(403, "", "Having the 'rak_event_read' permission would allow this"))
	slow := time.Duration(0)
	stripe.Handle("HEAD /{$}", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(slow).UTC().Format(http.TimeFormat))
	}))
	args := []string{"--admin-addr", "127.0.0.1:0", "--data-dir", filepath.Join(t.TempDir(), "none"), "--stripe-api-base", stripe.URL, "--stripe-webhook-secret", crashSecret,
		"--stripe-api-key", "sk_test_12345678901234567890"}
	out, err := checked(t, args...)
	if err == nil || !strings.Contains(err.Error(), "1 checks failed") {
		t.Errorf("err = %v", err)
	}
	wants(t, out, "ok    settings ", "warn  settings .*is a secret key", "ok    clock +[01]s ", "FAIL  API key +of test mode lacks Read on Events$",
		"warn  API key +none for live mode: orders carry no line items, .*sales of invoice.subscription_create cannot be matched", "ok    door ", "ok    data directory .*does not exist yet")
	slow = -4 * time.Minute
	if out, err = checked(t, args...); err == nil {
		t.Error("a clock that is wrong is no failure")
	}
	wants(t, out, "FAIL  clock +4m0s ahead of Stripe's$", " +mend: have NTP keep it: events are refused from 5m0s on$")
}

// The check asks a running gateway which secrets match, and looks itself where
// none runs. It changes nothing in the log.
func TestCheckGateway(t *testing.T) {
	const older = "whsec_older56789012345678901234567890123"
	g := newCrashing(t)
	data := filepath.Join(g.dir, "data")
	ctx := t.Context()
	g.start(ctx)
	secrets, err := stripehook.ParseSecrets(crashSecret)
	if err != nil {
		t.Fatal(err)
	}
	story, err := sample.Story(sample.Completed, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := post(ctx, "http://"+g.ingress+"/api/webhook", secrets[0], story[0].Body); err != nil {
		t.Fatal(err)
	}
	args := []string{"--admin-addr", g.admin, "--data-dir", data, "--stripe-api-base", "http://127.0.0.1:1", "--stripe-webhook-secret", crashSecret + "," + older}
	out, err := checked(t, args...)
	if err != nil {
		t.Error(err)
	}
	label := regexp.QuoteMeta(secrets[0].Label())
	wants(t, out, "ok    gateway +it runs, and is ready$", "ok    secret +"+label+`: last matched \d+s ago, last needed \d+s ago$`, "warn  clock +it cannot be compared", "warn  API key +none")
	if strings.Contains(out, "door") {
		t.Errorf("the doors of a running gateway were tried:\n%s", out)
	}
	g.end(os.Interrupt)

	out, err = checked(t, args...)
	if err != nil {
		t.Error(err)
	}
	wants(t, out, "ok    log +inbox: 1 events, ", "ok    log +orders: 1 events, ", "ok    secret +"+label+`: last matched at \S+ \S+, checkout.session.completed \(test mode\)$`,
		`ok    secret +whsec#\w+: none of the newest events was verified with it$`, "ok    door ")
	if strings.Contains(out, "whsec_") {
		t.Errorf("a secret is told:\n%s", out)
	}
}
