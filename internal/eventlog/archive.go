package eventlog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/ordergate/ordergate/internal/archive"
)

const (
	// unfinishedFile is in a directory from before the first byte of an import until
	// all of it is on disk.
	unfinishedFile = "IMPORTING"
	unfinishedText = "An import into this directory did not come to its end: what is here is not whole. Run it again.\n"
	// maxImported is how large a message may be, whatever the settings are.
	maxImported = 16 << 20
	// usualEventBytes is enough for who only looks.
	usualEventBytes = 1 << 20
)

// ErrUnfinished means that an import did not come to its end.
var ErrUnfinished = errors.New("an import was interrupted")

// Figures say how much is in a log.
type Figures struct {
	// LogID identifies the log.
	LogID string `json:"log_id"`
	// Events is how many Stripe events are stored, also erased ones.
	Events uint64 `json:"events"`
	// Orders is how many orders there are, and OrderEvents how many events of these.
	Orders      uint64 `json:"orders"`
	OrderEvents uint64 `json:"order_events"`
	// Subscriptions is how many there are.
	Subscriptions uint64 `json:"subscriptions"`
}

// Progress is told how many messages of about how many have passed.
type Progress func(done, total uint64)

// archivedStreams are the streams of a log by name, as they are set up in cfg, which has
// no limits.
func archivedStreams(cfg Config) map[string]jetstream.StreamConfig {
	streams := map[string]jetstream.StreamConfig{inboxStream: inboxConfig(cfg), ordersStream: ordersConfig(cfg)}
	for name := range bucketAges(Config{}) { // what gateways share for seconds is not archived
		streams[bucketStream(name)] = bucketConfig(cfg, name, 0)
	}
	return streams
}

// Export writes everything that is stored to an archive, in plaintext: its sequences,
// times, headers, and what identifies it are those of the log. Nobody may write to the
// log meanwhile. version is that of the program.
func (l *Log) Export(ctx context.Context, to io.Writer, version string, progress Progress) (Figures, error) {
	e, err := l.current()
	if err != nil {
		return Figures{}, err
	}
	ctx, cancel := e.alive(ctx)
	defer cancel()
	figures, err := e.export(ctx, to, version, progress)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return figures, err
}

func (e *engine) export(ctx context.Context, to io.Writer, version string, progress Progress) (Figures, error) {
	figures, err := e.figures(ctx)
	if err != nil {
		return Figures{}, err
	}
	header := archive.Header{Version: version, Created: time.Now().UTC(), LogID: e.id}
	names := slices.Sorted(maps.Keys(archivedStreams(Config{})))
	before := map[string]*jetstream.StreamInfo{}
	for _, name := range names {
		if before[name], err = e.infoOf(ctx, name); err != nil {
			return Figures{}, err
		}
		header.Messages += before[name].State.Msgs
	}
	out, err := archive.NewWriter(to, header)
	if err != nil {
		return Figures{}, err
	}
	var done uint64
	for _, name := range names {
		metadata := before[name].Config.Metadata
		if err := out.Begin(archive.Stream{Name: name, ID: metadata[metadataID], Format: metadata[metadataFormat]}); err != nil {
			return Figures{}, err
		}
		contents, err := e.exportStream(ctx, name, out, func() { done++; progress(done, header.Messages) })
		if err != nil {
			return Figures{}, fmt.Errorf("export %s: %w", name, err)
		}
		after, err := e.infoOf(ctx, name)
		if err != nil {
			return Figures{}, err
		}
		// The engine leaves out what it cannot read. What went for its age meanwhile may
		// be there or not.
		if contents.Messages > before[name].State.Msgs || contents.Messages < after.State.Msgs {
			return Figures{}, damaged(e.dir, []string{fmt.Sprintf("of %d messages in stream %s only %d can be read", before[name].State.Msgs, name, contents.Messages)})
		}
		if err := out.End(contents); err != nil {
			return Figures{}, err
		}
	}
	return figures, out.Close()
}

