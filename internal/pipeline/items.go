package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/stripeapi"
)

const (
	// itemsInterval is how often the orders without line items are looked at.
	itemsInterval = 2 * time.Second
	// itemsPause is how long nobody waits for line items after Stripe's API was
	// found to be away.
	itemsPause = 10 * time.Second
	// itemsRetry is when line items are asked for again that Stripe refused, for
	// a reason that somebody has to mend.
	itemsRetry = 10 * time.Minute
)

var (
	itemsPending     = orders.LineItems{State: ordergatev1.LineItemsState_LINE_ITEMS_STATE_PENDING}
	itemsUnavailable = orders.LineItems{State: ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNAVAILABLE}
)

// itemReader reads the line items of an order once for all that ask at a time,
// and remembers that Stripe's API is away.
type itemReader struct {
	flight singleflight.Group

	mu   sync.Mutex
	away time.Time // until when
}

func (i *itemReader) isAway() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return time.Now().Before(i.away)
}

func (i *itemReader) setAway(until time.Time) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.away = until
}

// readItems asks Stripe for the line items of an order, and for its shipping rate if
// it has one.
func (p *Pipeline) readItems(ctx context.Context, of stripeapi.Ref, shippingRate string) (orders.LineItems, error) {
	reading := p.items.flight.DoChan(of.ID, func() (any, error) {
		items, err := p.readDetails(ctx, of, shippingRate)
		switch {
		case errors.Is(err, stripeapi.ErrUnavailable):
			p.items.setAway(time.Now().Add(p.itemsPause))
		case err == nil:
			p.items.setAway(time.Time{})
		}
		return items, err
	})
	select {
	case <-ctx.Done():
		return itemsPending, ctx.Err()
	case read := <-reading:
		if read.Err != nil {
			return itemsPending, read.Err
		}
		return read.Val.(orders.LineItems), nil
	}
}

// readDetails makes the requests of readItems.
func (p *Pipeline) readDetails(ctx context.Context, of stripeapi.Ref, shippingRate string) (_ orders.LineItems, err error) {
	details := orders.LineItems{State: ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE}
	if details.Items, err = p.Stripe.LineItems(ctx, of); err != nil || shippingRate == "" {
		return details, err
	}
	of.ID = shippingRate
	details.ShippingRate, err = p.Stripe.ShippingRate(ctx, of)
	return details, err
}

// lineItems returns what is known of the line items of an event's order. In the
// slow lane it waits for Stripe until the deadline, and then lets the order go
// out without them: they follow (completeItems).
func (p *Pipeline) lineItems(ctx context.Context, r *result) (orders.LineItems, error) {
	switch {
	case r.event.OrderID() != r.orderID || !hasItems(r.orderID):
		return orders.LineItems{}, nil // they are the sale's
	case !p.hasKey(r.event.Livemode):
		return itemsUnavailable, nil
	}
	current, _, err := p.newest(ctx, r.orderID)
	if err != nil {
		return orders.LineItems{}, err
	}
	if current.GetLineItemsState() == ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE || orders.Erased(current) {
		return orders.LineItems{}, nil
	}
	deadline := r.stored.StoreTime.Add(p.ItemsDeadline)
	if p.items.isAway() || !time.Now().Before(deadline) {
		return itemsPending, nil
	}
	if !r.slow {
		return orders.LineItems{}, errAskStripe
	}
	waiting, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	items, err := p.readItems(waiting, ref(r.event, r.orderID), r.event.ShippingRate())
	if ctx.Err() != nil {
		return orders.LineItems{}, ctx.Err()
	}
	if err != nil {
		p.Logger.Warn("an order goes out without its line items; they follow when Stripe's API gives them", "order", r.orderID, "error", err)
	}
	return items, nil
}

// hasItems reports whether Stripe has line items for an order of this id.
func hasItems(orderID string) bool {
	return len(orderID) > 3 && (orderID[:3] == "cs_" || orderID[:3] == "in_")
}

