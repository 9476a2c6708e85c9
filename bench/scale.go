package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

const (
	// storeBatch is how many events are made, and held, at a time.
	storeBatch = 50_000
	// smallest is the number of orders that reads are compared with, steady the
	// one that costs are: of fewer, the clock of a process's CPU time sees little.
	smallest     = 1_000
	steadyOrders = 10_000
	// reads is how many orders are read each time; ids of as many are kept.
	reads = 2_000
	// restarts is how often the gateway is started anew at each size, at most.
	restarts = 3
	// settled is how long after it became ready its memory is looked at.
	settled = time.Second

	megabyte = 1e6
)

// point is what was measured at a number of orders.
type point struct {
	Orders int
	// While the newest of them were stored: µs of the gateway's CPU per event,
	// events/s until they were orders.
	CPU, Rate float64
	// After restarts: seconds from exec to ready, ms of one read, MB.
	Start, Read, Memory, Disk float64
}

// scale measures what becomes of the costs as a log grows.
func scale(ctx context.Context, b *bench) error {
	m, err := newMaker()
	if err != nil {
		return err
	}
	dir, err := b.dir("scale")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &scaling{b: b, m: m, data: filepath.Join(dir, "data")}
	sizes := []int{smallest}
	for size := steadyOrders; size < b.Orders; size *= 10 {
		sizes = append(sizes, size)
	}
	sizes = append(sizes, b.Orders)
	for _, size := range sizes {
		if err = s.grow(ctx, size); err == nil {
			err = s.restart(ctx, size)
		}
		if err != nil {
			err = fmt.Errorf("%d orders: %w", size, err)
			break // what was measured so far counts
		}
	}
	if err == nil {
		err = s.withoutReferences(ctx)
	}
	s.goals()
	if b.Plot != "" {
		err = errors.Join(err, writePlot(b.Plot, s.points))
	}
	return err
}

// scaling is one log that grows.
type scaling struct {
	b      *bench
	m      *maker
	data   string
	orders int
	sample []string // orders, each with the same chance
	points []point
}

func (s *scaling) note(name, unit string, value float64) {
	s.b.report.add("scale", fmt.Sprintf("%d orders: %s", s.orders, name), unit, value)
}

// grow stores orders until there are so many. The last batch is what is reported.
func (s *scaling) grow(ctx context.Context, size int) error {
	p, addrs, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer p.stop()
	for s.orders < size {
		events := s.m.events(min(storeBatch, size-s.orders))
		before, err := p.cpu()
		if err != nil {
			return err
		}
		began := time.Now()
		done, err := send(ctx, addrs.ingress, events, connections, 5*time.Minute, 200, nil)
		if err != nil {
			return err
		}
		if taken := done.sent - done.failed; taken < len(events) {
			return fmt.Errorf("%d of %d events were taken: %w: %s", taken, len(events), errors.Join(done.first, ctx.Err()), p.tail())
		}
		if err := converted(ctx, addrs, events[len(events)-1].order); err != nil {
			return err
		}
		took := time.Since(began)
		after, err := p.cpu()
		if err != nil {
			return err
		}
		s.keep(events)
		s.points = append(s.points, point{Orders: s.orders, CPU: (after - before).Seconds() * 1e6 / float64(len(events)), Rate: float64(len(events)) / took.Seconds()})
		s.b.say("scale: %d orders", s.orders)
	}
	newest := s.points[len(s.points)-1]
	s.note("CPU per event", "µs", newest.CPU)
	s.note("stored and converted", "events/s", newest.Rate)
	return nil
}

// keep counts orders, and keeps some of them: a reservoir sample.
func (s *scaling) keep(events []event) {
	for _, e := range events {
		s.orders++
		if len(s.sample) < reads {
			s.sample = append(s.sample, e.order)
		} else if i := rand.IntN(s.orders); i < reads {
			s.sample[i] = e.order
		}
	}
}

// restart starts the gateway anew, and measures what that takes, what it keeps in
// memory, and how long it looks for an order. It drops what of its files is in
// memory by itself.
func (s *scaling) restart(ctx context.Context, size int) error {
	for range min(restarts, s.b.Rounds) {
		if err := s.restartOnce(ctx); err != nil {
			return err
		}
	}
	disk, err := diskUsage(s.data)
	if err != nil {
		return err
	}
	s.note("on disk", "MB", float64(disk)/megabyte)
	newest := &s.points[len(s.points)-1]
	for name, value := range map[string]*float64{startRow: &newest.Start, readRow: &newest.Read, memoryRow: &newest.Memory, "on disk": &newest.Disk} {
		*value = s.b.report.find("scale", fmt.Sprintf("%d orders: %s", size, name)).Median
	}
	return nil
}

