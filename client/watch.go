package client

import (
	"cmp"
	"context"
	"iter"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// WatchOptions say from where and what to watch. The zero value watches
// everything from now on.
type WatchOptions struct {
	// The first of these that is set says where to begin: just after the message
	// that ResumeToken came with, with the first event stored at or after Since,
	// or with the oldest event that is kept. From now on when none is set. So a
	// token that was never stored and FromBeginning together mean the beginning.
	ResumeToken   string
	Since         time.Time
	FromBeginning bool

	// Filter selects events; all when nil. It must not be changed while the watch
	// runs.
	Filter *ordergatev1.OrderEventFilter

	// Heartbeat is how long the gateway may be silent before it sends a
	// heartbeat: 1 s to 10 min, 15 s when 0. A stream that is silent three times
	// as long is broken off and opened again.
	Heartbeat time.Duration

	// Logger takes a warning for each retry if OnRetry is nil: slog.Default() when nil.
	Logger *slog.Logger
	// OnRetry, if set, is called before each wait, with what ended or refused the
	// stream. It is for the log: the watch goes on by itself, and as soon as a failing
	// connection works again. It is called by the goroutine that ranges.
	OnRetry func(err error, wait time.Duration)
}

// Watch returns an iterator over the messages of [OrderService.WatchOrders]:
// order events, heartbeats (their resume token moves past filtered events), and
// a mark where the past ends, each with the token that goes on behind it.
// Messages of a kind that this package does not know are left out.
//
//	for message, err := range c.Watch(ctx, client.WatchOptions{ResumeToken: token}) {
//
// When the stream breaks, is refused for a while or falls silent, it is opened
// again behind the last message that was handed out: an event may come twice,
// none is left out. The waits grow to about 10 s, have jitter, and are never
// shorter than the gateway asks for, up to a minute. A new stream marks the end
// of the past again. A watch from now on is resumed by token like the others,
// but if not even its first message came, it begins with the new now.
//
// An error is the last thing that the iterator hands out: an [*ExpiredError],
// [ErrConfiguration] for a connection that cannot work, such as one with an unknown
// certificate authority, or a gRPC status that another try would not change (INVALID_ARGUMENT,
// OUT_OF_RANGE, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION,
// PERMISSION_DENIED, UNAUTHENTICATED, UNIMPLEMENTED). When ctx ends, the
// iterator ends without an error. Invalid options are refused with
// INVALID_ARGUMENT before anything is sent.
//
// Everything runs in the goroutine that ranges: a slow loop slows only its own
// stream, and leaving the loop ends the stream. Each range over the iterator is
// a watch of its own, from where the options say.
//
// [OrderService.WatchOrders]: https://pkg.go.dev/github.com/ordergate/ordergate/api/ordergate/v1#OrderServiceClient
func (c *Client) Watch(ctx context.Context, options WatchOptions) iter.Seq2[*ordergatev1.WatchOrdersResponse, error] {
	return func(yield func(*ordergatev1.WatchOrdersResponse, error) bool) {
		if err := checkWatch(&options); err != nil {
			yield(nil, err)
			return
		}
		onRetry := options.OnRetry
		if onRetry == nil {
			onRetry = logRetries(cmp.Or(options.Logger, slog.Default()))
		}
		w := &watch{client: c, request: options.request(), onRetry: onRetry, yield: yield}
		if err := w.run(ctx); err != nil {
			yield(nil, err)
		}
	}
}

func (o *WatchOptions) request() *ordergatev1.WatchOrdersRequest {
	request := &ordergatev1.WatchOrdersRequest{Filter: o.Filter, HeartbeatInterval: durationpb.New(cmp.Or(o.Heartbeat, defaultHeartbeat))}
	switch {
	case o.ResumeToken != "":
		request.Start = &ordergatev1.WatchOrdersRequest_ResumeToken{ResumeToken: o.ResumeToken}
	case !o.Since.IsZero():
		request.Start = &ordergatev1.WatchOrdersRequest_StartTime{StartTime: timestamppb.New(o.Since)}
	case o.FromBeginning:
		request.Start = &ordergatev1.WatchOrdersRequest_FromBeginning{FromBeginning: true}
	}
	return request
}

// watch is one range over an iterator; it belongs to the goroutine that ranges.
type watch struct {
	client  *Client
	request *ordergatev1.WatchOrdersRequest // its start moves along
	onRetry func(error, time.Duration)
	yield   func(*ordergatev1.WatchOrdersResponse, error) bool
}

// run reads one stream after the other until ctx ends, the loop is left, or an
// error is permanent.
func (w *watch) run(ctx context.Context) error {
	tries := w.client.newTries(w.onRetry)
	for ctx.Err() == nil {
		received, err := w.read(ctx)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if tries.permanent(err) || w.client.closed() {
			return explained(err)
		}
		if received {
			tries.reset()
		}
		w.pause(ctx, tries.wait(err))
	}
	return nil
}

// pause returns after a wait, or as soon as a failing connection works or ctx ends.
func (w *watch) pause(ctx context.Context, wait time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	var awaiting sync.WaitGroup
	defer awaiting.Wait()
	defer cancel()
	select {
	case <-ctx.Done():
	case <-w.client.awaitConnection(ctx, awaiting.Go):
	}
}

// read hands out the messages of one stream, until it ends or the loop is left,
// which is no error.
func (w *watch) read(ctx context.Context) (received bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	patience := patienceOf(w.request.GetHeartbeatInterval().AsDuration())
	errSilent := silence(patience)
	silence := time.AfterFunc(patience, func() { cancel(errSilent) })
	defer silence.Stop()

	stream, err := w.client.orders.WatchOrders(ctx, w.request)
	for err == nil {
		var message *ordergatev1.WatchOrdersResponse
		if message, err = stream.Recv(); err != nil {
			break
		}
		received = true
		// While the loop's body runs, it is not the gateway that is slow.
		silence.Stop()
		if ctx.Err() != nil {
			break
		}
		token := message.GetResumeToken()
		if message.GetPayload() != nil && !w.yield(message, nil) {
			return received, nil
		}
		if token != "" {
			w.request.Start = &ordergatev1.WatchOrdersRequest_ResumeToken{ResumeToken: token}
		}
		silence.Reset(patience)
	}
	if context.Cause(ctx) == errSilent {
		return received, errSilent
	}
	return received, ended(err)
}
