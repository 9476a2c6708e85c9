// Package connlimit bounds the connections of a listener, and with them the goroutines and buffers
// that a sender can cause before it shows a credential.
package connlimit

import (
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

const (
	// refusalLinger is the time that a refused sender has to read the answer; maxLingering is the
	// number of refused connections that are kept for that.
	refusalLinger = 500 * time.Millisecond
	maxLingering  = 64
)

// Config describes the limit of one listener.
type Config struct {
	// Name is the listener's name in the log and in the metric
	// ordergate_NAME_connections_refused_total.
	Name string
	// Max is the largest number of connections at a time.
	Max int
	// Busy is the answer to a refused connection, in plaintext; empty closes the connection without
	// an answer, as a TLS listener must.
	Busy string
	// Metrics is the registry of the metric.
	Metrics prometheus.Registerer
	// Logger gets a line about refusals, at most once a minute.
	Logger *slog.Logger
}

// Listener is a listener with a limit.
type Listener struct {
	net.Listener
	cfg              Config
	slots, lingering chan struct{}
	refused          prometheus.Counter
	tell             rate.Sometimes
}

// New limits a listener. A connection beyond the limit is refused at once: Stripe and gRPC clients
// try again, and a sender that waits would time out.
func New(listener net.Listener, cfg Config) *Listener {
	l := &Listener{
		Listener: listener, cfg: cfg, tell: rate.Sometimes{Interval: time.Minute},
		slots: make(chan struct{}, cfg.Max), lingering: make(chan struct{}, maxLingering),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ordergate_" + cfg.Name + "_connections_refused_total",
			Help: "Connections to the " + cfg.Name + " listener that were refused because there were too many.",
		}),
	}
	cfg.Metrics.MustRegister(l.refused)
	return l
}

// Used is the number of connections that count.
func (l *Listener) Used() int { return len(l.slots) }

// Accept returns the next connection within the limit.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return l.admit(conn), nil
		default:
			l.refuse(conn)
		}
	}
}

func (l *Listener) refuse(conn net.Conn) {
	l.refused.Inc()
	l.tell.Do(func() {
		l.cfg.Logger.Error("too many connections; refusing new ones", "listener", l.cfg.Name, "max", cap(l.slots), "remote", conn.RemoteAddr().String(),
			"hint", "see ordergate_"+l.cfg.Name+"_connections_refused_total; let a proxy or firewall bound connections by address")
	})
	if l.cfg.Busy == "" {
		conn.Close()
		return
	}
	conn.SetDeadline(time.Now().Add(refusalLinger))
	io.WriteString(conn, l.cfg.Busy) // fits the socket's buffer, which is empty
	select {
	case l.lingering <- struct{}{}:
	default:
		conn.Close()
		return
	}
	// A close before the request is read would reset the connection and discard the answer.
	go func() {
		defer func() { conn.Close(); <-l.lingering }()
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.CloseWrite()
		}
		io.Copy(io.Discard, conn)
	}()
}

func (l *Listener) admit(conn net.Conn) net.Conn {
	free := sync.OnceFunc(func() { <-l.slots })
	if tcp, ok := conn.(*net.TCPConn); ok {
		return &tcpSlot{tcp, free}
	}
	return &slot{conn, free}
}

// slot is a connection that counts until it is closed.
type slot struct {
	net.Conn
	free func()
}

func (s *slot) Close() error {
	defer s.free()
	return s.Conn.Close()
}

// tcpSlot keeps CloseWrite, without which net/http's last answers are lost.
type tcpSlot struct {
	*net.TCPConn
	free func()
}

func (s *tcpSlot) Close() error {
	defer s.free()
	return s.TCPConn.Close()
}