const (
	startRow  = "start, from exec to ready"
	readRow   = "GetOrder, median"
	memoryRow = "resident memory after a start"
	aloneRow  = "the same of ORDERS and INBOX alone"
)

// restingMemory is what a gateway takes a moment after it has begun.
func (s *scaling) restingMemory(ctx context.Context, args ...string) (int64, error) {
	p, _, err := s.begin(ctx, args...)
	if err != nil {
		return 0, err
	}
	defer p.stop()
	time.Sleep(settled)
	return p.rss()
}

// withoutReferences measures what ORDERS and INBOX take of the memory: the rest is cut out
// of the log, which is the end of it.
func (s *scaling) withoutReferences(ctx context.Context) error {
	references, err := filepath.Glob(filepath.Join(s.data, "jetstream", "*", "streams", "KV_references"))
	if err != nil || len(references) != 1 {
		return fmt.Errorf("the references are not where they were: %v, %w", references, err)
	}
	if err := os.RemoveAll(references[0]); err != nil {
		return err
	}
	var memory int64
	for _, args := range [][]string{{"--accept-damage"}, nil} { // the first one has to read all files
		if memory, err = s.restingMemory(ctx, args...); err != nil {
			return err
		}
	}
	s.note(aloneRow, "MB", float64(memory)/megabyte)
	return nil
}

func (s *scaling) restartOnce(ctx context.Context) error {
	began := time.Now()
	p, addrs, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer p.stop()
	s.note(startRow, "s", time.Since(began).Seconds())
	time.Sleep(settled)
	memory, err := p.rss()
	if err != nil {
		return err
	}
	s.note(memoryRow, "MB", float64(memory)/megabyte)
	took, err := s.read(ctx, addrs.grpc)
	if err != nil {
		return err
	}
	s.note(readRow, "ms", ms(quantile(took, 0.5)))
	s.note("GetOrder, p99", "ms", ms(quantile(took, 0.99)))
	if memory, err = p.rss(); err != nil {
		return err
	}
	s.note("resident memory after reading", "MB", float64(memory)/megabyte)
	return nil
}

// begin starts the gateway, and returns when it says that it is ready.
func (s *scaling) begin(ctx context.Context, args ...string) (*process, gatewayAddrs, error) {
	p, addrs, err := s.b.startGateway(ctx, s.data, args...)
	if err != nil {
		return nil, addrs, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		_, err := get(ctx, "http://"+addrs.admin+"/readyz")
		if err == nil {
			return p, addrs, nil
		}
		if ctx.Err() != nil {
			p.stop()
			return nil, addrs, err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// read reads random orders, one after the other.
func (s *scaling) read(ctx context.Context, addr string) ([]time.Duration, error) {
	conn, err := dial(addr)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	service := ordergatev1.NewOrderServiceClient(conn)
	get := func(order string) error {
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		_, err := service.GetOrder(ctx, &ordergatev1.GetOrderRequest{OrderId: order})
		return err
	}
	if err := get(s.sample[0]); err != nil { // connects
		return nil, err
	}
	took := make([]time.Duration, reads)
	for i := range took {
		order := s.sample[rand.IntN(len(s.sample))]
		began := time.Now()
		if err := get(order); err != nil {
			return nil, err
		}
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took, nil
}

// diskUsage is what the files below a directory take.
func diskUsage(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += stat.Blocks * 512
		}
		return nil
	})
	return bytes, err
}

// goals are judged at the largest size that was reached.
func (s *scaling) goals() {
	r := &s.b.report
	at := func(size int, name string) string { return fmt.Sprintf("%d orders: %s", size, name) }
	if s.orders > steadyOrders {
		r.goal("scale", fmt.Sprintf("CPU per event at %d orders / at %d", s.orders, steadyOrders), at(s.orders, "CPU per event"), at(steadyOrders, "CPU per event"), 1.25, true)
	}
	r.bound("scale", fmt.Sprintf("start with %d orders", s.orders), at(s.orders, startRow), 3)
	r.goal("scale", fmt.Sprintf("GetOrder at %d orders / at %d", s.orders, smallest), at(s.orders, readRow), at(smallest, readRow), 2, true)
	r.bound("scale", fmt.Sprintf("resident memory with %d orders, without references", s.orders), at(s.orders, aloneRow), 400)
}
