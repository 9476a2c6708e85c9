// Package natsnet carries stream connections over core NATS messages, so that
// the gateways of one NATS account can speak gRPC with each other without
// addresses, TLS or secrets of their own. Whoever may publish to ordergate.peer.>
// and ordergate.conn.> in the account is trusted.
//
// It promises that bytes arrive in their order and without a hole, or that the
// connection ends with an error: core NATS delivers at most once, so messages are
// numbered. What waits in memory is bounded.
//
// A peer that vanishes without a word is not noticed here, nor is the loss of the
// last message before a silence: there is no heartbeat. The users have gRPC's
// keepalive, and need it.
//
// There is no flow control here either: a reader that falls behind too far loses its
// connection. That of HTTP/2 keeps real use far below the bound, when its windows
// are fixed: those that gRPC adapts by itself may grow up to the bound.
package natsnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
)

const (
	peerPrefix = "ordergate.peer." // and a name: where it is dialed
	connPrefix = "ordergate.conn." // and an id: where one side of a connection receives

	// maxNameBytes bounds a name: a server drops clients whose subjects are too long.
	maxNameBytes = 200
	// maxConns bounds the connections of a listener that wait to be accepted or are
	// not closed yet.
	maxConns = 1000
	// listenTimeout bounds how long the server may take to know of a listener.
	listenTimeout = 10 * time.Second
	// dialTimeout bounds a dial, as NATS may lose it or its answer: so it does with a
	// listener whose NATS connection breaks meanwhile.
	dialTimeout = 10 * time.Second
	// lateAnswer is how long an answer is waited for that the dialer has given up,
	// to tell the listener.
	lateAnswer = 10 * time.Second
)

// addr is a name or, on the side that dialed, the connection's id.
type addr string

func (addr) Network() string  { return "nats" }
func (a addr) String() string { return string(a) }

// Listen takes connections that are dialed to name, over conn. When it returns,
// the name can be dialed. Several listeners of a name share its connections.
//
// Closing the listener refuses what has not been accepted, and leaves what has.
// Accept fails with net.ErrClosed then, and with another error when conn was closed.
// conn must not reconnect (nats.NoReconnect): messages are lost meanwhile.
func Listen(conn *nats.Conn, name string) (net.Listener, error) {
	if err := check(conn, name); err != nil {
		return nil, err
	}
	l := &listener{nats: conn, name: addr(name), arrived: make(chan *streamConn, maxConns), ended: make(chan struct{})}
	var err error
	// The queue group hands a dial to one listener only.
	if l.sub, err = conn.QueueSubscribe(peerPrefix+name, name, l.take); err != nil {
		return nil, fmt.Errorf("listen under %q: %w", name, err)
	}
	l.sub.SetClosedHandler(func(string) { l.end(errLost) })
	if err := conn.FlushTimeout(listenTimeout); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen under %q: %w", name, err)
	}
	return l, nil
}

// Dial connects to the listener of a name. It fails at once with
// nats.ErrNoResponders when nobody listens, and after 10 seconds when there is no
// answer. ctx bounds the dialing only. conn must not reconnect (nats.NoReconnect).
func Dial(ctx context.Context, conn *nats.Conn, name string) (net.Conn, error) {
	if err := check(conn, name); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("dial %q: %w", name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	id := nuid.Next()
	c, err := newConn(conn, id, addr(id), addr(name))
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", name, err)
	}
	// The answer comes where the connection receives, before any data.
	if err := conn.PublishRequest(peerPrefix+name, connPrefix+id, nil); err != nil {
		c.Close()
		return nil, fmt.Errorf("dial %q: %w", name, err)
	}
	err = c.answered(ctx)
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, nats.ErrNoResponders):
		return nil, fmt.Errorf("dial %q: nobody listens under that name: %w", name, err)
	}
	return nil, fmt.Errorf("dial %q: %w", name, err)
}

func check(conn *nats.Conn, name string) error {
	if !validToken(name) {
		return fmt.Errorf("%.50q is no name: write up to %d letters, digits, - and _", name, maxNameBytes)
	}
	if conn.Opts.AllowReconnect {
		return errors.New("the NATS connection would reconnect, and lose messages meanwhile: make it with nats.NoReconnect")
	}
	return nil
}

func validToken(s string) bool {
	for i := range len(s) {
		switch b := s[i]; {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', b == '-', b == '_':
		default:
			return false
		}
	}
	return s != "" && len(s) <= maxNameBytes
}

type listener struct {
	nats    *nats.Conn
	sub     *nats.Subscription
	name    addr
	arrived chan *streamConn // has room for all that count
	ended   chan struct{}    // closed with err

	mu    sync.Mutex
	count int   // of those that wait or are not closed
	err   error // why nothing is taken any more
}

// take answers a dial.
func (l *listener) take(dial *nats.Msg) {
	peer, ok := strings.CutPrefix(dial.Reply, connPrefix)
	if !ok || !validToken(peer) { // nothing is published where a stranger likes
		return
	}
	if err := l.admit(); err != nil {
		l.nats.Publish(dial.Reply, appendHead(nil, kindFail, 0, err.Error()))
		return
	}
	id := nuid.Next()
	c, err := newConn(l.nats, id, l.name, addr(peer))
	if err != nil {
		l.release()
		return // as good as lost: the dialer's time runs out, or its connection is lost too
	}
	c.accepted(dial.Reply, l.release)
	if err := c.send(kindAccept, []byte(id)); err != nil {
		c.end(err)
		c.Close()
		return
	}
	l.mu.Lock()
	listening := l.err == nil
	if listening {
		l.arrived <- c
	}
	l.mu.Unlock()
	if !listening {
		c.refuse()
	}
}

func (l *listener) admit() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err != nil:
		return errNotListening
	case l.count == maxConns:
		return fmt.Errorf("there are %d connections already", maxConns)
	}
	l.count++
	return nil
}

func (l *listener) release() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count--
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.ended: // comes first
	default:
		select {
		case c := <-l.arrived:
			return c, nil
		case <-l.ended:
		}
	}
	return nil, l.err
}

func (l *listener) Close() error {
	l.end(net.ErrClosed)
	return nil
}

func (l *listener) end(err error) {
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return
	}
	l.err = err
	close(l.ended)
	l.mu.Unlock() // nothing arrives any more

	l.sub.Drain() // dials that are under way are refused. It fails when there is nothing to end
	for {
		select {
		case c := <-l.arrived:
			c.refuse()
		default:
			return
		}
	}
}

func (l *listener) Addr() net.Addr { return l.name }
