package grpcapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/pipeline"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/stripetest"
)

const (
	ignored   = ordergatev1.EventOutcome_EVENT_OUTCOME_IGNORED
	converted = ordergatev1.EventOutcome_EVENT_OUTCOME_CONVERTED
	unmatched = ordergatev1.EventOutcome_EVENT_OUTCOME_UNMATCHED
	failed    = ordergatev1.EventOutcome_EVENT_OUTCOME_FAILED
	pending   = ordergatev1.EventOutcome_EVENT_OUTCOME_PENDING
)

// receive stores an event as the ingress does.
func (g *gateway) receive(t *testing.T, id string, body []byte) {
	t.Helper()
	if _, err := g.log.AppendInbox(deadline(t), eventlog.RawEvent{ID: id, Body: body, SecretLabel: "whsec#test"}); err != nil {
		t.Fatal(err)
	}
}

func (g *gateway) receiveStory(t *testing.T, eventType string) []sample.Event {
	t.Helper()
	story := newStory(t, eventType, time.Now())
	for _, event := range story {
		g.receive(t, event.ID, event.Body)
	}
	return story
}

func newStory(t *testing.T, eventType string, now time.Time) []sample.Event {
	t.Helper()
	story, err := sample.Story(eventType, now)
	if err != nil {
		t.Fatal(err)
	}
	return story
}

// startPipeline converts until the test ends or stop is called.
func (g *gateway) startPipeline(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { g.pipeline.Run(ctx) })
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return stop
}

// convert runs the pipeline until the orders of some events have come.
func (g *gateway) convert(t *testing.T, events ...sample.Event) {
	t.Helper()
	wanted := map[string]bool{}
	for _, event := range events {
		wanted[event.ID] = true
	}
	s := g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_FromBeginning{FromBeginning: true}})
	stop := g.startPipeline(t)
	for len(wanted) > 0 {
		response, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		delete(wanted, response.GetEvent().GetSourceEventId())
		for _, id := range response.GetEvent().GetIncludedEventIds() {
			delete(wanted, id)
		}
	}
	stop()
}

// park records an event as parked, as a conversion that could not do better.
func (g *gateway) park(t *testing.T, id string, parked pipeline.Parked) {
	t.Helper()
	value, err := json.Marshal(parked)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.log.Bucket(eventlog.ParkedEvents).Put(deadline(t), id, value); err != nil {
		t.Fatal(err)
	}
}

func (g *gateway) getEvent(t *testing.T, id string) *ordergatev1.GetEventResponse {
	t.Helper()
	response, err := g.events.GetEvent(deadline(t), &ordergatev1.GetEventRequest{EventId: id})
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// list returns what all pages hold, in short.
func (g *gateway) list(t *testing.T, size int32, filter *ordergatev1.EventFilter) (got []string) {
	t.Helper()
	request := &ordergatev1.ListEventsRequest{PageSize: size, Filter: filter}
	for pages := 0; ; pages++ {
		page, err := g.events.ListEvents(deadline(t), request)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.GetEvents()) > int(size) {
			t.Errorf("%d events on a page of %d", len(page.GetEvents()), size)
		}
		for _, event := range page.GetEvents() {
			got = append(got, event.GetId())
		}
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return got
		}
		if pages > 1000 {
			t.Fatal("the pages do not end")
		}
	}
}

const poison = `{ "id":"evt_poison", "type":"checkout.session.completed", "api_version":"2025-09-30.clover", "big": 12345678901234567890.10,
  "account":"acct_1", "livemode":true, "data":{"object":{"id":"cs_1","object":"checkout.session","payment_status":"surely"}}}` + "\n"

