package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

const (
	// drainPatience bounds how long Ctrl-C waits for results.
	drainPatience = 10 * time.Second
	// repeatPause is how long to wait before an acknowledgement is repeated
	// that could not be stored.
	repeatPause = 500 * time.Millisecond
	// maxRetryPause bounds how long to wait before a stream is opened again, and
	// maxRetryDelay how long the gateway can ask for on top.
	maxRetryPause = 10 * time.Second
	maxRetryDelay = time.Minute
	// maxSettled is how many deliveries one message may be about.
	maxSettled = 1000
)

type consumeCommand struct {
	subscriptionFlags `embed:""`
	Ack               bool           `name:"ack" help:"Acknowledge each event after it was printed."`
	Limit             int32          `name:"limit" placeholder:"N" help:"Stop after N events; with --ack, when their results have come."`
	Window            int32          `name:"window" default:"100" placeholder:"N" help:"How many events may be out with this command: 1 to 10000, 100 by default."`
	AckDeadline       *time.Duration `name:"ack-deadline" placeholder:"DURATION" help:"How long this command has for an event: 1s to 10m; the subscription's own by default."`
	ClientID          string         `name:"client-id" placeholder:"ID" help:"Who this is, for the figures."`
	Create            bool           `name:"create" help:"Create the subscription if there is none, with all defaults: from now on, unless told otherwise."`
	startFlags        `embed:""`
}

// Help is the longer text of `ordergate consume --help`.
func (consumeCommand) Help() string {
	return `Prints a line for each event that the subscription has to deliver, and goes on by itself when the connection breaks.

With --ack each event is done with once it was printed. Ctrl-C takes no more events, waits for the results of those that were printed, and ends.

Without --ack it only looks: it holds up to --window events, which no other worker gets meanwhile, and keeps them until it is stopped. Then they go back at once; having been out counts as one of their attempts.

Examples:
  ordergate consume shipping --limit 10
  ordergate consume shipping --ack --json | jq .event.order.id
  ordergate consume try-out --create --from-beginning --ack`
}

func (m *consumeCommand) Run(ctx context.Context, c console) error {
	if m.position() != nil && !m.Create {
		return errors.New("--from-beginning, --since and --resume-token go with --create only: ordergate subscriptions seek moves a subscription that there is")
	}
	if m.Limit < 0 || m.Window < 1 {
		return errors.New("--limit and --window are numbers of events, 1 or more")
	}
	open := &ordergatev1.ConsumeOpen{Subscription: m.Name, ClientId: m.ClientID}
	if m.AckDeadline != nil {
		open.AckDeadline = durationpb.New(*m.AckDeadline)
	}
	if m.Create {
		open.Create, open.Start = &ordergatev1.Subscription{}, m.position()
	}
	w := &consumer{
		console: c, open: open, ack: m.Ack, left: cmp.Or(int(m.Limit), math.MaxInt), window: int(m.Window), explain: m.explain,
		drainPatience: drainPatience,
		print: func(delivery *ordergatev1.Delivery) error {
			_, err := fmt.Fprintln(c.stdout, deliveryLine(delivery))
			return err
		},
		hint: func(format string, args ...any) { fmt.Fprintf(c.stderr, format+"\n", args...) },
	}
	if m.JSON {
		w.print = func(delivery *ordergatev1.Delivery) error { return printJSON(c.stdout, delivery) }
		w.hint = func(string, ...any) {}
	}
	return m.call(func(conn *grpc.ClientConn) error {
		w.client = ordergatev1.NewSubscriptionServiceClient(conn)
		return w.run(ctx)
	}, grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}))
}

// deliveryLine is the line of an order event, and what is unusual about its
// delivery.
func deliveryLine(delivery *ordergatev1.Delivery) string {
	line := orderLine(delivery.GetEvent())
	if delivery.GetAttempt() > 1 {
		line += fmt.Sprintf("  attempt %d", delivery.GetAttempt())
	}
	if delivery.GetRedriven() {
		line += "  redriven"
	}
	return line
}

// consumer prints the events of a subscription, over one stream after the
// other. It belongs to the goroutine of run.
type consumer struct {
	console
	client        ordergatev1.SubscriptionServiceClient
	open          *ordergatev1.ConsumeOpen
	ack           bool
	window        int
	left          int // events until the end: those not printed; with ack, those without a result
	drainPatience time.Duration
	explain       func(error) error
	print         func(*ordergatev1.Delivery) error
	hint          func(format string, args ...any) // for people
	jobs          chan printJob

	// Of one stream.
	stream grpc.BidiStreamingClient[ordergatev1.ConsumeRequest, ordergatev1.ConsumeResponse]
	opened bool
	queue  []*ordergatev1.Delivery // to be printed; the first one may be on its way out
	held   map[string]*holding     // by the ids of deliveries that came and are not settled
	again  []string                // acknowledgements to be repeated
}

