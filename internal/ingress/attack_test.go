package ingress

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/ordergate/ordergate/internal/connlimit"
	"github.com/ordergate/ordergate/internal/eventlog"
)

const patience = 20 * time.Second

// fortress is the real server on loopback in front of a stand-in for the log.
type fortress struct {
	*door
	bounds
	addr     string
	listener *connlimit.Listener
	stored   atomic.Int64
	idle     int // goroutines without a connection
}

// bounds are the server's, to be lowered by a test.
type bounds struct {
	timeouts  int // what they are divided by
	places    int // connections
	body      int64
	allBodies int64
}

func newFortress(t *testing.T, change ...func(*bounds)) *fortress {
	t.Helper()
	b := bounds{timeouts: 5, places: MaxConnections, body: 1000, allBodies: maxHeldBytes}
	for _, c := range change {
		c(&b)
	}
	f := &fortress{bounds: b}
	f.door = newDoor(t, fakeInbox(func(context.Context, eventlog.RawEvent) (bool, error) {
		f.stored.Add(1)
		return false, nil
	}))
	h := f.door.Handler.(*handler)
	h.Logger, h.MaxBodyBytes, h.held = slog.New(slog.DiscardHandler), b.body, semaphore.NewWeighted(b.allBodies)
	server := Server(f.door, slog.New(slog.DiscardHandler))
	for _, timeout := range []*time.Duration{&server.ReadHeaderTimeout, &server.ReadTimeout, &server.WriteTimeout, &server.IdleTimeout} {
		*timeout /= time.Duration(b.timeouts)
	}
	server.IdleTimeout /= 10
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = listener.Addr().String()
	f.listener = connlimit.New(listener, connlimit.Config{Name: "ingress", Max: b.places, Busy: BusyAnswer, Metrics: f.metrics, Logger: slog.New(slog.DiscardHandler)})
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(f.listener) })
	t.Cleanup(func() { server.Close(); serving.Wait() })
	f.genuine(t)
	f.idle = runtime.NumGoroutine()
	return f
}

// dial connects, and gives up on everything after patience.
func (f *fortress) dial(t *testing.T) *net.TCPConn {
	t.Helper()
	conn, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return conn.(*net.TCPConn)
}

// say sends raw bytes and returns the answers' statuses, until the server ends
// the connection.
func (f *fortress) say(t *testing.T, raw string, halfClose bool) (statuses []int) {
	t.Helper()
	conn := f.dial(t)
	defer conn.Close()
	io.WriteString(conn, raw) // the server may close before it has read all
	if halfClose {
		conn.CloseWrite()
	}
	return answers(t, conn)
}

func answers(t *testing.T, conn net.Conn) (statuses []int) {
	t.Helper()
	reader := bufio.NewReader(conn)
	for {
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
				t.Errorf("the server holds the connection: %v", err)
			}
			return statuses
		}
		io.Copy(io.Discard, response.Body)
		response.Body.Close()
		statuses = append(statuses, response.StatusCode)
	}
}

func raw(head, body string) string {
	return "POST /api/webhook HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + head + "\r\n\r\n" + body
}

func signed() string { return "Stripe-Signature: " + sign(secret, body, now) }

func length(n int) string { return fmt.Sprintf("Content-Length: %d", n) }

func (f *fortress) genuine(t *testing.T) {
	t.Helper()
	got := f.say(t, raw(signed()+"\r\nConnection: close\r\n"+length(len(body)), body), false)
	if fmt.Sprint(got) != "[200]" {
		t.Errorf("a genuine event is answered %v", got)
	}
}

// calm fails unless genuine events are still taken and nothing is left running.
func (f *fortress) calm(t *testing.T) {
	t.Helper()
	f.genuine(t)
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > f.idle || f.listener.Used() > 0 {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before; %d connections\n%s", runtime.NumGoroutine(), f.idle, f.listener.Used(), stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(5 * time.Millisecond) // goroutines end without telling
	}
	held := f.Handler.(*handler).held
	if !held.TryAcquire(f.allBodies) {
		t.Error("memory for bodies is not given back")
	}
}

