package eventlog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// converterConsumer is the durable consumer of INBOX that makes orders.
	converterConsumer = "converter"
	// inboxWindow is how many events may be delivered and not yet acked: those
	// in hand, and those that wait for their order.
	inboxWindow = 8192
	// inboxBatch is how many events are handed out together at most.
	inboxBatch = 256
	// inboxAckWait is when the engine delivers an unacked event again, and
	// sharedAckWait when a cluster does: the gateway that had it may be gone.
	inboxAckWait  = 2 * time.Minute
	sharedAckWait = 15 * time.Second

	headerSecret = "Ordergate-Secret"
)

func inboxSubject(eventID string) string { return "inbox." + eventID }

// RawEvent is a verified Stripe event as it came.
type RawEvent struct {
	// ID is the event's id (`evt_…`).
	ID string
	// Body are the bytes that were signed.
	Body []byte
	// SecretLabel names the secret that signed them, without telling it.
	SecretLabel string
}

// AppendInbox stores an event and returns when it is on disk. duplicate is true
// when an event of that id was there before; it is on disk then too.
//
// An error wraps ErrUnavailable or ErrFull, and means that the event must be
// sent again: it may or may not be stored.
func (l *Log) AppendInbox(ctx context.Context, event RawEvent) (duplicate bool, err error) {
	if !subjectID(event.ID) {
		return false, fmt.Errorf("event id %.40q cannot be stored", event.ID)
	}
	e, err := l.current()
	if err != nil {
		return false, err
	}
	if err := seen(&e.refuses); err != nil { // rather than let the sender wait
		return false, err
	}
	began := time.Now()
	defer func() { l.cfg.measures.appendSeconds.Observe(time.Since(began).Seconds()) }()
	ctx, span := startSpan(ctx, "append")
	defer span.End()
	msg := &nats.Msg{Subject: inboxSubject(event.ID), Data: event.Body, Header: nats.Header{headerSecret: {event.SecretLabel}}}
	putTrace(ctx, msg.Header)
	if _, err := e.write(ctx, inboxStream, msg); err != nil {
		if duplicate, err = e.resolveInbox(ctx, event.ID, err); err != nil {
			return false, err
		}
	}
	span.AddEvent("written") // the rest is the wait for a flush
	// A refused copy waits for a flush as well: the first one may still be
	// waiting for its own.
	if err := e.flush(ctx); err != nil {
		return false, err
	}
	return duplicate, nil
}

// resolveInbox finds out what became of a publish that was not acknowledged.
// Every limit of the stream, and every failed write, is refused with the same
// code as a copy: only reading the event back tells.
func (e *engine) resolveInbox(ctx context.Context, eventID string, publishErr error) (duplicate bool, err error) {
	ctx, cancel := e.alive(ctx)
	defer cancel()
	_, err = e.last(ctx, e.inbox, inboxSubject(eventID))
	if err == nil {
		var refused *jetstream.APIError
		return errors.As(publishErr, &refused), nil
	}
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return false, fmt.Errorf("%w: %w; reading the event back: %w", ErrUnavailable, publishErr, err)
	}
	return false, e.writeError(publishErr)
}

