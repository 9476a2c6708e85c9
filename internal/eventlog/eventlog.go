// Package eventlog keeps what the gateway knows: the raw Stripe events in the
// stream INBOX, once per event id, and the order events made from them in the
// stream ORDERS. Both are JetStream streams in a NATS server that runs inside
// the process.
//
// The promises it keeps:
//
//   - What AppendInbox acknowledged is on disk, and so is everything that
//     Flush covered. Many callers share one flush (group commit).
//   - A reader of ORDERS never sees an event that a power cut could take back:
//     reading ends at the durable frontier, which moves only after a flush.
//   - After a write or a flush that failed nothing is acknowledged any more,
//     until the server was closed, the page cache of its files dropped, and
//     the log opened again. That happens by itself, with backoff.
package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/gofrs/flock"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ordergate/ordergate/internal/watchfile"
)

// What can go wrong, for errors.Is.
var (
	// ErrUnavailable means that the log cannot commit or read at the moment,
	// or that it is not known whether it did. Try again later.
	ErrUnavailable = errors.New("the log is unavailable")
	// ErrFull means that a stream has reached its size limit: it refuses new
	// events, and never drops old ones to make room.
	ErrFull = errors.New("the log is full")
	// ErrNotFound means that there is no such order.
	ErrNotFound = errors.New("not found")
	// ErrConflict means that another writer changed the order first: read it
	// again.
	ErrConflict = errors.New("the order was changed meanwhile")
	// ErrExpired means that events after the asked position are no longer
	// kept.
	ErrExpired = errors.New("position is no longer kept")
	// ErrTooLarge means that an order event exceeds the largest size that is stored. The same
	// write fails again.
	ErrTooLarge = errors.New("the order event is too large")
	// ErrLocked means that another process uses the data directory.
	ErrLocked = errors.New("the data directory is in use")
)

// lockFile is locked by the process that uses the directory.
const lockFile = "LOCK"

// Config says where and how to keep the log.
type Config struct {
	// Dir is the data directory. It is created with mode 0700 when missing.
	Dir string
	// Cluster is where the log is kept instead, together with other gateways; nil is
	// in Dir.
	Cluster *Cluster
	// InboxMaxAge is how long raw events are kept, and with them the memory of
	// their ids. At least 30 days, for as long Stripe lets an event be resent.
	InboxMaxAge time.Duration
	// OrdersMaxAge is how long order events are kept.
	OrdersMaxAge time.Duration
	// InboxMaxBytes and OrdersMaxBytes are what the streams may take on disk before
	// they refuse new events; 0 is without limit.
	InboxMaxBytes, OrdersMaxBytes int64
	// AsIs leaves the limits of an existing log as they are, for a look at it.
	AsIs bool
	// MaxEventBytes is the largest raw event, in bytes.
	MaxEventBytes int
	// Keys encrypt what is stored. None leaves it in plaintext.
	Keys Keys
	// AcceptDamage opens a log whose files are damaged, without what cannot be read.
	AcceptDamage bool
	// Logger gets what the operator should know.
	Logger *slog.Logger
	// Metrics is where the metrics are registered; nil is nowhere.
	Metrics prometheus.Registerer

	// Sync replaces the flush to disk, in tests that must make it fail. Nil is
	// the real one.
	Sync func() error
	// HeldOrdersAge and ProbeBytes replace for how long HeldOrders keeps an entry
	// (HeldOrdersAge), and how much is written to see that the disk has room, for
	// logs that tests keep: these grow old, and must be small. 0 is as usual.
	HeldOrdersAge time.Duration
	ProbeBytes    int

	measures *measures        // set by Open
	key      string           // of the log, once it is open
	wall     func() time.Time // replaces the clock on the wall, in tests

	// held reports whether the data directory is still the one that Open took; nil without one.
	held func() error

	// restore fills the engine of a new log, before its streams are looked at.
	restore func(context.Context, *engine) error
}

// Log is the open log. Its methods may be called from many goroutines.
type Log struct {
	cfg  Config
	lock *flock.Flock
	dir  *os.File // one descriptor for life: syncfs reports an error once per descriptor

	stop context.CancelFunc
	done chan struct{} // closed when supervise has ended

	member member // of those that share the log

	mu      sync.Mutex
	engine  *engine       // nil while the log is being reopened
	opened  int           // how often it was opened
	changed chan struct{} // closed, and made anew, when engine changes
	closed  bool
}

// Open opens the log in cfg.Dir or in cfg.Cluster, and returns when everything that
// was ever acknowledged can be read. It fails with ErrLocked when another process
// has the directory open, and with ErrSettings when the cluster's streams are not as
// they must be.
func Open(ctx context.Context, cfg Config) (_ *Log, err error) {
	if cfg.Cluster != nil {
		cfg.complete(nil)
		return openShared(ctx, cfg)
	}
	lock, dir, err := holdDir(cfg.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			dir.Close()
			lock.Close()
		}
	}()
	if err := refuseUnfinished(cfg.Dir); err != nil {
		return nil, err
	}
	cfg.complete(dir)
	if cfg.held, err = directoryCheck(cfg.Dir); err != nil {
		return nil, err
	}
	watchfile.WarnIfShared(cfg.Logger, "the data directory", cfg.Dir)
	if cfg.key, err = openKey(cfg.Dir, cfg.Keys, cfg.Logger); err != nil {
		return nil, err
	}
	if err := checkFormat(cfg.Dir, cfg.key); err != nil {
		return nil, err
	}
	e, err := openEngine(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return newLog(cfg, e, dir, lock), nil
}

