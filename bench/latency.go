package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

const (
	latencyRate = 1000 // events/s
	// warmUp is what is sent, and not counted, while connections are made.
	warmUp = time.Second
	// fsyncs is how often the disk is asked each time.
	fsyncs = 300
)

// latency measures how long an event takes from the webhook to its reader, at a
// steady rate, beside one fsync of the same disk.
func latency(ctx context.Context, b *bench) error {
	m, err := newMaker()
	if err != nil {
		return err
	}
	readers := []struct {
		name string
		open func(context.Context, string) (<-chan arrival, error)
	}{{"a watcher", watch}, {"a worker", workFromNow}}
	for round := range b.Rounds {
		for _, reader := range readers {
			b.say("latency, round %d of %d: %s", round+1, b.Rounds, reader.name)
			if err := b.fsync(); err != nil {
				return err
			}
			if err := b.latencyTo(ctx, m, reader.name, reader.open); err != nil {
				return fmt.Errorf("%s: %w", reader.name, err)
			}
		}
	}
	if err := b.fsync(); err != nil {
		return err
	}
	for _, reader := range readers {
		b.report.goal("latency", "to "+reader.name+", median / one fsync", "to "+reader.name+", median", fsyncRow, 5, true)
		b.report.goal("latency", "to "+reader.name+", p99 / one fsync", "to "+reader.name+", p99", fsyncRow, 25, true)
	}
	return nil
}

const fsyncRow = "one fsync, median"

// fsync measures what this disk needs to keep 4 KiB that were appended to a file.
func (b *bench) fsync() error {
	f, err := os.CreateTemp(b.work, "fsync-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	block := make([]byte, 4096)
	took := make([]time.Duration, fsyncs)
	for i := range took {
		began := time.Now()
		if _, err := f.Write(block); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	b.report.add("latency", fsyncRow, "ms", ms(quantile(took, 0.5)))
	return nil
}

// latencyTo is one turn. A latency counts from when the request should have been
// sent, so that a gateway that stalls is not spared the requests that wait.
func (b *bench) latencyTo(ctx context.Context, m *maker, name string, open func(context.Context, string) (<-chan arrival, error)) error {
	p, addrs, end, err := b.newGateway(ctx, "latency")
	if err != nil {
		return err
	}
	defer end()
	takes := warmUp + b.Time
	ctx, cancel := context.WithTimeout(ctx, takes+answerTimeout)
	defer cancel()
	seen, err := open(ctx, addrs.grpc)
	if err != nil {
		return err
	}
	events, when := m.events(int(latencyRate*takes.Seconds())), steady(latencyRate)
	done, err := send(ctx, addrs.ingress, events, connections, takes+answerTimeout, 200, when)
	if err != nil {
		return err
	}
	if done.sent-done.failed < len(events) {
		return fmt.Errorf("%d of %d events were taken: %w", done.sent-done.failed, len(events), errors.Join(done.first, ctx.Err()))
	}
	arrived := make(map[string]time.Time, len(events))
	for len(arrived) < len(events) {
		a, more := <-seen // it is closed when ctx ends
		if !more {
			return fmt.Errorf("%d of %d events came: %s", len(arrived), len(events), p.tail())
		}
		if _, again := arrived[a.order]; !again {
			arrived[a.order] = a.at
		}
	}
	var took []time.Duration
	for i, e := range events {
		if due := when(i); due >= warmUp {
			took = append(took, arrived[e.order].Sub(done.start.Add(due)))
		}
	}
	slices.Sort(took)
	for q, text := range map[float64]string{0.5: "median", 0.99: "p99"} {
		b.report.add("latency", "to "+name+", "+text, "ms", ms(quantile(took, q)))
	}
	// What is the bench's own part of that.
	b.report.add("latency", "sent late, p99", "ms", ms(quantile(done.late, 0.99)))
	return nil
}

// workFromNow has a worker take and acknowledge what comes from now on.
func workFromNow(ctx context.Context, addr string) (<-chan arrival, error) {
	w, err := openWorker(ctx, addr, &ordergatev1.ConsumeOpen{Subscription: "latency", Create: &ordergatev1.Subscription{Delivery: ordergatev1.DeliveryMode_DELIVERY_MODE_EVERY_EVENT}})
	if err != nil {
		return nil, err
	}
	seen := make(chan arrival, 1<<20)
	go func() {
		defer close(seen)
		// It ends with ctx.
		_ = w.run(0, func(e *ordergatev1.OrderEvent) { seen <- arrival{e.GetOrder().GetId(), time.Now()} })
	}()
	return seen, nil
}
