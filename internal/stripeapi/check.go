package stripeapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/stripe/stripe-go/v76"
)

// needed are the lists that the gateway's key must be able to read, and the
// permissions they need, as the Dashboard names them.
var needed = []struct{ path, label string }{
	{"/v1/checkout/sessions", "Checkout Sessions"},
	{"/v1/products", "Products"},
	{"/v1/prices", "Prices"},
	{"/v1/shipping_rates", "Shipping Rates"},
	{"/v1/invoices", "Invoices"},
	{"/v1/payment_intents", "PaymentIntents"},
	{"/v1/events", "Events"},
}

// MissingPermissions tries what the gateway asks Stripe for with the key of a
// mode, and returns what the key may not read, as the Dashboard names it. An error
// is of the kinds of this package's other calls.
func (c *Client) MissingPermissions(ctx context.Context, livemode bool) (missing []string, err error) {
	for _, n := range needed {
		_, err := c.get(ctx, request{path: n.path, query: url.Values{"limit": {"1"}}, livemode: livemode})
		switch {
		case errors.Is(err, ErrPermission):
			missing = append(missing, n.label)
		case err != nil:
			return missing, err
		}
	}
	return missing, nil
}

// ClockSkew returns how far this machine's clock is ahead of that of the server at
// base, Stripe's when it is empty, give or take a second and the time of a
// request. It needs no API key.
func ClockSkew(ctx context.Context, base string) (time.Duration, error) {
	if base == "" {
		base = stripe.APIURL
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, base, nil)
	if err != nil {
		return 0, err
	}
	client := &http.Client{Transport: newTransport(), CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer client.CloseIdleConnections()
	before := time.Now()
	response, err := client.Do(request)
	if err != nil {
		return 0, fmt.Errorf("%w: %s", ErrUnavailable, networkError(err))
	}
	response.Body.Close()
	date, err := http.ParseTime(response.Header.Get("Date"))
	if err != nil {
		return 0, fmt.Errorf("%w: the answer has no date", ErrUnavailable)
	}
	now := before.Add(time.Since(before) / 2)
	return now.Sub(date.Add(time.Second / 2)), nil
}
