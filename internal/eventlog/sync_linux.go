package eventlog

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// syncEachMessage: one syncfs covers everything that waits, so the engine need
// not sync each message.
const syncEachMessage = false

// syncFilesystem flushes the file system that holds dir. It is one call for any
// number of files; since Linux 5.8 it reports write errors, once per
// descriptor.
func syncFilesystem(dir *os.File) error {
	return os.NewSyscallError("syncfs", unix.Syncfs(int(dir.Fd())))
}

// DiskOf returns how full the disk is that holds dir.
func DiskOf(dir string) (Disk, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return Disk{}, os.NewSyscallError("statfs", err)
	}
	return Disk{Free: stat.Bavail * uint64(stat.Bsize), Total: stat.Blocks * uint64(stat.Bsize)}, nil
}

// dropPageCache makes the kernel forget its clean pages of the files below
// dir. After a failed flush it may hold pages that never reached the disk and
// calls them clean: what is read afterwards must come from the disk.
func dropPageCache(dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist), err == nil && !entry.Type().IsRegular():
			return nil
		case errors.Is(err, fs.ErrPermission) && entry.IsDir() && path != dir: // lost+found, of a new file system
			return fs.SkipDir
		}
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return os.NewSyscallError("fadvise", unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
	})
}
