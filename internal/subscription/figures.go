package subscription

import (
	"cmp"
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// maxClientStats is how many clients are told of.
const maxClientStats = 100

// Describe returns the settings and figures of a subscription.
func (s *Subscription) Describe(ctx context.Context) (*ordergatev1.Subscription, error) {
	durable, _ := s.log.Frontier()
	s.mu.Lock()
	position := s.q.position
	stats, oldest := s.q.figures()
	described := proto.CloneOf(s.q.settings)
	described.Stats = stats
	s.mu.Unlock()
	if durable > position {
		stats.Backlog = int64(durable - position)
		records, _, err := s.log.ReadOrders(ctx, position, 1)
		if err != nil {
			return nil, err
		}
		if len(records) > 0 && (oldest.IsZero() || records[0].Time.Before(oldest)) {
			oldest = records[0].Time
		}
	}
	if !oldest.IsZero() {
		stats.OldestUnackedTime = timestamppb.New(oldest)
	}
	return described, nil
}

// figures counts what the queue has, and finds when the oldest event of it was
// stored that is neither done with nor a dead letter.
func (q *queue) figures() (*ordergatev1.SubscriptionStats, time.Time) {
	stats := &ordergatev1.SubscriptionStats{}
	var oldest time.Time
	for _, l := range q.lanes {
		stats.DeadLetters += int64(len(l.letters))
		target := l.choose()
		if target == nil {
			continue
		}
		stats.PendingOrders++
		if !target.stored.IsZero() && (oldest.IsZero() || target.stored.Before(oldest)) {
			oldest = target.stored
		}
	}
	streams := map[*client]int32{}
	for _, w := range q.workers {
		if w.limit == 0 {
			streams[w.client]++
		}
	}
	clients := map[string]*ordergatev1.ClientStats{}
	for _, c := range q.clients {
		figures := clients[c.id]
		if figures == nil {
			figures = &ordergatev1.ClientStats{ClientId: c.id}
			clients[c.id] = figures
			stats.Clients = append(stats.Clients, figures)
		}
		figures.Streams += streams[c]
		figures.OutstandingEvents += int64(c.events)
		figures.OutstandingBytes += c.bytes
	}
	slices.SortFunc(stats.Clients, func(a, b *ordergatev1.ClientStats) int { return cmp.Compare(a.GetClientId(), b.GetClientId()) })
	stats.Clients = stats.Clients[:min(len(stats.Clients), maxClientStats)]
	return stats, oldest
}

// Seek moves the subscription behind a sequence of the log, and returns when that
// is on disk.
func (s *Subscription) Seek(ctx context.Context, after uint64) error {
	return s.change(ctx, func(q *queue, now time.Time) error {
		q.seek(after, now)
		return nil
	})
}

// change changes the queue and waits until that is stored.
func (s *Subscription) change(ctx context.Context, do func(q *queue, now time.Time) error) error {
	var pending *store
	var err error
	s.update(func(q *queue, now time.Time) {
		if err = s.err; err != nil {
			return
		}
		if err = do(q, now); err == nil {
			pending = s.stored()
		}
	})
	if err != nil {
		return err
	}
	return s.await(ctx, pending)
}

// DeadLetters returns up to limit dead letters behind a sequence, in the order of
// their events.
func (s *Subscription) DeadLetters(after uint64, limit int) []*ordergatev1.DeadLetter {
	s.mu.Lock()
	defer s.mu.Unlock()
	type found struct {
		*letter
		lane *lane
	}
	var all []found
	for _, l := range s.q.lanes {
		for i := range l.letters {
			if l.letters[i].sequence > after {
				all = append(all, found{&l.letters[i], l})
			}
		}
	}
	slices.SortFunc(all, func(a, b found) int { return cmp.Compare(a.sequence, b.sequence) })
	var letters []*ordergatev1.DeadLetter
	for _, f := range all[:min(len(all), limit)] {
		letters = append(letters, &ordergatev1.DeadLetter{
			EventId: f.eventID, OrderId: f.lane.order, Sequence: int64(f.sequence), Kind: f.kind, Reason: f.reason, Detail: f.detail,
			Attempts: int32(f.attempts), DeadLetterTime: timestamppb.New(f.died), BlocksOrder: f.blocks, Redriving: f.redriven,
		})
	}
	return letters
}

// Redrive has dead letters delivered again: those of the given events, or all. It
// returns how many that are. ErrNoDeadLetter when one of them is none.
func (s *Subscription) Redrive(ctx context.Context, eventIDs []string, all bool) (int, error) {
	return s.changeLetters(ctx, eventIDs, all, (*queue).redrive)
}

// Discard gives dead letters up: those of the given events, or all. One that is
// being redriven stays. ErrNoDeadLetter when one of them is none.
func (s *Subscription) Discard(ctx context.Context, eventIDs []string, all bool) (int, error) {
	return s.changeLetters(ctx, eventIDs, all, (*queue).discard)
}

// changeLetters changes the chosen dead letters, lane by lane, and returns how
// many it did.
func (s *Subscription) changeLetters(ctx context.Context, eventIDs []string, all bool, do func(*queue, *lane, []uint64, time.Time) int) (int, error) {
	changed := 0
	err := s.change(ctx, func(q *queue, now time.Time) error {
		chosen, err := q.chosen(eventIDs, all)
		if err != nil {
			return err
		}
		for l, sequences := range chosen {
			changed += do(q, l, sequences, now)
		}
		return nil
	})
	return changed, err
}

// chosen finds the dead letters of events, or all.
func (q *queue) chosen(eventIDs []string, all bool) (map[*lane][]uint64, error) {
	wanted := map[string]bool{}
	for _, id := range eventIDs {
		wanted[id] = true
	}
	chosen := map[*lane][]uint64{}
	for _, l := range q.lanes {
		for i := range l.letters {
			letter := &l.letters[i]
			if all || wanted[letter.eventID] {
				chosen[l] = append(chosen[l], letter.sequence)
				delete(wanted, letter.eventID)
			}
		}
	}
	for id := range wanted {
		return nil, &noDeadLetter{id}
	}
	return chosen, nil
}

// noDeadLetter is an ErrNoDeadLetter that says of which event.
type noDeadLetter struct{ eventID string }

func (e *noDeadLetter) Error() string { return e.eventID + ": " + ErrNoDeadLetter.Error() }
func (e *noDeadLetter) Unwrap() error { return ErrNoDeadLetter }

// redrive has letters of a lane delivered again, when nothing else of it is out.
func (q *queue) redrive(l *lane, sequences []uint64, now time.Time) (redriven int) {
	for _, sequence := range sequences {
		letter := &l.letters[l.letter(sequence)]
		if !letter.redriven {
			letter.redriven, letter.attempts, letter.retry = true, 0, time.Time{}
			redriven++
		}
	}
	q.replace(l, now)
	return redriven
}

// discard gives letters of a lane up.
func (q *queue) discard(l *lane, sequences []uint64, now time.Time) (discarded int) {
	for _, sequence := range sequences {
		if i := l.letter(sequence); !l.letters[i].redriven {
			l.letters = slices.Delete(l.letters, i, i+1)
			discarded++
		}
	}
	q.replace(l, now)
	return discarded
}

// replace notes that the letters of a lane changed. What is out stays out.
func (q *queue) replace(l *lane, now time.Time) {
	q.touch(l)
	if l.state != laneLeased {
		q.lift(l)
		q.place(l, now)
	}
}
