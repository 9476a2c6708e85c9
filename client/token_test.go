package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/local"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/ordergate/ordergate/client"
)

// A token file is read for each call, and its problems are temporary.
func TestTokenFile(t *testing.T) {
	server, addr := startTokenServer(t)
	file := filepath.Join(t.TempDir(), "token")
	for _, tt := range []struct {
		content string
		came    string
		code    codes.Code
	}{
		{"ogt_first\n", "Bearer ogt_first", codes.OK},
		{" ogt_second\r\n", "Bearer ogt_second", codes.OK},
		{"", "", codes.Unavailable},
		{"ogt_a\nogt_b", "", codes.Unavailable},
		{"ogt_ä", "", codes.Unavailable},
		{strings.Repeat("x", 8<<10+1), "", codes.Unavailable},
	} {
		if err := os.WriteFile(file, []byte(tt.content), 0o600); err != nil {
			t.Fatal(err)
		}
		options, err := client.Credentials{TokenSource: client.TokenFile(file)}.DialOptions(addr)
		if err != nil {
			t.Fatal(err)
		}
		came, err := server.check(t, addr, options...)
		if status.Code(err) != tt.code || strings.Join(came, "") != tt.came {
			t.Errorf("%.20q: %q came, %v", tt.content, came, err)
		}
		if err != nil && (!strings.Contains(err.Error(), "token source") || tt.content != "" && strings.Contains(err.Error(), tt.content)) {
			t.Errorf("%.20q: %v", tt.content, err)
		}
	}
	if _, err := client.TokenFile(filepath.Join(t.TempDir(), "none"))(t.Context()); err == nil {
		t.Error("no error for a missing file")
	}
}

// here makes a connection in memory look local.
type here struct{ net.Conn }

func (here) RemoteAddr() net.Addr { return &net.UnixAddr{Net: "unix", Name: "gate.sock"} }

// localClient returns a client that may send tokens.
func (h *host) localClient(t *testing.T, token grpc.DialOption) *client.Client {
	return h.client(t, token, grpc.WithTransportCredentials(local.NewCredentials()), grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		conn, err := h.dial(ctx, addr)
		return here{conn}, err
	}))
}

// A stream that is refused for its token is opened again with a new one. The second refusal of the
// same token is final, and so is the first without a source.
func TestTokenSourceRenews(t *testing.T) {
	for _, tt := range []struct {
		name   string
		tokens []string // one for each stream; the last one for all others
		failed error    // of the source, the first time
		came   []string
		ends   bool
	}{
		{"renewed", []string{"old", "new"}, nil, []string{"old", "new"}, false},
		{"renewed twice", []string{"old", "older", "new"}, nil, []string{"old", "older", "new"}, false},
		{"not renewed", []string{"old"}, nil, []string{"old", "old"}, true},
		{"failed once", []string{"", "new"}, errors.New("no answer"), []string{"new"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var came notes
				scene := func(l *line) error {
					sent, _ := metadata.FromIncomingContext(l.s.Context())
					token := strings.TrimPrefix(strings.Join(sent.Get("authorization"), ","), "Bearer ")
					came.add("%s", token)
					if token != "new" {
						return status.Error(codes.Unauthenticated, "unknown token")
					}
					l.opened(30 * time.Second)
					return l.serve()
				}
				d := newDesk(t, scene, scene, scene, scene)
				var asked atomic.Int32
				source := func(context.Context) (string, error) {
					n := int(asked.Add(1))
					if n == 1 && tt.failed != nil {
						return "", tt.failed
					}
					return tt.tokens[min(n, len(tt.tokens))-1], nil
				}
				w := consume(t, d.localClient(t, client.WithTokenSource(source)), idle, client.ConsumeOptions{})
				pass(20 * time.Second)
				if tt.ends {
					if err := w.wait(); status.Code(err) != codes.Unauthenticated {
						t.Error(err)
					}
				} else {
					w.stop()
				}
				expect(t, "came", tt.came, came.all())
			})
		})
	}
	t.Run("without a source", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d := newDesk(t, func(*line) error { return status.Error(codes.Unauthenticated, "unknown token") })
			w := consume(t, d.localClient(t, client.WithToken("old")), idle, client.ConsumeOptions{})
			if err := w.wait(); status.Code(err) != codes.Unauthenticated || d.calls() != 1 {
				t.Error(fmt.Sprint(d.calls(), " streams: "), err)
			}
		})
	})
}
