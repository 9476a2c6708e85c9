package main

import (
	"context"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/logtest"
)

// scriptedGateway is a SubscriptionService on loopback that notes what it is
// asked, and answers what a test says.
type scriptedGateway struct {
	ordergatev1.UnimplementedSubscriptionServiceServer
	addr   string
	answer func(request proto.Message) (proto.Message, error)
	scenes []func(*conversation) error // one for each stream of Consume

	mu       sync.Mutex
	requests []proto.Message // of the unary calls
	streams  int
}

// startScripted serves until the test ends, and waits for its scenes then.
func startScripted(t *testing.T, g *scriptedGateway) *scriptedGateway {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = listener.Addr().String()
	server := grpc.NewServer(grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(func(_ context.Context, request any, _ *grpc.UnaryServerInfo, _ grpc.UnaryHandler) (any, error) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.requests = append(g.requests, request.(proto.Message))
			return g.answer(request.(proto.Message))
		}),
		grpc.StreamInterceptor(func(_ any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, _ grpc.StreamHandler) error {
			g.mu.Lock()
			n := g.streams
			g.streams++
			g.mu.Unlock()
			if n >= len(g.scenes) {
				t.Errorf("stream %d was not expected", n+1)
				return status.Error(codes.NotFound, "no scene is left")
			}
			return g.scenes[n](&conversation{t: t, stream: stream})
		}))
	ordergatev1.RegisterSubscriptionServiceServer(server, g)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return g
}

// outcome is what a command line came to.
type outcome struct {
	stdout, stderr string
	err            error
}

// run runs a command line against the gateway. It fails the test when it does
// not end.
func (g *scriptedGateway) run(t *testing.T, ctx context.Context, args ...string) outcome {
	t.Helper()
	var stdout, stderr logtest.Buffer
	err := g.runWith(t, ctx, nil, &stdout, &stderr, args...)
	return outcome{stdout.String(), stderr.String(), err}
}

func (g *scriptedGateway) runWith(t *testing.T, ctx context.Context, stdin io.Reader, stdout, stderr io.Writer, args ...string) error {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, append(args, "--addr", g.addr), stdin, stdout, stderr) }()
	select {
	case err := <-ended:
		return err
	case <-time.After(patience):
		t.Fatalf("%v did not end within %v; stderr:\n%s", args, patience, stderr)
		return nil
	}
}

// problem is an error as the gateway makes them.
func problem(code codes.Code, reason, message string, more ...protoadapt.MessageV1) error {
	s, err := status.New(code, message).WithDetails(append(more, &errdetails.ErrorInfo{Reason: reason, Domain: "ordergate"})...)
	if err != nil {
		panic(err)
	}
	return s.Err()
}

// shippingSubscription is one with everything set.
func shippingSubscription() *ordergatev1.Subscription {
	return &ordergatev1.Subscription{
		Name: "shipping", CreateTime: timestamppb.New(time.Date(2026, 3, 1, 12, 30, 45, 0, time.Local)),
		AckDeadline: durationpb.New(30 * time.Second), MaxAttempts: 20, MinBackoff: durationpb.New(time.Second), MaxBackoff: durationpb.New(10 * time.Minute),
		DeadLetterPolicy: ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_BLOCK,
		Filter: &ordergatev1.OrderEventFilter{
			Kinds:    []ordergatev1.OrderEventKind{ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID, ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD},
			Livemode: new(true), Accounts: []string{"acct_1", ""}, ShipToCountries: []string{"DE", "AT"}, Metadata: map[string]string{"depot": "oslo", "a": "\x1b[2J"},
		},
		Stats: &ordergatev1.SubscriptionStats{
			Backlog: 12, PendingOrders: 3, DeadLetters: 2, OldestUnackedTime: timestamppb.New(time.Now().Add(-3*time.Minute - 30*time.Second)),
			Clients: []*ordergatev1.ClientStats{
				{Streams: 1, OutstandingEvents: 1, OutstandingBytes: 1},
				{ClientId: "oslo-1", Streams: 2, OutstandingEvents: 7, OutstandingBytes: 20480},
			},
		},
	}
}

