// Package adminhttp serves operators over HTTP: the REST side of the gRPC API,
// its OpenAPI document, health, readiness, metrics, profiles and channelz. It is a
// client of the gRPC server and knows nothing else of the gateway.
package adminhttp

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/auth"
)

//go:embed openapi/ordergate.swagger.json
var openAPI []byte

const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 32 << 10

	challengeHeader = "WWW-Authenticate"
	challenge       = "Bearer"
)

// Config says what to serve.
type Config struct {
	// Conn is a connection to the gRPC server for calls with one answer, and Streams one for calls
	// with many: however many of these there are, the others do not wait for them.
	Conn, Streams grpc.ClientConnInterface
	// Addr is the address that the listener is bound to, and Hosts are further names by which it
	// may be addressed without a credential.
	Addr  string
	Hosts []string
	// Ready returns nil while the gateway can do its work, else what is wrong.
	Ready func() error
	// Metrics are what /metrics shows.
	Metrics prometheus.Gatherer
	// Access says who may see /metrics and /openapi.json, and takes what callers of
	// /v1/ show, for the gRPC server to judge: Conn is a connection within the
	// process.
	Access *auth.Access
}

// New returns the handler of the admin listener. ctx bounds the life of the
// handler's use of the connection.
func New(ctx context.Context, cfg Config) (http.Handler, error) {
	rest := runtime.NewServeMux(
		// Nothing of a request becomes metadata but what handOver says of its caller.
		runtime.WithIncomingHeaderMatcher(func(string) (string, bool) { return "", false }),
		runtime.WithMetadata(func(_ context.Context, r *http.Request) metadata.MD {
			ticket, _ := r.Context().Value(ticketOf{}).(string)
			return metadata.Pairs(auth.TicketKey, ticket)
		}),
		runtime.WithMarshalerOption(runtime.MIMEWildcard, restMarshaler),
		runtime.WithMarshalerOption(eventStream, sseMarshaler{restMarshaler}),
		runtime.WithDisablePathLengthFallback(), // a POST is a POST
	)
	conn := conns{cfg.Conn, cfg.Streams}
	if err := errors.Join(
		ordergatev1.RegisterOrderServiceHandlerClient(ctx, rest, ordergatev1.NewOrderServiceClient(conn)),
		ordergatev1.RegisterEventServiceHandlerClient(ctx, rest, ordergatev1.NewEventServiceClient(conn)),
		ordergatev1.RegisterSubscriptionServiceHandlerClient(ctx, rest, ordergatev1.NewSubscriptionServiceClient(conn)),
	); err != nil {
		return nil, err
	}
	routes, err := readRoutes(openAPI)
	if err != nil {
		return nil, err
	}
	guard := &restGuard{routes: routes, access: cfg.Access, next: handOver(cfg.Access, rest), streams: map[*auth.Principal]int{}}
	mux := http.NewServeMux()
	// A page that an operator's browser has open must not free a parcel.
	mux.Handle("/v1/", http.NewCrossOriginProtection().Handler(negotiateSSE(guard)))
	mux.Handle("GET /openapi.json", forAnyRole(cfg.Access, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(openAPI)
	})))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"alive": true})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := cfg.Ready(); err != nil {
			answer(w, http.StatusServiceUnavailable, map[string]any{"ready": false, "reason": err.Error()})
			return
		}
		answer(w, http.StatusOK, map[string]any{"ready": true})
	})
	mux.Handle("GET /metrics", forAnyRole(cfg.Access, promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{})))
	handleDebug(mux, cfg.Access)
	return newHosts(cfg.Addr, cfg.Hosts, cfg.Access).guard(mux), nil
}

// conns sends calls with one answer over one connection, and streams over another.
type conns struct{ calls, streams grpc.ClientConnInterface }

func (c conns) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := checkMethod(ctx, method); err != nil {
		return err
	}
	return c.calls.Invoke(ctx, method, args, reply, opts...)
}

func (c conns) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := checkMethod(ctx, method); err != nil {
		return nil, err
	}
	return c.streams.NewStream(ctx, desc, method, opts...)
}

// checkedMethod is the key, in a request's context, of the method for which restGuard checked the
// request; it is empty if the request is for none.
type checkedMethod struct{}

// checkMethod refuses a call of another method than the checked one: grpc-gateway matches some paths
// that restGuard does not, such as those of ids with a colon.
func checkMethod(ctx context.Context, method string) error {
	if checked, ok := ctx.Value(checkedMethod{}).(string); ok && checked != method {
		return failed(codes.NotFound, "INVALID_REQUEST", "there is nothing at this path").Err()
	}
	return nil
}

// ticketOf is the key of a request's ticket in its context.
type ticketOf struct{}

// handOver passes on what a caller shows to the gRPC server, by a ticket that is
// good for as long as the request.
func handOver(access *auth.Access, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ticket, done := access.HandOver(shownBy(r))
		defer done()
		next.ServeHTTP(challenging{w}, r.WithContext(context.WithValue(r.Context(), ticketOf{}, ticket)))
	})
}

// challenging names the scheme in answers to callers that are not known, as
// RFC 9110, section 15.5.2, wants it.
type challenging struct{ http.ResponseWriter }

func (c challenging) WriteHeader(status int) {
	if status == http.StatusUnauthorized {
		c.Header().Set(challengeHeader, challenge)
	}
	c.ResponseWriter.WriteHeader(status)
}

// Flush is there for the streams of grpc-gateway, which look for it.
func (c challenging) Flush() {
	http.NewResponseController(c.ResponseWriter).Flush() // the next write tells of an error
}

func (c challenging) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// forAnyRole lets through who has a role.
func forAnyRole(access *auth.Access, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := access.Authenticate(shownBy(r)); err != nil {
			w.Header().Set(challengeHeader, challenge)
			answer(w, http.StatusUnauthorized, map[string]any{"error": err.Error()})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// shownBy returns what the caller of a request shows of itself.
func shownBy(r *http.Request) auth.Shown {
	shown := auth.Shown{Authorization: r.Header.Values("Authorization")}
	if r.TLS != nil {
		shown.Certificate, shown.Private = auth.VerifiedCertificate(*r.TLS), true
	} else if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		shown.Private = auth.Loopback(local)
	}
	return shown
}

// Server returns an HTTP server for the handler. It has no write timeout: a
// watch has no end.
func Server(handler http.Handler, logger *slog.Logger) *http.Server {
	// gRPC, for channelz, is HTTP/2, also without TLS.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Protocols:         &protocols,
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

func answer(w http.ResponseWriter, status int, body map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body) // the caller may be gone: there is nothing to do about it
}
