package eventlog

import (
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ordergate/ordergate/internal/logtest"
)

// A clock that is set forward by far, while the gateway runs or is stopped, makes
// no event too old; one that is set back, or a little, changes nothing.
func TestClockJumps(t *testing.T) {
	cfg := testConfig(t)
	lines := &logtest.Buffer{}
	cfg.Logger = slog.New(slog.NewTextHandler(lines, nil))
	var shift atomic.Int64
	cfg.wall = func() time.Time { return time.Now().Add(time.Duration(shift.Load())) }
	l := openLog(t, cfg)
	appendInbox(t, l, "evt_1")
	maxAges := func() [2]time.Duration {
		e, err := l.current()
		if err != nil {
			t.Fatal(err)
		}
		inbox, err := e.inbox.Info(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		orders, err := e.orders.Info(deadline(t))
		if err != nil {
			t.Fatal(err)
		}
		return [2]time.Duration{inbox.Config.MaxAge, orders.Config.MaxAge}
	}
	usual := [2]time.Duration{cfg.InboxMaxAge, cfg.OrdersMaxAge}
	for _, to := range []time.Duration{30 * time.Minute, -365 * 24 * time.Hour} {
		shift.Store(int64(to))
		before := strings.Count(lines.String(), "the clock was set")
		waitFor(t, func() bool { return strings.Count(lines.String(), "the clock was set") > before })
		if got := maxAges(); got != usual {
			t.Errorf("by %v: ages %v, want %v", to, got, usual)
		}
	}
	shift.Store(0) // forward by a year
	waitFor(t, func() bool { return maxAges() == [2]time.Duration{} })
	// What subscriptions need does not bring the age back.
	if err := l.KeepOrders(deadline(t), time.Hour); err != nil || maxAges() != [2]time.Duration{} {
		t.Errorf("after the upkeep: ages %v, %v", maxAges(), err)
	}
	if !appendInbox(t, l, "evt_1") {
		t.Error("the event is gone")
	}
	l.Close()
	l = openLog(t, cfg)
	if got := maxAges(); got[0] != usual[0] {
		t.Errorf("after a restart: ages %v, want %v", got, usual)
	}
	l.Close()

	shift.Store(int64(36 * 24 * time.Hour))
	if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "the clock") {
		t.Errorf("err = %v", err)
	}
	shift.Store(0)
	l = openLog(t, cfg)
	if !appendInbox(t, l, "evt_1") {
		t.Error("the event is gone")
	}
}
