package eventlog

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ordergate/ordergate/internal/natsconn"
)

const (
	// joinTimeout bounds an attempt to open a log in a cluster, and joinPause the pause
	// before the next one.
	joinTimeout   = 20 * time.Second
	joinPause     = 2 * time.Second
	streamTimeout = 4 * time.Second // of one stream
	// lagPause is how long a replica that lags is given before it is asked again, and
	// lagPatience how often it is.
	lagPause    = 50 * time.Millisecond
	lagPatience = 20
	// readyInterval is how often it is looked at whether the cluster can store, and
	// readyTimeout how long it may take to say so.
	readyInterval = time.Second
	readyTimeout  = 3 * time.Second
	// beatInterval is how often the cluster says to one who follows it that nothing
	// came: after two that are missing, another replica is followed.
	beatInterval = time.Second
	sharedExpiry = 10 * time.Second // of a request for messages
)

// ErrSettings means that a stream of the cluster is set up in another way than the
// gateway is told, or one that loses events.
var ErrSettings = errors.New("is not set up as it must be")

// Cluster is a NATS cluster that keeps the log. What it acknowledges, a quorum of it
// has; when that is on disk is a setting of its own (sync_interval).
type Cluster struct {
	natsconn.Config
	// Replicas is how many of its servers keep each stream: 1, 3 or 5.
	Replicas int
}

func (cfg Config) replicas() int {
	if cfg.Cluster == nil {
		return 1
	}
	return cmp.Or(cfg.Cluster.Replicas, 1)
}

// openShared opens a log in a cluster. It waits for one that cannot be reached, or has
// no quorum; settings that are wrong are an error.
func openShared(ctx context.Context, cfg Config) (*Log, error) {
	for {
		e, err := openEngine(ctx, cfg)
		if err == nil {
			l := newLog(cfg, e, nil, nil)
			l.joinOthers()
			return l, nil
		}
		var format *formatError
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
			return nil, fmt.Errorf("%w: the account has no JetStream: enable it for the account in NATS's configuration, or show credentials of one that has it", err)
		case cfg.AsIs, errors.Is(err, ErrSettings), errors.As(err, &format), errors.Is(err, natsconn.ErrConfig):
			return nil, err
		}
		cfg.Logger.Error("the log cannot be opened; trying again", "error", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(joinPause):
		}
	}
}

// join connects to the cluster, and returns when the streams are there and right. The
// engine dies with its connection.
func (e *engine) join(ctx context.Context, cfg Config) error {
	var err error
	lost := func(err error) {
		e.fail(fmt.Errorf("the connection to NATS was lost: %w", cmp.Or(err, nats.ErrConnectionClosed)))
	}
	if e.conn, err = natsconn.Connect(ctx, cfg.Cluster.Config, "ordergate", lost); err != nil {
		return err
	}
	if needed := int64(cfg.MaxEventBytes + orderBytes + headerBytes); e.conn.MaxPayload() < needed {
		return fmt.Errorf("%w: NATS takes messages of %d bytes, and an order event may have %d: set max_payload to %d or more in its configuration", ErrSettings, e.conn.MaxPayload(), needed, needed)
	}
	e.js, err = jetstream.New(e.conn, jetstream.WithDefaultTimeout(requestTimeout), jetstream.WithPublishAsyncMaxPending(maxPublishing), jetstream.WithPublishAsyncTimeout(requestTimeout))
	if err != nil {
		return err
	}
	if err := e.createStreams(ctx, cfg); err != nil {
		return fmt.Errorf("open the log in NATS: %w", err)
	}
	if err := e.finishErasing(ctx); err != nil {
		return fmt.Errorf("finish what was being erased: %w", err)
	}
	if err := e.follow(ctx, e.orders.CachedInfo().State, cfg.OrdersMaxAge); err != nil {
		return fmt.Errorf("follow the order events: %w", err)
	}
	e.advance(math.MaxUint64) // what arrives is the quorum's
	e.background.Go(func() { e.watchRoom("") })
	e.background.Go(e.watchReady)
	return nil
}

