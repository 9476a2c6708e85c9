// Package client is what a Go program uses to hear of orders from an ordergate:
// it connects, comes back when the connection breaks, and goes on where it was.
//
// Delivery is at least once. Make what you do for an order event idempotent by
// the event's id, and keep the resume token of what you have finished with:
// with it, the next start of the program goes on from there.
package client

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

const (
	// maxMessageBytes is the largest message taken: an event of the gateway's
	// largest --max-body-bytes, and room.
	maxMessageBytes = 64 << 20
	// maxPause bounds how long is waited between two tries, before jitter.
	maxPause = 10 * time.Second
)

// Client is a connection to a gateway. It may be used by several goroutines.
type Client struct {
	conn   *grpc.ClientConn
	orders ordergatev1.OrderServiceClient
}

// New returns a client of the gateway at target, HOST:PORT or another name that
// [grpc.NewClient] takes. It does not connect yet.
//
// The options say how to connect, and must name the transport's credentials:
// [grpc.WithTransportCredentials] with [credentials.NewTLS], or with
// [insecure.NewCredentials] on one machine. New adds what a connection that is
// idle for hours needs, before the options, which may change it: pings that
// find a dead connection within 40 s, and a new try at least every 12 s or so.
//
// [credentials.NewTLS]: https://pkg.go.dev/google.golang.org/grpc/credentials#NewTLS
// [insecure.NewCredentials]: https://pkg.go.dev/google.golang.org/grpc/credentials/insecure#NewCredentials
func New(target string, options ...grpc.DialOption) (*Client, error) {
	conn, err := grpc.NewClient(target, append([]grpc.DialOption{
		// Pings are sent only when nothing comes, so that the heartbeats of a
		// stream spare them.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// By default, grpc waits up to two minutes before it dials again.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: time.Second, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxPause},
			MinConnectTimeout: 20 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
	}, options...)...)
	if err != nil {
		return nil, err
	}
	return &Client{conn, ordergatev1.NewOrderServiceClient(conn)}, nil
}

// Close ends the connection. A watch that is under way ends with an error of
// the code CANCELED.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) closed() bool { return c.conn.GetState() == connectivity.Shutdown }

// ExpiredError says that the events after a resume token are no longer kept:
// some have been missed for good. Go on from EarliestResumeToken, and compare
// what was missed by ListOrders.
type ExpiredError struct {
	// EarliestResumeToken starts with the oldest event that is kept.
	EarliestResumeToken string

	status error
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("resume token expired: %s", status.Convert(e.status).Message())
}

// Unwrap returns the gateway's answer, a gRPC status.
func (e *ExpiredError) Unwrap() error { return e.status }

// explained returns an ExpiredError for a status that says so, and every other
// error as it is.
func explained(err error) error {
	for _, detail := range status.Convert(err).Details() {
		info, ok := detail.(*errdetails.ErrorInfo)
		if ok && info.GetDomain() == "ordergate" && info.GetReason() == "RESUME_TOKEN_EXPIRED" {
			return &ExpiredError{info.GetMetadata()["earliest_resume_token"], err}
		}
	}
	return err
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
