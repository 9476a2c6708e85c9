package stripehook

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"
)

const (
	secretA = "whsec_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	secretB = "whsec_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

var (
	now  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	body = []byte(`{"id":"evt_1","type":"checkout.session.completed"}`)
)

func sign(secret string, at time.Time) string {
	return webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: body, Secret: secret, Timestamp: at}).Header
}

func secrets(t *testing.T, list string) []Secret {
	t.Helper()
	s, err := ParseSecrets(list)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVerify(t *testing.T) {
	both := secrets(t, secretA+","+secretB)
	signature := func(secret string) string {
		_, s, _ := strings.Cut(sign(secret, now), ",")
		return s
	}
	stamp := fmt.Sprintf("t=%d,", now.Unix())
	tests := []struct {
		name    string
		header  string
		body    []byte
		secrets []Secret
		want    error
		matched string
	}{
		{name: "first secret", header: sign(secretA, now), matched: secretA},
		{name: "second secret", header: sign(secretB, now), matched: secretB},
		{name: "both signatures while rolling", header: stamp + signature(secretA) + "," + signature(secretB), secrets: both[1:], matched: secretB},
		{name: "both secrets match", header: stamp + signature(secretB) + "," + signature(secretA), matched: secretA + secretB},
		{name: "unknown scheme beside it", header: sign(secretA, now) + ",v0=abc", matched: secretA},
		{name: "just inside the past", header: sign(secretA, now.Add(-Tolerance)), matched: secretA},
		{name: "just inside the future", header: sign(secretA, now.Add(Tolerance)), matched: secretA},
		{name: "stale", header: sign(secretA, now.Add(-Tolerance-time.Second)), want: ErrStale},
		{name: "future", header: sign(secretA, now.Add(Tolerance+time.Second)), want: ErrFuture},
		{name: "ten years ahead", header: sign(secretA, now.AddDate(10, 0, 0)), want: ErrFuture},
		{name: "unsigned", header: "", want: ErrUnsigned},
		{name: "other secret", header: sign("whsec_cccccccccccccccccccccccccccccccc", now), want: ErrMismatch},
		{name: "altered body", header: sign(secretA, now), body: []byte(`{"id":"evt_2"}`), want: ErrMismatch},
		{name: "forged and old: not called old", header: fmt.Sprintf("t=%d,v1=00", now.AddDate(-1, 0, 0).Unix()), want: ErrMismatch},
		{name: "forged and future", header: fmt.Sprintf("t=%d,v1=00", now.AddDate(1, 0, 0).Unix()), want: ErrMismatch},
		{name: "signed with the empty key", header: sign("", now), secrets: []Secret{{}}, want: ErrMismatch},
		{name: "no secrets", header: sign(secretA, now), secrets: []Secret{}, want: ErrMismatch},
		{name: "v0 only", header: stamp + "v0=" + strings.Repeat("0", 64), want: ErrMalformed},
		{name: "no timestamp", header: signature(secretA), want: ErrMalformed},
		{name: "two timestamps", header: stamp + sign(secretA, now), want: ErrMalformed},
		{name: "timestamp not a number", header: "t=soon,v1=00", want: ErrMalformed},
		{name: "timestamp overflows", header: "t=99999999999999999999,v1=00", want: ErrMalformed},
		{name: "largest timestamp", header: "t=9223372036854775807,v1=00", want: ErrMismatch},
		{name: "junk", header: "hello", want: ErrMalformed},
		{name: "pair with two equal signs", header: stamp + "v1=a=b", want: ErrMalformed},
		{name: "many signatures", header: stamp + strings.Repeat("v1=00,", maxSignatures) + signature(secretA), want: ErrMalformed},
		{name: "long header", header: sign(secretA, now) + ",v0=" + strings.Repeat("0", maxHeader), want: ErrMalformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.body == nil {
				tt.body = body
			}
			if tt.secrets == nil {
				tt.secrets = both
			}
			got, err := Verify(tt.body, tt.header, tt.secrets, now, Tolerance)
			if !errors.Is(err, tt.want) {
				t.Fatalf("err = %v, want %v", err, tt.want)
			}
			matched := ""
			for _, secret := range got {
				matched += secret.Reveal()
			}
			if matched != tt.matched {
				t.Fatalf("matched %v, want the labels of %s", got, tt.matched)
			}
		})
	}
}

