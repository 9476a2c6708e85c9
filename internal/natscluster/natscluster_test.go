//go:build unix

package natscluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

func TestMain(m *testing.M) {
	Main()
	if dir := os.Getenv(parentDir); dir != "" {
		runParent(dir)
	}
	os.Exit(m.Run())
}

// parentDir makes a process of this test one that starts a cluster there.
const parentDir = "NATSCLUSTER_TEST_PARENT_DIR"

// runParent prints the processes of its cluster and waits to be killed.
func runParent(dir string) {
	c, err := Start(context.Background(), Config{Dir: dir, Nodes: 2, SyncAlways: true})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(c.PID(1), c.PID(2))
	select {}
}

// TestKill kills the leader of a stream: the others go on, and it comes back with all
// that was published meanwhile.
func TestKill(t *testing.T) {
	Patiently(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := New(t, 3)
	js := connect(t, c.URL())
	stream := createStream(ctx, t, js)
	publish(ctx, t, js, 0, 100)

	leader := leaderOf(ctx, t, c, stream)
	old := c.PID(leader)
	if err := c.Kill(leader); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(leader); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("killed again: %v", err)
	}
	if err := c.AwaitCurrent(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("current without n%d: %v", leader, err)
	}
	publish(ctx, t, js, 100, 200)

	if err := c.Restart(leader); err != nil {
		t.Fatal(err)
	}
	if c.PID(leader) == old {
		t.Error("it is the same process")
	}
	if err := c.Restart(leader); err == nil {
		t.Error("started twice")
	}
	if err := c.AwaitCurrent(ctx); err != nil {
		t.Fatal(err)
	}
	checkStored(ctx, t, c, 200)

	if err := c.Close(); err != nil {
		t.Error(err)
	}
	for i := range c.Nodes() {
		if err := syscall.Kill(c.PID(i+1), 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("n%d after Close: %v", i+1, err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Restart(leader); err == nil {
		t.Error("started after Close")
	}
}

// TestStop stops the leader of a stream while another node is asked: that is not
// current until it goes on, and then it knows that others went on without it.
func TestStop(t *testing.T) {
	Patiently(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := New(t, 3)
	stream := createStream(ctx, t, connect(t, c.URL()))
	leader := leaderOf(ctx, t, c, stream)
	urls := slices.Delete(strings.Split(c.URL(), ","), leader-1, leader)
	js := connect(t, urls[0])
	publish(ctx, t, js, 0, 10)

	if err := c.Stop(leader); err != nil {
		t.Fatal(err)
	}
	publish(ctx, t, js, 10, 20)
	short, done := context.WithTimeout(ctx, 200*time.Millisecond)
	defer done()
	if err := c.AwaitCurrent(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("current without n%d: %v", leader, err)
	}
	if err := c.Continue(leader); err != nil {
		t.Fatal(err)
	}
	if err := c.AwaitCurrent(ctx); err != nil {
		t.Fatal(err)
	}
	checkStored(ctx, t, c, 20)
	// A stopped node ends as well.
	if err := c.Stop(leader); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(leader); err != nil {
		t.Fatal(err)
	}
}

func TestNumbers(t *testing.T) {
	c := &Cluster{nodes: []*node{{config: nodeConfig{Name: "n1"}}, {config: nodeConfig{Name: "n2"}}}}
	if c.Number("n2") != 2 || c.Number("n3") != 0 {
		t.Errorf("n2 is %d, n3 is %d", c.Number("n2"), c.Number("n3"))
	}
	for _, i := range []int{0, 3} {
		if err := c.Kill(i); err == nil || errors.Is(err, os.ErrProcessDone) {
			t.Errorf("node %d: %v", i, err)
		}
	}
}

func createStream(ctx context.Context, t *testing.T, js jetstream.JetStream) jetstream.Stream {
	t.Helper()
	for {
		asking, cancel := context.WithTimeout(ctx, 3*time.Second)
		stream, err := js.CreateStream(asking, jetstream.StreamConfig{Name: "TEST", Subjects: []string{"test.*"}, Replicas: 3})
		cancel()
		switch {
		case err == nil:
			return stream
		case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded): // a leader that was just elected may not answer
		default:
			t.Fatal(err)
		}
	}
}

// publish publishes the messages from the first up to the end, each until it is
// acknowledged and none twice.
func publish(ctx context.Context, t *testing.T, js jetstream.JetStream, first, end int) {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := first; i < end; {
		try, cancel := context.WithTimeout(ctx, time.Second)
		id := fmt.Sprintf("test.%d", i)
		_, err := js.Publish(try, id, nil, jetstream.WithMsgID(id))
		cancel()
		if err == nil {
			i++
			continue
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s is not acknowledged: %v", id, err)
		case <-tick.C:
		}
	}
	t.Logf("%d to %d acknowledged after %v", first, end, time.Since(began))
}

func leaderOf(ctx context.Context, t *testing.T, c *Cluster, stream jetstream.Stream) int {
	t.Helper()
	info, err := stream.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	i := c.Number(info.Cluster.Leader)
	if i == 0 {
		t.Fatalf("the leader is %q", info.Cluster.Leader)
	}
	return i
}

// checkStored looks at what each node has itself.
func checkStored(ctx context.Context, t *testing.T, c *Cluster, messages uint64) {
	t.Helper()
	for _, n := range c.nodes {
		var has struct {
			Messages uint64 `json:"messages"`
		}
		if err := n.ask(ctx, "/jsz", &has); err != nil {
			t.Fatal(err)
		}
		if has.Messages != messages {
			t.Errorf("%s has %d messages, want %d", n.config.Name, has.Messages, messages)
		}
	}
}
