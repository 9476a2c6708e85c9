package pipeline

import (
	"context"
	"errors"
	"fmt"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
)

// An operator's action that would change nothing fails with one of these.
var (
	// ErrNotHeld means that nothing, or not the given cause, holds the order.
	ErrNotHeld = errors.New("the order is not held for that")
	// ErrNotCanceled means that nothing cancels the order.
	ErrNotCanceled = errors.New("the order is not canceled")
	// ErrErased means that the order was erased, which cannot be undone.
	ErrErased = errors.New("the order was erased")
)

// Decision is an order before and after an operator's action.
type Decision struct {
	Before, After *ordergatev1.Order
}

// Hold stops an order for an operator's reason, and returns the order once that
// is on disk. eventlog.ErrNotFound when there is no such order.
func (p *Pipeline) Hold(ctx context.Context, orderID, reason string) (*ordergatev1.Order, error) {
	decision, err := p.operate(ctx, orderID, nil, func(current *ordergatev1.Order) *orders.Change { return orders.Hold(current, reason) })
	return decision.After, err
}

// Release releases an order, for an operator's reason, from everything that holds it
// now, or only from a cause. It returns once that is on disk. ErrNotHeld and ErrErased
// if nothing would change, eventlog.ErrNotFound if there is no such order.
func (p *Pipeline) Release(ctx context.Context, orderID, reason string, cause *ordergatev1.HoldRelease) (Decision, error) {
	return p.operate(ctx, orderID, ErrNotHeld, func(current *ordergatev1.Order) *orders.Change {
		if cause != nil {
			return orders.ReleaseCause(current, reason, cause)
		}
		return orders.Release(current, reason)
	})
}

// Reinstate restores a canceled order for an operator's reason. It returns once that
// is on disk. ErrNotCanceled and ErrErased if nothing would change, eventlog.ErrNotFound
// if there is no such order.
func (p *Pipeline) Reinstate(ctx context.Context, orderID, reason string) (Decision, error) {
	return p.operate(ctx, orderID, ErrNotCanceled, func(current *ordergatev1.Order) *orders.Change { return orders.Reinstate(current, reason) })
}

// operate changes an order for an operator. unchanged, unless it is nil, is the error
// if nothing changes.
func (p *Pipeline) operate(ctx context.Context, orderID string, unchanged error, do func(*ordergatev1.Order) *orders.Change) (decision Decision, err error) {
	_, err = p.change(ctx, orderID, "", func(current *ordergatev1.Order) (*orders.Change, error) {
		if current == nil {
			return nil, fmt.Errorf("order %s: %w", orderID, eventlog.ErrNotFound)
		}
		decision = Decision{current, current}
		change := do(current)
		switch {
		case change != nil:
			decision.After = change.Order
		case unchanged == nil:
		case orders.Erased(current):
			return nil, fmt.Errorf("order %s: %w", orderID, ErrErased)
		default:
			return nil, fmt.Errorf("order %s: %w", orderID, unchanged)
		}
		return change, nil
	})
	if err != nil {
		return Decision{}, err
	}
	return decision, p.Log.Flush(ctx)
}
