package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/freeport"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const (
	crashSecret   = "whsec_1234567890123456789012345678901234"
	crashOrders   = 600
	crashLives    = 5 // of the gateway
	crashWorkers  = 4
	crashDeadline = time.Second            // of a lease
	arrival       = 400 * time.Millisecond // how long a delivery may be under way on a busy machine: its lease runs then
)

// TestWorkThroughCrashes has workers that crash, disconnect, nack, stall and
// drain work on orders of several events each, while the gateway is killed and
// started again under load. At the end every event was acknowledged, no order was
// ever worked on out of its order or by two at once, nothing that was answered OK
// came again, and each event that came again had a reason to.
func TestWorkThroughCrashes(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes some 20 s")
	}
	g := newCrashing(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	g.start(ctx)
	conn, err := grpc.NewClient(g.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"methodConfig":[{"name":[{}],"waitForReady":true}]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	service := ordergatev1.NewSubscriptionServiceClient(conn)
	_, err = service.CreateSubscription(ctx, &ordergatev1.CreateSubscriptionRequest{Subscription: &ordergatev1.Subscription{
		Name: "shipping", AckDeadline: durationpb.New(crashDeadline), MaxAttempts: 1000, MinBackoff: durationpb.New(50 * time.Millisecond),
		Delivery: ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT,
	}, Start: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}})
	if err != nil {
		t.Fatal(err)
	}

	ledger := &ledger{t: t, events: map[string]*worked{}, orders: map[string]*worked{}, sources: map[string]bool{}}
	var working sync.WaitGroup
	calm, calmDown := context.WithCancel(ctx)
	done, finish := context.WithCancel(ctx)
	for i := range crashWorkers {
		working.Go(func() {
			w := &crashWorker{id: fmt.Sprintf("worker-%d", i), service: service, ledger: ledger, stalls: i == 0, random: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(i)))}
			for done.Err() == nil {
				w.session(done, calm.Err() != nil)
			}
		})
	}
	var sending sync.WaitGroup
	for range 4 {
		sending.Go(func() { g.send(ctx, crashOrders/4) })
	}
	for life := range crashLives {
		// In the middle of the work.
		waitFor(ctx, t, "settled events", func() bool { return ledger.done() >= (life+1)*crashOrders*3/(crashLives+2) })
		signal := os.Kill
		if life == crashLives/2 {
			signal = os.Interrupt
		}
		g.end(signal)
		ledger.reborn(signal)
		g.start(ctx)
	}
	calmDown()
	sending.Wait()
	// Workers may be done with what is converted while the rest is not.
	waitFor(ctx, t, "conversion", func() bool { return ledger.known() == 4*crashOrders })
	stats := g.finished(ctx, service)
	finish()
	working.Wait()
	g.end(os.Interrupt)

	ledger.balance(g.stored(ctx))
	t.Logf("at the end: %v", stats)
}

// TestClientThroughCrashes is the same with the Go client, whose handlers all do
// well: none notices that the gateway is killed, stopped and started again.
func TestClientThroughCrashes(t *testing.T) {
	g := newCrashing(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	g.start(ctx)
	working, finish := context.WithCancel(ctx)
	var mu sync.Mutex
	newest, handled, sources := map[string]int64{}, map[string]int{}, map[string]bool{}
	running := map[string]bool{}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(sources)
	}
	handler := func(_ context.Context, delivery *client.Delivery) error {
		order, event := delivery.Event.GetOrder(), delivery.Event.GetId()
		mu.Lock()
		if running[order.GetId()] {
			t.Errorf("two handlers work on %s", order.GetId())
		}
		if revision := order.GetRevision(); revision > newest[order.GetId()]+1 {
			t.Errorf("%s comes after revision %d", event, newest[order.GetId()])
		} else {
			newest[order.GetId()] = revision
		}
		running[order.GetId()] = true
		mu.Unlock()
		time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond) // it works
		mu.Lock()
		defer mu.Unlock()
		delete(running, order.GetId())
		handled[event]++
		for _, id := range sourcesOf(delivery.Event) {
			sources[id] = true
		}
		return nil
	}
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			gateway, err := client.New(g.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Error(err)
				return
			}
			defer gateway.Close()
			if err := gateway.Consume(working, "shipping", handler, client.ConsumeOptions{Create: &ordergatev1.Subscription{Delivery: ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT}, Heartbeat: time.Second,
				Start: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}}); err != nil {
				t.Error(err)
			}
		})
	}
	const orders = 400
	var sending sync.WaitGroup
	for range 4 {
		sending.Go(func() { g.send(ctx, orders/4) })
	}
	for life := range 3 {
		waitFor(ctx, t, "events", func() bool { return count() >= (life+1)*orders/2 })
		g.end([]os.Signal{os.Kill, os.Interrupt, os.Kill}[life])
		g.start(ctx)
	}
	sending.Wait()
	waitFor(ctx, t, "all events", func() bool { return count() == 4*orders })
	finish()
	workers.Wait()
	again := 0
	for _, n := range handled {
		again += n - 1
	}
	t.Logf("%d events handled, %d of them more than once", len(handled), again)
	g.end(os.Interrupt)
}

