package pipeline

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/stripetest"
)

// ratedSession is a paid session with a shipping rate.
func ratedSession(id, rate, more string) []byte {
	return fmt.Appendf(nil, `{"id":"evt_%[1]s","object":"event","api_version":"2023-10-16","created":1700000000,"livemode":false,"type":"checkout.session.completed"%[3]s,"data":{"object":{
		"id":"cs_%[1]s","object":"checkout.session","mode":"payment","payment_status":"paid","currency":"eur","amount_total":5000,
		"shipping_cost":{"amount_total":500,"shipping_rate":%[2]q},"shipping_details":{"name":"Ada Sample","address":{"line1":"Musterstraße 1","country":"DE"}}}}}`, id, rate, more)
}

// An order waits for its shipping rate as it does for its line items.
func TestShippingRateIsAwaited(t *testing.T) {
	r := newRig(t, nil)
	s := withStripe(t, r)
	var away atomic.Bool
	away.Store(true)
	s.Handle("GET /v1/shipping_rates/shr_express", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if away.Load() {
			stripetest.Error(http.StatusForbidden, "", "Having the 'rak_shipping_rate_read' permission would allow this").ServeHTTP(w, req)
			return
		}
		fmt.Fprint(w, `{"id":"shr_express","object":"shipping_rate","display_name":"Express","metadata":{"carrier":"DHL"},"delivery_estimate":{"maximum":{"unit":"day","value":1}}}`)
	}))
	r.store("evt_rated", ratedSession("rated", "shr_express", ""))
	order := r.until("cs_rated", directiveIs(ordergatev1.Directive_DIRECTIVE_WAIT))
	if order.GetLineItemsState() != ordergatev1.LineItemsState_LINE_ITEMS_STATE_PENDING || len(order.GetLineItems()) != 0 {
		t.Fatalf("without its rate: %v", order)
	}
	away.Store(false)
	if err := r.pipeline.putPending(r.deadline(), "cs_rated", pendingItems{}); err != nil { // now, not after itemsRetry
		t.Fatal(err)
	}
	order = r.until("cs_rated", directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
	rate := order.GetShippingRate()
	if rate.GetDisplayName() != "Express" || rate.GetAmount() != 500 || rate.GetMetadata()["carrier"] != "DHL" || rate.GetDeliveryEstimate().GetMaximum().GetValue() != 1 ||
		len(order.GetLineItems()) != 1 {
		t.Errorf("with its rate: %v", order)
	}
}

// Requests for an account of an organization name it in Stripe-Context, also after
// a restart, and so does the listing of its events.
func TestOrganizationContext(t *testing.T) {
	r := newRig(t, nil)
	s := withStripe(t, r)
	s.answerItems(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Stripe-Context") != "acct_Org1" || req.Header.Get("Stripe-Account") != "" {
			stripetest.Error(http.StatusNotFound, "resource_missing", "No such checkout.session").ServeHTTP(w, req)
			return
		}
		stripetest.List(func(*http.Request) []json.RawMessage { return []json.RawMessage{json.RawMessage(oneShirt)} }).ServeHTTP(w, req)
	}))
	r.store("evt_org", ratedSession("org", "shr_express", `,"context":"acct_Org1"`))
	order := r.until("cs_org", directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
	if order.GetAccount() != "acct_Org1" || len(order.GetLineItems()) != 1 {
		t.Errorf("order %v", order)
	}
	if err := r.pipeline.putPending(r.deadline(), "cs_org", pendingItems{Account: "acct_Org1", InContext: true}); err != nil {
		t.Fatal(err)
	}
	if err := r.pipeline.complete(r.deadline(), "cs_org"); err != nil {
		t.Errorf("reading the line items later: %v", err)
	}
	sources, err := r.pipeline.eventSources(r.deadline())
	if err != nil || len(sources) != 2 || sources[1].Account != "acct_Org1" || !sources[1].InContext {
		t.Errorf("events are listed from %+v, %v", sources, err)
	}
}

// The invoice of a Session is never an order by itself, in any order of arrival and
// for any billing reason. Since 2025-03-31.basil its event does not name its payment.
func TestInvoiceOfASession(t *testing.T) {
	session := func(id string) []byte {
		return fmt.Appendf(nil, `{"id":"evt_s%[1]s","object":"event","api_version":"2025-09-30.clover","created":1700000000,"livemode":false,"type":"checkout.session.completed","data":{"object":{
			"id":"cs_%[1]s","object":"checkout.session","mode":"payment","status":"complete","payment_status":"unpaid","currency":"eur","amount_total":5000,"payment_intent":"pi_%[1]s","invoice":"in_%[1]s"}}}`, id)
	}
	invoice := func(id, reason string) []byte {
		return fmt.Appendf(nil, `{"id":"evt_i%[1]s","object":"event","api_version":"2025-09-30.clover","created":1700000001,"livemode":false,"type":"invoice.paid","data":{"object":{
			"id":"in_%[1]s","object":"invoice","status":"paid","billing_reason":%[2]q,"currency":"eur","total":5000,"amount_paid":5000}}}`, id, reason)
	}
	r := newRig(t, nil)
	r.pipeline.Sources.Invoices = append(r.pipeline.Sources.Invoices, "manual")
	s := withStripe(t, r)
	s.Handle("GET /v1/invoices/{id}", http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		id := req.PathValue("id")
		fmt.Fprintf(w, `{"id":%q,"object":"invoice","payment_intent":%q}`, id, strings.Replace(id, "in_", "pi_", 1))
	}))
	for _, id := range []string{"a", "b"} {
		var event struct {
			Data struct{ Object json.RawMessage }
		}
		if err := json.Unmarshal(session(id), &event); err != nil {
			t.Fatal(err)
		}
		s.sessions["pi_"+id] = event.Data.Object
	}
	r.store("evt_sa", session("a"))
	r.store("evt_ia", invoice("a", "manual"))
	r.store("evt_ib", invoice("b", "manual"))
	r.store("evt_sb", session("b"))
	r.store("evt_sc", session("c"))
	r.store("evt_ic", invoice("c", "upcoming"))
	r.running(func() {
		for _, id := range []string{"cs_a", "cs_b", "cs_c"} {
			r.await(id, directiveIs(ordergatev1.Directive_DIRECTIVE_SHIP))
		}
	})
	for _, id := range []string{"in_a", "in_b", "in_c"} {
		if order, _, err := r.pipeline.newest(r.deadline(), id); err != nil || order != nil {
			t.Errorf("%s is an order of its own: %v, %v", id, order, err)
		}
	}
}