// writeError tells a full stream from a failed write, after which the engine
// must be reopened: its write errors do not heal.
func (e *engine) writeError(err error) error {
	var refused *jetstream.APIError
	switch {
	case e.shared && !errors.As(err, &refused): // a leader is being elected, perhaps
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrNoResponders):
		// The engine switches itself off when its disk is full.
		err = fmt.Errorf("the engine does not answer: %w", err)
		e.fail(err)
	case !errors.As(err, &refused):
	case refused.Description == server.ErrMaxBytes.Error(), refused.Description == server.ErrMaxMsgs.Error():
		return fmt.Errorf("%w: %w", ErrFull, err)
	case e.shared:
	case refused.ErrorCode == jetstream.ErrorCode(server.JSStreamStoreFailedF), refused.ErrorCode == jetstream.ErrorCode(server.JSInsufficientResourcesErr):
		err = fmt.Errorf("write: %w", err)
		e.fail(err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// InboxMessage is an event of INBOX that waits to be converted. It comes again
// until it is acked.
type InboxMessage struct {
	StoredEvent
	// Deliveries counts how often the event was handed out, from 1.
	Deliveries int

	msg jetstream.Msg
}

// Ack says that the event needs nothing more. Flush first: what was made of
// the event must be on disk.
func (m *InboxMessage) Ack() error { return m.msg.Ack() }

// Keep has the event not come again meanwhile: call it from time to time (KeepInterval)
// when it takes long.
func (m *InboxMessage) Keep() error { return m.msg.InProgress() }

// KeepInterval is how often an event is kept that takes long.
const KeepInterval = sharedAckWait / 3

// Retry asks for the event again after a delay.
func (m *InboxMessage) Retry(delay time.Duration) error { return m.msg.NakWithDelay(delay) }

// ConsumeInbox hands the stored events to handle, in batches, in their order,
// until ctx ends. It returns the context's error, or ErrUnavailable once the
// log is closed; a log that is being reopened it waits for.
func (l *Log) ConsumeInbox(ctx context.Context, handle func(context.Context, []*InboxMessage)) error {
	for {
		e, err := l.await(ctx)
		if err != nil {
			return err
		}
		if err := e.consumeInbox(ctx, handle); ctx.Err() == nil && e.dead.Err() == nil {
			e.logger.Warn("reading the inbox was interrupted; going on", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

func (e *engine) converterConfig() jetstream.ConsumerConfig {
	cfg := jetstream.ConsumerConfig{
		Durable:       converterConsumer,
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       inboxAckWait,
		MaxAckPending: inboxWindow,
		DeliverPolicy: jetstream.DeliverAllPolicy,
	}
	if e.shared {
		cfg.AckWait = sharedAckWait
	}
	return cfg
}

func (e *engine) consumeInbox(ctx context.Context, handle func(context.Context, []*InboxMessage)) error {
	consumer, err := e.inbox.CreateOrUpdateConsumer(ctx, e.converterConfig())
	if err != nil {
		return err
	}
	options := []jetstream.PullConsumeOpt{jetstream.PullMaxMessages(inboxBatch)}
	if e.shared {
		options = append(options, jetstream.PullHeartbeat(beatInterval), jetstream.PullExpiry(sharedExpiry))
	} else if err := e.resetConverter(ctx); err != nil {
		return err
	}
	arrived := make(chan jetstream.Msg, inboxBatch)
	broken := make(chan error, 1)
	consuming, err := consumer.Consume(func(msg jetstream.Msg) {
		select {
		case arrived <- msg:
		case <-ctx.Done():
		case <-e.dead.Done():
		}
	}, append(options, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
		select {
		case broken <- err:
		default:
		}
	}))...)
	if err != nil {
		return err
	}
	defer consuming.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-e.dead.Done():
			return e.unavailable()
		case err := <-broken:
			return err
		case msg := <-arrived:
			handle(ctx, inboxMessages(msg, arrived))
		}
	}
}

// resetConverter makes the engine deliver at once what an earlier converter took
// and did not ack, instead of after its ack wait. There is no other converter:
// this process has the log alone. Acks above the first missing one are forgotten
// with it; converting an event twice changes nothing.
func (e *engine) resetConverter(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	reply, err := e.conn.RequestWithContext(ctx, fmt.Sprintf(server.JSApiConsumerResetT, inboxStream, converterConsumer), nil)
	if err != nil {
		return fmt.Errorf("reset the converter: %w", err)
	}
	var answer server.JSApiConsumerResetResponse
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return fmt.Errorf("reset the converter: %w", err)
	}
	if answer.Error != nil {
		return fmt.Errorf("reset the converter: %w", answer.Error)
	}
	return nil
}

// inboxMessages makes a batch of the first message and whatever has arrived
// behind it.
func inboxMessages(first jetstream.Msg, arrived <-chan jetstream.Msg) []*InboxMessage {
	batch := []*InboxMessage{inboxMessage(first)}
	for len(batch) < inboxBatch {
		select {
		case msg := <-arrived:
			batch = append(batch, inboxMessage(msg))
		default:
			return batch
		}
	}
	return batch
}

func inboxMessage(msg jetstream.Msg) *InboxMessage {
	m := &InboxMessage{msg: msg}
	var sequence uint64
	var stored time.Time
	if meta, err := msg.Metadata(); err == nil {
		sequence, stored, m.Deliveries = meta.Sequence.Stream, meta.Timestamp, int(meta.NumDelivered)
	}
	m.StoredEvent = *storedEvent(msg.Subject(), sequence, stored, msg.Headers(), msg.Data())
	return m
}

// StoredEvent is an event of INBOX, as it was stored.
type StoredEvent struct {
	RawEvent
	// Sequence is the event's place in INBOX.
	Sequence uint64
	// StoreTime is when the event was stored, in UTC.
	StoreTime time.Time
	// Erased says that the event was erased: what is stored is its tombstone.
	Erased bool

	storedTrace
}

// InboxEvent returns the event of an id, or ErrNotFound.
func (l *Log) InboxEvent(ctx context.Context, id string) (*StoredEvent, error) {
	if !subjectID(id) {
		return nil, fmt.Errorf("event %.40q: %w", id, ErrNotFound)
	}
	e, err := l.current()
	if err != nil {
		return nil, err
	}
	msg, err := e.last(ctx, e.inbox, inboxSubject(id))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, fmt.Errorf("event %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: read event %s: %w", ErrUnavailable, id, err)
	}
	return storedEvent(msg.Subject, msg.Sequence, msg.Time, msg.Header, msg.Data), nil
}

