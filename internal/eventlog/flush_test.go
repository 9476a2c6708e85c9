package eventlog

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// What is written while a flush runs is covered by the next one only: who asks
// then waits for that, and the frontier stays behind it.
func TestWriteDuringAFlushWaitsForTheNext(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var (
		f        *flusher
		written  uint64 = 1
		flushes  int
		during   *flushGroup
		frontier []uint64
	)
	f = newFlusher(func() error {
		if flushes++; flushes == 1 {
			written = 2 // somebody writes, and asks for a flush
			during = f.join()
		} else {
			stop()
		}
		return nil
	}, func() uint64 { return written }, func(covered uint64) { frontier = append(frontier, covered) }, func(err error) { t.Error(err) })
	first := f.join()
	f.run(ctx)
	if during == first {
		t.Error("a flush was joined after it had begun")
	}
	if len(frontier) != 2 || frontier[0] != 1 || frontier[1] != 2 {
		t.Errorf("frontier = %v, want [1 2]", frontier)
	}
}

func TestFailedFlushMovesNothing(t *testing.T) {
	broken := errors.New("input/output error")
	var g *flushGroup
	var told error
	f := newFlusher(func() error { return broken }, func() uint64 { return 1 }, func(uint64) { t.Error("the frontier moved") }, func(err error) {
		told = err
		select {
		case <-g.done:
			t.Error("those who waited heard of it before the log did: they find it in order, and write on")
		default:
		}
	})
	g = f.join()
	f.run(t.Context())
	<-g.done
	if !errors.Is(told, broken) {
		t.Errorf("told of %v", told)
	}
	if !errors.Is(g.err, broken) {
		t.Errorf("the waiting append got %v", g.err)
	}
}

// A few are flushed for at once; behind a crowd, the next group gathers.
func TestCrowdGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var flushes []time.Duration
		start := time.Now()
		f := newFlusher(func() error { flushes = append(flushes, time.Since(start)); return nil }, func() uint64 { return 0 }, func(uint64) {}, func(error) {})
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { f.run(ctx) })
		for range 2 {
			<-f.join().done
		}
		f.mu.Lock()
		f.next = &flushGroup{done: make(chan struct{}), waiters: crowd}
		many := f.next
		f.mu.Unlock()
		f.wake <- struct{}{}
		<-many.done
		<-f.join().done
		<-f.join().done
		stop()
		running.Wait()
		if want := []time.Duration{0, 0, 0, gatherTime, gatherTime}; !slices.Equal(flushes, want) {
			t.Errorf("flushes at %v, want %v", flushes, want)
		}
	})
}
