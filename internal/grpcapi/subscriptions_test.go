package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

var fromBeginning = &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}

// subscribe makes a subscription from the beginning, to every event unless the settings
// say otherwise.
func (g *gateway) subscribe(t *testing.T, settings *ordergatev1.Subscription) *ordergatev1.Subscription {
	t.Helper()
	if settings.Delivery == ordergatev1.DeliveryMode_DELIVERY_MODE_UNSPECIFIED {
		settings.Delivery = ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT
	}
	response, err := g.work.CreateSubscription(deadline(t), &ordergatev1.CreateSubscriptionRequest{Subscription: settings, Start: fromBeginning})
	if err != nil {
		t.Fatal(err)
	}
	return response.GetSubscription()
}

func (g *gateway) stats(t *testing.T, name string) *ordergatev1.SubscriptionStats {
	t.Helper()
	response, err := g.work.GetSubscription(deadline(t), &ordergatev1.GetSubscriptionRequest{Subscription: name})
	if err != nil {
		t.Fatal(err)
	}
	return response.GetSubscription().GetStats()
}

// pull returns deliveries, and what they are in short.
func (g *gateway) pull(t *testing.T, request *ordergatev1.PullRequest) ([]*ordergatev1.Delivery, string) {
	t.Helper()
	response, err := g.work.Pull(deadline(t), request)
	if err != nil {
		t.Fatal(err)
	}
	return response.GetDeliveries(), inShort(response.GetDeliveries()...)
}

func inShort(deliveries ...*ordergatev1.Delivery) string {
	var short []string
	for _, d := range deliveries {
		text := d.GetEvent().GetId()
		if d.GetAttempt() != 1 {
			text += fmt.Sprintf(" attempt %d", d.GetAttempt())
		}
		if d.GetRedriven() {
			text += " redriven"
		}
		short = append(short, text)
	}
	return strings.Join(short, ", ")
}

// settle acknowledges and nacks, and returns the results in short.
func (g *gateway) settle(t *testing.T, name string, acks []*ordergatev1.Delivery, nacks ...*ordergatev1.Nack) string {
	t.Helper()
	request := &ordergatev1.AcknowledgeRequest{Subscription: name, Nacks: nacks}
	for _, d := range acks {
		request.DeliveryIds = append(request.DeliveryIds, d.GetDeliveryId())
	}
	response, err := g.work.Acknowledge(deadline(t), request)
	if err != nil {
		t.Fatal(err)
	}
	return codesOf(response.GetResults())
}

func codesOf(results []*ordergatev1.DeliveryResult) string {
	var names []string
	for _, r := range results {
		names = append(names, strings.TrimPrefix(r.GetCode().String(), "DELIVERY_RESULT_CODE_"))
	}
	return strings.Join(names, " ")
}

