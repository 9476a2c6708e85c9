package subscription

import (
	"context"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
)

// What becomes of a delivery, as its span names it.
const (
	outcomeAcked      = "ACKED"
	outcomeSkipped    = "SKIPPED"
	outcomeRetried    = "RETRIED"
	outcomeDeadLetter = "DEAD_LETTER"
	outcomeExpired    = "EXPIRED"  // the lease ran out
	outcomeReturned   = "RETURNED" // the stream ended, the worker gave it back, or there was a seek
)

// Trace has spans made of the deliveries of events that were traced. Call it
// before anything else.
func (m *Manager) Trace(tracer trace.Tracer) { m.tracer = tracer }

// startSpan begins the span of a delivery that is handed out now, in the trace of
// the event.
func (q *queue) startSpan(l *lane) {
	if q.tracer == nil {
		return
	}
	ctx, traced := l.event.Trace(context.Background())
	if !traced {
		return
	}
	attributes := []attribute.KeyValue{
		attribute.String("ordergate.subscription", q.settings.GetName()), attribute.Int("ordergate.attempt", l.target().attempts),
		attribute.String("ordergate.order.id", l.order), attribute.Bool("ordergate.livemode", l.event.Livemode)}
	if revision, err := strconv.ParseInt(strings.TrimPrefix(l.eventID, l.order+"."), 10, 64); err == nil {
		attributes = append(attributes, attribute.Int64("ordergate.order.revision", revision))
	}
	_, l.span = q.tracer.Start(ctx, "deliver", trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(attributes...))
}

// endSpan ends the span of the delivery that is out; the first outcome counts.
func (l *lane) endSpan(outcome string) {
	if l.span == nil {
		return
	}
	l.span.SetAttributes(attribute.String("ordergate.outcome", outcome))
	l.span.End()
	l.span = nil
}
