package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/logtest"
	"github.com/ordergate/ordergate/internal/natscluster"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripehook"
	"github.com/ordergate/ordergate/internal/stripetest"
)

var soakTime = flag.Duration("soak", 12*time.Second, "how long TestSoak puts a gateway under load and trouble")

const (
	soakKey    = "0123456789abcdefSOAKKEYfedcba9876543210="
	soakAPIKey = "rk_test_soakAPIKEYsoak"
	soakForger = "whsec_0000000000000000000000000000000000"
	// soakRate is of genuine events a second, and bounds what a long soak stores.
	soakRate = 150
	soakDisk = 64 << 20 // and soakRate events of soakBytes for each second
	// soakBytes is more than is stored for an event.
	soakBytes = 24 << 10
	soakSaid  = 256 << 10 // of what the gateway said is shown, if the test fails
)

// soakSecrets must be in no log line, metric or answer: personal data of the
// samples, and secrets. The tokens are added.
var soakSecrets = []string{"Mustermann", "erika@", "Beispielstr", "4930123456", crashSecret[len("whsec_"):], soakForger[len("whsec_"):], soakKey, soakAPIKey}

// TestSoak has senders, forgers, watchers and workers on a gateway that is killed,
// stopped and given no space now and then, and balances the books at the end.
// Then it looks for personal data and secrets in what the gateway said.
func TestSoak(t *testing.T) {
	natscluster.Patiently(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3**soakTime+2*time.Minute)
	defer cancel()
	s := newSoak(ctx, t)
	s.gateway.start(ctx)

	loaded, stopLoad := context.WithTimeout(ctx, *soakTime)
	defer stopLoad()
	consuming, stopConsuming := context.WithCancel(ctx)
	defer stopConsuming()
	var load, subscribers sync.WaitGroup
	for range 6 {
		load.Go(func() { s.send(ctx, loaded) })
	}
	for range 2 {
		load.Go(func() { s.forge(loaded) })
		subscribers.Go(func() { s.watch(consuming) })
		subscribers.Go(func() { s.work(consuming) })
	}
	s.trouble(ctx, loaded)
	load.Wait()
	s.settle(ctx)
	s.scrape(ctx)
	stopConsuming()
	subscribers.Wait()
	s.gateway.end(os.Interrupt)
	s.balance(ctx)
	s.lookForSecrets()
}

// soak is what the outside knows.
type soak struct {
	t       *testing.T
	gateway *crashing
	filler  string // takes all space; empty where that cannot be done
	said    *saidBuffer
	limit   *rate.Limiter
	secret  stripehook.Secret
	options []grpc.DialOption

	mu                         sync.Mutex
	sent                       map[string][]byte // bodies by event id
	posts                      int
	oks                        int
	ok                         map[string]bool  // answered 200
	acked                      map[string]bool  // order events, by their ids
	watched                    map[int64]string // the same, by sequence
	answers                    map[string]int   // to forged requests
	forged                     int              // requests
	kills, stops, fulls, again int
}

func newSoak(ctx context.Context, t *testing.T) *soak {
	stripe := stripetest.NewServer(t)
	stripe.Handle("GET /v1/checkout/sessions/{id}/line_items", stripetest.List(func(*http.Request) []json.RawMessage { return nil }))
	stripe.Handle("GET /v1/invoices/{id}/lines", stripetest.List(func(*http.Request) []json.RawMessage { return nil }))
	stripe.Handle("GET /v1/events", stripetest.Events(func(*http.Request) []json.RawMessage { return nil }))
	secrets, err := stripehook.ParseSecrets(crashSecret)
	if err != nil {
		t.Fatal(err)
	}
	s := &soak{
		t: t, gateway: newCrashing(t), said: &saidBuffer{}, limit: rate.NewLimiter(soakRate, soakRate), secret: secrets[0],
		sent: map[string][]byte{}, ok: map[string]bool{}, acked: map[string]bool{}, watched: map[int64]string{}, answers: map[string]int{},
	}
	if mountSmall(t, s.gateway.dir, soakDisk+int(soakTime.Seconds())*soakRate*soakBytes) {
		s.filler = filepath.Join(s.gateway.dir, "filler")
	}
	files := t.TempDir() // not on the disk that gets full
	key, access := filepath.Join(files, "key"), filepath.Join(files, "access")
	if err := os.WriteFile(key, []byte(soakKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	token, err := exec.CommandContext(ctx, "ordergate", "tokens", "create", "soak", "--role", "operator", "--file", access).Output()
	if err != nil {
		t.Fatal(err)
	}
	s.options, err = client.Credentials{Token: strings.TrimSpace(string(token))}.DialOptions(s.gateway.grpc)
	if err != nil {
		t.Fatal(err)
	}
	s.said.secrets = append(soakSecrets[:len(soakSecrets):len(soakSecrets)], strings.TrimSpace(string(token)))
	newest := &logtest.Tail{Bytes: soakSaid}
	s.gateway.stderr = io.MultiWriter(s.said, newest)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the gateway said:\n%s", newest.Lines())
		}
	})
	s.gateway.args = []string{"--log-level", "debug", "--encryption-key-file", key, "--access-file", access, "--stripe-api-key", soakAPIKey, "--stripe-api-base", stripe.URL, "--stripe-rate", "100"}
	return s
}

