//go:build unix

package peers_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/grpcapi"
	"github.com/ordergate/ordergate/internal/natscluster"
	"github.com/ordergate/ordergate/internal/natsconn"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/peers"
	"github.com/ordergate/ordergate/internal/pipeline"
	"github.com/ordergate/ordergate/internal/subscription"
)

// gateway is one of those that share a log.
type gateway struct {
	t             testing.TB
	log           *eventlog.Log
	subscriptions *subscription.Manager
	orders        ordergatev1.OrderServiceClient
	work          ordergatev1.SubscriptionServiceClient
	end           func()
}

func newGateway(t testing.TB, url string) *gateway {
	logger := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	cluster := &eventlog.Cluster{Config: natsconn.Config{URLs: []string{url}}, Replicas: 1}
	log, err := eventlog.Open(deadline(t), eventlog.Config{Cluster: cluster, MaxEventBytes: 1 << 20, InboxMaxAge: 35 * 24 * time.Hour, OrdersMaxAge: 400 * 24 * time.Hour, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{t: t, log: log, subscriptions: subscription.New(log, logger)}
	others := peers.New(cluster.Config, log, logger)
	made := pipeline.New(pipeline.Config{Log: log, Sources: orders.DefaultSources(), Logger: logger, Metrics: prometheus.NewRegistry()})
	api := grpcapi.New(log, made, g.subscriptions, others, grpcapi.Security{Access: auth.Everybody()}, logger)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { api.Serve(listener) })
	serving.Go(func() { others.Run(ctx, api.ServePeers) })
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	g.orders, g.work = ordergatev1.NewOrderServiceClient(conn), ordergatev1.NewSubscriptionServiceClient(conn)
	g.end = sync.OnceFunc(func() {
		conn.Close()
		ending, ended := context.WithTimeout(context.Background(), time.Second)
		defer ended()
		api.Shutdown(ending)
		cancel()
		serving.Wait()
		g.subscriptions.Close()
		log.Close()
	})
	t.Cleanup(g.end)
	return g
}

func deadline(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// store appends a revision of an order.
func (g *gateway) store(id string, revision int64) {
	g.t.Helper()
	previous := uint64(0)
	if record, err := g.log.NewestOrder(deadline(g.t), id); err == nil {
		previous = record.Sequence
	}
	event := &ordergatev1.OrderEvent{
		Id: fmt.Sprintf("%s.%d", id, revision), Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID,
		Order: &ordergatev1.Order{Id: id, Revision: revision, Livemode: new(true)},
	}
	if _, err := g.log.AppendOrder(deadline(g.t), event, previous); err != nil {
		g.t.Fatal(err)
	}
	if err := g.log.Flush(deadline(g.t)); err != nil {
		g.t.Fatal(err)
	}
}

// create makes the subscription "shipping" at a gateway, from the beginning and with every event.
func (g *gateway) create() {
	g.t.Helper()
	_, err := g.work.CreateSubscription(deadline(g.t), &ordergatev1.CreateSubscriptionRequest{
		Subscription: &ordergatev1.Subscription{Name: "shipping", Delivery: ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT},
		Start:        &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}},
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

// worker is a stream of Consume.
type worker struct {
	t      testing.TB
	stream ordergatev1.SubscriptionService_ConsumeClient
	early  []*ordergatev1.Delivery // came before a result
}

func (g *gateway) worker() *worker {
	g.t.Helper()
	stream, err := g.work.Consume(deadline(g.t))
	if err != nil {
		g.t.Fatal(err)
	}
	if err := stream.Send(&ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{Subscription: "shipping", MaxOutstandingEvents: 1}}); err != nil {
		g.t.Fatal(err)
	}
	w := &worker{t: g.t, stream: stream}
	if opened := w.next().GetOpened(); opened.GetSubscription().GetName() != "shipping" {
		g.t.Fatalf("opened %v", opened)
	}
	return w
}

func (w *worker) next() *ordergatev1.ConsumeResponse {
	w.t.Helper()
	for {
		response, err := w.stream.Recv()
		if err != nil {
			w.t.Fatal(err)
		}
		if response.GetHeartbeat() == nil {
			return response
		}
	}
}

// ack acknowledges a delivery, and returns the result.
func (w *worker) ack(delivery *ordergatev1.Delivery) ordergatev1.DeliveryResultCode {
	w.t.Helper()
	if err := w.stream.Send(&ordergatev1.ConsumeRequest{Acks: []string{delivery.GetDeliveryId()}}); err != nil {
		w.t.Fatal(err)
	}
	for {
		response := w.next()
		if results := response.GetResults().GetResults(); len(results) > 0 {
			return results[0].GetCode()
		}
		if early := response.GetDelivery(); early != nil {
			w.early = append(w.early, early)
		}
	}
}

func (w *worker) delivery() *ordergatev1.Delivery {
	w.t.Helper()
	if len(w.early) > 0 {
		first := w.early[0]
		w.early = w.early[1:]
		return first
	}
	for {
		if delivery := w.next().GetDelivery(); delivery != nil {
			return delivery
		}
	}
}

const ok = ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK

// What is asked about a subscription is answered by the gateway that has it, whichever
// was asked, and as if it had been asked itself.
func TestCallsArePassedOn(t *testing.T) {
	url := natscluster.Single(t)
	a, b := newGateway(t, url), newGateway(t, url)
	a.create()
	for i := range 3 {
		a.store(fmt.Sprintf("cs_%d", i), 1)
	}

	got, err := b.work.GetSubscription(deadline(t), &ordergatev1.GetSubscriptionRequest{Subscription: "shipping"})
	if err != nil || got.GetSubscription().GetStats().GetBacklog() != 3 {
		t.Fatal(got, err)
	}
	if _, err := b.work.CreateSubscription(deadline(t), &ordergatev1.CreateSubscriptionRequest{Subscription: &ordergatev1.Subscription{Name: "shipping"}}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("made twice: %v", err)
	}
	updated, err := b.work.UpdateSubscription(deadline(t), &ordergatev1.UpdateSubscriptionRequest{
		Subscription: &ordergatev1.Subscription{Name: "shipping", AckDeadline: durationpb.New(7 * time.Second)}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"ack_deadline"}},
	})
	if err != nil || updated.GetSubscription().GetAckDeadline().AsDuration() != 7*time.Second {
		t.Error(updated, err)
	}
	listed, err := b.work.ListSubscriptions(deadline(t), &ordergatev1.ListSubscriptionsRequest{})
	if err != nil || len(listed.GetSubscriptions()) != 1 || listed.GetSubscriptions()[0].GetAckDeadline().AsDuration() != 7*time.Second {
		t.Error(listed, err)
	}
	// An error is the one of the gateway that has it.
	_, err = b.work.RedriveDeadLetters(deadline(t), &ordergatev1.RedriveDeadLettersRequest{Subscription: "shipping", EventIds: []string{"cs_0.1"}})
	if status.Code(err) != codes.NotFound || len(status.Convert(err).Details()) == 0 {
		t.Error(err)
	}

	there, here := b.worker(), a.worker()
	first, second := there.delivery(), here.delivery()
	if first.GetEvent().GetId() == second.GetEvent().GetId() {
		t.Errorf("%s twice", first.GetEvent().GetId())
	}
	for _, one := range []struct {
		w *worker
		d *ordergatev1.Delivery
	}{{there, first}, {here, second}} {
		if code := one.w.ack(one.d); code != ok {
			t.Errorf("%s: %v", one.d.GetEvent().GetId(), code)
		}
	}
	stats := func() *ordergatev1.SubscriptionStats {
		got, err := b.work.GetSubscription(deadline(t), &ordergatev1.GetSubscriptionRequest{Subscription: "shipping"})
		if err != nil {
			t.Fatal(err)
		}
		return got.GetSubscription().GetStats()
	}
	if n := stats().GetClients()[0].GetStreams(); n != 2 {
		t.Errorf("%d streams", n)
	}
	there.stream.CloseSend()
	here.stream.CloseSend()
}

