package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/telemetry"
)

type eraseCommand struct {
	clientFlags `embed:""`
	Order       []string `name:"order" placeholder:"ID" help:"Erase these orders, and what Stripe sent about them."`
	Customer    []string `name:"customer" sep:"none" placeholder:"CUSTOMER" help:"Erase the orders of this customer and all that Stripe sent about them: a Stripe Customer id (cus_…), or an e-mail address, which finds guests too. May be repeated."`
	DryRun      bool     `name:"dry-run" help:"Only say what would be erased."`
	Yes         bool     `name:"yes" help:"Do not ask. Needed where no person can answer."`
}

// Help is the longer text of `ordergate erase --help`.
func (eraseCommand) Help() string {
	return `For a person who wants to be forgotten. It removes orders with their whole history, the Stripe events behind them, what points to them, and dead letters, and overwrites them on disk. It cannot be undone. What is left are tombstones without personal data: the order as CANCEL (ERASED), of which every subscriber hears, and the ids of the Stripe events, so that none of them comes back. What Stripe sends about such an order later is erased when it comes.

Erase at Stripe first, and then in the systems that subscribe. Backups of the data directory are not reached. When it breaks off, run it again: it goes on where it was.

Examples:
  ordergate erase --customer cus_123 --customer erika@example.com --dry-run
  ordergate erase --order cs_live_a1
  ordergate erase --customer erika@example.com --yes --json`
}

func (e *eraseCommand) Run(ctx context.Context, c console) error {
	if len(e.Order)+len(e.Customer) == 0 {
		return errors.New("say whose data: --order ID, or --customer with a Stripe Customer id or an e-mail address")
	}
	if e.DryRun || !e.Yes {
		found, err := e.erase(ctx, c, true)
		if err != nil || e.DryRun {
			return err
		}
		if found.GetOrders()+found.GetStripeEvents() == 0 {
			return nil
		}
		if err := confirm(c); err != nil {
			return err
		}
	}
	_, err := e.erase(ctx, c, false)
	return err
}

// confirm asks a person.
func confirm(c console) error {
	if !telemetry.IsTerminal(c.stdin) {
		return errors.New("nothing was erased: say --yes where no person can be asked")
	}
	fmt.Fprint(c.stderr, "This cannot be undone. Type yes to erase: ")
	answer, err := bufio.NewReader(c.stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("nothing was erased")
	}
	return nil
}

// erase calls the gateway, and prints what it found or erased.
func (e *eraseCommand) erase(ctx context.Context, c console, dryRun bool) (last *ordergatev1.EraseOrdersResponse, err error) {
	progress := &progressLine{out: c.stderr, terminal: telemetry.IsTerminal(c.stderr)}
	err = e.call(func(conn *grpc.ClientConn) error {
		stream, err := ordergatev1.NewOrderServiceClient(conn).EraseOrders(ctx, &ordergatev1.EraseOrdersRequest{OrderIds: e.Order, Customers: e.Customer, DryRun: dryRun})
		if err != nil {
			return err
		}
		return eachReceived(stream, func(response *ordergatev1.EraseOrdersResponse) error {
			last = response
			switch {
			case e.JSON:
				return printJSON(c.stdout, response)
			case response.GetDone():
				progress.clear()
				return printErasure(c.stdout, response, dryRun)
			}
			progress.show(response.GetExamined(), response.GetTotal(), fmt.Sprintf("looked at %d, found %d orders and %d Stripe events",
				response.GetExamined(), response.GetOrders(), response.GetStripeEvents()))
			return nil
		})
	})
	if err != nil {
		progress.clear()
	}
	if errors.Is(err, errStopped) && !dryRun {
		err = fmt.Errorf("%w: what was erased until now stays erased; run it again for the rest", err)
	}
	return last, err
}

func printErasure(out io.Writer, found *ordergatev1.EraseOrdersResponse, dryRun bool) error {
	title := "Erased"
	if dryRun {
		title = "To be erased"
	}
	orders := fmt.Sprintf("%d orders, with %d events", found.GetOrders(), found.GetOrderEvents())
	if ids := found.GetOrderIds(); len(ids) > 0 {
		orders += ": " + strings.Join(ids, ", ")
	}
	if int64(len(found.GetOrderIds())) < found.GetOrders() {
		orders += ", …"
	}
	s := newSheet(out)
	s.field(title, orders)
	s.field("Stripe events", fmt.Sprint(found.GetStripeEvents()))
	s.field("References", fmt.Sprint(found.GetReferences()))
	if n := found.GetPendingEvents(); n > 0 {
		s.field("Left", fmt.Sprintf("%d Stripe events that are not converted yet: run it again in a minute", n))
	}
	return s.Flush()
}
