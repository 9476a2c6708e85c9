package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/ordergate/ordergate/internal/archive"
	"github.com/ordergate/ordergate/internal/sample"
)

func noProgress(uint64, uint64) {}

// quietConfig is for logs that are opened and closed often, and whose power is not
// cut.
func quietConfig(dir string, keys Keys) Config {
	return Config{
		Dir: dir, InboxMaxAge: 35 * 24 * time.Hour, OrdersMaxAge: 400 * 24 * time.Hour, MaxEventBytes: 1 << 20, Keys: keys,
		Logger: slog.New(slog.DiscardHandler), Sync: func() error { return nil },
	}
}

// usedLog fills a log with all that a log may hold, holes and removed ends too, and
// leaves it open.
func usedLog(t *testing.T, cfg Config) *Log {
	t.Helper()
	l := openLog(t, cfg)
	for i := range 8 {
		if i == 5 {
			consume(t, l, 5, true)
		}
		appendInbox(t, l, fmt.Sprintf("evt_%d", i))
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(l.EraseInbox(deadline(t), "evt_2", []byte(`{"erased":true}`)))
	first := appendOrder(t, l, "cs_1", 1, 0)
	gone := appendOrder(t, l, "cs_2", 1, 0)
	second := appendOrder(t, l, "cs_1", 2, first)
	gone = appendOrder(t, l, "cs_2", 2, gone)
	flush(t, l)
	if n, err := l.EraseOrderEvents(deadline(t), "cs_2", gone); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	appendOrder(t, l, "cs_1", 3, second)
	for i := range 5 {
		must(l.Bucket(Places).Put(deadline(t), "shipping", fmt.Appendf(nil, "place %d", i)))
		must(l.Bucket(Waiting).Put(deadline(t), fmt.Sprintf("pi_%d", i), []byte("evt_1")))
	}
	must(l.Bucket(Subscriptions).Put(deadline(t), "shipping", []byte("settings")))
	must(l.Bucket(Subscriptions).Put(deadline(t), "gone", []byte("settings")))
	must(l.Bucket(Subscriptions).Delete(deadline(t), "gone"))
	must(l.Bucket(ParkedEvents).Put(deadline(t), "evt_1", bytes.Repeat([]byte("parked"), 1000)))
	must(l.Bucket(Waiting).Forget(deadline(t), "pi_2"))
	must(l.Bucket(Waiting).Forget(deadline(t), "pi_4")) // the newest: its sequence stays taken
	must(l.Bucket(PendingItems).Put(deadline(t), "cs_1", []byte("x")))
	must(l.Bucket(PendingItems).Forget(deadline(t), "cs_1")) // all there was
	_, err := l.Bucket(References).Claim(deadline(t), "pi", []byte("cs_1"))
	must(err)
	flush(t, l)
	return l
}

// dumped is a stream as it is stored.
type dumped struct {
	First, Last, Messages uint64
	Metadata              map[string]string
	Subjects              uint64
	Converted             uint64
	Stored                []storedMessage
}

type storedMessage struct {
	Subject  string
	Sequence uint64
	Time     time.Time
	Header   nats.Header
	Data     string
}

// dump reads all that is stored. What each opening writes anew is left out.
func dump(t *testing.T, l *Log) map[string]dumped {
	t.Helper()
	e, err := l.current()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]dumped{}
	for name := range archivedStreams(Config{}) {
		stream, err := e.js.Stream(deadline(t), name)
		if err != nil {
			t.Fatal(err)
		}
		info := stream.CachedInfo()
		d := dumped{First: max(info.State.FirstSeq, 1), Last: info.State.LastSeq, Messages: info.State.Msgs, Subjects: info.State.NumSubjects}
		if id := info.Config.Metadata[metadataID]; id != "" {
			d.Metadata = map[string]string{metadataID: id, metadataFormat: info.Config.Metadata[metadataFormat]}
		}
		if name == inboxStream {
			state, err := l.InboxState(deadline(t))
			if err != nil {
				t.Fatal(err)
			}
			d.Converted = state.Converted
		}
		for sequence := max(info.State.FirstSeq, 1); sequence <= info.State.LastSeq; sequence++ {
			m, err := stream.GetMsg(deadline(t), sequence)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, added := range []string{"Sequence", "Stream", "Subject", "Time-Stamp"} { // by a direct read
				m.Header.Del("Nats-" + added)
			}
			if len(m.Header) == 0 {
				m.Header = nil
			}
			d.Stored = append(d.Stored, storedMessage{m.Subject, m.Sequence, m.Time, m.Header, string(m.Data)})
		}
		if name == bucketStream(State) {
			d.First, d.Last = 0, 0
			// It may have been written again meanwhile, and was not read then.
			d.Stored = slices.DeleteFunc(append([]storedMessage{}, d.Stored...), func(m storedMessage) bool { return m.Subject == keySubject(State, openedKey) })
		}
		all[name] = d
	}
	return all
}

