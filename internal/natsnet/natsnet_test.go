package natsnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"
	"golang.org/x/net/nettest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestNetConn(t *testing.T) {
	srv := startServer(t)
	nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
		p := newPair(t, srv)
		// It writes as fast as it can while nobody reads: the bound must not be reached.
		return paced{p.dialed, p.client}, paced{p.accepted, p.host}, func() {
			p.dialed.Close()
			p.accepted.Close()
			p.client.Close()
			p.host.Close()
		}, nil
	})
}

// paced waits for the server after each write.
type paced struct {
	net.Conn
	nats *nats.Conn
}

func (p paced) Write(b []byte) (int, error) {
	n, err := p.Conn.Write(b)
	if err == nil {
		p.nats.Flush()
	}
	return n, err
}

func TestEndOfStream(t *testing.T) {
	p := newPair(t, startServer(t))
	sent := noise(3*maxChunk + 17)
	for _, part := range [][]byte{sent[:1], sent[1:3], sent[3:maxChunk], sent[maxChunk:]} {
		if n, err := p.dialed.Write(part); n != len(part) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	for range 2 {
		if err := p.dialed.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := io.ReadAll(p.accepted); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("read %d bytes, %v; want the %d that were sent", len(got), err, len(sent))
	}
	if n, err := p.accepted.Write([]byte("x")); n != 0 || !errors.Is(err, errPeerClosed) {
		t.Errorf("Write after the other side has closed = %d, %v", n, err)
	}
	if _, err := p.dialed.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}
	if _, err := p.dialed.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Write after Close: %v", err)
	}
	if err := p.dialed.SetDeadline(time.Time{}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("SetDeadline after Close: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	p := newPair(t, startServer(t))
	for _, a := range []net.Addr{p.listener.Addr(), p.dialed.RemoteAddr(), p.accepted.LocalAddr()} {
		if a.Network() != "nats" || a.String() != p.name {
			t.Errorf("address %s %s", a.Network(), a)
		}
	}
	if a, b := p.dialed.LocalAddr(), p.accepted.RemoteAddr(); a != b || a.String() == "" {
		t.Errorf("the dialer's address is %q there and %q here", a, b)
	}
}

// TestForged: what does not continue the stream ends it on both sides, behind what did.
func TestForged(t *testing.T) {
	srv := startServer(t)
	for name, tc := range map[string]struct {
		message []byte
		want    string
	}{
		"hole":      {appendHead(nil, kindData, 2, "forged"), "message 2 came in place of 1"},
		"repeated":  {appendHead(nil, kindData, 0, "forged"), "message 0 came in place of 1"},
		"early end": {appendHead(nil, kindClose, 2, ""), "message 2 came in place of 1"},
		"empty":     {nil, "malformed"},
		"no number": {[]byte{kindData}, "malformed"},
		"kind":      {appendHead(nil, 'x', 1, ""), "malformed"},
		"answer":    {appendHead(nil, kindAccept, 1, "id"), "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, srv)
			write(t, p.dialed, "before")
			// On the same NATS connection, so that its place is certain.
			if err := p.client.Publish(p.dialed.peer, tc.message); err != nil {
				t.Fatal(err)
			}
			if err := p.client.Publish(p.dialed.peer, appendHead(nil, kindData, 1, "behind")); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(p.accepted)
			if string(got) != "before" || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("read %q, %v; want %q before", got, err, tc.want)
			}
			if _, err := p.dialed.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "the other side ended the connection: ") || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("the other side reads %v", err)
			}
			for _, c := range []net.Conn{p.dialed, p.accepted} {
				if _, err := c.Write([]byte("x")); err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("Write: %v", err)
				}
			}
		})
	}
}

func TestReaderFallsBehind(t *testing.T) {
	p := newPair(t, startServer(t))
	sent := noise(maxWaiting)
	if n, err := p.dialed.Write(sent); n != len(sent) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	write(t, p.dialed, "x") // one too many
	if _, err := p.dialed.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), errBehind.Error()) {
		t.Errorf("the writing side reads %v", err)
	}
	if _, err := p.dialed.Write([]byte("x")); err == nil || !strings.Contains(err.Error(), errBehind.Error()) {
		t.Errorf("Write: %v", err)
	}
	if got, err := io.ReadAll(p.accepted); !errors.Is(err, errBehind) || !bytes.Equal(got, sent) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}

