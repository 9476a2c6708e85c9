package stripetest_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stripe/stripe-go/v76/webhook"

	"github.com/ordergate/ordergate/internal/stripetest"
)

func TestCLIForwardsEvents(t *testing.T) {
	server := stripetest.NewServer(t)
	received := make(chan []byte, 1)
	shop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("reading the body: %v", err)
		}
		if err := webhook.ValidatePayload(body, r.Header.Get("Stripe-Signature"), server.WebhookSecret); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		received <- body
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprintf(w, "%d bytes", len(body))
	}))
	t.Cleanup(shop.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cli := server.Listen(t, shop.URL+"/api/webhook", "checkout.session.completed", "invoice.paid")

	// A signature covers bytes: white space, the order of the keys and the way a
	// character is escaped must all arrive as they were sent.
	tests := []struct {
		name    string
		payload string
	}{
		{"compact", `{"id":"evt_1","object":"event","type":"invoice.paid","data":{"object":{}}}`},
		{"as Stripe prints it", "{\n  \"id\": \"evt_2\",\n  \"type\": \"checkout.session.completed\",\n  \"note\": \"<Zoë & Ж \\u2028 \u2028 \U0001F4E6>\",\n  \"api_version\": null\n}\n"},
		{"large", `{"id":"evt_3","type":"invoice.paid","filler":"` + strings.Repeat("x", 1<<20) + `"}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := cli.Send(ctx, []byte(test.payload))
			if err != nil {
				t.Fatal(err)
			}
			want := stripetest.Response{Status: http.StatusAccepted, Body: fmt.Sprintf("%d bytes", len(test.payload))}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("the CLI's response (-want +got):\n%s", diff)
			}
			if body := <-received; !bytes.Equal(body, []byte(test.payload)) {
				t.Errorf("the endpoint got other bytes than were sent:\n%.1000q", body)
			}
		})
	}
}

func TestNodeSign(t *testing.T) {
	payload := []byte("{\n  \"id\": \"evt_1\",\n  \"note\": \"Zoë \U0001F4E6\"\n}\n")
	header := stripetest.NodeSign(t, payload, "whsec_one")
	if err := webhook.ValidatePayload(payload, header, "whsec_one"); err != nil {
		t.Errorf("header %q: %v", header, err)
	}
	if err := webhook.ValidatePayload(payload, header, "whsec_other"); err == nil {
		t.Errorf("header %q verifies with another secret too", header)
	}
}
