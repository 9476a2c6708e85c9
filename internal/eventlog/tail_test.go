package eventlog

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// Whoever follows the log, from wherever and with whatever limit, gets every event,
// in order and once, while others do too.
func TestReadersShareTheTail(t *testing.T) {
	l := openLog(t, testConfig(t))
	const events = 600
	var want []string
	for i := range events {
		want = append(want, fmt.Sprintf("cs_%d.1", i))
	}
	var readers sync.WaitGroup
	for reader := range 20 {
		readers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(reader), 1))
			readOn(t, l, want, func() int { return 1 + random.IntN(100) })
		})
	}
	for i := range events {
		appendOrder(t, l, fmt.Sprintf("cs_%d", i), 1, 0)
		if i%7 == 0 {
			flush(t, l)
		}
	}
	flush(t, l)
	readers.Wait()
}

// NewestAfter answers the same from memory and from the engine.
func TestNewestAfter(t *testing.T) {
	l := openLog(t, testConfig(t))
	first := appendOrder(t, l, "cs_1", 1, 0)
	other := appendOrder(t, l, "cs_2", 1, 0)
	flush(t, l)
	second := appendOrder(t, l, "cs_1", 2, first)
	flush(t, l)
	ask := func(id string, after, want uint64) {
		t.Helper()
		r, err := l.NewestAfter(deadline(t), id, after, false)
		if err != nil {
			t.Fatal(err)
		}
		got := uint64(0)
		if r != nil {
			got = r.Sequence
		}
		if got != want {
			t.Errorf("the newest event of %s after %d is %d, want %d", id, after, got, want)
		}
	}
	both := func() {
		t.Helper()
		ask("cs_1", 0, second)
		ask("cs_1", first, second)
		ask("cs_1", second, 0)
		ask("cs_2", 0, other)
		ask("cs_2", other, 0)
		ask("cs_3", 0, 0)
	}
	both()
	e, err := l.current()
	if err != nil {
		t.Fatal(err)
	}
	e.tail.mu.Lock()
	e.tail.from = second + 1 // as if everything had been trimmed
	e.tail.mu.Unlock()
	both()
	e.tail.mu.Lock()
	e.tail.from, e.tail.to, e.tail.newest = 0, first, map[string]*OrderRecord{} // as if it was being loaded
	e.tail.mu.Unlock()
	both()
}

// The tail is bounded, and keeps nothing of what was erased.
func TestTailIsBounded(t *testing.T) {
	l := openLog(t, testConfig(t))
	note := make([]byte, 200_000)
	for i := range note {
		note[i] = 'x'
	}
	last := uint64(0)
	for i := range 200 {
		event := orderEvent(fmt.Sprintf("cs_%d", i/2), int64(1+i%2))
		event.Note = string(note)
		if i%2 == 0 {
			last = 0
		}
		var err error
		if last, err = l.AppendOrder(deadline(t), event, last); err != nil {
			t.Fatal(err)
		}
		flush(t, l)
		if _, _, err := l.ReadOrders(deadline(t), last-1, 1); err != nil {
			t.Fatal(err)
		}
	}
	tail := &l.engine.tail
	if tail.bytes > tailBytes || tail.bytes < tailBytes/2 || len(tail.records) != int(tail.to-tail.from) || tail.to != 200 {
		t.Errorf("%d bytes, %d events, from %d to %d", tail.bytes, len(tail.records), tail.from, tail.to)
	}
	for id, r := range tail.newest {
		if r.Sequence <= tail.from || r.Sequence%2 != 0 {
			t.Errorf("the newest event of %s in the tail is %d; the tail begins after %d", id, r.Sequence, tail.from)
		}
	}
	if got := readIDs(t, l, 150); len(got) != 50 || got[0] != "cs_75.1" {
		t.Errorf("read from the tail: %v", got)
	}
	erased := &ordergatev1.OrderEvent{Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED, Id: "cs_99.3", Order: &ordergatev1.Order{Id: "cs_99"}}
	tombstone, err := l.AppendOrder(deadline(t), erased, 200)
	if err != nil {
		t.Fatal(err)
	}
	flush(t, l)
	if n, err := l.EraseOrderEvents(deadline(t), "cs_99", tombstone); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	if diff := cmp.Diff([]string{"cs_98.2", "cs_99.3"}, readIDs(t, l, 197)); diff != "" {
		t.Error(diff)
	}
}

// Who begins ahead of the tail leaves no hole in it.
func TestTailHasNoHole(t *testing.T) {
	l := openLog(t, testConfig(t))
	for i := range 20 {
		appendOrder(t, l, fmt.Sprintf("cs_%d", i+1), 1, 0)
		flush(t, l)
		if i == 9 {
			readIDs(t, l, 5)
		}
	}
	for _, after := range []uint64{15, 5, 10} {
		if got := readIDs(t, l, after); len(got) != 20-int(after) {
			t.Errorf("behind %d: %v", after, got)
		}
	}
}

// However many read the past at once, nobody is cut off for it.
func TestCrowdOfReaders(t *testing.T) {
	l := openLog(t, testConfig(t))
	const events, readers = 300, 100
	last := uint64(0)
	for i := range events {
		event := orderEvent("cs_1", int64(i+1))
		event.Note = strings.Repeat("x", 4000)
		var err error
		if last, err = l.AppendOrder(deadline(t), event, last); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, l)
	var reading sync.WaitGroup
	for range readers {
		reading.Go(func() {
			for read, after := 0, uint64(0); read < events; {
				records, err := l.OrderEvents(deadline(t), "cs_1", after, events)
				if err != nil || len(records) == 0 {
					t.Error(len(records), err)
					return
				}
				read, after = read+len(records), records[len(records)-1].Sequence
			}
		})
	}
	reading.Wait()
}

// Once the log is opened again, the newest events are read from memory as before,
// and what is older, or was erased, is not missed there.
func TestTailAfterOpening(t *testing.T) {
	cfg := testConfig(t)
	l := openLog(t, cfg)
	for i := range 5 {
		appendOrder(t, l, fmt.Sprintf("cs_%d", i+1), 1, 0)
	}
	l.Close()
	l = openLog(t, cfg)
	e, err := l.current()
	if err != nil {
		t.Fatal(err)
	}
	if got := readIDs(t, l, 0); len(got) != 5 {
		t.Errorf("read %v", got)
	}
	if _, _, ok := e.tail.behind(0, 5, 10); !ok {
		t.Error("who reads at once does not wait for the tail")
	}
	if err := e.orders.DeleteMsg(deadline(t), 5); err != nil { // the newest, so that nothing tells the tail
		t.Fatal(err)
	}
	l.Close()
	l = openLog(t, cfg)
	if got := readIDs(t, l, 0); len(got) != 4 {
		t.Errorf("read %v", got)
	}
	appendOrder(t, l, "cs_6", 1, 0)
	flush(t, l)
	if diff := cmp.Diff([]string{"cs_4.1", "cs_6.1"}, readIDs(t, l, 3)); diff != "" {
		t.Error(diff)
	}
}
