package eventlog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// BucketName names one of the durable maps that the log keeps beside its
// streams.
type BucketName string

// The buckets, and for how long they keep an entry that is not written again.
const (
	// References maps Stripe objects to orders. Kept as long as order events.
	References BucketName = "references"
	// ParkedEvents holds the events that could not be converted, whole and
	// without an age limit: nothing that waits is lost to age.
	ParkedEvents BucketName = "parked"
	// Waiting maps Stripe objects to the events that wait for their order. Kept as long as raw
	// events.
	Waiting BucketName = "waiting"
	// Outcomes holds the outcome of each event that was neither converted nor parked. Kept as long
	// as raw events.
	Outcomes BucketName = "outcomes"
	// Tasks holds the work that is due later, such as a lookup at Stripe. Kept as long as raw
	// events.
	Tasks BucketName = "tasks"
	// PendingItems holds the orders whose line items have not been read. Kept
	// as long as order events.
	PendingItems BucketName = "pending-items"
	// Subscriptions holds the settings of subscriptions, by name. Without an age
	// limit.
	Subscriptions BucketName = "subscriptions"
	// Places holds the place of each subscription. Without an age limit.
	Places BucketName = "places"
	// HeldOrders holds the orders that a subscription cannot go on with, and its
	// dead letters. Kept for 90 days: refresh what is to stay.
	HeldOrders BucketName = "held-orders"
	// State holds what the gateway remembers of itself. Without an age limit.
	State BucketName = "state"
	// Erasing holds the tombstones of events that are being erased.
	Erasing BucketName = "erasing"
)

// headerOperation marks the entry of a key that was removed, as NATS's ADR-8 has it.
const (
	headerOperation = "KV-Operation"
	operationDelete = "DEL"
)

// entryTimeout is how long the next entry of a bucket may take to come.
const entryTimeout = 3 * time.Second

// HeldOrdersAge is how long HeldOrders keeps an entry that is not refreshed.
const HeldOrdersAge = 90 * 24 * time.Hour

// bucketAges returns the buckets and how long each keeps an entry; 0 is without
// limit.
func bucketAges(cfg Config) map[BucketName]time.Duration {
	ages := map[BucketName]time.Duration{
		References:   cfg.OrdersMaxAge,
		ParkedEvents: 0,
		Waiting:      cfg.InboxMaxAge,
		Outcomes:     cfg.InboxMaxAge,
		Tasks:        cfg.InboxMaxAge,
		PendingItems: cfg.OrdersMaxAge,

		Subscriptions: 0,
		Places:        0,
		HeldOrders:    cmp.Or(cfg.HeldOrdersAge, HeldOrdersAge),
		State:         0,
		Erasing:       0,
	}
	if cfg.Cluster != nil {
		ages[leases], ages[Owners] = leaseTime, 0
	}
	return ages
}

// bucketStream is the stream that a bucket is kept in.
func bucketStream(name BucketName) string { return "KV_" + string(name) }

func (e *engine) openBuckets(ctx context.Context, cfg Config) error {
	e.buckets, e.used = map[BucketName]jetstream.KeyValue{}, map[BucketName]*atomic.Bool{}
	for name, age := range bucketAges(cfg) {
		if err := e.openBucket(ctx, cfg, name, age); err != nil {
			return fmt.Errorf("bucket %s: %w", name, err)
		}
	}
	return nil
}

// bucketConfig is the stream of a bucket as NATS's ADR-8 has it: the ones that the
// client library makes can never let a value be overwritten.
func bucketConfig(cfg Config, name BucketName, age time.Duration) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              bucketStream(name),
		Subjects:          []string{keySubject(name, ">")},
		MaxMsgsPerSubject: 1,
		MaxAge:            age,
		Duplicates:        duplicates,
		Storage:           jetstream.FileStorage,
		Replicas:          cfg.replicas(),
		Discard:           jetstream.DiscardNew,
		AllowRollup:       true,
		AllowDirect:       cfg.Cluster == nil, // else replicas that lag would answer
	}
}

