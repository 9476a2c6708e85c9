//go:build unix

// Package natscluster runs a real NATS cluster with JetStream on this machine, for
// tests and for people who want to look at one.
//
// Each node is a process of its own, so that one can be killed, or cut off, and
// comes back with what it had stored. It is this same program, started again:
// [Main] is to be called first. Nothing listens beyond 127.0.0.1.
//
// A follower waits for 4 to 9 s until it takes its leader for dead. That is the
// engine's own, and how long a stream stands still when its leader is killed or
// stopped.
package natscluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ordergate/ordergate/internal/freeport"
	"github.com/ordergate/ordergate/internal/logtest"
)

const (
	// startTimeout is for [New]: three nodes on an idle machine take about 2 s.
	startTimeout = 90 * time.Second
	// askTimeout bounds one question to a node, which may be stopped.
	askTimeout = 2 * time.Second
	pollEvery  = 100 * time.Millisecond
	// logBytes is how much of a node's log is kept.
	logBytes = 16 << 10
)

// Config is what [Start] needs.
type Config struct {
	// Dir is where the nodes' stores are. What is there already is used again.
	Dir string
	// Nodes is how many there are: 2 or more, and 3 to do without one.
	Nodes int
	// SyncAlways has each message on disk before it is acknowledged. Without it, it
	// is in the kernel's page cache, which outlives the process.
	SyncAlways bool
}

// Cluster is a number of nodes. They are counted from 1, and their server names are
// n1, n2, and so on. Its methods may be called by several goroutines.
type Cluster struct {
	nodes    []*node
	released func() // gives the ports back
}

type node struct {
	config nodeConfig
	log    logtest.Tail

	mu      sync.Mutex
	process *os.Process   // the newest
	ended   chan struct{} // closed when that has ended
	closed  bool          // there will be no other
}

// Patiently skips a test that takes long, mostly to wait for others to notice what happened, unless
// the gate runs it (CI=true) or somebody who asks for it (ORDERGATE_SLOW_TESTS=true).
func Patiently(t testing.TB) {
	t.Helper()
	if os.Getenv("CI") != "true" && os.Getenv("ORDERGATE_SLOW_TESTS") != "true" {
		t.Skip("it waits for many seconds: ORDERGATE_SLOW_TESTS=true runs it")
	}
}

// New starts a cluster that ends with the test. If the test fails, the last log lines
// of the nodes are printed.
func New(t testing.TB, nodes int) *Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	c, err := Start(ctx, Config{Dir: t.TempDir(), Nodes: nodes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if !t.Failed() {
			return
		}
		for _, n := range c.nodes {
			t.Logf("the last log lines of %s:\n%s", n.config.Name, n.log.Lines())
		}
	})
	return c
}

