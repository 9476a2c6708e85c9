package stripeapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/quantity"
)

// What is read here comes in the shapes of several API versions:
//
//   - A session's line item (`object: item`) states its sums:
//     https://docs.stripe.com/api/checkout/sessions/line_items.
//   - An invoice's line (`object: line_item`) has an `amount` and lists of
//     discounts and taxes: https://docs.stripe.com/api/invoice-line-item/object.
//     Since 2025-03-31.basil, its `price` is in `pricing.price_details`, and its
//     `tax_amounts` are `taxes`.
//   - A price or product is an id or the whole object, wherever it stands.
//
// What goods are sent by must be readable: quantity, amounts, price, product.
// Anything else that has an unexpected type is left out.
//
// encoding/json replaces bytes that are not UTF-8 with U+FFFD, so every string
// read here can go into a protobuf message.

// lineItem is a line as Stripe sends it.
type lineItem struct {
	ID          string
	Object      string
	Quantity    json.RawMessage
	Decimal     *string `json:"quantity_decimal"`
	Description lenient[string]
	Metadata    lenient[map[string]lenient[string]]

	Price   expandable
	Pricing struct {
		PriceDetails struct{ Price, Product expandable } `json:"price_details"`
	}

	// Of a session's item.
	AmountSubtotal *int64 `json:"amount_subtotal"`
	AmountTotal    *int64 `json:"amount_total"`
	AmountDiscount *int64 `json:"amount_discount"`
	AmountTax      *int64 `json:"amount_tax"`

	// Of an invoice's line. A session's item may have taxes too, which are not
	// looked at.
	Amount    *int64
	Proration bool
	Period    lenient[struct{ Start, End *int64 }]
	Parent    struct {
		SubscriptionItemDetails struct{ Proration bool } `json:"subscription_item_details"`
		InvoiceItemDetails      struct{ Proration bool } `json:"invoice_item_details"`
	}
	DiscountAmounts json.RawMessage `json:"discount_amounts"`
	TaxAmounts      json.RawMessage `json:"tax_amounts"`
	Taxes           json.RawMessage
}

// parsedLine is a line item, and whether its price and product came with it.
type parsedLine struct {
	item            *ordergatev1.LineItem
	priceExpanded   bool
	productExpanded bool
}

// parseLine reads a line item of a session or an invoice. The text of an error
// begins with the line's id and holds nothing else of the line.
func parseLine(raw []byte) (*parsedLine, error) {
	var in lineItem
	if err := json.Unmarshal(raw, &in); err != nil {
		return nil, fmt.Errorf("%.40q cannot be read: %w", in.ID, err)
	}
	if in.ID == "" {
		return nil, errors.New("has no id")
	}
	line := &parsedLine{item: &ordergatev1.LineItem{
		Id:             in.ID,
		Description:    in.Description.value,
		AmountSubtotal: in.AmountSubtotal,
		AmountTotal:    in.AmountTotal,
		AmountDiscount: in.AmountDiscount,
		AmountTax:      in.AmountTax,
		Metadata:       texts(in.Metadata.value),
		Proration:      in.Proration || in.Parent.SubscriptionItemDetails.Proration || in.Parent.InvoiceItemDetails.Proration,

		PeriodStartTime: timestamp(in.Period.value.Start),
		PeriodEndTime:   timestamp(in.Period.value.End),
	}}
	if err := in.readQuantity(line.item); err != nil {
		return nil, fmt.Errorf("%.40q has a quantity that cannot be read: %w", in.ID, err)
	}
	if in.Object == "line_item" {
		if err := in.sumUp(line.item); err != nil {
			return nil, fmt.Errorf("%.40q has sums that cannot be read: %w", in.ID, err)
		}
	}
	price, product, err := in.references()
	if err != nil {
		return nil, fmt.Errorf("%.40q has a price that cannot be read: %w", in.ID, err)
	}
	if line.item.Price = price.id; price.id != "" {
		line.priceExpanded = price.object != nil
		if line.item.PriceDetails, err = parsePrice(price); err != nil {
			return nil, fmt.Errorf("%.40q has a price that cannot be read: %w", in.ID, err)
		}
	}
	if product.id != "" {
		line.productExpanded = product.object != nil
		if line.item.Product, err = parseProduct(product); err != nil {
			return nil, fmt.Errorf("%.40q has a product that cannot be read: %w", in.ID, err)
		}
	}
	return line, nil
}

