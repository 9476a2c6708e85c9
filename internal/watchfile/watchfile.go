// Package watchfile keeps what a program knows in step with small files, such as
// access lists, certificates and secrets, without a restart.
//
// It promises that a half-written file is not taken for a whole one, and that
// what cannot be used changes nothing.
package watchfile

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"
)

const (
	// lookInterval is how often files are looked at.
	lookInterval = time.Second
	// maxFileBytes bounds a file.
	maxFileBytes = 4 << 20
)

// Files are files that belong together. They are small: each look reads them,
// which finds every change, also one within the resolution of the file system's
// clock. Read and Watch are for one goroutine at a time.
type Files struct {
	paths []string

	used, seen [sha256.Size]byte // digests of what was used last, and of the last look
}

// New returns files that have not been read yet.
func New(paths ...string) *Files { return &Files{paths: paths} }

// Path returns the place of file i.
func (f *Files) Path(i int) string { return f.paths[i] }

// Read returns the files' contents, to be used now.
func (f *Files) Read() ([][]byte, error) {
	contents, digest, err := f.look()
	f.used, f.seen = digest, digest
	return contents, err
}

func (f *Files) look() (contents [][]byte, digest [sha256.Size]byte, err error) {
	hash := sha256.New()
	for _, path := range f.paths {
		content, err := readFile(path)
		if err != nil {
			return nil, digest, err
		}
		binary.Write(hash, binary.BigEndian, int64(len(content))) // a hash takes everything
		hash.Write(content)
		contents = append(contents, content)
	}
	return contents, [sha256.Size]byte(hash.Sum(nil)), nil
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if err == nil && len(content) > maxFileBytes {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxFileBytes)
	}
	return content, err
}

// WarnIfShared tells the log when what others must not see, or change, is in a
// file, or a directory, that they can read or write.
//
// A file of root's may be read by its group: so Kubernetes hands over a Secret, and
// systemd a credential, and so root keeps a file that the gateway must not change.
func WarnIfShared(logger *slog.Logger, what, path string) {
	info, err := os.Stat(path)
	if err != nil {
		return
	}
	tooMuch := os.FileMode(0o077)
	if info.Mode().IsRegular() && os.Geteuid() != 0 && ownedByRoot(info) {
		tooMuch = 0o037
	}
	if info.Mode().Perm()&tooMuch == 0 {
		return
	}
	mend := "chmod 600 " + path
	if info.IsDir() {
		mend = "chmod 700 " + path
	}
	logger.Warn(what+" can be read or written by others than its owner", "file", path, "mode", info.Mode().Perm().String(), "mend", mend)
}

// Watch has changed contents used until ctx ends. What cannot be used is logged
// once, and what was used before stays.
//
// Contents are used when two looks in a row found the same: a file that is being
// written, or the first of two, is not taken for the whole.
func (f *Files) Watch(ctx context.Context, logger *slog.Logger, use func([][]byte) error) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	var unreadable string
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		contents, digest, err := f.look()
		if err != nil {
			if err.Error() != unreadable {
				logger.Error("a file cannot be read: what it said before still counts", "error", err)
			}
			unreadable = err.Error()
			continue
		}
		unreadable = ""
		settled := digest == f.seen
		f.seen = digest
		if !settled || digest == f.used {
			continue
		}
		f.used = digest
		if err := use(contents); err != nil {
			logger.Error("a changed file cannot be used: what it said before still counts", "error", err)
		}
	}
}
