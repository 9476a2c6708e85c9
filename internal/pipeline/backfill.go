package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const (
	// backfillLabel stands for the secret of an event that came by a listing.
	backfillLabel = "backfill"
	// backfillReach is how far back Stripe lists events
	// (https://docs.stripe.com/api/events).
	backfillReach = 30 * 24 * time.Hour
	// backfillOverlap is how much earlier than the cursor a listing begins:
	// deliveries were under way when the gateway stopped.
	backfillOverlap = time.Hour
	// A window is listed at a time, so that old events come before new ones, as
	// far as Stripe lets them: it lists the newest first. It grows while there is
	// little in it, and shrinks when there is much.
	minWindow, maxWindow         = 5 * time.Minute, 24 * time.Hour
	littleInWindow, muchInWindow = 200, 2000
	// backfillBuffer bounds the events that are turned around at a time.
	backfillBuffer = 5000
	// cursorInterval is how often the gateway notes that it is listening, and
	// downtime is how old that note is when it was not.
	cursorInterval = time.Minute
	downtime       = 3 * time.Minute
	// listInterval is the time between two listings while the gateway runs. They reach listReach
	// back, and leave out the newest listMargin, in which deliveries are under way.
	listInterval, listReach, listMargin = time.Hour, 3 * time.Hour, 10 * time.Minute
	// maxTypes is how many types Stripe lists at a time.
	maxTypes = 20

	// backlogAge is how old an unconverted event is when that is an error, which
	// is said every backlogInterval.
	backlogAge      = 24 * time.Hour
	backlogInterval = time.Hour

	// leadInterval is how often it is looked whether this gateway keeps the cursor now,
	// and budgetInterval how often the gateways share the requests to Stripe anew.
	leadInterval   = 5 * time.Second
	budgetInterval = 5 * time.Second

	backfillLease = "backfill"
	cursorKey     = "backfill-cursor"
	sinceKey      = "listening-since"
	accountPrefix = "account."
)

var (
	// ErrNoKey means that there is no Stripe API key to list events with.
	ErrNoKey = errors.New("no Stripe API key")
	// ErrBusy means that a backfill is running already.
	ErrBusy = errors.New("a backfill is running already")
)

// BackfillReport is what a backfill found.
type BackfillReport struct {
	// Since and Until are the time that is listed.
	Since, Until time.Time
	// Reached is how far the listing has come; Until at the end.
	Reached time.Time
	// Listed is how many events Stripe has; Missing how many of them the
	// gateway did not; Recovered how many of those are stored now.
	Listed, Missing, Recovered int
}

// backfills is the state of backfills: one runs at a time.
type backfills struct {
	running sync.Mutex

	mu       sync.Mutex
	accounts map[string]bool // known to be in the bucket
}

// Backfill lists the events that Stripe has since a time, at most 30 days back,
// and stores those that are missing, through the same door as the webhooks. It
// tells progress as it goes. It fails with ErrNoKey, ErrBusy, or what the log or
// Stripe's API fail with; what was recovered until then stays.
func (p *Pipeline) Backfill(ctx context.Context, since time.Time, progress func(BackfillReport)) (BackfillReport, error) {
	return p.list(ctx, since, time.Now(), progress)
}

// list is Backfill up to a time.
func (p *Pipeline) list(ctx context.Context, since, until time.Time, progress func(BackfillReport)) (BackfillReport, error) {
	if p.Stripe == nil {
		return BackfillReport{}, fmt.Errorf("%w: set STRIPE_API_KEY to list what Stripe has", ErrNoKey)
	}
	if !p.backfills.running.TryLock() {
		return BackfillReport{}, ErrBusy
	}
	defer p.backfills.running.Unlock()
	lease, err := p.Log.Acquire(ctx, backfillLease)
	if errors.Is(err, eventlog.ErrTaken) {
		return BackfillReport{}, fmt.Errorf("%w: %w", ErrBusy, err)
	}
	if err != nil {
		return BackfillReport{}, err
	}
	defer lease.Release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(lease.Held(), cancel)()
	if earliest := time.Now().Add(-backfillReach); since.Before(earliest) {
		since = earliest
	}
	report := BackfillReport{Since: since, Until: until, Reached: since}
	sources, err := p.eventSources(ctx)
	if err != nil {
		return report, err
	}
	for window := time.Hour; report.Reached.Before(report.Until); {
		before := report.Listed
		until := report.Reached.Add(window)
		if until.After(report.Until) {
			until = report.Until.Add(time.Second) // Stripe's seconds: the last one counts
		}
		for _, source := range sources {
			for types := range slices.Chunk(orders.EventTypes(), maxTypes) {
				source.Since, source.Until, source.Types = report.Reached, until, types
				if err := p.backfillWindow(ctx, source, &report); err != nil {
					return report, err
				}
			}
		}
		if report.Reached = until; until.After(report.Until) {
			report.Reached = report.Until
		}
		progress(report)
		switch listed := report.Listed - before; {
		case listed < littleInWindow:
			window = min(2*window, maxWindow)
		case listed > muchInWindow:
			window = max(window/2, minWindow)
		}
	}
	return report, nil
}

