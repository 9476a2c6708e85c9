package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go/jetstream"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// logLines sends the log's lines to the test's output.
func logLines(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func testConfig(t *testing.T) Config {
	return Config{
		Dir:           t.TempDir(),
		InboxMaxAge:   35 * 24 * time.Hour,
		OrdersMaxAge:  400 * 24 * time.Hour,
		MaxEventBytes: 1 << 20,
		Logger:        logLines(t),
	}
}

func openLog(t *testing.T, cfg Config) *Log {
	t.Helper()
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// deadline bounds a test that waits for something.
func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func appendInbox(t *testing.T, l *Log, id string) (duplicate bool) {
	t.Helper()
	duplicate, err := l.AppendInbox(deadline(t), RawEvent{ID: id, Body: []byte(`{"id":"` + id + `"}`), SecretLabel: "whsec#1"})
	if err != nil {
		t.Fatal(err)
	}
	return duplicate
}

func orderEvent(id string, revision int64) *ordergatev1.OrderEvent {
	return &ordergatev1.OrderEvent{
		Id:            fmt.Sprintf("%s.%d", id, revision),
		Kind:          ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID,
		SourceEventId: "evt_1",
		Order: &ordergatev1.Order{
			Id: id, Revision: revision, Livemode: new(true), Account: "acct_1",
			Shipping: &ordergatev1.Shipping{Address: &ordergatev1.Address{Country: "DE"}},
		},
	}
}

func appendOrder(t *testing.T, l *Log, id string, revision int64, previous uint64) uint64 {
	t.Helper()
	sequence, err := l.AppendOrder(deadline(t), orderEvent(id, revision), previous)
	if err != nil {
		t.Fatal(err)
	}
	return sequence
}

func flush(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
}

// readIDs reads all durable events behind after, and returns the events' ids.
func readIDs(t *testing.T, l *Log, after uint64) []string {
	t.Helper()
	var ids []string
	for {
		more, next := read(t, l, after, 2)
		if next == after {
			return ids
		}
		ids, after = append(ids, more...), next
	}
}

// read reads one batch, and returns the events' ids and where to read on.
func read(t *testing.T, l *Log, after uint64, limit int) (ids []string, next uint64) {
	t.Helper()
	records, next, err := l.ReadOrders(deadline(t), after, limit)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		event, err := r.Event()
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, event.GetId())
	}
	return ids, next
}

