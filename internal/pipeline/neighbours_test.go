package pipeline

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/stripetest"
)

// live returns an event as one of live mode.
func live(event sample.Event) sample.Event {
	event.Body = bytes.ReplaceAll(event.Body, []byte(`"livemode": false`), []byte(`"livemode": true`))
	return event
}

// Bad events of each class do not delay good orders: the good ones are converted while every bad
// one is still in hand, waits, or is parked. Only the bad ones are of the mode that has a key.
func TestBadNeighbours(t *testing.T) {
	const good, bad = 60, 300
	tests := []struct {
		name   string
		stripe http.Handler // the answers to all requests
		event  func(t *testing.T, i int) sample.Event
		want   Outcome // of the bad events in the end; empty if they are still in hand
	}{
		{name: "unmatched", stripe: stripetest.Error(404, "resource_missing", "No such object"), event: refundOf, want: Unmatched},
		{name: "Stripe refuses", stripe: stripetest.Error(403, "", "no permission"), event: refundOf, want: Unmatched},
		{name: "Stripe fails", stripe: stripetest.Error(500, "", "try again"), event: refundOf, want: Waiting},
		{name: "Stripe hangs", event: refundOf, want: Waiting},
		{name: "Stripe hangs over sales", event: saleOf},
		{name: "unreadable", stripe: stripetest.Error(404, "", ""), want: Failed, event: func(t *testing.T, i int) sample.Event {
			id := fmt.Sprintf("evt_bad%d", i)
			return sample.Event{ID: id, Body: fmt.Appendf(nil, `{"id":%q,"type":"checkout.session.completed","data":{"object":{"id":"cs_1","object":"checkout.session","payment_status":"surely"}}}`, id)}
		}},
		{name: "refused by the order", stripe: stripetest.Error(404, "", ""), event: mismatched, want: Failed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, nil)
			done := make(chan struct{})
			server := stripetest.NewServer(t)
			server.Handle("GET /", http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
				if tt.stripe == nil {
					select {
					case <-done:
					case <-request.Context().Done():
					}
					return
				}
				tt.stripe.ServeHTTP(w, request)
			}))
			t.Cleanup(func() { close(done) }) // before the server is closed
			client, err := stripeapi.New(stripeapi.Config{Keys: []string{"rk_live_neighbours"}, Base: server.URL, Rate: 10000, Logger: r.pipeline.Logger})
			if err != nil {
				t.Fatal(err)
			}
			r.pipeline.Stripe, r.pipeline.ItemsDeadline = client, time.Hour
			impatient(r)
			var ids []string
			for i := range bad {
				e := tt.event(t, i)
				r.store(e.ID, e.Body)
				ids = append(ids, e.ID)
			}
			r.running(func() {
				for range good {
					story := r.scenario("paid")
					r.storeAll(story...)
					r.await(story[0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
				}
				if tt.want == "" {
					return
				}
				for _, id := range ids {
					r.awaitOutcome(id, tt.want)
				}
			})
			if state, err := r.log.InboxState(r.deadline()); err != nil || state.Converted != state.Last {
				t.Errorf("events are left in the queue: %+v, %v", state, err)
			}
		})
	}
}

func refundOf(t *testing.T, _ int) sample.Event {
	t.Helper()
	story, err := sample.Scenario("partly-refunded", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return live(story[1])
}

func saleOf(t *testing.T, _ int) sample.Event {
	t.Helper()
	story, err := sample.Scenario("paid", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return live(story[0])
}

// mismatched is an event that its own order refuses.
func mismatched(t *testing.T, i int) sample.Event {
	t.Helper()
	e := refundOf(t, i)
	var event map[string]any
	if err := json.Unmarshal(e.Body, &event); err != nil {
		t.Fatal(err)
	}
	event["data"].(map[string]any)["object"].(map[string]any)["amount"] = -5
	body, err := json.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	return sample.Event{ID: e.ID, Body: body}
}

// An order that is too large to store goes out without the details of its line items, and says so;
// line items of other orders are not affected.
func TestOversizedOrders(t *testing.T) {
	r := newRig(t, nil)
	s := withStripe(t, r)
	large := map[string]bool{}
	normal := *s.items.Load()
	many := stripetest.List(func(*http.Request) []json.RawMessage {
		var items []json.RawMessage
		for i := range 100 {
			metadata := map[string]string{}
			for m := range 50 {
				metadata[fmt.Sprintf("key%d", m)] = strings.Repeat("m", 490)
			}
			product, err := json.Marshal(metadata)
			if err != nil {
				t.Error(err)
			}
			items = append(items, fmt.Appendf(nil, `{"id":"li_%d","object":"item","quantity":1,"description":"Shirt","amount_total":1,
				"price":{"id":"price_1","object":"price","product":{"id":"prod_1","object":"product","name":"Shirt","metadata":%s}}}`, i, product))
		}
		return items
	})
	s.answerItems(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if large[request.PathValue("id")] {
			many.ServeHTTP(w, request)
			return
		}
		normal.ServeHTTP(w, request)
	}))
	var stories []sample.Event
	for i := range 30 {
		story := r.scenario("paid")
		large[story[0].OrderID] = i < 12
		stories = append(stories, story[0])
	}
	r.storeAll(stories...)
	r.running(func() {
		for _, story := range stories {
			order := r.await(story.OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
			want := ordergatev1.OmittedContent_OMITTED_CONTENT_UNSPECIFIED
			if large[story.OrderID] {
				want = ordergatev1.OmittedContent_OMITTED_CONTENT_ITEM_DETAILS
			}
			if order.GetOmittedContent() != want || order.GetLineItemsState() != ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE || large[story.OrderID] && len(order.GetLineItems()) != 100 {
				t.Errorf("%s: omitted %v, %v, %d items", story.OrderID, order.GetOmittedContent(), order.GetLineItemsState(), len(order.GetLineItems()))
			}
		}
	})
}

// Many waiting events, with Stripe hanging, leave the queue and survive a restart as tasks.
func TestManyWaiting(t *testing.T) {
	r := newRig(t, nil)
	withStripe(t, r)
	r.pipeline.lookupDelay = time.Hour
	const n = 500
	for i := range n {
		e := refundOf(t, i)
		e.Body = bytes.ReplaceAll(e.Body, []byte(`"livemode": true`), []byte(`"livemode": false`))
		r.store(e.ID, e.Body)
	}
	r.run(0)
	again := newAgenda(r.log)
	if err := again.load(r.deadline(), time.Now().Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := len(again.queues[taskLookup].pending); got != n {
		t.Errorf("%d of %d lookups are scheduled", got, n)
	}
	if keys, err := r.log.Bucket(eventlog.ParkedEvents).Keys(r.deadline()); err != nil || len(keys) != 0 {
		t.Errorf("parked = %v, %v", keys, err)
	}
}
