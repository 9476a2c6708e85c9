package sample

import (
	"strings"
	"testing"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/orders"
)

// Each story ends where its type says, and converts without a warning.
func TestStoriesConvert(t *testing.T) {
	want := map[string]ordergatev1.Directive{
		Completed:        ordergatev1.Directive_DIRECTIVE_SHIP,
		PaymentSucceeded: ordergatev1.Directive_DIRECTIVE_SHIP,
		PaymentFailed:    ordergatev1.Directive_DIRECTIVE_CANCEL,
		Expired:          ordergatev1.Directive_DIRECTIVE_CANCEL,
	}
	for _, eventType := range Types() {
		events, err := Story(eventType, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		var order *ordergatev1.Order
		for _, sample := range events {
			e, err := orders.Parse(sample.Body, orders.DefaultSources())
			if err != nil {
				t.Fatal(err)
			}
			change, err := orders.Apply(order, e, orders.LineItems{State: ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE})
			if err != nil {
				t.Fatal(err)
			}
			if change == nil || len(change.Warnings) > 0 || e.ID != sample.ID || e.Type != sample.Type || e.OrderID() != sample.OrderID {
				t.Fatalf("%s: change = %v", sample.Type, change)
			}
			order = change.Order
		}
		if order.GetDirective() != want[eventType] || order.GetLivemode() || order.GetShipping().GetAddress().GetCountry() != "DE" {
			t.Errorf("%s: order = %v", eventType, order)
		}
		if last := events[len(events)-1]; last.Type != eventType {
			t.Errorf("the story of %s ends with %s", eventType, last.Type)
		}
	}
}

func TestEachStoryIsAnOrderOfItsOwn(t *testing.T) {
	one, err := Story(Completed, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	two, err := Story(Completed, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if one[0].OrderID == two[0].OrderID || one[0].ID == two[0].ID {
		t.Error("two stories share an id")
	}
	if _, err := Story("a.b", time.Now()); err == nil || !strings.Contains(err.Error(), Completed) {
		t.Errorf("err = %v, want one that names the samples", err)
	}
}
