package grpcapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/ordergate/ordergate/internal/auth"
)

// Security says who is let in, and how.
type Security struct {
	// Access says who may do what. Without one nobody may.
	Access *auth.Access
	// TLS is what connections are encrypted with; they are not when it is nil.
	TLS *tls.Config
}

func (s Security) credentials() credentials.TransportCredentials {
	if s.TLS == nil {
		return doorCredentials{insecure.NewCredentials()}
	}
	return doorCredentials{credentials.NewTLS(s.TLS)}
}

// doorCredentials tell connections within the process from all others: by the
// type of the connection, which nothing that is sent can change.
type doorCredentials struct {
	credentials.TransportCredentials
}

func (c doorCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if _, ok := conn.(inProcessConn); ok {
		return conn, inProcessInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
	}
	return c.TransportCredentials.ServerHandshake(conn)
}

func (c doorCredentials) Clone() credentials.TransportCredentials {
	return doorCredentials{c.TransportCredentials.Clone()}
}

type inProcessListener struct{ net.Listener }

func (l inProcessListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return inProcessConn{conn}, nil
}

type inProcessConn struct{ net.Conn }

type inProcessInfo struct{ credentials.CommonAuthInfo }

func (inProcessInfo) AuthType() string { return "in-process" }

// shownBy returns what the caller of an RPC shows of itself.
func (g guard) shownBy(ctx context.Context) auth.Shown {
	from, ok := peer.FromContext(ctx)
	if !ok {
		return auth.Shown{}
	}
	sent, _ := metadata.FromIncomingContext(ctx)
	switch info := from.AuthInfo.(type) {
	case inProcessInfo:
		return g.access.HandedOver(sent.Get(auth.TicketKey))
	case credentials.TLSInfo:
		return auth.Shown{Authorization: sent.Get("authorization"), Certificate: auth.VerifiedCertificate(info.State), Private: true}
	}
	return auth.Shown{Authorization: sent.Get("authorization"), Private: auth.Loopback(from.LocalAddr)}
}

// guard is the edge of every RPC: it lets callers in, passes on what another gateway
// is to answer, and it is where errors become statuses, and panics errors.
type guard struct {
	access *auth.Access
	logger *slog.Logger
	peers  Peers // nil where the log is not shared
}

func (g guard) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (response any, err error) {
	var call *auth.Call
	defer func() {
		err = g.finish(ctx, info.FullMethod, call, err, recover())
	}()
	if call, err = g.access.Admit(info.FullMethod, g.shownBy(ctx)); err != nil {
		return nil, err
	}
	if err := call.Check(request); err != nil {
		return nil, err
	}
	response, err = handler(ctx, request)
	if member := otherGateway(err, g.peers); member != "" {
		return passOn(ctx, g.peers, member, info.FullMethod, request)
	}
	return response, err
}

func (g guard) stream(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	var call *auth.Call
	defer func() {
		err = g.finish(stream.Context(), info.FullMethod, call, err, recover())
	}()
	if call, err = g.access.Admit(info.FullMethod, g.shownBy(stream.Context())); err != nil {
		return err
	}
	g.logger.Debug("stream begins", "method", info.FullMethod, "principal", call.Name())
	ctx, cancel := call.While(stream.Context())
	defer cancel()
	guarded := &guardedStream{stream, ctx, call}
	err = handler(service, guarded)
	if over := guarded.over(); err != nil && over != nil {
		return over // whatever came of it
	}
	return err
}

// guardedStream is a stream that ends with its caller's access.
type guardedStream struct {
	grpc.ServerStream
	ctx  context.Context
	call *auth.Call
}

func (s *guardedStream) Context() context.Context { return s.ctx }

// over returns an error when the caller's access has ended.
func (s *guardedStream) over() error {
	var revoked *auth.UnauthenticatedError
	if s.ctx.Err() != nil && errors.As(context.Cause(s.ctx), &revoked) {
		return revoked
	}
	return nil
}

func (s *guardedStream) SendMsg(message any) error {
	if err := s.over(); err != nil {
		return err
	}
	return s.ServerStream.SendMsg(message)
}

func (s *guardedStream) RecvMsg(message any) error {
	if err := s.ServerStream.RecvMsg(message); err != nil {
		return err
	}
	if err := s.over(); err != nil {
		return err
	}
	return s.call.Check(message)
}

func (g guard) finish(ctx context.Context, method string, call *auth.Call, err error, panicked any) error {
	if panicked != nil {
		err = fmt.Errorf("panic: %v\n%s", panicked, debug.Stack())
	}
	if err == nil {
		g.logger.DebugContext(ctx, "rpc", "method", method, "principal", call.Name(), "code", codes.OK.String())
		return nil
	}
	principal := call.Name()
	var denied *auth.DeniedError
	if errors.As(err, &denied) {
		principal = denied.Principal
	}
	mapped := statusOf(err)
	level := slog.LevelDebug
	if reasonOf(mapped) == reasonInternal {
		level = slog.LevelError
	}
	g.logger.Log(ctx, level, "rpc", "method", method, "principal", principal, "code", mapped.Code().String(), "error", err)
	return mapped.Err()
}
