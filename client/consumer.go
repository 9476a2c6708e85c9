package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// consumer is one call of Consume. All of it belongs to the goroutine that
// called, which runs the loop and never blocks but in its select; the streams and
// the handlers run beside it and speak to it through channels.
type consumer struct {
	client      *Client
	handler     Handler
	options     ConsumeOptions
	open        *ordergatev1.ConsumeRequest
	ctx         context.Context // has the caller's values, and does not end
	patience    time.Duration
	tries       *tries // of streams
	settleTries *tries // of settlements

	// What is in hand. An event is one task from its first delivery until its
	// settlement has a result, however often it is delivered meanwhile.
	tasks      map[string]*task // by event
	deliveries map[string]*task // by newest delivery id
	queue      []*task          // that wait for a handler, in the order they came
	busy       map[string]bool  // the orders whose handlers run
	running    int              // handlers
	returned   chan outcome     // from handlers; has room for all of them

	// What is to be said.
	extensions []*task
	outbox     []*task // settlements
	retrying   []*task // settlements that go to the outbox at retry
	sendStop   bool

	session  *session // nil when there is none
	sessions int      // how many there have been
	asking   bool     // a call of Acknowledge is under way
	answers  chan answer
	calls    sync.WaitGroup // handlers and calls

	stopping bool
	overdue  bool  // DrainTimeout is over
	awaiting bool  // DrainTimeout is over, and all handlers have returned: results has been set
	expired  bool  // the wait for results is over
	mute     bool  // settlements cannot be sent any more
	err      error // what Consume returns

	connected <-chan struct{}    // closed when a failing connection works, for the next session; may be nil
	unawait   context.CancelFunc // ends the wait for it

	reconnect *time.Timer // for the next session
	watchdog  *time.Timer // for the next message
	tick      *time.Timer // for looking after the tasks
	retry     *time.Timer // for the settlements in retrying
	farewell  *time.Timer // for the end of a session that has nothing to do
	drain     *time.Timer // for the contexts of the handlers, once stopping
	results   *time.Timer // for the end of Consume without the results of settlements
}

// task is an event in hand.
type task struct {
	event, order string
	id           string // of the newest delivery
	session      int    // that the newest delivery came on
	state        taskState
	came         time.Time // first
	leased       time.Time // when the lease began or an extension was sent, last
	lease        *lease
	extending    []time.Time // when the extensions without a result on this session were sent
	renew        bool        // is in extensions
	lost         bool        // the lease is; nothing is extended

	delivery *Delivery               // until the handler has returned
	cancel   context.CancelCauseFunc // of the handler, once it runs
	expiry   *time.Timer             // calls cancel when the lease expires, once it runs

	// Once finished:

	nack       *ordergatev1.Nack // nil for an ack
	neverBegun bool              // given back, without a handler
	queued     bool              // is in outbox
	waiting    bool              // is in retrying
	sent       time.Time         // when the settlement was, last; zero when it is queued or waiting
}

type taskState int

const (
	taskQueued taskState = iota
	taskRunning
	taskFinished // the settlement has no result yet
)

// outcome is what a handler returned.
type outcome struct {
	task *task
	err  error
}

// answer is what a call of Acknowledge returned.
type answer struct {
	asked   []*task
	results []*ordergatev1.DeliveryResult
	err     error
}

var (
	errExited    = errors.New("the handler exited its goroutine")
	errStopping  = errors.New("the worker stops")
	errLingering = errors.New("the gateway does not end a stream that has nothing to do")
)

// maxUnanswered is how many events are kept in all, most of them settled and
// without a result; a gateway that gives no results gets no further.
const maxUnanswered = 100_000

// farewellPatience is how long the gateway has to end a stream on which nothing
// is left to do.
const farewellPatience = 2 * time.Second

// resultsPatience is how long the gateway has for the results of the last settlements, after
// DrainTimeout and the last handler.
const resultsPatience = 2 * time.Second

