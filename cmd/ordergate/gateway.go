package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/ordergate/ordergate/internal/adminhttp"
	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/connlimit"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/grpcapi"
	"github.com/ordergate/ordergate/internal/ingress"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/peers"
	"github.com/ordergate/ordergate/internal/pipeline"
	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/subscription"
	"github.com/ordergate/ordergate/internal/telemetry"
	"github.com/ordergate/ordergate/internal/watchfile"
)

// inProcessBuffer is the buffer of the connection between the admin listener
// and the gRPC server, in bytes.
const inProcessBuffer = 1 << 20

// inProcessTarget is the own gRPC server, for a client with dialOptions.
const inProcessTarget = "passthrough:in-process"

// gateway is the composed program: every part, bound and open, not yet serving.
type gateway struct {
	cfg    config.Config
	logger *slog.Logger

	log           *eventlog.Log
	pipeline      *pipeline.Pipeline
	subscriptions *subscription.Manager
	peers         *peers.Peers // nil where the log is not shared
	secrets       *ingress.Secrets
	access        *auth.Access
	keys          *auth.Keys // nil without TLS
	ingressKeys   *auth.Keys // the same
	grpc          *grpcapi.Server
	conn, streams *grpc.ClientConn // to the own gRPC server
	tracing       *telemetry.Tracing
	ingress       *http.Server
	admin         *http.Server

	ingressListener, grpcListener, adminListener net.Listener
	inProcess                                    *bufconn.Listener
}

// parts are what is made of the settings before anything is opened.
type parts struct {
	secrets           *ingress.Secrets
	stripe            *stripeapi.Client // nil without an API key
	access            *auth.Access
	keys, ingressKeys *auth.Keys // nil without TLS
	proxies           ingress.Proxies
	encryption        eventlog.Keys
}

// prepare checks everything about the settings, and reads the files they name.
func prepare(cfg config.Config, metrics prometheus.Registerer, logger *slog.Logger) (p parts, _ error) {
	var secretsErr, stripeErr, accessErr, keysErr, ingressKeysErr, encryptionErr error
	var proxyProblems []error
	p.secrets, secretsErr = ingress.LoadSecrets(cfg.StripeWebhookSecret, cfg.StripeWebhookSecretFile, logger)
	p.stripe, stripeErr = newStripeClient(cfg, metrics, logger)
	p.access, accessErr = loadAccess(cfg, logger)
	p.keys, keysErr = loadKeys(cfg.TLSCert, cfg.TLSKey, cfg.TLSClientCA, "--tls-cert, --tls-key, --tls-client-ca", logger)
	p.ingressKeys, ingressKeysErr = loadKeys(cfg.IngressTLSCert, cfg.IngressTLSKey, "", "--ingress-tls-cert, --ingress-tls-key", logger)
	p.encryption, encryptionErr = loadEncryption(cfg.EncryptionKeyFile, logger)
	p.proxies, proxyProblems = ingress.ParseProxies(cfg.TrustedProxies, cfg.ClientIPHeader)
	return p, errors.Join(cfg.Check(), secretsErr, stripeErr, accessErr, keysErr, ingressKeysErr, encryptionErr, errors.Join(proxyProblems...))
}

// ofLogs is what is not among the settings of how the log is opened. Only
// TestCollection changes it, for gateways whose logs are kept.
var ofLogs struct {
	heldOrdersAge time.Duration
	probeBytes    int
}

// logConfig says how the log is to be opened.
func logConfig(cfg config.Config, keys eventlog.Keys, logger *slog.Logger) eventlog.Config {
	return eventlog.Config{
		Dir:            cfg.DataDir,
		Cluster:        cfg.NATS.Cluster(),
		InboxMaxAge:    cfg.InboxMaxAge,
		OrdersMaxAge:   cfg.OrdersMaxAge,
		InboxMaxBytes:  cfg.InboxMaxBytes,
		OrdersMaxBytes: cfg.OrdersMaxBytes,
		MaxEventBytes:  int(cfg.MaxBodyBytes),
		Keys:           keys,
		AcceptDamage:   cfg.AcceptDamage,
		Logger:         logger,
		HeldOrdersAge:  ofLogs.heldOrdersAge,
		ProbeBytes:     ofLogs.probeBytes,
	}
}