func TestParseSecrets(t *testing.T) {
	got := secrets(t, " "+secretA+" , "+secretB+","+secretA)
	if len(got) != 2 || got[0].Reveal() != secretA || got[1].Reveal() != secretB {
		t.Fatalf("secrets = %v", got)
	}
	for _, bad := range []string{
		"", "  ", ",", secretA + ",", secretA + ",," + secretB, "sk_test_123456789012", "whsec_", "whsec_…", "whsec_short",
		"whsec_with space in it", secretA + secretA + secretA + secretA + secretA,
		strings.Repeat("x", 3) + secretA,
	} {
		if got, err := ParseSecrets(bad); err == nil {
			t.Errorf("ParseSecrets(%q) = %v, want an error", bad, got)
		}
	}
	_, err := ParseSecrets("sk_live_topsecretvalue,,whsec_")
	for _, want := range []string{"secret 1", "secret 2", "secret 3"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "topsecret") {
		t.Errorf("error tells the secret: %q", err)
	}
	var many []string
	for i := range maxSecrets + 1 {
		many = append(many, fmt.Sprintf("%s%d", secretA, i))
	}
	if _, err := ParseSecrets(strings.Join(many, ",")); err == nil {
		t.Error("no error for too many secrets")
	}
}

func TestSecretIsNeverPrinted(t *testing.T) {
	s := secrets(t, secretA)[0]
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("", "secret", s)
	for _, printed := range []string{fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %s %q", s, s, s, s, s), log.String(), s.Label()} {
		if strings.Contains(printed, "aaaaaaaa") {
			t.Errorf("printed the secret: %s", printed)
		}
		if !strings.Contains(printed, "whsec#") {
			t.Errorf("no label in %q", printed)
		}
	}
	if s.Label() == secrets(t, secretB)[0].Label() {
		t.Error("two secrets share a label")
	}
}

