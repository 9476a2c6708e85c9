//go:build unix

package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/internal/natscluster"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripehook"
)

var clusterFaults = flag.Int("cluster-faults", 1, "how many faults TestClusterUnderFaults has: the first ones are one of each kind")

const (
	clusterGateways = 3
	clusterRate     = 60 // genuine events a second
	// calmTime is how long everything must go well between two faults.
	calmTime = 2 * time.Second
	// cutOff is for how long a gateway or a node is cut off: longer than a gateway is
	// taken for alive.
	cutOff = 8 * time.Second
	// clusterOrders are held and released by clusterOperators.
	clusterOrders, clusterOperators = 12, 3
)

// TestClusterUnderFaults has senders and workers on three gateways that share a real
// cluster of three NATS nodes, kills and cuts off gateways and nodes, and balances the
// books at the end: nothing that was answered 200 is lost, every event was handled, and
// no order out of its order. Operators hold, release and read orders at all gateways, and
// their results are linearizable.
func TestClusterUnderFaults(t *testing.T) {
	natscluster.Patiently(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+*clusterFaults)*time.Minute)
	defer cancel()
	c := newClustered(t)
	c.startAll(ctx)

	loaded, stopLoad := context.WithCancel(ctx)
	working, stopWorking := context.WithCancel(ctx)
	defer stopLoad()
	defer stopWorking()
	var load, work sync.WaitGroup
	for range 4 {
		load.Go(func() { c.send(ctx, loaded) })
	}
	for i := range 2 * clusterGateways {
		work.Go(func() { c.work(working, c.gateways[i%clusterGateways]) })
	}
	history := newOrderHistory(t)
	ids := sendOrders(ctx, t, clusterOrders, "http://"+c.gateway().ingress+"/api/webhook")
	awaitOrders(ctx, t, c.orders(c.gateways[0]), ids)
	for i := range clusterOperators {
		load.Go(func() { c.operate(loaded, history, i, ids) })
	}
	work.Go(func() {
		gateway := c.client(c.gateways[0])
		defer gateway.Close()
		history.watch(working, clusterOperators, gateway, ids)
	})
	c.faults(ctx)
	stopLoad()
	load.Wait()
	ended := time.Now()
	var inbox map[string]bool
	waitFor(ctx, t, "every event is converted", func() (done bool) {
		inbox, done = c.inbox(ctx)
		return done
	})
	var stored []*ordergatev1.OrderEvent
	waitFor(ctx, t, "every order event is handled", func() bool {
		stored = c.stored(ctx)
		return c.missing(stored) == 0
	})
	c.report = append(c.report, fmt.Sprintf("all is handled %.1f s after the last event", time.Since(ended).Seconds()))
	stopWorking()
	work.Wait()
	c.balance(inbox, stored)
	history.check()
}

// clustered is what the outside knows.
type clustered struct {
	t        *testing.T
	nodes    *natscluster.Cluster
	gateways []*crashing
	secret   stripehook.Secret
	limit    *rate.Limiter

	mu                      sync.Mutex
	down                    map[*crashing]bool
	events                  map[string]int   // in the stories that were sent: events by order id
	ok                      map[string]bool  // Stripe's events that were answered 200
	newest                  map[string]int64 // the newest revision that was handled, by order id
	handled                 map[string]int   // how often, by the order event's id
	running                 map[string]int   // handlers, by order id
	again, atOnce, disorder int
	accepted, done          []time.Time // when an event was answered 200, and one handled
	report                  []string
}

func newClustered(t *testing.T) *clustered {
	secrets, err := stripehook.ParseSecrets(crashSecret)
	if err != nil {
		t.Fatal(err)
	}
	c := &clustered{
		t: t, nodes: natscluster.New(t, 3), secret: secrets[0], limit: rate.NewLimiter(clusterRate, 1), down: map[*crashing]bool{},
		events: map[string]int{}, ok: map[string]bool{}, newest: map[string]int64{}, handled: map[string]int{}, running: map[string]int{},
	}
	for range clusterGateways {
		g := newCrashing(t)
		g.nats = c.nodes.URL()
		c.gateways = append(c.gateways, g)
	}
	return c
}

func (c *clustered) startAll(ctx context.Context) {
	for _, g := range c.gateways {
		g.launch()
	}
	for _, g := range c.gateways {
		g.await(ctx)
	}
}

// send posts stories, each event until a gateway has answered 200.
func (c *clustered) send(ctx, loaded context.Context) {
	for loaded.Err() == nil {
		story, err := sample.Scenario("partly-refunded-disputed-won", time.Now())
		if err != nil {
			c.t.Error(err)
			return
		}
		c.mu.Lock()
		c.events[story[0].OrderID] = len(story)
		c.mu.Unlock()
		for _, event := range story {
			for c.limit.Wait(ctx) == nil {
				posting, cancel := context.WithTimeout(ctx, 10*time.Second)
				err := post(posting, "http://"+c.gateway().ingress+"/api/webhook", c.secret, event.Body)
				cancel()
				if err == nil {
					break
				}
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond): // as Stripe does, only sooner
				}
			}
			c.mu.Lock()
			c.ok[event.ID] = true
			c.accepted = append(c.accepted, time.Now())
			c.mu.Unlock()
		}
	}
}

