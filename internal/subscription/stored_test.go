package subscription

import (
	"encoding/json"
	"testing"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// storeAll collects what is to be stored, as if it had been written.
func (b *bench) storeAll() *changes {
	c := b.q.collect()
	b.q.done(c)
	return c
}

// headsOf returns the heads that a place lists.
func (c *changes) headsOf(t *testing.T) []head {
	t.Helper()
	p, err := decodePlace(c.place)
	if err != nil {
		t.Fatal(err)
	}
	return p.heads
}

// skipping is a subscription in which an order goes on beside its dead letters,
// so that its record may tell of no head.
func skipping(t *testing.T) (*bench, *Worker) {
	b := newBench(t, &ordergatev1.Subscription{DeadLetterPolicy: ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_SKIP})
	return b, b.attach("w", 10)
}

func TestPlaceReliesOnNoRecordThatIsNotOnDisk(t *testing.T) {
	b, w := skipping(t)
	b.store("a", "a")
	b.nack(b.take(w)[0], reject, -1)
	second := b.take(w)[0]
	if c := b.storeAll(); !c.flush || len(c.headsOf(t)) != 0 {
		t.Errorf("a new record: flush %v, heads %v", c.flush, c.headsOf(t))
	}
	// The record is to tell of no head, and while it is written a new head comes.
	b.ack(second)
	c := b.q.collect()
	b.store("a")
	third := b.take(w)[0]
	b.q.done(c)
	if c := b.storeAll(); !c.flush {
		t.Error("a place relies on a record with a new head, and the record is not flushed")
	}
	// The same, and the write fails in the middle.
	b.ack(third)
	c = b.q.collect()
	b.store("a")
	b.take(w)
	b.q.undo(c)
	if c := b.storeAll(); !c.flush {
		t.Error("after a write that failed, a place relies on a record that is not flushed")
	}
}

func TestRecordOfAnOrderThatIsHeldAgainStays(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("w", 10)
	b.store("a", "a")
	b.nack(b.take(w)[0], retry, time.Second)
	b.storeAll()
	b.pass(time.Second)
	b.ack(b.take(w)[0])
	b.ack(b.take(w)[0])
	c := b.q.collect()
	if len(c.gone) != 1 {
		t.Fatalf("gone: %v", c.gone)
	}
	b.store("a")
	b.nack(b.take(w)[0], retry, time.Second)
	b.q.undo(c)
	if c := b.storeAll(); len(c.gone) != 0 || c.records["a"] == nil {
		t.Errorf("the record of a held order is removed: %v", c.gone)
	}
}

func TestSeekThatWasCutOffVoidsRecords(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("w", 10)
	b.store("a", "a")
	b.nack(b.take(w)[0], reject, -1)
	var record heldOrder
	if err := json.Unmarshal(b.storeAll().records["a"], &record); err != nil {
		t.Fatal(err)
	}
	if l := record.restore("a", b.q.epoch); l.head == nil || !l.letters[0].blocks {
		t.Errorf("in its epoch: %+v", l)
	}
	if l := record.restore("a", b.q.epoch+1); l.head != nil || l.letters[0].blocks || l.covered {
		t.Errorf("after a seek: %+v", l)
	}
}

func TestDoubtStoresEverythingAgain(t *testing.T) {
	b := newBench(t, &ordergatev1.Subscription{})
	w := b.attach("w", 10)
	b.store("a", "b")
	for _, d := range b.take(w) {
		b.nack(d, retry, time.Hour)
	}
	b.storeAll()
	if c := b.q.collect(); len(c.records) != 0 {
		t.Errorf("%d records are stored again for no reason", len(c.records))
	}
	b.q.doubt()
	if c := b.storeAll(); len(c.records) != 2 || !c.flush || !c.sweep {
		t.Errorf("%d records, flush %v, sweep %v", len(c.records), c.flush, c.sweep)
	}
}
