// Package config is the gateway's settings: one struct, each field of which is
// a flag and an environment variable, checked as a whole before anything
// starts.
package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/natsconn"
)

const (
	minBodyBytes = 64 << 10
	maxBodyBytes = 16 << 20
	// Stripe lets an event be sent again for 30 days
	// (https://docs.stripe.com/webhooks#retries): its id must be remembered
	// for longer.
	minInboxMaxAge     = 30 * 24 * time.Hour
	minOrdersMaxAge    = 24 * time.Hour
	minStreamBytes     = 64 << 20
	maxShutdownTimeout = 10 * time.Minute
	// Stripe's limit of an account in live mode
	// (https://docs.stripe.com/rate-limits).
	maxStripeRate = 100
	// An event that waits for longer comes again from the log.
	maxLineItemsDeadline = time.Minute
	maxShipDelay         = 72 * time.Hour
)

// Config are the settings of `ordergate serve` and `ordergate dev`. The tags
// are read by github.com/alecthomas/kong.
type Config struct {
	IngressAddr string `name:"ingress-addr" env:"ORDERGATE_INGRESS_ADDR" default:":3000" help:"Where Stripe's webhooks come in. The only door for the internet."`
	WebhookPath string `name:"webhook-path" env:"ORDERGATE_WEBHOOK_PATH" default:"/api/webhook" help:"The path of the webhook endpoint. Nothing else is served on that port."`

	IngressTLSCert string   `name:"ingress-tls-cert" env:"ORDERGATE_INGRESS_TLS_CERT" placeholder:"FILE" help:"The certificate for the ingress, in PEM, where no proxy in front ends TLS. Taken again when the file changes."`
	IngressTLSKey  string   `name:"ingress-tls-key" env:"ORDERGATE_INGRESS_TLS_KEY" placeholder:"FILE" help:"The private key of the ingress's certificate, in PEM."`
	TrustedProxies []string `name:"trusted-proxies" env:"ORDERGATE_TRUSTED_PROXIES" placeholder:"CIDR,..." help:"The proxies in front of the ingress whose word about a client's address is believed, for log lines only."`
	ClientIPHeader string   `name:"client-ip-header" env:"ORDERGATE_CLIENT_IP_HEADER" default:"X-Forwarded-For" help:"The header in which trusted proxies say a client's address; of several, the rightmost that is no trusted proxy's counts."`

	GRPCAddr   string   `name:"grpc-addr" env:"ORDERGATE_GRPC_ADDR" default:"127.0.0.1:50051" help:"Where subscribers connect over gRPC."`
	AdminAddr  string   `name:"admin-addr" env:"ORDERGATE_ADMIN_ADDR" default:"127.0.0.1:8080" help:"Where operators connect: REST under /v1/, /openapi.json, /healthz, /readyz, /metrics."`
	AdminHosts []string `name:"admin-hosts" env:"ORDERGATE_ADMIN_HOSTS" placeholder:"NAME" help:"Further host names by which admin HTTP may be addressed without a credential, beside localhost, loopback addresses and --admin-addr. Requests for other names are answered 421."`
	Insecure   bool     `name:"insecure" env:"ORDERGATE_INSECURE" help:"Serve gRPC and admin HTTP on other than loopback addresses without TLS or an access file, although everybody in between reads customers' names and addresses; and take tokens that came over plaintext."`

	TLSCert     string `name:"tls-cert" env:"ORDERGATE_TLS_CERT" placeholder:"FILE" help:"The certificate for gRPC and admin HTTP, in PEM, with those between it and its authority. Taken again when the file changes."`
	TLSKey      string `name:"tls-key" env:"ORDERGATE_TLS_KEY" placeholder:"FILE" help:"The certificate's private key, in PEM."`
	TLSClientCA string `name:"tls-client-ca" env:"ORDERGATE_TLS_CLIENT_CA" placeholder:"FILE" help:"The authorities of client certificates, in PEM. A client that shows one needs no token."`
	AccessFile  string `name:"access-file" env:"ORDERGATE_ACCESS_FILE" placeholder:"FILE" help:"Who may do what over gRPC and admin HTTP: NAME ROLE CREDENTIAL [SUBSCRIPTION,...] a line; see ordergate tokens create. Taken again when the file changes. Without it, everybody who reaches these may do everything."`

	DataDir           string `name:"data-dir" env:"ORDERGATE_DATA_DIR" placeholder:"DIR" help:"Where events and orders are stored, by one process at a time (serve: ordergate-data; dev: a temporary directory)."`
	EncryptionKeyFile string `name:"encryption-key-file" env:"ORDERGATE_ENCRYPTION_KEY_FILE" placeholder:"FILE" help:"Encrypt what is stored, with the key on the first line of this file (openssl rand -base64 32); the one before it on the second line, while it is replaced. Begins with an empty data directory."`
	AcceptDamage      bool   `name:"accept-damage" env:"ORDERGATE_ACCEPT_DAMAGE" help:"Open a data directory whose files are damaged, without what cannot be read. For one start, after a copy was made."`

	Limits `embed:""`
	NATS   NATS `embed:""`

	StripeWebhookSecret     string `name:"stripe-webhook-secret" env:"STRIPE_WEBHOOK_SECRET" placeholder:"whsec_…" help:"The endpoint's signing secret; several with commas, while one is rolled. Better in the environment or .env.local: a flag shows in the process list."`
	StripeWebhookSecretFile string `name:"stripe-webhook-secret-file" env:"STRIPE_WEBHOOK_SECRET_FILE" placeholder:"FILE" help:"Signing secrets, one a line, # begins a comment; beside those of STRIPE_WEBHOOK_SECRET, or instead. Taken again when the file changes: no restart to roll a secret."`

	StripeAPIKey      []string      `name:"stripe-api-key" env:"STRIPE_API_KEY" placeholder:"rk_…" help:"API keys, at most one for test and one for live mode: to read line items, look up sales and list missed events. Restricted keys (rk_…) with Read on Checkout Sessions, Products, Prices, Shipping Rates, Invoices, PaymentIntents and Events are enough."`
	StripeAPIBase     string        `name:"stripe-api-base" env:"STRIPE_API_BASE" placeholder:"URL" help:"Another server for Stripe's API, for tests."`
	StripeRate        float64       `name:"stripe-rate" env:"ORDERGATE_STRIPE_RATE" default:"20" help:"How many requests a second may go to Stripe's API in all: more than 0, at most 100."`
	LineItemsDeadline time.Duration `name:"line-items-deadline" env:"ORDERGATE_LINE_ITEMS_DEADLINE" default:"30s" help:"How long an order waits for its line items before it goes out without them (0s to 1m); they follow."`
	ShipDelay         time.Duration `name:"ship-delay" env:"ORDERGATE_SHIP_DELAY" default:"0s" help:"How long a paid order stays in WAIT (SETTLING) before it may be shipped (0s to 72h), for shops whose reviews arrive seconds after the payment."`
	OrderSources      []string      `name:"order-sources" env:"ORDERGATE_ORDER_SOURCES" default:"checkout_session,invoice.subscription_create,invoice.subscription_cycle" help:"What makes orders: checkout_session (always), payment_intent for shops on Stripe Elements (needs an API key), and invoice.REASON for invoices of a billing reason: subscription_create, subscription_cycle, subscription_update, manual."`

	ShipOn string `name:"ship-on" env:"ORDERGATE_SHIP_ON" default:"payment" enum:"payment,authorization" help:"When an order ships: once it is paid (payment), or once its payment is authorized (authorization), for shops that capture on shipment."`

	OTLPEndpoint string  `name:"otlp-endpoint" env:"OTEL_EXPORTER_OTLP_ENDPOINT" placeholder:"URL" help:"Where a collector takes traces (OTLP over gRPC), such as http://localhost:4317, or https://... with TLS. Without it nothing is traced."`
	TraceRatio   float64 `name:"trace-ratio" env:"ORDERGATE_TRACE_RATIO" default:"1" help:"The share of webhooks that are traced: 0 to 1."`

	ShutdownTimeout time.Duration `name:"shutdown-timeout" env:"ORDERGATE_SHUTDOWN_TIMEOUT" default:"10s" help:"How long a stop may take before open streams are cut off."`
	Log             Log           `embed:""`
}