func TestGetEvent(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.receive(t, "evt_poison", []byte(poison))
	g.receive(t, "evt_price", []byte(`{"id":"evt_price","type":"price.created","data":{"object":{}}}`))
	sale := g.receiveStory(t, sample.Completed)[0]
	g.convert(t, sale)
	late := g.receiveStory(t, sample.Completed)[0] // nothing converts any more
	g.receive(t, "evt_latin1", []byte("{\"id\":\"evt_latin1\",\"type\":\"price.created\",\"x\":\"\xe4\"}"))
	// Parked so long ago that the inbox has forgotten it.
	g.park(t, "evt_ancient", pipeline.Parked{Outcome: pipeline.Unmatched, Detail: "its order is not known", Event: []byte(`{"id":"evt_ancient","type":"charge.refunded"}`), SecretLabel: "whsec#old"})

	response := g.getEvent(t, "evt_poison")
	if response.GetRaw() != poison {
		t.Errorf("the raw event is not what came: %q", response.GetRaw())
	}
	event := response.GetEvent()
	if time.Since(event.GetStoreTime().AsTime()) > time.Hour || !strings.Contains(event.GetDetail(), "payment_status") {
		t.Errorf("event = %v", event)
	}
	event.StoreTime, event.Detail = nil, ""
	want := &ordergatev1.StripeEvent{Id: "evt_poison", Type: "checkout.session.completed", ApiVersion: "2025-09-30.clover", Account: "acct_1",
		Livemode: new(true), Sequence: 1, ReceivedBy: "whsec#test", Outcome: failed}
	if !proto.Equal(event, want) {
		t.Errorf("event = %v\nwant    %v", event, want)
	}
	if event := g.getEvent(t, "evt_price").GetEvent(); event.GetOutcome() != ignored || event.Livemode == nil || event.GetOrderId() != "" {
		t.Errorf("event = %v", event)
	}
	if event := g.getEvent(t, sale.ID).GetEvent(); event.GetOutcome() != converted || event.GetOrderId() != sale.OrderID {
		t.Errorf("event = %v", event)
	}
	if event := g.getEvent(t, late.ID).GetEvent(); event.GetOutcome() != pending {
		t.Errorf("event = %v", event)
	}
	if response := g.getEvent(t, "evt_latin1"); response.GetRaw() != "" || !strings.Contains(string(response.GetRawBytes()), "\xe4") {
		t.Errorf("response = %v", response)
	}
	response = g.getEvent(t, "evt_ancient")
	if event := response.GetEvent(); event.GetOutcome() != unmatched || event.GetDetail() == "" || event.StoreTime != nil || event.GetReceivedBy() != "whsec#old" || response.GetRaw() == "" {
		t.Errorf("response = %v", response)
	}
	for id, want := range map[string]problem{
		"evt_none": {Code: codes.NotFound, Reason: "EVENT_NOT_FOUND"},
		"":         {Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: "event_id"},
		"evt_a.b":  {Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: "event_id"},
		"cs_1":     {Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: "event_id"},
	} {
		_, err := g.events.GetEvent(deadline(t), &ordergatev1.GetEventRequest{EventId: id})
		expectProblem(t, err, want)
	}
}

