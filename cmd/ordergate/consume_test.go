package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// conversation is the gateway's end of one stream of Consume.
type conversation struct {
	t      *testing.T
	stream grpc.ServerStream
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
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || err != nil {
		c.t.Errorf("heard: %v %s", err, diff)
	}
}

// hearUntil receives messages up to one that is as wanted.
func (c *conversation) hearUntil(wanted func(*ordergatev1.ConsumeRequest) bool) {
	for got := (&ordergatev1.ConsumeRequest{}); !wanted(got); {
		if err := c.stream.RecvMsg(got); err != nil {
			c.t.Errorf("heard: %v", err)
			return
		}
	}
}

// hearEnd waits until the other end breaks the stream off, and has said nothing
// more.
func (c *conversation) hearEnd() error {
	got := &ordergatev1.ConsumeRequest{}
	if err := c.stream.RecvMsg(got); err == nil {
		c.t.Errorf("heard %v, not the end", got)
	}
	return c.stream.Context().Err()
}

func openRequest(window int32) *ordergatev1.ConsumeRequest {
	return &ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{Subscription: "shipping", MaxOutstandingEvents: window}}
}

func acks(ids ...string) *ordergatev1.ConsumeRequest { return &ordergatev1.ConsumeRequest{Acks: ids} }

var stopRequest = &ordergatev1.ConsumeRequest{Stop: true}

func opened(ackDeadline time.Duration) *ordergatev1.ConsumeResponse {
	return &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Opened{Opened: &ordergatev1.ConsumeOpened{
		Subscription: &ordergatev1.Subscription{Name: "shipping"}, AckDeadline: durationpb.New(ackDeadline),
	}}}
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

func results(code ordergatev1.DeliveryResultCode, ids ...string) *ordergatev1.ConsumeResponse {
	all := &ordergatev1.DeliveryResults{}
	for _, id := range ids {
		all.Results = append(all.Results, &ordergatev1.DeliveryResult{DeliveryId: id, Code: code})
	}
	return &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Results{Results: all}}
}

func ok(ids ...string) *ordergatev1.ConsumeResponse {
	return results(ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK, ids...)
}

func draining() *ordergatev1.ConsumeResponse {
	return &ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Draining{Draining: &ordergatev1.Draining{EndTime: timestamppb.Now()}}}
}

const lookingHint = "only looking: the events go back when this ends; --ack acknowledges them\n"