// What each command line asks the gateway for.
func TestSubscriptionRequests(t *testing.T) {
	at := timestamppb.New(time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC))
	present := &ordergatev1.OrderEventFilter{
		Kinds: []ordergatev1.OrderEventKind{ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID}, Livemode: new(true), ShipToCountries: []string{"DE"},
	}
	get := &ordergatev1.GetSubscriptionRequest{Subscription: "shipping"}
	create := func(s *ordergatev1.Subscription, start *ordergatev1.SubscriptionPosition) proto.Message {
		s.Name = "shipping"
		return &ordergatev1.CreateSubscriptionRequest{Subscription: s, Start: start}
	}
	update := func(s *ordergatev1.Subscription, paths ...string) proto.Message {
		s.Name = "shipping"
		return &ordergatev1.UpdateSubscriptionRequest{Subscription: s, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}}
	}
	seek := func(position *ordergatev1.SubscriptionPosition) proto.Message {
		return &ordergatev1.SeekSubscriptionRequest{Subscription: "shipping", Position: position}
	}
	beginning := &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}
	since := &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Time{Time: at}}
	token := &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_ResumeToken{ResumeToken: "tok"}}
	for _, tt := range []struct {
		args string
		want []proto.Message
	}{
		{"subscriptions create shipping", []proto.Message{create(&ordergatev1.Subscription{}, nil)}},
		{"subscriptions create shipping --kind paid,HELD --kind CANCELED --live --account acct_1 --account= --country de,AT --metadata a=1,2;c=3 --metadata b=x=y --order cs_1 " +
			"--ack-deadline 90s --max-attempts 5 --min-backoff 0s --max-backoff 1h --dead-letter-policy skip --from-beginning",
			[]proto.Message{create(&ordergatev1.Subscription{
				Filter: &ordergatev1.OrderEventFilter{
					Kinds:    []ordergatev1.OrderEventKind{ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID, ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD, ordergatev1.OrderEventKind_ORDER_EVENT_KIND_CANCELED},
					Livemode: new(true), Accounts: []string{"acct_1", ""}, ShipToCountries: []string{"DE", "AT"}, Metadata: map[string]string{"a": "1,2;c=3", "b": "x=y"}, OrderIds: []string{"cs_1"},
				},
				AckDeadline: durationpb.New(90 * time.Second), MaxAttempts: 5, MinBackoff: durationpb.New(0), MaxBackoff: durationpb.New(time.Hour),
				DeadLetterPolicy: ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_SKIP,
			}, beginning)}},
		{"subscriptions create shipping --test --since 2026-01-31T08:00:00Z", []proto.Message{create(&ordergatev1.Subscription{Filter: &ordergatev1.OrderEventFilter{Livemode: new(false)}}, since)}},
		{"subscriptions create shipping --directive ship,HOLD --directive CANCEL --directive-changes --delivery every-event",
			[]proto.Message{create(&ordergatev1.Subscription{
				Filter: &ordergatev1.OrderEventFilter{
					Directives:           []ordergatev1.Directive{ordergatev1.Directive_DIRECTIVE_SHIP, ordergatev1.Directive_DIRECTIVE_HOLD, ordergatev1.Directive_DIRECTIVE_CANCEL},
					DirectiveChangedOnly: true,
				},
				Delivery: ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT,
			}, nil)}},
		{"subscriptions update shipping --delivery latest", []proto.Message{update(&ordergatev1.Subscription{Delivery: ordergatev1.DeliveryMode_DELIVERY_MODE_LATEST}, "delivery")}},
		{"subscriptions create shipping --resume-token tok", []proto.Message{create(&ordergatev1.Subscription{}, token)}},
		{"subscriptions show shipping", []proto.Message{get}},
		{"subscriptions list --limit 7", []proto.Message{&ordergatev1.ListSubscriptionsRequest{PageSize: 7}}},
		{"subscriptions update shipping --ack-deadline 2m --max-attempts 3", []proto.Message{update(&ordergatev1.Subscription{AckDeadline: durationpb.New(2 * time.Minute), MaxAttempts: 3}, "ack_deadline", "max_attempts")}},
		{"subscriptions update shipping --min-backoff 0s --max-backoff 5m --dead-letter-policy BLOCK", []proto.Message{update(&ordergatev1.Subscription{
			MinBackoff: durationpb.New(0), MaxBackoff: durationpb.New(5 * time.Minute), DeadLetterPolicy: ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_BLOCK,
		}, "min_backoff", "max_backoff", "dead_letter_policy")}},
		// A condition that is given takes the place of the one that there was; the others stay.
		{"subscriptions update shipping --kind HELD --account acct_1", []proto.Message{get, update(&ordergatev1.Subscription{Filter: &ordergatev1.OrderEventFilter{
			Kinds: []ordergatev1.OrderEventKind{ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD}, Livemode: new(true), ShipToCountries: []string{"DE"}, Accounts: []string{"acct_1"},
		}}, "filter")}},
		{"subscriptions update shipping --clear-filter", []proto.Message{update(&ordergatev1.Subscription{}, "filter")}},
		{"subscriptions update shipping --clear-filter --test", []proto.Message{update(&ordergatev1.Subscription{Filter: &ordergatev1.OrderEventFilter{Livemode: new(false)}}, "filter")}},
		{"subscriptions seek shipping --to-beginning", []proto.Message{seek(beginning)}},
		{"subscriptions seek shipping --to-end", []proto.Message{seek(&ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_End{End: true}})}},
		{"subscriptions seek shipping --to-time 2026-01-31T08:00:00Z", []proto.Message{seek(since)}},
		{"subscriptions seek shipping --to-token tok", []proto.Message{seek(token)}},
		{"subscriptions delete shipping --yes", []proto.Message{&ordergatev1.DeleteSubscriptionRequest{Subscription: "shipping"}}},
		{"dead-letters list shipping --limit 0", []proto.Message{&ordergatev1.ListDeadLettersRequest{Subscription: "shipping", PageSize: 500}}},
		{"dead-letters redrive shipping cs_1.1 cs_2.1", []proto.Message{&ordergatev1.RedriveDeadLettersRequest{Subscription: "shipping", EventIds: []string{"cs_1.1", "cs_2.1"}}}},
		{"dead-letters redrive shipping --all", []proto.Message{&ordergatev1.RedriveDeadLettersRequest{Subscription: "shipping", All: true}}},
		{"dead-letters discard shipping cs_1.1 --yes", []proto.Message{&ordergatev1.DiscardDeadLettersRequest{Subscription: "shipping", EventIds: []string{"cs_1.1"}}}},
		{"dead-letters discard shipping --all --yes", []proto.Message{&ordergatev1.DiscardDeadLettersRequest{Subscription: "shipping", All: true}}},
	} {
		for _, json := range []bool{false, true} {
			g := startScripted(t, &scriptedGateway{answer: func(request proto.Message) (proto.Message, error) {
				if _, ok := request.(*ordergatev1.GetSubscriptionRequest); ok {
					return &ordergatev1.GetSubscriptionResponse{Subscription: &ordergatev1.Subscription{Filter: present}}, nil
				}
				return &ordergatev1.DeleteSubscriptionResponse{}, nil // an empty message is one of each kind
			}})
			args := strings.Fields(tt.args)
			if json {
				args = append(args, "--json")
			}
			if got := g.run(t, t.Context(), args...); got.err != nil || got.stderr != "" {
				t.Errorf("%s: %+v", args, got)
			}
			if diff := cmp.Diff(tt.want, g.requests, protocmp.Transform()); diff != "" {
				t.Errorf("%s: %s", args, diff)
			}
		}
	}
}

