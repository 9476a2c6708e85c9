package eventlog

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
)

// histogram returns how many observations a metric has, and their sum.
func histogram(t *testing.T, registry *prometheus.Registry, name string) (count uint64, sum float64) {
	t.Helper()
	return metric(t, registry, name).GetHistogram().GetSampleCount(), metric(t, registry, name).GetHistogram().GetSampleSum()
}

func metric(t *testing.T, registry *prometheus.Registry, name string) *dto.Metric {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0]
		}
	}
	t.Fatalf("there is no metric %s", name)
	return nil
}

// Of a group of appends, one flush is measured, and each append with its wait.
func TestFlushesAreMeasured(t *testing.T) {
	cfg, registry := testConfig(t), prometheus.NewRegistry()
	cfg.Metrics = registry
	var hold atomic.Bool
	held, release := make(chan struct{}), make(chan struct{})
	cfg.Sync = func() error {
		if hold.CompareAndSwap(true, false) {
			close(held)
			<-release
		}
		return nil
	}
	l := openLog(t, cfg)
	flushes, waiters := histogram(t, registry, "ordergate_log_flush_waiters")
	hold.Store(true)
	var all sync.WaitGroup
	all.Go(func() { appendInbox(t, l, "evt_first") })
	<-held
	const n = 20
	for i := range n {
		all.Go(func() { appendInbox(t, l, fmt.Sprintf("evt_%d", i)) })
	}
	e, err := l.current()
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		e.flusher.mu.Lock()
		defer e.flusher.mu.Unlock()
		return e.flusher.next != nil && e.flusher.next.waiters == n
	})
	close(release)
	all.Wait()
	if got, sum := histogram(t, registry, "ordergate_log_flush_waiters"); sum-waiters != 1+n || got-flushes != 2 {
		t.Errorf("%v waited for %d flushes, want %d for 2", sum-waiters, got-flushes, 1+n)
	}
	if count, sum := histogram(t, registry, "ordergate_log_append_duration_seconds"); count != 1+n || sum <= 0 {
		t.Errorf("%d appends took %v s", count, sum)
	}
	if count, sum := histogram(t, registry, "ordergate_log_flush_duration_seconds"); count <= flushes || sum <= 0 {
		t.Errorf("%d flushes took %v s", count, sum)
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

func TestReopeningIsMeasured(t *testing.T) {
	cfg, registry := testConfig(t), prometheus.NewRegistry()
	cfg.Metrics = registry
	var broken atomic.Bool
	cfg.Sync = func() error {
		if broken.Load() {
			return errors.New("input/output error")
		}
		return nil
	}
	l := openLog(t, cfg)
	writable := func() float64 { return metric(t, registry, "ordergate_log_writable").GetGauge().GetValue() }
	reopenings := func() float64 {
		return metric(t, registry, "ordergate_log_reopenings_total").GetCounter().GetValue()
	}
	if writable() != 1 || reopenings() != 0 {
		t.Errorf("at the start: writable %v, reopenings %v", writable(), reopenings())
	}
	broken.Store(true)
	if err := l.Flush(deadline(t)); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("Flush = %v", err)
	}
	if writable() != 0 {
		t.Error("a log that cannot flush is writable")
	}
	broken.Store(false)
	waitFor(t, func() bool { return writable() == 1 && reopenings() == 1 })
}

func TestInboxBacklog(t *testing.T) {
	l := openLog(t, testConfig(t))
	backlog := func() (uint64, string) {
		t.Helper()
		events, oldest, err := l.InboxBacklog(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		if oldest.IsZero() {
			return events, ""
		}
		for _, id := range []string{"evt_1", "evt_2", "evt_3"} {
			if event, err := l.InboxEvent(deadline(t), id); err == nil && event.StoreTime.Equal(oldest) {
				return events, id
			}
		}
		return events, "another"
	}
	expect := func(events uint64, oldest string) {
		t.Helper()
		waitFor(t, func() bool { // acks are not waited for
			gotEvents, gotOldest := backlog()
			return gotEvents == events && gotOldest == oldest
		})
	}
	expect(0, "")
	appendInbox(t, l, "evt_1")
	expect(1, "evt_1") // before there was a converter
	consume(t, l, 1, true)
	expect(0, "")
	appendInbox(t, l, "evt_2")
	appendInbox(t, l, "evt_3")
	expect(2, "evt_2")
	consume(t, l, 2, false) // in hand, and not done with
	expect(2, "evt_2")
	consume(t, l, 2, true)
	expect(0, "")
}

func TestCount(t *testing.T) {
	l := openLog(t, testConfig(t))
	b := l.Bucket(ParkedEvents)
	expect := func(want int) {
		t.Helper()
		if got, err := b.Count(deadline(t)); err != nil || got != want {
			t.Errorf("%d keys, %v, want %d", got, err, want)
		}
	}
	expect(0)
	for _, key := range []string{"evt_1", "evt_2", "evt_2"} {
		if err := b.Put(deadline(t), key, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	expect(2)
	if err := b.Delete(deadline(t), "evt_1"); err != nil { // leaves a marker
		t.Fatal(err)
	}
	expect(1)
}
