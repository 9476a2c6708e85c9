package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	wrongSecret = "whsec_fedcba9876543210fedcba9876543210"
	// maxForged is how many requests of each sort a turn has at most: enough for
	// the clock of a process's CPU time, which ticks every 10 ms.
	maxForged = 10_000
	// forgedTimeout bounds one turn.
	forgedTimeout = 2 * time.Minute
)

// forged measures what requests that must be refused cost the gateway, beside
// genuine ones.
func forged(ctx context.Context, b *bench) error {
	m, err := newMaker()
	if err != nil {
		return err
	}
	p, addrs, end, err := b.newGateway(ctx, "forged")
	if err != nil {
		return err
	}
	defer end()
	sorts := []struct {
		name, secret string
		status       int
	}{{"genuine", secret, 200}, {"wrong signature", wrongSecret, 400}, {"no signature", "", 400}}
	n := min(b.Events, maxForged)
	for round := range b.Rounds {
		for _, s := range sorts {
			b.say("forged, round %d of %d: %s", round+1, b.Rounds, s.name)
			if err := b.forgedTurn(ctx, p, addrs, "CPU per request, "+s.name, m.signed(n, s.secret), s.status); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	for _, s := range sorts[1:] {
		b.report.goal("forged", s.name+" / genuine", "CPU per request, "+s.name, "CPU per request, genuine", 1, true)
	}
	return nil
}

// forgedTurn counts the CPU time of the gateway until it has nothing more to do
// with what it was sent.
func (b *bench) forgedTurn(ctx context.Context, p *process, addrs gatewayAddrs, name string, events []event, want int) error {
	before, err := p.cpu()
	if err != nil {
		return err
	}
	done, err := send(ctx, addrs.ingress, events, connections, forgedTimeout, want, nil)
	if err != nil {
		return err
	}
	if answered := done.sent - done.failed; answered < len(events) {
		return fmt.Errorf("%d of %d requests were answered %d: %w", answered, len(events), want, errors.Join(done.first, ctx.Err()))
	}
	last := ""
	if want == 200 {
		last = events[len(events)-1].order
	}
	if err := converted(ctx, addrs, last); err != nil {
		return err
	}
	after, err := p.cpu()
	if err != nil {
		return err
	}
	b.report.add("forged", name, "µs", (after-before).Seconds()*1e6/float64(len(events)))
	return nil
}
