package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/orders"
	"github.com/ordergate/ordergate/internal/sample"
)

// lifecycle is the events of one or more sales. Each call returns them with ids of their own.
type lifecycle struct {
	name   string
	events func(t *testing.T) []sample.Event
	cast   *regexp.Regexp // the ids that differ from call to call
}

// lifecycles are the scenarios of the sample package, and the cases with several events.
func lifecycles(t *testing.T) (all []lifecycle) {
	t.Helper()
	now := time.Now() // each call has the same times
	for _, scenario := range sample.Scenarios() {
		if scenario.Name == "expires" {
			continue // at Stripe, a session that was completed does not expire: see orders.Apply
		}
		all = append(all, lifecycle{
			name: scenario.Name,
			cast: regexp.MustCompile(`[0-9A-Z]{14,}`),
			events: func(t *testing.T) []sample.Event {
				story, err := sample.Scenario(scenario.Name, now)
				if err != nil {
					t.Fatal(err)
				}
				return story
			},
		})
	}
	dirs, err := filepath.Glob("testdata/cases/*")
	if err != nil || len(dirs) == 0 {
		t.Fatal(dirs, err)
	}
	calls := 0
	for _, dir := range dirs {
		files, err := filepath.Glob(dir + "/[0-9]*.json")
		if err != nil || len(files) < 2 {
			continue // one event has no order
		}
		all = append(all, lifecycle{
			name: filepath.Base(dir),
			cast: regexp.MustCompile(`A[0-9]{2}X[0-9]+X`),
			events: func(t *testing.T) (events []sample.Event) {
				calls++
				for _, file := range files {
					raw, err := os.ReadFile(file)
					if err != nil {
						t.Fatal(err)
					}
					// All ids of a case are of the form evt_A551, cs_test_A55, ch_A55.
					body := regexp.MustCompile(`_(A[0-9]{2})`).ReplaceAllString(string(raw), fmt.Sprintf("_${1}X%dX", calls))
					id := regexp.MustCompile(`"id": "(evt_[^"]+)"`).FindStringSubmatch(body)[1]
					events = append(events, sample.Event{ID: id, Body: []byte(body)})
				}
				return events
			},
		})
	}
	return all
}

// deliver stores and converts an event, and then lets more time pass than any delay of the
// pipeline takes: every task that there is becomes due, whatever its time.
func (r *rig) deliver(event sample.Event) {
	r.t.Helper()
	r.store(event.ID, event.Body)
	stored, err := r.log.InboxEvent(r.deadline(), event.ID)
	if err != nil {
		r.t.Fatal(err)
	}
	converted := &result{stored: stored}
	r.pipeline.read(converted)
	r.pipeline.convert(r.deadline(), []*result{converted})
	r.pipeline.finish(r.deadline(), []*result{converted})
	if converted.outcome == retried {
		r.t.Fatalf("%s: %v", event.ID, converted.err)
	}
	for range 3 { // a task may leave another one
		r.runAllTasks(r.deadline())
	}
}

func (r *rig) runAllTasks(ctx context.Context) {
	r.t.Helper()
	never := time.Now().AddDate(100, 0, 0)
	for kind, queue := range r.pipeline.agenda.queues {
		var due []*entry
		for {
			e, _ := queue.next(never)
			if e == nil {
				break
			}
			due = append(due, e)
		}
		for _, e := range due {
			queue.done(e, r.pipeline.runTask(ctx, kind, e.id, e.task))
		}
	}
	if err := r.pipeline.completeAll(ctx); err != nil {
		r.t.Fatal(err)
	}
}

