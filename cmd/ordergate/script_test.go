package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/internal/freeport"
	"github.com/ordergate/ordergate/internal/natscluster"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripehook"
)

func TestMain(m *testing.M) {
	natscluster.Main()
	testscript.Main(m, map[string]func(){
		"ordergate":           main,
		"ordergate-collected": collectedBy(main),
		"ordergate-erasing":   collectedBy(eraseAndDie),
	})
}

// patience bounds everything that a script waits for.
const patience = 30 * time.Second

// TestScripts drives the real binary; testdata/*.txtar say how.
func TestScripts(t *testing.T) { testscript.Run(t, scripts("testdata")) }

func scripts(dir string) testscript.Params {
	return testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup:               setupScript,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ready":         ready,
			"eventually":    eventually,
			"until":         until,
			"post-event":    postEvent,
			"story":         tellStory,
			"load-and-kill": loadAnd(os.Kill),
			"load-and-stop": loadAnd(os.Interrupt),
			"balance-books": balanceBooks,
		},
	}
}

type booksKey struct{}

func setupScript(env *testscript.Env) error {
	env.Values[booksKey{}] = &books{answered: map[string]bool{}, sent: map[string]bool{}}
	ports, release, err := freeport.Reserve(3)
	if err != nil {
		return err
	}
	env.Defer(release)
	for i, name := range []string{"ORDERGATE_INGRESS_ADDR", "ORDERGATE_GRPC_ADDR", "ORDERGATE_ADMIN_ADDR"} {
		env.Setenv(name, fmt.Sprintf("127.0.0.1:%d", ports[i]))
	}
	env.Setenv("ORDERGATE_ADDR", env.Getenv("ORDERGATE_GRPC_ADDR"))
	env.Setenv("ORDERGATE_URL", "http://"+env.Getenv("ORDERGATE_INGRESS_ADDR")+"/api/webhook")
	env.Setenv("STRIPE_WEBHOOK_SECRET", "whsec_1234567890123456789012345678901234")
	env.Setenv("TMPDIR", env.WorkDir)
	return nil
}

// poll tries until done or out of patience.
func poll(ts *testscript.TestScript, what string, done func(context.Context) bool) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done(ctx) {
		select {
		case <-ctx.Done():
			ts.Fatalf("%s: not within %v", what, patience)
		case <-tick.C:
		}
	}
}

// ready [CA] waits until the gateway of the script says that it is; over TLS, when
// the file of an authority is given.
func ready(ts *testscript.TestScript, neg bool, args []string) {
	url, admin := "http://"+ts.Getenv("ORDERGATE_ADMIN_ADDR")+"/readyz", http.DefaultClient
	if len(args) > 0 {
		url = strings.Replace(url, "http:", "https:", 1)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(ts.ReadFile(args[0])))
		admin = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	}
	poll(ts, "ready", func(ctx context.Context) bool {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		ts.Check(err)
		response, err := admin.Do(request)
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
}

// eventually FILE REGEXP waits until a line of a growing file matches.
func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: eventually FILE REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	var content []byte
	defer func() { ts.Logf("%s:\n%s", args[0], content) }()
	poll(ts, args[0]+" matches "+args[1], func(context.Context) bool {
		content, _ = os.ReadFile(ts.MkAbs(args[0]))
		return re.Match(content)
	})
}

// until REGEXP COMMAND... runs a command until a line that it prints matches.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: until REGEXP COMMAND...")
	}
	re, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	poll(ts, strings.Join(args[1:], " ")+" prints "+args[0], func(context.Context) bool {
		return ts.Exec(args[1], args[2:]...) == nil && re.MatchString(ts.ReadFile("stdout"))
	})
}

// postEvent FILE signs the bytes of a file and sends them to the gateway.
func postEvent(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: post-event FILE")
	}
	secrets, err := stripehook.ParseSecrets(ts.Getenv("STRIPE_WEBHOOK_SECRET"))
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ts.Check(post(ctx, ts.Getenv("ORDERGATE_URL"), secrets[0], []byte(ts.ReadFile(args[0]))))
}

