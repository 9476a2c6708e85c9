//go:build unix

package natscluster

import (
	"testing"

	"github.com/nats-io/nats-server/v2/server"
)

// Single starts one server with JetStream within this process, for tests that need no
// quorum, and returns its address. It ends with the test.
func Single(t testing.TB) string {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, MaxPayload: maxPayload})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(startTimeout) {
		t.Fatal("the NATS server does not start")
	}
	return s.ClientURL()
}
