package clienttest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/client/clienttest"
)

func event(order string, revision int64) *ordergatev1.OrderEvent {
	directive := ordergatev1.Directive_DIRECTIVE_SHIP
	if revision > 1 {
		directive = ordergatev1.Directive_DIRECTIVE_CANCEL
	}
	return &ordergatev1.OrderEvent{Id: fmt.Sprintf("%s.%d", order, revision), Order: &ordergatev1.Order{Id: order, Revision: revision, Directive: directive}}
}

// words lists settlements as `EVENT#ATTEMPT OUTCOME REASON`.
func words(settlements []clienttest.Settlement) (list []string) {
	for _, s := range settlements {
		list = append(list, strings.TrimSpace(fmt.Sprintf("%s#%d %s %s", s.Event.GetId(), s.Attempt, s.Outcome, s.Reason)))
	}
	return list
}

func expect(t *testing.T, g *clienttest.Gateway, want ...string) {
	t.Helper()
	if got := words(g.Settlements()); !slices.Equal(got, want) {
		t.Errorf("settlements\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Each result of a handler settles as at a gateway. Retries come before later events of the order.
func TestSettlements(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := clienttest.New()
		defer g.Close()
		g.Deliver(event("cs_1", 1), event("cs_1", 2), event("cs_2", 1), event("cs_2", 2), event("cs_3", 1))
		began := time.Now()
		err := g.Run(t.Context(), func(_ context.Context, d *client.Delivery) error {
			switch {
			case d.Event.GetId() == "cs_1.1" && d.Attempt == 1:
				if d.LatestRevision != 2 || d.LatestDirective != ordergatev1.Directive_DIRECTIVE_CANCEL {
					t.Errorf("latest revision %d, %v", d.LatestRevision, d.LatestDirective)
				}
				return client.RetryAfter(errors.New("no paper"), time.Hour)
			case d.Event.GetId() == "cs_2.1":
				return client.Reject(errors.New("no address"))
			case d.Event.GetId() == "cs_3.1":
				return client.Skip(errors.New("test mode"))
			}
			return nil
		}, client.ConsumeOptions{Concurrency: 1, MaxOutstandingEvents: 1})
		if err != nil || time.Since(began) != time.Hour {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		expect(t, g, "cs_1.1#1 retried no paper", "cs_2.1#1 dead-lettered no address", "cs_3.1#1 skipped test mode",
			"cs_1.1#2 acknowledged", "cs_1.2#1 acknowledged")
		if d := g.Settlements()[0].Delay; d != time.Hour {
			t.Errorf("delay %v", d)
		}
		// A dead letter blocks its order until it is delivered again.
		g.Redrive()
		err = g.Run(t.Context(), func(_ context.Context, d *client.Delivery) error {
			if d.Redriven != (d.Event.GetId() == "cs_2.1") {
				t.Errorf("%s redriven: %t", d.Event.GetId(), d.Redriven)
			}
			return nil
		}, client.ConsumeOptions{})
		if err != nil {
			t.Error(err)
		}
		if got := words(g.Settlements())[5:]; !slices.Equal(got, []string{"cs_2.1#1 acknowledged", "cs_2.2#1 acknowledged"}) {
			t.Error(got)
		}
	})
}

// A handler that fails at every attempt makes a dead letter.
func TestMaxAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := clienttest.New()
		defer g.Close()
		g.Deliver(event("cs_1", 1))
		fail := func(context.Context, *client.Delivery) error { return errors.New("no paper") }
		if err := g.Run(t.Context(), fail, client.ConsumeOptions{Create: &ordergatev1.Subscription{MaxAttempts: 2}}); err != nil {
			t.Error(err)
		}
		expect(t, g, "cs_1.1#1 retried no paper", "cs_1.1#2 dead-lettered no paper")
	})
}

// Drain and Break end streams. Handlers go on, and what they return is settled on the next stream.
func TestDrainAndBreak(t *testing.T) {
	for name, end := range map[string]func(*clienttest.Gateway){"drain": (*clienttest.Gateway).Drain, "break": (*clienttest.Gateway).Break} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := clienttest.New()
				defer g.Close()
				g.Deliver(event("cs_1", 1), event("cs_2", 1))
				var calls, streams atomic.Int32
				err := g.Run(t.Context(), func(ctx context.Context, d *client.Delivery) error {
					if calls.Add(1) == 1 {
						end(g)
					}
					time.Sleep(10 * time.Second)
					return ctx.Err()
				}, client.ConsumeOptions{Concurrency: 1, MaxOutstandingEvents: 1, OnOpen: func(*ordergatev1.ConsumeOpened) { streams.Add(1) }})
				if err != nil || calls.Load() != 2 || streams.Load() != 2 {
					t.Errorf("%d calls, %d streams: %v", calls.Load(), streams.Load(), err)
				}
				outcomes := map[clienttest.Outcome]int{}
				for _, s := range g.Settlements() {
					outcomes[s.Outcome]++
				}
				if outcomes[clienttest.Acknowledged] != 2 {
					t.Error(words(g.Settlements()))
				}
			})
		})
	}
}

// Run ends with its context, and returns an error if events are left.
func TestRunEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := clienttest.New()
		defer g.Close()
		g.Deliver(event("cs_1", 1), event("cs_1", 2))
		ctx, cancel := context.WithCancel(t.Context())
		err := g.Run(ctx, func(context.Context, *client.Delivery) error { cancel(); return nil }, client.ConsumeOptions{})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		expect(t, g, "cs_1.1#1 acknowledged")
	})
}

// Every scenario has events, in the order of their revisions.
func TestSampleEvents(t *testing.T) {
	for _, scenario := range clienttest.Scenarios() {
		events, err := clienttest.SampleEvents(scenario)
		if err != nil || len(events) == 0 {
			t.Errorf("%s: %d events, %v", scenario, len(events), err)
		}
		revisions := map[string]int64{}
		for _, e := range events {
			id := e.GetOrder().GetId()
			revisions[id]++
			if e.GetOrder().GetRevision() != revisions[id] || e.GetKind() == ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UNSPECIFIED || e.GetOrder().GetDirective() == ordergatev1.Directive_DIRECTIVE_UNSPECIFIED {
				t.Errorf("%s: %v", scenario, e)
			}
		}
	}
	refunded, err := clienttest.SampleEvents("refunded")
	if err != nil || len(refunded) != 2 || refunded[0].GetOrder().GetDirective() != ordergatev1.Directive_DIRECTIVE_SHIP || refunded[1].GetOrder().GetDirective() != ordergatev1.Directive_DIRECTIVE_CANCEL {
		t.Errorf("refunded: %v, %v", refunded, err)
	}
	if _, err := clienttest.SampleEvents("unknown"); err == nil {
		t.Error("no error for an unknown scenario")
	}
}
