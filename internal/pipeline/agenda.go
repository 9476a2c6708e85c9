package pipeline

import (
	"container/heap"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/ordergate/ordergate/internal/eventlog"
)

// taskKind is a kind of work that is due later.
type taskKind string

const (
	taskSale   taskKind = "sale"   // convert a sale that needs its line items from Stripe
	taskClaim  taskKind = "claim"  // ask Stripe for the order of an object that can be two orders' sale
	taskLookup taskKind = "lookup" // ask Stripe for the order of a waiting event
	taskSettle taskKind = "settle" // end the settling period of an order
)

// taskWorkers is the number of tasks of each kind that run at a time. The kinds do not wait for
// each other.
var taskWorkers = map[taskKind]int64{taskSale: 64, taskClaim: 16, taskLookup: 8, taskSettle: 8}

// rescanInterval is the time between two looks of a cluster's leader for tasks of gateways that
// are gone, and orphanAge is how long such a task is overdue.
const rescanInterval, orphanAge = 30 * time.Second, 30 * time.Second

// task is a stored task. Its key is its kind, a dot, and the id of an event or an order.
type task struct {
	// Due is the earliest time to do it.
	Due time.Time `json:"due"`
	// Attempts is how many attempts failed. One that sent no request is not counted.
	Attempts int `json:"attempts,omitempty"`
}

// agenda keeps the stored tasks in the order in which they are due, and runs them. Each kind has
// workers of its own. The bucket Tasks is the truth; the agenda is the gateway's view of it.
type agenda struct {
	log    *eventlog.Log
	queues map[taskKind]*taskQueue
}

// taskQueue holds the tasks of one kind.
type taskQueue struct {
	kind taskKind
	wake chan struct{} // has room for one

	mu      sync.Mutex
	pending taskHeap
	known   map[string]*entry // pending and running tasks by id
}

// entry is a task in a queue. Guarded by the queue's mu.
type entry struct {
	id   string
	task task
}

func newAgenda(log *eventlog.Log) *agenda {
	a := &agenda{log: log, queues: map[taskKind]*taskQueue{}}
	for kind := range taskWorkers {
		a.queues[kind] = &taskQueue{kind: kind, wake: make(chan struct{}, 1), known: map[string]*entry{}}
	}
	return a
}

func taskKey(kind taskKind, id string) string { return string(kind) + "." + id }

// begin stores a task. Call add once it is stored.
func (a *agenda) begin(kind taskKind, id string, t task) eventlog.Putting {
	return a.log.Bucket(eventlog.Tasks).Begin(taskKey(kind, id), encoded(t))
}

// add takes a stored task into the queue. One that is there already is left alone.
func (a *agenda) add(kind taskKind, id string, t task) { a.queues[kind].add(id, t) }

// has reports whether an event waits for Stripe before it is converted.
func (a *agenda) has(ctx context.Context, eventID string) bool {
	for _, kind := range []taskKind{taskSale, taskClaim} {
		if _, err := a.log.Bucket(eventlog.Tasks).Get(ctx, taskKey(kind, eventID)); err == nil {
			return true
		}
	}
	return false
}

// load adds the stored tasks that are due before a time.
func (a *agenda) load(ctx context.Context, before time.Time) error {
	return a.log.Bucket(eventlog.Tasks).Entries(ctx, ">", func(key string, value []byte) error {
		kind, id, _ := strings.Cut(key, ".")
		var t task
		if queue := a.queues[taskKind(kind)]; queue != nil && json.Unmarshal(value, &t) == nil && t.Due.Before(before) {
			queue.add(id, t)
		}
		return nil
	})
}

func (q *taskQueue) add(id string, t task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.known[id] != nil {
		return
	}
	e := &entry{id: id, task: t}
	q.known[id] = e
	heap.Push(&q.pending, e)
	q.signal()
}

// next takes the first task if it is due. Otherwise it returns the time until then, or -1 if there
// is no task.
func (q *taskQueue) next(now time.Time) (e *entry, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.pending) == 0 {
		return nil, -1
	}
	if wait = q.pending[0].task.Due.Sub(now); wait > 0 {
		return nil, wait
	}
	return heap.Pop(&q.pending).(*entry), 0
}

