package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/natsconn"
)

// cluster looks at the NATS cluster, and changes nothing in it.
func (k *checker) cluster(ctx context.Context) {
	if k.NATS.Check() != nil {
		return // what is wrong was said with the settings
	}
	cfg := logConfig(k.Config, eventlog.Keys{}, slog.New(slog.DiscardHandler))
	servers := k.servers(ctx, cfg)
	if servers == 0 || !k.jetStream(ctx, cfg) {
		return
	}
	k.copies()
	k.syncs(ctx, cfg)
	if k.streams(ctx, cfg) {
		return
	}
	status := fine // the streams are still to be made
	if servers < k.NATS.Replicas {
		status = warn
	}
	k.found("replicas", status, fmt.Sprintf("%d servers can be reached, and %d keep each event", servers, k.NATS.Replicas),
		"name all servers in --nats-url; if these are all, give --replicas as many, or start more")
}

// servers connects to each address that is given, and returns how many servers can be
// used: none, when they cannot keep the log together.
func (k *checker) servers(ctx context.Context, cfg eventlog.Config) int {
	var ids, names, clusters []string
	for _, url := range k.NATS.URLs {
		one := cfg.Cluster.Config
		one.URLs = []string{url}
		conn, err := natsconn.Connect(ctx, one, "ordergate check", nil)
		if err != nil {
			k.found("NATS", bad, err.Error(), "start the server; remove its address from --nats-url only if it is gone for good")
			continue
		}
		if id := conn.ConnectedServerId(); !slices.Contains(ids, id) {
			ids = append(ids, id)
			names = append(names, fmt.Sprintf("%s (%s)", conn.ConnectedServerName(), conn.ConnectedServerVersion()))
			if cluster := conn.ConnectedClusterName(); !slices.Contains(clusters, cluster) {
				clusters = append(clusters, cluster)
			}
			if takes, needed := conn.MaxPayload(), cfg.MinPayload(); takes < needed {
				k.found("NATS", bad, fmt.Sprintf("%s takes messages of %d bytes, and an order event may have %d", conn.ConnectedServerName(), takes, needed),
					fmt.Sprintf("set max_payload to %d or more in its configuration, or lower --max-body-bytes", needed))
			}
		}
		conn.Close()
	}
	switch {
	case len(ids) == 0:
		return 0
	case len(clusters) > 1:
		k.found("NATS", bad, "the addresses are of several clusters: "+strings.Join(clusters, ", "), "give --nats-url the addresses of one")
		return 0
	case clusters[0] == "" && k.NATS.Replicas > 1:
		k.found("NATS", bad, fmt.Sprintf("%s is no part of a cluster, and cannot keep %d copies", names[0], k.NATS.Replicas), "give its configuration a cluster block, or say --replicas 1")
		return 0
	}
	k.found("NATS", fine, strings.Join(names, ", "), "")
	return len(ids)
}

// jetStream asks for the account's storage.
func (k *checker) jetStream(ctx context.Context, cfg eventlog.Config) bool {
	const mend = "enable JetStream in the servers' configuration (jetstream {}) and for the account, and let the user publish to $JS.API.> and subscribe to _INBOX.>"
	conn, err := natsconn.Connect(ctx, cfg.Cluster.Config, "ordergate check", nil)
	if err != nil {
		k.found("JetStream", bad, err.Error(), "")
		return false
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		k.found("JetStream", bad, err.Error(), mend)
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	account, err := js.AccountInfo(ctx)
	if err != nil {
		k.found("JetStream", bad, "it does not answer: "+err.Error(), mend)
		return false
	}
	limit, status := "without limit of its own", fine
	if most := account.Limits.MaxStore; most > 0 {
		limit = "of " + size(most)
		if account.Store > uint64(most)/10*9 {
			status = warn
		}
	}
	k.found("JetStream", status, fmt.Sprintf("the account takes %s %s", size(int64(account.Store)), limit), "raise the account's max_storage: when it is full, events are refused")
	return true
}

// streams says what is to be changed in the cluster. It reports whether its streams are
// there.
func (k *checker) streams(ctx context.Context, cfg eventlog.Config) bool {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	changes, err := eventlog.Migrate(ctx, cfg, false)
	if err != nil {
		k.found("streams", bad, err.Error(), "")
		return true
	}
	missing := 0
	for _, change := range changes {
		switch {
		case change.New:
			missing++
		case change.Refused != "":
			k.found("streams", bad, fmt.Sprintf("%s: %s", change.Stream, strings.Join(change.Differences, "; ")), "it cannot be changed in place: "+change.Refused)
		default:
			k.found("streams", bad, fmt.Sprintf("%s: %s", change.Stream, strings.Join(change.Differences, "; ")), "give the settings that the other gateways have, or run `ordergate migrate --apply` with these")
		}
	}
	switch {
	case len(changes) == 0:
		k.found("streams", fine, "they are as they must be", "")
	case missing == len(changes):
		k.found("streams", fine, fmt.Sprintf("%d are missing: serve makes them", missing), "")
	}
	return missing == 0
}

// local asks the gateway on this machine, if one runs.
func (k *checker) local(ctx context.Context) {
	get, err := k.adminClient()
	if err != nil {
		return // what is wrong was said with the settings
	}
	if _, _, err := get(ctx, "/readyz"); err != nil {
		return
	}
	k.running = true
	k.askGateway(ctx)
}
