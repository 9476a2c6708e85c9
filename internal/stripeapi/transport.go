package stripeapi

import (
	"net/http"
	"time"

	"github.com/stripe/stripe-go/v76"
)

// newBackend makes stripe-go's HTTP client without any of its global state.
func newBackend(base string, transport http.RoundTripper) stripe.Backend {
	if transport == nil {
		transport = newTransport()
	}
	return stripe.GetBackendWithConfig(stripe.APIBackend, &stripe.BackendConfig{
		URL:               stripe.String(base),
		MaxNetworkRetries: stripe.Int64(0), // get retries, and heeds Retry-After
		EnableTelemetry:   stripe.Bool(false),
		LeveledLogger:     &stripe.LeveledLogger{Level: stripe.LevelNull}, // errors are returned
		HTTPClient: &http.Client{
			Transport: &boundedTransport{next: transport},
			// Stripe's API redirects nowhere.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	})
}

func newTransport() http.RoundTripper {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 16
	// All requests share one HTTP/2 connection. Without pings, one that died
	// silently would time them all out until the kernel notices.
	transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second}
	return transport
}

// responseHead is what stripe-go does not pass on when an answer is an error
// that is not in Stripe's form.
type responseHead struct {
	status int
	header http.Header
}

// headKey is the context key of the *responseHead that a request's answer is
// noted in. It is the attempt's own, and its goroutine's.
type headKey struct{}

// boundedTransport notes the head of each answer, and bounds the body.
type boundedTransport struct{ next http.RoundTripper }

func (t *boundedTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if head, ok := req.Context().Value(headKey{}).(*responseHead); ok {
		head.status, head.header = resp.StatusCode, resp.Header
	}
	resp.Body = http.MaxBytesReader(nil, resp.Body, maxBody)
	return resp, nil
}

// rawResponse keeps an answer's bytes, and has stripe-go decode nothing.
type rawResponse struct{ stripe.APIResource }

func (*rawResponse) UnmarshalJSON([]byte) error { return nil }