func newConsumer(ctx context.Context, client *Client, subscription string, handler Handler, options ConsumeOptions) *consumer {
	options = options.withDefaults()
	timer := func() *time.Timer {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return t
	}
	return &consumer{
		client: client, handler: handler, options: options, open: options.open(subscription),
		ctx: context.WithoutCancel(ctx), unawait: func() {},
		patience: patienceOf(options.Heartbeat),
		tries:    client.newTries(options.OnRetry), settleTries: client.newTries(nil),
		tasks: map[string]*task{}, deliveries: map[string]*task{}, busy: map[string]bool{},
		returned: make(chan outcome, options.Concurrency), answers: make(chan answer, 1),
		reconnect: timer(), watchdog: timer(), tick: timer(), retry: timer(), farewell: timer(), drain: timer(), results: timer(),
	}
}

// run is the loop.
func (c *consumer) run(ctx context.Context) error {
	ctxCalls, endCalls := context.WithCancel(c.ctx)
	defer func() {
		if c.session != nil {
			c.session.close()
		}
		c.unawait()
		endCalls()
		c.calls.Wait()
	}()
	stopped := ctx.Done()
	c.connect()
	for {
		if ctx.Err() != nil && !c.stopping {
			c.stop()
		}
		c.begin()
		c.speak(ctxCalls)
		if c.done() {
			return c.err
		}
		var incoming <-chan received
		var sent <-chan struct{}
		if c.session != nil {
			incoming, sent = c.session.received, c.session.sent
		}
		select {
		case <-stopped:
			stopped = nil
		case r := <-incoming:
			if r.err == nil {
				c.receive(r.message)
			} else {
				c.disconnected(c.session.why(r.err), ctx.Err() != nil)
			}
		case <-sent:
			c.session.sending = time.Time{}
		case o := <-c.returned:
			c.finish(o)
			// What else is there goes into the same message.
			for range len(c.returned) {
				c.finish(<-c.returned)
			}
		case a := <-c.answers:
			c.answered(a)
		case <-c.reconnect.C:
			c.connect()
		case <-c.connected:
			c.connect()
		case <-c.watchdog.C:
			c.session.cancel(silence(c.patience))
		case <-c.tick.C:
			c.lookAfter()
		case <-c.retry.C:
			for _, t := range c.retrying {
				t.waiting = false
				c.settle(t)
			}
			c.retrying = nil
		case <-c.farewell.C:
			c.session.cancel(errLingering)
		case <-c.drain.C:
			c.overdue = true
			for _, t := range c.tasks {
				if t.state == taskRunning {
					t.cancel(ErrDrainTimeout)
				}
			}
		case <-c.results.C:
			c.expired = true
		}
	}
}

// done reports whether Consume can return. After DrainTimeout, it gives the results of the last
// settlements a little time once the last handler has returned.
func (c *consumer) done() bool {
	if !c.stopping || c.running > 0 {
		return false
	}
	if !c.overdue {
		return len(c.tasks) == 0 && c.session == nil && !c.asking
	}
	if !c.awaiting {
		c.awaiting = true
		c.results.Reset(resultsPatience)
	}
	return c.expired || len(c.tasks) == 0
}

// connectLater begins a session after a wait, or as soon as a failing connection works.
func (c *consumer) connectLater(wait time.Duration) {
	c.reconnect.Reset(wait)
	ctx, cancel := context.WithCancel(c.ctx)
	c.connected, c.unawait = c.client.awaitConnection(ctx, c.calls.Go), cancel
}

// endWait ends what connectLater began.
func (c *consumer) endWait() {
	c.reconnect.Stop()
	c.unawait()
	c.connected = nil
}

// connect begins a session.
func (c *consumer) connect() {
	c.endWait()
	c.sessions++
	c.session = newSession(c.ctx, c.client.subscriptions, c.open)
	c.watchdog.Reset(c.patience)
}

