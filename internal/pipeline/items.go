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

func (i *itemReader) isAway() bool { return time.Now().Before(i.awayUntil()) }

func (i *itemReader) awayUntil() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.away
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

// withItems returns the line items of an order, for the sales among some events, and the events
// that can be applied now. A sale that needs Stripe's answer is scheduled instead.
func (p *Pipeline) withItems(ctx context.Context, orderID string, events []*result) (now []*result, items orders.LineItems) {
	for _, r := range events {
		r.orderID = orderID
		needed, err := p.lineItems(ctx, r)
		switch {
		case err != nil:
			p.failed(ctx, r, err)
		case r.task != "":
		default:
			now = append(now, r)
			if needed.State != ordergatev1.LineItemsState_LINE_ITEMS_STATE_UNSPECIFIED {
				items = needed
			}
		}
	}
	return now, items
}

// lineItems returns the line items of an event's order, as far as they are known. A task waits for
// Stripe until the deadline; then the order goes out without them, and they follow
// (completeItems). Any other sale that needs them becomes a task.
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
	complete := current.GetLineItemsState() == ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE
	if complete || orders.Erased(current) || current.GetOmittedContent() == ordergatev1.OmittedContent_OMITTED_CONTENT_LINE_ITEMS {
		return orders.LineItems{}, nil
	}
	deadline := r.stored.StoreTime.Add(p.ItemsDeadline)
	if p.items.isAway() || !time.Now().Before(deadline) {
		return itemsPending, p.putPending(ctx, r.orderID, pendingItems{Account: r.event.Account, InContext: r.event.InContext, Livemode: r.event.Livemode})
	}
	if !r.asks {
		p.schedule(r, taskSale, task{Due: time.Now()})
		return orders.LineItems{}, nil
	}
	waiting, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	items, err := p.readItems(waiting, ref(r.event, r.orderID), r.event.ShippingRate())
	if ctx.Err() != nil {
		return orders.LineItems{}, ctx.Err()
	}
	if err != nil {
		p.Logger.Warn("order goes out without its line items; they follow when Stripe's API gives them", "order", r.orderID, "error", err)
		return itemsPending, p.putPending(ctx, r.orderID, pendingItems{Account: r.event.Account, InContext: r.event.InContext, Livemode: r.event.Livemode})
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

// putPending records an order whose line items are missing, so that they are read later, also
// after a restart. It precedes the write of the order, because the two are not one transaction.
func (p *Pipeline) putPending(ctx context.Context, orderID string, pending pendingItems) error {
	return p.Log.Bucket(eventlog.PendingItems).Put(ctx, orderID, encoded(pending))
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

// completeAll reads the line items of all orders that lack them, unless Stripe's API is
// unavailable. An error of one order does not affect the others.
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
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, id := range ids {
		group.Go(func() error {
			if ctx.Err() != nil || p.items.isAway() {
				return nil
			}
			return guard(func() error { return p.complete(ctx, id) })
		})
	}
	return group.Wait()
}

// complete reads the line items of one order.
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
	if isTransient(ctx, err) {
		return err
	}
	if err != nil {
		return p.postpone(ctx, orderID, pending, err)
	}
	change, err := p.change(ctx, orderID, "", func(current *ordergatev1.Order) (*orders.Change, error) {
		if current == nil {
			return nil, errNoOrder // the note is older than the order
		}
		return orders.SetLineItems(current, items), nil
	})
	if errors.Is(err, errNoOrder) {
		pending.NotBefore = time.Now().Add(p.itemsPause)
		return p.putPending(ctx, orderID, pending)
	}
	if err != nil {
		if isTransient(ctx, err) {
			return err
		}
		return p.postpone(ctx, orderID, pending, err)
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

// postpone tries the line items of an order again after some minutes: somebody has to remove the
// cause of the error first.
func (p *Pipeline) postpone(ctx context.Context, orderID string, pending pendingItems, cause error) error {
	p.Logger.Warn("line items of an order cannot be added; the order waits for them", "order", orderID, "again_in", itemsRetry, "error", cause)
	pending.NotBefore = time.Now().Add(itemsRetry)
	return p.putPending(ctx, orderID, pending)
}

// errNoOrder means that an order does not exist yet.
var errNoOrder = errors.New("there is no such order yet")
