package client

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// session is one stream of Consume: a goroutine that reads it, one that writes
// it, and what the consumer's loop knows about it.
type session struct {
	ctx      context.Context
	cancel   context.CancelCauseFunc
	received chan received                    // closed after the one with an error
	requests chan *ordergatev1.ConsumeRequest // closing it half-closes the stream
	sent     chan struct{}                    // one for each request
	running  sync.WaitGroup

	// The rest belongs to the loop.

	opened     time.Time     // zero until `opened` came
	deadline   time.Duration // of leases, once opened
	sending    time.Time     // since when a request is on its way; zero when none is
	draining   bool          // nothing more is delivered
	halfClosed bool          // nothing more can be sent
	leaving    bool          // nothing is in hand any more; the gateway is to end the stream
}

// received is a message, or the error that the stream ended with.
type received struct {
	message *ordergatev1.ConsumeResponse
	err     error
}

// newSession opens a stream in the background. The caller reads `received` until
// an error comes, and then calls close.
func newSession(ctx context.Context, client ordergatev1.SubscriptionServiceClient, open *ordergatev1.ConsumeRequest) *session {
	// One request at a time: handing one over never blocks the loop.
	s := &session{received: make(chan received), requests: make(chan *ordergatev1.ConsumeRequest, 1), sent: make(chan struct{}, 1)}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	s.running.Go(func() {
		defer close(s.received)
		stream, err := client.Consume(s.ctx)
		if err == nil {
			err = stream.Send(open)
		}
		if err != nil && !errors.Is(err, io.EOF) { // at EOF, Recv knows why
			s.received <- received{err: err}
			return
		}
		s.running.Go(func() {
			for request := range s.requests {
				stream.Send(request) // Recv tells of an error
				s.sent <- struct{}{}
			}
			stream.CloseSend()
		})
		for {
			message, err := stream.Recv()
			s.received <- received{message, err}
			if err != nil {
				return
			}
		}
	})
	return s
}

// send hands a request to the stream, which must be idle.
func (s *session) send(request *ordergatev1.ConsumeRequest) {
	s.sending = time.Now()
	s.requests <- request
}

func (s *session) idle() bool { return s.sending.IsZero() && !s.halfClosed }

// halfClose says that nothing more is sent.
func (s *session) halfClose() {
	if !s.halfClosed {
		s.halfClosed = true
		close(s.requests)
	}
}

// close ends the stream, if it has not ended, and waits until nothing of it is
// left.
func (s *session) close() {
	s.cancel(nil)
	s.halfClose()
	for range s.received {
	}
	s.running.Wait()
}

// why is what the stream ended with, given what Recv said.
func (s *session) why(err error) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx) // it was broken off here
	}
	return ended(err)
}
