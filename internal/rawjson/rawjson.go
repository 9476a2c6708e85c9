// Package rawjson finds its way in a JSON document without decoding it: one pass
// checks the document and notes where its values are; what is read is decoded
// when it is asked for. An event is mostly values that nobody reads.
//
// What is valid, and what a value is, is as encoding/json has it.
package rawjson

import (
	"encoding/json"
	"iter"
	"math"
	"strings"
	"unicode/utf8"
)

// Value is a value of a document. The zero Value is one that is absent: it has no
// members and no elements, and is no string. Values share memory with what was
// parsed.
type Value struct {
	doc *document
	at  int32 // its node
}

// document is a JSON document and all of its values.
type document struct {
	raw     []byte
	nodes   []node   // in the order in which the values begin
	decoded [][]byte // the names of members that are not written as they are
}

// node says where a value is.
type node struct {
	// The name of a member begins at raw[name]; where name is negative, it is
	// decoded[-name-1].
	name, nameLen int32
	// The value is raw[start:end].
	start, end int32
	// after is the node behind the value's own members or elements. While the
	// value is not read to its end, it is the one around it.
	after int32
}

// maxDepth is how many arrays and objects may be within each other.
const maxDepth = 10_000

// Parse reads a document. ok is false when raw is not valid JSON (or has 2 GiB). What
// is noted of it takes less memory than raw where it is an event, and ten times as
// much at worst, which is an array of digits.
func Parse(raw []byte) (v Value, ok bool) {
	if len(raw) > math.MaxInt32 {
		return Value{}, false
	}
	d := &document{raw: raw, nodes: make([]node, 0, 8+len(raw)/24)}
	if !d.read() {
		return Value{}, false
	}
	return Value{doc: d}, true
}

// read fills in the nodes. It reports whether the document is valid.
func (d *document) read() bool {
	raw := d.raw
	i, depth := space(raw, 0), 0
	for open := int32(-1); ; { // the innermost object or array that has not ended
		// A value begins at i; in an object, its name does.
		n := node{after: int32(len(d.nodes)) + 1}
		if open >= 0 && raw[d.nodes[open].start] == '{' {
			end, plain := skipString(raw, i)
			if end < 0 {
				return false
			}
			if n.name, n.nameLen = int32(i+1), int32(end-i-2); !plain {
				name, _ := text(raw[i:end])
				d.decoded = append(d.decoded, []byte(name))
				n.name, n.nameLen = -int32(len(d.decoded)), int32(len(name))
			}
			if i = space(raw, end); at(raw, i) != ':' {
				return false
			}
			i = space(raw, i+1)
		}
		n.start = int32(i)
		if c := at(raw, i); c == '{' || c == '[' {
			if depth++; depth > maxDepth {
				return false
			}
			n.after, open = open, int32(len(d.nodes))
			d.nodes = append(d.nodes, n)
			if i = space(raw, i+1); at(raw, i) != closing(c) {
				continue
			}
		} else {
			if i = skipScalar(raw, i); i < 0 {
				return false
			}
			n.end = int32(i)
			d.nodes = append(d.nodes, n)
			i = space(raw, i)
		}
		// A value has ended, or what is open ends with nothing in it.
		for ; open >= 0 && at(raw, i) != ','; i = space(raw, i+1) {
			around := &d.nodes[open]
			if at(raw, i) != closing(raw[around.start]) {
				return false
			}
			around.end, around.after, open = int32(i+1), int32(len(d.nodes)), around.after
			depth--
		}
		if open < 0 {
			return i == len(raw)
		}
		i = space(raw, i+1)
	}
}

// at returns a byte, or 0, which no syntax has, behind the last one.
func at(raw []byte, i int) byte {
	if i < len(raw) {
		return raw[i]
	}
	return 0
}

// closing returns the bracket that belongs to an opening one.
func closing(c byte) byte { return c + 2 }

// space returns where the next byte is that is no white space.
func space(raw []byte, i int) int {
	for i < len(raw) && raw[i] <= ' ' && (raw[i] == ' ' || raw[i] == '\n' || raw[i] == '\t' || raw[i] == '\r') {
		i++
	}
	return i
}

// isPlain are the bytes of a string that stand for themselves.
var isPlain = func() (plain [256]bool) {
	for c := 0x20; c < utf8.RuneSelf; c++ {
		plain[c] = c != '"' && c != '\\'
	}
	return plain
}()

// skipString returns where the string ends that begins at i; -1 when there is no
// valid one. plain reports whether all of its bytes stand for themselves.
func skipString(raw []byte, i int) (end int, plain bool) {
	if at(raw, i) != '"' {
		return -1, false
	}
	plain = true
	for i++; ; i++ {
		for i < len(raw) && isPlain[raw[i]] {
			i++
		}
		if i >= len(raw) {
			return -1, false
		}
		switch c := raw[i]; {
		case c == '"':
			return i + 1, plain
		case c < ' ':
			return -1, false
		case c == '\\':
			if i = skipEscape(raw, i+1); i < 0 {
				return -1, false
			}
		}
		plain = false
	}
}

