package stripeapi

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// budget is what all requests share: how many there may be a second, and the
// pause that Stripe has asked for.
type budget struct {
	perSecond float64 // of all gateways
	limiter   *rate.Limiter
	log       *slog.Logger

	mu     sync.Mutex
	paused time.Time // until when
}

// newBudget makes a budget of so many requests a second. They are spaced evenly:
// a burst on top would go over Stripe's limit in the second it is used in.
func newBudget(perSecond float64, log *slog.Logger) *budget {
	return &budget{perSecond: perSecond, limiter: rate.NewLimiter(rate.Limit(perSecond), 1), log: log}
}

// Share makes this client one of a number of clients, of as many gateways, that share
// the requests a second. Fewer than one count as one.
func (c *Client) Share(gateways int) {
	c.budget.limiter.SetLimit(rate.Limit(c.budget.perSecond / float64(max(gateways, 1))))
}

// wait returns when a request may be sent. When ctx would be done before, it
// fails at once, with an error of the kind [context.DeadlineExceeded].
func (b *budget) wait(ctx context.Context) error {
	for {
		if err := sleepUntil(ctx, b.pausedUntil()); err != nil {
			return fmt.Errorf("while all requests pause, as Stripe asked: %w", err)
		}
		if err := b.limiter.Wait(ctx); err != nil {
			if ctx.Err() == nil { // the limiter has its own error for no time left
				err = context.DeadlineExceeded
			}
			return fmt.Errorf("while other requests use the budget of %g a second: %w", b.limiter.Limit(), err)
		}
		if !time.Now().Before(b.pausedUntil()) {
			return nil
		}
		// A pause began while this request waited for its turn, which is lost.
	}
}

// pause keeps all requests back for d.
func (b *budget) pause(d time.Duration, status int) {
	until := time.Now().Add(d)
	b.mu.Lock()
	wasPaused := time.Now().Before(b.paused)
	if until.After(b.paused) {
		b.paused = until
	}
	b.mu.Unlock()
	if !wasPaused {
		b.log.Warn("Stripe asks for fewer requests: all pause", "for", d, "status", status)
	}
}

func (b *budget) pausedUntil() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.paused
}

// sleepUntil returns at a time, or at once with an error if ctx ends before it.
func sleepUntil(ctx context.Context, t time.Time) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d := time.Until(t)
	if d <= 0 {
		return nil
	}
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(t) {
		return context.DeadlineExceeded
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