// gateway is one that a load balancer would choose.
func (c *clustered) gateway() *crashing {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if g := c.gateways[rand.IntN(len(c.gateways))]; !c.down[g] {
			return g
		}
	}
}

func (c *clustered) setDown(g *crashing, down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down[g] = down
}

// operate makes operations of an operator, each at a gateway that a load balancer would choose.
func (c *clustered) operate(ctx context.Context, history *orderHistory, number int, ids []string) {
	services := map[*crashing]ordergatev1.OrderServiceClient{}
	for serial := 0; ctx.Err() == nil; serial++ {
		g := c.gateway()
		if services[g] == nil {
			services[g] = c.orders(g)
		}
		// The operations in progress are finished when the load ends. Few results are unknown: the check
		// takes exponential time in their number.
		pause := 20 * time.Millisecond
		if err := history.operate(context.WithoutCancel(ctx), number, serial, services[g], ids); err != nil {
			pause = time.Second
		}
		c.pause(ctx, pause)
	}
}

// orders returns a client of a gateway's orders, which is closed when the test ends.
func (c *clustered) orders(g *crashing) ordergatev1.OrderServiceClient {
	conn, err := grpc.NewClient(g.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return ordergatev1.NewOrderServiceClient(conn)
}

func (c *clustered) client(g *crashing) *client.Client {
	gateway, err := client.New(g.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	return gateway
}

// work handles events at one gateway, whichever has the subscription.
func (c *clustered) work(ctx context.Context, g *crashing) {
	gateway := c.client(g)
	defer gateway.Close()
	err := gateway.Consume(ctx, "shipping", c.handle, client.ConsumeOptions{Heartbeat: time.Second, Create: &ordergatev1.Subscription{MaxAttempts: 1000},
		Start: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}})
	if err != nil {
		c.t.Error(err)
	}
}

func (c *clustered) handle(_ context.Context, delivery *client.Delivery) error {
	id, order := delivery.Event.GetId(), delivery.Event.GetOrder()
	c.mu.Lock()
	if order.GetRevision() > c.newest[order.GetId()]+1 {
		c.disorder++
		c.t.Errorf("%s comes after revision %d", id, c.newest[order.GetId()])
	}
	if c.running[order.GetId()] > 0 {
		c.atOnce++
	}
	c.running[order.GetId()]++
	c.mu.Unlock()
	time.Sleep(rand.N(5 * time.Millisecond)) // it works
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running[order.GetId()]--
	c.newest[order.GetId()] = max(c.newest[order.GetId()], order.GetRevision())
	if c.handled[id]++; c.handled[id] > 1 {
		c.again++
	} else {
		c.done = append(c.done, time.Now())
	}
	return nil
}

// faults makes one fault after the other, and waits after each until all is well.
func (c *clustered) faults(ctx context.Context) {
	kinds := []struct {
		name string
		do   func(ctx context.Context)
	}{
		{"a gateway is killed", func(ctx context.Context) {
			g := c.gateway()
			c.setDown(g, true)
			g.end(os.Kill)
			g.start(ctx)
			c.setDown(g, false)
		}},
		{"a node is killed", func(ctx context.Context) {
			node := 1 + rand.IntN(3)
			c.check(c.nodes.Kill(node))
			c.pause(ctx, time.Second)
			c.check(c.nodes.Restart(node))
		}},
		{"a gateway is cut off", func(ctx context.Context) {
			g := c.gateway()
			c.setDown(g, true)
			c.check(g.process.Process.Signal(syscall.SIGSTOP))
			c.pause(ctx, cutOff)
			c.check(g.process.Process.Signal(syscall.SIGCONT))
			c.setDown(g, false)
		}},
		{"a node is cut off", func(ctx context.Context) {
			node := 1 + rand.IntN(3)
			c.check(c.nodes.Stop(node))
			c.pause(ctx, cutOff)
			c.check(c.nodes.Continue(node))
		}},
		{"two nodes are killed", func(ctx context.Context) {
			first := rand.IntN(3)
			for i := range 2 {
				c.check(c.nodes.Kill(1 + (first+i)%3))
			}
			c.pause(ctx, 2*time.Second)
			for i := range 2 {
				c.check(c.nodes.Restart(1 + (first+i)%3))
			}
		}},
		{"a gateway is stopped in order", func(ctx context.Context) {
			g := c.gateway()
			c.setDown(g, true)
			g.end(os.Interrupt)
			g.start(ctx)
			c.setDown(g, false)
		}},
	}
	c.calm(ctx, time.Now())
	for i := range *clusterFaults {
		kind := kinds[rand.IntN(len(kinds))]
		if i < len(kinds) {
			kind = kinds[i]
		}
		began := time.Now()
		kind.do(ctx)
		c.check(c.nodes.AwaitCurrent(ctx))
		c.calm(ctx, began)
		c.mu.Lock()
		c.report = append(c.report, fmt.Sprintf("%-30s  no event taken for %5.1f s, none handled for %5.1f s", kind.name, longest(c.accepted, began), longest(c.done, began)))
		c.mu.Unlock()
	}
}

func (c *clustered) check(err error) {
	if err != nil {
		c.t.Error(err)
	}
}

func (c *clustered) pause(ctx context.Context, pause time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}

// calm waits until events are taken and handled again, for a while.
func (c *clustered) calm(ctx context.Context, since time.Time) {
	for _, times := range []*[]time.Time{&c.accepted, &c.done} {
		waitFor(ctx, c.t, "events are taken and handled again", func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			recent := time.Now().Add(-calmTime)
			i, _ := slices.BinarySearchFunc(*times, recent, time.Time.Compare)
			return recent.After(since) && len(*times)-i > clusterRate/2
		})
	}
}

