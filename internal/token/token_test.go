package token

import "testing"

// FuzzDecode looks for a token with two spellings, and for one that is read with
// another kind or seed than it was made with.
func FuzzDecode(f *testing.F) {
	f.Add(Encode('r', "log", "", 1))
	f.Add(Encode('r', "log", "cs_1", 1<<63))
	f.Add(Encode('p', "log", "", 1))
	f.Add("AAAAAAA")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		number := uint64(42)
		of, ok := Decode(text, 'r', "log", &number)
		switch {
		case ok && Encode('r', "log", of, number) != text:
			t.Errorf("%q is another spelling of %q, %d", text, of, number)
		case !ok && number != 42:
			t.Error("what is no token changed a number")
		}
		if _, both := Decode(text, 'r', "another log", &number); both && ok {
			t.Errorf("%q is read for two logs", text)
		}
		if _, both := Decode(text, 'p', "log", &number); both && ok {
			t.Errorf("%q is of two kinds", text)
		}
	})
}