func expect(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestSubscriptionSettings(t *testing.T) {
	g := newGateway(t, t.TempDir())
	filter := &ordergatev1.OrderEventFilter{Livemode: new(true), ShipToCountries: []string{"DE"}, Metadata: map[string]string{"warehouse": "berlin"}}
	created := g.subscribe(t, &ordergatev1.Subscription{Name: "shipping", Filter: filter, AckDeadline: durationpb.New(time.Minute)})
	want := &ordergatev1.Subscription{
		Name: "shipping", Filter: filter, AckDeadline: durationpb.New(time.Minute), MaxAttempts: 20,
		MinBackoff: durationpb.New(time.Second), MaxBackoff: durationpb.New(10 * time.Minute),
		Delivery:         ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT,
		DeadLetterPolicy: ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_BLOCK, CreateTime: created.GetCreateTime(), Stats: &ordergatev1.SubscriptionStats{},
	}
	if diff := cmp.Diff(want, created, protocmp.Transform()); diff != "" || time.Since(created.GetCreateTime().AsTime()) > time.Minute {
		t.Errorf("created (-want +got):\n%s", diff)
	}
	_, err := g.work.CreateSubscription(deadline(t), &ordergatev1.CreateSubscriptionRequest{Subscription: &ordergatev1.Subscription{Name: "shipping"}})
	expectProblem(t, err, problem{Code: codes.AlreadyExists, Reason: "SUBSCRIPTION_EXISTS"})

	updated, err := g.work.UpdateSubscription(deadline(t), &ordergatev1.UpdateSubscriptionRequest{
		Subscription: &ordergatev1.Subscription{Name: "shipping", MaxAttempts: 3},
	})
	if err != nil || updated.GetSubscription().GetMaxAttempts() != 3 || updated.GetSubscription().GetFilter() == nil {
		t.Errorf("update of what is set: %v, %v", updated, err)
	}
	updated, err = g.work.UpdateSubscription(deadline(t), &ordergatev1.UpdateSubscriptionRequest{
		Subscription: &ordergatev1.Subscription{Name: "shipping"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"filter", "max_attempts", "delivery"}},
	})
	if err != nil || updated.GetSubscription().GetDelivery() != ordergatev1.DeliveryMode_DELIVERY_MODE_LATEST || updated.GetSubscription().GetMaxAttempts() != 20 || updated.GetSubscription().GetFilter() != nil || updated.GetSubscription().GetAckDeadline().AsDuration() != time.Minute {
		t.Errorf("update by mask: %v, %v", updated, err)
	}
	_, err = g.work.UpdateSubscription(deadline(t), &ordergatev1.UpdateSubscriptionRequest{
		Subscription: &ordergatev1.Subscription{Name: "shipping"}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
	})
	expectProblem(t, err, problem{Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: "update_mask"})

	for _, name := range []string{"a", "b", "c"} {
		g.subscribe(t, &ordergatev1.Subscription{Name: name})
	}
	var names []string
	for token := ""; ; {
		page, err := g.work.ListSubscriptions(deadline(t), &ordergatev1.ListSubscriptionsRequest{PageSize: 3, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page.GetSubscriptions() {
			names = append(names, s.GetName())
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if want := []string{"a", "b", "c", "shipping"}; !slices.Equal(names, want) {
		t.Errorf("list: %v, want %v", names, want)
	}
	if _, err := g.work.DeleteSubscription(deadline(t), &ordergatev1.DeleteSubscriptionRequest{Subscription: "a"}); err != nil {
		t.Error(err)
	}
	_, err = g.work.GetSubscription(deadline(t), &ordergatev1.GetSubscriptionRequest{Subscription: "a"})
	expectProblem(t, err, problem{Code: codes.NotFound, Reason: "SUBSCRIPTION_NOT_FOUND"})
}

func TestSubscriptionSettingsAreChecked(t *testing.T) {
	g := newGateway(t, t.TempDir())
	long := durationpb.New(48 * time.Hour)
	_, err := g.work.CreateSubscription(deadline(t), &ordergatev1.CreateSubscriptionRequest{Subscription: &ordergatev1.Subscription{
		Name: "No good", Filter: &ordergatev1.OrderEventFilter{ShipToCountries: []string{"Germany"}}, AckDeadline: long, MaxAttempts: 5000,
		MinBackoff: long, MaxBackoff: durationpb.New(time.Second), DeadLetterPolicy: 9,
	}})
	var fields []string
	for _, detail := range status.Convert(err).Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			for _, v := range bad.GetFieldViolations() {
				fields = append(fields, strings.TrimPrefix(v.GetField(), "subscription."))
			}
		}
	}
	want := []string{"name", "filter.ship_to_countries", "ack_deadline", "max_attempts", "min_backoff", "max_backoff", "dead_letter_policy"}
	if !slices.Equal(fields, want) {
		t.Errorf("violations of %v, want %v; %v", fields, want, err)
	}

	g.subscribe(t, &ordergatev1.Subscription{Name: "s"})
	invalid := func(field string) problem {
		return problem{Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: field}
	}
	tests := map[string]struct {
		call func(ctx context.Context) error
		want problem
	}{
		"no name": {func(ctx context.Context) error {
			_, err := g.work.GetSubscription(ctx, &ordergatev1.GetSubscriptionRequest{})
			return err
		}, invalid("subscription")},
		"seek nowhere": {func(ctx context.Context) error {
			_, err := g.work.SeekSubscription(ctx, &ordergatev1.SeekSubscriptionRequest{Subscription: "s"})
			return err
		}, invalid("position")},
		"seek to a bad token": {func(ctx context.Context) error {
			_, err := g.work.SeekSubscription(ctx, &ordergatev1.SeekSubscriptionRequest{Subscription: "s", Position: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_ResumeToken{ResumeToken: "x"}}})
			return err
		}, problem{Code: codes.InvalidArgument, Reason: "RESUME_TOKEN_INVALID", Field: "resume_token"}},
		"bad page token": {func(ctx context.Context) error {
			_, err := g.work.ListSubscriptions(ctx, &ordergatev1.ListSubscriptionsRequest{PageToken: "%"})
			return err
		}, problem{Code: codes.InvalidArgument, Reason: "PAGE_TOKEN_INVALID", Field: "page_token"}},
		"pull too many": {func(ctx context.Context) error {
			_, err := g.work.Pull(ctx, &ordergatev1.PullRequest{Subscription: "s", MaxEvents: 1001})
			return err
		}, invalid("max_events")},
		"pull for too long": {func(ctx context.Context) error {
			_, err := g.work.Pull(ctx, &ordergatev1.PullRequest{Subscription: "s", Wait: long})
			return err
		}, invalid("wait")},
		"acknowledge nothing": {func(ctx context.Context) error {
			_, err := g.work.Acknowledge(ctx, &ordergatev1.AcknowledgeRequest{Subscription: "s"})
			return err
		}, invalid("delivery_ids")},
		"acknowledge too much": {func(ctx context.Context) error {
			_, err := g.work.Acknowledge(ctx, &ordergatev1.AcknowledgeRequest{Subscription: "s", DeliveryIds: make([]string, 1001)})
			return err
		}, invalid("delivery_ids")},
		"a delay of days": {func(ctx context.Context) error {
			_, err := g.work.Acknowledge(ctx, &ordergatev1.AcknowledgeRequest{Subscription: "s", Nacks: []*ordergatev1.Nack{{DeliveryId: "x", Delay: long}}})
			return err
		}, invalid("nacks.delay")},
		"redrive nothing": {func(ctx context.Context) error {
			_, err := g.work.RedriveDeadLetters(ctx, &ordergatev1.RedriveDeadLettersRequest{Subscription: "s"})
			return err
		}, invalid("event_ids")},
		"discard everything and something": {func(ctx context.Context) error {
			_, err := g.work.DiscardDeadLetters(ctx, &ordergatev1.DiscardDeadLettersRequest{Subscription: "s", All: true, EventIds: []string{"x"}})
			return err
		}, invalid("event_ids")},
		"redrive what is none": {func(ctx context.Context) error {
			_, err := g.work.RedriveDeadLetters(ctx, &ordergatev1.RedriveDeadLettersRequest{Subscription: "s", EventIds: []string{"cs_1.1"}})
			return err
		}, problem{Code: codes.NotFound, Reason: "DEAD_LETTER_NOT_FOUND"}},
		"pull from nothing": {func(ctx context.Context) error {
			_, err := g.work.Pull(ctx, &ordergatev1.PullRequest{Subscription: "unknown"})
			return err
		}, problem{Code: codes.NotFound, Reason: "SUBSCRIPTION_NOT_FOUND"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { expectProblem(t, test.call(deadline(t)), test.want) })
	}
}

func TestPullAndAcknowledge(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.subscribe(t, &ordergatev1.Subscription{Name: "s"})
	// That there is nothing is known at once, not when pullPatience is over.
	soon, cancel := context.WithTimeout(deadline(t), pullPatience*3/4)
	defer cancel()
	if nothing, err := g.work.Pull(soon, &ordergatev1.PullRequest{Subscription: "s"}); err != nil || len(nothing.GetDeliveries()) > 0 {
		t.Errorf("an empty log: %v, %v", nothing, err)
	}
	g.store(t, change{order: "cs_1", revision: 1}, change{order: "cs_1", revision: 2}, change{order: "cs_2", revision: 1})
	first, got := g.pull(t, &ordergatev1.PullRequest{Subscription: "s", ClientId: "curl"})
	expect(t, "first", got, "cs_1.1, cs_2.1")
	if d := first[0]; d.GetEvent().GetSequence() == 0 || time.Until(d.GetLeaseExpireTime().AsTime()) < 20*time.Second {
		t.Errorf("delivery %v", d)
	}
	if s := g.stats(t, "s"); s.GetPendingOrders() != 2 || s.GetBacklog() != 0 || s.GetOldestUnackedTime() == nil || len(s.GetClients()) != 1 ||
		s.GetClients()[0].GetClientId() != "curl" || s.GetClients()[0].GetOutstandingEvents() != 2 || s.GetClients()[0].GetOutstandingBytes() == 0 {
		t.Errorf("figures %v", s)
	}
	expect(t, "results", g.settle(t, "s", first[:1], &ordergatev1.Nack{DeliveryId: "garbage"}), "OK UNKNOWN")
	expect(t, "the same again", g.settle(t, "s", first[:1]), "OK")
	second, got := g.pull(t, &ordergatev1.PullRequest{Subscription: "s"})
	expect(t, "second", got, "cs_1.2")

	extended, err := g.work.ModifyAckDeadline(deadline(t), &ordergatev1.ModifyAckDeadlineRequest{Subscription: "s", DeliveryIds: []string{second[0].GetDeliveryId()}, AckDeadline: durationpb.New(10 * time.Minute)})
	if err != nil || codesOf(extended.GetResults()) != "OK" || time.Until(extended.GetResults()[0].GetLeaseExpireTime().AsTime()) < 9*time.Minute {
		t.Errorf("extension: %v, %v", extended, err)
	}
	givenBack, err := g.work.ModifyAckDeadline(deadline(t), &ordergatev1.ModifyAckDeadlineRequest{Subscription: "s", DeliveryIds: []string{second[0].GetDeliveryId()}, AckDeadline: durationpb.New(0)})
	if err != nil || codesOf(givenBack.GetResults()) != "OK" {
		t.Errorf("give back: %v, %v", givenBack, err)
	}
	again, got := g.pull(t, &ordergatev1.PullRequest{Subscription: "s"})
	expect(t, "given back", got, "cs_1.2 attempt 2")
	expect(t, "results", g.settle(t, "s", second), "STALE_ATTEMPT")
	expect(t, "results", g.settle(t, "s", append(again, first[1])), "OK OK")
	if s := g.stats(t, "s"); s.GetPendingOrders() != 0 || s.GetOldestUnackedTime() != nil || len(s.GetClients()) != 0 {
		t.Errorf("figures when all is done: %v", s)
	}
}

func TestPullWaitsForTheFirstEvent(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.subscribe(t, &ordergatev1.Subscription{Name: "s"})
	pulled := make(chan string)
	go func() {
		response, err := g.work.Pull(deadline(t), &ordergatev1.PullRequest{Subscription: "s", Wait: durationpb.New(20 * time.Second), ClientId: "waits"})
		if err != nil {
			pulled <- err.Error()
		}
		pulled <- inShort(response.GetDeliveries()...)
	}()
	for len(g.stats(t, "s").GetClients()) == 0 { // until it waits
	}
	g.store(t, change{order: "cs_1", revision: 1})
	expect(t, "pulled", <-pulled, "cs_1.1")
}

func TestSubscriptionFilter(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.subscribe(t, &ordergatev1.Subscription{Name: "s", Filter: &ordergatev1.OrderEventFilter{ShipToCountries: []string{"DE"}, Livemode: new(true)}})
	g.store(t, change{order: "cs_1", revision: 1, country: "FR"}, change{order: "cs_2", revision: 1, country: "DE"},
		change{order: "cs_2", revision: 2, country: "FR"}, change{order: "cs_2", revision: 3, country: "DE"}, change{order: "cs_3", revision: 1, country: "DE", test: true})
	first, got := g.pull(t, &ordergatev1.PullRequest{Subscription: "s"})
	expect(t, "first", got, "cs_2.1")
	g.settle(t, "s", first)
	_, got = g.pull(t, &ordergatev1.PullRequest{Subscription: "s"})
	expect(t, "then", got, "cs_2.3")

	g.subscribe(t, &ordergatev1.Subscription{Name: "by-metadata", Filter: &ordergatev1.OrderEventFilter{Metadata: map[string]string{"shop": "b", "size": ""}}})
	for i, metadata := range []map[string]string{{"shop": "a", "size": ""}, {"shop": "b"}, {"shop": "b", "size": "", "more": "x"}} {
		order := &ordergatev1.Order{Id: fmt.Sprintf("cs_m%d", i), Revision: 1, Metadata: metadata}
		if _, err := g.log.AppendOrder(deadline(t), &ordergatev1.OrderEvent{Id: order.Id + ".1", Order: order}, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.log.Flush(deadline(t)); err != nil {
		t.Fatal(err)
	}
	_, got = g.pull(t, &ordergatev1.PullRequest{Subscription: "by-metadata"})
	expect(t, "by metadata", got, "cs_m2.1")
}

func TestSubscriptionStartsAndSeeks(t *testing.T) {
	g := newGateway(t, t.TempDir())
	watch := g.watch(t, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_FromBeginning{FromBeginning: true}})
	watch.expect("caught up")
	g.store(t, change{order: "cs_1", revision: 1})
	watch.expect("cs_1.1")
	token := watch.token
	g.store(t, change{order: "cs_2", revision: 1})
	record, err := g.log.NewestOrder(deadline(t), "cs_2")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		position *ordergatev1.SubscriptionPosition
		want     string
	}{
		"default":   {nil, "cs_3.1"},
		"end":       {&ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_End{End: true}}, "cs_3.1"},
		"beginning": {fromBeginning, "cs_1.1, cs_2.1, cs_3.1"},
		"time":      {&ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Time{Time: timestamppb.New(record.Time)}}, "cs_2.1, cs_3.1"},
		"token":     {&ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_ResumeToken{ResumeToken: token}}, "cs_2.1, cs_3.1"},
	} {
		if _, err := g.work.CreateSubscription(deadline(t), &ordergatev1.CreateSubscriptionRequest{Subscription: &ordergatev1.Subscription{Name: "from-" + name}, Start: test.position}); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_, got := g.pull(t, &ordergatev1.PullRequest{Subscription: "from-" + name})
			expect(t, name, got, test.want)
		}()
	}
	g.subscribe(t, &ordergatev1.Subscription{Name: "s"})
	out, _ := g.pull(t, &ordergatev1.PullRequest{Subscription: "s"})
	expect(t, "ack", g.settle(t, "s", out[:1]), "OK")
	if _, err := g.work.SeekSubscription(deadline(t), &ordergatev1.SeekSubscriptionRequest{Subscription: "s", Position: fromBeginning}); err != nil {
		t.Fatal(err)
	}
	expect(t, "ack of what was out", g.settle(t, "s", out[1:]), "UNKNOWN")
	_, got := g.pull(t, &ordergatev1.PullRequest{Subscription: "s"})
	expect(t, "after the seek", got, "cs_1.1, cs_2.1")
	g.store(t, change{order: "cs_3", revision: 1})
}