// send posts stories until loaded ends, each event until it is answered 200, and
// some of them once more.
func (s *soak) send(ctx, loaded context.Context) {
	scenarios := sample.Scenarios()
	for loaded.Err() == nil {
		story, err := sample.Scenario(scenarios[rand.IntN(len(scenarios))].Name, time.Now())
		if err != nil {
			s.t.Error(err)
			return
		}
		for _, event := range story {
			copies := 1 + rand.IntN(4)/3
			var posting sync.WaitGroup
			for range copies {
				posting.Go(func() { s.post(ctx, event) })
			}
			posting.Wait()
		}
	}
}

func (s *soak) post(ctx context.Context, event sample.Event) {
	s.mu.Lock()
	s.sent[event.ID] = event.Body
	s.mu.Unlock()
	for s.limit.Wait(ctx) == nil {
		err := post(ctx, "http://"+s.gateway.ingress+"/api/webhook", s.secret, event.Body)
		s.mu.Lock()
		s.posts++
		if err == nil {
			s.oks++
			s.ok[event.ID] = true
		}
		s.mu.Unlock()
		if err == nil {
			return
		}
		s.said.note(err.Error())
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond): // as Stripe does, only sooner
		}
	}
}

// forge floods the ingress with events that Stripe did not sign.
func (s *soak) forge(loaded context.Context) {
	for i := 0; loaded.Err() == nil; i++ {
		story, err := sample.Story(sample.Completed, time.Now())
		if err != nil {
			s.t.Error(err)
			return
		}
		body := story[0].Body
		signed := func(secret string, body []byte, at time.Time) string {
			return webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: body, Secret: secret, Timestamp: at}).Header
		}
		header := []string{
			signed(soakForger, body, time.Now()),
			signed(crashSecret, append([]byte(" "), body...), time.Now()),
			signed(crashSecret, body, time.Now().Add(-time.Hour)),
			signed(crashSecret, body, time.Now().Add(time.Hour)),
			signed("", body, time.Now()),
			"t=1,v1=00",
			"",
		}[i%7]
		s.forgeOne(loaded, header, body)
	}
}

func (s *soak) forgeOne(ctx context.Context, header string, body []byte) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+s.gateway.ingress+"/api/webhook", bytes.NewReader(body))
	if err != nil {
		s.t.Error(err)
		return
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Stripe-Signature", header)
	response, err := http.DefaultClient.Do(request)
	if err != nil { // it is down
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
		return
	}
	defer response.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(response.Body, 4<<10)) // an answer that breaks off is a short one
	s.said.note(string(answer))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forged++
	s.answers[response.Status]++
}

func (s *soak) client() *client.Client {
	gateway, err := client.New(s.gateway.grpc, s.options...)
	if err != nil {
		s.t.Fatal(err)
	}
	return gateway
}

// watch sees every order event, and always the same one at a place.
func (s *soak) watch(ctx context.Context) {
	gateway := s.client()
	defer gateway.Close()
	for message, err := range gateway.Watch(ctx, client.WatchOptions{FromBeginning: true, OnRetry: func(err error, _ time.Duration) { s.said.note(err.Error()) }}) {
		if err != nil {
			s.t.Error(err)
			return
		}
		if event := message.GetEvent(); event != nil {
			s.mu.Lock()
			if was := s.watched[event.GetSequence()]; was != "" && was != event.GetId() {
				s.t.Errorf("at %d there was %s, and now %s", event.GetSequence(), was, event.GetId())
			}
			s.watched[event.GetSequence()] = event.GetId()
			s.mu.Unlock()
		}
	}
}

