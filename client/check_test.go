package client_test

import (
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

// Consume refuses invalid arguments before it connects. The error names option and value.
func TestConsumeRefusesInvalidOptions(t *testing.T) {
	create := func(s *ordergatev1.Subscription) client.ConsumeOptions { return client.ConsumeOptions{Create: s} }
	manyIDs := &ordergatev1.OrderEventFilter{OrderIds: slices.Repeat([]string{"cs_1"}, 301)}
	for _, tt := range []struct {
		name    string
		options client.ConsumeOptions
		want    string
	}{
		{"shipping", client.ConsumeOptions{Concurrency: -1}, "Concurrency is -1, want 0 to 10000"},
		{"shipping", client.ConsumeOptions{Concurrency: math.MaxInt}, "Concurrency is 9223372036854775807, want 0 to 10000"},
		{"shipping", client.ConsumeOptions{MaxOutstandingEvents: -1}, "MaxOutstandingEvents is -1"},
		{"shipping", client.ConsumeOptions{MaxOutstandingEvents: 10_001}, "MaxOutstandingEvents is 10001"},
		{"shipping", client.ConsumeOptions{MaxOutstandingBytes: -1}, "MaxOutstandingBytes is -1"},
		{"shipping", client.ConsumeOptions{MaxOutstandingBytes: 256<<20 + 1}, "MaxOutstandingBytes is 268435457"},
		{"shipping", client.ConsumeOptions{ClientID: "köln"}, `ClientID "köln" is invalid`},
		{"shipping", client.ConsumeOptions{ClientID: "a\nb"}, `ClientID "a\nb" is invalid`},
		{"shipping", client.ConsumeOptions{ClientID: strings.Repeat("a", 129)}, "up to 128 printable"},
		{"shipping", client.ConsumeOptions{AckDeadline: -time.Second}, "AckDeadline is -1s, want 0 or 1s to 10m0s"},
		{"shipping", client.ConsumeOptions{AckDeadline: time.Millisecond}, "AckDeadline is 1ms"},
		{"shipping", client.ConsumeOptions{AckDeadline: 11 * time.Minute}, "AckDeadline is 11m0s"},
		{"shipping", client.ConsumeOptions{MaxExtension: -1}, "MaxExtension is -1ns, want 0s or more"},
		{"shipping", client.ConsumeOptions{DrainTimeout: -1}, "DrainTimeout is -1ns, want 0s or more"},
		{"shipping", client.ConsumeOptions{Heartbeat: -time.Hour}, "Heartbeat is -1h0m0s"},
		{"shipping", client.ConsumeOptions{Heartbeat: 1}, "Heartbeat is 1ns"},
		{"shipping", client.ConsumeOptions{Heartbeat: time.Hour}, "Heartbeat is 1h0m0s"},
		{"shipping", create(&ordergatev1.Subscription{Name: "other"}), `Create.name is "other", want "shipping" or empty`},
		{"shipping", create(&ordergatev1.Subscription{AckDeadline: durationpb.New(1)}), "Create.ack_deadline is 1ns"},
		{"shipping", create(&ordergatev1.Subscription{AckDeadline: &durationpb.Duration{Seconds: 1, Nanos: -1}}), "Create.ack_deadline is invalid"},
		{"shipping", create(&ordergatev1.Subscription{MaxAttempts: -1}), "Create.max_attempts is -1"},
		{"shipping", create(&ordergatev1.Subscription{MinBackoff: durationpb.New(2 * time.Hour)}), "Create.min_backoff is 2h0m0s"},
		{"shipping", create(&ordergatev1.Subscription{MinBackoff: durationpb.New(2), MaxBackoff: durationpb.New(1)}), "Create.max_backoff is 1ns"},
		{"shipping", create(&ordergatev1.Subscription{Filter: manyIDs}), "Create.filter.order_ids has 301 values"},
		{"shipping", client.ConsumeOptions{Start: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_ResumeToken{ResumeToken: strings.Repeat("x", 4097)}}}, "Start.resume_token has 4097 bytes"},
		{"shipping", client.ConsumeOptions{Start: &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Time{Time: &timestamppb.Timestamp{Nanos: -1}}}}, "Start.time is invalid"},
		{"", client.ConsumeOptions{}, `subscription name "" is invalid`},
		{"Shipping", client.ConsumeOptions{}, `subscription name "Shipping" is invalid`},
		{"shipping-", client.ConsumeOptions{}, `subscription name "shipping-" is invalid`},
		{strings.Repeat("a", 64), client.ConsumeOptions{}, "subscription name"},
		{"Shipping", client.ConsumeOptions{Concurrency: -2}, "Concurrency is -2"}, // all are named
	} {
		synctest.Test(t, func(t *testing.T) {
			d := newDesk(t)
			err := d.client(t).Consume(t.Context(), tt.name, idle, tt.options)
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("want %s, got %v", tt.want, err)
			}
			if d.dials != 0 {
				t.Errorf("%s: %d connections", tt.want, d.dials)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t)
		if err := d.client(t).Consume(t.Context(), "shipping", nil, client.ConsumeOptions{}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "handler is nil") {
			t.Error(err)
		}
		expect(t, "connections", 0, d.dials)
	})
}

// The bounds themselves are valid.
func TestConsumeAcceptsTheBounds(t *testing.T) {
	for _, options := range []client.ConsumeOptions{
		{Concurrency: 1, MaxOutstandingEvents: 1, MaxOutstandingBytes: 1, AckDeadline: time.Second, Heartbeat: time.Second, MaxExtension: 1, DrainTimeout: 1},
		{Concurrency: 10_000, MaxOutstandingEvents: 10_000, MaxOutstandingBytes: 256 << 20, AckDeadline: 10 * time.Minute, Heartbeat: 10 * time.Minute, MaxExtension: math.MaxInt64, DrainTimeout: math.MaxInt64},
		{ClientID: strings.Repeat("~", 128), Start: &ordergatev1.SubscriptionPosition{}, Create: &ordergatev1.Subscription{Name: "shipping"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			d := newDesk(t)
			w := consume(t, d.client(t), idle, options)
			pass(time.Millisecond)
			w.stop()
			expect(t, "streams", 1, d.calls())
		})
	}
}

// Watch refuses invalid options before it connects.
func TestWatchRefusesInvalidOptions(t *testing.T) {
	for _, tt := range []struct {
		options client.WatchOptions
		want    string
	}{
		{client.WatchOptions{Heartbeat: -time.Hour}, "WatchOptions.Heartbeat is -1h0m0s"},
		{client.WatchOptions{Heartbeat: 1}, "WatchOptions.Heartbeat is 1ns"},
		{client.WatchOptions{Heartbeat: 1 << 62}, "WatchOptions.Heartbeat is "},
		{client.WatchOptions{ResumeToken: strings.Repeat("x", 4097)}, "WatchOptions.ResumeToken has 4097 bytes"},
		{client.WatchOptions{Since: time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)}, "WatchOptions.Since is invalid"},
		{client.WatchOptions{Filter: &ordergatev1.OrderEventFilter{Accounts: make([]string, 301)}}, "WatchOptions.Filter.accounts has 301 values"},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t)
			errs := 0
			for m, err := range g.client(t).Watch(t.Context(), tt.options) {
				if errs++; m != nil || status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("want %s, got %v", tt.want, err)
				}
			}
			expect(t, "errors", 1, errs)
			expect(t, "connections", 0, g.dials)
		})
	}
}
