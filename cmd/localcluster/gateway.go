//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/ordergate/ordergate/internal/natscluster"
)

const (
	readyEvery = 100 * time.Millisecond
	askTimeout = 2 * time.Second
	endTimeout = 5 * time.Second // for a gateway to end well
)

// gateway is one that is killed and started again.
type gateway struct {
	name, binary, dir, secret, natsURL string
	ingress, grpc, admin               string // HOST:PORT
	out                                *log.Logger

	lives   sync.WaitGroup
	mu      sync.Mutex
	process *os.Process // nil when none runs
	last    int         // the newest process
}

func newGateway(i int, binary, dir, secret, natsURL string, out *log.Logger) *gateway {
	at := func(port int) string { return "127.0.0.1:" + strconv.Itoa(port+i) }
	name := "g" + strconv.Itoa(i)
	return &gateway{name: name, binary: binary, dir: filepath.Join(dir, name), secret: secret, natsURL: natsURL, out: out,
		ingress: at(3000), grpc: at(50060), admin: at(8080)}
}

// start starts the gateway, which must not be running. It is told to end when ctx ends.
func (g *gateway) start(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.process != nil {
		return fmt.Errorf("%s is running", g.name)
	}
	// A folder without the .env files of whoever runs this.
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		return err
	}
	lines, err := os.OpenFile(g.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer lines.Close() // the process has it too
	cmd := exec.CommandContext(ctx, g.binary, "serve", "--nats-url", g.natsURL, "--replicas", strconv.Itoa(nodes),
		"--ingress-addr", g.ingress, "--grpc-addr", g.grpc, "--admin-addr", g.admin)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = endTimeout
	cmd.Env = append(os.Environ(), "STRIPE_WEBHOOK_SECRET="+g.secret)
	cmd.Dir, cmd.Stdout, cmd.Stderr = g.dir, lines, lines
	natscluster.EndWithThis(cmd)
	if err := cmd.Start(); err != nil {
		return err
	}
	g.process, g.last = cmd.Process, cmd.Process.Pid
	alive, ended := context.WithCancel(ctx)
	g.lives.Go(func() {
		err := cmd.Wait()
		ended()
		if ctx.Err() == nil {
			g.out.Printf("%s has ended: %v; its log is %s.log", g.name, err, g.dir)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.process = nil
	})
	g.lives.Go(func() {
		if g.awaitReady(alive) {
			g.out.Printf("%s is ready", g.name)
		}
	})
	return nil
}

// awaitReady says whether the gateway became ready before ctx ended.
func (g *gateway) awaitReady(ctx context.Context) bool {
	client := http.Client{Timeout: askTimeout}
	tick := time.NewTicker(readyEvery)
	defer tick.Stop()
	for {
		response, err := client.Get("http://" + g.admin + "/readyz")
		if err == nil {
			response.Body.Close()
		}
		if err == nil && response.StatusCode == http.StatusOK {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

func (g *gateway) signal(signal syscall.Signal) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.process == nil {
		return errors.New(g.name + " is not running")
	}
	return g.process.Signal(signal)
}

// pid returns the newest process, which may have ended.
func (g *gateway) pid() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

// wait returns when the gateway has ended, after the context of its start.
func (g *gateway) wait() { g.lives.Wait() }
