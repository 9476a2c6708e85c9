package eventlog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// measures are what the log tells of itself.
type measures struct {
	flushSeconds, flushWaiters, appendSeconds prometheus.Histogram
	reopenings                                prometheus.Counter
}

// newMeasures registers them, unless registerer is nil.
func newMeasures(registerer prometheus.Registerer) *measures {
	metrics := promauto.With(registerer)
	return &measures{
		flushSeconds: metrics.NewHistogram(prometheus.HistogramOpts{
			Name: "ordergate_log_flush_duration_seconds",
			Help: "How long one flush to disk took.",
			// A fast disk needs less than a millisecond, a busy one a second.
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 15),
		}),
		flushWaiters: metrics.NewHistogram(prometheus.HistogramOpts{
			Name:    "ordergate_log_flush_waiters",
			Help:    "How many appends and other writers waited for one flush, which covered all of them.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 11),
		}),
		appendSeconds: metrics.NewHistogram(prometheus.HistogramOpts{
			Name:    "ordergate_log_append_duration_seconds",
			Help:    "How long storing an event took, until it was on disk or was refused.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 15),
		}),
		reopenings: metrics.NewCounter(prometheus.CounterOpts{
			Name: "ordergate_log_reopenings_total",
			Help: "How often the log was opened again after a failure.",
		}),
	}
}

func (m *measures) flushed(waiters int, took time.Duration) {
	m.flushSeconds.Observe(took.Seconds())
	m.flushWaiters.Observe(float64(waiters))
}

// showWritable registers whether the log can commit, unless registerer is nil.
func (l *Log) showWritable(registerer prometheus.Registerer) {
	promauto.With(registerer).NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ordergate_log_writable",
		Help: "1 while the log can commit, 0 while it is being opened again after a failure.",
	}, func() float64 {
		if l.Ready() != nil {
			return 0
		}
		return 1
	})
}

// InboxBacklog returns how many events of INBOX were not dealt with yet, and when
// the oldest of them was stored.
func (l *Log) InboxBacklog(ctx context.Context) (events uint64, oldest time.Time, err error) {
	e, err := l.current()
	if err != nil {
		return 0, time.Time{}, err
	}
	info, err := e.converterInfo(ctx)
	if err != nil || info == nil {
		return 0, time.Time{}, err
	}
	events = info.NumPending + uint64(info.NumAckPending)
	if events == 0 {
		return 0, time.Time{}, nil
	}
	waiting, err := l.ReadInbox(ctx, info.AckFloor.Stream, 1)
	if err != nil || len(waiting) == 0 {
		return events, time.Time{}, err
	}
	return events, waiting[0].StoreTime, nil
}

// converterInfo returns nil before anything was ever converted.
func (e *engine) converterInfo(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	consumer, err := e.inbox.Consumer(ctx, converterConsumer)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return consumer.CachedInfo(), nil
}

// Count returns how many keys a bucket has. It reads no values.
func (b Bucket) Count(ctx context.Context) (int, error) {
	if empty, err := b.Empty(ctx); err != nil || empty {
		return 0, err
	}
	keys, err := b.Keys(ctx)
	return len(keys), err
}
