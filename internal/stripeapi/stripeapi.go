// Package stripeapi reads from Stripe's API what a webhook does not bring: the
// line items of an order, the sale that a payment belongs to, and the events of
// a time when nobody listened. It only ever reads: every request is a GET.
//
// What it promises:
//
//   - All requests of a [Client], for live mode, test mode and every connected
//     account, share one budget. When Stripe asks for a pause (Retry-After), all
//     of them pause.
//   - Every call is bounded: in time, in the size of each response and in the
//     number of pages. A bound that is reached is an error, never a shorter
//     result. Nothing is queued inside but the callers themselves.
//   - An error says which kind it is, by the sentinels below, and names Stripe's
//     request id. It holds neither an API key nor anything of a response but
//     Stripe's own error message.
//
// Requests are in stripe-go v76's API version ([APIVersion]), which is sent with
// each of them, so that the account's own default does not matter. Stripe adds
// newer fields to older versions too; they are read from the raw JSON, because
// v76's structs would drop them.
package stripeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stripe/stripe-go/v76"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// APIVersion is the Stripe API version that objects are requested in. Events
// keep the version of their own creation (`api_version`).
const APIVersion = stripe.APIVersion

// Errors are of these kinds; use [errors.Is]. Only [ErrUnavailable] is worth
// another try without anybody doing anything.
var (
	// ErrNotFound: Stripe has no such object in that mode and account.
	ErrNotFound = errors.New("not found at Stripe")
	// ErrPermission: the API key may not do this. It is logged once for each
	// permission, with what to click; the key then works without a restart.
	ErrPermission = errors.New("the Stripe API key lacks a permission")
	// ErrUnauthorized: Stripe does not accept the API key. It is logged once.
	ErrUnauthorized = errors.New("the Stripe API key is not accepted")
	// ErrNoKey: there is no API key for that mode.
	ErrNoKey = errors.New("no Stripe API key for this mode")
	// ErrUnavailable: Stripe could not be reached, was too slow, asked for a
	// pause or failed, in every attempt that was made. When time was too short
	// for another attempt, the error is of the kind [context.DeadlineExceeded]
	// or [context.Canceled] too.
	ErrUnavailable = errors.New("the Stripe API is unavailable")
)

// Config says how to reach Stripe. Its zero value, with a key, is fit for use.
type Config struct {
	// Keys are the API keys: at most one for live mode and one for test mode,
	// which their prefixes tell (`rk_live_`, `sk_live_`, `rk_test_`, `sk_test_`).
	// Empty ones are skipped.
	Keys []string
	// Base is the address of the API. Empty means Stripe's.
	Base string
	// Rate is how many requests a second all calls make together. 0 means 20,
	// which stays below Stripe's limit of 25 for each endpoint
	// (https://docs.stripe.com/rate-limits).
	Rate float64
	// AttemptTimeout bounds one HTTP request, to the last byte of its answer. 0
	// means 20 s.
	AttemptTimeout time.Duration
	// RequestTimeout bounds one object or page with all attempts, pauses and
	// waiting for the budget. 0 means 2 minutes.
	RequestTimeout time.Duration
	// Transport makes the HTTP requests. Nil means one of the client's own.
	Transport http.RoundTripper
	// Logger gets what an operator has to know. Nil means nowhere.
	Logger *slog.Logger
	// Metrics is where the metrics are registered. Nil means nowhere.
	Metrics prometheus.Registerer
}

// Client reads from Stripe's API. It may be used by many goroutines at a time.
type Client struct {
	keys           map[bool]string // by livemode
	backend        stripe.Backend
	budget         *budget
	products       *cache[*ordergatev1.Product]
	prices         *cache[*ordergatev1.PriceDetails]
	shippingRates  *cache[*ordergatev1.ShippingRate]
	attemptTimeout time.Duration
	requestTimeout time.Duration
	log            *slog.Logger
	measures       *measures

	mu       sync.Mutex
	reported map[refusal]bool // what has been logged once
}

// New checks the configuration and returns a client. It sends nothing. Its
// errors name all that is wrong, and no key.
func New(config Config) (*Client, error) {
	keys, keysErr := keysByMode(config.Keys)
	base, baseErr := checkBase(config.Base, keys[true] != "")
	var rangeErr error
	if !(config.Rate >= 0) || config.AttemptTimeout < 0 || config.RequestTimeout < 0 { // NaN is no rate
		rangeErr = errors.New("stripeapi: the rate and the timeouts must be 0 or more, not negative")
	}
	if err := errors.Join(keysErr, baseErr, rangeErr); err != nil {
		return nil, err
	}
	log := config.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Client{
		keys:           keys,
		backend:        newBackend(base, config.Transport),
		budget:         newBudget(orDefault(config.Rate, 20), log),
		products:       newCache[*ordergatev1.Product](),
		prices:         newCache[*ordergatev1.PriceDetails](),
		shippingRates:  newCache[*ordergatev1.ShippingRate](),
		attemptTimeout: orDefault(config.AttemptTimeout, 20*time.Second),
		requestTimeout: orDefault(config.RequestTimeout, 2*time.Minute),
		log:            log,
		measures:       newMeasures(config.Metrics),
		reported:       make(map[refusal]bool),
	}, nil
}

