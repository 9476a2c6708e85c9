package connlimit

import (
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// A refused connection gets the configured answer, or none, and is counted. The place of a closed
// connection is free again.
func TestLimit(t *testing.T) {
	for _, busy := range []string{"", "HTTP/1.1 503 Service Unavailable\r\n\r\n"} {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := New(inner, Config{Name: "test", Max: 1, Busy: busy, Metrics: prometheus.NewRegistry(), Logger: slog.New(slog.DiscardHandler)})
		accepted := make(chan net.Conn)
		var accepting sync.WaitGroup
		accepting.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				accepted <- conn
			}
		})
		dial := func() net.Conn {
			conn, err := net.Dial("tcp", inner.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			conn.SetDeadline(time.Now().Add(30 * time.Second))
			return conn
		}
		first := dial()
		held := <-accepted
		refused := dial()
		if answer, err := io.ReadAll(refused); string(answer) != busy || err != nil {
			t.Errorf("answer = %q, %v, want %q", answer, err, busy)
		}
		if n := testutil.ToFloat64(l.refused); n != 1 || l.Used() != 1 {
			t.Errorf("%v refused, %d used", n, l.Used())
		}
		held.Close()
		held.Close() // counts once
		third := dial()
		(<-accepted).Close()
		for _, conn := range []net.Conn{first, refused, third} {
			conn.Close()
		}
		inner.Close()
		accepting.Wait()
		if l.Used() != 0 || !strings.HasPrefix(l.Addr().String(), "127.") {
			t.Errorf("%d used at the end", l.Used())
		}
	}
}
