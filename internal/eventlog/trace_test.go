package eventlog

import (
	"testing"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/trace"
)

// Only what is traced has a header, and comes back by it.
func TestTraceOfAMessage(t *testing.T) {
	for _, flags := range []trace.TraceFlags{0, trace.FlagsSampled} {
		span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: flags})
		header := nats.Header{}
		putTrace(trace.ContextWithSpanContext(t.Context(), span), header)
		if (len(header) == 1) != span.IsSampled() {
			t.Errorf("sampled %v: %v", span.IsSampled(), header)
		}
		ctx, traced := traceOf(header).Trace(t.Context())
		if got := trace.SpanContextFromContext(ctx); traced != span.IsSampled() || traced && got.SpanID() != span.SpanID() {
			t.Errorf("sampled %v: %v, %v", span.IsSampled(), got, traced)
		}
	}
	if _, traced := traceOf(nats.Header{headerTrace: {"junk"}}).Trace(t.Context()); traced {
		t.Error("junk is a trace")
	}
}
