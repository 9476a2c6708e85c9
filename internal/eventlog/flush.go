package eventlog

import (
	"context"
	"sync"
	"time"
)

const (
	// crowd is how many waiters are many, behind whom the next group gathers for
	// gatherTime.
	crowd      = 16
	gatherTime = 2 * time.Millisecond
)

// flusher lets one flush to disk cover everything that waits for one.
type flusher struct {
	sync func() error
	// written returns the newest sequence of ORDERS that has been written.
	written func() uint64
	// durable is told that everything up to the sequence is on disk.
	durable func(uint64)
	// failed is told of a flush that failed, before those who waited for it are.
	failed func(error)
	// flushed is told of each flush; nil is nobody.
	flushed func(waiters int, took time.Duration)

	mu   sync.Mutex
	next *flushGroup   // those who wait for the flush that has not begun
	wake chan struct{} // capacity 1: next is not nil
}

type flushGroup struct {
	done    chan struct{}
	err     error // set before done is closed
	waiters int
}

func newFlusher(sync func() error, written func() uint64, durable func(uint64), failed func(error)) *flusher {
	return &flusher{sync: sync, written: written, durable: durable, failed: failed, wake: make(chan struct{}, 1)}
}

// join returns the flush that begins next. Whatever was written before the
// call is covered by it.
func (f *flusher) join() *flushGroup {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.next == nil {
		f.next = &flushGroup{done: make(chan struct{})}
		f.wake <- struct{}{}
	}
	f.next.waiters++
	return f.next
}

// begin takes the group that waits: who comes now waits for the next flush.
func (f *flusher) begin() *flushGroup {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.next
	f.next = nil
	return g
}

// run flushes whenever somebody waits, until ctx ends or a flush fails. Whoever
// still waits then is left waiting: they watch the engine's death too.
//
// While a crowd waits, the next group is given a moment to gather: a write that comes
// while the disk flushes is held up by that, and fewer flushes cost everybody less.
// A few wait for nothing but the disk.
func (f *flusher) run(ctx context.Context) {
	crowded := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		if crowded {
			select {
			case <-ctx.Done():
				return
			case <-time.After(gatherTime):
			}
		}
		g := f.begin()
		crowded = g.waiters >= crowd
		covered := f.written()
		began := time.Now()
		g.err = f.sync()
		if f.flushed != nil {
			f.flushed(g.waiters, time.Since(began))
		}
		if g.err == nil {
			f.durable(covered)
		} else {
			f.failed(g.err)
		}
		close(g.done)
		if g.err != nil {
			return
		}
	}
}
