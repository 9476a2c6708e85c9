package grpcapi

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// Callers without a credential hold few calls open, with little metadata, and take nothing from the
// others.
func TestAnonymousCalls(t *testing.T) {
	c := newCallers(t, "")
	g := c.gateway(t, nil)
	crowd := healthv1.NewHealthClient(g.dial(t, insecure.NewCredentials()))
	var open int
	for range 3 * maxAnonymous {
		watch, err := crowd.Watch(metadata.AppendToOutgoingContext(deadline(t), "padding", strings.Repeat("x", maxHeaderBytes/2)), &healthv1.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := watch.Recv(); err == nil {
			open++
		} else if p := problemOf(t, err); p.Code != codes.ResourceExhausted || p.Reason != reasonAnonymous {
			t.Fatal(err)
		}
	}
	if open != maxAnonymous {
		t.Errorf("%d calls are open, want %d", open, maxAnonymous)
	}
	if _, err := crowd.Check(deadline(t), &healthv1.HealthCheckRequest{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one more: %v", err)
	}
	large := metadata.AppendToOutgoingContext(c.as(t, "reader"), "padding", strings.Repeat("x", 2*maxHeaderBytes))
	if _, err := g.client.ListOrders(large, &ordergatev1.ListOrdersRequest{}); err == nil {
		t.Error("metadata of any size is taken")
	}
	if _, err := g.client.ListOrders(c.as(t, "reader"), &ordergatev1.ListOrdersRequest{}); err != nil {
		t.Errorf("a genuine caller: %v", err)
	}
}