// tellStory SCENARIO sends the events of a scenario, each when the one before it was converted:
// events that are converted together may become one revision.
func tellStory(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: story SCENARIO")
	}
	secrets, err := stripehook.ParseSecrets(ts.Getenv("STRIPE_WEBHOOK_SECRET"))
	ts.Check(err)
	story, err := sample.Scenario(args[0], time.Now())
	ts.Check(err)
	for _, event := range story {
		poll(ts, "the conversion of "+event.Type, func(ctx context.Context) bool {
			ts.Check(post(ctx, ts.Getenv("ORDERGATE_URL"), secrets[0], event.Body)) // a copy changes nothing
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+ts.Getenv("ORDERGATE_ADMIN_ADDR")+"/v1/events/"+event.ID, nil)
			ts.Check(err)
			response, err := http.DefaultClient.Do(request)
			ts.Check(err)
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			ts.Check(err)
			return response.StatusCode == http.StatusOK && !bytes.Contains(body, []byte("EVENT_OUTCOME_PENDING"))
		})
	}
}

// books are what a script sent and what was answered, by order id.
type books struct {
	mu       sync.Mutex
	sent     map[string]bool
	answered map[string]bool
}

func (b *books) answeredSince(n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.answered) - n
}

const (
	loadSenders = 16
	loadAnswers = 300 // after this many answers the gateway gets a signal
)

// loadAnd sends events from many senders to the background process that was
// started last, sends it a signal in the middle, and notes what was answered 200.
func loadAnd(signal os.Signal) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		b := ts.Value(booksKey{}).(*books)
		secrets, err := stripehook.ParseSecrets(ts.Getenv("STRIPE_WEBHOOK_SECRET"))
		ts.Check(err)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		before := len(b.answered)
		var senders sync.WaitGroup
		for range loadSenders {
			senders.Go(func() { b.send(ctx, ts.Getenv("ORDERGATE_URL"), secrets[0]) })
		}
		poll(ts, "answers", func(context.Context) bool { return b.answeredSince(before) >= loadAnswers })
		commands := ts.BackgroundCmds()
		ts.Check(commands[len(commands)-1].Process.Signal(signal))
		senders.Wait()
		ts.Logf("%v after %d answers", signal, b.answeredSince(before))
	}
}

// send posts one new order after the other until the gateway is gone.
func (b *books) send(ctx context.Context, url string, secret stripehook.Secret) {
	for ctx.Err() == nil {
		story, err := sample.Story(sample.Completed, time.Now())
		if err != nil {
			panic(err)
		}
		event := story[0]
		b.mu.Lock()
		b.sent[event.OrderID] = true
		b.mu.Unlock()
		if err := post(ctx, url, secret, event.Body); err != nil {
			return
		}
		b.mu.Lock()
		b.answered[event.OrderID] = true
		b.mu.Unlock()
	}
}

// balanceBooks reads the whole stream and compares: every order that was
// answered is in it, once, at revision 1, and no order that was never sent.
func balanceBooks(ts *testscript.TestScript, neg bool, args []string) {
	b := ts.Value(booksKey{}).(*books)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	gateway, err := client.New(ts.Getenv("ORDERGATE_GRPC_ADDR"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	ts.Check(err)
	defer gateway.Close()
	missing := len(b.answered)
	seen := map[string]int64{}
	for message, err := range gateway.Watch(ctx, client.WatchOptions{FromBeginning: true}) {
		ts.Check(err)
		order := message.GetEvent().GetOrder()
		if order == nil {
			continue
		}
		if order.GetRevision() != 1 || seen[order.GetId()] != 0 || !b.sent[order.GetId()] {
			ts.Fatalf("unexpected event %v", message.GetEvent())
		}
		seen[order.GetId()] = message.GetEvent().GetSequence()
		if b.answered[order.GetId()] {
			missing--
		}
		if missing == 0 {
			break
		}
	}
	ts.Logf("sent %d, answered 200: %d, in ORDERS %d, answered and missing: %d", len(b.sent), len(b.answered), len(seen), missing)
	if missing > 0 {
		ts.Fatalf("the books do not balance: %d answered orders are missing", missing)
	}
}

// A smoke test of run itself, in this process.
func TestRunVersion(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"version"}, nil, &out, &out); err != nil || !bytes.HasPrefix(out.Bytes(), []byte("ordergate ")) {
		t.Errorf("%q, %v", &out, err)
	}
}