// Limits are what is taken, and how much of it is kept for how long.
type Limits struct {
	MaxBodyBytes   int64         `name:"max-body-bytes" env:"ORDERGATE_MAX_BODY_BYTES" default:"1048576" help:"The largest event taken, in bytes: 65536 to 16777216."`
	InboxMaxAge    time.Duration `name:"inbox-max-age" env:"ORDERGATE_INBOX_MAX_AGE" default:"840h" help:"How long raw events are kept, and with them the memory of their ids: 720h (30 days) or more."`
	OrdersMaxAge   time.Duration `name:"orders-max-age" env:"ORDERGATE_ORDERS_MAX_AGE" default:"9600h" help:"How long order events are kept: 24h or more."`
	InboxMaxBytes  int64         `name:"inbox-max-bytes" env:"ORDERGATE_INBOX_MAX_BYTES" default:"0" help:"What raw events may take on disk: 67108864 (64 MiB) or more, 0 for no limit. A full inbox refuses new events (503, and Stripe sends them again); it drops none."`
	OrdersMaxBytes int64         `name:"orders-max-bytes" env:"ORDERGATE_ORDERS_MAX_BYTES" default:"0" help:"The same for order events. When it is full, raw events wait to be converted."`
}

// Check returns all that is wrong, each problem with its mend, or nil.
func (l Limits) Check() error {
	var problems []error
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if l.MaxBodyBytes < minBodyBytes || l.MaxBodyBytes > maxBodyBytes {
		wrong("--max-body-bytes %d: want %d to %d", l.MaxBodyBytes, minBodyBytes, maxBodyBytes)
	}
	if l.InboxMaxAge < minInboxMaxAge {
		wrong("--inbox-max-age %v: want %v or more, for as long Stripe may send an event again", l.InboxMaxAge, minInboxMaxAge)
	}
	if l.OrdersMaxAge < minOrdersMaxAge {
		wrong("--orders-max-age %v: want %v or more", l.OrdersMaxAge, minOrdersMaxAge)
	}
	for flag, bytes := range map[string]int64{"--inbox-max-bytes": l.InboxMaxBytes, "--orders-max-bytes": l.OrdersMaxBytes} {
		if bytes != 0 && bytes < minStreamBytes {
			wrong("%s %d: want %d or more, or 0 for no limit", flag, bytes, minStreamBytes)
		}
	}
	return errors.Join(problems...)
}

