package subscription

import (
	"context"
	"errors"
	"fmt"

	"github.com/ordergate/ordergate/internal/eventlog"
)

// Gateways that share a log share its subscriptions: each subscription has one of
// them, which is the only one that hands out its events. A record names it, for as
// long as it lives. That is only about who is to be asked: what is stored of a
// subscription is behind a fence, which lets the newest owner through and no other.

// ErrMoved means that another gateway has the subscription now, or may have it.
var ErrMoved = errors.New("another gateway has taken the subscription over")

// maxClaims bounds how often a gateway tries to have a subscription.
const maxClaims = 5

// ElsewhereError says that another gateway has a subscription, and which.
type ElsewhereError struct{ Member string }

func (e *ElsewhereError) Error() string { return "the gateway " + e.Member + " has the subscription" }

// claim makes this gateway the owner of a subscription, unless another one that lives
// is: then it fails with an ElsewhereError.
func (m *Manager) claim(ctx context.Context, uid string) error {
	if !m.log.Shared() {
		return nil
	}
	if !m.log.Confirmed() {
		return fmt.Errorf("%w: this gateway is not known to the others at the moment", eventlog.ErrUnavailable)
	}
	owners, self := m.log.Bucket(eventlog.Owners), m.log.Member()
	for range maxClaims {
		value, err := owners.Claim(ctx, uid, []byte(self))
		if err != nil {
			return err
		}
		owner := string(value)
		if owner == self {
			return nil
		}
		lives, err := m.log.Lives(ctx, owner)
		if err != nil {
			return err
		}
		if lives {
			return &ElsewhereError{owner}
		}
		if err := owners.Update(ctx, uid, func(old []byte) []byte {
			if string(old) == owner {
				return []byte(self)
			}
			return old // somebody was faster
		}); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: gateways contend for the subscription", eventlog.ErrUnavailable)
}

// fence makes this gateway the only one that can store anything of the subscription.
func (s *Subscription) fence(ctx context.Context) (err error) {
	if s.places, err = s.log.Bucket(eventlog.Places).Fence(ctx, s.uid); err != nil {
		return err
	}
	s.held, err = s.log.Bucket(eventlog.HeldOrders).Fence(ctx, s.uid)
	return err
}

// lapse ends the subscription here, because another gateway has it or may have it.
// What was settled and is not stored is delivered again. Call it with the lock held.
func (s *Subscription) lapse() {
	if s.err != nil {
		return
	}
	s.err = ErrMoved
	close(s.ended)
	s.timer.Stop()
	s.stop()
}

// dropAll ends all subscriptions here, to be loaded again: the log was away, and
// others may have taken them over.
func (m *Manager) dropAll() {
	for _, s := range m.all() {
		s.mu.Lock()
		s.lapse() // load takes it out of the map
		s.mu.Unlock()
		s.background.Wait()
	}
}