func TestListEvents(t *testing.T) {
	g := newGateway(t, t.TempDir())
	if got := g.list(t, 1, nil); got != nil {
		t.Errorf("an empty log lists %v", got)
	}
	g.receive(t, "evt_poison", []byte(poison))
	sale := g.receiveStory(t, sample.Completed)[0]
	g.convert(t, sale)
	g.park(t, "evt_ancient", pipeline.Parked{Outcome: pipeline.Unmatched, Detail: "no order", Event: []byte(`{"id":"evt_ancient","type":"charge.refunded"}`)})
	all := []string{sale.ID, "evt_poison"}
	for i := range 2*inboxWindow + 30 {
		id := fmt.Sprintf("evt_price%d", i)
		eventType := "price.created"
		if i%50 == 0 {
			eventType = "price.updated"
		}
		g.receive(t, id, fmt.Appendf(nil, `{"id":%q,"type":%q,"data":{"object":{}}}`, id, eventType))
		all = append([]string{id}, all...)
	}
	middle := g.getEvent(t, "evt_price100").GetEvent().GetStoreTime()
	updated := []string{"evt_price200", "evt_price150", "evt_price100", "evt_price50", "evt_price0"}
	tests := []struct {
		name   string
		size   int32
		filter *ordergatev1.EventFilter
		want   []string
	}{
		{"all", 500, nil, all},
		{"small pages", 7, nil, all},
		{"pages of a window", inboxWindow, nil, all},
		{"types", 2, &ordergatev1.EventFilter{Types: []string{"price.updated"}}, updated},
		{"since", 50, &ordergatev1.EventFilter{StartTime: middle}, all[:130]},
		{"before", 50, &ordergatev1.EventFilter{EndTime: middle}, all[130:]},
		{"since and before", 1, &ordergatev1.EventFilter{Types: []string{"price.updated"}, StartTime: middle, EndTime: timestamppb.Now()}, updated[:3]},
		{"of the future", 1, &ordergatev1.EventFilter{StartTime: timestamppb.New(time.Now().Add(time.Hour))}, nil},
		{"converted", 1, &ordergatev1.EventFilter{Outcomes: []ordergatev1.EventOutcome{converted}}, []string{sale.ID}},
		{"parked", 1, &ordergatev1.EventFilter{ParkedOnly: true}, []string{"evt_ancient", "evt_poison"}},
		{"failed", 1, &ordergatev1.EventFilter{Outcomes: []ordergatev1.EventOutcome{failed}}, []string{"evt_poison"}},
		{"failed or converted", 1, &ordergatev1.EventFilter{Outcomes: []ordergatev1.EventOutcome{failed, converted}}, []string{sale.ID, "evt_poison"}},
		{"parked and converted", 1, &ordergatev1.EventFilter{ParkedOnly: true, Outcomes: []ordergatev1.EventOutcome{converted}}, nil},
		{"parked since", 5, &ordergatev1.EventFilter{ParkedOnly: true, StartTime: timestamppb.New(time.Now().Add(-time.Hour))}, []string{"evt_poison"}},
		{"parked before", 5, &ordergatev1.EventFilter{ParkedOnly: true, EndTime: timestamppb.New(time.Now().Add(-time.Hour))}, []string{"evt_ancient"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, g.list(t, tt.size, tt.filter)); diff != "" {
				t.Error(diff)
			}
		})
	}

	badToken := problem{Code: codes.InvalidArgument, Reason: "PAGE_TOKEN_INVALID", Field: "page_token"}
	first, err := g.events.ListEvents(deadline(t), &ordergatev1.ListEventsRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		request *ordergatev1.ListEventsRequest
		want    problem
	}{
		{&ordergatev1.ListEventsRequest{PageSize: -1}, badField("page_size")},
		{&ordergatev1.ListEventsRequest{PageToken: "junk"}, badToken},
		{&ordergatev1.ListEventsRequest{PageToken: first.GetNextPageToken(), Filter: &ordergatev1.EventFilter{ParkedOnly: true}}, badToken},
		{&ordergatev1.ListEventsRequest{Filter: &ordergatev1.EventFilter{Outcomes: []ordergatev1.EventOutcome{0}}}, badField("filter.outcomes")},
		{&ordergatev1.ListEventsRequest{Filter: &ordergatev1.EventFilter{Types: make([]string, 101)}}, badField("filter.types")},
		{&ordergatev1.ListEventsRequest{Filter: &ordergatev1.EventFilter{EndTime: &timestamppb.Timestamp{Nanos: -1}}}, badField("filter.end_time")},
	} {
		_, err := g.events.ListEvents(deadline(t), tt.request)
		expectProblem(t, err, tt.want)
	}
}

