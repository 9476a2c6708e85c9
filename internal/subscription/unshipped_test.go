package subscription

import (
	"fmt"
	"testing"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

const (
	toShip = ordergatev1.Directive_DIRECTIVE_SHIP
	toWait = ordergatev1.Directive_DIRECTIVE_WAIT
)

// put stores an event of an order and returns when it was stored.
func (f *fixture) put(id string, live bool, directive ordergatev1.Directive) time.Time {
	f.t.Helper()
	var previous uint64
	if newest, err := f.log.NewestOrder(f.ctx(), id); err == nil {
		previous = newest.Sequence
	}
	event := &ordergatev1.OrderEvent{Id: fmt.Sprintf("%s.%d", id, previous+1), Order: &ordergatev1.Order{Id: id, Livemode: new(live), Directive: directive}}
	if _, err := f.log.AppendOrder(f.ctx(), event, previous); err != nil {
		f.t.Fatal(err)
	}
	if err := f.log.Flush(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	newest, err := f.log.NewestOrder(f.ctx(), id)
	if err != nil {
		f.t.Fatal(err)
	}
	return newest.Time
}

func (f *fixture) expectUnshipped(s *Subscription, want time.Time) {
	f.t.Helper()
	got, err := s.oldestUnshipped(f.ctx())
	if err != nil || !got.Equal(want) {
		f.t.Errorf("the oldest parcel waits since %v, %v, want %v", got, err, want)
	}
}

func TestOldestUnshipped(t *testing.T) {
	f := newFixture(t)
	create := func(name string, filter *ordergatev1.OrderEventFilter) *Subscription {
		t.Helper()
		s, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: name, Filter: filter}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := create("shipping", nil)
	none := time.Time{}
	f.put("cs_test", false, toShip)
	f.put("cs_wait", true, toWait)
	f.expectUnshipped(s, none)
	first := f.put("cs_ship", true, toShip)
	second := f.put("cs_ship2", true, toShip)
	// Nobody works on it: the log is read ahead.
	f.expectUnshipped(s, first)
	f.expectUnshipped(create("other", &ordergatev1.OrderEventFilter{OrderIds: []string{"cs_ship2"}}), second)
	f.expectUnshipped(create("none", &ordergatev1.OrderEventFilter{OrderIds: []string{"cs_wait"}}), none)

	w, err := s.Attach(WorkerConfig{MaxEvents: 10, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	d := f.take(w, 4)
	f.expectUnshipped(s, first)
	f.results(s.Settle([]string{d[2].ID}, nil, nil))
	f.expectUnshipped(s, second)
	// A retry keeps it, also over a restart; a dead letter is told elsewhere.
	f.results(s.Settle(nil, []*ordergatev1.Nack{{DeliveryId: d[3].ID}}, nil))
	f.expectUnshipped(s, second)
	w.Detach()
	f.close()
	f.open()
	if s, err = f.m.Open(f.ctx(), "shipping"); err != nil {
		t.Fatal(err)
	}
	f.expectUnshipped(s, second)
	if w, err = s.Attach(WorkerConfig{MaxEvents: 10, MaxBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	defer w.Detach()
	for _, d := range f.take(w, 3) {
		if d.Record.OrderID == "cs_ship2" {
			f.results(s.Settle(nil, []*ordergatev1.Nack{{DeliveryId: d.ID, Action: ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER}}, nil))
		}
	}
	f.expectUnshipped(s, none)
	// What waits behind an event that says WAIT may be a parcel.
	waiting, err := f.log.NewestOrder(f.ctx(), "cs_wait")
	if err != nil {
		t.Fatal(err)
	}
	f.put("cs_wait", true, toShip)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx := f.ctx(); ; { // it is looked at in the background
		if got, err := s.oldestUnshipped(ctx); err != nil {
			t.Fatal(err)
		} else if got.Equal(waiting.Time) {
			break
		}
		<-tick.C
	}
}

// A long backlog without a parcel is read once, a part each time.
func TestReadingAheadIsBounded(t *testing.T) {
	f := newFixture(t)
	s, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: "s"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxAhead + 10 {
		if _, err := f.log.AppendOrder(f.ctx(), &ordergatev1.OrderEvent{Id: "x", Order: &ordergatev1.Order{Id: fmt.Sprintf("cs_%d", i), Livemode: new(true), Directive: toWait}}, 0); err != nil {
			t.Fatal(err)
		}
	}
	parcel := f.put("cs_ship", true, toShip)
	f.expectUnshipped(s, time.Time{})
	f.expectUnshipped(s, parcel)
}

// What a worker had in hand when the gateway ended is known again without one.
func TestUnshippedOverARestart(t *testing.T) {
	f := newFixture(t)
	s, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: "s"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	parcel := f.put("cs_ship", true, toShip)
	f.put("cs_done", true, toShip)
	w, err := s.Attach(WorkerConfig{MaxEvents: 10, MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	d := f.take(w, 2)
	if d[0].Record.Directive != toShip {
		t.Errorf("the event's header says %v", d[0].Record.Directive)
	}
	f.results(s.Settle([]string{d[1].ID}, nil, nil)) // stores the place
	w.Detach()
	f.close()
	f.open()
	if s, err = f.m.Open(f.ctx(), "s"); err != nil {
		t.Fatal(err)
	}
	f.expectUnshipped(s, parcel)
}