// waitFor waits until something is so.
func waitFor(ctx context.Context, t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not in time", what)
		case <-tick.C:
		}
	}
}

// newCrashing returns a gateway that is not started yet.
func newCrashing(t *testing.T) *crashing {
	addrs := freeport.Addrs(t, 3)
	return &crashing{t: t, dir: t.TempDir(), ingress: addrs[0], grpc: addrs[1], admin: addrs[2]}
}

// crashing is a gateway that is killed and started again.
type crashing struct {
	t                    *testing.T
	dir                  string
	ingress, grpc, admin string
	command              string    // empty is ordergate
	nats                 string    // the cluster that stores; empty is a data directory
	args                 []string  // beside the usual
	stderr               io.Writer // of the gateway; nil is the test's output
	process              *exec.Cmd
	ended                chan struct{} // closed when the process has ended, as endErr says
	endErr               error
}

// launch starts the gateway, and does not wait for it.
func (g *crashing) launch() {
	store := []string{"--data-dir", filepath.Join(g.dir, "data")}
	if g.nats != "" {
		store = []string{"--nats-url", g.nats}
	}
	g.process = exec.Command(cmp.Or(g.command, "ordergate"), "serve",
		"--ingress-addr", g.ingress, "--grpc-addr", g.grpc, "--admin-addr", g.admin, "--stripe-webhook-secret", crashSecret)
	g.process.Args = slices.Concat(g.process.Args, store, g.args)
	g.process.Dir, g.process.Stderr = g.dir, g.stderr
	if g.stderr == nil {
		g.process.Stderr = g.t.Output()
	}
	if err := g.process.Start(); err != nil {
		g.t.Fatal(err)
	}
	process, ended := g.process, make(chan struct{})
	g.ended = ended
	go func() {
		g.endErr = process.Wait()
		close(ended)
	}()
	g.t.Cleanup(func() {
		process.Process.Kill()
		<-ended // its output is complete then
	})
}

func (g *crashing) start(ctx context.Context) {
	g.launch()
	g.await(ctx)
}

// await returns when the gateway is ready.
func (g *crashing) await(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if response, err := http.Get("http://" + g.admin + "/readyz"); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-ctx.Done():
			g.signal(syscall.SIGQUIT) // it says what it is doing
			<-g.ended
			g.t.Fatal("the gateway does not become ready")
		case <-g.ended:
			g.t.Fatalf("the gateway has ended instead of becoming ready: %v", g.endErr)
		case <-tick.C:
		}
	}
}

func (g *crashing) end(signal os.Signal) {
	g.signal(signal)
	if <-g.ended; g.endErr != nil && signal == os.Interrupt {
		g.t.Errorf("the gateway did not stop well: %v", g.endErr)
	}
}

func (g *crashing) signal(signal os.Signal) {
	if err := g.process.Process.Signal(signal); err != nil {
		g.t.Fatal(err)
	}
}

// send posts the events of some orders, each until it is answered 200.
func (g *crashing) send(ctx context.Context, orders int) {
	secrets, err := stripehook.ParseSecrets(crashSecret)
	if err != nil {
		g.t.Error(err)
		return
	}
	for range orders {
		story, err := sample.Scenario("partly-refunded-disputed-won", time.Now())
		if err != nil {
			g.t.Error(err)
			return
		}
		for _, event := range story {
			for post(ctx, "http://"+g.ingress+"/api/webhook", secrets[0], event.Body) != nil {
				select {
				case <-ctx.Done():
					return
				case <-time.After(20 * time.Millisecond): // as Stripe does, only sooner
				}
			}
		}
	}
}

// finished waits until the subscription has nothing left to do.
func (g *crashing) finished(ctx context.Context, service ordergatev1.SubscriptionServiceClient) *ordergatev1.SubscriptionStats {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		response, err := service.GetSubscription(ctx, &ordergatev1.GetSubscriptionRequest{Subscription: "shipping"})
		if err != nil {
			g.t.Fatalf("the work does not end: %v", err)
		}
		stats := response.GetSubscription().GetStats()
		if stats.GetBacklog() == 0 && stats.GetPendingOrders() == 0 {
			return stats
		}
		select {
		case <-ctx.Done():
			g.t.Fatalf("the work does not end: %v", stats)
		case <-tick.C:
		}
	}
}

