package grpcapi

import (
	"context"
	"errors"
	"io"
	"runtime"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/protofuzz"
)

const (
	// fuzzPatience bounds a call, and streamTime the time for which a stream without an end is read.
	fuzzPatience = 10 * time.Second
	streamTime   = 50 * time.Millisecond
	// fuzzMemory bounds the heap, in bytes.
	fuzzMemory = 512 << 20
)

// fuzzMethods returns the methods of all services of the API.
func fuzzMethods() (methods []protoreflect.MethodDescriptor) {
	for _, file := range []protoreflect.FileDescriptor{ordergatev1.File_ordergate_v1_order_service_proto, ordergatev1.File_ordergate_v1_event_service_proto, ordergatev1.File_ordergate_v1_subscription_service_proto} {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				methods = append(methods, service.Methods().Get(j))
			}
		}
	}
	return methods
}

func newMessage(t *testing.T, descriptor protoreflect.MessageDescriptor) proto.Message {
	t.Helper()
	messageType, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	if err != nil {
		t.Fatal(err)
	}
	return messageType.New().Interface()
}

// FuzzRequest sends requests to every method of a real server. A request may be refused, but it
// causes no panic and no internal error, ends in time, and takes little memory.
func FuzzRequest(f *testing.F) {
	g := newGateway(f, f.TempDir())
	g.store(f, change{order: "cs_1", revision: 1}, change{order: "cs_2", revision: 1}, change{order: "cs_2", revision: 2})
	conn, err := grpc.NewClient(g.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { conn.Close() })
	state, err := g.log.OrdersState(deadline(f))
	if err != nil {
		f.Fatal(err)
	}
	texts := []string{"cs_1", "cs_2", "cs_2.1", "evt_1", "work", "work", encodeToken(resumeToken, state.LogID, 1), encodeToken(orderPageToken, state.LogID, 1, 2),
		encodeToken(resumeToken, state.LogID, 1<<63), "ack_deadline", "filter", "DE", "metadata.key=value"}
	if _, err := g.work.CreateSubscription(deadline(f), &ordergatev1.CreateSubscriptionRequest{Subscription: &ordergatev1.Subscription{Name: "work"}}); err != nil {
		f.Fatal(err)
	}
	methods := fuzzMethods()
	for i := range methods {
		f.Add(byte(i), []byte(nil))
		f.Add(byte(i), []byte{1, 0, 1, 1, 1, 16, 1, 2, 1, 3, 1, 4, 1, 200, 1, 255})
	}
	calls := 0
	f.Fuzz(func(t *testing.T, index byte, choices []byte) {
		method := methods[int(index)%len(methods)]
		if err := fuzzCall(t, conn, method, choices, texts); err != nil {
			t.Errorf("%s: %v", method.FullName(), err)
		}
		if calls++; calls%256 == 0 {
			var memory runtime.MemStats
			if runtime.ReadMemStats(&memory); memory.HeapAlloc > fuzzMemory {
				t.Errorf("%s: the heap has %d MB", method.FullName(), memory.HeapAlloc>>20)
			}
		}
	})
}

// fuzzCall makes one call and returns an error that no request may cause.
func fuzzCall(t *testing.T, conn *grpc.ClientConn, method protoreflect.MethodDescriptor, choices []byte, texts []string) error {
	ctx, cancel := context.WithTimeout(t.Context(), fuzzPatience)
	defer cancel()
	name := "/" + string(method.Parent().FullName()) + "/" + string(method.Name())
	request := newMessage(t, method.Input())
	choices = protofuzz.Fill(request, choices, texts...)
	if !method.IsStreamingServer() {
		if pull, ok := request.(*ordergatev1.PullRequest); ok && pull.GetWait().GetSeconds() > 0 {
			pull.Wait.Seconds = -pull.Wait.Seconds // it would wait
		}
		return unwanted(conn.Invoke(ctx, name, request, newMessage(t, method.Output())))
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: method.IsStreamingClient()}, name)
	if err != nil {
		return unwanted(err)
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return unwanted(err)
	}
	for method.IsStreamingClient() && len(choices) > 0 {
		next := newMessage(t, method.Input())
		choices = protofuzz.Fill(next, choices, texts...)
		if stream.SendMsg(next) != nil {
			break // RecvMsg returns the reason
		}
	}
	stream.CloseSend()
	expired := time.AfterFunc(streamTime, cancel)
	defer expired.Stop()
	for {
		if err := stream.RecvMsg(newMessage(t, method.Output())); err != nil {
			if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
				return nil
			}
			return unwanted(err)
		}
	}
}

// unwanted returns an error that is not the caller's fault.
func unwanted(err error) error {
	switch status.Code(err) {
	case codes.Internal, codes.Unknown, codes.DataLoss, codes.DeadlineExceeded, codes.Unavailable, codes.Unimplemented:
		return err
	}
	return nil
}

// FuzzStartTime watches from two times. The later one never begins with an earlier event, whatever
// the times are.
func FuzzStartTime(f *testing.F) {
	g := newGateway(f, f.TempDir())
	g.store(f, change{order: "cs_1", revision: 1}, change{order: "cs_2", revision: 1}, change{order: "cs_3", revision: 1})
	const year9999 = 253_402_300_799
	f.Add(int64(0), int64(year9999))
	f.Add(int64(-62_135_596_800), time.Now().Unix())
	f.Add(time.Now().Unix()+3600, int64(10_000_000_000))
	f.Fuzz(func(t *testing.T, a, b int64) {
		first, ok := firstSince(t, g, min(a, b))
		second, alsoOK := firstSince(t, g, max(a, b))
		if ok && alsoOK && first > second {
			t.Errorf("from %d the first event is %d, and from %d it is %d", min(a, b), first, max(a, b), second)
		}
	})
}

// firstSince returns the sequence of the first event since a time, in seconds; the largest if there is
// none. ok is false if the time is refused.
func firstSince(t *testing.T, g *gateway, seconds int64) (sequence int64, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), fuzzPatience)
	defer cancel()
	stream, err := g.client.WatchOrders(ctx, &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_StartTime{StartTime: &timestamppb.Timestamp{Seconds: seconds}}})
	if err != nil {
		t.Fatal(err)
	}
	message, err := stream.Recv()
	if status.Code(err) == codes.InvalidArgument {
		return 0, false
	}
	if err != nil {
		t.Fatalf("from %d: %v", seconds, err)
	}
	if message.GetEvent() == nil {
		return 1<<63 - 1, true
	}
	return message.GetEvent().GetSequence(), true
}