func storedEvent(subject string, sequence uint64, stored time.Time, header nats.Header, body []byte) *StoredEvent {
	return &StoredEvent{
		RawEvent:  RawEvent{ID: subject[len(inboxSubject("")):], Body: body, SecretLabel: header.Get(headerSecret)},
		Sequence:  sequence,
		StoreTime: stored.UTC(),
		Erased:    header.Get(headerErased) != "",

		storedTrace: traceOf(header),
	}
}

// InboxState is where the stream of events stands.
type InboxState struct {
	// LogID identifies the log.
	LogID string
	// First and Last are the oldest and newest sequence that are kept; Last is
	// below First when there are none.
	First, Last uint64
	// Converted is the sequence up to which every event was dealt with.
	Converted uint64
}

// InboxState returns where the stream of events stands.
func (l *Log) InboxState(ctx context.Context) (InboxState, error) {
	e, err := l.current()
	if err != nil {
		return InboxState{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	info, err := streamInfo(ctx, e.inbox)
	if err != nil {
		return InboxState{}, err
	}
	state := InboxState{LogID: e.id, First: max(info.State.FirstSeq, 1), Last: info.State.LastSeq}
	consumer, err := e.inbox.Consumer(ctx, converterConsumer)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound): // nothing was converted yet
	case err != nil:
		return InboxState{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		state.Converted = consumer.CachedInfo().AckFloor.Stream
	}
	return state, nil
}

// ReadInbox returns events behind the sequence after, in their order: limit at
// most, fewer when they are large, and none when there are none.
func (l *Log) ReadInbox(ctx context.Context, after uint64, limit int) ([]*StoredEvent, error) {
	e, err := l.current()
	if err != nil {
		return nil, err
	}
	return readBatch(ctx, e, inboxStream, limit, storedEvent, readFrom{sequence: after + 1})
}

// InboxSequenceBefore returns the sequence just before the first event that was
// stored at or after a time.
func (l *Log) InboxSequenceBefore(ctx context.Context, at time.Time) (uint64, error) {
	e, err := l.current()
	if err != nil {
		return 0, err
	}
	events, err := readBatch(ctx, e, inboxStream, 1, storedEvent, readFrom{time: engineTime(at)})
	if err != nil {
		return 0, err
	}
	if len(events) == 0 {
		state, err := l.InboxState(ctx)
		return state.Last, err
	}
	return events[0].Sequence - 1, nil
}
