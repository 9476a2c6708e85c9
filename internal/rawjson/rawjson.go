// Package rawjson splits JSON objects into their members without decoding these.
// encoding/json reads everything below an object twice to do so, and again at
// each level; events spend most of their CPU time there.
package rawjson

import (
	"bytes"
	"encoding/json"
)

// Object splits an object into its members, as json.Unmarshal does into a
// map[string]json.RawMessage: of several with one name, the last counts. The
// values share memory with raw. ok is false when raw is not valid JSON, or no
// object.
func Object(raw []byte) (members map[string]json.RawMessage, ok bool) {
	if !json.Valid(raw) {
		return nil, false
	}
	return ValidObject(raw)
}

// ValidObject is Object for what is known to be valid JSON, such as a value that
// Object returned. Of anything else it may make nonsense, but does not fail.
func ValidObject(raw []byte) (members map[string]json.RawMessage, ok bool) {
	i := space(raw, 0)
	if i >= len(raw) || raw[i] != '{' {
		return nil, false
	}
	members = make(map[string]json.RawMessage, 16)
	for i = space(raw, i+1); i < len(raw) && raw[i] == '"'; i = space(raw, i+1) {
		end := skipString(raw, i)
		name, _ := ValidString(raw[i:end])
		start := space(raw, space(raw, end)+1) // behind the colon
		i = skipValue(raw, start)
		if start >= i {
			break
		}
		members[name] = raw[start:i:i]
		if i = space(raw, i); i >= len(raw) || raw[i] != ',' {
			break
		}
	}
	return members, true
}

// space returns where the next byte is that is no white space.
func space(raw []byte, i int) int {
	for i < len(raw) && (raw[i] == ' ' || raw[i] == '\n' || raw[i] == '\t' || raw[i] == '\r') {
		i++
	}
	return i
}

// skipString returns where the string ends that begins at i.
func skipString(raw []byte, i int) int {
	for i++; i < len(raw); i++ {
		n := bytes.IndexByte(raw[i:], '"')
		if n < 0 {
			break
		}
		if i += n; !escaped(raw, i) {
			return i + 1
		}
	}
	return len(raw)
}

// escaped reports whether an odd number of backslashes is before i.
func escaped(raw []byte, i int) bool {
	n := 0
	for i-n > 0 && raw[i-n-1] == '\\' {
		n++
	}
	return n%2 == 1
}

// skipValue returns where the value ends that begins at i.
func skipValue(raw []byte, i int) int {
	depth := 0
	for i < len(raw) {
		switch raw[i] {
		case '"':
			i = skipString(raw, i)
			if depth == 0 {
				return i
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth <= 0 {
				return min(i+1+depth, len(raw)) // the end of an object around it is not the value's
			}
		case ',', ' ', '\n', '\t', '\r':
			if depth == 0 {
				return i
			}
		}
		i++
	}
	return len(raw)
}

// ValidString decodes a string, as json.Unmarshal does. ok is false when raw, which
// must be valid JSON or empty, is none.
func ValidString(raw []byte) (s string, ok bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	for _, c := range raw {
		if c == '\\' || c >= 0x80 {
			ok = json.Unmarshal(raw, &s) == nil
			return s, ok
		}
	}
	return string(raw[1 : len(raw)-1]), true
}
