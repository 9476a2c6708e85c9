package main

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

func TestFormatAmount(t *testing.T) {
	for _, tt := range []struct {
		minor    int64
		currency string
		want     string
	}{
		{1299, "eur", "12.99 EUR"}, {5, "usd", "0.05 USD"}, {0, "usd", "0.00 USD"}, {-250, "usd", "-2.50 USD"},
		{1299, "jpy", "1299 JPY"}, {1299, "kwd", "1.299 KWD"}, {7, "kwd", "0.007 KWD"}, {100, "isk", "1.00 ISK"},
		{-9223372036854775808, "usd", "-92233720368547758.08 USD"},
	} {
		if got := formatAmount(tt.minor, tt.currency); got != tt.want {
			t.Errorf("formatAmount(%d, %s) = %q, want %q", tt.minor, tt.currency, got, tt.want)
		}
	}
}

func TestOrderLine(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 30, 45, 0, time.Local)
	event := &ordergatev1.OrderEvent{
		Kind: ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID, CreateTime: timestamppb.New(at),
		Order: &ordergatev1.Order{
			Id: "cs_1", Revision: 2, Livemode: new(true), Currency: "jpy", Amounts: &ordergatev1.Amounts{Total: new(int64(500))},
			Directive:    ordergatev1.Directive_DIRECTIVE_HOLD,
			HoldReasons:  []ordergatev1.HoldReason{ordergatev1.HoldReason_HOLD_REASON_ADDRESS_UNREADABLE},
			AddressState: ordergatev1.AddressState_ADDRESS_STATE_UNREADABLE,
		},
	}
	if got, want := orderLine(event), "12:30:45  HOLD (ADDRESS_UNREADABLE)  PAID      cs_1 r2  500 JPY  no address: UNREADABLE"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	event.Order.Livemode = new(false)
	event.Order.Amounts = nil
	event.Order.Shipping = &ordergatev1.Shipping{Address: &ordergatev1.Address{City: "Oslo", Country: "NO"}}
	if got, want := orderLine(event), "12:30:45  HOLD (ADDRESS_UNREADABLE)  PAID      cs_1 r2  to Oslo, NO  TEST"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
