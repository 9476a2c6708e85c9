package orders

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/rawjson"
)

// Event is a Stripe event, as far as orders need it, or an object that was
// looked up at Stripe (see [ParseLookup]). It is immutable once parsed.
//
// It is a sale when it can make an order ([Event.OrderID]), a follow-up when it
// only says something about an order that exists, and neither when it is not
// about an order ([Event.Ignored]).
type Event struct {
	// ID is the event's id (`evt_…`): letters, digits and `_` only. Empty for a
	// lookup.
	ID string
	// Type is the event's type, such as `checkout.session.completed`; for a
	// lookup it is that of the object, such as `checkout.session`.
	Type string
	// APIVersion is the version that fixed the shape of the event's object.
	// Empty when the event names none.
	APIVersion string
	// Account is the account (`acct_…`) the event is of: a connected account, or
	// one of the organization that owns the event destination. Empty for the
	// platform's own.
	Account string
	// InContext means that Account is an organization's, named in the event's
	// `context`: requests for it are sent with `Stripe-Context` instead of
	// `Stripe-Account`.
	InContext bool
	// Livemode is true only when the event, or its object, says so and neither
	// denies it.
	Livemode bool
	// Created is when Stripe made the event, in UTC, to the second; zero when
	// the event does not say. Nothing may be put in order by it.
	Created time.Time

	sale       *sale     // nil when it cannot make an order
	followUp   *followUp // nil when it says nothing about another object's order
	references []Reference
	optional   bool
	mustClaim  bool
	lookup     bool
	warnings   []string
}

// sale is what one snapshot of a Stripe object says about an order.
type sale struct {
	// payment is how far the snapshot says the money got.
	payment payment
	// order holds what is read from the snapshot and nothing that is derived:
	// no revision, status, directive or reasons.
	order *ordergatev1.Order
	// items are the line items, where the snapshot has the whole list; nil
	// otherwise.
	items []*ordergatev1.LineItem
	// charges are the charges of a PaymentIntent's own order.
	charges []*ordergatev1.Charge
}

// followUp is what an event says about an order that another object made.
type followUp struct {
	// payment is how far the event says the money got; unknown when it does not
	// speak of that.
	payment payment
	// facts holds the lists of facts (refunds, disputes, …) with what the event
	// adds to them, payment_unclear, capture_before_time, and paid_time where
	// payment is paid. Nil adds nothing.
	facts *ordergatev1.Order
	// onlyIntents means that the event is about orders of PaymentIntents only.
	onlyIntents bool
}

// Reference names a Stripe object that belongs to an order.
type Reference struct {
	Kind ReferenceKind
	ID   string // letters, digits and `_` only
}

// ReferenceKind is the kind of a Stripe object that belongs to an order. The
// values are Stripe's own names.
type ReferenceKind string

const (
	PaymentIntent ReferenceKind = "payment_intent"
	Invoice       ReferenceKind = "invoice"
	Charge        ReferenceKind = "charge"
	Subscription  ReferenceKind = "subscription"
)

// Sources says what makes orders beside Checkout Sessions. The zero value is:
// nothing. See [DefaultSources].
type Sources struct {
	// PaymentIntents makes orders of PaymentIntents, for shops on Stripe
	// Elements.
	PaymentIntents bool
	// Invoices are the billing reasons whose paid invoices are orders, such as
	// `subscription_cycle`
	// (https://docs.stripe.com/api/invoices/object#invoice_object-billing_reason).
	Invoices []string
	// ShipOnAuthorization makes orders that ship once their payment is authorized,
	// for shops that capture on shipment.
	ShipOnAuthorization bool
}

// DefaultSources makes orders of Checkout Sessions and of a subscription's
// boxes: its first one, unless a Session claims it, and each later one.
func DefaultSources() Sources {
	return Sources{Invoices: []string{subscriptionCreate, "subscription_cycle"}}
}

// OrderID is the id of the order that the event makes, or is the sale of. It is
// empty for a follow-up and for an event that is not about an order.
func (e *Event) OrderID() string {
	if e.sale == nil {
		return ""
	}
	return e.sale.order.GetId()
}

