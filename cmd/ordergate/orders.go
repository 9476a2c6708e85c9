package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"google.golang.org/grpc"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// maxPage is the largest page that the gateway gives out.
const maxPage = 500

type ordersCommands struct {
	List ordersListCommand `cmd:"" help:"List orders, the most recently changed first."`
	Show ordersShowCommand `cmd:"" help:"Show all that is known about one order, and its history."`

	Reinstate reinstateCommand `cmd:"" help:"Restore a canceled order."`
}

type ordersListCommand struct {
	clientFlags `embed:""`
	modeFlags   `embed:""`
	Directive   []string `name:"directive" placeholder:"NAME" help:"Only orders with this directive: WAIT, SHIP, HOLD, CANCEL."`
	Status      []string `name:"status" placeholder:"NAME" help:"Only orders in this status: AWAITING_PAYMENT, AUTHORIZED, PAID, PAYMENT_FAILED, EXPIRED, CANCELED, PARTIALLY_REFUNDED, REFUNDED."`
	Limit       int      `name:"limit" default:"50" help:"How many at most; 0 for all."`
}

// Help is the longer text of `ordergate orders list --help`.
func (ordersListCommand) Help() string {
	return `Examples:
  ordergate orders list --live --directive HOLD
  ordergate orders list --limit 0 --json | jq -r .id`
}

func (l *ordersListCommand) Run(ctx context.Context, c console) error {
	filter := &ordergatev1.OrderFilter{Livemode: l.livemode()}
	var err error
	if filter.Directives, err = enumValues[ordergatev1.Directive]("directive", l.Directive); err != nil {
		return err
	}
	if filter.Statuses, err = enumValues[ordergatev1.OrderStatus]("status", l.Status); err != nil {
		return err
	}
	table := newColumns(c.stdout)
	if !l.JSON {
		table.row("ORDER", "STATUS", "DIRECTIVE", "TOTAL", "SHIP TO", "CREATED", "MODE")
	}
	print := func(order *ordergatev1.Order) error {
		if l.JSON {
			return printJSON(c.stdout, order)
		}
		table.row(revision(order), enumName(order.GetStatus()), directive(order), amount(amountsOf(order).Total, order.GetCurrency()),
			destination(order), localTime(order.GetCreateTime()), livemodeName(order.GetLivemode()))
		return nil
	}
	err = l.call(func(conn *grpc.ClientConn) error {
		client := ordergatev1.NewOrderServiceClient(conn)
		return eachListed(l.Limit, c.stderr, print, func(size int32, token string) ([]*ordergatev1.Order, string, error) {
			page, err := client.ListOrders(ctx, &ordergatev1.ListOrdersRequest{PageSize: size, PageToken: token, Filter: filter})
			return page.GetOrders(), page.GetNextPageToken(), err
		})
	})
	if err != nil {
		return err
	}
	return table.Flush()
}

// eachListed hands what a list call returns to print, page after page, up to a
// limit, 0 being none. It says on notes when there may be more.
func eachListed[T any](limit int, notes io.Writer, print func(T) error, list func(size int32, token string) ([]T, string, error)) error {
	token := ""
	for left := limit; ; {
		size := maxPage
		if limit > 0 {
			size = min(left, maxPage)
		}
		items, next, err := list(int32(size), token)
		if err != nil {
			return err
		}
		for _, item := range items {
			if err := print(item); err != nil {
				return err
			}
		}
		left -= len(items)
		if next == "" {
			return nil
		}
		if limit > 0 && left <= 0 {
			fmt.Fprintf(notes, "these are %d; there may be more: --limit 0 lists all\n", limit)
			return nil
		}
		token = next
	}
}

type ordersShowCommand struct {
	clientFlags `embed:""`
	Order       string `arg:"" help:"The order's id."`
}

// Help is the longer text of `ordergate orders show --help`.
func (ordersShowCommand) Help() string {
	return `With --json it prints the order without its history, which GET /v1/orders/ORDER/events has.

Example:
  ordergate orders show cs_test_a1`
}