// readQuantity sets the quantity. Since 2026-03-25.dahlia `quantity` is the whole
// part of `quantity_decimal`.
func (in *lineItem) readQuantity(item *ordergatev1.LineItem) (err error) {
	switch n := string(in.Quantity); {
	case in.Decimal != nil:
		item.QuantityDecimal = *in.Decimal
	case n == "" || n == "null":
		return nil
	case strings.Contains(n, "."):
		item.QuantityDecimal = n
	default:
		return json.Unmarshal(in.Quantity, &item.Quantity)
	}
	item.Quantity, err = quantity.Whole(item.QuantityDecimal)
	return err
}

// maxTime is the last second that a protobuf Timestamp can hold.
const maxTime = 253402300799 // 9999-12-31T23:59:59Z

// timestamp returns a time in seconds since 1970; nil if it is not a time.
func timestamp(seconds *int64) *timestamppb.Timestamp {
	if seconds == nil || *seconds <= 0 || *seconds > maxTime {
		return nil
	}
	return &timestamppb.Timestamp{Seconds: *seconds}
}

// references returns the price and the product, where there are any.
func (in *lineItem) references() (price, product expandable, err error) {
	details := in.Pricing.PriceDetails
	ref := in.Price
	if ref.id == "" {
		ref = details.Price
	}
	if details.Product.id != "" || ref.object == nil {
		return ref, details.Product, nil
	}
	var object struct{ Product expandable }
	err = json.Unmarshal(ref.object, &object)
	return ref, object.Product, err
}

// sumUp sets the amounts of an invoice's line. What follows from something that
// Stripe leaves out is unset.
func (in *lineItem) sumUp(item *ordergatev1.LineItem) error {
	discounts, discountsErr := parseShares(in.DiscountAmounts)
	taxes, taxesErr := parseShares(in.TaxAmounts)
	if taxes == nil && taxesErr == nil {
		taxes, taxesErr = parseShares(in.Taxes)
	}
	if err := errors.Join(discountsErr, taxesErr); err != nil {
		return err
	}
	if in.Amount != nil && !inRange(*in.Amount) {
		return errOutOfRange
	}
	exclusive, known := taxes.exclusive()
	item.AmountSubtotal = in.Amount
	item.AmountDiscount = discounts.sum()
	item.AmountTax = taxes.sum()
	item.AmountTotal = nil
	if in.Amount != nil && item.AmountDiscount != nil && known {
		// An inclusive tax is part of the amount already.
		item.AmountTotal = new(*in.Amount - *item.AmountDiscount + exclusive)
	}
	return nil
}

// maxAmount bounds the amounts that are added up, so that no sum of a response
// overflows. Stripe's own amounts have at most 12 digits.
const maxAmount = 1e12

var errOutOfRange = fmt.Errorf("an amount is more than %d", int64(maxAmount))

func inRange(amount int64) bool { return -maxAmount <= amount && amount <= maxAmount }

// shares are the discounts or the taxes of an invoice's line. Nil is not stated.
type shares []struct {
	Amount      *int64
	Inclusive   *bool  // of an element of `tax_amounts`
	TaxBehavior string `json:"tax_behavior"` // of an element of `taxes`
}

func parseShares(raw json.RawMessage) (s shares, err error) {
	if len(raw) > 0 {
		err = json.Unmarshal(raw, &s)
	}
	for _, share := range s {
		switch {
		case err != nil:
		case share.Amount == nil:
			err = errors.New("a discount or tax has no amount")
		case !inRange(*share.Amount):
			err = errOutOfRange
		}
	}
	return s, err
}

// sum returns the sum of all amounts, or nil where they are not stated.
func (s shares) sum() *int64 {
	if s == nil {
		return nil
	}
	var sum int64
	for _, share := range s {
		sum += *share.Amount
	}
	return &sum
}

// exclusive returns the sum of the taxes that come on top, if that is known.
func (s shares) exclusive() (sum int64, known bool) {
	for _, tax := range s {
		switch {
		case tax.Inclusive != nil && *tax.Inclusive, tax.TaxBehavior == "inclusive":
		case tax.Inclusive != nil, tax.TaxBehavior == "exclusive":
			sum += *tax.Amount
		default:
			return 0, false
		}
	}
	return sum, s != nil
}

// parsePrice reads a price, or its id if that is all there is.
// https://docs.stripe.com/api/prices/object
func parsePrice(ref expandable) (*ordergatev1.PriceDetails, error) {
	price := &ordergatev1.PriceDetails{Id: ref.id}
	if ref.object == nil {
		return price, nil
	}
	var in struct {
		LookupKey lenient[string] `json:"lookup_key"`
		Nickname  lenient[string]
		Metadata  lenient[map[string]lenient[string]]
	}
	if err := json.Unmarshal(ref.object, &in); err != nil {
		return nil, err
	}
	price.LookupKey, price.Nickname, price.Metadata = in.LookupKey.value, in.Nickname.value, texts(in.Metadata.value)
	return price, nil
}

