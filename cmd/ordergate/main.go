// Command ordergate is an order gateway: it takes Stripe's webhooks, keeps them,
// and streams the orders in them to shipping over gRPC.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/joho/godotenv"
	"google.golang.org/grpc/grpclog"
)

// exitSignalled is what shells say of a process that Ctrl-C has ended.
const exitSignalled = 130

func main() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	signals := make(chan os.Signal, 2) // the second one may come before the first is dealt with
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		stop()
		<-signals
		fmt.Fprintln(os.Stderr, "ordergate: ended at once by a second signal")
		os.Exit(exitSignalled)
	}()
	// grpc would write lines of its own beside the gateway's.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "ordergate: "+strings.ReplaceAll(err.Error(), "\n", "\nordergate: "))
		os.Exit(1)
	}
}

// commands is the command line; its tags and the Help methods are the text of
// --help.
type commands struct {
	Serve         serveCommand          `cmd:"" help:"Run the gateway."`
	Check         checkCommand          `cmd:"" help:"Look at everything that serve needs, and say what to mend."`
	Dev           devCommand            `cmd:"" help:"Run the gateway on this machine, with nothing to set up, and print each order."`
	Trigger       triggerCommand        `cmd:"" help:"Send a signed sample event to a running gateway."`
	Watch         watchCommand          `cmd:"" help:"Print order events as they happen."`
	Orders        ordersCommands        `cmd:"" help:"List orders, show one, or restore a canceled one."`
	Hold          holdCommand           `cmd:"" help:"Stop an order: its parcel is to be kept."`
	Release       releaseCommand        `cmd:"" help:"Release an order from the causes that hold it."`
	Subscriptions subscriptionsCommands `cmd:"" help:"Make, list, show, change, move and delete durable subscriptions."`
	Consume       consumeCommand        `cmd:"" help:"Print the events of a subscription, and acknowledge them."`
	DeadLetters   deadLettersCommands   `cmd:"" help:"List the events that a subscription could not have handled, deliver them again, or give them up."`
	Events        eventsCommands        `cmd:"" help:"List the stored Stripe events, show one, or convert some again."`
	Backfill      backfillCommand       `cmd:"" help:"Ask Stripe for events that were missed, and store them."`
	Erase         eraseCommand          `cmd:"" help:"Erase, for good, what is stored about orders or customers."`
	Export        exportCommand         `cmd:"" help:"Write all that a stopped gateway has stored to one file: to move house, or as a backup."`
	Import        importCommand         `cmd:"" help:"Make a data directory from such a file, encrypted or not, or a log in a NATS cluster."`
	Migrate       migrateCommand        `cmd:"" help:"Bring what is in a NATS cluster to the settings of serve, or say what that would change."`
	Tokens        tokensCommands        `cmd:"" help:"Make tokens for those who may use the gateway."`
	Version       versionCommand        `cmd:"" help:"Print the version."`
}

const description = `ordergate takes Stripe's webhooks, stores each event durably before it answers, and streams what shipping needs to know about each order over gRPC.

Try it without an account anywhere: run "ordergate dev" and copy the lines it prints.

Every flag is also an environment variable. The commands serve, dev and trigger also read .env.local and .env in the working directory; the real environment wins.`

// console is where a command reads and writes.
type console struct {
	stdin          io.Reader
	stdout, stderr io.Writer
}

// run executes one command line and returns when it has ended.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	if len(args) > 0 && slices.Contains([]string{"serve", "dev", "trigger"}, args[0]) {
		if err := loadEnvFiles(".env.local", ".env"); err != nil {
			return err
		}
	}
	var cli commands
	helped := false
	parser, err := kong.New(&cli,
		kong.Name("ordergate"),
		kong.Description(description),
		kong.Writers(stdout, stderr),
		kong.Exit(func(int) { helped = true }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(console{stdin, stdout, stderr}),
	)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	parsed, err := parser.Parse(args)
	if helped {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w\nrun ordergate --help to see what there is", err)
	}
	return parsed.Run()
}

// credentials are the variables of credentials by that of the address they are sent to.
var credentials = map[string][]string{
	"STRIPE_API_BASE":    {"STRIPE_API_KEY"},
	"ORDERGATE_NATS_URL": {"ORDERGATE_NATS_CREDS", "ORDERGATE_NATS_NKEY", "ORDERGATE_NATS_CERT"},
}

// loadEnvFiles sets variables that the environment does not set, from files that may be missing;
// the first file wins. It refuses an address from a file together with a credential from the
// environment: whoever can write the file must not receive the credential.
func loadEnvFiles(names ...string) error {
	given := map[string]bool{}
	for address, secrets := range credentials {
		for _, name := range append(secrets, address) {
			given[name] = os.Getenv(name) != ""
		}
	}
	for _, name := range names {
		if err := godotenv.Load(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("read %s: %w: write one NAME=value a line", name, err)
		}
	}
	for address, secrets := range credentials {
		for _, secret := range secrets {
			if os.Getenv(address) != "" && !given[address] && given[secret] {
				return fmt.Errorf("%s is set in .env or .env.local, and %s in the environment: set both in one place", address, secret)
			}
		}
	}
	return nil
}

// selfCommand is how this program was started, for lines to copy.
func selfCommand() string {
	path, err := os.Executable()
	if err != nil || strings.Contains(path, string(filepath.Separator)+"go-build") {
		return "go run ./cmd/ordergate"
	}
	return "ordergate"
}