// TestSmallMessages: what waits takes little more memory than it has bytes.
func TestSmallMessages(t *testing.T) {
	c := &streamConn{}
	c.changed = sync.NewCond(&c.mu)
	var want, got []byte
	check := func() {
		t.Helper()
		room := 0
		for _, b := range c.blocks {
			room += cap(b)
		}
		if limit := 2*c.waiting + 2*blockBytes; room > limit {
			t.Fatalf("%d bytes wait in %d bytes, more than %d", c.waiting, room, limit)
		}
	}
	for range 2000 {
		part := noise(1 + rand.IntN(10))
		if rand.IntN(100) == 0 {
			part = noise(rand.IntN(3 * blockBytes))
		}
		want = append(want, part...)
		if err := c.keep(part); err != nil {
			t.Fatal(err)
		}
		check()
		if rand.IntN(3) == 0 {
			p := make([]byte, rand.IntN(30))
			got = append(got, p[:c.unload(p)]...)
			check()
		}
	}
	rest := make([]byte, c.waiting)
	got = append(got, rest[:c.unload(rest)]...)
	if !bytes.Equal(got, want) || c.waiting != 0 || len(c.blocks) != 0 {
		t.Errorf("what was kept was not handed out; %d bytes wait in %d blocks", c.waiting, len(c.blocks))
	}
}

// TestDropped: the NATS client drops what comes too fast, and says nothing.
func TestDropped(t *testing.T) {
	p := newPair(t, startServer(t))
	c := p.accepted
	slow := c.sub.StatusChanged(nats.SubscriptionSlowConsumer)
	if err := c.sub.SetPendingLimits(2, -1); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock() // take waits
	write(t, p.dialed, "one")
	write(t, p.dialed, "two")
	write(t, p.dialed, "dropped")
	<-slow
	c.mu.Unlock()
	if got, err := io.ReadAll(c); !strings.HasPrefix("onetwo", string(got)) || !errors.Is(err, errDropped) {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := p.dialed.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), errDropped.Error()) {
		t.Errorf("the other side reads %v", err)
	}
}

func TestDeadlines(t *testing.T) {
	p := newPair(t, startServer(t))
	done := make(chan error)
	go func() {
		_, err := p.dialed.Read(make([]byte, 1))
		done <- err
	}()
	p.dialed.SetReadDeadline(time.Now().Add(time.Millisecond))
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Read: %v", err)
	}
	write(t, p.dialed, "still open")
	p.dialed.SetWriteDeadline(time.Unix(1, 0))
	if _, err := p.dialed.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Write: %v", err)
	}
	p.dialed.SetDeadline(time.Time{})
	write(t, p.dialed, "!")
	p.dialed.Close()
	if got, err := io.ReadAll(p.accepted); string(got) != "still open!" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestNames(t *testing.T) {
	conn := connect(t, startServer(t))
	for _, name := range []string{"", "a.b", "*", ">", "a b", "ä", strings.Repeat("a", maxNameBytes+1)} {
		if _, err := Listen(conn, name); err == nil || !strings.Contains(err.Error(), "is no name") {
			t.Errorf("Listen(%q): %v", name, err)
		}
		if _, err := Dial(t.Context(), conn, name); err == nil || !strings.Contains(err.Error(), "is no name") {
			t.Errorf("Dial(%q): %v", name, err)
		}
	}
}