// exportStream writes the snapshot of a stream, and reads it to know what is in it.
func (e *engine) exportStream(ctx context.Context, name string, to io.Writer, each func()) (archive.Contents, error) {
	read, write := io.Pipe()
	type result struct {
		contents archive.Contents
		err      error
	}
	scanned := make(chan result, 1)
	go func() {
		contents, err := scan(read, func(*archive.Message) error { each(); return nil })
		read.CloseWithError(err)
		scanned <- result{contents, err}
	}()
	err := e.snapshot(ctx, name, io.MultiWriter(to, write))
	write.CloseWithError(err) // nil is the end
	r := <-scanned
	if err != nil {
		return archive.Contents{}, err
	}
	return r.contents, r.err
}

// scan reads a snapshot.
func scan(in io.Reader, each func(*archive.Message) error) (archive.Contents, error) {
	s, err := archive.NewSnapshot(in)
	if err != nil {
		return archive.Contents{}, err
	}
	err = eachMessage(s, each)
	return s.Contents(), err
}

func eachMessage(s *archive.Snapshot, each func(*archive.Message) error) error {
	for {
		m, err := s.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(m); err != nil {
			return err
		}
	}
}

func (e *engine) infoOf(ctx context.Context, name string) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	stream, err := e.js.Stream(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("%w: stream %s: %w", ErrUnavailable, name, err)
	}
	return stream.CachedInfo(), nil
}

