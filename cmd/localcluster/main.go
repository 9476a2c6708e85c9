//go:build unix

// Command localcluster runs three NATS nodes and two gateways on this machine, for
// somebody who wants to look at a cluster and see what happens when parts of it end.
package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/ordergate/ordergate/internal/natscluster"
)

const nodes, gatewayCount = 3, 2

func main() {
	natscluster.Main()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends this at once
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "localcluster: "+err.Error())
		os.Exit(1)
	}
}

type settings struct {
	Dir string `name:"dir" placeholder:"DIR" help:"Where the nodes store, and the gateways' log lines go (default: a temporary directory that is removed at the end)."`
}

const description = `localcluster runs three NATS nodes and two gateways on this machine, and prints lines to copy. Type "kill 2" to kill a node, and "start 2" to start it again. Ctrl-C ends everything.

Run it in the folder of the source: go run ./cmd/localcluster`

const help = `Type here: kill X, start X, stop X or continue X, with 1 to 3 for a node, g1 or g2 for a gateway.
stop halts a process with its connections open, as if its cable was pulled; continue lets it go on.`

// run runs everything until ctx ends.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	var s settings
	helped := false
	parser, err := kong.New(&s, kong.Name("localcluster"), kong.Description(description), kong.Writers(stdout, stderr), kong.Exit(func(int) { helped = true }))
	if err != nil {
		return err
	}
	if _, err := parser.Parse(args); err != nil || helped {
		return err
	}
	kept := ""
	if s.Dir == "" {
		if s.Dir, err = os.MkdirTemp("", "ordergate-cluster-"); err != nil {
			return err
		}
		defer os.RemoveAll(s.Dir)
		kept = " (removed at the end; keep it with --dir DIR)"
	}
	if s.Dir, err = filepath.Abs(s.Dir); err != nil {
		return err
	}
	out := log.New(stdout, "", 0)
	out.Print("building ordergate ...")
	binary := filepath.Join(s.Dir, "ordergate")
	if built, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/ordergate/ordergate/cmd/ordergate").CombinedOutput(); err != nil {
		return fmt.Errorf("build ordergate in the folder of the source: %w\n%s", err, built)
	}
	out.Printf("starting %d NATS nodes ...", nodes)
	cluster, err := natscluster.Start(ctx, natscluster.Config{Dir: s.Dir, Nodes: nodes})
	if err != nil {
		return err
	}
	defer cluster.Close()

	// The gateways end before the nodes do.
	ctx, end := context.WithCancel(ctx)
	secret := "whsec_" + rand.Text() + rand.Text()
	var gateways []*gateway
	for i := range gatewayCount {
		g := newGateway(i+1, binary, s.Dir, secret, cluster.URL(), out)
		gateways = append(gateways, g)
		defer g.wait()
	}
	defer end()
	for _, g := range gateways {
		if err := g.start(ctx); err != nil {
			return err
		}
	}
	out.Print(welcome(cluster, gateways, s.Dir+kept))
	lines := make(chan string)
	go func() { // nothing wakes a reader of a terminal: it goes with the process
		for scanner := bufio.NewScanner(stdin); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			out.Print("ending ...")
			return nil
		case line := <-lines:
			if strings.TrimSpace(line) != "" {
				out.Print(obey(ctx, line, cluster, gateways))
			}
		}
	}
}

// welcome is what one copies from.
func welcome(cluster *natscluster.Cluster, gateways []*gateway, data string) string {
	var processes, watch, curl, trigger strings.Builder
	for i, url := range strings.Split(cluster.URL(), ",") {
		fmt.Fprintf(&processes, "  node %d  process %d  %s\n", i+1, cluster.PID(i+1), url)
	}
	for _, g := range gateways {
		webhooks := "http://" + g.ingress + "/api/webhook"
		fmt.Fprintf(&processes, "  %s      process %d  webhooks %s  gRPC %s  HTTP http://%s/v1/orders\n", g.name, g.pid(), webhooks, g.grpc, g.admin)
		fmt.Fprintf(&watch, "  %s watch --addr %s\n", g.binary, g.grpc)
		fmt.Fprintf(&curl, "  grpcurl -plaintext %s ordergate.v1.OrderService/WatchOrders\n", g.grpc)
		fmt.Fprintf(&trigger, "  STRIPE_WEBHOOK_SECRET=%s %s trigger --url %s\n", g.secret, g.binary, webhooks)
	}
	return fmt.Sprintf(`
Everything runs on this machine. Ctrl-C ends it.

%[1]s  data    %[2]s

Copy into other terminals:

  # watch the stream; both gateways have the same
%[3]s%[4]s
  # send a sample order, to either; no Stripe account needed
%[5]s
%[6]s
`, &processes, data, &watch, &curl, &trigger, help)
}

// obey does what was typed, and returns what to say.
func obey(ctx context.Context, line string, cluster *natscluster.Cluster, gateways []*gateway) string {
	verb, name, _ := strings.Cut(strings.Join(strings.Fields(line), " "), " ")
	verbs := map[string]func() error{}
	pid := func() int { return 0 }
	for _, g := range gateways {
		if name == g.name {
			verbs["kill"] = func() error { return g.signal(syscall.SIGKILL) }
			verbs["start"] = func() error { return g.start(ctx) }
			verbs["stop"] = func() error { return g.signal(syscall.SIGSTOP) }
			verbs["continue"] = func() error { return g.signal(syscall.SIGCONT) }
			pid = g.pid
		}
	}
	if i, err := strconv.Atoi(strings.TrimPrefix(name, "n")); err == nil && i >= 1 && i <= cluster.Nodes() {
		verbs["kill"] = func() error { return cluster.Kill(i) }
		verbs["start"] = func() error { return cluster.Restart(i) }
		verbs["stop"] = func() error { return cluster.Stop(i) }
		verbs["continue"] = func() error { return cluster.Continue(i) }
		pid = func() int { return cluster.PID(i) }
	}
	do := verbs[verb]
	if do == nil {
		return help
	}
	if err := do(); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s %s: done, process %d", verb, name, pid())
}
