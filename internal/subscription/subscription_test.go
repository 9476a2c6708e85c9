package subscription

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/durationpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

// slowDisk is a disk whose flushes can be held up.
type slowDisk struct {
	mu      sync.Mutex
	waiting chan struct{} // has room for one: a flush waits
}

func (d *slowDisk) sync() error {
	select {
	case d.waiting <- struct{}{}:
	default:
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return nil
}

// hold holds flushes up until release is called.
func (d *slowDisk) hold() (release func()) {
	d.mu.Lock()
	select {
	case <-d.waiting:
	default:
	}
	return d.mu.Unlock
}

type fixture struct {
	t    *testing.T
	dir  string
	disk *slowDisk
	log  *eventlog.Log
	m    *Manager
}

// open opens the log and its subscriptions; call it again after close.
func (f *fixture) open() {
	logger := slog.New(slog.NewTextHandler(f.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	var err error
	f.log, err = eventlog.Open(f.ctx(), eventlog.Config{Dir: f.dir, MaxEventBytes: 1 << 20, Logger: logger, Sync: f.disk.sync})
	if err != nil {
		f.t.Fatal(err)
	}
	f.m = New(f.log, logger)
}

func (f *fixture) close() {
	f.m.Close()
	f.log.Close()
}

func newFixture(t *testing.T) *fixture {
	f := &fixture{t: t, dir: t.TempDir(), disk: &slowDisk{waiting: make(chan struct{}, 1)}}
	f.open()
	t.Cleanup(func() { f.close() })
	return f
}

func (f *fixture) ctx() context.Context {
	ctx, cancel := context.WithTimeout(f.t.Context(), 30*time.Second)
	f.t.Cleanup(cancel)
	return ctx
}

func (f *fixture) store(orders ...string) {
	f.t.Helper()
	for _, id := range orders {
		order := &ordergatev1.Order{Id: id, Revision: 1}
		if _, err := f.log.AppendOrder(f.ctx(), &ordergatev1.OrderEvent{Id: id + ".1", Order: order}, 0); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := f.log.Flush(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
}

// take returns n deliveries.
func (f *fixture) take(w *Worker, n int) (deliveries []Delivery) {
	f.t.Helper()
	for len(deliveries) < n {
		select {
		case <-w.Signal():
			deliveries = append(deliveries, w.Take()...)
		case <-f.ctx().Done():
			f.t.Fatalf("%d deliveries, want %d", len(deliveries), n)
		}
	}
	return deliveries
}

func (f *fixture) results(s *Settlement) string {
	f.t.Helper()
	select {
	case <-s.Stored():
	case <-f.ctx().Done():
		f.t.Fatal("nothing is stored")
	}
	text := ""
	for _, result := range s.Results() {
		text += short(result.GetCode()) + " "
	}
	return text
}

func pending(s *Settlement) bool {
	select {
	case <-s.Stored():
		return false
	default:
		return true
	}
}

func TestResultsWaitForTheStore(t *testing.T) {
	f := newFixture(t)
	f.store("cs_1", "cs_2", "cs_3")
	s, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: "s"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Attach(WorkerConfig{MaxEvents: 10, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	d := f.take(w, 3)
	// The place relies on the record of a held order: that is flushed first.
	release := f.disk.hold()
	first := s.Settle([]string{d[0].ID}, []*ordergatev1.Nack{{DeliveryId: d[1].ID, Delay: durationpb.New(time.Hour)}}, nil)
	<-f.disk.waiting
	again := s.Settle([]string{d[0].ID}, nil, nil)
	next := s.Settle([]string{d[2].ID}, nil, nil)
	if pending(first) && pending(again) && pending(next) {
		t.Log("all wait")
	} else {
		t.Error("there are results of what is not stored")
	}
	// What waits when the gateway ends is stored too.
	closed := make(chan struct{})
	go func() {
		f.m.Close()
		close(closed)
	}()
	<-s.Ended()
	release()
	for what, settlement := range map[string]*Settlement{"first": first, "again": again, "next": next} {
		want := map[string]string{"first": "OK OK ", "again": "OK ", "next": "OK "}[what]
		if got := f.results(settlement); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	<-closed
	if got := f.results(s.Settle([]string{d[2].ID}, nil, nil)); got != "RETRYABLE " {
		t.Errorf("after the end: %q", got)
	}
	w.Detach()

	f.close()
	f.open()
	s, err = f.m.Open(f.ctx(), "s")
	if err != nil {
		t.Fatal(err)
	}
	if described, err := s.Describe(f.ctx()); err != nil || described.GetStats().GetPendingOrders() != 1 || described.GetStats().GetBacklog() != 0 {
		t.Errorf("after a restart: %v, %v", described.GetStats(), err)
	}
}

// A log that fails and is opened again may have lost what was not flushed:
// everything is stored once more, and nothing is delivered twice or not at all.
func TestLogThatIsOpenedAgain(t *testing.T) {
	f := newFixture(t)
	var failing sync.Mutex
	failed := false
	f.close()
	logger := slog.New(slog.DiscardHandler)
	log, err := eventlog.Open(f.ctx(), eventlog.Config{Dir: f.dir, MaxEventBytes: 1 << 20, Logger: logger, Sync: func() error {
		failing.Lock()
		defer failing.Unlock()
		if failed {
			failed = false
			return errors.New("the disk fails once")
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	f.log, f.m = log, New(log, logger)
	orders := make([]string, 20)
	for i := range orders {
		orders[i] = fmt.Sprintf("cs_%d", i)
	}
	f.store(orders...)
	s, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: "s"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Attach(WorkerConfig{MaxEvents: 10, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	times, _ := f.log.Opened()
	seen := map[string]int{}
	for _, d := range f.take(w, 10) {
		seen[d.Record.OrderID]++
		failing.Lock()
		failed = len(seen) == 5
		failing.Unlock()
		settlement := s.Settle(nil, []*ordergatev1.Nack{{DeliveryId: d.ID, Action: ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER}}, nil)
		if got := f.results(settlement); got != "OK " && got != "RETRYABLE " {
			t.Errorf("a rejection is answered %q", got)
		}
	}
	for _, d := range f.take(w, 10) {
		seen[d.Record.OrderID]++
		// A result may be that it could not be stored, while the log is away.
		for f.results(s.Settle([]string{d.ID}, nil, nil)) != "OK " {
		}
	}
	if now, _ := f.log.Opened(); now == times {
		t.Error("the log was not opened again: the test has not tried it")
	}
	if len(seen) != 20 {
		t.Errorf("%d orders were delivered, want 20", len(seen))
	}
	w.Detach()
	f.close()
	f.open()
	if s, err = f.m.Open(f.ctx(), "s"); err != nil {
		t.Fatal(err)
	}
	if n := len(s.DeadLetters(0, 100)); n != 10 {
		t.Errorf("%d dead letters after a restart, want 10", n)
	}
	if described, err := s.Describe(f.ctx()); err != nil || described.GetStats().GetPendingOrders() != 0 || described.GetStats().GetBacklog() != 0 {
		t.Errorf("after a restart: %v, %v", described.GetStats(), err)
	}
}

// The log keeps what a dead letter needs, however old it gets, and what is held
// is kept too.
func TestLogKeepsWhatIsHeld(t *testing.T) {
	f := newFixture(t)
	f.close()
	const configured = 30 * 24 * time.Hour
	logger := slog.New(slog.DiscardHandler)
	log, err := eventlog.Open(f.ctx(), eventlog.Config{Dir: f.dir, MaxEventBytes: 1 << 20, OrdersMaxAge: configured, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	f.log, f.m = log, New(log, logger)
	f.store("cs_1")
	s, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: "s"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	age := func() time.Duration {
		t.Helper()
		state, err := f.log.OrdersState(f.ctx())
		if err != nil {
			t.Fatal(err)
		}
		return state.MaxAge
	}
	later := time.Now().Add(100 * 24 * time.Hour)
	if err := f.m.keepHeld(f.ctx(), later); err != nil || age() != configured {
		t.Errorf("with nothing held, the log keeps events for %v, %v", age(), err)
	}
	w, err := s.Attach(WorkerConfig{MaxEvents: 10, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Detach()
	d := f.take(w, 1)
	f.results(s.Settle(nil, []*ordergatev1.Nack{{DeliveryId: d[0].ID, Action: ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER}}, nil))
	if err := f.m.keepHeld(f.ctx(), later); err != nil || age() < 100*24*time.Hour+upkeepMargin-time.Hour {
		t.Errorf("with a dead letter of 100 days, the log keeps events for %v, %v", age(), err)
	}
	if _, err := s.Discard(f.ctx(), nil, true); err != nil {
		t.Fatal(err)
	}
	if err := f.m.keepHeld(f.ctx(), later); err != nil || age() != configured {
		t.Errorf("with nothing held any more, the log keeps events for %v, %v", age(), err)
	}
}

// It is said before events go that nobody has acknowledged.
func TestUnackedEventsThatWillGo(t *testing.T) {
	f := newFixture(t)
	f.close()
	const kept = 30 * 24 * time.Hour
	var lines bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&lines, nil))
	log, err := eventlog.Open(f.ctx(), eventlog.Config{Dir: f.dir, MaxEventBytes: 1 << 20, OrdersMaxAge: kept, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	f.log, f.m = log, New(log, logger)
	f.store("cs_1")
	for _, name := range []string{"slow", "done"} {
		s, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: name}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if name == "done" {
			w := f.attach(s)
			f.results(s.Settle([]string{f.take(w, 1)[0].ID}, nil, nil))
		}
	}
	for _, tt := range []struct {
		age  time.Duration
		said int
	}{{0, 0}, {kept - upkeepMargin - time.Minute, 0}, {kept - upkeepMargin + time.Minute, 1}, {kept + time.Hour, 1}} {
		lines.Reset()
		if err := f.m.warnOfAge(f.ctx(), time.Now().Add(tt.age)); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(lines.String(), "will be removed by their age"); n != tt.said || n > 0 && !strings.Contains(lines.String(), "subscription=slow") {
			t.Errorf("after %v: %s", tt.age, &lines)
		}
	}
}

func TestMetrics(t *testing.T) {
	f := newFixture(t)
	f.store("cs_1", "cs_2", "cs_3")
	for _, name := range []string{"idle", "works"} {
		if _, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: name}, 0); err != nil {
			t.Fatal(err)
		}
	}
	s, err := f.m.Open(f.ctx(), "works")
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Attach(WorkerConfig{MaxEvents: 10, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Detach()
	d := f.take(w, 3)
	f.results(s.Settle([]string{d[0].ID}, []*ordergatev1.Nack{{DeliveryId: d[1].ID, Action: ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER}}, nil))
	want := `
ordergate_subscription_backlog_events{subscription="idle"} 3
ordergate_subscription_backlog_events{subscription="works"} 0
ordergate_subscription_dead_letters{subscription="idle"} 0
ordergate_subscription_dead_letters{subscription="works"} 1
ordergate_subscription_outstanding_events{subscription="idle"} 0
ordergate_subscription_outstanding_events{subscription="works"} 1
ordergate_subscription_pending_orders{subscription="idle"} 0
ordergate_subscription_pending_orders{subscription="works"} 1
ordergate_subscription_streams{subscription="idle"} 0
ordergate_subscription_streams{subscription="works"} 1
ordergate_subscriptions_unread 0
`
	registry := prometheus.NewRegistry()
	registry.MustRegister(f.m.Collector())
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if family.GetName() == "ordergate_subscription_oldest_unacked_timestamp_seconds" {
				if age := time.Since(time.UnixMilli(int64(metric.GetGauge().GetValue() * 1000))); age < 0 || age > time.Minute {
					t.Errorf("the oldest event is %v old", age)
				}
				continue
			}
			labels := ""
			for _, label := range metric.GetLabel() {
				labels += fmt.Sprintf("{%s=%q}", label.GetName(), label.GetValue())
			}
			fmt.Fprintf(&got, "%s%s %v\n", family.GetName(), labels, metric.GetGauge().GetValue())
		}
	}
	if got := "\n" + got.String(); got != want {
		t.Errorf("metrics are%s", got)
	}
}

// storeDirectives stores events of one order, with one directive each.
func (f *fixture) storeDirectives(id string, directives ...ordergatev1.Directive) {
	f.t.Helper()
	previous := uint64(0)
	newest, err := f.log.NewestOrder(f.ctx(), id)
	revision := int64(0)
	if err == nil {
		previous, revision = newest.Sequence, newest.Revision()
	}
	for _, directive := range directives {
		revision++
		event := &ordergatev1.OrderEvent{Id: fmt.Sprintf("%s.%d", id, revision), Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UPDATED,
			Order: &ordergatev1.Order{Id: id, Revision: revision, Directive: directive}}
		if revision == 1 {
			event.Kind = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID
		}
		if previous, err = f.log.AppendOrder(f.ctx(), event, previous); err != nil {
			f.t.Fatal(err)
		}
	}
	if err := f.log.Flush(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
}

// current returns the next deliveries that are current.
func (f *fixture) current(s *Subscription, w *Worker) []Delivery {
	f.t.Helper()
	for {
		select {
		case <-w.Signal():
			if deliveries := s.Current(f.ctx(), w.Take()); len(deliveries) > 0 {
				return deliveries
			}
		case <-f.ctx().Done():
			f.t.Fatal("nothing is delivered")
		}
	}
}

func TestLatestDeliveriesAreCurrent(t *testing.T) {
	const (
		ship   = ordergatev1.Directive_DIRECTIVE_SHIP
		hold   = ordergatev1.Directive_DIRECTIVE_HOLD
		cancel = ordergatev1.Directive_DIRECTIVE_CANCEL
	)
	paid := &ordergatev1.OrderEventFilter{Kinds: []ordergatev1.OrderEventKind{ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID}}
	f := newFixture(t)
	s, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: "paid", Filter: paid}, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.storeDirectives("cs_1", ship, hold, cancel)
	w, err := s.Attach(WorkerConfig{MaxEvents: 1, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	// The filter excludes the newest revision, which is delivered all the same.
	d := f.current(s, w)[0]
	if d.Record.Revision() != 3 || d.Record.Directive != cancel || len(d.Replaced) != 1 || d.Newest.Revision() != 3 {
		t.Errorf("revision %d, %v, replaces %v", d.Record.Revision(), d.Record.Directive, d.Replaced)
	}
	if got := f.results(s.Settle([]string{d.ID}, nil, nil)); got != "OK " {
		t.Errorf("the ack is answered %v", got)
	}

	// A change after the lease began, and before the delivery was sent.
	f.storeDirectives("cs_2", ship)
	taken := f.take(w, 1)
	f.storeDirectives("cs_2", hold)
	if current := s.Current(f.ctx(), taken); len(current) > 0 {
		t.Errorf("revision %d is sent, which is outdated", current[0].Record.Revision())
	}
	if d = f.current(s, w)[0]; d.Record.Directive != hold || d.Attempt != 1 {
		t.Errorf("%v, attempt %d", d.Record.Directive, d.Attempt)
	}
	if got := f.results(s.Settle([]string{d.ID}, nil, nil)); got != "OK " {
		t.Errorf("the ack is answered %v", got)
	}

	// Where every event is delivered, the delivery names the newest revision.
	every, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: "every", Filter: paid, Delivery: everyEvent}, 0)
	if err != nil {
		t.Fatal(err)
	}
	w, err = every.Attach(WorkerConfig{MaxEvents: 1, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	d = f.current(every, w)[0]
	if d.Record.Directive != ship || d.Newest.Directive != cancel || d.Newest.Revision() != 3 || len(d.Replaced) > 0 {
		t.Errorf("%v, newest %v of revision %d, replaces %v", d.Record.Directive, d.Newest.Directive, d.Newest.Revision(), d.Replaced)
	}
}

// A subscription that was stored before there were modes has every event delivered.
func TestDeliveryModeOfOldSubscriptions(t *testing.T) {
	f := newFixture(t)
	s, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: "old"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Settings().GetDelivery(); got != latest {
		t.Errorf("a new subscription has %v", got)
	}
	value, err := encodeSettings(s.uid, &ordergatev1.Subscription{Name: "old", MaxAttempts: 3})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.m.settings().Put(f.ctx(), "old", value); err != nil {
		t.Fatal(err)
	}
	f.close()
	f.open()
	if s, err = f.m.Open(f.ctx(), "old"); err != nil {
		t.Fatal(err)
	}
	if got := s.Settings().GetDelivery(); got != everyEvent {
		t.Errorf("an old subscription has %v", got)
	}
}

// A backlog much larger than the window is worked off with one delivery for each order,
// also after a seek.
func TestLatestWorksOffABacklog(t *testing.T) {
	const orders, revisions = 200, 4
	const ship = ordergatev1.Directive_DIRECTIVE_SHIP
	f := newFixture(t)
	for range revisions {
		for i := range orders {
			f.storeDirectives(fmt.Sprintf("cs_%d", i), ship)
		}
	}
	s, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: "s"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Attach(WorkerConfig{MaxEvents: 3, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		seen := map[string]bool{}
		for len(seen) < orders {
			for _, d := range f.current(s, w) {
				if seen[d.Record.OrderID] || d.Record.Revision() != revisions || fmt.Sprint(d.Replaced) != "[1 2 3]" {
					t.Fatalf("revision %d of %s, replaces %v", d.Record.Revision(), d.Record.OrderID, d.Replaced)
				}
				seen[d.Record.OrderID] = true
				if got := f.results(s.Settle([]string{d.ID}, nil, nil)); got != "OK " {
					t.Fatalf("the ack is answered %s", got)
				}
			}
		}
		if described, err := s.Describe(f.ctx()); err != nil || described.GetStats().GetPendingOrders() != 0 || described.GetStats().GetBacklog() != 0 {
			t.Errorf("figures %v, %v", described.GetStats(), err)
		}
		if err := s.Seek(f.ctx(), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// While another subscription is being made, changed or loaded, one that is in use is there at once.
func TestNobodyWaitsForAnother(t *testing.T) {
	f := newFixture(t)
	if _, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: "shipping"}, 0); err != nil {
		t.Fatal(err)
	}
	unlock, err := f.m.lock(t.Context(), "slow") // its creation hangs in a write
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := f.m.Open(t.Context(), "shipping"); err != nil {
		t.Error(err)
	}
	if _, err := f.m.Create(t.Context(), &ordergatev1.Subscription{Name: "other"}, 0); err != nil {
		t.Error(err)
	}
	waiting, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.m.Open(waiting, "slow"); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v, want that it waits for the creation", err)
	}
}
