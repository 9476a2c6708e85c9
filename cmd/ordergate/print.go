package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
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
	parts := []string{
		event.GetCreateTime().AsTime().Local().Format(time.TimeOnly),
		fmt.Sprintf("%-6s", directive(order)),
		fmt.Sprintf("%-8s", enumName(event.GetKind())),
		revision(order),
	}
	if total := amount(amountsOf(order).Total, order.GetCurrency()); total != "" {
		parts = append(parts, total)
	}
	parts = append(parts, destination(order))
	if !order.GetLivemode() {
		parts = append(parts, "TEST")
	}
	return strings.Join(parts, "  ")
}

// deliveryLine is the line of an order event, and what is unusual about its
// delivery.
func deliveryLine(delivery *client.Delivery) string {
	line := orderLine(delivery.Event)
	if delivery.Attempt > 1 {
		line += fmt.Sprintf("  attempt %d", delivery.Attempt)
	}
	if delivery.Redriven {
		line += "  redriven"
	}
	if len(delivery.ReplacedRevisions) > 0 {
		line += "  replaces " + revisions(delivery.ReplacedRevisions)
	}
	if delivery.LatestRevision > delivery.Event.GetOrder().GetRevision() {
		line += fmt.Sprintf("  outdated: r%d is %s", delivery.LatestRevision, enumName(delivery.LatestDirective))
	}
	return line
}

// revisions writes some revisions of an order, and how many more there are.
func revisions(all []int64) string {
	const most = 5
	var names []string
	for _, revision := range all[:min(len(all), most)] {
		names = append(names, fmt.Sprintf("r%d", revision))
	}
	if more := len(all) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return strings.Join(names, ", ")
}

// revision names an order and which of its revisions it is.
func revision(order *ordergatev1.Order) string {
	return fmt.Sprintf("%s r%d", order.GetId(), order.GetRevision())
}

// directive says what shipping is to do, and why.
func directive(order *ordergatev1.Order) string {
	name := enumName(order.GetDirective())
	if reasons := directiveReasons(order); reasons != "" {
		name += " (" + reasons + ")"
	}
	return name
}

func directiveReasons(order *ordergatev1.Order) string {
	switch order.GetDirective() {
	case ordergatev1.Directive_DIRECTIVE_WAIT:
		return enumNames(order.GetWaitReasons())
	case ordergatev1.Directive_DIRECTIVE_HOLD:
		return enumNames(order.GetHoldReasons())
	case ordergatev1.Directive_DIRECTIVE_CANCEL:
		return enumNames(order.GetCancelReasons())
	}
	return ""
}

func destination(order *ordergatev1.Order) string {
	shipping := order.GetShipping()
	if shipping == nil {
		return "no address: " + enumName(order.GetAddressState())
	}
	return "to " + joined(shipping.GetName(), shipping.GetAddress().GetCity(), shipping.GetAddress().GetCountry())
}

// joined makes one line of what there is.
func joined(parts ...string) string {
	return plain(strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", "))
}

// plain makes text from outside fit for a line in a terminal, which would do
// what it says between its control characters.
func plain(text string) string { return strings.Map(plainRune, text) }

func plainRune(r rune) rune {
	switch {
	case unicode.IsPrint(r):
		return r
	case unicode.IsSpace(r):
		return ' '
	}
	return utf8.RuneError
}

// enumName is the name of an enum's value without the enum's own: PAID.
func enumName(value protoreflect.Enum) string {
	name := value.Descriptor().Values().ByNumber(value.Number())
	if name == nil { // of a later version
		return strconv.Itoa(int(value.Number()))
	}
	return strings.TrimPrefix(string(name.Name()), enumPrefix(value.Descriptor()))
}

func enumNames[E protoreflect.Enum](values []E) string {
	var names []string
	for _, value := range values {
		names = append(names, enumName(value))
	}
	return strings.Join(names, ", ")
}

// enumPrefix is what the names of an enum's values begin with: that of its
// first one, X_UNSPECIFIED, says it.
func enumPrefix(enum protoreflect.EnumDescriptor) string {
	return strings.TrimSuffix(string(enum.Values().Get(0).Name()), "UNSPECIFIED")
}

// enumValues reads the values of a flag as enumName writes them, in any case.
func enumValues[E interface {
	~int32
	protoreflect.Enum
}](flag string, names []string) (values []E, err error) {
	enum := E(0).Descriptor()
	for _, name := range names {
		value := enum.Values().ByName(protoreflect.Name(enumPrefix(enum) + strings.ToUpper(name)))
		if value == nil || value.Number() == 0 {
			var known []string
			for i := 1; i < enum.Values().Len(); i++ {
				known = append(known, enumName(E(enum.Values().Get(i).Number())))
			}
			return nil, fmt.Errorf("--%s %q: there is no such %s: write one of %s", flag, name, flag, strings.Join(known, ", "))
		}
		values = append(values, E(value.Number()))
	}
	return values, nil
}

// printJSON writes a message as the REST API does, in one line.
func printJSON(out io.Writer, message proto.Message) error {
	line, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(message)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", line)
	return err
}

// localTime writes a time for people; empty when it is not set.
func localTime(at *timestamppb.Timestamp) string {
	if at == nil {
		return ""
	}
	return at.AsTime().Local().Format(time.DateTime)
}

// livemodeName says which of Stripe's modes an object is of.
func livemodeName(livemode bool) string {
	if livemode {
		return "LIVE"
	}
	return "TEST"
}

// columns writes lines of cells below each other.
type columns struct{ *tabwriter.Writer }

func newColumns(out io.Writer) columns {
	return columns{tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)}
}

// row writes one line; what is wrong is told by Flush.
func (c columns) row(cells ...string) {
	for i, cell := range cells {
		cells[i] = plain(cell)
	}
	fmt.Fprintln(c, strings.TrimRight(strings.Join(cells, "\t"), "\t"))
}

// amountsOf returns an order's amounts, all unset when it has none.
func amountsOf(order *ordergatev1.Order) *ordergatev1.Amounts {
	if order.GetAmounts() == nil {
		return &ordergatev1.Amounts{}
	}
	return order.GetAmounts()
}

// amount writes an amount that may not be known: it is then empty.
func amount(minor *int64, currency string) string {
	if minor == nil {
		return ""
	}
	return formatAmount(*minor, currency)
}

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
