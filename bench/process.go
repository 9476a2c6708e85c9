package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// readyTimeout bounds how long a contender may take until it answers.
const readyTimeout = time.Minute

// process is a contender that runs.
type process struct {
	cmd    *exec.Cmd
	stderr bytes.Buffer
}

// start starts a program, and returns when it takes connections at addr.
func start(ctx context.Context, addr string, cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd}
	cmd.Stderr, cmd.Stdout = &p.stderr, &p.stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(readyTimeout)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return p, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	p.stop()
	return nil, fmt.Errorf("%s does not take connections: %s", cmd.Path, p.tail())
}

// stop ends the process in order, and returns the CPU time it took.
func (p *process) stop() time.Duration {
	p.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
	defer timer.Stop()
	p.cmd.Wait()
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
}

// cpu is the CPU time that the process has taken (Linux).
func (p *process) cpu() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// What is behind the name, which is in brackets: see proc_pid_stat(5).
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/PID/stat: %q", stat)
	}
	var ticks time.Duration
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += time.Duration(n)
	}
	return ticks * (time.Second / 100), nil
}

// rss is the resident memory of the process, in bytes (Linux).
func (p *process) rss() (int64, error) {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var size, resident int64
	_, err = fmt.Sscan(string(statm), &size, &resident)
	return resident * int64(os.Getpagesize()), err
}

func (p *process) tail() string {
	text := p.stderr.Bytes()
	return string(text[max(0, len(text)-2000):])
}

// freeAddr finds a port that was free a moment ago.
func freeAddr() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

// build makes the binary of ordergate.
func (b *bench) build(ctx context.Context) error {
	b.gateway = filepath.Join(b.work, "ordergate")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", b.gateway, "github.com/ordergate/ordergate/cmd/ordergate").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build ordergate: %w\n%s", err, out)
	}
	return nil
}

// gatewayAddrs are where a gateway listens.
type gatewayAddrs struct{ ingress, grpc, admin string }

// startGateway runs `ordergate serve` on a directory.
func (b *bench) startGateway(ctx context.Context, dir string, args ...string) (*process, gatewayAddrs, error) {
	var addrs gatewayAddrs
	for _, addr := range []*string{&addrs.ingress, &addrs.grpc, &addrs.admin} {
		var err error
		if *addr, err = freeAddr(); err != nil {
			return nil, addrs, err
		}
	}
	cmd := exec.Command(b.gateway, append([]string{"serve", "--data-dir", dir, "--log-level", "warn",
		"--ingress-addr", addrs.ingress, "--grpc-addr", addrs.grpc, "--admin-addr", addrs.admin}, args...)...)
	cmd.Dir = b.work
	cmd.Env = append(os.Environ(), "STRIPE_WEBHOOK_SECRET="+secret)
	p, err := start(ctx, addrs.ingress, cmd)
	return p, addrs, err
}

// newGateway starts one on an empty log, for a name. end stops it and removes the log.
func (b *bench) newGateway(ctx context.Context, name string) (p *process, addrs gatewayAddrs, end func(), err error) {
	dir, err := b.dir(name)
	if err != nil {
		return nil, addrs, nil, err
	}
	if p, addrs, err = b.startGateway(ctx, filepath.Join(dir, "data")); err != nil {
		os.RemoveAll(dir)
		return nil, addrs, nil, err
	}
	return p, addrs, func() { p.stop(); os.RemoveAll(dir) }, nil
}

// converted waits until every event that was stored is an order. To ask for the
// backlog costs as much as some hundred events: first the newest order is asked
// for, if there is one.
func converted(ctx context.Context, addrs gatewayAddrs, newest string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	conn, err := dial(addrs.grpc)
	if err != nil {
		return err
	}
	defer conn.Close()
	for newest != "" {
		_, err := ordergatev1.NewOrderServiceClient(conn).GetOrder(ctx, &ordergatev1.GetOrderRequest{OrderId: newest})
		if err == nil {
			break
		}
		if status.Code(err) != codes.NotFound {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	for {
		metrics, err := get(ctx, "http://"+addrs.admin+"/metrics")
		if err != nil {
			return err
		}
		_, backlog, found := bytes.Cut(metrics, []byte("\nordergate_pipeline_backlog_events "))
		if !found {
			return errors.New("the metrics do not tell the backlog")
		}
		if bytes.HasPrefix(backlog, []byte("0\n")) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// get reads what is at a URL.
func get(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", url, response.Status)
	}
	return body, err
}

// self starts this program as a contender.
func (b *bench) self(ctx context.Context, what string, env ...string) (*process, string, error) {
	addr, err := freeAddr()
	if err != nil {
		return nil, "", err
	}
	own, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	cmd := exec.Command(own, "--serve", what)
	cmd.Env = append(append(os.Environ(), "BENCH_ADDR="+addr), env...)
	p, err := start(ctx, addr, cmd)
	return p, addr, err
}

// serveContender is what a process does that was started by self.
func serveContender(ctx context.Context, what string) error {
	serve := map[string]func(context.Context, string) error{"bare": serveBare, "postgres": servePostgres, "stream": serveStream, "jetstream": serveJetStream}[what]
	if serve == nil {
		return errors.New("there is no such contender")
	}
	return serve(ctx, os.Getenv("BENCH_ADDR"))
}
