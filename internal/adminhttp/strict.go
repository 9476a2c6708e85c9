package adminhttp

import (
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/ordergate/ordergate/internal/rawjson"
)

// problem is a field or parameter of a request that is not taken.
type problem struct{ field, description string }

// scalars are the messages whose JSON is not an object.
var scalars = []protoreflect.FullName{"google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask"}

func isScalar(field protoreflect.FieldDescriptor) bool {
	return field.Message() == nil || slices.Contains(scalars, field.Message().FullName())
}

// fieldOf returns the field of a message by its name in JSON or in the proto file; nil if there is
// none.
func fieldOf(message protoreflect.MessageDescriptor, name string) protoreflect.FieldDescriptor {
	if field := message.Fields().ByJSONName(name); field != nil {
		return field
	}
	return message.Fields().ByTextName(name)
}

// checkBody returns the fields of a JSON object that its message does not have, and those that
// occur twice. What is not an object is left to the decoder, which says more about it.
func checkBody(body rawjson.Value, message protoreflect.MessageDescriptor, path string) (problems []problem) {
	seen := map[protoreflect.Name]bool{}
	for name, value := range body.Members() {
		field := fieldOf(message, name)
		switch {
		case field == nil:
			problems = append(problems, problem{path + name, "is not a field of this request"})
		case seen[field.Name()]:
			problems = append(problems, problem{path + name, "occurs more than once"})
		default:
			seen[field.Name()] = true
			problems = append(problems, checkValue(value, field, path+name)...)
		}
	}
	return problems
}

func checkValue(value rawjson.Value, field protoreflect.FieldDescriptor, path string) (problems []problem) {
	switch {
	case field.IsMap():
		return checkKeys(value, path)
	case isScalar(field):
		return nil
	case field.IsList():
		i := 0
		for element := range value.Elements() {
			problems = append(problems, checkBody(element, field.Message(), fmt.Sprintf("%s[%d].", path, i))...)
			i++
		}
		return problems
	}
	return checkBody(value, field.Message(), path+".")
}

// checkKeys returns the keys of a map that occur twice.
func checkKeys(value rawjson.Value, path string) (problems []problem) {
	seen := map[string]bool{}
	for name := range value.Members() {
		if seen[name] {
			problems = append(problems, problem{path + "." + name, "occurs more than once"})
		}
		seen[name] = true
	}
	return problems
}

// checkQuery returns the query parameters that the request of a route does not have, and those of
// single values that occur twice, or have a value that is not UTF-8.
func (r *route) checkQuery(query url.Values) (problems []problem) {
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		path, list, ok := r.queryField(name)
		switch {
		case !ok:
			problems = append(problems, problem{name, "is not a query parameter of this request"})
		case !list && (seen[path] || len(query[name]) > 1):
			problems = append(problems, problem{name, "occurs more than once"})
		case slices.ContainsFunc(query[name], func(value string) bool { return !utf8.ValidString(value) }):
			problems = append(problems, problem{name, "must be UTF-8"})
		}
		seen[path] = true
	}
	return problems
}

// queryField finds the field that a query parameter sets: its path with the names of the proto
// file, and whether it takes several values. A map's entry is written field[key].
func (r *route) queryField(name string) (path string, list, ok bool) {
	if r.body != nil && r.bodyField == "" {
		return "", false, false // the body is the whole request
	}
	name, entry, isEntry := strings.Cut(name, "[")
	message := r.method.Input()
	var names []string
	for parts := strings.Split(name, "."); len(parts) > 0; parts = parts[1:] {
		if message == nil {
			return "", false, false
		}
		field := fieldOf(message, parts[0])
		if field == nil {
			return "", false, false
		}
		names = append(names, string(field.Name()))
		if len(parts) > 1 {
			if message = field.Message(); field.IsList() || field.IsMap() || isScalar(field) {
				return "", false, false
			}
			continue
		}
		switch {
		case isEntry:
			ok = field.IsMap() && strings.HasSuffix(entry, "]")
		default:
			ok = !field.IsMap() && isScalar(field)
		}
		list = field.IsList()
	}
	path = strings.Join(names, ".")
	if slices.Contains(r.inPath, path) || r.bodyField != "" && names[0] == string(r.bodyField) {
		return "", false, false
	}
	if isEntry {
		path += "[" + entry
	}
	return path, list, ok
}

// readBody reads a body of at most so many bytes. ok is false if there is more.
func readBody(body io.Reader, limit int64) (content []byte, ok bool, err error) {
	content, err = io.ReadAll(io.LimitReader(body, limit+1))
	return content, int64(len(content)) <= limit, err
}
