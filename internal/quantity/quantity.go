// Package quantity reads quantities that Stripe sends as decimal numbers.
package quantity

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
)

// decimal bounds a quantity to 18 digits before the point, which fit into an int64,
// and to Stripe's 12 after it.
var decimal = regexp.MustCompile(`^-?[0-9]{1,18}(\.[0-9]{1,12})?$`)

// errNoDecimal does not repeat the text, which may be anything.
var errNoDecimal = errors.New("the quantity is not a decimal number of at most 18 digits before the point and 12 after it")

// Whole returns a decimal number as a whole one; nil if it is not whole. An error
// means that the text is not a decimal number, or is out of range. It does not
// repeat the text.
func Whole(text string) (*int64, error) {
	if !decimal.MatchString(text) {
		return nil, errNoDecimal
	}
	whole, fraction, _ := strings.Cut(text, ".")
	if strings.Trim(fraction, "0") != "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return nil, errNoDecimal
	}
	return &n, nil
}
