package orders

import (
	"fmt"
	"slices"
	"strconv"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/ordergate/ordergate/internal/rawjson"
)

// The readers in this file are tolerant: a field that is absent or null is not
// set, and one of an unexpected type is not set and gives a warning. Only where
// a wrong value could send goods or misstate a sum does reading fail.
//
// rawjson, like encoding/json, replaces bytes that are not UTF-8 with U+FFFD, so
// every string read here can go into a protobuf message.

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
	path  string
	value rawjson.Value
}

// field returns a field as it is.
func (o object) field(key string) rawjson.Value { return o.value.Get(key) }

// shapeOf names the type of a JSON value, with an article: "a string", "null",
// or "absent" when there is no value.
func shapeOf(v rawjson.Value) string {
	raw := v.Raw()
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

func isNothing(v rawjson.Value) bool {
	raw := v.Raw()
	return len(raw) == 0 || raw[0] == 'n'
}

// at returns the path of a field, for warnings.
func (o object) at(key string) string {
	if o.path == "" {
		return key
	}
	return o.path + "." + key
}

func (o object) has(key string) bool { return !isNothing(o.field(key)) }

// wrong warns that a field is not what was expected, if it is anything at all.
func (o object) wrong(key string, v rawjson.Value) {
	if !isNothing(v) {
		o.warn(o.at(key), "is "+shapeOf(v))
	}
}

// object reads an object. ok is false when there is none.
func (o object) object(key string) (_ object, ok bool) {
	child := object{report: o.report, path: o.at(key)}
	v := o.field(key)
	if !v.IsObject() {
		o.wrong(key, v)
		return child, false
	}
	child.value = v
	return child, true
}

// text reads a string.
func (o object) text(key string) (s string) {
	v := o.field(key)
	s, ok := v.Text()
	if !ok {
		o.wrong(key, v)
	}
	return s
}

// boolean reads a boolean. Anything else fails the event.
func (o object) boolean(key string) *bool {
	v := o.field(key)
	switch string(v.Raw()) {
	case "", "null":
		return nil
	case "true":
		return new(true)
	case "false":
		return new(false)
	default:
		o.fail(o.at(key), "is "+shapeOf(v)+", not a boolean")
		return nil
	}
}

// integer reads a whole number, written as one. It is 0 and ok is false when the
// field is anything else.
func (o object) integer(key string) (n int64, ok bool) {
	n, err := strconv.ParseInt(string(o.field(key).Raw()), 10, 64)
	if err != nil {
		return 0, false // and not the number that is nearest
	}
	return n, true
}

// amount reads an amount of money in minor units. One that is not a whole
// number fails the event: it must not be guessed.
func (o object) amount(key string) *int64 {
	n, ok := o.integer(key)
	if !ok {
		if o.has(key) {
			o.fail(o.at(key), "is not a whole number of minor units")
		}
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

// amountOf adds up the amounts of a list of objects, which may be negative: those of
// a proration are. Nil when there is no list.
func (o object) amountOf(key string) *int64 {
	if !o.has(key) {
		return nil
	}
	total := new(int64(0))
	for _, entry := range o.objects(key) {
		amount := entry.amount("amount")
		if amount == nil {
			entry.fail(entry.at("amount"), "is not an amount")
			return nil
		}
		if total = plus(total, amount); total == nil {
			o.fail(o.at(key), "is more than a number can hold")
			return nil
		}
	}
	return total
}

// number reads a whole number that nothing depends on.
func (o object) number(key string) (n int64) {
	n, ok := o.integer(key)
	if !ok && o.has(key) {
		o.warn(o.at(key), "is not a whole number")
	}
	return n
}

// maxTime is the last second that a protobuf Timestamp can hold.
const maxTime = 253402300799 // 9999-12-31T23:59:59Z

// time reads a time in seconds since 1970.
func (o object) time(key string) *timestamppb.Timestamp {
	n, ok := o.integer(key)
	if !ok || n <= 0 || n > maxTime {
		if o.has(key) {
			o.warn(o.at(key), "is not a time")
		}
		return nil
	}
	return &timestamppb.Timestamp{Seconds: n}
}

// expandable reads a field that is either the id of another object or that
// object itself (https://docs.stripe.com/api/expanding_objects). The object is
// the zero object when only its id is there.
func (o object) expandable(key string) (id string, expanded object) {
	if o.field(key).IsObject() {
		expanded, _ = o.object(key)
		return expanded.text("id"), expanded
	}
	return o.text(key), object{report: o.report}
}

// isID reports whether s has the shape of the ids that become part of a subject or
// a key in the log: up to 200 letters, digits and underscores. Stripe's own ids fit;
// ids that a shop may choose (a coupon's) need not.
func isID(s string) bool {
	return madeOf(s, 200, func(c byte) bool {
		return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
	})
}

// isConstant reports whether s has the shape of Stripe's own constants, which may
// be logged.
func isConstant(s string) bool {
	return madeOf(s, 40, func(c byte) bool { return 'a' <= c && c <= 'z' || c == '_' })
}

// isCurrency reports whether s has the shape of Stripe's currency codes.
func isCurrency(s string) bool {
	return len(s) == 3 && madeOf(s, 3, func(c byte) bool { return 'a' <= c && c <= 'z' })
}

// madeOf reports whether s is of such bytes, of 1 to most of them.
func madeOf(s string, most int, such func(byte) bool) bool {
	for i := range len(s) {
		if !such(s[i]) {
			return false
		}
	}
	return 1 <= len(s) && len(s) <= most
}

// reference reads the id of an expandable field that must be one of Stripe's
// own.
func (o object) reference(key string) string {
	id, _ := o.expandable(key)
	if id != "" && !isID(id) {
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
func (o object) list(key string) (list []rawjson.Value) {
	v := o.field(key)
	if !v.IsArray() {
		o.wrong(key, v)
		return nil
	}
	for entry := range v.Elements() {
		if len(list) == maxEntries {
			o.fail(o.at(key), fmt.Sprintf("has more than %d entries", maxEntries))
			return nil
		}
		list = append(list, entry)
	}
	return list
}

// objects reads a list of objects.
func (o object) objects(key string) (list []object) {
	for i, entry := range o.list(key) {
		path := fmt.Sprintf("%s[%d]", o.at(key), i)
		if !entry.IsObject() {
			o.warn(path, "is "+shapeOf(entry))
			continue
		}
		list = append(list, object{report: o.report, path: path, value: entry})
	}
	return list
}

// texts reads key–value pairs that are all strings.
func (o object) texts(key string) map[string]string {
	pairs, _ := o.object(key)
	texts := map[string]string{}
	wrong := map[string]bool{}
	for name, value := range pairs.value.Members() {
		// Of several with one name, the last counts.
		if s, ok := value.Text(); ok {
			texts[name] = s
			delete(wrong, name)
		} else {
			wrong[name] = true
			delete(texts, name)
		}
		if len(texts)+len(wrong) > maxEntries {
			o.fail(o.at(key), fmt.Sprintf("has more than %d entries", maxEntries))
			return nil
		}
	}
	if len(wrong) > 0 {
		o.warn(o.at(key), fmt.Sprintf("has %d values that are not strings", len(wrong)))
	}
	return texts
}
