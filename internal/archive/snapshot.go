package archive

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"github.com/klauspost/compress/s2"
	natsarchive "github.com/nats-io/nats-server/v2/server/archive"
)

// A snapshot is what JetStream (2.15 and later) makes of a stream: an S2 stream of
// entries, which are the state, consumers, messages in the order of their sequences,
// and an empty one. See nats-server's stream_backup.go.
const (
	stateName      = "state.json"
	consumerPrefix = "consumers/"

	maxState     = 1 << 20
	maxConsumer  = 4 << 20
	maxConsumers = 64
	maxSubject   = 1024
	maxHeaders   = 64 << 10
	maxPayload   = 32 << 20
	// maxSequence is no stream's, and far from the bits for which the engine has other uses.
	maxSequence = 1 << 48

	headerBegin = "NATS/1.0\r\n"
	headerEnd   = "\r\n\r\n"

	// outBlock is how much of a snapshot is written at once, and more for a large
	// message.
	outBlock = 256 << 10
	// readBlock is what a block of S2 is expected to hold; a larger one may come.
	readBlock = 64 << 10
)

// Consumer is how far a durable consumer of a stream is.
type Consumer struct {
	Name string
	// Config is the consumer's configuration, as JetStream's API has it. It is not read.
	Config any
	// AckedConsumer and AckedStream are the sequences up to which everything was
	// acknowledged: as the consumer counts, and as the stream does.
	AckedConsumer, AckedStream uint64
}

// Message is a message of a stream. Its bytes are good until the next one is read.
type Message struct {
	Subject  string
	Sequence uint64
	Time     int64 // nanoseconds since 1970
	Header   []byte
	Payload  []byte
}

// state is what JetStream says of a stream.
type state struct {
	Messages  uint64 `json:"messages"`
	First     uint64 `json:"first_seq"`
	Last      uint64 `json:"last_seq"`
	Consumers int    `json:"consumer_count"`
}

// place is how far a consumer is, and consumerEntry what is said of one.
type place struct {
	Consumer uint64 `json:"consumer_seq"`
	Stream   uint64 `json:"stream_seq"`
}

type consumerEntry struct {
	Config any `json:"config"`
	State  struct {
		Delivered place `json:"delivered"`
		AckFloor  place `json:"ack_floor"`
	} `json:"state"`
}

// Snapshot reads a snapshot.
type Snapshot struct {
	// Consumers are those of the stream.
	Consumers []Consumer

	source  *source
	entries *natsarchive.Reader
	state   state
	found   Contents
	last    uint64 // sequence that was read
	body    bytes.Buffer
}

// NewSnapshot reads what is before the messages.
func NewSnapshot(in io.Reader) (*Snapshot, error) {
	s := &Snapshot{source: &source{in: in}}
	s.entries = natsarchive.NewReader(s2.NewReader(s.source, s2.ReaderAllocBlock(readBlock)))
	if _, err := s.json(maxState, &s.state, func(name string) bool { return name == stateName }); err != nil {
		return nil, err
	}
	st := s.state
	if st.Last > maxSequence || st.First > st.Last+1 || st.First == 0 && st.Last > 0 || st.Messages > st.Last+min(1, st.First)-st.First {
		return nil, invalid("a stream has %d messages, from %d to %d", st.Messages, st.First, st.Last)
	}
	if st.Consumers < 0 || st.Consumers > maxConsumers {
		return nil, invalid("a stream has %d consumers", st.Consumers)
	}
	for range st.Consumers {
		var c consumerEntry
		name, err := s.json(maxConsumer, &c, func(name string) bool { return strings.HasPrefix(name, consumerPrefix) })
		if err != nil {
			return nil, err
		}
		acked := c.State.AckFloor
		if acked.Stream > st.Last || acked.Consumer > maxSequence {
			return nil, invalid("a consumer is at %d, and its stream ends at %d", acked.Stream, st.Last)
		}
		s.Consumers = append(s.Consumers, Consumer{Name: name[len(consumerPrefix):], AckedConsumer: acked.Consumer, AckedStream: acked.Stream})
	}
	s.found = Contents{First: st.First, Last: st.Last}
	return s, nil
}

// json reads an entry that is JSON, and returns its name.
func (s *Snapshot) json(most int64, into any, named func(string) bool) (name string, err error) {
	entry, err := s.entries.Next()
	if err != nil {
		return "", s.broken(err)
	}
	if !named(entry.Name) || entry.HeaderSize != 0 || entry.PayloadSize > most {
		return "", invalid("a snapshot has %.40q where something else belongs", entry.Name)
	}
	if err := s.read(entry.PayloadSize); err != nil {
		return "", err
	}
	if err := json.Unmarshal(s.body.Bytes(), into); err != nil {
		return "", invalid("%.40q in it cannot be read: %v", entry.Name, err)
	}
	return entry.Name, nil
}

// read reads what an entry holds.
func (s *Snapshot) read(size int64) error {
	s.body.Reset()
	if _, err := io.CopyN(&s.body, s.entries, size); err != nil {
		return s.broken(err)
	}
	return nil
}

