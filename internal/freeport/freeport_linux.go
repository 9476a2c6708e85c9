package freeport

import (
	"os"
	"syscall"
)

// Reserve returns n free ports of 127.0.0.1. Until release is called, the kernel
// gives them to nobody who does not ask for them by number: not to another listener,
// and not to an outgoing connection. A socket that is bound and does not listen keeps
// them, and stands in no listener's way that says SO_REUSEADDR, as Go's do.
func Reserve(n int) (ports []int, release func(), err error) {
	var sockets []int
	release = func() {
		for _, s := range sockets {
			syscall.Close(s)
		}
	}
	for range n {
		s, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			release()
			return nil, nil, os.NewSyscallError("socket", err)
		}
		sockets = append(sockets, s)
		port, err := bind(s)
		if err != nil {
			release()
			return nil, nil, err
		}
		ports = append(ports, port)
	}
	return ports, release, nil
}

func bind(socket int) (port int, err error) {
	if err := syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return 0, os.NewSyscallError("setsockopt", err)
	}
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return 0, os.NewSyscallError("bind", err)
	}
	address, err := syscall.Getsockname(socket)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	return address.(*syscall.SockaddrInet4).Port, nil
}
