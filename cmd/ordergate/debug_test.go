package main

import (
	"context"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"github.com/ordergate/ordergate/internal/stripetest"
)

func grpcurl(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, stripetest.Tool(t, "grpcurl"), args...).CombinedOutput()
	return string(out), err
}

// Channelz is on the admin door, over plaintext and TLS, for operators; the
// subscribers' door does not have it.
func TestChannelz(t *testing.T) {
	const getServers = "grpc.channelz.v1.Channelz/GetServers"
	g := startGateway(t, testSecret)
	if out, err := grpcurl(t, "-plaintext", g.adminListener.Addr().String(), getServers); err != nil || !strings.Contains(out, `"listenSocket"`) {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := grpcurl(t, "-plaintext", g.grpcListener.Addr().String(), "list"); err != nil || strings.Contains(out, "channelz") {
		t.Errorf("the subscribers' door has channelz: %v\n%s", err, out)
	}

	guarded := startGuarded(t)
	addr := guarded.adminListener.Addr().String()
	for token, want := range map[string]string{guarded.alice: `"listenSocket"`, guarded.rita: "PermissionDenied", "": "Unauthenticated"} {
		args := []string{"-cacert", guarded.ca.File}
		if token != "" {
			args = append(args, "-H", "authorization: Bearer "+token)
		}
		if out, err := grpcurl(t, append(args, addr, getServers)...); !strings.Contains(out, want) {
			t.Errorf("want %s: %v\n%s", want, err, out)
		}
	}
}

func TestProfiles(t *testing.T) {
	g := startGuarded(t)
	cfg := g.ca.Client(t, "", "")
	for _, tt := range []struct {
		token, path string
		status      int
	}{
		{"", "/debug/pprof/", 401},
		{g.rita, "/debug/pprof/", 403},
		{g.rita, "/debug/pprof/heap", 403},
		{g.alice, "/debug/pprof/", 200},
		{g.alice, "/debug/pprof/heap", 200},
		{g.alice, "/debug/pprof/goroutine?debug=1", 200},
		{g.alice, "/debug/pprof/trace?seconds=0.01", 200},
		{g.alice, "/debug/pprof/profile?seconds=3600", 400},
		{g.alice, "/debug/pprof/heap?seconds=3600", 400},
		{g.alice, "/debug/pprof/trace?seconds=NaN", 400},
		{g.alice, "/debug/pprof/cmdline", 404}, // secrets may be in it
		{g.rita, "/grpc.channelz.v1.Channelz/GetServers", 403},
		{"", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", 401},
	} {
		var header []string
		if tt.token != "" {
			header = []string{"Authorization", "Bearer " + tt.token}
		}
		response := g.ask(t, cfg, http.MethodGet, tt.path, "", header...)
		if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != tt.status {
			t.Errorf("%s: %d %.200s, %v, want %d", tt.path, response.StatusCode, body, err, tt.status)
		}
	}
	// Without an access file everybody who reaches the door may.
	open := startGateway(t, testSecret)
	response, err := http.Get("http://" + open.adminListener.Addr().String() + "/debug/pprof/goroutine")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != 200 {
		t.Errorf("without an access file: %d", response.StatusCode)
	}
}
