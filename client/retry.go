package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// When a stream is given up, and when the next one is tried: the same for all
// streams.
const (
	// The gateway's bounds of a heartbeat interval.
	defaultHeartbeat = 15 * time.Second
	minHeartbeat     = time.Second
	maxHeartbeat     = 10 * time.Minute
	// missedHeartbeats is after how many intervals of silence a stream is taken
	// for dead.
	missedHeartbeats = 3
	// maxPause bounds how long is waited between two tries, before jitter.
	maxPause = 10 * time.Second
	// maxDialPause bounds how long is waited between two dials, before jitter.
	maxDialPause = 5 * time.Second
	// maxRetryDelay bounds the wait that a gateway can ask for.
	maxRetryDelay = time.Minute
)

// patienceOf is how long a stream may be silent that has this heartbeat interval.
func patienceOf(heartbeat time.Duration) time.Duration {
	return missedHeartbeats * min(max(heartbeat, minHeartbeat), maxHeartbeat)
}

// silence is what a stream ends with that was silent for so long.
func silence(patience time.Duration) error {
	return fmt.Errorf("nothing came from the gateway for %v", patience)
}

// ended is what a stream ended with: an error, also when it ended with OK.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return errEnded
	}
	return err
}

// errEnded is the error of a stream that ended with OK, such as one of a gateway that drains.
var errEnded = status.Error(codes.Unavailable, "the gateway ended the stream")

// logRetries returns an OnRetry that logs.
func logRetries(logger *slog.Logger) func(error, time.Duration) {
	return func(err error, wait time.Duration) {
		level := slog.LevelWarn
		if errors.Is(err, errEnded) {
			level = slog.LevelInfo
		}
		logger.Log(context.Background(), level, "stream from the gateway ended; opening another", "error", err, "wait", wait.Round(time.Millisecond))
	}
}

// permanent reports whether another try would end like this one.
func permanent(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.OutOfRange, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition,
		codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	}
	return false
}

// retryDelay is how long the gateway asks to wait before the next try.
func retryDelay(err error) time.Duration {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// tries says how long to wait between one try and the next. The waits grow, and
// have jitter.
type tries struct {
	pause     *backoff.ExponentialBackOff
	onRetry   func(error, time.Duration) // may be nil
	sentToken *atomic.Pointer[string]    // the client's; nil without a token source
	refused   *string                    // the token that the gateway refused last
	worked    bool                       // a stream has worked
}

func (c *Client) newTries(onRetry func(error, time.Duration)) *tries {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = maxPause
	return &tries{pause: pause, onRetry: onRetry, sentToken: c.sentToken}
}

// permanent reports whether another try would end like the one that ended with err. A token source
// may have another token the next time.
func (t *tries) permanent(err error) bool {
	if t.sentToken != nil && status.Code(err) == codes.Unauthenticated {
		sent := t.sentToken.Load()
		if sent != nil && (t.refused == nil || *sent != *t.refused) {
			t.refused = sent
			return false
		}
	}
	return permanent(err) || t.misconfigured(err)
}

// wait returns how long to wait after a try that ended with err, and tells of it.
func (t *tries) wait(err error) time.Duration {
	// On top of what the gateway asks for, lest all its clients come back in the
	// same moment.
	wait := min(max(retryDelay(err), 0), maxRetryDelay) + t.pause.NextBackOff()
	if t.onRetry != nil {
		t.onRetry(err, wait)
	}
	return wait
}

// reset begins with short waits again: a try came to something.
func (t *tries) reset() {
	t.pause.Reset()
	t.refused, t.worked = nil, true
}
