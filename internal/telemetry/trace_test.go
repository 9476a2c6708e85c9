package telemetry

import (
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ordergate/ordergate/internal/logtest"
)

// A collector that takes nothing holds nobody up, neither who makes spans nor the
// end, and is said once.
func TestCollectorThatHangs(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "1")
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "20")
	listener, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var lines logtest.Buffer
	tracing, err := NewTracing(t.Context(), TraceConfig{Endpoint: "http://" + listener.Addr().String(), Ratio: 1, Logger: slog.New(slog.NewTextHandler(&lines, nil))})
	if err != nil {
		t.Fatal(err)
	}
	const said = "traces could not be sent"
	began := time.Now()
	for range 20_000 { // ten times what is kept
		_, span := tracing.Tracer().Start(t.Context(), "webhook")
		span.End()
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("spans were held up for %v", took)
	}
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(lines.String(), said) {
		select {
		case <-deadline:
			t.Fatal("nothing is said")
		case <-tick.C:
		}
	}
	began = time.Now()
	tracing.Close()
	if took := time.Since(began); took > flushTimeout+3*time.Second {
		t.Errorf("the end was held up for %v", took)
	}
	if n := strings.Count(lines.String(), said); n != 1 {
		t.Errorf("it is said %d times:\n%s", n, &lines)
	}
}

func TestNothingIsTracedWithoutAnEndpoint(t *testing.T) {
	tracing, err := NewTracing(t.Context(), TraceConfig{Ratio: 1})
	if err != nil {
		t.Fatal(err)
	}
	if tracing.Tracer() != nil {
		t.Error("there is a tracer")
	}
	tracing.Close()
}
