package eventlog

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// killed returns a log on the files as they are now, as after a kill.
func killed(t *testing.T, l *Log) *Log {
	t.Helper()
	cfg := l.cfg
	cfg.Dir, cfg.Sync = filepath.Join(t.TempDir(), "data"), nil
	if err := os.CopyFS(cfg.Dir, os.DirFS(l.cfg.Dir)); err != nil {
		t.Fatal(err)
	}
	return openLog(t, cfg)
}

const personal = "Erika Mustermann"

func appendPersonal(t *testing.T, l *Log, id string) {
	t.Helper()
	if _, err := l.AppendInbox(deadline(t), RawEvent{ID: id, Body: []byte(`{"name":"` + personal + `"}`)}); err != nil {
		t.Fatal(err)
	}
}

// An erased event is gone from the disk, its tombstone is handed to the
// converter like an event, and the id stays taken, after a kill too.
func TestEraseInbox(t *testing.T) {
	l := openLog(t, testConfig(t))
	appendInbox(t, l, "evt_before")
	appendPersonal(t, l, "evt_1")
	tombstone := []byte(`{"id":"evt_1"}`)
	if len(filesWith(t, l.cfg.Dir, personal)) == 0 {
		t.Fatal("the body is not where it is looked for")
	}
	if err := l.EraseInbox(deadline(t), "evt_1", tombstone); err != nil {
		t.Fatal(err)
	}
	appendInbox(t, l, "evt_after")
	if names := filesWith(t, l.cfg.Dir, personal); len(names) > 0 {
		t.Errorf("the body is still in %v", names)
	}
	for _, l := range []*Log{l, killed(t, l)} {
		stored, err := l.InboxEvent(deadline(t), "evt_1")
		if err != nil || !stored.Erased || !bytes.Equal(stored.Body, tombstone) || stored.Sequence != 3 {
			t.Errorf("after the erasure: %+v, %v", stored, err)
		}
		if !appendInbox(t, l, "evt_1") {
			t.Error("the event came back")
		}
		if err := l.EraseInbox(deadline(t), "evt_1", tombstone); err != nil {
			t.Errorf("a second time: %v", err)
		}
		if got := consume(t, l, 3, true); fmt.Sprint(got) != "[evt_before evt_1 evt_after]" {
			t.Errorf("the converter got %v", got)
		}
	}
}

// An event that is not there gets a tombstone, so that it never comes.
func TestEraseInboxInAdvance(t *testing.T) {
	l := openLog(t, testConfig(t))
	if err := l.EraseInbox(deadline(t), "evt_1", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if !appendInbox(t, l, "evt_1") {
		t.Error("the event came")
	}
	if err := l.EraseInbox(deadline(t), "evt.*", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("an id that cannot be one: %v", err)
	}
}

// Whatever an erasure was killed at, the next opening finishes it.
func TestEraseInboxFinishesAfterAKill(t *testing.T) {
	l := openLog(t, testConfig(t))
	ids := []string{"evt_noted", "evt_overwritten", "evt_came_back"}
	for _, id := range ids {
		appendPersonal(t, l, id)
		if err := l.Bucket(Erasing).Put(deadline(t), id, []byte(id)); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range ids[1:] {
		stored, err := l.InboxEvent(deadline(t), id)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.engine.overwrite(deadline(t), l.engine.inbox, stored.Sequence); err != nil {
			t.Fatal(err)
		}
	}
	appendPersonal(t, l, ids[2])

	l = killed(t, l)
	for _, id := range ids {
		stored, err := l.InboxEvent(deadline(t), id)
		if err != nil || !stored.Erased || string(stored.Body) != id {
			t.Errorf("%s: %+v, %v", id, stored, err)
		}
	}
	if names := filesWith(t, l.cfg.Dir, personal); len(names) > 0 {
		t.Errorf("the bodies are still in %v", names)
	}
	if left, err := l.Bucket(Erasing).Keys(deadline(t)); err != nil || len(left) > 0 {
		t.Errorf("still to be erased: %v, %v", left, err)
	}
}

func TestEraseOrderEvents(t *testing.T) {
	l := openLog(t, testConfig(t))
	last := uint64(0)
	for revision := int64(1); revision <= 3; revision++ {
		event := orderEvent("cs_1", revision)
		event.Order.Shipping.Name = personal
		var err error
		if last, err = l.AppendOrder(deadline(t), event, last); err != nil {
			t.Fatal(err)
		}
	}
	appendOrder(t, l, "cs_2", 1, 0)
	tombstone := appendOrder(t, l, "cs_1", 4, last)
	flush(t, l)
	for _, want := range []int{3, 0} {
		if erased, err := l.EraseOrderEvents(deadline(t), "cs_1", tombstone); erased != want || err != nil {
			t.Errorf("erased %d, want %d: %v", erased, want, err)
		}
	}
	flush(t, l)
	if names := filesWith(t, l.cfg.Dir, personal); len(names) > 0 {
		t.Errorf("the order is still in %v", names)
	}
	for _, l := range []*Log{l, killed(t, l)} {
		if got := fmt.Sprint(readIDs(t, l, 3)); got != "[cs_2.1 cs_1.4]" {
			t.Errorf("what is left: %v", got)
		}
		appendOrder(t, l, "cs_1", 5, tombstone)
	}
}

func TestEraseKey(t *testing.T) {
	l := openLog(t, testConfig(t))
	parked := l.Bucket(ParkedEvents)
	if err := parked.Put(deadline(t), "evt_1", []byte(personal)); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is gone
		if err := parked.Erase(deadline(t), "evt_1"); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, l)
	if names := filesWith(t, l.cfg.Dir, personal); len(names) > 0 {
		t.Errorf("the value is still in %v", names)
	}
	for _, l := range []*Log{l, killed(t, l)} {
		if _, err := l.Bucket(ParkedEvents).Get(deadline(t), "evt_1"); !errors.Is(err, ErrNotFound) {
			t.Errorf("after the erasure: %v", err)
		}
	}
}

// The same on an encrypted log, whose blocks are overwritten under their cipher.
func TestEraseEncrypted(t *testing.T) {
	cfg := testConfig(t)
	cfg.Keys = Keys{current: testKey}
	l := openLog(t, cfg)
	for _, id := range []string{"evt_before", "evt_1", "evt_after"} {
		appendPersonal(t, l, id)
	}
	if err := l.EraseInbox(deadline(t), "evt_1", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	first := appendOrder(t, l, "cs_1", 1, 0)
	tombstone := appendOrder(t, l, "cs_1", 2, first)
	flush(t, l)
	if n, err := l.EraseOrderEvents(deadline(t), "cs_1", tombstone); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	flush(t, l)
	for _, l := range []*Log{l, killed(t, l)} {
		for id, erased := range map[string]bool{"evt_before": false, "evt_1": true, "evt_after": false} {
			if stored, err := l.InboxEvent(deadline(t), id); err != nil || stored.Erased != erased {
				t.Errorf("%s: %+v, %v", id, stored, err)
			}
		}
		if got := fmt.Sprint(readIDs(t, l, 1)); got != "[cs_1.2]" {
			t.Errorf("what is left: %v", got)
		}
	}
}
