package client_test

import (
	"context"
	"fmt"
	"log"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
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

// exampleGateway has three orders, and goes away after the second.
type exampleGateway struct {
	ordergatev1.UnimplementedOrderServiceServer
}

func (exampleGateway) WatchOrders(request *ordergatev1.WatchOrdersRequest, stream grpc.ServerStreamingServer[ordergatev1.WatchOrdersResponse]) error {
	order := func(id string, livemode bool) *ordergatev1.WatchOrdersResponse {
		o := &ordergatev1.Order{Id: id, Livemode: new(livemode), Directive: ordergatev1.Directive_DIRECTIVE_SHIP}
		return &ordergatev1.WatchOrdersResponse{ResumeToken: id, Payload: &ordergatev1.WatchOrdersResponse_Event{Event: &ordergatev1.OrderEvent{Id: id + ".1", Order: o}}}
	}
	if request.GetResumeToken() == "" {
		stream.Send(order("cs_live_1", true))
		stream.Send(order("cs_test_2", false))
		return status.Error(codes.Unavailable, "gone")
	}
	stream.Send(order("cs_live_3", true))
	return stream.Send(&ordergatev1.WatchOrdersResponse{ResumeToken: "end", Payload: &ordergatev1.WatchOrdersResponse_CaughtUp{CaughtUp: &ordergatev1.CaughtUp{}}})
}

func startExampleGateway() (addr string, stop func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	ordergatev1.RegisterOrderServiceServer(server, exampleGateway{})
	go server.Serve(listener)
	return listener.Addr().String(), server.Stop
}