// NATS are the settings of an existing NATS cluster.
type NATS struct {
	URLs     []string `name:"nats-url" env:"ORDERGATE_NATS_URL" placeholder:"URL,..." help:"Store events and orders in this NATS cluster with JetStream instead of --data-dir, together with any number of other gateways: nats://HOST:4222, or tls://HOST:4222; name all of its servers."`
	Creds    string   `name:"nats-creds" env:"ORDERGATE_NATS_CREDS" placeholder:"FILE" help:"The credentials file (JWT and NKey) that is shown to NATS."`
	NKey     string   `name:"nats-nkey" env:"ORDERGATE_NATS_NKEY" placeholder:"FILE" help:"The file with the NKey seed that is shown to NATS instead."`
	CA       string   `name:"nats-ca" env:"ORDERGATE_NATS_CA" placeholder:"FILE" help:"The authorities of the NATS servers' certificates, in PEM; else the system's."`
	Cert     string   `name:"nats-cert" env:"ORDERGATE_NATS_CERT" placeholder:"FILE" help:"The client certificate that is shown to NATS, in PEM."`
	Key      string   `name:"nats-key" env:"ORDERGATE_NATS_KEY" placeholder:"FILE" help:"The private key of that certificate, in PEM."`
	Replicas int      `name:"replicas" env:"ORDERGATE_REPLICAS" default:"3" help:"How many of the NATS servers keep each event: 1, 3 or 5."`
}

// Cluster returns nil without an address.
func (n NATS) Cluster() *eventlog.Cluster {
	if len(n.URLs) == 0 {
		return nil
	}
	return &eventlog.Cluster{Config: natsconn.Config{URLs: n.URLs, Creds: n.Creds, NKey: n.NKey, CA: n.CA, Cert: n.Cert, Key: n.Key}, Replicas: n.Replicas}
}

