package ingress

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ordergate/ordergate/internal/eventlog"
)

// Every outcome is shown from the start, and every request is in one class.
func TestRequestsAreMeasured(t *testing.T) {
	var failure error
	d := newDoor(t, fakeInbox(func(context.Context, eventlog.RawEvent) (bool, error) { return false, failure }))
	shown := len(outcomes(t, d))
	d.send(request(body))
	forged := request(body)
	forged.Header.Set("Stripe-Signature", sign("whsec_cccccccccccccccccccccccccccccccc", body, now))
	d.send(forged)
	elsewhere := request(body)
	elsewhere.Method = http.MethodGet
	d.send(elsewhere)
	failure = errors.New("disk on fire")
	d.send(request(body))
	if n := len(outcomes(t, d)); n != shown {
		t.Errorf("%d outcomes are shown, %d were at the start", n, shown)
	}
	families, err := d.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, f := range families {
		if f.GetName() == "ordergate_ingress_request_duration_seconds" {
			for _, m := range f.GetMetric() {
				if h := m.GetHistogram(); h.GetSampleSum() > 0 {
					got[m.GetLabel()[0].GetValue()] = h.GetSampleCount()
				}
			}
		}
	}
	if diff := cmp.Diff(map[string]uint64{"accepted": 1, "refused": 2, "failed": 1}, got); diff != "" {
		t.Error(diff)
	}
}