// Has reports whether there is a key for live mode, or else for test mode.
func (c *Client) Has(livemode bool) bool { return c.keys[livemode] != "" }

// Ref names an object at Stripe.
type Ref struct {
	// ID is the object's id, such as `cs_…`.
	ID string
	// Account is the account (`acct_…`) it belongs to: a connected account, or one
	// of an organization. Empty for the platform's own.
	Account string
	// InContext means that Account is one of an organization: it is sent as
	// `Stripe-Context` instead of `Stripe-Account`.
	InContext bool
	// Livemode says which key to use.
	Livemode bool
}

// request returns a request for a path in the object's account and mode.
func (of Ref) request(path string) request {
	return request{path: path, account: of.Account, inContext: of.InContext, livemode: of.Livemode}
}

// LineItems returns all line items of a Checkout Session (`cs_…`) or an Invoice
// (`in_…`), in Stripe's order, with their prices and products. The list is whole or
// there is an error. It may be empty if Stripe says so. A price or product that was
// deleted at Stripe has only its id; one that Stripe did not expand may be up to 10
// minutes old.
//
// An amount or quantity that Stripe leaves out is unset. A line whose quantity,
// amounts, price or product cannot be read is an error, because goods would be
// sent by it.
func (c *Client) LineItems(ctx context.Context, of Ref) ([]*ordergatev1.LineItem, error) {
	var path string
	switch {
	case isID(of.ID, "cs"):
		path = "/v1/checkout/sessions/" + of.ID + "/line_items"
	case isID(of.ID, "in"):
		path = "/v1/invoices/" + of.ID + "/lines"
	default:
		return nil, fmt.Errorf("stripeapi: line items of %.40q: not the id of a Checkout Session or an Invoice", of.ID)
	}
	r := of.request(path)
	r.query = url.Values{"expand[]": {"data.price.product"}}
	var items []*ordergatev1.LineItem
	for raw, err := range c.list(ctx, r, maxLineItemPages) {
		if err != nil {
			return nil, err
		}
		line, err := parseLine(raw)
		if err != nil {
			return nil, fmt.Errorf("stripeapi: GET %s: line item %d %w", path, len(items)+1, err)
		}
		if err := c.completePrice(ctx, of, line); err != nil {
			return nil, err
		}
		if err := c.completeProduct(ctx, of, line); err != nil {
			return nil, err
		}
		items = append(items, line.item)
	}
	return items, nil
}

// ShippingRate returns the details of a shipping rate (`shr_…`), without an amount.
// They may be up to 10 minutes old. A rate that Stripe does not have is returned
// with its id only.
func (c *Client) ShippingRate(ctx context.Context, of Ref) (*ordergatev1.ShippingRate, error) {
	if !isID(of.ID, "shr") {
		return nil, fmt.Errorf("stripeapi: %.40q is not the id of a shipping rate", of.ID)
	}
	return readCached(ctx, c, c.shippingRates, of, "/v1/shipping_rates/", "shipping_rate", parseShippingRate)
}

// CheckoutSessionByPaymentIntent returns the Checkout Session that a
// PaymentIntent (`pi_…`) was made by, as Stripe sent it, or an [ErrNotFound] when
// there is none.
func (c *Client) CheckoutSessionByPaymentIntent(ctx context.Context, paymentIntent Ref) (json.RawMessage, error) {
	return c.sessionBy(ctx, paymentIntent, "pi", "payment_intent")
}

// CheckoutSessionBySubscription returns the Checkout Session that a Subscription
// (`sub_…`) was made by, as Stripe sent it, or an [ErrNotFound] when there is
// none.
func (c *Client) CheckoutSessionBySubscription(ctx context.Context, subscription Ref) (json.RawMessage, error) {
	return c.sessionBy(ctx, subscription, "sub", "subscription")
}

func (c *Client) sessionBy(ctx context.Context, of Ref, prefix, parameter string) (json.RawMessage, error) {
	if !isID(of.ID, prefix) {
		return nil, fmt.Errorf("stripeapi: %.40q is not the id of an object of the type %s", of.ID, parameter)
	}
	r := of.request("/v1/checkout/sessions")
	r.query = url.Values{parameter: {of.ID}, "limit": {"1"}}
	page, err := c.page(ctx, r)
	if err != nil {
		return nil, err
	}
	if len(page.data) == 0 {
		return nil, fmt.Errorf("stripeapi: Checkout Session of %s: %w", of.ID, ErrNotFound)
	}
	return checkObject(page.data[0], "/v1/checkout/sessions", "checkout.session")
}

// PaymentIntent returns a PaymentIntent (`pi_…`) as Stripe sent it.
func (c *Client) PaymentIntent(ctx context.Context, of Ref) (json.RawMessage, error) {
	return c.object(ctx, of, "pi", "/v1/payment_intents/", "payment_intent")
}