// stored reads the ids of all events that the gateway has.
func (g *crashing) stored(ctx context.Context) (ids []string) {
	g.start(ctx)
	defer g.end(os.Interrupt)
	gateway, err := client.New(g.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		g.t.Fatal(err)
	}
	defer gateway.Close()
	for message, err := range gateway.Watch(ctx, client.WatchOptions{FromBeginning: true}) {
		if err != nil {
			g.t.Fatal(err)
		}
		if event := message.GetEvent(); event != nil {
			ids = append(ids, event.GetId())
		}
		if message.GetCaughtUp() != nil {
			break
		}
	}
	return ids
}

// ledger is what the workers were given and what they said, in one order of time.
type ledger struct {
	t *testing.T

	mu      sync.Mutex
	life    int
	events  map[string]*worked // by event id
	sources map[string]bool    // the Stripe events that the delivered ones were made of
	orders  map[string]*worked // the newest event that was delivered in this life, by order id
	settled int

	deliveries, again, nacked, expired, broken, killed int
}

// worked is what became of an event.
type worked struct {
	revision  int64
	acked     bool // an acknowledgement was sent
	confirmed bool // and answered OK
	// The newest delivery, and how it ended.
	life      int
	delivered time.Time
	lease     time.Duration
	nacked    bool
	broken    bool
}

func (l *ledger) reborn(signal os.Signal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.life++
	clear(l.orders)
	l.t.Logf("life %d begins after %v: %d events settled, %d deliveries", l.life+1, signal, l.settled, l.deliveries)
}

func (l *ledger) now() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.life
}

// delivered notes a delivery, and checks that it may be one. It returns false for
// one of a gateway that is dead.
func (l *ledger) delivered(d *ordergatev1.Delivery, life int) bool {
	event, order := d.GetEvent(), d.GetEvent().GetOrder()
	l.mu.Lock()
	defer l.mu.Unlock()
	if life != l.life {
		return false
	}
	l.deliveries++
	for _, id := range sourcesOf(d.GetEvent()) {
		l.sources[id] = true
	}
	revision := order.GetRevision()
	for earlier := int64(1); earlier < revision; earlier++ {
		if before := l.events[fmt.Sprintf("%s.%d", order.GetId(), earlier)]; before == nil || !before.acked {
			l.t.Errorf("%s is delivered, and revision %d was not acknowledged", event.GetId(), earlier)
		}
	}
	if newest := l.orders[order.GetId()]; newest != nil && newest.revision > revision {
		l.t.Errorf("%s is delivered after revision %d", event.GetId(), newest.revision)
	}
	now := time.Now()
	e := l.events[event.GetId()]
	if e == nil {
		e = &worked{revision: revision}
		l.events[event.GetId()] = e
	} else {
		l.again++
		switch {
		case e.confirmed:
			l.t.Errorf("%s was acknowledged, that was answered OK, and it is delivered again (life %d, before %d, attempt %d)", event.GetId(), life, e.life, d.GetAttempt())
		case e.life != life:
			l.killed++
		case e.broken:
			l.broken++
		case e.nacked:
			l.nacked++
		case now.Sub(e.delivered) >= e.lease-arrival:
			l.expired++
		default:
			l.t.Errorf("%s is delivered again after %v, for no reason", event.GetId(), now.Sub(e.delivered))
		}
	}
	e.life, e.delivered, e.lease, e.nacked, e.broken = life, now, crashDeadline, false, false
	l.orders[order.GetId()] = e
	return true
}

func (l *ledger) change(eventID string, change func(*worked)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.events[eventID]; e != nil {
		change(e)
	}
}

func (l *ledger) confirmed(eventID string) {
	l.change(eventID, func(e *worked) {
		if !e.confirmed {
			e.confirmed = true
			l.settled++
		}
	})
}

func (l *ledger) done() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.settled
}

// known is the number of Stripe events in what was delivered. Several may be in one order event:
// those that were converted together.
func (l *ledger) known() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.sources)
}

// sourcesOf returns the Stripe events that an order event was made of.
func sourcesOf(event *ordergatev1.OrderEvent) []string {
	return append([]string{event.GetSourceEventId()}, event.GetIncludedEventIds()...)
}

