package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

const connections = 64

// ingest measures how many events a second are taken, stored once, and on disk
// before they are answered.
func ingest(ctx context.Context, b *bench) error {
	m, err := newMaker()
	if err != nil {
		return err
	}
	contenders := []struct {
		name string
		turn func(context.Context, []event) error
	}{
		// PostgreSQL's rate is that at which ordergate's latency is measured next.
		{"bare", b.ingestBare}, {"postgres", b.ingestPostgres}, {"ordergate", b.ingestGateway}, {"nextjs", b.ingestNext},
	}
	for round := range b.Rounds {
		for _, c := range contenders {
			if b.skips(c.name) || c.name == "nextjs" && b.skips("postgres") {
				continue
			}
			b.say("ingest, round %d of %d: %s", round+1, b.Rounds, c.name)
			if err := c.turn(ctx, m.events(b.Events)); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	r := &b.report
	r.goal("ingest", "ordergate at the door / bare net/http", "ordergate, at the door", "bare net/http handler", 0.6, false)
	r.goal("ingest", "ordergate sustained / bare net/http", "ordergate, converted and delivered to one watcher", "bare net/http handler", 0.35, false)
	r.goal("ingest", "ordergate sustained / Go and PostgreSQL", "ordergate, converted and delivered to one watcher", "Go and PostgreSQL", 3, false)
	r.goal("ingest", "ordergate sustained / Next.js and PostgreSQL", "ordergate, converted and delivered to one watcher", "Next.js and PostgreSQL", 8, false)
	r.goal("ingest", "p99 at half of PostgreSQL's rate: ordergate / PostgreSQL", "p99, ordergate at that rate", "p99, Go and PostgreSQL at half of its rate", 1, true)
	return nil
}

// fullSpeed sends events as fast as they are taken, and notes the rate.
func (b *bench) fullSpeed(ctx context.Context, name, addr string, events []event) (*load, error) {
	done, err := send(ctx, addr, events, connections, b.Time, 200, nil)
	if err != nil {
		return nil, err
	}
	if done.failed > 0 {
		return nil, fmt.Errorf("%d of %d events were not taken: %w", done.failed, done.sent, done.first)
	}
	b.report.add("ingest", name, "events/s", done.rate())
	return done, nil
}

func (b *bench) ingestBare(ctx context.Context, events []event) error {
	p, addr, err := b.self(ctx, "bare")
	if err != nil {
		return err
	}
	defer p.stop()
	_, err = b.fullSpeed(ctx, "bare net/http handler", addr, events)
	return err
}

// halfRate is at which rate latencies are compared: half of what PostgreSQL took
// in its newest turn.
func (b *bench) halfRate() float64 {
	if r := b.report.find("ingest", "Go and PostgreSQL"); r != nil {
		return r.Values[len(r.Values)-1] / 2
	}
	return 0
}

// atHalfRate notes the p99 of an answer at half of PostgreSQL's rate.
func (b *bench) atHalfRate(ctx context.Context, name, addr string, rate float64) error {
	m, err := newMaker()
	if err != nil || rate == 0 {
		return err
	}
	done, err := send(ctx, addr, m.events(int(rate*b.Time.Seconds()/2)), connections, b.Time, 200, steady(rate))
	if err != nil {
		return err
	}
	if done.failed > 0 {
		return fmt.Errorf("%d of %d events were not taken: %w", done.failed, done.sent, done.first)
	}
	b.report.add("ingest", name, "ms", done.quantile(0.99).Seconds()*1000)
	return nil
}

func (b *bench) ingestPostgres(ctx context.Context, events []event) error {
	db, err := b.startDatabase(ctx)
	if err != nil {
		return err
	}
	defer db.stop()
	p, addr, err := b.self(ctx, "postgres", "BENCH_DATABASE="+db.dsn)
	if err != nil {
		return err
	}
	defer p.stop()
	if _, err := b.fullSpeed(ctx, "Go and PostgreSQL", addr, events); err != nil {
		return err
	}
	return b.atHalfRate(ctx, "p99, Go and PostgreSQL at half of its rate", addr, b.halfRate())
}

// ingestGateway has one subscriber watch the while, and counts twice: what was
// answered, and what had reached the subscriber.
func (b *bench) ingestGateway(ctx context.Context, events []event) error {
	p, addrs, end, err := b.newGateway(ctx, "ordergate")
	if err != nil {
		return err
	}
	defer end()
	seen, err := watch(ctx, addrs.grpc)
	if err != nil {
		return err
	}
	began := time.Now()
	done, err := b.fullSpeed(ctx, "ordergate, at the door", addrs.ingress, events)
	if err != nil {
		return err
	}
	for range done.sent {
		select {
		case _, more := <-seen:
			if !more {
				return fmt.Errorf("the watcher was cut off: %s", p.tail())
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b.report.add("ingest", "ordergate, converted and delivered to one watcher", "events/s", float64(done.sent)/time.Since(began).Seconds())
	return b.atHalfRate(ctx, "p99, ordergate at that rate", addrs.ingress, b.halfRate())
}

// arrival is an order event that reached its reader.
type arrival struct {
	order string
	at    time.Time
}

// watch opens WatchOrders, and tells of each event that came; it is closed when the
// stream ends.
func watch(ctx context.Context, addr string) (<-chan arrival, error) {
	conn, err := dial(addr)
	if err != nil {
		return nil, err
	}
	stream, err := ordergatev1.NewOrderServiceClient(conn).WatchOrders(ctx, &ordergatev1.WatchOrdersRequest{})
	if err == nil {
		_, err = stream.Recv() // it has caught up
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	seen := make(chan arrival, 1<<20)
	go func() {
		defer conn.Close()
		defer close(seen)
		for {
			message, err := stream.Recv()
			if err != nil {
				return
			}
			if event := message.GetEvent(); event != nil {
				seen <- arrival{event.GetOrder().GetId(), time.Now()}
			}
		}
	}()
	return seen, nil
}

// dial makes a client of the gateway's gRPC API.
func dial(addr string) (*grpc.ClientConn, error) {
	return grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// ingestNext is the way of many shops: a route of the Next.js App Router, in
// production mode.
func (b *bench) ingestNext(ctx context.Context, events []event) error {
	app, err := b.buildNext(ctx)
	if err != nil {
		return err
	}
	db, err := b.startDatabase(ctx)
	if err != nil {
		return err
	}
	defer db.stop()
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	port := addr[len("127.0.0.1:"):]
	cmd := exec.Command("node", filepath.Join(app, "node_modules/next/dist/bin/next"), "start", "-H", "127.0.0.1", "-p", port)
	cmd.Dir = app
	cmd.Env = append(os.Environ(), "NODE_ENV=production", "NEXT_TELEMETRY_DISABLED=1", "STRIPE_WEBHOOK_SECRET="+secret, "STRIPE_API_KEY=sk_test_bench",
		"DATABASE_URL=postgres://bench@127.0.0.1:"+db.port+"/postgres")
	p, err := start(ctx, addr, cmd)
	if err != nil {
		return err
	}
	defer p.stop()
	// The first request makes the table, and compiles what is compiled late.
	if _, err := send(ctx, addr, events[:100], 1, b.Time, 200, nil); err != nil {
		return err
	}
	_, err = b.fullSpeed(ctx, "Next.js and PostgreSQL", addr, events[100:])
	return err
}

// buildNext installs and builds the Next.js contender, once.
func (b *bench) buildNext(ctx context.Context) (string, error) {
	app := filepath.Join(b.work, "nextjs")
	if _, err := os.Stat(filepath.Join(app, ".next", "BUILD_ID")); err == nil {
		return app, nil
	}
	if err := os.CopyFS(app, os.DirFS("bench/nextjs")); err != nil {
		return "", fmt.Errorf("%w: run the bench from the root of the repository", err)
	}
	for _, args := range [][]string{{"npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"}, {"node", "node_modules/next/dist/bin/next", "build"}} {
		b.say("nextjs: %s", args[0])
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir = app
		cmd.Env = append(os.Environ(), "NEXT_TELEMETRY_DISABLED=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%v: %w\n%s", args, err, out)
		}
	}
	return app, nil
}
