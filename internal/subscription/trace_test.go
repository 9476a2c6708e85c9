package subscription

import (
	"strings"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/protobuf/types/known/durationpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// Each delivery of a traced event has a span, which ends with what became of it.
func TestDeliverySpans(t *testing.T) {
	f := newFixture(t)
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	f.m.Trace(provider.Tracer("test"))
	ctx, webhook := provider.Tracer("test").Start(f.ctx(), "webhook")
	if _, err := f.log.AppendOrder(ctx, &ordergatev1.OrderEvent{Id: "cs_1.7", Order: &ordergatev1.Order{Id: "cs_1", Revision: 7, Livemode: new(true)}}, 0); err != nil {
		t.Fatal(err)
	}
	webhook.End()
	f.store("cs_untraced")
	s, err := f.m.Create(f.ctx(), &ordergatev1.Subscription{Name: "shipping", MaxAttempts: 100}, 0)
	if err != nil {
		t.Fatal(err)
	}
	attach := func() *Worker {
		t.Helper()
		w, err := s.Attach(WorkerConfig{MaxEvents: 10, MaxBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	w := attach()
	out := f.take(w, 2)
	f.results(s.Settle([]string{out[1].ID}, nil, nil)) // has no span
	d := out[0]
	again := func() {
		t.Helper()
		d = f.take(w, 1)[0]
	}
	settle := func(acks []string, nacks ...*ordergatev1.Nack) {
		t.Helper()
		f.results(s.Settle(acks, nacks, nil))
	}
	const skip, dead = ordergatev1.NackAction_NACK_ACTION_SKIP, ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER
	settle(nil, &ordergatev1.Nack{DeliveryId: d.ID, Delay: durationpb.New(0), Reason: "Erika is not at home"})
	again()
	s.update(func(q *queue, _ time.Time) { q.tick(d.LeaseEnd) })
	again()
	w.Detach()
	w = attach()
	again()
	settle(nil, &ordergatev1.Nack{DeliveryId: d.ID, Action: dead, Reason: "Erika is not at home"})
	if _, err := s.Redrive(f.ctx(), nil, true); err != nil {
		t.Fatal(err)
	}
	again()
	settle([]string{d.ID})
	if err := s.Seek(f.ctx(), 0); err != nil {
		t.Fatal(err)
	}
	out = f.take(w, 2)
	settle(nil, &ordergatev1.Nack{DeliveryId: out[0].ID, Action: skip})
	w.Detach()

	var got []string
	for _, span := range recorder.Ended()[1:] {
		if span.SpanContext().TraceID() != webhook.SpanContext().TraceID() || span.Parent().SpanID() != webhook.SpanContext().SpanID() {
			t.Errorf("%s is elsewhere: %v", span.Name(), span.Parent())
		}
		for _, a := range span.Attributes() {
			if strings.Contains(a.Value.String(), "Erika") {
				t.Errorf("%s tells what a worker wrote", a.Key)
			}
			if a.Key == "ordergate.outcome" {
				got = append(got, a.Value.AsString())
			}
		}
	}
	if want := "RETRIED EXPIRED RETURNED DEAD_LETTER ACKED SKIPPED"; strings.Join(got, " ") != want {
		t.Errorf("outcomes %v, want %s", got, want)
	}
	if open := len(recorder.Started()) - len(recorder.Ended()); open != 0 {
		t.Errorf("%d spans have no end", open)
	}
}