func TestDeadLettersOverTheAPI(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.subscribe(t, &ordergatev1.Subscription{Name: "s", MaxAttempts: 1})
	for _, order := range []string{"cs_1", "cs_2", "cs_3"} {
		g.store(t, change{order: order, revision: 1}, change{order: order, revision: 2})
	}
	out, _ := g.pull(t, &ordergatev1.PullRequest{Subscription: "s"})
	expect(t, "results", g.settle(t, "s", nil,
		&ordergatev1.Nack{DeliveryId: out[0].GetDeliveryId(), Action: ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER, Reason: "no such size"},
		&ordergatev1.Nack{DeliveryId: out[1].GetDeliveryId(), Reason: "the printer is out of paper"},
		&ordergatev1.Nack{DeliveryId: out[2].GetDeliveryId(), Action: ordergatev1.NackAction_NACK_ACTION_SKIP}), "OK OK OK")
	var letters []*ordergatev1.DeadLetter
	for token := ""; ; {
		page, err := g.work.ListDeadLetters(deadline(t), &ordergatev1.ListDeadLettersRequest{Subscription: "s", PageSize: 1, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		letters = append(letters, page.GetDeadLetters()...)
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	want := []*ordergatev1.DeadLetter{
		{EventId: "cs_1.1", OrderId: "cs_1", Sequence: 1, Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID, Reason: ordergatev1.DeadLetterReason_DEAD_LETTER_REASON_SUBSCRIBER_REJECTED, Detail: "no such size", Attempts: 1, BlocksOrder: true},
		{EventId: "cs_2.1", OrderId: "cs_2", Sequence: 3, Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID, Reason: ordergatev1.DeadLetterReason_DEAD_LETTER_REASON_ATTEMPTS_EXHAUSTED, Detail: "the printer is out of paper", Attempts: 1, BlocksOrder: true},
	}
	if diff := cmp.Diff(want, letters, protocmp.Transform(), protocmp.IgnoreFields(&ordergatev1.DeadLetter{}, "dead_letter_time")); diff != "" {
		t.Errorf("dead letters (-want +got):\n%s", diff)
	}
	third, got := g.pull(t, &ordergatev1.PullRequest{Subscription: "s"})
	expect(t, "what is not blocked", got, "cs_3.2")
	g.settle(t, "s", third)
	redriven, err := g.work.RedriveDeadLetters(deadline(t), &ordergatev1.RedriveDeadLettersRequest{Subscription: "s", EventIds: []string{"cs_1.1"}})
	if err != nil || redriven.GetRedriven() != 1 {
		t.Errorf("redrive: %v, %v", redriven, err)
	}
	discarded, err := g.work.DiscardDeadLetters(deadline(t), &ordergatev1.DiscardDeadLettersRequest{Subscription: "s", All: true})
	if err != nil || discarded.GetDiscarded() != 1 {
		t.Errorf("discard: %v, %v", discarded, err)
	}
	var all []string
	for range 3 {
		out, got := g.pull(t, &ordergatev1.PullRequest{Subscription: "s", MaxEvents: 1, Wait: durationpb.New(5 * time.Second)})
		all = append(all, got)
		g.settle(t, "s", out)
	}
	slices.Sort(all)
	if want := []string{"cs_1.1 redriven", "cs_1.2", "cs_2.2"}; !slices.Equal(all, want) {
		t.Errorf("afterwards %v, want %v", all, want)
	}
	if s := g.stats(t, "s"); s.GetDeadLetters() != 0 || s.GetPendingOrders() != 0 {
		t.Errorf("figures %v", s)
	}
}

// worker is an open stream of Consume.
type worker struct {
	t *testing.T
	grpc.BidiStreamingClient[ordergatev1.ConsumeRequest, ordergatev1.ConsumeResponse]
	cancel context.CancelFunc
	opened *ordergatev1.ConsumeOpened
}

func (g *gateway) consume(t *testing.T, open *ordergatev1.ConsumeOpen) *worker {
	t.Helper()
	ctx, cancel := context.WithCancel(deadline(t))
	s, err := g.work.Consume(ctx)
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{t, s, cancel, nil}
	w.say(&ordergatev1.ConsumeRequest{Open: open})
	w.opened = w.next().GetOpened()
	if w.opened == nil {
		t.Fatal("the first message is not opened")
	}
	return w
}

func (w *worker) say(request *ordergatev1.ConsumeRequest) {
	w.t.Helper()
	if err := w.Send(request); err != nil {
		w.t.Fatal(err)
	}
}

func (w *worker) next() *ordergatev1.ConsumeResponse {
	w.t.Helper()
	response, err := w.Recv()
	if err != nil {
		w.t.Fatal(err)
	}
	return response
}

// delivery expects a delivery.
func (w *worker) delivery(want string) *ordergatev1.Delivery {
	w.t.Helper()
	d := w.next().GetDelivery()
	expect(w.t, "delivery", inShort(d), want)
	return d
}

// ack acknowledges and expects a result.
func (w *worker) ack(d *ordergatev1.Delivery, want string) {
	w.t.Helper()
	w.say(&ordergatev1.ConsumeRequest{Acks: []string{d.GetDeliveryId()}})
	w.results(want)
}

func (w *worker) results(want string) {
	w.t.Helper()
	expect(w.t, "results", codesOf(w.next().GetResults().GetResults()), want)
}

// resultsAndDelivery expects both, in any order: the next delivery need not wait
// until the results are stored.
func (w *worker) resultsAndDelivery(want string) (delivery *ordergatev1.Delivery) {
	w.t.Helper()
	var results []*ordergatev1.DeliveryResult
	for delivery == nil || results == nil {
		response := w.next()
		results = append(results, response.GetResults().GetResults()...)
		if response.GetDelivery() != nil {
			delivery = response.GetDelivery()
		}
	}
	expect(w.t, "results", codesOf(results), want)
	return delivery
}

// ends expects the stream to end.
func (w *worker) ends(want problem) {
	w.t.Helper()
	response, err := w.Recv()
	if want.Code == codes.OK && errors.Is(err, io.EOF) {
		return
	}
	if err == nil {
		w.t.Fatalf("the stream goes on with %v", response)
	}
	expectProblem(w.t, err, want)
}

func TestConsume(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.store(t, change{order: "cs_1", revision: 1})
	w := g.consume(t, &ordergatev1.ConsumeOpen{Subscription: "s", ClientId: "w", Create: &ordergatev1.Subscription{MaxAttempts: 7}, Start: fromBeginning, MaxOutstandingEvents: 1})
	if !w.opened.GetCreated() || w.opened.GetSubscription().GetMaxAttempts() != 7 || w.opened.GetAckDeadline().AsDuration() != 30*time.Second {
		t.Errorf("opened %v", w.opened)
	}
	first := w.delivery("cs_1.1")
	g.store(t, change{order: "cs_2", revision: 1}, change{order: "cs_1", revision: 2})
	w.say(&ordergatev1.ConsumeRequest{Ping: true})
	if w.next().GetHeartbeat() == nil { // nothing beyond the window came before
		t.Error("a ping is not answered by a heartbeat")
	}
	w.say(&ordergatev1.ConsumeRequest{Extensions: []*ordergatev1.Extension{{DeliveryId: first.GetDeliveryId(), AckDeadline: durationpb.New(5 * time.Minute)}}})
	if r := w.next().GetResults().GetResults(); codesOf(r) != "OK" || time.Until(r[0].GetLeaseExpireTime().AsTime()) < 4*time.Minute {
		t.Errorf("extension: %v", r)
	}
	w.say(&ordergatev1.ConsumeRequest{Acks: []string{first.GetDeliveryId(), "garbage"}, Nacks: []*ordergatev1.Nack{{DeliveryId: first.GetDeliveryId()}}})
	second := w.resultsAndDelivery("OK UNKNOWN EXPIRED")
	expect(t, "second", inShort(second), "cs_2.1")
	other := g.consume(t, &ordergatev1.ConsumeOpen{Subscription: "s", AckDeadline: durationpb.New(time.Second), Create: &ordergatev1.Subscription{Name: "s", MaxAttempts: 9}})
	if other.opened.GetCreated() || other.opened.GetSubscription().GetMaxAttempts() != 7 || other.opened.GetAckDeadline().AsDuration() != time.Second {
		t.Errorf("opened %v", other.opened)
	}
	other.delivery("cs_1.2")
	// It breaks: its event goes back at once, and w is full until it acks.
	other.cancel()
	w.say(&ordergatev1.ConsumeRequest{Acks: []string{second.GetDeliveryId()}})
	expect(t, "what the other had", inShort(w.resultsAndDelivery("OK")), "cs_1.2 attempt 2")
	if s := g.stats(t, "s"); len(s.GetClients()) != 1 || s.GetClients()[0].GetStreams() != 1 {
		t.Errorf("figures %v", s)
	}
}

func TestConsumeDrains(t *testing.T) {
	for _, how := range []string{"half-close", "stop"} {
		t.Run(how, func(t *testing.T) {
			g := newGateway(t, t.TempDir())
			g.subscribe(t, &ordergatev1.Subscription{Name: "s"})
			g.store(t, change{order: "cs_1", revision: 1}, change{order: "cs_1", revision: 2})
			w := g.consume(t, &ordergatev1.ConsumeOpen{Subscription: "s"})
			d := w.delivery("cs_1.1")
			if how == "stop" {
				w.say(&ordergatev1.ConsumeRequest{Stop: true})
				w.ack(d, "OK")
			} else {
				if err := w.CloseSend(); err != nil {
					t.Fatal(err)
				}
				expect(t, "results", g.settle(t, "s", []*ordergatev1.Delivery{d}), "OK")
			}
			w.ends(problem{})
			_, got := g.pull(t, &ordergatev1.PullRequest{Subscription: "s"})
			expect(t, "the next event", got, "cs_1.2")
		})
	}
}

func TestShutdownDrainsWorkers(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.subscribe(t, &ordergatev1.Subscription{Name: "s"})
	g.store(t, change{order: "cs_1", revision: 1}, change{order: "cs_1", revision: 2})
	w := g.consume(t, &ordergatev1.ConsumeOpen{Subscription: "s"})
	idle := g.consume(t, &ordergatev1.ConsumeOpen{Subscription: "s"})
	d := w.delivery("cs_1.1")
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		g.server.Shutdown(ctx)
	}()
	for _, each := range []*worker{w, idle} {
		draining := each.next().GetDraining()
		if left := time.Until(draining.GetEndTime().AsTime()); left < 10*time.Second || left > 20*time.Second {
			t.Errorf("draining until %v from now", left)
		}
	}
	gone := problem{Code: codes.Unavailable, Reason: "SHUTTING_DOWN", Retry: true}
	idle.ends(gone)
	w.ack(d, "OK")
	w.ends(gone)
	<-stopped
}

// A stream on an old connection is drained, and its worker told to come back.
func TestOldConnectionsAreRenewed(t *testing.T) {
	age := drainAge
	drainAge = 50 * time.Millisecond
	t.Cleanup(func() { drainAge = age })
	g := newGateway(t, t.TempDir())
	g.subscribe(t, &ordergatev1.Subscription{Name: "s"})
	g.store(t, change{order: "cs_1", revision: 1})
	w := g.consume(t, &ordergatev1.ConsumeOpen{Subscription: "s"})
	var delivery *ordergatev1.Delivery
	for {
		response := w.next()
		if draining := response.GetDraining(); draining != nil {
			if left := time.Until(draining.GetEndTime().AsTime()); left < drainTime/2 || left > drainTime {
				t.Errorf("draining until %v from now", left)
			}
			break
		}
		delivery = response.GetDelivery()
	}
	if delivery != nil { // it may be too late for one
		w.ack(delivery, "OK")
	}
	w.ends(problem{Code: codes.Unavailable, Reason: "SHUTTING_DOWN"})
}

func TestShutdownDoesNotWaitForStuckWorkers(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.subscribe(t, &ordergatev1.Subscription{Name: "s"})
	g.store(t, change{order: "cs_1", revision: 1})
	w := g.consume(t, &ordergatev1.ConsumeOpen{Subscription: "s"})
	w.delivery("cs_1.1")
	ctx, cancel := context.WithTimeout(context.Background(), drainMargin+500*time.Millisecond)
	defer cancel()
	g.server.Shutdown(ctx)
	if ctx.Err() != nil {
		t.Error("the shutdown took all of its time")
	}
	if w.next().GetDraining() == nil {
		t.Error("no word of draining")
	}
	w.ends(problem{Code: codes.Unavailable, Reason: "SHUTTING_DOWN", Retry: true})
}

func TestConsumeHeartbeats(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.subscribe(t, &ordergatev1.Subscription{Name: "s"})
	w := g.consume(t, &ordergatev1.ConsumeOpen{Subscription: "s", HeartbeatInterval: durationpb.New(time.Second)})
	for range 2 {
		if w.next().GetHeartbeat() == nil {
			t.Error("no heartbeat")
		}
	}
}

func TestConsumeErrors(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.subscribe(t, &ordergatev1.Subscription{Name: "s"})
	invalid := func(field string) problem {
		return problem{Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: field}
	}
	for name, test := range map[string]struct {
		requests []*ordergatev1.ConsumeRequest
		want     problem
	}{
		"not opened":     {[]*ordergatev1.ConsumeRequest{{Ping: true}}, invalid("open")},
		"half-closed":    {nil, invalid("open")},
		"no name":        {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{}}}, invalid("subscription")},
		"unknown":        {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{Subscription: "unknown"}}}, problem{Code: codes.NotFound, Reason: "SUBSCRIPTION_NOT_FOUND"}},
		"another's name": {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{Subscription: "t", Create: &ordergatev1.Subscription{Name: "u"}}}}, invalid("open.create.name")},
		"bad settings":   {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{Subscription: "t", Create: &ordergatev1.Subscription{MaxAttempts: -1}}}}, invalid("subscription.max_attempts")},
		"window":         {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{Subscription: "s", MaxOutstandingEvents: 10_001}}}, invalid("open.max_outstanding_events")},
		"bytes":          {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{Subscription: "s", MaxOutstandingBytes: -1}}}, invalid("open.max_outstanding_bytes")},
		"client id":      {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{Subscription: "s", ClientId: "\n"}}}, invalid("open.client_id")},
		"ack deadline":   {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{Subscription: "s", AckDeadline: durationpb.New(time.Hour)}}}, invalid("open.ack_deadline")},
		"heartbeat":      {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{Subscription: "s", HeartbeatInterval: durationpb.New(time.Millisecond)}}}, invalid("open.heartbeat_interval")},
		"opened twice":   {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{Subscription: "s"}}, {Open: &ordergatev1.ConsumeOpen{Subscription: "s"}}}, invalid("open")},
		"too many":       {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{Subscription: "s"}}, {Acks: make([]string, 1001)}}, invalid("acks")},
		"bad nack":       {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{Subscription: "s"}}, {Nacks: []*ordergatev1.Nack{{Action: 9}}}}, invalid("nacks.action")},
		"bad extension":  {[]*ordergatev1.ConsumeRequest{{Open: &ordergatev1.ConsumeOpen{Subscription: "s"}}, {Extensions: []*ordergatev1.Extension{{AckDeadline: durationpb.New(time.Hour)}}}}, invalid("extensions.ack_deadline")},
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := g.work.Consume(deadline(t))
			if err != nil {
				t.Fatal(err)
			}
			for _, request := range test.requests {
				if err := stream.Send(request); err != nil {
					break
				}
			}
			if len(test.requests) == 0 {
				stream.CloseSend()
			}
			for err == nil {
				_, err = stream.Recv()
			}
			expectProblem(t, err, test.want)
		})
	}
	if s := g.stats(t, "s"); len(s.GetClients()) != 0 {
		t.Errorf("workers are left: %v", s)
	}
}

