package eventlog

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ordergate/ordergate/internal/logtest"
)

// smallDisk mounts a file system of a few megabytes.
func smallDisk(t *testing.T, bytes int) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Skipf("a small file system cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// On a full disk nothing is acknowledged; once there is space, the log goes on
// by itself, and everything that was acknowledged is there.
func TestFullDisk(t *testing.T) {
	cfg := testConfig(t)
	cfg.Dir = smallDisk(t, 6<<20)
	lines := &logtest.Buffer{}
	cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	l := openLog(t, cfg)
	filler := filepath.Join(cfg.Dir, "filler")
	body := bytes.Repeat([]byte("x"), 4000)
	var acknowledged []string
	var refused error
	for i := 0; refused == nil; i++ {
		id := fmt.Sprintf("evt_%d", i)
		if _, refused = l.AppendInbox(deadline(t), RawEvent{ID: id, Body: body}); refused == nil {
			acknowledged = append(acknowledged, id)
		}
		if i == 20 {
			fillDisk(t, filler)
		}
	}
	if !errors.Is(refused, ErrUnavailable) || len(acknowledged) < 20 {
		t.Fatalf("%d acknowledged, then %v", len(acknowledged), refused)
	}
	waitFor(t, func() bool { return l.Ready() != nil })
	if _, err := l.AppendInbox(deadline(t), RawEvent{ID: "evt_during", Body: body}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("while the disk is full: %v", err)
	}

	// It cannot be opened either, as long as there is no space.
	waitFor(t, func() bool { return strings.Contains(lines.String(), "the log cannot be opened") })

	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return l.Ready() == nil })
	for _, id := range acknowledged {
		if !appendInbox(t, l, id) {
			t.Errorf("%s was acknowledged and is gone", id)
		}
	}
	appendInbox(t, l, "evt_after")
}

func fillDisk(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for {
		if _, err := f.Write(make([]byte, 64<<10)); err != nil {
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			return
		}
	}
}

// Nobody else can read a file of the log, whatever the umask.
func TestModes(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	log := fillLog(t, testKeys(t, testKey))
	err := filepath.WalkDir(log.clean, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == log.clean { // which is the test's
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A directory that cannot be written to is an error at once, and says so.
func TestReadOnlyDirectory(t *testing.T) {
	cfg := testConfig(t)
	cfg.Dir = smallDisk(t, 6<<20)
	l := openLog(t, cfg)
	appendInbox(t, l, "evt_1")
	l.Close()
	if err := unix.Mount("", cfg.Dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Skipf("a file system cannot be made read-only here: %v", err)
	}
	if _, err := Open(t.Context(), cfg); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), cfg.Dir) {
		t.Errorf("err = %v", err)
	}
}
