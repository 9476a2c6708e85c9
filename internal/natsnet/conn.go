package natsnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// maxChunk bounds the data of one message.
	maxChunk = 32 << 10
	// maxWaiting bounds what a connection keeps for its reader.
	maxWaiting = 16 << 20
	// maxPending bounds what the NATS client keeps that take has not seen. It is more,
	// because subjects count, and because maxWaiting is to be reached first.
	maxPending = 2 * maxWaiting
	// blockBytes is the least memory that is taken for what waits behind something
	// else: many small messages do not take many times their size.
	blockBytes = 4 << 10
)

// A message is its kind, its number as a uvarint, and what belongs to the kind.
// Each side numbers its messages from 0.
const (
	kindAccept = 'A' // a listener's answer to a dial: the id of its side
	kindData   = 'D' // a part of the stream
	kindClose  = 'C' // the end of the stream
	kindFail   = 'F' // a reason for the end of everything, or of a dial. Its number does not count
)

var (
	errLost         = errors.New("the NATS connection was closed")
	errDropped      = errors.New("the NATS client dropped messages: they came faster than they were taken")
	errBehind       = fmt.Errorf("more than %d MiB wait to be read", maxWaiting>>20)
	errMalformed    = errors.New("a message is malformed")
	errPeerClosed   = errors.New("the other side has closed the connection")
	errGaveUp       = errors.New("the dialer gave up")
	errNotListening = errors.New("the listener is closed")
)

// streamConn is one side of a connection.
type streamConn struct {
	nats          *nats.Conn
	local, remote addr

	next uint64 // number of the message to come; of the subscription's goroutine

	writing sync.Mutex // held for all messages of a Write: others' do not come between
	sent    uint64     // of writing, as is frame
	frame   []byte

	mu       sync.Mutex
	changed  *sync.Cond // of mu: something to read, an end, or a deadline
	sub      *nats.Subscription
	peer     string   // where the other side receives; set once, before anything is sent
	blocks   [][]byte // what waits to be read
	waiting  int      // its bytes
	err      error    // why nothing is received any more; it is read behind what waits
	closed   bool     // on this side
	released func()   // what Close does for the listener; may be nil

	readDeadline, writeDeadline deadline
}

// newConn returns one side of a connection, which receives from now on.
func newConn(conn *nats.Conn, id string, local, remote addr) (*streamConn, error) {
	c := &streamConn{nats: conn, local: local, remote: remote}
	c.changed = sync.NewCond(&c.mu)
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.sub, err = conn.Subscribe(connPrefix+id, c.take); err != nil {
		return nil, err
	}
	c.sub.SetClosedHandler(func(string) { c.end(errLost) })
	// This fails when the subscription was closed before it had its handler.
	if err := c.sub.SetPendingLimits(-1, maxPending); err != nil {
		return nil, err
	}
	return c, nil
}

// accepted makes c the listener's side of a connection.
func (c *streamConn) accepted(peer string, released func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peer, c.released = peer, released
}

// answered waits for the answer to a dial. After an error, c is ended.
func (c *streamConn) answered(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changed.Broadcast()
	})
	defer stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.peer == "" && c.err == nil && ctx.Err() == nil {
		c.changed.Wait()
	}
	switch {
	case c.peer != "":
		return nil // what failed since then, Read tells
	case c.err != nil:
		c.sub.Unsubscribe() // end may not have come to it
		return c.err
	}
	// An answer may be under way: the listener is told then.
	c.err = errGaveUp
	time.AfterFunc(lateAnswer, func() { c.sub.Unsubscribe() })
	return ctx.Err()
}

// take is called with one message after the other.
func (c *streamConn) take(msg *nats.Msg) {
	// What the client dropped, it dropped behind something that it kept: there is a
	// message after it, so this look is enough to notice.
	if dropped, err := msg.Sub.Dropped(); err == nil && dropped > 0 {
		c.fail(errDropped)
		return
	}
	if len(msg.Data) == 0 && msg.Header.Get("Status") == "503" {
		c.end(nats.ErrNoResponders) // to a dial: nothing else asks for an answer
		return
	}
	kind, number, body, ok := parse(msg.Data)
	switch {
	case !ok:
		c.fail(errMalformed)
		return
	case kind == kindFail:
		c.end(fmt.Errorf("the other side ended the connection: %.200q", body))
		return
	case number != c.next:
		c.fail(fmt.Errorf("message %d came in place of %d", number, c.next))
		return
	}
	c.next++
	var err error
	switch kind {
	case kindAccept:
		err = c.join(string(body))
	case kindData:
		err = c.keep(body)
	case kindClose:
		c.end(io.EOF)
	default:
		err = errMalformed
	}
	if err != nil {
		c.fail(err)
	}
}

// join makes the connection with the listener's side, or tells that side that the
// dial was given up.
func (c *streamConn) join(id string) error {
	if !validToken(id) {
		return errMalformed
	}
	peer := connPrefix + id
	c.mu.Lock()
	joined, ended := c.peer != "", c.err
	if !joined && ended == nil {
		c.peer = peer
		c.changed.Broadcast()
	}
	c.mu.Unlock()
	switch {
	case joined:
		return errMalformed
	case ended != nil:
		c.tell(peer, ended)
		c.sub.Unsubscribe()
	}
	return nil
}

// keep keeps data for the reader.
func (c *streamConn) keep(data []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.closed || len(data) == 0 {
		return nil
	}
	if c.waiting+len(data) > maxWaiting {
		return errBehind
	}
	c.waiting += len(data)
	c.changed.Broadcast()
	if len(c.blocks) == 0 {
		c.blocks = append(c.blocks, slices.Clip(data)) // behind it, memory is not ours
		return nil
	}
	last := &c.blocks[len(c.blocks)-1]
	n := copy((*last)[len(*last):cap(*last)], data)
	*last, data = (*last)[:len(*last)+n], data[n:]
	if len(data) > 0 {
		c.blocks = append(c.blocks, append(make([]byte, 0, max(len(data), blockBytes)), data...))
	}
	return nil
}

