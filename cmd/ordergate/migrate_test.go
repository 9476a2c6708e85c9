//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/ordergate/ordergate/internal/config"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/natscluster"
)

// newCluster returns a NATS cluster of three servers.
func newCluster(t *testing.T) *natscluster.Cluster {
	t.Helper()
	if testing.Short() {
		t.Skip("a NATS cluster takes seconds")
	}
	return natscluster.New(t, 3)
}

// command runs one command line, and returns what it prints.
func command(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	err := run(ctx, args, nil, &out, &out)
	return out.String(), err
}

// sharedLog is what a gateway with the usual settings opens.
func sharedLog(cluster *natscluster.Cluster, replicas int) eventlog.Config {
	limits := config.Limits{MaxBodyBytes: 1 << 20, InboxMaxAge: 840 * time.Hour, OrdersMaxAge: 9600 * time.Hour}
	return clusterConfig(limits, config.NATS{URLs: strings.Split(cluster.URL(), ","), Replicas: replicas}, slog.New(slog.DiscardHandler))
}

// A cluster is brought to the settings of a gateway: only when told, and only what
// loses nothing.
func TestMigrate(t *testing.T) {
	cluster := newCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	migrate := func(flags ...string) (string, error) {
		return command(ctx, append([]string{"migrate", "--nats-url", cluster.URL()}, flags...)...)
	}
	out, err := migrate("--replicas", "1")
	if err != nil {
		t.Fatal(err)
	}
	wants(t, out, "INBOX +new$", "ORDERS +new$", "KV_leases +new$", "nothing was changed: run it again with --apply$")
	js, names := cluster.JetStream(t), cluster.Streams(t)
	if len(names) > 0 {
		t.Fatalf("a dry run made %v", names)
	}
	if out, err = migrate("--replicas", "1", "--apply"); err != nil {
		t.Fatal(err)
	}
	wants(t, out, "done: 15 streams were made or changed$")
	log, err := eventlog.Open(ctx, sharedLog(cluster, 1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := log.AppendInbox(ctx, eventlog.RawEvent{ID: "evt_1", Body: []byte("{}"), SecretLabel: "s"}); err != nil {
		t.Fatal(err)
	}
	if out, err = migrate("--replicas", "1"); err != nil || out != "nothing to change\n" {
		t.Errorf("%q, %v", out, err)
	}

	// Another age and more replicas, while a gateway runs.
	if out, err = migrate("--inbox-max-age", "1000h"); err != nil {
		t.Fatal(err)
	}
	wants(t, out, "INBOX +replicas: 1 there, must be 3$", " +max_age: 840h0m0s there, must be 1000h0m0s$", "KV_owners +replicas: 1 there, must be 3$", "nothing was changed")
	if out, err = migrate("--inbox-max-age", "1000h", "--apply", "--json"); err != nil || !strings.HasPrefix(out, `{"applied":true,"changes":[{"stream":"KV_leases","differences":["replicas: 1 there, must be 3"]},`) {
		t.Errorf("%s, %v", out, err)
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}
	cfg := sharedLog(cluster, 3)
	if _, err := eventlog.Open(ctx, cfg); !errors.Is(err, eventlog.ErrSettings) {
		t.Errorf("with the old age: %v", err)
	}
	cfg.InboxMaxAge = 1000 * time.Hour
	if log, err = eventlog.Open(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Error(err)
	}

	// What would remove events is refused, and nothing else is done.
	stream, err := js.Stream(ctx, "INBOX")
	if err != nil {
		t.Fatal(err)
	}
	fed := stream.CachedInfo().Config
	fed.Sources = []*jetstream.StreamSource{{Name: "ELSEWHERE"}}
	if _, err := js.UpdateStream(ctx, fed); err != nil {
		t.Fatal(err)
	}
	out, err = migrate("--inbox-max-age", "1001h", "--apply")
	if err == nil || !strings.Contains(err.Error(), "nothing was changed: 1 of 4 changes") {
		t.Errorf("err = %v", err)
	}
	wants(t, out, "INBOX +max_age: ", " +refused: it is fed by another stream")
	if stream, err = js.Stream(ctx, "INBOX"); err != nil || stream.CachedInfo().Config.MaxAge != 1000*time.Hour {
		t.Error("it was changed", err)
	}
}

// The check says whether a cluster can be used, and makes nothing in it.
func TestCheckCluster(t *testing.T) {
	cluster := newCluster(t)
	check := func(flags ...string) (string, error) {
		return checked(t, append([]string{"--admin-addr", "127.0.0.1:0", "--stripe-api-base", "http://127.0.0.1:1", "--stripe-webhook-secret", crashSecret}, flags...)...)
	}
	out, err := check("--nats-url", cluster.URL())
	if err != nil {
		t.Error(err)
	}
	wants(t, out, "ok    settings ", `ok    NATS +n1 \(2\.\S+\), n2 \(2\.\S+\), n3 \(2\.\S+\)$`, "ok    JetStream +the account takes 0 B", "ok    streams +15 are missing: serve makes them$", "ok    replicas +3 servers", "ok    door ")
	if strings.Contains(out, "data directory") {
		t.Errorf("it looks at a data directory:\n%s", out)
	}
	if names := cluster.Streams(t); len(names) > 0 {
		t.Errorf("it made %v", names)
	}

	// Not all servers, and too small ones.
	first, _, _ := strings.Cut(cluster.URL(), ",")
	if out, err = check("--nats-url", first+",nats://127.0.0.1:1"); err == nil {
		t.Error("a server that is not there is no failure")
	}
	wants(t, out, "FAIL  NATS +connect to NATS at nats://127.0.0.1:1: .*is it running", "warn  replicas +1 servers can be reached, and 3 keep each event$")
	if out, err = check("--nats-url", cluster.URL(), "--max-body-bytes", "16777216"); err == nil {
		t.Error("a max_payload that is too small is no failure")
	}
	wants(t, out, `FAIL  NATS +n3 takes messages of 8388608 bytes, and an order event may have \d+$`, " +mend: set max_payload to ")

	// With a gateway, and other settings than it has.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	log, err := eventlog.Open(ctx, sharedLog(cluster, 3))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if out, err = check("--nats-url", cluster.URL()); err != nil {
		t.Error(err)
	}
	wants(t, out, "ok    streams +they are as they must be$")
	if out, err = check("--nats-url", cluster.URL(), "--inbox-max-age", "1000h"); err == nil {
		t.Error("other settings are no failure")
	}
	wants(t, out, "FAIL  streams +INBOX: max_age: 840h0m0s there, must be 1000h0m0s$", " +mend: .*`ordergate migrate --apply`")
}

// TestMoveIntoACluster drives the real binary; testdata/cluster/move.txtar says how.
func TestMoveIntoACluster(t *testing.T) {
	cluster := newCluster(t)
	params := scripts(filepath.Join("testdata", "cluster"))
	params.Setup = func(env *testscript.Env) error {
		env.Setenv("CLUSTER", cluster.URL())
		return setupScript(env)
	}
	testscript.Run(t, params)
}

// A data directory has nothing to migrate, and what is wrong is said before anything
// is connected.
func TestMigrateNeedsACluster(t *testing.T) {
	for _, tt := range []struct{ args, want string }{
		{"", "--nats-url"},
		{"--nats-url nats://127.0.0.1:1 --replicas 2", "--replicas 2"},
		{"--nats-url nats://127.0.0.1:1 --inbox-max-age 1h", "--inbox-max-age"},
		{"--nats-url nats://127.0.0.1:1", "is it running"},
	} {
		err := run(t.Context(), append([]string{"migrate"}, strings.Fields(tt.args)...), nil, io.Discard, os.Stderr)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.args, err)
		}
	}
}
