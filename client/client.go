// Package client is what a Go program uses to hear of orders from an ordergate:
// it connects, comes back when the connection breaks, and goes on where it was.
//
// [Client.Consume] is for workers: the gateway remembers, by the name of a
// subscription, which events were acknowledged, and shares them among the
// workers of that name. [Client.Watch] is for those who keep their place
// themselves: store the resume token of what you have finished with, and the
// next start of the program goes on from there.
//
// Delivery is at least once with both. Make what you do for an order event
// idempotent by the event's id.
package client

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// maxMessageBytes is the largest message taken: an event of the gateway's
// largest --max-body-bytes, and room.
const maxMessageBytes = 64 << 20

// Client is a connection to a gateway. It may be used by several goroutines.
type Client struct {
	conn          *grpc.ClientConn
	orders        ordergatev1.OrderServiceClient
	subscriptions ordergatev1.SubscriptionServiceClient
	sentToken     *atomic.Pointer[string] // the token sent last; nil without a token source
}

// New returns a client of the gateway at target, HOST:PORT or another name that
// [grpc.NewClient] takes. It does not connect yet.
//
// The options say how to connect, and must name the transport's credentials:
// [grpc.WithTransportCredentials] with [credentials.NewTLS], or with
// [insecure.NewCredentials] on one machine. [WithToken] adds a token, and
// [WithTokenSource] one that is renewed; [Credentials] makes all of these from files
// and flags. New adds what a connection that is
// idle for hours needs, before the options, which may change it: pings that
// find a dead connection within 40 s, and a new try at least every 6 s or so.
//
// Several gateways that share a log can have one name in DNS. With a target such as
// dns:///gateways.example:50051 and the policy round_robin, the client connects to
// each address, opens every stream at the next one, and leaves out those that do not
// answer:
//
//	client.New("dns:///gateways.example:50051", append(options,
//		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`))...)
//
// [credentials.NewTLS]: https://pkg.go.dev/google.golang.org/grpc/credentials#NewTLS
// [insecure.NewCredentials]: https://pkg.go.dev/google.golang.org/grpc/credentials/insecure#NewCredentials
func New(target string, options ...grpc.DialOption) (*Client, error) {
	conn, err := grpc.NewClient(target, append([]grpc.DialOption{
		// Pings are sent only when nothing comes, so that the heartbeats of a
		// stream spare them.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		// By default, grpc waits up to two minutes before it dials again. This is the
		// only backoff of an outage: streams are opened as soon as there is a connection.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: time.Second, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxDialPause},
			MinConnectTimeout: 20 * time.Second,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
	}, options...)...)
	if err != nil {
		return nil, err
	}
	c := &Client{conn: conn, orders: ordergatev1.NewOrderServiceClient(conn), subscriptions: ordergatev1.NewSubscriptionServiceClient(conn)}
	for _, option := range options {
		if token, ok := option.(tokenOption); ok {
			c.sentToken = token.sent
		}
	}
	return c, nil
}

// Close ends the connection. A Watch or Consume that is under way ends with an
// error of the code CANCELED.
func (c *Client) Close() error { return c.conn.Close() }

// awaitConnection returns a channel that is closed when the connection works, if it is
// failing now. The result is nil otherwise: a gateway that accepts connections and
// refuses streams must not be asked again at once. run starts a goroutine that ends with
// ctx.
func (c *Client) awaitConnection(ctx context.Context, run func(func())) <-chan struct{} {
	if c.conn.GetState() != connectivity.TransientFailure {
		return nil
	}
	ready := make(chan struct{})
	run(func() {
		for {
			state := c.conn.GetState()
			switch state {
			case connectivity.Ready:
				close(ready)
				return
			case connectivity.Idle:
				c.conn.Connect()
			}
			if !c.conn.WaitForStateChange(ctx, state) {
				return
			}
		}
	})
	return ready
}

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

// explained returns an ExpiredError for a status that says so, adds a hint to the
// errors of a misconfigured connection, and returns every other error as it is.
func explained(err error) error {
	if hint := configurationHint(err); hint != "" {
		return fmt.Errorf("%w: %s: %w", ErrConfiguration, hint, err)
	}
	for _, detail := range status.Convert(err).Details() {
		info, ok := detail.(*errdetails.ErrorInfo)
		if ok && info.GetDomain() == "ordergate" && info.GetReason() == "RESUME_TOKEN_EXPIRED" {
			return &ExpiredError{info.GetMetadata()["earliest_resume_token"], err}
		}
	}
	return err
}