// clusterConfig is logConfig for what is in a NATS cluster, for who does not serve.
func clusterConfig(limits config.Limits, nats config.NATS, logger *slog.Logger) eventlog.Config {
	return logConfig(config.Config{Limits: limits, NATS: nats}, eventlog.Keys{}, logger)
}

// newGateway binds every listener, opens the log and composes the parts. It
// leaves nothing open when it fails.
func newGateway(ctx context.Context, cfg config.Config, logger *slog.Logger) (_ *gateway, err error) {
	metrics := prometheus.NewRegistry()
	p, err := prepare(cfg, metrics, logger)
	if err != nil {
		return nil, err
	}
	if modes, lack := missingKey(cfg, p.stripe); modes != "" {
		logger.Warn("no Stripe API key for "+modes, "effect", lack, "hint", "set STRIPE_API_KEY to a restricted key (rk_…) of each mode that the gateway receives")
	}
	g := &gateway{cfg: cfg, logger: logger, secrets: p.secrets, access: p.access, keys: p.keys, ingressKeys: p.ingressKeys, inProcess: bufconn.Listen(inProcessBuffer)}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	g.tracing, err = telemetry.NewTracing(ctx, telemetry.TraceConfig{Endpoint: cfg.OTLPEndpoint, Ratio: cfg.TraceRatio, Version: version(), Logger: logger})
	if err != nil {
		return nil, err
	}
	logCfg := logConfig(cfg, p.encryption, logger)
	logCfg.Metrics = metrics
	g.log, err = eventlog.Open(ctx, logCfg)
	if err != nil {
		return nil, err
	}
	if err := g.listen(ctx); err != nil {
		return nil, err
	}
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	g.pipeline = pipeline.New(pipeline.Config{
		Log:           g.log,
		Stripe:        p.stripe,
		Sources:       orders.Sources{PaymentIntents: cfg.PaymentIntents(), Invoices: cfg.InvoiceReasons(), ShipOnAuthorization: cfg.ShipOnAuthorization()},
		ItemsDeadline: cfg.LineItemsDeadline,
		ShipDelay:     cfg.ShipDelay,
		Logger:        logger,
		Metrics:       metrics,
		Tracer:        g.tracing.Tracer(),
	})
	g.subscriptions = subscription.New(g.log, logger)
	g.subscriptions.Trace(g.tracing.Tracer())
	metrics.MustRegister(g.subscriptions.Collector())
	security := grpcapi.Security{Access: p.access}
	if p.keys != nil {
		security.TLS = p.keys.Config("h2")
	}
	var others grpcapi.Peers
	if logCfg.Cluster != nil {
		g.peers = peers.New(logCfg.Cluster.Config, g.log, logger)
		others = g.peers
	}
	g.grpc = grpcapi.New(g.log, g.pipeline, g.subscriptions, others, security, logger)
	metrics.MustRegister(g.grpc.Collector())
	g.conn, err = grpc.NewClient(inProcessTarget, g.dialOptions()...)
	if err != nil {
		return nil, err
	}
	if g.streams, err = grpc.NewClient(inProcessTarget, g.dialOptions()...); err != nil {
		return nil, err
	}
	busy := ingress.BusyAnswer
	if p.ingressKeys != nil {
		busy = ""
	}
	g.ingressListener = connlimit.New(g.ingressListener, connlimit.Config{Name: "ingress", Max: ingress.MaxConnections, Busy: busy, Metrics: metrics, Logger: logger})
	g.grpcListener = connlimit.New(g.grpcListener, connlimit.Config{Name: "grpc", Max: maxConnections, Metrics: metrics, Logger: logger})
	g.adminListener = connlimit.New(g.adminListener, connlimit.Config{Name: "admin", Max: maxConnections, Metrics: metrics, Logger: logger})
	g.ingress = ingress.Server(ingress.New(ingress.Config{
		Path:         cfg.WebhookPath,
		Secrets:      p.secrets,
		MaxBodyBytes: cfg.MaxBodyBytes,
		Inbox:        g.log,
		Proxies:      p.proxies,
		Logger:       logger,
		Metrics:      metrics,
		Tracer:       g.tracing.Tracer(),
		Now:          time.Now,
	}), logger)
	if p.ingressKeys != nil {
		g.ingress.TLSConfig = p.ingressKeys.Config("http/1.1")
	}
	admin, err := adminhttp.New(ctx, adminhttp.Config{Conn: g.conn, Streams: g.streams, Addr: g.adminListener.Addr().String(), Hosts: append(cfg.AdminHosts, cfg.AdminAddr), Ready: g.ready(ctx), Metrics: metrics, Access: p.access})
	if err != nil {
		return nil, err
	}
	g.admin = adminhttp.Server(admin, logger)
	if p.keys != nil {
		g.admin.TLSConfig = p.keys.Config("h2", "http/1.1")
	}
	return g, nil
}

