package eventlog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/ordergate/ordergate/internal/archive"
)

const (
	// metadataUnfinished is on each stream that an import makes in a cluster, until all of
	// them are whole. Its value is the import's.
	metadataUnfinished = "ordergate.unfinished"
	// copyTimeout is how long the other servers may take to have a copy of a stream.
	copyTimeout = 10 * time.Minute
	// consumerTimeout is how long the place of the converter may take to appear. Without
	// it the converter begins anew, and converting an event twice changes nothing.
	consumerTimeout = 15 * time.Second
	// removalTimeout bounds the removal of what an import made.
	removalTimeout = time.Minute
	lookAgain      = 200 * time.Millisecond
	// stallTimeout is more than the five seconds after which a server gives a restore up
	// that was not ended. When it does, it removes what it has under the stream's name.
	stallTimeout = 6 * time.Second
	// Servers before this version do not read the snapshots of this one.
	restoringMajor, restoringMinor = 2, 15
)

// refuseMarked returns ErrUnfinished for a stream that an import began.
func refuseMarked(metadata map[string]string) error {
	if metadata[metadataUnfinished] == "" {
		return nil
	}
	return fmt.Errorf("%w: what is in NATS is not whole: run `ordergate import` with --nats-url again", ErrUnfinished)
}

// clusterImport makes a log in a cluster. The bucket of the leases, which no archive
// has, is made first and is free of the mark last: whoever opens the log looks at it
// first. So nobody uses what is not whole, and nothing is removed that is in use.
type clusterImport struct {
	cfg   Config
	e     *engine
	mark  string
	begun bool // something was made, perhaps
	ended bool // its mark was taken away, perhaps
}

// importShared is Import into a cluster.
func importShared(ctx context.Context, cfg Config, in *archive.Reader, progress Progress) (figures Figures, err error) {
	cfg.complete(nil)
	m := &clusterImport{cfg: cfg, mark: nuid.Next()}
	if err := m.connect(ctx); err != nil {
		return Figures{}, err
	}
	defer func() { m.leave() }()
	var major, minor int
	version := m.e.conn.ConnectedServerVersion()
	if n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor); n == 2 && (major < restoringMajor || major == restoringMajor && minor < restoringMinor) {
		return Figures{}, fmt.Errorf("the NATS server is of version %s, and cannot read what an import sends: bring the cluster to %d.%d or later", version, restoringMajor, restoringMinor)
	}
	defer func() {
		if err == nil || !m.begun {
			return
		}
		whole, undoErr := m.undo(context.WithoutCancel(ctx))
		switch {
		case whole:
			err = nil
			return
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		}
		if undoErr != nil {
			err = fmt.Errorf("%v; what was made could not be removed (%w): run it again, which does that first", err, undoErr) // more than that it was stopped
		}
	}()
	if err := m.begin(ctx); err != nil {
		return Figures{}, err
	}
	alive, cancel := m.e.alive(ctx)
	defer cancel()
	streams := archivedStreams(Config{Cluster: cfg.Cluster})
	if err := m.e.restoreAll(alive, in, streams, map[string]string{metadataUnfinished: m.mark}, progress); err != nil {
		return Figures{}, err
	}
	if err := m.awaitCopies(alive); err != nil {
		return Figures{}, err
	}
	m.awaitConverter(alive)
	if figures, err = m.figures(alive); err != nil {
		return Figures{}, err
	}
	return figures, m.finish(alive)
}

func (m *clusterImport) connect(ctx context.Context) error {
	m.leave()
	m.e = newEngine(m.cfg)
	return m.e.connect(ctx, m.cfg, "ordergate import")
}

func (m *clusterImport) leave() {
	if m.e != nil {
		m.e.fail(errors.New("done"))
		m.e.close()
	}
}