func TestReconnectingIsRefused(t *testing.T) {
	conn, err := nats.Connect("", nats.InProcessServer(startServer(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := Listen(conn, "a"); err == nil || !strings.Contains(err.Error(), "nats.NoReconnect") {
		t.Error(err)
	}
	if _, err := Dial(t.Context(), conn, "a"); err == nil || !strings.Contains(err.Error(), "nats.NoReconnect") {
		t.Error(err)
	}
}

func TestNobodyListens(t *testing.T) {
	conn := connect(t, startServer(t))
	_, err := Dial(t.Context(), conn, "nobody")
	if !errors.Is(err, nats.ErrNoResponders) || !strings.Contains(err.Error(), "nobody listens") {
		t.Error(err)
	}
	if n := conn.NumSubscriptions(); n != 0 {
		t.Errorf("%d subscriptions are left", n)
	}
}

// TestDialGivesUp: a late answer is told that nobody waits for it any more.
func TestDialGivesUp(t *testing.T) {
	srv := startServer(t)
	host, client := connect(t, srv), connect(t, srv)
	dials, err := host.SubscribeSync(peerPrefix + "slow")
	if err != nil {
		t.Fatal(err)
	}
	told, err := host.SubscribeSync(connPrefix + "side")
	if err != nil {
		t.Fatal(err)
	}
	host.Flush()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := Dial(ctx, client, "slow")
		done <- err
	}()
	dial, err := dials.NextMsgWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Dial: %v", err)
	}
	dial.Respond(appendHead(nil, kindAccept, 0, "side"))
	msg, err := told.NextMsgWithContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if kind, _, reason, ok := parse(msg.Data); !ok || kind != kindFail || string(reason) != errGaveUp.Error() {
		t.Errorf("the listener is told %q", msg.Data)
	}
	if _, err := Dial(ctx, client, "slow"); !errors.Is(err, context.Canceled) {
		t.Errorf("Dial, too late: %v", err)
	}
}

func TestStrangeDials(t *testing.T) {
	srv := startServer(t)
	p := newPair(t, srv)
	all, err := p.client.SubscribeSync("stranger.>")
	if err != nil {
		t.Fatal(err)
	}
	p.client.Flush()
	for _, reply := range []string{"", "stranger.a", connPrefix + "a.b"} {
		if err := p.client.PublishMsg(&nats.Msg{Subject: peerPrefix + p.name, Reply: reply}); err != nil {
			t.Fatal(err)
		}
	}
	// What is dialed behind them is what is accepted next.
	c, err := Dial(t.Context(), p.client, p.name)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	next, err := p.listener.Accept()
	if err != nil || next.RemoteAddr() != c.LocalAddr() {
		t.Errorf("accepted %v, %v", next, err)
	}
	if n, _, _ := all.Pending(); n != 0 {
		t.Errorf("a stranger's subject got %d messages", n)
	}
}

func TestNATSConnectionClosed(t *testing.T) {
	for name, lose := range map[string]func(p pair, srv *server.Server){
		"by the client":  func(p pair, _ *server.Server) { p.client.Close(); p.host.Close() },
		"by the server":  func(_ pair, srv *server.Server) { srv.Shutdown() },
		"after draining": func(p pair, _ *server.Server) { p.client.Drain(); p.host.Drain() },
	} {
		t.Run(name, func(t *testing.T) {
			srv := startServer(t)
			p := newPair(t, srv)
			var ends sync.WaitGroup
			for _, c := range []net.Conn{p.dialed, p.accepted} {
				ends.Go(func() {
					if _, err := c.Read(make([]byte, 1)); !errors.Is(err, errLost) {
						t.Errorf("Read: %v", err)
					}
					if _, err := c.Write([]byte("x")); !errors.Is(err, errLost) {
						t.Errorf("Write: %v", err)
					}
					if err := c.Close(); err != nil {
						t.Errorf("Close: %v", err)
					}
				})
			}
			ends.Go(func() {
				if _, err := p.listener.Accept(); !errors.Is(err, errLost) {
					t.Errorf("Accept: %v", err)
				}
			})
			lose(p, srv)
			ends.Wait()
			if _, err := Dial(t.Context(), p.client, p.name); err == nil {
				t.Error("a lost connection dials")
			}
			if _, err := Listen(p.host, p.name); err == nil {
				t.Error("a lost connection listens")
			}
		})
	}
}

func TestListenerClosed(t *testing.T) {
	p := newPair(t, startServer(t))
	waiting, err := Dial(t.Context(), p.client, p.name)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.listener.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := p.listener.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if _, err := waiting.Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), errNotListening.Error()) {
		t.Errorf("who was not accepted reads %v", err)
	}
	write(t, p.dialed, "still open")
	p.dialed.Close()
	if got, err := io.ReadAll(p.accepted); string(got) != "still open" || err != nil {
		t.Errorf("read %q, %v", got, err)
	}
	p.host.Flush()
	if _, err := Dial(t.Context(), p.client, p.name); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("Dial: %v", err)
	}
	p.accepted.Close()
	if l := p.listener; l.count != 0 {
		t.Errorf("%d connections count", l.count)
	}
	again, err := Listen(p.host, p.name)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

