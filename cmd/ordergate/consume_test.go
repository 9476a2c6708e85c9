package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/freeport"
	"github.com/ordergate/ordergate/internal/logtest"
)

// conversation is the gateway's end of one stream of Consume.
type conversation struct {
	t       *testing.T
	stream  grpc.ServerStream
	stopped bool // was told to
}

// say sends messages.
func (c *conversation) say(messages ...*ordergatev1.ConsumeResponse) {
	for _, message := range messages {
		if err := c.stream.SendMsg(message); err != nil {
			c.t.Errorf("say %v: %v", message, err)
		}
	}
}

// hear receives a message, which is to be as wanted.
func (c *conversation) hear(want *ordergatev1.ConsumeRequest) {
	got := &ordergatev1.ConsumeRequest{}
	err := c.stream.RecvMsg(got)
	c.stopped = c.stopped || got.GetStop()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || err != nil {
		c.t.Errorf("heard: %v %s", err, diff)
	}
}

// hearEnd answers OK to the settlements that come with the wish to stop, and
// ends the stream. It fails the test unless they are as wanted: `ack d1`,
// `back d2`.
func (c *conversation) hearEnd(want ...string) error {
	var got []string
	for !c.stopped || len(got) < len(want) {
		request := &ordergatev1.ConsumeRequest{}
		if err := c.stream.RecvMsg(request); err != nil {
			c.t.Errorf("heard %v, %v, want %v", got, err, want)
			return err
		}
		c.stopped = c.stopped || request.GetStop()
		for _, id := range request.GetAcks() {
			got = append(got, "ack "+id)
			c.say(ok(id))
		}
		for _, nack := range request.GetNacks() {
			if nack.GetAction() != ordergatev1.NackAction_NACK_ACTION_RETRY || nack.GetDelay() == nil || nack.GetDelay().AsDuration() != 0 {
				c.t.Errorf("heard %v", nack)
			}
			got = append(got, "back "+nack.GetDeliveryId())
			c.say(ok(nack.GetDeliveryId()))
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		c.t.Error(diff)
	}
	return nil
}

func openRequest(window int32) *ordergatev1.ConsumeRequest {
	return &ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{
		Subscription: "shipping", ClientId: "me", MaxOutstandingEvents: window, HeartbeatInterval: durationpb.New(15 * time.Second),
	}}
}

func acks(ids ...string) *ordergatev1.ConsumeRequest { return &ordergatev1.ConsumeRequest{Acks: ids} }

func opened(changes ...func(*ordergatev1.ConsumeOpened)) *ordergatev1.ConsumeResponse {
	o := &ordergatev1.ConsumeOpened{Subscription: &ordergatev1.Subscription{Name: "shipping"}, AckDeadline: durationpb.New(time.Minute)}
	for _, change := range changes {
		change(o)
	}
	return &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Opened{Opened: o}}
}

// delivery n of an event of the order cs_n; its delivery id is dn.
func delivery(n int, changes ...func(*ordergatev1.Delivery)) *ordergatev1.ConsumeResponse {
	d := &ordergatev1.Delivery{DeliveryId: fmt.Sprintf("d%d", n), Attempt: 1, Event: &ordergatev1.OrderEvent{
		Id: fmt.Sprintf("cs_%d.1", n), Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID, CreateTime: timestamppb.New(time.Date(2026, 3, 1, 12, 30, 45, 0, time.Local)),
		Order: &ordergatev1.Order{
			Id: fmt.Sprintf("cs_%d", n), Revision: 1, Livemode: new(true), Directive: ordergatev1.Directive_DIRECTIVE_SHIP,
			AddressState: ordergatev1.AddressState_ADDRESS_STATE_NOT_COLLECTED,
		},
	}}
	for _, change := range changes {
		change(d)
	}
	return &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: d}}
}

func attempt(n int32) func(*ordergatev1.Delivery) {
	return func(d *ordergatev1.Delivery) { d.Attempt = n }
}

// line is how delivery n is printed.
func line(n int, more string) string {
	return fmt.Sprintf("12:30:45  SHIP    PAID      cs_%d r1  no address: NOT_COLLECTED%s\n", n, more)
}

func ok(ids ...string) *ordergatev1.ConsumeResponse {
	all := &ordergatev1.DeliveryResults{}
	for _, id := range ids {
		all.Results = append(all.Results, &ordergatev1.DeliveryResult{DeliveryId: id, Code: ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK})
	}
	return &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Results{Results: all}}
}

// lookingHint is what is told when a window is looked at.
func lookingHint(window string) string {
	return "only looking, at up to " + window + ": they go back when this ends; --ack acknowledges them\n"
}

