package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/stripetest"
)

// shop is a Stripe account that a test fills.
type shop struct {
	*stripetest.Server
	mu       sync.Mutex
	sessions map[string]json.RawMessage // by PaymentIntent or Subscription
	invoices map[string]string          // by the PaymentIntent that pays them
	events   []json.RawMessage
	// items answers for line items; one shirt unless a test says otherwise.
	items atomic.Pointer[http.Handler]
	asked atomic.Int32 // requests for line items
	// lookedUp counts the requests for the session of a payment.
	lookedUp atomic.Int32
}

const oneShirt = `{"id":"li_1","object":"item","quantity":2,"description":"Shirt","amount_subtotal":5400,"amount_total":5400,"amount_discount":0,"amount_tax":862,
	"price":{"id":"price_1","object":"price","product":{"id":"prod_1","object":"product","name":"Shirt","metadata":{"sku":"S-1"},"shippable":true}}}`

func newShop(t *testing.T) *shop {
	s := &shop{Server: stripetest.NewServer(t), sessions: map[string]json.RawMessage{}, invoices: map[string]string{}}
	s.answerItems(stripetest.List(func(*http.Request) []json.RawMessage { return []json.RawMessage{json.RawMessage(oneShirt)} }))
	items := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		(*s.items.Load()).ServeHTTP(w, r)
	})
	s.Handle("GET /v1/checkout/sessions/{id}/line_items", items)
	s.Handle("GET /v1/invoices/{id}/lines", items)
	s.Handle("GET /v1/checkout/sessions", stripetest.List(func(r *http.Request) []json.RawMessage {
		s.lookedUp.Add(1)
		s.mu.Lock()
		defer s.mu.Unlock()
		by := r.URL.Query().Get("payment_intent") + r.URL.Query().Get("subscription")
		if raw, ok := s.sessions[by]; ok {
			return []json.RawMessage{raw}
		}
		return nil
	}))
	s.Handle("GET /v1/payment_intents/{id}", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		fmt.Fprintf(w, `{"id":%q,"object":"payment_intent","status":"succeeded","invoice":%q}`, r.PathValue("id"), s.invoices[r.PathValue("id")])
	}))
	s.Handle("GET /v1/events", stripetest.Events(func(r *http.Request) []json.RawMessage {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r.Header.Get("Stripe-Account") != "" {
			return nil
		}
		return slices.Clone(s.events)
	}))
	return s
}

func (s *shop) answerItems(h http.Handler) { s.items.Store(&h) }

// knows has the API find the session of an event.
func (s *shop) knows(t *testing.T, event sample.Event) {
	t.Helper()
	var e struct {
		Data struct{ Object json.RawMessage }
	}
	if err := json.Unmarshal(event.Body, &e); err != nil {
		t.Fatal(err)
	}
	var session struct {
		PaymentIntent string `json:"payment_intent"`
		Subscription  string
	}
	if err := json.Unmarshal(e.Data.Object, &session); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[session.PaymentIntent+session.Subscription] = e.Data.Object
}

// withStripe gives a rig a shop, an API key for it, and little patience.
func withStripe(t *testing.T, r *rig) *shop {
	t.Helper()
	s := newShop(t)
	client, err := stripeapi.New(stripeapi.Config{Keys: []string{"rk_test_pipeline"}, Base: s.URL, Rate: 1000, AttemptTimeout: 5 * time.Second, Logger: r.pipeline.Logger})
	if err != nil {
		t.Fatal(err)
	}
	r.pipeline.Stripe = client
	r.pipeline.ItemsDeadline = 10 * time.Second
	impatient(r)
	return s
}

func impatient(r *rig) {
	r.pipeline.retryDelay = func(int) time.Duration { return 10 * time.Millisecond }
	r.pipeline.lookupDelay = 10 * time.Millisecond
	r.pipeline.itemsInterval = 10 * time.Millisecond
	r.pipeline.itemsPause = 50 * time.Millisecond
}

// until runs the pipeline until done says so of the newest state of an order,
// and returns that state.
func (r *rig) until(orderID string, done func(*ordergatev1.Order) bool) (order *ordergatev1.Order) {
	r.t.Helper()
	r.running(func() { order = r.await(orderID, done) })
	return order
}

// await waits for a state of an order.
func (r *rig) await(orderID string, done func(*ordergatev1.Order) bool) *ordergatev1.Order {
	r.t.Helper()
	ctx := r.deadline()
	for after := uint64(0); ; {
		if err := r.log.AwaitOrders(ctx, after); err != nil {
			r.t.Fatalf("order %s did not come that far: %v\n%v", orderID, err, r.changes())
		}
		records, next, err := r.log.ReadOrders(ctx, after, 100)
		if err != nil {
			r.t.Fatal(err)
		}
		after = next
		for _, record := range records {
			if record.OrderID != orderID {
				continue
			}
			event, err := record.Event()
			if err != nil {
				r.t.Fatal(err)
			}
			if done(event.GetOrder()) {
				return event.GetOrder()
			}
		}
	}
}

