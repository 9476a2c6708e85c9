package natsconn_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/ordergate/ordergate/internal/authtest"
	"github.com/ordergate/ordergate/internal/natsconn"
)

func start(t *testing.T, options *server.Options) string {
	t.Helper()
	options.Host, options.Port, options.NoSigs = "127.0.0.1", -1, true
	s, err := server.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("it does not start")
	}
	return s.ClientURL()
}

func write(t *testing.T, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// key makes a key pair, and returns it with its public key and its seed.
func key(t *testing.T, make func() (nkeys.KeyPair, error)) (pair nkeys.KeyPair, public string, seed []byte) {
	t.Helper()
	pair, err := make()
	if err == nil {
		public, err = pair.PublicKey()
	}
	if err == nil {
		seed, err = pair.Seed()
	}
	if err != nil {
		t.Fatal(err)
	}
	return pair, public, seed
}

// expect connects, and checks that it works, or that it is refused with what to mend.
func expect(t *testing.T, c natsconn.Config, refusal string) {
	t.Helper()
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	conn, err := natsconn.Connect(t.Context(), c, "test", nil)
	if refusal == "" {
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		return
	}
	if !errors.Is(err, natsconn.ErrConfig) || !strings.Contains(err.Error(), refusal) {
		t.Errorf("%v, want a refusal with %q", err, refusal)
	}
}

func TestNKey(t *testing.T) {
	_, public, seed := key(t, nkeys.CreateUser)
	_, _, stranger := key(t, nkeys.CreateUser)
	url := start(t, &server.Options{Nkeys: []*server.NkeyUser{{Nkey: public}}})
	expect(t, natsconn.Config{URLs: []string{url}, NKey: write(t, seed)}, "")
	expect(t, natsconn.Config{URLs: []string{url}, NKey: write(t, stranger)}, "--nats-nkey")
	expect(t, natsconn.Config{URLs: []string{url}, NKey: write(t, []byte("no seed"))}, "--nats-nkey")
	expect(t, natsconn.Config{URLs: []string{url}}, "does not know these credentials")
}

func TestCredentialsFile(t *testing.T) {
	operator, operatorKey, _ := key(t, nkeys.CreateOperator)
	account, accountKey, _ := key(t, nkeys.CreateAccount)
	_, userKey, userSeed := key(t, nkeys.CreateUser)
	signed, err := jwt.NewAccountClaims(accountKey).Encode(operator)
	if err != nil {
		t.Fatal(err)
	}
	resolver := &server.MemAccResolver{}
	if err := resolver.Store(accountKey, signed); err != nil {
		t.Fatal(err)
	}
	url := start(t, &server.Options{TrustedKeys: []string{operatorKey}, AccountResolver: resolver})
	user, err := jwt.NewUserClaims(userKey).Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := jwt.FormatUserConfig(user, userSeed)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, natsconn.Config{URLs: []string{url}, Creds: write(t, creds)}, "")
	expired := jwt.NewUserClaims(userKey)
	expired.Expires = time.Now().Add(-time.Hour).Unix()
	if user, err = expired.Encode(account); err != nil {
		t.Fatal(err)
	}
	if creds, err = jwt.FormatUserConfig(user, userSeed); err != nil {
		t.Fatal(err)
	}
	expect(t, natsconn.Config{URLs: []string{url}, Creds: write(t, creds)}, "--nats-creds")
}

func TestPasswordIsNotTold(t *testing.T) {
	url := start(t, &server.Options{Username: "shop", Password: "right-one"})
	with := func(password string) natsconn.Config {
		return natsconn.Config{URLs: []string{strings.Replace(url, "nats://", "nats://shop:"+password+"@", 1)}}
	}
	expect(t, with("right-one"), "")
	c := with("wrong-one")
	expect(t, c, "does not know")
	if _, err := natsconn.Connect(t.Context(), c, "test", nil); err == nil || strings.Contains(err.Error(), "wrong-one") {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	ca, strangers := authtest.NewCA(t), authtest.NewCA(t)
	certFile, keyFile := ca.Issue(t, "127.0.0.1")
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	authority, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority)
	url := start(t, &server.Options{TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}, TLSVerify: true, TLSTimeout: 5})
	url = strings.Replace(url, "nats://", "tls://", 1)
	clientCert, clientKey := ca.Issue(t, "ordergate")
	expect(t, natsconn.Config{URLs: []string{url}, CA: ca.File, Cert: clientCert, Key: clientKey}, "")
	expect(t, natsconn.Config{URLs: []string{url}, CA: strangers.File, Cert: clientCert, Key: clientKey}, "--nats-ca")
	// The server may close the connection before it says why.
	if _, err := natsconn.Connect(t.Context(), natsconn.Config{URLs: []string{url}, CA: ca.File}, "test", nil); err == nil {
		t.Error("it lets in who shows no certificate")
	}
}

// A connection that is lost says so, and stays closed.
func TestLostConnection(t *testing.T) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("it does not start")
	}
	c := natsconn.Config{URLs: []string{s.ClientURL()}}
	ended := make(chan error, 1)
	conn, err := natsconn.Connect(t.Context(), c, "test", func(err error) { ended <- err })
	if err != nil {
		t.Fatal(err)
	}
	s.Shutdown()
	s.WaitForShutdown()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody is told")
	}
	if !conn.IsClosed() {
		t.Error("it is open")
	}
	if _, err := natsconn.Connect(t.Context(), c, "test", nil); err == nil || errors.Is(err, natsconn.ErrConfig) || !strings.Contains(err.Error(), "is it running") {
		t.Errorf("a server that is away: %v", err)
	}
}