// ensureShared creates a stream, or returns the one there is, if that is as it must
// be: of several gateways none changes what the others rely on (see Migrate).
func (e *engine) ensureShared(ctx context.Context, cfg Config, wanted jetstream.StreamConfig) (jetstream.Stream, error) {
	// A request that comes while a leader is elected is never answered.
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	stream, err := e.js.Stream(ctx, wanted.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) && !cfg.AsIs {
		stream, err = e.js.CreateStream(ctx, wanted)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another gateway was faster
			stream, err = e.js.Stream(ctx, wanted.Name)
		}
	}
	var refused *jetstream.APIError
	switch {
	case errors.As(err, &refused) && refused.ErrorCode == jetstream.ErrorCode(server.JSClusterNoPeersErrF):
		return nil, fmt.Errorf("cannot have %d replicas: %w: give --replicas as many servers with JetStream as there are, or start more", wanted.Replicas, err)
	case err != nil:
		return nil, err
	case cfg.AsIs:
		return stream, nil
	}
	if changes := Differences(stream.CachedInfo().Config, wanted); len(changes) > 0 {
		return nil, fmt.Errorf("%w:\n  %s\nstart the gateway with the settings that the others have, or see `ordergate migrate`", ErrSettings, strings.Join(changes, "\n  "))
	}
	return stream, nil
}

// Differences tells how a stream is set up in another way than it must be.
func Differences(there, wanted jetstream.StreamConfig) (differences []string) {
	compare := func(setting string, there, wanted any) {
		if fmt.Sprint(there) != fmt.Sprint(wanted) {
			differences = append(differences, fmt.Sprintf("%s: %v there, must be %v", setting, there, wanted))
		}
	}
	limit := func(n int64) int64 { return max(n, 0) } // the engine has -1 for no limit
	compare("subjects", there.Subjects, wanted.Subjects)
	compare("retention", there.Retention, wanted.Retention)
	compare("storage", there.Storage, wanted.Storage)
	compare("replicas", there.Replicas, wanted.Replicas)
	compare("discard", there.Discard, wanted.Discard)
	compare("discard_new_per_subject", there.DiscardNewPerSubject, wanted.DiscardNewPerSubject)
	compare("max_msgs_per_subject", limit(there.MaxMsgsPerSubject), limit(wanted.MaxMsgsPerSubject))
	compare("max_msgs", limit(there.MaxMsgs), limit(wanted.MaxMsgs))
	compare("max_bytes", limit(there.MaxBytes), limit(wanted.MaxBytes))
	compare("max_msg_size", limit(int64(there.MaxMsgSize)), limit(int64(wanted.MaxMsgSize)))
	if there.Name != ordersStream || there.MaxAge != 0 && there.MaxAge < wanted.MaxAge { // KeepOrders raises it
		compare("max_age", there.MaxAge, wanted.MaxAge)
	}
	compare("allow_direct", there.AllowDirect, wanted.AllowDirect)
	compare("allow_rollup_hdrs", there.AllowRollup, wanted.AllowRollup)
	compare("deny_delete", there.DenyDelete, false)
	compare("deny_purge", there.DenyPurge, false)
	compare("sealed", there.Sealed, false)
	compare("no_ack", there.NoAck, false)
	compare("mirror", there.Mirror != nil, false)
	compare("sources", len(there.Sources), 0)
	return differences
}

// watchReady looks whether the cluster can store, and tells Ready.
func (e *engine) watchReady() {
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	for {
		select {
		case <-e.dead.Done():
			return
		case <-tick.C:
		}
		refuses := e.checkStream(e.inbox)
		e.refuses.Store(&refuses)
		unready := errors.Join(refuses, e.checkStream(e.orders), e.checkWrite())
		before := e.unready.Swap(&unready)
		was := before != nil && *before != nil
		switch {
		case e.dead.Err() != nil:
		case unready != nil && !was:
			e.logger.Error("the cluster cannot store: events are refused until it can", "error", unready,
				"check", "are most of its servers up, and connected with each other? (nats server report jetstream)")
		case unready == nil && was:
			e.logger.Info("the cluster can store again")
		}
	}
}