// parseShippingRate reads a shipping rate, or its id if that is all there is.
// https://docs.stripe.com/api/shipping_rates/object
func parseShippingRate(ref expandable) (*ordergatev1.ShippingRate, error) {
	rate := &ordergatev1.ShippingRate{Id: ref.id}
	if ref.object == nil {
		return rate, nil
	}
	var in struct {
		DisplayName      lenient[string]                                    `json:"display_name"`
		DeliveryEstimate lenient[struct{ Minimum, Maximum *estimateBound }] `json:"delivery_estimate"`
		Metadata         lenient[map[string]lenient[string]]
		TaxCode          lenient[expandable] `json:"tax_code"`
	}
	if err := json.Unmarshal(ref.object, &in); err != nil {
		return nil, err
	}
	rate.DisplayName, rate.Metadata, rate.TaxCode = in.DisplayName.value, texts(in.Metadata.value), in.TaxCode.value.id
	if e := in.DeliveryEstimate.value; e.Minimum != nil || e.Maximum != nil {
		rate.DeliveryEstimate = &ordergatev1.DeliveryEstimate{Minimum: e.Minimum.message(), Maximum: e.Maximum.message()}
	}
	return rate, nil
}

// estimateBound is a bound of a delivery estimate.
type estimateBound struct {
	Unit  string
	Value int64
}

func (b *estimateBound) message() *ordergatev1.DeliveryEstimateBound {
	if b == nil {
		return nil
	}
	return &ordergatev1.DeliveryEstimateBound{Unit: b.Unit, Value: b.Value}
}

// parseProduct reads a product, or what there is of it: one that was deleted, or
// that is not expanded, has only its id.
// https://docs.stripe.com/api/products/object
func parseProduct(ref expandable) (*ordergatev1.Product, error) {
	product := &ordergatev1.Product{Id: ref.id}
	if ref.object == nil {
		return product, nil
	}
	var in struct {
		Name       lenient[string]
		Metadata   lenient[map[string]lenient[string]]
		Shippable  lenient[*bool]
		Dimensions lenient[struct{ Height, Length, Width, Weight *float64 }] `json:"package_dimensions"`
		Images     lenient[[]lenient[string]]
		TaxCode    lenient[expandable] `json:"tax_code"`

		Description, URL lenient[string]
	}
	if err := json.Unmarshal(ref.object, &in); err != nil {
		return nil, err
	}
	product.Name, product.Description, product.Url = in.Name.value, in.Description.value, in.URL.value
	product.Metadata = texts(in.Metadata.value)
	product.Shippable = in.Shippable.value
	product.TaxCode = in.TaxCode.value.id
	if d := in.Dimensions.value; !slices.Contains([]*float64{d.Height, d.Length, d.Width, d.Weight}, nil) {
		product.PackageDimensions = &ordergatev1.PackageDimensions{
			Height: *d.Height, Length: *d.Length, Width: *d.Width, Weight: *d.Weight,
		}
	}
	for _, image := range in.Images.value {
		if image.value != "" {
			product.Images = append(product.Images, image.value)
		}
	}
	return product, nil
}

// expandable is a reference to an object: its id, or the whole object. The zero
// value refers to none.
type expandable struct {
	id     string
	object json.RawMessage // nil when it is not expanded
}

func (e *expandable) UnmarshalJSON(raw []byte) error {
	*e = expandable{}
	switch raw[0] {
	case 'n': // null
		return nil
	case '"':
		return json.Unmarshal(raw, &e.id)
	}
	var object struct{ ID string }
	if err := json.Unmarshal(raw, &object); err != nil {
		return err
	}
	if object.ID == "" {
		return errors.New("an object has no id")
	}
	e.id, e.object = object.ID, slices.Clone(raw)
	return nil
}

// lenient is a value that is zero where the JSON is of another type.
type lenient[T any] struct {
	value T
	ok    bool // it is of the type, or null
}

func (l *lenient[T]) UnmarshalJSON(raw []byte) error {
	*l = lenient[T]{}
	var value T
	if json.Unmarshal(raw, &value) == nil {
		l.value, l.ok = value, true
	}
	return nil
}

// texts leaves out what is not text.
func texts(in map[string]lenient[string]) map[string]string {
	out := make(map[string]string, len(in))
	for key, text := range in {
		if text.ok {
			out[key] = text.value
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