func export(t *testing.T, l *Log) ([]byte, Figures) {
	t.Helper()
	var out bytes.Buffer
	figures, err := l.Export(deadline(t), &out, "v0", noProgress)
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), figures
}

// A log that moves is the same log, in plaintext or encrypted: every sequence, time
// and header, what is missing, and what comes next.
func TestMoveHouse(t *testing.T) {
	t.Parallel()
	l := usedLog(t, quietConfig(t.TempDir(), Keys{}))
	want := dump(t, l)
	if d := want[bucketStream(Waiting)]; d.Last != 5 || d.Messages != 3 || want[ordersStream].Messages != 4 || want[inboxStream].Converted == 0 {
		t.Fatalf("the log has not what this test is about: %+v", want)
	}
	for step, keys := range []Keys{{}, testKeys(t, testKey), {}} {
		exported, wrote := export(t, l)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		cfg := quietConfig(filepath.Join(t.TempDir(), "new"), keys)
		read, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress)
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if read != wrote || wrote.Events != 8 || wrote.Orders != 2 || wrote.OrderEvents != 4 || wrote.Subscriptions != 1 {
			t.Errorf("step %d: wrote %+v, read %+v", step, wrote, read)
		}
		if keys != (Keys{}) {
			cfg.Keys = Keys{}
			if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrKey) {
				t.Errorf("without the key: %v", err)
			}
			cfg.Keys = keys
		}
		l = openLog(t, cfg)
		if diff := cmp.Diff(want, dump(t, l)); diff != "" {
			t.Errorf("step %d: (-before +after)\n%s", step, diff)
		}
	}

	state, err := l.OrdersState(deadline(t))
	if err != nil || state.LogID != want[ordersStream].Metadata[metadataID] {
		t.Errorf("the log is %+v (%v)", state, err)
	}
	for i := range 8 {
		if !appendInbox(t, l, fmt.Sprintf("evt_%d", i)) {
			t.Errorf("evt_%d is new", i)
		}
	}
	if next := appendOrder(t, l, "cs_1", 4, 5); next != 6 {
		t.Errorf("the next order event is %d, want 6", next)
	}
	if ids := consume(t, l, 4, true); !slices.Equal(ids, []string{"evt_5", "evt_6", "evt_7", "evt_2"}) { // the last is a tombstone
		t.Errorf("to be converted: %v", ids)
	}
	if err := l.Bucket(Waiting).Put(deadline(t), "pi_9", nil); err != nil {
		t.Fatal(err)
	}
	if last := dump(t, l)[bucketStream(Waiting)].Last; last != 6 {
		t.Errorf("the next entry of a bucket is %d, want 6", last)
	}
	// A gateway brings the ages back.
	e, _ := l.current()
	if info, err := streamInfo(deadline(t), e.inbox); err != nil || info.Config.MaxAge != 35*24*time.Hour {
		t.Errorf("events are kept for %v (%v)", info.Config.MaxAge, err)
	}
	flush(t, l)

	// A kill after all that is none of damage.
	killed := t.TempDir()
	copyDir(t, killed, l.cfg.Dir)
	l.Close()
	openLog(t, quietConfig(killed, Keys{}))
}

