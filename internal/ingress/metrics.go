package ingress

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// allOutcomes are all that can become of a request: shown from the start, so that the
// first of a kind is seen as a change.
var allOutcomes = []string{
	"stored", "duplicate", "thin",
	"unsigned", "malformed_signature", "mismatch", "stale", "future",
	"not_found", "method", "media_type", "too_large", "incomplete", "unreadable", "wrong_mode",
	"busy", "unavailable",
}

// measures are what the ingress tells of its requests.
type measures struct {
	requests                  *prometheus.CounterVec
	accepted, refused, failed prometheus.Observer
}

func newMeasures(registerer prometheus.Registerer) *measures {
	metrics := promauto.With(registerer)
	seconds := metrics.NewHistogramVec(prometheus.HistogramOpts{
		Name: "ordergate_ingress_request_duration_seconds",
		Help: "From a webhook request's headers to its answer: accepted (200), refused (4xx) or failed (503).",
		// Checkout waits up to 10 s for an answer.
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"class"})
	m := &measures{
		requests: metrics.NewCounterVec(prometheus.CounterOpts{
			Name: "ordergate_ingress_requests_total",
			Help: "Webhook requests by outcome.",
		}, []string{"outcome"}),
		accepted: seconds.WithLabelValues("accepted"),
		refused:  seconds.WithLabelValues("refused"),
		failed:   seconds.WithLabelValues("failed"),
	}
	for _, outcome := range allOutcomes {
		m.requests.WithLabelValues(outcome)
	}
	return m
}

// answered counts a request that began at a time; refused is nil when it was
// accepted.
func (m *measures) answered(outcome string, refused *refusal, began time.Time) {
	class := m.accepted
	if refused != nil {
		outcome, class = refused.outcome, m.refused
		if refused.status >= 500 {
			class = m.failed
		}
	}
	m.requests.WithLabelValues(outcome).Inc()
	class.Observe(time.Since(began).Seconds())
}
