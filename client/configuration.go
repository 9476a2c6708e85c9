package client

import (
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ErrConfiguration is wrapped by the error of Consume and Watch if the connection fails
// for a reason that only another configuration changes, such as an unknown certificate
// authority. The wrapped gRPC status has the code UNAVAILABLE.
var ErrConfiguration = errors.New("the connection to the gateway is misconfigured")

// notGRPC is the text of the error for an answer in HTTP/1.1. Proxies give such answers, too, while
// the gateway is unavailable.
const notGRPC = "frame header looked like an HTTP/1.1 header"

// configurationErrors are texts of connection errors, with a hint for each. gRPC keeps only the
// text of a connection error.
var configurationErrors = []struct{ text, hint string }{
	{notGRPC, "the port does not speak gRPC; check the port"},
	{"tls: failed to verify certificate", "check the authorities (CAFile) and the host name of the target"},
	{"tls: first record does not look like a TLS handshake", "the port does not speak TLS; check the port, or connect without TLS"},
	{"remote error: tls: certificate required", "the gateway requires a client certificate (CertFile, KeyFile)"},
	{"remote error: tls: bad certificate", "the gateway refused the client certificate (CertFile)"},
	{"remote error: tls: unknown certificate authority", "the gateway refused the authority of the client certificate (CertFile)"},
	{"remote error: tls: expired certificate", "the client certificate has expired (CertFile)"},
	{"local credentials rejected connection", "the target is not on this machine; connect with TLS"},
}

// configurationHint returns a hint if err is a connection error that only another configuration
// changes. The expired certificate of a gateway is not one: the gateway can renew it.
func configurationHint(err error) string {
	s := status.Convert(err)
	if s.Code() != codes.Unavailable || !strings.HasPrefix(s.Message(), "connection error: ") || strings.Contains(s.Message(), "certificate has expired or is not yet valid") {
		return ""
	}
	for _, e := range configurationErrors {
		if strings.Contains(s.Message(), e.text) {
			return e.hint
		}
	}
	return ""
}

// misconfigured reports whether another try needs another configuration. Once a stream has worked,
// an answer in HTTP/1.1 comes from a proxy.
func (t *tries) misconfigured(err error) bool {
	return configurationHint(err) != "" && !(t.worked && strings.Contains(err.Error(), notGRPC))
}
