package client

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The expired certificate of a gateway and errors of calls are not the client's configuration.
func TestConfigurationHint(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: certificate signed by unknown authority"`), true},
		{status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time 2026"`), false},
		{status.Error(codes.Unavailable, `connection error: desc = "error reading server preface: remote error: tls: certificate required"`), true},
		{status.Error(codes.Unavailable, "tls: failed to verify certificate"), false},
		{status.Error(codes.Internal, `connection error: desc = "tls: failed to verify certificate"`), false},
		{status.Error(codes.Unavailable, `connection error: desc = "transport: Error while dialing: connection refused"`), false},
		{nil, false},
	} {
		if got := configurationHint(tt.err); (got != "") != tt.want {
			t.Errorf("%v: hint %q", tt.err, got)
		}
	}
}

// An answer in HTTP/1.1 ends the tries only if no stream has worked.
func TestMisconfigured(t *testing.T) {
	proxy := status.Error(codes.Unavailable, `connection error: desc = "error reading server preface: http2: failed reading the frame payload: http2: frame too large, note that the frame header looked like an HTTP/1.1 header"`)
	authority := status.Error(codes.Unavailable, `connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: certificate signed by unknown authority"`)
	tries := new(Client).newTries(nil)
	if !tries.permanent(proxy) || !tries.permanent(authority) {
		t.Error("a wrong configuration is not permanent")
	}
	tries.reset()
	if tries.permanent(proxy) || !tries.permanent(authority) {
		t.Error("after a stream, the answer of a proxy must not be permanent, an unknown authority must be")
	}
}
