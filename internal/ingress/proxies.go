package ingress

import (
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
)

// Proxies are believed when they say for whom they speak. What they say is for
// log lines only.
type Proxies struct {
	trusted []netip.Prefix
	header  string
}

var headerShape = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// ParseProxies reads CIDRs of trusted proxies, and the name of the header in
// which they add the address of whom they speak for.
func ParseProxies(cidrs []string, header string) (Proxies, []error) {
	p := Proxies{header: header}
	var problems []error
	for _, cidr := range cidrs {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(cidr))
		switch {
		case err != nil:
			problems = append(problems, fmt.Errorf("--trusted-proxies: %.50q is not a CIDR: write for example 10.0.0.0/8, or 192.0.2.1/32 for one address", cidr))
		case prefix.Addr().Is4In6():
			problems = append(problems, fmt.Errorf("--trusted-proxies: %.50q is IPv4 in IPv6: write it as IPv4, for example 10.0.0.0/8", cidr))
		case prefix != prefix.Masked():
			problems = append(problems, fmt.Errorf("--trusted-proxies: %.50q is an address within %v: write that, or %v for this one", cidr, prefix.Masked(), netip.PrefixFrom(prefix.Addr(), prefix.Addr().BitLen())))
		default:
			p.trusted = append(p.trusted, prefix)
		}
	}
	if len(cidrs) > 0 && !headerShape.MatchString(header) || strings.EqualFold(header, "Forwarded") {
		problems = append(problems, fmt.Errorf("--client-ip-header %.50q: write the name of a header with addresses and commas, such as X-Forwarded-For or X-Real-IP", header))
	}
	return p, problems
}

// client returns who sent a request: its peer, or whom a trusted peer speaks
// for. Anybody can write the header, and each proxy adds to it on the right:
// what stands left of the first address that is not trusted is hearsay.
func (p Proxies) client(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !p.trusts(peer.Addr()) {
		return r.RemoteAddr
	}
	client := r.RemoteAddr
	entries := strings.Split(strings.Join(r.Header.Values(p.header), ","), ",")
	for i := len(entries) - 1; i >= 0; i-- {
		addr, ok := parseClient(strings.TrimSpace(entries[i]))
		if !ok {
			break
		}
		client = addr.String()
		if !p.trusts(addr) {
			break
		}
	}
	return client
}

func (p Proxies) trusts(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	for _, prefix := range p.trusted {
		if prefix.Contains(addr) {
			return true
		}
	}
	return false
}

// parseClient takes an address, and one with a port, as some proxies write it.
func parseClient(text string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(strings.Trim(text, "[]"))
	if err != nil {
		withPort, err := netip.ParseAddrPort(text)
		if err != nil {
			return netip.Addr{}, false
		}
		addr = withPort.Addr()
	}
	return addr.Unmap().WithZone(""), true
}
