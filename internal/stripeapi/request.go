package stripeapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/stripe/stripe-go/v76"
)

const (
	// maxAttempts is how often a request is sent before it is given up. With the
	// delays between them that takes about 10 s when Stripe fails at once.
	maxAttempts = 5
	// maxBody bounds a response, in bytes after decompression.
	maxBody = 16 << 20
	// maxPause bounds how long one answer of Stripe's can keep everything back.
	maxPause = time.Minute
	// maxMessage bounds what an error repeats of Stripe's message, in bytes.
	maxMessage = 500
)

// errTooLarge is a response of more than maxBody bytes. The same request gets
// the same answer.
var errTooLarge = fmt.Errorf("the response is larger than %d MiB", maxBody>>20)

// request is a GET.
type request struct {
	path    string
	query   url.Values
	account string // empty for the platform's own
	// inContext means that the account is sent as Stripe-Context.
	inContext bool
	livemode  bool
}

// get returns the body of a successful answer, which is JSON.
func (c *Client) get(ctx context.Context, r request) ([]byte, error) {
	key := c.keys[r.livemode]
	if key == "" {
		return nil, fmt.Errorf("stripeapi: GET %s: %w (%s)", r.path, ErrNoKey, modeName(r.livemode))
	}
	if !accountShape.MatchString(r.account) {
		return nil, fmt.Errorf("stripeapi: GET %s: %.40q is not the id of an account", r.path, r.account)
	}
	ctx, cancel := context.WithTimeout(ctx, c.requestTimeout)
	defer cancel()
	delays := newDelays()
	var last *callError
	for attempt := 1; ; attempt++ {
		if err := c.budget.wait(ctx); err != nil {
			return nil, gaveUp(r, last, err)
		}
		began := time.Now()
		body, failure := c.attempt(ctx, key, r)
		c.measures.attempted(failure, ctx.Err() != nil, time.Since(began))
		if failure == nil {
			return body, nil
		}
		if failure.kind != ErrUnavailable {
			c.report(r.livemode, failure)
			return nil, failure
		}
		last = failure
		delay := delays.NextBackOff()
		pause := failure.status == http.StatusTooManyRequests || failure.retryAfter > 0
		if pause {
			// From here on, the budget keeps this request back with all others.
			c.budget.pause(max(delay, failure.retryAfter), failure.status)
		}
		if attempt == maxAttempts {
			return nil, gaveUp(r, last, fmt.Errorf("after %d attempts", attempt))
		}
		if !pause {
			if err := sleepUntil(ctx, time.Now().Add(delay)); err != nil {
				return nil, gaveUp(r, last, err)
			}
		}
	}
}

// newDelays gives the delays between attempts: 0.5 s, doubled each time, each
// half as much more or less at random, so that callers do not come back together.
func newDelays() *backoff.ExponentialBackOff {
	delays := backoff.NewExponentialBackOff()
	delays.Multiplier = 2
	delays.MaxInterval = 10 * time.Second
	return delays
}

// attempt sends a request once.
func (c *Client) attempt(ctx context.Context, key string, r request) ([]byte, *callError) {
	ctx, cancel := context.WithTimeout(ctx, c.attemptTimeout)
	defer cancel()
	var head responseHead
	params := &stripe.Params{
		Context: context.WithValue(ctx, headKey{}, &head),
		// stripe-go would send the output of `uname -a` here, which names the
		// machine.
		Headers: http.Header{"X-Stripe-Client-User-Agent": {
			`{"bindings_version":"` + stripe.ClientVersion + `","lang":"go","publisher":"stripe"}`,
		}},
	}
	switch {
	case r.account == "":
	case r.inContext:
		params.Headers.Set("Stripe-Context", r.account)
	default:
		params.SetStripeAccount(r.account)
	}
	path := r.path
	if len(r.query) > 0 {
		path += "?" + r.query.Encode()
	}
	var response rawResponse
	err := c.backend.CallRaw(http.MethodGet, path, key, nil, params, &response)
	if err == nil && head.status == http.StatusOK {
		return response.LastResponse.RawJSON, nil
	}
	return nil, classify(r, head, err)
}

