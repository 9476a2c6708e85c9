package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// raw is a message as it goes over the wire, for both ends: what is compared are
// streams, not decoders.
type raw []byte

// rawCodec passes bytes on as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case *raw:
		return mem.BufferSlice{mem.SliceBuffer(*m)}, nil
	case proto.Message:
		b, err := proto.Marshal(m)
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	}
	return nil, errors.New("not a message")
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*raw)
	if !ok {
		return errors.New("not raw")
	}
	*m = data.MaterializeToBuffer(mem.DefaultBufferPool()).ReadOnlyData()
	return nil
}

var _ encoding.CodecV2 = rawCodec{}

const watchMethod = "/ordergate.v1.OrderService/WatchOrders"

// turns are the numbers of watchers, and which share of the events each of them
// gets.
var turns = []struct{ watchers, share int }{{1, 1}, {100, 20}, {1000, 200}}

// fanout measures how many events a second reach watchers in all. Each watcher
// waits for events that then come as fast as they can: raw grpc-go has them in
// memory; ordergate has them in its log, and those who watch begin together
// behind what was stored before.
func fanout(ctx context.Context, b *bench) error {
	m, err := newMaker()
	if err != nil {
		return err
	}
	dir, err := b.dir("fanout")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	data := filepath.Join(dir, "data")
	messages, tokens, err := b.fill(ctx, data, m, b.Events)
	if err != nil {
		return err
	}
	file := filepath.Join(b.work, "messages")
	var content []byte
	for _, message := range messages {
		content = protowire.AppendBytes(content, message)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return err
	}
	p, addrs, err := b.startGateway(ctx, data)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := b.receive(ctx, addrs.grpc, 1, b.Events, fromBeginning(), nil); err != nil { // it has begun then
		return err
	}
	for round := range b.Rounds {
		for _, turn := range turns {
			b.say("fanout, round %d of %d: %d watchers", round+1, b.Rounds, turn.watchers)
			events := max(1, b.Events/turn.share)
			if err := b.fanoutRaw(ctx, turn.watchers, events, file); err != nil {
				return err
			}
			start := fromBeginning()
			if events < len(tokens) {
				start.Start = &ordergatev1.WatchOrdersRequest_ResumeToken{ResumeToken: tokens[len(tokens)-1-events]}
			}
			if err := b.fanoutGateway(ctx, p, addrs, turn.watchers, events, start); err != nil {
				return err
			}
		}
	}
	for _, turn := range turns {
		b.report.goal("fanout", fmt.Sprintf("ordergate / raw grpc-go, %d watchers", turn.watchers), fmt.Sprintf("ordergate, %d watchers", turn.watchers), fmt.Sprintf("raw grpc-go, %d watchers", turn.watchers), 0.7, false)
	}
	b.report.goal("fanout", "CPU per event: 1000 watchers / 1 watcher", "ordergate, CPU per event, 1000 watchers", "ordergate, CPU per event, 1 watchers", 1.25, true)
	return nil
}

// fill stores orders in a new log, and returns its messages as a watcher gets them,
// and their resume tokens.
func (b *bench) fill(ctx context.Context, data string, m *maker, events int) (messages []raw, tokens []string, err error) {
	p, addrs, err := b.startGateway(ctx, data)
	if err != nil {
		return nil, nil, err
	}
	defer p.stop()
	b.say("storing %d orders", events)
	for left := events; left > 0; {
		n := min(left, storeBatch)
		done, err := send(ctx, addrs.ingress, m.events(n), connections, 10*time.Minute, 200, nil)
		if err == nil && done.sent-done.failed < n {
			err = fmt.Errorf("%d of %d events were taken: %w", done.sent-done.failed, n, errors.Join(done.first, ctx.Err()))
		}
		if err != nil {
			return nil, nil, err
		}
		left -= n
	}
	err = b.receive(ctx, addrs.grpc, 1, events, fromBeginning(), func(got raw) {
		response := &ordergatev1.WatchOrdersResponse{}
		if proto.Unmarshal(got, response) == nil {
			messages, tokens = append(messages, got), append(tokens, response.GetResumeToken())
		}
	})
	if err == nil && len(tokens) < events {
		err = errors.New("events that cannot be read")
	}
	return messages, tokens, err
}

