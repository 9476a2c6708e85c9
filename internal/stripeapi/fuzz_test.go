package stripeapi

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stripe/stripe-go/v76"
)

// FuzzClassify looks for an answer whose error is not fit for a log line, tells a
// key, or makes the client wait for too long.
func FuzzClassify(f *testing.F) {
	f.Add(429, "7", []byte(`{"code":"lock_timeout","message":"later"}`))
	f.Add(401, "", []byte(`{"message":"Invalid API Key provided: sk_test_****1234"}`))
	f.Add(403, "-1", []byte(`{"message":"The provided key 'rk_live_x' does not have the required permissions. Having the 'rak_product_read' permission"}`))
	f.Add(0, "99999999999999999999", []byte("\xff"))
	f.Fuzz(func(t *testing.T, statusCode int, wait string, body []byte) {
		var answer error
		var parsed stripe.Error
		if json.Unmarshal(body, &parsed) == nil {
			parsed.HTTPStatusCode = statusCode
			answer = &parsed
		}
		e := classify(request{path: "/v1/x"}, responseHead{status: statusCode, header: http.Header{"Retry-After": {wait}}}, answer)
		text := e.Error()
		if !utf8.ValidString(text) || strings.ContainsAny(text, "\r\n") || len(text) > maxMessage+1000 || anyKeyShape.MatchString(text) {
			t.Errorf("%q", text)
		}
		if e.retryAfter < 0 || e.retryAfter > maxPause {
			t.Errorf("wait for %v", e.retryAfter)
		}
	})
}

// FuzzCheckObject looks for an answer that is taken for an object and is none.
func FuzzCheckObject(f *testing.F) {
	f.Add([]byte(`{"id":"cs_1","object":"checkout.session"}`))
	f.Add([]byte(`{"ID":"cs_1","OBJECT":"checkout.session","object":null}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		raw, err := checkObject(body, "/v1/x", "checkout.session")
		if err == nil && !json.Valid(raw) || err != nil && raw != nil {
			t.Errorf("%q: %v", body, err)
		}
	})
}
