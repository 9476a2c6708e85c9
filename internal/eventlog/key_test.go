package eventlog

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ordergate/ordergate/internal/logtest"
)

func TestParseKeys(t *testing.T) {
	for content, want := range map[string]Keys{
		testKey: {current: testKey},
		"# made today\n\n  " + testKey + "  \r\n": {current: testKey},
		testKey + "\n" + otherTestKey + "\n":      {current: testKey, previous: otherTestKey},
	} {
		if got, err := ParseKeys(content); err != nil || got != want {
			t.Errorf("%q: %v, %v", content, got, err)
		}
	}
	for _, content := range []string{"", "# nothing\n", "short", testKey + "\nshort", testKey + "\n" + otherTestKey + "\n" + testKey, strings.Repeat("x", maxKeyLength+1)} {
		if _, err := ParseKeys(content); err == nil || strings.Contains(err.Error(), "horse") {
			t.Errorf("%.50q: err = %v, want one that tells no key", content, err)
		}
	}
}

// A log opens with its key only, and the refusal says what to do, changes
// nothing, and is none of damage.
func TestKeyOfTheLog(t *testing.T) {
	cfg := testConfig(t)
	expect := func(keys Keys, want string) {
		t.Helper()
		cfg.Keys = keys
		l, err := Open(t.Context(), cfg)
		if want != "" {
			if err == nil {
				l.Close()
			}
			if !errors.Is(err, ErrKey) || errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "horse") {
				t.Errorf("err = %v, want one with %q, and without a key", err, want)
			}
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		defer l.Close()
		if !appendInbox(t, l, "evt_1") {
			t.Error("the event is gone")
		}
		consume(t, l, 0, false)
	}
	first, second := testKeys(t, testKey), testKeys(t, otherTestKey)
	cfg.Keys = first
	l := openLog(t, cfg)
	appendInbox(t, l, "evt_1")
	l.Close()

	expect(first, "")
	expect(Keys{}, "is missing")
	expect(second, "does not fit")
	expect(testKeys(t, otherTestKey, testKey), "") // replaced
	expect(first, "does not fit")
	expect(second, "") // the previous one is not needed any more
	expect(testKeys(t, testKey, otherTestKey), "")
	expect(first, "")
	if err := os.Remove(filepath.Join(cfg.Dir, keyFile)); err != nil {
		t.Fatal(err)
	}
	expect(first, "restore that file")
	expect(Keys{}, "restore that file")
}

// A log in plaintext is not encrypted afterwards.
func TestKeyForALogInPlaintext(t *testing.T) {
	cfg := testConfig(t)
	l := openLog(t, cfg)
	appendInbox(t, l, "evt_1")
	l.Close()
	cfg.Keys = testKeys(t, testKey)
	if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), "plaintext") {
		t.Errorf("err = %v", err)
	}
	cfg.Keys = Keys{}
	if l = openLog(t, cfg); !appendInbox(t, l, "evt_1") {
		t.Error("the event is gone")
	}
}

// With a key, nothing that was stored can be read in any file; without one, it
// can: else this test would find nothing.
func TestNothingIsInPlaintext(t *testing.T) {
	for _, keys := range []Keys{{}, testKeys(t, testKey)} {
		log := fillLog(t, keys)
		for _, dir := range []string{log.clean, log.killed} {
			for _, secret := range []string{"Ada Lovelace", "St James's Square", "evt_1", "cs_1", testKey} {
				found := filesWith(t, dir, secret)
				if want := keys == (Keys{}) && secret != testKey; (len(found) > 0) != want {
					t.Errorf("encrypted %v: %q is in %v", keys != Keys{}, secret, found)
				}
			}
		}
	}
}

// filesWith returns the files below dir that hold a text, or have it in their names.
func filesWith(t *testing.T, dir, text string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(text)) || strings.Contains(path[len(dir):], text) {
			found = append(found, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A directory that others can look into is told of.
func TestSharedDirectory(t *testing.T) {
	for mode, want := range map[os.FileMode]bool{0o700: false, 0o750: true, 0o701: true} {
		cfg := testConfig(t)
		lines := &logtest.Buffer{}
		cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
		if err := os.Chmod(cfg.Dir, mode); err != nil {
			t.Fatal(err)
		}
		openLog(t, cfg)
		if got := strings.Contains(lines.String(), "chmod 700 "+cfg.Dir); got != want {
			t.Errorf("%v: warned %v", mode, got)
		}
	}
}
