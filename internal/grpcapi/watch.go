package grpcapi

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

const (
	defaultHeartbeat = 15 * time.Second
	minHeartbeat     = time.Second
	maxHeartbeat     = 10 * time.Minute
	// watchBatch is how many events a watcher reads at a time.
	watchBatch = 256
)

// WatchOrders reads the log at the pace of its own watcher: a slow one holds
// nothing but its own place.
func (s *orderService) WatchOrders(request *ordergatev1.WatchOrdersRequest, stream grpc.ServerStreamingServer[ordergatev1.WatchOrdersResponse]) error {
	if err := checkEventFilter(request.GetFilter()); err != nil {
		return err
	}
	heartbeat, err := checkHeartbeat("heartbeat_interval", request.GetHeartbeatInterval())
	if err != nil {
		return err
	}
	ctx, cancel := untilDraining(stream.Context(), s.draining)
	defer cancel()
	s.measures.watching.Inc()
	defer s.measures.watching.Dec()

	w := &watcher{log: s.log, filter: request.GetFilter(), heartbeat: heartbeat, stream: stream, sent: s.measures.watched}
	if err := w.start(ctx, request); err != nil {
		return causeOf(ctx, err)
	}
	return causeOf(ctx, w.run(ctx))
}

// checkHeartbeat returns how long a stream may be silent.
func checkHeartbeat(field string, interval *durationpb.Duration) (time.Duration, error) {
	if interval == nil {
		return defaultHeartbeat, nil
	}
	return interval.AsDuration(), checkDuration(field, interval, minHeartbeat, maxHeartbeat)
}

// watcher is one WatchOrders stream; it belongs to the stream's goroutine.
type watcher struct {
	log       *eventlog.Log
	filter    *ordergatev1.OrderEventFilter
	heartbeat time.Duration
	stream    grpc.ServerStreamingServer[ordergatev1.WatchOrdersResponse]
	sent      prometheus.Counter // events

	logID    string
	after    uint64 // everything up to here was sent or filtered
	past     uint64 // the newest event when the stream began
	caughtUp bool
	lastSent time.Time
}

// start finds the place to begin.
func (w *watcher) start(ctx context.Context, request *ordergatev1.WatchOrdersRequest) error {
	state, err := w.log.OrdersState(ctx)
	if err != nil {
		return err
	}
	w.logID, w.past, w.lastSent = state.LogID, state.Durable, time.Now()
	switch start := request.GetStart().(type) {
	case *ordergatev1.WatchOrdersRequest_ResumeToken:
		w.after, err = resumeSoonAfter(ctx, w.log, start.ResumeToken, state)
	case *ordergatev1.WatchOrdersRequest_StartTime:
		if err := start.StartTime.CheckValid(); err != nil {
			return invalid("start_time", "is not a time: %v", err)
		}
		w.after, err = w.log.SequenceBefore(ctx, start.StartTime.AsTime())
	default:
		w.after = state.Durable
		if request.GetFromBeginning() {
			w.after = state.First - 1
		}
	}
	return err
}

// resumeSoonAfter is resumeAfter that waits for what another gateway has shown already.
func resumeSoonAfter(ctx context.Context, log *eventlog.Log, token string, state eventlog.OrdersState) (uint64, error) {
	var after uint64
	if err := decodeToken(token, resumeToken, state.LogID, &after); err == nil && after > state.Durable {
		if err := log.CatchUp(ctx, after); err != nil {
			return 0, err
		}
		if state, err = log.OrdersState(ctx); err != nil {
			return 0, err
		}
	}
	return resumeAfter(token, state)
}

// resumeAfter returns the sequence of a resume token. A token that no log could
// have given out, one of another log, and one that is too old are different
// errors.
func resumeAfter(token string, state eventlog.OrdersState) (uint64, error) {
	var after uint64
	if err := decodeToken(token, resumeToken, state.LogID, &after); err != nil {
		return 0, &invalidToken{reasonResumeToken, "resume_token", err.Error()}
	}
	if after > state.Durable {
		return 0, &invalidToken{reasonResumeToken, "resume_token", "it is ahead of this log: was the data directory replaced by an older copy?"}
	}
	if after+1 < state.First {
		return 0, &expiredToken{earliest: encodeToken(resumeToken, state.LogID, state.First-1)}
	}
	return after, nil
}

// run sends events, heartbeats and the caught-up marker until ctx ends.
func (w *watcher) run(ctx context.Context) error {
	for {
		if err := w.sendEvents(ctx); err != nil {
			return err
		}
		if !w.caughtUp && w.after >= w.past {
			w.caughtUp = true
			if err := w.send(&ordergatev1.WatchOrdersResponse{Payload: &ordergatev1.WatchOrdersResponse_CaughtUp{CaughtUp: &ordergatev1.CaughtUp{}}}); err != nil {
				return err
			}
		}
		if time.Since(w.lastSent) >= w.heartbeat {
			if err := w.log.Ready(); err != nil { // a heartbeat would say that all is well
				return err
			}
			if err := w.send(&ordergatev1.WatchOrdersResponse{Payload: &ordergatev1.WatchOrdersResponse_Heartbeat{Heartbeat: &ordergatev1.Heartbeat{Time: timestamppb.Now()}}}); err != nil {
				return err
			}
		}
		if err := w.wait(ctx); err != nil {
			return err
		}
	}
}

// wait returns when there are more events or a heartbeat is due.
func (w *watcher) wait(ctx context.Context) error {
	waiting, cancel := context.WithDeadline(ctx, w.lastSent.Add(w.heartbeat))
	defer cancel()
	err := w.log.AwaitOrders(waiting, w.after)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// sendEvents sends one batch of the events behind w.after that match.
func (w *watcher) sendEvents(ctx context.Context) error {
	records, next, err := w.log.ReadOrders(ctx, w.after, watchBatch)
	if errors.Is(err, eventlog.ErrExpired) {
		return w.expired(ctx)
	}
	if err != nil {
		return err
	}
	for _, record := range records {
		w.after = record.Sequence
		switch matches, err := record.Matches(w.filter); {
		case err != nil:
			return err
		case !matches:
			continue
		}
		message, err := wireEvent(record, w.logID)
		if err != nil {
			return err
		}
		if err := w.sendMessage(message); err != nil {
			return err
		}
		w.sent.Inc()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	w.after = next
	return nil
}

// expired tells a watcher that it was too slow for what the log keeps.
func (w *watcher) expired(ctx context.Context) error {
	state, err := w.log.OrdersState(ctx)
	if err != nil {
		return err
	}
	return &expiredToken{earliest: encodeToken(resumeToken, w.logID, state.First-1)}
}

func (w *watcher) send(response *ordergatev1.WatchOrdersResponse) error {
	response.ResumeToken = w.token()
	return w.sendMessage(response)
}

// sendMessage sends a WatchOrdersResponse, or the wire of one.
func (w *watcher) sendMessage(message any) error {
	w.lastSent = time.Now()
	return w.stream.SendMsg(message)
}

// token is the resume token of the place that was reached.
func (w *watcher) token() string { return encodeToken(resumeToken, w.logID, w.after) }