// Next returns the next message, and io.EOF at the end of a whole snapshot.
func (s *Snapshot) Next() (*Message, error) {
	entry, err := s.entries.Next()
	if err != nil {
		return nil, s.broken(err)
	}
	if *entry == (natsarchive.Header{}) {
		switch _, err := s.entries.Next(); {
		case err == nil:
			return nil, invalid("something follows the end of a snapshot")
		case err != io.EOF:
			return nil, s.broken(err)
		}
		return nil, io.EOF
	}
	switch {
	case entry.Sequence <= s.last || entry.Sequence < s.state.First || entry.Sequence > s.state.Last || s.found.Messages == s.state.Messages:
		return nil, invalid("message %d does not belong behind %d", entry.Sequence, s.last)
	case entry.Name == "" || len(entry.Name) > maxSubject || entry.Timestamp <= 0 || entry.HeaderSize > maxHeaders || entry.PayloadSize > maxPayload:
		return nil, invalid("message %d cannot be one", entry.Sequence)
	}
	if err := s.read(entry.HeaderSize + entry.PayloadSize); err != nil {
		return nil, err
	}
	m := &Message{Subject: entry.Name, Sequence: entry.Sequence, Time: entry.Timestamp,
		Header: s.body.Bytes()[:entry.HeaderSize], Payload: s.body.Bytes()[entry.HeaderSize:]}
	if len(m.Header) > 0 && !(bytes.HasPrefix(m.Header, []byte(headerBegin)) && bytes.HasSuffix(m.Header, []byte(headerEnd))) {
		return nil, invalid("the headers of message %d cannot be read", m.Sequence)
	}
	if s.found.Messages == 0 {
		s.found.First = m.Sequence
	}
	s.last = m.Sequence
	s.found.Messages++
	s.found.Bytes += uint64(len(m.Subject) + s.body.Len())
	return m, nil
}

// Announced returns what the snapshot says of itself before its messages.
func (s *Snapshot) Announced() Contents {
	return Contents{First: s.state.First, Last: s.state.Last, Messages: s.state.Messages}
}

// Contents returns what was read. It is complete when Next has returned io.EOF.
func (s *Snapshot) Contents() Contents { return s.found }

// broken says why a snapshot cannot be read on.
func (s *Snapshot) broken(err error) error {
	switch {
	case s.source.err != nil: // of which the readers in between make another
		return s.source.err
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return invalid("a snapshot in it cannot be read: %v", err)
}

// source remembers why it cannot be read on.
type source struct {
	in  io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.in.Read(p)
	if err != io.EOF {
		s.err = err
	}
	return n, err
}

// SnapshotWriter writes a snapshot anew, so that JetStream restores what was checked,
// and no byte that came from outside as it is. Each write to the writer below ends
// with a whole chunk of S2.
type SnapshotWriter struct {
	entries *natsarchive.Writer
	blocks  *bufio.Writer
}

// Padding is a chunk of S2 that means nothing: it may be written between any two
// writes of a SnapshotWriter.
var Padding = []byte{0xfe, 0, 0, 0}

// NewSnapshotWriter begins a snapshot with what it announces, and with consumers.
func NewSnapshotWriter(out io.Writer, announced Contents, consumers []Consumer) (*SnapshotWriter, error) {
	w := &SnapshotWriter{blocks: bufio.NewWriterSize(newBlockWriter(out), outBlock)}
	w.entries = natsarchive.NewWriter(w.blocks)
	if err := w.json(stateName, state{Messages: announced.Messages, First: announced.First, Last: announced.Last, Consumers: len(consumers)}); err != nil {
		return nil, err
	}
	for _, c := range consumers {
		entry := consumerEntry{Config: c.Config}
		// What was delivered and not acknowledged is delivered again.
		entry.State.AckFloor = place{c.AckedConsumer, c.AckedStream}
		entry.State.Delivered = entry.State.AckFloor
		if err := w.json(consumerPrefix+c.Name, entry); err != nil {
			return nil, err
		}
	}
	return w, w.blocks.Flush()
}

func (w *SnapshotWriter) json(name string, content any) error {
	text, err := json.Marshal(content)
	if err != nil {
		return err
	}
	return w.entry(&natsarchive.Header{Name: name, PayloadSize: int64(len(text))}, text)
}

// Write writes a message.
func (w *SnapshotWriter) Write(m *Message) error {
	return w.entry(&natsarchive.Header{Name: m.Subject, Sequence: m.Sequence, Timestamp: m.Time, HeaderSize: int64(len(m.Header)), PayloadSize: int64(len(m.Payload))},
		m.Header, m.Payload)
}

// Close ends the snapshot. The writer below is the caller's to close.
func (w *SnapshotWriter) Close() error {
	if err := w.entry(&natsarchive.Header{}); err != nil {
		return err
	}
	return w.blocks.Flush()
}

func (w *SnapshotWriter) entry(head *natsarchive.Header, contents ...[]byte) error {
	if err := w.entries.WriteHeader(head); err != nil {
		return err
	}
	for _, content := range contents {
		if _, err := w.entries.Write(content); err != nil {
			return err
		}
	}
	return nil
}

// blockWriter writes each block as chunks of S2, at once.
type blockWriter struct {
	out     io.Writer
	encoder *s2.Writer
	chunks  bytes.Buffer
}

func newBlockWriter(out io.Writer) *blockWriter {
	b := &blockWriter{out: out}
	b.encoder = s2.NewWriter(&b.chunks, s2.WriterUncompressed(), s2.WriterConcurrency(1), s2.WriterBlockSize(outBlock))
	return b
}

func (b *blockWriter) Write(p []byte) (int, error) {
	b.chunks.Reset()
	if _, err := b.encoder.Write(p); err != nil {
		return 0, err
	}
	if err := b.encoder.Flush(); err != nil {
		return 0, err
	}
	_, err := b.out.Write(b.chunks.Bytes())
	return len(p), err
}