func TestDeletedSubscriptionEndsItsStreams(t *testing.T) {
	g := newGateway(t, t.TempDir())
	g.subscribe(t, &ordergatev1.Subscription{Name: "s"})
	g.store(t, change{order: "cs_1", revision: 1})
	w := g.consume(t, &ordergatev1.ConsumeOpen{Subscription: "s"})
	w.delivery("cs_1.1")
	if _, err := g.work.DeleteSubscription(deadline(t), &ordergatev1.DeleteSubscriptionRequest{Subscription: "s"}); err != nil {
		t.Fatal(err)
	}
	w.ends(problem{Code: codes.NotFound, Reason: "SUBSCRIPTION_NOT_FOUND"})
	g.subscribe(t, &ordergatev1.Subscription{Name: "s"})
	_, got := g.pull(t, &ordergatev1.PullRequest{Subscription: "s"})
	expect(t, "a new one of the same name", got, "cs_1.1")
}

// What was settled is settled, and what was out comes again, after a restart.
func TestSubscriptionOutlivesARestart(t *testing.T) {
	dir := t.TempDir()
	var acked, nacked, out *ordergatev1.Delivery
	t.Run("before", func(t *testing.T) {
		g := newGateway(t, dir)
		g.subscribe(t, &ordergatev1.Subscription{Name: "s", MaxAttempts: 5})
		g.store(t, change{order: "cs_1", revision: 1}, change{order: "cs_2", revision: 1}, change{order: "cs_3", revision: 1}, change{order: "cs_4", revision: 1}, change{order: "cs_1", revision: 2})
		all, _ := g.pull(t, &ordergatev1.PullRequest{Subscription: "s"})
		acked, nacked, out = all[0], all[1], all[2]
		expect(t, "results", g.settle(t, "s", all[:1], &ordergatev1.Nack{DeliveryId: nacked.GetDeliveryId(), Delay: durationpb.New(time.Hour)},
			&ordergatev1.Nack{DeliveryId: all[3].GetDeliveryId(), Action: ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER}), "OK OK OK")
	})
	t.Run("after", func(t *testing.T) {
		g := newGateway(t, dir)
		expect(t, "an ack from before", g.settle(t, "s", []*ordergatev1.Delivery{out}), "OK")
		expect(t, "the same ack again", g.settle(t, "s", []*ordergatev1.Delivery{acked}), "OK")
		_, got := g.pull(t, &ordergatev1.PullRequest{Subscription: "s"})
		expect(t, "what is left", got, "cs_1.2")
		s := g.stats(t, "s")
		if s.GetDeadLetters() != 1 || s.GetPendingOrders() != 2 {
			t.Errorf("figures %v", s)
		}
		settings, err := g.work.GetSubscription(deadline(t), &ordergatev1.GetSubscriptionRequest{Subscription: "s"})
		if err != nil || settings.GetSubscription().GetMaxAttempts() != 5 {
			t.Errorf("settings %v, %v", settings, err)
		}
	})
}

