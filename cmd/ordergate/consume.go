package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

// maxWindow is how many events the gateway has out with one worker at most.
const maxWindow = 10_000

type consumeCommand struct {
	subscriptionFlags `embed:""`
	Ack               bool          `name:"ack" help:"Acknowledge each event after it was printed."`
	Limit             int32         `name:"limit" placeholder:"N" help:"Stop after N events; with --ack, when their results have come."`
	Window            int32         `name:"window" default:"100" placeholder:"N" help:"How many events may be out with this command: 1 to 10000, 100 by default."`
	AckDeadline       time.Duration `name:"ack-deadline" placeholder:"DURATION" help:"How long this command has for an event: 1s to 10m; the subscription's own by default."`
	ClientID          string        `name:"client-id" placeholder:"ID" help:"Who this is, for the figures."`
	Create            bool          `name:"create" help:"Create the subscription if there is none, with all defaults: from now on, unless told otherwise."`
	startFlags        `embed:""`
}

// Help is the longer text of `ordergate consume --help`.
func (consumeCommand) Help() string {
	return `Prints a line for each event that the subscription has to deliver, and goes on by itself when the connection breaks. A subscription that delivers the newest revision of an order (--delivery latest) names the revisions that it replaces; one that delivers every event names a newer revision, if there is one.

With --ack each event is done with once it was printed. Ctrl-C takes no more events, waits for the results of those that were printed, and ends.

Without --ack it only looks: it holds up to --window events, which no other worker gets meanwhile, and keeps them until it is stopped. Then they go back at once; having been out counts as one of their attempts.

Examples:
  ordergate consume shipping --limit 10
  ordergate consume shipping --ack --json | jq .event.order.id
  ordergate consume try-out --create --from-beginning --ack`
}

func (m *consumeCommand) Run(ctx context.Context, c console) error {
	options, err := m.options(c)
	if err != nil {
		return err
	}
	gateway, err := m.connect()
	if err != nil {
		return err
	}
	defer gateway.Close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	out := &deliveryPrinter{console: c, json: m.JSON, left: cmp.Or(m.Limit, math.MaxInt32), stop: stop}
	err = gateway.Consume(ctx, m.Name, func(lease context.Context, delivery *client.Delivery) error {
		err := out.print(ctx, delivery)
		if err == nil && !m.Ack {
			select {
			case <-ctx.Done():
			case <-lease.Done():
			}
			err = errOnlyLooked
		}
		return client.RetryAfter(err, 0) // nil for nil
	}, options)
	return cmp.Or(m.explain(err), out.failed)
}

// errOnlyLooked is the reason that the gateway keeps when an event goes back.
var errOnlyLooked = errors.New("ordergate consume only looked at it")

// options says how to consume, and has people told on stderr how that goes.
func (m *consumeCommand) options(c console) (client.ConsumeOptions, error) {
	if m.position() != nil && !m.Create {
		return client.ConsumeOptions{}, errors.New("--from-beginning, --since and --resume-token go with --create only: ordergate subscriptions seek moves a subscription that there is")
	}
	if m.Limit < 0 || m.Window < 1 || m.Window > maxWindow {
		return client.ConsumeOptions{}, fmt.Errorf("--limit is 1 or more events, and --window 1 to %d", maxWindow)
	}
	window := int(min(m.Window, cmp.Or(m.Limit, maxWindow)))
	options := client.ConsumeOptions{
		// One after the other, so that the lines are in the order of delivery.
		Concurrency:          1,
		MaxOutstandingEvents: window,
		ClientID:             m.ClientID,
		AckDeadline:          m.AckDeadline,
		// However long somebody pages through the output, or looks.
		MaxExtension: 365 * 24 * time.Hour,
		DrainTimeout: 10 * time.Second,
	}
	if !m.Ack {
		// The events go back with the connection too.
		options.Concurrency, options.DrainTimeout = window, time.Second
	}
	if m.Create {
		options.Create, options.Start = &ordergatev1.Subscription{}, m.position()
	}
	away := false
	options.OnRetry = func(err error, _ time.Duration) {
		if !away {
			fmt.Fprintf(c.stderr, "%v; trying again ...\n", m.explain(err))
		}
		away = true
	}
	options.OnOpen = func(opened *ordergatev1.ConsumeOpened) {
		away = false
		if opened.GetCreated() && !m.JSON {
			fmt.Fprintf(c.stderr, "the subscription %s was created\n", plain(opened.GetSubscription().GetName()))
		}
		if !m.Ack && !m.JSON {
			fmt.Fprintf(c.stderr, "only looking, at up to %s: they go back when this ends; --ack acknowledges them\n", counted(int64(window), "event"))
		}
	}
	return options, nil
}

// deliveryPrinter writes a line for each delivery, one at a time, and stops the
// command after the last one that is asked for.
type deliveryPrinter struct {
	console
	json bool
	stop context.CancelFunc

	mu     sync.Mutex
	left   int32
	failed error // why a line could not be written
}

// print returns an error when the delivery is not printed.
func (p *deliveryPrinter) print(ctx context.Context, delivery *client.Delivery) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil {
		return errStopped
	}
	if p.json {
		p.failed = printJSON(p.stdout, &ordergatev1.Delivery{
			DeliveryId: delivery.ID, Event: delivery.Event, Attempt: int32(delivery.Attempt), Redriven: delivery.Redriven,
			ReplacedRevisions: delivery.ReplacedRevisions, LatestRevision: delivery.LatestRevision, LatestDirective: delivery.LatestDirective,
		})
	} else {
		_, p.failed = fmt.Fprintln(p.stdout, deliveryLine(delivery))
	}
	if p.left--; p.left == 0 || p.failed != nil {
		p.stop()
	}
	return p.failed
}
