package eventlog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// Gateways that share a log.
const (
	// leases is the bucket of what a gateway holds for as long as it renews it, and
	// Owners maps subscriptions to the gateways that have them. Both are in a cluster
	// only.
	leases BucketName = "leases"
	Owners BucketName = "owners"

	// A lease is renewed every leaseRenewal, and free for others leaseTime after the
	// last one. Its holder relies on it for leaseTrust only.
	leaseRenewal = time.Second
	leaseTrust   = 4 * time.Second
	leaseTime    = 6 * time.Second

	gatewayPrefix = "gateway."
	dutiesLease   = "duties"

	headerFenceSubject = "Nats-Expected-Last-Subject-Sequence-Subject"
	// fenceKey is behind a prefix and a dot; no order has such an id.
	fenceKey = "=owner"
)

var (
	// ErrTaken means that another gateway has the lease.
	ErrTaken = errors.New("another gateway has it")
	// ErrFenced means that another gateway has taken over what was to be written.
	ErrFenced = errors.New("another gateway has taken over")
)

// Lease is something that one gateway does at a time.
type Lease struct {
	held context.Context
	end  context.CancelFunc
	over chan struct{} // closed when it was given back
}

// Held ends when the lease is lost or given back.
func (l *Lease) Held() context.Context { return l.held }

// Release gives the lease back.
func (l *Lease) Release() {
	l.end()
	<-l.over
}

// Acquire takes the lease of a name, or fails with ErrTaken. Who has the log alone
// always gets it.
func (l *Log) Acquire(ctx context.Context, name string) (*Lease, error) {
	lease := &Lease{over: make(chan struct{})}
	lease.held, lease.end = context.WithCancel(context.Background())
	if !l.Shared() {
		close(lease.over)
		return lease, nil
	}
	value := []byte(nuid.Next())
	revision, err := l.renew(ctx, name, value, 0)
	if err != nil {
		lease.end()
		return nil, err
	}
	go func() {
		defer close(lease.over)
		defer lease.end()
		l.keep(lease.held, name, value, revision)
	}()
	return lease, nil
}

// renew writes a lease behind its revision, 0 for one that nobody has.
func (l *Log) renew(ctx context.Context, name string, value []byte, revision uint64) (uint64, error) {
	e, kv, err := l.Bucket(leases).open()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, leaseTrust)
	defer cancel()
	written, err := replace(ctx, e, kv, name, revision, value)
	if errors.Is(err, ErrConflict) {
		// The write before, of which nothing was heard, may have been one's own.
		if entry, err := kv.Get(ctx, name); err == nil && string(entry.Value()) == string(value) {
			return entry.Revision(), nil
		}
		return 0, fmt.Errorf("%w: %s", ErrTaken, name)
	}
	if err != nil {
		return 0, fmt.Errorf("lease %s: %w", name, err)
	}
	return written, nil
}

// keep renews a lease until it is lost, or held ends: then it is given back.
func (l *Log) keep(held context.Context, name string, value []byte, revision uint64) {
	tick := time.NewTicker(leaseRenewal)
	defer tick.Stop()
	trusted := time.Now()
	for {
		select {
		case <-held.Done():
			if e, kv, err := l.Bucket(leases).open(); err == nil {
				ctx, cancel := context.WithTimeout(e.dead, leaseRenewal)
				defer cancel()
				_ = kv.Purge(ctx, name, jetstream.LastRevision(revision)) // else its time is over soon
			}
			return
		case <-tick.C:
		}
		asked := time.Now()
		ctx, cancel := context.WithDeadline(held, trusted.Add(leaseTrust))
		next, err := l.renew(ctx, name, value, revision)
		cancel()
		switch {
		case err == nil:
			revision, trusted = next, asked
		case errors.Is(err, ErrTaken), time.Since(trusted) > leaseTrust:
			return
		}
	}
}

// member is this gateway among those that share a log.
type member struct {
	id     string
	beaten atomic.Int64 // when it was last told that it lives, since start
	term   atomic.Int64 // how often it was not told for too long, and then was
	leads  atomic.Bool
	start  time.Time
	ends   context.CancelFunc
	tasks  sync.WaitGroup

	mu    sync.Mutex
	heard map[string]time.Time // when each gateway was heard of
}

// Shared reports whether other gateways may use the log at the same time.
func (l *Log) Shared() bool { return l.cfg.Cluster != nil }

// Member is the name of this gateway among those that share the log.
func (l *Log) Member() string { return l.member.id }

// Confirmed reports whether the others believe that this gateway lives.
func (l *Log) Confirmed() bool {
	return !l.Shared() || time.Since(l.member.start)-time.Duration(l.member.beaten.Load()) < leaseTrust
}

// Term counts how often the others had reason to think that this gateway was gone.
func (l *Log) Term() int64 { return l.member.term.Load() }

// Holds reports whether the others believe that this gateway lives, and did so ever
// since a term was asked for: what it took then, nobody has taken over.
func (l *Log) Holds(term int64) bool { return l.Confirmed() && l.Term() == term }

// Leads reports whether this gateway does what one does for all.
func (l *Log) Leads() bool { return !l.Shared() || l.member.leads.Load() }

