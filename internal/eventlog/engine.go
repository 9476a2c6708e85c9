package eventlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"golang.org/x/sync/semaphore"
)

const (
	inboxStream  = "INBOX"
	ordersStream = "ORDERS"

	// metadataID is the stream metadata that identifies the log: resume tokens
	// are bound to it.
	metadataID = "ordergate.id"

	// halfBlocks is a limit that no order reaches. With one, the engine keeps a stream
	// in blocks of 4 MB instead of 8; a read of a random order loads a block.
	halfBlocks = 1 << 40

	// openedKey is written in the bucket State whenever the log is opened.
	openedKey = "opened"

	// duplicates is the shortest window there is of the engine's own deduplication, by
	// ids that no message has: at an opening it reads the messages of a whole window.
	duplicates = 100 * time.Millisecond

	// openTimeout bounds the recovery of the streams at start.
	openTimeout = 5 * time.Minute
	// healthInterval is how often the engine is asked for failed writes: it does
	// not answer a publish that it could not write.
	healthInterval = 500 * time.Millisecond
	// probeTimeout bounds the write that shows that the engine can write.
	probeTimeout = 5 * time.Second
	// probeBytes is more than the events that are under way may need.
	probeBytes = 256 << 10
	// requestTimeout bounds one request to the engine whose caller gave no
	// deadline.
	requestTimeout = 10 * time.Second
	// orderBytes is the room an order event may take beyond a raw event.
	orderBytes = 1 << 20
	// headerBytes is the room for a message's headers.
	headerBytes = 16 << 10
)

// engine is one life of the embedded server, from opening to a failure or the
// end.
type engine struct {
	logger *slog.Logger
	dir    string
	sync   func() error
	shared bool           // with other gateways: the log is in a cluster
	server *server.Server // nil when it is
	conn   *nats.Conn
	js     jetstream.JetStream
	orders jetstream.Stream
	inbox  jetstream.Stream
	id     string

	buckets map[BucketName]jetstream.KeyValue
	used    map[BucketName]*atomic.Bool // whether anything was ever written to it

	reads      *semaphore.Weighted
	tail       tail
	aheads     aheads
	flusher    *flusher
	background sync.WaitGroup

	// dead ends with the cause of a failure after which nothing may be
	// acknowledged.
	dead context.Context
	fail context.CancelCauseFunc

	notebook  *notebook // nil until it is open
	note      *note     // what is in it; of the flusher, between opening and the end
	untouched bool      // nobody has had the log since its clean end: most blocks are left to be read
	accepted  bool      // damage was found, and is accepted
	converter bool      // it was restored, with its place

	unready  atomic.Pointer[error] // why a cluster cannot store; nil, or of nil, when it can
	refuses  atomic.Pointer[error] // the same of INBOX
	keepsAll atomic.Bool           // the clock was set: nothing is removed for its age

	mu       sync.Mutex
	streams  map[string]uint64 // newest sequences that were written, for the note
	written  uint64            // newest sequence of ORDERS that was written
	flushed  uint64            // newest sequence of ORDERS that is on disk
	arrived  uint64            // newest sequence of ORDERS that is in the tail
	frontier uint64            // what readers may see: the lower of the two
	advanced chan struct{}     // closed, and made anew, when frontier grows
}

func newEngine(cfg Config) *engine {
	e := &engine{
		logger: cfg.Logger, dir: cfg.Dir, sync: cfg.Sync, shared: cfg.Cluster != nil, streams: map[string]uint64{}, advanced: make(chan struct{}),
		reads: semaphore.NewWeighted(maxReads), tail: tail{loaded: make(chan struct{})}, aheads: aheads{stay: aheadIdle},
	}
	e.dead, e.fail = context.WithCancelCause(context.Background())
	return e
}

