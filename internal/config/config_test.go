package config

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func valid() Config {
	return Config{
		IngressAddr: ":3000", WebhookPath: "/api/webhook",
		GRPCAddr: "127.0.0.1:50051", AdminAddr: "localhost:8080", DataDir: "data",
		Limits: Limits{MaxBodyBytes: 1 << 20, InboxMaxAge: 35 * 24 * time.Hour, OrdersMaxAge: 400 * 24 * time.Hour}, ShutdownTimeout: 10 * time.Second,
		StripeRate: 20, LineItemsDeadline: 30 * time.Second, OrderSources: []string{"checkout_session", "invoice.subscription_cycle"},
	}
}

func TestCheck(t *testing.T) {
	good := valid()
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		spoil func(*Config)
		want  string // empty: valid
	}{
		{"ingress on one interface", func(c *Config) { c.IngressAddr = "192.0.2.1:3000" }, ""},
		{"gRPC on IPv6 loopback", func(c *Config) { c.GRPCAddr = "[::1]:50051" }, ""},
		{"gRPC on every interface", func(c *Config) { c.GRPCAddr = ":50051" }, "--grpc-addr"},
		{"gRPC on 0.0.0.0", func(c *Config) { c.GRPCAddr = "0.0.0.0:50051" }, "--insecure"},
		{"admin on a name", func(c *Config) { c.AdminAddr = "example.com:8080" }, "--admin-addr"},
		{"gRPC outside with TLS only", func(c *Config) { c.GRPCAddr, c.TLSCert, c.TLSKey = ":50051", "c", "k" }, "--access-file"},
		{"gRPC outside with an access file only", func(c *Config) { c.GRPCAddr, c.AccessFile = ":50051", "a" }, "--tls-cert"},
		{"outside with both", func(c *Config) {
			c.GRPCAddr, c.AdminAddr, c.TLSCert, c.TLSKey, c.TLSClientCA, c.AccessFile = ":50051", ":8080", "c", "k", "ca", "a"
		}, ""},
		{"an access file on loopback", func(c *Config) { c.AccessFile = "a" }, ""},
		{"a certificate without a key", func(c *Config) { c.TLSCert = "c" }, "--tls-key"},
		{"a key without a certificate", func(c *Config) { c.TLSKey = "k" }, "--tls-cert"},
		{"an ingress certificate without a key", func(c *Config) { c.IngressTLSCert = "c" }, "--ingress-tls-key"},
		{"an ingress key without a certificate", func(c *Config) { c.IngressTLSKey = "k" }, "--ingress-tls-cert"},
		{"TLS on the ingress", func(c *Config) { c.IngressTLSCert, c.IngressTLSKey = "c", "k" }, ""},
		{"client certificates without TLS", func(c *Config) { c.TLSClientCA, c.AccessFile = "ca", "a" }, "--tls-client-ca"},
		{"client certificates that may do nothing", func(c *Config) { c.TLSClientCA, c.TLSCert, c.TLSKey = "ca", "c", "k" }, "--access-file"},
		{"told so in so many words", func(c *Config) { c.GRPCAddr, c.AdminAddr, c.Insecure = ":50051", ":8080", true }, ""},
		{"no port", func(c *Config) { c.IngressAddr = "localhost" }, "--ingress-addr"},
		{"path without slash", func(c *Config) { c.WebhookPath = "api" }, "--webhook-path"},
		{"path with query", func(c *Config) { c.WebhookPath = "/api?x=1" }, "--webhook-path"},
		{"body too small", func(c *Config) { c.MaxBodyBytes = 1 }, "--max-body-bytes"},
		{"body too large", func(c *Config) { c.MaxBodyBytes = 1 << 30 }, "--max-body-bytes"},
		{"inbox too short", func(c *Config) { c.InboxMaxAge = time.Hour }, "--inbox-max-age"},
		{"orders too short", func(c *Config) { c.OrdersMaxAge = 0 }, "--orders-max-age"},
		{"a cluster", func(c *Config) {
			c.DataDir, c.NATS = "", NATS{URLs: []string{"nats://a:4222", "tls://b:4222"}, Replicas: 3}
		}, ""},
		{"a cluster and a directory", func(c *Config) { c.NATS = NATS{URLs: []string{"nats://a:4222"}, Replicas: 3} }, "--data-dir"},
		{"an encrypted cluster", func(c *Config) {
			c.DataDir, c.EncryptionKeyFile, c.NATS = "", "key", NATS{URLs: []string{"nats://a:4222"}, Replicas: 3}
		}, "cipher"},
		{"an address that is none", func(c *Config) { c.DataDir, c.NATS = "", NATS{URLs: []string{"a:4222"}, Replicas: 3} }, "--nats-url"},
		{"a password is not shown", func(c *Config) { c.DataDir, c.NATS = "", NATS{URLs: []string{"http://u:secret@a:4222"}, Replicas: 3} }, "xxxxx"},
		{"two replicas", func(c *Config) { c.DataDir, c.NATS = "", NATS{URLs: []string{"nats://a:4222"}, Replicas: 2} }, "--replicas"},
		{"credentials for nobody", func(c *Config) { c.NATS = NATS{Creds: "c"} }, "--nats-url"},
		{"credentials that are not there", func(c *Config) {
			c.DataDir, c.NATS = "", NATS{URLs: []string{"nats://a:4222"}, Replicas: 3, Creds: "no-such-file"}
		}, "--nats-creds"},
		{"no requests to Stripe", func(c *Config) { c.StripeRate = 0 }, "--stripe-rate"},
		{"a rate that is none", func(c *Config) { c.StripeRate = math.NaN() }, "--stripe-rate"},
		{"line items too late", func(c *Config) { c.LineItemsDeadline = time.Hour }, "--line-items-deadline"},
		{"too long a ship delay", func(c *Config) { c.ShipDelay = 73 * time.Hour }, "--ship-delay"},
		{"negative ship delay", func(c *Config) { c.ShipDelay = -1 }, "--ship-delay"},
		{"no waiting for line items", func(c *Config) { c.LineItemsDeadline = 0 }, ""},
		{"unknown source", func(c *Config) { c.OrderSources = []string{"invoice.gift"} }, "--order-sources"},
		{"PaymentIntents without a key", func(c *Config) { c.OrderSources = []string{"payment_intent"} }, "STRIPE_API_KEY"},
		{"PaymentIntents", func(c *Config) { c.OrderSources, c.StripeAPIKey = []string{"payment_intent"}, []string{"rk_test_1"} }, ""},
		{"a collector", func(c *Config) { c.OTLPEndpoint, c.TraceRatio = "https://otel.internal:4317", 0.1 }, ""},
		{"a collector without scheme", func(c *Config) { c.OTLPEndpoint = "localhost:4317" }, "--otlp-endpoint"},
		{"a collector without host", func(c *Config) { c.OTLPEndpoint = "http://" }, "--otlp-endpoint"},
		{"more than all traces", func(c *Config) { c.TraceRatio = 1.1 }, "--trace-ratio"},
		{"a ratio that is none", func(c *Config) { c.TraceRatio = math.NaN() }, "--trace-ratio"},
		{"no time to stop", func(c *Config) { c.ShutdownTimeout = 0 }, "--shutdown-timeout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := valid()
			tt.spoil(&c)
			err := c.Check()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("err = %v, want one with %q", err, tt.want)
			}
		})
	}
}

