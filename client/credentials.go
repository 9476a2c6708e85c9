package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/local"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"
)

// WithToken sends a token of the gateway with every call, over TLS. Without TLS
// it is sent only where the connection cannot leave the machine, which
// [local.NewCredentials] see to. Over any other connection, one with
// [insecure.NewCredentials] included, calls fail with UNAUTHENTICATED, and the
// token is not sent.
func WithToken(token string) grpc.DialOption {
	return grpc.WithPerRPCCredentials(bearer{source: fixedToken(token)})
}

// WithTokenSource is [WithToken] for tokens that change. If the gateway refuses a
// token of the source, Consume and Watch try again; they end if it refuses the same
// token twice in a row.
func WithTokenSource(source TokenSource) grpc.DialOption {
	return renewable(bearer{source: source})
}

// renewable returns the option for tokens of a source that can renew them.
func renewable(b bearer) grpc.DialOption {
	b.sent = new(atomic.Pointer[string])
	return tokenOption{grpc.WithPerRPCCredentials(b), b.sent}
}

// tokenOption is a dial option that lets New find the token that was sent last.
type tokenOption struct {
	grpc.DialOption
	sent *atomic.Pointer[string]
}

// bearer is a token that is sent with calls.
type bearer struct {
	source    TokenSource
	plaintext bool                    // it may be read on the way
	sent      *atomic.Pointer[string] // the token sent last; nil if the source is a fixed token
}

func (b bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	// The connection's own word counts, not what its address looks like.
	info, _ := credentials.RequestInfoFromContext(ctx)
	private := info.AuthInfo != nil && (info.AuthInfo.AuthType() == "local" || tlsInfo(info.AuthInfo))
	if !private && !b.plaintext {
		return nil, status.Error(codes.Unauthenticated, "the token was not sent, for it could be read on the way: connect with TLS, or on one machine with google.golang.org/grpc/credentials/local")
	}
	token, err := b.source(ctx)
	if err == nil {
		err = checkHeaderToken(token)
	}
	switch {
	case b.sent == nil && err != nil:
		return nil, status.Errorf(codes.Unauthenticated, "invalid token: %v", err)
	case err != nil:
		return nil, status.Errorf(codes.Unavailable, "get a token from the token source: %v", err)
	case b.sent != nil:
		b.sent.Store(&token)
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// tlsInfo reports whether a connection has privacy. Unlike
// credentials.CheckSecurityLevel, it does not take connections that say nothing
// of it.
func tlsInfo(info credentials.AuthInfo) bool {
	common, ok := info.(interface {
		GetCommonAuthInfo() credentials.CommonAuthInfo
	})
	return ok && common.GetCommonAuthInfo().SecurityLevel == credentials.PrivacyAndIntegrity
}

// RequireTransportSecurity is false, for GetRequestMetadata decides: grpc would
// not take loopback for enough.
func (bearer) RequireTransportSecurity() bool { return false }

// Credentials are how a program connects to a gateway, and what it shows there.
// With none of the fields set, connections are not encrypted.
type Credentials struct {
	// Token is sent with every call.
	Token string
	// TokenSource, if set, returns the token of each call instead of Token, so that
	// tokens can be renewed without a restart. [TokenFile] is one.
	TokenSource TokenSource
	// TLS encrypts connections. The files below imply it.
	TLS bool
	// CAFile has the authorities, in PEM, one of which the gateway's certificate
	// must come from; those of the system when empty.
	CAFile string
	// CertFile and KeyFile are a client certificate and its key, in PEM.
	CertFile, KeyFile string
	// PlaintextToken sends the token also where it can be read on the way.
	PlaintextToken bool
}

// DialOptions returns options for [New], or for [grpc.NewClient]. It is an error
// if the token would be readable on the way to target.
//
// Without TLS, the token is sent to this machine only: to a unix socket, to a
// loopback address, or to a host name all of whose addresses are loopback. Targets
// have the forms of gRPC, such as localhost:50051, dns:///localhost:50051,
// passthrough:///127.0.0.1:50051 and unix:///run/ordergate.sock. Names other than
// localhost are looked up. Every connection is checked again when it is made.
func (c Credentials) DialOptions(target string) ([]grpc.DialOption, error) {
	if c.Token != "" && c.TokenSource != nil {
		return nil, errors.New("Credentials.Token and Credentials.TokenSource are both set: set one of them")
	}
	var options []grpc.DialOption
	encrypted := c.TLS || c.CAFile != "" || c.CertFile != "" || c.KeyFile != ""
	hasToken := c.Token != "" || c.TokenSource != nil
	switch {
	case encrypted:
		cfg, err := c.tlsConfig()
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	case !hasToken || c.PlaintextToken:
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	default:
		if err := checkLocal(target); err != nil {
			return nil, fmt.Errorf("the token would go to %s in plaintext, where others can read it: connect with TLS: %w", target, err)
		}
		options = append(options, grpc.WithTransportCredentials(local.NewCredentials()))
	}
	switch {
	case c.TokenSource != nil:
		options = append(options, renewable(bearer{source: c.TokenSource, plaintext: c.PlaintextToken}))
	case c.Token != "":
		options = append(options, grpc.WithPerRPCCredentials(bearer{source: fixedToken(c.Token), plaintext: c.PlaintextToken}))
	}
	return options, nil
}

func (c Credentials) tlsConfig() (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		content, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(content) {
			return nil, fmt.Errorf("%s: there is no certificate in it: give a PEM file", c.CAFile)
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		return nil, errors.New("a client certificate and its key belong together: give both, or none")
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("client certificate %s and key %s: %w", c.CertFile, c.KeyFile, err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// lookupTimeout bounds the look-up of a host name by DialOptions.
const lookupTimeout = 5 * time.Second

// checkLocal returns an error unless all addresses of a gRPC target are on this machine.
func checkLocal(target string) error {
	scheme, authority, endpoint := parseTarget(target)
	switch scheme {
	case "unix", "unix-abstract":
		return nil
	case "dns", "passthrough":
	default:
		return fmt.Errorf("targets of the scheme %q can be anywhere", scheme)
	}
	host, _, err := net.SplitHostPort(endpoint)
	if err != nil {
		host = strings.Trim(endpoint, "[]") // without a port
	}
	addresses := []string{host}
	switch {
	case host == "localhost" || net.ParseIP(host) != nil:
	case host == "" || authority != "":
		return fmt.Errorf("the address of %q is unknown", endpoint)
	default:
		ctx, cancel := context.WithTimeout(context.Background(), lookupTimeout)
		defer cancel()
		if addresses, err = net.DefaultResolver.LookupHost(ctx, host); err != nil {
			return err
		}
	}
	for _, address := range addresses {
		if ip := net.ParseIP(address); address != "localhost" && !ip.IsLoopback() {
			return fmt.Errorf("%s is not a loopback address", address)
		}
	}
	return nil
}

// parseTarget splits a target as gRPC does: one without a known scheme is a name for DNS.
func parseTarget(target string) (scheme, authority, endpoint string) {
	if u, err := url.Parse(target); err == nil && resolver.Get(u.Scheme) != nil {
		return u.Scheme, u.Host, strings.TrimPrefix(cmp.Or(u.Path, u.Opaque), "/")
	}
	return "dns", "", target
}