// loadAccess returns the access list that the settings name. Without one,
// everybody may do everything.
func loadAccess(cfg config.Config, logger *slog.Logger) (*auth.Access, error) {
	if cfg.AccessFile == "" {
		return auth.Everybody(), nil
	}
	return auth.Load(auth.Config{File: cfg.AccessFile, PlaintextTokens: cfg.Insecure, Logger: logger})
}

// loadKeys returns nil without TLS. flags are those that name the files.
func loadKeys(cert, key, clientCA, flags string, logger *slog.Logger) (*auth.Keys, error) {
	if cert == "" || key == "" {
		return nil, nil
	}
	keys, err := auth.LoadKeys(cert, key, clientCA, logger)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flags, err)
	}
	return keys, nil
}

// loadEncryption returns no keys without a file.
func loadEncryption(file string, logger *slog.Logger) (eventlog.Keys, error) {
	if file == "" {
		return eventlog.Keys{}, nil
	}
	contents, err := watchfile.New(file).Read()
	if err != nil {
		return eventlog.Keys{}, fmt.Errorf("--encryption-key-file: %w", err)
	}
	keys, err := eventlog.ParseKeys(string(contents[0]))
	if err != nil {
		return eventlog.Keys{}, fmt.Errorf("--encryption-key-file %s: %w", file, err)
	}
	watchfile.WarnIfShared(logger, "the encryption key file", file)
	return keys, nil
}

// dialOptions connect to the own gRPC server, within the process.
func (g *gateway) dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return g.inProcess.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
	}
}

// maxConnections bounds the connections to the gRPC and the admin listener each, at a time.
const maxConnections = 2048

const secretKeyMend = "in the Stripe Dashboard (Developers > API keys), create a restricted one with Read on Checkout Sessions, Products, Prices, Shipping Rates, Invoices, PaymentIntents and Events"

// newStripeClient returns nil without an API key.
func newStripeClient(cfg config.Config, metrics prometheus.Registerer, logger *slog.Logger) (*stripeapi.Client, error) {
	if len(cfg.StripeAPIKey) == 0 {
		return nil, nil
	}
	for _, key := range cfg.StripeAPIKey {
		if strings.HasPrefix(key, "sk_") {
			logger.Warn("STRIPE_API_KEY is a secret key, which may do everything: use a restricted key (rk_…)",
				"mend", secretKeyMend)
		}
	}
	return stripeapi.New(stripeapi.Config{Keys: cfg.StripeAPIKey, Base: cfg.StripeAPIBase, Rate: cfg.StripeRate, Logger: logger, Metrics: metrics})
}

// missingKey returns the modes without a Stripe API key, and the consequences. Both are
// empty if there is a key for each mode.
func missingKey(cfg config.Config, stripe *stripeapi.Client) (modes, lack string) {
	live, test := stripe != nil && stripe.Has(true), stripe != nil && stripe.Has(false)
	switch {
	case live && test:
		return "", ""
	case live:
		modes = "test mode"
	case test:
		modes = "live mode"
	default:
		modes = "live and test mode"
	}
	lack = "orders carry no line items, and events that were missed are not listed"
	if sources := cfg.KeySources(); len(sources) > 0 {
		lack += "; sales of " + strings.Join(sources, ", ") + " cannot be matched with Checkout Sessions"
	}
	return modes, lack
}

