//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ordergate/ordergate/internal/logtest"
	"github.com/ordergate/ordergate/internal/natscluster"
)

func TestMain(m *testing.M) {
	natscluster.Main()
	os.Exit(m.Run())
}

// TestRun kills a node, starts it again, and ends everything. The gateways may find
// their ports in use, and are not looked at.
func TestRun(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds ordergate")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	stdin, typed := io.Pipe()
	var out logtest.Buffer
	running, end := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- run(running, []string{"--dir", t.TempDir()}, stdin, &out, t.Output()) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	await := func(text string, times int) {
		t.Helper()
		for strings.Count(out.String(), text) < times {
			select {
			case err := <-ended:
				t.Fatalf("ended without %q: %v\n%s", text, err, out.String())
			case <-ctx.Done():
				t.Fatalf("no %q:\n%s", text, out.String())
			case <-tick.C:
			}
		}
	}
	await(help, 1)
	for _, step := range []struct{ typed, answer string }{
		{"kill 2", "kill 2: done"},
		{"kill n2", "for n2: " + os.ErrProcessDone.Error()},
		{"start n2", "start n2: done"},
		{"start 2", "n2 is running"},
		{"stop 3", "stop 3: done"},
		{" continue  3 ", "continue 3: done"},
	} {
		fmt.Fprintln(typed, step.typed)
		await(step.answer, 1)
	}
	fmt.Fprint(typed, "start 7\ndance 2\n")
	await(help, 3)
	end()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, process := range regexp.MustCompile(`process (\d+)`).FindAllStringSubmatch(out.String(), -1) {
		var pid int
		fmt.Sscan(process[1], &pid)
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d lives on: %v", pid, err)
		}
	}
}