func directiveIs(want ordergatev1.Directive) func(*ordergatev1.Order) bool {
	return func(o *ordergatev1.Order) bool { return o.GetDirective() == want }
}

// running runs the pipeline while do does something.
func (r *rig) running(do func()) {
	r.t.Helper()
	ctx, stop := context.WithCancel(r.deadline())
	var running sync.WaitGroup
	running.Go(func() { r.pipeline.Run(ctx) })
	defer running.Wait()
	defer stop()
	do()
}

// untilParked runs the pipeline until an event is parked.
func (r *rig) untilParked(eventID string) (parked Parked) {
	r.t.Helper()
	r.running(func() {
		parked = awaitValue(r, func() (Parked, bool) {
			parked, err := r.pipeline.ParkedEvent(r.deadline(), eventID)
			if err != nil && !errors.Is(err, eventlog.ErrNotFound) {
				r.t.Fatal(err)
			}
			return parked, err == nil
		})
	})
	return parked
}

// awaitValue polls what tells nobody when it is there.
func awaitValue[T any](r *rig, get func() (T, bool)) T {
	r.t.Helper()
	ctx := r.deadline()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if value, ok := get(); ok {
			return value
		}
		select {
		case <-ctx.Done():
			r.t.Fatal("it did not happen in time")
		case <-tick.C:
		}
	}
}

func (r *rig) scenario(name string) []sample.Event {
	r.t.Helper()
	story, err := sample.Scenario(name, time.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	return story
}

func (r *rig) storeAll(events ...sample.Event) {
	r.t.Helper()
	for _, e := range events {
		r.store(e.ID, e.Body)
	}
}

// Follow-ups find their order, whether they come after it or before.
func TestFollowUpsInAnyOrder(t *testing.T) {
	tests := []struct {
		scenario string
		want     ordergatev1.Directive
	}{
		{"refunded", ordergatev1.Directive_DIRECTIVE_CANCEL},
		{"disputed", ordergatev1.Directive_DIRECTIVE_HOLD},
		{"disputed-lost", ordergatev1.Directive_DIRECTIVE_CANCEL},
		{"fraud-warning", ordergatev1.Directive_DIRECTIVE_HOLD},
		{"reviewed", ordergatev1.Directive_DIRECTIVE_HOLD},
	}
	r := newRig(t, nil)
	impatient(r)
	for _, tt := range tests {
		for _, backwards := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s backwards=%v", tt.scenario, backwards), func(t *testing.T) {
				story := r.scenario(tt.scenario)
				if backwards {
					slices.Reverse(story)
				}
				r.storeAll(story...)
				r.until(story[0].OrderID, directiveIs(tt.want))
			})
		}
	}
}

// untilOutcome runs the pipeline until an event has an outcome.
func (r *rig) untilOutcome(eventID string, want Outcome) (status Status) {
	r.t.Helper()
	r.running(func() { status = r.awaitOutcome(eventID, want) })
	return status
}

// awaitOutcome waits until an event has an outcome.
func (r *rig) awaitOutcome(eventID string, want Outcome) (status Status) {
	r.t.Helper()
	defer func() {
		if status.Outcome != want {
			r.t.Logf("event %s is %+v, not %s", eventID, status, want)
		}
	}()
	awaitValue(r, func() (bool, bool) {
		status = r.status(eventID)
		return true, status.Outcome == want
	})
	return status
}

// status returns the status of a stored event.
func (r *rig) status(eventID string) Status {
	r.t.Helper()
	stored, err := r.log.InboxEvent(r.deadline(), eventID)
	if err != nil {
		r.t.Fatal(err)
	}
	state, err := r.log.InboxState(r.deadline())
	if err != nil {
		r.t.Fatal(err)
	}
	status, err := r.pipeline.StatusOf(r.deadline(), stored, state.Converted)
	if err != nil {
		r.t.Fatal(err)
	}
	return status
}

// untilNothingWaits runs the pipeline until the waiting index is empty.
func (r *rig) untilNothingWaits() {
	r.t.Helper()
	r.running(func() {
		awaitValue(r, func() (bool, bool) {
			keys, err := r.log.Bucket(eventlog.Waiting).Keys(r.deadline())
			return true, err == nil && len(keys) == 0
		})
	})
}

