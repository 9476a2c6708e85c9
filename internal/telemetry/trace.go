package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

const (
	// maxAttribute bounds an attribute, in bytes: types and ids are shorter.
	maxAttribute = 256
	// flushTimeout bounds how long the end of the process waits for the collector.
	flushTimeout = 2 * time.Second
)

// TraceConfig says which traces are sent, and where.
type TraceConfig struct {
	// Endpoint is the URL of a collector that takes OTLP over gRPC. Empty: nothing
	// is traced.
	Endpoint string
	// Ratio is the share of webhooks that are traced, 0 to 1.
	Ratio float64
	// Version is the gateway's.
	Version string
	// Logger is told when traces cannot be sent.
	Logger *slog.Logger
}

// Tracing sends spans to a collector, in the background. What it cannot send in
// time it drops: it holds nobody up, and a bounded number of spans.
type Tracing struct {
	provider *sdktrace.TracerProvider // nil: nothing is traced
}

// NewTracing returns the tracing of the settings. It does not wait for the
// collector. The exporter heeds the standard OTEL_ variables too, such as
// OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_… and OTEL_RESOURCE_ATTRIBUTES.
func NewTracing(ctx context.Context, cfg TraceConfig) (*Tracing, error) {
	if cfg.Endpoint == "" {
		return &Tracing{}, nil
	}
	exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(cfg.Endpoint))
	if err != nil {
		return nil, fmt.Errorf("--otlp-endpoint %s: %w", cfg.Endpoint, err)
	}
	about, err := resource.New(ctx,
		resource.WithAttributes(attribute.String("service.name", "ordergate"), attribute.String("service.version", cfg.Version)),
		resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME: %w", err), exporter.Shutdown(ctx))
	}
	limits := sdktrace.NewSpanLimits()
	limits.AttributeValueLengthLimit = maxAttribute
	return &Tracing{sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(&loggedExporter{SpanExporter: exporter, logger: cfg.Logger, tell: rate.Sometimes{Interval: time.Minute}}),
		sdktrace.WithResource(about),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(cfg.Ratio))),
		sdktrace.WithRawSpanLimits(limits),
	)}, nil
}

// Tracer returns what spans are made with; nil when nothing is traced.
func (t *Tracing) Tracer() trace.Tracer {
	if t.provider == nil {
		return nil
	}
	return t.provider.Tracer("github.com/ordergate/ordergate")
}

// Close sends what is left, if the collector takes it soon.
func (t *Tracing) Close() {
	if t == nil || t.provider == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	t.provider.Shutdown(ctx) // the exporter says what went wrong
}

// loggedExporter tells the log of failures, instead of OpenTelemetry's global
// handler.
type loggedExporter struct {
	sdktrace.SpanExporter
	logger *slog.Logger
	tell   rate.Sometimes
}

// ExportSpans is for the batch processor.
func (e *loggedExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.tell.Do(func() {
			e.logger.Warn("traces could not be sent, and are dropped; said at most once a minute", "spans", len(spans), "error", err,
				"check", "--otlp-endpoint: does a collector take OTLP over gRPC there?")
		})
	}
	return nil
}