// disconnected takes leave of a session. Its leases are void: the gateway
// delivers the events again, those that no handler has begun with too.
func (c *consumer) disconnected(err error, ctxEnded bool) {
	c.session.close()
	c.session = nil
	c.watchdog.Stop()
	c.tick.Stop()
	c.farewell.Stop()
	c.retry.Stop()
	c.sendStop = false
	c.queue, c.extensions, c.outbox, c.retrying = nil, nil, nil, nil
	for _, t := range c.tasks {
		t.extending, t.renew, t.queued, t.waiting = nil, false, false, false
		switch {
		case t.state == taskQueued, t.neverBegun:
			c.forget(t)
		case t.state == taskFinished:
			c.settle(t) // on the next session
		}
	}
	switch {
	case c.stopping || ctxEnded:
	case c.tries.permanent(err) || c.client.closed():
		c.err = explained(err)
		c.stop()
	default:
		c.connectLater(c.tries.wait(err))
	}
}

// stop begins the end: nothing new is begun.
func (c *consumer) stop() {
	c.stopping = true
	c.endWait()
	c.drain.Reset(c.options.DrainTimeout)
	queue := c.queue
	c.queue = nil
	for _, t := range queue {
		c.giveBack(t, errStopping)
	}
	if c.session == nil {
		return
	}
	if c.session.opened.IsZero() {
		c.session.cancel(errStopping)
		return
	}
	c.sendStop = true
}

// begin starts handlers for what has waited longest.
func (c *consumer) begin() {
	for c.running < c.options.Concurrency {
		i := slices.IndexFunc(c.queue, func(t *task) bool { return !c.busy[t.order] })
		if i < 0 {
			return
		}
		t := c.queue[i]
		c.queue = slices.Delete(c.queue, i, i+1)
		if t.lease.remaining() <= 0 {
			c.forget(t) // another worker may have it; else it is delivered again
			continue
		}
		t.state = taskRunning
		c.busy[t.order] = true
		c.running++
		lasting, end := context.WithDeadlineCause(c.ctx, t.came.Add(c.options.MaxExtension),
			fmt.Errorf("%w: it was kept for %v", ErrLeaseLost, c.options.MaxExtension))
		ctx, cancel := context.WithCancelCause(lasting)
		t.cancel = cancel
		t.expiry = time.AfterFunc(t.lease.remaining(), func() { cancel(errLeaseExpired) })
		delivery := t.delivery
		c.calls.Go(func() {
			err := errExited
			defer func() {
				cancel(nil)
				end()
				c.returned <- outcome{t, err}
			}()
			err = c.call(ctx, delivery)
		})
	}
}

// call calls the handler. It returns a panic as an error, unless panics crash.
func (c *consumer) call(ctx context.Context, delivery *Delivery) (err error) {
	if !c.options.CrashOnPanic {
		defer func() {
			value := recover()
			if value == nil {
				return // it returned, or exited its goroutine
			}
			panicked := newPanicError(value)
			err = panicked
			c.options.Logger.Error("handler panicked",
				"subscription", c.open.GetOpen().GetSubscription(), "order", delivery.Event.GetOrder().GetId(), "event", delivery.Event.GetId(),
				"attempt", delivery.Attempt, "panic", panicked.value, "stack", panicked.stack)
		}()
	}
	return c.handler(ctx, delivery)
}

// finish settles what a handler is done with.
func (c *consumer) finish(o outcome) {
	t := o.task
	c.running--
	delete(c.busy, t.order)
	t.state = taskFinished
	t.expiry.Stop()
	t.delivery, t.cancel, t.expiry = nil, nil, nil
	t.nack = nackOf(o.err)
	c.settle(t)
}

// giveBack settles a task that is not in the queue any more.
func (c *consumer) giveBack(t *task, reason error) {
	t.state = taskFinished
	t.delivery = nil
	t.neverBegun = true
	t.nack = nackOf(RetryAfter(reason, 0))
	c.settle(t)
}

