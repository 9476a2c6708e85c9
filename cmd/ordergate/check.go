package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/ingress"
	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const (
	// checkTimeout bounds each question to Stripe and to a running gateway.
	checkTimeout = 20 * time.Second
	// expiresSoon is when a certificate should have been renewed.
	expiresSoon = 14 * 24 * time.Hour
	// slowSync is a flush to disk that will be felt: Stripe's Checkout waits for it.
	slowSync = 100 * time.Millisecond
	// skewed is a clock that is wrong; at half of the tolerance of signatures it is
	// dangerous.
	skewed = 10 * time.Second
	// checkedEvents is how many of the newest events tell which secret matches.
	checkedEvents = 1000
	// maxAnswer bounds what is read of a running gateway's answer.
	maxAnswer = 8 << 20
)

type checkCommand struct {
	config.Config `embed:""`
	JSON          bool   `name:"json" help:"Print one JSON object a line."`
	Token         string `name:"token" env:"ORDERGATE_TOKEN" placeholder:"ogt_…" help:"The token to show to a running gateway that has an access file."`
}

// Help is the longer text of `ordergate check --help`.
func (checkCommand) Help() string {
	return `Give it the flags and the environment of serve. It looks at the settings and the files they name, the doors, the data directory and its disk, the log, the clock, what the Stripe API keys may read, and which signing secret matches what. Of a running gateway it asks what it cannot look at itself. Where no gateway runs it opens the log, and changes nothing in it. With --nats-url it looks at the cluster instead of the data directory: its servers, JetStream, and what ordergate migrate would change. It ends with status 1 when something is wrong.

While a signing secret is rolled, the old one can go when it has not been needed, which is when no other one matched, for longer than Stripe signs with both: until you said it should expire.

Example:
  STRIPE_WEBHOOK_SECRET=whsec_… STRIPE_API_KEY=rk_live_… ordergate check --data-dir /var/lib/ordergate`
}

// severity is how bad a finding is.
type severity string

const (
	fine severity = "ok"
	warn severity = "warn"
	bad  severity = "FAIL"
)

// finding is what one look at something found.
type finding struct {
	Check  string   `json:"check"`
	Status severity `json:"status"`
	Detail string   `json:"detail"`
	Mend   string   `json:"mend,omitempty"`
}

// checker looks at one thing after the other.
type checker struct {
	*checkCommand
	out     io.Writer
	bad     int
	parts   parts
	running bool // a gateway has the data directory, or these addresses
}

func (k *checkCommand) Run(ctx context.Context, c console) error {
	checks := &checker{checkCommand: k, out: c.stdout}
	store := []func(context.Context){checks.cluster, checks.local}
	if k.NATS.Cluster() == nil {
		k.DataDir = cmp.Or(k.DataDir, defaultDataDir)
		store = []func(context.Context){checks.directory, checks.log}
	}
	for _, look := range slices.Concat([]func(context.Context){checks.settings}, store, []func(context.Context){checks.doors, checks.clock, checks.keys}) {
		if ctx.Err() != nil {
			return errStopped
		}
		look(ctx)
	}
	if checks.bad > 0 {
		return fmt.Errorf("%d checks failed: mend what is said behind FAIL", checks.bad)
	}
	return nil
}

func (k *checker) found(check string, status severity, detail, mend string) {
	if status == fine {
		mend = ""
	}
	if status == bad {
		k.bad++
	}
	if k.JSON {
		json.NewEncoder(k.out).Encode(finding{check, status, detail, mend})
		return
	}
	fmt.Fprintf(k.out, "%-5s %-14s %s\n", status, check, detail)
	if mend != "" {
		fmt.Fprintf(k.out, "%-20s mend: %s\n", "", mend)
	}
}

// failed reports each of the errors that err joins; they say their own mend.
func (k *checker) failed(check string, err error) {
	for problem := range strings.SplitSeq(err.Error(), "\n") {
		k.found(check, bad, problem, "")
	}
}