// Ignored reports whether the event is not about an order: its type is not one
// that the gateway uses, its object belongs to no sale, or is not a source of
// orders.
func (e *Event) Ignored() bool { return e.sale == nil && e.followUp == nil }

// References are the Stripe objects through which the event is tied to its
// order, the best one first.
//
// Of a follow-up they say where to look for its order: the first that is known
// tells. Of a sale they are what belongs to its order. In both cases all of them
// point to that order once it is settled which one it is, and should be
// recorded. They are empty for an event that is not about an order.
func (e *Event) References() []Reference { return slices.Clone(e.references) }

// MustClaim reports whether the same sale may be told by another object as
// well, so that the order of this event may be that object's: a PaymentIntent's
// Session or invoice, the Session of a subscription's first invoice or of a manual
// one. Before anything is made of such a sale, the caller looks for an order
// among the References, then asks Stripe for the other object, and at last
// claims the References for OrderID. Where another order turns up, the event is
// applied to that one, as a follow-up.
func (e *Event) MustClaim() bool { return e.mustClaim }

// MayBelong reports whether the sale may be another object's, whose order is then
// among the References: any sale but a Session's. If MustClaim is false, an order
// that is not among the References need not be looked for elsewhere.
func (e *Event) MayBelong() bool {
	return e.sale != nil && e.sale.order.GetSource() != ordergatev1.OrderSource_ORDER_SOURCE_CHECKOUT_SESSION
}

// ShippingRate returns the id of the shipping rate of a sale; empty if there is
// none.
func (e *Event) ShippingRate() string {
	if e.sale == nil {
		return ""
	}
	return ShippingRateOf(e.sale.order)
}

// ShippingRateOf returns the id of an order's shipping rate (`shr_…`); empty if there
// is none that can be read at Stripe.
func ShippingRateOf(o *ordergatev1.Order) string {
	if id := o.GetShippingRate().GetId(); strings.HasPrefix(id, "shr_") && isID(id) {
		return id
	}
	return ""
}

// Optional reports whether nothing is amiss when the order of a follow-up is not
// found: most objects of its type belong to no order, such as the PaymentIntent
// of an abandoned cart. Of any other follow-up the order should exist.
func (e *Event) Optional() bool { return e.optional }

// Concerns reports whether the event is of the account and the mode that the
// order is of. One that is not never touches the order.
func (e *Event) Concerns(o *ordergatev1.Order) bool {
	return e.Account == o.GetAccount() && e.Livemode == o.GetLivemode()
}

// Parse reads a snapshot event. An error means that its object is not what the
// type of the event claims, or that something in it on which shipping depends
// cannot be read; its text holds no personal data. The object of a type that
// the gateway does not use is not looked at.
func Parse(raw []byte, sources Sources) (*Event, error) {
	r := &report{event: "event"}
	top := object{report: r}
	var ok bool
	if top.value, ok = rawjson.Parse(raw); !ok || !top.value.IsObject() {
		return nil, errors.New("the event is not a JSON object")
	}
	e := &Event{ID: top.text("id"), Type: top.text("type"), APIVersion: top.text("api_version")}
	if !isID(e.ID) {
		return nil, fmt.Errorf("id %.40q is not an event id", e.ID)
	}
	if e.Type == "" {
		return nil, errors.New("type is missing")
	}
	r.event = fmt.Sprintf("event %s (API version %.40q)", e.ID, e.APIVersion)
	if created := top.time("created"); created != nil {
		e.Created = created.AsTime()
	}
	e.Account, e.InContext = readAccount(top)
	e.Livemode = agreed(top.boolean("livemode"), nil)
	if r.err == nil {
		e.readObject(top, sources)
	}
	return e.done(r)
}

// Lookup says what is known of an object that was read from Stripe's API.
type Lookup struct {
	Account    string // the account it was read from; empty for the platform's own
	InContext  bool   // see Event.InContext
	Livemode   bool   // whether the API key is of live mode
	APIVersion string // the API version it was asked for in
}