// An event without a known order waits from its first miss, also across a restart, and becomes part
// of the order's first revision.
func TestWaitingEventIsInTheFirstRevision(t *testing.T) {
	r := newRig(t, nil)
	story := r.scenario("refunded")
	r.storeAll(story[1])
	if status := r.untilOutcome(story[1].ID, Waiting); status.Detail == "" {
		t.Errorf("status = %+v, want a reason", status)
	}
	r.run(0) // until the queue is empty
	r.storeAll(story[0])
	order := r.until(story[0].OrderID, func(*ordergatev1.Order) bool { return true })
	if order.GetStatus() != ordergatev1.OrderStatus_ORDER_STATUS_REFUNDED || order.GetDirective() != ordergatev1.Directive_DIRECTIVE_CANCEL || order.GetRevision() != 1 {
		t.Errorf("order = %v", order)
	}
	for _, e := range story[:2] {
		r.untilOutcome(e.ID, Converted)
	}
	r.untilNothingWaits()
	// The sale once more, as after a stop in the middle: nothing is left over.
	again := sale(t, r, story[0])
	r.pipeline.convertAsking(r.deadline(), again)
	if again.outcome != Unchanged {
		t.Errorf("outcome = %s, %v", again.outcome, again.err)
	}
	r.untilNothingWaits()
}

// A kill after the event was indexed and before it was acknowledged leaves nothing in the index.
func TestWaitingButNotAcknowledged(t *testing.T) {
	r := newRig(t, nil)
	story := r.scenario("refunded")
	waiting := sale(t, r, story[1])
	r.pipeline.convert(r.deadline(), []*result{waiting})
	if waiting.outcome != Waiting {
		t.Fatal(waiting.outcome, waiting.err)
	}
	r.storeAll(story...)
	r.running(func() {
		r.await(story[0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_CANCEL))
		for _, e := range story[:2] {
			r.awaitOutcome(e.ID, Converted)
		}
	})
	r.untilNothingWaits()
}

// An order that appears while its event is being indexed or parked is not missed.
func TestOrderAppearsWhileItsEventIsIndexed(t *testing.T) {
	r := newRig(t, nil)
	story := r.scenario("refunded")
	r.pipeline.convertAsking(r.deadline(), sale(t, r, story[0]))
	late := sale(t, r, story[1])
	if err := r.pipeline.wait(r.deadline(), late, "a test"); err != nil || late.outcome != "" || late.orderID != story[0].OrderID {
		t.Errorf("wait = %v, outcome %q of order %q, want the order", err, late.outcome, late.orderID)
	}
	parked := sale(t, r, story[1])
	r.pipeline.failed(r.deadline(), parked, &lookupError{stripeapi.ErrPermission})
	if parked.outcome != retried {
		t.Errorf("outcome = %s, want another attempt", parked.outcome)
	}
	if keys, err := r.log.Bucket(eventlog.ParkedEvents).Keys(r.deadline()); err != nil || len(keys) != 0 {
		t.Errorf("parked = %v, %v", keys, err)
	}
}

func sale(t *testing.T, r *rig, event sample.Event) *result {
	t.Helper()
	sale := &result{stored: &eventlog.StoredEvent{RawEvent: eventlog.RawEvent{ID: event.ID, Body: event.Body}}}
	r.pipeline.read(sale)
	if sale.err != nil {
		t.Fatal(sale.err)
	}
	return sale
}

// Accounts and modes never meet, even where ids do.
func TestAccountsAreKeptApart(t *testing.T) {
	r := newRig(t, nil)
	impatient(r)
	story := r.scenario("refunded")
	other := strings.Replace(string(story[1].Body), `"object": "event"`, `"object": "event", "account": "acct_other"`, 1)
	if other == string(story[1].Body) {
		t.Fatal("the sample changed its form")
	}
	r.storeAll(story[0])
	r.store("evt_other", []byte(strings.Replace(other, story[1].ID, "evt_other", 1)))
	r.untilOutcome("evt_other", Waiting)
	r.untilOutcome(story[0].ID, Converted)
	if got := r.changes(); len(got) != 1 {
		t.Errorf("changes = %v: an event of another account touched the order", got)
	}
}

func TestLineItemsComeWithTheOrder(t *testing.T) {
	r := newRig(t, nil)
	withStripe(t, r)
	story := r.scenario("paid")
	r.storeAll(story...)
	order := r.until(story[0].OrderID, func(*ordergatev1.Order) bool { return true })
	if order.GetRevision() != 1 || order.GetDirective() != ordergatev1.Directive_DIRECTIVE_SHIP || order.GetLineItemsState() != ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE {
		t.Errorf("order = %v", order)
	}
	if items := order.GetLineItems(); len(items) != 1 || items[0].GetQuantity() != 2 || items[0].GetProduct().GetMetadata()["sku"] != "S-1" {
		t.Errorf("items = %v", items)
	}
}

