package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cenkalti/backoff/v5"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

type watchCommand struct {
	clientFlags   `embed:""`
	FromBeginning bool     `name:"from-beginning" xor:"start" help:"Start with the oldest event that is kept."`
	Since         moment   `name:"since" xor:"start" placeholder:"TIME" help:"Start with the first event at or after this time (2026-01-31T08:00:00Z, or 48h for as long ago)."`
	ResumeToken   string   `name:"resume-token" xor:"start" placeholder:"TOKEN" help:"Start just after the event this token came with."`
	Order         []string `name:"order" placeholder:"ID" help:"Only these orders."`
	Kind          []string `name:"kind" placeholder:"KIND" help:"Only these kinds: PLACED, PAID, PAYMENT_FAILED, EXPIRED, CANCELED, REFUNDED, HELD, RELEASED, UPDATED, ERASED."`
	modeFlags     `embed:""`
}

// Help is the longer text of `ordergate watch --help`.
func (watchCommand) Help() string {
	return `Prints a line for each order event from now on, and goes on by itself when the connection breaks.

Examples:
  ordergate watch --from-beginning
  ordergate watch --live --kind PAID --json | jq .event.order.id`
}

func (w *watchCommand) Run(ctx context.Context, c console) error {
	request, err := w.request()
	if err != nil {
		return err
	}
	print := (&orderPrinter{out: c.stdout}).print
	if w.JSON {
		print = func(r *ordergatev1.WatchOrdersResponse) error { return printJSON(c.stdout, r) }
	}
	err = w.call(func(conn *grpc.ClientConn) error {
		return watch(ctx, ordergatev1.NewOrderServiceClient(conn), request, func(r *ordergatev1.WatchOrdersResponse) error {
			if r.GetCaughtUp() != nil && !w.JSON {
				fmt.Fprintln(c.stderr, "up to date; waiting for orders ...")
			}
			return print(r)
		})
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (w *watchCommand) request() (*ordergatev1.WatchOrdersRequest, error) {
	request := &ordergatev1.WatchOrdersRequest{Filter: &ordergatev1.OrderEventFilter{OrderIds: w.Order}}
	switch {
	case w.FromBeginning:
		request.Start = &ordergatev1.WatchOrdersRequest_FromBeginning{FromBeginning: true}
	case !w.Since.IsZero():
		request.Start = &ordergatev1.WatchOrdersRequest_StartTime{StartTime: w.Since.proto()}
	case w.ResumeToken != "":
		request.Start = &ordergatev1.WatchOrdersRequest_ResumeToken{ResumeToken: w.ResumeToken}
	}
	request.Filter.Livemode = w.livemode()
	kinds, err := enumValues[ordergatev1.OrderEventKind]("kind", w.Kind)
	request.Filter.Kinds = kinds
	return request, err
}

// watch hands every message of the stream to handle, and opens the stream again
// behind the last one when it breaks. It returns when ctx ends, on an error of
// handle, and on errors that another try does not mend.
func watch(ctx context.Context, client ordergatev1.OrderServiceClient, request *ordergatev1.WatchOrdersRequest, handle func(*ordergatev1.WatchOrdersResponse) error) error {
	pause := backoff.NewExponentialBackOff()
	pause.MaxInterval = 10 * time.Second
	for {
		received, err := watchOnce(ctx, client, request, handle)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if status.Code(err) != codes.Unavailable {
			return err
		}
		if received {
			pause.Reset()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(pause.NextBackOff(), retryDelay(err))):
		}
	}
}

// watchOnce reads one stream, moving the request's start along.
func watchOnce(ctx context.Context, client ordergatev1.OrderServiceClient, request *ordergatev1.WatchOrdersRequest, handle func(*ordergatev1.WatchOrdersResponse) error) (received bool, err error) {
	stream, err := client.WatchOrders(ctx, request)
	if err != nil {
		return false, err
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return received, status.Error(codes.Unavailable, "the stream ended")
		}
		if err != nil {
			return received, err
		}
		if err := handle(response); err != nil {
			return received, err
		}
		received = true
		request.Start = &ordergatev1.WatchOrdersRequest_ResumeToken{ResumeToken: response.GetResumeToken()}
	}
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