// checkWrite writes to a small stream.
func (e *engine) checkWrite() error {
	ctx, cancel := context.WithTimeout(e.dead, readyTimeout)
	defer cancel()
	if _, err := e.buckets[State].Put(ctx, openedKey, nil); err != nil {
		return fmt.Errorf("write to %s: %w", bucketStream(State), err)
	}
	return nil
}

// checkStream asks a stream's leader for its replicas.
func (e *engine) checkStream(stream jetstream.Stream) error {
	ctx, cancel := context.WithTimeout(e.dead, readyTimeout)
	defer cancel()
	name := stream.CachedInfo().Config.Name
	info, err := e.infoOf(ctx, name)
	switch {
	case err != nil:
		return err
	case info.Cluster == nil:
		return nil
	case info.Cluster.Leader == "":
		return fmt.Errorf("stream %s has no leader", name)
	}
	away := 0
	for _, replica := range info.Cluster.Replicas {
		if replica.Offline {
			away++
		}
	}
	if away > info.Config.Replicas/2 {
		return fmt.Errorf("stream %s has lost its quorum: %d of %d replicas are away", name, away, info.Config.Replicas)
	}
	return nil
}

// refusing returns why INBOX takes nothing, as it was seen a moment ago.
func (e *engine) refusing() error {
	if refuses := e.refuses.Load(); refuses != nil && *refuses != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, *refuses)
	}
	return nil
}

// askLeader gets a message of a stream from its leader, or jetstream.ErrMsgNotFound.
// The other replicas, which the client's own reads may reach, may lag.
func (e *engine) askLeader(ctx context.Context, stream string, request server.JSApiMsgGetRequest) (*jetstream.RawStreamMsg, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	reply, err := e.conn.RequestWithContext(ctx, fmt.Sprintf(server.JSApiMsgGetT, stream), body)
	if err != nil {
		return nil, err
	}
	var answer server.JSApiMsgGetResponse
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return nil, err
	}
	switch {
	case answer.Error != nil && answer.Error.ErrCode == uint16(server.JSNoMessageFoundErr):
		return nil, jetstream.ErrMsgNotFound
	case answer.Error != nil:
		return nil, answer.Error
	case answer.Message == nil:
		return nil, jetstream.ErrInvalidJetStreamResponse
	}
	found := answer.Message
	msg := &jetstream.RawStreamMsg{Subject: found.Subject, Sequence: found.Sequence, Data: found.Data, Time: found.Time}
	if len(found.Header) > 0 {
		if msg.Header, err = nats.DecodeHeadersMsg(found.Header); err != nil {
			return nil, err
		}
	}
	return msg, nil
}

// readOfLeader is for a read that found nothing: there may be something that the
// replica that was asked does not have yet.
func readOfLeader[T any](ctx context.Context, e *engine, stream string, decode decoder[T], from readFrom) ([]T, error) {
	msg, err := e.askLeader(ctx, stream, server.JSApiMsgGetRequest{Seq: from.sequence, NextFor: cmp.Or(from.subject, ">")})
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return []T{decode(msg.Subject, msg.Sequence, msg.Time, msg.Header, msg.Data)}, nil
}

// noneSince reports whether the leader has no message that was stored at or after a
// time.
func (e *engine) noneSince(ctx context.Context, stream string, at time.Time) (bool, error) {
	info, err := e.infoOf(ctx, stream)
	if err != nil {
		return false, err
	}
	return info.State.Msgs == 0 || info.State.LastTime.Before(at), nil
}

func pauseFor(ctx context.Context, pause time.Duration) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	case <-time.After(pause):
		return nil
	}
}

// Change is what Migrate does to a stream.
type Change struct {
	// Stream is its name in the cluster.
	Stream string
	// New says that it is made, else Differences are what becomes other.
	New         bool
	Differences []string
	// Refused is why it cannot be done; empty when it can.
	Refused string
}