// settings reads what the settings name, and reports each problem by itself.
func (k *checker) settings(context.Context) {
	var err error
	k.parts, err = prepare(k.Config, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		k.failed("settings", err)
	} else {
		k.found("settings", fine, "they can be used as they are", "")
	}
	for _, key := range k.StripeAPIKey {
		if strings.HasPrefix(key, "sk_") {
			k.found("settings", warn, "a STRIPE_API_KEY is a secret key, which may do everything", secretKeyMend)
		}
	}
	k.certificate("--tls-cert", k.parts.keys)
	k.certificate("--ingress-tls-cert", k.parts.ingressKeys)
}

func (k *checker) certificate(flag string, keys *auth.Keys) {
	if keys == nil {
		return
	}
	status := fine
	switch left := time.Until(keys.NotAfter()); {
	case left < 0:
		status = bad
	case left < expiresSoon:
		status = warn
	}
	k.found("certificate", status, fmt.Sprintf("%s: until %s", flag, keys.NotAfter().Format(time.RFC3339)), "renew it; the gateway takes the file again when it changes")
}

// directory looks at the data directory and its disk.
func (k *checker) directory(context.Context) {
	info, err := os.Stat(k.DataDir)
	dir := k.DataDir
	switch {
	case errors.Is(err, os.ErrNotExist):
		dir = filepath.Dir(filepath.Clean(k.DataDir))
		k.found("data directory", fine, k.DataDir+" does not exist yet: serve makes it", "")
	case err != nil:
		k.found("data directory", bad, err.Error(), "give --data-dir a directory that this user may use")
		return
	case !info.IsDir():
		k.found("data directory", bad, k.DataDir+" is no directory", "give --data-dir another path")
		return
	case info.Mode().Perm()&0o077 != 0:
		k.found("data directory", warn, fmt.Sprintf("%s has mode %#o: others on this machine may look into it", k.DataDir, info.Mode().Perm()), "chmod 700 "+k.DataDir)
	}
	if took, err := trySync(dir); err != nil {
		k.found("disk", bad, fmt.Sprintf("%s cannot be written: %v", dir, err), "see to its owner, its mode, and how it is mounted")
	} else {
		status := fine
		if took > slowSync {
			status = warn
		}
		k.found("disk", status, fmt.Sprintf("a write to %s was on disk after %v", dir, took.Round(10*time.Microsecond)), "use a faster disk: Stripe is answered when its event is on disk")
	}
	if disk, err := eventlog.DiskOf(dir); err == nil {
		status := fine
		if disk.NearlyFull() {
			status = warn
		}
		k.found("disk", status, fmt.Sprintf("%s of %s free", size(int64(disk.Free)), size(int64(disk.Total))), "make room: a full disk has the gateway refuse events")
	}
}

