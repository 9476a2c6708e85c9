// Package archive is the form in which a log leaves its machine: one file that can
// be written and read in one pass, and says by itself whether it is whole.
//
// An archive is a line, frames, and a digest:
//
//	ordergate archive 1
//	frame:  its kind (1 byte), the length of its content (4 bytes, big endian,
//	        at most 1 MiB), its content
//	digest: SHA-256 of everything before it
//
// The frames are, in this order, H: the Header, as JSON; for each stream S: the
// Stream, as JSON, then D: bytes of JetStream's own snapshot of it, any number of
// these, then E: empty; and M: the Manifest, as JSON. Whatever is cut off, added or
// changed, is found when the end is read, if not before: nothing that was made of an
// archive is to be used until Reader.Next has returned io.EOF.
//
// An archive comes from outside. Nothing is allocated for a length before the bytes
// are there, and no name in it is a path.
package archive

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
	"time"
)

const (
	magic   = "ordergate archive "
	version = "1"

	headerFrame   = 'H'
	streamFrame   = 'S'
	dataFrame     = 'D'
	endFrame      = 'E'
	manifestFrame = 'M'

	maxFrame = 1 << 20
	// maxText bounds a frame of JSON, maxStreams the streams of an archive.
	maxText    = 64 << 10
	maxStreams = 64
)

var (
	// ErrInvalid means that something is no archive, or not as it was written.
	ErrInvalid = errors.New("the archive cannot be used")
	// ErrNewer means that a later version of ordergate wrote the archive.
	ErrNewer = errors.New("the archive has a newer format")
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// Header says where an archive comes from.
type Header struct {
	// Version is the version of ordergate that wrote it.
	Version string `json:"version"`
	// Created is when it was written.
	Created time.Time `json:"created"`
	// LogID identifies the log.
	LogID string `json:"log_id"`
	// Messages is about how many messages there are in all, to show how far reading
	// has come.
	Messages uint64 `json:"messages"`
}

// Stream describes a stream: what a snapshot of it does not.
type Stream struct {
	Name string `json:"name"`
	// ID and Format are of the stream's metadata; empty where it has none.
	ID     string `json:"id,omitempty"`
	Format string `json:"format,omitempty"`
}

// Contents are what is in a snapshot.
type Contents struct {
	// First and Last are the stream's oldest and newest sequence. First is behind Last
	// when nothing is between them any more; both are 0 when there never was anything.
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	// Messages is how many there are, and Bytes how long they are together.
	Messages uint64 `json:"messages"`
	Bytes    uint64 `json:"bytes"`
}

// Part is a stream in an archive.
type Part struct {
	Stream
	Contents
	// SHA256 is the digest of its snapshot, in hexadecimal.
	SHA256 string `json:"sha256"`
}

// Manifest says what is in an archive.
type Manifest struct {
	Header
	Parts []Part `json:"streams"`
}

// Writer writes an archive: for each stream Begin, Write and End, and Close at last.
type Writer struct {
	out      io.Writer
	sum      hash.Hash
	part     hash.Hash
	manifest Manifest
}

// NewWriter begins an archive.
func NewWriter(out io.Writer, h Header) (*Writer, error) {
	w := &Writer{out: out, sum: sha256.New(), manifest: Manifest{Header: h}}
	if err := w.put([]byte(magic + version + "\n")); err != nil {
		return nil, err
	}
	return w, w.text(headerFrame, h)
}

// Begin begins a stream.
func (w *Writer) Begin(s Stream) error {
	w.part = sha256.New()
	w.manifest.Parts = append(w.manifest.Parts, Part{Stream: s})
	return w.text(streamFrame, s)
}

// Write writes bytes of the stream's snapshot.
func (w *Writer) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		piece := p[:min(len(p), maxFrame)]
		if err := w.frame(dataFrame, piece); err != nil {
			return written, err
		}
		w.part.Write(piece)
		written += len(piece)
		p = p[len(piece):]
	}
	return written, nil
}

// End ends the stream, with what is in it.
func (w *Writer) End(c Contents) error {
	part := &w.manifest.Parts[len(w.manifest.Parts)-1]
	part.Contents, part.SHA256 = c, hex.EncodeToString(w.part.Sum(nil))
	return w.frame(endFrame, nil)
}

// Close ends the archive. The writer below is the caller's to close.
func (w *Writer) Close() error {
	if err := w.text(manifestFrame, w.manifest); err != nil {
		return err
	}
	_, err := w.out.Write(w.sum.Sum(nil))
	return err
}

func (w *Writer) text(kind byte, content any) error {
	text, err := json.Marshal(content)
	if err != nil {
		return err
	}
	return w.frame(kind, text)
}

func (w *Writer) frame(kind byte, content []byte) error {
	head := binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(content)))
	if err := w.put(head); err != nil {
		return err
	}
	return w.put(content)
}

func (w *Writer) put(p []byte) error {
	w.sum.Write(p)
	_, err := w.out.Write(p)
	return err
}

