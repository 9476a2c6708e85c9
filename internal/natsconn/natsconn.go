// Package natsconn connects to an existing NATS cluster, as the settings say.
package natsconn

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// connectTimeout bounds the attempt to connect to one server, and writeTimeout how long
// one may not take what is sent to it.
const (
	connectTimeout = 3 * time.Second
	writeTimeout   = 10 * time.Second
)

// Pings find a server that is cut off: after pingInterval times maxPings.
const (
	pingInterval = time.Second
	maxPings     = 3
)

// ErrConfig means that the servers were reached and do not let this client in: waiting
// does not help.
var ErrConfig = errors.New("NATS refuses the connection")

// Config says where the cluster is, and what is shown to it. A URL may hold a user
// and a password, or a token.
type Config struct {
	// URLs are the addresses of its servers: nats://host:4222, or tls:// with TLS.
	URLs []string
	// Creds is a file with a user's JWT and NKey seed (nsc makes it); NKey is a file
	// with a seed alone. At most one of them.
	Creds, NKey string
	// CA is a file with the authorities of the servers' certificates, in PEM; the
	// system's when empty. Cert and Key are files with a client certificate.
	CA, Cert, Key string
}

// Check returns all that is wrong, each problem with its mend, or nil.
func (c Config) Check() error {
	var problems []error
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	for _, text := range c.URLs {
		u, err := url.Parse(text)
		switch {
		case err != nil:
			wrong("--nats-url: one of its addresses is no URL: write nats://HOST:4222, or tls://HOST:4222 with TLS; several with commas") // it may hold a password
		case u.Scheme != "nats" && u.Scheme != "tls" || u.Hostname() == "":
			wrong("--nats-url %s: write nats://HOST:4222, or tls://HOST:4222 with TLS; several with commas", u.Redacted())
		}
	}
	if c.Creds != "" && c.NKey != "" {
		wrong("--nats-creds and --nats-nkey: give one of them, whichever the cluster's operator made")
	}
	if (c.Cert == "") != (c.Key == "") {
		wrong("--nats-cert %q and --nats-key %q: give both, or none", c.Cert, c.Key)
	}
	for _, file := range []struct{ flag, name string }{{"--nats-creds", c.Creds}, {"--nats-nkey", c.NKey}, {"--nats-ca", c.CA}, {"--nats-cert", c.Cert}, {"--nats-key", c.Key}} {
		if file.name == "" {
			continue
		}
		if _, err := os.Stat(file.name); err != nil {
			wrong("%s: %w", file.flag, err)
		}
	}
	return errors.Join(problems...)
}

// Redacted are the addresses without what they hold of secrets.
func (c Config) Redacted() string {
	var all []string
	for _, text := range c.URLs {
		if u, err := url.Parse(text); err == nil {
			all = append(all, u.Redacted())
		}
	}
	return strings.Join(all, ",")
}

// Connect connects to one of the servers. A connection that is lost is closed: it
// does not come back by itself. ended is called then, with the reason; it may be nil.
func Connect(ctx context.Context, c Config, name string, ended func(error)) (*nats.Conn, error) {
	options := []nats.Option{
		nats.Name(name),
		nats.NoReconnect(),
		nats.Timeout(connectTimeout),
		nats.PingInterval(pingInterval),
		nats.MaxPingsOutstanding(maxPings),
		nats.IgnoreDiscoveredServers(),
		nats.FlusherTimeout(writeTimeout),
	}
	if c.Creds != "" {
		options = append(options, nats.UserCredentials(c.Creds))
	}
	if c.NKey != "" {
		option, err := nats.NkeyOptionFromSeed(c.NKey)
		if err != nil {
			return nil, fmt.Errorf("%w: --nats-nkey %s: %w", ErrConfig, c.NKey, err)
		}
		options = append(options, option)
	}
	if c.CA != "" {
		options = append(options, nats.RootCAs(c.CA))
	}
	if c.Cert != "" {
		options = append(options, nats.ClientCert(c.Cert, c.Key))
	}
	var lost error
	options = append(options,
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { lost = err }),
		nats.ClosedHandler(func(conn *nats.Conn) {
			if ended != nil {
				ended(errors.Join(lost, conn.LastError()))
			}
		}))
	conn, err := nats.Connect(strings.Join(c.URLs, ","), options...)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS at %s: %w", c.Redacted(), withMend(err))
	}
	if ctx.Err() != nil {
		conn.Close()
		return nil, ctx.Err()
	}
	return conn, nil
}

// withMend adds what to do about an error of connecting, if that is known.
func withMend(err error) error {
	var untrusted *tls.CertificateVerificationError
	switch {
	case errors.As(err, &untrusted):
		return fmt.Errorf("%w: %w: name the authority of its certificate with --nats-ca", ErrConfig, err)
	case strings.Contains(err.Error(), "remote error: tls: "): // the library has no type for it
		return fmt.Errorf("%w: %w: it wants a client certificate that it knows: see --nats-cert and --nats-key", ErrConfig, err)
	case strings.Contains(err.Error(), "TLS handshake"): // closed behind it, for the same reason, or because it ends
		return fmt.Errorf("%w: does it want a client certificate? See --nats-cert and --nats-key", err)
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return fmt.Errorf("%w: %w: it does not know these credentials: see --nats-creds and --nats-nkey", ErrConfig, err)
	case errors.Is(err, nats.ErrSecureConnRequired), errors.Is(err, nats.ErrSecureConnWanted):
		return fmt.Errorf("%w: %w: one side wants TLS and the other does not: write tls:// or nats:// in --nats-url", ErrConfig, err)
	case errors.Is(err, nats.ErrNoServers):
		return fmt.Errorf("%w: is it running, and can it be reached from here? Its client port is 4222 unless it says otherwise", err)
	}
	return err
}