// readOn reads what is in the log and what comes, in batches of some size, and wants to see
// these events.
func readOn(t *testing.T, l *Log, want []string, size func() int) {
	var got []string
	for after := uint64(0); len(got) < len(want); {
		if err := l.AwaitOrders(deadline(t), after); err != nil {
			t.Error(err)
			return
		}
		records, next, err := l.ReadOrders(deadline(t), after, size())
		if err != nil || next <= after {
			t.Errorf("behind %d: %v, next %d", after, err, next)
			return
		}
		for _, r := range records {
			got = append(got, r.EventID())
		}
		after = next
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// consume takes n events from the inbox, acking those that ack says, and
// returns their ids.
func consume(t *testing.T, l *Log, n int, ack bool) []string {
	t.Helper()
	ctx, stop := context.WithCancel(deadline(t))
	defer stop()
	var ids []string
	err := l.ConsumeInbox(ctx, func(_ context.Context, batch []*InboxMessage) {
		for _, m := range batch {
			ids = append(ids, m.ID)
			if ack {
				if err := m.Ack(); err != nil {
					t.Error(err)
				}
			}
		}
		if len(ids) >= n {
			stop()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	return ids
}

func TestAppendInboxStoresEachEventOnce(t *testing.T) {
	cfg := testConfig(t)
	l := openLog(t, cfg)
	if appendInbox(t, l, "evt_1") {
		t.Error("the first copy is called a duplicate")
	}
	if !appendInbox(t, l, "evt_1") {
		t.Error("the second copy is not called a duplicate")
	}
	appendInbox(t, l, "evt_2")
	if diff := cmp.Diff([]string{"evt_1", "evt_2"}, consume(t, l, 2, false)); diff != "" {
		t.Error(diff)
	}
	if _, err := l.AppendInbox(t.Context(), RawEvent{ID: "evt_1.>"}); err == nil {
		t.Error("no error for an id that leaves its subject")
	}

	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, cfg)
	if !appendInbox(t, l, "evt_2") {
		t.Error("the copy is not called a duplicate after reopening")
	}
}

func TestConcurrentCopiesAreStoredOnce(t *testing.T) {
	l := openLog(t, testConfig(t))
	var first atomic.Int32
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			if !appendInbox(t, l, "evt_same") {
				first.Add(1)
			}
		})
	}
	all.Wait()
	if first.Load() != 1 {
		t.Errorf("%d copies were called the first", first.Load())
	}
}

// The flush is shared: with a slow disk, many appends need few flushes.
func TestOneFlushCoversAllThatWait(t *testing.T) {
	cfg := testConfig(t)
	var flushes atomic.Int32
	gate := make(chan struct{})
	cfg.Sync = func() error {
		if flushes.Add(1) == 3 { // two at opening, then the first append's
			<-gate
		}
		return nil
	}
	l := openLog(t, cfg)
	var all sync.WaitGroup
	all.Go(func() { appendInbox(t, l, "evt_first") })
	waitFor(t, func() bool { return flushes.Load() == 3 })
	// Fifty more are written and wait, all before the first flush ends.
	e, err := l.current()
	if err != nil {
		t.Fatal(err)
	}
	waiting := map[*flushGroup]int{}
	for i := range 50 {
		if _, err := e.js.Publish(deadline(t), inboxSubject(fmt.Sprintf("evt_%d", i)), []byte("{}")); err != nil {
			t.Fatal(err)
		}
		waiting[e.flusher.join()]++
	}
	close(gate)
	all.Wait()
	for group := range waiting {
		<-group.done
	}
	if n := flushes.Load(); n != 4 || len(waiting) != 1 {
		t.Errorf("%d flushes and %d groups for 50 that waited at a time", n-3, len(waiting))
	}
}

// waitFor polls what has no event to wait for.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	ctx := deadline(t)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatal("it did not happen in time")
		case <-tick.C:
		}
	}
}

func TestFailedFlushStopsAcknowledgingUntilReopened(t *testing.T) {
	cfg := testConfig(t)
	var broken atomic.Bool
	cfg.Sync = func() error {
		if broken.Load() {
			return errors.New("input/output error")
		}
		return nil
	}
	l := openLog(t, cfg)
	appendInbox(t, l, "evt_before")
	sequence := appendOrder(t, l, "cs_1", 1, 0)
	flush(t, l)

	broken.Store(true)
	for i := range 3 {
		if _, err := l.AppendInbox(deadline(t), RawEvent{ID: fmt.Sprintf("evt_during%d", i), Body: []byte("{}")}); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("err = %v, want ErrUnavailable", err)
		}
	}
	if err := l.Ready(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Ready = %v, want ErrUnavailable", err)
	}
	if err := l.Flush(deadline(t)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Flush = %v, want ErrUnavailable", err)
	}

	broken.Store(false)
	waitFor(t, func() bool { return l.Ready() == nil })
	if !appendInbox(t, l, "evt_before") {
		t.Error("an acknowledged event is gone after reopening")
	}
	appendInbox(t, l, "evt_after")
	if diff := cmp.Diff([]string{"cs_1.1"}, readIDs(t, l, 0)); diff != "" {
		t.Error(diff)
	}
	appendOrder(t, l, "cs_1", 2, sequence)
}

