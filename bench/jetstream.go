package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

const (
	stream = "ORDERS"
	// insideSubject asks the contender for a worker within its own process.
	insideSubject = "bench.work"
)

// serveJetStream is a NATS server with a store on disk, as ordergate embeds it,
// but with a listener.
func serveJetStream(ctx context.Context, addr string) error {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	s, err := server.NewServer(&server.Options{ServerName: "bench", Host: host, Port: number, NoSigs: true, NoLog: true, JetStream: true, StoreDir: os.Getenv("BENCH_DIR"),
		JetStreamMaxStore: math.MaxInt64 / 2, MaxPending: 256 << 20, DisableJetStreamBanner: true})
	if err != nil {
		return err
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(readyTimeout) || !s.JetStreamEnabled() {
		return errors.New("JetStream does not start")
	}
	conn, err := nats.Connect("", nats.InProcessServer(s))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Subscribe(insideSubject, func(m *nats.Msg) {
		events, err := strconv.Atoi(string(m.Data))
		if err == nil {
			err = jetStreamConsume(ctx, conn, "inside", events)
		}
		answer := ""
		if err != nil {
			answer = err.Error()
		}
		m.Respond([]byte(answer))
	}); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// jetStreamWork has n workers take events over TCP, each with a consumer of its
// own, all at once.
func jetStreamWork(ctx context.Context, addr string, n, events int) error {
	working, ctx := errgroup.WithContext(ctx)
	for i := range n {
		working.Go(func() error {
			conn, err := nats.Connect("nats://" + addr)
			if err != nil {
				return err
			}
			defer conn.Close()
			return jetStreamConsume(ctx, conn, fmt.Sprintf("bench-%d", i), events)
		})
	}
	return working.Wait()
}

// jetStreamWorkInside has a worker in the server's own process.
func jetStreamWorkInside(ctx context.Context, addr string, events int) error {
	conn, err := nats.Connect("nats://" + addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := conn.RequestWithContext(ctx, insideSubject, []byte(strconv.Itoa(events)))
	if err == nil && len(answer.Data) > 0 {
		err = errors.New(string(answer.Data))
	}
	return err
}

// jetStreamConsume makes a durable pull consumer with explicit acknowledgements,
// takes a number of events, decodes and acknowledges each, and deletes it. It
// counts when the server has all acknowledgements.
func jetStreamConsume(ctx context.Context, conn *nats.Conn, name string, events int) error {
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	consumer, err := js.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{Durable: name, AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: window})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	taken := 0
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		err := proto.Unmarshal(m.Data(), &ordergatev1.OrderEvent{})
		if err == nil {
			err = m.Ack() // written together with others
		}
		if taken++; err != nil || taken == events {
			select {
			case ended <- err:
			default:
			}
		}
	}, jetstream.PullMaxMessages(window))
	if err != nil {
		return err
	}
	defer consuming.Stop()
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = ctx.Err()
	}
	for err == nil {
		var info *jetstream.ConsumerInfo
		if info, err = consumer.Info(ctx); err == nil && info.NumPending == 0 && info.NumAckPending == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return errors.Join(err, js.DeleteConsumer(context.WithoutCancel(ctx), stream, name))
}

// copyToJetStream publishes what a watcher of the gateway gets.
func (b *bench) copyToJetStream(ctx context.Context, gateway, addr string) error {
	conn, err := nats.Connect("nats://" + addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	var refused atomic.Int64
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(window), jetstream.WithPublishAsyncErrHandler(func(jetstream.JetStream, *nats.Msg, error) { refused.Add(1) }))
	if err != nil {
		return err
	}
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: stream, Subjects: []string{"orders.*"}, Storage: jetstream.FileStorage, AllowDirect: true, Discard: jetstream.DiscardNew}); err != nil {
		return err
	}
	var failed error
	publish := func(message raw) {
		response := &ordergatev1.WatchOrdersResponse{}
		if failed = proto.Unmarshal(message, response); failed != nil {
			return
		}
		event := response.GetEvent()
		var payload []byte
		if payload, failed = proto.Marshal(event); failed == nil {
			_, failed = js.PublishAsync("orders."+event.GetOrder().GetId(), payload)
		}
	}
	if err := b.receive(ctx, gateway, 1, b.Events, fromBeginning(), func(message raw) {
		if failed == nil {
			publish(message)
		}
	}); err != nil || failed != nil {
		return errors.Join(err, failed)
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-ctx.Done():
		return ctx.Err()
	}
	if n := refused.Load(); n > 0 {
		return fmt.Errorf("JetStream refused %d messages", n)
	}
	return nil
}
