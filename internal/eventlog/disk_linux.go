package eventlog

import (
	"os"

	"golang.org/x/sys/unix"
)

// diskSpace returns how large the disk of a directory is, and how much of it the
// process can still use, in bytes.
func diskSpace(dir *os.File) (free, total uint64, err error) {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &stat); err != nil {
		return 0, 0, err
	}
	return stat.Bavail * uint64(stat.Bsize), stat.Blocks * uint64(stat.Bsize), nil
}