// Reader reads an archive: Next for each stream, Read to its end, and End.
type Reader struct {
	// Header is where the archive says it comes from.
	Header Header

	in   *bufio.Reader
	sum  hash.Hash
	part hash.Hash // of the stream that is being read; nil between two
	left int       // of the frame of data that is being read
	done bool      // the stream's data was read
	read []Part
}

// NewReader reads the beginning of an archive.
func NewReader(in io.Reader) (*Reader, error) {
	r := &Reader{in: bufio.NewReaderSize(in, 64<<10), sum: sha256.New()}
	line := make([]byte, len(magic)+len(version)+1)
	if err := r.take(line); err != nil {
		return nil, err
	}
	rest, ours := strings.CutPrefix(string(line), magic)
	switch {
	case !ours:
		return nil, invalid("it does not begin like one: was it made by ordergate export, and decrypted?")
	case rest != version+"\n":
		return nil, fmt.Errorf("%w than this version of ordergate reads (%s): use the version that wrote it, or a later one", ErrNewer, version)
	}
	kind, length, err := r.frame()
	if err != nil {
		return nil, err
	}
	if kind != headerFrame {
		return nil, invalid("its header is missing")
	}
	return r, r.text(length, &r.Header)
}

// Next goes to the next stream. It returns io.EOF when there is none, and the archive
// is exactly what was written.
func (r *Reader) Next() (Stream, error) {
	if r.part != nil {
		return Stream{}, errors.New("the stream before was not ended")
	}
	kind, length, err := r.frame()
	if err != nil {
		return Stream{}, err
	}
	switch kind {
	case streamFrame:
		var s Stream
		if err := r.text(length, &s); err != nil {
			return Stream{}, err
		}
		if len(r.read) == maxStreams {
			return Stream{}, invalid("it has too many streams")
		}
		r.part, r.done = sha256.New(), false
		r.read = append(r.read, Part{Stream: s})
		return s, nil
	case manifestFrame:
		var m Manifest
		if err := r.text(length, &m); err != nil {
			return Stream{}, err
		}
		if err := r.end(m); err != nil {
			return Stream{}, err
		}
		return Stream{}, io.EOF
	}
	return Stream{}, invalid("a stream was expected")
}

// end compares what was read with what was written.
func (r *Reader) end(m Manifest) error {
	want := r.sum.Sum(nil)
	digest := make([]byte, sha256.Size)
	if err := r.take(digest); err != nil {
		return err
	}
	if !bytes.Equal(digest, want) {
		return invalid("it does not fit its digest: it was changed since it was written; use another copy, or export again")
	}
	if _, err := r.in.ReadByte(); err != io.EOF {
		return invalid("something follows its end")
	}
	if len(m.Parts) != len(r.read) || !m.Created.Equal(r.Header.Created) || m.LogID != r.Header.LogID {
		return invalid("its manifest is of another one")
	}
	for i, part := range m.Parts {
		if part != r.read[i] {
			return invalid("stream %.40q is not what the manifest says: %+v, and not %+v", part.Name, r.read[i].Contents, part.Contents)
		}
	}
	return nil
}

// Read reads the snapshot of the stream, up to io.EOF.
func (r *Reader) Read(p []byte) (int, error) {
	for r.left == 0 {
		if r.part == nil || r.done {
			return 0, io.EOF
		}
		kind, length, err := r.frame()
		switch {
		case err != nil:
			return 0, err
		case kind == dataFrame:
			r.left = length
		case kind == endFrame && length == 0:
			r.done = true
		default:
			return 0, invalid("a stream does not end")
		}
	}
	p = p[:min(len(p), r.left)]
	if err := r.take(p); err != nil {
		return 0, err
	}
	r.left -= len(p)
	r.part.Write(p)
	return len(p), nil
}

// End ends a stream that was read to its end, and says what was found in it.
func (r *Reader) End(c Contents) error {
	if n, err := r.Read(make([]byte, 1)); err != io.EOF {
		if n > 0 {
			err = invalid("something follows the end of a stream")
		}
		return err
	}
	part := &r.read[len(r.read)-1]
	part.Contents, part.SHA256 = c, hex.EncodeToString(r.part.Sum(nil))
	r.part = nil
	return nil
}

// frame reads what is before a frame's content.
func (r *Reader) frame() (kind byte, length int, err error) {
	var head [5]byte
	if err := r.take(head[:]); err != nil {
		return 0, 0, err
	}
	size := binary.BigEndian.Uint32(head[1:])
	if size > maxFrame {
		return 0, 0, invalid("it has a frame of %d bytes", size)
	}
	return head[0], int(size), nil
}

func (r *Reader) text(length int, into any) error {
	if length > maxText {
		return invalid("it has a description of %d bytes", length)
	}
	text := make([]byte, length)
	if err := r.take(text); err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return invalid("a description in it cannot be read: %v", err)
	}
	return nil
}

// take fills p.
func (r *Reader) take(p []byte) error {
	_, err := io.ReadFull(r.in, p)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid("it is cut off: use another copy, or export again")
	}
	r.sum.Write(p)
	return err
}
