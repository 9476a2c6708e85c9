//go:build !race

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/internal/authtest"
	"github.com/ordergate/ordergate/internal/logtest"
	"github.com/ordergate/ordergate/internal/sample"
	"github.com/ordergate/ordergate/internal/stripehook"
)

var allAttacks = flag.Bool("all-attacks", false, "let TestAnonymousAttacks make all attacks instead of a third of them")

const (
	// attackTime is the duration of one attack.
	attackTime = 1200 * time.Millisecond
	// attackedMemory bounds the resident memory of a gateway under attack.
	attackedMemory = 250 << 20
	// genuineTime bounds a genuine call during an attack.
	genuineTime = 3 * time.Second

	megabyte = 1 << 20
)

// attacked is a gateway in a process of its own, with TLS and an access file, and the connections of
// its genuine callers.
type attacked struct {
	*crashing
	tls    *tls.Config // trusts the gateway, without a client certificate
	token  string      // of a reader
	orders ordergatev1.OrderServiceClient
	admin  *http.Client
	secret stripehook.Secret
	// orderID is the order that genuine callers read.
	orderID string
}

func startAttacked(ctx context.Context, t *testing.T) *attacked {
	ca, access := authtest.NewCA(t), filepath.Join(t.TempDir(), "access")
	token, line := authtest.Token(t, "rita", "reader")
	authtest.WriteFile(t, access, line)
	cert, key := ca.Issue(t, "localhost", "127.0.0.1")
	a := &attacked{crashing: newCrashing(t), tls: ca.Client(t, "", ""), token: token}
	a.stderr = new(logtest.Tail) // it refuses a lot
	a.args = []string{"--tls-cert", cert, "--tls-key", key, "--access-file", access}
	transport := &http.Transport{TLSClientConfig: a.tls.Clone()}
	t.Cleanup(transport.CloseIdleConnections)
	a.admin = &http.Client{Transport: transport}
	a.launch()
	waitFor(ctx, t, "ready", func() bool {
		response, err := a.admin.Get("https://" + a.crashing.admin + "/readyz")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	options, err := client.Credentials{Token: token, CAFile: ca.File}.DialOptions(a.grpc)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(a.grpc, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	a.orders = ordergatev1.NewOrderServiceClient(conn)
	secrets, err := stripehook.ParseSecrets(crashSecret)
	if err != nil {
		t.Fatal(err)
	}
	a.secret = secrets[0]
	story, err := sample.Story(sample.Completed, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a.orderID = story[0].OrderID
	if err := post(ctx, "http://"+a.ingress+"/api/webhook", a.secret, story[0].Body); err != nil {
		t.Fatal(err)
	}
	waitFor(ctx, t, "the first order", func() bool { return a.readOrder(ctx) == nil })
	return a
}

func (a *attacked) readOrder(ctx context.Context) error {
	_, err := a.orders.GetOrder(ctx, &ordergatev1.GetOrderRequest{OrderId: a.orderID})
	return err
}

// webhook sends a new order over a connection of its own.
func (a *attacked) webhook(ctx context.Context) error {
	story, err := sample.Story(sample.Completed, time.Now())
	if err != nil {
		return err
	}
	defer http.DefaultClient.CloseIdleConnections()
	return post(ctx, "http://"+a.ingress+"/api/webhook", a.secret, story[0].Body)
}

func (a *attacked) listOrders(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+a.crashing.admin+"/v1/orders?page_size=1", nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+a.token)
	response, err := a.admin.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err == nil && (response.StatusCode != http.StatusOK || !bytes.Contains(answer, []byte("cs_"))) {
		err = fmt.Errorf("%s %.200s", response.Status, answer)
	}
	return err
}

// genuine makes a genuine call on each listener.
func (a *attacked) genuine(ctx context.Context) error {
	for name, call := range map[string]func(context.Context) error{"webhook": a.webhook, "GetOrder": a.readOrder, "GET /v1/orders": a.listOrders} {
		ctx, cancel := context.WithTimeout(ctx, genuineTime)
		err := call(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// attacker is one connection of an anonymous caller.
type attacker struct {
	net.Conn
	sent *atomic.Int64 // bytes, of all attackers
}

func (a attacker) Write(p []byte) (int, error) {
	n, err := a.Conn.Write(p)
	a.sent.Add(int64(n))
	return n, err
}

// dial connects to a listener, with TLS unless it is the ingress. It returns nil if the gateway
// refuses the connection.
func (a *attacked) dial(ctx context.Context, addr, protocol string) net.Conn {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil
	}
	if addr == a.ingress || protocol == "" {
		return conn
	}
	cfg := a.tls.Clone()
	cfg.ServerName, cfg.NextProtos = "127.0.0.1", []string{protocol}
	secured := tls.Client(conn, cfg)
	if secured.HandshakeContext(ctx) != nil {
		conn.Close()
		return nil
	}
	return secured
}

// flood sends a head and then so many bytes of body, whatever the gateway answers.
func flood(head string, size int) func(context.Context, attacker) {
	return func(_ context.Context, conn attacker) {
		go io.Copy(io.Discard, conn)
		if _, err := io.WriteString(conn, head); err != nil {
			return
		}
		chunk := make([]byte, 64<<10)
		for range size / len(chunk) {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
	}
}

// drip sends a head, and then one byte at a time for as long as the attack lasts.
func drip(head, bytes string) func(context.Context, attacker) {
	return func(ctx context.Context, conn attacker) {
		io.WriteString(conn, head)
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if bytes != "" {
					conn.Write([]byte{bytes[i%len(bytes)]})
				}
			}
		}
	}
}

// padding is the metadata of a stream: its size in bytes, and whether it is compressed: each field
// then costs the caller one byte and the gateway thousands (an HPACK bomb).
type padding struct {
	size       int
	compressed bool
}

// streams opens so many HTTP/2 streams, sends body bytes on each of them, and holds them open.
func streams(path string, count int, m padding, body int) func(context.Context, attacker) {
	const field, frame = 3 << 10, 16 << 10
	return func(ctx context.Context, conn attacker) {
		go io.Copy(io.Discard, conn)
		io.WriteString(conn, http2.ClientPreface)
		framer := http2.NewFramer(conn, nil)
		framer.WriteSettings()
		var block bytes.Buffer
		encoder := hpack.NewEncoder(&block)
		for i := range count {
			block.Reset()
			for _, f := range []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: path},
				{Name: ":authority", Value: "localhost"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}} {
				encoder.WriteField(f)
			}
			for range m.size / field {
				encoder.WriteField(hpack.HeaderField{Name: "padding", Value: strings.Repeat("~", field), Sensitive: !m.compressed})
			}
			id := uint32(2*i + 1)
			first := block.Next(frame)
			if framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndHeaders: block.Len() == 0}) != nil {
				return
			}
			for block.Len() > 0 {
				next := block.Next(frame)
				if framer.WriteContinuation(id, block.Len() == 0, next) != nil {
					return
				}
			}
			// A gRPC message begins with a flag and its length.
			message := append([]byte{0, byte(body >> 24), byte(body >> 16), byte(body >> 8), byte(body)}, make([]byte, body)...)
			for part := range slices.Chunk(message, frame) {
				if framer.WriteData(id, false, part) != nil {
					return
				}
			}
		}
		<-ctx.Done()
	}
}

