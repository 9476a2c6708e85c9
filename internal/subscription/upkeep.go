package subscription

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/ordergate/ordergate/internal/eventlog"
)

const (
	// upkeepInterval is how often the log is told what it must keep.
	upkeepInterval = time.Hour
	// upkeepMargin is for how much longer it is told to keep it.
	upkeepMargin = 7 * 24 * time.Hour
)

// upkeep has the log keep what held orders and dead letters need, until ctx ends.
func (m *Manager) upkeep(ctx context.Context) {
	tick := time.NewTicker(upkeepInterval)
	defer tick.Stop()
	for {
		if err := m.keepHeld(ctx, time.Now()); err != nil && ctx.Err() == nil {
			m.logger.Warn("the log could not be told what subscriptions need; trying again in an hour", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
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
