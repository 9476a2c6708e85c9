package orders

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ordergate/ordergate/internal/rawjson"
)

// The readers in this file are tolerant: a field that is absent or null is not
// set, and one of an unexpected type is not set and gives a warning. Only where
// a wrong value could send goods or misstate a sum does reading fail.
//
// encoding/json replaces bytes that are not UTF-8 with U+FFFD, so every string
// read here can go into a protobuf message.

// report collects what could not be read.
type report struct {
	event    string // names the event in front of each warning
	warnings []string
	unsaid   int   // warnings beyond maxWarnings
	err      error // the first failure; the event is not usable
}

// maxWarnings bounds the warnings of one event: an event of 1 MiB could have
// 100,000 fields of the wrong type.
const maxWarnings = 20

// warn notes that the field at path was not read. Neither argument may hold a
// value of the event: values are personal data.
func (r *report) warn(path, problem string) {
	warning := fmt.Sprintf("%s: %s %s", r.event, path, problem)
	switch {
	case slices.Contains(r.warnings, warning): // a field may be read twice
	case len(r.warnings) == maxWarnings:
		r.unsaid++
	default:
		r.warnings = append(r.warnings, warning)
	}
}

// fail notes that the event is not usable, because of the field at path.
func (r *report) fail(path, problem string) {
	if r.err == nil {
		r.err = fmt.Errorf("%s %s", path, problem)
	}
}

// all returns the warnings, the last of which says how many are left out.
func (r *report) all() []string {
	if r.unsaid == 0 {
		return r.warnings
	}
	return append(slices.Clone(r.warnings), fmt.Sprintf("%s: %d more warnings left out", r.event, r.unsaid))
}

// object is a JSON object at a path of the event. The zero object has no
// fields: reading it sets nothing and warns of nothing.
type object struct {
	*report
	path   string
	fields map[string]json.RawMessage
}

