package subscription

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ordergate/ordergate/internal/eventlog"
)

const (
	// upkeepInterval is how often the log is told what it must keep.
	upkeepInterval = time.Hour
	// upkeepMargin is for how much longer it is told to keep it, and how long before
	// events go that nobody has acknowledged it is said, hourly: at the latest when
	// three quarters of their time are over.
	upkeepMargin = 7 * 24 * time.Hour
)

// upkeep has the log keep what held orders and dead letters need, until ctx ends.
func (m *Manager) upkeep(ctx context.Context) {
	tick := time.NewTicker(upkeepInterval)
	defer tick.Stop()
	for {
		if err := m.keepAllHeld(ctx); err != nil && ctx.Err() == nil {
			m.logger.Warn("the log could not be told what subscriptions need; trying again in an hour", "error", err)
		}
		if err := m.warnOfAge(ctx, time.Now()); err != nil && ctx.Err() == nil {
			m.logger.Warn("it is not known whether events are about to go that nobody has acknowledged; trying again in an hour", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keepAllHeld is keepHeld where no other gateway does it.
func (m *Manager) keepAllHeld(ctx context.Context) error {
	if !m.log.Leads() {
		return nil
	}
	return m.keepHeld(ctx, time.Now())
}

// keepHeld has the log keep the oldest event that is held back or a dead letter,
// and the records of them all.
func (m *Manager) keepHeld(ctx context.Context, now time.Time) error {
	held := m.log.Bucket(eventlog.HeldOrders)
	oldest := now
	err := held.Entries(ctx, ">", func(key string, value []byte) error {
		var record heldOrder
		if err := json.Unmarshal(value, &record); err != nil {
			return fmt.Errorf("read what is held at %s: %w", key, err)
		}
		events := make([]heldEvent, 0, 1+len(record.DeadLetters))
		if record.Head != nil {
			events = append(events, *record.Head)
		}
		for _, letter := range record.DeadLetters {
			events = append(events, letter.heldEvent)
		}
		for _, event := range events {
			if !event.Stored.IsZero() && event.Stored.Before(oldest) {
				oldest = event.Stored
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := held.Refresh(ctx, eventlog.HeldOrdersAge/3); err != nil {
		return err
	}
	return m.log.KeepOrders(ctx, now.Sub(oldest)+upkeepMargin)
}

// warnOfAge says so when events will soon be removed by their age that a
// subscription has not acknowledged.
func (m *Manager) warnOfAge(ctx context.Context, now time.Time) error {
	state, err := m.log.OrdersState(ctx)
	if err != nil || state.MaxAge == 0 {
		return err
	}
	names, err := m.List(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		s, err := m.Open(ctx, name)
		var there *ElsewhereError
		if errors.Is(err, ErrNotFound) || errors.As(err, &there) {
			continue // it was deleted meanwhile, or its gateway says so
		}
		if err != nil {
			return err
		}
		described, err := s.Describe(ctx)
		if err != nil {
			return err
		}
		oldest := described.GetStats().GetOldestUnackedTime()
		if oldest == nil {
			continue
		}
		gone := oldest.AsTime().Add(state.MaxAge)
		if now.After(gone.Add(-min(upkeepMargin, state.MaxAge/4))) {
			m.logger.Error("events of a subscription will be removed by their age, and nobody has acknowledged them", "subscription", name,
				"oldest", oldest.AsTime(), "gone_at", gone, "backlog", described.GetStats().GetBacklog(),
				"mend", "have a worker take them (ordergate consume), keep order events for longer (--orders-max-age), or delete the subscription if nobody needs it")
		}
	}
	return nil
}
