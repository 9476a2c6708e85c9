package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/grpc"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

type deadLettersCommands struct {
	List    deadLettersListCommand    `cmd:"" help:"List the dead letters of a subscription, in the order of their events."`
	Redrive deadLettersRedriveCommand `cmd:"" help:"Have dead letters delivered again."`
	Discard deadLettersDiscardCommand `cmd:"" help:"Give dead letters up: they are done with."`
}

type deadLettersListCommand struct {
	clientFlags `embed:""`
	Name        string `arg:"" help:"The subscription's name."`
	Limit       int    `name:"limit" default:"50" help:"How many at most; 0 for all."`
}

// Help is the longer text of `ordergate dead-letters list --help`.
func (deadLettersListCommand) Help() string {
	return `BLOCKS says whether later events of the order wait for this one.

Examples:
  ordergate dead-letters list shipping
  ordergate dead-letters list shipping --limit 0 --json | jq -r .eventId`
}

func (l *deadLettersListCommand) Run(ctx context.Context, c console) error {
	table := newColumns(c.stdout)
	if !l.JSON {
		table.row("EVENT", "KIND", "REASON", "ATTEMPTS", "SINCE", "BLOCKS", "DETAIL")
	}
	print := func(letter *ordergatev1.DeadLetter) error {
		if l.JSON {
			return printJSON(c.stdout, letter)
		}
		blocks, detail := "no", brief(letter.GetDetail())
		if letter.GetBlocksOrder() {
			blocks = "yes"
		}
		if letter.GetRedriving() {
			detail = joined("being redriven", detail)
		}
		table.row(letter.GetEventId(), enumName(letter.GetKind()), enumName(letter.GetReason()), strconv.Itoa(int(letter.GetAttempts())),
			localTime(letter.GetDeadLetterTime()), blocks, cmp.Or(detail, "-"))
		return nil
	}
	err := l.call(func(conn *grpc.ClientConn) error {
		client := ordergatev1.NewSubscriptionServiceClient(conn)
		return eachListed(l.Limit, c.stderr, print, func(size int32, token string) ([]*ordergatev1.DeadLetter, string, error) {
			page, err := client.ListDeadLetters(ctx, &ordergatev1.ListDeadLettersRequest{Subscription: l.Name, PageSize: size, PageToken: token})
			return page.GetDeadLetters(), page.GetNextPageToken(), err
		})
	})
	if err != nil {
		return err
	}
	return table.Flush()
}

// deadLetterFlags name dead letters of a subscription.
type deadLetterFlags struct {
	subscriptionFlags `embed:""`
	Events            []string `arg:"" name:"event" optional:"" help:"The ids of the order events, such as cs_a1.2."`
	All               bool     `name:"all" help:"All that there are."`
}

func (f *deadLetterFlags) check() error {
	if f.All == (len(f.Events) > 0) {
		return errors.New("say which dead letters: either the ids of their events, or --all")
	}
	return nil
}

// tell says of how many dead letters something is true, and why not of the
// others that were named.
func (f *deadLetterFlags) tell(c console, n int32, done, others string) error {
	line := counted(int64(n), "dead letter") + " " + done
	if int(n) < len(f.Events) {
		line += fmt.Sprintf(", of the %d named: %s", len(f.Events), others)
	}
	_, err := fmt.Fprintln(c.stdout, line)
	return err
}

type deadLettersRedriveCommand struct {
	deadLetterFlags `embed:""`
}

// Help is the longer text of `ordergate dead-letters redrive --help`.
func (deadLettersRedriveCommand) Help() string {
	return `Their attempts are counted anew, and the deliveries say that they are redriven. A dead letter is none any longer when it is acknowledged.

Examples:
  ordergate dead-letters redrive shipping cs_test_a1.2 cs_test_b2.1
  ordergate dead-letters redrive shipping --all`
}

func (r *deadLettersRedriveCommand) Run(ctx context.Context, c console) error {
	if err := r.check(); err != nil {
		return err
	}
	return r.ask(func(client ordergatev1.SubscriptionServiceClient) error {
		response, err := client.RedriveDeadLetters(ctx, &ordergatev1.RedriveDeadLettersRequest{Subscription: r.Name, EventIds: r.Events, All: r.All})
		if err != nil {
			return err
		}
		if r.JSON {
			return printJSON(c.stdout, response)
		}
		return r.tell(c, response.GetRedriven(), "redriven", "the others were being redriven already")
	})
}

type deadLettersDiscardCommand struct {
	deadLetterFlags `embed:""`
	confirmFlags    `embed:""`
}

// Help is the longer text of `ordergate dead-letters discard --help`.
func (deadLettersDiscardCommand) Help() string {
	return `Their events are done with for this subscription, and orders that they blocked go on. The orders and events themselves stay: a subscription that is moved back has them again.

Examples:
  ordergate dead-letters discard shipping cs_test_a1.2
  ordergate dead-letters discard shipping --all --yes`
}

func (d *deadLettersDiscardCommand) Run(ctx context.Context, c console) error {
	if err := d.check(); err != nil {
		return err
	}
	return d.ask(func(client ordergatev1.SubscriptionServiceClient) error {
		err := d.confirm(ctx, c, "discard the dead letters", func() (string, error) {
			n := int64(len(d.Events))
			if d.All {
				response, err := client.GetSubscription(ctx, &ordergatev1.GetSubscriptionRequest{Subscription: d.Name})
				if err != nil {
					return "", err
				}
				n = response.GetSubscription().GetStats().GetDeadLetters()
			}
			return fmt.Sprintf("%s of %s: done with, and not delivered to it again.", counted(n, "dead letter"), plain(d.Name)), nil
		})
		if err != nil {
			return err
		}
		response, err := client.DiscardDeadLetters(ctx, &ordergatev1.DiscardDeadLettersRequest{Subscription: d.Name, EventIds: d.Events, All: d.All})
		if err != nil {
			return err
		}
		if d.JSON {
			return printJSON(c.stdout, response)
		}
		return d.tell(c, response.GetDiscarded(), "discarded", "the others are being redriven, which goes first")
	})
}