// An import removes nothing for its age.
func TestImportOfAnOldBackup(t *testing.T) {
	t.Parallel()
	l := usedLog(t, quietConfig(t.TempDir(), Keys{}))
	exported, _ := export(t, l)
	l.Close()
	cfg := quietConfig(t.TempDir(), Keys{})
	cfg.wall = func() time.Time { return time.Now().Add(100 * 24 * time.Hour) }
	figures, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress)
	if err != nil || figures.Events != 8 {
		t.Errorf("%+v, %v", figures, err)
	}
}

func TestExportLeavesTheLogAsItIs(t *testing.T) {
	t.Parallel()
	cfg := quietConfig(t.TempDir(), testKeys(t, testKey))
	l := usedLog(t, cfg)
	want := dump(t, l)
	l.Close()
	cfg.AsIs = true
	l = openLog(t, cfg)
	export(t, l)
	l.Close()
	if diff := cmp.Diff(want, dump(t, openLog(t, cfg))); diff != "" {
		t.Errorf("(-before +after)\n%s", diff)
	}
}

// An empty log moves too.
func TestMoveAnEmptyLog(t *testing.T) {
	t.Parallel()
	l := openLog(t, quietConfig(t.TempDir(), Keys{}))
	want := dump(t, l)
	exported, _ := export(t, l)
	cfg := quietConfig(t.TempDir(), Keys{})
	if _, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress); err != nil {
		t.Fatal(err)
	}
	l = openLog(t, cfg)
	if diff := cmp.Diff(want, dump(t, l)); diff != "" {
		t.Errorf("(-before +after)\n%s", diff)
	}
	if next := appendOrder(t, l, "cs_1", 1, 0); next != 1 {
		t.Errorf("the first order event is %d", next)
	}
}

