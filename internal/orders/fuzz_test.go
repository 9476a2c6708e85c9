package orders

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// FuzzParseApply: whatever an event holds, reading it does not panic, an order
// made of it can be sent, and the same event a second time changes nothing.
func FuzzParseApply(f *testing.F) {
	names, err := filepath.Glob("testdata/*.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".golden.json") {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(event{typ: "completed", session: isPaid + collect + shipTo}.json())
	f.Add(event{typ: "expired", session: isUnpaid}.json())
	f.Add([]byte(`{"id":"evt_1","type":"checkout.session.completed","data":null}`))

	placed, err := Parse(event{typ: "completed", session: isUnpaid + shipTo}.json(), allSources)
	if err != nil {
		f.Fatal(err)
	}
	made, err := Apply(nil, placed, noKey)
	if err != nil {
		f.Fatal(err)
	}
	held := Hold(made.Order, "a reason").Order
	held.Refunds = []*ordergatev1.Refund{{Id: "re_1", Amount: 100, State: ordergatev1.RefundState_REFUND_STATE_FAILED}}
	held.Disputes = []*ordergatev1.Dispute{{Id: "dp_1", State: ordergatev1.DisputeState_DISPUTE_STATE_OPEN}}

	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := Parse(raw, allSources)
		checkRead(t, e, err, made.Order, held)
		e, err = ParseLookup(raw, Lookup{APIVersion: "2023-10-16"}, allSources)
		checkRead(t, e, err, made.Order, held)
	})
}

// checkRead applies an event that was read to no order, and to each of those
// given: as the order of the event, and as another's.
func checkRead(t *testing.T, e *Event, err error, orders ...*ordergatev1.Order) {
	if err != nil {
		if !utf8.ValidString(err.Error()) {
			t.Fatalf("the error is not UTF-8: %q", err)
		}
		return
	}
	if e.Ignored() != (len(e.References()) == 0 && e.OrderID() == "") {
		t.Fatalf("ignored %v, order %q, references %v", e.Ignored(), e.OrderID(), e.References())
	}
	for _, r := range e.References() {
		if !isID(r.ID) || r.Kind == "" {
			t.Fatalf("reference %v", r)
		}
	}
	checkApply(t, nil, e)
	for _, o := range orders {
		for _, id := range []string{first(e.OrderID(), "cs_1"), "cs_other"} {
			current := proto.CloneOf(o)
			current.Id, current.Account, current.Livemode = id, e.Account, &e.Livemode
			checkApply(t, current, e)
		}
	}
}

func checkApply(t *testing.T, current *ordergatev1.Order, e *Event) {
	before := proto.CloneOf(current)
	c, err := Apply(current, e, noKey)
	if err != nil && !errors.Is(err, ErrTooMany) {
		t.Fatal(err)
	}
	if !proto.Equal(before, current) {
		t.Fatal("Apply modified the order it was given")
	}
	if c == nil {
		return
	}
	want := current.GetId()
	if current == nil {
		want = e.OrderID()
	}
	if want == "" || c.Order.GetId() != want {
		t.Fatalf("order %q of an event about %q, applied to %q", c.Order.GetId(), e.OrderID(), current.GetId())
	}
	if c.Order.GetRevision() != current.GetRevision()+1 {
		t.Fatalf("revision %d follows %d", c.Order.GetRevision(), current.GetRevision())
	}
	if c.Order.Livemode == nil || c.Order.GetStatus() == 0 || c.Order.GetDirective() == 0 || c.Order.GetAddressState() == 0 || c.Kind == 0 {
		t.Fatalf("something is not set: kind %v, %v", c.Kind, c.Order)
	}
	if c.Order.GetAmounts().GetRefunded() < 0 {
		t.Fatalf("amounts %v", c.Order.GetAmounts())
	}
	if _, err := proto.Marshal(c.Order); err != nil {
		t.Fatal(err)
	}
	if _, err := protojson.Marshal(c.Order); err != nil {
		t.Fatal(err)
	}
	if again, err := Apply(c.Order, e, noKey); again != nil || err != nil {
		t.Fatalf("a second time, the event made %v, %v\nafter\n%v", again, err, c.Order)
	}
	for _, w := range c.Warnings {
		if !utf8.ValidString(w) {
			t.Fatalf("a warning is not UTF-8: %q", w)
		}
	}
	if released := Release(c.Order, ""); released != nil && len(released.Order.GetHoldReasons()) > 0 {
		t.Fatalf("released, the order is held: %v", released.Order)
	}
}
