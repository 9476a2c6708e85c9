package eventlog

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// headerErased marks the tombstone of an event whose body was erased.
const headerErased = "Ordergate-Erased"

// maxErasures bounds how often a copy of an event that came meanwhile is erased
// too.
const maxErasures = 10

// EraseInbox overwrites a stored event on disk, and leaves a tombstone with the
// given body in its place: the id stays taken, so that no resend brings the
// event back. It returns when that is on disk. An event that is not kept gets a
// tombstone all the same.
//
// The engine cannot replace a message. So what is to be done is noted first, and
// an opening of the log finishes what a killed process had begun.
func (l *Log) EraseInbox(ctx context.Context, eventID string, tombstone []byte) error {
	if !subjectID(eventID) {
		return fmt.Errorf("event %.40q: %w", eventID, ErrNotFound)
	}
	e, err := l.current()
	if err != nil {
		return err
	}
	ctx, cancel := e.alive(ctx)
	defer cancel()
	erasing := l.Bucket(Erasing)
	if err := erasing.Put(ctx, eventID, tombstone); err != nil {
		return err
	}
	if err := e.flush(ctx); err != nil {
		return err
	}
	if err := e.eraseInbox(ctx, eventID, tombstone); err != nil {
		return err
	}
	if err := e.flush(ctx); err != nil {
		return err
	}
	return erasing.Forget(ctx, eventID)
}

// finishErasing does what was noted and not done.
func (e *engine) finishErasing(ctx context.Context) error {
	keys, err := e.buckets[Erasing].ListKeys(ctx)
	if err != nil {
		return err
	}
	defer keys.Stop()
	for id := range keys.Keys() {
		entry, err := e.buckets[Erasing].Get(ctx, id)
		if err != nil {
			return err
		}
		if err := e.eraseInbox(ctx, id, entry.Value()); err != nil {
			return err
		}
		// Marked as done, not purged: until the next flush a power cut may bring
		// back what was erased, and then this must be known again.
		if err := e.buckets[Erasing].Delete(ctx, id); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (e *engine) eraseInbox(ctx context.Context, eventID string, tombstone []byte) error {
	subject := inboxSubject(eventID)
	for range maxErasures {
		stored, err := e.last(ctx, e.inbox, subject)
		switch {
		case errors.Is(err, jetstream.ErrMsgNotFound):
		case err != nil:
			return fmt.Errorf("%w: read event %s: %w", ErrUnavailable, eventID, err)
		case stored.Header.Get(headerErased) != "":
			return nil
		default:
			if err := e.overwrite(ctx, e.inbox, stored.Sequence); err != nil {
				return err
			}
		}
		msg := &nats.Msg{Subject: subject, Data: tombstone, Header: nats.Header{headerErased: {"true"}}}
		_, err = e.write(ctx, inboxStream, msg)
		if err == nil {
			return nil
		}
		// A copy of the event may have come in between.
		if duplicate, err := e.resolveInbox(ctx, eventID, err); !duplicate {
			return err
		}
	}
	return fmt.Errorf("%w: event %s comes again and again", ErrConflict, eventID)
}

// EraseOrderEvents overwrites on disk all events of an order that are stored
// below a sequence, its tombstone's, and returns how many there were. Flush makes it
// durable. What the tail has of them goes when the tombstone comes there.
func (l *Log) EraseOrderEvents(ctx context.Context, orderID string, below uint64) (erased int, err error) {
	for {
		e, err := l.current()
		if err != nil {
			return erased, err
		}
		records, err := l.OrderEvents(ctx, orderID, 0, eraseBatch)
		if err != nil {
			return erased, err
		}
		done := true
		for _, r := range records {
			if r.Sequence >= below {
				break
			}
			if err := e.overwrite(ctx, e.orders, r.Sequence); err != nil {
				return erased, err
			}
			e.aheads.forget()
			erased++
			done = false
		}
		if done {
			return erased, nil
		}
	}
}

// eraseBatch is how many events of an order are looked at together.
const eraseBatch = 100

// overwrite removes a message, and its bytes from the disk. One that is gone is
// no error.
func (e *engine) overwrite(ctx context.Context, stream jetstream.Stream, sequence uint64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := stream.SecureDeleteMsg(ctx, sequence)
	if err == nil {
		return nil
	}
	if e.gone(ctx, stream, sequence) {
		return nil
	}
	return fmt.Errorf("%w: erase message %d: %w", ErrUnavailable, sequence, err)
}

// gone reports whether a message is known not to be there.
func (e *engine) gone(ctx context.Context, stream jetstream.Stream, sequence uint64) bool {
	_, err := e.askLeader(ctx, stream.CachedInfo().Config.Name, server.JSApiMsgGetRequest{Seq: sequence})
	return errors.Is(err, jetstream.ErrMsgNotFound)
}

// Erase removes a key, which need not be there, and overwrites its value on disk.
// Values that were replaced before are out of reach: they go when the engine
// rewrites their file.
func (b Bucket) Erase(ctx context.Context, key string) error {
	_, revision, err := b.get(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	e, _, err := b.open()
	if err != nil {
		return err
	}
	stream, err := e.js.Stream(ctx, bucketStream(b.name))
	if err != nil {
		return e.writeError(err)
	}
	if err := e.overwrite(ctx, stream, revision); err != nil {
		return err
	}
	// An older value could be found again after a kill (see Forget).
	return b.Delete(ctx, key)
}
