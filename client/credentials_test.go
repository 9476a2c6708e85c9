package client_test

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/credentials/local"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/authtest"
)

// tokenServer notes the tokens that come.
type tokenServer struct {
	healthv1.UnimplementedHealthServer
	came chan []string
}

func (s *tokenServer) Check(ctx context.Context, _ *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	sent, _ := metadata.FromIncomingContext(ctx)
	s.came <- sent.Get("authorization")
	return &healthv1.HealthCheckResponse{}, nil
}

func startTokenServer(t *testing.T, options ...grpc.ServerOption) (*tokenServer, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &tokenServer{came: make(chan []string, 1)}
	server := grpc.NewServer(options...)
	healthv1.RegisterHealthServer(server, s)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return s, listener.Addr().String()
}

// check calls the server, and returns the tokens that came.
func (s *tokenServer) check(t *testing.T, addr string, options ...grpc.DialOption) ([]string, error) {
	t.Helper()
	conn, err := grpc.NewClient(addr, options...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}); err != nil {
		select {
		case came := <-s.came:
			return came, err
		default:
			return nil, err
		}
	}
	return <-s.came, nil
}

// elsewhere makes a connection look as if it went to another machine.
type elsewhere struct{ net.Conn }

func (elsewhere) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 50051} }

// A token goes over TLS, or where the connection cannot leave the machine, and
// over no other connection.
func TestWithToken(t *testing.T) {
	ca := authtest.NewCA(t)
	cert, key := ca.Issue(t, "127.0.0.1")
	tlsServer, err := credentials.NewServerTLSFromFile(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	secure, secureAddr := startTokenServer(t, grpc.Creds(tlsServer))
	plain, plainAddr := startTokenServer(t)
	token := auth.NewToken()
	toElsewhere := grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		return elsewhere{conn}, err
	})
	for _, tt := range []struct {
		name    string
		server  *tokenServer
		addr    string
		options []grpc.DialOption
		want    codes.Code
	}{
		{"TLS", secure, secureAddr, []grpc.DialOption{grpc.WithTransportCredentials(credentials.NewTLS(ca.Client(t, "", "")))}, codes.OK},
		{"local", plain, plainAddr, []grpc.DialOption{grpc.WithTransportCredentials(local.NewCredentials())}, codes.OK},
		{"local, but elsewhere", plain, plainAddr, []grpc.DialOption{grpc.WithTransportCredentials(local.NewCredentials()), toElsewhere}, codes.Unavailable},
		{"insecure", plain, plainAddr, []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, codes.Unauthenticated},
	} {
		came, err := tt.server.check(t, tt.addr, append(tt.options, client.WithToken(token))...)
		if status.Code(err) != tt.want || (tt.want == codes.OK) != (len(came) == 1 && came[0] == "Bearer "+token) || tt.want != codes.OK && came != nil {
			t.Errorf("%s: %q came, %v", tt.name, came, err)
		}
	}
}

// A target is local by its address or scheme, in each form that gRPC takes.
func TestCredentialsLocalTargets(t *testing.T) {
	token := auth.NewToken()
	plain, addr := startTokenServer(t)
	_, port, _ := net.SplitHostPort(addr)
	socket := filepath.Join(t.TempDir(), "gate.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	unix := &tokenServer{came: make(chan []string, 1)}
	server := grpc.NewServer()
	healthv1.RegisterHealthServer(server, unix)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	for _, tt := range []struct {
		target string
		server *tokenServer
	}{
		{"127.0.0.1:" + port, plain},
		{"localhost:" + port, plain},
		{"dns:localhost:" + port, plain},
		{"dns:///localhost:" + port, plain},
		{"dns:///127.0.0.1:" + port, plain},
		{"passthrough:///127.0.0.1:" + port, plain},
		{"passthrough:///localhost:" + port, plain},
		{"unix:" + socket, unix},
		{"unix://" + socket, unix},
	} {
		options, err := client.Credentials{Token: token}.DialOptions(tt.target)
		if err != nil {
			t.Errorf("%s: %v", tt.target, err)
			continue
		}
		if came, err := tt.server.check(t, tt.target, options...); err != nil || len(came) != 1 || came[0] != "Bearer "+token {
			t.Errorf("%s: %q came, %v", tt.target, came, err)
		}
	}
	for _, target := range []string{"127.0.0.1", "[::1]:50051", "dns:///[::1]:50051", "localhost", "unix-abstract:gate"} {
		if _, err := (client.Credentials{Token: token}).DialOptions(target); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	ca := authtest.NewCA(t)
	cert, key := ca.Issue(t, "127.0.0.1")
	tlsServer, err := credentials.NewServerTLSFromFile(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	secure, secureAddr := startTokenServer(t, grpc.Creds(tlsServer))
	plain, plainAddr := startTokenServer(t)
	token := auth.NewToken()
	for _, tt := range []struct {
		name   string
		c      client.Credentials
		server *tokenServer
		addr   string
		came   bool
		code   codes.Code
	}{
		{"nothing", client.Credentials{}, plain, plainAddr, false, codes.OK},
		{"a token on loopback", client.Credentials{Token: token}, plain, plainAddr, true, codes.OK},
		{"a token in plaintext all the same", client.Credentials{Token: token, PlaintextToken: true}, plain, plainAddr, true, codes.OK},
		{"a token that no header can have", client.Credentials{Token: "a\nb"}, plain, plainAddr, false, codes.Unauthenticated},
		{"a token and TLS", client.Credentials{Token: token, CAFile: ca.File}, secure, secureAddr, true, codes.OK},
		{"a certificate", client.Credentials{CAFile: ca.File, CertFile: cert, KeyFile: key}, secure, secureAddr, false, codes.OK},
		{"an authority of the system", client.Credentials{Token: token, TLS: true}, secure, secureAddr, false, codes.Unavailable},
		{"TLS where there is none", client.Credentials{Token: token, CAFile: ca.File}, plain, plainAddr, false, codes.Unavailable},
	} {
		options, err := tt.c.DialOptions(tt.addr)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		came, err := tt.server.check(t, tt.addr, options...)
		if status.Code(err) != tt.code || (len(came) > 0) != tt.came {
			t.Errorf("%s: %q came, %v", tt.name, came, err)
		}
	}
	for _, target := range []string{"192.0.2.1:50051", "example.com:50051", "localhost.example.com:50051", "0.0.0.0:50051", "dns:///192.0.2.1:50051", "passthrough:///192.0.2.1:50051",
		"passthrough:///gateway.invalid:50051", "dns://192.0.2.1/gateway:50051", "xds:///localhost:50051", ":50051", ""} {
		if _, err := (client.Credentials{Token: token}).DialOptions(target); err == nil || strings.Contains(err.Error(), token) {
			t.Errorf("a token in plaintext to %s: %v", target, err)
		}
		if _, err := (client.Credentials{Token: token, TLS: true}).DialOptions(target); err != nil {
			t.Error(err)
		}
	}
	if _, err := (client.Credentials{Token: token, TokenSource: client.TokenFile("token")}).DialOptions("localhost:1"); err == nil {
		t.Error("two tokens: no error")
	}
	for name, c := range map[string]client.Credentials{
		"no file": {CAFile: filepath.Join(t.TempDir(), "none")}, "no authority": {CAFile: key}, "no key": {CertFile: cert}, "no certificate": {KeyFile: key}, "another key": {CertFile: cert, KeyFile: cert},
	} {
		if _, err := c.DialOptions("localhost:1"); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
