package orders

import (
	"testing"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/sample"
)

// benchBody is a paid Checkout Session.
func benchBody(b *testing.B) []byte {
	story, err := sample.Story(sample.Completed, time.Now())
	if err != nil {
		b.Fatal(err)
	}
	return story[0].Body
}

func BenchmarkParse(b *testing.B) {
	body := benchBody(b)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(body, DefaultSources()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	e, err := Parse(benchBody(b), DefaultSources())
	if err != nil {
		b.Fatal(err)
	}
	items := LineItems{State: ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE}
	made, err := Apply(nil, e, items)
	if err != nil || made == nil {
		b.Fatal(made, err)
	}
	for _, bench := range []struct {
		name    string
		current *ordergatev1.Order
	}{{"new", nil}, {"again", made.Order}} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				change, err := Apply(bench.current, e, items)
				if err != nil || (change == nil) != (bench.current != nil) {
					b.Fatal(change, err)
				}
			}
		})
	}
}
