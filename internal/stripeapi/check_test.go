package stripeapi_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/stripetest"
)

func TestMissingPermissions(t *testing.T) {
	virtual(t, func(t *testing.T, s stripe) {
		for _, list := range []string{"checkout/sessions", "products", "invoices", "payment_intents", "shipping_rates"} {
			s.Handle("GET /v1/"+list, stripetest.List(objects()))
		}
		for list, permission := range map[string]string{"prices": "rak_plan_read", "events": "rak_event_read"} {
			s.Handle("GET /v1/"+list, stripetest.Error(403, "", "Having the '"+permission+"' permission would allow this"))
		}
		if missing, err := s.MissingPermissions(t.Context(), false); err != nil || fmt.Sprint(missing) != "[Prices Events]" {
			t.Errorf("%v, %v", missing, err)
		}
	})
}

func TestClockSkew(t *testing.T) {
	for _, skew := range []time.Duration{0, time.Hour, -10 * time.Minute} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Date", time.Now().Add(-skew).UTC().Format(http.TimeFormat))
			w.WriteHeader(http.StatusUnauthorized)
		}))
		got, err := stripeapi.ClockSkew(t.Context(), server.URL)
		if err != nil || (got-skew).Abs() > 2*time.Second {
			t.Errorf("%v, %v; want %v", got, err, skew)
		}
		server.Close()
		if _, err := stripeapi.ClockSkew(t.Context(), server.URL); !errors.Is(err, stripeapi.ErrUnavailable) {
			t.Errorf("without an answer: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := stripeapi.ClockSkew(ctx, ""); err == nil {
		t.Error("an answer although nobody asked")
	}
}
