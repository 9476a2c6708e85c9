//go:build unix && !linux

package natscluster

import (
	"net"
	"os/exec"
	"syscall"
)

// EndWithThis keeps a Ctrl-C that is meant for this process from a command. On Linux
// it has it killed when this process dies, too.
func EndWithThis(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}

// reservePorts returns ports that were free a moment ago. Nothing keeps others from
// them: then a node ends, and says so.
func reservePorts(n int) (ports []int, release func(), err error) {
	for range n {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			return nil, nil, err
		}
		defer l.Close() // all at the end, so that no port comes twice
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, func() {}, nil
}