func TestServerTimeouts(t *testing.T) {
	s := Server(nil, slog.New(slog.DiscardHandler))
	for name, timeout := range map[string]time.Duration{"header": s.ReadHeaderTimeout, "read": s.ReadTimeout, "write": s.WriteTimeout, "idle": s.IdleTimeout} {
		if timeout < 5*time.Second || timeout > 2*time.Minute {
			t.Errorf("%s: %v", name, timeout)
		}
	}
	if s.Protocols.HTTP2() || s.Protocols.UnencryptedHTTP2() {
		t.Error("HTTP/2 is spoken")
	}
}

func TestSlowSenders(t *testing.T) {
	f := newFortress(t, func(b *bounds) { b.timeouts = 10 })
	slow := map[string]struct{ at, drip, want string }{
		"nothing":         {"", "", "[]"},
		"slow headers":    {"POST /api/webhook HTTP/1.1\r\nHost: x\r\n", "X-A: b\r\n", "[]"},
		"half a line":     {"POST /api", "x", "[400]"},
		"no body":         {raw(signed()+"\r\n"+length(100), ""), "", "[400]"},
		"slow body":       {raw(signed()+"\r\n"+length(1000), ""), "x", "[400]"},
		"slow chunks":     {raw(signed()+"\r\nTransfer-Encoding: chunked", ""), "1\r\nx\r\n", "[400]"},
		"idle in the end": {raw(signed()+"\r\n"+length(len(body)), body), "", "[200]"},
	}
	before := f.stored.Load()
	// All of them at once, ten times.
	var attack sync.WaitGroup
	for name, sender := range slow {
		for range 10 {
			conn := f.dial(t)
			attack.Go(func() {
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					if got := answers(t, conn); fmt.Sprint(got) != sender.want {
						t.Errorf("%s: %v, want %s", name, got, sender.want)
					}
				}()
				io.WriteString(conn, sender.at)
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-ended:
						return
					case <-tick.C:
						if sender.drip != "" {
							io.WriteString(conn, sender.drip)
						}
					}
				}
			})
		}
	}
	f.genuine(t)
	attack.Wait()
	f.calm(t)
	if got := f.stored.Load() - before; got != 10+2 {
		t.Errorf("%d events are stored", got)
	}
}