// Start starts the nodes and returns when all of them are current; see
// [Cluster.AwaitCurrent].
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	if !mainCalled {
		return nil, errors.New("natscluster: call natscluster.Main first in main, or in TestMain: each node is this program, started again")
	}
	if cfg.Nodes < 2 {
		return nil, fmt.Errorf("natscluster: %d nodes: 2 or more make a cluster", cfg.Nodes)
	}
	// Three for each node, and for as long as the cluster lives: what else runs on
	// this machine must not get the port of a node that is dead for a while.
	ports, release, err := freeport.Reserve(3 * cfg.Nodes)
	if err != nil {
		return nil, fmt.Errorf("natscluster: %w", err)
	}
	c := &Cluster{released: sync.OnceFunc(release)}
	for i := range cfg.Nodes {
		name := fmt.Sprintf("n%d", i+1)
		c.nodes = append(c.nodes, &node{log: logtest.Tail{Bytes: logBytes}, config: nodeConfig{
			Name: name, Dir: filepath.Join(cfg.Dir, name), SyncAlways: cfg.SyncAlways,
			Port: ports[3*i], RoutePort: ports[3*i+1], MonitorPort: ports[3*i+2],
		}})
	}
	for _, n := range c.nodes {
		for _, other := range c.nodes {
			if other != n {
				n.config.Routes = append(n.config.Routes, fmt.Sprintf("nats://%s:%d", host, other.config.RoutePort))
			}
		}
		if err := n.start(); err != nil {
			c.Close()
			return nil, err
		}
	}
	if err := c.AwaitCurrent(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// URL returns where clients connect: the addresses of all nodes in their order, with
// commas.
func (c *Cluster) URL() string {
	var urls []string
	for _, n := range c.nodes {
		urls = append(urls, fmt.Sprintf("nats://%s:%d", host, n.config.Port))
	}
	return strings.Join(urls, ",")
}

// JetStream connects to the cluster until the test ends.
func (c *Cluster) JetStream(t testing.TB) jetstream.JetStream {
	t.Helper()
	return connect(t, c.URL())
}

// connect returns a client that goes on whatever happens to nodes.
func connect(t testing.TB, url string) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Streams returns the names of the streams that there are now.
func (c *Cluster) Streams(t testing.TB) (names []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	list := c.JetStream(t).StreamNames(ctx)
	for name := range list.Name() {
		names = append(names, name)
	}
	if list.Err() != nil {
		t.Fatal(list.Err())
	}
	return names
}

// Nodes returns how many nodes there are, dead ones too.
func (c *Cluster) Nodes() int { return len(c.nodes) }

// Number returns the number of the node with that server name, such as the leader of
// a stream, or 0.
func (c *Cluster) Number(name string) int {
	for i, n := range c.nodes {
		if n.config.Name == name {
			return i + 1
		}
	}
	return 0
}

// StoreDir returns the directory of node i's JetStream store.
func (c *Cluster) StoreDir(i int) string { return c.nodes[i-1].config.Dir }

// PID returns the process of node i, which may have ended, or 0.
func (c *Cluster) PID(i int) int {
	n, err := c.node(i)
	if err != nil {
		return 0
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.process == nil {
		return 0
	}
	return n.process.Pid
}

// Kill ends node i with SIGKILL, also one that is stopped, and returns when it has
// ended.
func (c *Cluster) Kill(i int) error { return c.signal(i, syscall.SIGKILL) }

// Stop halts node i (SIGSTOP): it does nothing any more, and its connections stay
// open. For the others it is cut off.
func (c *Cluster) Stop(i int) error { return c.signal(i, syscall.SIGSTOP) }

// Continue lets a stopped node go on (SIGCONT), with what it knew. It does not wait
// until the node is current.
func (c *Cluster) Continue(i int) error { return c.signal(i, syscall.SIGCONT) }

// Restart starts node i again, which has ended, with the same ports and store. It does
// not wait until the node is current.
func (c *Cluster) Restart(i int) error {
	n, err := c.node(i)
	if err != nil {
		return err
	}
	return n.start()
}

func (c *Cluster) signal(i int, signal syscall.Signal) error {
	n, err := c.node(i)
	if err != nil {
		return err
	}
	return n.signal(signal)
}

func (c *Cluster) node(i int) (*node, error) {
	if i < 1 || i > len(c.nodes) {
		return nil, fmt.Errorf("natscluster: no node %d: they are 1 to %d", i, len(c.nodes))
	}
	return c.nodes[i-1], nil
}

// Close kills all nodes and returns when they have ended; none can be started again.
// What they stored stays. It may be called again.
func (c *Cluster) Close() error {
	var problems []error
	for _, n := range c.nodes {
		n.mu.Lock()
		n.closed = true
		n.mu.Unlock()
		if err := n.signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
			problems = append(problems, err)
		}
	}
	c.released()
	return errors.Join(problems...)
}

// start starts the node, which must not be running.
func (n *node) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errors.New("natscluster: the cluster is closed")
	}
	if n.running() {
		return fmt.Errorf("natscluster: %s is running", n.config.Name)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	config, err := json.Marshal(n.config)
	if err != nil {
		return err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), environment+"="+string(config))
	cmd.Stdout, cmd.Stderr = &n.log, &n.log
	EndWithThis(cmd)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("natscluster: start %s: %w", n.config.Name, err)
	}
	ended := make(chan struct{})
	n.process, n.ended = cmd.Process, ended
	go func() {
		defer close(ended)
		fmt.Fprintf(&n.log, "natscluster: it has ended: %v\n", cmd.Wait())
	}()
	return nil
}

// running says whether the process is there. mu is held.
func (n *node) running() bool {
	if n.process == nil {
		return false
	}
	select {
	case <-n.ended:
		return false
	default:
		return true
	}
}

// signal waits for the end after SIGKILL. The error wraps [os.ErrProcessDone] when
// the node is not running.
func (n *node) signal(signal syscall.Signal) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	err := os.ErrProcessDone
	if n.running() {
		err = n.process.Signal(signal)
	}
	if err != nil {
		return fmt.Errorf("natscluster: %v for %s: %w", signal, n.config.Name, err)
	}
	if signal == syscall.SIGKILL {
		<-n.ended
	}
	return nil
}

