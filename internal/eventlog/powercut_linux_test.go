package eventlog

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

const (
	powerCuts      = 5
	powerCutDisk   = 96 << 20
	powerCutAfter  = 400 // events, and as many more by chance
	powerCutWriter = 8
)

// disk is a file system in a file: what is in the file is what survives.
type disk struct {
	image string
	dir   string
}

// newDisk makes and mounts an ext4 file system. The test is skipped where that
// is not possible.
func newDisk(t *testing.T) disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("cutting the power needs root, to mount a file system")
	}
	d := disk{image: filepath.Join(t.TempDir(), "image")}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, powerCutDisk); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", d.image).CombinedOutput(); err != nil {
		t.Skipf("no ext4 here: %v %s", err, out)
	}
	d.mount(t)
	return d
}

func (d *disk) mount(t *testing.T) {
	t.Helper()
	d.dir = t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", d.image, d.dir).CombinedOutput(); err != nil {
		t.Skipf("a file cannot be mounted here: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", d.dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
}

// cutPower returns the disk as it is at this moment, as after a power cut:
// what the kernel had not written to it is gone.
func (d *disk) cutPower(t *testing.T) disk {
	t.Helper()
	from, err := os.Open(d.image)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	after := disk{image: filepath.Join(t.TempDir(), "image")}
	to, err := os.Create(after.image)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	return after
}

// After a power cut under load, every event that was acknowledged is there, and
// no reader has seen an order event that is gone, or another one in its place.
func TestPowerCut(t *testing.T) {
	for i := range powerCuts {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			d := newDisk(t)
			cfg := testConfig(t)
			cfg.Dir = filepath.Join(d.dir, "data")
			if i%2 == 1 {
				cfg.Keys = testKeys(t, testKey)
			}
			l := openLog(t, cfg)
			before := load(t, l)
			d.waitAndCut(t, l, before, cfg)
		})
	}
}

// witness is what the outside knows: what was acknowledged, and what was shown.
type witness struct {
	mu           sync.Mutex
	acknowledged map[string]bool
	shown        map[uint64]string
	written      atomic.Int64
	stop         context.CancelFunc
	running      sync.WaitGroup
}

// load appends events and orders from many writers, and reads the orders, until
// it is stopped.
func load(t *testing.T, l *Log) *witness {
	w := &witness{acknowledged: map[string]bool{}, shown: map[uint64]string{}}
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	for writer := range powerCutWriter {
		w.running.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				id := fmt.Sprintf("%d_%d", writer, n)
				if _, err := l.AppendInbox(ctx, RawEvent{ID: "evt_" + id, Body: make([]byte, 3000)}); err != nil {
					return
				}
				w.mu.Lock()
				w.acknowledged["evt_"+id] = true
				w.mu.Unlock()
				if _, err := l.AppendOrder(ctx, orderEvent("cs_"+id, 1), 0); err != nil {
					return
				}
				w.written.Add(1)
			}
		})
	}
	w.running.Go(func() {
		for after := uint64(0); ; {
			if err := l.AwaitOrders(ctx, after); err != nil {
				return
			}
			records, next, err := l.ReadOrders(ctx, after, 100)
			if err != nil {
				return
			}
			after = next
			w.mu.Lock()
			for _, r := range records {
				w.shown[r.Sequence] = r.OrderID
			}
			w.mu.Unlock()
		}
	})
	return w
}

// waitAndCut cuts the power at some moment and compares what is on the disk then
// with what the outside knew just before.
func (d *disk) waitAndCut(t *testing.T, l *Log, w *witness, cfg Config) {
	t.Helper()
	enough := int64(powerCutAfter + rand.IntN(powerCutAfter))
	waitFor(t, func() bool { return w.written.Load() >= enough })
	w.mu.Lock()
	ids, seen := slices.Collect(maps.Keys(w.acknowledged)), maps.Clone(w.shown)
	w.mu.Unlock()
	after := d.cutPower(t)
	w.stop()
	w.running.Wait()
	l.Close()

	after.mount(t)
	cfg.Dir = filepath.Join(after.dir, "data")
	l = openLog(t, cfg)
	for _, id := range ids {
		if _, err := l.InboxEvent(deadline(t), id); err != nil {
			t.Errorf("%s was acknowledged and is gone: %v", id, err)
		}
	}
	for sequence, id := range seen {
		records, _, err := l.ReadOrders(deadline(t), sequence-1, 1)
		if err != nil || len(records) == 0 || records[0].Sequence != sequence || records[0].OrderID != id {
			t.Errorf("order event %d of %s was shown and is gone: %v, %v", sequence, id, records, err)
		}
	}
	t.Logf("acknowledged %d, shown %d", len(ids), len(seen))
}
