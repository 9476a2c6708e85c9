package pipeline

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const (
	// eraseBatch is how many stored events are read at a time.
	eraseBatch = 200
	// erasedPrefix begins the keys of references to erased orders.
	erasedPrefix = "erased."
)

// Selection says whose data is to be erased.
type Selection struct {
	// OrderIDs are orders.
	OrderIDs []string
	// Customers are Stripe customer ids (cus_…) or e-mail addresses, whose orders
	// and events are meant.
	Customers []string
	// DryRun only counts.
	DryRun bool
}

// ErasureReport is what was found, and, unless it was a dry run, erased.
type ErasureReport struct {
	// OrdersRead and EventsRead are how many stored order events and Stripe events
	// were looked at, of about OrdersTotal and EventsTotal.
	OrdersRead, OrdersTotal, EventsRead, EventsTotal int64
	// Orders are the orders that were found.
	Orders []string
	// OrderEvents are events of these orders, Events are Stripe events about them
	// or the customers, parked ones too, References are the Stripe objects that
	// point to the orders.
	OrderEvents, Events, References int64
	// Pending are such Stripe events that are not converted yet, and stay: what
	// becomes of them may be an order. One that is about an erased order is erased
	// when it is converted.
	Pending int64
}

// erasure is one call of Erase.
type erasure struct {
	*Pipeline
	dryRun    bool
	forget    func(context.Context, *eventlog.OrderRecord) error
	progress  func(ErasureReport)
	report    ErasureReport
	customers map[string]bool // as customerKey has them
	orders    map[string]bool
	needles   map[string]bool // what a Stripe event says if it is to be erased
	pointers  []pointer

	ordersState eventlog.OrdersState
	inboxState  eventlog.InboxState
}

// pointer is a reference to one of the orders.
type pointer struct{ key, orderID string }

// Erase erases orders and all that is stored about them: their events, the Stripe
// events that name them, their payments or the customers, the parked ones too, and
// what points to them. Each order leaves a tombstone, which is a last order event
// (ERASED), and so does each Stripe event, which keeps its id taken.
//
// forget has those who hold something of an order drop it, before its earlier
// events go. What was erased when Erase fails stays erased; another call with the
// same selection finds the rest.
func (p *Pipeline) Erase(ctx context.Context, selection Selection, forget func(context.Context, *eventlog.OrderRecord) error, progress func(ErasureReport)) (ErasureReport, error) {
	e := &erasure{
		Pipeline: p, dryRun: selection.DryRun, forget: forget, progress: progress,
		customers: map[string]bool{}, orders: map[string]bool{}, needles: map[string]bool{},
	}
	for _, customer := range selection.Customers {
		e.customers[customerKey(customer)] = true
		e.needles[customerKey(customer)] = true
	}
	for _, id := range selection.OrderIDs {
		if _, err := p.Log.NewestOrder(ctx, id); err != nil {
			return e.report, err
		}
		e.find(id)
	}
	for _, step := range []func(context.Context) error{e.measure, e.findOrders, e.findReferences, e.eraseOrders, e.eraseReferences, e.eraseEvents, e.eraseParked, p.Log.Flush} {
		if err := step(ctx); err != nil {
			return e.report, err
		}
	}
	return e.report, nil
}

// customerKey is how a customer is compared: an e-mail address without regard to
// case.
func customerKey(customer string) string {
	if strings.Contains(customer, "@") {
		return strings.ToLower(customer)
	}
	return customer
}

func (e *erasure) find(orderID string) {
	if !e.orders[orderID] {
		e.orders[orderID] = true
		e.needles[orderID] = true
		e.report.Orders = append(e.report.Orders, orderID)
	}
}

// measure finds out how much there is to look at.
func (e *erasure) measure(ctx context.Context) error {
	if err := e.Log.Flush(ctx); err != nil { // ReadOrders shows what is on disk
		return err
	}
	var err error
	if e.ordersState, err = e.Log.OrdersState(ctx); err != nil {
		return err
	}
	if e.inboxState, err = e.Log.InboxState(ctx); err != nil {
		return err
	}
	e.report.EventsTotal = int64(e.inboxState.Last - (e.inboxState.First - 1))
	if len(e.customers) > 0 {
		e.report.OrdersTotal = int64(e.ordersState.Durable - (e.ordersState.First - 1))
	}
	return nil
}

