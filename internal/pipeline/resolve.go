package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/stripeapi"
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

// record records what points to an event's order, and returns what waits until
// that is done. It is begun before anything is written to the order, and each time,
// because the two are not one transaction.
func (p *Pipeline) record(r *result) (recorded func(context.Context) error) {
	var putting []eventlog.Putting
	for _, key := range referenceKeys(r.event) {
		putting = append(putting, p.Log.Bucket(eventlog.References).Begin(key, []byte(r.orderID)))
	}
	return func(ctx context.Context) error {
		var errs []error
		for _, put := range putting {
			errs = append(errs, put.Wait(ctx))
		}
		return errors.Join(errs...)
	}
}

// orderOf returns the id of the order that an event is about.
func (p *Pipeline) orderOf(ctx context.Context, r *result) (orderID string, err error) {
	e := r.event
	if e.OrderID() != "" && !e.MayBelong() {
		return e.OrderID(), nil
	}
	owner, err := p.owner(ctx, e)
	switch {
	case !errors.Is(err, eventlog.ErrNotFound):
		return owner, err
	case e.MustClaim():
		return p.claim(ctx, r)
	case e.OrderID() != "":
		return e.OrderID(), nil
	}
	return p.recoverSale(ctx, r)
}

// owner returns the order that one of an event's references points to, the best
// reference first, or eventlog.ErrNotFound.
func (p *Pipeline) owner(ctx context.Context, e *orders.Event) (string, error) {
	keys := referenceKeys(e)
	for _, key := range keys {
		keys = append(keys, erasedKey(key)) // of an order that was erased
	}
	for _, key := range keys {
		owner, err := p.Log.Bucket(eventlog.References).Get(ctx, key)
		if !errors.Is(err, eventlog.ErrNotFound) {
			return string(owner), err
		}
	}
	return "", fmt.Errorf("%s: %w", e.Type, eventlog.ErrNotFound)
}

// claim settles whose sale it is that a PaymentIntent or a subscription's first
// invoice tells of: the Checkout Session's that Stripe names, else its own. Only
// Stripe knows: without an API key the event waits for the Session's.
func (p *Pipeline) claim(ctx context.Context, r *result) (orderID string, err error) {
	e := r.event
	if !p.hasKey(e.Livemode) {
		return "", fmt.Errorf("%w: whether a Checkout Session claims it is only known with a Stripe API key for %s mode", errUnmatched, mode(e.Livemode))
	}
	if !r.slow {
		return "", errAskStripe
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	session, err := p.lookUpSession(ctx, e)
	switch {
	case err == nil:
		return idOf(session), nil
	case !errors.Is(err, stripeapi.ErrNotFound):
		return "", refused(err)
	}
	invoice, err := p.invoiceOf(ctx, e)
	if err != nil {
		return "", refused(err)
	}
	if invoice != "" {
		return p.ownerOfInvoice(ctx, e, invoice)
	}
	// The best reference decides between two gateways that come this far.
	owner, err := p.Log.Bucket(eventlog.References).Claim(ctx, referenceKeys(e)[0], []byte(e.OrderID()))
	return string(owner), err
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

// ownerOfInvoice returns the order that an invoice is the sale of.
func (p *Pipeline) ownerOfInvoice(ctx context.Context, e *orders.Event, invoice string) (string, error) {
	owner, err := p.Log.Bucket(eventlog.References).Get(ctx, referenceKey(e, orders.Reference{Kind: orders.Invoice, ID: invoice}))
	if errors.Is(err, eventlog.ErrNotFound) {
		return "", fmt.Errorf("%w: it pays %s", errOfInvoice, invoice)
	}
	return string(owner), err
}

// paidInvoice reads which invoice a PaymentIntent pays.
func paidInvoice(paymentIntent json.RawMessage) string {
	var intent struct{ Invoice string }
	if err := json.Unmarshal(paymentIntent, &intent); err != nil { // none, or another shape
		return ""
	}
	return intent.Invoice
}

// refused makes an event wait for its order where Stripe would not say which one
// it is.
func refused(err error) error {
	if errors.Is(err, stripeapi.ErrUnavailable) {
		return err
	}
	return fmt.Errorf("%w: %w", errUnmatched, err)
}

func idOf(raw json.RawMessage) string {
	var object struct{ ID string }
	if err := json.Unmarshal(raw, &object); err != nil { // stripeapi has checked it
		return ""
	}
	return object.ID
}

// recoverSale finds the sale that an event follows up and that was never heard
// of, and rebuilds its order, which is then held for an operator.
func (p *Pipeline) recoverSale(ctx context.Context, r *result) (orderID string, err error) {
	e := r.event
	// Most often the sale is only late.
	if r.deliveries < maxDeliveries || e.Optional() || !p.hasKey(e.Livemode) {
		return "", errUnmatched
	}
	if !r.slow {
		return "", errAskStripe
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	sale, err := p.lookUpSale(ctx, e)
	if err != nil {
		return "", refused(err)
	}
	rebuilt := &result{stored: r.stored, event: sale, deliveries: r.deliveries, slow: true}
	if err := p.apply(ctx, rebuilt); err != nil {
		return "", err
	}
	r.after = append(r.after, rebuilt.after...)
	p.Logger.Warn("an order was rebuilt from a lookup at Stripe: its sale event never came. It is held until an operator releases it",
		"order", rebuilt.orderID, "mode", mode(e.Livemode), "event", r.stored.ID)
	return rebuilt.orderID, nil
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
func (p *Pipeline) lookUpSale(ctx context.Context, e *orders.Event) (*orders.Event, error) {
	raw, err := p.lookUpSession(ctx, e)
	if errors.Is(err, stripeapi.ErrNotFound) {
		raw, err = firstFound(e, func(reference orders.Reference, of stripeapi.Ref) (json.RawMessage, error) {
			switch reference.Kind {
			case orders.Invoice:
				return p.Stripe.Invoice(ctx, of)
			case orders.PaymentIntent:
				return p.paymentOrItsInvoice(ctx, of)
			}
			return nil, stripeapi.ErrNotFound
		})
	}
	if err != nil {
		return nil, err
	}
	sale, err := orders.ParseLookup(raw, orders.Lookup{Account: e.Account, InContext: e.InContext, Livemode: e.Livemode, APIVersion: stripeapi.APIVersion}, p.Sources)
	if err == nil && sale.Ignored() {
		err = fmt.Errorf("%s is no sale of this gateway's: %w", idOf(raw), stripeapi.ErrNotFound)
	}
	return sale, err
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