// pendingItems is an order whose line items are still to be read.
type pendingItems struct {
	Account   string `json:"account,omitempty"`
	InContext bool   `json:"in_context,omitempty"`
	Livemode  bool   `json:"livemode"`
	// NotBefore is when to ask again, after Stripe refused.
	NotBefore time.Time `json:"not_before,omitzero"`
}

// rememberPending notes an order that goes out without line items, so that they
// are read later, also after a restart: before the order is written, and each
// time, because the two are not one transaction.
func (p *Pipeline) rememberPending(ctx context.Context, r *result, items orders.LineItems) error {
	if items.State != ordergatev1.LineItemsState_LINE_ITEMS_STATE_PENDING {
		return nil
	}
	return p.putPending(ctx, r.orderID, pendingItems{Account: r.event.Account, InContext: r.event.InContext, Livemode: r.event.Livemode})
}

func (p *Pipeline) putPending(ctx context.Context, orderID string, pending pendingItems) error {
	value, err := json.Marshal(pending)
	if err != nil {
		return err
	}
	return p.Log.Bucket(eventlog.PendingItems).Put(ctx, orderID, value)
}

// completeItems reads the line items that orders went out without, until ctx
// ends.
func (p *Pipeline) completeItems(ctx context.Context) {
	if p.Stripe == nil {
		return
	}
	tick := time.NewTicker(p.itemsInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !p.Log.Leads() { // another gateway does it
			continue
		}
		if err := p.completeAll(ctx); err != nil && ctx.Err() == nil {
			p.Logger.Debug("line items are still missing", "error", err)
		}
	}
}

// completeAll goes once through the orders that wait for line items, and stops
// at the first sign that Stripe's API or the log is away.
func (p *Pipeline) completeAll(ctx context.Context) error {
	if p.items.isAway() {
		return nil
	}
	bucket := p.Log.Bucket(eventlog.PendingItems)
	if empty, err := bucket.Empty(ctx); err != nil || empty {
		return err
	}
	ids, err := bucket.Keys(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, id := range ids {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return p.complete(ctx, id) })
	}
	return group.Wait()
}

// complete reads the line items of one order. An error means that the others
// need not be tried now.
func (p *Pipeline) complete(ctx context.Context, orderID string) error {
	bucket := p.Log.Bucket(eventlog.PendingItems)
	value, err := bucket.Get(ctx, orderID)
	if errors.Is(err, eventlog.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var pending pendingItems
	if err := json.Unmarshal(value, &pending); err != nil {
		return err
	}
	if time.Now().Before(pending.NotBefore) || !p.hasKey(pending.Livemode) {
		return nil
	}
	current, _, err := p.newest(ctx, orderID)
	if err != nil {
		return err
	}
	of := stripeapi.Ref{ID: orderID, Account: pending.Account, InContext: pending.InContext, Livemode: pending.Livemode}
	items, err := p.readItems(ctx, of, orders.ShippingRateOf(current))
	if errors.Is(err, stripeapi.ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	if err != nil {
		p.Logger.Warn("Stripe refuses the line items of an order, which waits for them", "order", orderID, "again_in", itemsRetry, "error", err)
		pending.NotBefore = time.Now().Add(itemsRetry)
		return p.putPending(ctx, orderID, pending)
	}
	change, err := p.change(ctx, orderID, "", func(current *ordergatev1.Order) (*orders.Change, error) {
		if current == nil {
			return nil, errUnmatched // the note is older than the order
		}
		return orders.SetLineItems(current, items), nil
	})
	if errors.Is(err, errUnmatched) {
		pending.NotBefore = time.Now().Add(p.itemsPause)
		return p.putPending(ctx, orderID, pending)
	}
	if err != nil {
		return err
	}
	if err := p.Log.Flush(ctx); err != nil {
		return err
	}
	if change != nil {
		p.Logger.Info("line items", "order", orderID, "mode", mode(pending.Livemode), "items", len(items.Items), "revision", change.Order.GetRevision(),
			"directive", shortName(change.Order.GetDirective().String(), "DIRECTIVE_"))
	}
	return bucket.Forget(ctx, orderID)
}
