//go:build unix

package eventlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ordergate/ordergate/internal/archive"
	"github.com/ordergate/ordergate/internal/natscluster"
)

// archived is a log with some hundred events, exported, and what was in it.
func archived(t *testing.T) ([]byte, Figures, map[string]dumped) {
	t.Helper()
	l := usedLog(t, quietConfig(t.TempDir(), Keys{}))
	for i := range 300 {
		if _, err := l.AppendInbox(deadline(t), RawEvent{ID: fmt.Sprintf("evt_more_%d", i), Body: bytes.Repeat([]byte("x"), 2000), SecretLabel: "s"}); err != nil {
			t.Fatal(err)
		}
		appendOrder(t, l, fmt.Sprintf("cs_more_%d", i), 1, 0)
	}
	flush(t, l)
	all := dump(t, l)
	exported, figures := export(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return exported, figures, all
}

// A log that moves into a cluster is the same log, for all who share it, and outlives
// the server that took it.
func TestMoveIntoACluster(t *testing.T) {
	natscluster.Patiently(t)
	t.Parallel()
	exported, wrote, want := archived(t)
	cluster := natscluster.New(t, 3)
	cfg := sharedConfig(t, cluster)
	read, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress)
	if err != nil {
		t.Fatal(err)
	}
	if read != wrote || read.Events != 308 || read.Subscriptions != 1 {
		t.Errorf("wrote %+v, read %+v", wrote, read)
	}
	js, names := cluster.JetStream(t), cluster.Streams(t)
	for _, name := range names {
		stream, err := js.Stream(deadline(t), name)
		if err != nil {
			t.Fatal(err)
		}
		if there := stream.CachedInfo().Config; there.Metadata[metadataUnfinished] != "" || there.Replicas != 3 {
			t.Errorf("%s is left with %v and %d replicas", name, there.Metadata, there.Replicas)
		}
	}
	if changes, err := Migrate(deadline(t), cfg, false); err != nil || len(changes) != 1 || changes[0].Stream != bucketStream(Owners) {
		t.Errorf("a gateway wants %+v (%v)", changes, err)
	}
	leader, err := js.Stream(deadline(t), ordersStream)
	if err != nil {
		t.Fatal(err)
	}
	if err := cluster.Kill(cluster.Number(leader.CachedInfo().Cluster.Leader)); err != nil {
		t.Fatal(err)
	}
	open := func() (l *Log) {
		eventually(t, "it opens without the server that led", func(ctx context.Context) (err error) { l, err = Open(ctx, cfg); return err })
		t.Cleanup(func() { l.Close() })
		return l
	}
	a, b := open(), open()
	for _, l := range []*Log{a, b} {
		if diff := cmp.Diff(want, dump(t, l)); diff != "" {
			t.Errorf("(-before +after)\n%s", diff)
		}
		if state, err := l.OrdersState(deadline(t)); err != nil || state.LogID != read.LogID {
			t.Errorf("the log is %+v, want %s (%v)", state, read.LogID, err)
		}
	}
	for id, l := range map[string]*Log{"evt_7": a, "evt_more_299": b} {
		eventually(t, "a copy is known", func(ctx context.Context) error {
			duplicate, err := l.AppendInbox(ctx, RawEvent{ID: id, Body: []byte("{}"), SecretLabel: "s"})
			if err == nil && !duplicate {
				t.Errorf("%s was stored, and is new", id)
			}
			return err
		})
	}
	eventually(t, "an order goes on", func(ctx context.Context) error {
		next, err := b.AppendOrder(ctx, orderEvent("cs_1", 4), 5)
		if err == nil && next != want[ordersStream].Last+1 {
			t.Errorf("the next order event is %d, behind %d", next, want[ordersStream].Last)
		}
		return err
	})
	if value, err := a.Bucket(Places).Get(deadline(t), "shipping"); err != nil || string(value) != "place 4" {
		t.Errorf("the place is %q (%v)", value, err)
	}
	if ids := consume(t, a, 3, true); !slices.Equal(ids[:3], []string{"evt_5", "evt_6", "evt_7"}) {
		t.Errorf("to be converted: %v", ids)
	}
	if _, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress); err == nil || !strings.Contains(err.Error(), "NATS has a log already (streams INBOX, KV_erasing") {
		t.Errorf("a second import: %v", err)
	}
	if value, err := b.Bucket(Places).Get(deadline(t), "shipping"); err != nil || string(value) != "place 4" {
		t.Errorf("it has changed the place to %q (%v)", value, err)
	}
}

// cut reads up to a number of bytes, and then calls then.
type cut struct {
	in   io.Reader
	left int
	then func() error
}