// classify says what kind of failure an attempt is.
func classify(r request, head responseHead, err error) *callError {
	e := &callError{path: r.path, status: head.status, requestID: head.header.Get("Request-Id")}
	var answer *stripe.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge) && head.status < 300:
		e.kind, e.message = errTooLarge, "nothing of it is used"
		return e
	case errors.As(err, &answer):
		e.message = cleaned(answer.Msg)
		e.permission = permissionShape.FindString(answer.Msg)
	case head.status == 0:
		e.message = networkError(err)
	default:
		// Half an answer, or a proxy's. stripe-go's error would quote it.
		e.message = "the answer is not whole or not Stripe's (is STRIPE_API_BASE right? is there a proxy?)"
	}
	e.kind = kindOf(head.status, answer, e.permission)
	if e.kind == ErrUnavailable {
		e.retryAfter = retryAfter(head.header)
	}
	return e
}

// kindOf returns the sentinel for an answer, or nil for one that has none: a
// request that Stripe will never accept. From an answer that is not Stripe's,
// nothing follows.
func kindOf(status int, answer *stripe.Error, permission string) error {
	switch {
	case answer == nil,
		status == http.StatusConflict, // a lock
		status == http.StatusTooManyRequests,
		status >= 500:
		return ErrUnavailable
	case status == http.StatusForbidden, permission != "":
		return ErrPermission
	case status == http.StatusUnauthorized:
		return ErrUnauthorized
	case answer.Code == stripe.ErrorCodeResourceMissing:
		// Any other 404 is a path that this server does not know, and says
		// nothing about the object.
		return ErrNotFound
	}
	return nil
}

// retryAfter reads how long Stripe wants to be left alone, which it says in
// seconds: at most maxPause, and 0 when it does not say.
func retryAfter(header http.Header) time.Duration {
	seconds, err := strconv.Atoi(header.Get("Retry-After"))
	if err != nil || seconds <= 0 {
		return 0
	}
	return time.Duration(min(seconds, int(maxPause/time.Second))) * time.Second
}

// callError is a failed request.
type callError struct {
	path       string
	kind       error // a sentinel, errTooLarge, or nil
	status     int   // of the answer; 0 when there was none
	requestID  string
	message    string
	permission string // `rak_…`, when Stripe names the one that is missing
	retryAfter time.Duration
}

func (e *callError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "stripeapi: GET %s: ", e.path)
	if e.kind != nil {
		fmt.Fprintf(&b, "%v: ", e.kind)
	}
	if e.status != 0 {
		fmt.Fprintf(&b, "status %d: ", e.status)
	}
	b.WriteString(e.message)
	if e.requestID != "" {
		fmt.Fprintf(&b, " (request %s)", e.requestID)
	}
	return b.String()
}

func (e *callError) Unwrap() error { return e.kind }

// gaveUp is the error of a request that is not tried again because of why. last
// is its last failure, if it was ever sent.
func gaveUp(r request, last *callError, why error) error {
	if last == nil {
		return fmt.Errorf("stripeapi: GET %s: %w: %w", r.path, ErrUnavailable, why)
	}
	return fmt.Errorf("%w; given up: %w", last, why)
}

var (
	permissionShape = regexp.MustCompile(`\brak_[a-z0-9_]{1,80}`)
	// Stripe repeats keys in its messages, with most characters starred out.
	anyKeyShape = regexp.MustCompile(`([srp]k_(?:live|test))_[A-Za-z0-9*_.…]+`)
)

// cleaned makes a text from outside fit for an error: without keys, on one line,
// of bounded length and in UTF-8.
func cleaned(text string) string {
	text = anyKeyShape.ReplaceAllString(text, "${1}_[…]")
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > maxMessage {
		text = text[:maxMessage] + "…"
	}
	return strings.ToValidUTF8(text, "")
}

// networkError is the text of an error of the HTTP client, without the address,
// which the caller names.
func networkError(err error) string {
	var inner *url.Error
	if errors.As(err, &inner) {
		err = inner.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	return cleaned(fmt.Sprint(err))
}

func modeName(livemode bool) string {
	if livemode {
		return "live mode"
	}
	return "test mode"
}
