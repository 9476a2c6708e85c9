package natscluster

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestParentDies has the nodes of a killed process end, also one that is stopped.
func TestParentDies(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	parent := exec.CommandContext(ctx, os.Args[0])
	parent.Env = append(os.Environ(), parentDir+"="+t.TempDir())
	parent.Stderr = t.Output()
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	EndWithThis(parent)
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var nodes [2]int
	if _, scan := fmt.Sscan(line, &nodes[0], &nodes[1]); scan != nil {
		t.Fatalf("%q: %v, %v", line, scan, err)
	}
	stopped, err := os.FindProcess(nodes[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := stopped.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	parent.Process.Kill()
	parent.Wait()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for alive(nodes[0]) || alive(nodes[1]) {
		select {
		case <-ctx.Done():
			t.Fatal("the nodes live on")
		case <-tick.C:
		}
	}
}

// alive says whether a process is there and did not end: nobody may have waited for
// one that did.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}
