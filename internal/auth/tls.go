package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ordergate/ordergate/internal/watchfile"
)

// Keys are the gateway's certificate with its key, and the authorities that
// callers' certificates come from, kept in step with their files.
type Keys struct {
	logger  *slog.Logger
	files   *watchfile.Files
	current atomic.Pointer[keyring]
}

type keyring struct {
	certificate tls.Certificate
	clientCAs   *x509.CertPool // nil when callers are not asked for certificates
}

// LoadKeys reads a certificate and its key, in PEM; and, unless clientCA is
// empty, the authorities of client certificates.
func LoadKeys(cert, key, clientCA string, logger *slog.Logger) (*Keys, error) {
	paths := []string{cert, key}
	if clientCA != "" {
		paths = append(paths, clientCA)
	}
	k := &Keys{logger: logger, files: watchfile.New(paths...)}
	contents, err := k.files.Read()
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	if err := k.use(contents); err != nil {
		return nil, err
	}
	return k, nil
}

// Watch keeps the certificates in step with their files until ctx ends.
func (k *Keys) Watch(ctx context.Context) {
	k.files.Watch(ctx, k.logger.With("what", "TLS files"), k.use)
}

func (k *Keys) use(contents [][]byte) error {
	ring := &keyring{}
	var pairErr, caErr error
	ring.certificate, pairErr = tls.X509KeyPair(contents[0], contents[1])
	if pairErr != nil {
		pairErr = fmt.Errorf("certificate %s and key %s: %w", k.files.Path(0), k.files.Path(1), pairErr)
	}
	if len(contents) > 2 {
		ring.clientCAs = x509.NewCertPool()
		if !ring.clientCAs.AppendCertsFromPEM(contents[2]) {
			caErr = fmt.Errorf("client authorities %s: there is no certificate in it: give a PEM file", k.files.Path(2))
		}
	}
	if err := errors.Join(pairErr, caErr); err != nil {
		return err
	}
	k.current.Store(ring)
	leaf := ring.certificate.Leaf
	k.logger.Info("TLS certificate read", "file", k.files.Path(0), "names", leaf.DNSNames, "until", leaf.NotAfter.Format(time.RFC3339))
	return nil
}

// NotAfter is when the certificate of the moment expires.
func (k *Keys) NotAfter() time.Time { return k.current.Load().certificate.Leaf.NotAfter }

// Config returns a server's TLS settings, which take the certificates of the
// moment for each connection.
func (k *Keys) Config(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			ring := k.current.Load()
			cfg := &tls.Config{
				MinVersion:   tls.VersionTLS12,
				NextProtos:   protocols,
				Certificates: []tls.Certificate{ring.certificate},
				// Each connection proves anew who it is, to the authorities of now.
				SessionTicketsDisabled: true,
			}
			if ring.clientCAs != nil {
				// A caller may have a token instead.
				cfg.ClientAuth, cfg.ClientCAs = tls.VerifyClientCertIfGiven, ring.clientCAs
			}
			return cfg, nil
		},
	}
}