// When Stripe's API stalls or fails, the order goes out after the deadline, as
// WAIT; its line items follow when the API is back, also after a restart.
func TestLineItemsFollow(t *testing.T) {
	stalled := make(chan struct{})
	for name, broken := range map[string]http.Handler{
		"stalls": http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-r.Context().Done():
			case <-stalled:
			}
		}),
		"fails": stripetest.Error(500, "", "broken"),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			s := withStripe(t, r)
			r.pipeline.ItemsDeadline = 300 * time.Millisecond
			good := *s.items.Load()
			s.answerItems(broken)
			story := r.scenario("paid")
			r.storeAll(story...)
			order := r.until(story[0].OrderID, func(*ordergatev1.Order) bool { return true })
			if order.GetDirective() != ordergatev1.Directive_DIRECTIVE_WAIT || order.GetLineItemsState() != ordergatev1.LineItemsState_LINE_ITEMS_STATE_PENDING ||
				!slices.Contains(order.GetWaitReasons(), ordergatev1.WaitReason_WAIT_REASON_LINE_ITEMS_PENDING) {
				t.Errorf("order = %v", order)
			}
			// until has stopped the pipeline: it goes on with what is on disk.
			s.answerItems(good)
			order = r.until(story[0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
			if order.GetRevision() != 2 || len(order.GetLineItems()) != 1 {
				t.Errorf("order = %v", order)
			}
			r.running(func() {
				awaitValue(r, func() (bool, bool) {
					keys, err := r.log.Bucket(eventlog.PendingItems).Keys(r.deadline())
					return true, err == nil && len(keys) == 0
				})
			})
		})
	}
	close(stalled)
}

// The note that an order waits for its line items is there before the order is,
// and is written again when the event comes again: whenever the process is
// killed, the items follow.
func TestPendingItemsAreNotedFirst(t *testing.T) {
	r := newRig(t, nil)
	s := withStripe(t, r)
	r.pipeline.ItemsDeadline = 0
	story := r.scenario("paid")
	id := story[0].OrderID
	bucket := r.log.Bucket(eventlog.PendingItems)

	// Noted, and killed before the order was written.
	if err := r.pipeline.putPending(r.deadline(), id, pendingItems{}); err != nil {
		t.Fatal(err)
	}
	if err := r.pipeline.completeAll(r.deadline()); err != nil {
		t.Fatal(err)
	}
	if s.asked.Load() == 0 {
		t.Fatal("nothing was asked")
	}
	if _, err := bucket.Get(r.deadline(), id); err != nil {
		t.Errorf("the note is gone before there is an order: %v", err)
	}
	// The order was written, and the note lost its race or was never flushed.
	r.pipeline.convertAsking(r.deadline(), sale(t, r, story[0]))
	if err := bucket.Delete(r.deadline(), id); err != nil {
		t.Fatal(err)
	}
	r.pipeline.convertAsking(r.deadline(), sale(t, r, story[0]))
	if _, err := bucket.Get(r.deadline(), id); err != nil {
		t.Errorf("the event came again and the note is missing: %v", err)
	}
}