// The events of an order come one after the other, wherever its workers are.
func TestOrderHoldsAcrossGateways(t *testing.T) {
	url := natscluster.Single(t)
	a, b := newGateway(t, url), newGateway(t, url)
	a.create()
	there, here := b.worker(), a.worker()
	const revisions = 10
	for revision := range revisions {
		[]*gateway{a, b}[revision%2].store("cs_1", int64(revision+1))
	}
	var mu sync.Mutex
	var got []int64
	var working sync.WaitGroup
	done := make(chan struct{})
	for _, w := range []*worker{there, here} {
		working.Go(func() {
			for {
				response, err := w.stream.Recv()
				if err != nil { // the other one had the last event
					return
				}
				delivery := response.GetDelivery()
				if delivery == nil {
					continue
				}
				mu.Lock()
				got = append(got, delivery.GetEvent().GetOrder().GetRevision())
				last := len(got) == revisions
				mu.Unlock()
				if err := w.stream.Send(&ordergatev1.ConsumeRequest{Acks: []string{delivery.GetDeliveryId()}}); err != nil {
					t.Error(err)
				}
				if last {
					close(done)
				}
			}
		})
	}
	select {
	case <-done:
	case <-deadline(t).Done():
	}
	there.stream.CloseSend()
	here.stream.CloseSend()
	working.Wait()
	if !slices.Equal(got, []int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}) {
		t.Errorf("revisions came as %v", got)
	}
}

