package rawjson

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var seeds = []string{
	`{}`, `{"a":1}`, ` { "a" : [1,{"b":"}"}] , "c" : "x\"y\\" , "d":null}` + "\n", `{"a":1,"a":2}`, `{"a\u0041":true,"ä":-1.5e+3}`, `{"a":{"b":{"c":[]}},"z":""}`,
	`{"\"":"\\\"","":"\\"}`, "{\"\xff\":\"\xff\"}", `[]`, `"x"`, `null`, ``, `{`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,}`, `{"a":1}}`, `{"a":"}`, `{"a":1 2}`, `{,}`, `{"":}`, "{\"a\":1\x00}",
	`{"a":1,"\u0061":{"b":2}}`, `{"\u0061":1,"a":2,"A":3}`, `{"a":{"b":1},"a":[]}`, `{"":{"":{"":""}}}`, `{"a":1]`, `[1}`, `{"a"}`, `{1:2}`, `{"a":1 "b":2}`, `{"a",1}`,
	`[1,[2,[],{}],"3",true,false,null]`, `[,]`, `[,1]`, `{,"a":1}`, `[1,]`, `[1 2]`, `[]]`, `[] []`, `[`, `]`, `}`, `,`, `:`, "\v1", " \t\r\n1 \t\r\n", "\ufeff1",
	`0`, `-0`, `00`, `01`, `-`, `+1`, `1.`, `.5`, `-.5`, `0.5`, `1e5`, `1E-05`, `1e`, `1e+`, `1.e5`, `1.5e+`, `0x1`, `1_0`, `9223372036854775808`, `--1`, `1-`,
	`tru`, `true`, `truex`, `True`, `nul`, `fals`, `falsE`, `nulll`, `NaN`,
	`"`, `"\"`, `"\`, `"\u`, `"\u12"`, `"\u123g"`, `"\uD83D\uDE00"`, `"\ud83d"`, `"\x"`, `"\/\b\f\n\r\t"`, `"\U0041"`, "\"\x00\"", "\"\n\"", "\"\x1f\"", "\"\x7f\"", "\"\u2028\xed\xa0\x80\"", `"ä\u00e4"`, `'x'`,
}

// same checks against encoding/json.
func same(t *testing.T, raw []byte) {
	t.Helper()
	v, ok := Parse(raw)
	if ok != json.Valid(raw) {
		t.Fatalf("%q: valid is %v, want %v", raw, ok, json.Valid(raw))
	}
	if !ok {
		v = Value{} // absent, as it were
	}
	sameValue(t, v, bytes.TrimSpace(raw), 0)
}

// sameValue checks a value, and what is in it, that is at this depth.
func sameValue(t *testing.T, v Value, raw []byte, depth int) {
	t.Helper()
	if v != (Value{}) && string(v.Raw()) != string(raw) {
		t.Fatalf("%q is read as %q", raw, v.Raw())
	}
	if depth > 50 {
		return // json.Unmarshal would read the rest once more at each depth
	}
	var members map[string]json.RawMessage
	isObject := json.Unmarshal(v.Raw(), &members) == nil && members != nil
	if v.IsObject() != isObject {
		t.Fatalf("%q: an object %v, want %v", raw, v.IsObject(), isObject)
	}
	got := map[string]json.RawMessage{}
	for name, member := range v.Members() {
		got[name] = member.Raw()
	}
	if diff := cmp.Diff(members, got); diff != "" && len(members)+len(got) > 0 {
		t.Fatalf("%q: %s", raw, diff)
	}
	for name, raw := range members {
		sameValue(t, v.Get(name), raw, depth+1)
		if missing := name + "\x00"; members[missing] == nil && v.Get(missing) != (Value{}) {
			t.Fatalf("%q has a member %q", v.Raw(), missing)
		}
	}
	var elements []json.RawMessage
	json.Unmarshal(v.Raw(), &elements)
	for element := range v.Elements() {
		if len(elements) == 0 {
			t.Fatalf("%q has an element %q", raw, element.Raw())
		}
		sameValue(t, element, elements[0], depth+1)
		elements = elements[1:]
	}
	if len(elements) > 0 {
		t.Fatalf("%q lacks %d elements", raw, len(elements))
	}
	var text string
	isText := json.Unmarshal(v.Raw(), &text) == nil && v.Raw()[0] == '"'
	if got, ok := v.Text(); got != text || ok != isText {
		t.Fatalf("%q is read as %q, %v, want %q, %v", raw, got, ok, text, isText)
	}
}

func TestParse(t *testing.T) {
	for _, seed := range seeds {
		same(t, []byte(seed))
	}
	for _, depth := range []int{maxDepth, maxDepth + 1, 1 << 20} {
		arrays := strings.Repeat("[", depth) + strings.Repeat("]", depth)
		objects := strings.Repeat(`{"":`, depth) + "0" + strings.Repeat("}", depth)
		for _, nested := range []string{arrays, objects, arrays[:depth]} {
			if _, ok := Parse([]byte(nested)); ok != json.Valid([]byte(nested)) {
				t.Errorf("%d deep, %.5s… is valid: %v", depth, nested, ok)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) { same(t, raw) })
}
