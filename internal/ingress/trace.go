package ingress

import (
	"context"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/ordergate/ordergate/internal/stripehook"
)

// startSpan begins the trace of an event whose request came at a time: only once
// it is verified, so that forgers fill no collector. It is a new trace, whatever
// the request says. Nil when nothing is traced.
func (h *handler) startSpan(ctx context.Context, event stripehook.Envelope, began time.Time) (context.Context, trace.Span) {
	if h.Tracer == nil {
		return ctx, nil
	}
	return h.Tracer.Start(ctx, "webhook", trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(began), trace.WithAttributes(
		attribute.String("http.request.method", http.MethodPost), attribute.String("url.path", h.Path),
		attribute.String("ordergate.event.id", event.ID), attribute.String("ordergate.event.type", event.Type), attribute.Bool("ordergate.livemode", event.Livemode)))
}

func endSpan(span trace.Span, outcome string, refused *refusal) {
	if span == nil {
		return
	}
	status := http.StatusOK
	if refused != nil {
		outcome, status = refused.outcome, refused.status
		span.SetStatus(codes.Error, refused.answer)
	}
	span.SetAttributes(attribute.Int("http.response.status_code", status), attribute.String("ordergate.outcome", outcome))
	span.End()
}