func (s *ordersShowCommand) Run(ctx context.Context, c console) error {
	return s.call(func(conn *grpc.ClientConn) error {
		client := ordergatev1.NewOrderServiceClient(conn)
		response, err := client.GetOrder(ctx, &ordergatev1.GetOrderRequest{OrderId: s.Order})
		if err != nil {
			return err
		}
		if s.JSON {
			return printJSON(c.stdout, response.GetOrder())
		}
		var history []*ordergatev1.OrderEvent
		err = eachListed(0, c.stderr, func(event *ordergatev1.OrderEvent) error {
			history = append(history, event)
			return nil
		}, func(size int32, token string) ([]*ordergatev1.OrderEvent, string, error) {
			page, err := client.ListOrderEvents(ctx, &ordergatev1.ListOrderEventsRequest{OrderId: s.Order, PageSize: size, PageToken: token})
			return page.GetEvents(), page.GetNextPageToken(), err
		})
		if err != nil {
			return err
		}
		return showOrder(c.stdout, response.GetOrder(), history)
	})
}

// sheet writes what is known about one thing: a line for each field that is
// set, and sections of rows.
type sheet struct {
	columns
	out io.Writer
}

func newSheet(out io.Writer) *sheet { return &sheet{newColumns(out), out} }

func (s *sheet) field(name, value string) {
	if value != "" {
		s.row(name, value)
	}
}

// section begins a list with columns of its own, if it has rows.
func (s *sheet) section(title string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	s.Flush() // what is wrong is told by the last one too
	fmt.Fprintf(s.out, "\n%s\n", title)
	for _, row := range rows {
		s.row(append([]string{" "}, row...)...)
	}
}

// rows makes rows of a list.
func rows[T any](list []T, row func(T) []string) (all [][]string) {
	for _, item := range list {
		all = append(all, row(item))
	}
	return all
}

func showOrder(out io.Writer, order *ordergatev1.Order, history []*ordergatev1.OrderEvent) error {
	s := newSheet(out)
	s.showState(order)
	s.showSale(order)
	s.field("Line items", enumName(order.GetLineItemsState()))
	s.section("Line items", rows(order.GetLineItems(), func(item *ordergatev1.LineItem) []string {
		return lineItemRow(item, order.GetCurrency())
	}))
	s.section("Custom fields", rows(order.GetCustomFields(), func(f *ordergatev1.CustomField) []string {
		return []string{f.GetKey(), f.GetValue(), f.GetLabel()}
	}))
	s.section("Metadata", rows(slices.Sorted(maps.Keys(order.GetMetadata())), func(key string) []string {
		return []string{key, order.GetMetadata()[key]}
	}))
	s.showTroubles(order)
	s.section("History", rows(history, historyRow))
	return s.Flush()
}

// showState writes what is to be done with an order, and why.
func (s *sheet) showState(order *ordergatev1.Order) {
	s.field("Order", revision(order))
	if !order.GetLivemode() {
		s.field("Mode", "TEST: never ship it")
	}
	s.field("Directive", directive(order))
	s.field("Status", enumName(order.GetStatus()))
	s.field("Held by an operator", order.GetOperatorHold().GetNote())
	if order.GetDirective() != ordergatev1.Directive_DIRECTIVE_HOLD {
		s.field("Speaks for holding", enumNames(order.GetHoldReasons()))
	}
	for _, release := range order.GetHoldReleases() {
		s.field("Released from", joined(enumName(release.GetReason()), release.GetCause()))
	}
	for _, reinstatement := range order.GetReinstatements() {
		s.field("Reinstated from", joined(enumName(reinstatement.GetReason()), reinstatement.GetCause()))
	}
	if order.GetRecovered() {
		s.field("Recovered", "rebuilt from a lookup at Stripe: its sale event never came")
	}
	s.field("Source", enumName(order.GetSource()))
	s.field("Account", order.GetAccount())
	s.field("Created", localTime(order.GetCreateTime()))
	s.field("Paid", localTime(order.GetPaidTime()))
}

