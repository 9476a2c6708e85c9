package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripehook"
	"github.com/ordergate/ordergate/internal/stripetest"
)

var writeRelease = flag.String("write", "", "add logs of this `release` to testdata/logs, and what is read from them (TestCollection)")

const (
	collectionDir = "testdata/logs"
	archiveEnd    = ".tar.gz"
	goldenEnd     = ".golden"

	// collectedAge is how old the logs may become.
	collectedAge = "438000h" // 50 years
	// collectedKey encrypts a log of the collection. It is no secret.
	collectedKey = "collected correct horse battery staple"
	// testAccount is a connected account.
	testAccount = "acct_1SampleTest"
)

// collectedBy makes of a command one whose logs become part of the collection.
func collectedBy(command func()) func() {
	return func() {
		ofLogs.heldOrdersAge, ofLogs.probeBytes = 438000*time.Hour, 1<<10
		command()
	}
}

// TestCollection opens logs that gateways of earlier releases wrote, with today's,
// and compares everything that can be read from each with what could be read when
// it was written: DIR/NAME.golden tells that of DIR/NAME.tar.gz. Then the gateway
// goes on: an event that is stored is a copy, a refund finds its order.
//
// With -write it first adds the logs of a release: one that was stopped, one that
// was killed, one that is encrypted.
func TestCollection(t *testing.T) {
	if *writeRelease != "" {
		for _, how := range []string{"stopped", "killed", "encrypted"} {
			t.Run(how, func(t *testing.T) {
				t.Parallel()
				collect(t, *writeRelease, how)
			})
		}
		return
	}
	archives, err := filepath.Glob(filepath.Join(collectionDir, "*"+archiveEnd))
	if err != nil || len(archives) == 0 {
		t.Fatalf("there are no logs in %s: %v", collectionDir, err)
	}
	for _, archive := range archives {
		name := strings.TrimSuffix(archive, archiveEnd)
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			want, err := os.ReadFile(name + goldenEnd)
			if err != nil {
				t.Fatal(err)
			}
			content, err := os.ReadFile(archive)
			if err != nil {
				t.Fatal(err)
			}
			got := readBack(t, content)
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("this is not what was read from %s when it was written (-want +got):\n%s", archive, diff)
			}
		})
	}
}

// outside is what others have of a log when its gateway ends. It is in the archive,
// beside the directory `data`.
type outside struct {
	// Release is what wrote the log, and How how it ended.
	Release, How string
	// Ended is when it had ended.
	Ended time.Time
	// Last is the newest order event that was seen.
	Last int64
	// ResumeToken is a watcher's, from the middle.
	ResumeToken string
	// Delivery is what a worker of the subscription shipping has in hand.
	Delivery string
	// Later are Stripe events that come when the log is opened again.
	Later []laterEvent
}

type laterEvent struct{ About, Body string }

const outsideFile = "outside.json"

// collecting is a gateway whose log becomes part of the collection, or was taken
// from there, and the Stripe API that it uses.
type collecting struct {
	*crashing
	t             *testing.T
	said          bytes.Buffer // by the gateway; its until it has ended
	secret        stripehook.Secret
	orders        ordergatev1.OrderServiceClient
	subscriptions ordergatev1.SubscriptionServiceClient
	events        ordergatev1.EventServiceClient

	away atomic.Bool // Stripe gives no line items

	mu       sync.Mutex
	accounts map[string]bool // whose events were listed
}

