package stripeapi

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// What becomes of one HTTP request, as the metric names it.
const (
	outcomeOK           = "ok"
	outcomeNotFound     = "not_found"
	outcomePermission   = "permission"   // the key lacks one
	outcomeUnauthorized = "unauthorized" // the key is not accepted
	outcomeRateLimited  = "rate_limited"
	outcomeUnavailable  = "unavailable"
	outcomeRefused      = "refused" // for any other reason
)

// measures are what the client tells of itself.
type measures struct {
	requests map[string]prometheus.Counter
	seconds  prometheus.Histogram
	away     prometheus.Gauge
}

// newMeasures registers them, unless registerer is nil.
func newMeasures(registerer prometheus.Registerer) *measures {
	metrics := promauto.With(registerer)
	requests := metrics.NewCounterVec(prometheus.CounterOpts{
		Name: "ordergate_stripe_requests_total",
		Help: "Requests to Stripe's API by outcome, each attempt counted.",
	}, []string{"outcome"})
	m := &measures{
		requests: map[string]prometheus.Counter{},
		seconds: metrics.NewHistogram(prometheus.HistogramOpts{
			Name:    "ordergate_stripe_request_duration_seconds",
			Help:    "How long one request to Stripe's API took, without the wait for its turn.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 20},
		}),
		away: metrics.NewGauge(prometheus.GaugeOpts{
			Name: "ordergate_stripe_away",
			Help: "1 when Stripe's API could not be used for the newest request: no answer, an error of Stripe's, or a pause asked for; else 0.",
		}),
	}
	for _, outcome := range []string{outcomeOK, outcomeNotFound, outcomePermission, outcomeUnauthorized, outcomeRateLimited, outcomeUnavailable, outcomeRefused} {
		m.requests[outcome] = requests.WithLabelValues(outcome)
	}
	return m
}

// attempted takes note of a request, whose failure is nil when it was answered. A
// caller that did not wait for the answer says nothing of Stripe.
func (m *measures) attempted(failure *callError, abandoned bool, took time.Duration) {
	if abandoned {
		return
	}
	m.seconds.Observe(took.Seconds())
	outcome := outcomeOf(failure)
	m.requests[outcome].Inc()
	if outcome == outcomeUnavailable || outcome == outcomeRateLimited {
		m.away.Set(1)
	} else {
		m.away.Set(0)
	}
}

func outcomeOf(failure *callError) string {
	switch {
	case failure == nil:
		return outcomeOK
	case failure.status == http.StatusTooManyRequests:
		return outcomeRateLimited
	case failure.kind == ErrNotFound:
		return outcomeNotFound
	case failure.kind == ErrPermission:
		return outcomePermission
	case failure.kind == ErrUnauthorized:
		return outcomeUnauthorized
	case failure.kind == ErrUnavailable:
		return outcomeUnavailable
	}
	return outcomeRefused
}
