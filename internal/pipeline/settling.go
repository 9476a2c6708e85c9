package pipeline

import (
	"context"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/orders"
)

// startSettling schedules the end of an order's settling period. It is stored before the order, so
// that no order settles for ever.
func (p *Pipeline) startSettling(ctx context.Context, orderID string, until time.Time) error {
	t := task{Due: until}
	if err := p.agenda.begin(taskSettle, orderID, t).Wait(ctx); err != nil {
		return err
	}
	p.agenda.add(taskSettle, orderID, t)
	return nil
}

// endSettling ends the settling period of an order.
func (p *Pipeline) endSettling(ctx context.Context, orderID string) error {
	change, err := p.change(ctx, orderID, "", func(current *ordergatev1.Order) (*orders.Change, error) {
		return orders.EndSettling(current), nil
	})
	if err != nil {
		return err
	}
	// Also if nothing changed: an earlier attempt may have got no further than the write.
	if err := p.Log.Flush(ctx); err != nil || change == nil {
		return err
	}
	p.Logger.Info("settled", "order", orderID, "mode", mode(change.Order.GetLivemode()), "revision", change.Order.GetRevision(),
		"directive", shortName(change.Order.GetDirective().String(), "DIRECTIVE_"))
	return nil
}
