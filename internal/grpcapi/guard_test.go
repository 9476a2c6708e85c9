package grpcapi

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/authtest"
	"github.com/ordergate/ordergate/internal/pipeline"
	"github.com/ordergate/ordergate/internal/stripeapi"
)

// callers are a gateway's access file and the tokens in it.
type callers struct {
	access *auth.Access
	file   string
	tokens map[string]string // by name, which is the role's
	lines  map[string]string
}

func newCallers(t *testing.T, more string) *callers {
	t.Helper()
	c := &callers{file: filepath.Join(t.TempDir(), "access"), tokens: map[string]string{}, lines: map[string]string{}}
	for _, role := range []string{"reader", "subscriber", "operator"} {
		var subscriptions []string
		if role == "subscriber" {
			subscriptions = []string{"mine", "mine-too"}
		}
		c.tokens[role], c.lines[role] = authtest.Token(t, role, role, subscriptions...)
	}
	c.write(t, more, "reader", "subscriber", "operator")
	var err error
	if c.access, err = auth.Load(auth.Config{File: c.file, Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	var watching sync.WaitGroup
	watching.Go(func() { c.access.Watch(t.Context()) })
	t.Cleanup(watching.Wait)
	return c
}

// write leaves only these in the access file.
func (c *callers) write(t *testing.T, more string, names ...string) {
	t.Helper()
	content := more
	for _, name := range names {
		content += c.lines[name]
	}
	authtest.WriteFile(t, c.file, content)
}

// as returns a context for calls of one of the callers; of nobody when empty.
func (c *callers) as(t *testing.T, name string) context.Context {
	if name == "" {
		return deadline(t)
	}
	return metadata.AppendToOutgoingContext(deadline(t), "authorization", "Bearer "+c.tokens[name])
}

func (c *callers) gateway(t *testing.T, stripe *stripeapi.Client) *gateway {
	t.Helper()
	return newGuardedGateway(t, t.TempDir(), stripe, Security{Access: c.access}, nil)
}

func (g *gateway) dial(t *testing.T, transport credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(g.addr, grpc.WithTransportCredentials(transport))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// whoMay is the least role that may call each method; own is for the methods
// that a subscriber may call for its own subscriptions. It is said here once more
// on purpose.
var whoMay = map[string]struct {
	role string // empty: everybody
	own  bool
}{
	"ordergate.v1.OrderService/GetOrder":        {"reader", false},
	"ordergate.v1.OrderService/ListOrders":      {"reader", false},
	"ordergate.v1.OrderService/ListOrderEvents": {"reader", false},
	"ordergate.v1.OrderService/WatchOrders":     {"reader", false},
	"ordergate.v1.OrderService/HoldOrder":       {"operator", false},
	"ordergate.v1.OrderService/ReleaseOrder":    {"operator", false},
	"ordergate.v1.OrderService/ReinstateOrder":  {"operator", false},
	"ordergate.v1.OrderService/EraseOrders":     {"operator", false},

	"ordergate.v1.SubscriptionService/GetSubscription":    {"reader", false},
	"ordergate.v1.SubscriptionService/ListSubscriptions":  {"reader", false},
	"ordergate.v1.SubscriptionService/Consume":            {"subscriber", true},
	"ordergate.v1.SubscriptionService/Pull":               {"subscriber", true},
	"ordergate.v1.SubscriptionService/Acknowledge":        {"subscriber", true},
	"ordergate.v1.SubscriptionService/ModifyAckDeadline":  {"subscriber", true},
	"ordergate.v1.SubscriptionService/ListDeadLetters":    {"subscriber", true},
	"ordergate.v1.SubscriptionService/CreateSubscription": {"operator", false},
	"ordergate.v1.SubscriptionService/UpdateSubscription": {"operator", false},
	"ordergate.v1.SubscriptionService/DeleteSubscription": {"operator", false},
	"ordergate.v1.SubscriptionService/SeekSubscription":   {"operator", false},
	"ordergate.v1.SubscriptionService/RedriveDeadLetters": {"operator", false},
	"ordergate.v1.SubscriptionService/DiscardDeadLetters": {"operator", false},

	"ordergate.v1.EventService/ListEvents":      {"operator", false},
	"ordergate.v1.EventService/GetEvent":        {"operator", false},
	"ordergate.v1.EventService/ReprocessEvents": {"operator", false},
	"ordergate.v1.EventService/Backfill":        {"operator", false},
	"ordergate.v1.EventService/DismissEvents":   {"operator", false},

	"grpc.health.v1.Health/Check": {},
	"grpc.health.v1.Health/List":  {},
	"grpc.health.v1.Health/Watch": {},

	"grpc.reflection.v1.ServerReflection/ServerReflectionInfo":      {"reader", false},
	"grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {"reader", false},
}

// roles in the order of what they may; nobody first.
var roles = []string{"", "reader", "subscriber", "operator"}

// answer calls a method of any kind with one message, and returns what the first
// answer is.
func answer(ctx context.Context, conn *grpc.ClientConn, method string, request proto.Message) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/"+method)
	if err == nil {
		stream.SendMsg(request) // Recv tells of an error
		stream.CloseSend()
		err = stream.RecvMsg(&emptypb.Empty{})
	}
	if err != nil && err.Error() == "EOF" {
		return nil
	}
	return err
}

// requestTo makes a request of a method that names this subscription, if it can.
func requestTo(t *testing.T, method, subscription string) proto.Message {
	t.Helper()
	service, name, _ := strings.Cut(method, "/")
	described, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		t.Fatal(err)
	}
	input, err := protoregistry.GlobalTypes.FindMessageByName(described.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(name)).Input().FullName())
	if err != nil {
		t.Fatal(err)
	}
	request := input.New()
	if consume, ok := request.Interface().(*ordergatev1.ConsumeRequest); ok {
		consume.Open = &ordergatev1.ConsumeOpen{Subscription: subscription}
	} else if field := input.Descriptor().Fields().ByName("subscription"); field != nil && field.Kind() == protoreflect.StringKind {
		request.Set(field, protoreflect.ValueOfString(subscription))
	}
	return request.Interface()
}

