package pipeline

import (
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

// A paid order settles before it may be shipped, and a review that arrives in that time holds it
// without a SHIP in between. The task survives a restart.
func TestShipDelay(t *testing.T) {
	r := newRig(t, nil)
	r.pipeline.ShipDelay = time.Hour
	reviewed, plain := r.scenario("reviewed"), r.scenario("paid")
	r.storeAll(reviewed[0], plain[0])
	settling := func(o *ordergatev1.Order) bool {
		return slices.Contains(o.GetWaitReasons(), ordergatev1.WaitReason_WAIT_REASON_SETTLING) && o.GetSettleTime().AsTime().After(time.Now())
	}
	r.until(plain[0].OrderID, settling)
	r.until(reviewed[0].OrderID, settling)
	r.storeAll(reviewed[1])
	r.until(reviewed[0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_HOLD))

	// The gateway restarts after the delay.
	for _, id := range []string{plain[0].OrderID, reviewed[0].OrderID} {
		if err := r.pipeline.agenda.begin(taskSettle, id, task{Due: time.Now()}).Wait(r.deadline()); err != nil {
			t.Fatal(err)
		}
	}
	r.pipeline.Metrics = prometheus.NewRegistry()
	r.pipeline = New(r.pipeline.Config)
	order := r.until(plain[0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
	if order.GetSettleTime() != nil || len(order.GetWaitReasons()) > 0 || order.GetRevision() != 2 {
		t.Errorf("order = %v", order)
	}
	order = r.until(reviewed[0].OrderID, func(o *ordergatev1.Order) bool { return o.GetSettleTime() == nil })
	if order.GetDirective() != ordergatev1.Directive_DIRECTIVE_HOLD {
		t.Errorf("order = %v", order)
	}
	for _, directive := range r.directives(reviewed[0].OrderID) {
		if directive == ordergatev1.Directive_DIRECTIVE_SHIP {
			t.Error("the reviewed order was to be shipped")
		}
	}
	r.running(func() {
		awaitValue(r, func() (bool, bool) {
			empty, err := r.log.Bucket(eventlog.Tasks).Empty(r.deadline())
			return true, err == nil && empty
		})
	})
}

// directives returns the directives of all revisions of an order, in their order.
func (r *rig) directives(orderID string) (all []ordergatev1.Directive) {
	r.t.Helper()
	err := r.pipeline.eachRecord(r.deadline(), orderID, func(record *eventlog.OrderRecord) error {
		all = append(all, record.Directive)
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}