func TestHoldAndRelease(t *testing.T) {
	g := newGateway(t, t.TempDir())
	sale := g.receiveStory(t, sample.Completed)[0]
	g.convert(t, sale)
	s := g.watch(t, &ordergatev1.WatchOrdersRequest{})
	s.expect("caught up")
	next := func() *ordergatev1.OrderEvent {
		t.Helper()
		response, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return response.GetEvent()
	}

	held, err := g.client.HoldOrder(deadline(t), &ordergatev1.HoldOrderRequest{OrderId: sale.OrderID, Reason: " the buyer called \n"})
	if err != nil {
		t.Fatal(err)
	}
	if o := held.GetOrder(); o.GetDirective() != ordergatev1.Directive_DIRECTIVE_HOLD || o.GetRevision() != 2 || o.GetOperatorHold().GetNote() != "the buyer called" {
		t.Errorf("order = %v", o)
	}
	if e := next(); e.GetKind() != ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD || e.GetNote() != "the buyer called" || e.GetSourceEventId() != "" || !proto.Equal(e.GetOrder(), held.GetOrder()) {
		t.Errorf("event = %v", e)
	}
	// The same again changes nothing.
	again, err := g.client.HoldOrder(deadline(t), &ordergatev1.HoldOrderRequest{OrderId: sale.OrderID, Reason: "the buyer called"})
	if err != nil || !proto.Equal(again.GetOrder(), held.GetOrder()) {
		t.Errorf("order = %v, %v", again, err)
	}
	released, err := g.client.ReleaseOrder(deadline(t), &ordergatev1.ReleaseOrderRequest{OrderId: sale.OrderID, Reason: "it was a mistake"})
	if err != nil || released.GetOrder().GetDirective() != ordergatev1.Directive_DIRECTIVE_SHIP || released.GetOrder().GetRevision() != 3 {
		t.Errorf("order = %v, %v", released, err)
	}
	if e := next(); e.GetKind() != ordergatev1.OrderEventKind_ORDER_EVENT_KIND_RELEASED || e.GetNote() != "it was a mistake" {
		t.Errorf("event = %v", e)
	}
	operator := &ordergatev1.HoldRelease{Reason: ordergatev1.HoldReason_HOLD_REASON_OPERATOR}
	if len(released.GetReleased()) != 1 || !proto.Equal(released.GetReleased()[0], operator) || len(released.GetRemaining()) > 0 {
		t.Errorf("released %v, remaining %v", released.GetReleased(), released.GetRemaining())
	}
	_, err = g.client.ReleaseOrder(deadline(t), &ordergatev1.ReleaseOrderRequest{OrderId: sale.OrderID, Reason: "again"})
	expectProblem(t, err, problem{Code: codes.FailedPrecondition, Reason: "ORDER_NOT_HELD"})
	_, err = g.client.ReleaseOrder(deadline(t), &ordergatev1.ReleaseOrderRequest{OrderId: sale.OrderID, Reason: "x", Cause: &ordergatev1.HoldRelease{Cause: "dp_1"}})
	expectProblem(t, err, problem{Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: "cause.reason"})
	_, err = g.client.ReinstateOrder(deadline(t), &ordergatev1.ReinstateOrderRequest{OrderId: sale.OrderID, Reason: "x"})
	expectProblem(t, err, problem{Code: codes.FailedPrecondition, Reason: "ORDER_NOT_CANCELED"})

	for _, tt := range []struct {
		order, reason string
		want          problem
	}{
		{"cs_none", "x", problem{Code: codes.NotFound, Reason: "ORDER_NOT_FOUND"}},
		{"", "x", badField("order_id")},
		{"cs.>", "x", badField("order_id")},
		{sale.OrderID, "", badField("reason")},
		{sale.OrderID, " \t\n", badField("reason")},
		{sale.OrderID, strings.Repeat("ä", 501), badField("reason")},
	} {
		_, err := g.client.HoldOrder(deadline(t), &ordergatev1.HoldOrderRequest{OrderId: tt.order, Reason: tt.reason})
		expectProblem(t, err, tt.want)
		_, err = g.client.ReleaseOrder(deadline(t), &ordergatev1.ReleaseOrderRequest{OrderId: tt.order, Reason: tt.reason})
		expectProblem(t, err, tt.want)
		_, err = g.client.ReinstateOrder(deadline(t), &ordergatev1.ReinstateOrderRequest{OrderId: tt.order, Reason: tt.reason})
		expectProblem(t, err, tt.want)
	}
	if _, err := g.client.HoldOrder(deadline(t), &ordergatev1.HoldOrderRequest{OrderId: sale.OrderID, Reason: strings.Repeat("ä", 500)}); err != nil {
		t.Error(err)
	}
}

