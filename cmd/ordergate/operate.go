package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// operateFlags are what an operator's decision about an order needs.
type operateFlags struct {
	clientFlags `embed:""`
	Order       string `arg:"" help:"The order's id."`
	Reason      string `name:"reason" required:"" placeholder:"TEXT" help:"Why, for those who find the order like this: at most 500 characters."`
}

// decided is what the gateway answers to an operator's decision.
type decided interface {
	proto.Message
	GetOrder() *ordergatev1.Order
}

// run calls the gateway, and prints the order that comes of it.
func (f *operateFlags) run(c console, call func(ordergatev1.OrderServiceClient) (decided, error)) error {
	return f.call(func(conn *grpc.ClientConn) error {
		response, err := call(ordergatev1.NewOrderServiceClient(conn))
		if err != nil {
			return err
		}
		if f.JSON {
			return printJSON(c.stdout, response)
		}
		_, err = fmt.Fprintf(c.stdout, "%s: %s\n", revision(response.GetOrder()), directive(response.GetOrder()))
		return err
	})
}

type holdCommand struct {
	operateFlags `embed:""`
}

// Help is the longer text of `ordergate hold --help`.
func (holdCommand) Help() string {
	return `Shipping is told to keep the parcel: the directive becomes HOLD (OPERATOR), unless the order is to be cancelled anyway or is not paid. The reason is kept in the order's history, which "ordergate orders show" prints.

Example:
  ordergate hold cs_test_a1 --reason "the buyer called: wrong address"`
}

func (h *holdCommand) Run(ctx context.Context, c console) error {
	return h.run(c, func(client ordergatev1.OrderServiceClient) (decided, error) {
		return client.HoldOrder(ctx, &ordergatev1.HoldOrderRequest{OrderId: h.Order, Reason: h.Reason})
	})
}

type releaseCommand struct {
	operateFlags `embed:""`
}

// Help is the longer text of `ordergate release --help`.
func (releaseCommand) Help() string {
	return `Frees the order from everything that holds it at this moment: an operator's hold, a dispute, a review, a warning. The same cause does not hold it again; another one does. It does not ship what is to be cancelled or is not paid.

Example:
  ordergate release cs_test_a1 --reason "address corrected"`
}

func (r *releaseCommand) Run(ctx context.Context, c console) error {
	return r.run(c, func(client ordergatev1.OrderServiceClient) (decided, error) {
		return client.ReleaseOrder(ctx, &ordergatev1.ReleaseOrderRequest{OrderId: r.Order, Reason: r.Reason})
	})
}
