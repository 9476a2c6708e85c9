package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// small is an archive of a few messages.
func small(t testing.TB) []byte {
	t.Helper()
	var out bytes.Buffer
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w, err := NewWriter(&out, Header{Version: "v0", Created: time.Unix(1764100000, 0).UTC(), LogID: "log", Messages: 3})
	must(err)
	for i, messages := range [][]Message{
		{{"inbox.evt_1", 3, 1e18, []byte("NATS/1.0\r\nA: b\r\n\r\n"), []byte("one")}, {"inbox.evt_2", 5, 1e18 + 1, nil, []byte("two")}},
		{{"orders.cs_1", 1, 1e18, nil, nil}},
		nil,
	} {
		must(w.Begin(Stream{Name: fmt.Sprint("stream", i), ID: "id"}))
		c := Contents{First: 1, Last: 9, Messages: uint64(len(messages))}
		if len(messages) == 0 {
			c = Contents{}
		}
		s, err := NewSnapshotWriter(w, c, []Consumer{{Name: "converter", Config: struct{}{}, AckedConsumer: 2, AckedStream: min(c.Last, 3)}})
		must(err)
		for _, m := range messages {
			must(s.Write(&m))
			c.Bytes += uint64(len(m.Subject) + len(m.Header) + len(m.Payload))
		}
		must(s.Close())
		if len(messages) > 0 {
			c.First = messages[0].Sequence
		}
		must(w.End(c))
	}
	must(w.Close())
	return out.Bytes()
}

// readAll reads a whole archive.
func readAll(in io.Reader) (header Header, streams []Stream, consumers []Consumer, messages []Message, err error) {
	r, err := NewReader(in)
	if err != nil {
		return
	}
	header = r.Header
	for {
		var s Stream
		if s, err = r.Next(); err == io.EOF {
			return header, streams, consumers, messages, nil
		} else if err != nil {
			return
		}
		streams = append(streams, s)
		var snapshot *Snapshot
		if snapshot, err = NewSnapshot(r); err != nil {
			return
		}
		consumers = append(consumers, snapshot.Consumers...)
		for {
			var m *Message
			if m, err = snapshot.Next(); err == io.EOF {
				break
			} else if err != nil {
				return
			}
			messages = append(messages, Message{m.Subject, m.Sequence, m.Time, bytes.Clone(m.Header), bytes.Clone(m.Payload)})
		}
		if err = r.End(snapshot.Contents()); err != nil {
			return
		}
	}
}

func TestWhatIsReadIsWhatWasWritten(t *testing.T) {
	header, streams, consumers, messages, err := readAll(bytes.NewReader(small(t)))
	if err != nil {
		t.Fatal(err)
	}
	if want := (Header{"v0", time.Unix(1764100000, 0).UTC(), "log", 3}); header != want {
		t.Errorf("header %+v, want %+v", header, want)
	}
	if want := []Stream{{"stream0", "id", ""}, {"stream1", "id", ""}, {"stream2", "id", ""}}; !slices.Equal(streams, want) {
		t.Errorf("streams %v", streams)
	}
	if want := []Consumer{{"converter", nil, 2, 3}, {"converter", nil, 2, 3}, {"converter", nil, 2, 0}}; !slices.Equal(consumers, want) {
		t.Errorf("consumers %v", consumers)
	}
	want := []Message{
		{"inbox.evt_1", 3, 1e18, []byte("NATS/1.0\r\nA: b\r\n\r\n"), []byte("one")},
		{"inbox.evt_2", 5, 1e18 + 1, nil, []byte("two")},
		{"orders.cs_1", 1, 1e18, nil, nil},
	}
	if diff := cmp.Diff(want, messages, cmp.Transformer("text", func(b []byte) string { return string(b) })); diff != "" {
		t.Error(diff)
	}
}

// Every byte of an archive counts.
func TestEveryByteCounts(t *testing.T) {
	whole := small(t)
	for i := range whole {
		if _, _, _, _, err := readAll(bytes.NewReader(whole[:i])); !errors.Is(err, ErrInvalid) {
			t.Errorf("cut off at %d of %d: %v", i, len(whole), err)
		}
		changed := bytes.Clone(whole)
		changed[i] ^= 1 << (i % 8)
		if _, _, _, _, err := readAll(bytes.NewReader(changed)); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNewer) {
			t.Errorf("bit %d of byte %d of %d changed: %v", i%8, i, len(whole), err)
		}
	}
	if _, _, _, _, err := readAll(bytes.NewReader(append(whole, 0))); !errors.Is(err, ErrInvalid) {
		t.Errorf("one more byte: %v", err)
	}
}

