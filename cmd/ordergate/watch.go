package main

import (
	"context"
	"fmt"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

type watchCommand struct {
	clientFlags `embed:""`
	startFlags  `embed:""`
	filterFlags `embed:""`
}

// Help is the longer text of `ordergate watch --help`.
func (watchCommand) Help() string {
	return `Prints a line for each order event from now on, and goes on by itself when the connection breaks.

Examples:
  ordergate watch --from-beginning
  ordergate watch --live --directive SHIP --directive-changes --json | jq .event.order.id`
}

func (w *watchCommand) Run(ctx context.Context, c console) error {
	options, err := w.options()
	if err != nil {
		return err
	}
	away := false
	options.OnRetry = func(err error, _ time.Duration) {
		if !away {
			fmt.Fprintf(c.stderr, "%v; trying again ...\n", w.explain(err))
		}
		away = true
	}
	gateway, err := w.connect()
	if err != nil {
		return err
	}
	defer gateway.Close()
	print := orderPrinter{out: c.stdout}.print
	if w.JSON {
		print = func(r *ordergatev1.WatchOrdersResponse) error { return printJSON(c.stdout, r) }
	}
	for message, err := range gateway.Watch(ctx, options) {
		if err != nil {
			return w.explain(err)
		}
		away = false
		if message.GetCaughtUp() != nil && !w.JSON {
			fmt.Fprintln(c.stderr, "up to date; waiting for orders ...")
		}
		if err := print(message); err != nil {
			return err
		}
	}
	return nil
}

func (w *watchCommand) options() (client.WatchOptions, error) {
	filter, err := w.filter(nil)
	return client.WatchOptions{
		FromBeginning: w.FromBeginning,
		Since:         w.Since.Time,
		ResumeToken:   w.ResumeToken,
		Filter:        filter,
	}, err
}