// settle has a settlement sent, for the newest delivery, unless it is about to be.
func (c *consumer) settle(t *task) {
	if c.mute {
		c.forget(t)
		return
	}
	t.sent = time.Time{}
	if !t.queued && !t.waiting {
		t.queued = true
		c.outbox = append(c.outbox, t)
	}
}

// settleLater has settlements sent again after a while.
func (c *consumer) settleLater(wait func() time.Duration, tasks ...*task) {
	for _, t := range tasks {
		t.sent = time.Time{}
		t.waiting = true
	}
	if len(c.retrying) == 0 {
		c.retry.Reset(wait())
	}
	c.retrying = append(c.retrying, tasks...)
}

// forget lets go of a task; what is left of it in outbox and the like is passed
// over.
func (c *consumer) forget(t *task) {
	if c.holds(t) {
		delete(c.tasks, t.event)
		delete(c.deliveries, t.id)
	}
}

func (c *consumer) holds(t *task) bool { return c.tasks[t.event] == t }

// receive deals with a message of the gateway.
func (c *consumer) receive(m *ordergatev1.ConsumeResponse) {
	s := c.session
	c.tries.reset()
	if s.opened.IsZero() {
		// The first message is `opened`; nothing else keeps the watchdog quiet.
		if opened := m.GetOpened(); opened != nil {
			s.opened = time.Now()
			s.deadline = min(max(opened.GetAckDeadline().AsDuration(), minAckDeadline), maxAckDeadline)
			if opened.GetAckDeadline() == nil {
				s.deadline = usualAckDeadline
			}
			c.tick.Reset(s.pulse())
			c.watchdog.Reset(c.patience)
			c.logWarnings(opened)
			if c.options.OnOpen != nil {
				c.options.OnOpen(opened)
			}
		}
		return
	}
	c.watchdog.Reset(c.patience)
	switch {
	case m.GetDelivery() != nil:
		c.deliver(m.GetDelivery())
	case m.GetResults() != nil:
		for _, r := range m.GetResults().GetResults() {
			c.result(r)
		}
	case m.GetDraining() != nil:
		s.draining = true
	}
}

// logWarnings logs the gateway's warnings about the subscription.
func (c *consumer) logWarnings(opened *ordergatev1.ConsumeOpened) {
	for _, warning := range opened.GetWarnings() {
		c.options.Logger.Warn("subscription filter can hide a HOLD or CANCEL", "subscription", opened.GetSubscription().GetName(), "hint", warning)
	}
}

// deliver takes an event in hand, or takes note that the one in hand has another
// delivery id.
func (c *consumer) deliver(d *ordergatev1.Delivery) {
	id, event := d.GetDeliveryId(), d.GetEvent().GetId()
	if id == "" {
		return // it cannot be settled
	}
	if event == "" {
		event = "\x00" + id // like no other
	}
	if other := c.deliveries[id]; other != nil && (other.event != event || other.session == c.sessions) {
		return // delivery ids are unique
	}
	t := c.tasks[event]
	if t != nil && t.session == c.sessions && !t.sent.IsZero() && t.nack.GetAction() == ordergatev1.NackAction_NACK_ACTION_RETRY {
		// Another attempt was asked for while the lease lasted, and this is it: it
		// was faster than the result.
		c.forget(t)
		t = nil
	}
	if t == nil {
		// The gateway keeps the window, but does not know of handlers whose leases
		// are lost: there is room for these. What is beyond is dropped; its lease
		// runs out. What waits for its result only is not in the window any more,
		// and small.
		if len(c.queue)+c.running >= 2*c.options.MaxOutstandingEvents+c.options.Concurrency || len(c.tasks) >= maxUnanswered {
			return
		}
		t = &task{event: event, order: d.GetEvent().GetOrder().GetId(), came: time.Now(), lease: new(lease)}
		if t.order == "" {
			t.order = "\x00" + event
		}
		c.tasks[event] = t
	} else {
		delete(c.deliveries, t.id)
	}
	c.deliveries[id] = t
	t.id, t.session, t.leased, t.extending, t.lost = id, c.sessions, time.Now(), nil, false
	c.confirmLease(t, t.leased)
	switch {
	case t.state == taskRunning:
	case t.state == taskFinished:
		c.settle(t)
	case d.GetEvent() == nil:
		c.giveBack(t, errors.New("the delivery has no event"))
		t.nack.Delay = nil
	case c.stopping:
		c.giveBack(t, errStopping)
	default:
		if t.delivery == nil {
			c.queue = append(c.queue, t)
		}
		t.delivery = &Delivery{
			ID: id, Event: d.GetEvent(), Attempt: int(d.GetAttempt()), Redriven: d.GetRedriven(),
			ReplacedRevisions: d.GetReplacedRevisions(), LatestRevision: d.GetLatestRevision(), LatestDirective: d.GetLatestDirective(),
			lease: t.lease,
		}
	}
}

