package client_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/internal/authtest"
)

// A connection that can never work ends Consume and Watch with a hint.
func TestMisconfiguredConnection(t *testing.T) {
	ca, other := authtest.NewCA(t), authtest.NewCA(t)
	cert, key := ca.Issue(t, "127.0.0.1")
	tlsServer, err := credentials.NewServerTLSFromFile(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	_, secure := startTokenServer(t, grpc.Creds(tlsServer))
	_, plain := startTokenServer(t)
	_, port, _ := net.SplitHostPort(secure)
	web, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler()}
	go server.Serve(web)
	t.Cleanup(func() { server.Close() })
	for _, tt := range []struct {
		name   string
		target string
		c      client.Credentials
		hint   string
	}{
		{"wrong authority", secure, client.Credentials{CAFile: other.File}, "check the authorities"},
		{"wrong name", "localhost:" + port, client.Credentials{CAFile: ca.File}, "the host name"},
		{"gRPC without TLS", plain, client.Credentials{CAFile: ca.File}, "does not speak TLS"},
		{"HTTP instead of TLS", web.Addr().String(), client.Credentials{CAFile: ca.File}, "does not speak TLS"},
		{"HTTP instead of gRPC", web.Addr().String(), client.Credentials{}, "does not speak gRPC"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			options, err := tt.c.DialOptions(tt.target)
			if err != nil {
				t.Fatal(err)
			}
			c, err := client.New(tt.target, options...)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			check := func(call string, err error) {
				if !errors.Is(err, client.ErrConfiguration) || !strings.Contains(err.Error(), tt.hint) || status.Code(err) != codes.Unavailable {
					t.Errorf("%s: %v", call, err)
				}
			}
			check("Consume", c.Consume(ctx, "shipping", idle, client.ConsumeOptions{}))
			var last error
			for _, last = range c.Watch(ctx, client.WatchOptions{}) {
			}
			check("Watch", last)
		})
	}
}

// After an outage of any length, streams are opened as soon as a dial succeeds: the waits of the
// client do not come on top of those between dials.
func TestOneBackoff(t *testing.T) {
	const bound = 6200 * time.Millisecond // the longest wait between two dials, with jitter
	for outage := 10 * time.Second; outage < 90*time.Second; outage += 5300 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			d := newDesk(t)
			quiet := func(error, time.Duration) {}
			w := consume(t, d.client(t), idle, client.ConsumeOptions{OnRetry: quiet})
			pass(time.Second)
			d.server.Stop()
			pass(outage)
			expect(t, "streams", 1, d.calls())
			d.start()
			pass(bound)
			if d.calls() != 2 {
				t.Errorf("Consume: no stream %v after an outage of %v", bound, outage)
			}
			w.stop()

			g := newGateway(t)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				for range g.client(t).Watch(ctx, client.WatchOptions{OnRetry: quiet}) {
				}
			}()
			pass(time.Second)
			g.server.Stop()
			pass(outage)
			g.start()
			pass(bound)
			if n := len(g.starts()); n != 2 {
				t.Errorf("Watch: %d streams %v after an outage of %v", n, bound, outage)
			}
			cancel()
			synctest.Wait()
		})
	}
}

// A connection that works and a gateway that refuses streams are no outage: the waits grow.
func TestConnectionThatBreaksAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		dials := 0
		c := g.client(t, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			dials++
			conn, err := g.dial(ctx, addr)
			if err == nil {
				time.AfterFunc(time.Millisecond, func() { conn.Close() })
			}
			return conn, err
		}))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		for range c.Watch(ctx, client.WatchOptions{OnRetry: func(error, time.Duration) {}}) {
		}
		if dials < 10 || dials > 150 {
			t.Errorf("%d dials in 10 minutes", dials)
		}
	})
}

// Without OnRetry, retries are logged.
func TestRetriesAreLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&logged, nil))
		d := newDesk(t, func(*line) error { return errAway }, func(l *line) error { l.opened(30 * time.Second); return nil })
		w := consume(t, d.client(t), idle, client.ConsumeOptions{Logger: logger})
		pass(20 * time.Second)
		w.stop()
		g := newGateway(t, send(errAway), send(nil, event("1")))
		for range g.client(t).Watch(t.Context(), client.WatchOptions{Logger: logger}) {
			break
		}
		lines := strings.Split(strings.TrimSpace(logged.String()), "\n")
		if len(lines) != 3 {
			t.Fatalf("the log has %s", &logged)
		}
		for i, want := range []string{"level=WARN", "level=INFO", "level=WARN"} {
			if !strings.Contains(lines[i], want) || !strings.Contains(lines[i], "error=") || !strings.Contains(lines[i], "wait=") {
				t.Errorf("want %s: %s", want, lines[i])
			}
		}
		// With OnRetry, they are not.
		logged.Reset()
		d = newDesk(t, func(*line) error { return errAway })
		w = consume(t, d.client(t), idle, client.ConsumeOptions{Logger: logger, OnRetry: func(error, time.Duration) {}, OnOpen: func(*ordergatev1.ConsumeOpened) {}})
		pass(20 * time.Second)
		w.stop()
		if logged.Len() > 0 {
			t.Errorf("the log has %s", &logged)
		}
	})
}