// A consumer and a waiting reader live on when the log is reopened below them.
func TestReadersOutliveReopening(t *testing.T) {
	cfg := testConfig(t)
	var broken atomic.Bool
	cfg.Sync = func() error {
		if broken.Load() {
			return errors.New("input/output error")
		}
		return nil
	}
	l := openLog(t, cfg)
	seen := make(chan string, 10)
	ctx, stop := context.WithCancel(deadline(t))
	defer stop()
	var consumers sync.WaitGroup
	consumers.Go(func() {
		l.ConsumeInbox(ctx, func(_ context.Context, batch []*InboxMessage) {
			for _, m := range batch {
				m.Ack()
				seen <- m.ID
			}
		})
	})
	awaited := make(chan error, 1)
	go func() { awaited <- l.AwaitOrders(ctx, 0) }()

	appendInbox(t, l, "evt_1")
	if id := <-seen; id != "evt_1" {
		t.Fatal(id)
	}
	broken.Store(true)
	l.Flush(ctx)
	broken.Store(false)
	waitFor(t, func() bool { return l.Ready() == nil })
	appendInbox(t, l, "evt_2")
	for id := range seen {
		if id == "evt_2" { // evt_1 may come again: its ack is not synced
			break
		}
	}
	appendOrder(t, l, "cs_1", 1, 0)
	flush(t, l)
	if err := <-awaited; err != nil {
		t.Error(err)
	}
	stop()
	consumers.Wait()
}

func TestNothingIsShownBeforeAFlushCoversIt(t *testing.T) {
	cfg := testConfig(t)
	gate := make(chan struct{})
	var closed, waiting atomic.Bool
	cfg.Sync = func() error {
		if closed.Load() {
			waiting.Store(true)
			<-gate
		}
		return nil
	}
	l := openLog(t, cfg)
	appendOrder(t, l, "cs_1", 1, 0)
	flush(t, l)
	closed.Store(true)
	appendOrder(t, l, "cs_2", 1, 0)
	if _, err := l.NewestOrder(deadline(t), "cs_2"); err != nil {
		t.Errorf("the writer does not see what it wrote: %v", err)
	}

	var readers sync.WaitGroup
	var shown atomic.Bool
	readers.Go(func() {
		if err := l.AwaitOrders(deadline(t), 1); err != nil {
			t.Error(err)
		}
		shown.Store(true)
	})
	readers.Go(func() {
		if _, err := l.DurableOrder(deadline(t), "cs_2"); err != nil {
			t.Error(err)
		}
		shown.Store(true)
	})
	waitFor(t, waiting.Load)
	if diff := cmp.Diff([]string{"cs_1.1"}, readIDs(t, l, 0)); diff != "" {
		t.Error(diff)
	}
	if events, err := l.OrderEvents(deadline(t), "cs_2", 0, 10); err != nil || len(events) != 0 {
		t.Errorf("events of cs_2 = %v, %v before the flush", events, err)
	}
	if state, err := l.OrdersState(deadline(t)); err != nil || state.Durable != 1 {
		t.Errorf("state = %+v, %v", state, err)
	}
	if shown.Load() {
		t.Error("a reader was let through before the flush")
	}
	close(gate)
	readers.Wait()
	if diff := cmp.Diff([]string{"cs_1.1", "cs_2.1"}, readIDs(t, l, 0)); diff != "" {
		t.Error(diff)
	}
}

// A write whose acknowledgement was lost must not stay invisible.
func TestUnacknowledgedWriteBecomesVisible(t *testing.T) {
	l := openLog(t, testConfig(t))
	e, err := l.current()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.js.Publish(deadline(t), orderSubject("cs_1"), nil); err != nil {
		t.Fatal(err)
	}
	flush(t, l)
	if _, err := l.NewestOrder(deadline(t), "cs_1"); err != nil {
		t.Fatal(err)
	}
	flush(t, l)
	if err := l.AwaitOrders(deadline(t), 0); err != nil {
		t.Error(err)
	}
}