// All problems are reported together.
func TestCheckReportsEverything(t *testing.T) {
	err := (&Config{}).Check()
	if err == nil {
		t.Fatal("no error for an empty configuration")
	}
	for _, flag := range []string{"--ingress-addr", "--grpc-addr", "--admin-addr", "--webhook-path", "--max-body-bytes", "--inbox-max-age", "--orders-max-age", "--shutdown-timeout"} {
		if !strings.Contains(err.Error(), flag) {
			t.Errorf("%s is missing in: %v", flag, err)
		}
	}
}

func TestShipOn(t *testing.T) {
	c := valid()
	if c.ShipOnAuthorization() {
		t.Error("orders ship on authorization by default")
	}
	if c.ShipOn = "authorization"; !c.ShipOnAuthorization() {
		t.Error("--ship-on authorization has no effect")
	}
}

func TestOrderSources(t *testing.T) {
	c := valid()
	c.OrderSources = []string{"checkout_session", "invoice.manual", "payment_intent", "invoice.subscription_cycle"}
	if got := c.InvoiceReasons(); !slices.Equal(got, []string{"manual", "subscription_cycle"}) || !c.PaymentIntents() {
		t.Errorf("reasons = %v, PaymentIntents = %v", got, c.PaymentIntents())
	}
}

func TestKeySources(t *testing.T) {
	c := Config{OrderSources: []string{"checkout_session", "invoice.subscription_create", "payment_intent", "invoice.subscription_cycle", "invoice.manual"}}
	if got := c.KeySources(); !slices.Equal(got, []string{"invoice.subscription_create", "payment_intent", "invoice.manual"}) || len(c.OrderSources) != 5 {
		t.Errorf("%v", got)
	}
}