// shapeOf names the type of a JSON value, with an article: "a string", "null",
// or "absent" when there is no value.
func shapeOf(raw json.RawMessage) string {
	if len(raw) == 0 {
		return "absent"
	}
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

func isNothing(raw json.RawMessage) bool {
	shape := shapeOf(raw)
	return shape == "absent" || shape == "null"
}

// at returns the path of a field, for warnings.
func (o object) at(key string) string {
	if o.path == "" {
		return key
	}
	return o.path + "." + key
}

func (o object) has(key string) bool { return !isNothing(o.fields[key]) }

// wrong warns that a field is not what was expected, if it is anything at all.
func (o object) wrong(key string) {
	if raw := o.fields[key]; !isNothing(raw) {
		o.warn(o.at(key), "is "+shapeOf(raw))
	}
}

// object reads an object. ok is false when there is none.
func (o object) object(key string) (_ object, ok bool) {
	child := object{report: o.report, path: o.at(key)}
	if shapeOf(o.fields[key]) != "an object" {
		o.wrong(key)
		return child, false
	}
	child.fields, ok = rawjson.ValidObject(o.fields[key])
	return child, ok
}

// text reads a string.
func (o object) text(key string) (s string) {
	s, ok := rawjson.ValidString(o.fields[key])
	if !ok {
		o.wrong(key)
	}
	return s
}

// boolean reads a boolean. Anything else fails the event.
func (o object) boolean(key string) *bool {
	if !o.has(key) {
		return nil
	}
	var b bool
	if json.Unmarshal(o.fields[key], &b) != nil {
		o.fail(o.at(key), "is "+shapeOf(o.fields[key])+", not a boolean")
		return nil
	}
	return &b
}

// amount reads an amount of money in minor units. One that is not a whole
// number fails the event: it must not be guessed.
func (o object) amount(key string) *int64 {
	if !o.has(key) {
		return nil
	}
	var n int64
	if json.Unmarshal(o.fields[key], &n) != nil {
		o.fail(o.at(key), "is not a whole number of minor units")
		return nil
	}
	return &n
}

// sum reads an amount of money that must be there and is not negative.
func (o object) sum(key string) int64 {
	n := o.amount(key)
	if n == nil || *n < 0 {
		o.fail(o.at(key), "is not an amount")
		return 0
	}
	return *n
}

// amountOf adds up the amounts of a list of objects. Nil when there is no list.
func (o object) amountOf(key string) *int64 {
	if !o.has(key) {
		return nil
	}
	total := new(int64(0))
	for _, entry := range o.objects(key) {
		if total = plus(total, new(entry.sum("amount"))); total == nil {
			o.fail(o.at(key), "is more than a number can hold")
			return nil
		}
	}
	return total
}

// number reads a whole number that nothing depends on.
func (o object) number(key string) (n int64) {
	if o.has(key) && json.Unmarshal(o.fields[key], &n) != nil {
		o.warn(o.at(key), "is not a whole number")
		return 0
	}
	return n
}

// maxTime is the last second that a protobuf Timestamp can hold.
const maxTime = 253402300799 // 9999-12-31T23:59:59Z

// time reads a time in seconds since 1970.
func (o object) time(key string) *timestamppb.Timestamp {
	if !o.has(key) {
		return nil
	}
	var n int64
	if json.Unmarshal(o.fields[key], &n) != nil || n <= 0 || n > maxTime {
		o.warn(o.at(key), "is not a time")
		return nil
	}
	return &timestamppb.Timestamp{Seconds: n}
}

// expandable reads a field that is either the id of another object or that
// object itself (https://docs.stripe.com/api/expanding_objects). The object is
// the zero object when only its id is there.
func (o object) expandable(key string) (id string, expanded object) {
	if shapeOf(o.fields[key]) == "an object" {
		expanded, _ = o.object(key)
		return expanded.text("id"), expanded
	}
	return o.text(key), object{report: o.report}
}

// idShape is the shape of the ids that become part of a subject or a key in the
// log. Stripe's own ids fit; ids that a shop may choose (a coupon's) need not.
var idShape = regexp.MustCompile(`^[A-Za-z0-9_]{1,200}$`)

// reference reads the id of an expandable field that must be one of Stripe's
// own.
func (o object) reference(key string) string {
	id, _ := o.expandable(key)
	if id != "" && !idShape.MatchString(id) {
		o.warn(o.at(key), "is not a Stripe id")
		return ""
	}
	return id
}

// maxEntries bounds the lists and the key–value pairs that are read. Stripe's own
// bounds are below it (50 pairs of metadata, 3 custom fields, 20 lines of an
// event's invoice), so an event that exceeds it is not one of Stripe's: it fails,
// before it costs more than a glance.
const maxEntries = 100

// list reads a list as it is.
func (o object) list(key string) (raws []json.RawMessage) {
	if shapeOf(o.fields[key]) != "an array" {
		o.wrong(key)
		return nil
	}
	entries := json.NewDecoder(bytes.NewReader(o.fields[key]))
	entries.Token() // the bracket
	for entries.More() {
		var raw json.RawMessage
		if len(raws) == maxEntries || entries.Decode(&raw) != nil {
			o.fail(o.at(key), fmt.Sprintf("has more than %d entries", maxEntries))
			return nil
		}
		raws = append(raws, raw)
	}
	return raws
}

// objects reads a list of objects.
func (o object) objects(key string) (list []object) {
	for i, raw := range o.list(key) {
		path := fmt.Sprintf("%s[%d]", o.at(key), i)
		child, ok := o.element(path, raw)
		if !ok {
			o.warn(path, "is "+shapeOf(raw))
			continue
		}
		list = append(list, child)
	}
	return list
}

// element reads an object of a list. ok is false when it is not an object.
func (o object) element(path string, raw json.RawMessage) (_ object, ok bool) {
	child := object{report: o.report, path: path}
	child.fields, ok = rawjson.ValidObject(raw)
	return child, ok
}

// texts reads key–value pairs that are all strings.
func (o object) texts(key string) map[string]string {
	pairs, _ := o.object(key)
	if len(pairs.fields) > maxEntries {
		o.fail(o.at(key), fmt.Sprintf("has more than %d entries", maxEntries))
		return nil
	}
	wrong := 0
	texts := make(map[string]string, len(pairs.fields))
	for name, raw := range pairs.fields {
		var s string
		if shapeOf(raw) != "a string" || json.Unmarshal(raw, &s) != nil {
			wrong++
			continue
		}
		texts[name] = s
	}
	if wrong > 0 {
		o.warn(o.at(key), fmt.Sprintf("has %d values that are not strings", wrong))
	}
	return texts
}