// What cannot be used is refused, says why, and leaves nothing.
func TestImportRefuses(t *testing.T) {
	t.Parallel()
	l := usedLog(t, quietConfig(t.TempDir(), Keys{}))
	exported, _ := export(t, l)
	l.Close()
	half := len(exported) / 2
	for name, tt := range map[string]struct {
		change func([]byte) []byte
		want   error
		says   string
	}{
		"nothing":      {func(b []byte) []byte { return nil }, archive.ErrInvalid, "cut off"},
		"another file": {func(b []byte) []byte { return bytes.Repeat([]byte("age-encryption.org/v1"), 100) }, archive.ErrInvalid, "does not begin like one"},
		"newer":        {func(b []byte) []byte { return bytes.Replace(b, []byte("archive 1\n"), []byte("archive 2\n"), 1) }, archive.ErrNewer, "later one"},
		"cut off":      {func(b []byte) []byte { return b[:half] }, archive.ErrInvalid, ""},
		"end missing":  {func(b []byte) []byte { return b[:len(b)-1] }, archive.ErrInvalid, "cut off"},
		"end changed":  {func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, archive.ErrInvalid, "digest"},
		"bit flipped":  {func(b []byte) []byte { b[half] ^= 8; return b }, archive.ErrInvalid, ""},
		"two":          {func(b []byte) []byte { return append(b, b...) }, archive.ErrInvalid, "follows its end"},
		"id changed": {func(b []byte) []byte {
			return bytes.Replace(b, []byte("ordergate.format"), []byte("ordergate.formaz"), 1)
		}, nil, ""}, // is nowhere: unchanged
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			cfg := quietConfig(filepath.Join(parent, "new"), testKeys(t, testKey))
			_, err := Import(deadline(t), cfg, bytes.NewReader(tt.change(slices.Clone(exported))), noProgress)
			if !errors.Is(err, tt.want) || tt.want == nil && err != nil || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("err = %v, want %v with %q", err, tt.want, tt.says)
			}
			if left, _ := os.ReadDir(parent); tt.want != nil && len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

// forge writes an archive as nobody does, with checksums that fit.
func forge(t *testing.T, change func(name string, s *archive.Stream, messages []archive.Message) []archive.Message) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := archive.NewWriter(&out, archive.Header{LogID: "log"})
	if err != nil {
		t.Fatal(err)
	}
	for name, subject := range map[string]string{inboxStream: "inbox.evt_1", ordersStream: "orders.cs_1", bucketStream(Places): "$KV.places.shipping"} {
		s := archive.Stream{Name: name, ID: "log", Format: strconv.Itoa(format)}
		messages := change(name, &s, []archive.Message{{Subject: subject, Sequence: 7, Time: 1e18, Payload: []byte("x")}})
		if s.Name == "" {
			continue
		}
		if err := w.Begin(s); err != nil {
			t.Fatal(err)
		}
		contents := archive.Contents{First: 7, Last: 9, Messages: uint64(len(messages))}
		snapshot, err := archive.NewSnapshotWriter(w, contents, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			contents.Bytes += uint64(len(m.Subject) + len(m.Header) + len(m.Payload))
			if err := snapshot.Write(&m); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(snapshot.Close(), w.End(contents)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// An archive with checksums that fit is not believed either.
func TestImportRefusesForgeries(t *testing.T) {
	t.Parallel()
	in := func(stream string, change func(s *archive.Stream, m []archive.Message) []archive.Message) func(string, *archive.Stream, []archive.Message) []archive.Message {
		return func(name string, s *archive.Stream, m []archive.Message) []archive.Message {
			if name != stream {
				return m
			}
			return change(s, m)
		}
	}
	subject := func(subject string) func(*archive.Stream, []archive.Message) []archive.Message {
		return func(_ *archive.Stream, m []archive.Message) []archive.Message { m[0].Subject = subject; return m }
	}
	for name, tt := range map[string]struct {
		change func(string, *archive.Stream, []archive.Message) []archive.Message
		says   string // empty is no error
	}{
		"as it is":           {in("", nil), ""},
		"a stream too many":  {in(ordersStream, func(s *archive.Stream, m []archive.Message) []archive.Message { s.Name = "../../etc"; return m }), "does not know"},
		"a stream missing":   {in(inboxStream, func(s *archive.Stream, m []archive.Message) []archive.Message { s.Name = ""; return m }), "INBOX is not in it"},
		"a bucket missing":   {in(bucketStream(Places), func(s *archive.Stream, m []archive.Message) []archive.Message { s.Name = ""; return m }), ""},
		"another format":     {in(inboxStream, func(s *archive.Stream, m []archive.Message) []archive.Message { s.Format = "9"; return m }), `format "9"`},
		"another log":        {in(ordersStream, func(s *archive.Stream, m []archive.Message) []archive.Message { s.ID = "other"; return m }), "has the id"},
		"a foreign subject":  {in(inboxStream, subject("orders.cs_1")), "subject"},
		"a wildcard":         {in(bucketStream(Places), subject("$KV.places.>")), "subject"},
		"another bucket":     {in(bucketStream(Places), subject("$KV.state.x")), "subject"},
		"an id with a slash": {in(ordersStream, subject("orders.../x")), "subject"},
		"two of one event": {in(inboxStream, func(_ *archive.Stream, m []archive.Message) []archive.Message {
			m = append(m, m[0])
			m[1].Sequence = 8
			return m
		}), "the engine took 1"},
		"one that expires": {in(inboxStream, func(_ *archive.Stream, m []archive.Message) []archive.Message {
			m[0].Header = []byte("NATS/1.0\r\nNats-TTL: 1s\r\n\r\n")
			return m
		}), "the engine took 0"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := quietConfig(t.TempDir(), Keys{})
			_, err := Import(deadline(t), cfg, bytes.NewReader(forge(t, tt.change)), noProgress)
			if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("err = %v, want %q", err, tt.says)
			}
			if err == nil {
				openLog(t, cfg)
			} else if left, _ := os.ReadDir(cfg.Dir); len(left) != 1 { // its lock
				t.Errorf("%v is left", left)
			}
		})
	}
}

func TestImportIntoAUsedDirectory(t *testing.T) {
	t.Parallel()
	cfg := quietConfig(t.TempDir(), Keys{})
	l := usedLog(t, cfg)
	exported, _ := export(t, l)
	if _, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress); !errors.Is(err, ErrLocked) {
		t.Errorf("a log that is open: %v", err)
	}
	want := dump(t, l)
	l.Close()
	if _, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("a log: %v", err)
	}
	if diff := cmp.Diff(want, dump(t, openLog(t, cfg))); diff != "" {
		t.Errorf("the log in the way was changed: %s", diff)
	}
}