// When a gateway stops, another one goes on where its workers were.
func TestSubscriptionMoves(t *testing.T) {
	url := natscluster.Single(t)
	a, b := newGateway(t, url), newGateway(t, url)
	a.create()
	a.store("cs_1", 1)
	a.store("cs_2", 1)
	w := b.worker()
	if code := w.ack(w.delivery()); code != ok {
		t.Fatal(code)
	}
	if d := w.delivery(); d.GetEvent().GetId() != "cs_2.1" {
		t.Fatal(d)
	}
	a.end()
	for {
		if _, err := w.stream.Recv(); err != nil {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("the worker hears: %v", err)
			}
			break
		}
	}
	w = b.worker()
	d := w.delivery()
	if d.GetEvent().GetId() != "cs_2.1" {
		t.Errorf("%s comes after the move", d.GetEvent().GetId())
	}
	if code := w.ack(d); code != ok {
		t.Error(code)
	}
	w.stream.CloseSend()
}

// A gateway that was taken for dead and is not stores nothing any more, and gives up
// the subscription.
func TestOldOwnerIsFenced(t *testing.T) {
	url := natscluster.Single(t)
	a, b := newGateway(t, url), newGateway(t, url)
	a.create()
	a.store("cs_1", 1)
	old := a.worker()
	delivery := old.delivery()
	owners := b.log.Bucket(eventlog.Owners)
	uids, err := owners.Keys(deadline(t))
	if err != nil || len(uids) != 1 {
		t.Fatal(uids, err)
	}
	if err := owners.Put(deadline(t), uids[0], []byte(b.log.Member())); err != nil {
		t.Fatal(err)
	}
	here := b.worker() // takes it over
	again := here.delivery()
	if again.GetEvent().GetId() != delivery.GetEvent().GetId() {
		t.Errorf("%s comes after the move", again.GetEvent().GetId())
	}
	if err := old.stream.Send(&ordergatev1.ConsumeRequest{Acks: []string{delivery.GetDeliveryId()}}); err != nil {
		t.Fatal(err)
	}
	for {
		response, err := old.stream.Recv()
		if err != nil {
			if status.Code(err) != codes.Unavailable {
				t.Errorf("the old owner's worker hears: %v", err)
			}
			break
		}
		for _, result := range response.GetResults().GetResults() {
			if result.GetCode() == ok {
				t.Error("the old owner says that it has stored something")
			}
		}
	}
	if code := here.ack(again); code != ok {
		t.Errorf("the new owner: %v", code)
	}
	if _, err := a.subscriptions.Open(deadline(t), "shipping"); !errors.As(err, new(*subscription.ElsewhereError)) {
		t.Errorf("the old owner opens it: %v", err)
	}
	here.stream.CloseSend()
}

// Whoever erases an order has all gateways forget it.
func TestForgetEverywhere(t *testing.T) {
	url := natscluster.Single(t)
	a, b := newGateway(t, url), newGateway(t, url)
	a.create()
	a.store("cs_1", 1)
	w := a.worker()
	delivery := w.delivery()
	err := w.stream.Send(&ordergatev1.ConsumeRequest{Nacks: []*ordergatev1.Nack{{DeliveryId: delivery.GetDeliveryId(), Action: ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER, Reason: "Erika was not at home"}}})
	if err != nil {
		t.Fatal(err)
	}
	w.next()
	letters := func() []*ordergatev1.DeadLetter {
		response, err := b.work.ListDeadLetters(deadline(t), &ordergatev1.ListDeadLettersRequest{Subscription: "shipping"})
		if err != nil {
			t.Fatal(err)
		}
		return response.GetDeadLetters()
	}
	if n := len(letters()); n != 1 {
		t.Fatalf("%d dead letters", n)
	}
	stream, err := b.orders.EraseOrders(deadline(t), &ordergatev1.EraseOrdersRequest{OrderIds: []string{"cs_1"}})
	if err != nil {
		t.Fatal(err)
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if response.GetDone() {
			break
		}
	}
	if n := len(letters()); n != 0 {
		t.Errorf("%d dead letters of an order that was erased", n)
	}
	if d := w.delivery(); d.GetEvent().GetKind() != ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED {
		t.Errorf("%v comes after the erasure", d.GetEvent())
	}
	for _, g := range []*gateway{a, b} { // neither has it in memory
		records, _, err := g.log.ReadOrders(deadline(t), 0, 10)
		if err == nil && len(records) != 1 || err != nil && !errors.Is(err, eventlog.ErrExpired) {
			t.Errorf("%d events, %v", len(records), err)
		}
	}
	w.stream.CloseSend()
}
