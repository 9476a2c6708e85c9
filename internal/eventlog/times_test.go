package eventlog

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A later time never stands for an earlier place, whatever the times are: of two times
// that are out of the engine's range too.
func TestSequencesGrowWithTime(t *testing.T) {
	l := openLog(t, testConfig(t))
	const events = 20
	times := []time.Time{
		{}, time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1677, 9, 21, 0, 0, 0, 0, time.UTC), time.Unix(-1, 0), time.Unix(0, 0), time.Unix(0, 1),
		time.Now().Add(-time.Hour), time.Now().Add(time.Hour), time.Date(2038, 1, 20, 0, 0, 0, 0, time.UTC),
		time.Unix(0, math.MaxInt64), time.Unix(0, math.MaxInt64).Add(1), time.Date(2263, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2554, 7, 22, 0, 0, 0, 0, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC),
	}
	for i := range events {
		appendInbox(t, l, fmt.Sprintf("evt_%d", i))
		appendOrder(t, l, fmt.Sprintf("cs_%d", i), 1, 0)
	}
	flush(t, l)
	records, _, err := l.ReadOrders(deadline(t), 0, events)
	if err != nil || len(records) != events {
		t.Fatal(len(records), err)
	}
	for _, r := range records {
		times = append(times, r.Time.Add(-1), r.Time, r.Time.Add(1))
	}
	random := rand.New(rand.NewPCG(1, 1))
	for range 100 {
		times = append(times, time.Unix(random.Int64N(1<<37)-1<<36, random.Int64N(1e9)))
	}
	slices.SortFunc(times, time.Time.Compare)
	for name, before := range map[string]func(context.Context, time.Time) (uint64, error){"orders": l.SequenceBefore, "inbox": l.InboxSequenceBefore} {
		last := uint64(0)
		for i, at := range times {
			sequence, err := before(deadline(t), at)
			if err != nil {
				t.Fatal(err)
			}
			if sequence < last {
				t.Errorf("%s: %v stands for %d, and an earlier time for %d", name, at, sequence, last)
			}
			if i == 0 && sequence != 0 || i == len(times)-1 && sequence != events {
				t.Errorf("%s: %v stands for %d of %d", name, at, sequence, events)
			}
			last = sequence
		}
	}
}
