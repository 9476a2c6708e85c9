package eventlog

import (
	"crypto/sha256"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// contents are the hashes of all files in a directory. That of the lock is left
// out: it is empty, and may be new.
func contents(t *testing.T, dir string) map[string][sha256.Size]byte {
	t.Helper()
	files := map[string][sha256.Size]byte{}
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || entry.Name() == "LOCK" {
			return err
		}
		content, err := os.ReadFile(path)
		files[path] = sha256.Sum256(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// A log in another format is refused, with which version to use, before anything
// in it is changed: no message, no limit, no bucket, no note.
func TestOtherFormat(t *testing.T) {
	for name, test := range map[string]struct {
		stream string
		set    map[string]string
		keys   Keys
		want   string
	}{
		"newer":        {stream: ordersStream, set: map[string]string{metadataFormat: "2"}, want: `is in format "2", this version of ordergate reads 1: use the newer version that wrote it, or a later one; nothing in it was changed`},
		"newer, named": {stream: ordersStream, set: map[string]string{metadataFormat: "3", metadataReader: "v1.4.0"}, want: `is in format "3", this version of ordergate reads 1: use v1.4.0 or later; `},
		"only INBOX":   {stream: inboxStream, set: map[string]string{metadataFormat: "2"}, want: `is in format "2"`},
		"older":        {stream: ordersStream, set: map[string]string{metadataFormat: "0"}, want: `is in format "0", this version of ordergate reads 1: use the version that wrote it; `},
		"unknown":      {stream: ordersStream, set: map[string]string{metadataFormat: "two"}, want: `is in format "two", this version of ordergate reads 1: use the version that wrote it; `},
		"encrypted":    {stream: ordersStream, set: map[string]string{metadataFormat: "2", metadataReader: "v1.4.0"}, keys: testKeys(t, testKey), want: "use v1.4.0 or later; "},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.Keys = test.keys
			l := openLog(t, cfg)
			appendInbox(t, l, "evt_1")
			appendInbox(t, l, "evt_2")
			appendOrder(t, l, "cs_1", 1, 0)
			if err := l.Bucket(References).Put(deadline(t), "k", []byte("cs_1")); err != nil {
				t.Fatal(err)
			}
			consume(t, l, 1, true)
			e, err := l.current()
			if err != nil {
				t.Fatal(err)
			}
			stream, err := e.js.Stream(deadline(t), test.stream)
			if err != nil {
				t.Fatal(err)
			}
			changed := stream.CachedInfo().Config
			for key, value := range test.set {
				changed.Metadata[key] = value
			}
			if _, err := e.js.UpdateStream(deadline(t), changed); err != nil {
				t.Fatal(err)
			}
			flush(t, l)
			killed := t.TempDir()
			copyDir(t, killed, cfg.Dir)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}

			cfg.InboxMaxAge, cfg.OrdersMaxAge = 40*24*time.Hour, 300*24*time.Hour
			for _, dir := range []string{cfg.Dir, killed} {
				before := contents(t, dir)
				for _, try := range []func(*Config){
					func(*Config) {},
					func(c *Config) { c.AsIs = true },
					func(c *Config) { c.AcceptDamage = true },
					func(c *Config) { // the operator changes the key, too
						if c.Keys.current != "" {
							c.Keys = testKeys(t, otherTestKey, testKey)
						}
					},
				} {
					cfg := cfg
					cfg.Dir = dir
					try(&cfg)
					l, err := Open(t.Context(), cfg)
					if err == nil {
						l.Close()
					}
					if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), dir) {
						t.Errorf("err = %v, want %s", err, test.want)
					}
					if diff := cmp.Diff(before, contents(t, dir)); diff != "" {
						t.Fatalf("the log was changed:\n%s", diff)
					}
				}
			}
		})
	}
}

// What a later version adds beside what is known here does not keep this one from
// reading the log.
func TestUnknownMetadata(t *testing.T) {
	cfg := testConfig(t)
	l := openLog(t, cfg)
	appendInbox(t, l, "evt_1")
	e, err := l.current()
	if err != nil {
		t.Fatal(err)
	}
	changed := e.inbox.CachedInfo().Config
	changed.Metadata["ordergate.later"] = "x"
	if _, err := e.js.UpdateStream(deadline(t), changed); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if !appendInbox(t, openLog(t, cfg), "evt_1") {
		t.Error("the event is gone")
	}
}

// So it is with what is behind the known parts of the header of an order event.
func TestLongerHeader(t *testing.T) {
	var want, got OrderRecord
	header := encodeHeader(orderEvent("cs_1", 1))
	want.decodeHeader(header)
	got.decodeHeader(header + ",x,y")
	if want.Account != "acct_1" || !cmp.Equal(want, got, cmp.AllowUnexported(OrderRecord{}), cmpopts.IgnoreTypes(atomic.Value{})) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// A KEY of a later version is not called a wrong key.
func TestOtherKeyFormat(t *testing.T) {
	cfg := testConfig(t)
	cfg.Keys = testKeys(t, testKey)
	openLog(t, cfg).Close()
	change(keyFile, func(b []byte) []byte {
		return []byte(strings.Replace(string(b), keyFormat, keyName+"2 ", 1))
	})(t, cfg.Dir)
	before := contents(t, cfg.Dir)
	_, err := Open(t.Context(), cfg)
	if err == nil || !strings.Contains(err.Error(), "use the version that wrote") || strings.Contains(err.Error(), "does not fit") {
		t.Errorf("err = %v", err)
	}
	if diff := cmp.Diff(before, contents(t, cfg.Dir)); diff != "" {
		t.Error(diff)
	}
}