func (e *engine) openBucket(ctx context.Context, cfg Config, name BucketName, age time.Duration) error {
	stream, err := e.ensureBucket(ctx, cfg, bucketConfig(cfg, name, age))
	if err != nil {
		return err
	}
	err = insist(ctx, func(ctx context.Context) (err error) {
		e.buckets[name], err = e.js.KeyValue(ctx, string(name))
		if e.shared && errors.Is(err, jetstream.ErrBucketNotFound) { // not every server knows of it yet
			return errBeingMade
		}
		return err
	})
	if err != nil {
		return err
	}
	e.used[name] = &atomic.Bool{}
	e.used[name].Store(stream.CachedInfo().State.LastSeq > 0)
	return nil
}

// ensureBucket creates the stream of a bucket, or brings the age of an existing one
// to the configuration.
func (e *engine) ensureBucket(ctx context.Context, cfg Config, wanted jetstream.StreamConfig) (jetstream.Stream, error) {
	if e.shared {
		return e.ensureShared(ctx, cfg, wanted)
	}
	stream, err := e.js.Stream(ctx, wanted.Name)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return e.js.CreateStream(ctx, wanted)
	case err == nil && !cfg.AsIs && stream.CachedInfo().Config.MaxAge != wanted.MaxAge:
		changed := stream.CachedInfo().Config
		changed.MaxAge = wanted.MaxAge
		return e.js.UpdateStream(ctx, changed)
	}
	return stream, err
}

func keySubject(name BucketName, key string) string { return "$KV." + string(name) + "." + key }

// Bucket is a durable map from keys (letters, digits, `_`, `-` and dots) to
// values. What is written is on disk after the next Flush. Every error wraps
// ErrUnavailable, ErrFull or ErrNotFound.
type Bucket struct {
	log   *Log
	name  BucketName
	fence fence
}

// Bucket returns one of the log's buckets.
func (l *Log) Bucket(name BucketName) Bucket { return Bucket{log: l, name: name} }

func (b Bucket) open() (*engine, jetstream.KeyValue, error) {
	e, err := b.log.current()
	if err != nil {
		return nil, nil, err
	}
	return e, e.buckets[b.name], nil
}

// Get returns the value of a key, or ErrNotFound.
func (b Bucket) Get(ctx context.Context, key string) ([]byte, error) {
	value, _, err := b.get(ctx, key)
	return value, err
}

func (b Bucket) get(ctx context.Context, key string) (value []byte, revision uint64, err error) {
	e, kv, err := b.open()
	if err != nil {
		return nil, 0, err
	}
	if !e.shared && !e.used[b.name].Load() { // most logs have nothing that waits
		return nil, 0, fmt.Errorf("%s in %s: %w", key, b.name, ErrNotFound)
	}
	entry, err := kv.Get(ctx, key)
	switch {
	case errors.Is(err, jetstream.ErrKeyNotFound):
		return nil, 0, fmt.Errorf("%s in %s: %w", key, b.name, ErrNotFound)
	case err != nil:
		return nil, 0, fmt.Errorf("%w: read %s in %s: %w", ErrUnavailable, key, b.name, err)
	}
	return entry.Value(), entry.Revision(), nil
}

// Put sets the value of a key.
func (b Bucket) Put(ctx context.Context, key string, value []byte) error {
	return b.Begin(key, value).Wait(ctx)
}

// Putting is a Put that has begun.
type Putting struct {
	e     *engine
	sent  publishing
	fence fence
	err   error
}

// Begin begins a Put, so that others can begin meanwhile. Wait for it in the end.
func (b Bucket) Begin(key string, value []byte) Putting {
	e, _, err := b.open()
	if err != nil {
		return Putting{err: err}
	}
	if !storableKey(key) {
		return Putting{err: fmt.Errorf("key %.40q cannot be stored", key)}
	}
	return b.begin(e, key, value, nil)
}

func (b Bucket) begin(e *engine, key string, value []byte, header nats.Header) Putting {
	e.used[b.name].Store(true)
	sent, err := e.publish(bucketStream(b.name), &nats.Msg{Subject: keySubject(b.name, key), Data: value, Header: b.fence.header(header)})
	if err != nil {
		err = e.writeError(err)
	}
	return Putting{e, sent, b.fence, err}
}

func storableKey(key string) bool { return key != "" && !strings.ContainsAny(key, "*> \t\r\n") }

