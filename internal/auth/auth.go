// Package auth decides who may do what: it knows the callers and their roles
// (the access file), the rule of each RPC, and the certificates of the gateway
// and its callers.
//
// What it promises: whoever is not in the access file does nothing but ask for
// the gateway's health; a method without a rule is refused to everybody; no error
// says whether a credential was nearly right; and a caller whose line is changed
// or removed is told within seconds that its streams are over.
package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// Role is what a principal may do. Each may do what the one before it may.
type Role int

// The roles.
const (
	Reader     Role = 1 + iota // sees orders and subscriptions
	Subscriber                 // also consumes its own subscriptions
	Operator                   // does everything
)

var roleNames = map[string]Role{"reader": Reader, "subscriber": Subscriber, "operator": Operator}

func (r Role) String() string {
	for name, role := range roleNames {
		if role == r {
			return name
		}
	}
	return "none"
}

// Principal is someone the access file names. It does not change: when its line
// does, there is another one.
type Principal struct {
	Name string
	Role Role
	// Subscriptions are those that a subscriber may consume.
	Subscriptions []string

	credential string          // the key by which it is found
	valid      context.Context // ends when the access file says something else
	revoke     context.CancelFunc
}

// same reports whether a principal may do exactly what other may, and shows the
// same for it.
func (p *Principal) same(other *Principal) bool {
	return p.Name == other.Name && p.Role == other.Role && p.credential == other.credential && slices.Equal(p.Subscriptions, other.Subscriptions)
}

// Principals that no file names.
var (
	everybody = &Principal{Name: "anyone", Role: Operator, valid: context.Background()}
	own       = &Principal{Name: "the gateway itself", Role: Operator, valid: context.Background()}
)

// UnauthenticatedError says that a caller is not known.
type UnauthenticatedError struct{ text string }

func (e *UnauthenticatedError) Error() string { return e.text }

// Of what was wrong with a credential, these say no more than the caller knows.
var (
	errNothingShown = &UnauthenticatedError{"no credential came: send the metadata (HTTP: the header) 'authorization: Bearer ogt_...', or a client certificate"}
	errNotAccepted  = &UnauthenticatedError{"the credential is not accepted: ask the operator of this gateway for one"}
	errPlaintext    = &UnauthenticatedError{"a token is not taken over plaintext from another machine: it is to be considered as read by others; use TLS"}
	errRevoked      = &UnauthenticatedError{"the access of this caller was changed or ended: open a new stream with what is valid now"}
)

// DeniedError says that a known caller may not do what it asked for.
type DeniedError struct {
	text string
	// Principal is the caller, and Role its role.
	Principal string
	Role      Role
	// Needed is the role that may; none when no role may.
	Needed Role
}

func (e *DeniedError) Error() string { return e.text }

// Shown is what a caller shows of itself.
type Shown struct {
	// Authorization are all values of the metadata or header of that name. When
	// there is one it alone counts.
	Authorization []string
	// Certificate is the caller's own, verified; or nil.
	Certificate *x509.Certificate
	// Private says that nobody on the way could read what was shown.
	Private bool

	own bool
}

// Own is shown by the gateway to itself.
func Own() Shown { return Shown{own: true} }

// VerifiedCertificate returns the certificate by which the other side of a
// connection proved who it is, or nil.
func VerifiedCertificate(state tls.ConnectionState) *x509.Certificate {
	if len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return nil
	}
	return state.VerifiedChains[0][0]
}

// Loopback reports whether a connection with this local address does not leave
// the machine.
func Loopback(local net.Addr) bool {
	tcp, ok := local.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}

// Authenticate returns who shows this.
func (a *Access) Authenticate(shown Shown) (*Principal, error) {
	switch {
	case a == nil:
		return nil, errNotAccepted
	case shown.own:
		return own, nil
	case a.open:
		return everybody, nil
	case len(shown.Authorization) > 0:
		return a.byToken(shown)
	case shown.Certificate != nil:
		return a.byCertificate(shown.Certificate)
	}
	return nil, errNothingShown
}

// Recognizes reports whether a caller shows a valid credential. Where everybody may do everything,
// no credential counts.
func (a *Access) Recognizes(shown Shown) bool {
	if a == nil || a.open {
		return false
	}
	_, err := a.Authenticate(shown)
	return err == nil
}