func TestAcceptEndsWithTheListener(t *testing.T) {
	p := newPair(t, startServer(t))
	done := make(chan error)
	go func() {
		_, err := p.listener.Accept()
		done <- err
	}()
	p.listener.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// TestManyConnections: there is room for so many, and for another when one is closed.
func TestManyConnections(t *testing.T) {
	p := newPair(t, startServer(t)) // is one
	var dialed []net.Conn
	for range maxConns - 1 {
		c, err := Dial(t.Context(), p.client, p.name)
		if err != nil {
			t.Fatal(err)
		}
		dialed = append(dialed, c)
	}
	if _, err := Dial(t.Context(), p.client, p.name); err == nil || !strings.Contains(err.Error(), "1000 connections already") {
		t.Fatalf("one too many: %v", err)
	}
	p.accepted.Close()
	last, err := Dial(t.Context(), p.client, p.name)
	if err != nil {
		t.Fatalf("in place of one that was closed: %v", err)
	}
	dialed = append(dialed, last)
	for _, c := range dialed {
		accepted, err := p.listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			io.Copy(accepted, accepted)
			accepted.Close()
		}()
		write(t, c, c.LocalAddr().String())
	}
	for _, c := range dialed {
		want := c.LocalAddr().String()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
			t.Fatalf("read %q, %v; want %q", got, err, want)
		}
		c.Close()
	}
}

// TestListenersShare: each dial is taken by one of several listeners.
func TestListenersShare(t *testing.T) {
	p := newPair(t, startServer(t))
	other, err := Listen(p.client, p.name)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	const n = 20
	accepted := make(chan net.Conn)
	for _, l := range []net.Listener{p.listener, other} {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
	}
	var dials sync.WaitGroup
	for range n {
		dials.Go(func() {
			if _, err := Dial(t.Context(), p.client, p.name); err != nil {
				t.Error(err)
			}
		})
	}
	seen := map[string]bool{}
	for range n {
		seen[(<-accepted).RemoteAddr().String()] = true
	}
	dials.Wait()
	if len(seen) != n {
		t.Errorf("%d of %d dials were taken once", len(seen), n)
	}
}

func TestGRPC(t *testing.T) {
	srv := startServer(t)
	host, client := connect(t, srv), connect(t, srv)
	listener, err := Listen(host, "gateway")
	if err != nil {
		t.Fatal(err)
	}
	part := wrapperspb.Bytes(noise(32 << 10))
	const streams, parts = 100, 4
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		for range parts {
			if err := stream.SendMsg(part); err != nil {
				return err
			}
		}
		return nil
	}))
	status := health.NewServer()
	healthv1.RegisterHealthServer(server, status)
	served := make(chan error)
	go func() { served <- server.Serve(listener) }()

	conn, err := grpc.NewClient("passthrough:///gateway", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, name string) (net.Conn, error) { return Dial(ctx, client, name) }))
	if err != nil {
		t.Fatal(err)
	}
	checker := healthv1.NewHealthClient(conn)
	if _, err := checker.Check(t.Context(), &healthv1.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running, began sync.WaitGroup
	began.Add(streams)
	for range streams {
		running.Go(func() {
			if err := watch(ctx, checker, began.Done); err != nil {
				t.Error(err)
			}
		})
		running.Go(func() {
			stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/test/Large")
			if err != nil {
				t.Error(err)
				return
			}
			if err := errors.Join(stream.SendMsg(&wrapperspb.BytesValue{}), stream.CloseSend()); err != nil {
				t.Error(err)
			}
			for n := 0; ; n++ {
				var got wrapperspb.BytesValue
				switch err := stream.RecvMsg(&got); {
				case err == io.EOF && n == parts:
					return
				case err != nil:
					t.Errorf("part %d: %v", n, err)
					return
				case !bytes.Equal(got.Value, part.Value):
					t.Errorf("part %d differs", n)
				}
			}
		})
	}
	began.Wait()
	status.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	running.Wait()

	conn.Close()
	server.GracefulStop()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	client.Close()
	host.Close()
	waitForGoroutines(t)
}

