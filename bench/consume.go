package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

const (
	// window is how many events may be out with a worker, here and there.
	window = 1000
	// consumeTimeout bounds one turn.
	consumeTimeout = 5 * time.Minute
	// together is how many subscriptions are compared with one.
	together = 10
)

// consume measures how many events a second a worker takes and acknowledges, of
// a log that holds them already, beside NATS JetStream's own consumers of the same
// messages; and what several subscriptions cost.
func consume(ctx context.Context, b *bench) error {
	m, err := newMaker()
	if err != nil {
		return err
	}
	dir, err := b.dir("consume")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	data := filepath.Join(dir, "data")
	if _, _, err := b.fill(ctx, data, m, b.Events); err != nil {
		return err
	}
	gateway, addrs, err := b.startGateway(ctx, data)
	if err != nil {
		return err
	}
	defer gateway.stop()
	nats, natsAddr, err := b.self(ctx, "jetstream", "BENCH_DIR="+filepath.Join(dir, "jetstream"))
	if err != nil {
		return err
	}
	defer nats.stop()
	b.say("copying %d messages to JetStream", b.Events)
	if err := b.copyToJetStream(ctx, addrs.grpc, natsAddr); err != nil {
		return err
	}
	turns := []struct {
		name    string
		workers int
		process *process
		turn    func(context.Context, int) error
	}{
		{"ordergate, 1 subscription", 1, gateway, func(ctx context.Context, n int) error { return subscribed(ctx, addrs.grpc, n, b.Events, work) }},
		{"JetStream, 1 consumer", 1, nats, func(ctx context.Context, n int) error { return jetStreamWork(ctx, natsAddr, n, b.Events) }},
		{"ordergate's client library, 1 subscription", 1, gateway, func(ctx context.Context, n int) error {
			return subscribed(ctx, addrs.grpc, n, b.Events, workWithClient)
		}},
		{"JetStream, 1 consumer in the server's process", 1, nats, func(ctx context.Context, n int) error { return jetStreamWorkInside(ctx, natsAddr, b.Events) }},
		{fmt.Sprintf("ordergate, %d subscriptions", together), together, gateway, func(ctx context.Context, n int) error { return subscribed(ctx, addrs.grpc, n, b.Events, work) }},
		{fmt.Sprintf("JetStream, %d consumers", together), together, nats, func(ctx context.Context, n int) error { return jetStreamWork(ctx, natsAddr, n, b.Events) }},
	}
	for round := range b.Rounds {
		for _, t := range turns {
			b.say("consume, round %d of %d: %s", round+1, b.Rounds, t.name)
			if err := b.consumeTurn(ctx, t.name, t.process, t.workers, t.turn); err != nil {
				return fmt.Errorf("%s: %w\n%s", t.name, err, t.process.tail())
			}
		}
	}
	r := &b.report
	r.goal("consume", "ordergate / JetStream", "ordergate, 1 subscription", "JetStream, 1 consumer", 0.5, false)
	r.goal("consume", fmt.Sprintf("CPU of the gateway, %d subscriptions / 1 subscription", together),
		fmt.Sprintf("ordergate, %d subscriptions, CPU", together), "ordergate, 1 subscription, CPU", together, true)
	return nil
}

func (b *bench) consumeTurn(ctx context.Context, name string, p *process, workers int, turn func(context.Context, int) error) error {
	ctx, cancel := context.WithTimeout(ctx, consumeTimeout)
	defer cancel()
	before, err := p.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := turn(ctx, workers); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := p.cpu()
	if err != nil {
		return err
	}
	b.report.add("consume", name, "events/s", float64(workers*b.Events)/took.Seconds())
	b.report.add("consume", name+", CPU", "ms", ms(after-before))
	return nil
}