// findOrders finds the orders of customers. It looks at every revision: an earlier
// erasure may have got no further than the tombstone.
func (e *erasure) findOrders(ctx context.Context) error {
	if len(e.customers) == 0 {
		return nil
	}
	state := e.ordersState
	return e.Log.ScanOrders(ctx, state.First-1, state.Durable, func(records []*eventlog.OrderRecord, next uint64) error {
		for _, record := range records {
			event, err := record.Event()
			if err != nil {
				return err
			}
			customer := event.GetOrder().GetCustomer()
			if e.customers[customer.GetId()] || e.customers[customerKey(customer.GetEmail())] {
				e.find(record.OrderID)
			}
		}
		e.report.OrdersRead = int64(next - (state.First - 1))
		e.progress(e.report)
		return nil
	})
}

// findReferences finds what points to the orders.
func (e *erasure) findReferences(ctx context.Context) error {
	err := e.Log.Bucket(eventlog.References).Entries(ctx, ">", func(key string, value []byte) error {
		if !e.orders[string(value)] || strings.HasPrefix(key, erasedPrefix) {
			return nil
		}
		// A subscription has other boxes, which are orders of their own.
		if kind, id := splitReferenceKey(key); kind != orders.Subscription {
			e.needles[id] = true
		}
		e.pointers = append(e.pointers, pointer{key, string(value)})
		return nil
	})
	e.report.References = int64(len(e.pointers))
	return err
}

// eraseReferences removes what points to the orders. A tombstone of each reference
// stays, by its hash, so that what Stripe sends later about the same payment is
// known for what it is.
func (e *erasure) eraseReferences(ctx context.Context) error {
	if e.dryRun {
		return nil
	}
	for _, p := range e.pointers {
		if err := e.eraseReference(ctx, p.key, p.orderID); err != nil {
			return err
		}
	}
	return nil
}

func (p *Pipeline) eraseReference(ctx context.Context, key, orderID string) error {
	p.erased.Store(true)
	references := p.Log.Bucket(eventlog.References)
	if err := references.Put(ctx, erasedKey(key), []byte(orderID)); err != nil {
		return err
	}
	return references.Erase(ctx, key)
}

// hasErased reports whether there may be references of erased orders.
func (p *Pipeline) hasErased(ctx context.Context) bool {
	found := errors.New("found")
	err := p.Log.Bucket(eventlog.References).Entries(ctx, erasedPrefix+">", func(string, []byte) error { return found })
	return err != nil
}

// erasedKey is the key under which a reference to an erased order is kept.
func erasedKey(key string) string {
	hash := sha256.Sum256([]byte(key))
	return erasedPrefix + hex.EncodeToString(hash[:16])
}

// eraseOrders leaves nothing of the orders but their tombstones. Subscriptions let
// go of what they have before it is gone.
func (e *erasure) eraseOrders(ctx context.Context) error {
	for _, id := range e.report.Orders {
		if e.dryRun {
			if err := e.eachRecord(ctx, id, func(*eventlog.OrderRecord) error { e.report.OrderEvents++; return nil }); err != nil {
				return err
			}
			continue
		}
		n, err := e.eraseOrder(ctx, id)
		if err != nil {
			return fmt.Errorf("erase order %s: %w", id, err)
		}
		e.report.OrderEvents += int64(n)
		e.Logger.Info("an order was erased", "order", id, "events", n)
		e.progress(e.report)
	}
	return nil
}

func (e *erasure) eraseOrder(ctx context.Context, id string) (erased int, err error) {
	_, err = e.change(ctx, id, "", func(current *ordergatev1.Order) (*orders.Change, error) { return orders.Erase(current), nil })
	if err != nil {
		return 0, err
	}
	tombstone, err := e.Log.DurableOrder(ctx, id)
	if err != nil {
		return 0, err
	}
	if err := e.forget(ctx, tombstone); err != nil {
		return 0, err
	}
	if err := e.Log.Bucket(eventlog.PendingItems).Delete(ctx, id); err != nil {
		return 0, err
	}
	return e.Log.EraseOrderEvents(ctx, id, tombstone.Sequence)
}

