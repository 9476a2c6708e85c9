//go:build unix

package eventlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/ordergate/ordergate/internal/natscluster"
	"github.com/ordergate/ordergate/internal/natsconn"
)

func TestMain(m *testing.M) {
	natscluster.Main()
	os.Exit(m.Run())
}

// sharedConfig is that of a log in a cluster.
func sharedConfig(t *testing.T, cluster *natscluster.Cluster) Config {
	cfg := testConfig(t)
	cfg.Dir, cfg.Sync = "", nil
	cfg.Cluster = &Cluster{Config: natsconn.Config{URLs: strings.Split(cluster.URL(), ",")}, Replicas: 3}
	return cfg
}

// eventually waits for what a cluster takes some seconds for.
func eventually(t *testing.T, what string, do func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		err := do(ctx)
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Two gateways share a log as if each had it alone, and none does what the other does.
func TestSharedLog(t *testing.T) {
	t.Parallel()
	cluster := natscluster.New(t, 3)
	a, b := openLog(t, sharedConfig(t, cluster)), openLog(t, sharedConfig(t, cluster))

	t.Run("a copy is one wherever it comes", func(t *testing.T) {
		var first, copies int
		var mu sync.Mutex
		var writing sync.WaitGroup
		for i := range 40 {
			writing.Go(func() {
				duplicate, err := []*Log{a, b}[i%2].AppendInbox(deadline(t), RawEvent{ID: fmt.Sprintf("evt_%d", i/4), Body: []byte("{}"), SecretLabel: "s"})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err != nil && !errors.Is(err, ErrUnavailable): // of a copy whose first one is under way
					t.Error(err)
				case err == nil && duplicate:
					copies++
				case err == nil:
					first++
				}
			})
		}
		writing.Wait()
		if first != 10 {
			t.Errorf("%d events were new, %d copies", first, copies)
		}
		for i := range 10 {
			if !appendInbox(t, b, fmt.Sprintf("evt_%d", i)) {
				t.Errorf("evt_%d is new again", i)
			}
		}
	})
	t.Run("one of many claims a key, and all hear who", func(t *testing.T) {
		stream, err := cluster.JetStream(t).Stream(deadline(t), bucketStream(State))
		if err != nil {
			t.Fatal(err)
		}
		leader := cluster.Number(stream.CachedInfo().Cluster.Leader)
		cfg := sharedConfig(t, cluster)
		cfg.Cluster.URLs = cfg.Cluster.URLs[leader-1 : leader]
		l := openLog(t, cfg)
		// The leader refuses the second claim, and has not stored the first one yet.
		for node := 1; node <= cluster.Nodes(); node++ {
			if node != leader {
				if err := cluster.Stop(node); err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(300*time.Millisecond, func() { cluster.Continue(node) })
			}
		}
		values := make([]string, 6)
		var claiming sync.WaitGroup
		for i := range values {
			claiming.Go(func() {
				value, err := l.Bucket(State).Claim(deadline(t), "claimed", fmt.Append(nil, i))
				if err != nil {
					t.Error(err)
				}
				values[i] = string(value)
			})
		}
		claiming.Wait()
		if slices.Sort(values); values[0] != values[len(values)-1] {
			t.Errorf("they heard %q", values)
		}
	})
	t.Run("one of two writes a revision", func(t *testing.T) {
		for round := range 20 {
			id := fmt.Sprintf("cs_%d", round)
			results := make([]error, 2)
			var writing sync.WaitGroup
			for i, l := range []*Log{a, b} {
				writing.Go(func() { _, results[i] = l.AppendOrder(deadline(t), orderEvent(id, 1), 0) })
			}
			writing.Wait()
			conflicts := 0
			for _, err := range results {
				if errors.Is(err, ErrConflict) {
					conflicts++
				} else if err != nil {
					t.Error(err)
				}
			}
			if conflicts != 1 {
				t.Errorf("%s: %v", id, results)
			}
		}
	})
	t.Run("both read the same, to the end", func(t *testing.T) {
		for _, l := range []*Log{a, b} {
			flush(t, l)
			if err := l.AwaitOrders(deadline(t), 19); err != nil {
				t.Fatal(err)
			}
			if got := readIDs(t, l, 0); len(got) != 20 {
				t.Errorf("read %v", got)
			}
			e, err := l.current()
			if err != nil {
				t.Fatal(err)
			}
			records, next, err := e.readDurable(deadline(t), 0, 100)
			if err != nil || len(records) != 20 || next != 20 {
				t.Errorf("%d read from the engine, up to %d: %v", len(records), next, err)
			}
		}
		if _, err := a.DurableOrder(deadline(t), "cs_7"); err != nil {
			t.Error(err)
		}
		if _, err := b.NewestOrder(deadline(t), "cs_none"); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		if got := listOrders(t, b, 20, 7); len(got) != 20 {
			t.Errorf("listed %v", got)
		}
		if a.engine.id != b.engine.id || a.engine.id == "" {
			t.Errorf("two logs: %q, %q", a.engine.id, b.engine.id)
		}
	})
	t.Run("a lease is one's until given back", func(t *testing.T) {
		lease, err := a.Acquire(deadline(t), "task")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Acquire(deadline(t), "task"); !errors.Is(err, ErrTaken) {
			t.Fatalf("taken twice: %v", err)
		}
		lease.Release()
		again, err := b.Acquire(deadline(t), "task")
		if err != nil {
			t.Fatal(err)
		}
		again.Release()
	})
	t.Run("one leads, and both live", func(t *testing.T) {
		eventually(t, "one leads", func(context.Context) error {
			if a.Leads() == b.Leads() {
				return fmt.Errorf("a: %v, b: %v", a.Leads(), b.Leads())
			}
			return nil
		})
		eventually(t, "both live", func(context.Context) error {
			if members := a.Members(); len(members) != 2 || !slices.Contains(members, b.Member()) {
				return fmt.Errorf("members: %v", members)
			}
			return nil
		})
	})
	t.Run("the newest fence lets through", func(t *testing.T) {
		old, err := a.Bucket(Places).Fence(deadline(t), "uid")
		if err != nil {
			t.Fatal(err)
		}
		if err := old.Put(deadline(t), "uid.x", []byte("1")); err != nil {
			t.Fatal(err)
		}
		newer, err := b.Bucket(Places).Fence(deadline(t), "uid")
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{old.Put(deadline(t), "uid.x", []byte("2")), old.Delete(deadline(t), "uid.x")} {
			if !errors.Is(err, ErrFenced) {
				t.Errorf("the old one: %v", err)
			}
		}
		var got []string
		err = newer.EntriesUnder(deadline(t), "uid", func(key string, value []byte) error { got = append(got, key+"="+string(value)); return nil })
		if err != nil || !slices.Equal(got, []string{"uid.x=1"}) {
			t.Errorf("%v, %v", got, err)
		}
		if err := newer.Put(deadline(t), "uid.x", []byte("3")); err != nil {
			t.Error(err)
		}
	})
	t.Run("refreshing keeps fencing tokens valid", func(t *testing.T) {
		owner, err := a.Bucket(HeldOrders).Fence(deadline(t), "refreshed")
		if err != nil {
			t.Fatal(err)
		}
		if err := owner.Put(deadline(t), "refreshed.cs_1", []byte("1")); err != nil {
			t.Fatal(err)
		}
		revision := func() uint64 {
			t.Helper()
			_, revision, err := owner.get(deadline(t), "refreshed.cs_1")
			if err != nil {
				t.Fatal(err)
			}
			return revision
		}
		before := revision()
		if err := b.Bucket(HeldOrders).Refresh(deadline(t), 0); err != nil {
			t.Fatal(err)
		}
		if after := revision(); after <= before {
			t.Errorf("revision %d after revision %d: the record was not refreshed", after, before)
		}
		for _, err := range []error{owner.Put(deadline(t), "refreshed.cs_1", []byte("2")), owner.Delete(deadline(t), "refreshed.cs_1")} {
			if err != nil {
				t.Errorf("the owner: %v", err)
			}
		}
	})
	t.Run("a delivery sees an event that another gateway has just stored", func(t *testing.T) {
		previous := uint64(0)
		for revision := range int64(20) {
			sequence := appendOrder(t, a, "cs_delivered", revision+1, previous)
			flush(t, a)
			r, err := b.NewestAfter(deadline(t), "cs_delivered", previous, true)
			if err != nil || r == nil || r.Sequence != sequence {
				t.Fatalf("the newest event is %+v, %v; want %d", r, err, sequence)
			}
			previous = sequence
		}
	})
	t.Run("who was taken for gone holds nothing any more", func(t *testing.T) {
		term := a.Term()
		if !a.Holds(term) {
			t.Fatal("it holds nothing")
		}
		a.member.beaten.Store(int64(time.Since(a.member.start) - 2*leaseTrust)) // it was stopped for a while
		eventually(t, "it is known again", func(context.Context) error {
			if !a.Confirmed() {
				return errors.New("it is not")
			}
			return nil
		})
		if a.Holds(term) || !a.Holds(a.Term()) {
			t.Errorf("term %d, now %d", term, a.Term())
		}
	})
	t.Run("who is gone is missed", func(t *testing.T) {
		lives, err := b.Lives(deadline(t), a.Member())
		if err != nil || !lives {
			t.Fatal(lives, err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if lives, err := b.Lives(deadline(t), a.Member()); err != nil || lives {
			t.Error(lives, err)
		}
		eventually(t, "the other is alone", func(context.Context) error {
			if members := b.Members(); !slices.Equal(members, []string{b.Member()}) {
				return fmt.Errorf("members: %v", members)
			}
			return nil
		})
		eventually(t, "the other leads", func(context.Context) error {
			if !b.Leads() {
				return errors.New("it does not")
			}
			return nil
		})
	})
}

// A node that is killed takes nothing with it; when no quorum is left nothing is
// acknowledged, and everything goes on by itself.
func TestSharedLogOutlivesItsNodes(t *testing.T) {
	natscluster.Patiently(t)
	t.Parallel()
	cluster := natscluster.New(t, 3)
	l := openLog(t, sharedConfig(t, cluster))
	stored := 0
	store := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		_, err := l.AppendInbox(ctx, RawEvent{ID: fmt.Sprintf("evt_%d", stored), Body: []byte("{}"), SecretLabel: "s"})
		if err == nil {
			stored++
		}
		return err
	}
	eventually(t, "the first event", store)
	for _, node := range []int{1, 2} {
		if err := cluster.Kill(node); err != nil {
			t.Fatal(err)
		}
		if node == 1 {
			eventually(t, "an event with two nodes", store)
		}
	}
	eventually(t, "it is seen that nothing can be stored", func(ctx context.Context) error {
		if l.Ready() == nil {
			return errors.New("it says that it is ready")
		}
		return nil
	})
	if err := store(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("without a quorum: %v", err)
	}
	for _, node := range []int{1, 2} {
		if err := cluster.Restart(node); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "an event with all nodes", store)
	eventually(t, "it is seen that all is well", func(context.Context) error { return l.Ready() })
	for i := range stored {
		eventually(t, "every event is there", func(ctx context.Context) error { _, err := l.InboxEvent(ctx, fmt.Sprintf("evt_%d", i)); return err })
	}
}

// What loses events is refused, with what is wrong; a migration mends it, and refuses
// what would remove events.
func TestSettingsOfACluster(t *testing.T) {
	t.Parallel()
	cluster := natscluster.New(t, 3)
	js := cluster.JetStream(t)
	cfg := sharedConfig(t, cluster)
	cfg.InboxMaxAge = 35 * 24 * time.Hour
	spoiled := inboxConfig(cfg)
	spoiled.Metadata, spoiled.Replicas, spoiled.Discard, spoiled.DiscardNewPerSubject, spoiled.MaxAge = newMetadata(), 1, jetstream.DiscardOld, false, time.Hour
	err := insist(deadline(t), func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, spoiled)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(deadline(t), cfg)
	if !errors.Is(err, ErrSettings) {
		t.Fatal(err)
	}
	for _, want := range []string{"stream INBOX", "replicas: 1 there, must be 3", "discard: DiscardOld there, must be DiscardNew", "max_age: 1h0m0s there, must be 840h0m0s", "ordergate migrate"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	changes, err := Migrate(deadline(t), cfg, false)
	if err != nil || len(changes) != 14 || changes[0].New || len(changes[0].Differences) != 4 || !changes[1].New {
		t.Errorf("%d changes: %+v, %v", len(changes), changes, err)
	}
	if info, err := js.Stream(deadline(t), inboxStream); err != nil || info.CachedInfo().Config.Replicas != 1 {
		t.Error("a dry run changed something", err)
	}
	if _, err := Migrate(deadline(t), cfg, true); err != nil {
		t.Fatal(err)
	}
	l, err := Open(deadline(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "an event", func(ctx context.Context) error {
		_, err := l.AppendInbox(ctx, RawEvent{ID: "evt_1", Body: []byte("{}"), SecretLabel: "s"})
		return err
	})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.InboxMaxAge = time.Nanosecond
	changes, err = Migrate(deadline(t), cfg, true)
	if err != nil || len(changes) != 4 || !strings.Contains(changes[0].Refused, "would be removed") {
		t.Errorf("%+v, %v", changes, err)
	}
	cfg.Cluster.Replicas = 5
	cfg.InboxMaxAge = 35 * 24 * time.Hour
	if _, err := Open(deadline(t), cfg); !errors.Is(err, ErrSettings) || !strings.Contains(err.Error(), "replicas: 3 there, must be 5") {
		t.Error(err)
	}
}