// trySync writes a file in dir, to disk, and removes it.
func trySync(dir string) (time.Duration, error) {
	file, err := os.CreateTemp(dir, ".ordergate-check-")
	if err != nil {
		return 0, err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if _, err := file.Write(make([]byte, 4096)); err != nil {
		return 0, err
	}
	start := time.Now()
	err = file.Sync()
	return time.Since(start), err
}

// log opens the log where no gateway runs, as serve would.
func (k *checker) log(ctx context.Context) {
	if _, err := os.Stat(k.DataDir); err != nil {
		return // there is none
	}
	cfg := logConfig(k.Config, k.parts.encryption, slog.New(slog.DiscardHandler))
	cfg.AsIs = true
	log, err := eventlog.Open(ctx, cfg)
	if errors.Is(err, eventlog.ErrLocked) {
		k.running = true
		k.askGateway(ctx)
		return
	}
	if err != nil {
		k.found("log", bad, err.Error(), "")
		return
	}
	defer log.Close()
	rooms, err := log.Rooms(ctx)
	if err != nil {
		k.found("log", bad, err.Error(), "")
		return
	}
	for _, room := range rooms {
		limit, oldest := "", ""
		if room.MaxBytes > 0 {
			limit = " of " + size(room.MaxBytes)
		}
		if !room.Oldest.IsZero() {
			oldest = ", the oldest of " + room.Oldest.Local().Format(time.DateTime)
		}
		status := fine
		if room.NearlyFull() {
			status = warn
		}
		k.found("log", status, fmt.Sprintf("%s: %d events, %s%s%s", room.Stream, room.Events, size(room.Bytes), limit, oldest), "raise --"+room.Stream+"-max-bytes")
	}
	k.secretsOf(ctx, log)
}

// secretsOf says which secrets the newest stored events were verified with.
func (k *checker) secretsOf(ctx context.Context, log *eventlog.Log) {
	state, err := log.InboxState(ctx)
	if err != nil || k.parts.secrets == nil {
		return
	}
	newest := map[string]*eventlog.StoredEvent{}
	for after := max(state.Last, checkedEvents) - checkedEvents; after < state.Last; {
		batch, err := log.ReadInbox(ctx, after, 100)
		if err != nil || len(batch) == 0 {
			break
		}
		for _, stored := range batch {
			newest[stored.SecretLabel] = stored
			after = stored.Sequence
		}
	}
	for _, secret := range k.parts.secrets.Current() {
		if secret.Mode() == "" {
			k.found("secret", fine, secret.Label()+": signs for both modes; write live: or test: before it, so that a leaked test secret cannot sign live orders", "")
		}
		stored := newest[secret.Label()]
		if stored == nil {
			k.found("secret", fine, secret.Label()+": none of the newest events was verified with it", "")
			continue
		}
		envelope, _ := stripehook.ReadEnvelope(stored.Body)
		mode := "test"
		if envelope.Livemode {
			mode = "live"
		}
		k.found("secret", fine, fmt.Sprintf("%s: last matched at %s, %s (%s mode)", secret.Label(), stored.StoreTime.Local().Format(time.DateTime), envelope.Type, mode), "")
	}
}

// askGateway asks the gateway that runs how it is.
func (k *checker) askGateway(ctx context.Context) {
	get, err := k.adminClient()
	if err != nil {
		k.found("gateway", bad, err.Error(), "")
		return
	}
	status, answer, err := get(ctx, "/readyz")
	switch {
	case err != nil:
		k.found("gateway", bad, fmt.Sprintf("another process has the data directory, and its admin door does not answer: %v", err), "is it a gateway, and is --admin-addr (ORDERGATE_ADMIN_ADDR) where it listens?")
		return
	case status != http.StatusOK:
		k.found("gateway", bad, "it runs, and is not ready: "+strings.TrimSpace(answer), "see its own log lines")
	default:
		k.found("gateway", fine, "it runs, and is ready", "")
	}
	status, answer, err = get(ctx, "/metrics")
	if err != nil || status != http.StatusOK {
		k.found("secret", warn, fmt.Sprintf("the gateway does not say which secrets match: status %d, %v", status, err), "give a --token of the access file (ORDERGATE_TOKEN)")
		return
	}
	matched, needed := timesOf(answer, ingress.LastMatchMetric), timesOf(answer, ingress.LastNeededMetric)
	for _, label := range slices.Sorted(maps.Keys(matched)) {
		k.found("secret", fine, fmt.Sprintf("%s: last matched %s, last needed %s", label, ago(matched[label]), ago(needed[label])), "")
	}
}

// timesOf reads a gauge of times by secret.
func timesOf(metrics, name string) map[string]time.Time {
	times := map[string]time.Time{}
	for _, match := range regexp.MustCompile(`(?m)^`+name+`\{secret="([^"]*)"\} (\S+)$`).FindAllStringSubmatch(metrics, -1) {
		if seconds, err := strconv.ParseFloat(match[2], 64); err == nil && seconds > 0 {
			times[match[1]] = time.UnixMilli(int64(seconds * 1000))
			continue
		}
		times[match[1]] = time.Time{}
	}
	return times
}

func ago(at time.Time) string {
	if at.IsZero() {
		return "not since it started"
	}
	return time.Since(at).Round(time.Second).String() + " ago"
}

// adminClient returns a way to ask the admin door of a gateway on this machine.
func (k *checker) adminClient() (func(ctx context.Context, path string) (status int, body string, err error), error) {
	host, port, err := net.SplitHostPort(k.AdminAddr)
	if err != nil {
		return nil, err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	base, transport := "http://"+net.JoinHostPort(host, port), &http.Transport{}
	if k.TLSCert != "" {
		base = "https://" + net.JoinHostPort(host, port)
		if transport.TLSClientConfig, err = ownTLS(k.TLSCert); err != nil {
			return nil, err
		}
	}
	client := &http.Client{Transport: transport}
	return func(ctx context.Context, path string) (int, string, error) {
		ctx, cancel := context.WithTimeout(ctx, checkTimeout)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+path, nil)
		if err != nil {
			return 0, "", err
		}
		if k.Token != "" {
			request.Header.Set("Authorization", "Bearer "+k.Token)
		}
		response, err := client.Do(request)
		if err != nil {
			return 0, "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
		return response.StatusCode, string(body), err
	}, nil
}

// ownTLS trusts the certificate of these settings alone, under the name it has.
func ownTLS(certFile string) (*tls.Config, error) {
	content, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, fmt.Errorf("%s: there is no certificate in it", certFile)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: strings.Join(names[:min(len(names), 1)], "")}, nil
}

// doors tries whether the addresses are free. Those of a gateway that runs are not.
func (k *checker) doors(ctx context.Context) {
	if k.running {
		return
	}
	g := &gateway{cfg: k.Config}
	err := g.listen(ctx)
	g.close()
	if err != nil {
		k.failed("door", err)
		return
	}
	k.found("door", fine, strings.Join([]string{k.IngressAddr, k.GRPCAddr, k.AdminAddr}, ", ")+" are free", "")
}

// clock compares this machine's clock with Stripe's: signatures are refused when
// it is wrong by more than their tolerance.
func (k *checker) clock(ctx context.Context) {
	skew, err := stripeapi.ClockSkew(ctx, k.StripeAPIBase)
	if err != nil {
		k.found("clock", warn, fmt.Sprintf("it cannot be compared with Stripe's: %v", err), "let this machine reach Stripe's API, or see to it that NTP keeps its clock")
		return
	}
	status, direction := fine, "ahead of"
	if skew < 0 {
		skew, direction = -skew, "behind"
	}
	switch {
	case skew > stripehook.Tolerance/2:
		status = bad
	case skew > skewed:
		status = warn
	}
	k.found("clock", status, fmt.Sprintf("%v %s Stripe's", skew.Round(time.Second), direction), fmt.Sprintf("have NTP keep it: events are refused from %v on", stripehook.Tolerance))
}

// keys tries what the Stripe API keys may read.
func (k *checker) keys(ctx context.Context) {
	if len(k.StripeAPIKey) > 0 && k.parts.stripe == nil {
		return // reported with the settings
	}
	if modes, lack := missingKey(k.Config, k.parts.stripe); modes != "" {
		k.found("API key", warn, "none for "+modes+": "+lack, "give a restricted key of each mode that the gateway receives with STRIPE_API_KEY")
	}
	if k.parts.stripe == nil {
		return
	}
	for _, live := range []bool{true, false} {
		if !k.parts.stripe.Has(live) {
			continue
		}
		name := "of test mode"
		if live {
			name = "of live mode"
		}
		asking, cancel := context.WithTimeout(ctx, checkTimeout)
		missing, err := k.parts.stripe.MissingPermissions(asking, live)
		cancel()
		switch {
		case len(missing) > 0:
			k.found("API key", bad, name+" lacks Read on "+strings.Join(missing, ", "), "in the Stripe Dashboard (Developers > API keys), edit the key")
		case errors.Is(err, stripeapi.ErrUnavailable):
			k.found("API key", warn, fmt.Sprintf("%s could not be tried: %v", name, err), "let this machine reach Stripe's API; until then orders go out without their line items")
		case err != nil:
			k.found("API key", bad, fmt.Sprintf("%s: %v", name, err), "copy a valid key from the Stripe Dashboard (Developers > API keys)")
		default:
			k.found("API key", fine, name+" may read all that is needed", "")
		}
	}
}

// size is a number of bytes for people.
func size(bytes int64) string {
	value, unit := float64(bytes), 0
	for ; value >= 1000 && unit < 4; unit++ {
		value /= 1000
	}
	return fmt.Sprintf("%.3g %s", value, []string{"B", "kB", "MB", "GB", "TB"}[unit])
}
