// Package logtest keeps log lines, for tests.
package logtest

import (
	"bytes"
	"strings"
	"sync"
)

// Buffer may be written to by several goroutines, and read meanwhile. The zero value
// is empty.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write never fails.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns what was written.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Tail keeps the end of what is written to it, for several goroutines.
type Tail struct {
	// Bytes is how much is kept at least, and Lines returns at most.
	Bytes int

	mu sync.Mutex
	b  []byte
}

// Write never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 2*t.Bytes {
		t.b = append([]byte(nil), t.b[len(t.b)-t.Bytes:]...)
	}
	return len(p), nil
}

// Lines returns whole lines.
func (t *Tail) Lines() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := string(t.b)
	if len(s) > t.Bytes {
		s = s[len(s)-t.Bytes:]
		_, s, _ = strings.Cut(s, "\n")
	}
	return s
}