// watch returns when the status has changed. It calls began before, or when it fails.
func watch(ctx context.Context, checker healthv1.HealthClient, began func()) error {
	defer func() { began() }()
	stream, err := checker.Watch(ctx, &healthv1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	if first, err := stream.Recv(); err != nil || first.Status != healthv1.HealthCheckResponse_SERVING {
		return fmt.Errorf("the first status is %v, %w", first, err)
	}
	began()
	began = func() {}
	if second, err := stream.Recv(); err != nil || second.Status != healthv1.HealthCheckResponse_NOT_SERVING {
		return fmt.Errorf("the second status is %v, %w", second, err)
	}
	return nil
}

// waitForGoroutines waits for those of connections to end.
func waitForGoroutines(t *testing.T) {
	t.Helper()
	stacks := make([]byte, 1<<20)
	for end := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		all := string(stacks[:runtime.Stack(stacks, true)])
		if !strings.Contains(all, "natsnet.(*") && !strings.Contains(all, "nats.go.(*Conn)") && !strings.Contains(all, "grpc/internal/transport") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("goroutines are left:\n%s", all)
		}
	}
}

func BenchmarkThroughput(b *testing.B) {
	p := newPair(b, startServer(b))
	chunk := noise(maxChunk)
	window := make(chan struct{}, 64) // chunks that are under way: as HTTP/2 would bound them
	b.SetBytes(maxChunk)
	done := make(chan error)
	b.ResetTimer()
	go func() {
		buf := make([]byte, maxChunk)
		for range b.N {
			if _, err := io.ReadFull(p.accepted, buf); err != nil {
				done <- err
				return
			}
			<-window
		}
		done <- nil
	}()
	for range b.N {
		window <- struct{}{}
		if _, err := p.dialed.Write(chunk); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

func startServer(t testing.TB) *server.Server {
	t.Helper()
	srv, err := server.NewServer(&server.Options{DontListen: true, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server is not ready")
	}
	return srv
}

func connect(t testing.TB, srv *server.Server) *nats.Conn {
	t.Helper()
	conn, err := nats.Connect("", nats.InProcessServer(srv), nats.NoReconnect(),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})) // else it prints
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	return conn
}

// pair is a connection of two clients, and its listener's name: one of its own, as
// the server may not have noticed the end of an earlier test's.
type pair struct {
	name             string
	host, client     *nats.Conn
	listener         *listener
	dialed, accepted *streamConn
}

func newPair(t testing.TB, srv *server.Server) pair {
	t.Helper()
	p := pair{name: "peer-" + nuid.Next(), host: connect(t, srv), client: connect(t, srv)}
	l, err := Listen(p.host, p.name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	dialed, err := Dial(t.Context(), p.client, p.name)
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p.listener, p.dialed, p.accepted = l.(*listener), dialed.(*streamConn), accepted.(*streamConn)
	t.Cleanup(func() {
		p.dialed.Close()
		p.accepted.Close()
	})
	return p
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if n, err := c.Write([]byte(s)); n != len(s) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
}

var random = rand.NewChaCha8([32]byte{})

func noise(n int) []byte {
	b := make([]byte, n)
	random.Read(b)
	return b
}
