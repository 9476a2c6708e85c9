package ingress

import (
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

const (
	// maxConnections bounds the connections at one time, and with them
	// goroutines and header bytes. Stripe needs some dozens.
	maxConnections = 4096
	// A refused sender has this long to read why; of these, this many at once.
	refusalLinger = 500 * time.Millisecond
	maxLingering  = 64
)

// busyAnswer is what a refused sender reads without TLS.
var busyAnswer = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: " + strconv.Itoa(retryAfter) + "\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

// Limit bounds how many of a listener's connections there are at one time, and
// refuses the others at once: Stripe sends again, where a sender that waits
// would time out. With secure, a TLS server stands behind the listener, and
// refusals say nothing.
func Limit(listener net.Listener, secure bool, metrics prometheus.Registerer, logger *slog.Logger) net.Listener {
	l := &limitedListener{
		Listener: listener, secure: secure, logger: logger, tell: rate.Sometimes{Interval: time.Minute},
		slots: make(chan struct{}, maxConnections), lingering: make(chan struct{}, maxLingering),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ordergate_ingress_connections_refused_total",
			Help: "Connections to the ingress that were refused because there were too many.",
		}),
	}
	metrics.MustRegister(l.refused)
	return l
}

type limitedListener struct {
	net.Listener
	secure           bool
	slots, lingering chan struct{}
	refused          prometheus.Counter
	logger           *slog.Logger
	tell             rate.Sometimes
}

func (l *limitedListener) Accept() (net.Conn, error) {
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

func (l *limitedListener) refuse(conn net.Conn) {
	l.refused.Inc()
	l.tell.Do(func() {
		l.logger.Error("connections to the ingress are refused: there are too many; said at most once a minute", "most", cap(l.slots), "remote", conn.RemoteAddr().String(),
			"check", "ordergate_ingress_connections_refused_total; a proxy or firewall that bounds connections by address")
	})
	if l.secure {
		conn.Close()
		return
	}
	conn.SetDeadline(time.Now().Add(refusalLinger))
	io.WriteString(conn, busyAnswer) // fits the socket's buffer, which is empty
	select {
	case l.lingering <- struct{}{}:
	default:
		conn.Close()
		return
	}
	// A close before the request is read would reset the connection, and take
	// the answer back.
	go func() {
		defer func() { conn.Close(); <-l.lingering }()
		if tcp, ok := conn.(*net.TCPConn); ok {
			tcp.CloseWrite()
		}
		io.Copy(io.Discard, conn)
	}()
}

func (l *limitedListener) admit(conn net.Conn) net.Conn {
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
