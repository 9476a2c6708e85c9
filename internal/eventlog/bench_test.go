package eventlog

import (
	"bytes"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkAppendInbox appends events of a usual size, each durable before the
// call returns, from a number of goroutines.
func BenchmarkAppendInbox(b *testing.B) {
	body := bytes.Repeat([]byte("x"), 3500)
	for _, publishers := range []int{2, 16, 64, 256, -64} { // negative: encrypted
		name := fmt.Sprintf("publishers=%d", publishers)
		var keys Keys
		if publishers < 0 {
			publishers = -publishers
			name, keys = fmt.Sprintf("publishers=%d/encrypted", publishers), Keys{current: testKey}
		}
		b.Run(name, func(b *testing.B) {
			var flushes atomic.Int64
			cfg := Config{Keys: keys, Dir: b.TempDir(), MaxEventBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)}
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
			b.ReportAllocs()
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

// BenchmarkCheck reads the files of a log as is done after a kill.
func BenchmarkCheck(b *testing.B) {
	for name, keys := range map[string]Keys{"plain": {}, "encrypted": {current: testKey}} {
		b.Run(name, func(b *testing.B) {
			cfg := Config{Keys: keys, Dir: b.TempDir(), MaxEventBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)}
			l, err := Open(b.Context(), cfg)
			if err != nil {
				b.Fatal(err)
			}
			body := bytes.Repeat([]byte("x"), 3500)
			const events = 50_000
			var writers sync.WaitGroup
			for writer := range 64 {
				writers.Go(func() {
					for i := writer; i < events; i += 64 {
						if _, err := l.AppendInbox(b.Context(), RawEvent{ID: fmt.Sprintf("evt_%d", i), Body: body}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			writers.Wait()
			key := l.cfg.key
			l.Close()
			notebook, note, err := openNotebook(cfg.Dir)
			if err != nil {
				b.Fatal(err)
			}
			defer notebook.close()
			b.SetBytes(int64(events * len(body)))
			for b.Loop() {
				c := &checker{dir: cfg.Dir, note: note, key: key}
				if err := c.check(); err != nil || len(c.problems) > 0 {
					b.Fatal(err, c.problems)
				}
			}
		})
	}
}

// BenchmarkReadOrders reads order events of a usual size as watchers do, 256 at a
// time; an operation is one event.
func BenchmarkReadOrders(b *testing.B) {
	const events, batch = 10_000, 256
	l, err := Open(b.Context(), Config{Dir: b.TempDir(), MaxEventBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	for i := range events {
		event := orderEvent(fmt.Sprintf("cs_%d", i), 1)
		event.Order.Metadata = map[string]string{"note": strings.Repeat("x", 2000)}
		if _, err := l.AppendOrder(b.Context(), event, 0); err != nil {
			b.Fatal(err)
		}
	}
	if err := l.Flush(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.ResetTimer()
	after := uint64(0)
	for read := 0; read < b.N; {
		records, next, err := l.ReadOrders(b.Context(), after, batch)
		if err != nil {
			b.Fatal(err)
		}
		read += len(records)
		if after = next; len(records) == 0 {
			after = 0 // anew
		}
	}
}