func newCollecting(t *testing.T, encrypted bool, args ...string) *collecting {
	g := &collecting{crashing: newCrashing(t), t: t, accounts: map[string]bool{}}
	stripe := stripetest.NewServer(t)
	stripe.Handle("GET /v1/checkout/sessions/{id}/line_items", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.away.Load() {
			stripetest.Error(http.StatusServiceUnavailable, "", "away").ServeHTTP(w, r)
			return
		}
		stripetest.List(func(*http.Request) []json.RawMessage {
			return []json.RawMessage{json.RawMessage(`{"id":"li_1Sample","object":"item","quantity":2,"description":"Shirt","amount_subtotal":5400,"amount_total":5400,"amount_discount":0,"amount_tax":862,
				"price":{"id":"price_1Sample","object":"price","product":{"id":"prod_1Sample","object":"product","name":"Shirt","metadata":{"shelf":"B7"},"shippable":true,
				"package_dimensions":{"height":2,"length":12,"weight":9,"width":8}}}}`)}
		}).ServeHTTP(w, r)
	}))
	stripe.Handle("GET /v1/invoices/{id}/lines", stripetest.List(func(*http.Request) []json.RawMessage {
		return []json.RawMessage{json.RawMessage(`{"id":"il_1Sample","object":"line_item","quantity":1,"description":"Box","amount":5400}`)}
	}))
	stripe.Handle("GET /v1/events", stripetest.Events(func(r *http.Request) []json.RawMessage {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.accounts[r.Header.Get("Stripe-Account")] = true
		return nil
	}))
	missing := stripetest.Error(http.StatusNotFound, "resource_missing", "there is none")
	for _, path := range []string{"checkout/sessions", "invoice_payments"} {
		stripe.Handle("GET /v1/"+path, stripetest.List(func(*http.Request) []json.RawMessage { return nil }))
	}
	for _, path := range []string{"payment_intents", "charges", "invoices"} {
		stripe.Handle("GET /v1/"+path+"/{id}", missing)
	}

	secrets, err := stripehook.ParseSecrets(crashSecret)
	if err != nil {
		t.Fatal(err)
	}
	g.secret = secrets[0]
	g.command, g.stderr = "ordergate-collected", &g.said
	g.args = append(args, "--log-format", "json", "--inbox-max-age", collectedAge, "--orders-max-age", collectedAge,
		"--stripe-api-key", "rk_test_1", "--stripe-api-base", stripe.URL, "--stripe-rate", "100")
	if encrypted {
		key := filepath.Join(g.dir, "key")
		if err := os.WriteFile(key, []byte(collectedKey), 0o600); err != nil {
			t.Fatal(err)
		}
		g.args = append(g.args, "--encryption-key-file", key)
	}
	conn, err := grpc.NewClient(g.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	g.orders, g.subscriptions, g.events = ordergatev1.NewOrderServiceClient(conn), ordergatev1.NewSubscriptionServiceClient(conn), ordergatev1.NewEventServiceClient(conn)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the gateway said:\n%s", g.said.Bytes())
		}
	})
	return g
}

// must returns the value of a call that must not fail.
func must[T any](t *testing.T, value T, err error) T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// send sends a Stripe event, which is to be answered 200.
func (g *collecting) send(ctx context.Context, body []byte) {
	g.t.Helper()
	if err := post(ctx, "http://"+g.ingress+"/api/webhook", g.secret, body); err != nil {
		g.t.Fatal(err)
	}
}

// tell sends Stripe events, each when the one before is converted.
func (g *collecting) tell(ctx context.Context, events ...sample.Event) {
	g.t.Helper()
	for _, event := range events {
		g.send(ctx, event.Body)
		waitFor(ctx, g.t, event.Type+" is converted", func() bool {
			response, err := g.events.GetEvent(ctx, &ordergatev1.GetEventRequest{EventId: event.ID})
			return must(g.t, response, err).GetEvent().GetOutcome() != ordergatev1.EventOutcome_EVENT_OUTCOME_PENDING
		})
	}
}

// settle waits until every event is converted, and no order waits for line items.
func (g *collecting) settle(ctx context.Context) {
	g.t.Helper()
	waitFor(ctx, g.t, "everything is converted", func() bool {
		for _, event := range g.allEvents(ctx, nil) {
			if event.GetOutcome() == ordergatev1.EventOutcome_EVENT_OUTCOME_PENDING {
				return false
			}
		}
		return true
	})
	waitFor(ctx, g.t, "every order has its line items", func() bool {
		response, err := g.orders.ListOrders(ctx, &ordergatev1.ListOrdersRequest{PageSize: 100})
		return !slices.ContainsFunc(must(g.t, response, err).GetOrders(), func(order *ordergatev1.Order) bool {
			return order.GetLineItemsState() == ordergatev1.LineItemsState_LINE_ITEMS_STATE_PENDING
		})
	})
}