func newLog(cfg Config, e *engine, dir *os.File, lock *flock.Flock) *Log {
	supervised, stop := context.WithCancel(context.Background())
	l := &Log{cfg: cfg, lock: lock, dir: dir, stop: stop, done: make(chan struct{}), engine: e, opened: 1, changed: make(chan struct{})}
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(collector{l})
	}
	go l.supervise(supervised, e)
	return l
}

// complete fills in what the caller left to the log.
func (cfg *Config) complete(dir *os.File) {
	if cfg.wall == nil {
		cfg.wall = time.Now
	}
	if cfg.Sync == nil {
		cfg.Sync = func() error { return syncFilesystem(dir) }
	}
	cfg.measures = newMeasures(cfg.Metrics)
}

// holdDir makes the directory where it is missing, and takes it for this process.
func holdDir(name string) (*flock.Flock, *os.File, error) {
	if err := os.MkdirAll(name, 0o700); err != nil {
		return nil, nil, fmt.Errorf("create the data directory: %w", err)
	}
	lock := flock.New(filepath.Join(name, lockFile), flock.SetPermissions(0o600))
	locked, err := lock.TryLock()
	if err != nil {
		return nil, nil, fmt.Errorf("lock the data directory %s: %w", name, err)
	}
	if !locked {
		return nil, nil, fmt.Errorf("%w: another ordergate runs on %s: stop it, or give this one a --data-dir of its own", ErrLocked, name)
	}
	dir, err := os.Open(name)
	if err != nil {
		lock.Close()
		return nil, nil, fmt.Errorf("open the data directory: %w", err)
	}
	return lock, dir, nil
}

// Close ends the log in order: what is being committed is committed, then the
// server is shut down and the directory freed.
func (l *Log) Close() error {
	if l.Shared() {
		l.member.ends()
		l.member.tasks.Wait()
	}
	l.stop()
	<-l.done
	if l.dir == nil {
		return nil
	}
	return errors.Join(l.dir.Close(), l.lock.Close())
}

// Ready returns nil while the log can commit, else what is wrong.
func (l *Log) Ready() error {
	e, err := l.current()
	if err != nil {
		return err
	}
	return seen(&e.unready)
}

// supervise replaces an engine that failed, until ctx ends. It owns the
// engine's life.
func (l *Log) supervise(ctx context.Context, e *engine) {
	defer close(l.done)
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval = 100 * time.Millisecond
	pause.MaxInterval = 30 * time.Second
	if l.Shared() {
		pause.MaxInterval = joinPause
	}
	for {
		opened := time.Now()
		select {
		case <-ctx.Done():
			l.set(nil, true)
			e.close()
			return
		case <-e.dead.Done():
		}
		l.set(nil, false)
		l.cfg.Logger.Error("the log stopped acknowledging; reopening it", "error", context.Cause(e.dead))
		e.close()
		if time.Since(opened) > 2*pause.MaxInterval {
			pause.Reset()
		}
		if e = l.reopen(ctx, pause); e == nil {
			l.set(nil, true)
			return
		}
		l.cfg.measures.reopenings.Inc()
		l.cfg.Logger.Info("the log is open again")
		l.set(e, false)
	}
}

// reopen tries to open an engine until it succeeds or ctx ends (nil).
func (l *Log) reopen(ctx context.Context, pause backoff.BackOff) *engine {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause.NextBackOff()):
		}
		e, err := openEngine(ctx, l.cfg)
		if err == nil {
			return e
		}
		if ctx.Err() == nil {
			l.cfg.Logger.Error("the log cannot be opened; trying again", "error", err)
		}
	}
}

func (l *Log) set(e *engine, closed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.engine, l.closed = e, closed
	if e != nil {
		l.opened++
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

// current returns the engine in use, or ErrUnavailable.
func (l *Log) current() (*engine, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, fmt.Errorf("%w: it is closed", ErrUnavailable)
	case l.engine == nil:
		return nil, fmt.Errorf("%w: it is being reopened after a failure", ErrUnavailable)
	case l.engine.dead.Err() != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, context.Cause(l.engine.dead))
	}
	return l.engine, nil
}

// Opened returns how often the log was opened, and a channel that is closed when
// that may have changed. What was written and not flushed before it was opened
// again may be gone.
func (l *Log) Opened() (times int, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.opened, l.changed
}

// await returns the engine in use as soon as there is one.
func (l *Log) await(ctx context.Context) (*engine, error) {
	for {
		l.mu.Lock()
		e, closed, changed := l.engine, l.closed, l.changed
		l.mu.Unlock()
		if closed {
			return nil, fmt.Errorf("%w: it is closed", ErrUnavailable)
		}
		if e != nil && e.dead.Err() == nil {
			return e, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}
