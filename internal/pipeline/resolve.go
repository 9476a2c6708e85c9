package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/stripeapi"
)

const (
	// lookupTimeout bounds the requests to Stripe about one event.
	lookupTimeout = time.Minute
	// unsettledDelay is the time until Stripe is asked again about an object that is not an order
	// yet, such as an open Checkout Session.
	unsettledDelay = time.Hour
)

// referenceKey is the key of a reference in the bucket: accounts and modes
// never meet.
func referenceKey(e *orders.Event, r orders.Reference) string {
	account := e.Account
	if account == "" {
		account = "platform"
	}
	return mode(e.Livemode) + "." + account + "." + string(r.Kind) + "." + r.ID
}

// splitReferenceKey returns what a reference is to.
func splitReferenceKey(key string) (kind orders.ReferenceKind, id string) {
	parts := strings.Split(key, ".")
	if len(parts) < 2 {
		return "", ""
	}
	return orders.ReferenceKind(parts[len(parts)-2]), parts[len(parts)-1]
}

func referenceKeys(e *orders.Event) []string {
	var keys []string
	for _, r := range e.References() {
		keys = append(keys, referenceKey(e, r))
	}
	return keys
}

// beginReferences begins to record the references of events to their order, and returns a function
// that waits until that is done. It is done each time, because the references and the order are not
// one transaction.
func (p *Pipeline) beginReferences(orderID string, events []*result) (recorded func(context.Context) error) {
	var puts []eventlog.Putting
	for _, r := range events {
		for _, key := range referenceKeys(r.event) {
			puts = append(puts, p.Log.Bucket(eventlog.References).Begin(key, []byte(orderID)))
		}
	}
	return func(ctx context.Context) (err error) {
		for _, put := range puts {
			err = errors.Join(err, put.Wait(ctx))
		}
		return err
	}
}

// owner returns the order that one of an event's references points to, the best
// reference first, or eventlog.ErrNotFound.
func (p *Pipeline) owner(ctx context.Context, e *orders.Event) (string, error) {
	keys := referenceKeys(e)
	if p.erased.Load() {
		for _, key := range keys {
			keys = append(keys, erasedKey(key)) // of an order that was erased
		}
	}
	return p.ownerOf(ctx, e, keys)
}

// ownerOf returns the order that the first of some keys with an order points to.
func (p *Pipeline) ownerOf(ctx context.Context, e *orders.Event, keys []string) (string, error) {
	for _, key := range keys {
		owner, err := p.Log.Bucket(eventlog.References).Get(ctx, key)
		if !errors.Is(err, eventlog.ErrNotFound) {
			return string(owner), err
		}
	}
	return "", fmt.Errorf("%s: %w", e.Type, eventlog.ErrNotFound)
}

// lookupError is an answer of Stripe's that leaves open whose order an event is about.
type lookupError struct{ cause error }

func (e *lookupError) Error() string { return "lookup at Stripe: " + e.cause.Error() }
func (e *lookupError) Unwrap() error { return e.cause }

// refusedLookup returns the error of a lookup that did not find an object for certain.
func refusedLookup(err error) error {
	if errors.Is(err, stripeapi.ErrUnavailable) {
		return err
	}
	return &lookupError{err}
}

