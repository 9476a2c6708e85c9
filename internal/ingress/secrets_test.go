package ingress

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const (
	oldSecret = "whsec_oldoldoldoldoldoldoldoldoldoldol"
	newSecret = "whsec_newnewnewnewnewnewnewnewnewnewne"
)

func label(t *testing.T, secret string) string {
	t.Helper()
	s, err := stripehook.ParseSecrets(secret)
	if err != nil {
		t.Fatal(err)
	}
	return s[0].Label()
}

type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	// As a whole, as whoever rolls a secret should.
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// A secret is rolled as Stripe does it, without a restart: no event is refused,
// and the metrics say which secrets there are and which match.
func TestRolling(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secrets")
	writeFile(t, file, oldSecret+"\n")
	log := &logged{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	secrets, err := LoadSecrets(secret, file, logger)
	if err != nil {
		t.Fatal(err)
	}
	d := &door{metrics: prometheus.NewRegistry()}
	d.Handler = New(Config{
		Path: "/api/webhook", Secrets: secrets, MaxBodyBytes: 1000, Metrics: d.metrics, Logger: logger, Now: func() time.Time { return now },
		Inbox: fakeInbox(func(context.Context, eventlog.RawEvent) (bool, error) { return false, nil }),
	})
	var watching sync.WaitGroup
	watching.Go(func() { secrets.Watch(t.Context()) })
	t.Cleanup(watching.Wait)
	signedWith := func(secrets ...string) *http.Request {
		r := request(body)
		header := "t=" + fmt.Sprint(now.Unix())
		for _, s := range secrets {
			_, v1, _ := strings.Cut(sign(s, body, now), ",")
			header += "," + v1
		}
		r.Header.Set("Stripe-Signature", header)
		return r
	}
	send := func(status int, secrets ...string) {
		t.Helper()
		if w := d.send(signedWith(secrets...)); w.Code != status {
			t.Errorf("%v: %d, want %d", secrets, w.Code, status)
		}
	}
	shows := func(name string, want map[string]float64) {
		t.Helper()
		got := counters(t, d, name)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	change := func(content, says string) {
		t.Helper()
		before := strings.Count(log.String(), says)
		writeFile(t, file, content)
		eventually(t, says, func() bool { return strings.Count(log.String(), says) > before })
	}
	const total, last = "ordergate_ingress_signatures_total", "ordergate_ingress_signature_last_match_timestamp_seconds"
	const needed = "ordergate_ingress_signature_last_needed_timestamp_seconds"
	given, older, newer, at := label(t, secret), label(t, oldSecret), label(t, newSecret), float64(now.Unix())

	shows(total, map[string]float64{given: 0, older: 0})
	shows(last, map[string]float64{given: 0, older: 0})
	send(200, oldSecret)
	send(200, secret)
	send(400, newSecret)
	shows(total, map[string]float64{given: 1, older: 1})
	shows(last, map[string]float64{given: at, older: at})

	// The new one is added before Stripe signs with both.
	change(oldSecret+" # until tomorrow\n"+newSecret+"\n", "webhook secret file read")
	shows(total, map[string]float64{given: 1, older: 1, newer: 0})
	shows(last, map[string]float64{given: at, older: at, newer: 0})
	send(200, newSecret, oldSecret) // none of the two is needed
	shows(total, map[string]float64{given: 1, older: 2, newer: 1})
	shows(needed, map[string]float64{given: at, older: at, newer: 0})
	send(200, oldSecret)
	send(200, newSecret)
	shows(needed, map[string]float64{given: at, older: at, newer: at})

	// Mistakes change nothing.
	change(oldSecret+"\nsk_live_nosecretatall\n", "line 2 is malformed")
	many := newSecret
	for i := range 8 {
		many += fmt.Sprintf("\nwhsec_%016d", i)
	}
	change(many, "at most 8")
	os.Remove(file)
	eventually(t, "a missing file", func() bool { return strings.Contains(log.String(), "a file cannot be read") })
	send(200, oldSecret)
	send(200, newSecret)

	change(newSecret+"\n", "webhook secret file read")
	send(400, oldSecret)
	send(200, newSecret)
	send(200, secret)
	if got := counters(t, d, total); len(got) != 2 || got[newer] == 0 || got[given] != 2 {
		t.Errorf("in the end: %v", got)
	}
	shows(last, map[string]float64{given: at, newer: at})
	// One request that was being read when its secret went.
	gone, err := stripehook.ParseSecrets(oldSecret)
	if err != nil {
		t.Fatal(err)
	}
	d.Handler.(*handler).matched.count(gone, now)
	if got := counters(t, d, total); len(got) != 2 {
		t.Errorf("a secret that is gone is shown: %v", got)
	}

	// The file may be empty as long as one is given.
	change("# none\n", "webhook secret file read")
	send(400, newSecret)
	send(200, secret)
	for _, s := range []string{secret, oldSecret, newSecret, "nosecretatall"} {
		if strings.Contains(log.String(), s[6:]) {
			t.Errorf("the log tells %s:\n%s", s, log)
		}
	}
}

func TestLoadSecrets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secrets")
	writeFile(t, file, newSecret)
	empty := filepath.Join(t.TempDir(), "empty")
	writeFile(t, empty, "# none\n")
	loose := filepath.Join(t.TempDir(), "loose")
	writeFile(t, loose, newSecret)
	if err := os.Chmod(loose, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, list, file string
		want             int
		says             string
	}{
		{"a list", secret + "," + oldSecret, "", 2, ""},
		{"a file", "", file, 1, ""},
		{"both", secret + "," + newSecret, file, 2, ""},
		{"neither", "", "", 0, "webhook signing secret is empty"},
		{"an empty file and no list", "", empty, 0, "there is no secret in it"},
		{"an empty file", secret, empty, 1, ""},
		{"no such file", secret, file + "x", 0, "--stripe-webhook-secret-file"},
		{"a bad list and no such file", "nonsense", file + "x", 0, "secret 1 is malformed"},
		{"a file that others read", "", loose, 1, "chmod 600"},
	} {
		log := &logged{}
		got, err := LoadSecrets(tt.list, tt.file, slog.New(slog.NewTextHandler(log, nil)))
		if (err == nil) != (tt.want > 0) || err == nil && len(got.Current()) != tt.want || !strings.Contains(fmt.Sprint(err, log), tt.says) {
			t.Errorf("%s: %v, %v", tt.name, err, log)
		}
	}
}