func TestLatestDeliveries(t *testing.T) {
	const (
		hold   = ordergatev1.Directive_DIRECTIVE_HOLD
		cancel = ordergatev1.Directive_DIRECTIVE_CANCEL
		refund = ordergatev1.OrderEventKind_ORDER_EVENT_KIND_REFUNDED
	)
	g := newGateway(t, t.TempDir())
	g.store(t, change{order: "cs_1", revision: 1}, change{order: "cs_1", revision: 2, directive: hold}, change{order: "cs_2", revision: 1},
		change{order: "cs_1", revision: 3, kind: refund, directive: cancel})
	g.subscribe(t, &ordergatev1.Subscription{Name: "latest", Delivery: ordergatev1.DeliveryMode_DELIVERY_MODE_LATEST})
	g.subscribe(t, &ordergatev1.Subscription{Name: "every"})
	g.subscribe(t, &ordergatev1.Subscription{Name: "ship", Delivery: ordergatev1.DeliveryMode_DELIVERY_MODE_LATEST,
		Filter: &ordergatev1.OrderEventFilter{Directives: []ordergatev1.Directive{ordergatev1.Directive_DIRECTIVE_SHIP}}})

	got, short := g.pull(t, &ordergatev1.PullRequest{Subscription: "latest"})
	expect(t, "latest", short, "cs_1.3, cs_2.1")
	if d := got[0]; !slices.Equal(d.GetReplacedRevisions(), []int64{1, 2}) || d.GetLatestRevision() != 3 || d.GetLatestDirective() != cancel {
		t.Errorf("delivery %v", d)
	}
	expect(t, "results", g.settle(t, "latest", got), "OK OK")
	if s := g.stats(t, "latest"); s.GetPendingOrders() != 0 {
		t.Errorf("figures when all is done: %v", s)
	}

	got, short = g.pull(t, &ordergatev1.PullRequest{Subscription: "every"})
	expect(t, "every event", short, "cs_1.1, cs_2.1")
	if d := got[0]; len(d.GetReplacedRevisions()) > 0 || d.GetLatestRevision() != 3 || d.GetLatestDirective() != cancel {
		t.Errorf("delivery %v", d)
	}

	_, short = g.pull(t, &ordergatev1.PullRequest{Subscription: "ship"})
	expect(t, "only SHIP", short, "cs_2.1")

	// A stream is as current as a Pull.
	g.store(t, change{order: "cs_3", revision: 1}, change{order: "cs_3", revision: 2, directive: hold})
	stream, err := g.work.Consume(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{Subscription: "latest"}}); err != nil {
		t.Fatal(err)
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if d := response.GetDelivery(); d != nil {
			if inShort(d) != "cs_3.2" || d.GetLatestRevision() != 2 || d.GetLatestDirective() != hold || !slices.Equal(d.GetReplacedRevisions(), []int64{1}) {
				t.Errorf("delivery %v", d)
			}
			break
		}
	}
}