// claim decides whose sale it is that a PaymentIntent or an invoice is about: the Checkout
// Session's that Stripe names, else its own. Without an API key, only the event of that Session
// can tell.
func (p *Pipeline) claim(ctx context.Context, r *result) error {
	e := r.event
	switch {
	case !p.hasKey(e.Livemode):
		r.err = fmt.Errorf("only Stripe knows whether a Checkout Session claims this sale, and there is no API key for %s mode", mode(e.Livemode))
		r.detail = r.err.Error()
		return p.park(ctx, r, Unmatched)
	case !r.asks:
		p.schedule(r, taskClaim, task{Due: time.Now()})
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	session, err := p.lookUpSession(ctx, e)
	switch {
	case err == nil:
		r.orderID = idOf(session)
		return nil
	case !errors.Is(err, stripeapi.ErrNotFound):
		return p.unavailable(refusedLookup(err))
	}
	invoice, err := p.invoiceOf(ctx, e)
	if err != nil {
		return p.unavailable(refusedLookup(err))
	}
	if invoice != "" {
		return p.ofInvoice(ctx, r, invoice)
	}
	// The best reference decides between two gateways that come this far.
	owner, err := p.Log.Bucket(eventlog.References).Claim(ctx, referenceKeys(e)[0], []byte(e.OrderID()))
	r.orderID = string(owner)
	return err
}

// ofInvoice makes an event one about the order of the invoice that its payment pays, or makes it
// wait for that order.
func (p *Pipeline) ofInvoice(ctx context.Context, r *result, invoice string) error {
	key := referenceKey(r.event, orders.Reference{Kind: orders.Invoice, ID: invoice})
	owner, err := p.Log.Bucket(eventlog.References).Get(ctx, key)
	if !errors.Is(err, eventlog.ErrNotFound) {
		r.orderID = string(owner)
		return err
	}
	r.learned = append(r.learned, key)
	return p.wait(ctx, r, "it pays "+invoice+", of which no order is known")
}

// unavailable keeps other lookups from Stripe for a while if an error says that it is unavailable.
func (p *Pipeline) unavailable(err error) error {
	if errors.Is(err, stripeapi.ErrUnavailable) {
		p.items.setAway(time.Now().Add(p.itemsPause))
	}
	return err
}

// invoiceOf returns the invoice that a PaymentIntent pays; empty when it pays
// none. Since 2025-03-31.basil an event does not name it; what is looked up, in
// an older version, does.
func (p *Pipeline) invoiceOf(ctx context.Context, e *orders.Event) (string, error) {
	if !strings.HasPrefix(e.OrderID(), "pi_") {
		return "", nil
	}
	raw, err := p.Stripe.PaymentIntent(ctx, ref(e, e.OrderID()))
	if err != nil {
		return "", err
	}
	return paidInvoice(raw), nil
}

// paidInvoice reads which invoice a PaymentIntent pays.
func paidInvoice(paymentIntent json.RawMessage) string {
	var intent struct{ Invoice string }
	if err := json.Unmarshal(paymentIntent, &intent); err != nil { // none, or another shape
		return ""
	}
	return intent.Invoice
}

func idOf(raw json.RawMessage) string {
	var object struct{ ID string }
	if err := json.Unmarshal(raw, &object); err != nil { // stripeapi has checked it
		return ""
	}
	return object.ID
}

// lookUp asks Stripe for the sale that a waiting event follows up. A sale whose event never came
// is rebuilt, and held for an operator. If Stripe's answer shows that the event concerns no order
// of this gateway, it is ignored.
func (p *Pipeline) lookUp(ctx context.Context, r *result) error {
	e := r.event
	if e.Optional() || !p.hasKey(e.Livemode) {
		return p.wait(ctx, r, "its order is not known yet")
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	raw, err := p.lookUpSale(ctx, e)
	if err != nil {
		return p.unavailable(refusedLookup(err))
	}
	sale, err := orders.ParseLookup(raw, orders.Lookup{Account: e.Account, InContext: e.InContext, Livemode: e.Livemode, APIVersion: stripeapi.APIVersion}, p.Sources)
	if err != nil {
		return refusedLookup(err)
	}
	if sale.Ignored() {
		if p.mayBecomeSale(raw) {
			p.schedule(r, taskLookup, task{Due: time.Now().Add(unsettledDelay)})
			return p.wait(ctx, r, idOf(raw)+" at Stripe is not an order yet")
		}
		p.ignore(r, idOf(raw)+" at Stripe is not a sale of the configured order sources")
		return nil
	}
	rebuilt := &result{stored: r.stored, event: sale, asks: true, again: true}
	err = p.resolve(ctx, rebuilt, nil)
	r.puts = append(r.puts, rebuilt.puts...)
	if err != nil {
		return err
	}
	if rebuilt.outcome != "" { // its order is another one, which is not there
		return p.wait(ctx, r, "the sale at Stripe belongs to an order that is not known yet")
	}
	r.orderID, r.rebuilt = rebuilt.orderID, rebuilt
	p.Logger.Warn("order rebuilt from a lookup at Stripe; it is held until an operator releases it",
		"order", r.orderID, "mode", mode(e.Livemode), "event", r.stored.ID, "hint", "the sale event never came")
	return nil
}

// mayBecomeSale reports whether an object that was looked up is not an order only because its
// buyer has not come so far.
func (p *Pipeline) mayBecomeSale(raw json.RawMessage) bool {
	var o struct {
		Object        string
		Status        string
		Mode          string
		BillingReason string `json:"billing_reason"`
	}
	if json.Unmarshal(raw, &o) != nil {
		return false
	}
	switch o.Object {
	case "checkout.session":
		return o.Status == "open" && o.Mode != "setup"
	case "invoice":
		return (o.Status == "open" || o.Status == "draft") && slices.Contains(p.Sources.Invoices, o.BillingReason)
	case "payment_intent":
		return p.Sources.PaymentIntents && o.Status != "canceled"
	}
	return false
}

// lookUpSession asks Stripe for the Checkout Session of a sale.
func (p *Pipeline) lookUpSession(ctx context.Context, e *orders.Event) (json.RawMessage, error) {
	return firstFound(e, func(reference orders.Reference, of stripeapi.Ref) (json.RawMessage, error) {
		switch reference.Kind {
		case orders.PaymentIntent:
			return p.Stripe.CheckoutSessionByPaymentIntent(ctx, of)
		case orders.Subscription:
			return p.Stripe.CheckoutSessionBySubscription(ctx, of)
		case orders.Invoice:
			return p.lookUpSessionOfInvoice(ctx, e, of)
		}
		return nil, stripeapi.ErrNotFound
	})
}

// lookUpSessionOfInvoice asks Stripe for the Session whose invoice a sale is, if
// nothing but the invoice itself names it: since 2025-03-31.basil an event does not
// contain the invoice's payment. In the version that is asked for, the invoice
// names it.
func (p *Pipeline) lookUpSessionOfInvoice(ctx context.Context, e *orders.Event, of stripeapi.Ref) (json.RawMessage, error) {
	if !e.MustClaim() || len(e.References()) > 1 {
		return nil, stripeapi.ErrNotFound
	}
	raw, err := p.Stripe.Invoice(ctx, of)
	if err != nil {
		return nil, err
	}
	if of.ID = paymentOfInvoice(raw); of.ID == "" {
		return nil, stripeapi.ErrNotFound
	}
	return p.Stripe.CheckoutSessionByPaymentIntent(ctx, of)
}

// paymentOfInvoice reads which PaymentIntent pays an invoice.
func paymentOfInvoice(invoice json.RawMessage) string {
	var in struct {
		PaymentIntent string `json:"payment_intent"`
	}
	if err := json.Unmarshal(invoice, &in); err != nil { // none, or another shape
		return ""
	}
	return in.PaymentIntent
}

// lookUpSale asks Stripe for the sale that an event follows up: the Session, the
// invoice, or the PaymentIntent itself.
func (p *Pipeline) lookUpSale(ctx context.Context, e *orders.Event) (json.RawMessage, error) {
	raw, err := p.lookUpSession(ctx, e)
	if !errors.Is(err, stripeapi.ErrNotFound) {
		return raw, err
	}
	return firstFound(e, func(reference orders.Reference, of stripeapi.Ref) (json.RawMessage, error) {
		switch reference.Kind {
		case orders.Invoice:
			return p.Stripe.Invoice(ctx, of)
		case orders.PaymentIntent:
			return p.paymentOrItsInvoice(ctx, of)
		}
		return nil, stripeapi.ErrNotFound
	})
}

// firstFound asks for each of an event's references in turn.
func firstFound(e *orders.Event, ask func(orders.Reference, stripeapi.Ref) (json.RawMessage, error)) (json.RawMessage, error) {
	for _, reference := range e.References() {
		raw, err := ask(reference, ref(e, reference.ID))
		if !errors.Is(err, stripeapi.ErrNotFound) {
			return raw, err
		}
	}
	return nil, fmt.Errorf("the sale of %s: %w", e.Type, stripeapi.ErrNotFound)
}

// paymentOrItsInvoice returns the invoice that a PaymentIntent pays, or else the
// PaymentIntent.
func (p *Pipeline) paymentOrItsInvoice(ctx context.Context, of stripeapi.Ref) (json.RawMessage, error) {
	raw, err := p.Stripe.PaymentIntent(ctx, of)
	if err != nil {
		return nil, err
	}
	if of.ID = paidInvoice(raw); of.ID == "" {
		return raw, nil
	}
	return p.Stripe.Invoice(ctx, of)
}

func ref(e *orders.Event, id string) stripeapi.Ref {
	return stripeapi.Ref{ID: id, Account: e.Account, InContext: e.InContext, Livemode: e.Livemode}
}

func (p *Pipeline) hasKey(livemode bool) bool { return p.Stripe != nil && p.Stripe.Has(livemode) }