// receiveAll reads a stream to its end.
func receiveAll[T any](stream grpc.ServerStreamingClient[T], err error) (all []*T, _ error) {
	if err != nil {
		return nil, err
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		all = append(all, message)
	}
}

// reprocess returns what was told of single events, by id, and the last message.
func (g *gateway) reprocess(t *testing.T, request *ordergatev1.ReprocessEventsRequest) (map[string]*ordergatev1.ReprocessedEvent, *ordergatev1.ReprocessEventsResponse) {
	t.Helper()
	all, err := receiveAll(g.events.ReprocessEvents(deadline(t), request))
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]*ordergatev1.ReprocessedEvent{}
	for _, r := range all {
		if r.GetEvent() != nil {
			told[r.GetEvent().GetEvent().GetId()] = r.GetEvent()
		}
	}
	last := all[len(all)-1]
	if !last.GetDone() || last.GetEvent() != nil {
		t.Errorf("the last message is %v", last)
	}
	return told, last
}

func expectCounts(t *testing.T, r *ordergatev1.ReprocessEventsResponse, examined, changed, stillParked int64) {
	t.Helper()
	want := &ordergatev1.ReprocessEventsResponse{Examined: examined, Changed: changed, StillParked: stillParked, Done: true}
	if !proto.Equal(r, want) {
		t.Errorf("got %v, want %v", r, want)
	}
}

func TestReprocessParked(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.receive(t, "evt_poison", []byte(poison))
	other := g.receiveStory(t, sample.Completed)[0]
	g.convert(t, other)
	// Two sales that an older conversion could not read; the inbox has forgotten
	// the second one. And a refund whose order is not known.
	sale, forgotten := g.receiveStory(t, sample.Completed)[0], newStory(t, sample.Completed, time.Now())[0]
	g.park(t, sale.ID, pipeline.Parked{Outcome: pipeline.Failed, Detail: "cannot read it", Event: sale.Body})
	g.park(t, forgotten.ID, pipeline.Parked{Outcome: pipeline.Failed, Detail: "cannot read it", Event: forgotten.Body})
	refund := newStory(t, sample.ChargeRefunded, time.Now())[1]
	g.receive(t, refund.ID, refund.Body)
	g.park(t, refund.ID, pipeline.Parked{Outcome: pipeline.Unmatched, Detail: "its order is not known", Event: refund.Body})

	told, last := g.reprocess(t, &ordergatev1.ReprocessEventsRequest{ParkedOnly: true})
	expectCounts(t, last, 4, 2, 2)
	if len(told) != 4 {
		t.Errorf("told = %v", told)
	}
	for _, e := range []sample.Event{sale, forgotten} {
		if r := told[e.ID]; r.GetOrder().GetId() != e.OrderID || r.GetOrder().GetRevision() != 1 || r.GetEvent().GetOutcome() != converted {
			t.Errorf("%s: %v", e.ID, r)
		}
		if r, err := g.client.GetOrder(deadline(t), &ordergatev1.GetOrderRequest{OrderId: e.OrderID}); err != nil || r.GetOrder().GetDirective() != ordergatev1.Directive_DIRECTIVE_SHIP {
			t.Errorf("%v, %v", r, err)
		}
	}
	if r := told["evt_poison"]; r.GetEvent().GetOutcome() != failed || !strings.Contains(r.GetEvent().GetDetail(), "payment_status") || r.GetOrder() != nil {
		t.Errorf("poison: %v", r)
	}
	if r := told[refund.ID]; r.GetEvent().GetOutcome() != unmatched || r.GetOrder() != nil {
		t.Errorf("refund: %v", r)
	}
	if diff := cmp.Diff(map[string]bool{"evt_poison": true, refund.ID: true}, setOf(g.list(t, 10, &ordergatev1.EventFilter{ParkedOnly: true}))); diff != "" {
		t.Error(diff)
	}
	// By id, one that cannot be converted is only told.
	_, last = g.reprocess(t, &ordergatev1.ReprocessEventsRequest{EventIds: []string{"evt_poison", other.ID}})
	expectCounts(t, last, 2, 0, 1)
}