// checkConsume runs consume over the scenes, one for each stream.
func checkConsume(t *testing.T, ctx context.Context, args string, want outcome, scenes ...func(*conversation) error) {
	t.Helper()
	g := startScripted(t, &scriptedGateway{scenes: scenes})
	got := g.run(t, ctx, append([]string{"consume", "shipping"}, strings.Fields(args)...)...)
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

// Looking acknowledges nothing, and says what is unusual about a delivery.
func TestConsumeLook(t *testing.T) {
	checkConsume(t, t.Context(), "--limit 2 --window 5", outcome{stdout: line(1, "") + line(2, "  attempt 3  redriven"), stderr: lookingHint}, func(c *conversation) error {
		c.hear(openRequest(2))
		c.say(opened(time.Minute), delivery(1), &ordergatev1.ConsumeResponse{}, delivery(2, attempt(3), func(d *ordergatev1.Delivery) { d.Redriven = true }))
		return c.hearEnd()
	})
}

// What the flags ask for, and what --json prints.
func TestConsumeOpen(t *testing.T) {
	g := startScripted(t, &scriptedGateway{scenes: []func(*conversation) error{func(c *conversation) error {
		c.hear(&ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{
			Subscription: "shipping", MaxOutstandingEvents: 1, ClientId: "me", AckDeadline: durationpb.New(2 * time.Minute), Create: &ordergatev1.Subscription{},
			Start: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Time{Time: timestamppb.New(time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC))}},
		}})
		c.say(opened(time.Minute), delivery(1))
		c.hear(stopRequest)
		c.hear(acks("d1"))
		c.say(ok("d1"))
		return nil
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
	lockedBuffer
	text string
	stop func()
}

func (s *stopAt) Write(p []byte) (int, error) {
	n, err := s.lockedBuffer.Write(p)
	if strings.Contains(s.String(), s.text) {
		s.stop()
	}
	return n, err
}

// gated is output that nobody reads for a while.
type gated struct {
	lockedBuffer
	gate <-chan struct{}
}

func (g *gated) Write(p []byte) (int, error) {
	<-g.gate
	return g.lockedBuffer.Write(p)
}

// Leases are extended, also of what cannot be printed because nobody reads.
func TestConsumeExtends(t *testing.T) {
	extension := &ordergatev1.ConsumeRequest{Extensions: []*ordergatev1.Extension{{DeliveryId: "d1"}}}
	extended := ok("d1")
	extended.GetResults().GetResults()[0].LeaseExpireTime = timestamppb.Now()
	for _, ack := range []bool{false, true} {
		gate := make(chan struct{})
		g := startScripted(t, &scriptedGateway{scenes: []func(*conversation) error{func(c *conversation) error {
			c.hear(openRequest(1))
			c.say(opened(30*time.Millisecond), delivery(1))
			if ack {
				c.hear(stopRequest)
			}
			for range 3 {
				c.hear(extension)
				c.say(extended)
			}
			if ack {
				// The result of an extension is not that of the
				// acknowledgement, which may still be taken.
				c.say(results(ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_EXPIRED, "d1"))
				c.hear(extension)
			}
			close(gate)
			if ack {
				c.hearUntil(func(r *ordergatev1.ConsumeRequest) bool { return len(r.GetAcks()) > 0 })
				c.say(extended, results(ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_EXPIRED, "d1"))
			}
			<-c.stream.Context().Done()
			return c.stream.Context().Err()
		}}})
		args, notes := []string{"consume", "shipping", "--limit", "1"}, lookingHint
		if ack {
			args, notes = append(args, "--ack"), "cs_1.1: EXPIRED: the ack deadline had passed, and the event is delivered again\n"
		}
		stdout, stderr := gated{gate: gate}, lockedBuffer{}
		err := g.runWith(t, t.Context(), nil, &stdout, &stderr, args...)
		if err != nil || stdout.String() != line(1, "") || stderr.String() != notes {
			t.Errorf("ack %t: %v\n%s%s", ack, err, stdout.String(), stderr.String())
		}
	}
}

// What is looked at and lost is told, and not extended any more.
func TestConsumeLookLost(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	checkConsume(t, ctx, "--window 2", outcome{
		stdout: line(1, "") + line(2, ""),
		stderr: lookingHint + "2 events held, as many as --window allows\ncs_1.1: UNKNOWN: the gateway does not know this delivery any more, after a seek or a restart: the event is delivered again\n",
	}, func(c *conversation) error {
		c.hear(openRequest(2))
		c.say(opened(300*time.Millisecond), delivery(1), delivery(2))
		c.hearUntil(func(r *ordergatev1.ConsumeRequest) bool { return len(r.GetExtensions()) == 2 })
		c.say(results(ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_UNKNOWN, "d1"), ok("d2"))
		c.hearUntil(func(r *ordergatev1.ConsumeRequest) bool {
			return len(r.GetExtensions()) == 1 && r.GetExtensions()[0].GetDeliveryId() == "d2"
		})
		stop()
		<-c.stream.Context().Done()
		return c.stream.Context().Err()
	})
}

// With --ack and a limit, nothing beyond it is printed or acknowledged, and the
// command ends when the results have come.
func TestConsumeAckLimit(t *testing.T) {
	checkConsume(t, t.Context(), "--ack --limit 3 --window 2", outcome{stdout: line(1, "") + line(2, "") + line(3, "")}, func(c *conversation) error {
		c.hear(openRequest(2))
		c.say(opened(time.Minute), delivery(1))
		c.hear(acks("d1"))
		c.say(ok("d1"), delivery(2))
		c.hear(acks("d2"))
		c.say(ok("unheard of"), delivery(3), delivery(4))
		c.hear(stopRequest)
		c.hear(acks("d3"))
		c.say(ok("d3", "d2"))
		return c.hearEnd()
	})
}

// Results other than OK are told; what could not be stored is acknowledged
// again.
func TestConsumeResults(t *testing.T) {
	checkConsume(t, t.Context(), "--ack --limit 4", outcome{
		stdout: line(1, "") + line(2, "") + line(3, "") + line(4, ""),
		stderr: `cs_1.1: EXPIRED: the ack deadline had passed, and the event is delivered again
cs_2.1: STALE_ATTEMPT: the event has been delivered again meanwhile
cs_3.1: RETRYABLE: it could not be stored; trying again ...
cs_3.1: RETRYABLE: it could not be stored; trying again ...
cs_4.1: 99: a result of a later version of the gateway
`,
	}, func(c *conversation) error {
		c.hear(openRequest(4))
		c.say(opened(time.Minute))
		for n := 1; n <= 3; n++ {
			c.say(delivery(n))
			c.hear(acks(fmt.Sprintf("d%d", n)))
		}
		c.say(results(ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_EXPIRED, "d1"), results(ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_STALE_ATTEMPT, "d2"))
		retryable := results(ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_RETRYABLE, "d3")
		c.say(retryable)
		c.hear(acks("d3"))
		c.say(retryable)
		c.hear(acks("d3"))
		c.say(ok("d3"), delivery(4))
		c.hear(stopRequest)
		c.hear(acks("d4"))
		c.say(results(99, "d4"))
		return c.hearEnd()
	})
}

// A stream that breaks is opened again when the gateway asks for it at the
// earliest; the subscription is not made a second time; what has no result counts
// when it comes again.
func TestConsumeBroken(t *testing.T) {
	var broken time.Time
	open := openRequest(2)
	open.Open.Create = &ordergatev1.Subscription{}
	open.Open.Start = &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}
	checkConsume(t, t.Context(), "--ack --limit 2 --create --from-beginning", outcome{
		stdout: line(1, "") + line(2, "") + line(2, "  attempt 2"),
		stderr: "the subscription shipping was created\nno result came for 1 acknowledgement: what was printed may come again\nthe log is away; trying again ...\nthe gateway at ADDR cannot be reached: the stream ended\nis it running, and is --addr (ORDERGATE_ADDR) its gRPC address?; trying again ...\n",
	}, func(c *conversation) error {
		c.hear(open)
		created := opened(time.Minute)
		created.GetOpened().Created = true
		c.say(created, delivery(1))
		c.hear(acks("d1"))
		c.say(ok("d1"), delivery(2))
		c.hear(stopRequest)
		c.hear(acks("d2"))
		broken = time.Now()
		return problem(codes.Unavailable, "LOG_UNAVAILABLE", "the log is away", &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
	}, func(c *conversation) error {
		if waited := time.Since(broken); waited < time.Second {
			c.t.Errorf("came back after %v", waited)
		}
		c.hear(openRequest(1))
		c.say(opened(time.Minute))
		return nil // which nobody asked for
	}, func(c *conversation) error {
		c.hear(openRequest(1))
		c.say(opened(time.Minute), delivery(2, attempt(2)))
		c.hear(stopRequest)
		c.hear(acks("d2"))
		c.say(ok("d2"))
		return nil
	})
}

// A gateway that shuts down gets its acknowledgements, and need not wait for one
// who only looks.
func TestConsumeDraining(t *testing.T) {
	shutdown := problem(codes.Unavailable, "SHUTTING_DOWN", "the gateway shuts down")
	checkConsume(t, t.Context(), "--ack --limit 2", outcome{stdout: line(1, "") + line(2, ""), stderr: "the gateway shuts down; trying again ...\n"}, func(c *conversation) error {
		c.hear(openRequest(2))
		c.say(opened(time.Minute), draining(), delivery(1))
		c.hear(acks("d1"))
		c.say(ok("d1"))
		return shutdown
	}, func(c *conversation) error {
		c.hear(openRequest(1))
		c.say(opened(time.Minute), delivery(2))
		c.hear(stopRequest)
		c.hear(acks("d2"))
		c.say(ok("d2"))
		return nil
	})
	checkConsume(t, t.Context(), "--limit 1", outcome{
		stdout: line(1, ""),
		stderr: lookingHint + "the gateway at ADDR cannot be reached: the stream ended\nis it running, and is --addr (ORDERGATE_ADDR) its gRPC address?; trying again ...\n" + lookingHint,
	}, func(c *conversation) error {
		c.hear(openRequest(1))
		c.say(opened(time.Minute), draining())
		return c.hearEnd()
	}, func(c *conversation) error {
		c.hear(openRequest(1))
		c.say(opened(time.Minute), delivery(1))
		return c.hearEnd()
	})
}

// What another try would not change ends the command, also in the middle.
func TestConsumePermanentError(t *testing.T) {
	gone := problem(codes.NotFound, "SUBSCRIPTION_NOT_FOUND", "there is no subscription shipping")
	checkConsume(t, t.Context(), "", outcome{err: errors.New("there is no subscription shipping")}, func(c *conversation) error {
		c.hear(openRequest(100))
		return gone
	})
	checkConsume(t, t.Context(), "--ack", outcome{
		stdout: line(1, ""), stderr: "no result came for 1 acknowledgement: what was printed may come again\n", err: errors.New("there is no subscription shipping"),
	}, func(c *conversation) error {
		c.hear(openRequest(100))
		c.say(opened(time.Minute), delivery(1))
		c.hear(acks("d1"))
		return gone
	})
}

// Output that cannot be written ends the command, and acknowledges nothing.
func TestConsumeOutputFails(t *testing.T) {
	g := startScripted(t, &scriptedGateway{scenes: []func(*conversation) error{func(c *conversation) error {
		c.hear(openRequest(100))
		c.say(opened(time.Minute), delivery(1))
		return c.hearEnd()
	}}})
	reader, stdout := io.Pipe()
	reader.CloseWithError(io.ErrShortWrite)
	var stderr lockedBuffer
	if err := g.runWith(t, t.Context(), nil, stdout, &stderr, "consume", "shipping", "--ack"); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("%v\n%s", err, stderr.String())
	}
}

// Ctrl-C takes no more, waits for the results, also of what was under way, and
// is no error.
func TestConsumeStopped(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	checkConsume(t, ctx, "--ack", outcome{stdout: line(1, "") + line(2, "")}, func(c *conversation) error {
		c.hear(openRequest(100))
		c.say(opened(time.Minute), delivery(1))
		c.hear(acks("d1"))
		stop()
		c.hear(stopRequest)
		c.say(ok("d1"), delivery(2))
		c.hear(acks("d2"))
		c.say(ok("d2"))
		return nil
	})
	// One who only looks breaks off.
	ctx, stop = context.WithCancel(t.Context())
	g := startScripted(t, &scriptedGateway{scenes: []func(*conversation) error{func(c *conversation) error {
		c.hear(openRequest(100))
		c.say(opened(time.Minute), delivery(1))
		return c.hearEnd()
	}}})
	stdout, stderr := stopAt{stop: stop, text: "cs_1 "}, lockedBuffer{}
	if err := g.runWith(t, ctx, nil, &stdout, &stderr, "consume", "shipping"); err != nil || stderr.String() != lookingHint {
		t.Errorf("%v\n%s", err, stderr.String())
	}
}

// Ctrl-C says so when results do not come.
func TestConsumeStoppedWithoutResults(t *testing.T) {
	unanswered := "no result came for 1 acknowledgement: what was printed may come again\n"
	ctx, stop := context.WithCancel(t.Context())
	checkConsume(t, ctx, "--ack", outcome{stdout: line(1, ""), stderr: unanswered, err: errStopped}, func(c *conversation) error {
		c.hear(openRequest(100))
		c.say(opened(time.Minute), delivery(1))
		c.hear(acks("d1"))
		stop()
		c.hear(stopRequest)
		return problem(codes.Unavailable, "SHUTTING_DOWN", "the gateway shuts down")
	})
	// A gateway that says nothing is not waited for for ever.
	ctx, stop = context.WithCancel(t.Context())
	g := startScripted(t, &scriptedGateway{scenes: []func(*conversation) error{func(c *conversation) error {
		c.hear(openRequest(100))
		c.say(opened(time.Minute), delivery(1))
		c.hear(acks("d1"))
		stop()
		c.hear(stopRequest)
		return c.hearEnd()
	}}})
	conn, err := grpc.NewClient(g.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var stderr lockedBuffer
	w := &consumer{
		console: console{stderr: &stderr}, client: ordergatev1.NewSubscriptionServiceClient(conn), open: openRequest(100).GetOpen(),
		ack: true, window: 100, left: 1000, drainPatience: time.Millisecond,
		print: func(*ordergatev1.Delivery) error { return nil },
	}
	if err := w.run(ctx); !errors.Is(err, errStopped) || stderr.String() != unanswered {
		t.Errorf("%v\n%s", err, stderr.String())
	}
}

// Ctrl-C ends a command that does not reach its gateway.
func TestConsumeStoppedAway(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close() // nobody listens there
	for _, mode := range []string{"--ack=true", "--ack=false"} {
		ctx, stop := context.WithCancel(t.Context())
		stderr := stopAt{stop: stop, text: "trying again"}
		g := &scriptedGateway{addr: listener.Addr().String()}
		if err := g.runWith(t, ctx, nil, io.Discard, &stderr, "consume", "shipping", mode); err != nil || strings.Count(stderr.String(), "trying again") != 1 {
			t.Errorf("%s: %v\n%s", mode, err, stderr.String())
		}
	}
}