func TestOrdersCompareAndSet(t *testing.T) {
	l := openLog(t, testConfig(t))
	if _, err := l.NewestOrder(deadline(t), "cs_1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("err = %v, want ErrNotFound", err)
	}
	first := appendOrder(t, l, "cs_1", 1, 0)
	if _, err := l.AppendOrder(deadline(t), orderEvent("cs_1", 1), 0); !errors.Is(err, ErrConflict) {
		t.Errorf("second creation: err = %v, want ErrConflict", err)
	}
	appendOrder(t, l, "cs_1", 2, first)
	if _, err := l.AppendOrder(deadline(t), orderEvent("cs_1", 2), first); !errors.Is(err, ErrConflict) {
		t.Errorf("lost update: err = %v, want ErrConflict", err)
	}
	record, err := l.DurableOrder(deadline(t), "cs_1")
	if err != nil {
		t.Fatal(err)
	}
	event, err := record.Event()
	if err != nil {
		t.Fatal(err)
	}
	if event.GetOrder().GetRevision() != 2 || event.GetSequence() != 2 || time.Since(event.GetCreateTime().AsTime()).Abs() > time.Minute {
		t.Errorf("event = %v", event)
	}
	want := &OrderRecord{Sequence: 2, OrderID: "cs_1", Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID, Livemode: true, Account: "acct_1", Country: "DE",
		Time: record.Time, payload: record.payload}
	if diff := cmp.Diff(want, record, cmp.AllowUnexported(OrderRecord{}), cmpopts.IgnoreTypes(atomic.Value{})); diff != "" {
		t.Error(diff)
	}
}

// An order that can never be stored is no reason to try forever.
func TestOrderThatIsTooLarge(t *testing.T) {
	cfg := testConfig(t)
	l := openLog(t, cfg)
	event := orderEvent("cs_1", 1)
	event.Order.Metadata = map[string]string{"k": strings.Repeat("x", cfg.MaxEventBytes+orderBytes)}
	if _, err := l.AppendOrder(deadline(t), event, 0); err == nil || errors.Is(err, ErrUnavailable) {
		t.Errorf("err = %v, want one that is not ErrUnavailable", err)
	}
	event.Order.Metadata["k"] = strings.Repeat("x", cfg.MaxEventBytes+orderBytes-1000)
	if _, err := l.AppendOrder(deadline(t), event, 0); err != nil {
		t.Error(err)
	}
}

func TestReadOrders(t *testing.T) {
	cfg := testConfig(t)
	l := openLog(t, cfg)
	before := time.Now()
	for i := range 5 {
		appendOrder(t, l, fmt.Sprintf("cs_%d", i), 1, 0)
	}
	appendOrder(t, l, "cs_1", 2, 2)
	flush(t, l)
	if diff := cmp.Diff([]string{"cs_2.1", "cs_3.1", "cs_4.1", "cs_1.2"}, readIDs(t, l, 2)); diff != "" {
		t.Error(diff)
	}
	var after uint64
	for _, want := range []uint64{2, 6} {
		records, err := l.OrderEvents(deadline(t), "cs_1", after, 1)
		if err != nil || len(records) != 1 || records[0].Sequence != want {
			t.Fatalf("events of cs_1 after %d = %v, %v", after, records, err)
		}
		after = records[0].Sequence
	}
	if records, err := l.OrderEvents(deadline(t), "cs_1", after, 1); err != nil || len(records) != 0 {
		t.Errorf("events of cs_1 after the last = %v, %v", records, err)
	}
	for _, tt := range []struct {
		at   time.Time
		want uint64
	}{{before.Add(-time.Hour), 0}, {time.Now().Add(time.Hour), 6}, {storeTime(t, l, 4), 3}, {time.Time{}, 0}, {time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), 6}} {
		if got, err := l.SequenceBefore(deadline(t), tt.at); err != nil || got != tt.want {
			t.Errorf("SequenceBefore(%v) = %d, %v; want %d", tt.at, got, err, tt.want)
		}
	}

	id := mustState(t, l).LogID
	l.Close()
	l = openLog(t, cfg)
	if state := mustState(t, l); state.LogID != id || id == "" || state.First != 1 || state.Durable != 6 {
		t.Errorf("state after reopening = %+v, the id was %q", state, id)
	}

	// Retention takes the oldest, which are not among the newest in memory.
	e, _ := l.current()
	e.tail.begin(6, 0)
	if err := e.orders.Purge(deadline(t), jetstream.WithPurgeSequence(4)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := l.ReadOrders(deadline(t), 2, 10); !errors.Is(err, ErrExpired) {
		t.Errorf("err = %v, want ErrExpired", err)
	}
	// A hole in the middle is not a loss.
	if err := e.orders.DeleteMsg(deadline(t), 5); err != nil {
		t.Fatal(err)
	}
	for after, want := range map[uint64][]string{3: {"cs_3.1", "cs_1.2"}, 4: {"cs_1.2"}, 6: nil} {
		if diff := cmp.Diff(want, readIDs(t, l, after)); diff != "" {
			t.Error(diff)
		}
	}
}