func setOf(list []string) map[string]bool {
	set := map[string]bool{}
	for _, s := range list {
		set[s] = true
	}
	return set
}

// A conversion that was mended corrects the orders it got wrong, and leaves the
// others alone.
func TestReprocessCorrectsOrders(t *testing.T) {
	g := newGateway(t, t.TempDir())
	right, wrong := g.receiveStory(t, sample.PaymentSucceeded), g.receiveStory(t, sample.Completed)[0]
	g.convert(t, right[0], right[1], wrong)
	record, err := g.log.NewestOrder(deadline(t), wrong.OrderID)
	if err != nil {
		t.Fatal(err)
	}
	event, err := record.Event()
	if err != nil {
		t.Fatal(err)
	}
	name := event.GetOrder().GetShipping().GetName()
	event.Order.Revision, event.Order.Shipping.Name = 2, "somebody else"
	event.Id, event.Sequence, event.CreateTime = wrong.OrderID+".2", 0, nil
	if _, err := g.log.AppendOrder(deadline(t), event, record.Sequence); err != nil {
		t.Fatal(err)
	}

	hourAgo := timestamppb.New(time.Now().Add(-time.Hour))
	told, last := g.reprocess(t, &ordergatev1.ReprocessEventsRequest{StartTime: hourAgo})
	expectCounts(t, last, 3, 1, 0)
	if r := told[wrong.ID]; len(told) != 1 || r.GetOrder().GetRevision() != 3 || r.GetOrder().GetShipping().GetName() != name {
		t.Errorf("told = %v", told)
	}
	_, last = g.reprocess(t, &ordergatev1.ReprocessEventsRequest{StartTime: hourAgo})
	expectCounts(t, last, 3, 0, 0)
	_, last = g.reprocess(t, &ordergatev1.ReprocessEventsRequest{StartTime: hourAgo, EndTime: hourAgo})
	expectCounts(t, last, 0, 0, 0)
	middle := g.getEvent(t, right[1].ID).GetEvent().GetStoreTime()
	_, last = g.reprocess(t, &ordergatev1.ReprocessEventsRequest{StartTime: hourAgo, EndTime: middle})
	expectCounts(t, last, 1, 0, 0)
}

func badField(field string) problem {
	return problem{Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: field}
}

func TestReprocessErrors(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.receive(t, "evt_poison", []byte(poison))
	now := timestamppb.Now()
	for _, tt := range []struct {
		request *ordergatev1.ReprocessEventsRequest
		want    problem
	}{
		{&ordergatev1.ReprocessEventsRequest{}, badField("event_ids")},
		{&ordergatev1.ReprocessEventsRequest{EventIds: []string{"evt_1"}, ParkedOnly: true}, badField("event_ids")},
		{&ordergatev1.ReprocessEventsRequest{StartTime: now, ParkedOnly: true}, badField("event_ids")},
		{&ordergatev1.ReprocessEventsRequest{EndTime: now, ParkedOnly: true}, badField("end_time")},
		{&ordergatev1.ReprocessEventsRequest{EventIds: make([]string, 101)}, badField("event_ids")},
		{&ordergatev1.ReprocessEventsRequest{EventIds: []string{"cs_1"}}, badField("event_ids")},
		{&ordergatev1.ReprocessEventsRequest{StartTime: &timestamppb.Timestamp{Nanos: -1}}, badField("start_time")},
		{&ordergatev1.ReprocessEventsRequest{EventIds: []string{"evt_poison", "evt_none"}}, problem{Code: codes.NotFound, Reason: "EVENT_NOT_FOUND"}},
	} {
		all, err := receiveAll(g.events.ReprocessEvents(deadline(t), tt.request))
		expectProblem(t, err, tt.want)
		if len(all) > 0 {
			t.Errorf("%v: something was done: %v", tt.request, all)
		}
	}
}