// allEvents lists Stripe events, the oldest first.
func (g *collecting) allEvents(ctx context.Context, filter *ordergatev1.EventFilter) (events []*ordergatev1.StripeEvent) {
	g.t.Helper()
	for page, more := "", true; more; more = page != "" {
		response, err := g.events.ListEvents(ctx, &ordergatev1.ListEventsRequest{PageSize: 100, PageToken: page, Filter: filter})
		events = append(events, must(g.t, response, err).GetEvents()...)
		page = response.GetNextPageToken()
	}
	slices.Reverse(events)
	return events
}

// watch returns the order events from a start to where the past ends, and the
// resume token of each.
func (g *collecting) watch(ctx context.Context, request *ordergatev1.WatchOrdersRequest) (events []*ordergatev1.OrderEvent, tokens []string) {
	g.t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := g.orders.WatchOrders(ctx, request)
	if err != nil {
		g.t.Fatal(err)
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			g.t.Fatal(err)
		}
		if message.GetCaughtUp() != nil {
			return events, tokens
		}
		if event := message.GetEvent(); event != nil {
			events, tokens = append(events, event), append(tokens, message.GetResumeToken())
		}
	}
}

var fromBeginning = &ordergatev1.WatchOrdersRequest_FromBeginning{FromBeginning: true}

// pull takes what is ready of a subscription, and waits for something.
func (g *collecting) pull(ctx context.Context, name string) []*ordergatev1.Delivery {
	g.t.Helper()
	response, err := g.subscriptions.Pull(ctx, &ordergatev1.PullRequest{Subscription: name, MaxEvents: 100, Wait: durationpb.New(time.Second)})
	return must(g.t, response, err).GetDeliveries()
}

// settleDeliveries says what became of deliveries, again while the gateway is not
// ready to hear it.
func (g *collecting) settleDeliveries(ctx context.Context, request *ordergatev1.AcknowledgeRequest) (results []*ordergatev1.DeliveryResult) {
	g.t.Helper()
	waitFor(ctx, g.t, "results of deliveries", func() bool {
		response, err := g.subscriptions.Acknowledge(ctx, request)
		results = must(g.t, response, err).GetResults()
		return !slices.ContainsFunc(results, func(result *ordergatev1.DeliveryResult) bool {
			return result.GetCode() == ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_RETRYABLE
		})
	})
	return results
}

// story tells a scenario.
func story(t *testing.T, scenario string) []sample.Event {
	t.Helper()
	events, err := sample.Scenario(scenario, time.Now())
	return must(t, events, err)
}

// altered is an event in which something is replaced.
func altered(event sample.Event, pairs ...string) sample.Event {
	event.Body = []byte(strings.NewReplacer(pairs...).Replace(string(event.Body)))
	return event
}

