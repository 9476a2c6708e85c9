package pipeline

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// traced returns ctx with the span of an event's conversion, which it begins
// unless it has begun: a child of the append, if that was traced.
func (p *Pipeline) traced(ctx context.Context, r *result) context.Context {
	if p.Tracer == nil {
		return ctx
	}
	if r.span == nil {
		appended, traced := r.stored.Trace(ctx)
		if !traced {
			return ctx
		}
		_, r.span = p.Tracer.Start(appended, "convert", trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
			attribute.String("ordergate.event.id", r.stored.ID), attribute.Int("ordergate.delivery", r.tries())))
	}
	return trace.ContextWithSpan(ctx, r.span)
}

// endSpan ends the span of an event, when it was dealt with or will come again.
// What an error says may tell of a customer: it is in the log line.
func (r *result) endSpan() {
	if r.span == nil {
		return
	}
	attributes := []attribute.KeyValue{
		attribute.String("ordergate.event.type", r.eventType()), attribute.String("ordergate.outcome", string(r.outcome)), attribute.Bool("ordergate.asked_stripe", r.asks)}
	if r.event != nil {
		attributes = append(attributes, attribute.Bool("ordergate.livemode", r.event.Livemode))
	}
	if r.orderID != "" {
		attributes = append(attributes, attribute.String("ordergate.order.id", r.orderID))
	}
	if r.change != nil {
		attributes = append(attributes, attribute.Int64("ordergate.order.revision", r.change.Order.GetRevision()))
	}
	if r.outcome == Failed {
		r.span.SetStatus(codes.Error, "it cannot be converted, and is parked")
	}
	r.span.SetAttributes(attributes...)
	r.span.End()
	r.span = nil
}
