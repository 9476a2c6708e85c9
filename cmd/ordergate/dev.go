package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/metadata"

	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/telemetry"
)

type devCommand struct {
	config.Config `embed:""`
}

// Help is the longer text of `ordergate dev --help`.
func (devCommand) Help() string {
	return `Like serve, but with a signing secret of its own unless STRIPE_WEBHOOK_SECRET is set, and with a data directory that is removed at the end unless --data-dir is given. It prints lines to copy, and then each order as it passes.

Example:
  ordergate dev`
}

func (d *devCommand) Run(ctx context.Context, c console) error {
	generated := d.StripeWebhookSecret == "" && d.StripeWebhookSecretFile == ""
	if generated {
		d.StripeWebhookSecret = "whsec_" + rand.Text() + rand.Text()
	}
	temporary := d.DataDir == "" && d.NATS.Cluster() == nil
	if temporary {
		dir, err := os.MkdirTemp("", "ordergate-dev-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		d.DataDir = dir
	}
	// It is looked at by a person, also through a pipe.
	format := d.Log.Format
	if format == "auto" {
		format = "text"
	}
	g, err := newGateway(ctx, d.Config, telemetry.NewLogger(c.stderr, format, d.Log.Level))
	if err != nil {
		return err
	}
	fmt.Fprint(c.stdout, d.welcome(g, generated, temporary))

	group, ending := errgroup.WithContext(ctx)
	group.Go(func() error { return g.run(ending) })
	group.Go(func() error { return d.printOrders(ending, g, c) })
	return group.Wait()
}

// printOrders prints each order as it passes, until ctx ends.
func (d *devCommand) printOrders(ctx context.Context, g *gateway, c console) error {
	own, err := client.New(inProcessTarget, g.dialOptions()...)
	if err != nil {
		return err
	}
	defer own.Close()
	ticket, done := g.access.HandOver(auth.Own())
	defer done()
	ctx = metadata.AppendToOutgoingContext(ctx, auth.TicketKey, ticket)
	printer := orderPrinter{out: c.stdout}
	for message, err := range own.Watch(ctx, client.WatchOptions{}) {
		if err != nil {
			return err
		}
		if err := printer.print(message); err != nil {
			return err
		}
	}
	return nil
}

// welcome is what a newcomer copies from.
func (d *devCommand) welcome(g *gateway, generated, temporary bool) string {
	ingress := "localhost:" + port(g.ingressListener.Addr()) + d.WebhookPath
	grpc := "localhost:" + port(g.grpcListener.Addr())
	admin := "localhost:" + port(g.adminListener.Addr())
	scheme, forward := "http://", ingress
	if g.ingressKeys != nil {
		scheme, forward = "https://", "https://"+ingress
	}
	trigger := "STRIPE_WEBHOOK_SECRET=" + g.secrets.Current()[0].Reveal() + " " + selfCommand() + " trigger"
	if d.IngressAddr != ":3000" || g.ingressKeys != nil {
		trigger += " --url " + scheme + ingress
	}
	data := d.DataDir
	if temporary {
		data += " (removed at the end; keep it with --data-dir DIR)"
	}
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("ordergate dev: everything runs on this machine. Ctrl-C ends it.")
	line("")
	line("  webhooks  %s%s", scheme, ingress)
	line("  gRPC      %s", grpc)
	line("  HTTP      http://%s/v1/orders", admin)
	line("  data      %s", data)
	line("")
	line("Copy into another terminal:")
	line("")
	line("  # watch the stream, as a subscriber sees it")
	line("  grpcurl -plaintext %s ordergate.v1.OrderService/WatchOrders", grpc)
	line("")
	line("  # send a sample order; no Stripe account needed")
	line("  %s", trigger)
	line("")
	line("  # or forward the test events of your own Stripe account")
	line("  stripe listen --forward-to %s --events %s", forward, strings.Join(orders.EventTypes(), ","))
	line("  stripe listen --forward-to %s     # Stripe CLI up to 1.50: every event", forward)
	if generated {
		line("  # ... after starting this again with the secret that stripe listen prints: STRIPE_WEBHOOK_SECRET=whsec_...")
	}
	line("")
	line("Orders as they pass:")
	line("")
	return b.String()
}

func port(addr net.Addr) string {
	_, p, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	return p
}
