package eventlog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

// ages returns the streams that lose events only to age, and to what is erased,
// and the age of each.
func ages(cfg Config) map[string]time.Duration {
	return map[string]time.Duration{inboxStream: cfg.InboxMaxAge, ordersStream: cfg.OrdersMaxAge}
}

// whole reports whether a stream is one of them.
func whole(name string) bool {
	_, is := ages(Config{})[name]
	return is
}

// openNote reads the note, and notes that an opening has begun: from then on the
// engine may write. It is to be flushed before the engine makes any file.
//
// The note may be read before the page cache is dropped: it tells of flushes that
// had succeeded before it was written.
func (e *engine) openNote() error {
	_, err := os.Stat(filepath.Dir(streamsDir(e.dir)))
	isNew := errors.Is(err, os.ErrNotExist)
	if err != nil && !isNew {
		return err
	}
	if e.notebook, e.note, err = openNotebook(e.dir); err != nil {
		return fmt.Errorf("read what is noted of the log: %w", err)
	}
	switch {
	case isNew && e.note == nil:
		e.note = &note{At: time.Now().UTC(), Streams: map[string]*streamNote{}}
	case e.note == nil || !e.note.Clean || e.note.Begun:
		return nil
	default:
		e.untouched, e.note.Begun = true, true
	}
	if err := e.notebook.write(e.note); err != nil {
		return fmt.Errorf("note the opening of the log: %w", err)
	}
	return nil
}

// checkFiles compares what is in the files with what was noted, before the engine
// sees and changes them.
func (e *engine) checkFiles(cfg Config) error {
	if e.note == nil {
		return e.accept(cfg, []string{filepath.Join(cfg.Dir, noteFile) + ", which says what must be there, is missing or cannot be read"})
	}
	c := &checker{dir: cfg.Dir, note: e.note, untouched: e.untouched, key: cfg.key, ages: ages(cfg), now: cfg.wall()}
	if err := c.check(); err != nil {
		return fmt.Errorf("check the log's files: %w", err)
	}
	if err := e.accept(cfg, append(c.problems, implausible(e.note, cfg)...)); err != nil {
		return err
	}
	for _, useless := range c.useless {
		e.logger.Warn("a file that cannot be used is removed", "file", useless)
		if err := os.RemoveAll(useless); err != nil {
			return err
		}
	}
	return nil
}

// checkStates compares what the engine found after a clean end with what was
// noted then, and notes what there is now.
func (e *engine) checkStates(cfg Config) error {
	now, err := e.states()
	if err != nil {
		return err
	}
	var problems []string
	if e.note != nil && e.note.Clean && !e.accepted {
		for _, name := range slices.Sorted(maps.Keys(e.note.Streams)) {
			problems = append(problems, compareStates(name, e.note.Streams[name], now[name], cfg.wall())...)
			if lost := now[name].State.Lost; e.untouched && lost != nil {
				problems = append(problems, fmt.Sprintf("stream %s has lost %d events, of %d bytes", name, len(lost.Msgs), lost.Bytes))
			}
		}
	}
	if err := e.accept(cfg, problems); err != nil {
		return err
	}
	if e.note == nil {
		e.note = &note{}
	}
	before := e.note.Streams
	if !e.noteStates() {
		return errors.New("the engine does not tell the state of its streams")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, s := range e.note.Streams {
		// What the engine found is covered by the first flush.
		e.streams[name] = s.Covered
		if s.Covered = 0; before[name] != nil && !e.accepted {
			s.Covered = before[name].Covered
		}
	}
	e.note.At, e.note.Clean, e.note.Begun = time.Now().UTC(), false, false
	return e.notebook.write(e.note)
}

// accept returns the problems as an error, unless they are to be accepted.
func (e *engine) accept(cfg Config, problems []string) error {
	if len(problems) == 0 {
		return nil
	}
	damage := damaged(cfg.Dir, problems)
	if !cfg.AcceptDamage {
		return damage
	}
	e.logger.Warn("the log is opened without what cannot be read: --accept-damage", "error", damage)
	e.accepted = true
	if e.server != nil {
		return nil
	}
	// Without its index the engine reads every block, and cuts off what it cannot.
	indexes, err := filepath.Glob(filepath.Join(streamsDir(cfg.Dir), "*", messagesDir, indexName))
	for _, index := range indexes {
		err = errors.Join(err, os.Remove(index))
	}
	return err
}

// forgetConverter removes what the engine could not read of the converter's
// state, which is written without a flush: it begins anew. Converting an event
// twice changes nothing.
func (e *engine) forgetConverter(ctx context.Context) error {
	_, err := e.inbox.Consumer(ctx, converterConsumer)
	if !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return err
	}
	return os.RemoveAll(filepath.Join(streamsDir(e.dir), inboxStream, consumersDir, converterConsumer))
}

// states asks the engine for its streams.
func (e *engine) states() (map[string]server.StreamDetail, error) {
	info, err := e.server.Jsz(&server.JSzOptions{Accounts: true, Streams: true, Config: true})
	if err != nil {
		return nil, err
	}
	streams := map[string]server.StreamDetail{}
	for _, account := range info.AccountDetails {
		for _, stream := range account.Streams {
			streams[stream.Name] = stream
		}
	}
	return streams, nil
}

