// Command shipper is a sample subscriber of an ordergate, made to be copied: it
// keeps a file for each order, with the newest that is known about it.
//
// main.go is how a subscriber is started and stopped; parcels.go is its work.
// Put yours in the place of parcels.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"google.golang.org/grpc/grpclog"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

func main() {
	// The first signal lets the handlers finish; a second ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	// grpc would write lines of its own beside the program's.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "shipper: "+err.Error())
		os.Exit(1)
	}
}

// settings are the command line.
type settings struct {
	Addr          string `name:"addr" env:"ORDERGATE_ADDR" default:"127.0.0.1:50051" placeholder:"HOST:PORT" help:"The gateway's gRPC address (default: ${default})."`
	Token         string `name:"token" env:"ORDERGATE_TOKEN" placeholder:"ogt_…" help:"The token to show, where the gateway wants one. Better in the environment: a flag shows in the process list."`
	TLS           bool   `name:"tls" env:"ORDERGATE_TLS" help:"Connect with TLS, to a certificate of an authority that this system trusts."`
	TLSCA         string `name:"tls-ca" env:"ORDERGATE_TLS_CA" placeholder:"FILE" help:"Connect with TLS, to a certificate of the authorities in this file (PEM)."`
	TLSCert       string `name:"tls-cert" env:"ORDERGATE_CLIENT_CERT" placeholder:"FILE" help:"Connect with TLS, and show this certificate (PEM)."`
	TLSKey        string `name:"tls-key" env:"ORDERGATE_CLIENT_KEY" placeholder:"FILE" help:"The key of that certificate (PEM)."`
	Insecure      bool   `name:"insecure" help:"Send the token over plaintext to another machine, although others on the way can read it."`
	Subscription  string `name:"subscription" env:"SHIPPER_SUBSCRIPTION" default:"shipping" placeholder:"NAME" help:"The subscription; it is made when it is missing. Another shipper with another folder needs another one (default: ${default})."`
	FromBeginning bool   `name:"from-beginning" env:"SHIPPER_FROM_BEGINNING" help:"Make the subscription begin with the oldest event that is kept, not with the next one."`
	TestOrders    bool   `name:"test-orders" env:"SHIPPER_TEST_ORDERS" help:"Take orders of Stripe's test mode too. Without it they are skipped: nothing may be shipped for them."`
	Out           string `name:"out" env:"SHIPPER_OUT" default:"parcels" placeholder:"FOLDER" help:"The folder for the files; it is made when it is missing (default: ${default})."`
}

const description = `shipper keeps a file for each order in a folder: the newest order event, as JSON. What to do with the order is in its directive: WAIT, SHIP, HOLD or CANCEL.

The gateway remembers what was done: stop the shipper and start it again, and it goes on where it was. What cannot be read becomes a dead letter (see "ordergate dead-letters").

Try it with two terminals: run "ordergate dev" in the one, and in the other
  shipper --from-beginning --test-orders --out parcels
then copy the "trigger" line that ordergate prints, and look into the folder.`

// run consumes until ctx ends, or an error comes that another try would not
// change.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var s settings
	helped := false
	parser, err := kong.New(&s, kong.Name("shipper"), kong.Description(description), kong.Writers(stdout, stderr),
		kong.Exit(func(int) { helped = true }))
	if err != nil {
		return err
	}
	_, err = parser.Parse(args)
	if helped {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w\nrun shipper --help to see what there is", err)
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))
	shelf, err := openParcels(s.Out, s.TestOrders, log)
	if err != nil {
		return err
	}
	defer shelf.close()

	// Without TLS, keep both on one machine: the connection carries names and
	// addresses.
	dial, err := client.Credentials{
		Token: s.Token, TLS: s.TLS, CAFile: s.TLSCA, CertFile: s.TLSCert, KeyFile: s.TLSKey, PlaintextToken: s.Insecure,
	}.DialOptions(s.Addr)
	if err != nil {
		return fmt.Errorf("%w\nsee --tls, --tls-ca, --tls-cert and --tls-key", err)
	}
	gateway, err := client.New(s.Addr, dial...)
	if err != nil {
		return err
	}
	defer gateway.Close()
	options := client.ConsumeOptions{
		// The defaults are good for handlers of seconds; see the documentation for
		// longer ones. Here each waits for the disk a few times.
		Create: &ordergatev1.Subscription{},
		OnRetry: func(err error, wait time.Duration) {
			log.Warn("the gateway is away; trying again", "error", err, "wait", wait.Round(time.Millisecond))
		},
	}
	if s.FromBeginning {
		options.Start = &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}
	}
	log.Info("consuming", "gateway", s.Addr, "subscription", s.Subscription, "out", s.Out, "test_orders", s.TestOrders)
	if err := gateway.Consume(ctx, s.Subscription, shelf.handle, options); err != nil {
		return fmt.Errorf("consume %s at %s: %w", s.Subscription, s.Addr, err)
	}
	log.Info("stopped")
	return nil
}