// begin refuses an account that has a log, removes what an import left that did not
// come to its end, and marks this one.
func (m *clusterImport) begin(ctx context.Context) error {
	there, err := m.there(ctx)
	if err != nil {
		return err
	}
	if len(there) > 0 {
		var marked error
		if slices.Contains(there, bucketStream(leases)) {
			info, err := m.e.streamIn(ctx, bucketStream(leases))
			if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
				return err
			}
			if err == nil {
				marked = refuseMarked(info.Config.Metadata)
			}
		}
		if marked == nil {
			return fmt.Errorf("NATS has a log already (streams %s), and an import makes a new one: give the credentials of another account, or remove these streams with `nats stream rm`", strings.Join(there, ", "))
		}
		if err := m.remove(ctx); err != nil {
			return fmt.Errorf("remove what an interrupted import left: %w", err)
		}
		if err := pauseFor(ctx, stallTimeout); err != nil {
			return err
		}
	}
	first := bucketConfig(m.cfg, leases, leaseTime)
	first.Metadata = map[string]string{metadataUnfinished: m.mark}
	m.begun = true
	err = insist(ctx, func(ctx context.Context) error { _, err := m.e.js.CreateStream(ctx, first); return err })
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return errors.New("a gateway or another import has just begun in the same account: stop it, or give the credentials of another account")
	}
	return ofReplicas(err, m.cfg.replicas())
}

// there are the streams of a log that the account has. Also one that is half made, and
// answers nothing, has its name in the list.
func (m *clusterImport) there(ctx context.Context) (names []string, err error) {
	ours := map[string]bool{}
	for _, stream := range sharedStreams(m.cfg) {
		ours[stream.Name] = true
	}
	err = insist(ctx, func(ctx context.Context) error {
		names = nil
		list := m.e.js.StreamNames(ctx)
		for name := range list.Name() {
			if ours[name] {
				names = append(names, name)
			}
		}
		return list.Err()
	})
	slices.Sort(names)
	return names, withoutJetStream(err)
}

// remove removes all streams of a log, the one with the mark that counts last.
func (m *clusterImport) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, removalTimeout)
	defer cancel()
	for {
		there, err := m.there(ctx)
		if err != nil {
			return err
		}
		if len(there) == 0 {
			return nil
		}
		for _, name := range there {
			if name == bucketStream(leases) && len(there) > 1 {
				continue
			}
			removing, cancel := context.WithTimeout(ctx, streamTimeout)
			err = m.e.js.DeleteStream(removing, name) // whether it is gone, the list says
			cancel()
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(lookAgain):
		}
	}
}

// undo removes what this import made, and nothing that is another's by now. It reports
// whether all is whole instead, and only the answer that says so was lost.
func (m *clusterImport) undo(ctx context.Context) (whole bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, removalTimeout)
	defer cancel()
	if m.e.dead.Err() != nil {
		if err := m.connect(ctx); err != nil {
			return false, err
		}
		if err := pauseFor(ctx, stallTimeout); err != nil {
			return false, err
		}
	}
	info, err := m.e.streamIn(ctx, bucketStream(leases))
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return false, nil
	case err != nil:
		return false, err
	case info.Config.Metadata[metadataUnfinished] == m.mark:
		return false, m.remove(ctx)
	}
	return m.ended && info.Config.Metadata[metadataUnfinished] == "", nil
}

// awaitCopies returns when all servers that are to keep the log have it. What a stream
// says of its replicas is not enough: one counts as current as soon as it has heard that
// there is something to copy.
func (m *clusterImport) awaitCopies(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, copyTimeout, fmt.Errorf("the servers of the cluster have not copied all from each other within %v", copyTimeout))
	defer cancel()
	there, err := m.there(ctx)
	if err != nil {
		return err
	}
	for _, name := range there {
		have := map[string]bool{} // the servers that have all of it
		for len(have) < m.cfg.replicas() {
			info, err := m.e.streamIn(ctx, name)
			if err == nil && copied(info.Cluster, m.cfg.replicas()) {
				if info.State.Msgs == 0 {
					break
				}
				var server string
				var messages uint64
				if server, messages, err = m.look(ctx, name); err == nil && messages == info.State.Msgs {
					have[server] = true
					continue
				}
			}
			select {
			case <-ctx.Done():
				return errors.Join(context.Cause(ctx), err)
			case <-time.After(lookAgain):
			}
		}
	}
	return nil
}

