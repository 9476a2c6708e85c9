package adminhttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/protoadapt"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/rawjson"
)

const (
	// maxBody bounds the body of a request, in bytes, and bodyTimeout the time that it takes.
	maxBody     = 256 << 10
	bodyTimeout = 10 * time.Second
	// maxStreams bounds the streams of one principal, and maxAllStreams those of all, which share
	// a connection of 1,000 streams.
	maxStreams, maxAllStreams = 100, 900

	errorDomain = "ordergate"
)

// restGuard checks requests to the REST API before grpc-gateway takes them.
type restGuard struct {
	routes []route
	access *auth.Access
	next   http.Handler

	mu      sync.Mutex
	streams map[*auth.Principal]int
	all     int
}

func (g *restGuard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	principal, err := g.access.Authenticate(shownBy(r))
	if err != nil {
		r.Body = http.NoBody // it is not read: the gRPC server refuses the call
		g.next.ServeHTTP(w, r)
		return
	}
	route := routeOf(g.routes, r)
	if route == nil { // 404 or 405
		r.Body = http.NoBody
		g.next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), checkedMethod{}, "")))
		return
	}
	if err := g.check(w, r, route); err != nil {
		refuse(w, err)
		return
	}
	if route.method.IsStreamingServer() {
		if !g.begin(principal) {
			w.Header().Set("Retry-After", "5")
			refuse(w, &refusal{http.StatusServiceUnavailable, failed(codes.ResourceExhausted, "TOO_MANY_STREAMS",
				fmt.Sprintf("too many streams over REST: at most %d for each caller and %d in all; end some, or use gRPC", maxStreams, maxAllStreams))})
			return
		}
		defer g.end(principal)
		w.Header().Set("X-Accel-Buffering", "no") // nginx passes each message on at once
	}
	g.next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), checkedMethod{}, route.name())))
}

func (g *restGuard) begin(p *auth.Principal) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.streams[p] >= maxStreams || g.all >= maxAllStreams {
		return false
	}
	g.streams[p]++
	g.all++
	return true
}

func (g *restGuard) end(p *auth.Principal) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all--
	if g.streams[p]--; g.streams[p] == 0 {
		delete(g.streams, p)
	}
}

// check reads the body of a request, and refuses what the request does not have. The body can be
// read again.
func (g *restGuard) check(w http.ResponseWriter, r *http.Request, route *route) *refusal {
	body, refused := takeBody(w, r)
	if refused != nil {
		return refused
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	problems := route.checkQuery(r.URL.Query())
	if !utf8.ValidString(r.URL.Path) {
		problems = append(problems, problem{"path", "must be UTF-8"})
	}
	value, valid := rawjson.Parse(body)
	switch {
	case len(bytes.TrimSpace(body)) == 0:
	case route.body == nil:
		problems = append(problems, problem{"body", "is not taken by this request"})
	case !valid: // grpc-gateway would ignore everything after the first value
		problems = append(problems, problem{"body", "must be one JSON object"})
	default:
		problems = append(problems, checkBody(value, route.body, "")...)
	}
	if len(problems) == 0 {
		problems = checkConfirmation(route, r, body)
	}
	if len(problems) > 0 {
		return &refusal{http.StatusBadRequest, invalid(problems)}
	}
	return nil
}

// takeBody reads a body within the bounds.
func takeBody(w http.ResponseWriter, r *http.Request) ([]byte, *refusal) {
	tooLarge := &refusal{http.StatusRequestEntityTooLarge, failed(codes.InvalidArgument, "INVALID_REQUEST", fmt.Sprintf("the body has more than %d bytes", maxBody))}
	if r.ContentLength > maxBody {
		return nil, tooLarge
	}
	control := http.NewResponseController(w)
	control.SetReadDeadline(time.Now().Add(bodyTimeout)) // a connection without deadlines is one of a test
	body, ok, err := readBody(r.Body, maxBody)
	control.SetReadDeadline(time.Time{})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close")
		return nil, &refusal{http.StatusRequestTimeout, failed(codes.DeadlineExceeded, "INVALID_REQUEST", fmt.Sprintf("the body did not arrive within %v", bodyTimeout))}
	case err != nil:
		return nil, &refusal{http.StatusBadRequest, failed(codes.InvalidArgument, "INVALID_REQUEST", "the body cannot be read")}
	case !ok:
		return nil, tooLarge
	}
	return body, nil
}

// checkConfirmation requires of requests that cannot be undone what a mistake cannot leave out.
func checkConfirmation(route *route, r *http.Request, body []byte) []problem {
	switch route.name() {
	case ordergatev1.OrderService_EraseOrders_FullMethodName:
		var request ordergatev1.EraseOrdersRequest
		if len(bytes.TrimSpace(body)) > 0 {
			if err := protojson.Unmarshal(body, &request); err != nil {
				return []problem{{"body", "cannot be decoded: " + err.Error()}}
			}
		}
		if !request.GetDryRun() && request.GetConfirm() != "erase" {
			return []problem{{"confirm", `must be "erase" unless dryRun is true: an erasure cannot be undone`}}
		}
	case ordergatev1.SubscriptionService_DeleteSubscription_FullMethodName:
		if name := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]; r.URL.Query().Get("confirm") != name {
			return []problem{{"confirm", "must be the name of the subscription: add ?confirm=NAME, as a deletion cannot be undone"}}
		}
	}
	return nil
}

// refusal is an answer to a request that is not passed on.
type refusal struct {
	code   int
	status *status.Status
}

func refuse(w http.ResponseWriter, r *refusal) {
	body, err := restMarshaler.Marshal(r.status.Proto())
	if err != nil { // a status can always be marshalled
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(r.code)
	w.Write(body) // the caller may be gone: there is nothing to do about it
}

func failed(code codes.Code, reason, message string, details ...protoadapt.MessageV1) *status.Status {
	s := status.New(code, message)
	detailed, err := s.WithDetails(append([]protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: errorDomain}}, details...)...)
	if err != nil { // only for OK
		return s
	}
	return detailed
}

func invalid(problems []problem) *status.Status {
	violations := &errdetails.BadRequest{}
	var texts []string
	for _, p := range problems {
		p.field = strings.ToValidUTF8(p.field, "\uFFFD") // a query parameter can have any name
		violations.FieldViolations = append(violations.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: p.field, Description: p.description})
		texts = append(texts, p.field+": "+p.description)
	}
	return failed(codes.InvalidArgument, "INVALID_REQUEST", strings.Join(texts, "; "), violations)
}
