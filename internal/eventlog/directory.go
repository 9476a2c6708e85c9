package eventlog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// directoryInterval is the time between two checks that the data directory is still there.
const directoryInterval = 250 * time.Millisecond

// errDirectoryGone means that the data directory was removed, or replaced by another one. Files
// that are open can still be written, and are lost with the process.
var errDirectoryGone = errors.New("the data directory was removed or replaced")

// directoryCheck returns a function that reports whether the data directory at its path, and the
// lock file in it, are still those of now. Both are open, so that no other file can have their
// identity.
func directoryCheck(path string) (func() error, error) {
	paths := []string{path, filepath.Join(path, lockFile)}
	var held []os.FileInfo
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		held = append(held, info)
	}
	return func() error {
		for i, path := range paths {
			there, err := os.Stat(path)
			if err != nil {
				return fmt.Errorf("%w: %w", errDirectoryGone, err)
			}
			if !os.SameFile(there, held[i]) {
				return fmt.Errorf("%w: %s is another file than the one that is open", errDirectoryGone, path)
			}
		}
		return nil
	}, nil
}