// holding is a delivery that is out with the consumer.
type holding struct {
	event string
	acked bool // it waits for its result
}

// printJob is one event to be printed; done tells when it was.
type printJob struct {
	delivery *ordergatev1.Delivery
	done     chan error
}

// errEnded is what a stream ends with that ends by itself.
var errEnded = status.Error(codes.Unavailable, "the stream ended")

// run reads one stream after the other until there are no events left to print,
// ctx ends, or an error is permanent.
func (w *consumer) run(ctx context.Context) error {
	// Apart, so that leases are extended while somebody pages through the output.
	w.jobs = make(chan printJob)
	defer close(w.jobs)
	go func() {
		for job := range w.jobs {
			job.done <- w.print(job.delivery)
		}
	}()
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = maxRetryPause
	for away := false; ; {
		err := w.consume(ctx)
		if _, ofStream := status.FromError(err); err == nil || !ofStream {
			return err
		}
		unanswered := w.unanswered()
		if unanswered > 0 {
			fmt.Fprintf(w.stderr, "no result came for %s: what was printed may come again\n", counted(unanswered, "acknowledgement"))
		}
		switch {
		case ctx.Err() != nil && unanswered > 0:
			return errStopped
		case ctx.Err() != nil:
			return nil
		case permanent(err):
			return err
		}
		if w.opened {
			pause.Reset()
			away = false
		}
		if !away {
			fmt.Fprintf(w.stderr, "%v; trying again ...\n", w.explain(err))
			away = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(retryDelay(err), maxRetryDelay) + pause.NextBackOff()):
		}
	}
}

// consume reads one stream until nothing is left to do, or to its end, which is
// an error.
func (w *consumer) consume(ctx context.Context) (err error) {
	w.opened, w.queue, w.held, w.again = false, nil, map[string]*holding{}, nil
	w.open.MaxOutstandingEvents = int32(min(w.window, w.left))
	// Where nothing is acknowledged, to stop is to break off.
	streaming, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	keep := context.AfterFunc(ctx, cancel)
	defer keep()
	if w.stream, err = w.client.Consume(streaming); err != nil {
		return err
	}
	w.say(&ordergatev1.ConsumeRequest{Open: w.open})
	messages, ended := make(chan *ordergatev1.ConsumeResponse), make(chan error, 1)
	go func() {
		ended <- eachReceived(w.stream, func(message *ordergatev1.ConsumeResponse) error {
			select {
			case messages <- message:
				return nil
			case <-streaming.Done():
				return status.FromContextError(streaming.Err()).Err()
			}
		})
	}()

	var stopping <-chan struct{}
	var extend, repeat, giveUp <-chan time.Time
	var printed chan error // of the first in the queue, when it is on its way out
	for {
		var jobs chan<- printJob
		var job printJob
		if len(w.queue) > 0 && printed == nil {
			jobs, job = w.jobs, printJob{w.queue[0], make(chan error, 1)}
		}
		select {
		case message := <-messages:
			if opened := message.GetOpened(); opened != nil {
				w.begin(opened)
				ticker := time.NewTicker(max(opened.GetAckDeadline().AsDuration()/3, time.Millisecond))
				defer ticker.Stop()
				extend = ticker.C
				if w.ack && keep() {
					stopping = ctx.Done()
				}
			}
			if err := w.handle(message); err != nil {
				return err
			}
			if len(w.again) > 0 && repeat == nil {
				repeat = time.After(repeatPause)
			}
		case jobs <- job:
			printed = job.done
		case err := <-printed:
			if err != nil {
				return err
			}
			printed = nil
			w.printed()
		case <-extend:
			w.extend()
		case <-repeat:
			w.say(&ordergatev1.ConsumeRequest{Acks: w.again})
			w.again, repeat = nil, nil
		case <-stopping:
			w.say(&ordergatev1.ConsumeRequest{Stop: true})
			stopping, giveUp = nil, time.After(w.drainPatience)
		case <-giveUp:
			return status.Errorf(codes.DeadlineExceeded, "the stream did not end within %v", w.drainPatience)
		case err := <-ended:
			return cmp.Or(err, errEnded)
		}
		if w.left == 0 {
			return nil
		}
	}
}