// Whenever an import is killed, what it leaves is not opened, and another one ends as
// if nothing had been there.
func TestKilledImport(t *testing.T) {
	t.Parallel()
	l := usedLog(t, quietConfig(t.TempDir(), Keys{}))
	want := dump(t, l)
	exported, _ := export(t, l)
	l.Close()
	keys := testKeys(t, testKey)
	cfg := quietConfig(t.TempDir(), keys)
	var left []string
	kill := func() {
		dir := t.TempDir()
		copyLive(t, dir, cfg.Dir)
		left = append(left, dir)
	}
	cfg.Sync = func() error { kill(); return nil }
	if _, err := Import(deadline(t), cfg, bytes.NewReader(exported), func(done, _ uint64) {
		if done%8 == 1 {
			kill()
		}
	}); err != nil {
		t.Fatal(err)
	}
	if len(left) < 8 {
		t.Errorf("only %d moments were looked at", len(left))
	}
	for i, dir := range left {
		cfg := quietConfig(dir, keys)
		if l, err := Open(t.Context(), cfg); !errors.Is(err, ErrUnfinished) {
			if err == nil {
				l.Close()
			}
			t.Errorf("killed at %d: %v", i, err)
		}
		if i%7 != 0 {
			continue
		}
		if _, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress); err != nil {
			t.Errorf("again after %d: %v", i, err)
			continue
		}
		l := openLog(t, cfg)
		if diff := cmp.Diff(want, dump(t, l)); diff != "" {
			t.Errorf("again after %d: %s", i, diff)
		}
		l.Close()
	}
}