func (s *soak) work(ctx context.Context) {
	gateway := s.client()
	defer gateway.Close()
	handler := func(_ context.Context, delivery *client.Delivery) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.acked[delivery.Event.GetId()] {
			s.again++
		}
		s.acked[delivery.Event.GetId()] = true
		return nil
	}
	if err := gateway.Consume(ctx, "soak", handler, client.ConsumeOptions{Create: &ordergatev1.Subscription{Delivery: ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT}, Heartbeat: time.Second,
		Start: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}}); err != nil {
		s.t.Error(err)
	}
}

// trouble kills, stops and starves the gateway until loaded ends.
func (s *soak) trouble(ctx, loaded context.Context) {
	for i := 0; ; i++ {
		select {
		case <-loaded.Done():
			return
		case <-time.After(time.Second + rand.N(time.Second)): // of work in peace
		}
		switch {
		case i%3 == 1 && s.filler != "":
			fill(s.t, s.filler)
			s.fulls++
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond): // of no space
			}
			if err := os.Remove(s.filler); err != nil {
				s.t.Error(err)
			}
		case i%3 == 2:
			s.stops++
			s.gateway.end(os.Interrupt)
			s.gateway.start(ctx)
		default:
			s.kills++
			s.gateway.end(os.Kill)
			s.gateway.start(ctx)
		}
	}
}

// settle waits until the gateway has converted what it has, and the workers and
// watchers have seen it.
func (s *soak) settle(ctx context.Context) {
	s.calm(ctx)
	waitFor(ctx, s.t, "all is acknowledged", func() bool {
		gateway := s.client()
		defer gateway.Close()
		for message, err := range gateway.Watch(ctx, client.WatchOptions{FromBeginning: true}) {
			if err != nil {
				s.t.Fatal(err)
			}
			if message.GetCaughtUp() != nil {
				break
			}
			s.mu.Lock()
			event := message.GetEvent()
			seen := event == nil || s.acked[event.GetId()] && s.watched[event.GetSequence()] != ""
			s.mu.Unlock()
			if !seen {
				return false
			}
		}
		return true
	})
}

// calm waits until the gateway has converted every event.
func (s *soak) calm(ctx context.Context) {
	conn, err := grpc.NewClient(s.gateway.grpc, s.options...)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	service := ordergatev1.NewEventServiceClient(conn)
	// Newest first, and each page until nothing on it waits.
	for page := ""; ; {
		var response *ordergatev1.ListEventsResponse
		waitFor(ctx, s.t, "conversion", func() bool {
			response, err = service.ListEvents(ctx, &ordergatev1.ListEventsRequest{PageSize: 500, PageToken: page})
			waits := err != nil
			for _, event := range response.GetEvents() {
				if event.GetOutcome() == ordergatev1.EventOutcome_EVENT_OUTCOME_PENDING {
					waits = true
				}
			}
			return !waits
		})
		if page = response.GetNextPageToken(); page == "" {
			return
		}
	}
}

// scrape reads the metrics, which are searched as well.
func (s *soak) scrape(ctx context.Context) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.gateway.admin+"/metrics", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+s.said.secrets[len(s.said.secrets)-1])
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || !bytes.Contains(text, []byte("ordergate_ingress_")) {
		s.t.Fatalf("%v: metrics = %.200s", err, text)
	}
	s.said.note(string(text))
}

