package stripeapi

import (
	"log/slog"
	"testing"
)

// Gateways share what may be asked of Stripe, whenever one comes or goes.
func TestShare(t *testing.T) {
	c := &Client{budget: newBudget(20, slog.New(slog.DiscardHandler))}
	for _, step := range []struct {
		gateways int
		want     float64
	}{{4, 5}, {2, 10}, {1, 20}, {0, 20}} {
		c.Share(step.gateways)
		if got := float64(c.budget.limiter.Limit()); got != step.want {
			t.Errorf("with %d gateways, %g requests a second, want %g", step.gateways, got, step.want)
		}
	}
}
