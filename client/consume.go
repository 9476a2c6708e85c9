package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// Handler deals with one delivery. Nil acknowledges it: the event does not come
// again. An error from [RetryAfter], [Reject] or [Skip], also when wrapped, says
// what is to become of the event; with any other error it is delivered again
// after the subscription's backoff. The error's text is kept as the reason, cut
// to 500 characters: operators see it with dead letters, so leave names and
// addresses out of it.
//
// The context ends when there is no point in going on: context.Cause is then
// [ErrLeaseLost] or [ErrDrainTimeout]. It does not end with the context given to
// Consume, whose values it has. Its deadline is when MaxExtension is over.
//
// A panic is recovered, logged with its stack, and treated like an error: the event
// is delivered again after the subscription's backoff. The reason is the text of the
// panic, followed by the innermost functions of the stack. CrashOnPanic restores the
// crash.
type Handler func(ctx context.Context, delivery *Delivery) error

// Delivery is an event to be dealt with. It is the handler's alone.
type Delivery struct {
	// ID is what the gateway calls this delivery of the event. It is for the log:
	// Consume settles the delivery by itself, under a newer id when the event was
	// delivered again after a break.
	ID string
	// Event is what happened, with the whole order.
	Event *ordergatev1.OrderEvent
	// Attempt is how often the event has been delivered to anyone, this time
	// included.
	Attempt int
	// Redriven is true when an operator had a dead letter delivered again. Later
	// events of its order may have been dealt with before.
	Redriven bool
	// ReplacedRevisions are the revisions of the order that this delivery replaces,
	// ascending: they are not delivered by themselves, and are settled with it. Empty
	// if the subscription has every event delivered.
	ReplacedRevisions []int64
	// LatestRevision is the order's newest revision when the gateway sent the
	// delivery; 0 from a gateway that does not say.
	LatestRevision int64
	// LatestDirective is the directive of that revision. Do not ship if it is HOLD or
	// CANCEL, whatever the directive in Event is. Unspecified from a gateway that does
	// not say.
	LatestDirective ordergatev1.Directive

	lease *lease // nil outside of Consume
}

// LeaseExpireTime returns the time, by the local clock, at which the handler's context
// ends unless the gateway confirms another extension before. It moves on while Consume
// extends the lease. It is zero for a Delivery that does not come from Consume.
func (d *Delivery) LeaseExpireTime() time.Time {
	if d.lease == nil {
		return time.Time{}
	}
	return d.lease.end()
}

var (
	// ErrLeaseLost is why a handler's context ends when the event is not its own
	// any more: the gateway may have given it to another worker, or does so
	// soon. It is wrapped when the reason is MaxExtension, or a lease that has expired
	// by the local clock because the gateway confirmed no extension.
	ErrLeaseLost = errors.New("the lease of the event is lost")
	// ErrDrainTimeout is why a handler's context ends when Consume was stopped
	// and DrainTimeout is over.
	ErrDrainTimeout = errors.New("consume was stopped, and the time to finish is over")
)

// Bounds of the gateway.
const (
	maxOutstanding   = 10_000
	maxSettlements   = 1_000 // in one message
	maxReason        = 500   // in characters
	maxNackDelay     = 24 * time.Hour
	maxClientID      = 128
	minAckDeadline   = time.Second
	maxAckDeadline   = 10 * time.Minute
	usualAckDeadline = 30 * time.Second // when the gateway does not say
)

