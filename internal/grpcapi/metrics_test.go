package grpcapi

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// value returns a series' value: of the first metric of that name all of whose
// labels are among the given ones. 0 when there is none.
func (g *gateway) value(t *testing.T, name string, labels map[string]string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(g.server.Collector())
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
	metrics:
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if labels[label.GetName()] != label.GetValue() {
					continue metrics
				}
			}
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount()) // one of them
		}
	}
	return 0
}

func TestCallsAreMeasured(t *testing.T) {
	g := newGateway(t, t.TempDir())
	// becomes waits for what is counted when a handler has returned, which its
	// client does not see.
	becomes := func(want float64, name string, labels map[string]string) {
		t.Helper()
		ctx := deadline(t)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for g.value(t, name, labels) != want {
			select {
			case <-ctx.Done():
				t.Fatalf("%s%v = %v, want %v", name, labels, g.value(t, name, labels), want)
			case <-tick.C:
			}
		}
	}
	handled := func(service, method, code string) map[string]string {
		return map[string]string{"grpc_service": service, "grpc_method": method, "grpc_code": code}
	}
	of := func(method string) map[string]string { return map[string]string{"method": method} }
	const orders, work = "ordergate.v1.OrderService", "ordergate.v1.SubscriptionService"

	g.store(t, change{order: "cs_1", revision: 1}, change{order: "cs_2", revision: 1})
	if _, err := g.client.GetOrder(deadline(t), &ordergatev1.GetOrderRequest{OrderId: "cs_1"}); err != nil {
		t.Fatal(err)
	}
	g.client.GetOrder(deadline(t), &ordergatev1.GetOrderRequest{OrderId: "cs_none"})
	becomes(1, "grpc_server_handled_total", handled(orders, "GetOrder", "OK"))
	becomes(1, "grpc_server_handled_total", handled(orders, "GetOrder", "NotFound"))
	becomes(2, "grpc_server_handling_seconds", map[string]string{"grpc_service": orders, "grpc_method": "GetOrder"})

	s := g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_FromBeginning{FromBeginning: true}, Filter: &ordergatev1.OrderEventFilter{OrderIds: []string{"cs_2"}}})
	s.expect("cs_2.1", "caught up")
	becomes(1, "ordergate_api_streams", of("WatchOrders"))
	becomes(1, "ordergate_api_events_sent_total", of("WatchOrders"))

	g.subscribe(t, &ordergatev1.Subscription{Name: "shipping"})
	deliveries, _ := g.pull(t, &ordergatev1.PullRequest{Subscription: "shipping", MaxEvents: 1})
	g.settle(t, "shipping", deliveries)
	becomes(1, "ordergate_api_events_sent_total", of("Pull"))
	c := g.consume(t, &ordergatev1.ConsumeOpen{Subscription: "shipping"})
	c.ack(c.delivery("cs_2.1"), "OK")
	becomes(1, "ordergate_api_streams", of("Consume"))
	becomes(1, "ordergate_api_events_sent_total", of("Consume"))

	g.server.Shutdown(deadline(t))
	becomes(0, "ordergate_api_streams", of("WatchOrders"))
	becomes(0, "ordergate_api_streams", of("Consume"))
	becomes(1, "grpc_server_handled_total", handled(orders, "WatchOrders", "Unavailable"))
	becomes(1, "grpc_server_handled_total", handled(work, "Consume", "Unavailable"))
	if problems, err := testutil.CollectAndLint(g.server.Collector()); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}
