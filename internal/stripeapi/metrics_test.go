package stripeapi_test

import (
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/stripetest"
)

func TestRequestsAreMeasured(t *testing.T) {
	registry := prometheus.NewRegistry()
	type figures struct {
		requests map[string]float64
		away     float64
	}
	read := func() figures {
		t.Helper()
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		f := figures{requests: map[string]float64{}}
		for _, family := range families {
			for _, m := range family.GetMetric() {
				switch family.GetName() {
				case "ordergate_stripe_requests_total":
					if n := m.GetCounter().GetValue(); n > 0 {
						f.requests[m.GetLabel()[0].GetValue()] = n
					}
				case "ordergate_stripe_away":
					f.away = m.GetGauge().GetValue()
				}
			}
		}
		return f
	}
	var answer atomic.Pointer[http.Handler]
	virtual(t, func(t *testing.T, s stripe) {
		s.Handle("GET "+linesPath, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*answer.Load()).ServeHTTP(w, r) }))
		for _, step := range []struct {
			answer http.Handler
			want   figures
		}{
			{stripetest.List(objects(sessionItem(1))), figures{map[string]float64{"ok": 1}, 0}},
			{stripetest.Error(500, "", "oh"), figures{map[string]float64{"ok": 1, "unavailable": 5}, 1}},
			{stripetest.Error(404, "resource_missing", "no such session"), figures{map[string]float64{"ok": 1, "unavailable": 5, "not_found": 1}, 0}},
			{stripetest.Error(429, "rate_limit", "slow down"), figures{map[string]float64{"ok": 1, "unavailable": 5, "not_found": 1, "rate_limited": 5}, 1}},
			{stripetest.Error(403, "", "no"), figures{map[string]float64{"ok": 1, "unavailable": 5, "not_found": 1, "rate_limited": 5, "permission": 1}, 0}},
			{stripetest.Error(401, "", "who"), figures{map[string]float64{"ok": 1, "unavailable": 5, "not_found": 1, "rate_limited": 5, "permission": 1, "unauthorized": 1}, 0}},
			{stripetest.Error(400, "", "not that"), figures{map[string]float64{"ok": 1, "unavailable": 5, "not_found": 1, "rate_limited": 5, "permission": 1, "unauthorized": 1, "refused": 1}, 0}},
		} {
			answer.Store(&step.answer)
			s.LineItems(t.Context(), session) // what comes of it is tested elsewhere
			if diff := cmp.Diff(step.want, read(), cmp.AllowUnexported(figures{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		}
	}, func(config *stripeapi.Config) { config.Metrics = registry })
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}