// newStripe returns a stand-in for Stripe's API that lists some events, and a
// client of it.
func newStripe(t *testing.T, events http.Handler) *stripeapi.Client {
	t.Helper()
	server := stripetest.NewServer(t)
	server.Handle("GET /v1/events", events)
	item := json.RawMessage(`{"id":"li_1","object":"item","quantity":1,"description":"A mug","amount_subtotal":100,"amount_total":100,"price":null}`)
	server.Handle("GET /v1/checkout/sessions/{id}/line_items", stripetest.List(func(*http.Request) []json.RawMessage { return []json.RawMessage{item} }))
	client, err := stripeapi.New(stripeapi.Config{Keys: []string{"rk_test_1"}, Base: server.URL, Rate: 100})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// A sale whose webhook never came is found at Stripe, and goes out to shipping.
func TestBackfill(t *testing.T) {
	now := time.Now()
	before, missing, after := newStory(t, sample.Completed, now.Add(-150*time.Minute))[0], newStory(t, sample.Completed, now.Add(-90*time.Minute))[0], newStory(t, sample.Completed, now.Add(-time.Minute))[0]
	g := newGatewayWith(t, t.TempDir(), newStripe(t, stripetest.Events(func(*http.Request) []json.RawMessage {
		return []json.RawMessage{before.Body, missing.Body, after.Body}
	})))
	g.receive(t, before.ID, before.Body)
	g.receive(t, after.ID, after.Body)
	g.convert(t, before, after)

	g.startPipeline(t)
	s := g.watch(t, &ordergatev1.WatchOrdersRequest{})
	s.expect("caught up")
	since := timestamppb.New(now.Add(-3 * time.Hour))
	all, err := receiveAll(g.events.Backfill(deadline(t), &ordergatev1.BackfillRequest{Since: since}))
	if err != nil {
		t.Fatal(err)
	}
	reached := since.AsTime()
	for _, r := range all {
		if r.GetReached().AsTime().Before(reached) || r.GetDone() != (r == all[len(all)-1]) {
			t.Errorf("progress: %v", r)
		}
		reached = r.GetReached().AsTime()
	}
	last := all[len(all)-1]
	if len(all) < 3 || last.GetListed() != 3 || last.GetMissing() != 1 || last.GetRecovered() != 1 || !proto.Equal(last.GetReached(), last.GetUntil()) || !proto.Equal(last.GetSince(), since) {
		t.Errorf("report = %v", last)
	}
	s.expect(missing.OrderID + ".1")
	if event := g.getEvent(t, missing.ID); event.GetEvent().GetReceivedBy() != "backfill" || event.GetRaw() == "" {
		t.Errorf("event = %v", event)
	}

	// Again, nothing is missing. A time that Stripe does not go back to is made
	// one that it does.
	all, err = receiveAll(g.events.Backfill(deadline(t), &ordergatev1.BackfillRequest{Since: since}))
	if err != nil || all[len(all)-1].GetListed() != 3 || all[len(all)-1].GetMissing() != 0 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestBackfillErrors(t *testing.T) {
	keyless := newGateway(t, t.TempDir())
	hourAgo := &ordergatev1.BackfillRequest{Since: timestamppb.New(time.Now().Add(-time.Hour))}
	badSince := problem{Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: "since"}
	for _, tt := range []struct {
		request *ordergatev1.BackfillRequest
		want    problem
	}{
		{hourAgo, problem{Code: codes.FailedPrecondition, Reason: "API_KEY_MISSING", Subject: "STRIPE_API_KEY"}},
		{&ordergatev1.BackfillRequest{}, badSince},
		{&ordergatev1.BackfillRequest{Since: &timestamppb.Timestamp{Nanos: -1}}, badSince},
		{&ordergatev1.BackfillRequest{Since: timestamppb.New(time.Now().Add(time.Hour))}, badSince},
	} {
		_, err := receiveAll(keyless.events.Backfill(deadline(t), tt.request))
		expectProblem(t, err, tt.want)
	}

	refused := newGatewayWith(t, t.TempDir(), newStripe(t, stripetest.Error(http.StatusUnauthorized, "", "Invalid API Key provided")))
	_, err := receiveAll(refused.events.Backfill(deadline(t), hourAgo))
	expectProblem(t, err, problem{Code: codes.FailedPrecondition, Reason: "API_KEY_REFUSED", Subject: "STRIPE_API_KEY"})
}

// One backfill runs at a time, and a gateway that stops does not wait for it.
func TestBackfillIsAloneAndEndsWithTheGateway(t *testing.T) {
	asked := make(chan struct{})
	var once sync.Once
	g := newGatewayWith(t, t.TempDir(), newStripe(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(asked) })
		<-r.Context().Done() // it does not answer
	})))
	hourAgo := &ordergatev1.BackfillRequest{Since: timestamppb.New(time.Now().Add(-time.Hour))}
	running, err := g.events.Backfill(deadline(t), hourAgo)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-asked:
	case <-deadline(t).Done():
		t.Fatal("Stripe is not asked")
	}
	_, err = receiveAll(g.events.Backfill(deadline(t), hourAgo))
	expectProblem(t, err, problem{Code: codes.Aborted, Reason: "BACKFILL_RUNNING", Retry: true})
	g.server.Shutdown(deadline(t))
	_, err = running.Recv()
	expectProblem(t, err, problem{Code: codes.Unavailable, Reason: "SHUTTING_DOWN", Retry: true})
}

