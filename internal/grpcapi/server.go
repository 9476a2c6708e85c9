// Package grpcapi serves the gRPC API: OrderService, SubscriptionService,
// EventService, health and reflection. It is where errors of the inner packages
// become gRPC statuses, and where streams
// are drained when the gateway stops.
package grpcapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/stats"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/pipeline"
	"github.com/ordergate/ordergate/internal/subscription"
)

const (
	// maxRequestBytes bounds a request; every one of this API is small.
	maxRequestBytes = 256 << 10
	// connectionTimeout bounds the handshake of a connection.
	connectionTimeout = 10 * time.Second
	// maxStreams bounds the streams of one connection.
	maxStreams = 1000
	// healthInterval is how often the health service looks at the log.
	healthInterval = time.Second

	// A connection is told to be renewed after connectionAge, give or take a tenth,
	// and cut off connectionGrace later. In between, at drainAge, streams of workers
	// are drained: they have drainTime to settle what they have in hand, and come
	// back on another connection, as no stream can be opened on the old one.
	connectionAge   = 30 * time.Minute
	connectionGrace = 10 * time.Minute
	drainTime       = 2 * time.Minute
	// drainMargin is what a shutdown needs after the streams have ended.
	drainMargin = time.Second
)

// drainAge is a variable for its test.
var drainAge = 34 * time.Minute

// Server is the gRPC server.
type Server struct {
	grpc   *grpc.Server
	peers  *grpc.Server // nil where the log is not shared
	health *health.Server
	log    *eventlog.Log
	drains *drains

	measures *measures

	// draining ends when no new streams are wanted and open ones are to end.
	draining context.Context
	drain    context.CancelFunc
}

// New returns a server that shows what is in a log, hands out what subscriptions
// have, and has the log's pipeline do what operators ask for. peers are those that
// share the log, nil when nobody does.
func New(log *eventlog.Log, pipeline *pipeline.Pipeline, subscriptions *subscription.Manager, peers Peers, security Security, logger *slog.Logger) *Server {
	s := &Server{log: log, health: health.NewServer(), measures: newMeasures()}
	s.draining, s.drain = context.WithCancel(context.Background())
	s.drains = &drains{draining: s.draining}
	guard := guard{security.Access, logger, peers}
	s.grpc = grpc.NewServer(
		grpc.ForceServerCodecV2(newWireCodec()),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(connectionTimeout),
		grpc.InTapHandle(guard.tap(make(anonymousCalls, maxAnonymous))),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time:                  30 * time.Second,
			Timeout:               10 * time.Second,
			MaxConnectionAge:      connectionAge,
			MaxConnectionAgeGrace: connectionGrace,
		}),
		grpc.StatsHandler(connectionStart{}),
		grpc.Creds(security.credentials()),
		grpc.ChainUnaryInterceptor(s.measures.unary, guard.unary),
		grpc.ChainStreamInterceptor(s.measures.stream, guard.stream),
	)
	ordergatev1.RegisterOrderServiceServer(s.grpc, &orderService{log: log, pipeline: pipeline, subscriptions: subscriptions, peers: peers, draining: s.draining, measures: s.measures})
	ordergatev1.RegisterEventServiceServer(s.grpc, &eventService{log: log, pipeline: pipeline, draining: s.draining, logger: logger})
	service := &subscriptionService{log: log, subscriptions: subscriptions, peers: peers, drains: s.drains, measures: s.measures, logger: logger}
	ordergatev1.RegisterSubscriptionServiceServer(s.grpc, service)
	if peers != nil {
		forPeers := *service
		forPeers.peers = nil
		s.peers = newPeerServer(&forPeers, guard)
	}
	healthv1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	s.reportHealth()
	return s
}

// Serve accepts connections until the server is shut down. It may be called
// for several listeners.
func (s *Server) Serve(listener net.Listener) error {
	err := s.grpc.Serve(listener)
	if errors.Is(err, grpc.ErrServerStopped) { // before it had begun
		return nil
	}
	return err
}

// ServeInProcess is Serve for a listener that only this process can reach. Its
// callers show tickets of the access list (auth.Access.HandOver), and nothing
// else.
func (s *Server) ServeInProcess(listener net.Listener) error {
	return s.Serve(inProcessListener{listener})
}

// ServePeers accepts the calls of gateways that share the log, until the server is
// shut down.
func (s *Server) ServePeers(listener net.Listener) error { return s.peers.Serve(listener) }

// MonitorHealth keeps the health service in step with the log until ctx ends.
func (s *Server) MonitorHealth(ctx context.Context) {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.reportHealth()
		}
	}
}

func (s *Server) reportHealth() {
	status := healthv1.HealthCheckResponse_SERVING
	if s.log.Ready() != nil {
		status = healthv1.HealthCheckResponse_NOT_SERVING
	}
	for _, service := range []string{"", ordergatev1.OrderService_ServiceDesc.ServiceName, ordergatev1.SubscriptionService_ServiceDesc.ServiceName, ordergatev1.EventService_ServiceDesc.ServiceName} {
		s.health.SetServingStatus(service, status)
	}
}

// Shutdown ends the server in order: health says NOT_SERVING, the open streams
// end with UNAVAILABLE (SHUTTING_DOWN), those of workers when they have settled
// what they have in hand; calls are finished. What has not ended when ctx does is
// cut off.
func (s *Server) Shutdown(ctx context.Context) {
	s.health.Shutdown()
	end, bounded := ctx.Deadline()
	if !bounded {
		end = time.Now().Add(drainTime)
	}
	s.drains.end = end.Add(-drainMargin)
	s.drain()
	stopped := make(chan struct{})
	servers := []*grpc.Server{s.grpc}
	if s.peers != nil {
		servers = append(servers, s.peers)
	}
	go func() {
		for _, server := range servers {
			server.GracefulStop()
		}
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-ctx.Done():
		for _, server := range servers {
			server.Stop()
		}
		<-stopped
	}
}

// drains says when streams of workers are to be drained.
type drains struct {
	draining context.Context // ends when the server shuts down
	end      time.Time       // by when it has; set before draining ends
}

// connectionStart notes in a connection's context when it was made.
type connectionStart struct{}

func (connectionStart) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, connectionStart{}, time.Now())
}
func (connectionStart) HandleConn(context.Context, stats.ConnStats)                     {}
func (connectionStart) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (connectionStart) HandleRPC(context.Context, stats.RPCStats)                       {}

// connectionAgeOf is how old the connection of a call is.
func connectionAgeOf(ctx context.Context) time.Duration {
	if start, ok := ctx.Value(connectionStart{}).(time.Time); ok {
		return time.Since(start)
	}
	return 0
}

// untilDraining returns a context for a stream, which also ends, with the cause
// errShuttingDown, when the server drains. Return what comes of it through
// causeOf.
func untilDraining(stream, draining context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(stream)
	stopWaiting := context.AfterFunc(draining, func() { cancel(errShuttingDown) })
	return ctx, func() {
		stopWaiting()
		cancel(nil)
	}
}

// causeOf returns why ctx ended for an error that only says that it did.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return context.Cause(ctx)
	}
	return err
}
