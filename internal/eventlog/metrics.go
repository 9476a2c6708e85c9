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

// collector looks at the log when metrics are asked for.
type collector struct{ log *Log }

// measureTimeout bounds what reading the figures may take.
const measureTimeout = 5 * time.Second

var (
	writable  = prometheus.NewDesc("ordergate_log_writable", "1 while the log can commit, 0 while it is being opened again after a failure.", nil, nil)
	diskBytes = prometheus.NewDesc("ordergate_log_disk_bytes", "How large the disk of the data directory is.", nil, nil)
	diskFree  = prometheus.NewDesc("ordergate_log_disk_free_bytes", "How much of the disk of the data directory is free for the gateway.", nil, nil)

	gateways = prometheus.NewDesc("ordergate_gateways", "Gateways that share the log in a cluster and were heard of lately, this one included; 1 with a data directory.", nil, nil)
	leads    = prometheus.NewDesc("ordergate_leads", "1 for the one of the gateways that does what one does for all: late line items, the backfill's cursor, upkeep; also with a data directory.", nil, nil)

	roomEvents   = describeStream("events", "How many events a stream keeps.")
	roomBytes    = describeStream("bytes", "What a stream takes on disk.")
	roomMaxBytes = describeStream("max_bytes", "What a stream may take on disk before it refuses events; 0 is without limit.")
	roomOldest   = describeStream("oldest_timestamp_seconds", "When the oldest event of a stream was stored; missing when there is none.")
	roomMaxAge   = describeStream("max_age_seconds", "How long a stream keeps events; 0 is for good.")
)

func describeStream(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("ordergate_log_"+name, help, []string{"stream"}, nil)
}

// Describe is for the registry.
func (c collector) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{writable, diskBytes, diskFree, gateways, leads, roomEvents, roomBytes, roomMaxBytes, roomOldest, roomMaxAge} {
		descriptions <- d
	}
}

// Collect is for the registry.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	can := 1.0
	if c.log.Ready() != nil {
		can = 0
	}
	gauge(writable, can)
	members, leading := 1, 0.0
	if c.log.Shared() {
		members = len(c.log.Members())
	}
	if c.log.Leads() {
		leading = 1
	}
	gauge(gateways, float64(members))
	gauge(leads, leading)
	if disk, err := DiskOf(c.log.cfg.Dir); err == nil { // on Linux
		gauge(diskBytes, float64(disk.Total))
		gauge(diskFree, float64(disk.Free))
	}
	ctx, cancel := context.WithTimeout(context.Background(), measureTimeout)
	defer cancel()
	rooms, err := c.log.Rooms(ctx)
	if err != nil {
		return // that the log is away is said already
	}
	for _, room := range rooms {
		gauge(roomEvents, float64(room.Events), room.Stream)
		gauge(roomBytes, float64(room.Bytes), room.Stream)
		gauge(roomMaxBytes, float64(room.MaxBytes), room.Stream)
		gauge(roomMaxAge, room.MaxAge.Seconds(), room.Stream)
		if !room.Oldest.IsZero() {
			gauge(roomOldest, float64(room.Oldest.UnixMilli())/1000, room.Stream)
		}
	}
}

// InboxBacklog returns how many events of INBOX were not dealt with yet, and when
// the oldest of them was stored.
func (l *Log) InboxBacklog(ctx context.Context) (events uint64, oldest time.Time, err error) {
	e, err := l.current()
	if err != nil {
		return 0, time.Time{}, err
	}
	events, after, err := e.unconverted(ctx)
	if err != nil || events == 0 {
		return 0, time.Time{}, err
	}
	waiting, err := l.ReadInbox(ctx, after, 1)
	if err != nil || len(waiting) == 0 {
		return events, time.Time{}, err
	}
	return events, waiting[0].StoreTime, nil
}

// unconverted returns how many events were not dealt with yet, and the sequence up
// to which all were.
func (e *engine) unconverted(ctx context.Context) (events, after uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	consumer, err := e.inbox.Consumer(ctx, converterConsumer)
	if errors.Is(err, jetstream.ErrConsumerNotFound) { // nothing was converted yet
		info, err := streamInfo(ctx, e.inbox)
		if err != nil {
			return 0, 0, err
		}
		return info.State.Msgs, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	info := consumer.CachedInfo()
	return info.NumPending + uint64(info.NumAckPending), info.AckFloor.Stream, nil
}

// Count returns how many keys a bucket has. It reads no values.
func (b Bucket) Count(ctx context.Context) (int, error) {
	if empty, err := b.Empty(ctx); err != nil || empty {
		return 0, err
	}
	keys, err := b.Keys(ctx)
	return len(keys), err
}