func TestDismissEvents(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.receive(t, "evt_poison", []byte(poison))
	sale := g.receiveStory(t, sample.Completed)[0]
	g.convert(t, sale)
	for _, tt := range []struct {
		request *ordergatev1.DismissEventsRequest
		want    problem
	}{
		{&ordergatev1.DismissEventsRequest{Reason: "x"}, badField("event_ids")},
		{&ordergatev1.DismissEventsRequest{EventIds: []string{"cs_1"}, Reason: "x"}, badField("event_ids")},
		{&ordergatev1.DismissEventsRequest{EventIds: make([]string, 101), Reason: "x"}, badField("event_ids")},
		{&ordergatev1.DismissEventsRequest{EventIds: []string{"evt_poison"}}, badField("reason")},
		{&ordergatev1.DismissEventsRequest{EventIds: []string{"evt_poison"}, Reason: strings.Repeat("ä", 501)}, badField("reason")},
		{&ordergatev1.DismissEventsRequest{EventIds: []string{"evt_poison", "evt_none"}, Reason: "x"}, problem{Code: codes.NotFound, Reason: "EVENT_NOT_FOUND"}},
		{&ordergatev1.DismissEventsRequest{EventIds: []string{"evt_poison", sale.ID}, Reason: "x"}, problem{Code: codes.FailedPrecondition, Reason: "EVENT_NOT_PARKED"}},
	} {
		_, err := g.events.DismissEvents(deadline(t), tt.request)
		expectProblem(t, err, tt.want)
	}
	if event := g.getEvent(t, "evt_poison").GetEvent(); event.GetOutcome() != failed {
		t.Errorf("a refused request dismissed an event: %v", event)
	}
	response, err := g.events.DismissEvents(deadline(t), &ordergatev1.DismissEventsRequest{EventIds: []string{"evt_poison", "evt_poison"}, Reason: "a test of ours"})
	if err != nil || len(response.GetEvents()) != 2 || response.GetEvents()[0].GetOutcome() != ignored || response.GetEvents()[0].GetDetail() != "dismissed: a test of ours" {
		t.Errorf("response = %v, %v", response, err)
	}
	if parked := g.list(t, 10, &ordergatev1.EventFilter{ParkedOnly: true}); len(parked) != 0 {
		t.Errorf("parked = %v", parked)
	}
}
