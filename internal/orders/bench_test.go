package orders

import (
	"os"
	"testing"
)

// BenchmarkParse reads a paid session of a usual size.
func BenchmarkParse(b *testing.B) {
	raw, err := os.ReadFile("testdata/2026-09-30.endive_paid.json")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(raw, DefaultSources()); err != nil {
			b.Fatal(err)
		}
	}
}
