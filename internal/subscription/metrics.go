package subscription

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// maxMeasured is how many subscriptions are measured, the first by name, so that
	// there is a bound on the series.
	maxMeasured = 500
	// measureTimeout bounds what reading the figures may take.
	measureTimeout = 5 * time.Second
)

// Collector measures the subscriptions when metrics are asked for, also those
// that nobody works on.
func (m *Manager) Collector() prometheus.Collector {
	describe := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("ordergate_subscription_"+name, help, []string{"subscription"}, nil)
	}
	return &collector{
		manager:     m,
		backlog:     describe("backlog_events", "Stored events that were not looked at for the subscription yet, some of which its filter may leave out."),
		pending:     describe("pending_orders", "Orders with an event that is ready, out, or waiting for another attempt."),
		oldest:      describe("oldest_unacked_timestamp_seconds", "When the oldest event was stored that is neither acknowledged nor a dead letter; missing when there is none."),
		unshipped:   describe("oldest_unshipped_timestamp_seconds", "When the oldest live event was stored that is neither acknowledged nor a dead letter, and whose order is to SHIP or has further events behind it; missing when there is none."),
		deadLetters: describe("dead_letters", "Events that are not delivered any more."),
		outstanding: describe("outstanding_events", "Deliveries that are out with workers."),
		streams:     describe("streams", "Streams that workers have open."),
		unread: prometheus.NewDesc("ordergate_subscriptions_unread",
			"Subscriptions whose figures are missing here: beyond the first 500 by name, or because the log was away.", nil, nil),
	}
}

type collector struct {
	manager                                                                        *Manager
	backlog, pending, oldest, unshipped, deadLetters, outstanding, streams, unread *prometheus.Desc
}

// Describe is for the registry.
func (c *collector) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.backlog, c.pending, c.oldest, c.unshipped, c.deadLetters, c.outstanding, c.streams, c.unread} {
		descriptions <- d
	}
}

// Collect is for the registry.
func (c *collector) Collect(metrics chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), measureTimeout)
	defer cancel()
	names, err := c.manager.List(ctx)
	if err != nil {
		return // that the log is away is said elsewhere
	}
	unread := max(0, len(names)-maxMeasured)
	for _, name := range names[:len(names)-unread] {
		if err := c.measure(ctx, name, metrics); err != nil {
			unread++
		}
	}
	metrics <- prometheus.MustNewConstMetric(c.unread, prometheus.GaugeValue, float64(unread))
}

func (c *collector) measure(ctx context.Context, name string, metrics chan<- prometheus.Metric) error {
	s, err := c.manager.Open(ctx, name)
	var there *ElsewhereError
	if errors.As(err, &there) { // where it is measured
		return nil
	}
	if err != nil {
		return err
	}
	described, err := s.Describe(ctx)
	if err != nil {
		return err
	}
	stats := described.GetStats()
	gauge := func(d *prometheus.Desc, value float64) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, name)
	}
	gauge(c.backlog, float64(stats.GetBacklog()))
	gauge(c.pending, float64(stats.GetPendingOrders()))
	gauge(c.deadLetters, float64(stats.GetDeadLetters()))
	if at := stats.GetOldestUnackedTime(); at != nil {
		gauge(c.oldest, float64(at.AsTime().UnixMilli())/1000)
	}
	unshipped, err := s.oldestUnshipped(ctx)
	if err != nil {
		return err
	}
	if !unshipped.IsZero() {
		gauge(c.unshipped, float64(unshipped.UnixMilli())/1000)
	}
	var outstanding, streams float64
	for _, client := range stats.GetClients() {
		outstanding += float64(client.GetOutstandingEvents())
		streams += float64(client.GetStreams())
	}
	gauge(c.outstanding, outstanding)
	gauge(c.streams, streams)
	return nil
}
