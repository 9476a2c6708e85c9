package subscription

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

const erasedKind = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED

// erase adds the tombstone of an order to the log, and has the subscription look
// at it; wanted says whether its filter selects it.
func (b *bench) erase(order string, wanted bool) {
	b.store(order)
	tombstone := b.log[len(b.log)-1]
	tombstone.Kind = erasedKind
	b.q.arrive(tombstone, wanted, b.now)
	b.q.erase(tombstone, wanted, b.now)
	for i, r := range b.log[:len(b.log)-1] {
		if r.OrderID == order {
			b.log[i] = &eventlog.OrderRecord{Sequence: r.Sequence, OrderID: "erased"} // found by nobody
		}
	}
}

func TestTombstoneComesBehindWhatIsInHand(t *testing.T) {
	for _, end := range []string{"ack", "lease"} {
		b := newBench(t, &ordergatev1.Subscription{Filter: nil})
		w := b.attach("w", 10)
		b.store("a", "a", "a")
		d := b.take(w)[0]
		b.erase("a", true)
		b.want("while it is in hand", b.given(w), "")
		if end == "ack" {
			b.want("settled", b.ack(d), "OK")
		} else {
			b.pass(w.ackDeadline)
		}
		b.want("after "+end, b.given(w), "a4")
	}
}

// A dead letter that a worker has is done with when it comes back.
func TestEraseWhileADeadLetterIsRedriven(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{MaxAttempts: 5})
	w := b.attach("w", 10)
	b.store("a")
	b.nack(b.take(w)[0], reject, -1)
	b.q.redrive(b.q.lanes["a"], []uint64{1}, b.now)
	b.take(w)
	b.erase("a", false)
	b.want("while it is in hand", b.given(w), "")
	b.pass(w.ackDeadline)
	b.want("then", b.given(w), "")
	if n := len(b.q.lanes); n != 0 {
		t.Errorf("%d orders are left", n)
	}
}

// After an erasure, every subscription comes to the tombstone, whatever it had of
// the order, and after a restart too; its dead letters are gone.
func TestErase(t *testing.T) {
	f := newFixture(t)
	for _, id := range []string{"cs_dead", "cs_out", "cs_other", "cs_dead", "cs_out"} {
		f.append(&ordergatev1.Order{Id: id}, ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID)
	}
	subscribe := func(name string, filter *ordergatev1.OrderEventFilter) *Subscription {
		t.Helper()
		s, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: name, Filter: filter}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := subscribe("s", nil)
	subscribe("not-begun", &ordergatev1.OrderEventFilter{ShipToCountries: []string{"DE"}})
	subscribe("other-kinds", &ordergatev1.OrderEventFilter{Kinds: []ordergatev1.OrderEventKind{ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD}})
	w := f.attach(s)
	d := f.take(w, 3)
	nack := &ordergatev1.Nack{DeliveryId: d[0].ID, Action: reject, Reason: "Erika Mustermann was not at home"}
	f.results(s.Settle([]string{d[2].ID}, []*ordergatev1.Nack{nack}, nil))

	for _, id := range []string{"cs_dead", "cs_out"} {
		tombstone := f.append(&ordergatev1.Order{Id: id}, erasedKind)
		if _, err := f.m.Erase(f.ctx(), tombstone); err != nil {
			t.Fatal(err)
		}
		if n, err := f.log.EraseOrderEvents(f.ctx(), id, tombstone.Sequence); n != 2 || err != nil {
			t.Fatalf("%d events of %s were erased: %v", n, id, err)
		}
	}
	if letters := s.DeadLetters(0, 10); len(letters) != 0 {
		t.Errorf("dead letters are left: %v", letters)
	}
	err := f.log.Bucket(eventlog.HeldOrders).Entries(f.ctx(), ">", func(key string, value []byte) error {
		if strings.Contains(string(value), "Erika") {
			t.Errorf("%s still says %s", key, value)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}

	f.close() // with cs_out in hand
	f.open()
	for name, want := range map[string]string{"s": "cs_dead.6 cs_out.7", "not-begun": "cs_dead.6 cs_out.7", "other-kinds": ""} {
		s, err := f.m.Open(f.ctx(), name)
		if err != nil {
			t.Fatal(err)
		}
		w := f.attach(s)
		got := []string{}
		for _, d := range f.take(w, len(strings.Fields(want))) {
			got = append(got, fmt.Sprint(d.Record.OrderID, ".", d.Record.Sequence))
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%s gets %v, want %s", name, got, want)
		}
	}
}

// append stores an event of an order, on disk.
func (f *fixture) append(order *ordergatev1.Order, kind ordergatev1.OrderEventKind) *eventlog.OrderRecord {
	f.t.Helper()
	previous := uint64(0)
	if newest, err := f.log.NewestOrder(f.ctx(), order.GetId()); err == nil {
		previous = newest.Sequence
	}
	if _, err := f.log.AppendOrder(f.ctx(), &ordergatev1.OrderEvent{Kind: kind, Order: order}, previous); err != nil {
		f.t.Fatal(err)
	}
	if err := f.log.Flush(f.ctx()); err != nil {
		f.t.Fatal(err)
	}
	newest, err := f.log.NewestOrder(f.ctx(), order.GetId())
	if err != nil {
		f.t.Fatal(err)
	}
	return newest
}

func (f *fixture) attach(s *Subscription) *Worker {
	f.t.Helper()
	w, err := s.Attach(WorkerConfig{MaxEvents: 10, MaxBytes: 1 << 20})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(w.Detach)
	return w
}
