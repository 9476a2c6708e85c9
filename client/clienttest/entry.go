package clienttest

import (
	"fmt"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// entry is an event given to Deliver. Guarded by Gateway.mu, like everything in this file.
type entry struct {
	event    *ordergatev1.OrderEvent
	state    state
	attempt  int       // of the newest delivery
	due      time.Time // of the next delivery; zero for at once
	redriven bool
	id       string  // of the delivery, while out
	stream   *stream // that has the delivery, while out
}

type state int

const (
	pending state = iota
	out           // delivered and not settled
	settled       // done
	dead          // a dead letter
)

// settled reports whether no event is to be delivered or settled without Redrive.
func (g *Gateway) settled() bool {
	blocked := map[string]bool{}
	for _, e := range g.entries {
		switch order := e.event.GetOrder().GetId(); {
		case e.state == dead:
			blocked[order] = true
		case e.state != settled && !blocked[order]:
			return false
		}
	}
	return true
}

// next returns the first entry that can be delivered now, or nil.
func (g *Gateway) next(now time.Time) *entry {
	busy := map[string]bool{}
	for _, e := range g.entries {
		order := e.event.GetOrder().GetId()
		if e.state == pending && !busy[order] && !e.due.After(now) {
			return e
		}
		if e.state != settled {
			busy[order] = true
		}
	}
	return nil
}

// deliver gives an entry to a stream.
func (g *Gateway) deliver(e *entry, s *stream) *ordergatev1.Delivery {
	e.state, e.stream = out, s
	e.attempt++
	s.deliveries++
	e.id = fmt.Sprintf("%s#%d-%p-%d", e.event.GetId(), e.attempt, s, s.deliveries)
	latest := e.event.GetOrder()
	for _, other := range g.entries {
		if o := other.event.GetOrder(); o.GetId() == latest.GetId() && o.GetRevision() > latest.GetRevision() {
			latest = o
		}
	}
	return &ordergatev1.Delivery{
		DeliveryId: e.id, Event: e.event, Attempt: int32(e.attempt), Redriven: e.redriven,
		LatestRevision: latest.GetRevision(), LatestDirective: latest.GetDirective(),
	}
}

// find returns the entry of a delivery, or nil if another delivery replaced it.
func (g *Gateway) find(id string) *entry {
	for _, e := range g.entries {
		if e.state == out && e.id == id {
			return e
		}
	}
	return nil
}

// settle records the end of a delivery. A nil nack is an acknowledgement.
func (g *Gateway) settle(id string, nack *ordergatev1.Nack) *ordergatev1.DeliveryResult {
	e := g.find(id)
	if e == nil {
		return &ordergatev1.DeliveryResult{DeliveryId: id, Code: ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_STALE_ATTEMPT}
	}
	settlement := Settlement{Event: e.event, Attempt: e.attempt, Outcome: Acknowledged, Reason: nack.GetReason(), Delay: nack.GetDelay().AsDuration()}
	e.state = settled
	switch {
	case nack == nil:
	case nack.GetAction() == ordergatev1.NackAction_NACK_ACTION_SKIP:
		settlement.Outcome = Skipped
	case nack.GetAction() == ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER || e.attempt >= g.maxAttempts:
		settlement.Outcome = DeadLettered
		e.state = dead
	default:
		settlement.Outcome = Retried
		e.state, e.due = pending, time.Now().Add(settlement.Delay)
		time.AfterFunc(settlement.Delay, func() { g.change(func() {}) })
	}
	e.stream = nil
	g.settlements = append(g.settlements, settlement)
	return &ordergatev1.DeliveryResult{DeliveryId: id, Code: ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK}
}

// release makes the entries of a stream pending again.
func (g *Gateway) release(s *stream) {
	for _, e := range g.entries {
		if e.state == out && e.stream == s {
			e.state, e.stream = pending, nil
		}
	}
}

// outstanding returns the number of entries that a stream has.
func (g *Gateway) outstanding(s *stream) (n int) {
	for _, e := range g.entries {
		if e.state == out && e.stream == s {
			n++
		}
	}
	return n
}