// AwaitCurrent returns when the cluster is whole: each node says that it is healthy,
// and in each Raft group (a stream, a consumer, the cluster's own state) all members
// know the same leader and have applied what that leader had when it was asked. The
// former alone says little: a node that was just started calls itself healthy before
// it has caught up. Others may publish meanwhile. It returns an error when ctx ends,
// and at once when a node is not running.
func (c *Cluster) AwaitCurrent(ctx context.Context) error {
	goals := map[string]goal{}
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		for _, n := range c.nodes {
			n.mu.Lock()
			running := n.running()
			n.mu.Unlock()
			if !running {
				return fmt.Errorf("natscluster: %s is not running; its last log lines:\n%s", n.config.Name, n.log.Lines())
			}
		}
		err := c.current(ctx, goals)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("natscluster: %w: the cluster is not current: %w", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// goal is what the members of a Raft group must have applied: all that the leader of
// this term had in its log when it was first seen.
type goal struct{ term, index uint64 }

// raftGroup is what a node says of a Raft group, in /raftz.
type raftGroup struct {
	ID      string `json:"id"`     // of the node, as a member
	Leader  string `json:"leader"` // such an id
	Term    uint64 `json:"term"`
	Newest  uint64 `json:"pindex"` // in the log, committed or not
	Applied uint64 `json:"applied"`
	Peers   map[string]struct {
		Name string `json:"name"`
	} `json:"peers"` // the other members
}

func (c *Cluster) current(ctx context.Context, goals map[string]goal) error {
	// A node that is not healthy logs a warning each time it is asked, so the groups
	// come first; and again, because a healthy node has started those of all its streams.
	if err := c.agreed(ctx, goals); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := n.ask(ctx, "/healthz", new(struct{})); err != nil {
			return err
		}
	}
	return c.agreed(ctx, goals)
}

// agreed says whether the members of each Raft group agree.
func (c *Cluster) agreed(ctx context.Context, goals map[string]goal) error {
	groups := map[string]map[string]raftGroup{} // by group and node
	for _, n := range c.nodes {
		own, err := n.groups(ctx)
		if err != nil {
			return err
		}
		for name, g := range own {
			if groups[name] == nil {
				groups[name] = map[string]raftGroup{}
			}
			groups[name][n.config.Name] = g
		}
	}
	for name, members := range groups {
		if err := agree(name, members, goals); err != nil {
			return err
		}
	}
	return nil
}

// groups returns the Raft groups that the node is a member of. Those of streams are
// listed with the account that the streams are in.
func (n *node) groups(ctx context.Context) (map[string]raftGroup, error) {
	var known struct {
		Accounts []string `json:"accounts"`
	}
	if err := n.ask(ctx, "/accountz", &known); err != nil {
		return nil, err
	}
	groups := map[string]raftGroup{}
	for _, account := range known.Accounts {
		var own map[string]map[string]raftGroup // by account
		if err := n.ask(ctx, "/raftz?acc="+url.QueryEscape(account), &own); err != nil {
			return nil, err
		}
		maps.Copy(groups, own[account])
	}
	return groups, nil
}

// agree says whether all members of a Raft group know of each other, have the same
// leader, and have reached the goal.
func agree(name string, members map[string]raftGroup, goals map[string]goal) error {
	var leader *raftGroup
	for _, m := range members {
		if m.ID == m.Leader && (leader == nil || m.Term > leader.Term) {
			leader = &m
		}
	}
	if leader == nil {
		return fmt.Errorf("%s has no leader", name)
	}
	if goals[name].term != leader.Term {
		goals[name] = goal{leader.Term, leader.Newest}
	}
	for _, peer := range leader.Peers {
		if _, ok := members[peer.Name]; !ok {
			return fmt.Errorf("%s is not on %q, which should have it", name, peer.Name)
		}
	}
	for node, m := range members {
		switch {
		case m.Leader != leader.ID || m.Term != leader.Term:
			return fmt.Errorf("%s does not know the leader of %s", node, name)
		case m.Applied < goals[name].index:
			return fmt.Errorf("%s is behind in %s: %d of %d", node, name, m.Applied, goals[name].index)
		}
	}
	return nil
}

// ask reads what the node's monitoring port answers, which must be 200.
func (n *node) ask(ctx context.Context, path string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d%s", host, n.config.MonitorPort, path), nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return fmt.Errorf("%s: %w", n.config.Name, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
	case response.StatusCode != http.StatusOK:
		err = fmt.Errorf("%s: %s", response.Status, bytes.TrimSpace(body))
	default:
		err = json.Unmarshal(body, answer)
	}
	if err != nil {
		return fmt.Errorf("%s: %s: %w", n.config.Name, path, err)
	}
	return nil
}
