package eventlog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// writeMany stores an event of each of a number of orders, cs_1 at sequence 1, one of them
// larger than all that is sent ahead of small ones, and leaves none in the tail.
func writeMany(t *testing.T, l *Log, n int) (ids []string) {
	t.Helper()
	for i := range n {
		event := orderEvent(fmt.Sprintf("cs_%d", i+1), 1)
		if ids = append(ids, event.GetId()); i == 700 {
			event.Note = strings.Repeat("x", aheadBytes*3/2)
		}
		if _, err := l.AppendOrder(deadline(t), event, 0); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, l)
	if err := l.AwaitOrders(deadline(t), uint64(n-1)); err != nil {
		t.Fatal(err)
	}
	emptyTail(l)
	l.engine.aheads.stay = time.Hour
	return ids
}

func emptyTail(l *Log) {
	tail := &l.engine.tail
	tail.mu.Lock()
	defer tail.mu.Unlock()
	tail.records, tail.from, tail.bytes = nil, tail.to, 0
}

// Whoever reads the past on and on gets every event, in order and once, however many
// others do; only some of them can be sent it ahead.
func TestReadingOn(t *testing.T) {
	l := openLog(t, testConfig(t))
	want := writeMany(t, l, 1600)
	var readers sync.WaitGroup
	for reader := range maxAheads + 4 {
		readers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(reader), 1))
			readOn(t, l, want, func() int { return 2 + random.IntN(300) })
		})
	}
	readers.Wait()
	aheads := &l.engine.aheads
	if len(aheads.idle) == 0 || len(aheads.idle) > maxAheads || aheads.places != len(aheads.idle) {
		t.Errorf("%d of %d places are idle", len(aheads.idle), aheads.places)
	}
	aheads.forget()
	if len(aheads.idle) != 0 || aheads.places != 0 {
		t.Errorf("%d of %d places are left", len(aheads.idle), aheads.places)
	}
	for { // the tail's own is left
		info, err := l.engine.orders.Info(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		if info.State.Consumers == 1 {
			break
		}
	}
}

// Nothing is seen of an event, wherever it waits, before it is on disk.
func TestReadingOnStopsAtTheFrontier(t *testing.T) {
	l := openLog(t, testConfig(t))
	writeMany(t, l, 1500)
	e := l.engine
	_, after := read(t, l, 0, 1400)
	if len(e.aheads.idle) != 1 {
		t.Fatal("nothing is sent ahead")
	}
	flushed := make(chan struct{})
	sync := e.flusher.sync
	e.flusher.sync = func() error { <-flushed; return sync() } // the flusher waits for nobody: it reads this when it is woken
	appendOrder(t, l, "cs_1501", 1, 0)
	emptyTail(l)
	for after < 1500 {
		records, ok := e.readAhead(deadline(t), after, 1500, 10)
		if !ok {
			t.Fatalf("behind %d, nothing was sent ahead", after)
		}
		after = records[len(records)-1].Sequence
	}
	if ids, _ := read(t, l, after, 10); len(ids) > 0 {
		t.Errorf("seen before they are on disk: %v", ids)
	}
	close(flushed)
	flush(t, l)
	if err := l.AwaitOrders(deadline(t), after); err != nil {
		t.Fatal(err)
	}
	emptyTail(l)
	if ids, _ := read(t, l, after, 10); !slices.Equal(ids, []string{"cs_1501.1"}) {
		t.Errorf("then: %v", ids)
	}
}

// What was erased is not read, though it was sent ahead before.
func TestReadingOnAfterErasing(t *testing.T) {
	l := openLog(t, testConfig(t))
	writeMany(t, l, 2000)
	ids, after := read(t, l, 0, 100)
	if len(ids) == 0 || len(l.engine.aheads.idle) != 1 {
		t.Fatalf("read %v, and nothing is sent ahead", ids)
	}
	erased := &ordergatev1.OrderEvent{Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED, Id: "cs_150.2", Order: &ordergatev1.Order{Id: "cs_150"}}
	tombstone, err := l.AppendOrder(deadline(t), erased, 150)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := l.EraseOrderEvents(deadline(t), "cs_150", tombstone); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	for after < 200 {
		if ids, after = read(t, l, after, 100); slices.Contains(ids, "cs_150.1") {
			t.Error("an event was read after it was erased")
		}
	}
}

// Whoever comes too late for what is kept is told so, whatever could be sent ahead.
func TestReadingOnTooLate(t *testing.T) {
	l := openLog(t, testConfig(t))
	writeMany(t, l, 2000)
	if err := l.engine.orders.Purge(deadline(t), jetstream.WithPurgeSequence(500)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.ReadOrders(deadline(t), 100, 256); !errors.Is(err, ErrExpired) {
		t.Errorf("error %v, want %v", err, ErrExpired)
	}
	if ids, _ := read(t, l, 499, 256); len(ids) == 0 || ids[0] != "cs_500.1" {
		t.Errorf("read %v", ids)
	}
}

// A place at which nobody reads on is given up.
func TestReadingOnStays(t *testing.T) {
	l := openLog(t, testConfig(t))
	writeMany(t, l, 2000)
	aheads := &l.engine.aheads
	aheads.stay = time.Millisecond
	read(t, l, 0, 100)
	left := func() int {
		aheads.mu.Lock()
		defer aheads.mu.Unlock()
		return aheads.places
	}
	for ctx := deadline(t); left() > 0; {
		if ctx.Err() != nil {
			t.Fatalf("%d places are in use", left())
		}
		runtime.Gosched()
	}
}

// A reader that gives up leaves its place to others.
func TestReadingOnIsGivenUp(t *testing.T) {
	l := openLog(t, testConfig(t))
	writeMany(t, l, 2000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 * maxAheads {
		l.ReadOrders(ctx, 0, 100) // whether there is something already or not
	}
	l.engine.aheads.forget()
	if places := l.engine.aheads.places; places != 0 {
		t.Errorf("%d places are in use", places)
	}
}
