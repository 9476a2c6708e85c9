package main

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

var errNoSpace error = unix.ENOSPC

// mountSmall mounts a file system of so many bytes, where that is possible.
func mountSmall(t *testing.T, dir string, bytes int) bool {
	t.Helper()
	if os.Geteuid() != 0 {
		return false
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Logf("a small file system cannot be mounted here: %v", err)
		return false
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return true
}