// Command lines that ask for nothing, and say what to write instead.
func TestSubscriptionMistakes(t *testing.T) {
	g := startScripted(t, &scriptedGateway{answer: func(proto.Message) (proto.Message, error) {
		return nil, problem(codes.NotFound, "SUBSCRIPTION_NOT_FOUND", "there is no subscription shipping: ordergate subscriptions list shows those that there are")
	}})
	for args, want := range map[string]string{
		"subscriptions create shipping --kind NOPE":               `--kind "NOPE": there is no such kind: write one of PLACED, PAID`,
		"subscriptions create shipping --dead-letter-policy x":    `--dead-letter-policy "x": there is no such dead-letter-policy: write one of BLOCK, SKIP`,
		"subscriptions create shipping --live --test":             "can't be used together",
		"subscriptions create shipping --since 1h --resume-token": "--resume-token",
		"subscriptions create shipping --metadata a":              "--metadata",
		"subscriptions update shipping":                           "say what is to change: --help lists the settings",
		"subscriptions update shipping --kind NOPE":               "write one of PLACED, PAID",
		"subscriptions seek shipping":                             "say where to: --to-beginning, --to-end, --to-time TIME or --to-token TOKEN",
		"subscriptions seek shipping --to-end --to-token t":       "can't be used together",
		"subscriptions delete shipping":                           "there is no terminal to ask on, and nothing was done: give --yes to delete the subscription, its place and its dead letters",
		"dead-letters redrive shipping":                           "say which dead letters: either the ids of their events, or --all",
		"dead-letters redrive shipping cs_1.1 --all":              "say which dead letters: either",
		"dead-letters discard shipping":                           "say which dead letters: either",
		"dead-letters discard shipping --all":                     "there is no terminal to ask on, and nothing was done: give --yes to discard the dead letters",
		"consume shipping --from-beginning":                       "go with --create only",
		"consume shipping --since 1h --ack":                       "ordergate subscriptions seek moves",
		"consume shipping --limit=-1":                             "1 or more",
		"consume shipping --window 0":                             "1 or more",
	} {
		got := g.run(t, t.Context(), strings.Fields(args)...)
		if got.err == nil || !strings.Contains(got.err.Error(), want) || got.stdout != "" {
			t.Errorf("%s: %+v", args, got)
		}
	}
	if len(g.requests) > 0 || g.streams > 0 {
		t.Errorf("the gateway was asked %v, %d streams", g.requests, g.streams)
	}
	// What the gateway says against it is told as it says it.
	for _, args := range []string{"subscriptions show shipping", "subscriptions list", "subscriptions update shipping --kind PAID", "subscriptions delete shipping --yes", "dead-letters list shipping", "dead-letters redrive shipping --all"} {
		got := g.run(t, t.Context(), strings.Fields(args)...)
		if got.err == nil || got.err.Error() != "there is no subscription shipping: ordergate subscriptions list shows those that there are" || got.stdout != "" {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

// What people read.
func TestSubscriptionOutput(t *testing.T) {
	letters := []*ordergatev1.DeadLetter{
		{EventId: "cs_1.2", Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID, Reason: ordergatev1.DeadLetterReason_DEAD_LETTER_REASON_ATTEMPTS_EXHAUSTED, Attempts: 20,
			DeadLetterTime: timestamppb.New(time.Date(2026, 3, 1, 12, 30, 45, 0, time.Local)), BlocksOrder: true},
		{EventId: "cs_22.1", Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_REFUNDED, Reason: ordergatev1.DeadLetterReason_DEAD_LETTER_REASON_SUBSCRIBER_REJECTED, Attempts: 1,
			DeadLetterTime: timestamppb.New(time.Date(2026, 3, 2, 12, 30, 45, 0, time.Local)), Redriving: true, Detail: "no such\x1b[2J depot\nstack trace"},
	}
	g := startScripted(t, &scriptedGateway{answer: func(request proto.Message) (proto.Message, error) {
		shipping := shippingSubscription()
		switch request := request.(type) {
		case *ordergatev1.ListSubscriptionsRequest:
			books := &ordergatev1.Subscription{Name: "books", Stats: &ordergatev1.SubscriptionStats{}}
			return &ordergatev1.ListSubscriptionsResponse{Subscriptions: []*ordergatev1.Subscription{books, shipping}}, nil
		case *ordergatev1.GetSubscriptionRequest:
			return &ordergatev1.GetSubscriptionResponse{Subscription: shipping}, nil
		case *ordergatev1.CreateSubscriptionRequest:
			shipping.Filter, shipping.Stats, shipping.DeadLetterPolicy = nil, nil, ordergatev1.DeadLetterPolicy_DEAD_LETTER_POLICY_SKIP
			shipping.AckDeadline, shipping.MinBackoff, shipping.MaxBackoff = durationpb.New(90*time.Second), durationpb.New(0), durationpb.New(10*time.Hour)
			return &ordergatev1.CreateSubscriptionResponse{Subscription: shipping}, nil
		case *ordergatev1.SeekSubscriptionRequest:
			return &ordergatev1.SeekSubscriptionResponse{Subscription: shipping}, nil
		case *ordergatev1.DeleteSubscriptionRequest:
			return &ordergatev1.DeleteSubscriptionResponse{}, nil
		case *ordergatev1.ListDeadLettersRequest:
			return &ordergatev1.ListDeadLettersResponse{DeadLetters: letters[:min(int(request.PageSize), 2)], NextPageToken: strings.Repeat("more", max(0, 2-int(request.PageSize)))}, nil
		case *ordergatev1.RedriveDeadLettersRequest:
			return &ordergatev1.RedriveDeadLettersResponse{Redriven: 1}, nil
		case *ordergatev1.DiscardDeadLettersRequest:
			return &ordergatev1.DiscardDeadLettersResponse{Discarded: 2}, nil
		}
		return nil, status.Errorf(codes.Unimplemented, "%T", request)
	}})
	for _, tt := range []struct{ args, stdout, stderr string }{
		{args: "subscriptions list", stdout: `NAME      BACKLOG  PENDING  OLDEST UNACKED  DEAD LETTERS  WORKERS  FILTER
books     0        0                        0             0        all
shipping  12       3        3m              2             3        kind: PAID, HELD; mode: LIVE; account: acct_1, the platform's own; country: DE, AT; metadata: a=�[2J …
`},
		{args: "subscriptions create shipping", stdout: `Subscription        shipping
Created             2026-03-01 12:30:45
Ack deadline        1m30s
Max attempts        20
Backoff             0s to 10h
Dead letter policy  SKIP: later events of the order are delivered without it
Filter              none: all events
`},
		{args: "subscriptions seek shipping --to-beginning", stdout: `shipping was moved to the beginning: everything that is kept is delivered, also what was acknowledged.
What was out is void: an acknowledgement of it does not count. Dead letters stay, and block their orders no longer.
Backlog now: 12 events.
`},
		{args: "subscriptions delete shipping --yes", stdout: "shipping was deleted\n"},
		{args: "subscriptions delete shipping --yes --json", stdout: "{}\n"},
		{args: "dead-letters list shipping", stdout: `EVENT    KIND      REASON               ATTEMPTS  SINCE                BLOCKS  DETAIL
cs_1.2   PAID      ATTEMPTS_EXHAUSTED   20        2026-03-01 12:30:45  yes     -
cs_22.1  REFUNDED  SUBSCRIBER_REJECTED  1         2026-03-02 12:30:45  no      being redriven, no such�[2J depot …
`},
		{args: "dead-letters list shipping --limit 1", stderr: "these are 1; there may be more: --limit 0 lists all\n", stdout: `EVENT   KIND  REASON              ATTEMPTS  SINCE                BLOCKS  DETAIL
cs_1.2  PAID  ATTEMPTS_EXHAUSTED  20        2026-03-01 12:30:45  yes     -
`},
		{args: "dead-letters redrive shipping --all", stdout: "1 dead letter redriven\n"},
		{args: "dead-letters redrive shipping cs_1.2 cs_22.1", stdout: "1 dead letter redriven, of the 2 named: the others were being redriven already\n"},
		{args: "dead-letters discard shipping cs_1.2 cs_22.1 --yes", stdout: "2 dead letters discarded\n"},
		{args: "dead-letters discard shipping cs_1.2 cs_22.1 cs_3.1 --yes", stdout: "2 dead letters discarded, of the 3 named: the others are being redriven, which goes first\n"},
	} {
		got := g.run(t, t.Context(), strings.Fields(tt.args)...)
		if diff := cmp.Diff(outcome{tt.stdout, tt.stderr, nil}, got, cmp.AllowUnexported(outcome{})); diff != "" {
			t.Errorf("%s: %s", tt.args, diff)
		}
	}

	want := `Subscription        shipping
Created             2026-03-01 12:30:45
Ack deadline        30s
Max attempts        20
Backoff             1s to 10m
Dead letter policy  BLOCK: later events of the order wait for it
Only kind           PAID, HELD
Only mode           LIVE
Only account        acct_1, the platform's own
Only country        DE, AT
Only metadata       a=�[2J, depot=oslo
Backlog             12
Pending orders      3
Oldest unacked      TIME, 3m ago
Dead letters        2

Clients
   (without an id)  1 stream   1 event out   1 byte
   oslo-1           2 streams  7 events out  20480 bytes
`
	got := g.run(t, t.Context(), "subscriptions", "show", "shipping")
	if diff := cmp.Diff(want, regexp.MustCompile(`(Oldest unacked +).*,`).ReplaceAllString(got.stdout, "${1}TIME,")); diff != "" || got.err != nil || got.stderr != "" {
		t.Errorf("show: %s %+v", diff, got)
	}
	for args, lines := range map[string]int{"subscriptions list --json": 2, "subscriptions show shipping --json": 1, "subscriptions create shipping --json": 1, "subscriptions seek shipping --to-end --json": 1, "dead-letters list shipping --json": 2} {
		got := g.run(t, t.Context(), strings.Fields(args)...)
		objects := strings.Split(strings.TrimSpace(got.stdout), "\n")
		whole := slices.ContainsFunc(objects, func(line string) bool {
			return !strings.HasPrefix(line, `{"name":`) && !strings.HasPrefix(line, `{"eventId":`)
		})
		if len(objects) != lines || whole || got.err != nil {
			t.Errorf("%s: %+v", args, got)
		}
	}
}

func TestAge(t *testing.T) {
	for ago, want := range map[time.Duration]string{
		-time.Minute: "0s", 5 * time.Second: "5s", 90 * time.Second: "1m", 59*time.Minute + time.Second: "59m", 61 * time.Minute: "1h", 47 * time.Hour: "47h", 49 * time.Hour: "2d", 100 * 24 * time.Hour: "100d",
	} {
		if got := age(time.Now().Add(-ago)); got != want {
			t.Errorf("%v: %s, want %s", ago, got, want)
		}
	}
}

func TestShortDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "0s", 90 * time.Second: "1m30s", 10 * time.Minute: "10m", time.Hour: "1h", 24 * time.Hour: "24h", time.Hour + time.Minute: "1h1m", 1500 * time.Millisecond: "1.5s"} {
		if got := shortDuration(durationpb.New(d)); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
