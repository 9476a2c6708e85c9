package eventlog

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/ordergate/ordergate/internal/logtest"
)

// A stream that has reached its limit refuses, drops nothing, and says so before;
// a higher limit ends that.
func TestRoom(t *testing.T) {
	cfg := testConfig(t)
	lines := &logtest.Buffer{}
	cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	cfg.InboxMaxBytes = 100_000
	metrics := prometheus.NewRegistry()
	cfg.Metrics = metrics
	l := openLog(t, cfg)
	body := bytes.Repeat([]byte("x"), 9000)
	appendBody := func(id string) error {
		_, err := l.AppendInbox(deadline(t), RawEvent{ID: id, Body: body})
		return err
	}
	var refused error
	stored := 0
	for ; refused == nil; stored++ {
		refused = appendBody("evt_" + strings.Repeat("x", stored))
	}
	stored--
	if !errors.Is(refused, ErrFull) || stored != 11 {
		t.Fatalf("%d stored, then %v", stored, refused)
	}
	l.engine.warnOfRoom(cfg.Dir)
	if !strings.Contains(lines.String(), "a stream is nearly full") || !strings.Contains(lines.String(), "--inbox-max-bytes") {
		t.Errorf("nothing is said: %s", lines)
	}
	rooms, err := l.Rooms(deadline(t))
	if err != nil || len(rooms) != 2 {
		t.Fatal(rooms, err)
	}
	inbox, orders := rooms[0], rooms[1]
	if inbox.Stream != "inbox" || inbox.Events != 11 || inbox.MaxBytes != 100_000 || inbox.Bytes < 90_000 || inbox.Bytes > 100_000 || time.Since(inbox.Oldest) > time.Minute || inbox.MaxAge != cfg.InboxMaxAge {
		t.Errorf("inbox: %+v", inbox)
	}
	if orders != (Room{Stream: "orders", MaxAge: cfg.OrdersMaxAge}) {
		t.Errorf("orders: %+v", orders)
	}
	want := `# HELP ordergate_log_events How many events a stream keeps.
# TYPE ordergate_log_events gauge
ordergate_log_events{stream="inbox"} 11
ordergate_log_events{stream="orders"} 0
# HELP ordergate_log_max_bytes What a stream may take on disk before it refuses events; 0 is without limit.
# TYPE ordergate_log_max_bytes gauge
ordergate_log_max_bytes{stream="inbox"} 100000
ordergate_log_max_bytes{stream="orders"} 0
`
	if err := testutil.GatherAndCompare(metrics, strings.NewReader(want), "ordergate_log_events", "ordergate_log_max_bytes"); err != nil {
		t.Error(err)
	}
	cfg.Metrics = nil // a log of a process registers them once

	// A lower limit drops nothing either.
	l.Close()
	cfg.InboxMaxBytes = 50_000
	l = openLog(t, cfg)
	if err := appendBody("evt_more"); !errors.Is(err, ErrFull) {
		t.Errorf("above the limit: %v", err)
	}
	if rooms, err := l.Rooms(deadline(t)); err != nil || rooms[0].Events != 11 {
		t.Errorf("a lower limit left %+v, %v", rooms, err)
	}
	l.Close()
	cfg.InboxMaxBytes = 0
	look := cfg
	look.AsIs, look.InboxMaxAge, look.OrdersMaxAge = true, time.Hour, time.Hour
	l = openLog(t, look)
	if after, err := l.Rooms(deadline(t)); err != nil || after[0].MaxBytes != 50_000 || after[0].MaxAge != cfg.InboxMaxAge || after[1].MaxAge != cfg.OrdersMaxAge {
		t.Errorf("a look at the log left %+v, %v", after, err)
	}
	l.Close()
	l = openLog(t, cfg)
	if err := appendBody("evt_more"); err != nil {
		t.Errorf("without a limit: %v", err)
	}
}

func TestNearlyFull(t *testing.T) {
	const gib = 1 << 30
	for _, tt := range []struct {
		disk Disk
		want bool
	}{
		{Disk{}, false}, {Disk{4 * gib, 100 * gib}, true}, {Disk{6 * gib, 100 * gib}, false}, {Disk{2 * gib, 10 * gib}, false}, {Disk{0, 1}, true},
	} {
		if got := tt.disk.NearlyFull(); got != tt.want {
			t.Errorf("%+v: %v", tt.disk, got)
		}
	}
	disk, err := DiskOf(t.TempDir())
	if err != nil && !errors.Is(err, errors.ErrUnsupported) || err == nil && (disk.Total == 0 || disk.Free > disk.Total) {
		t.Errorf("%+v, %v", disk, err)
	}
}