// say sends a message. What is wrong with the stream is told by its end.
func (w *consumer) say(request *ordergatev1.ConsumeRequest) { _ = w.stream.Send(request) }

// begin notes that the stream is open.
func (w *consumer) begin(opened *ordergatev1.ConsumeOpened) {
	w.opened = true
	// Whoever deletes the subscription later does not get it back from here.
	w.open.Create, w.open.Start = nil, nil
	if opened.GetCreated() {
		w.hint("the subscription %s was created", plain(opened.GetSubscription().GetName()))
	}
	if !w.ack {
		w.hint("only looking: the events go back when this ends; --ack acknowledges them")
	}
}

// handle does what a message of the gateway asks for.
func (w *consumer) handle(message *ordergatev1.ConsumeResponse) error {
	switch {
	case message.GetDelivery() != nil:
		w.take(message.GetDelivery())
	case message.GetResults() != nil:
		for _, result := range message.GetResults().GetResults() {
			w.settle(result)
		}
	case message.GetDraining() != nil && !w.ack:
		// The gateway need not wait for acknowledgements that never come.
		return errEnded
	}
	return nil
}

// take has an event printed.
func (w *consumer) take(delivery *ordergatev1.Delivery) {
	if w.ack && len(w.held) >= w.left {
		return // it was under way when the last one came, and goes back when the stream ends
	}
	w.queue = append(w.queue, delivery)
	w.held[delivery.GetDeliveryId()] = &holding{event: delivery.GetEvent().GetId()}
	if w.ack && len(w.held) == w.left {
		w.say(&ordergatev1.ConsumeRequest{Stop: true})
	}
}

// printed acknowledges the first event of the queue, or looks at the next.
func (w *consumer) printed() {
	id := w.queue[0].GetDeliveryId()
	w.queue = w.queue[1:]
	if w.ack {
		if of, ok := w.held[id]; ok {
			of.acked = true
		}
		w.say(&ordergatev1.ConsumeRequest{Acks: []string{id}})
		return
	}
	w.left--
	if len(w.queue) == 0 && len(w.held) == w.window && w.left > 0 {
		w.hint("%s held, as many as --window allows", counted(int64(w.window), "event"))
	}
}

// settle notes what became of a delivery that was acknowledged, or extended.
func (w *consumer) settle(result *ordergatev1.DeliveryResult) {
	code, id := result.GetCode(), result.GetDeliveryId()
	of, ok := w.held[id]
	extended := code == ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK && (!w.ack || result.GetLeaseExpireTime() != nil)
	if !ok || extended || w.ack && !of.acked { // the acknowledgement that follows has a result too
		return
	}
	if code != ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK {
		fmt.Fprintf(w.stderr, "%s: %s: %s\n", plain(of.event), enumName(code), resultMeaning(code))
	}
	switch {
	case code != ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_RETRYABLE:
		delete(w.held, id)
		if w.ack {
			w.left--
		}
	case w.ack:
		w.again = append(w.again, id)
	}
}

// unanswered is how many acknowledgements wait for their results.
func (w *consumer) unanswered() (n int64) {
	for _, of := range w.held {
		if of.acked {
			n++
		}
	}
	return n
}

// extend keeps what is held and not acknowledged: else looking would take an
// attempt each time that the ack deadline passes.
func (w *consumer) extend() {
	var extensions []*ordergatev1.Extension
	for id, of := range w.held {
		if !of.acked {
			extensions = append(extensions, &ordergatev1.Extension{DeliveryId: id})
		}
	}
	for some := range slices.Chunk(extensions, maxSettled) {
		w.say(&ordergatev1.ConsumeRequest{Extensions: some})
	}
}

// resultMeaning says what a result other than OK means for the event.
func resultMeaning(code ordergatev1.DeliveryResultCode) string {
	switch code {
	case ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_EXPIRED:
		return "the ack deadline had passed, and the event is delivered again"
	case ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_STALE_ATTEMPT:
		return "the event has been delivered again meanwhile"
	case ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_UNKNOWN:
		return "the gateway does not know this delivery any more, after a seek or a restart: the event is delivered again"
	case ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_RETRYABLE:
		return "it could not be stored; trying again ..."
	}
	return "a result of a later version of the gateway"
}

// permanent reports whether another stream would end like this one.
func permanent(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.OutOfRange, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition,
		codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	}
	return false
}

// retryDelay is how long the gateway asks to wait.
func retryDelay(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return max(0, info.GetRetryDelay().AsDuration())
		}
	}
	return 0
}