// eraseEvents erases the stored Stripe events that say something of the orders or
// the customers.
func (e *erasure) eraseEvents(ctx context.Context) error {
	state := e.inboxState
	for after := state.First - 1; after < state.Last; {
		batch, err := e.Log.ReadInbox(ctx, after, eraseBatch)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			break
		}
		for _, stored := range batch {
			if stored.Erased || !e.says(stored.Body) {
				continue
			}
			status, err := e.StatusOf(ctx, stored, state.Converted)
			if err != nil {
				return err
			}
			// Of an event about an erased order nothing more can come.
			if status.Outcome == Pending && !slices.Contains(e.report.Orders, status.OrderID) {
				e.report.Pending++
				continue
			}
			e.report.Events++
			if e.dryRun {
				continue
			}
			if err := e.eraseEvent(ctx, stored); err != nil {
				return err
			}
		}
		last := batch[len(batch)-1].Sequence
		e.report.EventsRead = int64(last - (state.First - 1))
		after = last
		e.progress(e.report)
	}
	return nil
}

// eraseParked erases the parked events that the inbox has forgotten by age; the
// others went with it.
func (e *erasure) eraseParked(ctx context.Context) error {
	var stored []*eventlog.StoredEvent
	err := e.Log.Bucket(eventlog.ParkedEvents).Entries(ctx, ">", func(id string, value []byte) error {
		var parked Parked
		if err := json.Unmarshal(value, &parked); err != nil {
			return fmt.Errorf("parked event %s: %w", id, err)
		}
		if e.says(parked.Event) {
			stored = append(stored, &eventlog.StoredEvent{RawEvent: eventlog.RawEvent{ID: id, Body: parked.Event}})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range stored {
		_, err := e.Log.InboxEvent(ctx, s.ID)
		if !e.dryRun || errors.Is(err, eventlog.ErrNotFound) {
			e.report.Events++
		}
		if e.dryRun {
			continue
		}
		if err := e.eraseEvent(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// says reports whether a Stripe event names one of the orders, their payments or
// the customers: as a whole JSON string, whatever the event is about. Strings with
// escapes are compared as what they stand for.
func (e *erasure) says(body []byte) bool {
	if bytes.IndexByte(body, '\\') >= 0 && e.saysEscaped(body) {
		return true
	}
	for text := range bytes.SplitSeq(body, []byte{'"'}) {
		if bytes.IndexByte(text, '@') >= 0 {
			text = bytes.ToLower(text)
		}
		if e.needles[string(text)] {
			return true
		}
	}
	return false
}

// saysEscaped is says for the decoded strings of a body.
func (e *erasure) saysEscaped(body []byte) bool {
	decoder := json.NewDecoder(bytes.NewReader(body))
	for {
		token, err := decoder.Token()
		if err != nil { // the end, or not JSON
			return false
		}
		if text, ok := token.(string); ok && e.needles[customerKey(text)] {
			return true
		}
	}
}

// eraseEvent erases a Stripe event, wherever it is kept.
func (p *Pipeline) eraseEvent(ctx context.Context, stored *eventlog.StoredEvent) error {
	if err := p.Log.EraseInbox(ctx, stored.ID, tombstoneOf(stored)); err != nil {
		return err
	}
	kept, err := p.recordOf(ctx, stored.ID)
	if err != nil && !errors.Is(err, eventlog.ErrNotFound) {
		return err
	}
	if err := p.unindex(ctx, stored.ID, kept.Waits); err != nil {
		return err
	}
	return p.unpark(ctx, stored.ID)
}

// tombstoneOf is what is left of an event: its envelope.
func tombstoneOf(stored *eventlog.StoredEvent) []byte {
	envelope, _ := stripehook.ReadEnvelope(stored.Body) // empty when it cannot be read
	tombstone, err := json.Marshal(map[string]any{
		"id": stored.ID, "object": "event", "type": envelope.Type, "api_version": envelope.APIVersion, "account": envelope.Account, "livemode": envelope.Livemode,
	})
	if err != nil { // there is nothing in it that could not be encoded
		panic(err)
	}
	return tombstone
}

// eraseLate erases an event about an order that was erased before, and its references.
func (p *Pipeline) eraseLate(ctx context.Context, r *result) error {
	for _, key := range referenceKeys(r.event) {
		if err := p.eraseReference(ctx, key, r.orderID); err != nil {
			return err
		}
	}
	return p.eraseEvent(ctx, r.stored)
}
