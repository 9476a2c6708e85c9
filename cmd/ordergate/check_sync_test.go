//go:build unix

package main

import (
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/ordergate/ordergate/internal/natscluster"
)

// The check of a cluster warns of one copy and of an unknown sync_interval.
func TestCheckWarnsOfLoss(t *testing.T) {
	t.Setenv("STRIPE_WEBHOOK_SECRET", "whsec_"+"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	out, _ := checked(t, "--nats-url", natscluster.Single(t), "--replicas", "1")
	wants(t, out,
		`warn  replicas +--replicas 1 keeps each event on one server: .* is lost$`,
		`warn  sync_interval +it cannot be read with this user; .* lose power within that time`,
		` +mend: set sync_interval: always in the jetstream block of each server$`)
}

// A user of the system account reads the setting of the servers.
func TestSyncIntervals(t *testing.T) {
	for _, always := range []bool{false, true} {
		system := server.NewAccount("SYS")
		s, err := server.NewServer(&server.Options{
			ServerName: "nats-1", Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true,
			SyncAlways: always, SyncInterval: 2 * time.Minute,
			Accounts: []*server.Account{system}, SystemAccount: "SYS",
			Users: []*server.User{{Username: "operator", Password: "secret", Account: system}},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() {
			s.Shutdown()
			s.WaitForShutdown()
		})
		if !s.ReadyForConnections(30 * time.Second) {
			t.Fatal("the NATS server does not start")
		}
		conn, err := nats.Connect(s.ClientURL(), nats.UserInfo("operator", "secret"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		got, err := syncIntervals(conn)
		if want := (syncInterval{"nats-1", always, 2 * time.Minute}); err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
}
