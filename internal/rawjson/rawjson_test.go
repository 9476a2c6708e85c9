package rawjson

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var seeds = []string{
	`{}`, `{"a":1}`, ` { "a" : [1,{"b":"}"}] , "c" : "x\"y\\" , "d":null}` + "\n", `{"a":1,"a":2}`, `{"a\u0041":true,"ä":-1.5e+3}`, `{"a":{"b":{"c":[]}},"z":""}`,
	`{"\"":"\\\"","":"\\"}`, "{\"\xff\":\"\xff\"}", `[]`, `"x"`, `null`, ``, `{`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,}`, `{"a":1}}`, `{"a":"}`, `{"a":1 2}`, `{,}`, `{"":}`, "{\"a\":1\x00}",
}

// same checks against encoding/json.
func same(t *testing.T, raw []byte) {
	t.Helper()
	var want map[string]json.RawMessage
	valid := json.Unmarshal(raw, &want) == nil && want != nil
	got, ok := Object(raw)
	if ok != valid {
		t.Fatalf("%q: %v, want %v", raw, ok, valid)
	}
	if !ok {
		ValidObject(raw) // makes nonsense, and does not fail
		return
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("%q: %s", raw, diff)
	}
	for _, value := range got {
		if bytes.HasPrefix(value, []byte("{")) {
			same(t, value)
		}
		var text string
		err := json.Unmarshal(value, &text)
		if got, ok := ValidString(value); got != text || ok != (err == nil && value[0] == '"') {
			t.Fatalf("%s is read as %q, %v", value, got, ok)
		}
	}
}

func TestObject(t *testing.T) {
	for _, seed := range seeds {
		same(t, []byte(seed))
	}
}

func FuzzObject(f *testing.F) {
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { same(t, raw) })
}