// Check returns all that is wrong, each problem with its mend, or nil.
func (n NATS) Check() error {
	cluster := n.Cluster()
	if cluster == nil {
		for flag, value := range map[string]string{"--nats-creds": n.Creds, "--nats-nkey": n.NKey, "--nats-ca": n.CA, "--nats-cert": n.Cert, "--nats-key": n.Key} {
			if value != "" {
				return fmt.Errorf("%s %q needs --nats-url: write for example --nats-url tls://nats-1:4222,tls://nats-2:4222,tls://nats-3:4222", flag, value)
			}
		}
		return nil
	}
	err := cluster.Check()
	if n.Replicas != 1 && n.Replicas != 3 && n.Replicas != 5 {
		err = errors.Join(err, fmt.Errorf("--replicas %d: want 1, 3 or 5, and as many NATS servers: a quorum of 2 or 4 is lost as easily as one of 1 or 3", n.Replicas))
	}
	return err
}

// Log are the settings of the log lines.
type Log struct {
	Format string `name:"log-format" env:"ORDERGATE_LOG_FORMAT" default:"auto" enum:"auto,text,json" help:"The form of log lines: text, json, or auto: text in a terminal, json elsewhere."`
	Level  string `name:"log-level" env:"ORDERGATE_LOG_LEVEL" default:"info" enum:"debug,info,warn,error" help:"The least important log lines to write: debug, info, warn or error."`
}

// Check returns all that is wrong with the settings, each problem with its
// mend, or nil. The webhook secrets are not looked at.
func (c *Config) Check() error {
	var problems []error
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	for _, door := range []struct {
		flag, addr string
		private    bool
	}{
		{"--ingress-addr", c.IngressAddr, false},
		{"--grpc-addr", c.GRPCAddr, true},
		{"--admin-addr", c.AdminAddr, true},
	} {
		host, port, err := net.SplitHostPort(door.addr)
		switch {
		case err != nil || port == "":
			wrong("%s %q is not HOST:PORT: write for example 127.0.0.1:8080, or :3000 for every interface", door.flag, door.addr)
		case door.private && !loopback(host) && !c.Insecure && (c.TLSCert == "" || c.AccessFile == ""):
			wrong("%s %q is reached from outside this machine, where everybody could read customers' names and addresses: use 127.0.0.1; or give --tls-cert and --tls-key, and --access-file; or say --insecure if the network in between keeps others out", door.flag, door.addr)
		}
	}
	if (c.TLSCert == "") != (c.TLSKey == "") {
		wrong("--tls-cert %q and --tls-key %q: give both, or none", c.TLSCert, c.TLSKey)
	}
	if (c.IngressTLSCert == "") != (c.IngressTLSKey == "") {
		wrong("--ingress-tls-cert %q and --ingress-tls-key %q: give both, or none", c.IngressTLSCert, c.IngressTLSKey)
	}
	if c.TLSClientCA != "" && (c.TLSCert == "" || c.AccessFile == "") {
		wrong("--tls-client-ca %q: give --tls-cert and --tls-key too, and an --access-file that says what the clients may do (NAME ROLE san:NAME-IN-THE-CERTIFICATE)", c.TLSClientCA)
	}
	if !strings.HasPrefix(c.WebhookPath, "/") || strings.ContainsAny(c.WebhookPath, "?# %") {
		wrong("--webhook-path %q is not a path: write for example /api/webhook", c.WebhookPath)
	}
	problems = append(problems, c.Limits.Check())
	if !(c.StripeRate > 0 && c.StripeRate <= maxStripeRate) {
		wrong("--stripe-rate %v: want more than 0 and at most %d", c.StripeRate, maxStripeRate)
	}
	if c.LineItemsDeadline < 0 || c.LineItemsDeadline > maxLineItemsDeadline {
		wrong("--line-items-deadline %v: want 0s to %v", c.LineItemsDeadline, maxLineItemsDeadline)
	}
	if c.ShipDelay < 0 || c.ShipDelay > maxShipDelay {
		wrong("--ship-delay %v: want 0s to %v", c.ShipDelay, maxShipDelay)
	}
	problems = append(problems, c.CheckStore())
	problems = append(problems, c.checkSources()...)
	if endpoint, err := url.Parse(c.OTLPEndpoint); c.OTLPEndpoint != "" && (err != nil || endpoint.Scheme != "http" && endpoint.Scheme != "https" || endpoint.Host == "") {
		wrong("--otlp-endpoint %q is not a URL: write for example http://localhost:4317", c.OTLPEndpoint)
	}
	if !(c.TraceRatio >= 0 && c.TraceRatio <= 1) {
		wrong("--trace-ratio %v: want 0 to 1", c.TraceRatio)
	}
	if c.ShutdownTimeout <= 0 || c.ShutdownTimeout > maxShutdownTimeout {
		wrong("--shutdown-timeout %v: want more than 0 and at most %v", c.ShutdownTimeout, maxShutdownTimeout)
	}
	return errors.Join(problems...)
}

