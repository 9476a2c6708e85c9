// Package clienttest tests handlers of package client without a gateway.
//
// A [Gateway] runs in the process of the test. It delivers the events that the test
// gives it, records the settlements, delivers events again that a handler failed, and
// can drain or break the streams, as a gateway does when it stops or the network fails.
// Connections are in memory, so it works with testing/synctest.
//
// It implements the Consume and Acknowledge methods of one subscription in the delivery
// mode EVERY_EVENT: filters, leases that expire and backoff without RetryAfter are left
// out. [SampleEvents] makes realistic events.
package clienttest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

// Outcome is the result of a delivery.
type Outcome string

const (
	// Acknowledged means that the handler returned nil.
	Acknowledged Outcome = "acknowledged"
	// Retried means that the handler failed. The event is delivered again, unless its
	// attempts are used up.
	Retried Outcome = "retried"
	// Skipped means that the handler returned an error from client.Skip.
	Skipped Outcome = "skipped"
	// DeadLettered means that the handler returned an error from client.Reject, or failed
	// at the last attempt.
	DeadLettered Outcome = "dead-lettered"
)

// Settlement is the end of one delivery.
type Settlement struct {
	// Event is the delivered event.
	Event *ordergatev1.OrderEvent
	// Attempt is the number of the delivery among those of the event, from 1.
	Attempt int
	// Outcome is the result.
	Outcome Outcome
	// Reason is the text of the handler's error; empty if it returned nil.
	Reason string
	// Delay is the delay of client.RetryAfter; 0 otherwise.
	Delay time.Duration
}

// Gateway is a gateway in memory. Its methods may be called by several goroutines.
type Gateway struct {
	server *grpc.Server
	client *client.Client

	mu          sync.Mutex
	changed     chan struct{} // closed and replaced with every change of the fields below
	entries     []*entry      // in the order of Deliver
	settlements []Settlement
	streams     map[*stream]bool
	maxAttempts int
}

// New returns a gateway without events. Close it in the end.
func New() *Gateway {
	g := &Gateway{server: grpc.NewServer(), changed: make(chan struct{}), streams: map[*stream]bool{}, maxAttempts: 20}
	ordergatev1.RegisterSubscriptionServiceServer(g.server, &service{gateway: g})
	listener := bufconn.Listen(1 << 20)
	go g.server.Serve(listener)
	var err error
	g.client, err = client.New("passthrough:clienttest", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		panic(fmt.Sprintf("clienttest: %v", err)) // the arguments are constants
	}
	return g
}

// Close ends all connections, also of a Consume that runs.
func (g *Gateway) Close() {
	g.client.Close()
	g.server.Stop()
}

// Client returns the client of the gateway, for Consume with any name of a subscription.
func (g *Gateway) Client() *client.Client { return g.client }

// Deliver adds events. Those of one order are delivered one after the other, in the
// order of the calls. An event that is given twice is delivered twice, as after a lost
// acknowledgement: a handler must be idempotent.
func (g *Gateway) Deliver(events ...*ordergatev1.OrderEvent) {
	g.change(func() {
		for _, event := range events {
			g.entries = append(g.entries, &entry{event: event})
		}
	})
}

// Redrive delivers all dead letters again, with fresh attempts, and ends the delays of
// retries.
func (g *Gateway) Redrive() {
	g.change(func() {
		for _, e := range g.entries {
			e.due = time.Time{}
			if e.state == dead {
				e.state, e.attempt, e.redriven = pending, 0, true
			}
		}
	})
}

// Drain ends the streams as a gateway does that stops: nothing more is delivered on
// them, and they end when everything is settled. The client then opens new ones.
func (g *Gateway) Drain() {
	g.change(func() {
		for s := range g.streams {
			s.draining = true
		}
	})
}

// Break ends the streams as a broken network does. Unsettled events are delivered again.
func (g *Gateway) Break() {
	g.change(func() {
		for s := range g.streams {
			s.broken = true
		}
	})
}

// Settlements returns all settlements so far, in the order of their arrival.
func (g *Gateway) Settlements() []Settlement {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]Settlement(nil), g.settlements...)
}

// Wait returns when every event has its last settlement. Events after a dead letter of
// the same order count as settled: they wait for Redrive. It returns an error if ctx ends
// before.
func (g *Gateway) Wait(ctx context.Context) error {
	for {
		g.mu.Lock()
		settled, changed := g.settled(), g.changed
		g.mu.Unlock()
		if settled {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// Run calls Consume with the handler until every event has its last settlement. It
// returns the error of Consume or, if ctx ends before, that of ctx.
func (g *Gateway) Run(ctx context.Context, handler client.Handler, options client.ConsumeOptions) error {
	consuming, stop := context.WithCancel(ctx)
	defer stop()
	settled := make(chan error, 1)
	go func() {
		settled <- g.Wait(consuming)
		stop()
	}()
	err := g.client.Consume(consuming, "clienttest", handler, options)
	stop()
	return cmp.Or(err, errors.Join(<-settled, ctx.Err()))
}

// change changes the gateway and wakes the streams.
func (g *Gateway) change(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
	close(g.changed)
	g.changed = make(chan struct{})
}
