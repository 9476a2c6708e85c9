package grpcapi

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// measures are what the server tells of its calls. The names with grpc_server are
// those of go-grpc-middleware, which dashboards know; its interceptors would look
// labels up for every message of a stream.
type measures struct {
	handled *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	streams *prometheus.GaugeVec
	sent    *prometheus.CounterVec

	// Of the methods that send events.
	watching, consuming       prometheus.Gauge
	watched, consumed, pulled prometheus.Counter
}

func newMeasures() *measures {
	m := &measures{
		handled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "grpc_server_handled_total",
			Help: "Calls that ended, streams too, by method and code.",
		}, []string{"grpc_service", "grpc_method", "grpc_code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "grpc_server_handling_seconds",
			Help:    "How long unary calls took.",
			Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5, 10},
		}, []string{"grpc_service", "grpc_method"}),
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "ordergate_api_streams",
			Help: "Streams that are open, by method.",
		}, []string{"method"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ordergate_api_events_sent_total",
			Help: "Order events sent to subscribers, by method; one that is sent again counts again.",
		}, []string{"method"}),
	}
	m.watching, m.consuming = m.streams.WithLabelValues("WatchOrders"), m.streams.WithLabelValues("Consume")
	m.watched, m.consumed, m.pulled = m.sent.WithLabelValues("WatchOrders"), m.sent.WithLabelValues("Consume"), m.sent.WithLabelValues("Pull")
	return m
}

// Collector measures the calls.
func (s *Server) Collector() prometheus.Collector { return s.measures }

func (m *measures) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.handled, m.seconds, m.streams, m.sent}
}

// Describe is for the registry.
func (m *measures) Describe(descriptions chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(descriptions)
	}
}

// Collect is for the registry.
func (m *measures) Collect(metrics chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(metrics)
	}
}

// unary is outside of the guard, which makes the statuses.
func (m *measures) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	began := time.Now()
	response, err := handler(ctx, request)
	service, method := splitMethod(info.FullMethod)
	m.handled.WithLabelValues(service, method, status.Code(err).String()).Inc()
	m.seconds.WithLabelValues(service, method).Observe(time.Since(began).Seconds())
	return response, err
}

func (m *measures) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	err := handler(server, stream)
	service, method := splitMethod(info.FullMethod)
	m.handled.WithLabelValues(service, method, status.Code(err).String()).Inc()
	return err
}

// splitMethod returns the parts of /package.Service/Method. Only what is served
// comes here, so that there is a bound on the series.
func splitMethod(full string) (service, method string) {
	service, method, _ = strings.Cut(strings.TrimPrefix(full, "/"), "/")
	return service, method
}