// CheckStore is the part of Check that is about where everything is stored.
func (c *Config) CheckStore() error {
	problems := []error{c.NATS.Check()}
	wrong := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if len(c.NATS.URLs) > 0 {
		for flag, given := range map[string]bool{"--data-dir": c.DataDir != "", "--accept-damage": c.AcceptDamage} {
			if given {
				wrong("%s: with --nats-url everything is stored in NATS: leave one of the two out", flag)
			}
		}
		if c.EncryptionKeyFile != "" {
			wrong("--encryption-key-file: with --nats-url NATS encrypts what it stores: set cipher and key in its jetstream block, and leave this out")
		}
	}
	return errors.Join(problems...)
}

const shipOnAuthorization = "authorization"

const (
	sourceSession       = "checkout_session"
	sourcePaymentIntent = "payment_intent"
	sourceInvoice       = "invoice."
)

// invoiceReasons are the billing reasons that can make orders
// (https://docs.stripe.com/api/invoices/object#invoice_object-billing_reason).
var invoiceReasons = []string{"subscription_create", "subscription_cycle", "subscription_update", "manual"}

func (c *Config) checkSources() (problems []error) {
	for _, source := range c.OrderSources {
		reason, isInvoice := strings.CutPrefix(source, sourceInvoice)
		if source != sourceSession && source != sourcePaymentIntent && !(isInvoice && slices.Contains(invoiceReasons, reason)) {
			problems = append(problems, fmt.Errorf("--order-sources: %q is none: write checkout_session, payment_intent, or invoice. and one of %s", source, strings.Join(invoiceReasons, ", ")))
		}
	}
	if c.PaymentIntents() && len(c.StripeAPIKey) == 0 {
		problems = append(problems, errors.New("--order-sources payment_intent needs STRIPE_API_KEY: only Stripe knows which PaymentIntents belong to a Checkout Session"))
	}
	return problems
}

// PaymentIntents reports whether PaymentIntents make orders.
func (c *Config) PaymentIntents() bool { return slices.Contains(c.OrderSources, sourcePaymentIntent) }

// ShipOnAuthorization reports whether orders ship before their payment is captured.
func (c *Config) ShipOnAuthorization() bool { return c.ShipOn == shipOnAuthorization }

// KeySources are the order sources that need a Stripe API key: only Stripe knows whether
// such a sale belongs to a Checkout Session.
func (c *Config) KeySources() []string {
	return slices.DeleteFunc(slices.Clone(c.OrderSources), func(source string) bool {
		return source != sourcePaymentIntent && source != sourceInvoice+"subscription_create" && source != sourceInvoice+"manual"
	})
}

// InvoiceReasons are the billing reasons whose paid invoices make orders.
func (c *Config) InvoiceReasons() []string {
	var reasons []string
	for _, source := range c.OrderSources {
		if reason, ok := strings.CutPrefix(source, sourceInvoice); ok {
			reasons = append(reasons, reason)
		}
	}
	return reasons
}

// loopback reports whether a listener on host is only reached from this
// machine. An empty host is every interface.
func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}
