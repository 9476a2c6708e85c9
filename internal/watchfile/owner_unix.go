//go:build unix

package watchfile

import (
	"os"
	"syscall"
)

// ownedByRoot reports whether a file is root's.
func ownedByRoot(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stat.Uid == 0
}
