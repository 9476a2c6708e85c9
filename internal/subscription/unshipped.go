package subscription

import (
	"context"
	"sync"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

// goods says what an event means for a parcel.
type goods int

const (
	noGoods   goods = iota // a test order; or not known
	liveGoods              // a live order, not to be shipped now
	shipGoods              // a live order that is to be shipped
)

func goodsOf(record *eventlog.OrderRecord) goods {
	switch {
	case !record.Livemode:
		return noGoods
	case record.ToShip():
		return shipGoods
	}
	return liveGoods
}

// unshipped reports whether a parcel may wait for the lane: its head is to be
// shipped, or keeps back what may be.
func (l *lane) unshipped() bool {
	target := l.choose()
	return target != nil && (target.goods == shipGoods || target.goods == liveGoods && (l.next != 0 || l.more))
}

// oldestUnshipped returns when the oldest event was stored that keeps a parcel
// waiting, among those that were looked at.
func (q *queue) oldestUnshipped() (oldest time.Time) {
	for _, l := range q.lanes {
		if !l.unshipped() {
			continue
		}
		if at := l.choose().stored; oldest.IsZero() || at.Before(oldest) {
			oldest = at
		}
	}
	return oldest
}

// maxAhead is how many events are read ahead at most when a subscription is
// measured; then the next measurement goes on.
const maxAhead = 1024

// ahead is how far the log was read ahead of the position for an event that is to
// be shipped: the position only moves while workers have room.
type ahead struct {
	mu       sync.Mutex
	settings *ordergatev1.Subscription // by whose filter
	epoch    uint64
	read     uint64    // up to here
	found    uint64    // the first one; 0: none
	stored   time.Time // when
}

// oldestUnshipped returns when the oldest event was stored that is neither
// acknowledged nor a dead letter and keeps a parcel waiting; zero when there is
// none.
func (s *Subscription) oldestUnshipped(ctx context.Context) (time.Time, error) {
	s.ahead.mu.Lock()
	defer s.ahead.mu.Unlock()
	s.mu.Lock()
	oldest, position, epoch, settings := s.q.oldestUnshipped(), s.q.position, s.q.epoch, s.q.settings
	s.mu.Unlock()
	if !oldest.IsZero() {
		return oldest, nil // what was not looked at is newer
	}
	return s.ahead.find(ctx, s.log, settings, epoch, position)
}

func (a *ahead) find(ctx context.Context, log *eventlog.Log, settings *ordergatev1.Subscription, epoch, position uint64) (time.Time, error) {
	if a.settings != settings || a.epoch != epoch {
		a.settings, a.epoch, a.read, a.found = settings, epoch, 0, 0
	}
	if a.found > position {
		return a.stored, nil
	}
	a.read = max(a.read, position)
	for end := a.read + maxAhead; a.read < end; {
		records, next, err := log.ReadOrders(ctx, a.read, readBatch)
		if err != nil {
			return time.Time{}, err
		}
		for _, r := range records {
			if wanted, err := r.Matches(settings.GetFilter()); (wanted || err != nil) && goodsOf(r) == shipGoods {
				a.read, a.found, a.stored = r.Sequence, r.Sequence, r.Time
				return a.stored, nil
			}
		}
		if next == a.read {
			break // there are no more
		}
		a.read = next
	}
	return time.Time{}, nil
}
