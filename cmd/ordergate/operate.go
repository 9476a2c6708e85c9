package main

import (
	"context"
	"fmt"
	"strings"

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
		_, err = fmt.Fprintf(c.stdout, "%s: %s\n%s", revision(response.GetOrder()), directive(response.GetOrder()), causesOf(response))
		return err
	})
}

// causesOf writes a line for each cause that an operator's decision was about.
func causesOf(response decided) string {
	var lines strings.Builder
	line := func(change, reason, cause string) { fmt.Fprintf(&lines, "%s: %s\n", change, joined(reason, cause)) }
	switch r := response.(type) {
	case *ordergatev1.ReleaseOrderResponse:
		for _, cause := range r.GetReleased() {
			line("released", enumName(cause.GetReason()), cause.GetCause())
		}
		for _, cause := range r.GetRemaining() {
			line("remaining", enumName(cause.GetReason()), cause.GetCause())
		}
	case *ordergatev1.ReinstateOrderResponse:
		for _, cause := range r.GetReinstated() {
			line("reinstated", enumName(cause.GetReason()), cause.GetCause())
		}
	}
	return lines.String()
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
	Cause        string `name:"cause" placeholder:"REASON[:ID]" help:"Release only this cause: a reason that orders show prints, such as DISPUTED, and the id of the dispute, review or warning if there are several."`
}

// Help is the longer text of `ordergate release --help`.
func (releaseCommand) Help() string {
	return `Releases the order from everything that holds it at this moment: an operator's hold, a dispute, a review, a warning. The same cause does not hold it again; another one does. It prints the causes that it released and those that remain, and fails if nothing would change. It never ships an order that is canceled or not paid.

Examples:
  ordergate release cs_test_a1 --reason "address corrected"
  ordergate release cs_test_a1 --cause IN_REVIEW --reason "reviewed by phone"
  ordergate release cs_test_a1 --cause DISPUTED:du_1 --reason "buyer withdrew it"`
}

func (r *releaseCommand) Run(ctx context.Context, c console) error {
	request := &ordergatev1.ReleaseOrderRequest{OrderId: r.Order, Reason: r.Reason}
	if r.Cause != "" {
		reason, id, _ := strings.Cut(r.Cause, ":")
		reasons, err := enumValues[ordergatev1.HoldReason]("cause", []string{reason})
		if err != nil {
			return err
		}
		request.Cause = &ordergatev1.HoldRelease{Reason: reasons[0], Cause: id}
	}
	return r.run(c, func(client ordergatev1.OrderServiceClient) (decided, error) { return client.ReleaseOrder(ctx, request) })
}

type reinstateCommand struct {
	operateFlags `embed:""`
}

// Help is the longer text of `ordergate orders reinstate --help`.
func (reinstateCommand) Help() string {
	return `Restores a canceled order: every cause that cancels it now is set aside, and everything else decides its directive. An order that is not paid becomes WAIT, and one that something holds becomes HOLD. Another cause, such as another refund, cancels it again. It prints the causes, and fails if nothing would change. An erased order cannot be restored.

Example:
  ordergate orders reinstate cs_test_a1 --reason "refunded by mistake, paid by bank transfer"`
}

func (r *reinstateCommand) Run(ctx context.Context, c console) error {
	return r.run(c, func(client ordergatev1.OrderServiceClient) (decided, error) {
		return client.ReinstateOrder(ctx, &ordergatev1.ReinstateOrderRequest{OrderId: r.Order, Reason: r.Reason})
	})
}
