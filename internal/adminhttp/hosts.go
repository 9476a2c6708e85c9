package adminhttp

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/ordergate/ordergate/internal/auth"
)

// hosts are the names by which the admin listener may be addressed.
type hosts struct {
	names  []string // in lower case, without a port
	access *auth.Access
}

// newHosts returns the names of the configured hosts, and of the address that the listener is bound
// to.
func newHosts(bound string, configured []string, access *auth.Access) hosts {
	h := hosts{names: []string{"localhost"}, access: access}
	if host, _, err := net.SplitHostPort(bound); err == nil && host != "" {
		h.names = append(h.names, hostname(host))
	}
	for _, name := range configured {
		h.names = append(h.names, hostname(name))
	}
	return h
}

// guard refuses requests for other hosts with 421. A page in an operator's browser can have its own
// name resolve to this listener (DNS rebinding), and would then read and change orders. A caller
// with a valid credential is no such page.
//
// It also forbids caches to keep, and browsers to reinterpret, what the listener answers.
func (h hosts) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		if !h.allowed(r) && !h.access.Recognizes(shownBy(r)) {
			answer(w, http.StatusMisdirectedRequest, map[string]any{
				"error": "host " + strings.ToValidUTF8(r.Host, "") + " is not a name of this gateway",
				"hint":  "use localhost or an address of this machine, add the name with --admin-hosts, or send a credential",
			})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// allowed reports whether a request is for one of the hosts, a loopback address, or the address at
// which it arrived. An address cannot be rebound.
func (h hosts) allowed(r *http.Request) bool {
	host := hostname(r.Host)
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().IsLoopback() || slices.Contains(h.names, host) || ip.Unmap() == arrivedAt(r)
	}
	return slices.Contains(h.names, host)
}

// arrivedAt returns the local address of a request's connection.
func arrivedAt(r *http.Request) netip.Addr {
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		return local.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// hostname returns a host in lower case, without its port, brackets, and final dot.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
}
