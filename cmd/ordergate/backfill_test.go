package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripehook"
	"github.com/ordergate/ordergate/internal/stripetest"
)

// An operator has a gateway catch up on a sale that it missed, through the real
// command line.
func TestBackfillCommand(t *testing.T) {
	const secret = "whsec_1234567890123456789012345678901234"
	stripe := stripetest.NewServer(t)
	stories := [][]sample.Event{}
	for _, ago := range []time.Duration{3 * time.Hour, 2 * time.Hour, time.Minute} {
		story, err := sample.Story(sample.Completed, time.Now().Add(-ago))
		if err != nil {
			t.Fatal(err)
		}
		stories = append(stories, story)
	}
	stripe.Handle("GET /v1/events", stripetest.Events(func(*http.Request) (all []json.RawMessage) {
		for _, story := range stories {
			all = append(all, story[0].Body)
		}
		return all
	}))
	stripe.Handle("GET /v1/checkout/sessions/{id}/line_items", stripetest.List(func(*http.Request) []json.RawMessage { return nil }))
	g := startGateway(t, secret, func(c *config.Config) {
		c.StripeAPIKey, c.StripeAPIBase, c.StripeRate = []string{"rk_test_1"}, stripe.URL, 100
	})
	secrets, err := stripehook.ParseSecrets(secret)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 2} {
		if err := post(t.Context(), g.webhookURL(), secrets[0], stories[i][0].Body); err != nil {
			t.Fatal(err)
		}
	}
	backfill := func(args ...string) (stdout, stderr string) {
		t.Helper()
		var out, notes bytes.Buffer
		if err := run(t.Context(), append([]string{"backfill", "--since", "4h", "--addr", g.grpcListener.Addr().String()}, args...), nil, &out, &notes); err != nil {
			t.Fatal(err)
		}
		return out.String(), notes.String()
	}
	report, notes := backfill()
	if !regexp.MustCompile(`^Gap report +\S+ \S+ to \S+ \S+\nListed at Stripe +3\nMissing here +1\nRecovered +1\n$`).MatchString(report) {
		t.Errorf("report:\n%s", report)
	}
	if !regexp.MustCompile(`(?m)^ \d\d %  up to \S+ \S+  listed \d, missing \d, recovered \d$`).MatchString(notes) || !strings.Contains(notes, "100 %") {
		t.Errorf("progress:\n%s", notes)
	}
	if got := grpcurlWatch(t, g, 3); got[2] != stories[1][0].OrderID+".1" {
		t.Errorf("the missed order is not the last of %v", got)
	}
	lines, notes := backfill("--json")
	last := lines[strings.LastIndex(strings.TrimSpace(lines), "\n")+1:]
	if notes != "" || strings.Count(lines, "\n") < 3 || !regexp.MustCompile(`"listed":\s*"3",\s*"missing":\s*"0",\s*"recovered":\s*"0",\s*"done":\s*true`).MatchString(last) {
		t.Errorf("%s%s", lines, notes)
	}
}

func TestProgressLine(t *testing.T) {
	since := time.Date(2026, 3, 1, 0, 0, 0, 0, time.Local)
	at := func(percent int) *ordergatev1.BackfillResponse {
		return &ordergatev1.BackfillResponse{
			Since: timestamppb.New(since), Until: timestamppb.New(since.Add(100 * time.Hour)), Reached: timestamppb.New(since.Add(time.Duration(percent) * time.Hour)),
			Listed: int64(percent), Missing: 2, Recovered: 1,
		}
	}
	var terminal, file bytes.Buffer
	bar, lines := &progressLine{out: &terminal, terminal: true}, &progressLine{out: &file}
	for _, percent := range []int{1, 12, 15, 50, 100} {
		lines.showBackfill(at(percent))
	}
	bar.showBackfill(at(0))
	bar.showBackfill(at(50))
	bar.clear()
	lines.clear()
	want := "\r\x1b[K[--------------------]   0 %  up to 2026-03-01 00:00:00  listed 0, missing 2, recovered 1" +
		"\r\x1b[K[##########----------]  50 %  up to 2026-03-03 02:00:00  listed 50, missing 2, recovered 1\r\x1b[K"
	if diff := cmp.Diff(want, terminal.String()); diff != "" {
		t.Error(diff)
	}
	want = " 12 %  up to 2026-03-01 12:00:00  listed 12, missing 2, recovered 1\n" +
		" 50 %  up to 2026-03-03 02:00:00  listed 50, missing 2, recovered 1\n" +
		"100 %  up to 2026-03-05 04:00:00  listed 100, missing 2, recovered 1\n"
	if diff := cmp.Diff(want, file.String()); diff != "" {
		t.Error(diff)
	}
}