// longest is the longest time without an event since a moment, in seconds.
func longest(times []time.Time, since time.Time) float64 {
	longest, before := time.Duration(0), since
	i, _ := slices.BinarySearchFunc(times, since, time.Time.Compare)
	for _, at := range append(slices.Clone(times[i:]), time.Now()) {
		longest, before = max(longest, at.Sub(before)), at
	}
	return longest.Seconds()
}

// stored reads all order events that the gateways have.
func (c *clustered) stored(ctx context.Context) (events []*ordergatev1.OrderEvent) {
	gateway := c.client(c.gateway())
	defer gateway.Close()
	for message, err := range gateway.Watch(ctx, client.WatchOptions{FromBeginning: true}) {
		if err != nil {
			c.t.Fatal(err)
		}
		if event := message.GetEvent(); event != nil {
			events = append(events, event)
		}
		if message.GetCaughtUp() != nil {
			break
		}
	}
	return events
}

// missing is how many of the stored events were not handled.
func (c *clustered) missing(stored []*ordergatev1.OrderEvent) (missing int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, event := range stored {
		if c.handled[event.GetId()] == 0 {
			missing++
		}
	}
	return missing
}

// inbox returns the ids of all Stripe events that the gateways have, and whether they
// are done with all of them.
func (c *clustered) inbox(ctx context.Context) (ids map[string]bool, done bool) {
	conn, err := grpc.NewClient(c.gateway().grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	ids, done = map[string]bool{}, true
	for page := ""; ; {
		response, err := ordergatev1.NewEventServiceClient(conn).ListEvents(ctx, &ordergatev1.ListEventsRequest{PageSize: 500, PageToken: page})
		if err != nil {
			c.t.Log(err)
			return nil, false
		}
		for _, event := range response.GetEvents() {
			ids[event.GetId()] = true
			done = done && event.GetOutcome() != ordergatev1.EventOutcome_EVENT_OUTCOME_PENDING
		}
		if page = response.GetNextPageToken(); page == "" {
			return ids, done
		}
	}
}

func (c *clustered) balance(inbox map[string]bool, stored []*ordergatev1.OrderEvent) {
	c.mu.Lock()
	defer c.mu.Unlock()
	revisions, sources, ids := map[string]int64{}, map[string]int{}, map[string]bool{}
	twice := 0
	for _, event := range stored {
		id := event.GetOrder().GetId()
		if revisions[id]++; revisions[id] != event.GetOrder().GetRevision() {
			c.disorder++
			c.t.Errorf("%s is stored behind revision %d", event.GetId(), revisions[id]-1)
		}
		source := event.GetSourceEventId() // empty if an operator made the event
		if sources[source]++; source != "" && sources[source] > 1 || ids[event.GetId()] {
			twice++
		}
		ids[event.GetId()] = true
	}
	lost, strangers := 0, 0
	for id := range c.ok {
		if !inbox[id] {
			lost++
		}
	}
	for id := range c.handled {
		if !ids[id] {
			strangers++
		}
	}
	c.t.Logf(`%d gateways, %d nodes:
	%s
	answered 200             %7d
	in ORDERS                %7d events of %d orders, twice %d
	handled by workers       %7d, more than once %d, two of an order at once %d, not stored %d
	out of order             %7d
	lost                     %7d`,
		clusterGateways, c.nodes.Nodes(), strings.Join(c.report, "\n\t"), len(c.ok), len(stored), len(revisions), twice, len(c.handled), c.again, c.atOnce, strangers, c.disorder, lost)
	if lost+twice+strangers+c.disorder > 0 || len(c.handled) != len(stored) {
		c.t.Error("the books do not balance")
	}
	if len(stored) < 100*(1+*clusterFaults) || len(c.report) != *clusterFaults+1 {
		c.t.Error("too little happened: the books say nothing")
	}
}
