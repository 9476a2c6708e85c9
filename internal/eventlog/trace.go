package eventlog

import (
	"context"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// headerTrace is where a message keeps the span that stored it, as W3C's Trace
// Context writes it. Messages of what is not traced do not have it.
const headerTrace = "traceparent"

var traceContext propagation.TraceContext

// putTrace notes the span of ctx in a message that is about to be stored.
func putTrace(ctx context.Context, header nats.Header) {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return
	}
	carrier := propagation.MapCarrier{}
	traceContext.Inject(ctx, carrier)
	header[headerTrace] = []string{carrier[headerTrace]}
}

// storedTrace is the span that stored a message, as its header says; empty: none.
type storedTrace string

func traceOf(header nats.Header) storedTrace { return storedTrace(header.Get(headerTrace)) }

// Trace returns ctx in the trace of what stored the message; traced is false when
// it was not traced.
func (t storedTrace) Trace(ctx context.Context) (_ context.Context, traced bool) {
	if t == "" {
		return ctx, false
	}
	ctx = traceContext.Extract(ctx, propagation.MapCarrier{headerTrace: string(t)})
	return ctx, trace.SpanContextFromContext(ctx).IsSampled()
}

// startSpan begins a span within the one of ctx; one that does nothing when that
// is not traced.
func startSpan(ctx context.Context, name string) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, noop.Span{}
	}
	return parent.TracerProvider().Tracer("github.com/ordergate/ordergate").Start(ctx, name)
}