func storeTime(t *testing.T, l *Log, sequence uint64) time.Time {
	t.Helper()
	records, _, err := l.ReadOrders(deadline(t), sequence-1, 1)
	if err != nil {
		t.Fatal(err)
	}
	return records[0].Time
}

func mustState(t *testing.T, l *Log) OrdersState {
	t.Helper()
	state, err := l.OrdersState(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func TestNewestOrders(t *testing.T) {
	l := openLog(t, testConfig(t))
	const orders = listWindow + 100
	for i := range orders {
		appendOrder(t, l, fmt.Sprintf("cs_%d", i), 1, 0)
	}
	// cs_0 .. cs_9 change once more: their first events are superseded.
	for i := range 10 {
		appendOrder(t, l, fmt.Sprintf("cs_%d", i), 2, uint64(i+1))
	}
	flush(t, l)
	snapshot := mustState(t, l).Durable
	// A change after the snapshot does not take an order out of the list.
	appendOrder(t, l, "cs_20", 2, 21)
	flush(t, l)

	for _, limit := range []int{1000, 7} {
		if diff := cmp.Diff(wantNewest(orders), listOrders(t, l, snapshot, limit)); diff != "" {
			t.Errorf("limit %d: %s", limit, diff)
		}
	}
}

func wantNewest(orders int) []string {
	var want []string
	for i := 9; i >= 0; i-- {
		want = append(want, fmt.Sprintf("cs_%d", i))
	}
	for i := orders - 1; i >= 10; i-- {
		want = append(want, fmt.Sprintf("cs_%d", i))
	}
	return want
}

func listOrders(t *testing.T, l *Log, snapshot uint64, limit int) []string {
	t.Helper()
	var got []string
	for below := snapshot + 1; below != 0; {
		records, next, err := l.NewestOrders(deadline(t), snapshot, below, limit)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			got = append(got, r.OrderID)
		}
		if len(records) > limit {
			t.Fatalf("%d records, at most %d", len(records), limit)
		}
		below = next
	}
	return got
}

func TestFullInboxRefusesAndDropsNothing(t *testing.T) {
	l := openLog(t, testConfig(t))
	appendInbox(t, l, "evt_1")
	e, _ := l.current()
	limited := e.inbox.CachedInfo().Config
	limited.MaxMsgs = 1
	if _, err := e.js.UpdateStream(deadline(t), limited); err != nil {
		t.Fatal(err)
	}
	// The engine answers both with the same code; only one of them is stored.
	if _, err := l.AppendInbox(deadline(t), RawEvent{ID: "evt_2", Body: []byte("{}")}); !errors.Is(err, ErrFull) {
		t.Errorf("err = %v, want ErrFull", err)
	}
	if !appendInbox(t, l, "evt_1") {
		t.Error("a copy is not recognised while the stream is full")
	}
	if err := l.Ready(); err != nil {
		t.Errorf("a full stream is no reason to reopen: %v", err)
	}
}

func TestUnackedEventsComeAgain(t *testing.T) {
	cfg := testConfig(t)
	l := openLog(t, cfg)
	for i := range 3 {
		appendInbox(t, l, fmt.Sprintf("evt_%d", i))
	}
	consume(t, l, 3, false)
	l.Close()
	l = openLog(t, cfg)
	ctx, stop := context.WithCancel(deadline(t))
	defer stop()
	var again []string
	l.ConsumeInbox(ctx, func(_ context.Context, batch []*InboxMessage) {
		for _, m := range batch {
			if m.Deliveries < 1 || m.StoreTime.IsZero() || m.SecretLabel != "whsec#1" || string(m.Body) != `{"id":"`+m.ID+`"}` {
				t.Errorf("message = %+v", m)
			}
			// Retried at once, it comes once more, counted.
			if m.ID == "evt_2" && len(again) < 3 {
				m.Retry(0)
			} else {
				m.Ack()
			}
			again = append(again, m.ID)
		}
		if len(again) == 4 {
			stop()
		}
	})
	if diff := cmp.Diff([]string{"evt_0", "evt_1", "evt_2", "evt_2"}, again); diff != "" {
		t.Error(diff)
	}
}

func TestBuckets(t *testing.T) {
	cfg := testConfig(t)
	l := openLog(t, cfg)
	b := l.Bucket(References)
	if empty, err := b.Empty(deadline(t)); err != nil || !empty {
		t.Errorf("a new bucket: empty %v, %v", empty, err)
	}
	if _, err := b.Get(deadline(t), "live.acct_1.pi_1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("err = %v, want ErrNotFound", err)
	}
	if err := b.Put(deadline(t), "live.acct_1.pi_1", []byte("cs_1")); err != nil {
		t.Fatal(err)
	}
	if owner, err := b.Claim(deadline(t), "live.acct_1.pi_1", []byte("pi_1")); err != nil || string(owner) != "cs_1" {
		t.Errorf("claim of a key that is taken: %q, %v", owner, err)
	}
	if owner, err := b.Claim(deadline(t), "k2", []byte("pi_2")); err != nil || string(owner) != "pi_2" {
		t.Errorf("claim of a free key: %q, %v", owner, err)
	}
	var writers sync.WaitGroup
	for range 20 {
		writers.Go(func() {
			if err := b.Update(deadline(t), "sum", func(old []byte) []byte { return append(old, 'x') }); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	if err := b.Update(deadline(t), "gone", func(old []byte) []byte { return []byte("x") }); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := b.Update(deadline(t), "gone", func(old []byte) []byte { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, l)
	l.Close()
	l = openLog(t, cfg)
	b = l.Bucket(References)
	if sum, err := b.Get(deadline(t), "sum"); err != nil || len(sum) != 20 {
		t.Errorf("sum = %q, %v: an update was lost", sum, err)
	}
	if keys, err := b.Keys(deadline(t)); err != nil || len(keys) != 3 {
		t.Errorf("keys = %v, %v", keys, err)
	}
	if err := b.Delete(deadline(t), "sum"); err != nil {
		t.Fatal(err)
	}
	if err := b.Delete(deadline(t), "never there"[:5]); err != nil {
		t.Error(err)
	}
	if keys, err := b.Keys(deadline(t)); err != nil || len(keys) != 2 {
		t.Errorf("keys after deleting one = %v, %v", keys, err)
	}
	notes := l.Bucket(PendingItems)
	if err := notes.Put(deadline(t), "cs_1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if empty, err := notes.Empty(deadline(t)); err != nil || empty {
		t.Errorf("a bucket with a key: empty %v, %v", empty, err)
	}
	if err := notes.Forget(deadline(t), "cs_1"); err != nil {
		t.Fatal(err)
	}
	if empty, err := notes.Empty(deadline(t)); err != nil || !empty {
		t.Errorf("a bucket whose key was deleted: empty %v, %v", empty, err)
	}
	if owner, err := b.Claim(deadline(t), "sum", []byte("again")); err != nil || string(owner) != "again" {
		t.Errorf("claim of a deleted key: %q, %v", owner, err)
	}
}

// A copy of the files of a running log is what a killed process leaves.
func TestDeletedKeyStaysDeletedAfterAKill(t *testing.T) {
	cfg := testConfig(t)
	l := openLog(t, cfg)
	b := l.Bucket(HeldOrders)
	for i := range 5 {
		for _, key := range []string{"uid.deleted", "uid.kept", "other.kept"} {
			if err := b.Put(deadline(t), key, fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.Delete(deadline(t), "uid.deleted"); err != nil {
		t.Fatal(err)
	}
	if err := b.Refresh(deadline(t), 0); err != nil {
		t.Fatal(err)
	}
	killed := cfg
	killed.Dir = t.TempDir()
	if err := os.CopyFS(killed.Dir, os.DirFS(cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	b = openLog(t, killed).Bucket(HeldOrders)
	found := map[string]string{}
	if err := b.Entries(deadline(t), "uid.>", func(key string, value []byte) error {
		found[key] = string(value)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := map[string]string{"uid.kept": "4"}; !maps.Equal(found, want) {
		t.Errorf("after a kill there is %v, want %v", found, want)
	}
}

func TestReadInbox(t *testing.T) {
	l := openLog(t, testConfig(t))
	for i := range 5 {
		appendInbox(t, l, fmt.Sprintf("evt_%d", i))
	}
	state, err := l.InboxState(deadline(t))
	if err != nil || state.First != 1 || state.Last != 5 || state.Converted != 0 {
		t.Errorf("state = %+v, %v", state, err)
	}
	events, err := l.ReadInbox(deadline(t), 3, 10)
	if err != nil || len(events) != 2 || events[0].ID != "evt_3" || events[0].Sequence != 4 || events[1].SecretLabel != "whsec#1" {
		t.Errorf("events = %v, %v", events, err)
	}
	if events, err := l.ReadInbox(deadline(t), 5, 10); err != nil || len(events) != 0 {
		t.Errorf("events behind the last = %v, %v", events, err)
	}
	event, err := l.InboxEvent(deadline(t), "evt_2")
	if err != nil || event.Sequence != 3 || string(event.Body) != `{"id":"evt_2"}` {
		t.Errorf("event = %v, %v", event, err)
	}
	for _, id := range []string{"evt_9", "evt_*", ""} {
		if _, err := l.InboxEvent(deadline(t), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: err = %v, want ErrNotFound", id, err)
		}
	}
	for at, want := range map[time.Time]uint64{event.StoreTime: 2, time.Now().Add(-time.Hour): 0, time.Now().Add(time.Hour): 5, {}: 0, time.Date(2263, 1, 1, 0, 0, 0, 0, time.UTC): 5} {
		if got, err := l.InboxSequenceBefore(deadline(t), at); err != nil || got != want {
			t.Errorf("InboxSequenceBefore = %d, %v; want %d", got, err, want)
		}
	}
	consume(t, l, 5, true)
	waitFor(t, func() bool {
		state, err := l.InboxState(deadline(t))
		return err == nil && state.Converted == 5
	})
}

func TestSecondProcessIsRefused(t *testing.T) {
	cfg := testConfig(t)
	l := openLog(t, cfg)
	if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrLocked) {
		t.Fatalf("err = %v, want ErrLocked", err)
	}
	l.Close()
	openLog(t, cfg)
}

func TestClosedLogRefuses(t *testing.T) {
	l := openLog(t, testConfig(t))
	l.Close()
	if _, err := l.AppendInbox(t.Context(), RawEvent{ID: "evt_1"}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("AppendInbox: %v", err)
	}
	if err := l.ConsumeInbox(t.Context(), nil); !errors.Is(err, ErrUnavailable) {
		t.Errorf("ConsumeInbox: %v", err)
	}
	if err := l.AwaitOrders(t.Context(), 0); !errors.Is(err, ErrUnavailable) {
		t.Errorf("AwaitOrders: %v", err)
	}
}