// checkConsume runs consume over the scenes, one for each stream.
func checkConsume(t *testing.T, ctx context.Context, args string, want outcome, scenes ...func(*conversation) error) {
	t.Helper()
	g := startScripted(t, &scriptedGateway{scenes: scenes})
	got := g.run(t, ctx, append([]string{"consume", "shipping", "--client-id", "me"}, strings.Fields(args)...)...)
	if !errors.Is(got.err, want.err) && (want.err == nil || got.err == nil || got.err.Error() != want.err.Error()) {
		t.Errorf("error = %v, want %v", got.err, want.err)
	}
	if diff := cmp.Diff([]string{want.stdout, want.stderr}, []string{got.stdout, strings.ReplaceAll(got.stderr, g.addr, "ADDR")}); diff != "" {
		t.Error(diff)
	}
	if g.streams != len(scenes) {
		t.Errorf("%d streams, want %d", g.streams, len(scenes))
	}
}

// Looking prints, holds and gives back what came, and says what is unusual about
// a delivery.
func TestConsumeLook(t *testing.T) {
	g := startScripted(t, &scriptedGateway{scenes: []func(*conversation) error{func(c *conversation) error {
		c.hear(openRequest(2))
		c.say(opened(), delivery(1), &ordergatev1.ConsumeResponse{}, delivery(2, attempt(3), func(d *ordergatev1.Delivery) { d.Redriven = true }))
		return c.hearEnd("back d1", "back d2")
	}}})
	got := g.run(t, t.Context(), strings.Fields("consume shipping --client-id me --limit 2 --window 5")...)
	lines := slices.Sorted(strings.Lines(got.stdout)) // they are printed beside each other
	if diff := cmp.Diff([]string{line(1, ""), line(2, "  attempt 3  redriven")}, lines); diff != "" || got.err != nil || got.stderr != lookingHint("2 events") {
		t.Errorf("%v\n%s%s", got.err, diff, got.stderr)
	}
}

// However many come at once, no more are printed than were asked for.
func TestConsumeLookLimit(t *testing.T) {
	g := startScripted(t, &scriptedGateway{scenes: []func(*conversation) error{func(c *conversation) error {
		c.hear(openRequest(2))
		c.say(opened(), delivery(1), delivery(2), delivery(3)) // one too many
		return c.hearEnd("back d1", "back d2", "back d3")
	}}})
	got := g.run(t, t.Context(), strings.Fields("consume shipping --client-id me --limit 2 --json")...)
	if strings.Count(got.stdout, "\n") != 2 || got.err != nil || got.stderr != "" {
		t.Errorf("%+v", got)
	}
}

// What the flags ask for, and what --json prints.
func TestConsumeOpen(t *testing.T) {
	g := startScripted(t, &scriptedGateway{scenes: []func(*conversation) error{func(c *conversation) error {
		c.hear(&ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{
			Subscription: "shipping", MaxOutstandingEvents: 1, ClientId: "me", HeartbeatInterval: durationpb.New(15 * time.Second), AckDeadline: durationpb.New(2 * time.Minute), Create: &ordergatev1.Subscription{},
			Start: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Time{Time: timestamppb.New(time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC))}},
		}})
		c.say(opened(), delivery(1))
		return c.hearEnd("ack d1")
	}}})
	got := g.run(t, t.Context(), strings.Fields("consume shipping --limit 1 --ack --json --client-id me --ack-deadline 2m --create --since 2026-01-31T08:00:00Z")...)
	printed := &ordergatev1.Delivery{}
	if err := protojson.Unmarshal([]byte(got.stdout), printed); err != nil || strings.Count(got.stdout, "\n") != 1 || got.err != nil || got.stderr != "" {
		t.Errorf("%v, %+v", err, got)
	}
	if diff := cmp.Diff(delivery(1).GetDelivery(), printed, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

// stopAt does something when a text is written.
type stopAt struct {
	logtest.Buffer
	text string
	stop func()
}

func (s *stopAt) Write(p []byte) (int, error) {
	n, err := s.Buffer.Write(p)
	if strings.Contains(s.String(), s.text) {
		s.stop()
	}
	return n, err
}

// With --ack and a limit, the lines are in the order of delivery, nothing beyond
// the limit is printed or acknowledged, and the command ends when the results
// have come.
func TestConsumeAckLimit(t *testing.T) {
	checkConsume(t, t.Context(), "--ack --limit 3 --window 2", outcome{stdout: line(1, "") + line(2, "") + line(3, "")}, func(c *conversation) error {
		c.hear(openRequest(2))
		c.say(opened(), delivery(1))
		c.hear(acks("d1"))
		c.say(ok("d1"), delivery(2))
		c.hear(acks("d2"))
		c.say(ok("d2"), delivery(3), delivery(4))
		return c.hearEnd("ack d3", "back d4")
	})
}

// Streams that break are opened again, which is told once until one opens; what
// was printed is acknowledged on the next one.
func TestConsumeBroken(t *testing.T) {
	open := openRequest(2)
	open.Open.Create = &ordergatev1.Subscription{}
	open.Open.Start = &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}
	away := problem(codes.Unavailable, "LOG_UNAVAILABLE", "the log is away")
	checkConsume(t, t.Context(), "--ack --limit 2 --create --from-beginning", outcome{
		stdout: line(1, "") + line(2, ""),
		stderr: "the log is away; trying again ...\nthe subscription shipping was created\nthe gateway at ADDR cannot be reached: the gateway ended the stream\nis it running, and is --addr (ORDERGATE_ADDR) its gRPC address? If it has TLS, give --tls or --tls-ca FILE; trying again ...\n",
	}, func(*conversation) error {
		return away
	}, func(*conversation) error {
		return away
	}, func(c *conversation) error {
		c.hear(open)
		c.say(opened(func(o *ordergatev1.ConsumeOpened) { o.Created = true }), delivery(1))
		c.hear(acks("d1"))
		return nil // which nobody asked for
	}, func(c *conversation) error {
		c.hear(open)
		c.say(opened())
		c.hear(acks("d1"))
		c.say(ok("d1"), delivery(2))
		return c.hearEnd("ack d2")
	})
}

