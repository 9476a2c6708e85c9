package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// orderPrinter writes a line for each order event.
type orderPrinter struct{ out io.Writer }

func (p orderPrinter) print(response *ordergatev1.WatchOrdersResponse) error {
	event := response.GetEvent()
	if event == nil {
		return nil
	}
	_, err := fmt.Fprintln(p.out, orderLine(event))
	return err
}

// orderLine says in one line what happened and what is to be done.
func orderLine(event *ordergatev1.OrderEvent) string {
	order := event.GetOrder()
	directive := enumName(order.GetDirective().String(), "DIRECTIVE_")
	if reasons := directiveReasons(order); reasons != "" {
		directive += " (" + reasons + ")"
	}
	parts := []string{
		event.GetCreateTime().AsTime().Local().Format(time.TimeOnly),
		fmt.Sprintf("%-6s", directive),
		fmt.Sprintf("%-8s", enumName(event.GetKind().String(), "ORDER_EVENT_KIND_")),
		fmt.Sprintf("%s r%d", order.GetId(), order.GetRevision()),
	}
	if amounts := order.GetAmounts(); amounts != nil && amounts.Total != nil {
		parts = append(parts, formatAmount(amounts.GetTotal(), order.GetCurrency()))
	}
	parts = append(parts, destination(order))
	if !order.GetLivemode() {
		parts = append(parts, "TEST")
	}
	return strings.Join(parts, "  ")
}

func directiveReasons(order *ordergatev1.Order) string {
	var reasons []string
	switch order.GetDirective() {
	case ordergatev1.Directive_DIRECTIVE_WAIT:
		for _, r := range order.GetWaitReasons() {
			reasons = append(reasons, enumName(r.String(), "WAIT_REASON_"))
		}
	case ordergatev1.Directive_DIRECTIVE_HOLD:
		for _, r := range order.GetHoldReasons() {
			reasons = append(reasons, enumName(r.String(), "HOLD_REASON_"))
		}
	case ordergatev1.Directive_DIRECTIVE_CANCEL:
		for _, r := range order.GetCancelReasons() {
			reasons = append(reasons, enumName(r.String(), "CANCEL_REASON_"))
		}
	}
	return strings.Join(reasons, ", ")
}

func destination(order *ordergatev1.Order) string {
	shipping := order.GetShipping()
	if shipping == nil {
		return "no address: " + enumName(order.GetAddressState().String(), "ADDRESS_STATE_")
	}
	place := []string{shipping.GetName(), shipping.GetAddress().GetCity(), shipping.GetAddress().GetCountry()}
	return "to " + strings.Join(slices.DeleteFunc(place, func(s string) bool { return s == "" }), ", ")
}

func enumName(name, prefix string) string { return strings.TrimPrefix(name, prefix) }

// Currencies whose minor unit is not a hundredth. ISK and UGX have no minor
// unit but two decimals at Stripe: https://docs.stripe.com/currencies.
var (
	zeroDecimals  = strings.Fields("bif clp djf gnf jpy kmf krw mga pyg rwf vnd vuv xaf xof xpf")
	threeDecimals = strings.Fields("bhd jod kwd omr tnd")
)

// formatAmount writes an amount in minor units as people do: 1299 eur is
// 12.99 EUR.
func formatAmount(minor int64, currency string) string {
	decimals := 2
	switch {
	case slices.Contains(zeroDecimals, currency):
		decimals = 0
	case slices.Contains(threeDecimals, currency):
		decimals = 3
	}
	sign, digits := "", strconv.FormatInt(minor, 10)
	if strings.HasPrefix(digits, "-") {
		sign, digits = "-", digits[1:]
	}
	if decimals > 0 {
		for len(digits) <= decimals {
			digits = "0" + digits
		}
		point := len(digits) - decimals
		digits = digits[:point] + "." + digits[point:]
	}
	return sign + digits + " " + strings.ToUpper(currency)
}
