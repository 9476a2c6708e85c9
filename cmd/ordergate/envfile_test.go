package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// unset removes variables for the time of a test, and those that files set in it.
func unset(t *testing.T, names ...string) {
	for _, name := range names {
		t.Setenv(name, "")
		os.Unsetenv(name)
	}
}

// A .env file in the working directory directs neither tokens nor keys from the environment to an
// address of its own.
func TestEnvFiles(t *testing.T) {
	unset(t, "ORDERGATE_ADDR", "STRIPE_API_BASE", "STRIPE_API_KEY", "STRIPE_WEBHOOK_SECRET")
	t.Chdir(t.TempDir())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := os.WriteFile(".env", []byte("ORDERGATE_ADDR="+listener.Addr().String()+"\nSTRIPE_API_BASE=http://127.0.0.1:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ORDERGATE_TOKEN", "ogt_secret")
	var out bytes.Buffer
	if err := run(t.Context(), []string{"orders", "list"}, nil, io.Discard, &out); err == nil || strings.Contains(err.Error()+out.String(), listener.Addr().String()) {
		t.Errorf("orders list: %v", err)
	}
	if addr := os.Getenv("ORDERGATE_ADDR"); addr != "" {
		t.Errorf("ORDERGATE_ADDR was taken from the file: %s", addr)
	}
	t.Setenv("STRIPE_API_KEY", "rk_test_environment")
	if err := run(t.Context(), []string{"serve"}, nil, io.Discard, &out); err == nil || !strings.Contains(err.Error(), "STRIPE_API_BASE is set in .env") {
		t.Errorf("serve: %v", err)
	}
}

// An export removes and reports the file of a killed one, and leaves that of one under way.
func TestUnfinishedExports(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, unfinishedPrefix+"123")
	if err := os.WriteFile(left, []byte("Erika"), 0o600); err != nil {
		t.Fatal(err)
	}
	running, err := newFileAt(filepath.Join(dir, "other.archive"))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := removeUnfinished(filepath.Join(dir, "orders.archive"), &out); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) || !strings.Contains(out.String(), left) {
		t.Errorf("%v, %q", err, out.String())
	}
	if _, err := os.Stat(running.Name()); err != nil {
		t.Errorf("an export that is under way was removed: %v", err)
	}
	if err := running.finish(true); err != nil {
		t.Fatal(err)
	}
}
