package stripetest

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// Tool returns the path of a program that a test runs: "stripe", "stripe-mock",
// "grpcurl", "nginx" or "buf" from .ci/bin, else what PATH has by that name. Where there
// is none, the test is skipped with a word on how to install it, or fails if the
// environment variable ORDERGATE_TEST_TOOLS is "required", as .ci/run sets it.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(root(t), ".ci", "bin", name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if name == "node" {
		missing(t, "node is not in PATH: install Node.js 20 or newer")
	}
	missing(t, name+" is neither in .ci/bin nor in PATH: run `bash .ci/install`")
	return ""
}

// NodeSign returns the Stripe-Signature header that Stripe's Node client makes
// for payload, with the current time. Without Node.js or the client it does
// with the test what [Tool] does.
func NodeSign(t testing.TB, payload []byte, secret string) string {
	t.Helper()
	if !utf8.Valid(payload) {
		t.Fatal("stripetest: Stripe's Node client signs strings: the payload must be UTF-8")
	}
	node := Tool(t, "node")
	ci := filepath.Join(root(t), ".ci")
	if _, err := os.Stat(filepath.Join(ci, "node_modules", "stripe")); errors.Is(err, fs.ErrNotExist) {
		missing(t, "Stripe's Node client is not in .ci/node_modules: run `bash .ci/install`")
	}

	cmd := exec.CommandContext(t.Context(), node, filepath.Join(ci, "stripe-sign.mjs"))
	cmd.Env = append(os.Environ(), "STRIPE_WEBHOOK_SECRET="+secret)
	cmd.Stdin = bytes.NewReader(payload)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	header, err := cmd.Output()
	if err != nil {
		t.Fatalf("signing with Stripe's Node client: %v\n%s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(header))
}

func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("ORDERGATE_TEST_TOOLS") == "required" {
		t.Fatal(what)
	}
	t.Skip(what)
}

// root returns the repository's root: the folder that has go.mod, at or above
// the working directory, which in a test is its package's folder.
func root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("stripetest: no go.mod at or above the working directory: run the test inside the repository")
		}
		dir = parent
	}
}