// play delivers events and returns the newest revision of each order that events name, and checks on the way
// that no revision is SHIP if the events that were stored before it rule that out.
func (r *rig) play(events []sample.Event, items orders.LineItems) map[string]*ordergatev1.Order {
	r.t.Helper()
	var parsed []*orders.Event
	newest := map[string]*ordergatev1.Order{}
	for i, event := range events {
		state, err := r.log.OrdersState(r.deadline())
		if err != nil {
			r.t.Fatal(err)
		}
		e, err := orders.Parse(event.Body, r.pipeline.Sources)
		if err != nil {
			r.t.Fatal(err)
		}
		parsed = append(parsed, e)
		r.deliver(event)
		if err := r.log.Flush(r.deadline()); err != nil {
			r.t.Fatal(err)
		}
		err = r.log.ScanOrders(r.deadline(), state.Durable, state.Durable+100, func(records []*eventlog.OrderRecord, _ uint64) error {
			for _, record := range records {
				change, err := record.Event()
				if err != nil {
					return err
				}
				newest[record.OrderID] = change.GetOrder()
				if reference := r.reference(record.OrderID, parsed, items); record.ToShip() && reference.GetDirective() != ordergatev1.Directive_DIRECTIVE_SHIP {
					r.t.Errorf("after event %d: %s is SHIP, and what is stored says %v", i+1, change.GetId(), reference.GetDirective())
				}
			}
			return nil
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	for id, order := range newest {
		want := r.reference(id, parsed, items)
		if order.GetDirective() != want.GetDirective() || order.GetStatus() != want.GetStatus() {
			r.t.Errorf("%s ends as %v, %v; all events at once make it %v, %v", id, order.GetStatus(), order.GetDirective(), want.GetStatus(), want.GetDirective())
		}
	}
	return newest
}

// reference applies all events of an order at once: those that are tied to its sale by references,
// directly or through each other.
func (r *rig) reference(orderID string, events []*orders.Event, items orders.LineItems) *ordergatev1.Order {
	var results []*result
	for _, e := range events {
		results = append(results, &result{stored: &eventlog.StoredEvent{}, event: e})
	}
	for _, family := range families(results) {
		var of []*orders.Event
		for _, member := range family {
			if member.event.OrderID() == "" || member.event.OrderID() == orderID {
				of = append(of, member.event)
			}
		}
		change, _ := orders.ApplyAll(nil, of, items)
		if change != nil && change.Order.GetId() == orderID {
			return change.Order
		}
	}
	return nil
}

// Every order of the events of a sale, with gaps longer than any delay, ends in the same order, and
// SHIP is never published if a stored event rules it out: with and without an API key.
func TestPermutations(t *testing.T) {
	for _, withKey := range []bool{false, true} {
		t.Run(fmt.Sprintf("key=%v", withKey), func(t *testing.T) {
			r := newRig(t, nil)
			items := itemsUnavailable
			var s *shop
			if withKey {
				s = withStripe(t, r)
				items = orders.LineItems{State: ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE}
			}
			for _, l := range lifecycles(t) {
				if withKey && strings.Contains(l.cast.String(), "X") {
					continue // the stand-in has no answers for the cases
				}
				t.Run(l.name, func(t *testing.T) {
					var want []string
					for _, order := range permutations(len(l.events(t))) {
						events := l.events(t)
						if withKey {
							s.knows(t, events[0])
						}
						shuffled := make([]sample.Event, len(events))
						for i, from := range order {
							shuffled[i] = events[from]
						}
						inner := *r
						inner.t = t
						got := inSorted(inner.play(shuffled, items), l.cast)
						if want == nil {
							want = got
						}
						if diff := cmp.Diff(want, got); diff != "" {
							t.Fatalf("in the order %v: %s", order, diff)
						}
					}
				})
			}
		})
	}
}

// inSorted returns orders in a comparable form: without ids of their own, and without the number
// of revisions.
func inSorted(all map[string]*ordergatev1.Order, cast *regexp.Regexp) (texts []string) {
	for _, o := range all {
		o = proto.CloneOf(o)
		o.Revision, o.CreateTime, o.PaidTime = 0, nil, nil
		// protojson varies its white space on purpose.
		var canonical bytes.Buffer
		if err := json.Indent(&canonical, []byte(cast.ReplaceAllString(protojson.Format(o), "*")), "", " "); err != nil {
			panic(err)
		}
		texts = append(texts, canonical.String())
	}
	slices.Sort(texts)
	return texts
}

// permutations returns all orders of n things, the given one first.
func permutations(n int) [][]int {
	if n == 0 {
		return [][]int{nil}
	}
	var all [][]int
	for _, shorter := range permutations(n - 1) {
		for at := len(shorter); at >= 0; at-- {
			all = append(all, slices.Insert(slices.Clone(shorter), at, n-1))
		}
	}
	if n > 4 { // the six events of the longest case have 720
		step := len(all) / 60
		var some [][]int
		for i := 0; i < len(all); i += step {
			some = append(some, all[i])
		}
		return some
	}
	return all
}
