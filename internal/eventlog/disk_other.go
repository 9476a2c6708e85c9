//go:build !linux

package eventlog

import (
	"errors"
	"os"
)

func diskSpace(*os.File) (free, total uint64, err error) { return 0, 0, errors.ErrUnsupported }