// eventSources are the accounts whose events are listed, in each mode that there
// is a key for: the platform's own, and the connected ones that were heard of.
func (p *Pipeline) eventSources(ctx context.Context) ([]stripeapi.EventQuery, error) {
	keys, err := p.Log.Bucket(eventlog.State).Keys(ctx)
	if err != nil {
		return nil, err
	}
	var sources []stripeapi.EventQuery
	for _, live := range []bool{true, false} {
		if !p.hasKey(live) {
			continue
		}
		sources = append(sources, stripeapi.EventQuery{Livemode: live})
		for _, key := range keys {
			account, ok := strings.CutPrefix(key, accountPrefix+mode(live)+".")
			if !ok {
				continue
			}
			kind, err := p.Log.Bucket(eventlog.State).Get(ctx, key)
			if err != nil {
				return nil, err
			}
			sources = append(sources, stripeapi.EventQuery{Livemode: live, Account: account, InContext: string(kind) == organizationAccount})
		}
	}
	return sources, nil
}

// backfillWindow stores what is missing of one listing, the oldest first.
func (p *Pipeline) backfillWindow(ctx context.Context, query stripeapi.EventQuery, report *BackfillReport) error {
	var events []json.RawMessage
	store := func() error {
		slices.Reverse(events)
		for _, raw := range events {
			if err := p.backfillEvent(ctx, raw, report); err != nil {
				return err
			}
		}
		events = events[:0]
		return nil
	}
	for raw, err := range p.Stripe.Events(ctx, query) {
		if err != nil {
			return err
		}
		if events = append(events, raw); len(events) == backfillBuffer {
			if err := store(); err != nil {
				return err
			}
		}
	}
	return store()
}

func (p *Pipeline) backfillEvent(ctx context.Context, raw json.RawMessage, report *BackfillReport) error {
	report.Listed++
	envelope, err := stripehook.ReadEnvelope(raw)
	if err != nil {
		report.Missing++
		p.Logger.Error("Stripe lists an event that cannot be read", "error", err)
		return nil
	}
	duplicate, err := p.Log.AppendInbox(ctx, eventlog.RawEvent{ID: envelope.ID, Body: raw, SecretLabel: backfillLabel})
	if err != nil {
		return err
	}
	if !duplicate {
		report.Missing++
		report.Recovered++
	}
	return nil
}

