package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ordergate/ordergate/internal/stripehook"
	"github.com/ordergate/ordergate/internal/watchfile"
)

// Secrets are the signing secrets of the moment: those that are given, and
// those of a file, in step with it.
type Secrets struct {
	given   []stripehook.Secret
	files   *watchfile.Files // nil without a file
	logger  *slog.Logger
	current atomic.Pointer[[]stripehook.Secret]

	mu       sync.Mutex
	onChange func([]stripehook.Secret)
}

// LoadSecrets returns the secrets of a comma-separated list and of a file; each
// may be empty, not both. The error tells all that is wrong, and no secret.
func LoadSecrets(list, file string, logger *slog.Logger) (*Secrets, error) {
	s := &Secrets{logger: logger}
	var listErr, fileErr error
	if strings.TrimSpace(list) != "" || file == "" {
		s.given, listErr = stripehook.ParseSecrets(list)
	}
	if file == "" {
		s.current.Store(&s.given)
		return s, listErr
	}
	s.files = watchfile.New(file)
	contents, err := s.files.Read()
	if err != nil {
		fileErr = fmt.Errorf("--stripe-webhook-secret-file: %w: write one signing secret (whsec_…) a line", err)
	} else {
		fileErr = s.use(contents)
	}
	if err := errors.Join(listErr, fileErr); err != nil {
		return nil, err
	}
	return s, nil
}

// Watch keeps the secrets in step with their file until ctx ends.
func (s *Secrets) Watch(ctx context.Context) {
	if s.files != nil {
		s.files.Watch(ctx, s.logger.With("what", "webhook secret file"), s.use)
	}
}

// Current returns the secrets of the moment, which the caller does not change.
func (s *Secrets) Current() []stripehook.Secret { return *s.current.Load() }

func (s *Secrets) use(contents [][]byte) error {
	file := s.files.Path(0)
	ofFile, err := stripehook.ParseSecretFile(string(contents[0]))
	if err != nil {
		return fmt.Errorf("--stripe-webhook-secret-file %s: %w", file, err)
	}
	all, err := stripehook.JoinSecrets(s.given, ofFile)
	if err != nil {
		return fmt.Errorf("--stripe-webhook-secret-file %s, with STRIPE_WEBHOOK_SECRET: %w", file, err)
	}
	if len(all) == 0 {
		return fmt.Errorf("--stripe-webhook-secret-file %s: there is no secret in it, and none in STRIPE_WEBHOOK_SECRET: write one (whsec_…) a line", file)
	}
	watchfile.WarnIfShared(s.logger, "the webhook secret file", file)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.Store(&all)
	if s.onChange != nil {
		s.onChange(all)
	}
	labels := make([]string, len(all))
	for i, secret := range all {
		labels[i] = secret.Label()
	}
	s.logger.Info("webhook secret file read", "file", file, "secrets", labels)
	return nil
}

// follow calls with the secrets of now, and after each change.
func (s *Secrets) follow(onChange func([]stripehook.Secret)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onChange = onChange
	onChange(s.Current())
}

// The gauges that say when a secret matched, by its label.
const (
	LastMatchMetric  = "ordergate_ingress_signature_last_match_timestamp_seconds"
	LastNeededMetric = "ordergate_ingress_signature_last_needed_timestamp_seconds"
)

// matches shows which of the current secrets match, and nothing of others.
type matches struct {
	total        *prometheus.CounterVec
	last, needed *prometheus.GaugeVec

	mu    sync.Mutex
	shown map[string]bool // labels of the current secrets
}

func newMatches() *matches {
	return &matches{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ordergate_ingress_signatures_total",
			Help: "Verified webhook requests by the label of the secret that matched.",
		}, []string{"secret"}),
		last: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: LastMatchMetric,
			Help: "When a secret matched last, by its label, in Unix time; 0: not since it is known.",
		}, []string{"secret"}),
		needed: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: LastNeededMetric,
			Help: "When a secret was last the only one that matched, by its label, in Unix time; 0: not since it is known. One that is not needed any more can go.",
		}, []string{"secret"}),
	}
}

// show has these secrets shown from now on, also those that match nothing.
func (m *matches) show(secrets []stripehook.Secret) {
	m.mu.Lock()
	defer m.mu.Unlock()
	gone := m.shown
	m.shown = map[string]bool{}
	for _, s := range secrets {
		m.shown[s.Label()] = true
		delete(gone, s.Label())
		m.total.WithLabelValues(s.Label())
		m.last.WithLabelValues(s.Label())
		m.needed.WithLabelValues(s.Label())
	}
	for label := range gone {
		m.total.DeleteLabelValues(label)
		m.last.DeleteLabelValues(label)
		m.needed.DeleteLabelValues(label)
	}
}

// count takes no notice of a secret that went while its request was read.
func (m *matches) count(matching []stripehook.Secret, now time.Time) {
	at := float64(now.UnixMilli()) / 1000
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, secret := range matching {
		if !m.shown[secret.Label()] {
			continue
		}
		m.total.WithLabelValues(secret.Label()).Inc()
		m.last.WithLabelValues(secret.Label()).Set(at)
		if len(matching) == 1 {
			m.needed.WithLabelValues(secret.Label()).Set(at)
		}
	}
}