// result deals with what became of a delivery that was settled or extended.
// Which of the two is not said: an extension that is OK has a time; and results
// come in order, as a settlement is the last that is asked for.
func (c *consumer) result(r *ordergatev1.DeliveryResult) {
	t := c.deliveries[r.GetDeliveryId()]
	if t == nil {
		return
	}
	final := false
	switch r.GetCode() {
	case ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK,
		ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_EXPIRED,
		ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_STALE_ATTEMPT,
		ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_UNKNOWN:
		final = true
	}
	ok := r.GetCode() == ordergatev1.DeliveryResultCode_DELIVERY_RESULT_CODE_OK
	extension := t.sent.IsZero() || len(t.extending) > 0 && (!ok || r.GetLeaseExpireTime() != nil)
	switch {
	case !extension && final:
		c.settleTries.reset()
		c.forget(t)
	case !extension:
		c.settleLater(func() time.Duration { return c.settleTries.wait(nil) }, t)
	default:
		var sent time.Time
		if len(t.extending) > 0 {
			sent, t.extending = t.extending[0], t.extending[1:]
		}
		switch {
		case ok:
			c.confirmLease(t, sent)
		case !final:
			t.leased = time.Time{} // the next look extends it again
		case t.state == taskQueued:
			c.unqueue(t)
			c.forget(t)
		case t.state == taskRunning:
			t.lost = true
			t.cancel(ErrLeaseLost)
		}
	}
}

// confirmLease moves the end of a lease: the gateway confirmed it, or an extension that was sent at
// a time.
func (c *consumer) confirmLease(t *task, from time.Time) {
	t.lease.extend(from.Add(c.session.deadline))
	if t.expiry != nil {
		t.expiry.Reset(t.lease.remaining())
	}
}

func (c *consumer) unqueue(t *task) {
	if i := slices.Index(c.queue, t); i >= 0 {
		c.queue = slices.Delete(c.queue, i, i+1)
	}
}

// pulse is how often leases are looked at. A lease that is three times as old is
// extended, so before two fifths of its time are over.
func (s *session) pulse() time.Duration { return s.deadline / 10 }

// lookAfter extends leases, and finds what takes too long.
func (c *consumer) lookAfter() {
	s, now := c.session, time.Now()
	c.tick.Reset(s.pulse())
	if !s.sending.IsZero() && now.Sub(s.sending) > c.patience {
		s.cancel(fmt.Errorf("the gateway has taken nothing for %v", c.patience))
		return
	}
	for _, t := range c.tasks {
		switch {
		case !t.sent.IsZero():
			// A result is overdue. It does no harm to settle twice.
			if now.Sub(t.sent) > c.patience {
				c.settle(t)
			}
		case t.queued, t.lost, t.renew:
		case now.Sub(t.came) >= c.options.MaxExtension:
			if t.state == taskQueued {
				c.unqueue(t)
				c.giveBack(t, fmt.Errorf("it waited for a handler for %v", c.options.MaxExtension))
			}
		case t.session != c.sessions && now.Sub(s.opened) < s.deadline:
			// The lease ended with its stream. If the event does not come again
			// here, then extending finds out that it went elsewhere.
		case now.Sub(t.leased) >= 3*s.pulse():
			t.renew = true
			c.extensions = append(c.extensions, t)
		}
	}
}