// figures counts what there is.
func (e *engine) figures(ctx context.Context) (Figures, error) {
	inbox, err := streamInfo(ctx, e.inbox)
	if err != nil {
		return Figures{}, err
	}
	orders, err := streamInfo(ctx, e.orders)
	if err != nil {
		return Figures{}, err
	}
	f := Figures{LogID: e.id, Events: inbox.State.Msgs, Orders: orders.State.NumSubjects, OrderEvents: orders.State.Msgs}
	names, err := e.buckets[Subscriptions].ListKeys(ctx)
	if err != nil {
		return Figures{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer names.Stop()
	for range names.Keys() {
		f.Subscriptions++
	}
	return f, ctx.Err()
}

// Import makes a log of an archive in cfg.Dir, which must be empty or missing, or in
// cfg.Cluster, whose account must have none, and closes it. The log is as it was when it was exported; cfg.Keys encrypt it or not,
// whatever they were then. In a directory nothing is removed for its age before a gateway
// opens it; in a cluster the streams have the limits of cfg in the end.
//
// It is all or nothing: when it fails, nothing is left; when it is killed, the
// log is not opened (ErrUnfinished), and another Import begins anew. An error
// about the archive wraps archive.ErrInvalid or archive.ErrNewer.
func Import(ctx context.Context, cfg Config, from io.Reader, progress Progress) (_ Figures, err error) {
	in, err := archive.NewReader(from)
	if err != nil {
		return Figures{}, err
	}
	if cfg.Cluster != nil {
		return importShared(ctx, cfg, in, progress)
	}
	_, statErr := os.Stat(cfg.Dir)
	lock, dir, err := holdDir(cfg.Dir)
	if err != nil {
		return Figures{}, err
	}
	defer lock.Close()
	defer dir.Close()
	if err := refuseUsed(cfg.Dir); err != nil {
		return Figures{}, err
	}
	cfg.complete(dir)
	var flushes failures
	cfg.Sync = flushes.watch(cfg.Sync)
	cfg.AsIs, cfg.AcceptDamage = true, false
	cfg.InboxMaxAge, cfg.OrdersMaxAge, cfg.InboxMaxBytes, cfg.OrdersMaxBytes, cfg.MaxEventBytes = 0, 0, 0, 0, maxImported
	defer func() {
		if err == nil {
			return
		}
		err = errors.Join(err, removeImported(cfg.Dir))
		if errors.Is(statErr, fs.ErrNotExist) {
			err = errors.Join(err, os.RemoveAll(cfg.Dir))
		}
	}()
	if err := writeDurably(filepath.Join(cfg.Dir, unfinishedFile), []byte(unfinishedText)); err != nil {
		return Figures{}, fmt.Errorf("begin the import: %w", err)
	}
	if cfg.key, err = openKey(cfg.Dir, cfg.Keys, cfg.Logger); err != nil {
		return Figures{}, err
	}
	cfg.restore = func(ctx context.Context, e *engine) error {
		ctx, cancel := e.alive(ctx)
		defer cancel()
		return e.restoreAll(ctx, in, archivedStreams(Config{}), nil, progress)
	}
	if _, err := useOnce(ctx, cfg); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return Figures{}, err
	}
	// Once more, from the disk, as a gateway does it.
	cfg.restore, cfg.MaxEventBytes = nil, usualEventBytes
	figures, err := useOnce(ctx, cfg)
	if err != nil {
		return Figures{}, fmt.Errorf("open what was imported: %w", err)
	}
	if err := flushes.first(); err != nil { // at the end of an engine it is only a warning
		return Figures{}, fmt.Errorf("flush to disk: %w", err)
	}
	if err := os.Remove(filepath.Join(cfg.Dir, unfinishedFile)); err != nil {
		return Figures{}, err
	}
	return figures, dir.Sync()
}

// failures remembers whether a function ever failed.
type failures struct {
	mu  sync.Mutex
	err error
}

func (f *failures) watch(do func() error) func() error {
	return func() error {
		err := do()
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.err == nil {
			f.err = err
		}
		return err
	}
}

func (f *failures) first() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// useOnce opens an engine, counts what is there, and closes it in good order.
func useOnce(ctx context.Context, cfg Config) (Figures, error) {
	e, err := openEngine(ctx, cfg)
	if err != nil {
		return Figures{}, err
	}
	figures, err := e.figures(ctx)
	e.close()
	if err != nil {
		return Figures{}, err
	}
	book, noted, err := openNotebook(cfg.Dir)
	if err != nil {
		return Figures{}, err
	}
	book.close()
	if noted == nil || !noted.Clean || noted.Begun {
		return Figures{}, errors.New("the log could not be closed in good order: is the disk full?")
	}
	return figures, nil
}

// restoreAll makes the streams of an archive, which are those that are given, with more
// metadata. When it returns nil, the archive was read to its end and is whole.
func (e *engine) restoreAll(ctx context.Context, in *archive.Reader, streams map[string]jetstream.StreamConfig, metadata map[string]string, progress Progress) error {
	var done uint64
	for {
		s, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		cfg, expected := streams[s.Name]
		if !expected {
			return fmt.Errorf("%w: it holds a stream %.40q, which this version of ordergate does not know, or twice", archive.ErrInvalid, s.Name)
		}
		delete(streams, s.Name)
		if cfg.Metadata, err = metadataOf(s, in.Header.LogID); err != nil {
			return err
		}
		if len(metadata) > 0 {
			more := maps.Clone(metadata)
			maps.Copy(more, cfg.Metadata)
			cfg.Metadata = more
		}
		contents, err := e.restoreStream(ctx, in, cfg, func() { done++; progress(done, in.Header.Messages) })
		if err != nil {
			return fmt.Errorf("import %s: %w", s.Name, err)
		}
		if err := in.End(contents); err != nil {
			return err
		}
	}
	for _, name := range []string{inboxStream, ordersStream} {
		if _, missing := streams[name]; missing {
			return fmt.Errorf("%w: stream %s is not in it", archive.ErrInvalid, name)
		}
	}
	return nil
}

// metadataOf returns what identifies a stream; a bucket has nothing.
func metadataOf(s archive.Stream, logID string) (map[string]string, error) {
	switch {
	case s.Name != inboxStream && s.Name != ordersStream:
		return nil, nil
	case !subjectID(s.ID) || s.Name == ordersStream && s.ID != logID:
		return nil, fmt.Errorf("%w: stream %s has the id %.40q", archive.ErrInvalid, s.Name, s.ID)
	}
	metadata := map[string]string{metadataID: s.ID, metadataFormat: s.Format}
	if err := readable(metadata); err != nil {
		return nil, fmt.Errorf("stream %s of the archive %w", s.Name, err)
	}
	return metadata, nil
}

// restoreStream makes one stream. What is checked is written anew: the engine sees no
// byte as it is in the archive.
func (e *engine) restoreStream(ctx context.Context, in io.Reader, cfg jetstream.StreamConfig, each func()) (_ archive.Contents, err error) {
	s, err := archive.NewSnapshot(in)
	if err != nil {
		return archive.Contents{}, err
	}
	var consumers []archive.Consumer
	for _, c := range s.Consumers {
		if cfg.Name == inboxStream && c.Name == converterConsumer && len(consumers) == 0 {
			c.Config = e.converterConfig()
			consumers = append(consumers, c)
			e.converter = true
		}
	}
	// Whoever stops is seen below: a restore that nobody ends holds the engine up.
	r, err := e.restore(context.WithoutCancel(ctx), cfg)
	if err != nil {
		return archive.Contents{}, err
	}
	finished := false
	defer func() {
		if !finished {
			r.abandon()
		}
	}()
	out, err := archive.NewSnapshotWriter(r, s.Announced(), consumers)
	if err != nil {
		return archive.Contents{}, err
	}
	if err := eachMessage(s, func(m *archive.Message) error {
		if !belongs(cfg.Name, m.Subject) {
			return fmt.Errorf("%w: message %d has the subject %.80q", archive.ErrInvalid, m.Sequence, m.Subject)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		each()
		return out.Write(m)
	}); err != nil {
		return archive.Contents{}, err
	}
	if err := out.Close(); err != nil {
		return archive.Contents{}, err
	}
	finished = true
	state, err := r.finish()
	if err != nil {
		return archive.Contents{}, err
	}
	found := s.Contents()
	if state.Msgs != found.Messages || state.LastSeq != found.Last || found.Messages > 0 && state.FirstSeq != found.First {
		return archive.Contents{}, fmt.Errorf("%w: of %d messages, %d to %d, the engine took %d, %d to %d",
			archive.ErrInvalid, found.Messages, found.First, found.Last, state.Msgs, state.FirstSeq, state.LastSeq)
	}
	return found, nil
}

// belongs reports whether a subject is one of a stream's.
func belongs(stream, subject string) bool {
	switch stream {
	case inboxStream:
		id, ok := strings.CutPrefix(subject, inboxSubject(""))
		return ok && subjectID(id)
	case ordersStream:
		id, ok := strings.CutPrefix(subject, orderSubject(""))
		return ok && ValidOrderID(id)
	}
	key, ok := strings.CutPrefix(subject, keySubject(BucketName(strings.TrimPrefix(stream, bucketStream(""))), ""))
	return ok && storableKey(key)
}

// refuseUnfinished returns ErrUnfinished for a directory in which an import was begun.
func refuseUnfinished(dir string) error {
	_, err := os.Lstat(filepath.Join(dir, unfinishedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: what is in %s is not whole: run `ordergate import` again, or empty it", ErrUnfinished, dir)
}

// refuseUsed returns an error for a directory that holds anything but what an
// interrupted import left, which it removes.
func refuseUsed(dir string) error {
	if err := refuseUnfinished(dir); errors.Is(err, ErrUnfinished) {
		if err := removeImported(dir); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() != lockFile && entry.Name() != "lost+found" { // which new file systems have
			return fmt.Errorf("%s is not empty (%s): an import makes a new log: give another --data-dir, or move away what is there", dir, entry.Name())
		}
	}
	return nil
}

// removeImported removes what an import makes; what says that it is not whole, last.
func removeImported(dir string) error {
	for _, name := range []string{engineDir, noteFile, keyFile, keyFile + ".new", unfinishedFile + ".new", unfinishedFile} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}
