package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

const (
	// noteFile says what must be there when the log is opened again.
	noteFile = "COVERED"
	noteSlot = 16 << 10
)

// note is what the log knew of itself at a moment. It is written before each
// flush and says what the flush before covered: it needs no flush of its own, and
// never says more than is on disk.
type note struct {
	// N counts the notes of a directory.
	N uint64 `json:"n"`
	// At is when the log was in use last.
	At time.Time `json:"at"`

	// Clean is of a note that was written when everything had ended, Begun of one
	// after which an opening began, and did not come to its own first note.
	Clean   bool                   `json:"clean,omitempty"`
	Begun   bool                   `json:"begun,omitempty"`
	Streams map[string]*streamNote `json:"streams"`
}

type streamNote struct {
	// Covered is the newest sequence that a finished flush covers.
	Covered uint64 `json:"covered"`

	// What follows is as of the last opening or the clean end.

	// First is the oldest sequence; FirstTime is not later than it was stored.
	First     uint64    `json:"first"`
	FirstTime time.Time `json:"first_time"`
	// Deleted is how many sequences between the first and the last were empty.
	Deleted int64 `json:"deleted,omitempty"`
	// Missing are the blocks between the first and the last that are no more.
	Missing []uint32 `json:"missing,omitempty"`
}

// notebook is the file of notes. Two places take turns, so that a torn write
// leaves the note before.
type notebook struct{ file *os.File }

// openNotebook returns the newest note too: nil when there is none.
func openNotebook(dir string) (*notebook, *note, error) {
	f, err := os.OpenFile(filepath.Join(dir, noteFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, 2*noteSlot))
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return &notebook{f}, newestNote(content), nil
}

func newestNote(content []byte) *note {
	var newest *note
	for len(content) > 0 {
		slot := content[:min(noteSlot, len(content))]
		content = content[len(slot):]
		if n, err := decodeNote(slot); err == nil && (newest == nil || n.N > newest.N) {
			newest = n
		}
	}
	return newest
}

func decodeNote(slot []byte) (*note, error) {
	line, _, ended := bytes.Cut(slot, []byte("\n"))
	sum, text, cut := bytes.Cut(line, []byte(" "))
	if want := sha256.Sum256(text); !ended || !cut || string(sum) != hex.EncodeToString(want[:]) {
		return nil, errors.New("the checksum does not fit")
	}
	var n note
	if err := json.Unmarshal(text, &n); err != nil {
		return nil, err
	}
	for name, stream := range n.Streams {
		if stream == nil {
			return nil, fmt.Errorf("nothing about %s", name)
		}
	}
	return &n, nil
}

// write writes the next note, to be flushed by the caller.
func (b *notebook) write(n *note) error {
	n.N++
	text, err := json.Marshal(n)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	line := hex.EncodeToString(sum[:]) + " " + string(text) + "\n"
	if len(line) > noteSlot {
		return errors.New("the note of what is covered is too long")
	}
	_, err = b.file.WriteAt([]byte(line), int64(n.N%2)*noteSlot)
	return err
}

func (b *notebook) close() error { return b.file.Close() }
