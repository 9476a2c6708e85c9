package pipeline

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/stripetest"
)

// gauges returns what the pipeline's gauges say; what is missing is not there.
func (r *rig) gauges() map[string]float64 {
	r.t.Helper()
	values := map[string]float64{}
	for name, m := range r.gathered() {
		if m.Gauge != nil {
			values[name] = m.GetGauge().GetValue()
		}
	}
	return values
}

func (r *rig) gathered() map[string]*dto.Metric {
	r.t.Helper()
	families, err := r.metrics.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	metrics := map[string]*dto.Metric{}
	for _, family := range families {
		metrics[family.GetName()] = family.GetMetric()[0]
	}
	return metrics
}

func TestBacklogAndDelayAreMeasured(t *testing.T) {
	r := newRig(t, nil)
	r.storeStory("checkout.session.completed")
	r.run(1)
	before := time.Now()
	const stored = 3
	for range stored {
		r.storeStory("checkout.session.completed")
	}
	// The engine counts them a moment after it stored them.
	got := awaitValue(r, func() (map[string]float64, bool) {
		got := r.gauges()
		return got, got["ordergate_pipeline_backlog_events"] == stored
	})
	oldest := time.UnixMilli(int64(got["ordergate_pipeline_oldest_unconverted_timestamp_seconds"] * 1000))
	if oldest.Before(before.Add(-time.Second)) || oldest.After(time.Now()) {
		t.Errorf("gauges = %v", got)
	}
	r.run(stored)
	awaitValue(r, func() (bool, bool) { return true, r.gauges()["ordergate_pipeline_backlog_events"] == 0 })
	if at, there := r.gauges()["ordergate_pipeline_oldest_unconverted_timestamp_seconds"]; there {
		t.Errorf("with nothing left, the oldest event is of %v", at)
	}
	delay := r.gathered()["ordergate_pipeline_conversion_delay_seconds"].GetHistogram()
	if delay.GetSampleCount() != stored+1 || delay.GetSampleSum() <= 0 || delay.GetSampleSum() > 60 {
		t.Errorf("delays = %v", delay)
	}
	if problems, err := testutil.GatherAndLint(r.metrics); err != nil || len(problems) > 0 {
		t.Error(problems, err)
	}
}

func TestParkedEventsAreMeasured(t *testing.T) {
	r := newRig(t, nil)
	story := r.scenario("subscription")
	r.storeAll(story[1]) // the first invoice, which a Session may claim: without an API key, who knows
	r.untilParked(story[1].ID)
	if n := r.gauges()["ordergate_pipeline_parked_events"]; n != 1 {
		t.Errorf("%v parked", n)
	}
	r.storeAll(story[0])
	r.running(func() {
		awaitValue(r, func() (bool, bool) { return true, r.gauges()["ordergate_pipeline_parked_events"] == 0 })
	})
}

func TestMissingLineItemsAreMeasured(t *testing.T) {
	r := newRig(t, nil)
	s := withStripe(t, r)
	good := *s.items.Load()
	s.answerItems(stripetest.Error(400, "", "not that"))
	order := r.storeStory("checkout.session.completed")[0].OrderID
	r.until(order, directiveIs(ordergatev1.Directive_DIRECTIVE_WAIT))
	if n := r.gauges()["ordergate_pipeline_pending_items_orders"]; n != 1 {
		t.Errorf("%v orders wait for line items", n)
	}
	s.answerItems(good)
	if err := r.pipeline.putPending(r.deadline(), order, pendingItems{}); err != nil { // ask again at once
		t.Fatal(err)
	}
	r.running(func() {
		awaitValue(r, func() (bool, bool) { return true, r.gauges()["ordergate_pipeline_pending_items_orders"] == 0 })
	})
}