// Members returns the gateways that were heard of lately, sorted.
func (l *Log) Members() []string {
	l.member.mu.Lock()
	defer l.member.mu.Unlock()
	maps.DeleteFunc(l.member.heard, func(_ string, at time.Time) bool { return time.Since(at) > leaseTime })
	return slices.Sorted(maps.Keys(l.member.heard))
}

// hear notes which gateways say that they live, until ctx ends.
func (l *Log) hear(ctx context.Context) {
	for ctx.Err() == nil {
		if e, err := l.await(ctx); err == nil {
			err = l.hearFrom(ctx, e)
			if ctx.Err() == nil && e.dead.Err() == nil {
				e.logger.Warn("what other gateways say could not be heard; trying again", "error", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(leaseRenewal):
		}
	}
}

func (l *Log) hearFrom(ctx context.Context, e *engine) error {
	ctx, cancel := e.alive(ctx)
	defer cancel()
	watcher, err := e.buckets[leases].Watch(ctx, gatewayPrefix+"*")
	if err != nil {
		return err
	}
	defer watcher.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case entry, more := <-watcher.Updates():
			switch {
			case !more:
				return errors.New("it was interrupted")
			case entry != nil:
				l.heardOf(strings.TrimPrefix(entry.Key(), gatewayPrefix), entry.Operation() == jetstream.KeyValuePut)
			}
		}
	}
}

func (l *Log) heardOf(id string, lives bool) {
	l.member.mu.Lock()
	defer l.member.mu.Unlock()
	if lives {
		l.member.heard[id] = time.Now()
	} else {
		delete(l.member.heard, id)
	}
}

// Lives reports whether a gateway is still there.
func (l *Log) Lives(ctx context.Context, id string) (bool, error) {
	_, err := l.Bucket(leases).Get(ctx, gatewayPrefix+id)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// joinOthers makes this gateway one of those that share the log, until Close.
func (l *Log) joinOthers() {
	ctx, cancel := context.WithCancel(context.Background())
	l.member.id, l.member.start, l.member.ends = nuid.Next(), time.Now(), cancel
	l.member.beaten.Store(int64(-leaseTime))
	l.member.heard = map[string]time.Time{}
	l.beat(ctx)
	l.member.tasks.Go(func() {
		tick := time.NewTicker(leaseRenewal)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				l.leave()
				return
			case <-tick.C:
				l.beat(ctx)
			}
		}
	})
	l.member.tasks.Go(func() { l.lead(ctx) })
	l.member.tasks.Go(func() { l.hear(ctx) })
}

func (l *Log) beat(ctx context.Context) {
	asked := time.Since(l.member.start)
	ctx, cancel := context.WithTimeout(ctx, leaseTrust)
	defer cancel()
	if err := l.Bucket(leases).Put(ctx, gatewayPrefix+l.member.id, []byte{1}); err != nil {
		return
	}
	if asked-time.Duration(l.member.beaten.Load()) >= leaseTrust {
		l.member.term.Add(1) // first, for Holds
	}
	l.member.beaten.Store(int64(asked))
}

// leave tells the others that this gateway is gone.
func (l *Log) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leaseRenewal)
	defer cancel()
	_ = l.Bucket(leases).Delete(ctx, gatewayPrefix+l.member.id) // else its time is over soon
}

// lead has this gateway do what one does for all, whenever no other does.
func (l *Log) lead(ctx context.Context) {
	tick := time.NewTicker(2 * leaseRenewal)
	defer tick.Stop()
	for {
		if lease, err := l.Acquire(ctx, dutiesLease); err == nil {
			l.member.leads.Store(true)
			select {
			case <-ctx.Done():
			case <-lease.Held().Done():
			}
			l.member.leads.Store(false)
			lease.Release()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// fence lets only the newest of those through who want to write to some keys.
type fence struct {
	subject  string
	sequence uint64 // 0 lets everybody through
}

// Fence takes over the keys of a bucket that begin with prefix and a dot: whoever has
// taken them over before writes there no more, and gets ErrFenced. Who has the log
// alone needs no fence.
func (b Bucket) Fence(ctx context.Context, prefix string) (Bucket, error) {
	if !b.log.Shared() {
		return b, nil
	}
	key := prefix + "." + fenceKey
	put := b.Begin(key, []byte("{}"))
	sequence, err := put.wait(ctx)
	if err != nil {
		return Bucket{}, err
	}
	b.fence = fence{keySubject(b.name, key), sequence}
	return b, nil
}

// isFence reports whether a key of a bucket is that of a fence.
func isFence(key string) bool { return strings.HasSuffix(key, "."+fenceKey) }

func (f fence) header(header nats.Header) nats.Header {
	if f.sequence == 0 {
		return header
	}
	if header == nil {
		header = nats.Header{}
	}
	header.Set(jetstream.ExpectedLastSubjSeqHeader, fmt.Sprint(f.sequence))
	header.Set(headerFenceSubject, f.subject)
	return header
}

// error tells a fence that was passed from one that is only being written.
func (f fence) error(e *engine, err error) error {
	if f.sequence > 0 && refusedFor(err, server.JSStreamWrongLastSequenceErrF) {
		return fmt.Errorf("%w: %w", ErrFenced, err)
	}
	return e.writeError(err)
}
