package eventlog

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	clockInterval = 500 * time.Millisecond
	// clockJump is more than a clock that is kept in step is ever set forward.
	clockJump = time.Hour
	// noteInterval is how often it is noted that the log is in use.
	noteInterval = time.Hour
	// clockStep is said, and harmless.
	clockStep = 10 * time.Second
)

// implausible returns what is wrong with the clock when the log was not used for
// as long as it keeps its events: the engine would remove them all at once.
func implausible(n *note, cfg Config) []string {
	inbox := n.Streams[inboxStream]
	if inbox == nil || inbox.Covered == 0 || cfg.InboxMaxAge == 0 || cfg.wall().Sub(n.At) < cfg.InboxMaxAge {
		return nil
	}
	return []string{fmt.Sprintf("no files, but the clock perhaps: it says %s, the log was used last at %s, and every event in INBOX would be too old (--inbox-max-age) and be removed: "+
		"set the clock, or let them go", cfg.wall().UTC().Format(time.RFC3339), n.At.Format(time.RFC3339))}
}

// watchClock compares the clock on the wall with the one that cannot be set. The
// engine removes what is too old by the former: when that is set forward by far,
// nothing is removed any more until the log is opened again.
func (e *engine) watchClock(wall func() time.Time) {
	tick, noting := time.NewTicker(clockInterval), time.NewTicker(noteInterval)
	defer tick.Stop()
	defer noting.Stop()
	last, lastWall := time.Now(), wall().Round(0)
	for {
		select {
		case <-e.dead.Done():
			return
		case <-noting.C:
			e.flusher.join() // with a note of now, also where no event comes
			continue
		case <-tick.C:
		}
		now, nowWall := time.Now(), wall().Round(0)
		jump := nowWall.Sub(lastWall) - now.Sub(last)
		last, lastWall = now, nowWall
		switch {
		case jump > clockJump:
			e.logger.Error("the clock was set forward by far: nothing is removed for its age until a restart", "by", jump, "now", nowWall.UTC(),
				"check", "is it right now? Stripe's signatures are refused when it is wrong by 5 minutes")
			if err := e.keepAll(); err != nil && e.dead.Err() == nil {
				e.logger.Error("the age of events could not be lifted: stop the gateway until the clock is right", "error", err)
			}
		case jump.Abs() > clockStep:
			e.logger.Warn("the clock was set", "by", jump, "now", nowWall.UTC())
		}
	}
}

// keepAll lifts the age limit of the streams of events, until the log is opened
// again: KeepOrders does not bring it back.
func (e *engine) keepAll() error {
	e.keepsAll.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	for _, stream := range []jetstream.Stream{e.inbox, e.orders} {
		info, err := streamInfo(ctx, stream)
		if err != nil {
			return err
		}
		cfg := info.Config
		cfg.MaxAge = 0
		if _, err := e.js.UpdateStream(ctx, cfg); err != nil {
			return err
		}
	}
	return nil
}
