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
	"sync/atomic"
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
	// insistence is how often a cluster is asked again that did not answer.
	insistence = 5
	// peersPause is how long it waits for enough servers each time.
	peersPause = 500 * time.Millisecond
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
			return nil, withoutJetStream(err)
		case cfg.AsIs, errors.Is(err, ErrSettings), errors.Is(err, ErrUnfinished), errors.As(err, &format), errors.Is(err, natsconn.ErrConfig):
			return nil, err
		}
		cfg.Logger.Error("the log cannot be opened; trying again", "error", err)
		if pauseFor(ctx, joinPause) != nil {
			return nil, ctx.Err()
		}
	}
}

// join connects to the cluster, and returns when the streams are there and right. The
// engine dies with its connection.
func (e *engine) join(ctx context.Context, cfg Config) error {
	if err := e.connect(ctx, cfg, "ordergate"); err != nil {
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
	if err := errors.Join(e.checkStream(e.inbox), e.checkStream(e.orders), e.checkWrite()); err != nil {
		return err
	}
	e.advance(math.MaxUint64) // what arrives is the quorum's
	e.background.Go(func() { e.watchRoom("") })
	e.background.Go(e.watchReady)
	return nil
}

// connect connects to the cluster, under a name that its operators see. The engine dies
// with the connection.
func (e *engine) connect(ctx context.Context, cfg Config, name string) error {
	lost := func(err error) {
		e.fail(fmt.Errorf("the connection to NATS was lost: %w", cmp.Or(err, nats.ErrConnectionClosed)))
	}
	var err error
	if e.conn, err = natsconn.Connect(ctx, cfg.Cluster.Config, name, lost); err != nil {
		return err
	}
	if needed := cfg.MinPayload(); e.conn.MaxPayload() < needed {
		return fmt.Errorf("%w: NATS takes messages of %d bytes, and an order event may have %d: set max_payload to %d or more in its configuration", ErrSettings, e.conn.MaxPayload(), needed, needed)
	}
	e.js, err = jetstream.New(e.conn, jetstream.WithDefaultTimeout(requestTimeout), jetstream.WithPublishAsyncMaxPending(maxPublishing), jetstream.WithPublishAsyncTimeout(requestTimeout))
	return err
}

// MinPayload is the smallest max_payload of NATS servers that keep the log.
func (cfg Config) MinPayload() int64 { return int64(cfg.MaxEventBytes + orderBytes + headerBytes) }

// ensureShared creates a stream, or returns the one there is, if that is as it must
// be: of several gateways none changes what the others rely on (see Migrate).
func (e *engine) ensureShared(ctx context.Context, cfg Config, wanted jetstream.StreamConfig) (jetstream.Stream, error) {
	var stream jetstream.Stream
	err := insist(ctx, func(ctx context.Context) (err error) {
		stream, err = e.js.Stream(ctx, wanted.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) && !cfg.AsIs {
			stream, err = e.js.CreateStream(ctx, wanted)
			if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another gateway was faster
				stream, err = e.js.Stream(ctx, wanted.Name)
			}
			if errors.Is(err, jetstream.ErrStreamNotFound) {
				err = errBeingMade
			}
		}
		return err
	})
	if err != nil {
		return nil, ofReplicas(err, wanted.Replicas)
	}
	if err := refuseMarked(stream.CachedInfo().Config.Metadata); err != nil || cfg.AsIs {
		return stream, err
	}
	if changes := Differences(stream.CachedInfo().Config, wanted); len(changes) > 0 {
		return nil, fmt.Errorf("%w:\n  %s\nstart the gateway with the settings that the others have, or see `ordergate migrate`", ErrSettings, strings.Join(changes, "\n  "))
	}
	return stream, nil
}

// ofReplicas adds the mend to an error of a cluster that is too small.
func ofReplicas(err error, replicas int) error {
	if !refusedFor(err, server.JSClusterNoPeersErrF, server.JSStreamReplicasNotSupportedErr) {
		return err
	}
	return fmt.Errorf("cannot have %d replicas: %w: give --replicas as many servers with JetStream as there are, or start more", replicas, err)
}

// refusedFor reports whether the engine refused something for one of these reasons.
func refusedFor(err error, reasons ...server.ErrorIdentifier) bool {
	var refused *jetstream.APIError
	return errors.As(err, &refused) && slices.Contains(reasons, server.ErrorIdentifier(refused.ErrorCode))
}

// errBeingMade means that another gateway makes a stream at the moment.
var errBeingMade = errors.New("it is being made by another gateway")

