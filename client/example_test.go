package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
	"github.com/ordergate/ordergate/client/clienttest"
)

// A subscriber that ships what is to be shipped. The gateway of the example
// goes away in the middle, which the loop does not notice.
func ExampleClient_Watch() {
	gateway, stop := startExampleGateway()
	defer stop()

	c, err := client.New(gateway, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	token := "" // what the last run of the program stored, if there was one
	for message, err := range c.Watch(context.Background(), client.WatchOptions{ResumeToken: token, FromBeginning: true}) {
		if err != nil {
			log.Fatal(err) // another try would not change it
		}
		if message.GetCaughtUp() != nil {
			fmt.Println("that is all for now")
			break
		}
		if order := message.GetEvent().GetOrder(); order.GetLivemode() && order.GetDirective() == ordergatev1.Directive_DIRECTIVE_SHIP {
			fmt.Println("ship", order.GetId())
		}
		token = message.GetResumeToken() // store it when the event is done with
	}
	// Output:
	// ship cs_live_1
	// ship cs_live_3
	// that is all for now
}

// A worker that ships what is to be shipped. The gateway goes away in the
// middle, which the handler does not notice.
func ExampleClient_Consume() {
	gateway, stop := startExampleGateway()
	defer stop()

	c, err := client.New(gateway, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	// A program ends it on a signal, by signal.NotifyContext.
	ctx, finish := context.WithCancel(context.Background())
	defer finish()
	ship := func(_ context.Context, delivery *client.Delivery) error {
		order := delivery.Event.GetOrder()
		if !order.GetLivemode() {
			return client.Skip(errors.New("an order of Stripe's test mode"))
		}
		fmt.Println("ship", order.GetId())
		if order.GetId() == "cs_live_3" {
			finish()
		}
		return nil
	}
	err = c.Consume(ctx, "shipping", ship, client.ConsumeOptions{Concurrency: 1, Create: &ordergatev1.Subscription{}})
	if err != nil {
		log.Fatal(err) // another try would not change it
	}
	fmt.Println("stopped, and everything is settled")
	// Output:
	// ship cs_live_1
	// ship cs_live_3
	// stopped, and everything is settled
}

// exampleGateway has three orders, and goes away after the second.
type exampleGateway struct {
	ordergatev1.UnimplementedOrderServiceServer
	ordergatev1.UnimplementedSubscriptionServiceServer
	streams *atomic.Int32 // of Consume
}

func exampleOrder(id string, livemode bool) *ordergatev1.OrderEvent {
	return &ordergatev1.OrderEvent{Id: id + ".1", Order: &ordergatev1.Order{Id: id, Livemode: new(livemode), Directive: ordergatev1.Directive_DIRECTIVE_SHIP}}
}

func (exampleGateway) WatchOrders(request *ordergatev1.WatchOrdersRequest, stream grpc.ServerStreamingServer[ordergatev1.WatchOrdersResponse]) error {
	order := func(id string, livemode bool) *ordergatev1.WatchOrdersResponse {
		return &ordergatev1.WatchOrdersResponse{ResumeToken: id, Payload: &ordergatev1.WatchOrdersResponse_Event{Event: exampleOrder(id, livemode)}}
	}
	if request.GetResumeToken() == "" {
		stream.Send(order("cs_live_1", true))
		stream.Send(order("cs_test_2", false))
		return status.Error(codes.Unavailable, "gone")
	}
	stream.Send(order("cs_live_3", true))
	return stream.Send(&ordergatev1.WatchOrdersResponse{ResumeToken: "end", Payload: &ordergatev1.WatchOrdersResponse_CaughtUp{CaughtUp: &ordergatev1.CaughtUp{}}})
}

func (g exampleGateway) Consume(stream grpc.BidiStreamingServer[ordergatev1.ConsumeRequest, ordergatev1.ConsumeResponse]) error {
	events := []*ordergatev1.OrderEvent{exampleOrder("cs_live_1", true), exampleOrder("cs_test_2", false)}
	if g.streams.Add(1) > 1 {
		events = []*ordergatev1.OrderEvent{exampleOrder("cs_live_3", true)}
	}
	stream.Send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Opened{Opened: &ordergatev1.ConsumeOpened{}}})
	for _, event := range events {
		stream.Send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: &ordergatev1.Delivery{DeliveryId: event.GetId(), Event: event, Attempt: 1}}})
	}
	for unsettled := len(events); unsettled > 0; {
		request, err := stream.Recv()
		if err != nil {
			return err
		}
		ids := request.GetAcks()
		for _, nack := range request.GetNacks() {
			ids = append(ids, nack.GetDeliveryId())
		}
		results := &ordergatev1.DeliveryResults{}
		for _, id := range ids {
			results.Results = append(results.Results, &ordergatev1.DeliveryResult{DeliveryId: id, Code: ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK})
		}
		stream.Send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Results{Results: results}})
		unsettled -= len(ids)
	}
	return status.Error(codes.Unavailable, "gone")
}

func startExampleGateway() (addr string, stop func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	gateway := exampleGateway{streams: new(atomic.Int32)}
	ordergatev1.RegisterOrderServiceServer(server, gateway)
	ordergatev1.RegisterSubscriptionServiceServer(server, gateway)
	go server.Serve(listener)
	return listener.Addr().String(), server.Stop
}

// Several gateways with one name in DNS, and a token that the platform renews in a file.
func ExampleNew_severalGateways() {
	const target = "dns:///gateways.example:50051"
	options, err := client.Credentials{TLS: true, TokenSource: client.TokenFile("/run/secrets/ordergate-token")}.DialOptions(target)
	if err != nil {
		log.Fatal(err)
	}
	options = append(options, grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`))
	c, err := client.New(target, options...)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
}

// A token source that renews its token a minute before it expires.
func ExampleWithTokenSource() {
	var (
		mu      sync.Mutex
		token   string
		expires time.Time
	)
	source := func(ctx context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if time.Until(expires) > time.Minute {
			return token, nil
		}
		issued, lifetime, err := issueToken(ctx)
		if err != nil {
			return "", err
		}
		token, expires = issued, time.Now().Add(lifetime)
		return token, nil
	}
	c, err := client.New("gateway.example:50051", client.WithTokenSource(source), grpc.WithTransportCredentials(credentials.NewTLS(nil)))
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
}

// issueToken stands for the company's token service.
func issueToken(context.Context) (token string, lifetime time.Duration, err error) {
	return "ogt_example", time.Hour, nil
}

// A handler that panics fails its event alone. The event is delivered again, and the log has the
// stack.
func ExampleHandler_panic() {
	gateway := clienttest.New()
	defer gateway.Close()
	gateway.Deliver(exampleOrder("cs_live_1", true))
	handler := func(_ context.Context, delivery *client.Delivery) error {
		if delivery.Attempt == 1 {
			panic("the printer has no paper")
		}
		return nil
	}
	if err := gateway.Run(context.Background(), handler, client.ConsumeOptions{Logger: slog.New(slog.DiscardHandler)}); err != nil {
		log.Fatal(err)
	}
	for _, s := range gateway.Settlements() {
		reason, _, _ := strings.Cut(s.Reason, "\n") // the functions of the stack follow
		fmt.Println(s.Outcome, reason)
	}
	// Output:
	// retried panic: the printer has no paper
	// acknowledged
}