func TestFilterWarnings(t *testing.T) {
	kinds := func(names ...string) *ordergatev1.OrderEventFilter {
		filter := &ordergatev1.OrderEventFilter{}
		for _, name := range names {
			filter.Kinds = append(filter.Kinds, ordergatev1.OrderEventKind(ordergatev1.OrderEventKind_value["ORDER_EVENT_KIND_"+name]))
		}
		return filter
	}
	directives := func(names ...string) *ordergatev1.OrderEventFilter {
		filter := &ordergatev1.OrderEventFilter{}
		for _, name := range names {
			filter.Directives = append(filter.Directives, ordergatev1.Directive(ordergatev1.Directive_value["DIRECTIVE_"+name]))
		}
		return filter
	}
	for _, test := range []struct {
		name   string
		filter *ordergatev1.OrderEventFilter
		hidden string // the start of the only warning
	}{
		{"none", nil, ""},
		{"kinds that ship", kinds("PAID"), "filter.kinds leaves out CANCELED, REFUNDED, HELD, RELEASED, UPDATED, ERASED:"},
		{"all but one", kinds("PAID", "CANCELED", "REFUNDED", "HELD", "RELEASED", "UPDATED"), "filter.kinds leaves out ERASED:"},
		{"all that stop", kinds("CANCELED", "REFUNDED", "HELD", "RELEASED", "UPDATED", "ERASED"), ""},
		{"kinds that never ship", kinds("CANCELED", "HELD"), ""},
		{"directives", directives("SHIP"), "filter.directives leaves out HOLD, CANCEL:"},
		{"one directive too few", directives("SHIP", "HOLD"), "filter.directives leaves out CANCEL:"},
		{"all that stop", directives("SHIP", "HOLD", "CANCEL"), ""},
		{"never SHIP", directives("CANCEL"), ""},
		{"changes", &ordergatev1.OrderEventFilter{DirectiveChangedOnly: true}, ""},
	} {
		got := filterWarnings(test.filter)
		if (test.hidden == "") != (len(got) == 0) || len(got) > 1 || len(got) == 1 && !strings.HasPrefix(got[0], test.hidden) {
			t.Errorf("%s: %q, want %q", test.name, got, test.hidden)
		}
	}

	g := newGateway(t, t.TempDir())
	created, err := g.work.CreateSubscription(deadline(t), &ordergatev1.CreateSubscriptionRequest{Subscription: &ordergatev1.Subscription{Name: "s", Filter: kinds("PAID")}})
	if err != nil || len(created.GetWarnings()) != 1 || created.GetSubscription().GetDelivery() != ordergatev1.DeliveryMode_DELIVERY_MODE_LATEST {
		t.Errorf("created: %v, %v", created, err)
	}
	updated, err := g.work.UpdateSubscription(deadline(t), &ordergatev1.UpdateSubscriptionRequest{Subscription: &ordergatev1.Subscription{Name: "s", Filter: directives("SHIP")}})
	if err != nil || len(updated.GetWarnings()) != 1 {
		t.Errorf("updated: %v, %v", updated, err)
	}
}
