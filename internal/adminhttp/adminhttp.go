// Package adminhttp serves operators over HTTP: the REST side of the gRPC API,
// its OpenAPI document, health, readiness and metrics. It is a client of the
// gRPC server and knows nothing else of the gateway.
package adminhttp

import (
	"context"
	_ "embed"
	"encoding/json"
	"log/slog"
	"net/http"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

//go:embed openapi/ordergate.swagger.json
var openAPI []byte

const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 32 << 10
)

// Config says what to serve.
type Config struct {
	// Conn is a connection to the gRPC server.
	Conn *grpc.ClientConn
	// Ready returns nil while the gateway can do its work, else what is wrong.
	Ready func() error
	// Metrics are what /metrics shows.
	Metrics prometheus.Gatherer
}

// New returns the handler of the admin listener. ctx bounds the life of the
// handler's use of the connection.
func New(ctx context.Context, cfg Config) (http.Handler, error) {
	rest := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, restMarshaler),
		runtime.WithMarshalerOption(eventStream, sseMarshaler{restMarshaler}),
	)
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		ordergatev1.RegisterOrderServiceHandler,
		ordergatev1.RegisterEventServiceHandler,
		ordergatev1.RegisterSubscriptionServiceHandler,
	} {
		if err := register(ctx, rest, cfg.Conn); err != nil {
			return nil, err
		}
	}
	mux := http.NewServeMux()
	// A page that an operator's browser has open must not free a parcel.
	mux.Handle("/v1/", http.NewCrossOriginProtection().Handler(negotiateSSE(rest)))
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write(openAPI)
	})
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
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{}))
	return mux, nil
}

// Server returns an HTTP server for the handler. It has no write timeout: a
// watch has no end.
func Server(handler http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
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
