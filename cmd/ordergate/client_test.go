package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestMoment(t *testing.T) {
	for text, ago := range map[string]time.Duration{"48h": 48 * time.Hour, "90m": 90 * time.Minute, "7d": 7 * 24 * time.Hour, "0s": 0} {
		var m moment
		if err := m.UnmarshalText([]byte(text)); err != nil || time.Since(m.Time)-ago > time.Minute || time.Since(m.Time) < ago {
			t.Errorf("%s: %v, %v", text, m, err)
		}
	}
	var m moment
	if m.proto() != nil {
		t.Error("a time that was not given is set")
	}
	if err := m.UnmarshalText([]byte("2026-01-31T09:00:00+01:00")); err != nil || !m.proto().AsTime().Equal(time.Date(2026, 1, 31, 8, 0, 0, 0, time.UTC)) {
		t.Errorf("%v, %v", m, err)
	}
	for _, text := range []string{"", "yesterday", "-1h", "-2d", "d", "1.5d", "2026-01-31"} {
		if err := new(moment).UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), "write 2026-01-31T08:00:00Z, or how long ago") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestExplain(t *testing.T) {
	known, err := status.New(codes.NotFound, "there is no such order").WithDetails(&errdetails.ErrorInfo{Reason: "ORDER_NOT_FOUND", Domain: "ordergate"})
	if err != nil {
		t.Fatal(err)
	}
	flags := clientFlags{Addr: "here:1"}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{known.Err(), "there is no such order"},
		{fmt.Errorf("reading: %w", known.Err()), "there is no such order"},
		{status.Error(codes.Unavailable, "connection refused"), "the gateway at here:1 cannot be reached: connection refused\nis it running"},
		{status.Error(codes.Unimplemented, "unknown service"), "the gateway at here:1 does not know this call"},
		{status.Error(codes.Canceled, "x"), "stopped"},
		{status.Error(codes.ResourceExhausted, "too large"), "too large"},
		{errors.New("disk full"), "disk full"},
	} {
		if got := flags.explain(tt.err); !strings.HasPrefix(got.Error(), tt.want) || strings.Contains(got.Error(), "rpc error") {
			t.Errorf("%v: %v", tt.err, got)
		}
	}
	if err := flags.explain(nil); err != nil {
		t.Error(err)
	}
}

func TestEachListed(t *testing.T) {
	// Pages may be short, even empty.
	pages := map[string][]int{"": {1, 2}, "a": nil, "b": {3}, "c": {4, 5}}
	following := map[string]string{"": "a", "a": "b", "b": "c"}
	for limit, want := range map[int][]int{0: {1, 2, 3, 4, 5}, 5: {1, 2, 3, 4, 5}, 9: {1, 2, 3, 4, 5}, 3: {1, 2, 3}, 4: {1, 2, 3, 4}} {
		var got []int
		var notes bytes.Buffer
		err := eachListed(limit, &notes, func(n int) error { got = append(got, n); return nil }, func(size int32, token string) ([]int, string, error) {
			page := pages[token]
			if int(size) < len(page) {
				return page[:size], "more", nil
			}
			return page, following[token], nil
		})
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("limit %d: %v %s", limit, err, diff)
		}
		if (notes.Len() > 0) != (limit == 3 || limit == 4) {
			t.Errorf("limit %d: notes %q", limit, &notes)
		}
	}
}
