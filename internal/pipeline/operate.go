package pipeline

import (
	"context"
	"fmt"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
)

// Hold stops an order for an operator's reason, and returns the order once that
// is on disk. eventlog.ErrNotFound when there is no such order.
func (p *Pipeline) Hold(ctx context.Context, orderID, reason string) (*ordergatev1.Order, error) {
	return p.operate(ctx, orderID, func(current *ordergatev1.Order) *orders.Change { return orders.Hold(current, reason) })
}

// Release frees an order, for an operator's reason, from everything that holds
// it now, and returns the order once that is on disk. eventlog.ErrNotFound when
// there is no such order.
func (p *Pipeline) Release(ctx context.Context, orderID, reason string) (*ordergatev1.Order, error) {
	return p.operate(ctx, orderID, func(current *ordergatev1.Order) *orders.Change { return orders.Release(current, reason) })
}

func (p *Pipeline) operate(ctx context.Context, orderID string, do func(*ordergatev1.Order) *orders.Change) (*ordergatev1.Order, error) {
	var order *ordergatev1.Order
	_, err := p.change(ctx, orderID, "", func(current *ordergatev1.Order) (*orders.Change, error) {
		if current == nil {
			return nil, fmt.Errorf("order %s: %w", orderID, eventlog.ErrNotFound)
		}
		order = current
		change := do(current)
		if change != nil {
			order = change.Order
		}
		return change, nil
	})
	if err != nil {
		return nil, err
	}
	return order, p.Log.Flush(ctx)
}
