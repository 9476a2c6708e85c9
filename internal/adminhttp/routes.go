package adminhttp

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// route is one method of the REST API.
type route struct {
	verb   string
	path   *regexp.Regexp
	method protoreflect.MethodDescriptor
	// body is the message that the body holds; nil if the method has no body. bodyField is the
	// field of the request that it is; empty if the body is the whole request.
	body      protoreflect.MessageDescriptor
	bodyField protoreflect.Name
	// inPath are the request's fields that the path holds.
	inPath []string
}

// name returns the full name of the route's method, as gRPC writes it.
func (r *route) name() string {
	return "/" + string(r.method.Parent().FullName()) + "/" + string(r.method.Name())
}

// parameter matches a parameter of a path.
var parameter = regexp.MustCompile(`\\\{[^}]+\\\}`)

// readRoutes reads the REST API from its OpenAPI document, which is generated together with the
// code that serves it.
func readRoutes(document []byte) (routes []route, err error) {
	var api struct {
		Paths map[string]map[string]struct {
			OperationID string `json:"operationId"`
			Parameters  []struct{ Name, In string }
		}
	}
	if err := json.Unmarshal(document, &api); err != nil {
		return nil, fmt.Errorf("OpenAPI document: %w", err)
	}
	for path, verbs := range api.Paths {
		for verb, operation := range verbs {
			service, method, _ := strings.Cut(operation.OperationID, "_")
			found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("ordergate.v1." + service + "." + method))
			if err != nil {
				return nil, fmt.Errorf("OpenAPI operation %s: %w", operation.OperationID, err)
			}
			r := route{verb: strings.ToUpper(verb), method: found.(protoreflect.MethodDescriptor)}
			r.path = regexp.MustCompile("^" + parameter.ReplaceAllString(regexp.QuoteMeta(path), `[^/:]+`) + "$")
			for _, p := range operation.Parameters {
				switch p.In {
				case "path":
					r.inPath = append(r.inPath, protoName(p.Name))
				case "body":
					r.body = r.method.Input()
					if field := r.body.Fields().ByName(protoreflect.Name(protoName(p.Name))); field != nil && field.Message() != nil {
						r.body, r.bodyField = field.Message(), field.Name()
					}
				}
			}
			routes = append(routes, r)
		}
	}
	return routes, nil
}

// protoName returns a field's path with the names of the proto file.
func protoName(name string) string {
	var b strings.Builder
	for _, c := range name {
		if 'A' <= c && c <= 'Z' {
			b.WriteByte('_')
			c += 'a' - 'A'
		}
		b.WriteRune(c)
	}
	return b.String()
}

// routeOf returns the route of a request, or nil.
func routeOf(routes []route, r *http.Request) *route {
	for i := range routes {
		if routes[i].verb == r.Method && routes[i].path.MatchString(r.URL.Path) {
			return &routes[i]
		}
	}
	return nil
}
