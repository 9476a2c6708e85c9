//go:build !race

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/natscluster"
)

const (
	idleSubscribers = 1_000
	waitingEvents   = 100_000
	// statedMemory is what the README says.
	statedMemory = 250 << 20
)

// TestMemoryOfSubscribers measures a gateway with 1,000 subscriptions whose
// workers have nothing to do, and 100,000 events that wait for a worker which is
// stuck.
func TestMemoryOfSubscribers(t *testing.T) {
	natscluster.Patiently(t)
	g := newCrashing(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	storeOrders(t, filepath.Join(g.dir, "data"), waitingEvents)
	g.start(ctx)
	before := g.memory()

	var conns [4]*grpc.ClientConn
	for i := range conns {
		var err error
		if conns[i], err = grpc.NewClient(g.grpc, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
	}
	opening, opened := errgroup.WithContext(ctx)
	opening.SetLimit(16)
	for i := range idleSubscribers {
		opening.Go(func() error {
			stream, err := ordergatev1.NewSubscriptionServiceClient(conns[i%len(conns)]).Consume(ctx)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("idle-%d", i)
			err = stream.Send(&ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{Subscription: name, Create: &ordergatev1.Subscription{}}})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		})
	}
	if err := opening.Wait(); err != nil || opened.Err() == nil {
		t.Fatal(err)
	}
	stuck, err := ordergatev1.NewSubscriptionServiceClient(conns[0]).Consume(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stuck.Send(&ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{
		Subscription: "stuck", Create: &ordergatev1.Subscription{}, MaxOutstandingEvents: 1000,
		Start: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}},
	}}); err != nil {
		t.Fatal(err)
	}
	for range 1001 { // opened, and a window full of events that are never settled
		if _, err := stuck.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	after := g.memory()
	t.Logf("resident with %d events stored: %d MB; and with %d idle subscribers and %d events waiting: %d MB", waitingEvents, before>>20, idleSubscribers, waitingEvents, after>>20)
	if after > statedMemory {
		t.Errorf("the gateway takes %d MB, the README says %d MB", after>>20, statedMemory>>20)
	}
	cancel()
	g.end(os.Interrupt)
}

// memory is what the gateway has resident, in bytes.
func (g *crashing) memory() int64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.process.Process.Pid))
	if err != nil {
		g.t.Fatal(err)
	}
	kilobytes, err := strconv.ParseInt(regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindStringSubmatch(string(status))[1], 10, 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return kilobytes << 10
}