// skipEscape returns where the last byte is of the escape whose second one is at i;
// -1 when there is no such escape.
func skipEscape(raw []byte, i int) int {
	switch at(raw, i) {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i
	case 'u':
		for range 4 {
			i++
			if c := at(raw, i) | 0x20; !digit(at(raw, i)) && (c < 'a' || c > 'f') {
				return -1
			}
		}
		return i
	default:
		return -1
	}
}

// skipScalar returns where the value ends that begins at i and is no object or
// array; -1 when there is no valid one.
func skipScalar(raw []byte, i int) int {
	literal := ""
	switch at(raw, i) {
	case '"':
		end, _ := skipString(raw, i)
		return end
	case 't':
		literal = "true"
	case 'f':
		literal = "false"
	case 'n':
		literal = "null"
	default:
		return skipNumber(raw, i)
	}
	if end := i + len(literal); end <= len(raw) && string(raw[i:end]) == literal {
		return end
	}
	return -1
}

func skipNumber(raw []byte, i int) int {
	if at(raw, i) == '-' {
		i++
	}
	if at(raw, i) == '0' {
		i++
	} else if i = skipDigits(raw, i); i < 0 {
		return -1
	}
	if at(raw, i) == '.' {
		if i = skipDigits(raw, i+1); i < 0 {
			return -1
		}
	}
	if at(raw, i)|0x20 == 'e' {
		if i++; at(raw, i) == '+' || at(raw, i) == '-' {
			i++
		}
		return skipDigits(raw, i)
	}
	return i
}

// skipDigits returns where the digits end of which the first is at i; -1 when
// there is none.
func skipDigits(raw []byte, i int) int {
	if !digit(at(raw, i)) {
		return -1
	}
	for digit(at(raw, i)) {
		i++
	}
	return i
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// Raw returns the value as it is written, without white space around it. Nil when
// it is absent.
func (v Value) Raw() []byte {
	if v.doc == nil {
		return nil
	}
	n := &v.doc.nodes[v.at]
	return v.doc.raw[n.start:n.end:n.end]
}

// IsObject reports whether the value is an object.
func (v Value) IsObject() bool { return v.begins('{') }

// IsArray reports whether the value is an array.
func (v Value) IsArray() bool { return v.begins('[') }

func (v Value) begins(c byte) bool {
	return v.doc != nil && v.doc.raw[v.doc.nodes[v.at].start] == c
}

// Get returns a member of an object: of several with one name, the last. It is
// absent when there is none, and when the value is no object.
func (v Value) Get(name string) (member Value) {
	if !v.IsObject() {
		return Value{}
	}
	nodes := v.doc.nodes
	for i, end := v.at+1, nodes[v.at].after; i < end; i = nodes[i].after {
		if n := &nodes[i]; int(n.nameLen) == len(name) && string(v.doc.name(n)) == name {
			member = Value{v.doc, i}
		}
	}
	return member
}

// name returns the name of a member.
func (d *document) name(n *node) []byte {
	if n.name < 0 {
		return d.decoded[-n.name-1]
	}
	return d.raw[n.name : n.name+n.nameLen]
}

// Members returns the members of an object as they are written: there may be
// several with one name, of which the last counts. Of any other value there are
// none.
func (v Value) Members() iter.Seq2[string, Value] {
	return func(yield func(string, Value) bool) {
		for member := range v.within('{') {
			if !yield(string(v.doc.name(&v.doc.nodes[member.at])), member) {
				return
			}
		}
	}
}

// Elements returns the elements of an array. Of any other value there are none.
func (v Value) Elements() iter.Seq[Value] { return v.within('[') }

// within returns the values that are directly in one that begins with this
// bracket.
func (v Value) within(bracket byte) iter.Seq[Value] {
	return func(yield func(Value) bool) {
		if !v.begins(bracket) {
			return
		}
		nodes := v.doc.nodes
		for i, end := v.at+1, nodes[v.at].after; i < end; i = nodes[i].after {
			if !yield(Value{v.doc, i}) {
				return
			}
		}
	}
}

// Text decodes a string. ok is false when the value is none.
func (v Value) Text() (s string, ok bool) {
	if !v.begins('"') {
		return "", false
	}
	return text(v.Raw())
}

// text decodes a string, which is valid.
func text(raw []byte) (s string, ok bool) {
	inner := raw[1 : len(raw)-1]
	s = string(inner)
	if strings.IndexByte(s, '\\') < 0 && utf8.ValidString(s) {
		return s, true
	}
	ok = json.Unmarshal(raw, &s) == nil
	return s, ok
}