// copyLive copies a directory while files come and go in it.
func copyLive(t *testing.T, to, from string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		target := filepath.Join(to, strings.TrimPrefix(path, from))
		switch {
		case err != nil:
		case entry.IsDir():
			return os.MkdirAll(target, 0o700)
		default:
			var content []byte
			if content, err = os.ReadFile(path); err == nil {
				return os.WriteFile(target, content, 0o600)
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// An import that is told to stop leaves nothing.
func TestStoppedImport(t *testing.T) {
	t.Parallel()
	l := usedLog(t, quietConfig(t.TempDir(), Keys{}))
	exported, _ := export(t, l)
	l.Close()
	ctx, cancel := context.WithCancel(deadline(t))
	defer cancel()
	cfg := quietConfig(filepath.Join(t.TempDir(), "new"), Keys{})
	_, err := Import(ctx, cfg, bytes.NewReader(exported), func(done, _ uint64) {
		if done == 10 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	if exists(cfg.Dir) {
		t.Error("the directory is left")
	}
}

// Whichever flush fails, an import fails, and leaves nothing.
func TestImportOnADiskThatFails(t *testing.T) {
	t.Parallel()
	l := usedLog(t, quietConfig(t.TempDir(), Keys{}))
	exported, _ := export(t, l)
	l.Close()
	for good := 0; ; good++ {
		cfg := quietConfig(filepath.Join(t.TempDir(), "new"), Keys{})
		var flushes atomic.Int64
		cfg.Sync = func() error {
			if flushes.Add(1) == int64(good)+1 {
				return io.ErrShortWrite
			}
			return nil
		}
		_, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress)
		if flushes.Load() <= int64(good) {
			if err != nil || good < 6 {
				t.Errorf("without a failure, after %d flushes: %v", good, err)
			}
			return
		}
		if err == nil || exists(cfg.Dir) {
			t.Errorf("flush %d failed: %v, and something is left: %v", good+1, err, exists(cfg.Dir))
		}
	}
}

// A log of which something cannot be read is not exported as if it were whole.
func TestExportOfADamagedLog(t *testing.T) {
	t.Parallel()
	log := fillLog(t, Keys{})
	cfg := quietConfig(log.clean, Keys{})
	l := openLog(t, cfg)
	change(fmt.Sprintf(inboxBlock, 1), flip)(t, log.clean) // under its feet
	if _, err := l.Export(deadline(t), io.Discard, "v0", noProgress); err == nil {
		t.Error("it was exported")
	}
}

// A person who looks for a passphrase does not end an export or an import, although
// the engine waits for nobody longer than five seconds.
func TestPatience(t *testing.T) {
	if testing.Short() {
		t.Skip("takes six seconds")
	}
	t.Parallel()
	const pause = 6 * time.Second
	source := quietConfig(t.TempDir(), Keys{})
	l := openLog(t, source)
	body := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{})
	for i := range 12 { // more than the engine sends without an answer
		random.Read(body)
		if _, err := l.AppendInbox(deadline(t), RawEvent{ID: fmt.Sprintf("evt_%d", i), Body: body}); err != nil {
			t.Fatal(err)
		}
	}
	exported, _ := export(t, l)
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() {
		var slow bytes.Buffer
		if _, err := l.Export(deadline(t), &pausing{Writer: &slow, at: 1 << 20, pause: pause}, "v0", noProgress); err != nil || slow.Len() < 12<<20 {
			t.Errorf("%d bytes were exported: %v", slow.Len(), err)
		}
	})
	both.Go(func() {
		in := &pausing{Reader: bytes.NewReader(exported), at: 6 << 20, pause: pause}
		if f, err := Import(deadline(t), quietConfig(t.TempDir(), Keys{}), in, noProgress); err != nil || f.Events != 12 {
			t.Errorf("%+v were imported: %v", f, err)
		}
	})
}

// pausing pauses once, when a number of bytes has passed.
type pausing struct {
	io.Reader
	io.Writer
	at    int
	pause time.Duration
}

func (p *pausing) passed(n int) {
	if p.at -= n; p.at < 0 && p.pause > 0 {
		<-time.After(p.pause) // what is tested is this
		p.pause = 0
	}
}

func (p *pausing) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.passed(n)
	return n, err
}

func (p *pausing) Write(b []byte) (int, error) {
	p.passed(len(b))
	return p.Writer.Write(b)
}

// BenchmarkMove exports and imports a log of events as large as Stripe's are.
func BenchmarkMove(b *testing.B) {
	const events = 20000
	cfg := quietConfig(b.TempDir(), Keys{})
	l, err := Open(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var senders errgroup.Group
	senders.SetLimit(256)
	for i := range events {
		story, err := sample.Story(sample.Completed, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		senders.Go(func() error {
			_, err := l.AppendInbox(b.Context(), RawEvent{ID: fmt.Sprintf("evt_%d", i), Body: story[0].Body})
			return err
		})
	}
	if err := senders.Wait(); err != nil {
		b.Fatal(err)
	}
	var exporting, importing time.Duration
	var size int
	for b.Loop() {
		var out bytes.Buffer
		began := time.Now()
		if _, err := l.Export(b.Context(), &out, "v0", noProgress); err != nil {
			b.Fatal(err)
		}
		exporting += time.Since(began)
		size = out.Len()
		began = time.Now()
		if _, err := Import(b.Context(), quietConfig(b.TempDir(), Keys{}), &out, noProgress); err != nil {
			b.Fatal(err)
		}
		importing += time.Since(began)
	}
	each := float64(b.N * events)
	b.ReportMetric(float64(exporting.Nanoseconds())/each, "ns/exported")
	b.ReportMetric(float64(importing.Nanoseconds())/each, "ns/imported")
	b.ReportMetric(float64(size)/events, "B/event")
}
