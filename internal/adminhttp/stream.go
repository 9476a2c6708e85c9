package adminhttp

import (
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/protobuf/encoding/protojson"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

const (
	watchPath   = "/v1/orders:watch"
	eventStream = "text/event-stream"
)

// restMarshaler writes protojson: lowerCamelCase, 64-bit numbers as strings,
// and a stream as NDJSON. Empty strings, lists and zeros are written; what is
// unset is not.
var restMarshaler = ndjsonMarshaler{&runtime.JSONPb{
	MarshalOptions:   protojson.MarshalOptions{EmitDefaultValues: true},
	UnmarshalOptions: protojson.UnmarshalOptions{}, // restGuard names every unknown field
}}

type ndjsonMarshaler struct{ *runtime.JSONPb }

func (ndjsonMarshaler) StreamContentType(any) string { return "application/x-ndjson" }

// sseMarshaler writes a stream as server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html). The event's
// id is the resume token: a browser that reconnects sends it back.
type sseMarshaler struct{ ndjsonMarshaler }

func (sseMarshaler) ContentType(any) string       { return eventStream }
func (sseMarshaler) StreamContentType(any) string { return eventStream }
func (sseMarshaler) Delimiter() []byte            { return []byte("\n\n") }

func (m sseMarshaler) Marshal(v any) ([]byte, error) {
	data, err := m.ndjsonMarshaler.Marshal(v)
	if err != nil {
		return nil, err
	}
	var event []byte
	if chunk, ok := v.(map[string]any); ok {
		if response, ok := chunk["result"].(*ordergatev1.WatchOrdersResponse); ok {
			event = append(event, "id: "+response.GetResumeToken()+"\n"...)
		}
	}
	return append(append(event, "data: "...), data...), nil
}

// negotiateSSE makes the Accept header one that the gateway understands, and
// lets a browser that lost its connection go on where it was.
func negotiateSSE(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != watchPath || !acceptsEventStream(r) {
			r.Header.Del("Accept")
			next.ServeHTTP(w, r)
			return
		}
		r.Header.Set("Accept", eventStream)
		if token := r.Header.Get("Last-Event-ID"); token != "" {
			r.URL.RawQuery = resumeFrom(r.URL.Query(), token).Encode()
		}
		next.ServeHTTP(w, r)
	})
}

func acceptsEventStream(r *http.Request) bool {
	for _, accept := range r.Header.Values("Accept") {
		for part := range strings.SplitSeq(accept, ",") {
			if mediaType, _, err := mime.ParseMediaType(part); err == nil && mediaType == eventStream {
				return true
			}
		}
	}
	return false
}

// resumeFrom replaces the start of a watch by a resume token.
func resumeFrom(query url.Values, token string) url.Values {
	for _, name := range []string{"from_beginning", "fromBeginning", "start_time", "startTime", "resume_token", "resumeToken"} {
		query.Del(name)
	}
	query.Set("resume_token", token)
	return query
}