// openEngine starts a server on what is really on the disk, and returns once
// one flush has covered all that it recovered; or it connects to a cluster.
func openEngine(ctx context.Context, cfg Config) (_ *engine, err error) {
	if cfg.restore == nil { // that takes as long as it takes
		var cancel context.CancelFunc
		timeout := openTimeout
		if cfg.Cluster != nil {
			timeout = joinTimeout
		}
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	e := newEngine(cfg)
	defer func() {
		if err != nil {
			e.fail(err)
			e.close()
		}
	}()
	if e.shared {
		return e, e.join(ctx, cfg)
	}
	if cfg.held != nil { // a new log in the place of a lost one would go unnoticed
		if err := cfg.held(); err != nil {
			return nil, err
		}
	}
	e.flusher = newFlusher(e.syncWithNote, e.newestWritten, e.advance, func(err error) { e.fail(fmt.Errorf("flush to disk: %w", err)) })
	e.flusher.flushed = cfg.measures.flushed
	if err := e.openNote(); err != nil {
		return nil, err
	}
	if err := cfg.Sync(); err != nil {
		return nil, fmt.Errorf("flush the data directory: %w", err)
	}
	if !e.untouched { // a flush may have failed: what is in memory need not be on disk
		if err := dropPageCache(cfg.Dir); err != nil {
			return nil, fmt.Errorf("drop the page cache of the data directory: %w", err)
		}
	}
	if err := e.checkFiles(cfg); err != nil {
		return nil, err
	}
	if err := e.start(cfg); err != nil {
		return nil, fmt.Errorf("start the log's engine on %s: %w", cfg.Dir, err)
	}
	if cfg.restore != nil {
		if err := cfg.restore(ctx, e); err != nil {
			return nil, err
		}
	}
	if err := e.createStreams(ctx, cfg); err != nil {
		return nil, fmt.Errorf("open the log's streams: %w", err)
	}
	if err := e.checkStates(cfg); err != nil {
		return nil, err
	}
	if err := e.probe(ctx, cmp.Or(cfg.ProbeBytes, probeBytes)); err != nil {
		return nil, fmt.Errorf("write to the log: %w", err)
	}
	if err := e.finishErasing(ctx); err != nil {
		return nil, fmt.Errorf("finish what was being erased: %w", err)
	}
	if err := e.follow(ctx, e.orders.CachedInfo().State, cfg.OrdersMaxAge); err != nil {
		return nil, fmt.Errorf("follow the order events: %w", err)
	}
	e.background.Go(func() { e.flusher.run(e.dead) })
	e.background.Go(func() { e.failOn(healthInterval, e.health) })
	e.background.Go(func() { e.watchRoom(cfg.Dir) })
	if cfg.held != nil {
		e.background.Go(func() { e.failOn(directoryInterval, cfg.held) })
	}
	e.background.Go(func() { e.watchClock(cfg.wall) })
	if err := e.flush(ctx); err != nil {
		return nil, err
	}
	if e.untouched {
		e.background.Go(func() { e.checkRest(cfg.key) })
	}
	// Recovering the streams leaves as much garbage as it keeps.
	e.background.Go(debug.FreeOSMemory)
	return e, nil
}

// probe writes something: with a full disk, everything else about opening
// works.
func (e *engine) probe(ctx context.Context, size int) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_, err := e.buckets[State].Put(ctx, openedKey, make([]byte, size))
	if health := e.health(); health != nil {
		return health
	}
	return err
}

// failOn ends the engine as soon as a check that is made at an interval fails: nothing is
// acknowledged after that. The log then opens again, as soon as it can.
func (e *engine) failOn(interval time.Duration, check func() error) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-e.dead.Done():
			return
		case <-tick.C:
			if err := check(); err != nil {
				e.fail(err)
				return
			}
		}
	}
}

// health returns what the engine says is wrong with its store: a stream that
// could not be recovered, or one that could not be written. That it was too busy
// to answer is no news about its store.
func (e *engine) health() error {
	var problems []error
	for _, problem := range e.server.Healthz(&server.HealthzOptions{Details: true}).Errors {
		if problem.Type != server.HealthzErrorConn {
			problems = append(problems, errors.New(problem.Error))
		}
	}
	return errors.Join(problems...)
}

// alive returns ctx, ended when the engine dies: whoever waits for an answer
// need not wait any longer then.
func (e *engine) alive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(e.dead, func() { cancel(e.unavailable()) })
	return ctx, func() { stop(); cancel(nil) }
}

func (e *engine) start(cfg Config) error {
	options := &server.Options{
		ServerName: "ordergate",
		DontListen: true,
		NoSigs:     true,
		JetStream:  true,
		StoreDir:   cfg.Dir,
		SyncAlways: syncEachMessage,
		// checkFiles reads this cipher only. It is done by the processor.
		JetStreamKey:    cfg.key,
		JetStreamCipher: server.AES,
		// The disk is the limit; the engine's own would be a share of what was
		// free at start.
		JetStreamMaxStore: math.MaxInt64 / 2,
		MaxPayload:        int32(cfg.MaxEventBytes + orderBytes + headerBytes),
		// A reader's burst must not get the connection dropped.
		MaxPending:             256 << 20,
		DisableJetStreamBanner: true,
	}
	var err error
	if e.server, err = server.NewServer(options); err != nil {
		return err
	}
	e.server.SetLoggerV2(engineLogger{cfg.Logger.With("component", "nats"), cfg.restore != nil}, false, false, false)
	e.server.Start() // recovers the streams before it returns
	if !e.server.ReadyForConnections(openTimeout) {
		return errors.New("it did not become ready")
	}
	if !e.server.JetStreamEnabled() {
		return errors.New("its store could not be opened: see the lines before this one, and check the directory's free space, owner and mode")
	}
	if err := e.health(); err != nil {
		return fmt.Errorf("%w: %w; keep a copy of the directory, and restore a backup or start with an empty one", ErrDamaged, err)
	}
	e.conn, err = nats.Connect("", nats.InProcessServer(e.server), nats.Name("ordergate"), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
		nats.Timeout(requestTimeout))
	if err != nil {
		return err
	}
	e.js, err = jetstream.New(e.conn, jetstream.WithDefaultTimeout(requestTimeout), jetstream.WithPublishAsyncMaxPending(maxPublishing))
	return err
}

