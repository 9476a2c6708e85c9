// Package peers lets gateways that share a log call each other over gRPC. Their
// connections go through NATS, which knows who may: they need no addresses,
// certificates or secrets of their own.
package peers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/natsconn"
	"github.com/ordergate/ordergate/internal/natsnet"
)

const (
	// lookInterval is how often it is looked which gateways are gone, whose
	// connections are closed then.
	lookInterval = time.Second
	// A connection that says nothing is asked after pingTime, and closed pingTimeout
	// later: nothing else tells that the other end is gone.
	pingTime    = 10 * time.Second
	pingTimeout = 3 * time.Second
	// StreamWindow and ConnWindow are how much may be under way in HTTP/2, in bytes;
	// natsnet cuts a connection off at more than that.
	StreamWindow = 1 << 20
	ConnWindow   = 4 << 20
	// maxMessageBytes is the largest message: an order event, with room.
	maxMessageBytes = 64 << 20
)

// ErrAway means that a gateway cannot be called.
var ErrAway = errors.New("the gateway that has it cannot be reached")

// Peers are the other gateways.
type Peers struct {
	cluster natsconn.Config
	log     *eventlog.Log
	logger  *slog.Logger

	mu    sync.Mutex
	nats  *nats.Conn // nil while there is none
	conns map[string]*grpc.ClientConn
}

// New returns the gateways that share a log which is in a cluster.
func New(cluster natsconn.Config, log *eventlog.Log, logger *slog.Logger) *Peers {
	return &Peers{cluster: cluster, log: log, logger: logger, conns: map[string]*grpc.ClientConn{}}
}

// Run has this gateway take the calls of others, with serve, until ctx ends or the
// server that serves is stopped.
func (p *Peers) Run(ctx context.Context, serve func(net.Listener) error) {
	var looking sync.WaitGroup
	looking.Go(func() { p.look(ctx) })
	defer looking.Wait()
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = 100*time.Millisecond, 5*time.Second
	for ctx.Err() == nil {
		began := time.Now()
		err := p.listen(ctx, serve)
		if ctx.Err() != nil || err == nil || errors.Is(err, grpc.ErrServerStopped) {
			return
		}
		if time.Since(began) > pause.MaxInterval {
			pause.Reset()
		}
		p.logger.Warn("the connection to the other gateways was lost; making it anew", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause.NextBackOff()):
		}
	}
}

// listen serves on one connection to NATS, until that is lost.
func (p *Peers) listen(ctx context.Context, serve func(net.Listener) error) error {
	conn, err := natsconn.Connect(ctx, p.cluster, "ordergate peers", nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	listener, err := natsnet.Listen(conn, p.log.Member())
	if err != nil {
		return err
	}
	defer listener.Close()
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	p.use(conn)
	defer p.use(nil)
	return serve(listener)
}

// use has calls go over a connection to NATS.
func (p *Peers) use(conn *nats.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nats = conn
}

// Conn returns the connection to a gateway. It ends when the gateway is gone.
func (p *Peers) Conn(member string) (*grpc.ClientConn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if conn := p.conns[member]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient("passthrough:"+member,
		grpc.WithContextDialer(p.dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingTime, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithStaticStreamWindowSize(StreamWindow), grpc.WithStaticConnWindowSize(ConnWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: grpcbackoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}, MinConnectTimeout: pingTimeout}),
		grpc.WithDisableServiceConfig(),
	)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAway, err)
	}
	p.conns[member] = conn
	return conn, nil
}

func (p *Peers) dial(ctx context.Context, member string) (net.Conn, error) {
	p.mu.Lock()
	conn := p.nats
	p.mu.Unlock()
	if conn == nil {
		return nil, fmt.Errorf("%w: there is no connection to NATS", ErrAway)
	}
	return natsnet.Dial(ctx, conn, member)
}

// look closes the connections to gateways that are gone, so that what waits for them
// need not wait for a ping.
func (p *Peers) look(ctx context.Context) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			p.forget(nil)
			return
		case <-tick.C:
		}
		p.forget(p.log.Members())
	}
}

// forget closes the connections to all but some gateways.
func (p *Peers) forget(but []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for member, conn := range p.conns {
		if !slices.Contains(but, member) {
			conn.Close()
			delete(p.conns, member)
		}
	}
}
