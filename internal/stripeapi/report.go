package stripeapi

import (
	"log/slog"
	"strings"
)

// refusal is a way in which Stripe refuses an API key.
type refusal struct {
	livemode bool
	what     string // a permission, or Stripe's message
}

// maxReported bounds what is remembered of refusals.
const maxReported = 100

// report logs a failure that somebody has to mend at Stripe: once, because every
// order runs into it.
func (c *Client) report(livemode bool, e *callError) {
	if e.kind != ErrPermission && e.kind != ErrUnauthorized {
		return
	}
	what := e.permission
	if what == "" {
		what = e.message
	}
	key := refusal{livemode, what}
	c.mu.Lock()
	known := c.reported[key] || len(c.reported) >= maxReported
	if !known {
		c.reported[key] = true
	}
	c.mu.Unlock()
	if known {
		return
	}
	attrs := []any{
		slog.String("mode", modeName(livemode)),
		slog.String("mend", mend(e)),
		slog.String("message", e.message),
		slog.String("path", e.path),
		slog.String("request_id", e.requestID),
	}
	if e.permission != "" {
		attrs = append(attrs, slog.String("permission", e.permission))
	}
	c.log.Error(e.kind.Error(), attrs...)
}

// mend says what an operator does about a refusal.
func mend(e *callError) string {
	if e.kind == ErrUnauthorized {
		return "The key is wrong, was rolled or has expired: copy a valid one from the Stripe Dashboard (Developers > API keys) to STRIPE_API_KEY and restart."
	}
	if e.permission == "" {
		return "In the Stripe Dashboard (Developers > API keys), see whether the key may do this, on this account and from this address."
	}
	return "In the Stripe Dashboard (Developers > API keys), edit the restricted key and set " + permissionLabel(e.permission) + ". No restart is needed."
}

// permissionLabel is how the Dashboard shows a permission such as
// `rak_checkout_session_read`.
func permissionLabel(permission string) string {
	resource, isRead := strings.CutSuffix(strings.TrimPrefix(permission, "rak_"), "_read")
	label := permissionLabels[resource]
	if !isRead || label == "" {
		return "the permission " + permission
	}
	return `"` + label + `" to Read`
}

var permissionLabels = map[string]string{
	"checkout_session": "Checkout Sessions",
	"event":            "Events",
	"invoice":          "Invoices",
	"payment_intent":   "PaymentIntents",
	"plan":             "Prices",
	"product":          "Products",
	"shipping_rate":    "Shipping Rates",
}