// What is malformed or ambiguous ends the connection, and nothing behind it is
// taken for a request.
func TestRawRequests(t *testing.T) {
	good := raw(signed()+"\r\n"+length(len(body)), body)
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	for _, tt := range []struct {
		name, raw string
		halfClose bool
		want      string
		stored    int64
	}{
		{"huge header", raw(signed()+"\r\nX-Large: "+strings.Repeat("x", 64<<10), ""), false, "[431]", 0},
		{"huge line", "POST /" + strings.Repeat("x", 64<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n", false, "[431]", 0},
		{"many headers", raw(strings.Repeat("X-A: b\r\n", 8<<10)+"X: y", ""), false, "[431]", 0},
		{"chunks beyond the bound", raw(signed()+"\r\nTransfer-Encoding: chunked", strings.Repeat("64\r\n"+strings.Repeat("x", 100)+"\r\n", 1000)), false, "[413]", 0},
		{"one huge chunk", raw(signed()+"\r\nTransfer-Encoding: chunked", "7fffffff\r\n"+strings.Repeat("x", 5000)), false, "[413]", 0},
		{"a chunk too long to count", raw(signed()+"\r\nTransfer-Encoding: chunked", "ffffffffffffffffff\r\nx"), false, "[400]", 0},
		{"junk for a chunk", raw(signed()+"\r\nTransfer-Encoding: chunked", "zz\r\nx\r\n"), false, "[400]", 0},
		{"huge chunk extension", raw(signed()+"\r\nTransfer-Encoding: chunked", "1;"+strings.Repeat("x", 64<<10)+"\r\nx\r\n"), false, "[400]", 0},
		{"chunks without an end", raw(signed()+"\r\nTransfer-Encoding: chunked", fmt.Sprintf("%x\r\n%s\r\n", len(body), body)), true, "[400]", 0},
		{"shorter than announced", raw(signed()+"\r\n"+length(len(body)+1), body), true, "[400]", 0},
		{"longer than announced", raw(signed()+"\r\n"+length(len(body)-1), body), false, "[400]", 0},
		{"announced too large", raw(signed()+"\r\n"+length(1001), ""), false, "[413]", 0},
		{"announced beyond an int", raw(signed()+"\r\nContent-Length: 99999999999999999999", ""), false, "[400]", 0},
		{"negative length", raw(signed()+"\r\nContent-Length: -1", body), false, "[400]", 0},
		{"length with a sign", raw(signed()+"\r\nContent-Length: +5", body), false, "[400]", 0},
		{"length in hex", raw(signed()+"\r\nContent-Length: 0x10", body), false, "[400]", 0},
		{"two lengths", raw(signed()+"\r\n"+length(len(body))+"\r\n"+length(3), body), false, "[400]", 0},
		{"two lengths in one", raw(signed()+fmt.Sprintf("\r\nContent-Length: %d, 3", len(body)), body), false, "[400]", 0},
		{"no length", raw(signed(), body), false, "[400]", 0},
		{"unknown encoding", raw(signed()+"\r\nTransfer-Encoding: xchunked", chunked), false, "[501]", 0},
		{"identity", raw(signed()+"\r\nTransfer-Encoding: identity\r\n"+length(len(body)), body), false, "[501]", 0},
		{"two encodings", raw(signed()+"\r\nTransfer-Encoding: gzip, chunked", chunked), false, "[501]", 0},
		{"chunked twice", raw(signed()+"\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", chunked), false, "[501]", 0},
		{"space before the colon", raw(signed()+"\r\nTransfer-Encoding : chunked\r\n"+length(len(body)), body), false, "[400]", 0},
		{"folded header", raw(signed()+"\r\nX: a\r\n b\r\n"+length(2), "{}"), false, "[400]", 0},
		{"NUL in a header", raw(signed()+"\r\nX: a\x00b\r\n"+length(2), "{}"), false, "[400]", 0},
		// The length does not count then (RFC 9112, 6.3), and there is nothing behind.
		{"length and chunks", raw(signed()+"\r\nConnection: close\r\nContent-Length: 3\r\nTransfer-Encoding: chunked", chunked+good), false, "[200]", 1},
		{"no host", "POST /api/webhook HTTP/1.1\r\n\r\n", false, "[400]", 0},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", false, "[404]", 0},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", false, "[400]", 0},
		{"junk", strings.Repeat("\xff\r\n", 100), false, "[400]", 0},
		{"a wrong type", strings.Replace(good, "application/json", "text/plain", 1) + good, false, "[415]", 0},
		{"no type", strings.Replace(good, "Content-Type: application/json\r\n", "", 1), false, "[415]", 0},
		{"two types", strings.Replace(good, "application/json", "application/json, text/plain", 1), false, "[415]", 0},
		{"good, good", good + good, true, "[200 200]", 2},
		{"good, junk", good + strings.Repeat("junk\r\n", 10), false, "[200 400]", 1},
		{"good, forged, good", good + raw("Stripe-Signature: t=1,v1=00\r\n"+length(2), "{}") + good, false, "[200 400]", 1},
		{"100 forged in one go", strings.Repeat(raw("Stripe-Signature: t=1,v1=00\r\n"+length(2), "{}"), 100), false, "[400]", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFortress(t)
			before := f.stored.Load()
			if got := fmt.Sprint(f.say(t, tt.raw, tt.halfClose)); got != tt.want {
				t.Errorf("%s, want %s", got, tt.want)
			}
			if got := f.stored.Load() - before; got != tt.stored {
				t.Errorf("%d events are stored, want %d", got, tt.stored)
			}
			f.calm(t)
		})
	}
}

// 1,000 idle connections and 1,000 forgers keep no genuine event out.
func TestCrowd(t *testing.T) {
	f := newFortress(t, func(b *bounds) { b.timeouts = 1 })
	var idle []*net.TCPConn
	for range 1000 {
		idle = append(idle, f.dial(t))
	}
	forged := []byte(raw("Stripe-Signature: t="+fmt.Sprint(now.Unix())+",v1="+strings.Repeat("0", 64)+"\r\n"+length(len(body)), body))
	var attack sync.WaitGroup
	for range 1000 {
		conn := f.dial(t)
		attack.Go(func() {
			conn.Write(forged)
			if got := fmt.Sprint(answers(t, conn)); got != "[400]" {
				t.Errorf("a forger is answered %s", got)
			}
		})
	}
	before := f.stored.Load()
	for range 20 {
		f.genuine(t)
	}
	attack.Wait()
	if got := f.stored.Load() - before; got != 20 {
		t.Errorf("%d events are stored", got)
	}
	for _, conn := range idle {
		conn.Close()
	}
	f.calm(t)
}