// keepCursor notes from time to time that the gateway is listening, looks at the
// backlog, and first lists what Stripe sent while it was not. On the very first
// start there is nothing to list: what was shipped before must not be shipped
// again.
func (p *Pipeline) keepCursor(ctx context.Context) {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = time.Second, 5*time.Minute
	var warned, listed time.Time
	for ctx.Err() == nil {
		wait := cursorInterval
		if !p.Log.Leads() { // another gateway does it
			select {
			case <-ctx.Done():
			case <-time.After(leadInterval):
			}
			continue
		}
		err := p.catchUp(ctx)
		switch {
		case errors.Is(err, ErrBusy): // who lists events now, an operator perhaps, need not list these
			wait = leadInterval
		case err != nil && ctx.Err() == nil:
			wait = pause.NextBackOff()
			p.Logger.Error("what Stripe sent while the gateway was away could not be listed; trying again", "in", wait, "error", err)
		default:
			pause.Reset()
			if time.Since(listed) >= p.listInterval {
				listed = time.Now()
				if err := p.listMissed(ctx, listed); err != nil && ctx.Err() == nil {
					p.Logger.Warn("events that Stripe sent recently could not be listed; trying again later", "in", p.listInterval, "error", err)
				}
			}
		}
		if time.Since(warned) > backlogInterval {
			warned = time.Now()
			if err := p.warnOfBacklog(ctx); err != nil && ctx.Err() == nil {
				p.Logger.Debug("the backlog is not known", "error", err)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// listMissed stores the events of the last hours that Stripe has and the gateway does not: webhooks
// do not reach the ingress, which nothing else would notice while the gateway runs. Events from
// before the gateway's first start are left out, as their orders were shipped without it.
func (p *Pipeline) listMissed(ctx context.Context, now time.Time) error {
	if p.Stripe == nil {
		return nil
	}
	started, err := p.Log.Bucket(eventlog.State).Claim(ctx, sinceKey, []byte(now.UTC().Format(time.RFC3339)))
	if err != nil {
		return err
	}
	first, err := time.Parse(time.RFC3339, string(started))
	if err != nil {
		return fmt.Errorf("the time of the first start: %w", err)
	}
	since, until := now.Add(-listReach), now.Add(-listMargin)
	if since.Before(first) {
		since = first
	}
	if !since.Before(until) {
		return nil
	}
	report, err := p.list(ctx, since, until, func(BackfillReport) {})
	p.measures.missed.Add(float64(report.Recovered))
	if report.Recovered > 0 {
		p.Logger.Error("events did not arrive by webhook and were listed at Stripe instead", "missing", report.Missing, "recovered", report.Recovered, "since", since,
			"hint", "check the endpoint at Stripe: its URL, DNS, certificate, events and signing secret; see the ingress's refusals")
	}
	return err
}

// shareBudget lets this gateway have its part of the requests that may go to Stripe.
func (p *Pipeline) shareBudget(ctx context.Context) {
	if p.Stripe == nil || !p.Log.Shared() {
		return
	}
	tick := time.NewTicker(budgetInterval)
	defer tick.Stop()
	for {
		p.Stripe.Share(len(p.Log.Members()))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// warnOfBacklog says so when events have waited for so long that something must
// be wrong, long before the inbox forgets any by age.
func (p *Pipeline) warnOfBacklog(ctx context.Context) error {
	state, err := p.Log.InboxState(ctx)
	if err != nil || state.Converted >= state.Last {
		return err
	}
	oldest, err := p.Log.ReadInbox(ctx, state.Converted, 1)
	if err != nil || len(oldest) == 0 || time.Since(oldest[0].StoreTime) < p.backlogAge {
		return err
	}
	p.Logger.Error("events wait to be converted", "oldest", oldest[0].ID, "since", oldest[0].StoreTime, "behind", state.Last-state.Converted,
		"check", "the lines about this event: it must be converted or parked before the inbox forgets it (--inbox-max-age)")
	return nil
}

// catchUp backfills after downtime, and moves the cursor to now.
func (p *Pipeline) catchUp(ctx context.Context) error {
	now := time.Now()
	value, err := p.Log.Bucket(eventlog.State).Get(ctx, cursorKey)
	switch {
	case errors.Is(err, eventlog.ErrNotFound):
	case err != nil:
		return err
	default:
		cursor, err := time.Parse(time.RFC3339, string(value))
		if err != nil {
			return fmt.Errorf("the backfill cursor: %w", err)
		}
		if p.Stripe != nil && now.Sub(cursor) > downtime {
			report, err := p.Backfill(ctx, cursor.Add(-backfillOverlap), func(BackfillReport) {})
			if err != nil {
				return err
			}
			p.Logger.Info("backfill after downtime", "away_since", cursor, "listed", report.Listed, "missing", report.Missing, "recovered", report.Recovered)
			if now.Sub(cursor) > backfillReach {
				p.Logger.Warn("Stripe lists events for 30 days only: what was sent before is to be compared by hand", "from", cursor, "to", report.Since)
			}
		}
	}
	return p.Log.Bucket(eventlog.State).Put(ctx, cursorKey, []byte(now.UTC().Format(time.RFC3339)))
}

// The kinds of accounts that are remembered.
const (
	connectedAccount    = "seen"
	organizationAccount = "context"
)

// rememberAccount notes a connected account, or one of an organization, so that its
// events are listed too.
func (p *Pipeline) rememberAccount(ctx context.Context, e *orders.Event) error {
	if e.Account == "" {
		return nil
	}
	key := accountPrefix + mode(e.Livemode) + "." + e.Account
	p.backfills.mu.Lock()
	known := p.backfills.accounts[key]
	p.backfills.mu.Unlock()
	if known {
		return nil
	}
	kind := connectedAccount
	if e.InContext {
		kind = organizationAccount
	}
	if _, err := p.Log.Bucket(eventlog.State).Claim(ctx, key, []byte(kind)); err != nil {
		return err
	}
	p.backfills.mu.Lock()
	defer p.backfills.mu.Unlock()
	if p.backfills.accounts == nil {
		p.backfills.accounts = map[string]bool{}
	}
	p.backfills.accounts[key] = true
	return nil
}