// TestAnonymousAttacks has anonymous callers send large bodies, many connections, many streams with
// large metadata and slow bytes to each listener. The gateway's memory stays bounded, and genuine
// callers are served in the meantime.
func TestAnonymousAttacks(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	a := startAttacked(ctx, t)
	const (
		watch = "/grpc.health.v1.Health/Watch"
		order = "/ordergate.v1.OrderService/GetOrder"
	)
	post := func(path, header string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + header
	}
	length := fmt.Sprintf("Content-Length: %d\r\n\r\n", 64*megabyte)
	signature := fmt.Sprintf("Stripe-Signature: t=%d,v1=%s\r\n", time.Now().Unix(), strings.Repeat("0", 64))
	for i, tt := range []struct {
		name, addr, protocol string
		callers              int
		attack               func(context.Context, attacker)
	}{
		{"ingress: large bodies", a.ingress, "", 16, flood(post("/api/webhook", signature+length), 64*megabyte)},
		{"ingress: chunks without an end", a.ingress, "", 16, flood(post("/api/webhook", signature+"Transfer-Encoding: chunked\r\n\r\n4000000\r\n"), 64*megabyte)},
		{"ingress: large headers", a.ingress, "", 64, flood(post("/api/webhook", "X-Padding: "), 16*megabyte)},
		{"ingress: connections with slow bodies", a.ingress, "", 2000, drip(post("/api/webhook", signature+"Content-Length: 1000000\r\n\r\n"), "x")},
		{"gRPC: connections without TLS", a.grpc, "", 1500, drip("", "\x16\x03\x01\x02")},
		{"gRPC: connections with slow prefaces", a.grpc, "h2", 500, drip("PRI * ", "HTTP/2.0")},
		{"gRPC: streams with large metadata", a.grpc, "h2", 16, streams(watch, 1000, padding{14 << 10, false}, 0)},
		{"gRPC: streams with huge metadata", a.grpc, "h2", 16, streams(watch, 4, padding{15 << 20, false}, 0)},
		{"gRPC: streams with compressed metadata", a.grpc, "h2", 16, streams(watch, 200, padding{15 << 20, true}, 0)},
		{"gRPC: streams with large messages", a.grpc, "h2", 16, streams(watch, 200, padding{}, 200<<10)},
		{"gRPC: large bodies", a.grpc, "h2", 16, streams(order, 16, padding{}, 4*megabyte)},
		{"admin: connections without TLS", a.crashing.admin, "", 1500, drip("", "\x16\x03\x01\x02")},
		{"admin: large bodies", a.crashing.admin, "http/1.1", 16, flood(post("/v1/orders/cs_1:hold", length), 64*megabyte)},
		{"admin: connections with slow bodies", a.crashing.admin, "http/1.1", 500, drip(post("/v1/orders/cs_1:hold", "Content-Length: 1000\r\n\r\n"), "x")},
		{"admin: connections with slow headers", a.crashing.admin, "http/1.1", 500, drip("GET /v1/orders:watch HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", "x")},
		{"admin: streams with huge metadata", a.crashing.admin, "h2", 16, streams("/v1/orders:watch", 4, padding{15 << 20, false}, 0)},
		{"admin: streams with compressed metadata", a.crashing.admin, "h2", 16, streams("/v1/orders:watch", 200, padding{15 << 20, true}, 0)},
		{"admin: streams with large bodies", a.crashing.admin, "h2", 16, streams("/v1/orders:erase", 200, padding{24 << 10, true}, 60<<10)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !*allAttacks && i%3 != 2 { // each listener has some of the rest
				t.Skip("the flag -all-attacks is not set")
			}
			attack, stop := context.WithTimeout(ctx, attackTime)
			defer stop()
			var sent, connected atomic.Int64
			var attackers sync.WaitGroup
			for range tt.callers {
				attackers.Go(func() {
					conn := a.dial(attack, tt.addr, tt.protocol)
					if conn == nil {
						return
					}
					connected.Add(1)
					defer conn.Close()
					defer context.AfterFunc(attack, func() { conn.Close() })()
					tt.attack(attack, attacker{conn, &sent})
				})
			}
			var peak int64
			var served int
			for done := false; !done; {
				done = attack.Err() != nil // one more when the attack has ended
				if err := a.genuine(ctx); err != nil {
					t.Errorf("genuine call: %v", err)
				}
				served++
				peak = max(peak, a.memory())
			}
			attackers.Wait()
			t.Logf("%d connections, %d MB sent, resident at most %d MB; %d rounds of genuine calls", connected.Load(), sent.Load()/megabyte, peak/megabyte, served)
			if peak > attackedMemory {
				t.Errorf("the gateway has %d MB resident, more than %d MB", peak/megabyte, attackedMemory/megabyte)
			}
			if connected.Load() == 0 {
				t.Error("no attacker got a connection")
			}
		})
	}
}