// An error of the reader below is not taken for one of the archive.
func TestReadErrorsAreNoneOfTheArchive(t *testing.T) {
	whole := small(t)
	for i := 0; i < len(whole); i += 7 {
		_, _, _, _, err := readAll(io.MultiReader(bytes.NewReader(whole[:i]), failing{}))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("failing at %d of %d: %v", i, len(whole), err)
		}
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// Padding may come between any two writes.
func TestPadding(t *testing.T) {
	var out bytes.Buffer
	w, err := NewSnapshotWriter(writerFunc(func(p []byte) (int, error) {
		n, err := out.Write(p)
		out.Write(Padding)
		return n, err
	}), Contents{First: 1, Last: 300, Messages: 300}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		if err := w.Write(&Message{Subject: "a", Sequence: uint64(i + 1), Time: 1, Payload: make([]byte, 1+i*i*50)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := NewSnapshot(&out)
	for err == nil {
		_, err = s.Next()
	}
	if err != io.EOF || s.Contents().Messages != 300 {
		t.Errorf("%v, %+v", err, s.Contents())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// The archives of earlier versions are read: this one was written by the first.
func TestEarlierVersions(t *testing.T) {
	content, err := os.ReadFile(filepath.Join("testdata", "v1.archive"))
	if err != nil {
		t.Fatal(err)
	}
	if _, streams, _, messages, err := readAll(bytes.NewReader(content)); err != nil || len(streams) != 11 || len(messages) == 0 {
		t.Errorf("%d streams, %d messages: %v", len(streams), len(messages), err)
	}
}

func FuzzReader(f *testing.F) {
	f.Add(small(f))
	f.Add([]byte(magic + version + "\nH\x00\x00\x00\x02{}S\x00\x00\x00\x02{}D\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, content []byte) {
		_, streams, _, messages, err := readAll(bytes.NewReader(content))
		if err == nil && (len(streams) > maxStreams || len(messages) > len(content)) {
			t.Errorf("%d streams and %d messages of %d bytes", len(streams), len(messages), len(content))
		}
		if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNewer) {
			t.Errorf("an error that says nothing of the archive: %v", err)
		}
	})
}

func FuzzSnapshot(f *testing.F) {
	// What a fuzzer changes is inside of the S2 stream, where no checksum is.
	f.Add([]byte("NATSARC1\x0a\x00\x00\x00\x02state.json{}\x00\x00\x00\x00\x00"))
	f.Add([]byte("NATSARC1\x0a\x00\x00\x00\x2fstate.json{\"messages\":1,\"first_seq\":1,\"last_seq\":9000000}\x01\x02\x05\x00\x01ax\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, content []byte) {
		var compressed bytes.Buffer
		b := newBlockWriter(&compressed)
		if _, err := b.Write(content); err != nil {
			t.Fatal(err)
		}
		s, err := NewSnapshot(&compressed)
		var last uint64
		for err == nil {
			var m *Message
			if m, err = s.Next(); err != nil {
				break
			}
			if m.Sequence <= last || m.Sequence > maxSequence || len(m.Subject) > maxSubject || m.Subject == "" {
				t.Errorf("%+v behind %d", m, last)
			}
			last = m.Sequence
		}
		if err != io.EOF && !errors.Is(err, ErrInvalid) {
			t.Errorf("an error that says nothing of the archive: %v", err)
		}
	})
}

// A manifest that says something else than what is there is refused, although its
// digest fits.
func TestManifestMustFit(t *testing.T) {
	for name, end := range map[string]Contents{
		"as it is":      {First: 1, Last: 1, Messages: 1, Bytes: 2},
		"more messages": {First: 1, Last: 1, Messages: 2, Bytes: 2},
		"another end":   {First: 1, Last: 2, Messages: 1, Bytes: 2},
		"more bytes":    {First: 1, Last: 1, Messages: 1, Bytes: 3},
	} {
		var out bytes.Buffer
		w, err := NewWriter(&out, Header{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Begin(Stream{Name: "a"}); err != nil {
			t.Fatal(err)
		}
		s, err := NewSnapshotWriter(w, Contents{First: 1, Last: 1, Messages: 1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(s.Write(&Message{Subject: "a", Sequence: 1, Time: 1, Payload: []byte("x")}), s.Close(), w.End(end), w.Close()); err != nil {
			t.Fatal(err)
		}
		if _, _, _, _, err := readAll(&out); name == "as it is" && err != nil || name != "as it is" && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
