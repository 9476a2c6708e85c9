package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stripe/stripe-go/v76/webhook"

	"github.com/ordergate/ordergate/internal/authtest"
	"github.com/ordergate/ordergate/internal/config"
)

// The ingress with TLS and secrets of a file: both are replaced while it runs.
func TestIngressWithTLSAndASecretFile(t *testing.T) {
	first, second := authtest.NewCA(t), authtest.NewCA(t)
	file := filepath.Join(t.TempDir(), "secrets")
	authtest.WriteFile(t, file, testSecret+"\n")
	cert, key := first.Issue(t, "127.0.0.1")
	g := startGateway(t, "", func(c *config.Config) {
		c.IngressTLSCert, c.IngressTLSKey, c.StripeWebhookSecretFile = cert, key, file
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// send returns 0 where no connection comes about.
	send := func(ca *authtest.CA, secret string) int {
		t.Helper()
		cfg := ca.Client(t, "", "")
		cfg.NextProtos = []string{"h2", "http/1.1"}
		transport := &http.Transport{TLSClientConfig: cfg, ForceAttemptHTTP2: true, DisableKeepAlives: true}
		event := []byte(`{"id":"evt_1","object":"event","type":"price.created"}`)
		request, err := http.NewRequestWithContext(ctx, "POST", "https://"+g.ingressListener.Addr().String()+g.cfg.WebhookPath, bytes.NewReader(event))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Stripe-Signature", webhook.GenerateTestSignedPayload(&webhook.UnsignedPayload{Payload: event, Secret: secret}).Header)
		response, err := (&http.Client{Transport: transport}).Do(request)
		if err != nil {
			return 0
		}
		defer response.Body.Close()
		io.Copy(io.Discard, response.Body)
		if response.ProtoMajor != 1 {
			t.Errorf("%s is spoken", response.Proto)
		}
		return response.StatusCode
	}
	becomes := func(ca *authtest.CA, secret string, status int) {
		t.Helper()
		for send(ca, secret) != status {
			select {
			case <-ctx.Done():
				t.Fatalf("never answered %d", status)
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	const rolled = "whsec_rolledrolledrolledrolledrolledro"
	for secret, want := range map[string]int{testSecret: 200, rolled: 400} {
		if got := send(first, secret); got != want {
			t.Errorf("%d, want %d", got, want)
		}
	}
	authtest.WriteFile(t, file, testSecret+"\n"+rolled+"\n")
	becomes(first, rolled, 200)
	authtest.WriteFile(t, file, rolled+"\n")
	becomes(first, testSecret, 400)

	newCert, newKey := second.Issue(t, "127.0.0.1")
	for from, to := range map[string]string{newCert: cert, newKey: key} {
		content, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		authtest.WriteFile(t, to, string(content))
	}
	becomes(second, rolled, 200)
	if got := send(first, rolled); got != 0 {
		t.Errorf("by the old authority: %d", got)
	}
}

// What is wrong with the ingress's settings is said together.
func TestIngressSettingsAreChecked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "junk")
	authtest.WriteFile(t, file, "sk_live_nosecret\n")
	var out bytes.Buffer
	err := run(t.Context(), []string{"serve", "--data-dir", t.TempDir(), "--stripe-webhook-secret-file", file,
		"--ingress-tls-cert", file, "--ingress-tls-key", file, "--trusted-proxies", "10.0.0.0/8,10.0.0.1", "--client-ip-header", "Forwarded"}, nil, &out, &out)
	for _, want := range []string{"line 1 is malformed", "--ingress-tls-cert", `"10.0.0.1" is not a CIDR`, "--client-ip-header"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	if err != nil && strings.Contains(err.Error(), "nosecret") {
		t.Errorf("the error tells a secret: %v", err)
	}
}