// ConsumeOptions say how to work on a subscription. The zero value works.
type ConsumeOptions struct {
	// Concurrency is how many handlers run at once at most: 1 to 10,000; 10 when 0.
	// Those of one order never do.
	Concurrency int
	// MaxOutstandingEvents is how many events the gateway may have out with this
	// worker, those included that wait for a handler: 1 to 10,000; twice
	// Concurrency when 0.
	MaxOutstandingEvents int
	// MaxOutstandingBytes is how many bytes of events, as the gateway stores
	// them, may be out with this worker: 1 to 256 MiB; 16 MiB when 0. One event
	// always may.
	MaxOutstandingBytes int64

	// ClientID says who the worker is: up to 128 printable ASCII characters,
	// different between workers. When empty, it is made of the host's name, the
	// process id and random letters.
	ClientID string
	// AckDeadline is how long the gateway waits for a sign of life for an event
	// before it gives it to another worker: 1 s to 10 min; what the subscription
	// says when 0. Consume extends it by itself, in time.
	AckDeadline time.Duration
	// MaxExtension is how long one event is kept in all, from when it came: 1 h
	// when 0. Then its handler's context ends with ErrLeaseLost, the lease is no
	// longer extended, and the event is delivered again. One that has waited for
	// a handler so long is given back.
	MaxExtension time.Duration
	// Heartbeat is how long the gateway may be silent before it sends a
	// heartbeat: 1 s to 10 min, 15 s when 0. A stream that is silent three times
	// as long is broken off and opened again.
	Heartbeat time.Duration
	// DrainTimeout is how long handlers may still run when Consume is to end: 20 s
	// when 0. Together with the wait for the results of the last settlements (2 s), it
	// should be shorter than the grace period of the platform, which is 30 s in
	// Kubernetes.
	DrainTimeout time.Duration

	// Create, if set, is the subscription that is made when there is none of that
	// name; its own name may be left out. One that is there stays as it is. It
	// must not be changed while Consume runs.
	Create *ordergatev1.Subscription
	// Start is where a subscription that is made begins: with what is stored from
	// then on when nil.
	Start *ordergatev1.SubscriptionPosition

	// CrashOnPanic lets the panic of a handler end the program. Its event and all
	// others in hand are then delivered again.
	CrashOnPanic bool

	// Logger takes the panics of handlers, the gateway's warnings about the filter of a
	// subscription that Create made, and a warning for each retry if OnRetry is nil:
	// slog.Default() when nil.
	Logger *slog.Logger
	// OnOpen, if set, is called whenever a stream was opened, with what the gateway
	// says about it: the settings of the subscription, and whether Create made it.
	// It must return soon, like OnRetry.
	OnOpen func(opened *ordergatev1.ConsumeOpened)
	// OnRetry, if set, is called before each wait for another try, with what
	// ended or refused the stream, or with what refused the last settlements
	// while stopping. It is for the log: Consume goes on by itself, and as soon as a
	// failing connection works again. It must return soon: leases are not extended
	// while it runs.
	OnRetry func(err error, wait time.Duration)
}

// Consume works on a subscription: it calls handler for each event that the
// gateway delivers, and settles the delivery as the handler says, until ctx ends
// or an error comes that another try would not change.
//
// Handlers run beside each other, up to Concurrency, but never two for the same
// order, whose events come in order. Leases are extended for as long as it
// takes, up to MaxExtension. An event may come twice, here or at another worker:
// make what handler does idempotent by the event's id.
//
// When the stream breaks, is refused for a while, falls silent, or is ended by a
// gateway that drains, it is opened again, with the waits that [Client.Watch]
// has. Handlers go on meanwhile; what they return is settled on the new stream.
// If the gateway delivers such an event again, no second handler is started. A
// handler's context ends when its lease has expired by the local clock: an ack deadline
// after the delivery or the last confirmed extension. Events that no handler had begun
// with are dropped: they are delivered again.
//
// When ctx ends, Consume tells the gateway to stop, gives back what no handler
// has begun with, lets the others finish, settles their deliveries, and returns
// nil. After DrainTimeout, it ends the contexts of the handlers that are left and
// waits for them, and then up to 2 s for the results of the settlements that have
// none yet. It never abandons a handler: one that ignores its context keeps Consume
// from returning.
//
// Invalid arguments are refused before anything is sent, with INVALID_ARGUMENT and
// the name and value of each. The gateway checks the values of filters.
//
// An error is returned in the same way, with the time to finish: a gRPC status
// of the codes that end a Watch (NOT_FOUND: there is no such subscription and no
// Create, or it was deleted), an [*ExpiredError] for a resume token in Start,
// [ErrConfiguration] for a connection that cannot work, such as one with an unknown
// certificate authority, or CANCELED when the client was closed.
func (c *Client) Consume(ctx context.Context, subscription string, handler Handler, options ConsumeOptions) error {
	if err := checkConsume(subscription, handler, &options); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	return newConsumer(ctx, c, subscription, handler, options).run(ctx)
}

