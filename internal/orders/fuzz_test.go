package orders

import (
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

	placed, err := Parse(event{typ: "completed", session: isUnpaid + shipTo}.json())
	if err != nil {
		f.Fatal(err)
	}
	before := Apply(nil, placed, noKey).Order

	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := Parse(raw)
		if err != nil {
			if !utf8.ValidString(err.Error()) {
				t.Fatalf("the error is not UTF-8: %q", err)
			}
			return
		}
		known := proto.CloneOf(before)
		known.Id = e.OrderID()
		for _, current := range []*ordergatev1.Order{nil, known} {
			c := Apply(current, e, noKey)
			if c == nil {
				continue
			}
			if e.OrderID() == "" || c.Order.GetId() != e.OrderID() {
				t.Fatalf("order %q of an event about %q", c.Order.GetId(), e.OrderID())
			}
			if c.Order.GetRevision() != current.GetRevision()+1 {
				t.Fatalf("revision %d follows %d", c.Order.GetRevision(), current.GetRevision())
			}
			if c.Order.Livemode == nil || c.Order.GetStatus() == 0 || c.Order.GetDirective() == 0 || c.Order.GetAddressState() == 0 || c.Kind == 0 {
				t.Fatalf("something is not set: kind %v, %v", c.Kind, c.Order)
			}
			if _, err := proto.Marshal(c.Order); err != nil {
				t.Fatal(err)
			}
			if _, err := protojson.Marshal(c.Order); err != nil {
				t.Fatal(err)
			}
			if again := Apply(c.Order, e, noKey); again != nil {
				t.Fatalf("a second time, the event made revision %d:\n%v\nafter\n%v", again.Order.GetRevision(), again.Order, c.Order)
			}
			for _, w := range c.Warnings {
				if !utf8.ValidString(w) {
					t.Fatalf("a warning is not UTF-8: %q", w)
				}
			}
		}
	})
}
