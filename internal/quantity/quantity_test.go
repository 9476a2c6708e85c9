package quantity

import "testing"

func TestWhole(t *testing.T) {
	for text, want := range map[string]int64{"3": 3, "0": 0, "-2": -2, "2.0": 2, "2.000000000000": 2, "007": 7, "999999999999999999": 999999999999999999} {
		if n, err := Whole(text); err != nil || n == nil || *n != want {
			t.Errorf("Whole(%q) = %v, %v; want %d", text, n, err, want)
		}
	}
	for _, text := range []string{"1.5", "0.000000000001", "-0.25"} {
		if n, err := Whole(text); err != nil || n != nil {
			t.Errorf("Whole(%q) = %v, %v; want nil", text, n, err)
		}
	}
	for _, text := range []string{"", ".5", "1.", "1e3", "+1", "one", "1.0000000000001", "1000000000000000000", "1,5", " 1", "0x10", "NaN", "--1"} {
		if n, err := Whole(text); err == nil {
			t.Errorf("Whole(%q) = %v; want an error", text, n)
		}
	}
}