// speak says what is to be said, when the gateway can hear it.
func (c *consumer) speak(ctxCalls context.Context) {
	s := c.session
	switch {
	case s == nil:
		if c.stopping && !c.asking {
			c.acknowledge(ctxCalls)
		}
	case s.opened.IsZero() || !s.idle():
	case c.sendStop:
		// First, lest what is given back comes again.
		c.sendStop = false
		s.send(&ordergatev1.ConsumeRequest{Stop: true})
	default:
		request := &ordergatev1.ConsumeRequest{}
		for len(c.extensions) > 0 && len(request.Extensions) < maxSettlements {
			t := c.extensions[0]
			c.extensions = c.extensions[1:]
			t.renew = false
			if c.holds(t) && !t.lost && !t.queued && t.sent.IsZero() {
				t.leased = time.Now()
				t.extending = append(t.extending, t.leased)
				request.Extensions = append(request.Extensions, &ordergatev1.Extension{DeliveryId: t.id})
			}
		}
		_, request.Acks, request.Nacks = c.settlements(maxSettlements - len(request.Extensions))
		if len(request.Extensions)+len(request.Acks)+len(request.Nacks) > 0 {
			s.send(request)
			return
		}
		if len(c.tasks) == 0 && (c.stopping || s.draining) && !s.leaving {
			s.leaving = true
			c.farewell.Reset(farewellPatience)
			if s.draining {
				s.halfClose()
			}
		}
	}
}

// settlements takes up to n tasks from the outbox.
func (c *consumer) settlements(n int) (tasks []*task, acks []string, nacks []*ordergatev1.Nack) {
	for len(c.outbox) > 0 && len(tasks) < n {
		t := c.outbox[0]
		c.outbox = c.outbox[1:]
		t.queued = false
		if !c.holds(t) {
			continue
		}
		t.sent = time.Now()
		tasks = append(tasks, t)
		if t.nack == nil {
			acks = append(acks, t.id)
			continue
		}
		nacks = append(nacks, &ordergatev1.Nack{DeliveryId: t.id, Action: t.nack.GetAction(), Delay: t.nack.GetDelay(), Reason: t.nack.GetReason()})
	}
	return tasks, acks, nacks
}

// acknowledge settles what is left when there is no stream any more.
func (c *consumer) acknowledge(ctx context.Context) {
	tasks, acks, nacks := c.settlements(maxSettlements)
	if len(tasks) == 0 {
		return
	}
	request := &ordergatev1.AcknowledgeRequest{Subscription: c.open.GetOpen().GetSubscription(), DeliveryIds: acks, Nacks: nacks}
	c.asking = true
	c.calls.Go(func() {
		response, err := c.client.subscriptions.Acknowledge(ctx, request)
		c.answers <- answer{tasks, response.GetResults(), err}
	})
}

func (c *consumer) answered(a answer) {
	c.asking = false
	if a.err != nil && (c.tries.permanent(a.err) || c.client.closed()) {
		c.mute = true
		for _, t := range c.tasks {
			if t.state == taskFinished {
				c.forget(t)
			}
		}
		return
	}
	for _, r := range a.results {
		c.result(r)
	}
	// Also what the gateway should have answered, and did not.
	unsettled := slices.DeleteFunc(a.asked, func(t *task) bool { return !c.holds(t) || t.sent.IsZero() })
	switch {
	case len(unsettled) == 0:
	case a.err != nil:
		c.settleLater(func() time.Duration { return c.tries.wait(a.err) }, unsettled...)
	default:
		c.settleLater(func() time.Duration { return c.settleTries.wait(nil) }, unsettled...)
	}
}