// collect has a gateway write a log, with all that is ever stored, and adds it to
// the collection. It never replaces one.
func collect(t *testing.T, release, how string) {
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`).MatchString(release) {
		t.Fatalf("-write %s: want the name of a release, of small letters, digits, dots and dashes", release)
	}
	path := filepath.Join(collectionDir, release+"-"+how)
	for _, end := range []string{archiveEnd, goldenEnd} {
		if _, err := os.Stat(path + end); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s%s is there, or cannot be looked for, and logs of a release are never replaced: %v", path, end, err)
		}
	}
	g := newCollecting(t, how == "encrypted", "--line-items-deadline", "2s")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	g.start(ctx)
	out := outside{Release: release, How: how}
	later := func(about string, event sample.Event) {
		out.Later = append(out.Later, laterEvent{about, string(event.Body)})
	}

	// Events that are parked: one that nobody can read, one whose sale is lost.
	waits := story(t, "partly-refunded")
	g.send(ctx, waits[1].Body)
	g.send(ctx, []byte(`{"id":"evt_1SamplePoison","type":"checkout.session.completed","livemode":false,"data":{"object":{"id":"cs_test_poison","object":"checkout.session","payment_status":"surely"}}}`))
	later("the sale of the order that a refund waits for", waits[0])

	// Orders in several states.
	refunded, disputed, erased, held := story(t, "refunded"), story(t, "partly-refunded-disputed-won"), story(t, "partly-refunded-disputed-won"), story(t, "reviewed-approved")
	g.tell(ctx, refunded[0])
	later("the refund of an order that is known", refunded[1])
	g.tell(ctx, disputed...)
	g.tell(ctx, erased[:3]...)
	later("the end of a dispute about an order that was erased", erased[3])
	g.tell(ctx, held...)
	live := []string{`"livemode": false`, `"livemode": true`, `"country": "DE"`, `"country": "AT"`, `"berlin-1"`, `"vienna-1"`, "cs_test_", "cs_live_"}
	g.tell(ctx, altered(story(t, "paid")[0], live...))
	for _, event := range story(t, "expires") {
		g.tell(ctx, altered(event, `"pending_webhooks": 1`, `"pending_webhooks": 1, "account": "`+testAccount+`"`))
	}

	// A watcher that stops in the middle.
	_, tokens := g.watch(ctx, &ordergatev1.WatchOrdersRequest{Start: fromBeginning})
	out.ResumeToken = tokens[len(tokens)/2]

	// A subscription with a place in the middle, a dead letter, an order that is
	// held back for another attempt, and an event that a worker has in hand; and one
	// that nobody has consumed.
	for _, create := range []*ordergatev1.Subscription{
		{Name: "shipping", AckDeadline: durationpb.New(10 * time.Minute), MinBackoff: durationpb.New(0), MaxAttempts: 7,
			Delivery: ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT},
		{Name: "accounting", Delivery: ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT, DeadLetterPolicy: ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_SKIP, Filter: &ordergatev1.OrderEventFilter{
			Kinds:    []ordergatev1.OrderEventKind{ordergatev1.OrderEventKind_ORDER_EVENT_KIND_REFUNDED, ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID},
			Livemode: new(false), ShipToCountries: []string{"DE", "AT"}, Metadata: map[string]string{"warehouse": "berlin-1"},
		}},
	} {
		_, err := g.subscriptions.CreateSubscription(ctx, &ordergatev1.CreateSubscriptionRequest{Subscription: create,
			Start: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	settled := &ordergatev1.AcknowledgeRequest{Subscription: "shipping"}
	first := map[string]string{} // delivery ids of first revisions, by order
	for len(first) < 6 {
		for _, delivery := range g.pull(ctx, "shipping") {
			order := delivery.GetEvent().GetOrder().GetId()
			switch first[order] = delivery.GetDeliveryId(); order {
			case disputed[0].OrderID:
				settled.Nacks = append(settled.Nacks, &ordergatev1.Nack{DeliveryId: first[order], Action: ordergatev1.NackAction_NACK_ACTION_DEAD_LETTER, Reason: "no such depot"})
			case held[0].OrderID:
				settled.Nacks = append(settled.Nacks, &ordergatev1.Nack{DeliveryId: first[order], Action: ordergatev1.NackAction_NACK_ACTION_RETRY, Delay: durationpb.New(time.Second), Reason: "later"})
			case refunded[0].OrderID:
				out.Delivery = first[order]
			default:
				settled.DeliveryIds = append(settled.DeliveryIds, first[order])
			}
		}
	}
	for _, result := range g.settleDeliveries(ctx, settled) {
		if result.GetCode() != ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK {
			t.Fatal(result)
		}
	}

	// An operator holds orders, and releases one.
	operated := story(t, "paid")[0]
	g.tell(ctx, operated, story(t, "next-box")[0])
	for _, id := range []string{operated.OrderID, held[0].OrderID} {
		if _, err := g.orders.HoldOrder(ctx, &ordergatev1.HoldOrderRequest{OrderId: id, Reason: "the buyer called"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.orders.ReleaseOrder(ctx, &ordergatev1.ReleaseOrderRequest{OrderId: operated.OrderID, Reason: "it was a mistake"}); err != nil {
		t.Fatal(err)
	}

	// A customer is forgotten, when everything is converted: what is not stays.
	g.settle(ctx)
	erasing, err := g.orders.EraseOrders(ctx, &ordergatev1.EraseOrdersRequest{OrderIds: []string{erased[0].OrderID}})
	for err == nil {
		_, err = erasing.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}

	// An order that waits for its line items, and one whose event has just come.
	g.away.Store(true)
	g.tell(ctx, story(t, "paid")[0])
	events, _ := g.watch(ctx, &ordergatev1.WatchOrdersRequest{Start: fromBeginning})
	out.Last = events[len(events)-1].GetSequence()
	g.send(ctx, altered(story(t, "paid")[0], live...).Body)
	if how == "killed" {
		g.end(os.Kill)
		g.killErasing(operated)
	} else {
		g.end(os.Interrupt)
	}

	out.Ended = time.Now().UTC()
	archive := pack(t, filepath.Join(g.dir, "data"), out)
	golden := readBack(t, archive)
	if t.Failed() {
		return
	}
	for end, content := range map[string][]byte{archiveEnd: archive, goldenEnd: []byte(golden)} {
		f, err := os.OpenFile(path+end, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(content)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s%s has %d bytes. Read %s%s before you commit it.", path, archiveEnd, len(archive), path, goldenEnd)
}

// killErasing leaves the log as a gateway does that is killed when it has noted
// that it is about to erase an event.
func (g *collecting) killErasing(event sample.Event) {
	g.t.Helper()
	killed := exec.Command("ordergate-erasing", filepath.Join(g.dir, "data"), event.ID, `{"id":"`+event.ID+`","object":"event","type":"`+event.Type+`","livemode":false}`)
	killed.Stderr = g.t.Output()
	var exit *exec.ExitError
	if err := killed.Run(); !errors.As(err, &exit) || exit.ExitCode() != -1 {
		g.t.Fatalf("%v, want a process that was killed", err)
	}
}

// eraseAndDie is the command ordergate-erasing DIR EVENT TOMBSTONE.
func eraseAndDie() {
	ctx := context.Background()
	log, err := eventlog.Open(ctx, eventlog.Config{Dir: os.Args[1], AsIs: true, HeldOrdersAge: ofLogs.heldOrdersAge, ProbeBytes: ofLogs.probeBytes,
		InboxMaxAge: ofLogs.heldOrdersAge, OrdersMaxAge: ofLogs.heldOrdersAge, MaxEventBytes: 1 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		err = log.Bucket(eventlog.Erasing).Put(ctx, os.Args[2], []byte(os.Args[3]))
	}
	if err == nil {
		err = log.Flush(ctx)
	}
	var self *os.Process
	if err == nil {
		self, err = os.FindProcess(os.Getpid())
	}
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}

// pack makes an archive of a data directory and what is outside of it.
func pack(t *testing.T, dir string, out outside) []byte {
	t.Helper()
	var archive bytes.Buffer
	zipped, err := gzip.NewWriterLevel(&archive, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	files := tar.NewWriter(zipped)
	add := func(name string, content []byte) error {
		if err := files.WriteHeader(&tar.Header{Name: filepath.ToSlash(name), Mode: 0o600, Size: int64(len(content)), Format: tar.FormatUSTAR}); err != nil {
			return err
		}
		_, err := files.Write(content)
		return err
	}
	text, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return add(filepath.Join("data", name), content)
	})
	if err := errors.Join(err, add(outsideFile, text), files.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	return archive.Bytes()
}

// unpack is the reverse of pack.
func unpack(t *testing.T, archive []byte, dir string) (out outside) {
	t.Helper()
	unzipped, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatal(err)
	}
	for files := tar.NewReader(unzipped); ; {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil || !filepath.IsLocal(header.Name) {
			t.Fatalf("%+v, %v", header, err)
		}
		content, err := io.ReadAll(files)
		if err == nil && header.Name == outsideFile {
			err = json.Unmarshal(content, &out)
		} else if err == nil {
			path := filepath.Join(dir, filepath.FromSlash(header.Name))
			err = errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, content, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// report is what is read from a log, in words.
type report struct{ strings.Builder }

func (r *report) title(text string)               { fmt.Fprintf(r, "\n== %s\n", text) }
func (r *report) line(format string, args ...any) { fmt.Fprintf(r, format+"\n", args...) }

// readBack has today's gateway open a log, and tells all that is in it, and what
// the gateway makes of what comes next.
func readBack(t *testing.T, archive []byte) string {
	t.Helper()
	dir := t.TempDir()
	out := unpack(t, archive, dir)
	_, err := os.Stat(filepath.Join(dir, "data", "KEY"))
	g := newCollecting(t, err == nil)
	g.dir = dir
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	g.start(ctx)
	g.settle(ctx)

	r := &report{}
	r.line("A log of the release %s, which was %s: what is to be read from it, and what becomes of what comes next.", out.Release, out.How)
	events := g.readOrders(ctx, r, out)
	stored := g.readStripeEvents(ctx, r, out)
	g.readSubscriptions(ctx, r, out)

	r.title("Stripe sends every event again")
	for _, event := range stored {
		response, err := g.events.GetEvent(ctx, &ordergatev1.GetEventRequest{EventId: event.GetId()})
		g.send(ctx, rawOf(must(t, response, err)))
	}
	g.settle(ctx)
	again := g.allEvents(ctx, nil)
	ordersAgain, _ := g.watch(ctx, &ordergatev1.WatchOrdersRequest{Start: fromBeginning})
	r.line("%d of %d events are new, and %d of %d order events", len(again)-len(stored), len(again), len(ordersAgain)-len(events), len(ordersAgain))

	g.goOn(ctx, r, out)
	g.end(os.Interrupt)
	for line := range strings.Lines(g.said.String()) {
		// In an old log an event that was not converted yet has waited for long.
		if strings.Contains(line, `"level":"ERROR"`) && !strings.Contains(line, `"msg":"events wait to be converted"`) {
			t.Errorf("the gateway said: %s", line)
		}
	}
	return r.String()
}

// readOrders tells of the order events: as watched, by several filters, from a
// resume token, and one by one.
func (g *collecting) readOrders(ctx context.Context, r *report, out outside) []*ordergatev1.OrderEvent {
	events, _ := g.watch(ctx, &ordergatev1.WatchOrdersRequest{Start: fromBeginning})
	newest := map[string]map[string]any{}
	orders := map[string]*ordergatev1.Order{}
	var since []string
	r.title("Order events, with what is new in their orders")
	for _, event := range events {
		order := event.GetOrder()
		orders[order.GetId()] = order
		if event.GetSequence() > out.Last { // of what the gateway did just now
			since = append(since, fmt.Sprintf("%s %s: %s", event.GetId(), kindOf(event), stateOf(order)))
			continue
		}
		fields := fieldsOf(g.t, order)
		r.line("%d %s %s %s, of %q, note %q", event.GetSequence(), event.GetCreateTime().AsTime().Format(time.RFC3339Nano), event.GetId(), kindOf(event), event.GetSourceEventId(), event.GetNote())
		for _, key := range slices.Sorted(maps.Keys(fields)) {
			if before, had := newest[order.GetId()][key]; !had || !cmp.Equal(before, fields[key]) {
				r.line("    %s: %s", key, jsonOf(g.t, fields[key]))
			}
		}
		for _, key := range slices.Sorted(maps.Keys(newest[order.GetId()])) {
			if _, has := fields[key]; !has {
				r.line("    %s: -", key)
			}
		}
		newest[order.GetId()] = fields
	}
	r.title("What the gateway did when it was started again")
	for _, line := range slices.Sorted(slices.Values(since)) {
		r.line("%s", line)
	}

	r.title("Orders")
	for _, id := range slices.Sorted(maps.Keys(orders)) {
		response, err := g.orders.GetOrder(ctx, &ordergatev1.GetOrderRequest{OrderId: id})
		if got := must(g.t, response, err).GetOrder(); !proto.Equal(got, orders[id]) {
			g.t.Errorf("GetOrder: %v, and its newest event has %v", got, orders[id])
		}
		history, err := g.orders.ListOrderEvents(ctx, &ordergatev1.ListOrderEventsRequest{OrderId: id, PageSize: 100})
		r.line("%s %s, events: %d", id, stateOf(orders[id]), len(must(g.t, history, err).GetEvents()))
	}
	listed, err := g.orders.ListOrders(ctx, &ordergatev1.ListOrdersRequest{PageSize: 100})
	r.line("listed: %d", len(must(g.t, listed, err).GetOrders()))

	r.title("Filters")
	for _, filter := range []*ordergatev1.OrderEventFilter{
		{Livemode: new(true)},
		{Kinds: []ordergatev1.OrderEventKind{ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD}},
		{Accounts: []string{testAccount}},
		{ShipToCountries: []string{"AT"}},
		{Metadata: map[string]string{"warehouse": "vienna-1"}},
	} {
		found, _ := g.watch(ctx, &ordergatev1.WatchOrdersRequest{Start: fromBeginning, Filter: filter})
		r.line("%s: %s", jsonOf(g.t, fieldsOf(g.t, filter)), idsOf(found))
	}
	r.title("Behind the resume token")
	behind, _ := g.watch(ctx, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_ResumeToken{ResumeToken: out.ResumeToken}})
	r.line("%s",
		idsOf(slices.DeleteFunc(slices.Clone(behind), func(e *ordergatev1.OrderEvent) bool { return e.GetSequence() > out.Last })))
	return events
}

// readStripeEvents tells of the Stripe events.
func (g *collecting) readStripeEvents(ctx context.Context, r *report, out outside) []*ordergatev1.StripeEvent {
	r.title("Stripe events")
	events := g.allEvents(ctx, nil)
	for _, event := range events {
		response, err := g.events.GetEvent(ctx, &ordergatev1.GetEventRequest{EventId: event.GetId()})
		body := rawOf(must(g.t, response, err))
		at := "(now)" // a tombstone, of what was being erased
		if stored := event.GetStoreTime().AsTime(); stored.Before(out.Ended) {
			at = stored.Format(time.RFC3339Nano)
		}
		sum := sha256.Sum256(body)
		r.line("%d %s %s %s, %d bytes (%x), by %q: %s", event.GetSequence(), at, event.GetId(), event.GetType(), len(body), sum[:8], event.GetReceivedBy(), shorten(event.GetOutcome().String(), "EVENT_OUTCOME_"))
		r.line("    order %q, account %q, livemode %t, version %q: %s", event.GetOrderId(), event.GetAccount(), event.GetLivemode(), event.GetApiVersion(), event.GetDetail())
	}
	g.readParked(ctx, r)
	return events
}

func (g *collecting) readParked(ctx context.Context, r *report) {
	for _, event := range g.allEvents(ctx, &ordergatev1.EventFilter{ParkedOnly: true}) {
		r.line("parked: %s", event.GetId())
	}
}

// readSubscriptions tells of the subscriptions, and works off what is left of them.
func (g *collecting) readSubscriptions(ctx context.Context, r *report, out outside) {
	response, err := g.subscriptions.ListSubscriptions(ctx, &ordergatev1.ListSubscriptionsRequest{PageSize: 100})
	for _, subscription := range must(g.t, response, err).GetSubscriptions() {
		name, stats := subscription.GetName(), subscription.GetStats()
		r.title("Subscription " + name)
		subscription.Stats = nil
		r.line("%s", jsonOf(g.t, fieldsOf(g.t, subscription)))
		r.line("not looked at: %d, pending orders: %d, dead letters: %d", stats.GetBacklog(), stats.GetPendingOrders(), stats.GetDeadLetters())
		letters, err := g.subscriptions.ListDeadLetters(ctx, &ordergatev1.ListDeadLettersRequest{Subscription: name})
		for _, letter := range must(g.t, letters, err).GetDeadLetters() {
			r.line("dead letter: %s", jsonOf(g.t, fieldsOf(g.t, letter)))
		}
		if name == "shipping" {
			for _, result := range g.settleDeliveries(ctx, &ordergatev1.AcknowledgeRequest{Subscription: name, DeliveryIds: []string{out.Delivery}}) {
				r.line("what a worker had in hand is acknowledged: %s", shorten(result.GetCode().String(), "DELIVERY_RESULT_CODE_"))
			}
		}
		r.line("delivered: %s", g.workOff(ctx, name))
		redriven, err := g.subscriptions.RedriveDeadLetters(ctx, &ordergatev1.RedriveDeadLettersRequest{Subscription: name, All: true})
		r.line("redriven: %d", must(g.t, redriven, err).GetRedriven())
		r.line("delivered: %s", g.workOff(ctx, name))
	}
}

// workOff acknowledges all that a subscription delivers, and returns it.
func (g *collecting) workOff(ctx context.Context, name string) string {
	var delivered []string
	for {
		response, err := g.subscriptions.GetSubscription(ctx, &ordergatev1.GetSubscriptionRequest{Subscription: name})
		if stats := must(g.t, response, err).GetSubscription().GetStats(); stats.GetBacklog() == 0 && stats.GetPendingOrders() == 0 {
			break
		}
		acks := &ordergatev1.AcknowledgeRequest{Subscription: name}
		for _, delivery := range g.pull(ctx, name) {
			text := delivery.GetEvent().GetId()
			if delivery.GetAttempt() > 1 {
				text += fmt.Sprintf(" (attempt %d)", delivery.GetAttempt())
			}
			if delivery.GetRedriven() {
				text += " (redriven)"
			}
			delivered = append(delivered, text)
			acks.DeliveryIds = append(acks.DeliveryIds, delivery.GetDeliveryId())
		}
		if len(acks.DeliveryIds) > 0 {
			g.settleDeliveries(ctx, acks)
		}
	}
	slices.Sort(delivered) // orders come beside each other
	return strings.Join(delivered, ", ")
}

// goOn tells what becomes of the events that come next.
func (g *collecting) goOn(ctx context.Context, r *report, out outside) {
	r.title("What comes next")
	for _, next := range out.Later {
		g.send(ctx, []byte(next.Body))
		g.settle(ctx)
		all := g.allEvents(ctx, nil)
		event := all[len(all)-1]
		r.line("%s: %s", next.About, shorten(event.GetOutcome().String(), "EVENT_OUTCOME_"))
		if id := event.GetOrderId(); id != "" {
			response, err := g.orders.GetOrder(ctx, &ordergatev1.GetOrderRequest{OrderId: id})
			r.line("    %s %s", id, stateOf(must(g.t, response, err).GetOrder()))
		}
	}
	g.readParked(ctx, r)

	waitFor(ctx, g.t, "a backfill", func() bool {
		stream, err := g.events.Backfill(ctx, &ordergatev1.BackfillRequest{Since: timestamppb.New(time.Now().Add(-time.Hour))})
		for err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) == codes.Aborted { // that of the start is not at its end
			return false
		}
		if !errors.Is(err, io.EOF) {
			g.t.Fatal(err)
		}
		return true
	})
	g.mu.Lock()
	defer g.mu.Unlock()
	r.line("accounts whose events are listed: %q", slices.Sorted(maps.Keys(g.accounts)))
}

func rawOf(response *ordergatev1.GetEventResponse) []byte {
	if response.GetRawBytes() != nil {
		return response.GetRawBytes()
	}
	return []byte(response.GetRaw())
}

func idsOf(events []*ordergatev1.OrderEvent) string {
	var ids []string
	for _, event := range events {
		ids = append(ids, event.GetId())
	}
	return strings.Join(ids, ", ")
}

func shorten(name, prefix string) string { return strings.TrimPrefix(name, prefix) }

func kindOf(event *ordergatev1.OrderEvent) string {
	return shorten(event.GetKind().String(), "ORDER_EVENT_KIND_")
}

// stateOf tells in short how an order is.
func stateOf(order *ordergatev1.Order) string {
	return fmt.Sprintf("r%d %s %s, line items %s, refunded %d", order.GetRevision(), shorten(order.GetStatus().String(), "ORDER_STATUS_"),
		shorten(order.GetDirective().String(), "DIRECTIVE_"), shorten(order.GetLineItemsState().String(), "LINE_ITEMS_STATE_"), order.GetAmounts().GetRefunded())
}

// fieldsOf returns a message as JSON has it.
func fieldsOf(t *testing.T, message proto.Message) (fields map[string]any) {
	t.Helper()
	text, err := protojson.Marshal(message)
	if err := errors.Join(err, json.Unmarshal(text, &fields)); err != nil {
		t.Fatal(err)
	}
	return fields
}

func jsonOf(t *testing.T, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	return string(must(t, text, err))
}
