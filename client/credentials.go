package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/local"
	"google.golang.org/grpc/status"
)

// WithToken sends a token of the gateway with every call, over TLS. Without TLS
// it is sent only where the connection cannot leave the machine, which
// [local.NewCredentials] see to. Over any other connection, one with
// [insecure.NewCredentials] included, calls fail with UNAUTHENTICATED, and the
// token is not sent.
func WithToken(token string) grpc.DialOption {
	return grpc.WithPerRPCCredentials(bearer{token: token})
}

// bearer is a token that is sent with calls.
type bearer struct {
	token     string
	plaintext bool // it may be read on the way
}

func (b bearer) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	// The connection's own word counts, not what its address looks like.
	info, _ := credentials.RequestInfoFromContext(ctx)
	private := info.AuthInfo != nil && (info.AuthInfo.AuthType() == "local" || tlsInfo(info.AuthInfo))
	if !private && !b.plaintext {
		return nil, status.Error(codes.Unauthenticated, "the token was not sent, for it could be read on the way: connect with TLS, or on one machine with google.golang.org/grpc/credentials/local")
	}
	return map[string]string{"authorization": "Bearer " + b.token}, nil
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
// when the token would be readable on the way to target.
func (c Credentials) DialOptions(target string) ([]grpc.DialOption, error) {
	var options []grpc.DialOption
	encrypted := c.TLS || c.CAFile != "" || c.CertFile != "" || c.KeyFile != ""
	switch {
	case encrypted:
		cfg, err := c.tlsConfig()
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithTransportCredentials(credentials.NewTLS(cfg)))
	case c.Token == "" || c.PlaintextToken:
		options = append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))
	case !onLoopback(target):
		return nil, fmt.Errorf("the token would go to %s in plaintext, where others can read it: connect with TLS", target)
	default:
		options = append(options, grpc.WithTransportCredentials(local.NewCredentials()))
	}
	if c.Token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer{c.Token, c.PlaintextToken}))
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

// onLoopback reports whether HOST:PORT is on this machine.
func onLoopback(target string) bool {
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
