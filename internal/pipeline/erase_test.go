package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/sample"
)

// onDisk returns the files of the log that hold one of some texts.
func (r *rig) onDisk(texts ...string) (names []string) {
	r.t.Helper()
	err := filepath.WalkDir(r.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		for _, text := range texts {
			if bytes.Contains(content, []byte(text)) {
				names = append(names, fmt.Sprintf("%s in %s", text, filepath.Base(path)))
			}
		}
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return names
}

// of makes the events of a story those of another customer.
func of(name, email string, story []sample.Event) []sample.Event {
	for i := range story {
		story[i].Body = []byte(strings.NewReplacer("Erika Mustermann", name, "erika@example.com", email).Replace(string(story[i].Body)))
	}
	return story
}

func (r *rig) erase(selection Selection) ErasureReport {
	r.t.Helper()
	report, err := r.pipeline.Erase(r.deadline(), selection, func(context.Context, *eventlog.OrderRecord) error { return nil }, func(ErasureReport) {})
	if err != nil {
		r.t.Fatal(err)
	}
	return report
}

func (r *rig) outcome(eventID string) Outcome {
	r.t.Helper()
	return r.status(eventID).Outcome
}

// An earlier event that still waits for its order does not keep the events of another
// one from being erased.
func TestEraseBehindAWaitingEvent(t *testing.T) {
	r := newRig(t, nil)
	r.storeAll(r.scenario("refunded")[1]) // its sale never comes
	erika := of("Erika Musterfrau", "Erika.M@example.com", r.scenario("paid"))
	r.storeAll(erika...)
	id := erika[0].OrderID
	r.running(func() {
		r.await(id, func(*ordergatev1.Order) bool { return true })
		if report := r.erase(Selection{OrderIDs: []string{id}}); report.Pending > 0 || report.Events == 0 {
			t.Errorf("report %+v", report)
		}
		for _, event := range erika {
			awaitValue(r, func() (bool, bool) { return true, r.outcome(event.ID) == Erased })
		}
	})
	if found := r.onDisk("Musterfrau", "rika.M@example.com"); len(found) > 0 {
		t.Errorf("still on disk: %v", found)
	}
}

// All of a customer goes, from the disk too; another's stays; and nothing that
// Stripe sends later brings the person back.
func TestEraseCustomer(t *testing.T) {
	r := newRig(t, nil)
	impatient(r)
	erika := of("Erika Musterfrau", "Erika.M@example.com", r.scenario("partly-refunded-disputed-won"))
	other := of("Max Muster", "max@example.com", r.scenario("partly-refunded-disputed-won"))
	for i := range other { // one by one: events that are converted together may become one revision
		r.storeAll(append(slices.Clone(erika[min(i, 3):min(i+1, 3)]), other[i])...)
		r.run(0)
	}
	ofNoOrder := []byte(`{"id":"evt_card","object":"event","type":"customer.updated","data":{"object":{"email":"ERIKA.M@example.com","name":"Erika Musterfrau"}}}`)
	r.store("evt_card", ofNoOrder)
	r.run(0)
	id := erika[0].OrderID

	selection := Selection{Customers: []string{"erika.m@EXAMPLE.com"}}
	dry := selection
	dry.DryRun = true
	want := fmt.Sprintf("[%s], order events 3, Stripe events 4", id)
	inShort := func(report ErasureReport) string {
		return fmt.Sprintf("%v, order events %d, Stripe events %d", report.Orders, report.OrderEvents, report.Events)
	}
	before := r.changes()
	if got := inShort(r.erase(dry)); got != want || !slices.Equal(r.changes(), before) || r.outcome("evt_card") != Ignored {
		t.Errorf("a dry run found %s, want %s, and left %v", got, want, r.changes())
	}
	if got := inShort(r.erase(selection)); got != want {
		t.Errorf("erased: %s, want %s", got, want)
	}
	personal := []string{"Musterfrau", "rika.M@example.com", "RIKA.M@example"}
	if found := r.onDisk(personal...); len(found) > 0 {
		t.Errorf("still on disk: %v", found)
	}
	if found := r.onDisk("Max Muster"); len(found) == 0 {
		t.Error("the other customer is gone too")
	}
	for _, event := range append(erika[:3:3], sample.Event{ID: "evt_card"}) {
		if got := r.outcome(event.ID); got != Erased {
			t.Errorf("%s is %v", event.ID, got)
		}
	}
	for _, event := range other {
		if got := r.outcome(event.ID); got != Converted {
			t.Errorf("%s of the other is %v", event.ID, got)
		}
	}
	entries := map[string]string{}
	if err := r.log.Bucket(eventlog.References).Entries(r.deadline(), ">", func(key string, value []byte) error {
		entries[key] = string(value)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for key, order := range entries {
		if order == id && !strings.HasPrefix(key, erasedPrefix) {
			t.Errorf("%s still points to the order", key)
		}
	}

	// What comes late: a copy of an event, another event of the sale, the end of
	// the dispute.
	if duplicate, err := r.log.AppendInbox(r.deadline(), eventlog.RawEvent{ID: erika[0].ID, Body: erika[0].Body}); !duplicate || err != nil {
		t.Errorf("a resent event: %v, %v", duplicate, err)
	}
	again := bytes.ReplaceAll(erika[0].Body, []byte(erika[0].ID), []byte("evt_again"))
	r.store("evt_again", again)
	r.storeAll(erika[3])
	r.run(0)
	for _, event := range []string{"evt_again", erika[3].ID} {
		if got := r.outcome(event); got != Erased {
			t.Errorf("%s, which came late, is %v", event, got)
		}
	}
	if found := r.onDisk(personal...); len(found) > 0 {
		t.Errorf("back on disk: %v", found)
	}
	if got := r.changes(); !slices.Contains(got, id+".4 ERASED of ") || len(got) != len(before)-3+1 {
		t.Errorf("changes: %v", got)
	}
	if report := r.erase(selection); report.Events+report.OrderEvents != 0 {
		t.Errorf("there was still something: %+v", report)
	}
}

// A parked event goes, and one that is not converted yet stays: an order may come
// of it.
func TestEraseWhatIsParkedOrPending(t *testing.T) {
	r := newRig(t, nil)
	impatient(r)
	story := of("Erika Musterfrau", "erika.m@example.com", r.scenario("refunded"))
	sale, refund := story[0], story[1]
	r.store(refund.ID, refund.Body)
	r.untilOutcome(refund.ID, Waiting)
	parked := &result{stored: &eventlog.StoredEvent{RawEvent: eventlog.RawEvent{ID: refund.ID, Body: refund.Body}}}
	r.pipeline.read(parked)
	if parked.err = errors.New("Stripe refuses"); r.pipeline.park(r.deadline(), parked, Unmatched) != nil {
		t.Fatal(parked.err)
	}
	// The inbox has forgotten it by its age.
	if err := r.log.EraseInbox(r.deadline(), refund.ID, nil); err != nil {
		t.Fatal(err)
	}
	r.store(sale.ID, sale.Body)
	report := r.erase(Selection{Customers: []string{"erika.m@example.com"}})
	if report.Events != 1 || report.Pending != 1 || len(report.Orders) != 0 {
		t.Errorf("erased: %+v", report)
	}
	if _, err := r.pipeline.ParkedEvent(r.deadline(), refund.ID); !errors.Is(err, eventlog.ErrNotFound) {
		t.Errorf("the parked event: %v", err)
	}
	if empty, err := r.log.Bucket(eventlog.Waiting).Keys(r.deadline()); err != nil || len(empty) > 0 {
		t.Errorf("still waiting: %v, %v", empty, err)
	}
	r.run(1)
	report = r.erase(Selection{OrderIDs: []string{sale.OrderID}})
	if report.Events != 1 || report.OrderEvents != 1 || report.Pending != 0 {
		t.Errorf("erased: %+v", report)
	}
	if found := r.onDisk("Musterfrau", "erika.m@"); len(found) > 0 {
		t.Errorf("still on disk: %v", found)
	}
	if parked, err := r.log.Bucket(eventlog.ParkedEvents).Keys(r.deadline()); err != nil || len(parked) > 0 {
		t.Errorf("tombstones were parked: %v, %v", parked, err)
	}
}

// An erasure that got no further than its first step does no harm to what comes
// later, and can be finished.
func TestEraseThatWasCutOff(t *testing.T) {
	for _, at := range []string{"before the tombstone", "behind the tombstone"} {
		t.Run(at, func(t *testing.T) {
			r := newRig(t, nil)
			impatient(r)
			story := of("Erika Musterfrau", "erika.m@example.com", r.scenario("refunded"))
			sale, refund := story[0], story[1]
			r.store(sale.ID, sale.Body)
			r.run(1)
			if at == "before the tombstone" {
				if err := r.pipeline.eraseReference(r.deadline(), "test.platform.payment_intent.pi_of_nobody", sale.OrderID); err != nil {
					t.Fatal(err)
				}
				var keys []string
				if err := r.log.Bucket(eventlog.References).Entries(r.deadline(), "test.>", func(key string, _ []byte) error {
					keys = append(keys, key)
					return nil
				}); err != nil {
					t.Fatal(err)
				}
				for _, key := range keys {
					if err := r.pipeline.eraseReference(r.deadline(), key, sale.OrderID); err != nil {
						t.Fatal(err)
					}
				}
				r.store(refund.ID, refund.Body)
				r.run(1)
				if got := r.changes(); !slices.Contains(got, sale.OrderID+".2 REFUNDED of "+refund.ID) {
					t.Errorf("the refund is lost: %v", got)
				}
			} else {
				failed := errors.New("cut off")
				_, err := r.pipeline.Erase(r.deadline(), Selection{OrderIDs: []string{sale.OrderID}}, func(context.Context, *eventlog.OrderRecord) error { return failed }, func(ErasureReport) {})
				if !errors.Is(err, failed) {
					t.Fatal(err)
				}
			}
			if found := r.onDisk("Musterfrau"); len(found) == 0 {
				t.Fatal("nothing was left to do")
			}
			r.erase(Selection{Customers: []string{"erika.m@example.com"}})
			if found := r.onDisk("Musterfrau", "erika.m@"); len(found) > 0 {
				t.Errorf("still on disk: %v", found)
			}
		})
	}
}

func TestEraseOfNoOrder(t *testing.T) {
	r := newRig(t, nil)
	_, err := r.pipeline.Erase(r.deadline(), Selection{OrderIDs: []string{"cs_none"}}, nil, func(ErasureReport) {})
	if !errors.Is(err, eventlog.ErrNotFound) {
		t.Error(err)
	}
	if _, err := r.pipeline.Hold(r.deadline(), "cs_none", ""); !errors.Is(err, eventlog.ErrNotFound) {
		t.Error(err)
	}
}

// An address that is written with JSON escapes is found too.
func TestEraseEscaped(t *testing.T) {
	r := newRig(t, nil)
	const body = `{"id":"evt_card","object":"event","type":"customer.updated","data":{"object":{"email":"erika\u002Em\u0040example.com","name":"x"}}}`
	r.store("evt_card", []byte(body))
	r.run(0)
	if report := r.erase(Selection{Customers: []string{"Erika.M@example.com"}}); report.Events != 1 {
		t.Errorf("erased: %+v", report)
	}
}