// subscribed makes n subscriptions from the beginning, has a worker each take a
// number of events, all at once, and deletes them. Making and deleting are a part
// of the turn, as they are for JetStream.
func subscribed(ctx context.Context, addr string, n, events int, work func(ctx context.Context, addr, subscription string, events int) error) error {
	conn, err := dial(addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	service := ordergatev1.NewSubscriptionServiceClient(conn)
	working, ctx := errgroup.WithContext(ctx)
	for i := range n {
		name := fmt.Sprintf("bench-%d", i)
		if _, err := service.CreateSubscription(ctx, &ordergatev1.CreateSubscriptionRequest{
			Subscription: &ordergatev1.Subscription{Name: name, Delivery: ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT},
			Start:        &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}},
		}); err != nil {
			return err
		}
		working.Go(func() error {
			if err := work(ctx, addr, name, events); err != nil {
				return err
			}
			_, err := service.DeleteSubscription(ctx, &ordergatev1.DeleteSubscriptionRequest{Subscription: name})
			return err
		})
	}
	return working.Wait()
}

// worker is a stream of Consume that acknowledges what it gets.
type worker struct {
	conn   *grpc.ClientConn
	stream ordergatev1.SubscriptionService_ConsumeClient
	cancel context.CancelFunc
}

func openWorker(ctx context.Context, addr string, open *ordergatev1.ConsumeOpen) (*worker, error) {
	conn, err := dial(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &worker{conn: conn, cancel: cancel}
	open.MaxOutstandingEvents, open.MaxOutstandingBytes = window, 64<<20
	w.stream, err = ordergatev1.NewSubscriptionServiceClient(conn).Consume(ctx)
	if err == nil {
		err = w.stream.Send(&ordergatev1.ConsumeRequest{Open: open})
	}
	if err == nil {
		_, err = w.stream.Recv() // opened
	}
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

func (w *worker) close() {
	w.cancel()
	w.conn.Close()
}

// run takes events until so many acknowledgements were answered, and closes the
// worker. What has come meanwhile is acknowledged together.
func (w *worker) run(events int, each func(*ordergatev1.OrderEvent)) error {
	defer w.close()
	handled := make(chan string, window)
	defer close(handled)
	go func() {
		for id := range handled {
			acks := []string{id}
			for more := true; more && len(acks) < window; {
				select {
				case id, more = <-handled:
					if more {
						acks = append(acks, id)
					}
				default:
					more = false
				}
			}
			if w.stream.Send(&ordergatev1.ConsumeRequest{Acks: acks}) != nil {
				w.cancel() // Recv says why
			}
		}
	}()
	for answered := 0; events == 0 || answered < events; {
		message, err := w.stream.Recv()
		if err != nil {
			return err
		}
		if delivery := message.GetDelivery(); delivery != nil {
			if each != nil {
				each(delivery.GetEvent())
			}
			handled <- delivery.GetDeliveryId()
		}
		for _, result := range message.GetResults().GetResults() {
			if result.GetCode() != ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK {
				return fmt.Errorf("an acknowledgement was answered %v", result.GetCode())
			}
			answered++
		}
	}
	return nil
}

// work is a worker of one goroutine that takes events with the generated client.
func work(ctx context.Context, addr, subscription string, events int) error {
	w, err := openWorker(ctx, addr, &ordergatev1.ConsumeOpen{Subscription: subscription})
	if err != nil {
		return err
	}
	return w.run(events, nil)
}

// workWithClient is one with the package client: it runs handlers at once, and
// extends leases.
func workWithClient(ctx context.Context, addr, subscription string, events int) error {
	c, err := client.New(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer c.Close()
	working, done := context.WithCancel(ctx)
	defer done()
	var handled atomic.Int64
	err = c.Consume(working, subscription, func(context.Context, *client.Delivery) error {
		if handled.Add(1) == int64(events) {
			done() // it drains, and returns when the last is settled
		}
		return nil
	}, client.ConsumeOptions{Concurrency: 100, MaxOutstandingEvents: window, MaxOutstandingBytes: 64 << 20})
	if err == nil && handled.Load() < int64(events) {
		err = fmt.Errorf("%d of %d events came: %w", handled.Load(), events, ctx.Err())
	}
	return err
}
