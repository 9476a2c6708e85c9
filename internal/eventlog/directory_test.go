package eventlog

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// After the data directory is removed or replaced, nothing is acknowledged and the log is not ready;
// no new log takes its place. When the directory is back, all is well.
func TestDirectoryGone(t *testing.T) {
	for name, remove := range map[string]func(dir, aside string) error{
		"moved away": os.Rename,
		"replaced": func(dir, aside string) error {
			return errors.Join(os.Rename(dir, aside), os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, lockFile), nil, 0o600))
		},
		"lock replaced": func(dir, aside string) error {
			return errors.Join(os.Mkdir(aside, 0o700), os.Rename(filepath.Join(dir, lockFile), filepath.Join(aside, lockFile)), os.WriteFile(filepath.Join(dir, lockFile), nil, 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			dir, aside := filepath.Join(root, "data"), filepath.Join(root, "aside")
			cfg := testConfig(t)
			cfg.Dir = dir
			l := openLog(t, cfg)
			if _, err := l.AppendInbox(deadline(t), RawEvent{ID: "evt_1", Body: []byte("{}")}); err != nil {
				t.Fatal(err)
			}
			if err := remove(dir, aside); err != nil {
				t.Fatal(err)
			}
			eventuallyTrue(t, func() bool { return l.Ready() != nil }) // directoryInterval bounds the time
			if _, err := l.AppendInbox(deadline(t), RawEvent{ID: "evt_2", Body: []byte("{}")}); !errors.Is(err, ErrUnavailable) {
				t.Errorf("an event was acknowledged: %v", err)
			}
			if name != "moved away" {
				return
			}
			if err := os.Rename(aside, dir); err != nil {
				t.Fatal(err)
			}
			eventuallyTrue(t, func() bool { return l.Ready() == nil })
			if duplicate, err := l.AppendInbox(deadline(t), RawEvent{ID: "evt_1", Body: []byte("{}")}); err != nil || !duplicate {
				t.Errorf("the first event is gone: %v, %v", duplicate, err)
			}
		})
	}
}

func eventuallyTrue(t *testing.T, done func() bool) {
	t.Helper()
	ctx := deadline(t)
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatal("it did not happen in time")
		case <-time.After(10 * time.Millisecond):
		}
	}
}