// What is refused by its head costs no memory for its body.
func TestRefusedByTheHead(t *testing.T) {
	f := newFortress(t, func(b *bounds) { b.body = 1 << 20 })
	large := strings.Repeat("x", 512<<10)
	for name, head := range map[string]string{
		"type":      strings.Replace(raw(signed()+"\r\n"+length(len(large)), ""), "application/json", "text/plain", 1),
		"unsigned":  raw(length(len(large)), ""),
		"malformed": raw("Stripe-Signature: junk\r\n"+length(len(large)), ""),
		"too large": raw(signed()+"\r\n"+length(2<<20), ""),
		"path":      strings.Replace(raw(signed()+"\r\n"+length(len(large)), ""), "/api/webhook", "/", 1),
	} {
		request := []byte(head + large)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		const times = 50
		for range times {
			conn := f.dial(t)
			conn.Write(request)
			conn.CloseWrite()
			answers(t, conn)
			conn.Close()
		}
		runtime.ReadMemStats(&after)
		if each := (after.TotalAlloc - before.TotalAlloc) / times; each > 128<<10 {
			t.Errorf("%s: %d bytes for each request", name, each)
		}
	}
	f.calm(t)
}

// Bodies take memory as they arrive, within a bound for all; beyond it a sender
// comes again.
func TestBodiesAreBounded(t *testing.T) {
	f := newFortress(t, func(b *bounds) { b.body, b.allBodies = 1<<20, 4*bodyStep })
	h := f.Handler.(*handler)
	announce := func(sent int) *net.TCPConn {
		conn := f.dial(t)
		io.WriteString(conn, raw(signed()+"\r\n"+length(1<<20), strings.Repeat("x", sent)))
		return conn
	}
	before := outcomes(t, f.door)["busy"]
	announce(10)
	announce(10)
	f.genuine(t)
	// It needs more than there is.
	if got := fmt.Sprint(answers(t, announce(5*bodyStep))); got != "[503]" {
		t.Errorf("a body too many is answered %s", got)
	}
	if got := outcomes(t, f.door)["busy"] - before; got != 1 {
		t.Errorf("%v requests count as busy", got)
	}
	f.genuine(t)
	if h.held.TryAcquire(4 * bodyStep) {
		t.Error("bodies in the middle hold no memory")
	}
	f.calm(t)
}

func TestBodyThatGrows(t *testing.T) {
	f := newFortress(t, func(b *bounds) { b.body = 1 << 20 })
	large := body[:len(body)-1] + `,"x":"` + strings.Repeat("y", 700_000) + `"}`
	got := f.say(t, raw("Stripe-Signature: "+sign(secret, large, now)+"\r\nConnection: close\r\n"+length(len(large)), large), false)
	if fmt.Sprint(got) != "[200]" {
		t.Errorf("%v", got)
	}
	f.calm(t)
}

// Beyond the bound a connection is answered 503 at once, and places are free
// again as connections end.
func TestTooManyConnections(t *testing.T) {
	f := newFortress(t, func(b *bounds) { b.places, b.timeouts = 3, 1 })
	var held []*net.TCPConn
	for range 3 {
		held = append(held, f.dial(t))
	}
	eventually(t, "all places are taken", func() bool { return f.listener.Used() == 3 })
	for range 128 {
		conn := f.dial(t)
		io.WriteString(conn, raw(signed()+"\r\n"+length(len(body)), body))
		answer, err := io.ReadAll(conn)
		conn.Close()
		if f.listener.Used() < 3 {
			break // the first time out
		}
		if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 503 ")) || !bytes.Contains(answer, []byte("\r\nRetry-After: 5\r\n")) {
			t.Fatalf("%q, %v", answer, err)
		}
	}
	families, err := f.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	refused := 0.0
	for _, family := range families {
		if family.GetName() == "ordergate_ingress_connections_refused_total" {
			refused = family.GetMetric()[0].GetCounter().GetValue()
		}
	}
	if refused == 0 {
		t.Error("refusals are not counted")
	}
	for _, conn := range held {
		conn.Close()
	}
	eventually(t, "a place is free", func() bool { return f.listener.Used() < 3 })
	f.calm(t)
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