func (e *engine) createStreams(ctx context.Context, cfg Config) error {
	var err error
	if e.shared { // an import marks it first
		if _, err := e.ensureBucket(ctx, cfg, bucketConfig(cfg, leases, leaseTime)); err != nil {
			return fmt.Errorf("bucket %s: %w", leases, err)
		}
	}
	if e.inbox, err = e.ensureStream(ctx, cfg, inboxConfig(cfg)); err != nil {
		return err
	}
	if e.orders, err = e.ensureStream(ctx, cfg, ordersConfig(cfg)); err != nil {
		return err
	}
	if !e.shared {
		if err := e.forgetConverter(ctx); err != nil {
			return err
		}
	}
	if err := e.openBuckets(ctx, cfg); err != nil {
		return err
	}
	info := e.orders.CachedInfo()
	e.id = info.Config.Metadata[metadataID]
	e.written, e.arrived = info.State.LastSeq, info.State.LastSeq
	return nil
}

func inboxConfig(cfg Config) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:                 inboxStream,
		Description:          "Raw Stripe events, once per event id",
		Subjects:             []string{inboxSubject("*")},
		MaxMsgsPerSubject:    1,
		Storage:              jetstream.FileStorage,
		Retention:            jetstream.LimitsPolicy,
		Replicas:             cfg.replicas(),
		Discard:              jetstream.DiscardNew,
		DiscardNewPerSubject: true,
		MaxAge:               cfg.InboxMaxAge,
		Duplicates:           duplicates,
		MaxBytes:             cfg.InboxMaxBytes,
		AllowDirect:          true,
	}
}

func ordersConfig(cfg Config) jetstream.StreamConfig {
	orders := jetstream.StreamConfig{
		Name:        ordersStream,
		Description: "Order events, each with the whole order",
		Subjects:    []string{orderSubject("*")},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Replicas:    cfg.replicas(),
		Discard:     jetstream.DiscardNew,
		MaxAge:      cfg.OrdersMaxAge,
		Duplicates:  duplicates,
		MaxBytes:    cfg.OrdersMaxBytes,
		AllowDirect: true,
	}
	if cfg.Cluster == nil && cfg.key == "" { // encrypted blocks are of 2 MB, without a limit
		orders.MaxMsgsPerSubject = halfBlocks
	}
	return orders
}

// ensureStream creates a stream, or brings what may change of an existing one to
// the configuration.
func (e *engine) ensureStream(ctx context.Context, cfg Config, wanted jetstream.StreamConfig) (jetstream.Stream, error) {
	if e.shared {
		wanted.Metadata = newMetadata()
		stream, err := e.ensureShared(ctx, cfg, wanted)
		if err == nil {
			err = readable(stream.CachedInfo().Config.Metadata)
		}
		if err != nil {
			return nil, fmt.Errorf("stream %s %w", wanted.Name, err)
		}
		return stream, nil
	}
	stream, err := e.js.Stream(ctx, wanted.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		wanted.Metadata = newMetadata()
		return e.js.CreateStream(ctx, wanted)
	case err != nil:
		return nil, err
	}
	if err := readable(stream.CachedInfo().Config.Metadata); err != nil { // checkFormat has looked, as far as it could
		return nil, fmt.Errorf("stream %s %w", wanted.Name, err)
	}
	if cfg.AsIs {
		return stream, nil
	}
	existing := stream.CachedInfo().Config
	changed := existing
	changed.AllowDirect, changed.Duplicates = wanted.AllowDirect, wanted.Duplicates
	changed.MaxMsgsPerSubject, changed.MaxBytes = cmp.Or(wanted.MaxMsgsPerSubject, -1), cmp.Or(wanted.MaxBytes, -1) // as the engine has no limit
	if wanted.MaxAge == 0 || ageCounts(existing, wanted) {
		changed.MaxAge = wanted.MaxAge // else KeepOrders does, once it is known what must be kept
	}
	if reflect.DeepEqual(changed, existing) {
		return stream, nil
	}
	return e.js.UpdateStream(ctx, changed)
}

