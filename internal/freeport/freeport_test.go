package freeport_test

import (
	"net"
	"testing"

	"github.com/ordergate/ordergate/internal/freeport"
)

// A server listens on a reserved port as often as it is started; in between nobody
// answers there.
func TestAddrs(t *testing.T) {
	addrs := freeport.Addrs(t, 100)
	different := map[string]bool{}
	for _, addr := range addrs {
		different[addr] = true
	}
	if len(different) != len(addrs) {
		t.Errorf("%d ports are only %d", len(addrs), len(different))
	}
	for range 3 {
		if conn, err := net.Dial("tcp", addrs[0]); err == nil {
			conn.Close()
			t.Fatal("somebody is there")
		}
		listener, err := net.Listen("tcp", addrs[0])
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", addrs[0])
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		listener.Close()
	}
}