// Migrate tells what there is to change in a cluster so that a gateway can be started
// with cfg, and does it when apply is set. Nothing is done when a change is refused:
// what would remove events needs another stream.
func Migrate(ctx context.Context, cfg Config, apply bool) (changes []Change, err error) {
	cfg.complete(nil)
	e := newEngine(cfg)
	defer func() {
		e.fail(errors.New("done"))
		e.close()
	}()
	if e.conn, err = natsconn.Connect(ctx, cfg.Cluster.Config, "ordergate migrate", nil); err != nil {
		return nil, err
	}
	if e.js, err = jetstream.New(e.conn, jetstream.WithDefaultTimeout(requestTimeout)); err != nil {
		return nil, err
	}
	var todo []func() error
	refused := false
	for _, wanted := range sharedStreams(cfg) {
		change := Change{Stream: wanted.Name}
		stream, err := e.js.Stream(ctx, wanted.Name)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			change.New = true
			todo = append(todo, func() error { _, err := e.js.CreateStream(ctx, wanted); return err })
		case err != nil:
			return nil, fmt.Errorf("stream %s: %w", wanted.Name, err)
		default:
			there := stream.CachedInfo().Config
			if change.Differences = Differences(there, wanted); len(change.Differences) == 0 {
				continue
			}
			change.Refused = refusal(stream.CachedInfo(), wanted)
			refused = refused || change.Refused != ""
			wanted.Metadata = there.Metadata
			todo = append(todo, func() error { _, err := e.js.UpdateStream(ctx, wanted); return err })
		}
		changes = append(changes, change)
	}
	if !apply || refused {
		return changes, nil
	}
	for i, do := range todo {
		if err := do(); err != nil {
			return changes, fmt.Errorf("stream %s: %w", changes[i].Stream, err)
		}
	}
	return changes, nil
}

// sharedStreams are all streams that a log in a cluster has, INBOX and ORDERS first.
func sharedStreams(cfg Config) []jetstream.StreamConfig {
	streams := []jetstream.StreamConfig{inboxConfig(cfg), ordersConfig(cfg)}
	for i := range streams {
		streams[i].Metadata = newMetadata()
	}
	var buckets []jetstream.StreamConfig
	for name, age := range bucketAges(cfg) {
		buckets = append(buckets, bucketConfig(cfg, name, age))
	}
	slices.SortFunc(buckets, func(a, b jetstream.StreamConfig) int { return cmp.Compare(a.Name, b.Name) })
	return append(streams, buckets...)
}

// refusal says why a stream cannot become what is wanted without a loss; empty when
// it can.
func refusal(info *jetstream.StreamInfo, wanted jetstream.StreamConfig) string {
	there := info.Config
	switch {
	case readable(there.Metadata) != nil && (wanted.Name == inboxStream || wanted.Name == ordersStream):
		return "it " + readable(there.Metadata).Error()
	case there.Storage != wanted.Storage:
		return "what is in memory cannot be moved to disk in place: make the log anew, or import it"
	case there.Retention != wanted.Retention:
		return "the engine cannot change how a stream lets go of events: make the log anew, or import it"
	case there.Mirror != nil || len(there.Sources) > 0:
		return "it is fed by another stream: end that first (nats stream edit)"
	case there.Sealed:
		return "it is sealed for good"
	case wanted.MaxAge > 0 && info.State.Msgs > 0 && time.Since(info.State.FirstTime) > wanted.MaxAge:
		return fmt.Sprintf("events older than %v would be removed at once: the oldest is of %s; give a longer age", wanted.MaxAge, info.State.FirstTime.UTC().Format(time.RFC3339))
	case wanted.MaxBytes > 0 && info.State.Bytes > uint64(wanted.MaxBytes):
		return fmt.Sprintf("it holds %d bytes, more than %d", info.State.Bytes, wanted.MaxBytes)
	}
	return ""
}
