package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ordergate/ordergate/internal/archive"
)

const (
	// The engine gives a snapshot up, and a restore, when nothing was heard for five
	// seconds. Who reads or writes an archive may need longer: a person may be asked
	// for a passphrase.
	keepAlive = 2 * time.Second
	// maxAhead is how many pieces of a snapshot are taken before those before them
	// were written: they wait in memory. At one each keepAlive that is half an hour.
	maxAhead = 1000
	// pieceBytes is the size of what is sent together.
	pieceBytes = 128 << 10
	// pieceTimeout bounds how long the engine may take for a piece.
	pieceTimeout = time.Minute
	// listenTimeout is how long it may take in a cluster until all its servers know who
	// listens for the first piece; it is tried again after each listenPause.
	listenTimeout = 5 * time.Second
	listenPause   = 20 * time.Millisecond

	statusHeader      = "Status"
	descriptionHeader = "Description"
	statusDone        = "204"
)

// snapshot writes a stream as JetStream's API hands it out (NATS's ADR on stream
// snapshots, and $JS.API.STREAM.SNAPSHOT in nats-server's jetstream_api.go).
func (e *engine) snapshot(ctx context.Context, stream string, to io.Writer) error {
	subject := nats.NewInbox()
	pieces, err := e.conn.SubscribeSync(subject)
	if err != nil {
		return err
	}
	defer pieces.Unsubscribe()
	if err := pieces.SetPendingLimits(-1, -1); err != nil { // the engine waits for acks
		return err
	}
	request := server.JSApiStreamSnapshotRequest{DeliverSubject: subject, ChunkSize: pieceBytes, NoConsumers: stream != inboxStream}
	var answer server.JSApiStreamSnapshotResponse
	if err := e.ask(ctx, fmt.Sprintf(server.JSApiStreamSnapshotT, stream), request, &answer); err != nil {
		return err
	}
	if answer.Error != nil {
		return answer.Error
	}
	acks := &acks{conn: e.conn}
	stop := every(keepAlive, acks.ahead)
	defer stop()
	for {
		piece, err := pieces.NextMsgWithContext(ctx)
		if err != nil {
			return err
		}
		if len(piece.Data) == 0 {
			if status := piece.Header.Get(statusHeader); status != "" && status != statusDone {
				return fmt.Errorf("the engine ended it: %s %s", status, piece.Header.Get(descriptionHeader))
			}
			return nil
		}
		acks.arrived(piece.Reply)
		if _, err := to.Write(piece.Data); err != nil {
			return err
		}
		if err := acks.written(piece.Reply); err != nil {
			return err
		}
	}
}

// acks acknowledges pieces of a snapshot when they were written, so that the engine
// sends others; and while none can be written one each keepAlive before that, so that
// the engine does not give up.
type acks struct {
	conn *nats.Conn

	mu      sync.Mutex
	reply   string // where to acknowledge a piece that is being written; empty when none is
	waiting bool   // it was being written at the last look
	early   int    // how many were acknowledged before they were written
}

func (a *acks) arrived(reply string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reply, a.waiting = reply, false
}

func (a *acks) written(reply string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.reply = ""
	switch {
	case reply == "": // the last one
		return nil
	case a.early > 0:
		a.early--
		return nil
	}
	return a.conn.Publish(reply, nil)
}

func (a *acks) ahead() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reply != "" && a.waiting && a.early < maxAhead {
		a.early++
		a.conn.Publish(a.reply, nil) // if it does not arrive, the engine says so
	}
	a.waiting = true
}

// every calls do at intervals, until stop has returned.
func every(interval time.Duration, do func()) (stop func()) {
	tick := time.NewTicker(interval)
	stopped, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stopped:
				return
			case <-tick.C:
				do()
			}
		}
	}()
	return func() { tick.Stop(); close(stopped); <-ended }
}

// restoring is a stream that is being made of a snapshot.
type restoring struct {
	ctx     context.Context
	e       *engine
	subject string
	stop    func()

	mu    sync.Mutex
	taken bool  // the engine has taken a piece
	idle  bool  // nothing was sent since the last look
	err   error // of what was sent to keep the engine waiting
}

// restore begins a stream that does not exist yet ($JS.API.STREAM.RESTORE). Write its
// snapshot, in whole chunks of S2, and finish or abandon it.
func (e *engine) restore(ctx context.Context, cfg jetstream.StreamConfig) (*restoring, error) {
	request := struct {
		Config jetstream.StreamConfig `json:"config"`
	}{cfg}
	var answer server.JSApiStreamRestoreResponse
	if err := e.ask(ctx, fmt.Sprintf(server.JSApiStreamRestoreT, cfg.Name), request, &answer); err != nil {
		return nil, err
	}
	if answer.Error != nil {
		return nil, answer.Error
	}
	r := &restoring{ctx: ctx, e: e, subject: answer.DeliverSubject}
	r.stop = every(keepAlive, r.wait)
	return r, nil
}

func (r *restoring) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, r.err
	}
	written := 0
	for len(p) > 0 {
		piece := p[:min(len(p), pieceBytes)]
		if err := r.send(piece); err != nil {
			return written, err
		}
		written += len(piece)
		p = p[len(piece):]
	}
	r.idle = false
	return written, nil
}

// wait keeps the engine waiting for what does not come.
func (r *restoring) wait() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.idle && r.err == nil {
		r.err = r.send(archive.Padding)
	}
	r.idle = true
}

// send sends a piece, and returns when the engine has taken it.
func (r *restoring) send(piece []byte) error {
	ctx, cancel := context.WithTimeout(r.ctx, pieceTimeout)
	defer cancel()
	began := time.Now()
	reply, err := r.e.conn.RequestWithContext(ctx, r.subject, piece)
	for !r.taken && errors.Is(err, nats.ErrNoResponders) && time.Since(began) < listenTimeout {
		time.Sleep(listenPause)
		reply, err = r.e.conn.RequestWithContext(ctx, r.subject, piece)
	}
	if err != nil {
		return fmt.Errorf("the engine does not take it: %w", err)
	}
	r.taken = true
	if len(reply.Data) == 0 {
		return nil
	}
	var refused server.ApiResponse
	if err := json.Unmarshal(reply.Data, &refused); err != nil {
		return err
	}
	if refused.Error == nil {
		return errors.New("the engine ended it")
	}
	return refused.Error
}

// finish says that this was all, and returns what the engine has made of it.
func (r *restoring) finish() (server.StreamState, error) {
	r.stop()
	var answer server.JSApiStreamCreateResponse
	if err := r.e.ask(r.ctx, r.subject, nil, &answer); err != nil {
		return server.StreamState{}, err
	}
	switch {
	case answer.Error != nil:
		return server.StreamState{}, answer.Error
	case answer.StreamInfo == nil:
		return server.StreamState{}, errors.New("the engine does not say what it made of it")
	}
	return answer.State, nil
}

// abandon ends a stream that is not to be. What there is of it goes with its
// directory.
func (r *restoring) abandon() {
	r.stop()
	r.send(nil) // without it the engine would wait for seconds
}

// ask sends a request to the engine's API; nil is an empty one.
func (e *engine) ask(ctx context.Context, subject string, request, answer any) error {
	var body []byte
	if request != nil {
		var err error
		if body, err = json.Marshal(request); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, pieceTimeout)
	defer cancel()
	reply, err := e.conn.RequestWithContext(ctx, subject, body)
	if err != nil {
		return err
	}
	return json.Unmarshal(reply.Data, answer)
}
