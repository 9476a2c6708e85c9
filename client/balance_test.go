package client_test

import (
	"net"
	"strconv"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

// nameServer answers every question for an A record with the same addresses. It returns its own
// address.
func nameServer(t *testing.T, addresses ...[4]byte) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buffer := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buffer[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Authoritative, m.Additionals = true, true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				for _, address := range addresses {
					m.Answers = append(m.Answers, dnsmessage.Resource{
						Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
						Body:   &dnsmessage.AResource{A: address},
					})
				}
			}
			answer, err := m.Pack()
			if err == nil {
				conn.WriteTo(answer, from)
			}
		}
	}()
	return conn.LocalAddr().String()
}

// orderServer sends its name as the id of one order event, and keeps the stream.
type orderServer struct {
	ordergatev1.UnimplementedOrderServiceServer
	name string
}

func (s *orderServer) WatchOrders(_ *request, stream stream) error {
	if err := stream.Send(event(s.name)); err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

// With several gateways under one name in DNS and round_robin, streams go to all of them, and move
// when one stops.
func TestSeveralGateways(t *testing.T) {
	first, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := first.Addr().(*net.TCPAddr).Port
	second, err := net.Listen("tcp", net.JoinHostPort("127.0.0.2", strconv.Itoa(port)))
	if err != nil {
		t.Skip("a second loopback address is needed: ", err)
	}
	servers := map[string]*grpc.Server{}
	for name, listener := range map[string]net.Listener{"first": first, "second": second} {
		server := grpc.NewServer()
		ordergatev1.RegisterOrderServiceServer(server, &orderServer{name: name})
		servers[name] = server
		go server.Serve(listener)
		t.Cleanup(server.Stop)
	}
	names := nameServer(t, [4]byte{127, 0, 0, 1}, [4]byte{127, 0, 0, 2})
	c, err := client.New("dns://"+names+"/gateways.example.:"+strconv.Itoa(port), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	opened := make(chan string)
	watch := func() {
		for message := range c.Watch(t.Context(), client.WatchOptions{FromBeginning: true}) {
			select {
			case opened <- message.GetEvent().GetId():
			case <-t.Context().Done():
			}
		}
	}
	next := func() string {
		select {
		case name := <-opened:
			return name
		case <-time.After(30 * time.Second):
			t.Fatal("no stream was opened")
			return ""
		}
	}
	streams := map[string]int{}
	for deadline := time.Now().Add(30 * time.Second); len(streams) < 2; { // one may be connected before the other
		if time.Now().After(deadline) {
			t.Fatalf("streams %v", streams)
		}
		go watch()
		streams[next()]++
	}
	servers["first"].Stop()
	for range streams["first"] {
		expect(t, "gateway", "second", next())
	}
}
