package watchfile

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// record is what was used and logged since the last look at it.
type record struct {
	mu   sync.Mutex
	log  bytes.Buffer
	used []string
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *record) use(contents [][]byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	text := string(bytes.Join(contents, []byte(",")))
	r.used = append(r.used, text)
	if strings.Contains(text, "bad") {
		return errors.New("it is bad")
	}
	return nil
}

// Files are used when two looks found the same; what cannot be used or read is
// logged once, and changes nothing.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, "1")
	write(t, b, "2")
	synctest.Test(t, func(t *testing.T) {
		files := New(a, b)
		if files.Path(1) != b {
			t.Error(files.Path(1))
		}
		if contents, err := files.Read(); err != nil || string(bytes.Join(contents, []byte(","))) != "1,2" {
			t.Fatalf("%s, %v", contents, err)
		}
		var r record
		ctx, cancel := context.WithCancel(t.Context())
		go files.Watch(ctx, slog.New(slog.NewTextHandler(&r, nil)), r.use)
		time.Sleep(lookInterval / 2) // apart from the looks, of which there is one a second
		after := func(looks int, want string, errorLines int) {
			t.Helper()
			time.Sleep(time.Duration(looks) * lookInterval)
			synctest.Wait()
			r.mu.Lock()
			defer r.mu.Unlock()
			if got := strings.Join(r.used, " "); got != want {
				t.Errorf("used %q, want %q", got, want)
			}
			if got := strings.Count(r.log.String(), "level=ERROR"); got != errorLines {
				t.Errorf("%d errors, want %d:\n%s", got, errorLines, r.log.String())
			}
			r.used = nil
			r.log.Reset()
		}
		after(5, "", 0)
		write(t, a, "new")
		after(1, "", 0)
		write(t, b, "pair")
		after(1, "", 0)
		after(3, "new,pair", 0)
		// What is in one file does not move to the other.
		write(t, a, "newp")
		write(t, b, "air")
		after(3, "newp,air", 0)
		write(t, a, "bad")
		after(5, "bad,air", 1)
		os.Remove(b)
		after(5, "", 1)
		write(t, b, "back")
		write(t, a, "good")
		after(3, "good,back", 0)
		write(t, a, strings.Repeat("x", maxFileBytes+1))
		after(3, "", 1)
		cancel()
	})
}

func TestReadProblems(t *testing.T) {
	if _, err := New(filepath.Join(t.TempDir(), "none")).Read(); err == nil {
		t.Error("a missing file is read")
	}
}

// Only what others can see or change is warned of. What root hands over is tried
// in .ci/image, which has another user.
func TestWarnIfShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secret")
	write(t, path, "x")
	for mode, want := range map[os.FileMode]bool{0o600: false, 0o400: false, 0o640: true, 0o604: true, 0o660: true} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		WarnIfShared(slog.New(slog.NewTextHandler(&log, nil)), "the secret", path)
		if got := strings.Contains(log.String(), "chmod 600"); got != want {
			t.Errorf("mode %v: %q, want a warning: %v", mode, log.String(), want)
		}
	}
}