// look asks one of a stream's servers, whichever the cluster chooses, for how many
// messages it has: a consumer with one replica counts those of the server it is on.
func (m *clusterImport) look(ctx context.Context, stream string) (server string, messages uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, streamTimeout)
	defer cancel()
	consumer, err := m.e.js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Replicas: 1, MemoryStorage: true, AckPolicy: jetstream.AckNonePolicy, DeliverPolicy: jetstream.DeliverAllPolicy, InactiveThreshold: stallTimeout,
	})
	if err != nil {
		return "", 0, err
	}
	info := consumer.CachedInfo()
	if info.Cluster != nil {
		server = info.Cluster.Leader
	}
	return server, info.NumPending, m.e.js.DeleteConsumer(ctx, stream, info.Name)
}

// awaitConverter waits for the place of the converter, which a cluster makes after its
// stream.
func (m *clusterImport) awaitConverter(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, consumerTimeout)
	defer cancel()
	for m.e.converter && ctx.Err() == nil {
		consumer, err := m.e.js.Consumer(ctx, inboxStream, converterConsumer)
		if err == nil && copied(consumer.CachedInfo().Cluster, m.cfg.replicas()) {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookAgain):
		}
	}
}

// copied reports whether a stream has a leader, and all its replicas are current.
func copied(cluster *jetstream.ClusterInfo, replicas int) bool {
	if replicas == 1 {
		return true
	}
	return cluster != nil && cluster.Leader != "" && len(cluster.Replicas) == replicas-1 &&
		!slices.ContainsFunc(cluster.Replicas, func(peer *jetstream.PeerInfo) bool { return !peer.Current || peer.Offline || peer.Lag > 0 })
}

// figures counts what was restored.
func (m *clusterImport) figures(ctx context.Context) (_ Figures, err error) {
	e := m.e
	if e.inbox, err = e.js.Stream(ctx, inboxStream); err != nil {
		return Figures{}, err
	}
	if e.orders, err = e.js.Stream(ctx, ordersStream); err != nil {
		return Figures{}, err
	}
	e.id = e.orders.CachedInfo().Config.Metadata[metadataID]
	kv, err := e.js.KeyValue(ctx, string(Subscriptions))
	if err != nil {
		return Figures{}, fmt.Errorf("bucket %s: %w", Subscriptions, err)
	}
	e.buckets = map[BucketName]jetstream.KeyValue{Subscriptions: kv}
	return e.figures(ctx)
}

// finish gives the streams the limits that a gateway wants, and takes the mark away.
func (m *clusterImport) finish(ctx context.Context) error {
	streams := sharedStreams(m.cfg)
	slices.Reverse(streams) // ORDERS, INBOX and the leases are the last
	there, err := m.there(ctx)
	if err != nil {
		return err
	}
	for _, wanted := range streams {
		if !slices.Contains(there, wanted.Name) { // of an archive of an earlier version: serve makes it
			continue
		}
		info, err := m.e.streamIn(ctx, wanted.Name)
		if err != nil {
			return fmt.Errorf("stream %s: %w", wanted.Name, err)
		}
		if info.Config.Metadata[metadataUnfinished] != m.mark {
			return fmt.Errorf("stream %s was changed meanwhile: is there another import?", wanted.Name)
		}
		if wanted.MaxBytes > 0 && info.State.Bytes > uint64(wanted.MaxBytes) {
			return fmt.Errorf("stream %s takes %d bytes, more than %d: give --%s-max-bytes more, or no limit", wanted.Name, info.State.Bytes, wanted.MaxBytes, strings.ToLower(wanted.Name))
		}
		finished := mend(info.Config, wanted)
		finished.Metadata = maps.Clone(info.Config.Metadata)
		delete(finished.Metadata, metadataUnfinished)
		if wanted.Name == bucketStream(leases) { // when this was done, it is done
			ctx, m.ended = context.WithoutCancel(ctx), true
		}
		if err := insist(ctx, func(ctx context.Context) error { _, err := m.e.js.UpdateStream(ctx, finished); return err }); err != nil {
			return fmt.Errorf("stream %s: %w", wanted.Name, err)
		}
	}
	return nil
}