// What another try would not change ends the command.
func TestConsumePermanentError(t *testing.T) {
	checkConsume(t, t.Context(), "", outcome{err: errors.New("there is no subscription shipping")}, func(c *conversation) error {
		c.hear(openRequest(100))
		return problem(codes.NotFound, "SUBSCRIPTION_NOT_FOUND", "there is no subscription shipping")
	})
	for _, args := range []string{"--window 0", "--window 10001", "--limit -1", "--from-beginning"} {
		if got := (&scriptedGateway{}).run(t, t.Context(), append([]string{"consume", "shipping"}, strings.Fields(args)...)...); got.err == nil {
			t.Errorf("%s: no error", args)
		}
	}
}

// Output that cannot be written ends the command, and acknowledges nothing.
func TestConsumeOutputFails(t *testing.T) {
	for _, mode := range []string{"--ack=true", "--ack=false"} {
		g := startScripted(t, &scriptedGateway{scenes: []func(*conversation) error{func(c *conversation) error {
			c.hear(openRequest(100))
			c.say(opened(), delivery(1), delivery(2))
			return c.hearEnd("back d1", "back d2")
		}}})
		reader, stdout := io.Pipe()
		reader.CloseWithError(io.ErrShortWrite)
		var stderr logtest.Buffer
		if err := g.runWith(t, t.Context(), nil, stdout, &stderr, "consume", "shipping", "--client-id", "me", mode); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("%s: %v\n%s", mode, err, stderr.String())
		}
	}
}

// Ctrl-C takes no more, waits for the results, and is no error.
func TestConsumeStopped(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	checkConsume(t, ctx, "--ack", outcome{stdout: line(1, "")}, func(c *conversation) error {
		c.hear(openRequest(100))
		c.say(opened(), delivery(1))
		c.hear(acks("d1"))
		stop()
		c.hear(&ordergatev1.ConsumeRequest{Stop: true})
		c.say(delivery(2), ok("d1")) // it was under way
		return c.hearEnd("back d2")
	})
	// What was looked at goes back.
	ctx, stop = context.WithCancel(t.Context())
	g := startScripted(t, &scriptedGateway{scenes: []func(*conversation) error{func(c *conversation) error {
		c.hear(openRequest(100))
		c.say(opened(), delivery(1))
		return c.hearEnd("back d1")
	}}})
	stdout, stderr := stopAt{stop: stop, text: "cs_1 "}, logtest.Buffer{}
	if err := g.runWith(t, ctx, nil, &stdout, &stderr, "consume", "shipping", "--client-id", "me"); err != nil || stdout.String() != line(1, "") || stderr.String() != lookingHint("100 events") {
		t.Errorf("%v\n%s%s", err, stdout.String(), stderr.String())
	}
}

// Ctrl-C ends a command that does not reach its gateway.
func TestConsumeStoppedAway(t *testing.T) {
	addr := freeport.Addrs(t, 1)[0] // nobody listens there
	for _, mode := range []string{"--ack=true", "--ack=false"} {
		ctx, stop := context.WithCancel(t.Context())
		stderr := stopAt{stop: stop, text: "trying again"}
		g := &scriptedGateway{addr: addr}
		if err := g.runWith(t, ctx, nil, io.Discard, &stderr, "consume", "shipping", mode); err != nil || strings.Count(stderr.String(), "trying again") != 1 {
			t.Errorf("%s: %v\n%s", mode, err, stderr.String())
		}
	}
}
