package auth_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/authtest"
)

const patience = 20 * time.Second

// logged is what a logger wrote.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// load reads an access file with this content, and watches it until the test
// ends.
func load(t *testing.T, content string) (access *auth.Access, file string, log *logged) {
	t.Helper()
	file, log = filepath.Join(t.TempDir(), "access"), &logged{}
	authtest.WriteFile(t, file, content)
	access, err := auth.Load(auth.Config{File: file, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	var watching sync.WaitGroup
	watching.Go(func() { access.Watch(t.Context()) })
	t.Cleanup(watching.Wait)
	return access, file, log
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func bearer(token string) auth.Shown {
	return auth.Shown{Authorization: []string{"Bearer " + token}, Private: true}
}

func certificate(t *testing.T, ca *authtest.CA, until time.Time, names ...string) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(ca.IssueUntil(t, until, names...))
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

func TestAuthenticate(t *testing.T) {
	ca := authtest.NewCA(t)
	soon := time.Now().Add(time.Hour)
	alice, aliceLine := authtest.Token(t, "alice", "operator")
	shop, shopLine := authtest.Token(t, "shop", "subscriber", "shipping", "labels")
	access, _, _ := load(t, "# who\n\n"+aliceLine+"  "+strings.TrimSpace(shopLine)+" # the shop\r\n"+
		"robot reader san:spiffe://shop/robot\nhost reader san:Robot.Example.com\n")
	shown := func(certificate *x509.Certificate, authorization ...string) auth.Shown {
		return auth.Shown{Authorization: authorization, Certificate: certificate, Private: true}
	}
	robot := certificate(t, ca, soon, "robot.example.com", "spiffe://shop/robot")
	for _, tt := range []struct {
		name  string
		shown auth.Shown
		want  string // empty: refused
		says  string
	}{
		{"a token", bearer(alice), "alice", ""},
		{"a subscriber's", bearer(shop), "shop", ""},
		{"small letters", shown(nil, "bearer "+alice), "alice", ""},
		{"nothing", shown(nil), "", "no credential came"},
		{"an unknown token", bearer(auth.NewToken()), "", "not accepted"},
		{"nearly a token", bearer(alice[:len(alice)-1] + "-"), "", "not accepted"},
		{"half a token", bearer(alice[:20]), "", "not accepted"},
		{"a token with a blank", bearer(alice + " "), "", "not accepted"},
		{"no scheme", shown(nil, alice), "", "not accepted"},
		{"another scheme", shown(nil, "Basic "+alice), "", "not accepted"},
		{"empty", shown(nil, ""), "", "not accepted"},
		{"two tokens", shown(nil, "Bearer "+alice, "Bearer "+shop), "", "not accepted"},
		{"a token over plaintext", auth.Shown{Authorization: []string{"Bearer " + alice}}, "", "plaintext"},
		{"a wrong token over plaintext", auth.Shown{Authorization: []string{"Bearer " + auth.NewToken()}}, "", "plaintext"},
		{"a URI before a DNS name", shown(robot), "robot", ""},
		{"a DNS name", shown(certificate(t, ca, soon, "other.example.com", "ROBOT.example.com")), "host", ""},
		{"a certificate without a name that counts", shown(certificate(t, ca, soon, "127.0.0.1", "x.robot.example.com")), "", "not accepted"},
		{"a certificate that has expired meanwhile", shown(certificate(t, ca, time.Now().Add(-time.Second), "robot.example.com")), "", "not accepted"},
		{"a token alone counts", shown(robot, "Bearer "+alice), "alice", ""},
		{"a wrong token and a good certificate", shown(robot, "Bearer "+auth.NewToken()), "", "not accepted"},
		{"the gateway itself", auth.Own(), "the gateway itself", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := access.Authenticate(tt.shown)
			if tt.want != "" {
				if err != nil || p.Name != tt.want {
					t.Errorf("%v, %v", p, err)
				}
				return
			}
			var unknown *auth.UnauthenticatedError
			if !errors.As(err, &unknown) || p != nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v, %v", p, err)
			}
		})
	}
	for name, access := range map[string]*auth.Access{"nil": nil, "zero": {}} {
		if p, err := access.Authenticate(bearer(alice)); err == nil {
			t.Errorf("the %s access list lets %s in", name, p.Name)
		}
	}
	if p, err := auth.Everybody().Authenticate(auth.Shown{}); err != nil || p.Role != auth.Operator {
		t.Errorf("everybody: %v, %v", p, err)
	}
}

// No answer differs by how close a token came.
func TestErrorsDoNotTellHowNear(t *testing.T) {
	token, line := authtest.Token(t, "alice", "operator")
	access, _, _ := load(t, line)
	said := map[string]bool{}
	for _, near := range []string{auth.NewToken(), token[:len(token)-2] + "AA", token[:10], "x", "ogt_", strings.ToUpper(token)} {
		_, err := access.Authenticate(bearer(near))
		if err == nil {
			t.Fatalf("%s is accepted", near)
		}
		said[err.Error()] = true
	}
	if len(said) != 1 {
		t.Errorf("answers differ: %v", said)
	}
}

// PlaintextTokens is what --insecure says.
func TestPlaintextTokens(t *testing.T) {
	token, line := authtest.Token(t, "alice", "operator")
	file := filepath.Join(t.TempDir(), "access")
	authtest.WriteFile(t, file, line)
	access, err := auth.Load(auth.Config{File: file, PlaintextTokens: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := access.Authenticate(auth.Shown{Authorization: []string{"Bearer " + token}}); err != nil || p.Name != "alice" {
		t.Errorf("%v, %v", p, err)
	}
}

func TestAccessFileProblems(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	token := auth.NewToken()
	content := strings.Join([]string{
		"a reader sha256:" + hash,
		"b reader",
		"c emperor sha256:" + strings.Repeat("00", 32),
		"# a comment",
		"d reader " + token,
		"e reader sha256:abcd",
		"f subscriber san:f",
		"g operator san:g shipping",
		"h subscriber san:h Shipping,",
		"i reader password",
		"a reader san:z",
		"j reader sha256:" + strings.ToUpper(hash),
		token + " reader san:k",
		"k " + token + " san:",
		token,
		"l subscriber san:l one two",
		"m subscriber san:m " + token,
		"bad/name nobody nothing",
	}, "\n")
	file := filepath.Join(t.TempDir(), "access")
	authtest.WriteFile(t, file, content)
	_, err := auth.Load(auth.Config{File: file, Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	for _, want := range []string{
		"line 2: has 2 fields", "line 3: the role is none", "line 5: the credential is a token itself", "line 6: the credential is no SHA-256",
		"line 7: a subscriber needs", "line 8: subscriptions are for the role subscriber", "line 9: a subscription's name is none",
		"line 10: the credential is none", "line 11: the name is that of line 1 too", "line 12: the credential is that of line 1 too",
		"line 13: the name is none", "line 14: the role is none", "line 14: the credential is none", "line 15: has 1 fields",
		"line 16: has 5 fields", "line 17: a subscription's name is none",
		"line 18: the name is none", "line 18: the role is none", "line 18: the credential is none",
	} {
		if len(lines) == 0 || !strings.HasPrefix(lines[0], file+" "+want) {
			t.Fatalf("want %q, is %q", want, lines)
		}
		lines = lines[1:]
	}
	if len(lines) > 0 {
		t.Errorf("more: %q", lines)
	}
	if strings.Contains(err.Error(), token) || strings.Contains(err.Error(), "password") || strings.Contains(err.Error(), "abab") {
		t.Errorf("an error tells a credential: %v", err)
	}
	if _, err := auth.Load(auth.Config{File: file + "-none", Logger: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "tokens create") {
		t.Errorf("no file: %v", err)
	}
}

// Who is changed or removed loses what it had, at once; who stays keeps it. A
// file that cannot be used changes nothing.
func TestReload(t *testing.T) {
	alice, aliceLine := authtest.Token(t, "alice", "operator")
	bob, bobLine := authtest.Token(t, "bob", "reader")
	eve, eveLine := authtest.Token(t, "eve", "subscriber", "shipping")
	access, file, log := load(t, aliceLine+bobLine+eveLine)
	contexts := map[string]context.Context{}
	for name, token := range map[string]string{"alice": alice, "bob": bob, "eve": eve} {
		call, err := access.Admit(ordergatev1.OrderService_WatchOrders_FullMethodName, bearer(token))
		if err != nil || call.Name() != name {
			t.Fatalf("%v, %v", call, err)
		}
		ctx, cancel := call.While(t.Context())
		defer cancel()
		contexts[name] = ctx
	}
	authtest.WriteFile(t, file, "alice\n")
	eventually(t, "the problem is logged", func() bool { return strings.Contains(log.String(), "line 1: has 1 fields") })
	os.Remove(file)
	eventually(t, "the missing file is logged", func() bool { return strings.Contains(log.String(), "a file cannot be read") })
	for name, ctx := range contexts {
		if ctx.Err() != nil {
			t.Errorf("%s is out because of a broken file", name)
		}
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 2 {
		t.Errorf("%d errors are logged:\n%s", n, log)
	}

	carol, carolLine := authtest.Token(t, "carol", "reader")
	authtest.WriteFile(t, file, carolLine+strings.Replace(eveLine, "shipping", "labels", 1)+"# moved\n"+aliceLine)
	for _, name := range []string{"bob", "eve"} {
		select {
		case <-contexts[name].Done():
		case <-time.After(patience):
			t.Fatalf("%s is still in", name)
		}
		var unknown *auth.UnauthenticatedError
		if err := context.Cause(contexts[name]); !errors.As(err, &unknown) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if contexts["alice"].Err() != nil {
		t.Error("alice is out although her line is the same")
	}
	if _, err := access.Authenticate(bearer(bob)); err == nil {
		t.Error("bob is still known")
	}
	for _, token := range []string{alice, carol, eve} {
		if _, err := access.Authenticate(bearer(token)); err != nil {
			t.Error(err)
		}
	}
	// One who was let in just before, and begins only now.
	call, err := access.Admit(ordergatev1.OrderService_WatchOrders_FullMethodName, bearer(alice))
	if err != nil {
		t.Fatal(err)
	}
	authtest.WriteFile(t, file, "")
	<-contexts["alice"].Done()
	late, cancel := call.While(t.Context())
	defer cancel()
	<-late.Done()
	if _, err := access.Authenticate(bearer(alice)); err == nil {
		t.Error("an empty file lets somebody in")
	}
}

func TestLooseModeIsWarnedOf(t *testing.T) {
	_, line := authtest.Token(t, "alice", "operator")
	file, log := filepath.Join(t.TempDir(), "access"), &logged{}
	for mode, warned := range map[os.FileMode]bool{0o600: false, 0o400: false, 0o640: true, 0o604: true} {
		os.Remove(file)
		authtest.WriteFile(t, file, line)
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		log.text.Reset()
		if _, err := auth.Load(auth.Config{File: file, Logger: log.logger()}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(log.String(), "chmod 600"); got != warned {
			t.Errorf("%v: warned %v", mode, got)
		}
	}
}

func TestAppend(t *testing.T) {
	file := filepath.Join(t.TempDir(), "access")
	_, alice := authtest.Token(t, "alice", "operator")
	if err := auth.Append(file, strings.TrimSpace(alice)); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	// By hand, without a line's end.
	authtest.WriteFile(t, file, alice+"robot reader san:robot")
	_, bob := authtest.Token(t, "bob", "reader")
	if err := auth.Append(file, strings.TrimSpace(bob)); err != nil {
		t.Fatal(err)
	}
	want := alice + "robot reader san:robot\n" + bob
	_, second := authtest.Token(t, "alice", "reader")
	if err := auth.Append(file, strings.TrimSpace(second)); err == nil || !strings.Contains(err.Error(), "line 4: the name is that of line 1 too") {
		t.Errorf("a name twice: %v", err)
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != want {
		t.Errorf("%s%v", got, err)
	}
	for _, tt := range []struct {
		name, role    string
		subscriptions []string
	}{{"a b", "reader", nil}, {"a", "none", nil}, {"a", "subscriber", nil}, {"a", "reader", []string{"x"}}, {"a", "subscriber", []string{"x,"}}} {
		if line, err := auth.Line(tt.name, tt.role, tt.subscriptions, auth.NewToken()); err == nil {
			t.Errorf("%v: %s", tt, line)
		}
	}
}

// A ticket is good while its request lasts, alone, and nothing else is.
func TestHandOver(t *testing.T) {
	token, line := authtest.Token(t, "alice", "operator")
	access, _, _ := load(t, line)
	ticket, done := access.HandOver(bearer(token))
	name := func(tickets ...string) string {
		p, err := access.Authenticate(access.HandedOver(tickets))
		if err != nil {
			return "nobody"
		}
		return p.Name
	}
	if got := name(ticket); got != "alice" {
		t.Error(got)
	}
	for _, tickets := range [][]string{nil, {""}, {"x"}, {ticket, ticket}, {"", ticket}} {
		if got := name(tickets...); got != "nobody" {
			t.Errorf("%q: %s", tickets, got)
		}
	}
	done()
	if got := name(ticket); got != "nobody" {
		t.Errorf("afterwards: %s", got)
	}
}

// A new certificate counts for new connections; a pair that does not fit does not.
func TestKeysReload(t *testing.T) {
	first, second := authtest.NewCA(t), authtest.NewCA(t)
	cert, key := first.Issue(t, "127.0.0.1")
	log := &logged{}
	keys, err := auth.LoadKeys(cert, key, first.File, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	var watching sync.WaitGroup
	watching.Go(func() { keys.Watch(t.Context()) })
	t.Cleanup(watching.Wait)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", keys.Config("test"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				conn.(*tls.Conn).Handshake()
				conn.Close()
			}()
		}
	}()
	dial := func(cfg *tls.Config) error {
		conn, err := tls.Dial("tcp", listener.Addr().String(), cfg)
		if err != nil {
			return err
		}
		defer conn.Close()
		// In TLS 1.3 a server that refuses a certificate says so later.
		if _, err := conn.Read(make([]byte, 1)); err != nil && errors.As(err, new(*net.OpError)) {
			return err
		}
		return nil
	}
	if err := dial(first.Client(t, "", "")); err != nil {
		t.Error(err)
	}
	if err := dial(second.Client(t, "", "")); err == nil {
		t.Error("an authority that is not the server's is fine")
	}
	old := first.Client(t, "", "")
	old.MinVersion, old.MaxVersion = tls.VersionTLS11, tls.VersionTLS11
	if err := dial(old); err == nil {
		t.Error("TLS 1.1 is fine")
	}
	certB, keyB := second.Issue(t, "127.0.0.1")
	foreign := first.Client(t, certB, keyB)
	if err := dial(foreign); err == nil {
		t.Error("a client certificate of an unknown authority is fine")
	}

	content := func(file string) string {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	authtest.WriteFile(t, cert, content(certB))
	eventually(t, "the mismatch is logged", func() bool { return strings.Contains(log.String(), "level=ERROR") })
	if err := dial(first.Client(t, "", "")); err != nil {
		t.Errorf("with half of a new pair: %v", err)
	}
	authtest.WriteFile(t, key, content(keyB))
	eventually(t, "the new certificate", func() bool { return dial(second.Client(t, "", "")) == nil })
	authtest.WriteFile(t, first.File, content(second.File))
	eventually(t, "the new authority of clients", func() bool { return dial(second.Client(t, certB, keyB)) == nil })

	for name, files := range map[string][3]string{"no key": {certB, certB, ""}, "no file": {certB, "none", ""}, "no authority": {certB, keyB, keyB}, "another key": {certB, first.File, ""}} {
		if _, err := auth.LoadKeys(files[0], files[1], files[2], slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A certificate that was shown and not verified proves nothing.
func TestVerifiedCertificate(t *testing.T) {
	shown := certificate(t, authtest.NewCA(t), time.Now().Add(time.Hour), "robot.example.com")
	if got := auth.VerifiedCertificate(tls.ConnectionState{PeerCertificates: []*x509.Certificate{shown}}); got != nil {
		t.Error("an unverified certificate counts")
	}
	if got := auth.VerifiedCertificate(tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{shown}}}); got != shown {
		t.Errorf("got %v", got)
	}
}
