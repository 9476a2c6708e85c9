package auth

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

// watchedFiles are files that belong together. They are small: each look reads
// them, which finds every change, also one within the resolution of the file
// system's clock.
type watchedFiles struct {
	paths []string

	used, seen [sha256.Size]byte // digests of what was used last, and of the last look
}

// read returns the files' contents, to be used now.
func (f *watchedFiles) read() ([][]byte, error) {
	contents, digest, err := f.look()
	f.used, f.seen = digest, digest
	return contents, err
}

func (f *watchedFiles) look() (contents [][]byte, digest [sha256.Size]byte, err error) {
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

// watch has changed contents used until ctx ends. What cannot be used is logged
// once, and what was used before stays.
//
// Contents are used when two looks in a row found the same: a file that is being
// written, or the first of two, is not taken for the whole.
func (f *watchedFiles) watch(ctx context.Context, logger *slog.Logger, use func([][]byte) error) {
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