// compareStates returns what is gone of a stream since it was closed.
func compareStates(name string, then *streamNote, now server.StreamDetail, at time.Time) (problems []string) {
	if now.Name == "" {
		return []string{fmt.Sprintf("stream %s is gone", name)}
	}
	state := now.State
	if state.LastSeq < then.Covered {
		problems = append(problems, fmt.Sprintf("stream %s ends at %d, and ended at %d", name, state.LastSeq, then.Covered))
	}
	maxAge := now.Config.MaxAge
	expired := maxAge > 0 && !then.FirstTime.Add(maxAge).After(at)
	unwritten := state.LastSeq <= then.Covered // what was written after the note may have replaced something
	if state.FirstSeq > then.First && !expired && (whole(name) || unwritten) {
		problems = append(problems, fmt.Sprintf("stream %s begins at %d, and the events from %d on are not too old", name, state.FirstSeq, then.First))
	}
	if gone := deleted(state) - then.Deleted; gone > 0 && unwritten {
		problems = append(problems, fmt.Sprintf("stream %s has lost %d events in the middle", name, gone))
	}
	return problems
}

// deleted is how many sequences between the first and the last are empty.
func deleted(state server.StreamState) int64 {
	return int64(state.LastSeq) - int64(max(state.FirstSeq, 1)) + 1 - int64(state.Msgs)
}

// quiet waits until the engine has done what it was asked for, and returns whether it
// has: who asked may have been cancelled since. What was to be written may still be on
// its way, but nothing that is only to be removed.
func (e *engine) quiet() bool {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	if e.conn.FlushWithContext(ctx) != nil {
		return false
	}
	for {
		now, err := e.server.Jsz(nil)
		if err != nil {
			return false
		}
		if now.API.Inflight == 0 {
			return true
		}
		if pauseFor(ctx, quietPause) != nil {
			return false
		}
	}
}

// noteStates notes what the engine has now; the caller writes it.
func (e *engine) noteStates() bool {
	now, err := e.states()
	if err != nil || len(now) == 0 {
		return false
	}
	streams := map[string]*streamNote{}
	for name, stream := range now {
		files, err := blockFiles(filepath.Join(streamsDir(e.dir), name))
		if err != nil {
			return false
		}
		state := stream.State
		s := &streamNote{Covered: state.LastSeq, First: max(state.FirstSeq, 1), FirstTime: state.FirstTime, Deleted: deleted(state)}
		if state.Msgs == 0 {
			s.FirstTime = time.Now().UTC()
		}
		if whole(name) {
			s.Missing = missingBlocks(files)
		}
		streams[name] = s
	}
	e.note.Streams = streams
	return true
}

// noteEnd notes that everything has ended, with what noteStates found.
func (e *engine) noteEnd() {
	err := e.sync()
	if err == nil {
		e.note.At, e.note.Clean = time.Now().UTC(), true
		if err = e.notebook.write(e.note); err == nil {
			err = e.sync()
		}
	}
	if err != nil {
		e.logger.Warn("the clean end of the log could not be noted: its files will be read when it is opened", "error", err)
	}
}

// syncWithNote flushes, and with it the note of what the flush before covered.
// Only the flusher calls it.
func (e *engine) syncWithNote() error {
	e.note.At = time.Now().UTC()
	if err := e.notebook.write(e.note); err != nil {
		return fmt.Errorf("note what is covered: %w", err)
	}
	e.mu.Lock()
	written := maps.Clone(e.streams)
	e.mu.Unlock()
	if err := e.sync(); err != nil {
		return err
	}
	for name, sequence := range written {
		if s := e.note.Streams[name]; s != nil {
			s.Covered = max(s.Covered, sequence)
		}
	}
	return nil
}

const (
	// quietPause is between looks at what the engine is asked for.
	quietPause = time.Millisecond
	// rereadPause is between looks at a block that seems to be damaged.
	rereadPause = time.Second
	rereads     = 3
)

// checkRest reads the blocks that checkFiles did not, and takes half of the
// disk's time at most. Damage ends the engine: when the log is opened anew, it is
// found again, and named.
func (e *engine) checkRest(key string) {
	c := &checker{dir: e.dir, key: key}
	began := time.Now()
	streams, err := os.ReadDir(streamsDir(e.dir))
	if err != nil {
		return
	}
	for _, stream := range streams {
		files, err := blockFiles(filepath.Join(streamsDir(e.dir), stream.Name()))
		if err != nil || len(files) == 0 {
			continue
		}
		for _, file := range files[:len(files)-1] { // the last one is written to
			look := time.Now()
			problem := e.readQuietly(c, stream.Name(), file)
			if problem != "" {
				e.fail(fmt.Errorf("%w: %s: %s", ErrDamaged, file.path, problem))
			}
			if !e.pause(time.Since(look)) {
				return
			}
		}
	}
	e.logger.Debug("the files of the log were read", "took", time.Since(began))
}

// readQuietly returns what is wrong with a block that the engine may be replacing
// at the moment.
func (e *engine) readQuietly(c *checker, stream string, file blockFile) (problem string) {
	for range rereads {
		b, err := c.readBlock(stream, file)
		if err != nil || b.problem == "" { // or it is gone
			return ""
		}
		problem = b.problem
		if _, err := os.Stat(file.path); err != nil || !e.pause(rereadPause) {
			return ""
		}
	}
	return problem
}

// pause returns false when the engine ends.
func (e *engine) pause(d time.Duration) bool {
	select {
	case <-e.dead.Done():
		return false
	case <-time.After(d):
		return true
	}
}
