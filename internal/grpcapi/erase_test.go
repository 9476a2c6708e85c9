package grpcapi

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/sample"
)

func TestEraseOrders(t *testing.T) {
	g := newGateway(t, t.TempDir())
	story := newStory(t, sample.DisputeCreated, time.Now())
	for _, event := range story { // one by one: together, they are one revision
		g.receive(t, event.ID, event.Body)
		g.convert(t, event)
	}
	id := story[0].OrderID
	erase := func(request *ordergatev1.EraseOrdersRequest) *ordergatev1.EraseOrdersResponse {
		t.Helper()
		messages, err := receiveAll(g.client.EraseOrders(deadline(t), request))
		if err != nil || len(messages) == 0 || !messages[len(messages)-1].GetDone() {
			t.Fatalf("%v, %v", messages, err)
		}
		return messages[len(messages)-1]
	}
	for _, dryRun := range []bool{true, false} {
		last := erase(&ordergatev1.EraseOrdersRequest{OrderIds: []string{id}, Customers: []string{"erika@example.com"}, DryRun: dryRun})
		if last.GetOrders() != 1 || last.GetOrderEvents() != 2 || last.GetStripeEvents() != 2 || last.GetReferences() == 0 || last.GetExamined() != 4 || last.GetTotal() != 4 ||
			fmt.Sprint(last.GetOrderIds()) != "["+id+"]" {
			t.Errorf("dry run %v: %v", dryRun, last)
		}
	}
	got, err := g.client.GetOrder(deadline(t), &ordergatev1.GetOrderRequest{OrderId: id})
	if err != nil || got.GetOrder().GetDirective() != ordergatev1.Directive_DIRECTIVE_CANCEL || got.GetOrder().GetCustomer() != nil {
		t.Errorf("order: %v, %v", got, err)
	}
	event := g.getEvent(t, story[0].ID)
	if event.GetEvent().GetOutcome() != ordergatev1.EventOutcome_EVENT_OUTCOME_ERASED || event.GetEvent().GetType() != story[0].Type || strings.Contains(event.GetRaw(), "Erika") {
		t.Errorf("event: %v", event)
	}

	badField := func(field string) problem {
		return problem{Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: field}
	}
	many := func(n int, id string) []string { return strings.Fields(strings.Repeat(id+" ", n)) }
	for _, tt := range []struct {
		orders, customers []string
		want              problem
	}{
		{nil, nil, badField("order_ids")},
		{[]string{"cs_none"}, nil, problem{Code: codes.NotFound, Reason: "ORDER_NOT_FOUND"}},
		{[]string{"cs.>"}, nil, badField("order_ids")},
		{many(101, "cs_1"), nil, badField("order_ids")},
		{nil, many(11, "cus_1"), badField("customers")},
		{nil, []string{""}, badField("customers")},
		{nil, []string{"erika"}, badField("customers")},
		{nil, []string{`a"b@example.com`}, badField("customers")},
		{nil, []string{"cus_1 "}, badField("customers")},
	} {
		_, err := receiveAll(g.client.EraseOrders(deadline(t), &ordergatev1.EraseOrdersRequest{OrderIds: tt.orders, Customers: tt.customers}))
		expectProblem(t, err, tt.want)
	}
}