// Wait returns when the value is written.
func (p Putting) Wait(ctx context.Context) error {
	_, err := p.wait(ctx)
	return err
}

func (p Putting) wait(ctx context.Context) (revision uint64, err error) {
	if p.err != nil {
		return 0, p.err
	}
	if revision, err = p.sent.wait(ctx); err != nil {
		return 0, p.fence.error(p.e, err)
	}
	return revision, nil
}

// Claim sets the value of a key that has none, and returns the value that the
// key has then: another one when somebody was faster.
func (b Bucket) Claim(ctx context.Context, key string, value []byte) ([]byte, error) {
	e, kv, err := b.open()
	if err != nil {
		return nil, err
	}
	ctx, cancel := e.alive(ctx)
	defer cancel()
	ctx, cancelTimeout := context.WithTimeout(ctx, requestTimeout)
	defer cancelTimeout()
	e.used[b.name].Store(true)
	for {
		revision, err := kv.Create(ctx, key, value)
		if err == nil {
			e.wroteTo(bucketStream(b.name), revision)
			return value, nil
		}
		if !errors.Is(err, jetstream.ErrKeyExists) {
			return nil, e.writeError(err)
		}
		there, err := b.Get(ctx, key)
		if !errors.Is(err, ErrNotFound) {
			return there, err
		}
		// A cluster's leader refuses what comes behind a value that it has not stored yet.
		if err := pauseFor(ctx, lagPause); err != nil {
			return nil, err
		}
	}
}