// done ends a running task, or puts it back if again is not nil.
func (q *taskQueue) done(e *entry, again *task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if again == nil {
		delete(q.known, e.id)
		return
	}
	e.task = *again
	heap.Push(&q.pending, e)
	q.signal()
}

func (q *taskQueue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// run runs the tasks of a queue until ctx ends. do returns the task as it is to be tried again, or
// nil if it is done. paused returns the time until which nothing is to be started.
func (q *taskQueue) run(ctx context.Context, paused func() time.Time, do func(context.Context, string, task) *task) {
	workers := semaphore.NewWeighted(taskWorkers[q.kind])
	var running sync.WaitGroup
	defer running.Wait()
	for workers.Acquire(ctx, 1) == nil {
		e := q.await(ctx, paused)
		if e == nil {
			return
		}
		running.Go(func() {
			defer workers.Release(1)
			q.done(e, do(ctx, e.id, e.task))
		})
	}
}

// await returns the next task when it is due, or nil when ctx ends.
func (q *taskQueue) await(ctx context.Context, paused func() time.Time) *entry {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := time.Now()
		wait := paused().Sub(now)
		if wait <= 0 {
			var e *entry
			if e, wait = q.next(now); e != nil {
				return e
			}
		}
		if timer.Stop(); wait > 0 {
			timer.Reset(wait)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-q.wake:
		case <-timer.C:
		}
	}
}

// runTasks runs all tasks until ctx ends.
func (p *Pipeline) runTasks(ctx context.Context) {
	var queues sync.WaitGroup
	defer queues.Wait()
	for kind, queue := range p.agenda.queues {
		paused := p.items.awayUntil
		if kind == taskSettle || kind == taskSale { // neither needs an answer to go on
			paused = func() time.Time { return time.Time{} }
		}
		queues.Go(func() {
			queue.run(ctx, paused, func(ctx context.Context, id string, t task) *task { return p.runTask(ctx, kind, id, t) })
		})
	}
	before := func() time.Time { return time.Now().AddDate(100, 0, 0) }
	for wait := time.Duration(0); ; wait = rescanInterval {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if !p.Log.Leads() {
			continue
		}
		if err := p.agenda.load(ctx, before()); err != nil {
			p.Logger.Debug("tasks could not be read; trying again", "error", err)
			continue
		}
		if !p.Log.Shared() { // this gateway knows all tasks from now on
			return
		}
		before = func() time.Time { return time.Now().Add(-orphanAge) }
	}
}

// runTask does one task, and stores its result. It returns the task as it is to be tried again.
func (p *Pipeline) runTask(ctx context.Context, kind taskKind, id string, t task) (again *task) {
	var err error
	if kind == taskSettle {
		err = p.endSettling(ctx, id)
	} else {
		again, err = p.convertTask(ctx, kind, id, t)
	}
	bucket := p.Log.Bucket(eventlog.Tasks)
	switch {
	case err == nil && again == nil:
		if err = bucket.Forget(ctx, taskKey(kind, id)); err == nil {
			return nil
		}
	case err == nil:
		if err = bucket.Put(ctx, taskKey(kind, id), encoded(again)); err == nil {
			return again
		}
	}
	if ctx.Err() == nil && !errors.Is(err, eventlog.ErrUnavailable) {
		p.Logger.Warn("a task failed; trying again", "task", kind, "id", id, "error", err)
	}
	return &task{Due: time.Now().Add(p.retryDelay(2)), Attempts: t.Attempts}
}

// taskHeap is a heap of tasks, the one that is due first at the top.
type taskHeap []*entry

func (h taskHeap) Len() int           { return len(h) }
func (h taskHeap) Less(i, j int) bool { return h[i].task.Due.Before(h[j].task.Due) }
func (h taskHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *taskHeap) Push(x any)        { *h = append(*h, x.(*entry)) }

func (h *taskHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return e
}
