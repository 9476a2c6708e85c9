// Package freeport finds ports for servers that are started as processes, stopped and
// started again: a port that is merely free may be somebody else's by then.
package freeport

import (
	"fmt"
	"testing"
)

// Addrs reserves ports until the test ends, and returns their addresses.
func Addrs(t testing.TB, n int) []string {
	t.Helper()
	ports, release, err := Reserve(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	addrs := make([]string, n)
	for i, port := range ports {
		addrs[i] = fmt.Sprintf("127.0.0.1:%d", port)
	}
	return addrs
}