// Invoice returns an Invoice (`in_…`) as Stripe sent it.
func (c *Client) Invoice(ctx context.Context, of Ref) (json.RawMessage, error) {
	return c.object(ctx, of, "in", "/v1/invoices/", "invoice")
}

func (c *Client) object(ctx context.Context, of Ref, prefix, path, object string) (json.RawMessage, error) {
	if !isID(of.ID, prefix) {
		return nil, fmt.Errorf("stripeapi: %.40q is not the id of an object of the type %s", of.ID, object)
	}
	path += of.ID
	body, err := c.get(ctx, of.request(path))
	if err != nil {
		return nil, err
	}
	return checkObject(body, path, object)
}

// EventQuery says which events to list.
type EventQuery struct {
	// Account is the account whose events to list: a connected account, or one of
	// an organization. Empty for the platform's own, which do not include those of
	// any other account.
	Account string
	// InContext means that Account is one of an organization (see [Ref]).
	InContext bool
	// Livemode says which key to use.
	Livemode bool
	// Since and Until bound when the event was created, to the second: not
	// before Since, and before Until. The zero time is no bound. Stripe keeps
	// events for 30 days.
	Since, Until time.Time
	// Types are the types of event to list, at most 20. None means all.
	Types []string
	// OlderThan is the id of an event that was listed before, to go on after it
	// when a listing failed half way. Empty means from the newest on.
	OlderThan string
}

// maxEventTypes is Stripe's limit (https://docs.stripe.com/api/events/list).
const maxEventTypes = 20

// Events lists events, each as Stripe sends it, from the newest to the oldest:
// the only order in which Stripe lists from a time on. Events that happen while
// they are listed are left out; none is listed twice. After an error, which
// comes with a nil event, there is nothing more; [EventQuery.OlderThan] goes on
// from there.
//
// An event has the shape of the API version it was created in, and its object
// is as it was then, as in the webhook.
func (c *Client) Events(ctx context.Context, q EventQuery) iter.Seq2[json.RawMessage, error] {
	if len(q.Types) > maxEventTypes {
		err := fmt.Errorf("stripeapi: %d types of event: Stripe lists at most %d at a time", len(q.Types), maxEventTypes)
		return func(yield func(json.RawMessage, error) bool) { yield(nil, err) }
	}
	query := url.Values{}
	for _, t := range q.Types {
		query.Add("types[]", t)
	}
	if !q.Since.IsZero() {
		query.Set("created[gte]", strconv.FormatInt(q.Since.Unix(), 10))
	}
	if !q.Until.IsZero() {
		query.Set("created[lt]", strconv.FormatInt(q.Until.Unix(), 10))
	}
	if q.OlderThan != "" {
		query.Set("starting_after", q.OlderThan)
	}
	r := Ref{Account: q.Account, InContext: q.InContext, Livemode: q.Livemode}.request("/v1/events")
	r.query = query
	return c.list(ctx, r, maxEventPages)
}

var keyShape = regexp.MustCompile(`^[sr]k_(live|test)_[A-Za-z0-9_]+$`)

// keysByMode sorts the keys by the mode that their prefix names. A key that is
// not one must not be shown either: it may be one with a typing error.
func keysByMode(keys []string) (map[bool]string, error) {
	byMode := make(map[bool]string)
	var errs []error
	for i, key := range keys {
		if key == "" {
			continue
		}
		match := keyShape.FindStringSubmatch(key)
		if match == nil {
			errs = append(errs, fmt.Errorf("stripeapi: API key %d of %d is not a restricted or secret key (rk_live_…, rk_test_…, sk_live_…, sk_test_…)", i+1, len(keys)))
			continue
		}
		livemode := match[1] == "live"
		if byMode[livemode] != "" {
			errs = append(errs, fmt.Errorf("stripeapi: API key %d of %d is a second one for %s mode: give one for each mode", i+1, len(keys), match[1]))
			continue
		}
		byMode[livemode] = key
	}
	return byMode, errors.Join(errs...)
}

// checkBase returns the address of the API. A live key goes over an unencrypted
// connection only to the machine itself.
func checkBase(base string, liveKey bool) (string, error) {
	if base == "" {
		return stripe.APIURL, nil
	}
	u, err := url.Parse(base)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return "", errors.New("stripeapi: the API's address is not of the form https://HOST[:PORT]")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("stripeapi: the API's address has more than https://HOST[:PORT]")
	case u.Scheme == "http" && liveKey && !isLoopback(u.Hostname()):
		return "", errors.New("stripeapi: the API's address is not encrypted, and there is a live key: use https")
	}
	return base, nil
}

func isLoopback(host string) bool {
	return host == "localhost" || net.ParseIP(host).IsLoopback()
}

var (
	idShape      = regexp.MustCompile(`^[a-z]+_[A-Za-z0-9_]{1,250}$`)
	accountShape = regexp.MustCompile(`^(acct_[A-Za-z0-9]{1,250})?$`)
)

// isID reports whether id has Stripe's shape and this prefix. Ids become part
// of a path.
func isID(id, prefix string) bool {
	return strings.HasPrefix(id, prefix+"_") && idShape.MatchString(id)
}

func orDefault[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}
