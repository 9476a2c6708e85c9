//go:build unix

package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/natscluster"
	"github.com/ordergate/ordergate/internal/natsconn"
	"github.com/ordergate/ordergate/internal/sample"
)

// newShared makes the pipelines of two gateways that share a log.
func newShared(t *testing.T) (a, b *rig) {
	cluster := &eventlog.Cluster{Config: natsconn.Config{URLs: []string{natscluster.Single(t)}}, Replicas: 1}
	return newRigOn(t, eventlog.Config{Cluster: cluster}), newRigOn(t, eventlog.Config{Cluster: cluster})
}

// Two converters share the events, and make of them what one does: each order once,
// and each of its revisions once.
func TestTwoConverters(t *testing.T) {
	a, b := newShared(t)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, r := range []*rig{a, b} {
		running.Go(func() {
			if err := r.pipeline.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	deadline := a.deadline()
	did := func(r *rig) bool { return strings.Contains(r.lines.String(), "outcome=CONVERTED") }
	stories := 0
	var storing sync.WaitGroup
	for ; stories < 40 || !did(a) || !did(b); stories++ { // each has a part
		if deadline.Err() != nil {
			t.Fatalf("of %d sales one gateway converted none", stories)
		}
		story, err := sample.Scenario("partly-refunded-disputed-won", time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for i, event := range story { // all at once, by both doors
			door := []*rig{a, b}[(stories+i)%2]
			storing.Go(func() { door.store(event.ID, event.Body) })
		}
	}
	storing.Wait()
	for {
		backlog, _, err := a.log.InboxBacklog(deadline)
		if err != nil {
			t.Fatal(err)
		}
		if backlog == 0 {
			break
		}
		select {
		case <-deadline.Done():
			t.Fatalf("%d events wait", backlog)
		case <-time.After(20 * time.Millisecond):
		}
	}
	stop()
	running.Wait()
	if err := a.log.Flush(deadline); err != nil {
		t.Fatal(err)
	}
	state, err := a.log.OrdersState(deadline)
	if err != nil {
		t.Fatal(err)
	}
	revisions, sources, newest := map[string]int64{}, map[string]bool{}, map[string]*ordergatev1.Order{}
	err = a.log.ScanOrders(deadline, 0, state.Durable, func(records []*eventlog.OrderRecord, _ uint64) error {
		for _, record := range records {
			event, err := record.Event()
			if err != nil {
				return err
			}
			order := event.GetOrder()
			newest[order.GetId()] = order
			if revisions[order.GetId()]++; revisions[order.GetId()] != order.GetRevision() {
				return fmt.Errorf("%s behind revision %d", event.GetId(), revisions[order.GetId()]-1)
			}
			if sources[event.GetSourceEventId()] {
				return fmt.Errorf("%s changed an order twice", event.GetSourceEventId())
			}
			sources[event.GetSourceEventId()] = true
		}
		return nil
	})
	if err != nil || len(revisions) != stories {
		t.Errorf("%d orders, %v", len(revisions), err)
	}
	// An event that waited at one gateway while the other one made its order is part of it.
	for id, order := range newest {
		if order.GetStatus() != ordergatev1.OrderStatus_ORDER_STATUS_PARTIALLY_REFUNDED || order.GetDirective() != ordergatev1.Directive_DIRECTIVE_SHIP || len(order.GetDisputes()) != 1 {
			t.Errorf("%s ends as %v, %v", id, order.GetStatus(), order.GetDirective())
		}
	}
}

// One gateway at a time asks Stripe for what was missed, and they share the requests.
func TestOneBackfillAtATime(t *testing.T) {
	a, b := newShared(t)
	withStripe(t, a)
	withStripe(t, b)
	lease, err := a.log.Acquire(a.deadline(), backfillLease)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.pipeline.Backfill(b.deadline(), time.Now().Add(-time.Hour), func(BackfillReport) {}); !errors.Is(err, ErrBusy) {
		t.Errorf("beside another: %v", err)
	}
	lease.Release()
	if _, err := b.pipeline.Backfill(b.deadline(), time.Now().Add(-time.Hour), func(BackfillReport) {}); err != nil {
		t.Errorf("alone: %v", err)
	}
	members := []string{a.log.Member(), b.log.Member()}
	slices.Sort(members)
	for deadline := a.deadline(); !slices.Equal(a.log.Members(), members); {
		select {
		case <-deadline.Done():
			t.Fatalf("it knows of %v", a.log.Members())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