// withDefaults fills in what is 0. The gateway has the other defaults.
func (o ConsumeOptions) withDefaults() ConsumeOptions {
	o.Concurrency = cmp.Or(o.Concurrency, 10)
	o.MaxOutstandingEvents = cmp.Or(o.MaxOutstandingEvents, min(2*o.Concurrency, maxOutstanding))
	o.ClientID = cmp.Or(o.ClientID, newClientID())
	o.MaxExtension = cmp.Or(o.MaxExtension, time.Hour)
	o.Heartbeat = cmp.Or(o.Heartbeat, defaultHeartbeat)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, 20*time.Second)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if o.OnRetry == nil {
		o.OnRetry = logRetries(o.Logger)
	}
	return o
}

// open is the first message of every stream.
func (o *ConsumeOptions) open(subscription string) *ordergatev1.ConsumeRequest {
	open := &ordergatev1.ConsumeOpen{
		Subscription:         subscription,
		ClientId:             o.ClientID,
		MaxOutstandingEvents: int32(o.MaxOutstandingEvents),
		MaxOutstandingBytes:  o.MaxOutstandingBytes,
		HeartbeatInterval:    durationpb.New(o.Heartbeat),
		Create:               o.Create,
		Start:                o.Start,
	}
	if o.AckDeadline != 0 {
		open.AckDeadline = durationpb.New(o.AckDeadline)
	}
	return &ordergatev1.ConsumeRequest{Open: open}
}

func newClientID() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	host = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, host)
	rest := fmt.Sprintf("-%d-%s", os.Getpid(), rand.Text()[:8])
	return host[:min(len(host), maxClientID-len(rest))] + rest
}

// settlementError is a handler's error that says what is to become of the event.
type settlementError struct {
	error
	action ordergatev1.NackAction
	delay  *durationpb.Duration
}

func (e *settlementError) Unwrap() error { return e.error }

// RetryAfter returns an error that has the event delivered again after delay, 0
// to 24 h, instead of after the subscription's backoff; or as a dead letter when
// its attempts are used up. It returns nil if err is nil.
func RetryAfter(err error, delay time.Duration) error {
	return settlement(err, ordergatev1.NackAction_NACK_ACTION_RETRY, durationpb.New(min(max(delay, 0), maxNackDelay)))
}

// Reject returns an error that makes the event a dead letter at once, with err's
// text as the reason. The order's later events then wait for an operator, unless
// the subscription says otherwise. It returns nil if err is nil.
func Reject(err error) error {
	return settlement(err, ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER, nil)
}

// Skip returns an error that has the event done with, as nil would, but says in
// the code that nothing was done. It returns nil if err is nil.
func Skip(err error) error {
	return settlement(err, ordergatev1.NackAction_NACK_ACTION_SKIP, nil)
}

func settlement(err error, action ordergatev1.NackAction, delay *durationpb.Duration) error {
	if err == nil {
		return nil
	}
	return &settlementError{err, action, delay}
}

// nackOf returns the nack that a handler's error means, and nil for nil. It has
// no delivery id yet.
func nackOf(err error) *ordergatev1.Nack {
	if err == nil {
		return nil
	}
	nack := &ordergatev1.Nack{Action: ordergatev1.NackAction_NACK_ACTION_RETRY, Reason: cut(err.Error())}
	if said := (*settlementError)(nil); errors.As(err, &said) {
		nack.Action, nack.Delay = said.action, said.delay
	}
	return nack
}

// cut makes a text one that the gateway takes as a reason.
func cut(text string) string { return cutTo(text, maxReason) }

// cutTo returns the first n characters of a text, without invalid UTF-8.
func cutTo(text string, n int) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	characters := 0
	for i := range text {
		if characters++; characters > n {
			return text[:i]
		}
	}
	return text
}
