package ingress

import (
	"errors"
	"strings"
	"testing"
)

func TestClientAddress(t *testing.T) {
	proxies, problems := ParseProxies([]string{"10.0.0.0/8", " 2001:db8::/32"}, "X-Forwarded-For")
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for _, tt := range []struct {
		name, peer string
		header     []string
		want       string
	}{
		{"no proxy", "192.0.2.9:1", nil, "192.0.2.9:1"},
		{"a stranger's word", "192.0.2.9:1", []string{"198.51.100.1"}, "192.0.2.9:1"},
		{"a proxy that says nothing", "10.0.0.1:1", nil, "10.0.0.1:1"},
		{"a proxy", "10.0.0.1:1", []string{"198.51.100.1"}, "198.51.100.1"},
		{"an IPv6 proxy", "[2001:db8::1]:1", []string{"2001:db9::7"}, "2001:db9::7"},
		{"IPv4 in IPv6", "[::ffff:10.0.0.1]:1", []string{"::ffff:198.51.100.1"}, "198.51.100.1"},
		{"hearsay", "10.0.0.1:1", []string{"203.0.113.1, 198.51.100.1"}, "198.51.100.1"},
		{"two proxies", "10.0.0.1:1", []string{"203.0.113.1, 198.51.100.1,10.0.0.2"}, "198.51.100.1"},
		{"in several lines", "10.0.0.1:1", []string{"203.0.113.1", "198.51.100.1", "10.0.0.2"}, "198.51.100.1"},
		{"proxies only", "10.0.0.1:1", []string{"10.0.0.3, 10.0.0.2"}, "10.0.0.3"},
		{"with a port", "10.0.0.1:1", []string{"198.51.100.1:443"}, "198.51.100.1"},
		{"IPv6 with a port", "10.0.0.1:1", []string{"[2001:db9::7]:443"}, "2001:db9::7"},
		{"IPv6 in brackets", "10.0.0.1:1", []string{"[2001:db9::7]"}, "2001:db9::7"},
		{"junk", "10.0.0.1:1", []string{"198.51.100.1, unknown"}, "10.0.0.1:1"},
		{"junk on the left", "10.0.0.1:1", []string{"<script>, 10.0.0.2"}, "10.0.0.2"},
		{"a zone", "10.0.0.1:1", []string{"fe80::1%x\nlevel=INFO"}, "fe80::1"},
		{"empty", "10.0.0.1:1", []string{""}, "10.0.0.1:1"},
		{"no peer", "@", []string{"198.51.100.1"}, "@"},
	} {
		r := request(body)
		r.RemoteAddr = tt.peer
		r.Header["X-Forwarded-For"] = tt.header
		if got := proxies.client(r); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestParseProxies(t *testing.T) {
	for _, tt := range []struct{ cidr, header, says string }{
		{"10.0.0.1", "X-Real-IP", "not a CIDR: write for example 10.0.0.0/8"},
		{"", "X-Real-IP", "not a CIDR"},
		{"10.0.0.0/33", "X-Real-IP", "not a CIDR"},
		{"10.1.0.0/8", "X-Real-IP", "write that, or 10.1.0.0/32"},
		{"::ffff:10.0.0.0/104", "X-Real-IP", "IPv4 in IPv6"},
		{"10.0.0.0/8", "", "--client-ip-header"},
		{"10.0.0.0/8", "X Real", "--client-ip-header"},
		{"10.0.0.0/8", "forwarded", "--client-ip-header"},
	} {
		if _, problems := ParseProxies([]string{tt.cidr}, tt.header); len(problems) != 1 || !strings.Contains(errors.Join(problems...).Error(), tt.says) {
			t.Errorf("%q, %q: %v", tt.cidr, tt.header, problems)
		}
	}
}

// The log says who was refused, as far as it can be believed.
func TestRefusalNamesTheClient(t *testing.T) {
	d := newDoor(t, nil)
	d.Handler.(*handler).Proxies, _ = ParseProxies([]string{"10.0.0.0/8"}, "X-Real-IP")
	for peer, want := range map[string]string{"10.0.0.1:1": "remote=198.51.100.1 peer=10.0.0.1:1", "192.0.2.9:1": "remote=192.0.2.9:1\n"} {
		d.log.Reset()
		r := request("x" + body)
		r.Header.Del("Stripe-Signature")
		r.RemoteAddr = peer
		r.Header.Set("X-Real-IP", "198.51.100.1")
		d.send(r)
		if got := d.log.String(); !strings.Contains(got, want) {
			t.Errorf("%s: %s", peer, got)
		}
	}
}