// byToken finds the principal of a token. Its hash is looked up, so that the
// time this takes tells nothing of the tokens there are.
func (a *Access) byToken(shown Shown) (*Principal, error) {
	if !shown.Private && !a.plaintextTokens {
		return nil, errPlaintext
	}
	if len(shown.Authorization) != 1 {
		return nil, errNotAccepted
	}
	scheme, token, _ := strings.Cut(shown.Authorization[0], " ")
	if !strings.EqualFold(scheme, "Bearer") || !isToken(token) {
		return nil, errNotAccepted
	}
	if p := a.principals()[tokenKey(sha256.Sum256([]byte(token)))]; p != nil {
		return p, nil
	}
	return nil, errNotAccepted
}

// byCertificate finds the principal of the certificate's names: its URIs, then
// its DNS names, the first that the access file has.
func (a *Access) byCertificate(certificate *x509.Certificate) (*Principal, error) {
	// It was valid when the connection was made.
	if time.Now().After(certificate.NotAfter) {
		return nil, errNotAccepted
	}
	principals := a.principals()
	for _, uri := range certificate.URIs {
		if p := principals[uriKey(uri.String())]; p != nil {
			return p, nil
		}
	}
	for _, name := range certificate.DNSNames {
		if p := principals[dnsKey(name)]; p != nil {
			return p, nil
		}
	}
	return nil, errNotAccepted
}

// The keys by which principals are found. A URI and a DNS name are never taken
// for each other.
func tokenKey(hash [sha256.Size]byte) string { return "token " + string(hash[:]) }
func uriKey(uri string) string               { return "uri " + uri }
func dnsKey(name string) string              { return "dns " + strings.ToLower(name) }

const (
	tokenPrefix = "ogt_"
	tokenBytes  = 32
)

// NewToken makes a token of 256 random bits.
func NewToken() string {
	var secret [tokenBytes]byte
	rand.Read(secret[:]) // never fails
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(secret[:])
}

// isToken reports whether a text has the form of a token. Others are never
// accepted: they might be words that can be guessed.
func isToken(text string) bool {
	encoded, ok := strings.CutPrefix(text, tokenPrefix)
	secret, err := base64.RawURLEncoding.DecodeString(encoded)
	return ok && err == nil && len(secret) == tokenBytes
}

// handover keeps what callers of another door showed, while their requests are
// passed on to the gRPC server of the same process. A ticket is worth nothing
// elsewhere, cannot be guessed, and ends with its request.
type handover struct {
	mu    sync.Mutex
	shown map[string]Shown
}

// HandOver returns a ticket for what a caller showed, to be presented over the
// connection within the process. Call done when the request has ended.
func (a *Access) HandOver(shown Shown) (ticket string, done func()) {
	ticket = rand.Text()
	a.handover.mu.Lock()
	defer a.handover.mu.Unlock()
	if a.handover.shown == nil {
		a.handover.shown = map[string]Shown{}
	}
	a.handover.shown[ticket] = shown
	return ticket, func() {
		a.handover.mu.Lock()
		defer a.handover.mu.Unlock()
		delete(a.handover.shown, ticket)
	}
}

// HandedOver returns what the holder of the tickets showed: nothing unless there
// is one ticket, and it is valid. Only pass tickets that came from within the
// process.
func (a *Access) HandedOver(tickets []string) Shown {
	if a == nil || len(tickets) != 1 {
		return Shown{}
	}
	a.handover.mu.Lock()
	defer a.handover.mu.Unlock()
	return a.handover.shown[tickets[0]]
}

// TicketKey is the metadata in which a ticket travels within the process.
const TicketKey = "ordergate-ticket"

// Call is a call that may begin.
type Call struct {
	// Principal is the caller; nil for what everybody may.
	Principal *Principal

	method string
	rule   rule
}

// Admit says whether whoever shows this may call a method of gRPC (with its full
// name, /package.Service/Method).
func (a *Access) Admit(method string, shown Shown) (*Call, error) {
	r, known := rules[method]
	if known && r.open {
		return &Call{method: method, rule: r}, nil
	}
	p, err := a.Authenticate(shown)
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, &DeniedError{"no role may call " + method, p.Name, p.Role, 0}
	}
	if p.Role < r.role {
		return nil, &DeniedError{fmt.Sprintf("%s has the role %s, which may not call %s: the role %s may", p.Name, p.Role, shortName(method), r.role), p.Name, p.Role, r.role}
	}
	return &Call{p, method, r}, nil
}

// Name is the caller's name, for log lines.
func (c *Call) Name() string {
	if c == nil || c.Principal == nil {
		return ""
	}
	return c.Principal.Name
}

// While returns a context that also ends when the caller is not valid any more.
// [context.Cause] is then an [UnauthenticatedError].
func (c *Call) While(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.Principal == nil {
		return context.WithCancel(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(c.Principal.valid, func() { cancel(errRevoked) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

func shortName(method string) string { return method[strings.LastIndexByte(method, '/')+1:] }
