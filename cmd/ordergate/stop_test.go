package main

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/stripetest"
)

// In whatever phase the gateway is told to stop, it does in time, and starts
// again. Under load it is told to in kill.txtar and TestSoak.
func TestStopWhileStarting(t *testing.T) {
	g := newCrashing(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	storeOrders(t, filepath.Join(g.dir, "data"), 2000)
	for range 5 {
		lock := filepath.Join(g.dir, "data", "LOCK")
		if err := os.Remove(lock); err != nil { // nobody has it
			t.Fatal(err)
		}
		g.launch()
		waitFor(ctx, t, "the log is being opened", func() bool { _, err := os.Stat(lock); return err == nil })
		g.signal(syscall.SIGTERM)
		if took := g.wait(); took > 10*time.Second || g.process.ProcessState.ExitCode() != 0 {
			t.Errorf("it took %v to stop: %v", took, g.process.ProcessState)
		}
	}
	if got := len(g.stored(ctx)); got != 2000 {
		t.Errorf("%d events are there afterwards", got)
	}
}

// A backfill, and a worker that does not settle what it has, are given up when
// the gateway stops.
func TestStopWhileBusy(t *testing.T) {
	asked := make(chan struct{}, 10)
	stripe := stripetest.NewServer(t)
	stripe.Handle("GET /v1/events", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done() // Stripe's API hangs
	}))
	for name, twice := range map[string]bool{"once": false, "twice": true} {
		t.Run(name, func(t *testing.T) {
			g := newCrashing(t)
			g.args = []string{"--stripe-api-key", "rk_test_1", "--stripe-api-base", stripe.URL, "--shutdown-timeout", "2s"}
			if twice {
				g.args[len(g.args)-1] = "10m"
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			storeOrders(t, filepath.Join(g.dir, "data"), 10)
			g.start(ctx)
			conn, err := grpc.NewClient(g.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := ordergatev1.NewEventServiceClient(conn).Backfill(ctx, &ordergatev1.BackfillRequest{Since: timestamppb.New(time.Now().Add(-time.Hour))}); err != nil {
				t.Fatal(err)
			}
			<-asked
			worker, err := ordergatev1.NewSubscriptionServiceClient(conn).Consume(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := worker.Send(&ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{Subscription: "stuck", Create: &ordergatev1.Subscription{},
				Start: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}}}); err != nil {
				t.Fatal(err)
			}
			for range 2 { // opened, and an event that is never settled
				if _, err := worker.Recv(); err != nil {
					t.Fatal(err)
				}
			}
			g.signal(syscall.SIGTERM)
			if twice {
				waitFor(ctx, t, "it is stopping", func() bool {
					response, err := http.Get("http://" + g.admin + "/readyz")
					if err != nil {
						return false
					}
					response.Body.Close()
					return response.StatusCode == http.StatusServiceUnavailable
				})
				g.signal(syscall.SIGTERM)
			}
			if took := g.wait(); took > 6*time.Second {
				t.Errorf("it took %v to stop", took)
			}
			g.args = nil
			if got := len(g.stored(ctx)); got != 10 {
				t.Errorf("%d events are there afterwards", got)
			}
		})
	}
}

// wait returns how long the process takes to end, whatever it ends with.
func (g *crashing) wait() time.Duration {
	began := time.Now()
	var exit *exec.ExitError
	if <-g.ended; g.endErr != nil && !errors.As(g.endErr, &exit) {
		g.t.Fatal(g.endErr)
	}
	return time.Since(began)
}