// insist asks a cluster, again when it does not answer: what comes while a leader is
// elected, it never answers.
func insist(ctx context.Context, ask func(context.Context) error) error {
	for attempt := 1; ; attempt++ {
		asking, cancel := context.WithTimeout(ctx, streamTimeout)
		err := ask(asking)
		cancel()
		switch {
		case err == nil, ctx.Err() != nil, attempt == insistence:
			return err
		case errors.Is(err, errBeingMade):
			if err := pauseFor(ctx, lagPause); err != nil {
				return err
			}
		case refusedFor(err, server.JSClusterNoPeersErrF): // of servers that have just begun, not all know each other
			if err := pauseFor(ctx, peersPause); err != nil {
				return err
			}
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		default:
			return err
		}
	}
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
	if ageCounts(there, wanted) {
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

// ageCounts reports whether a stream's age is what the configuration says: that of
// ORDERS may be longer, which is KeepOrders' matter.
func ageCounts(there, wanted jetstream.StreamConfig) bool {
	return there.Name != ordersStream || there.MaxAge != 0 && there.MaxAge < wanted.MaxAge
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

// seen returns what watchReady saw a moment ago.
func seen(problem *atomic.Pointer[error]) error {
	if err := problem.Load(); err != nil && *err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, *err)
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
	Stream string `json:"stream"`
	// New says that it is made, else Differences are what becomes other.
	New         bool     `json:"new,omitempty"`
	Differences []string `json:"differences,omitempty"`
	// Refused is why it cannot be done; empty when it can.
	Refused string `json:"refused,omitempty"`
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
	if err := e.connect(ctx, cfg, "ordergate migrate"); err != nil {
		return nil, err
	}
	var todo []func(context.Context) error
	refused := false
	for _, wanted := range sharedStreams(cfg) {
		change := Change{Stream: wanted.Name}
		there, err := e.streamIn(ctx, wanted.Name)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			change.New = true
			todo = append(todo, func(ctx context.Context) error { _, err := e.js.CreateStream(ctx, wanted); return err })
		case err != nil:
			return nil, fmt.Errorf("stream %s: %w", wanted.Name, err)
		default:
			if err := refuseMarked(there.Config.Metadata); err != nil {
				return nil, fmt.Errorf("stream %s: %w", wanted.Name, err)
			}
			if change.Differences = Differences(there.Config, wanted); len(change.Differences) == 0 {
				continue
			}
			mended := mend(there.Config, wanted)
			change.Refused = refusal(there, mended)
			refused = refused || change.Refused != ""
			todo = append(todo, func(ctx context.Context) error { _, err := e.js.UpdateStream(ctx, mended); return err })
		}
		changes = append(changes, change)
	}
	if !apply || refused {
		return changes, nil
	}
	for i, do := range todo {
		if err := insist(ctx, do); err != nil {
			return changes, fmt.Errorf("stream %s: %w", changes[i].Stream, ofReplicas(err, cfg.replicas()))
		}
	}
	return changes, nil
}

// streamIn asks a cluster for a stream.
func (e *engine) streamIn(ctx context.Context, name string) (info *jetstream.StreamInfo, err error) {
	err = insist(ctx, func(ctx context.Context) error {
		stream, err := e.js.Stream(ctx, name)
		if err == nil {
			info = stream.CachedInfo()
		}
		return err
	})
	return info, withoutJetStream(err)
}

// withoutJetStream adds the mend to an error of a cluster that cannot store.
func withoutJetStream(err error) error {
	if errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) || errors.Is(err, nats.ErrNoResponders) {
		return fmt.Errorf("%w: NATS has no JetStream for this account: enable it in the servers' configuration (jetstream {}), and for the account", err)
	}
	return err
}

// mend is the stream that is there, with what Differences looks at as it must be: where
// operators place it, and what they write of it, is theirs.
func mend(there, wanted jetstream.StreamConfig) jetstream.StreamConfig {
	mended := there
	mended.Subjects, mended.Retention, mended.Storage, mended.Replicas = wanted.Subjects, wanted.Retention, wanted.Storage, wanted.Replicas
	mended.Discard, mended.DiscardNewPerSubject, mended.MaxMsgsPerSubject = wanted.Discard, wanted.DiscardNewPerSubject, wanted.MaxMsgsPerSubject
	mended.MaxMsgs, mended.MaxBytes, mended.MaxMsgSize = wanted.MaxMsgs, wanted.MaxBytes, wanted.MaxMsgSize
	mended.AllowDirect, mended.AllowRollup, mended.NoAck = wanted.AllowDirect, wanted.AllowRollup, wanted.NoAck
	mended.DenyDelete, mended.DenyPurge = false, false
	if ageCounts(there, wanted) {
		mended.MaxAge = wanted.MaxAge
	}
	return mended
}

// sharedStreams are all streams that a log in a cluster has. The bucket of the leases is
// the first, to be made and to be looked at: an import marks it before all others.
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
	first := slices.IndexFunc(buckets, func(c jetstream.StreamConfig) bool { return c.Name == bucketStream(leases) })
	return slices.Concat(buckets[first:first+1], streams, buckets[:first], buckets[first+1:])
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
	case there.DenyDelete, there.DenyPurge:
		return "the engine cannot allow again what is denied (deny_delete, deny_purge), and erasing needs it: make the log anew, or import it"
	case wanted.MaxAge > 0 && wanted.MaxAge != there.MaxAge && info.State.Msgs > 0 && time.Since(info.State.FirstTime) > wanted.MaxAge:
		return fmt.Sprintf("events older than %v would be removed at once: the oldest is of %s; give a longer age", wanted.MaxAge, info.State.FirstTime.UTC().Format(time.RFC3339))
	case wanted.MaxBytes > 0 && info.State.Bytes > uint64(wanted.MaxBytes):
		return fmt.Sprintf("it holds %d bytes, more than %d", info.State.Bytes, wanted.MaxBytes)
	}
	return ""
}