func (c *cut) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, c.then()
	}
	n, err := c.in.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// An import that fails leaves nothing; one that is killed is opened by nobody, and the
// next one begins anew.
func TestUnfinishedImportIntoACluster(t *testing.T) {
	natscluster.Patiently(t)
	t.Parallel()
	exported, wrote, want := archived(t)
	cluster := natscluster.New(t, 3)
	cfg := sharedConfig(t, cluster)
	stopped := errors.New("stopped")
	for name, tt := range map[string]struct {
		cut  int
		want error
	}{
		"in INBOX":   {len(exported) / 4, archive.ErrInvalid},
		"in ORDERS":  {len(exported) * 3 / 4, archive.ErrInvalid},
		"at the end": {len(exported) - 1, archive.ErrInvalid},
		"stopped":    {len(exported) / 4, stopped},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithCancelCause(t.Context())
			defer stop(nil)
			from := &cut{in: bytes.NewReader(exported), left: tt.cut, then: func() error {
				if tt.want == stopped {
					stop(stopped)
					<-ctx.Done()
					return context.Cause(ctx)
				}
				return io.EOF
			}}
			if _, err := Import(ctx, cfg, from, noProgress); !errors.Is(err, tt.want) {
				t.Errorf("err = %v, want %v", err, tt.want)
			}
			if names := cluster.Streams(t); len(names) > 0 {
				t.Errorf("%v are left", names)
			}
		})
	}
	for _, share := range []float64{0.1, 0.8} {
		t.Run(fmt.Sprintf("killed after %v", share), func(t *testing.T) {
			m := &clusterImport{cfg: cfg, mark: "killed"}
			m.cfg.complete(nil)
			if err := m.connect(deadline(t)); err != nil {
				t.Fatal(err)
			}
			if err := m.begin(deadline(t)); err != nil {
				t.Fatal(err)
			}
			in, err := archive.NewReader(&cut{in: bytes.NewReader(exported), left: int(share * float64(len(exported))), then: func() error {
				m.e.conn.Close()
				return io.EOF
			}})
			if err != nil {
				t.Fatal(err)
			}
			if err := m.e.restoreAll(deadline(t), in, archivedStreams(Config{Cluster: cfg.Cluster}), map[string]string{metadataUnfinished: m.mark}, noProgress); err == nil {
				t.Fatal("it was whole")
			}
			m.leave()
			if _, err := Open(deadline(t), cfg); !errors.Is(err, ErrUnfinished) {
				t.Errorf("it was opened: %v", err)
			}
			if _, err := Migrate(deadline(t), cfg, true); !errors.Is(err, ErrUnfinished) {
				t.Errorf("it was migrated: %v", err)
			}
			read, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress)
			if err != nil || read != wrote {
				t.Fatalf("%+v, %v", read, err)
			}
			l := openLog(t, cfg)
			if diff := cmp.Diff(want, dump(t, l)); diff != "" {
				t.Errorf("(-before +after)\n%s", diff)
			}
			l.Close()
			if err := m.connect(deadline(t)); err != nil {
				t.Fatal(err)
			}
			defer m.leave()
			if err := m.remove(deadline(t)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// What does not fit the settings is refused and leaves nothing; one server is enough, when
// that is what is wanted.
func TestImportIntoAClusterWithBounds(t *testing.T) {
	t.Parallel()
	exported, _, _ := archived(t)
	cluster := natscluster.New(t, 3)
	cfg := sharedConfig(t, cluster)
	cfg.Cluster.Replicas, cfg.InboxMaxBytes = 1, 1000
	if _, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress); err == nil || !strings.Contains(err.Error(), "give --inbox-max-bytes more") {
		t.Errorf("err = %v", err)
	}
	cfg.Cluster.Replicas, cfg.InboxMaxBytes = 5, 0
	if _, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress); err == nil || !strings.Contains(err.Error(), "cannot have 5 replicas") {
		t.Errorf("err = %v", err)
	}
	if names := cluster.Streams(t); len(names) > 0 {
		t.Errorf("%v are left", names)
	}
	cfg.Cluster.Replicas, cfg.InboxMaxBytes, cfg.InboxMaxAge = 1, 64<<20, time.Hour
	if _, err := Import(deadline(t), cfg, bytes.NewReader(exported), noProgress); err != nil {
		t.Fatal(err)
	}
	l := openLog(t, cfg)
	if ids := consume(t, l, 1, true); !slices.Equal(ids[:1], []string{"evt_5"}) {
		t.Errorf("to be converted: %v", ids)
	}
}