// showSale writes who bought, for how much, and where it goes.
func (s *sheet) showSale(order *ordergatev1.Order) {
	amounts := amountsOf(order)
	for _, a := range []struct {
		name  string
		minor *int64
	}{
		{"Total", amounts.Total}, {"Subtotal", amounts.Subtotal}, {"Shipping", amounts.Shipping}, {"Tax", amounts.Tax},
		{"Discount", amounts.Discount}, {"Paid at last", amounts.Paid}, {"Refunded", amounts.Refunded},
	} {
		s.field(a.name, amount(a.minor, order.GetCurrency()))
	}
	for _, discount := range order.GetDiscounts() {
		s.field("Coupon", joined(discount.GetCoupon(), discount.GetPromotionCode()))
	}
	customer := order.GetCustomer()
	s.field("Customer", joined(customer.GetName(), customer.GetEmail(), customer.GetPhone(), customer.GetId()))
	s.field("Billing address", addressLine(customer.GetAddress()))
	if shipping := order.GetShipping(); shipping != nil {
		s.field("Ship to", joined(shipping.GetName(), addressLine(shipping.GetAddress()), shipping.GetPhone()))
	} else {
		s.field("Ship to", destination(order))
	}
	if rate := order.GetShippingRate(); rate != nil {
		s.field("Shipping rate", joined(rate.GetDisplayName(), amount(rate.Amount, order.GetCurrency()), rate.GetId()))
	}
	s.field("Client reference", order.GetClientReferenceId())
	refs := order.GetReferences()
	s.field("At Stripe", joined(refs.GetCheckoutSession(), refs.GetPaymentIntent(), refs.GetInvoice(), refs.GetSubscription(), refs.GetCharge(), refs.GetPaymentLink()))
}

func addressLine(a *ordergatev1.Address) string {
	return joined(a.GetLine1(), a.GetLine2(), a.GetPostalCode(), a.GetCity(), a.GetState(), a.GetCountry())
}

func lineItemRow(item *ordergatev1.LineItem, currency string) []string {
	quantity := "?"
	if item.Quantity != nil {
		quantity = strconv.FormatInt(item.GetQuantity(), 10)
	}
	product := item.GetProduct()
	notes := ""
	if product != nil && product.Shippable != nil && !product.GetShippable() {
		notes = "not shippable"
	}
	for _, key := range slices.Sorted(maps.Keys(product.GetMetadata())) {
		notes = joined(notes, key+"="+product.GetMetadata()[key])
	}
	return []string{quantity + " x", item.GetDescription(), amount(item.AmountTotal, currency), product.GetId(), notes}
}

// showTroubles writes what happened to the payment since.
func (s *sheet) showTroubles(order *ordergatev1.Order) {
	s.section("Refunds", rows(order.GetRefunds(), func(r *ordergatev1.Refund) []string {
		return []string{r.GetId(), enumName(r.GetState()), formatAmount(r.GetAmount(), cmp.Or(r.GetCurrency(), order.GetCurrency())), r.GetReason()}
	}))
	s.section("Disputes", rows(order.GetDisputes(), func(d *ordergatev1.Dispute) []string {
		return []string{d.GetId(), enumName(d.GetState()), formatAmount(d.GetAmount(), cmp.Or(d.GetCurrency(), order.GetCurrency())), d.GetReason()}
	}))
	s.section("Reviews", rows(order.GetReviews(), func(r *ordergatev1.Review) []string {
		return []string{r.GetId(), enumName(r.GetState()), r.GetClosedReason()}
	}))
	s.section("Early fraud warnings", rows(order.GetEarlyFraudWarnings(), func(w *ordergatev1.EarlyFraudWarning) []string {
		settled := ""
		if w.GetSettled() {
			settled = "settled"
		}
		return []string{w.GetId(), w.GetFraudType(), settled}
	}))
}

// historyRow says when an order changed, to what, and who or what did it.
func historyRow(event *ordergatev1.OrderEvent) []string {
	cause := event.GetSourceEventId()
	switch {
	case event.GetNote() != "":
		cause = "an operator: " + event.GetNote()
	case cause == "":
		cause = "the gateway"
	}
	return []string{localTime(event.GetCreateTime()), "r" + strconv.FormatInt(event.GetOrder().GetRevision(), 10), enumName(event.GetKind()), directive(event.GetOrder()), cause}
}