func (l *ledger) balance(stored []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	missing := 0
	for _, id := range stored {
		if e := l.events[id]; e == nil || !e.acked {
			missing++
		}
	}
	l.t.Logf("events in ORDERS %d, acknowledged %d, answered OK %d, never acknowledged %d; deliveries %d, of these again %d: "+
		"after a nack %d, a lease that ran out %d, a broken stream %d, the gateway's end %d",
		len(stored), len(l.events), l.settled, missing, l.deliveries, l.again, l.nacked, l.expired, l.broken, l.killed)
	if missing > 0 || len(stored) != len(l.events) || len(stored) < crashOrders {
		l.t.Errorf("the books do not balance: %d events stored, %d delivered, %d never acknowledged", len(stored), len(l.events), missing)
	}
	for what, n := range map[string]int{"nack": l.nacked, "lease that ran out": l.expired, "broken stream": l.broken, "end of the gateway": l.killed} {
		if n == 0 {
			l.t.Errorf("no event came again after a %s: the test has not tried it", what)
		}
	}
}

// crashWorker is a worker that may do anything.
type crashWorker struct {
	id      string
	service ordergatev1.SubscriptionServiceClient
	ledger  *ledger
	random  *rand.Rand
	stalls  bool // it leaves some events to their leases, and never its stream
}

// inHand is a delivery without a result.
type inHand struct {
	event string
	acked bool
}

// session is one stream, to some end.
func (w *crashWorker) session(ctx context.Context, calm bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := w.service.Consume(ctx)
	if err != nil {
		return
	}
	window := int32(1 + w.random.IntN(20))
	if stream.Send(&ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{Subscription: "shipping", ClientId: w.id, MaxOutstandingEvents: window}}) != nil {
		return
	}
	hand := map[string]inHand{} // by delivery ids
	// Whatever is in hand when the stream ends goes back.
	defer func() {
		for _, in := range hand {
			w.ledger.change(in.event, func(e *worked) { e.broken = true })
		}
	}()
	life, draining := 0, false
	for {
		response, err := stream.Recv()
		if err != nil {
			return
		}
		if response.GetOpened() != nil {
			life = w.ledger.now()
		}
		for _, result := range response.GetResults().GetResults() {
			in := hand[result.GetDeliveryId()]
			switch result.GetCode() {
			case ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK:
				if in.acked {
					w.ledger.confirmed(in.event)
				}
			case ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_EXPIRED, ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_STALE_ATTEMPT:
			default:
				w.ledger.t.Errorf("%s: %v", in.event, result.GetCode())
			}
			delete(hand, result.GetDeliveryId())
		}
		delivery := response.GetDelivery()
		if delivery == nil {
			continue
		}
		id, deliveryID := delivery.GetEvent().GetId(), delivery.GetDeliveryId()
		hand[deliveryID] = inHand{id, false}
		if !w.ledger.delivered(delivery, life) {
			return
		}
		request := &ordergatev1.ConsumeRequest{}
		ack := func() {
			w.ledger.change(id, func(e *worked) { e.acked = true })
			hand[deliveryID] = inHand{id, true}
			request.Acks = []string{deliveryID}
		}
		n := w.random.IntN(100)
		if calm || draining {
			n = 0
		}
		switch {
		case n < 80:
			ack()
		case n < 90:
			w.ledger.change(id, func(e *worked) { e.nacked = true })
			nack := &ordergatev1.Nack{DeliveryId: deliveryID}
			if n%2 == 0 {
				nack.Delay = durationpb.New(time.Duration(w.random.IntN(300)) * time.Millisecond)
			}
			request.Nacks = []*ordergatev1.Nack{nack}
		case w.stalls: // and leaves it to its lease
			continue
		case n < 95: // crash
			return
		case n < 98: // leave in order
			ack()
			request.Stop, draining = true, true
		default: // half-close with something in hand
			stream.CloseSend()
			draining = true
			continue
		}
		if stream.Send(request) != nil {
			return
		}
	}
}

// storeOrders makes a log of so many orders of about 3 kB.
func storeOrders(t *testing.T, dir string, n int) {
	log, err := eventlog.Open(t.Context(), eventlog.Config{Dir: dir, MaxEventBytes: 1 << 20, OrdersMaxAge: 400 * 24 * time.Hour, InboxMaxAge: 35 * 24 * time.Hour,
		Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	notes := strings.Repeat("gift wrap; ", 270)
	var writers sync.WaitGroup
	for w := range 16 {
		writers.Go(func() {
			for i := w; i < n; i += 16 {
				order := &ordergatev1.Order{Id: fmt.Sprintf("cs_live_%060d", i), Revision: 1, Livemode: new(true), Metadata: map[string]string{"notes": notes}}
				if _, err := log.AppendOrder(t.Context(), &ordergatev1.OrderEvent{Id: order.Id + ".1", Order: order}, 0); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	if err := log.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}
