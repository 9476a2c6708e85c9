package eventlog

import (
	"context"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// maxPublishing is how many messages may be on their way into the engine: more than
// its callers ever send at once.
const maxPublishing = 64 << 10

// publishing is a message on its way into the engine.
type publishing struct {
	e      *engine
	stream string
	future jetstream.PubAckFuture
}

// publish sends a message to the engine, which takes what is sent meanwhile
// together with it.
func (e *engine) publish(stream string, msg *nats.Msg) (publishing, error) {
	future, err := e.js.PublishMsgAsync(msg)
	return publishing{e, stream, future}, err
}

// wait returns the message's sequence once it is written. An error is the engine's,
// or says that it is not known whether it will be.
func (p publishing) wait(ctx context.Context) (sequence uint64, err error) {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, requestTimeout)
		defer cancel()
	}
	select {
	case ack := <-p.future.Ok():
		p.e.wroteTo(p.stream, ack.Sequence)
		return ack.Sequence, nil
	case err := <-p.future.Err():
		return 0, err
	case <-p.e.dead.Done():
		return 0, p.e.unavailable()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// write publishes a message and waits until it is written.
func (e *engine) write(ctx context.Context, stream string, msg *nats.Msg) (sequence uint64, err error) {
	sent, err := e.publish(stream, msg)
	if err != nil {
		return 0, err
	}
	return sent.wait(ctx)
}

// last returns the newest message of a subject, or jetstream.ErrMsgNotFound: of the
// only copy there is, or of the leader's.
func (e *engine) last(ctx context.Context, stream jetstream.Stream, subject string) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if e.shared {
		return e.askLeader(ctx, stream.CachedInfo().Config.Name, server.JSApiMsgGetRequest{LastFor: subject})
	}
	return stream.GetLastMsgForSubject(ctx, subject)
}