func newMetadata() map[string]string {
	return map[string]string{metadataID: nuid.Next(), metadataFormat: strconv.Itoa(format)}
}

// close ends the engine. It may be called on one that was only half opened.
func (e *engine) close() {
	clean := e.dead.Err() == nil && e.server != nil
	e.fail(fmt.Errorf("%w: it is closed", ErrUnavailable))
	e.background.Wait()
	e.aheads.forget()
	e.mu.Lock()
	e.wake()
	e.mu.Unlock()
	if e.conn != nil {
		clean = clean && e.quiet()
		e.conn.Close()
	}
	if e.server != nil {
		clean = clean && e.noteStates()
		e.server.Shutdown()
		e.server.WaitForShutdown()
	}
	if e.notebook != nil {
		if clean {
			e.noteEnd()
		}
		e.notebook.close()
	}
}

// flush returns once everything that was written before the call is on disk.
func (e *engine) flush(ctx context.Context) error {
	if e.dead.Err() != nil {
		return e.unavailable()
	}
	if e.shared { // what is acknowledged there is the quorum's
		return nil
	}
	g := e.flusher.join()
	select {
	case <-g.done:
		if g.err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, g.err)
		}
		return nil
	case <-e.dead.Done():
		return e.unavailable()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
}

// flushAndShow flushes, and returns when readers may see ORDERS up to a sequence
// that was written.
func (e *engine) flushAndShow(ctx context.Context, written uint64) error {
	if err := e.flush(ctx); err != nil {
		return err
	}
	for {
		frontier, moved := e.durable()
		if frontier >= written {
			return nil
		}
		select {
		case <-moved:
		case <-e.dead.Done():
			return e.unavailable()
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
	}
}

func (e *engine) unavailable() error {
	return fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(e.dead))
}

// wroteTo notes that a stream was written up to a sequence. The engine acknowledges
// in the order of the sequences, after it wrote, so that everything below is
// written too.
func (e *engine) wroteTo(stream string, sequence uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.streams[stream] = max(e.streams[stream], sequence)
	if stream == ordersStream {
		e.written = max(e.written, sequence)
	}
}

func (e *engine) newestWritten() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.written
}

// advance notes up to where ORDERS is on disk, and arrive up to where the tail has
// it. The frontier follows, and those who wait for it are woken.
func (e *engine) advance(flushed uint64) { e.show(flushed, 0) }
func (e *engine) arrive(arrived uint64)  { e.show(0, arrived) }

func (e *engine) show(flushed, arrived uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.flushed, e.arrived = max(e.flushed, flushed), max(e.arrived, arrived)
	if frontier := min(e.flushed, e.arrived); frontier > e.frontier {
		e.frontier = frontier
		e.wake()
	}
}

// wake has those who wait for the frontier look again. Call it with the lock held.
func (e *engine) wake() {
	close(e.advanced)
	e.advanced = make(chan struct{})
}

// durable returns the frontier, and a channel that is closed when it grows or the
// engine ends.
func (e *engine) durable() (uint64, <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.frontier, e.advanced
}

// engineLogger hands the server's log lines to slog. What the server calls
// fatal is an error here: the process decides about its own end.
type engineLogger struct {
	logger    *slog.Logger
	importing bool // what is worth a warning is in the import's error
}

func (l engineLogger) Warnf(format string, v ...any) {
	if l.importing {
		l.Debugf(format, v...)
		return
	}
	l.logger.Warn(fmt.Sprintf(format, v...))
}

func (l engineLogger) Noticef(format string, v ...any) { l.logger.Debug(fmt.Sprintf(format, v...)) }
func (l engineLogger) Errorf(format string, v ...any)  { l.logger.Error(fmt.Sprintf(format, v...)) }
func (l engineLogger) Fatalf(format string, v ...any)  { l.logger.Error(fmt.Sprintf(format, v...)) }
func (l engineLogger) Debugf(format string, v ...any)  { l.logger.Debug(fmt.Sprintf(format, v...)) }
func (l engineLogger) Tracef(string, ...any)           {}

// subjectID reports whether an id can be one token of a subject.
func subjectID(id string) bool {
	return id != "" && len(id) <= 255 && !strings.ContainsFunc(id, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '-')
	})
}