// Every method of every service has a rule; who may not is told so, and who may,
// and nobody else is let in.
func TestWhoMayDoWhat(t *testing.T) {
	c := newCallers(t, "")
	g := c.gateway(t, nil)
	conn := g.dial(t, insecure.NewCredentials())
	seen := 0
	for service, info := range g.server.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			method := service + "/" + m.Name
			want, ok := whoMay[method]
			if !ok {
				t.Errorf("%s has no rule: say in internal/auth who may call it, and here", method)
				continue
			}
			seen++
			request := requestTo(t, method, "mine")
			for level, role := range roles {
				err := answer(c.as(t, role), conn, method, request)
				got := problemOf(t, err)
				switch {
				case level >= slices.Index(roles, want.role):
					if got.Code == codes.Unauthenticated || got.Code == codes.PermissionDenied || got.Code == codes.Unimplemented || got.Code == codes.Internal {
						t.Errorf("%s by %q: %v", method, role, err)
					}
				case role == "":
					expectProblem(t, err, problem{Code: codes.Unauthenticated, Reason: "UNAUTHENTICATED"})
				default:
					expectProblem(t, err, problem{Code: codes.PermissionDenied, Reason: "PERMISSION_DENIED", Metadata: map[string]string{"principal": role, "role": role, "needed_role": want.role}})
					if !strings.Contains(status.Convert(err).Message(), "the role "+want.role+" may") {
						t.Errorf("%s by %s: the answer does not say who may: %v", method, role, err)
					}
				}
			}
			if want.own {
				err := answer(c.as(t, "subscriber"), conn, method, requestTo(t, method, "others"))
				expectProblem(t, err, problem{Code: codes.PermissionDenied, Reason: "PERMISSION_DENIED", Metadata: map[string]string{"principal": "subscriber", "role": "subscriber", "needed_role": "operator"}})
				if err := answer(c.as(t, "operator"), conn, method, requestTo(t, method, "others")); problemOf(t, err).Reason != "SUBSCRIPTION_NOT_FOUND" && problemOf(t, err).Code != codes.InvalidArgument {
					t.Errorf("%s by an operator: %v", method, err)
				}
			}
			if want.role != "" {
				unknown := metadata.AppendToOutgoingContext(deadline(t), "authorization", "Bearer "+auth.NewToken())
				expectProblem(t, answer(unknown, conn, method, request), problem{Code: codes.Unauthenticated, Reason: "UNAUTHENTICATED"})
			}
		}
	}
	if seen != len(whoMay) {
		t.Errorf("%d methods are served, %d have a rule", seen, len(whoMay))
	}
}

