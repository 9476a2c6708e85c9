package pipeline

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"github.com/ordergate/ordergate/internal/eventlog"
)

// measureTimeout bounds what reading the figures may take.
const measureTimeout = 5 * time.Second

// measures are what the pipeline tells of itself.
type measures struct {
	outcomes map[Outcome]prometheus.Counter
	delay    prometheus.Histogram
	missed   prometheus.Counter
}

func newMeasures(p *Pipeline, registerer prometheus.Registerer) *measures {
	metrics := promauto.With(registerer)
	outcomes := metrics.NewCounterVec(prometheus.CounterOpts{
		Name: "ordergate_pipeline_events_total",
		Help: "Events taken from the inbox by what became of them.",
	}, []string{"outcome"})
	m := &measures{
		missed: metrics.NewCounter(prometheus.CounterOpts{
			Name: "ordergate_pipeline_missed_events_total",
			Help: "Events that did not arrive by webhook while the gateway ran, and were listed at Stripe instead.",
		}),
		outcomes: map[Outcome]prometheus.Counter{},
		delay: metrics.NewHistogram(prometheus.HistogramOpts{
			Name: "ordergate_pipeline_conversion_delay_seconds",
			Help: "From when an event was stored until the order event made of it was on disk.",
			// The bounds are those of a batch, of Stripe's API, of the deadline
			// for line items, and of an outage.
			Buckets: []float64{.0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200},
		}),
	}
	for _, outcome := range []Outcome{Converted, Unchanged, Waiting, Ignored, Unmatched, Failed, retried} {
		m.outcomes[outcome] = outcomes.WithLabelValues(string(outcome))
	}
	registerer.MustRegister(&collector{p})
	return m
}

// settled counts an event that was dealt with, or will be tried again.
func (m *measures) settled(r *result) {
	if counter := m.outcomes[r.outcome]; counter != nil {
		counter.Inc()
	}
	if r.outcome == Converted && !r.waited && !r.stored.StoreTime.IsZero() {
		m.delay.Observe(time.Since(r.stored.StoreTime).Seconds())
	}
}

// collector reads what is in the log when metrics are asked for.
type collector struct{ pipeline *Pipeline }

func describe(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("ordergate_pipeline_"+name, help, nil, nil)
}

var (
	backlogEvents  = describe("backlog_events", "Stored events that were not dealt with yet.")
	oldestEvent    = describe("oldest_unconverted_timestamp_seconds", "When the oldest event was stored that was not dealt with yet, in Unix time; missing when there is none.")
	parkedEvents   = describe("parked_events", "Events that could not be converted and are kept: their order is not known, or they cannot be read.")
	itemlessOrders = describe("pending_items_orders", "Orders that went out without their line items, which are still missing.")
)

// Describe is for the registry.
func (c *collector) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{backlogEvents, oldestEvent, parkedEvents, itemlessOrders} {
		descriptions <- d
	}
}

// Collect is for the registry. What cannot be read is missing: that the log is
// away is said elsewhere.
func (c *collector) Collect(metrics chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), measureTimeout)
	defer cancel()
	gauge := func(d *prometheus.Desc, value float64) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value)
	}
	if events, oldest, err := c.pipeline.Log.InboxBacklog(ctx); err == nil {
		gauge(backlogEvents, float64(events))
		if !oldest.IsZero() {
			gauge(oldestEvent, float64(oldest.UnixMilli())/1000)
		}
	}
	for d, bucket := range map[*prometheus.Desc]eventlog.BucketName{parkedEvents: eventlog.ParkedEvents, itemlessOrders: eventlog.PendingItems} {
		if n, err := c.pipeline.Log.Bucket(bucket).Count(ctx); err == nil {
			gauge(d, float64(n))
		}
	}
}
