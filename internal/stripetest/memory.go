package stripetest

import (
	"context"
	"net"
	"net/http"
	"sync"
	"testing"
)

// NewMemoryServer makes a server without a network: only its Transport reaches
// it. All its goroutines wait in a way that lets the virtual time of
// [testing/synctest] go on. It has no CLI, which is a process of its own.
func NewMemoryServer(t testing.TB) *Server {
	t.Helper()
	s, closeSockets := newServer(t)
	closeSockets() // there are none
	listener := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	transport := &http.Transport{DialContext: listener.dial}
	// The loopback address, because keys go unencrypted to no other.
	s.URL, s.Transport = "http://127.0.0.1", transport

	server := &http.Server{Handler: s.mux}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(listener) // ends with http.ErrServerClosed
	}()
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.Close()
		<-served
	})
	return s
}

// pipeListener is a net.Listener whose connections are made by dial.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once // closes closed
}

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
