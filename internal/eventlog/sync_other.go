//go:build !linux

package eventlog

import (
	"errors"
	"os"
)

// syncEachMessage: without syncfs the engine syncs each message before it
// acknowledges it, and there is nothing left to flush.
const syncEachMessage = true

func syncFilesystem(*os.File) error { return nil }

func dropPageCache(string) error { return nil }

// DiskOf is not known here.
func DiskOf(string) (Disk, error) { return Disk{}, errors.ErrUnsupported }