func fromBeginning() *ordergatev1.WatchOrdersRequest {
	return &ordergatev1.WatchOrdersRequest{Start: &ordergatev1.WatchOrdersRequest_FromBeginning{FromBeginning: true}}
}

// eventField is the number of WatchOrdersResponse.event.
const eventField = 1

// isEvent looks no deeper than it must: heartbeats and the like are not counted.
func isEvent(message raw) bool {
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeTag(message)
		if n < 0 || field == eventField {
			return n > 0
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(field, kind, message); n < 0 {
			return false
		}
		message = message[n:]
	}
	return false
}

// receive has a number of watchers take events, all at once.
func (b *bench) receive(ctx context.Context, addr string, watchers, events int, start *ordergatev1.WatchOrdersRequest, each func(raw)) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	start.HeartbeatInterval = durationpb.New(time.Minute)
	request, err := proto.Marshal(start)
	if err != nil {
		return err
	}
	var receiving sync.WaitGroup
	var failed atomic.Pointer[error]
	// As many connections as a fleet of clients has, up to what is sensible here.
	conns := make([]*grpc.ClientConn, min(watchers, 20))
	for i := range conns {
		if conns[i], err = grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{}))); err != nil {
			return err
		}
		defer conns[i].Close()
	}
	for i := range watchers {
		receiving.Go(func() {
			stream, err := conns[i%len(conns)].NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, watchMethod)
			if err == nil {
				err = errors.Join(stream.SendMsg((*raw)(&request)), stream.CloseSend())
			}
			for got := 0; err == nil && got < events; {
				var message raw
				if err = stream.RecvMsg(&message); err == nil && isEvent(message) {
					got++
					if each != nil {
						each(message)
					}
				}
			}
			if err != nil {
				failed.Store(&err)
			}
		})
	}
	receiving.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (b *bench) fanoutRaw(ctx context.Context, watchers, events int, file string) error {
	p, addr, err := b.self(ctx, "stream", "BENCH_MESSAGES="+file, "BENCH_EVENTS="+strconv.Itoa(events))
	if err != nil {
		return err
	}
	defer p.stop()
	began := time.Now()
	if err := b.receive(ctx, addr, watchers, events, fromBeginning(), nil); err != nil {
		return err
	}
	b.report.add("fanout", fmt.Sprintf("raw grpc-go, %d watchers", watchers), "events/s", float64(watchers*events)/time.Since(began).Seconds())
	return nil
}

func (b *bench) fanoutGateway(ctx context.Context, p *process, addrs gatewayAddrs, watchers, events int, start *ordergatev1.WatchOrdersRequest) error {
	before, err := p.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := b.receive(ctx, addrs.grpc, watchers, events, start, nil); err != nil {
		return fmt.Errorf("%d watchers: %w: %s", watchers, err, p.tail())
	}
	took := time.Since(began)
	after, err := p.cpu()
	if err != nil {
		return err
	}
	b.report.add("fanout", fmt.Sprintf("ordergate, %d watchers", watchers), "events/s", float64(watchers*events)/took.Seconds())
	b.report.add("fanout", fmt.Sprintf("ordergate, CPU per event, %d watchers", watchers), "µs", (after-before).Seconds()*1e6/float64(watchers*events))
	return nil
}

// serveStream streams the newest messages of a file to whoever calls, from memory, and
// as many as are wanted: what nobody counts would be a handicap.
func serveStream(ctx context.Context, addr string) error {
	content, err := os.ReadFile(os.Getenv("BENCH_MESSAGES"))
	if err != nil {
		return err
	}
	events, err := strconv.Atoi(os.Getenv("BENCH_EVENTS"))
	if err != nil {
		return err
	}
	var messages []raw
	for len(content) > 0 {
		message, n := protowire.ConsumeBytes(content)
		if n < 0 {
			return protowire.ParseError(n)
		}
		messages, content = append(messages, message), content[n:]
	}
	messages = messages[len(messages)-events:]
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.MaxConcurrentStreams(10_000), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		var request raw
		if err := stream.RecvMsg(&request); err != nil {
			return err
		}
		for i := range messages {
			if err := stream.SendMsg(&messages[i]); err != nil {
				return err
			}
		}
		return nil
	}))
	context.AfterFunc(ctx, server.Stop)
	return server.Serve(listener)
}