// listen binds every door, and reports every one that is taken.
func (g *gateway) listen(ctx context.Context) error {
	var problems []error
	bind := func(flag, addr string) net.Listener {
		listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w: stop what uses it, or choose another address with %s", flag, err, flag))
		}
		return listener
	}
	g.ingressListener = bind("--ingress-addr", g.cfg.IngressAddr)
	g.grpcListener = bind("--grpc-addr", g.cfg.GRPCAddr)
	g.adminListener = bind("--admin-addr", g.cfg.AdminAddr)
	return errors.Join(problems...)
}

// ready reports whether the gateway can do its work; not while it stops.
func (g *gateway) ready(ctx context.Context) func() error {
	return func() error {
		if ctx.Err() != nil {
			return errors.New("the gateway is shutting down")
		}
		return g.log.Ready()
	}
}

// run serves until ctx ends or a part fails, and then stops everything in
// order.
func (g *gateway) run(ctx context.Context) error {
	converting, stopConverting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopConverting()
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx)) // of the peers: as long as streams drain
	defer stopServing()
	group, ending := errgroup.WithContext(ctx)
	group.Go(func() error { return serveHTTP(g.ingress, g.ingressListener) })
	group.Go(func() error { return serveHTTP(g.admin, g.adminListener) })
	group.Go(func() error { return g.grpc.Serve(g.grpcListener) })
	group.Go(func() error { return g.grpc.ServeInProcess(g.inProcess) })
	if g.peers != nil {
		group.Go(func() error { g.peers.Run(serving, g.grpc.ServePeers); return nil })
	}
	group.Go(func() error { g.secrets.Watch(ending); return nil })
	group.Go(func() error { g.access.Watch(ending); return nil })
	for _, keys := range []*auth.Keys{g.keys, g.ingressKeys} {
		if keys != nil {
			group.Go(func() error { keys.Watch(ending); return nil })
		}
	}
	group.Go(func() error { g.grpc.MonitorHealth(ending); return nil })
	group.Go(func() error {
		if err := g.pipeline.Run(converting); converting.Err() == nil {
			return err
		}
		return nil
	})
	group.Go(func() error {
		<-ending.Done()
		defer stopServing()
		return g.shutdown(stopConverting)
	})
	g.logger.Info("ordergate is ready", "version", version(),
		"ingress", g.ingressListener.Addr().String()+g.cfg.WebhookPath, "grpc", g.grpcListener.Addr().String(), "admin", g.adminListener.Addr().String(), "data", dataOf(g.cfg))
	err := group.Wait()
	err = errors.Join(err, g.close())
	g.logger.Info("ordergate has stopped", "clean", err == nil)
	return err
}

// dataOf says where a gateway stores what it has.
func dataOf(cfg config.Config) string {
	if cluster := cfg.NATS.Cluster(); cluster != nil {
		return cluster.Redacted()
	}
	return cfg.DataDir
}

// shutdown ends the parts in the order in which they feed each other: nothing
// new comes in, what was taken is answered, streams are told to come back,
// conversion ends with the batch in hand. Subscriptions and the log are closed
// last, by run.
func (g *gateway) shutdown(stopConverting context.CancelFunc) error {
	g.logger.Info("ordergate is stopping", "timeout", g.cfg.ShutdownTimeout)
	ctx, cancel := context.WithTimeout(context.Background(), g.cfg.ShutdownTimeout)
	defer cancel()
	err := g.ingress.Shutdown(ctx)
	g.grpc.Shutdown(ctx)
	err = errors.Join(err, g.admin.Shutdown(ctx))
	stopConverting()
	return err
}

// close frees what is open, in any state of the gateway.
func (g *gateway) close() error {
	var problems []error
	for _, listener := range []net.Listener{g.ingressListener, g.grpcListener, g.adminListener} {
		if listener != nil {
			listener.Close() // most are closed by their servers already
		}
	}
	if g.conn != nil {
		problems = append(problems, g.conn.Close())
	}
	if g.streams != nil {
		problems = append(problems, g.streams.Close())
	}
	if g.subscriptions != nil {
		g.subscriptions.Close()
	}
	if g.log != nil {
		problems = append(problems, g.log.Close())
	}
	g.tracing.Close()
	return errors.Join(problems...)
}

func serveHTTP(server *http.Server, listener net.Listener) error {
	serve := server.Serve
	if server.TLSConfig != nil {
		serve = func(listener net.Listener) error { return server.ServeTLS(listener, "", "") }
	}
	if err := serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
