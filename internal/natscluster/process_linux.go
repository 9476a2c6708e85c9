package natscluster

import (
	"os/exec"
	"syscall"
)

// EndWithThis has a command's process killed when this process dies, however that
// happens, and keeps a Ctrl-C that is meant for this one from it. The command must not
// be started by a goroutine that is locked to its thread and ends: the kernel goes by
// the thread.
func EndWithThis(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
