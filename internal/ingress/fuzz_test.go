package ingress

import (
	"net/http/httptest"
	"net/netip"
	"testing"
)

// FuzzClientAddress looks for a header that brings something else than an address
// into log lines, and for one that is believed of a stranger.
func FuzzClientAddress(f *testing.F) {
	for _, seed := range []string{"198.51.100.7", "198.51.100.7, 10.0.0.2", "[2001:db8::1]:443", "::ffff:198.51.100.7", "fe80::1%eth0", "a\nb, 10.0.0.3", ",,"} {
		f.Add(seed)
	}
	proxies, problems := ParseProxies([]string{"10.0.0.0/8"}, "X-Forwarded-For")
	if len(problems) > 0 {
		f.Fatal(problems)
	}
	f.Fuzz(func(t *testing.T, header string) {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set("X-Forwarded-For", header)
		r.RemoteAddr = "203.0.113.9:1234"
		if got := proxies.client(r); got != r.RemoteAddr {
			t.Errorf("a stranger is believed: %q", got)
		}
		r.RemoteAddr = "10.0.0.1:1234"
		if got := proxies.client(r); got != r.RemoteAddr {
			if _, err := netip.ParseAddr(got); err != nil {
				t.Errorf("%q is no address", got)
			}
		}
	})
}