func TestReadEnvelope(t *testing.T) {
	tests := []struct {
		name string
		body string
		want Envelope
		err  bool
	}{
		{name: "snapshot", body: `{"id":"evt_1A","object":"event","api_version":"2023-10-16","account":"acct_1","livemode":true,"created":1700000000,"type":"checkout.session.completed","data":{"object":{"id":"cs_1","object":"checkout.session"}}}`,
			want: Envelope{ID: "evt_1A", Type: "checkout.session.completed", APIVersion: "2023-10-16", Account: "acct_1", Livemode: true, ObjectID: "cs_1"}},
		{name: "thin", body: `{"id":"evt_test_65","object":"v2.core.event","type":"v1.checkout.session.completed","created":"2026-10-01T12:00:00.000Z","livemode":false,"context":"acct_9","related_object":{"id":"cs_2","type":"checkout.session","url":"/v1/checkout/sessions/cs_2"},"data":null}`,
			want: Envelope{ID: "evt_test_65", Type: "v1.checkout.session.completed", Account: "acct_9", ObjectID: "cs_2", Thin: true}},
		{name: "null data", body: `{"id":"evt_1","type":"x.y","data":null}`, want: Envelope{ID: "evt_1", Type: "x.y"}},
		{name: "object without an id", body: `{"id":"evt_1","type":"balance.available","data":{"object":{"object":"balance"}}}`, want: Envelope{ID: "evt_1", Type: "balance.available"}},
		{name: "object is a list", body: `{"id":"evt_1","type":"x.y","data":{"object":[1]}}`, want: Envelope{ID: "evt_1", Type: "x.y"}},
		{name: "null api version and account", body: `{"id":"evt_1","type":"x.y","api_version":null,"account":null}`, want: Envelope{ID: "evt_1", Type: "x.y"}},
		{name: "fields of another type", body: `{"id":"evt_1","type":"x.y","api_version":7,"livemode":"yes","context":{"a":1},"related_object":[],"data":"none"}`, want: Envelope{ID: "evt_1", Type: "x.y"}},
		{name: "id of another type", body: `{"id":7,"type":"x.y"}`, err: true},
		{name: "empty", body: ``, err: true},
		{name: "not json", body: `id=evt_1`, err: true},
		{name: "list", body: `[]`, err: true},
		{name: "trailing junk", body: `{"id":"evt_1","type":"x.y"} {}`, err: true},
		{name: "no id", body: `{"type":"x.y"}`, err: true},
		{name: "id of something else", body: `{"id":"cs_1","type":"x.y"}`, err: true},
		{name: "id with a subject token", body: `{"id":"evt_1.>","type":"x.y"}`, err: true},
		{name: "id with a newline", body: `{"id":"evt_1\n","type":"x.y"}`, err: true},
		{name: "long id", body: `{"id":"evt_` + strings.Repeat("a", 300) + `","type":"x.y"}`, err: true},
		{name: "no type", body: `{"id":"evt_1"}`, err: true},
		{name: "type with a newline", body: `{"id":"evt_1","type":"a\nb"}`, err: true},
		{name: "deep nesting", body: strings.Repeat("[", 100_000), err: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadEnvelope([]byte(tt.body))
			if tt.err {
				if !errors.Is(err, ErrUnreadable) {
					t.Fatalf("err = %v, want ErrUnreadable", err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Fatalf("got %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}

// TestShapes checks against regular expressions, which say the same more slowly.
func TestShapes(t *testing.T) {
	for _, shape := range []struct {
		is           func(string) bool
		prefix, want string
	}{
		{ValidEventID, "evt_", `^evt_[A-Za-z0-9_]{1,200}$`},
		{validEventType, "", `^[A-Za-z0-9_.\[\]-]{1,200}$`},
	} {
		want := regexp.MustCompile(shape.want)
		check := func(s string) {
			if shape.is(s) != want.MatchString(s) {
				t.Errorf("%s of %q: %v", shape.want, s, shape.is(s))
			}
		}
		for n := range 202 {
			check(strings.Repeat("a", n))
			check(shape.prefix + strings.Repeat("a", n))
		}
		for c := range 256 {
			check(shape.prefix + string([]byte{byte(c)}))
		}
	}
}

// FuzzVerify looks for a header that is accepted without the signature in it.
func FuzzVerify(f *testing.F) {
	all, err := ParseSecrets(secretA + "," + secretB)
	if err != nil {
		f.Fatal(err)
	}
	good := sign(secretA, now)
	_, signature, _ := strings.Cut(good, "v1=")
	for _, seed := range []string{good, "", "t=1,v1=00", "t=,v1=", "v1=" + signature, good + ",v1=zz", strings.Repeat("v1=00,", 20), "t=-1,v0=1"} {
		f.Add(seed, body)
	}
	f.Fuzz(func(t *testing.T, header string, b []byte) {
		got, err := Verify(b, header, all, now, Tolerance)
		if err != nil {
			return
		}
		if !strings.Contains(strings.ToLower(header), signature) || string(b) != string(body) {
			t.Fatalf("accepted %q over %q as signed by %v", header, b, got)
		}
	})
}

// FuzzReadEnvelope looks for a panic, and for an id that could leave its
// subject in the log.
func FuzzReadEnvelope(f *testing.F) {
	f.Add(body)
	f.Add([]byte(`{"id":"evt_1","object":"v2.core.event","type":"v1.a","related_object":{"id":"x"}}`))
	f.Add([]byte(`{"id":"evt_1","type":"a.b","data":{"object":null}}`))
	f.Add([]byte(`{"id":"evt_é","type":"a"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := ReadEnvelope(b)
		if err != nil {
			if !errors.Is(err, ErrUnreadable) {
				t.Fatalf("error is not ErrUnreadable: %v", err)
			}
			return
		}
		if strings.ContainsAny(e.ID, ".*> \t\r\n") || strings.ContainsAny(e.Type, "\r\n") {
			t.Fatalf("unsafe envelope %+v", e)
		}
	})
}

func TestParseSecretFile(t *testing.T) {
	got, err := ParseSecretFile("# live\n\n " + secretA + " # rolled out on Friday\r\n" + secretB + "\n" + secretA)
	if err != nil || len(got) != 2 || got[0].Reveal() != secretA || got[1].Reveal() != secretB {
		t.Errorf("%v, %v", got, err)
	}
	if none, err := ParseSecretFile("# none\n"); len(none) != 0 || err != nil {
		t.Errorf("%v, %v", none, err)
	}
	_, err = ParseSecretFile("sk_live_topsecretvalue\n" + secretA + "," + secretB + "\n")
	if err == nil || !strings.Contains(err.Error(), "line 1 is malformed") || !strings.Contains(err.Error(), "line 2 is malformed") ||
		strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), secretA) {
		t.Errorf("err = %v", err)
	}
	both, err := JoinSecrets(got, got[:1])
	if err != nil || len(both) != len(got) {
		t.Errorf("%v, %v", both, err)
	}
	var five, six []Secret
	for i := range 5 {
		five = append(five, newSecret(fmt.Sprintf("whsec_five%08d", i)))
		six = append(six, newSecret(fmt.Sprintf("whsec_six%08d", i)))
	}
	if _, err := JoinSecrets(five, six); err == nil || !strings.Contains(err.Error(), "at most 8") {
		t.Errorf("err = %v", err)
	}
}

// FuzzParseSecretFile looks for a secret that is not in the file, and for an
// error that quotes one.
func FuzzParseSecretFile(f *testing.F) {
	f.Add("# live\n\n " + secretA + " # rolled out on Friday\r\n" + secretB + "\n" + secretA)
	f.Add("whsec_\n")
	f.Add("sk_live_1234567890123456")
	f.Fuzz(func(t *testing.T, content string) {
		_, err := ParseSecretFile(content + "\nsk_live_1234567890123456x")
		if err == nil {
			t.Fatal("a line that is no secret is taken")
		}
		if strings.Contains(err.Error(), "1234567890123456x") {
			t.Errorf("the error tells it: %v", err)
		}
		secrets, err := ParseSecretFile(content)
		if err != nil {
			return
		}
		for _, secret := range secrets {
			if !secretShape.MatchString(secret.Reveal()) || !strings.Contains(content, secret.Reveal()) {
				t.Errorf("%q is in no line", secret.Reveal())
			}
		}
	})
}