// ParseLookup reads a Checkout Session, an Invoice or a PaymentIntent that was
// looked up, in order to rebuild an order whose sale event was not seen. The
// order it makes is held until an operator releases it (RECOVERED); to an order
// that exists it adds nothing. An object that is not the sale of an order (yet)
// gives an event that is Ignored.
func ParseLookup(raw []byte, from Lookup, sources Sources) (*Event, error) {
	r := &report{event: fmt.Sprintf("lookup (API version %.40q)", from.APIVersion)}
	top := object{report: r}
	var ok bool
	if top.value, ok = rawjson.Parse(raw); !ok || !top.value.IsObject() {
		return nil, errors.New("what was looked up is not a JSON object")
	}
	e := &Event{
		Type:       top.text("object"),
		APIVersion: from.APIVersion,
		Account:    from.Account,
		InContext:  from.InContext,
		Livemode:   agreed(&from.Livemode, top.boolean("livemode")),
		lookup:     true,
	}
	r.event = fmt.Sprintf("lookup of %.80q (API version %.40q)", top.text("id"), from.APIVersion)
	switch e.Type {
	case "checkout.session":
		e.readSession(top, sources)
	case "invoice":
		e.readInvoice(top, sources)
	case "payment_intent":
		e.readPaymentIntent(top, sources)
	default:
		r.fail("object", "is not one that orders are made of")
	}
	if e.sale == nil {
		// A lookup only makes orders; it has nothing to say about others.
		e.followUp, e.references, e.optional = nil, nil, false
	} else {
		e.sale.order.Recovered = true
	}
	return e.done(r)
}

// done completes an event that was read.
func (e *Event) done(r *report) (*Event, error) {
	if r.err != nil {
		return nil, r.err
	}
	e.warnings = r.all()
	return e, nil
}

// readObject reads the object that the event is about, if its type is one that
// is used. https://docs.stripe.com/api/events/types
func (e *Event) readObject(top object, sources Sources) {
	var read func(object)
	switch e.Type {
	case sessionCompleted, sessionPaymentSucceeded, sessionPaymentFailed, sessionExpired:
		read = func(o object) { e.readSession(o, sources) }
	case invoicePaid:
		read = func(o object) { e.readInvoice(o, sources) }
	case invoicePaymentPaid:
		read = e.readInvoicePayment
	case creditNoteCreated, creditNoteUpdated, creditNoteVoided:
		read = e.readCreditNote
	case intentFailed:
		read = func(o object) { e.readFailedIntent(o, sources) }
	case intentSucceeded, intentProcessing, intentCanceled, intentCapturable:
		read = func(o object) { e.readPaymentIntent(o, sources) }
	case chargeRefunded, chargeCaptured, chargeExpired:
		read = e.readCharge
	case refundCreated, refundUpdated, refundFailed, chargeRefundUpdated:
		read = e.readRefundEvent
	case disputeCreated, disputeUpdated, disputeClosed:
		read = e.readDispute
	case reviewOpened, reviewClosed:
		read = e.readReview
	case warningCreated, warningUpdated:
		read = e.readFraudWarning
	default:
		return
	}
	data, _ := top.object("data")
	about, ok := data.object("object")
	if !ok {
		top.fail("data.object", "is not an object")
		return
	}
	e.Livemode = agreed(top.boolean("livemode"), about.boolean("livemode"))
	read(about)
}

// belongsTo adds references, in the order they are given; empty ones are left
// out.
func (e *Event) belongsTo(kind ReferenceKind, ids ...string) {
	for _, id := range ids {
		if r := (Reference{kind, id}); id != "" && !slices.Contains(e.references, r) {
			e.references = append(e.references, r)
		}
	}
}

// readAccount reads the account of an event: `account` of a connected account, or
// else `context` of an organization's
// (https://docs.stripe.com/api/events/object#event_object-context). It fails if
// that cannot be read: an order must not be taken for another account's.
func readAccount(top object) (account string, inContext bool) {
	key := "account"
	if inContext = !top.has(key); inContext {
		key = "context"
	}
	if !top.has(key) {
		return "", false
	}
	if account = top.text(key); !isID(account) {
		top.fail(key, "is not an account id")
	}
	return account, inContext
}

// agreed returns what an event and its object say together: true when one says
// so and neither denies it. (A test must not be shipped.)
func agreed(a, b *bool) bool {
	return (a != nil || b != nil) && (a == nil || *a) && (b == nil || *b)
}