// A method without a rule is refused to everybody.
func TestMethodWithoutARule(t *testing.T) {
	for name, g := range map[string]guard{"everybody": {access: auth.Everybody(), logger: slog.New(slog.DiscardHandler)}, "nobody": {logger: slog.New(slog.DiscardHandler)}} {
		_, err := g.unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/ordergate.v1.OrderService/New"}, func(context.Context, any) (any, error) {
			t.Errorf("%s: it is called", name)
			return nil, nil
		})
		if status.Code(err) == codes.OK {
			t.Errorf("%s: no error", name)
		}
	}
}

// A subscriber makes its own subscription, and works on it; it cannot change to
// another one on the way.
func TestSubscriberConsumesItsOwn(t *testing.T) {
	c := newCallers(t, "")
	g := c.gateway(t, nil)
	open := func(open *ordergatev1.ConsumeOpen) grpc.BidiStreamingClient[ordergatev1.ConsumeRequest, ordergatev1.ConsumeResponse] {
		t.Helper()
		s, err := g.work.Consume(c.as(t, "subscriber"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Send(&ordergatev1.ConsumeRequest{Open: open}); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(&ordergatev1.ConsumeOpen{Subscription: "mine", Create: &ordergatev1.Subscription{}})
	if opened, err := s.Recv(); err != nil || !opened.GetOpened().GetCreated() {
		t.Fatalf("%v, %v", opened, err)
	}
	if err := s.Send(&ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{Subscription: "others"}}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Recv()
	if code := status.Code(err); code != codes.PermissionDenied {
		t.Errorf("another subscription on the way: %v", err)
	}
	_, err = open(&ordergatev1.ConsumeOpen{Subscription: "mine-too", Create: &ordergatev1.Subscription{Name: "others"}}).Recv()
	expectProblem(t, err, problem{Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: "open.create.name"})
	_, err = open(&ordergatev1.ConsumeOpen{Subscription: "others", Create: &ordergatev1.Subscription{}}).Recv()
	if code := status.Code(err); code != codes.PermissionDenied {
		t.Errorf("another subscription: %v", err)
	}
	_, err = open(nil).Recv()
	expectProblem(t, err, problem{Code: codes.InvalidArgument, Reason: "INVALID_REQUEST", Field: "open"})
	list, err := g.work.ListSubscriptions(c.as(t, "operator"), &ordergatev1.ListSubscriptionsRequest{})
	if err != nil || len(list.GetSubscriptions()) != 1 || list.GetSubscriptions()[0].GetName() != "mine" {
		t.Errorf("subscriptions: %v, %v", list, err)
	}
}

// Streams end when their caller's line goes or changes, those of others go on.
func TestStreamsEndWithTheirCallersAccess(t *testing.T) {
	asked := make(chan struct{})
	var once sync.Once
	c := newCallers(t, "")
	g := c.gateway(t, newStripe(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(asked) })
		<-r.Context().Done() // it does not answer
	})))
	other, line := authtest.Token(t, "other", "reader")
	c.tokens["other"], c.lines["other"] = other, line
	c.write(t, "", "reader", "subscriber", "operator", "other")

	ends := map[string]func() error{}
	watch := func(name string) grpc.ServerStreamingClient[ordergatev1.WatchOrdersResponse] {
		t.Helper()
		s, err := g.client.WatchOrders(c.as(t, name), &ordergatev1.WatchOrdersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	watching := watch("reader")
	if _, err := watching.Recv(); err != nil {
		t.Fatal(err)
	}
	ends["WatchOrders"] = func() error { _, err := watching.Recv(); return err }

	consuming, err := g.work.Consume(c.as(t, "subscriber"))
	if err != nil {
		t.Fatal(err)
	}
	if err := consuming.Send(&ordergatev1.ConsumeRequest{Open: &ordergatev1.ConsumeOpen{Subscription: "mine", Create: &ordergatev1.Subscription{}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := consuming.Recv(); err != nil {
		t.Fatal(err)
	}
	ends["Consume"] = func() error { _, err := consuming.Recv(); return err }
	silent, err := g.work.Consume(c.as(t, "subscriber")) // its first message does not come
	if err != nil {
		t.Fatal(err)
	}
	ends["Consume, not opened"] = func() error { _, err := silent.Recv(); return err }

	backfilling, err := g.events.Backfill(c.as(t, "operator"), &ordergatev1.BackfillRequest{Since: timestamppb.New(time.Now().Add(-time.Hour))})
	if err != nil {
		t.Fatal(err)
	}
	ends["Backfill"] = func() error { _, err := backfilling.Recv(); return err }
	// More than is buffered on the way, of which the client reads nothing yet.
	var receiving sync.WaitGroup
	for i := range 600 {
		id := fmt.Sprintf("evt_poison%d", i)
		body := []byte(strings.NewReplacer("evt_poison", id, "acct_1", "acct_"+strings.Repeat("1", 1000)).Replace(poison))
		receiving.Go(func() {
			g.receive(t, id, body)
			g.park(t, id, pipeline.Parked{Outcome: pipeline.Failed, Detail: "cannot read it", Event: body})
		})
	}
	receiving.Wait()
	reprocessing, err := g.events.ReprocessEvents(c.as(t, "operator"), &ordergatev1.ReprocessEventsRequest{ParkedOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	ends["ReprocessEvents"] = func() error {
		for {
			if response, err := reprocessing.Recv(); err != nil || response.GetDone() {
				return err
			}
		}
	}
	reflecting, err := reflectionv1.NewServerReflectionClient(g.dial(t, insecure.NewCredentials())).ServerReflectionInfo(c.as(t, "reader"))
	if err != nil {
		t.Fatal(err)
	}
	list := &reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}
	if err := reflecting.Send(list); err != nil {
		t.Fatal(err)
	}
	if _, err := reflecting.Recv(); err != nil {
		t.Fatal(err)
	}
	ends["reflection"] = func() error { reflecting.Send(list); _, err := reflecting.Recv(); return err }
	select {
	case <-asked:
	case <-deadline(t).Done():
		t.Fatal("Stripe is not asked")
	}
	// Known only after the file was read again.
	var staying grpc.ServerStreamingClient[ordergatev1.WatchOrdersResponse]
	for staying = watch("other"); ; staying = watch("other") {
		if _, err := staying.Recv(); err == nil {
			break
		} else if deadline(t).Err() != nil {
			t.Fatal(err)
		}
	}

	// The reader's line goes, the subscriber loses a subscription, and the operator
	// becomes a reader.
	c.lines["subscriber"] = strings.Replace(c.lines["subscriber"], ",mine-too", "", 1)
	c.lines["operator"] = strings.Replace(c.lines["operator"], "operator operator", "operator reader", 1)
	c.write(t, "", "subscriber", "operator", "other")
	for _, name := range []string{"WatchOrders", "Consume", "Consume, not opened", "Backfill", "ReprocessEvents", "reflection"} {
		t.Log(name)
		expectProblem(t, ends[name](), problem{Code: codes.Unauthenticated, Reason: "UNAUTHENTICATED"})
	}
	g.store(t, change{order: "cs_1", revision: 1})
	if response, err := staying.Recv(); err != nil || response.GetEvent().GetId() != "cs_1.1" {
		t.Errorf("another caller's stream: %v, %v", response, err)
	}
	_, err = g.events.ListEvents(c.as(t, "operator"), &ordergatev1.ListEventsRequest{})
	if code := status.Code(err); code != codes.PermissionDenied {
		t.Errorf("who was an operator: %v", err)
	}
	if _, err := g.health.Check(deadline(t), &healthv1.HealthCheckRequest{}); err != nil {
		t.Errorf("health: %v", err)
	}
}

// Over TLS a caller is known by its token, or by the names in its certificate.
func TestTLS(t *testing.T) {
	ca, foreign := authtest.NewCA(t), authtest.NewCA(t)
	c := newCallers(t, "robot subscriber san:spiffe://shop/robot mine\nhost operator san:host.example.com\n")
	cert, key := ca.Issue(t, "127.0.0.1")
	keys, err := auth.LoadKeys(cert, key, ca.File, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	g := newGuardedGateway(t, t.TempDir(), nil, Security{c.access, keys.Config("h2")}, nil)
	call := func(cfg *tls.Config, token, method string) error {
		ctx := deadline(t)
		if token != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
		}
		return answer(ctx, g.dial(t, credentials.NewTLS(cfg)), method, requestTo(t, method, "mine"))
	}
	show := func(of *authtest.CA, names ...string) *tls.Config {
		cert, key := of.Issue(t, names...)
		return ca.Client(t, cert, key)
	}
	const list, pull, events = "ordergate.v1.OrderService/ListOrders", "ordergate.v1.SubscriptionService/Pull", "ordergate.v1.EventService/ListEvents"
	for _, tt := range []struct {
		name, token, method string
		cfg                 *tls.Config
		want                codes.Code
	}{
		{"nothing", "", list, ca.Client(t, "", ""), codes.Unauthenticated},
		{"a token", c.tokens["reader"], list, ca.Client(t, "", ""), codes.OK},
		{"a wrong token", auth.NewToken(), list, ca.Client(t, "", ""), codes.Unauthenticated},
		{"a URI", "", pull, show(ca, "spiffe://shop/robot"), codes.NotFound},
		{"a URI, not enough", "", events, show(ca, "spiffe://shop/robot"), codes.PermissionDenied},
		{"a DNS name", "", events, show(ca, "host.example.com"), codes.OK},
		{"an unknown name", "", list, show(ca, "else.example.com"), codes.Unauthenticated},
		{"a certificate from elsewhere", "", list, show(foreign, "host.example.com"), codes.Unavailable},
		{"a token alone counts", c.tokens["reader"], events, show(ca, "host.example.com"), codes.PermissionDenied},
		{"a gateway that is not trusted", c.tokens["reader"], list, foreign.Client(t, "", ""), codes.Unavailable},
	} {
		if err := call(tt.cfg, tt.token, tt.method); status.Code(err) != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	if err := answer(c.as(t, "reader"), g.dial(t, insecure.NewCredentials()), list, requestTo(t, list, "")); status.Code(err) != codes.Unavailable {
		t.Errorf("plaintext on the port with TLS: %v", err)
	}
}

// elsewhere is a listener whose connections seem to come over a network.
type elsewhere struct{ net.Listener }

func (l elsewhere) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return elsewhereConn{conn}, err
}

type elsewhereConn struct{ net.Conn }

func (elsewhereConn) LocalAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 50051}
}

func TestTokenOverPlaintextFromElsewhere(t *testing.T) {
	c := newCallers(t, "")
	g := newGuardedGateway(t, t.TempDir(), nil, Security{Access: c.access}, func(l net.Listener) net.Listener { return elsewhere{l} })
	_, err := g.client.ListOrders(c.as(t, "reader"), &ordergatev1.ListOrdersRequest{})
	expectProblem(t, err, problem{Code: codes.Unauthenticated, Reason: "UNAUTHENTICATED"})
	if !strings.Contains(err.Error(), "plaintext") {
		t.Error(err)
	}
}

// A ticket counts within the process, and only there; nothing else counts there.
func TestTicketsCountWithinTheProcessOnly(t *testing.T) {
	c := newCallers(t, "")
	g := c.gateway(t, nil)
	inside, err := grpc.NewClient("passthrough:own", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return g.own.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	ticket, done := c.access.HandOver(auth.Shown{Authorization: []string{"Bearer " + c.tokens["reader"]}, Private: true})
	own, ownDone := c.access.HandOver(auth.Own())
	defer ownDone()
	list := func(conn grpc.ClientConnInterface, pairs ...string) codes.Code {
		_, err := ordergatev1.NewOrderServiceClient(conn).ListOrders(metadata.AppendToOutgoingContext(deadline(t), pairs...), &ordergatev1.ListOrdersRequest{})
		return status.Code(err)
	}
	outside := g.dial(t, insecure.NewCredentials())
	token := "Bearer " + c.tokens["operator"]
	for _, tt := range []struct {
		name  string
		conn  *grpc.ClientConn
		pairs []string
		want  codes.Code
	}{
		{"inside, a ticket", inside, []string{auth.TicketKey, ticket}, codes.OK},
		{"inside, the gateway itself", inside, []string{auth.TicketKey, own}, codes.OK},
		{"inside, nothing", inside, nil, codes.Unauthenticated},
		{"inside, two tickets", inside, []string{auth.TicketKey, ticket, auth.TicketKey, own}, codes.Unauthenticated},
		{"inside, a token", inside, []string{"authorization", token}, codes.Unauthenticated},
		{"outside, a ticket", outside, []string{auth.TicketKey, ticket}, codes.Unauthenticated},
		{"outside, the gateway's", outside, []string{auth.TicketKey, own}, codes.Unauthenticated},
	} {
		if got := list(tt.conn, tt.pairs...); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	done()
	if got := list(inside, auth.TicketKey, ticket); got != codes.Unauthenticated {
		t.Errorf("a ticket of before: %v", got)
	}
}

// Log lines name the principal of each call at debug level, and never a token.
func TestLogNamesThePrincipal(t *testing.T) {
	var log strings.Builder
	c := newCallers(t, "")
	g := guard{access: c.access, logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	info := &grpc.UnaryServerInfo{FullMethod: ordergatev1.OrderService_GetOrder_FullMethodName}
	if _, err := g.unary(t.Context(), nil, info, nil); err == nil {
		t.Error("a caller without a peer is let in")
	}
	ticket, done := c.access.HandOver(auth.Shown{Authorization: []string{"Bearer " + c.tokens["reader"]}, Private: true})
	defer done()
	ctx := inProcessContext(ticket)
	if _, err := g.unary(ctx, nil, info, func(context.Context, any) (any, error) { return nil, nil }); err != nil {
		t.Error(err)
	}
	if got := log.String(); !strings.Contains(got, fmt.Sprintf("level=DEBUG msg=rpc method=%s principal=reader code=OK", info.FullMethod)) || strings.Contains(got, c.tokens["reader"]) || strings.Contains(got, ticket) {
		t.Error(got)
	}
}

// inProcessContext is that of a call within the process.
func inProcessContext(ticket string) context.Context {
	ctx := peer.NewContext(context.Background(), &peer.Peer{AuthInfo: inProcessInfo{}})
	return metadata.NewIncomingContext(ctx, metadata.Pairs(auth.TicketKey, ticket))
}

// countingStream counts what reaches the other side.
type countingStream struct {
	grpc.ServerStream
	sent int
}

func (s *countingStream) SendMsg(any) error { s.sent++; return nil }
func (s *countingStream) RecvMsg(any) error { return nil }

// Whatever a handler does, nothing more is sent or taken once the access ended.
func TestNothingPassesAfterAccessEnded(t *testing.T) {
	c := newCallers(t, "")
	call, err := c.access.Admit(ordergatev1.OrderService_WatchOrders_FullMethodName, auth.Shown{Authorization: []string{"Bearer " + c.tokens["reader"]}, Private: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := call.While(deadline(t))
	defer cancel()
	under := &countingStream{}
	s := &guardedStream{under, ctx, call}
	if err := s.SendMsg(nil); err != nil || s.RecvMsg(nil) != nil || under.sent != 1 {
		t.Errorf("before: %v, %d sent", err, under.sent)
	}
	c.write(t, "", "operator")
	<-ctx.Done()
	var unknown *auth.UnauthenticatedError
	if err := s.SendMsg(nil); !errors.As(err, &unknown) || under.sent != 1 {
		t.Errorf("a message is sent: %v", err)
	}
	if err := s.RecvMsg(nil); !errors.As(err, &unknown) {
		t.Errorf("a message is taken: %v", err)
	}
}
