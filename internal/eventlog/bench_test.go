package eventlog

import (
	"bytes"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"testing"
)

// BenchmarkAppendInbox appends events of a usual size, each durable before the
// call returns, from a number of goroutines.
func BenchmarkAppendInbox(b *testing.B) {
	body := bytes.Repeat([]byte("x"), 3500)
	for _, publishers := range []int{2, 16, 64, 256} {
		b.Run(fmt.Sprintf("publishers=%d", publishers), func(b *testing.B) {
			var flushes atomic.Int64
			cfg := Config{Dir: b.TempDir(), MaxEventBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)}
			l, err := Open(b.Context(), cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			e, _ := l.current()
			sync := e.flusher.sync
			e.flusher.sync = func() error { flushes.Add(1); return sync() }
			var id atomic.Int64
			b.SetParallelism((publishers + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
			b.SetBytes(int64(len(body)))
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := l.AppendInbox(b.Context(), RawEvent{ID: fmt.Sprintf("evt_%d", id.Add(1)), Body: body}); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.ReportMetric(float64(b.N)/float64(max(flushes.Load(), 1)), "events/flush")
		})
	}
}
