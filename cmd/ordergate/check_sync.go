package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/natsconn"
)

const (
	// jetStreamInfo is the subject that every server answers with its JetStream
	// configuration, to users of the system account only.
	jetStreamInfo = "$SYS.REQ.SERVER.PING.JSZ"
	// syncAnswers is how long servers have to answer.
	syncAnswers = time.Second
	// maxServers bounds the answers that are read.
	maxServers = 100

	syncHint = "set sync_interval: always in the jetstream block of each server"
)

// copies warns of events that are kept once.
func (k *checker) copies() {
	if k.NATS.Replicas == 1 {
		k.found("replicas", warn, "--replicas 1 keeps each event on one server: if that server or its disk is lost, every event and order on it is lost",
			"use three servers and --replicas 3")
	}
}

// syncs warns of servers that acknowledge events before they are on disk.
func (k *checker) syncs(ctx context.Context, cfg eventlog.Config) {
	const consequence = "acknowledged events are lost if most servers lose power within that time, and Stripe does not send them again"
	conn, err := natsconn.Connect(ctx, cfg.Cluster.Config, "ordergate check", nil)
	if err != nil {
		return // reported for each server
	}
	defer conn.Close()
	intervals, err := syncIntervals(conn)
	switch {
	case err != nil || len(intervals) == 0:
		k.found("sync_interval", warn, "it cannot be read with this user; with NATS's default of 2 minutes, "+consequence, syncHint)
	default:
		late := slices.DeleteFunc(intervals, func(s syncInterval) bool { return s.always })
		if len(late) == 0 {
			k.found("sync_interval", fine, "always", "")
			return
		}
		var names []string
		for _, s := range late {
			names = append(names, fmt.Sprintf("%v on %s", s.interval, s.server))
		}
		k.found("sync_interval", warn, strings.Join(names, ", ")+": "+consequence, syncHint)
	}
}

// syncInterval is the setting of a server.
type syncInterval struct {
	server   string
	always   bool
	interval time.Duration
}

// syncIntervals asks all servers for their sync_interval. The result is empty if the user may not
// ask.
func syncIntervals(conn *nats.Conn) (intervals []syncInterval, err error) {
	conn.SetErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}) // the default one prints that the user may not ask
	inbox := conn.NewInbox()
	answers, err := conn.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer answers.Unsubscribe()
	if err := conn.PublishRequest(jetStreamInfo, inbox, nil); err != nil {
		return nil, err
	}
	for len(intervals) < maxServers {
		message, err := answers.NextMsg(syncAnswers)
		if err != nil {
			return intervals, nil // no more answers, or none: no responders, no permission
		}
		var answer struct {
			Server struct{ Name string }
			Data   *struct {
				Config struct {
					SyncInterval time.Duration `json:"sync_interval"`
					SyncAlways   bool          `json:"sync_always"`
				}
			}
		}
		if json.Unmarshal(message.Data, &answer) != nil || answer.Data == nil {
			continue
		}
		intervals = append(intervals, syncInterval{answer.Server.Name, answer.Data.Config.SyncAlways, answer.Data.Config.SyncInterval})
	}
	return intervals, nil
}