// end ends the connection for a reason that the other side need not be told. It
// returns where that receives, or "" if the connection had ended.
func (c *streamConn) end(err error) (peer string) {
	c.mu.Lock()
	if c.err != nil || c.closed {
		c.mu.Unlock()
		return ""
	}
	c.err = err
	peer = c.peer
	c.changed.Broadcast()
	c.mu.Unlock()
	c.sub.Unsubscribe() // fails when there is nothing to end
	return peer
}

// fail ends the connection on both sides.
func (c *streamConn) fail(err error) {
	if peer := c.end(err); peer != "" {
		c.tell(peer, err)
	}
}

// tell gives the other side a reason. If that is lost, so is the NATS connection.
func (c *streamConn) tell(peer string, reason error) {
	c.nats.Publish(peer, appendHead(nil, kindFail, 0, reason.Error()))
}

// refuse closes what nobody has accepted.
func (c *streamConn) refuse() {
	c.fail(errNotListening)
	c.Close()
}

// send sends a message. Its callers hold writing, or are alone.
func (c *streamConn) send(kind byte, body []byte) error {
	c.frame = appendHead(c.frame[:0], kind, c.sent, body)
	c.sent++
	return c.nats.Publish(c.peer, c.frame) // copies it
}

func appendHead[T []byte | string](frame []byte, kind byte, number uint64, body T) []byte {
	return append(binary.AppendUvarint(append(frame, kind), number), body...)
}

func parse(message []byte) (kind byte, number uint64, body []byte, ok bool) {
	if len(message) == 0 {
		return 0, 0, nil, false
	}
	number, n := binary.Uvarint(message[1:])
	if n <= 0 {
		return 0, 0, nil, false
	}
	return message[0], number, message[1+n:], true
}

func (c *streamConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case c.readDeadline.passed:
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case c.waiting > 0:
			return c.unload(p), nil
		case c.err != nil:
			return 0, c.err
		}
		c.changed.Wait()
	}
}

// unload hands out what has waited longest. Its caller holds mu.
func (c *streamConn) unload(p []byte) (n int) {
	for n < len(p) && len(c.blocks) > 0 {
		m := copy(p[n:], c.blocks[0])
		n += m
		if c.blocks[0] = c.blocks[0][m:]; len(c.blocks[0]) == 0 {
			c.blocks[0] = nil
			c.blocks = c.blocks[1:]
		}
	}
	c.waiting -= n
	return n
}

// Write returns when the NATS client has the data. It does not wait for a flush;
// but where the client itself has to wait for the network, a deadline is looked at
// only after that.
func (c *streamConn) Write(p []byte) (n int, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	for {
		if err := c.writable(); err != nil || len(p) == 0 {
			return n, err
		}
		chunk := p[n:min(len(p), n+maxChunk)]
		if err := c.send(kindData, chunk); err != nil {
			c.fail(err)
			return n, err
		}
		if n += len(chunk); n == len(p) {
			return n, nil
		}
	}
}

func (c *streamConn) writable() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return net.ErrClosed
	case c.writeDeadline.passed:
		return os.ErrDeadlineExceeded
	case c.err == io.EOF:
		return errPeerClosed
	}
	return c.err
}

// Close ends the connection. The other side reads io.EOF behind what was written.
func (c *streamConn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.blocks, c.waiting = nil, 0
	c.readDeadline.set(&c.mu, c.changed, time.Time{})
	c.writeDeadline.set(&c.mu, c.changed, time.Time{})
	c.changed.Broadcast()
	open := c.err == nil && c.peer != ""
	released := c.released
	c.mu.Unlock()

	c.sub.Unsubscribe() // fails when there is nothing to end
	if open {
		c.writing.Lock() // a Write sees that it is closed, and makes way
		c.send(kindClose, nil)
		c.writing.Unlock()
	}
	if released != nil {
		released()
	}
	return nil
}

func (c *streamConn) LocalAddr() net.Addr  { return c.local }
func (c *streamConn) RemoteAddr() net.Addr { return c.remote }

func (c *streamConn) SetDeadline(t time.Time) error {
	return c.setDeadlines(t, &c.readDeadline, &c.writeDeadline)
}

func (c *streamConn) SetReadDeadline(t time.Time) error {
	return c.setDeadlines(t, &c.readDeadline)
}

func (c *streamConn) SetWriteDeadline(t time.Time) error {
	return c.setDeadlines(t, &c.writeDeadline)
}

func (c *streamConn) setDeadlines(t time.Time, deadlines ...*deadline) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	for _, d := range deadlines {
		d.set(&c.mu, c.changed, t)
	}
	return nil
}

// deadline is of the connection's mu.
type deadline struct {
	passed bool
	timer  *time.Timer // nil when there is nothing to wait for
}

// set has changed woken at t, in place of any earlier time; never, if t is zero.
func (d *deadline) set(mu *sync.Mutex, changed *sync.Cond, t time.Time) {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.timer, d.passed = nil, false
	if t.IsZero() {
		return
	}
	left := time.Until(t)
	if left <= 0 {
		d.passed = true
		changed.Broadcast()
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(left, func() {
		mu.Lock()
		defer mu.Unlock()
		if d.timer == timer { // else it was stopped too late
			d.timer, d.passed = nil, true
			changed.Broadcast()
		}
	})
	d.timer = timer
}
