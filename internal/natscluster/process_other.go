//go:build unix && !linux

package natscluster

import (
	"os/exec"
	"syscall"
)

// EndWithThis keeps a Ctrl-C that is meant for this process from a command. On Linux
// it has it killed when this process dies, too.
func EndWithThis(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
}