// While the API is away nobody waits for it: the orders go out at once,
// with little asked of Stripe, and every one gets its line items later.
func TestStripeAwayHoldsUpNobody(t *testing.T) {
	r := newRig(t, nil)
	s := withStripe(t, r)
	r.pipeline.itemsPause = time.Hour // the API is found to be away once
	good := *s.items.Load()
	s.answerItems(stripetest.Error(400, "", "not that"))
	r.pipeline.items.setAway(time.Now().Add(time.Hour))
	const n = 100
	var ids []string
	for range n {
		story := r.scenario("paid")
		r.storeAll(story...)
		ids = append(ids, story[0].OrderID)
	}
	r.until(ids[n-1], directiveIs(ordergatev1.Directive_DIRECTIVE_WAIT))
	if asked := s.asked.Load(); asked != 0 {
		t.Errorf("Stripe was asked %d times while it was known to be away", asked)
	}
	s.answerItems(good)
	r.pipeline.items.setAway(time.Time{})
	r.running(func() {
		for _, id := range ids {
			r.await(id, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
		}
	})
}

// A key that may not read line items is said once; the order waits.
func TestRefusedLineItems(t *testing.T) {
	r := newRig(t, nil)
	s := withStripe(t, r)
	s.answerItems(stripetest.Error(403, "", "The provided key does not have the required permissions. Having the 'rak_checkout_session_read' permission would allow this request to continue."))
	one, two := r.scenario("paid"), r.scenario("paid")
	r.storeAll(one[0], two[0])
	r.until(one[0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_WAIT))
	r.until(two[0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_WAIT))
	if n := strings.Count(r.lines.String(), "permission=rak_checkout_session_read"); n != 1 {
		t.Errorf("the missing permission was reported %d times", n)
	}
}

// Elements: a PaymentIntent makes an order only when no Session claims it,
// whichever event comes first.
func TestNeverTwoOrdersForOneSale(t *testing.T) {
	t.Run("no session", func(t *testing.T) {
		r := newRig(t, nil)
		withStripe(t, r)
		r.pipeline.Sources.PaymentIntents = true
		story := r.scenario("elements")
		r.storeAll(story...)
		order := r.until(story[0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
		if order.GetSource() != ordergatev1.OrderSource_ORDER_SOURCE_PAYMENT_INTENT {
			t.Errorf("order = %v", order)
		}
	})
	t.Run("invoice", func(t *testing.T) {
		r := newRig(t, nil)
		s := withStripe(t, r)
		r.pipeline.Sources.PaymentIntents = true
		box, payment := r.scenario("next-box"), r.scenario("elements")
		s.invoices[payment[0].OrderID] = box[0].OrderID
		r.storeAll(payment[0], box[0])
		r.until(box[0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
		r.run(0)
		for _, change := range r.changes() {
			if !strings.HasPrefix(change, box[0].OrderID+".") {
				t.Errorf("another order: %s", change)
			}
		}
	})
	t.Run("session, much later", func(t *testing.T) {
		r := newRig(t, nil)
		s := withStripe(t, r)
		r.pipeline.Sources.PaymentIntents = true
		story := r.scenario("authorized-captured")
		s.knows(t, story[0])
		r.storeAll(story[1])
		r.running(func() {
			awaitValue(r, func() (bool, bool) { return true, s.lookedUp.Load() > 0 })
			r.storeAll(story[0])
			r.await(story[0].OrderID, func(o *ordergatev1.Order) bool { return o.GetStatus() == ordergatev1.OrderStatus_ORDER_STATUS_PAID })
		})
		for _, change := range r.changes() {
			if !strings.HasPrefix(change, story[0].OrderID+".") {
				t.Errorf("another order: %s", change)
			}
		}
	})
	for _, backwards := range []bool{false, true} {
		t.Run(fmt.Sprintf("session, backwards=%v", backwards), func(t *testing.T) {
			r := newRig(t, nil)
			s := withStripe(t, r)
			r.pipeline.Sources.PaymentIntents = true
			story := r.scenario("authorized-captured")
			s.knows(t, story[0])
			session := story[0].OrderID
			if backwards {
				slices.Reverse(story)
			}
			r.storeAll(story...)
			r.until(session, func(o *ordergatev1.Order) bool {
				return o.GetStatus() == ordergatev1.OrderStatus_ORDER_STATUS_PAID && o.GetLineItemsState() == ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE
			})
			for _, change := range r.changes() {
				if !strings.HasPrefix(change, session+".") {
					t.Errorf("another order: %s", change)
				}
			}
		})
		t.Run(fmt.Sprintf("subscription, backwards=%v", backwards), func(t *testing.T) {
			r := newRig(t, nil)
			s := withStripe(t, r)
			story := r.scenario("subscription")
			s.knows(t, story[0])
			session, box := story[0].OrderID, story[2].OrderID
			if backwards {
				slices.Reverse(story)
			}
			r.storeAll(story...)
			r.until(session, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
			r.until(box, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
			seen := map[string]bool{}
			for _, change := range r.changes() {
				id, _, _ := strings.Cut(change, ".")
				seen[id] = true
			}
			if diff := cmp.Diff(map[string]bool{session: true, box: true}, seen); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A sale that was never heard of is looked up, and its order held until an
// operator has seen it.
func TestLostSaleIsRecovered(t *testing.T) {
	r := newRig(t, nil)
	s := withStripe(t, r)
	story := r.scenario("partly-refunded")
	s.knows(t, story[0])
	r.storeAll(story[1])
	order := r.until(story[0].OrderID, func(o *ordergatev1.Order) bool {
		return o.GetStatus() == ordergatev1.OrderStatus_ORDER_STATUS_PARTIALLY_REFUNDED
	})
	if order.GetDirective() != ordergatev1.Directive_DIRECTIVE_HOLD || !slices.Contains(order.GetHoldReasons(), ordergatev1.HoldReason_HOLD_REASON_RECOVERED) {
		t.Errorf("order = %v", order)
	}
	r.until(story[0].OrderID, func(o *ordergatev1.Order) bool {
		return o.GetLineItemsState() == ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE
	})
	released, err := r.pipeline.Release(r.deadline(), story[0].OrderID, "not shipped yet", nil)
	if err != nil || released.After.GetDirective() != ordergatev1.Directive_DIRECTIVE_SHIP {
		t.Errorf("released = %v, %v", released, err)
	}
}

func TestOperators(t *testing.T) {
	r := newRig(t, nil)
	story := r.storeStory(sample.Completed)
	r.run(1)
	id := story[0].OrderID
	held, err := r.pipeline.Hold(r.deadline(), id, "wrong size")
	if err != nil || held.GetDirective() != ordergatev1.Directive_DIRECTIVE_HOLD {
		t.Fatalf("held = %v, %v", held, err)
	}
	if again, err := r.pipeline.Hold(r.deadline(), id, "wrong size"); err != nil || again.GetRevision() != held.GetRevision() {
		t.Errorf("held twice: %v, %v", again, err)
	}
	released, err := r.pipeline.Release(r.deadline(), id, "found it", nil)
	if err != nil || released.After.GetDirective() != ordergatev1.Directive_DIRECTIVE_SHIP || released.Before.GetDirective() != ordergatev1.Directive_DIRECTIVE_HOLD {
		t.Errorf("released = %v, %v", released, err)
	}
	if _, err := r.pipeline.Release(r.deadline(), id, "again", nil); !errors.Is(err, ErrNotHeld) {
		t.Errorf("released twice: %v", err)
	}
	if _, err := r.pipeline.Reinstate(r.deadline(), id, "x"); !errors.Is(err, ErrNotCanceled) {
		t.Errorf("reinstated: %v", err)
	}
	if diff := cmp.Diff([]string{id + ".1 PAID of " + story[0].ID, id + ".2 HELD of ", id + ".3 RELEASED of "}, r.changes()); diff != "" {
		t.Error(diff)
	}
	if _, err := r.pipeline.Hold(r.deadline(), "cs_none", "x"); !errors.Is(err, eventlog.ErrNotFound) {
		t.Errorf("err = %v, want ErrNotFound", err)
	}
}

// What Stripe sent while the gateway was away arrives without anybody asking,
// and only what is missing is stored.
func TestBackfillAfterDowntime(t *testing.T) {
	r := newRig(t, nil)
	s := withStripe(t, r)
	stories := [][]sample.Event{r.scenario("paid"), r.scenario("refunded"), r.scenario("paid")}
	for _, story := range stories {
		for _, e := range story {
			s.events = append(s.events, e.Body)
		}
	}
	s.events = append(s.events, json.RawMessage(fmt.Sprintf(`{"id":"evt_unused","object":"event","type":"price.created","created":%d,"data":{"object":{}}}`, time.Now().Unix())))
	r.storeAll(stories[0]...) // these came by webhook
	away := time.Now().Add(-2 * time.Hour).UTC().Format(time.RFC3339)
	if err := r.log.Bucket(eventlog.State).Put(r.deadline(), cursorKey, []byte(away)); err != nil {
		t.Fatal(err)
	}
	r.running(func() {
		r.await(stories[1][0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_CANCEL))
		r.await(stories[2][0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
		awaitValue(r, func() (bool, bool) {
			cursor, err := r.log.Bucket(eventlog.State).Get(r.deadline(), cursorKey)
			return true, err == nil && string(cursor) != away
		})
	})
	if !strings.Contains(r.lines.String(), `msg="backfill after downtime"`) || !strings.Contains(r.lines.String(), "listed=4 missing=3 recovered=3") {
		t.Errorf("no report in the log")
	}
}

// On the very first start nothing is listed: a month of shipped orders must not
// be shipped again.
func TestFirstStartListsNothing(t *testing.T) {
	r := newRig(t, nil)
	s := withStripe(t, r)
	old := r.scenario("paid")
	s.events = append(s.events, old[0].Body)
	fresh := r.scenario("paid")
	r.storeAll(fresh...)
	r.until(fresh[0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
	awaitValue(r, func() (bool, bool) {
		if err := r.pipeline.catchUp(r.deadline()); err != nil {
			t.Fatal(err)
		}
		_, err := r.log.Bucket(eventlog.State).Get(r.deadline(), cursorKey)
		return true, err == nil
	})
	if got := r.changes(); len(got) != 1 {
		t.Errorf("changes = %v", got)
	}
	// Asked for, it comes.
	var progress []BackfillReport
	report, err := r.pipeline.Backfill(r.deadline(), time.Now().Add(-3*time.Hour), func(p BackfillReport) { progress = append(progress, p) })
	if err != nil || report.Listed != 1 || report.Missing != 1 || report.Recovered != 1 || !report.Reached.Equal(report.Until) || len(progress) < 2 {
		t.Errorf("report = %+v, %v, %d steps", report, err, len(progress))
	}
	report, err = r.pipeline.Backfill(r.deadline(), time.Now().Add(-3*time.Hour), func(BackfillReport) {})
	if err != nil || report.Listed != 1 || report.Missing != 0 {
		t.Errorf("second report = %+v, %v", report, err)
	}
	r.pipeline.Stripe = nil
	if _, err := r.pipeline.Backfill(r.deadline(), time.Now(), nil); !errors.Is(err, ErrNoKey) {
		t.Errorf("err = %v, want ErrNoKey", err)
	}
}

func TestReprocess(t *testing.T) {
	r := newRig(t, nil)
	impatient(r)
	story := r.scenario("refunded")
	r.storeAll(story...)
	r.store("evt_unused", []byte(`{"id":"evt_unused","type":"price.created","data":{"object":{}}}`))
	before := r.until(story[0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_CANCEL))

	// Nothing was mended: nothing changes.
	for _, event := range story {
		stored, err := r.log.InboxEvent(r.deadline(), event.ID)
		if err != nil {
			t.Fatal(err)
		}
		status, changed, err := r.pipeline.Reprocess(r.deadline(), stored)
		if err != nil || changed != nil || status.Outcome != Converted || status.OrderID != before.GetId() {
			t.Errorf("%s: %+v, changed %v, %v", event.Type, status, changed, err)
		}
	}
	// An older version read the order wrongly, and an operator held it.
	if _, err := r.pipeline.Hold(r.deadline(), before.GetId(), "stop"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.pipeline.change(r.deadline(), before.GetId(), "", func(current *ordergatev1.Order) (*orders.Change, error) {
		wrong := current
		wrong.Revision++
		wrong.Shipping.Address.City = "Nowhere"
		wrong.Refunds, wrong.Charges = nil, nil
		return &orders.Change{Order: wrong, Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UPDATED}, nil
	}); err != nil {
		t.Fatal(err)
	}
	stored, err := r.log.InboxEvent(r.deadline(), story[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	_, changed, err := r.pipeline.Reprocess(r.deadline(), stored)
	if err != nil || changed == nil {
		t.Fatalf("changed = %v, %v", changed, err)
	}
	if changed.GetRevision() != before.GetRevision()+3 || changed.GetShipping().GetAddress().GetCity() != "Berlin" || changed.GetOperatorHold().GetNote() != "stop" ||
		changed.GetStatus() != ordergatev1.OrderStatus_ORDER_STATUS_REFUNDED {
		t.Errorf("the order made anew: %v", changed)
	}

	// An order that was also changed by an event that is no longer kept stays as
	// it is: without that event it would lose what only that one told.
	if _, err := r.pipeline.change(r.deadline(), before.GetId(), "evt_forgotten", func(current *ordergatev1.Order) (*orders.Change, error) {
		current.Revision++
		current.Shipping.Address.City = "Elsewhere"
		return &orders.Change{Order: current, Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UPDATED}, nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, changed, err := r.pipeline.Reprocess(r.deadline(), stored); err != nil || changed != nil {
		t.Errorf("an order with a forgotten event was made anew: %v, %v", changed, err)
	}

	state, err := r.log.InboxState(r.deadline())
	if err != nil {
		t.Fatal(err)
	}
	unused, err := r.log.InboxEvent(r.deadline(), "evt_unused")
	if err != nil {
		t.Fatal(err)
	}
	if status, err := r.pipeline.StatusOf(r.deadline(), unused, state.Converted); err != nil || status.Outcome != Ignored {
		t.Errorf("status of an event that is not used: %+v, %v", status, err)
	}
}

// A parked event that can be read now is applied by reprocessing it.
func TestReprocessParked(t *testing.T) {
	r := newRig(t, nil)
	impatient(r)
	story := r.scenario("paid")
	sources := r.pipeline.Sources
	box := r.scenario("next-box")
	r.pipeline.Sources = orders.Sources{}
	r.storeAll(story...)
	// As if it could not be read at first.
	broken := &result{stored: &eventlog.StoredEvent{RawEvent: eventlog.RawEvent{ID: box[0].ID, Body: box[0].Body}}, err: errors.New("unreadable")}
	if err := r.pipeline.park(r.deadline(), broken, Failed); err != nil {
		t.Fatal(err)
	}
	r.storeAll(box...)
	r.until(story[0].OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
	r.pipeline.Sources = sources
	stored, err := r.log.InboxEvent(r.deadline(), box[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	status, changed, err := r.pipeline.Reprocess(r.deadline(), stored)
	if err != nil || status.Outcome != Converted || changed.GetId() != box[0].OrderID {
		t.Errorf("%+v, %v, %v", status, changed, err)
	}
	if _, err := r.pipeline.ParkedEvent(r.deadline(), box[0].ID); !errors.Is(err, eventlog.ErrNotFound) {
		t.Errorf("still parked: %v", err)
	}
}

// A backlog is said before events are forgotten by age; none is, when there is
// none.
func TestBacklogIsSaid(t *testing.T) {
	r := newRig(t, nil)
	story := r.scenario("paid")
	r.storeAll(story...)
	if err := r.pipeline.warnOfBacklog(r.deadline()); err != nil || strings.Contains(r.lines.String(), "wait to be converted") {
		t.Errorf("a fresh event is called a backlog: %v", err)
	}
	r.pipeline.backlogAge = 0
	if err := r.pipeline.warnOfBacklog(r.deadline()); err != nil || !strings.Contains(r.lines.String(), "oldest="+story[0].ID) {
		t.Errorf("the backlog was not said: %v", err)
	}
}

// A dismissed event is done with: it is IGNORED with the reason, and its order does not take it.
func TestDismiss(t *testing.T) {
	r := newRig(t, nil)
	story := r.scenario("subscription")
	r.storeAll(story[1])
	r.untilParked(story[1].ID)
	if err := r.pipeline.Dismiss(r.deadline(), story[1].ID, "a trial of ours"); err != nil {
		t.Fatal(err)
	}
	if status := r.status(story[1].ID); status.Outcome != Ignored || status.Detail != "dismissed: a trial of ours" {
		t.Errorf("status = %+v", status)
	}
	if err := r.pipeline.Dismiss(r.deadline(), story[1].ID, "again"); !errors.Is(err, ErrNotParked) {
		t.Errorf("dismissed twice: %v", err)
	}
	r.untilNothingWaits()
}

// While the gateway runs, events that do not arrive by webhook are listed and counted: those since
// its first start, but for the newest, whose deliveries may be under way.
func TestMissedWebhooksAreListed(t *testing.T) {
	r := newRig(t, nil)
	s := withStripe(t, r)
	now := time.Now()
	missed, before, underWay := r.scenario("paid")[0], r.scenario("paid")[0], r.scenario("paid")[0]
	created := func(e sample.Event, at time.Time) {
		var event map[string]any
		if err := json.Unmarshal(e.Body, &event); err != nil {
			t.Fatal(err)
		}
		event["created"] = at.Unix()
		body, err := json.Marshal(event)
		if err != nil {
			t.Fatal(err)
		}
		s.events = append(s.events, body)
	}
	created(underWay, now.Add(-time.Minute))
	created(missed, now.Add(-time.Hour))
	created(before, now.Add(-150*time.Minute))
	if err := r.log.Bucket(eventlog.State).Put(r.deadline(), sinceKey, []byte(now.Add(-2*time.Hour).UTC().Format(time.RFC3339))); err != nil {
		t.Fatal(err)
	}
	r.until(missed.OrderID, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
	for _, e := range []sample.Event{before, underWay} {
		if _, err := r.log.InboxEvent(r.deadline(), e.ID); !errors.Is(err, eventlog.ErrNotFound) {
			t.Errorf("%s was listed: %v", e.ID, err)
		}
	}
	if n := r.gathered()["ordergate_pipeline_missed_events_total"].GetCounter().GetValue(); n != 1 {
		t.Errorf("%v missed events, want 1", n)
	}
	if !strings.Contains(r.lines.String(), "events did not arrive by webhook") {
		t.Error("the log does not mention it")
	}
}

// After a kill, a sale in the backlog includes what was stored far after it.
func TestBacklogIsIndexedFirst(t *testing.T) {
	r := newRig(t, nil)
	story := r.scenario("reviewed")
	r.storeAll(story[0])
	for i := range inboxFill { // in another batch
		r.store(fmt.Sprintf("evt_unused%d", i), fmt.Appendf(nil, `{"id":"evt_unused%d","type":"price.created","data":{"object":{}}}`, i))
	}
	r.storeAll(story[1])
	r.run(0)
	if got := r.directives(story[0].OrderID); !slices.Equal(got, []ordergatev1.Directive{ordergatev1.Directive_DIRECTIVE_HOLD}) {
		t.Errorf("the order was %v", got)
	}
	for _, e := range story {
		r.untilOutcome(e.ID, Converted)
	}
	r.untilNothingWaits()
}
