package eventlog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ordergate/ordergate/internal/logtest"
)

const (
	testKey      = "correct horse battery staple correct horse"
	otherTestKey = "another horse battery staple another horse"
)

func testKeys(t *testing.T, lines ...string) Keys {
	t.Helper()
	keys, err := ParseKeys(strings.Join(lines, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// filled is a log with events in several blocks: as it was closed, and as it was
// just before, when it might have been killed.
type filled struct {
	cfg           Config
	clean, killed string
	events        int
}

func fillLog(t *testing.T, keys Keys) filled {
	t.Helper()
	cfg := testConfig(t)
	cfg.Keys = keys
	cfg.Logger = slog.New(slog.DiscardHandler)
	cfg.Sync = func() error { return nil } // no power is cut
	l := openLog(t, cfg)
	f := filled{cfg: cfg, clean: cfg.Dir, killed: t.TempDir()}
	body := bytes.Repeat([]byte("Ada Lovelace, 12 St James's Square. "), 8000)
	for ; !exists(blockOf(cfg.Dir, inboxStream, 3)); f.events++ {
		if _, err := l.AppendInbox(deadline(t), RawEvent{ID: fmt.Sprintf("evt_%d", f.events), Body: body}); err != nil {
			t.Fatal(err)
		}
	}
	appendOrder(t, l, "cs_1", 1, 0)
	if err := l.Bucket(References).Put(deadline(t), "k", []byte("cs_1")); err != nil {
		t.Fatal(err)
	}
	consume(t, l, f.events, true)
	flush(t, l)
	flush(t, l) // what is noted lags one flush behind
	copyDir(t, f.killed, f.clean)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return f
}

func blockOf(dir, stream string, index int) string {
	return filepath.Join(streamsDir(dir), stream, messagesDir, fmt.Sprintf("%d.blk", index))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func copyDir(t *testing.T, to, from string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(to, 0o700); err != nil {
		t.Fatal(err)
	}
}

// change has the bytes of a file changed.
func change(file string, how func([]byte) []byte) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		path := filepath.Join(dir, file)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, how(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func flip(b []byte) []byte    { b[len(b)/2+5000] ^= 1; return b }
func halve(b []byte) []byte   { return b[:len(b)/2-1000] }
func cutEven(b []byte) []byte { return b[:len(b)/2] } // between two events, of which a block has an even number
func empty([]byte) []byte     { return nil }
func zeroEnd(b []byte) []byte { clear(b[len(b)-1000:]); return b }
func garble(b []byte) []byte  { return bytes.Repeat([]byte{0x5a}, len(b)) }
func torn(b []byte) []byte    { return append(b, b[:500]...) }

func remove(file string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		path := filepath.Join(dir, file)
		if _, err := os.Stat(path); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	inboxFiles = "jetstream/$G/streams/INBOX/"
	inboxBlock = inboxFiles + "msgs/%d.blk"
)

// A log that is damaged is refused, and what is damaged is named; what a kill or
// a power cut may leave is not.
func TestDamage(t *testing.T) {
	logs := map[string]filled{"plain": fillLog(t, Keys{}), "encrypted": fillLog(t, testKeys(t, testKey))}
	block := func(index int) string { return fmt.Sprintf(inboxBlock, index) }
	tests := []struct {
		name  string
		spoil func(*testing.T, string)
		want  string // in the error; empty when the log must open, whole
		logs  string // those that are tried
	}{
		{"nothing", func(*testing.T, string) {}, "", "plain encrypted"},
		{"a byte in the first block", change(block(1), flip), "INBOX/msgs/1.blk", "plain"},
		{"a byte in a middle block", change(block(2), flip), "INBOX/msgs/2.blk", "plain encrypted"},
		{"a byte in the newest block", change(block(3), flip), "INBOX/msgs/3.blk", "plain"},
		{"a middle block is cut off", change(block(2), halve), "INBOX/msgs/2.blk", "plain"},
		{"the newest block is cut off", change(block(3), halve), "INBOX", "plain encrypted"},
		{"a middle block is cut off between two events", change(block(2), cutEven), "INBOX", "plain"},
		{"a middle block is empty", change(block(2), empty), "INBOX", "plain"},
		{"the end of the newest block is zero", change(block(3), zeroEnd), "INBOX/msgs/3.blk", "plain"},
		{"the first block is missing", remove(block(1)), "INBOX", "plain"},
		{"a middle block is missing", remove(block(2)), "INBOX", "plain"},
		{"the newest block is missing", remove(block(3)), "INBOX", "plain encrypted"},
		{"no block is left", remove(inboxFiles + "msgs"), "INBOX", "plain"},
		{"a stream is missing", remove(inboxFiles), "INBOX", "plain"},
		{"a description is missing", remove(inboxFiles + "meta.inf"), "stream INBOX: its description", "plain"},
		{"a description is garbled", change(inboxFiles+"meta.inf", garble), "meta.inf does not fit", "plain"},
		{"a description's checksum is missing", remove(inboxFiles + "meta.sum"), "checksum", "plain"},
		{"a bucket's block is missing", remove("jetstream/$G/streams/KV_references/msgs/1.blk"), "KV_references", "plain"},
		{"a bucket's block is garbled", change("jetstream/$G/streams/KV_references/msgs/1.blk", garble), "KV_references", "plain"},
		{"the note is missing", remove(noteFile), noteFile, "plain"},
		{"the note is garbled", change(noteFile, garble), noteFile, "plain"},
		{"a stream's key is missing", remove(inboxFiles + "meta.key"), "meta.key", "encrypted"},
		{"a block's key is missing", remove(inboxFiles + "msgs/2.key"), "INBOX", "encrypted"},
		{"a block's key is garbled", change(inboxFiles+"msgs/2.key", garble), "INBOX", "encrypted"},
		{"the log's key is missing", remove(keyFile), "restore that file", "encrypted"},
		{"the log's key is garbled", change(keyFile, garble), keyFile, "encrypted"},

		{"the index is garbled", change(inboxFiles+"msgs/index.db", garble), "", "plain encrypted"},
		{"the index is missing", remove(inboxFiles + "msgs/index.db"), "", "plain"},
		{"the converter's state is garbled", change(inboxFiles+"obs/converter/o.dat", garble), "", "plain encrypted"},
		{"the converter's state is empty", change(inboxFiles+"obs/converter/o.dat", empty), "", "plain encrypted"},
		{"the converter's description is missing", remove(inboxFiles + "obs/converter/meta.inf"), "", "plain"},
		{"the converter's description is empty", change(inboxFiles+"obs/converter/meta.inf", empty), "", "plain encrypted"},
	}
	for name, log := range logs {
		for _, tt := range tests {
			if !strings.Contains(tt.logs, name) {
				continue
			}
			for how, from := range map[string]string{"closed": log.clean, "killed": log.killed} {
				if how == "killed" && strings.Contains(tt.name, "the index") { // there is none
					continue
				}
				t.Run(name+"/"+how+"/"+tt.name, func(t *testing.T) {
					cfg := log.cfg
					cfg.Dir, cfg.Logger = filepath.Join(t.TempDir(), "log"), logLines(t)
					copyDir(t, cfg.Dir, from)
					tt.spoil(t, cfg.Dir)
					expectOpening(t, cfg, log.events, tt.want)
				})
			}
		}
	}
}

// expectOpening opens a log that must be whole, or fail with an error that says so,
// again and again.
func expectOpening(t *testing.T, cfg Config, events int, want string) {
	t.Helper()
	for round := range 2 {
		l, err := Open(t.Context(), cfg)
		if want != "" {
			if err == nil {
				l.Close()
				t.Fatal("it was opened")
			}
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrKey) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "backup") {
				t.Fatalf("err = %v, want one with %q", err, want)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		appendInbox(t, l, fmt.Sprintf("evt_new%d", round))
		expectEvents(t, l, events+round+1)
		consume(t, l, 0, true) // it can be converted
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func expectEvents(t *testing.T, l *Log, events int) {
	t.Helper()
	found := 0
	for after := uint64(0); ; {
		batch, err := l.ReadInbox(deadline(t), after, 100)
		if err != nil {
			t.Fatal(err)
		}
		if len(batch) == 0 {
			break
		}
		found, after = found+len(batch), batch[len(batch)-1].Sequence
	}
	if found != events {
		t.Errorf("%d events, want %d", found, events)
	}
}

// What a kill in the middle of a write leaves is no damage.
func TestTornTail(t *testing.T) {
	for _, keys := range []Keys{{}, testKeys(t, testKey)} {
		log := fillLog(t, keys)
		for _, stream := range []string{"INBOX/msgs/3", "KV_references/msgs/1"} {
			cfg := log.cfg
			cfg.Dir, cfg.Logger = filepath.Join(t.TempDir(), "log"), logLines(t)
			copyDir(t, cfg.Dir, log.killed)
			change("jetstream/$G/streams/"+stream+".blk", torn)(t, cfg.Dir)
			expectOpening(t, cfg, log.events, "")
		}
	}
}

// A disk that forgets bits leaves no trace in a file's times: the blocks are read
// after opening as well.
func TestRotIsFound(t *testing.T) {
	log := fillLog(t, Keys{})
	cfg := log.cfg
	lines := &logtest.Buffer{}
	cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	change(fmt.Sprintf(inboxBlock, 2), flip)(t, cfg.Dir)
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(blockOf(cfg.Dir, inboxStream, 2), long, long); err != nil {
		t.Fatal(err)
	}
	l := openLog(t, cfg)
	waitFor(t, func() bool {
		return strings.Contains(lines.String(), "the log cannot be opened") && strings.Contains(lines.String(), "2.blk") && strings.Contains(lines.String(), "--accept-damage")
	})
	if err := l.Ready(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Ready = %v", err)
	}
}

// With --accept-damage the log opens with what can be read, and without it from
// then on.
func TestAcceptDamage(t *testing.T) {
	log := fillLog(t, Keys{})
	for _, spoil := range []func(*testing.T, string){
		change(fmt.Sprintf(inboxBlock, 2), flip), remove(fmt.Sprintf(inboxBlock, 2)), remove(fmt.Sprintf(inboxBlock, 3)), remove(noteFile),
	} {
		for _, from := range []string{log.clean, log.killed} {
			cfg := log.cfg
			cfg.Dir, cfg.Logger = filepath.Join(t.TempDir(), "log"), logLines(t)
			copyDir(t, cfg.Dir, from)
			spoil(t, cfg.Dir)
			expectOpening(t, cfg, 0, noteOr(cfg.Dir))
			cfg.AcceptDamage = true
			l := openLog(t, cfg)
			appendInbox(t, l, "evt_new")
			flush(t, l)
			killed := filepath.Join(t.TempDir(), "log")
			copyDir(t, killed, cfg.Dir)
			l.Close()
			cfg.AcceptDamage = false
			for _, cfg.Dir = range []string{cfg.Dir, killed} {
				if l = openLog(t, cfg); !appendInbox(t, l, "evt_new") {
					t.Error("what was stored after the damage is gone")
				}
				l.Close()
			}
		}
	}
}

// noteOr is what an error names at least.
func noteOr(dir string) string {
	if !exists(filepath.Join(dir, noteFile)) {
		return noteFile
	}
	return inboxStream
}

// A power cut in the middle of an opening leaves what an opening writes, and what
// was noted at the end before it still counts.
func TestOpeningThatWasCutOff(t *testing.T) {
	log := fillLog(t, Keys{})
	interrupt := func(cfg Config) {
		t.Helper()
		cfg.Sync = func() error { return errors.New("the power is cut") }
		if _, err := Open(t.Context(), cfg); err == nil {
			t.Fatal("it was opened")
		}
	}
	cfg := log.cfg
	cfg.Dir, cfg.Logger = filepath.Join(t.TempDir(), "log"), logLines(t)
	copyDir(t, cfg.Dir, log.clean)
	interrupt(cfg)
	change("jetstream/$G/streams/KV_state/msgs/1.blk", torn)(t, cfg.Dir)
	expectOpening(t, cfg, log.events, "")

	cfg.Dir = filepath.Join(t.TempDir(), "log")
	copyDir(t, cfg.Dir, log.clean)
	interrupt(cfg)
	change(fmt.Sprintf(inboxBlock, 2), cutEven)(t, cfg.Dir)
	expectOpening(t, cfg, log.events, inboxStream)
}

// Writes and removals that nobody waited for any more when the log was closed are
// no damage: a stop cancels what its callers are in the middle of.
func TestClosedInTheMiddle(t *testing.T) {
	const keys = 2000
	key := func(i int) string { return fmt.Sprintf("%s.%d", []string{"again", "gone"}[i%2], i) }
	for what, begin := range map[string]func(*testing.T, *Log){
		"writing": func(t *testing.T, l *Log) {
			for i := range keys {
				l.Bucket(References).Begin(key(i), []byte("cs_2"))
			}
		},
		"removing": func(t *testing.T, l *Log) {
			e, err := l.current()
			if err != nil {
				t.Fatal(err)
			}
			for i := range keys / 2 {
				filter := fmt.Sprintf(`{"filter":%q}`, keySubject(References, key(2*i+1)))
				if err := e.conn.PublishRequest("$JS.API.STREAM.PURGE."+bucketStream(References), "_INBOX.nobody", []byte(filter)); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			cfg := testConfig(t)
			l := openLog(t, cfg)
			for i := range keys {
				if err := l.Bucket(References).Put(deadline(t), key(i), []byte("cs_1")); err != nil {
					t.Fatal(err)
				}
			}
			flush(t, l)
			begin(t, l)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = openLog(t, cfg) // or it says that it is damaged
			for i := 0; i < keys; i += 2 {
				if _, err := l.Bucket(References).Get(deadline(t), key(i)); err != nil {
					t.Fatal(err)
				}
			}
			l.Close()
		})
	}
}
