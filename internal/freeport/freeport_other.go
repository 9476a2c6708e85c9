//go:build !linux

package freeport

import "net"

// Reserve returns n ports of 127.0.0.1 that were free a moment ago. Nothing keeps
// others from them, and release does nothing.
func Reserve(n int) (ports []int, release func(), err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, nil, err
		}
		defer l.Close() // all at the end, so that no port comes twice
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, func() {}, nil
}