// Update replaces the value of a key by what change makes of it, again when
// somebody else was faster. Nil is no value, before and after.
func (b Bucket) Update(ctx context.Context, key string, change func(old []byte) []byte) error {
	for {
		e, kv, err := b.open()
		if err != nil {
			return err
		}
		old, revision, err := b.get(ctx, key)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if _, err := replace(ctx, e, kv, key, revision, change(old)); !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

// replace writes a key whose newest revision is known; 0 is a key without value. It
// returns the new revision, which a key whose value was removed does not have.
func replace(ctx context.Context, e *engine, kv jetstream.KeyValue, key string, revision uint64, value []byte) (written uint64, err error) {
	ctx, cancel := e.alive(ctx)
	defer cancel()
	e.used[BucketName(kv.Bucket())].Store(true)
	switch {
	case value == nil && revision == 0:
	case value == nil:
		err = kv.Purge(ctx, key, jetstream.LastRevision(revision))
	case revision == 0:
		written, err = kv.Create(ctx, key, value)
	default:
		written, err = kv.Update(ctx, key, value, revision)
	}
	if errors.Is(err, jetstream.ErrKeyExists) {
		return 0, ErrConflict
	}
	if err != nil {
		return 0, e.orderError(err)
	}
	e.wroteTo(bucketStream(BucketName(kv.Bucket())), written)
	return written, nil
}

// Delete removes a key, which need not be there. A marker stays in its place, for
// as long as the bucket keeps entries: without it, an older value could come back
// after a kill (see Forget).
func (b Bucket) Delete(ctx context.Context, key string) error {
	e, _, err := b.open()
	if err != nil {
		return err
	}
	return b.begin(e, key, nil, nats.Header{headerOperation: {operationDelete}}).Wait(ctx)
}

// Forget removes a key, and leaves no marker, so that Empty and Keys stay cheap.
// A key that was written more than once may come back with an older value when
// the process is killed: the engine does not note on disk that a value was
// replaced, and finds the one before the last again when the last is gone.
func (b Bucket) Forget(ctx context.Context, key string) error { return b.purge(ctx, key) }

// ForgetUnder is Forget for all keys that begin with prefix and a dot.
func (b Bucket) ForgetUnder(ctx context.Context, prefix string) error {
	return b.purge(ctx, prefix+".>")
}

// purge removes the subjects of keys from the bucket's stream.
func (b Bucket) purge(ctx context.Context, keys string) error {
	e, _, err := b.open()
	if err != nil {
		return err
	}
	ctx, cancel := e.alive(ctx)
	defer cancel()
	stream, err := e.js.Stream(ctx, bucketStream(b.name))
	if err != nil {
		return e.writeError(err)
	}
	if err := stream.Purge(ctx, jetstream.WithPurgeSubject(keySubject(b.name, keys))); err != nil {
		return e.writeError(err)
	}
	return nil
}

// Keys returns all keys, oldest entry first.
func (b Bucket) Keys(ctx context.Context) (keys []string, err error) {
	err = b.entries(ctx, ">", func(entry jetstream.KeyValueEntry) error { keys = append(keys, entry.Key()); return nil }, jetstream.MetaOnly())
	return keys, err
}

// Entries hands each key that matches a pattern (NATS's subject wildcards) and its
// value to each, until one of them fails.
func (b Bucket) Entries(ctx context.Context, pattern string, each func(key string, value []byte) error) error {
	return b.entries(ctx, pattern, func(entry jetstream.KeyValueEntry) error { return each(entry.Key(), entry.Value()) })
}

// EntriesUnder is Entries of all keys that begin with the prefix of the bucket's
// fence, without the fence itself. It has everything that was written before that.
func (b Bucket) EntriesUnder(ctx context.Context, prefix string, each func(key string, value []byte) error) error {
	found := b.fence.sequence == 0
	for range lagPatience {
		type entry struct {
			key   string
			value []byte
		}
		var all []entry
		err := b.entries(ctx, prefix+".>", func(listed jetstream.KeyValueEntry) error {
			if isFence(listed.Key()) {
				found = found || listed.Revision() >= b.fence.sequence
				return nil
			}
			all = append(all, entry{listed.Key(), listed.Value()})
			return nil
		})
		if err != nil {
			return err
		}
		if !found {
			if err := pauseFor(ctx, lagPause); err != nil {
				return err
			}
			continue
		}
		for _, one := range all {
			if err := each(one.key, one.value); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("%w: a replica of %s lags", ErrUnavailable, b.name)
}

// Refresh rewrites the entries that are older than age, so that the bucket keeps
// them. It leaves fences out: a fencing token is the sequence of its entry, and a
// rewrite would fence the rightful owner.
func (b Bucket) Refresh(ctx context.Context, age time.Duration) error {
	e, kv, err := b.open()
	if err != nil {
		return err
	}
	oldest := time.Now().Add(-age)
	return b.entries(ctx, ">", func(entry jetstream.KeyValueEntry) error {
		if entry.Created().After(oldest) || isFence(entry.Key()) {
			return nil
		}
		if _, err := replace(ctx, e, kv, entry.Key(), entry.Revision(), entry.Value()); !errors.Is(err, ErrConflict) {
			return err
		}
		return nil // it was written meanwhile
	})
}

func (b Bucket) entries(ctx context.Context, pattern string, each func(jetstream.KeyValueEntry) error, options ...jetstream.WatchOpt) error {
	e, kv, err := b.open()
	if err != nil {
		return err
	}
	ctx, cancel := e.alive(ctx)
	defer cancel()
	watcher, err := kv.Watch(ctx, pattern, append(options, jetstream.IgnoreDeletes())...)
	if err != nil {
		return fmt.Errorf("%w: read %s: %w", ErrUnavailable, b.name, err)
	}
	defer watcher.Stop()
	// The client waits for as many entries as there were when it began, also for
	// those that are purged meanwhile.
	silence := time.NewTimer(entryTimeout)
	defer silence.Stop()
	for {
		silence.Reset(entryTimeout)
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: read %s: %w", ErrUnavailable, b.name, context.Cause(ctx))
		case <-silence.C:
			return fmt.Errorf("%w: reading %s came to a halt: were entries removed meanwhile?", ErrUnavailable, b.name)
		case entry, more := <-watcher.Updates():
			switch {
			case !more:
				return fmt.Errorf("%w: reading %s was interrupted", ErrUnavailable, b.name)
			case entry == nil: // that was all there is
				return nil
			}
			if err := each(entry); err != nil {
				return err
			}
		}
	}
}

// Empty reports whether there is no key, cheaply. It may say false of a bucket
// whose last key was removed by Update.
func (b Bucket) Empty(ctx context.Context) (bool, error) {
	_, kv, err := b.open()
	if err != nil {
		return false, err
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return status.Values() == 0, nil
}