// balance reads what the gateway has stored, and compares.
func (s *soak) balance(ctx context.Context) {
	keys, err := eventlog.ParseKeys(soakKey)
	if err != nil {
		s.t.Fatal(err)
	}
	log, err := eventlog.Open(ctx, eventlog.Config{Dir: filepath.Join(s.gateway.dir, "data"), Keys: keys, MaxEventBytes: 1 << 20,
		InboxMaxAge: 35 * 24 * time.Hour, OrdersMaxAge: 400 * 24 * time.Hour, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	inbox := map[string]int{}
	altered, strangers := 0, 0
	for after := uint64(0); ; {
		events, err := log.ReadInbox(ctx, after, 500)
		if err != nil {
			s.t.Fatal(err)
		}
		if len(events) == 0 {
			break
		}
		for _, event := range events {
			after = event.Sequence
			inbox[event.ID]++
			if body, sent := s.sent[event.ID]; !sent {
				strangers++
			} else if !bytes.Equal(body, event.Body) {
				altered++
			}
		}
	}
	orders, revisions, unacked, disordered := map[string]bool{}, map[string]int64{}, 0, 0
	for after := uint64(0); ; {
		records, next, err := log.ReadOrders(ctx, after, 500)
		if err != nil {
			s.t.Fatal(err)
		}
		if next == after {
			break
		}
		for after = next; len(records) > 0; records = records[1:] {
			event, err := records[0].Event()
			if err != nil {
				s.t.Fatal(err)
			}
			order := event.GetOrder()
			if revisions[order.GetId()]++; revisions[order.GetId()] != order.GetRevision() || orders[event.GetId()] {
				disordered++
			}
			orders[event.GetId()] = true
			if !s.acked[event.GetId()] {
				unacked++
			}
		}
	}
	lost, twice := 0, 0
	for id := range s.ok {
		if inbox[id] == 0 {
			lost++
		}
	}
	for _, n := range inbox {
		twice += n - 1
	}
	for id := range s.acked {
		if !orders[id] {
			lost++
		}
	}
	accepted := s.answers["200 OK"] + strangers
	s.t.Logf(`after %v of load, with %d kills, %d stops and %d full disks:
	events sent                  %7d, in %d requests
	answered 200                 %7d, in %d requests: %d copies
	in INBOX                     %7d, twice %d, altered %d
	in ORDERS                    %7d events of %d orders, out of order %d
	watched                      %7d
	acknowledged by workers      %7d, more than once %d, never %d
	forged requests              %7d, answers %v, accepted %d
	lost                         %7d`,
		*soakTime, s.kills, s.stops, s.fulls, len(s.sent), s.posts, len(s.ok), s.oks, s.oks-len(s.ok), len(inbox), twice, altered,
		len(orders), len(revisions), disordered, len(s.watched), len(s.acked), s.again, unacked, s.forged, s.answers, accepted, lost)
	if lost+twice+altered+disordered+unacked+accepted > 0 || len(s.watched) != len(orders) || len(s.ok) != len(s.sent) {
		s.t.Error("the books do not balance")
	}
	if s.kills == 0 || s.stops == 0 || s.oks == len(s.ok) || s.forged < 100 || len(orders) < 100 || s.filler != "" && s.fulls == 0 {
		s.t.Error("too little happened: the books say nothing")
	}
}

// lookForSecrets fails for each line with what must not be said.
func (s *soak) lookForSecrets() {
	s.said.mu.Lock()
	defer s.said.mu.Unlock()
	s.t.Logf("%d lines and answers were searched", s.said.lines)
	if s.said.lines < 1000 {
		s.t.Error("too few to say anything")
	}
	for _, found := range s.said.found {
		s.t.Errorf("it was said: %s", found)
	}
	bodies := strings.Builder{}
	for _, body := range s.sent {
		bodies.Write(body)
	}
	for _, personal := range soakSecrets[:4] {
		if !strings.Contains(bodies.String(), personal) {
			s.t.Errorf("%s is in no event: the search says nothing", personal)
		}
	}
}

// saidBuffer searches all that the gateway says, and keeps what it finds.
type saidBuffer struct {
	secrets []string

	mu    sync.Mutex
	rest  []byte
	lines int
	found []string
}

func (b *saidBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rest = append(b.rest, p...)
	for {
		line, rest, whole := bytes.Cut(b.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		b.search(string(line))
		b.rest = rest
	}
}

func (b *saidBuffer) note(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range strings.Lines(text) {
		b.search(line)
	}
}

func (b *saidBuffer) search(line string) {
	b.lines++
	for _, secret := range b.secrets {
		if strings.Contains(line, secret) && len(b.found) < 10 {
			b.found = append(b.found, fmt.Sprintf("%q in %.1000s", secret, line))
		}
	}
}

// fill takes all the space of a disk.
func fill(t *testing.T, name string) {
	f, err := os.Create(name)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	for chunk := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(chunk)
	}
	if !errors.Is(err, errNoSpace) {
		t.Error(err)
	}
}
