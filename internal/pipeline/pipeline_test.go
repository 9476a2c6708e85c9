package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/logtest"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/sample"
)

// rig is a pipeline on a real log.
type rig struct {
	t        *testing.T
	dir      string
	log      *eventlog.Log
	pipeline *Pipeline
	lines    *logtest.Buffer
	metrics  *prometheus.Registry
}

func newRig(t *testing.T, sync func() error) *rig {
	t.Helper()
	return newRigOn(t, eventlog.Config{Dir: t.TempDir(), Sync: sync})
}

// newRigOn makes a rig on a log that is opened so.
func newRigOn(t *testing.T, cfg eventlog.Config) *rig {
	t.Helper()
	lines := &logtest.Buffer{}
	logger := slog.New(slog.NewTextHandler(lines, nil))
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(lines)
		}
	})
	cfg.MaxEventBytes, cfg.Logger = 1<<20, logger
	log, err := eventlog.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	metrics := prometheus.NewRegistry()
	pipeline := New(Config{Log: log, Sources: orders.DefaultSources(), Logger: logger, Metrics: metrics})
	return &rig{t, cfg.Dir, log, pipeline, lines, metrics}
}

func (r *rig) deadline() context.Context {
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	r.t.Cleanup(cancel)
	return ctx
}

func (r *rig) store(id string, body []byte) {
	r.t.Helper()
	if _, err := r.log.AppendInbox(r.deadline(), eventlog.RawEvent{ID: id, Body: body, SecretLabel: "whsec#test"}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) storeStory(eventType string) []sample.Event {
	r.t.Helper()
	story, err := sample.Story(eventType, time.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, event := range story {
		r.store(event.ID, event.Body)
	}
	return story
}

// run converts until the stream of orders holds n events more than before, and
// everything in hand was dealt with.
func (r *rig) run(n uint64) {
	r.t.Helper()
	state, err := r.log.OrdersState(r.deadline())
	if err != nil {
		r.t.Fatal(err)
	}
	r.running(func() {
		if n > 0 {
			if err := r.log.AwaitOrders(r.deadline(), state.Durable+n-1); err != nil {
				r.t.Fatal(err)
			}
		}
		awaitValue(r, func() (bool, bool) {
			inbox, err := r.log.InboxState(r.deadline())
			return true, err == nil && inbox.Converted == inbox.Last
		})
	})
}

// changes lists all durable order events in short.
func (r *rig) changes() (ids []string) {
	r.t.Helper()
	state, err := r.log.OrdersState(r.deadline())
	if err != nil {
		r.t.Fatal(err)
	}
	for after := state.First - 1; ; {
		records, next, err := r.log.ReadOrders(r.deadline(), after, 100)
		if err != nil {
			r.t.Fatal(err)
		}
		if next == after {
			return ids
		}
		for _, record := range records {
			event, err := record.Event()
			if err != nil {
				r.t.Fatal(err)
			}
			ids = append(ids, event.GetId()+" "+shortName(event.GetKind().String(), "ORDER_EVENT_KIND_")+" of "+event.GetSourceEventId())
		}
		after = next
	}
}

func TestStoriesBecomeOrders(t *testing.T) {
	r := newRig(t, nil)
	paid, later := r.storeStory(sample.Completed), r.storeStory(sample.PaymentSucceeded)
	r.store("evt_unused", []byte(`{"id":"evt_unused","type":"price.created","data":{"object":{}}}`))
	r.store("evt_thin", []byte(`{"id":"evt_thin","object":"v2.core.event","type":"v1.checkout.session.completed","created":"2026-01-01T00:00:00Z"}`))
	r.run(3)
	want := map[string]bool{
		paid[0].OrderID + ".1 PAID of " + paid[0].ID:     true,
		later[0].OrderID + ".1 PLACED of " + later[0].ID: true,
		later[0].OrderID + ".2 PAID of " + later[1].ID:   true,
	}
	got := map[string]bool{}
	for _, c := range r.changes() {
		got[c] = true
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	record, err := r.log.DurableOrder(r.deadline(), paid[0].OrderID)
	if err != nil {
		t.Fatal(err)
	}
	event, err := record.Event()
	if err != nil {
		t.Fatal(err)
	}
	// Without an API key the line items never come: nothing waits for them.
	if o := event.GetOrder(); o.GetLineItemsState() != ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE || o.GetDirective() != ordergatev1.Directive_DIRECTIVE_SHIP || record.Country != "DE" {
		t.Errorf("order = %v", o)
	}
	for _, line := range []string{
		"event=" + paid[0].ID + " outcome=CONVERTED order=" + paid[0].OrderID + " mode=test revision=1 kind=PAID directive=SHIP secret=whsec#test",
		"type=price.created event=evt_unused outcome=IGNORED",
		"type=v1.checkout.session.completed event=evt_thin outcome=IGNORED",
	} {
		if !strings.Contains(r.lines.String(), line) {
			t.Errorf("no log line with %q", line)
		}
	}
	if problems, err := testutil.GatherAndLint(r.metrics); err != nil || len(problems) > 0 {
		t.Errorf("metrics: %v %v", problems, err)
	}
}

// An event that cannot be converted stops nothing, is said, and is kept.
func TestPoisonIsParkedAndStopsNothing(t *testing.T) {
	r := newRig(t, nil)
	const poison = `{"id":"evt_poison","type":"checkout.session.completed","data":{"object":{"id":"cs_1","object":"checkout.session","payment_status":"surely"}}}`
	r.store("evt_poison", []byte(poison))
	for i := range inboxFill {
		r.store(fmt.Sprintf("evt_null%d", i), fmt.Appendf(nil, `{"id":"evt_null%d","type":"checkout.session.completed","data":null}`, i))
	}
	good := r.storeStory(sample.Completed)
	r.run(1)
	if diff := cmp.Diff([]string{good[0].OrderID + ".1 PAID of " + good[0].ID}, r.changes()); diff != "" {
		t.Error(diff)
	}
	parked, err := r.pipeline.ParkedEvent(r.deadline(), "evt_poison")
	if err != nil {
		t.Fatal(err)
	}
	if parked.Outcome != Failed || string(parked.Event) != poison || !strings.Contains(parked.Detail, "payment_status") {
		t.Errorf("parked = %+v", parked)
	}
	if duplicate, err := r.log.AppendInbox(r.deadline(), eventlog.RawEvent{ID: "evt_poison", Body: []byte(poison)}); err != nil || !duplicate {
		t.Errorf("the raw event is gone: %v, %v", duplicate, err)
	}
	if !strings.Contains(r.lines.String(), "event=evt_poison outcome=FAILED") {
		t.Error("no log line says that the event failed")
	}
}

// inboxFill is more than is handed out at a time.
const inboxFill = 600

// Converted twice, an event changes nothing the second time.
func TestReplayChangesNothing(t *testing.T) {
	r := newRig(t, nil)
	r.storeStory(sample.PaymentSucceeded)
	r.storeStory(sample.PaymentFailed)
	ctx, stop := context.WithCancel(r.deadline())
	defer stop()
	n := 0
	r.log.ConsumeInbox(ctx, func(ctx context.Context, batch []*eventlog.InboxMessage) {
		r.pipeline.handle(ctx, batch)
		r.pipeline.handle(ctx, batch)
		r.pipeline.finishing.Wait()
		if n += len(batch); n == 4 {
			stop()
		}
	})
	if got := r.changes(); len(got) != 4 {
		t.Errorf("changes = %v", got)
	}
	if strings.Count(r.lines.String(), "outcome=UNCHANGED") != 4 {
		t.Error("the second conversion is not called UNCHANGED")
	}
}

// Nothing is acked before the flush that covers what was made of it: with a
// flush that fails, the events come again.
func TestNothingIsAckedBeforeTheFlush(t *testing.T) {
	var broken atomic.Bool
	r := newRig(t, func() error {
		if broken.Load() {
			return errors.New("input/output error")
		}
		return nil
	})
	story := r.storeStory(sample.Completed)
	var deliveries atomic.Int32
	ctx, stop := context.WithCancel(r.deadline())
	defer stop()
	r.log.ConsumeInbox(ctx, func(ctx context.Context, batch []*eventlog.InboxMessage) {
		for _, m := range batch {
			if m.ID == story[0].ID && deliveries.Add(1) == 1 {
				broken.Store(true)
			}
		}
		r.pipeline.handle(ctx, batch)
		r.pipeline.finishing.Wait()
		broken.Store(false)
		if deliveries.Load() >= 2 {
			stop()
		}
	})
	if n := deliveries.Load(); n != 2 {
		t.Errorf("%d deliveries, want 2", n)
	}
	if diff := cmp.Diff([]string{story[0].OrderID + ".1 PAID of " + story[0].ID}, r.changes()); diff != "" {
		t.Error(diff)
	}
}

// Several writers of one order never write the same revision, and lose nothing.
func TestWritersOfOneOrder(t *testing.T) {
	r := newRig(t, nil)
	other := New(Config{Log: r.log, Sources: orders.DefaultSources(), Logger: r.pipeline.Logger, Metrics: prometheus.NewRegistry()})
	for range 30 {
		story, err := sample.Story(sample.PaymentSucceeded, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		var writers sync.WaitGroup
		for i, p := range []*Pipeline{r.pipeline, other} {
			e, err := orders.Parse(story[i].Body, orders.DefaultSources())
			if err != nil {
				t.Fatal(err)
			}
			writers.Go(func() {
				converted := &result{stored: &eventlog.StoredEvent{RawEvent: eventlog.RawEvent{ID: e.ID}}, event: e}
				if p.convert(r.deadline(), []*result{converted}); converted.outcome != Converted && converted.outcome != Unchanged {
					t.Errorf("%s: %v", converted.outcome, converted.err)
				}
			})
		}
		writers.Wait()
		if err := r.log.Flush(r.deadline()); err != nil {
			t.Fatal(err)
		}
		records, err := r.log.OrderEvents(r.deadline(), story[0].OrderID, 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		for i, record := range records {
			event, err := record.Event()
			if err != nil {
				t.Fatal(err)
			}
			if event.GetOrder().GetRevision() != int64(i+1) {
				t.Errorf("revision %d at place %d", event.GetOrder().GetRevision(), i+1)
			}
			if i == len(records)-1 && event.GetOrder().GetStatus() != ordergatev1.OrderStatus_ORDER_STATUS_PAID {
				t.Errorf("the order ends as %v", event.GetOrder().GetStatus())
			}
		}
	}
}

func TestGuardMakesAnErrorOfAPanic(t *testing.T) {
	if err := guard(func() error { panic("boom") }); err == nil || !strings.Contains(err.Error(), "boom") {
		t.Errorf("err = %v", err)
	}
}

func TestRetryDelay(t *testing.T) {
	for deliveries, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 7: time.Minute, 100000: time.Minute} {
		if got := retryDelay(deliveries); got != want {
			t.Errorf("retryDelay(%d) = %v, want %v", deliveries, got, want)
		}
	}
}
