package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

// What the first message says, by default and as told; the same on every stream.
func TestConsumeOpens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		create := &ordergatev1.Subscription{MaxAttempts: 3}
		start := &ordergatev1.SubscriptionPosition{Position: &ordergatev1.SubscriptionPosition_Beginning{Beginning: true}}
		for _, tt := range []struct {
			options client.ConsumeOptions
			want    *ordergatev1.ConsumeOpen
		}{
			{client.ConsumeOptions{}, &ordergatev1.ConsumeOpen{MaxOutstandingEvents: 20, HeartbeatInterval: durationpb.New(15 * time.Second)}},
			{client.ConsumeOptions{Concurrency: 3}, &ordergatev1.ConsumeOpen{MaxOutstandingEvents: 6, HeartbeatInterval: durationpb.New(15 * time.Second)}},
			{client.ConsumeOptions{Concurrency: 7000}, &ordergatev1.ConsumeOpen{MaxOutstandingEvents: 10_000, HeartbeatInterval: durationpb.New(15 * time.Second)}},
			{
				client.ConsumeOptions{MaxOutstandingEvents: 7, MaxOutstandingBytes: 8, ClientID: "me", AckDeadline: time.Minute, Heartbeat: time.Minute, Create: create, Start: start},
				&ordergatev1.ConsumeOpen{ClientId: "me", MaxOutstandingEvents: 7, MaxOutstandingBytes: 8, AckDeadline: durationpb.New(time.Minute), HeartbeatInterval: durationpb.New(time.Minute), Create: create, Start: start},
			},
		} {
			away := func(*line) error { return errAway }
			d := newDesk(t, away, away)
			w := consume(t, d.client(t), idle, tt.options)
			pass(10 * time.Second)
			w.stop()
			expect(t, "calls", 3, d.calls())
			id := d.opens[0].GetClientId()
			if host, _ := os.Hostname(); tt.options.ClientID == "" && (!strings.HasPrefix(id, host+"-") || len(id) > 128) {
				t.Errorf("client id %q", id)
			}
			tt.want.Subscription, tt.want.ClientId = "shipping", id
			for _, open := range d.opens {
				expect(t, "open", tt.want, open)
			}
		}
		if a, b := clientID(t), clientID(t); a == b {
			t.Errorf("two workers are %s", a)
		}
	})
}

// A handler sees the replaced revisions and the newest one, and the log has the gateway's
// warnings about the filter.
func TestConsumeShowsTheNewestRevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(l *line) error {
			l.send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Opened{Opened: &ordergatev1.ConsumeOpened{
				Created: true, Subscription: &ordergatev1.Subscription{Name: "shipping"}, Warnings: []string{"filter.kinds leaves out HELD"},
			}}})
			message := delivery("cs_1.3#1")
			l.out["cs_1.3#1"] = true
			message.GetDelivery().ReplacedRevisions = []int64{1, 2}
			message.GetDelivery().LatestRevision, message.GetDelivery().LatestDirective = 4, ordergatev1.Directive_DIRECTIVE_HOLD
			l.send(message)
			return l.serve()
		})
		var logged bytes.Buffer
		var got *client.Delivery
		w := consume(t, d.client(t), func(_ context.Context, delivery *client.Delivery) error {
			got = delivery
			return nil
		}, client.ConsumeOptions{Logger: slog.New(slog.NewTextHandler(&logged, nil))})
		pass(time.Second)
		w.stop()
		if got == nil || !slices.Equal(got.ReplacedRevisions, []int64{1, 2}) || got.LatestRevision != 4 || got.LatestDirective != ordergatev1.Directive_DIRECTIVE_HOLD {
			t.Errorf("delivery %+v", got)
		}
		if !strings.Contains(logged.String(), `subscription=shipping hint="filter.kinds leaves out HELD"`) {
			t.Errorf("the log has %q", &logged)
		}
	})
}

func clientID(t *testing.T) string {
	d := newDesk(t)
	w := consume(t, d.client(t), idle, client.ConsumeOptions{})
	synctest.Wait()
	w.stop()
	return d.opens[0].GetClientId()
}

// What a handler returns is what becomes of the event.
func TestConsumeSettles(t *testing.T) {
	long := strings.Repeat("ä", 499) + "\xff" + "end"
	for i, tt := range []struct {
		err  error
		want string
	}{
		{nil, "ack"},
		{errors.New("no paper"), "retry - no paper"},
		{client.RetryAfter(errors.New("no paper"), time.Minute), "retry 1m0s no paper"},
		{client.RetryAfter(errors.New("no paper"), 0), "retry 0s no paper"},
		{client.RetryAfter(errors.New("no paper"), -time.Minute), "retry 0s no paper"},
		{client.RetryAfter(errors.New("no paper"), 1000*time.Hour), "retry 24h0m0s no paper"},
		{client.Reject(errors.New("no address")), "dead_letter - no address"},
		{fmt.Errorf("parcel: %w", client.Reject(errors.New("no address"))), "dead_letter - parcel: no address"},
		{client.Skip(errors.New("a test")), "skip - a test"},
		{client.Skip(client.Reject(errors.New("a test"))), "skip - a test"},
		{errors.New(long), "retry - " + strings.Repeat("ä", 499) + "\uFFFD"},
		{errors.New(""), "retry - "},
		{client.RetryAfter(nil, time.Minute), "ack"},
		{client.Reject(nil), "ack"},
		{client.Skip(nil), "ack"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var said []string
			d := newDesk(t, func(l *line) error {
				l.opened(30 * time.Second)
				l.deliver("cs_1.2#3")
				return l.serve(&said)
			})
			w := consume(t, d.client(t), func(_ context.Context, got *client.Delivery) error {
				expect(t, "delivery", &client.Delivery{ID: "cs_1.2#3", Event: &ordergatev1.OrderEvent{Id: "cs_1.2", Order: &ordergatev1.Order{Id: "cs_1"}}, Attempt: 3}, got)
				return tt.err
			}, client.ConsumeOptions{})
			synctest.Wait()
			if took := w.stop(); took != 0 {
				t.Errorf("stopped after %v", took)
			}
			action, rest, _ := strings.Cut(tt.want, " ")
			want := action + " cs_1.2#3"
			if rest != "" {
				want += " " + rest
			}
			expect(t, fmt.Sprint(i), []string{want, "stop"}, said)
			if !utf8.ValidString(said[0]) {
				t.Errorf("%q", said[0])
			}
		})
	}
	cause := errors.New("x")
	for _, err := range []error{client.RetryAfter(cause, 1), client.Reject(cause), client.Skip(cause)} {
		if !errors.Is(err, cause) || err.Error() != "x" {
			t.Errorf("%v", err)
		}
	}
}

// Each stream that is opened is told of; deliveries have the gateway's ids.
func TestConsumeTellsOfStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		scene := func(created bool, id string) func(*line) error {
			return func(l *line) error {
				l.send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Opened{Opened: &ordergatev1.ConsumeOpened{Created: created}}})
				l.deliver(id)
				l.hear(1)
				return errAway
			}
		}
		d := newDesk(t, func(*line) error { return errAway }, scene(true, "cs_1.1#1"), scene(false, "cs_2.1#1"))
		var told notes
		w := consume(t, d.client(t), func(_ context.Context, got *client.Delivery) error {
			told.add("%s", got.ID)
			return nil
		}, client.ConsumeOptions{OnOpen: func(opened *ordergatev1.ConsumeOpened) { told.add("created %t", opened.GetCreated()) }})
		pass(4 * time.Second)
		w.stop()
		expect(t, "told", []string{"created true", "cs_1.1#1", "created false", "cs_2.1#1"}, told.all()[:4])
	})
}

func TestConsumeTellsOfRedriven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			m := delivery("cs_1.1#1")
			m.GetDelivery().Redriven = true
			l.send(m)
			return l.serve()
		})
		var redriven bool
		w := consume(t, d.client(t), func(_ context.Context, got *client.Delivery) error { redriven = got.Redriven; return nil }, client.ConsumeOptions{})
		synctest.Wait()
		w.stop()
		expect(t, "redriven", true, redriven)
	})
}

// A handler that ends its goroutine has failed.
func TestConsumeHandlerExits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		d := newDesk(t, func(l *line) error { l.opened(30 * time.Second); l.deliver("cs_1.1#1"); return l.serve(&said) })
		w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { runtime.Goexit(); return nil }, client.ConsumeOptions{})
		synctest.Wait()
		w.stop()
		expect(t, "said", []string{"retry cs_1.1#1 - the handler exited its goroutine", "stop"}, said)
	})
}

// slowStream takes a second to send.
type slowStream struct{ grpc.ClientStream }

func (s slowStream) SendMsg(m any) error {
	time.Sleep(time.Second)
	return s.ClientStream.SendMsg(m)
}

// Settlements gather while a message is on its way, up to 1,000.
func TestConsumeBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const events = 2500
		var sizes []int
		release := make(chan struct{})
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			for i := range events {
				l.deliver(fmt.Sprintf("cs_%d.1#1", i))
			}
			l.rest()
			close(release)
			for acked := 0; acked < events; {
				acks := l.next()
				sizes, acked = append(sizes, len(acks)), acked+len(acks)
				for _, a := range acks {
					l.answer(ok, idOf(a))
				}
			}
			return l.serve()
		})
		slow := grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			stream, err := streamer(ctx, desc, conn, method, opts...)
			return slowStream{stream}, err
		})
		w := consume(t, d.client(t, slow), func(context.Context, *client.Delivery) error { <-release; return nil }, client.ConsumeOptions{Concurrency: events})
		pass(10 * time.Second)
		w.stop()
		// The first few, and then all that the message has room for.
		if len(sizes) != 4 && len(sizes) != 3 || sizes[1] != 1000 {
			t.Errorf("messages of %v settlements", sizes)
		}
	})
}

// Handlers run beside each other, never more than told, and never two of an
// order, whose events come in order.
func TestConsumeConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const orders, each, concurrency = 7, 20, 4
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			for n := range each { // more than one of an order at once: the client must see to it by itself
				for o := range orders {
					l.deliver(fmt.Sprintf("cs_%d.%d#1", o, n+1))
				}
			}
			return l.serve()
		})
		var mu sync.Mutex
		running, most := map[string]bool{}, 0
		last := map[string]int{}
		w := consume(t, d.client(t), func(_ context.Context, got *client.Delivery) error {
			order := got.Event.GetOrder().GetId()
			var n int
			fmt.Sscanf(got.Event.GetId(), order+".%d", &n)
			mu.Lock()
			if running[order] {
				t.Errorf("two handlers of %s at once", order)
			}
			if n != last[order]+1 {
				t.Errorf("%s after %d", got.Event.GetId(), last[order])
			}
			running[order], last[order] = true, n
			most = max(most, len(running))
			mu.Unlock()
			time.Sleep(time.Duration(1+len(order)*n%7) * time.Second)
			mu.Lock()
			delete(running, order)
			mu.Unlock()
			return nil
		}, client.ConsumeOptions{Concurrency: concurrency, MaxOutstandingEvents: orders * each})
		pass(time.Hour)
		w.stop()
		expect(t, "at once", concurrency, most)
		expect(t, "orders", orders, len(last))
		for order, n := range last {
			expect(t, order, each, n)
		}
	})
}

// Events without an order's id are of no order together.
func TestConsumeWithoutOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(l *line) error { l.opened(30 * time.Second); l.deliver(".1#1", ".2#1"); return l.serve() })
		both := make(chan struct{})
		w := consume(t, d.client(t), func(context.Context, *client.Delivery) error {
			select {
			case both <- struct{}{}:
			case <-both:
			}
			return nil
		}, client.ConsumeOptions{})
		synctest.Wait()
		if took := w.stop(); took != 0 {
			t.Errorf("stopped after %v", took)
		}
	})
}

// Handlers go on when the stream breaks; what has no result is settled on the
// next stream, and the order stays busy meanwhile.
func TestConsumeReconnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var first, second, third []string
		d := newDesk(t)
		d.scenes = []func(*line) error{
			func(l *line) error {
				l.opened(30 * time.Second)
				l.deliver("cs_1.1#1", "cs_2.1#1", "cs_3.1#1", "cs_4.1#1")
				first = l.hear(2)
				l.answer(ok, "cs_3.1#1")
				return errAway
			},
			func(*line) error { return errAway },
			func(l *line) error { // ends with OK before it was of use
				l.opened(30 * time.Second)
				second = l.hear(1)
				return nil
			},
			func(l *line) error {
				l.opened(30 * time.Second)
				third = l.hear(1)
				l.answer(ok, "cs_4.1#1")
				l.deliver("cs_1.2#1") // the gateway knows it to be done with, by another worker
				return l.serve(&third)
			},
		}
		var ran notes
		release := make(chan struct{})
		var running sync.Map
		var retries []codes.Code
		w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
			order := got.Event.GetOrder().GetId()
			if _, two := running.LoadOrStore(order, true); two {
				t.Errorf("two handlers of %s at once", order)
			}
			defer running.Delete(order)
			ran.add("%s", got.Event.GetId())
			if order == "cs_1" || order == "cs_2" {
				<-release
			}
			return ctx.Err()
		}, client.ConsumeOptions{OnRetry: func(err error, _ time.Duration) { retries = append(retries, status.Code(err)) }})
		pass(10 * time.Second)
		expect(t, "retries", []codes.Code{codes.Unavailable, codes.Unavailable, codes.Unavailable}, retries)
		expect(t, "ran", []string{"cs_1.1", "cs_2.1", "cs_3.1", "cs_4.1"}, ran.sorted())
		close(release)
		synctest.Wait()
		w.stop()
		expect(t, "first", []string{"ack cs_3.1#1", "ack cs_4.1#1"}, first)
		expect(t, "second", []string{"ack cs_4.1#1"}, second)
		third = slices.DeleteFunc(third, func(s string) bool { return strings.HasPrefix(s, "extend") })
		slices.Sort(third)
		expect(t, "third", []string{"ack cs_1.1#1", "ack cs_1.2#1", "ack cs_2.1#1", "ack cs_4.1#1", "stop"}, third)
	})
}

// What waits for a handler when the stream breaks is dropped: it comes again.
func TestConsumeDropsWhatWaitsWhenTheStreamBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		d := newDesk(t,
			func(l *line) error {
				l.opened(30 * time.Second)
				l.deliver("cs_1.1#1", "cs_2.1#1", "cs_3.1#1")
				l.rest()
				return errAway
			},
			func(l *line) error {
				l.opened(30 * time.Second)
				l.sleep(time.Second)
				l.deliver("cs_3.1#2")
				return l.serve(&said)
			})
		var ran notes
		release := make(chan struct{})
		w := consume(t, d.client(t), func(_ context.Context, got *client.Delivery) error {
			ran.add("%s#%d", got.Event.GetId(), got.Attempt)
			<-release
			return nil
		}, client.ConsumeOptions{Concurrency: 1})
		pass(10 * time.Second)
		close(release)
		synctest.Wait()
		w.stop()
		expect(t, "ran", []string{"cs_1.1#1", "cs_3.1#2"}, ran.all())
		expect(t, "said", []string{"ack cs_1.1#1", "ack cs_3.1#2", "stop"}, said)
	})
}

func TestConsumeBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := problem(codes.ResourceExhausted, &errdetails.RetryInfo{RetryDelay: durationpb.New(7 * time.Second)})
		d := newDesk(t, func(*line) error { return asked })
		for range 20 {
			d.scenes = append(d.scenes, func(*line) error { return errAway })
		}
		d.scenes = append(d.scenes, func(l *line) error { l.opened(30 * time.Second); return errAway })
		var waits []time.Duration
		w := consume(t, d.client(t), idle, client.ConsumeOptions{OnRetry: func(_ error, wait time.Duration) { waits = append(waits, wait) }})
		pass(time.Hour)
		w.stop()
		expect(t, "waits", 22, len(waits))
		if waits[0] < 7*time.Second+250*time.Millisecond || waits[0] > 7*time.Second+750*time.Millisecond {
			t.Errorf("waited %v, was asked for 7 s and adds jitter", waits[0])
		}
		if most := slices.Max(waits[1:]); most < 5*time.Second || most > 15*time.Second || waits[21] > 750*time.Millisecond {
			t.Errorf("waits %v", waits)
		}
		for i, wait := range waits {
			if waited := d.called[i+1].Sub(d.called[i]); waited != wait {
				t.Errorf("waited %v, said %v", waited, wait)
			}
		}
	})
}

// A stream that is silent is left, also one that is never opened.
func TestConsumeWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var left []time.Duration
		var mu sync.Mutex
		timed := func(scene func(*line)) func(*line) error {
			return func(l *line) error {
				began := time.Now()
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					left = append(left, time.Since(began))
				}()
				scene(l)
				<-l.s.Context().Done()
				return l.s.Context().Err()
			}
		}
		d := newDesk(t,
			timed(func(*line) {}),
			timed(func(l *line) { // heartbeats, but it is never opened
				for range 100 {
					l.sleep(4 * time.Second)
					l.heartbeat()
				}
			}),
			timed(func(l *line) { l.opened(30 * time.Second); l.sleep(14 * time.Second); l.heartbeat() }),
			timed(func(l *line) { l.opened(30 * time.Second); l.sleep(14 * time.Second); l.deliver("cs_1.1#1") }),
			timed(func(l *line) {
				l.opened(30 * time.Second)
				l.sleep(14 * time.Second)
				l.send(&ordergatev1.ConsumeResponse{}) // of a later version
			}))
		var reasons []string
		w := consume(t, d.client(t), func(ctx context.Context, _ *client.Delivery) error {
			time.Sleep(time.Hour) // does not make the gateway seem silent, nor the other way round
			return nil
		}, client.ConsumeOptions{Heartbeat: 5 * time.Second, OnRetry: func(err error, _ time.Duration) { reasons = append(reasons, err.Error()) }})
		pass(150 * time.Second)
		w.stop()
		seconds := []time.Duration{15, 15, 29, 29, 29}
		left[1] = left[1].Truncate(3 * time.Second) // it notices when it sends next
		for i := range seconds {
			expect(t, fmt.Sprint(i), seconds[i]*time.Second, left[i])
		}
		expect(t, "reasons", slices.Repeat([]string{"nothing came from the gateway for 15s"}, 5), reasons[:5])
	})
}

// A gateway that takes nothing any more is as good as silent.
func TestConsumeGatewayDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		d := newDesk(t,
			func(l *line) error {
				l.opened(time.Second)
				for i := 0; ; i++ {
					for n := range 10 {
						l.deliver(fmt.Sprintf("cs_%d.%d#1", n, i))
					}
					l.heartbeat()
					l.sleep(time.Second)
				}
			},
			func(l *line) error { l.opened(30 * time.Second); return l.serve(&said) })
		reason := strings.Repeat("x", 490)
		var reasons []string
		w := consume(t, d.client(t), func(_ context.Context, got *client.Delivery) error { return client.Skip(errors.New(reason)) },
			client.ConsumeOptions{Concurrency: 1000, OnRetry: func(err error, _ time.Duration) { reasons = append(reasons, err.Error()) }})
		pass(time.Hour)
		w.stop()
		expect(t, "reasons", []string{"the gateway has taken nothing for 45s"}, reasons)
		if len(said) < 200 {
			t.Errorf("only %d settlements", len(said))
		}
	})
}

// A gateway that drains gets what is outstanding; then the worker half-closes,
// and comes back.
func TestConsumeDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var settled, extended []string
		halfClosed, again := false, []string(nil)
		d := newDesk(t,
			func(l *line) error {
				l.opened(10 * time.Second)
				l.deliver("cs_1.1#1", "cs_2.1#1")
				l.drain()
				for len(settled) < 2 {
					for _, word := range l.next() {
						if strings.HasPrefix(word, "extend ") {
							extended = append(extended, word)
							l.answerExtension(ok, idOf(word))
							continue
						}
						settled = append(settled, word)
						l.answer(ok, idOf(word))
					}
				}
				halfClosed = l.next() == nil
				return problem(codes.Unavailable, &errdetails.RetryInfo{RetryDelay: durationpb.New(2 * time.Second)})
			},
			func(l *line) error { l.opened(30 * time.Second); l.deliver("cs_2.2#1"); return l.serve(&again) })
		w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { time.Sleep(20 * time.Second); return nil }, client.ConsumeOptions{Concurrency: 1})
		pass(70 * time.Second)
		w.stop()
		expect(t, "settled", []string{"ack cs_1.1#1", "ack cs_2.1#1"}, settled)
		expect(t, "half-closed", true, halfClosed)
		expect(t, "again", []string{"ack cs_2.2#1", "stop"}, slices.DeleteFunc(again, func(s string) bool { return strings.HasPrefix(s, "extend") }))
		counts := map[string]int{}
		for _, word := range extended {
			counts[word]++
		}
		if counts["extend cs_1.1#1"] < 4 || counts["extend cs_2.1#1"] < 8 {
			t.Errorf("extended %v", counts)
		}
	})
}

// A gateway that drains and never ends the stream is left; what it goes on to
// deliver is not lost.
func TestConsumeEndlessDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		d := newDesk(t,
			func(l *line) error {
				l.opened(30 * time.Second)
				l.drain()
				l.rest()
				l.deliver("cs_1.1#1")
				for {
					l.heartbeat()
					l.sleep(500 * time.Millisecond)
				}
			},
			func(l *line) error { l.opened(30 * time.Second); return l.serve(&said) })
		w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { return nil }, client.ConsumeOptions{})
		pass(4 * time.Second)
		w.stop()
		expect(t, "said", []string{"ack cs_1.1#1", "stop"}, said)
	})
}

// A settlement that could not be stored is sent again, with growing pauses, and
// its lease extended.
func TestConsumeRetryable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const refused = 12
		var at []time.Time
		extended := 0
		d := newDesk(t, func(l *line) error {
			l.opened(5 * time.Second)
			l.deliver("cs_1.1#1")
			for len(at) <= refused {
				for _, word := range l.next() {
					switch word {
					case "extend cs_1.1#1":
						extended++
						l.answerExtension(ok, "cs_1.1#1")
					case "ack cs_1.1#1":
						at = append(at, time.Now())
						if len(at) <= refused {
							l.answer(retryable, "cs_1.1#1")
						} else {
							l.answer(ok, "cs_1.1#1")
						}
					}
				}
			}
			return l.serve()
		})
		w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { return nil }, client.ConsumeOptions{})
		pass(3 * time.Minute)
		if took := w.stop(); took != 0 {
			t.Errorf("stopped after %v", took)
		}
		expect(t, "sent", refused+1, len(at))
		first, last := at[1].Sub(at[0]), at[refused].Sub(at[refused-1])
		if first < 250*time.Millisecond || first > time.Second || last < 5*time.Second || last > 15*time.Second {
			t.Errorf("pauses from %v to %v", first, last)
		}
		if extended < 5 {
			t.Errorf("extended %d times", extended)
		}
	})
}

// Every final result ends a settlement; what is no result at all does not.
func TestConsumeResultsThatEnd(t *testing.T) {
	for _, code := range []ordergatev1.DeliveryResultCode{ok, expired, stale, unknown} {
		synctest.Test(t, func(t *testing.T) {
			d := newDesk(t, func(l *line) error {
				l.opened(30 * time.Second)
				l.deliver("cs_1.1#1")
				l.hear(1)
				l.answer(code, "cs_1.1#1")
				return l.serve()
			})
			w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { return nil }, client.ConsumeOptions{})
			synctest.Wait()
			if took := w.stop(); took != 0 {
				t.Errorf("%v: stopped after %v", code, took)
			}
		})
	}
	for _, code := range []ordergatev1.DeliveryResultCode{0, 99} {
		synctest.Test(t, func(t *testing.T) {
			var said []string
			d := newDesk(t, func(l *line) error {
				l.opened(30 * time.Second)
				l.deliver("cs_1.1#1")
				l.hear(1)
				l.answer(code, "cs_1.1#1")
				return l.serve(&said)
			})
			w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { return nil }, client.ConsumeOptions{})
			pass(10 * time.Second)
			w.stop()
			expect(t, "said", []string{"ack cs_1.1#1", "stop"}, said)
		})
	}
}

// A gateway that never tells the result is told again.
func TestConsumeNoResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1")
			l.hear(1)
			return l.serve(&said)
		})
		w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { return nil }, client.ConsumeOptions{})
		pass(time.Minute)
		w.stop()
		expect(t, "said", []string{"ack cs_1.1#1", "stop"}, said)
	})
}

// An event that comes again while its handler runs does not start another: the
// newest delivery is extended, and settled.
func TestConsumeRedeliveryWhileRunning(t *testing.T) {
	for _, broken := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			var said []string
			second := func(l *line) error {
				l.deliver("cs_1.1#2")
				l.rest()
				l.answer(expired, "cs_1.1#1") // is about the past
				l.answer(stale, "cs_1.1#1")
				time.AfterFunc(time.Minute, func() { close(release) })
				return l.serve(&said)
			}
			d := newDesk(t,
				func(l *line) error {
					l.opened(30 * time.Second)
					l.deliver("cs_1.1#1")
					if broken {
						l.rest()
						return errAway
					}
					return second(l)
				},
				func(l *line) error { l.opened(30 * time.Second); return second(l) })
			var ran notes
			w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
				ran.add("%s#%d", got.Event.GetId(), got.Attempt)
				<-release
				return ctx.Err()
			}, client.ConsumeOptions{})
			pass(2 * time.Minute)
			w.stop()
			expect(t, "ran", []string{"cs_1.1#1"}, ran.all())
			settled := slices.DeleteFunc(slices.Clone(said), func(s string) bool { return s == "extend cs_1.1#2" })
			expect(t, "said", []string{"ack cs_1.1#2", "stop"}, settled)
			if len(said)-len(settled) < 4 {
				t.Errorf("extended %d times", len(said)-len(settled))
			}
		})
	}
}

// An event that comes again when its handler has finished, but before the
// gateway has said that it is settled, is settled without another handler.
func TestConsumeRedeliveryAfterFinishing(t *testing.T) {
	for settlement, err := range map[string]error{
		"ack cs_1.1#2": nil, "retry cs_1.1#2 1m0s x": client.RetryAfter(errors.New("x"), time.Minute),
		"skip cs_1.1#2 - x": client.Skip(errors.New("x")), "dead_letter cs_1.1#2 - x": client.Reject(errors.New("x")),
	} {
		for _, broken := range []bool{false, true} {
			if !broken && strings.HasPrefix(settlement, "retry") {
				continue // see the next test
			}
			synctest.Test(t, func(t *testing.T) {
				var said []string
				second := func(l *line) error {
					l.deliver("cs_1.1#2")
					return l.serve(&said)
				}
				d := newDesk(t,
					func(l *line) error {
						l.opened(30 * time.Second)
						l.deliver("cs_1.1#1")
						l.hear(1)
						if broken {
							return errAway
						}
						return second(l)
					},
					func(l *line) error {
						l.opened(30 * time.Second)
						l.hear(1) // with the old id; the gateway has sent the event before
						return second(l)
					})
				var ran notes
				w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
					ran.add("%s#%d", got.Event.GetId(), got.Attempt)
					return err
				}, client.ConsumeOptions{})
				pass(10 * time.Second)
				w.stop()
				expect(t, "ran", []string{"cs_1.1#1"}, ran.all())
				expect(t, "said", []string{settlement, "stop"}, said)
			})
		}
	}
}

// The event that was to be tried again comes faster than the result.
func TestConsumeRetriedFasterThanTheResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1")
			l.hear(1)
			l.deliver("cs_1.1#2")
			l.answer(ok, "cs_1.1#1")
			return l.serve(&said)
		})
		var ran notes
		w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
			ran.add("%s#%d", got.Event.GetId(), got.Attempt)
			if got.Attempt == 1 {
				return client.RetryAfter(errors.New("x"), 0)
			}
			return nil
		}, client.ConsumeOptions{})
		synctest.Wait()
		w.stop()
		expect(t, "ran", []string{"cs_1.1#1", "cs_1.1#2"}, ran.all())
		expect(t, "said", []string{"ack cs_1.1#2", "stop"}, said)
	})
}

// An event that comes again while it waits for a handler is handled once, as the
// newest delivery.
func TestConsumeRedeliveryWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1", "cs_2.1#1", "cs_2.1#2")
			delete(l.out, "cs_2.1#1")
			return l.serve(&said)
		})
		var ran notes
		w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
			ran.add("%s#%d", got.Event.GetId(), got.Attempt)
			time.Sleep(time.Second)
			return nil
		}, client.ConsumeOptions{Concurrency: 1})
		pass(10 * time.Second)
		w.stop()
		expect(t, "ran", []string{"cs_1.1#1", "cs_2.1#2"}, ran.all())
		expect(t, "said", []string{"ack cs_1.1#1", "ack cs_2.1#2", "stop"}, said)
	})
}

// leases watches over deliveries as the gateway does, on virtual time.
type leases struct {
	ends     map[string]time.Time
	messages int
	closest  time.Duration // that a lease came to its end
}

// Leases of what runs and of what waits are extended before half of the deadline
// is over, in few messages, also while the worker stops.
func TestConsumeExtends(t *testing.T) {
	for _, deadline := range []time.Duration{time.Second, 30 * time.Second, 10 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			const events = 40
			work := 20 * deadline
			began := time.Now()
			w := leases{ends: map[string]time.Time{}, closest: deadline}
			d := newDesk(t, func(l *line) error {
				l.opened(deadline)
				for i := range events {
					id := fmt.Sprintf("cs_%d.1#1", i)
					l.deliver(id)
					w.ends[id] = time.Now().Add(deadline)
				}
				beat := time.NewTicker(10 * time.Second)
				defer beat.Stop()
				go func() {
					for {
						select {
						case <-beat.C:
							l.s.Send(&ordergatev1.ConsumeResponse{})
						case <-l.s.Context().Done():
							return
						}
					}
				}()
				stopped := false
				for len(w.ends) > 0 || !stopped {
					heard := l.next()
					if strings.HasPrefix(heard[len(heard)-1], "extend ") {
						w.messages++
					}
					for _, word := range heard {
						if word == "stop" {
							stopped = true
							continue
						}
						id := idOf(word)
						end, out := w.ends[id]
						if !out {
							t.Errorf("%s is not out", word)
						}
						w.closest = min(w.closest, time.Until(end))
						if strings.HasPrefix(word, "extend ") {
							w.ends[id] = time.Now().Add(deadline)
							l.answerExtension(ok, id)
						} else {
							delete(w.ends, id)
							l.answer(ok, id)
						}
					}
				}
				return nil
			})
			// Twenty run, twenty wait and are given back half way.
			c := consume(t, d.client(t), func(ctx context.Context, _ *client.Delivery) error {
				time.Sleep(work)
				if ctx.Err() != nil {
					t.Error(context.Cause(ctx))
				}
				return nil
			}, client.ConsumeOptions{Concurrency: events / 2, MaxExtension: 1000 * time.Hour, DrainTimeout: 1000 * time.Hour})
			pass(work / 2)
			c.stop()
			if took := time.Since(began); took != work {
				t.Errorf("took %v, want %v", took, work)
			}
			if w.closest < deadline/2 {
				t.Errorf("of %v, a lease had only %v left", deadline, w.closest)
			}
			if w.messages > 70 {
				t.Errorf("%d messages with extensions", w.messages)
			}
			expect(t, "streams", 1, d.calls())
		})
	}
}

// More leases than a message may name are extended in several.
func TestConsumeExtendsMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const events = 2500
		extended := map[string]bool{}
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			for i := range events {
				l.deliver(fmt.Sprintf("cs_%d.1#1", i))
			}
			for len(extended) < events {
				heard := l.next()
				if len(heard) > 1000 {
					t.Errorf("a message of %d", len(heard))
				}
				for _, word := range heard {
					extended[word] = true
				}
			}
			return l.serve()
		})
		w := consume(t, d.client(t), func(ctx context.Context, _ *client.Delivery) error { time.Sleep(14 * time.Second); return nil },
			client.ConsumeOptions{Concurrency: events})
		pass(14 * time.Second)
		expect(t, "extended", events, len(extended))
		w.stop()
	})
}

// A lease that is lost ends the handler's context, and drops what has not begun.
// What the handler says is still told, as it may count.
func TestConsumeLeaseLost(t *testing.T) {
	for _, code := range []ordergatev1.DeliveryResultCode{expired, stale, unknown} {
		synctest.Test(t, func(t *testing.T) {
			var extended, settled, after []string
			d := newDesk(t, func(l *line) error {
				l.opened(30 * time.Second)
				l.deliver("cs_1.1#1", "cs_2.1#1")
				for len(extended) < 2 {
					extended = append(extended, l.next()...)
				}
				l.answerExtension(code, "cs_1.1#1", "cs_2.1#1")
				settled = l.hear(1)
				l.answer(code, "cs_1.1#1")
				delete(l.out, "cs_2.1#1")
				return l.serve(&after)
			})
			var causes []error
			w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
				expect(t, "event", "cs_1.1", got.Event.GetId())
				<-ctx.Done()
				causes = append(causes, context.Cause(ctx))
				return ctx.Err()
			}, client.ConsumeOptions{Concurrency: 1})
			pass(time.Minute)
			w.stop()
			slices.Sort(extended)
			expect(t, "extended", []string{"extend cs_1.1#1", "extend cs_2.1#1"}, extended)
			expect(t, "settled", []string{"retry cs_1.1#1 - context canceled"}, settled)
			expect(t, "after", []string{"stop"}, after)
			if len(causes) != 1 || !errors.Is(causes[0], client.ErrLeaseLost) {
				t.Errorf("%v: causes %v", code, causes)
			}
		})
	}
}

// An extension's result is not taken for the settlement's that follows it.
func TestConsumeTellsResultsApart(t *testing.T) {
	for _, code := range []ordergatev1.DeliveryResultCode{ok, expired, retryable} {
		synctest.Test(t, func(t *testing.T) {
			var first, said []string
			d := newDesk(t, func(l *line) error {
				l.opened(30 * time.Second)
				l.deliver("cs_1.1#1")
				for len(first) < 2 {
					first = append(first, l.next()...)
				}
				l.answerExtension(code, "cs_1.1#1")
				l.answer(retryable, "cs_1.1#1")
				return l.serve(&said)
			})
			w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
				time.Sleep(9500 * time.Millisecond)
				return nil
			}, client.ConsumeOptions{})
			pass(20 * time.Second)
			w.stop()
			expect(t, "first", []string{"extend cs_1.1#1", "ack cs_1.1#1"}, first)
			expect(t, "said", []string{"ack cs_1.1#1", "stop"}, slices.DeleteFunc(said, func(s string) bool { return strings.HasPrefix(s, "extend") }))
		})
	}
}

// An extension that could not be stored is sent again before the lease ends.
func TestConsumeExtensionRetryable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var again time.Duration
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1")
			l.next()
			l.answerExtension(retryable, "cs_1.1#1")
			expect(t, "said", []string{"extend cs_1.1#1"}, l.next())
			again = time.Since(began)
			return l.serve()
		})
		w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
			time.Sleep(time.Minute)
			return ctx.Err()
		}, client.ConsumeOptions{})
		pass(2 * time.Minute)
		w.stop()
		if again > 15*time.Second {
			t.Errorf("extended again after %v", again)
		}
	})
}

// When a stream broke and the event does not come again here, the handler's context ends with the
// lease that began with the delivery.
func TestConsumeLeaseLostWithTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		d := newDesk(t,
			func(l *line) error {
				l.opened(30 * time.Second)
				l.deliver("cs_1.1#1")
				l.rest()
				return errAway
			},
			func(l *line) error {
				l.opened(30 * time.Second)
				return l.serve(&said)
			})
		var cause error
		var ended time.Duration
		w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
			began := time.Now()
			<-ctx.Done()
			cause, ended = context.Cause(ctx), time.Since(began)
			return nil
		}, client.ConsumeOptions{})
		pass(2 * time.Minute)
		w.stop()
		expect(t, "said", []string{"ack cs_1.1#1", "stop"}, said)
		if !errors.Is(cause, client.ErrLeaseLost) || ended != 30*time.Second {
			t.Errorf("after %v: %v", ended, cause)
		}
	})
}

func TestConsumeMaxExtension(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1", "cs_2.1#1")
			return l.serve(&said)
		})
		var cause error
		began, ended := time.Now(), time.Duration(0)
		w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
			expect(t, "event", "cs_1.1", got.Event.GetId())
			<-ctx.Done()
			cause, ended = context.Cause(ctx), time.Since(began)
			time.Sleep(time.Hour)
			return errors.New("late")
		}, client.ConsumeOptions{Concurrency: 1, MaxExtension: 2 * time.Minute})
		pass(3 * time.Hour)
		w.stop()
		expect(t, "ended", 2*time.Minute, ended)
		if !errors.Is(cause, client.ErrLeaseLost) {
			t.Errorf("cause %v", cause)
		}
		counts := map[string]int{}
		for _, word := range said {
			counts[word]++
		}
		if n := counts["extend cs_1.1#1"]; n > 20 || n < 8 {
			t.Errorf("extended %d times", n)
		}
		maps.DeleteFunc(counts, func(word string, _ int) bool { return strings.HasPrefix(word, "extend") })
		expect(t, "settled", map[string]int{"retry cs_2.1#1 0s it waited for a handler for 2m0s": 1, "retry cs_1.1#1 - late": 1, "stop": 1}, counts)
	})
}

type key struct{}

// When the context ends, nothing new is begun, what waits is given back, and
// what runs may finish.
func TestConsumeStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said []string
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1", "cs_2.1#1", "cs_3.1#1", "cs_1.2#1")
			heard := l.next()
			said = append(said, heard...)
			l.deliver("cs_4.1#1") // was on its way
			return l.serve(&said)
		})
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		defer cancel()
		var ran notes
		result := make(chan error)
		c := d.client(t)
		go func() {
			result <- c.Consume(ctx, "shipping", func(ctx context.Context, got *client.Delivery) error {
				ran.add("%s", got.Event.GetId())
				time.Sleep(20 * time.Second)
				expect(t, "value", any("value"), ctx.Value(key{}))
				return ctx.Err()
			}, client.ConsumeOptions{Concurrency: 2})
		}()
		pass(5 * time.Second)
		began := time.Now()
		cancel()
		if err := <-result; err != nil || time.Since(began) != 15*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		expect(t, "ran", []string{"cs_1.1", "cs_2.1"}, ran.sorted())
		expect(t, "first", "stop", said[0])
		said = slices.DeleteFunc(said, func(s string) bool { return strings.HasPrefix(s, "extend") })
		slices.Sort(said)
		expect(t, "said", []string{"ack cs_1.1#1", "ack cs_2.1#1", "retry cs_1.2#1 0s the worker stops",
			"retry cs_3.1#1 0s the worker stops", "retry cs_4.1#1 0s the worker stops", "stop"}, said)
		expect(t, "calls", 1, d.calls())
	})
}

// A context that has ended begins nothing.
func TestConsumeStoppedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		d := newDesk(t)
		if err := d.client(t).Consume(ctx, "shipping", idle, client.ConsumeOptions{}); err != nil || d.calls() != 0 {
			t.Error(err)
		}
	})
}

// When DrainTimeout is over, handlers are told, and waited for.
func TestConsumeDrainTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1", "cs_2.1#1")
			return l.serve()
		})
		var causes notes
		w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
			began := time.Now()
			<-ctx.Done()
			causes.add("%v after %v", context.Cause(ctx), time.Since(began))
			if got.Event.GetId() == "cs_2.1" {
				time.Sleep(7 * time.Second)
			}
			return nil
		}, client.ConsumeOptions{DrainTimeout: 20 * time.Second})
		pass(time.Second)
		expect(t, "took", 27*time.Second, w.stop())
		if !errors.Is(client.ErrDrainTimeout, client.ErrDrainTimeout) {
			t.Error("no error")
		}
		expect(t, "causes", slices.Repeat([]string{client.ErrDrainTimeout.Error() + " after 21s"}, 2), causes.all())
	})
}

// Handlers that end at ErrDrainTimeout are settled: up to 2 s is left for the results.
func TestConsumeSettlesAtDrainTimeout(t *testing.T) {
	for _, tt := range []struct {
		name        string
		answer      time.Duration // after the settlement
		broken      bool          // the stream breaks before
		want        time.Duration
		settlements []string
	}{
		{"at once", 0, false, 20 * time.Second, []string{"ack cs_1.1#1", "retry cs_2.1#1 - stopped half way"}},
		{"slowly", 1500 * time.Millisecond, false, 21500 * time.Millisecond, []string{"ack cs_1.1#1", "retry cs_2.1#1 - stopped half way"}},
		{"too late", time.Hour, false, 22 * time.Second, []string{"ack cs_1.1#1", "retry cs_2.1#1 - stopped half way"}},
		{"without a stream", 0, true, 20 * time.Second, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var settled []string
				d := newDesk(t, func(l *line) error {
					l.opened(10 * time.Minute)
					l.deliver("cs_1.1#1", "cs_2.1#1")
					if tt.broken {
						l.sleep(5 * time.Second)
						return errAway
					}
					for len(settled) < 2 {
						for _, word := range l.hear(1) {
							if word != "stop" {
								settled = append(settled, word)
							}
						}
					}
					slices.Sort(settled)
					l.sleep(tt.answer)
					l.answer(ok, "cs_1.1#1", "cs_2.1#1")
					return l.serve()
				})
				w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
					<-ctx.Done()
					if got.Event.GetId() == "cs_1.1" {
						return nil // it had finished its work
					}
					return errors.New("stopped half way")
				}, client.ConsumeOptions{Heartbeat: time.Minute})
				pass(time.Second)
				expect(t, "took", tt.want, w.stop())
				expect(t, "settled", tt.settlements, settled)
				if tt.broken {
					slices.Sort(d.acknowledged)
					expect(t, "acknowledged", []string{"ack cs_1.1#1", "retry cs_2.1#1 - stopped half way"}, d.acknowledged)
				}
			})
		})
	}
}

// A gateway that does not answer is waited for until 2 s after DrainTimeout.
func TestConsumeStopsWithoutAnswers(t *testing.T) {
	for name, scene := range map[string]func(*line) error{
		"no results": func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1")
			for {
				l.heartbeat()
				l.sleep(10 * time.Second)
			}
		},
		"retryable for ever": func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1")
			for {
				for _, word := range l.next() {
					if word != "stop" {
						l.answer(retryable, idOf(word))
					}
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t, scene)
				w := consume(t, d.client(t), func(ctx context.Context, _ *client.Delivery) error { return nil }, client.ConsumeOptions{})
				synctest.Wait()
				expect(t, "took", 22*time.Second, w.stop())
			})
		})
	}
}

// A gateway that does not end the stream is waited for a moment only.
func TestConsumeStopsAStreamThatDoesNotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1")
			for {
				for _, word := range l.next() {
					if word != "stop" {
						l.answer(ok, idOf(word))
					}
				}
			}
		})
		w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { return nil }, client.ConsumeOptions{})
		synctest.Wait()
		if took := w.stop(); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// When the stream breaks while the worker stops, the rest is settled without it.
func TestConsumeStreamBreaksWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1", "cs_2.1#1", "cs_3.1#1", "cs_4.1#1", "cs_5.1#1")
			l.hear(2) // cs_1's, and stop
			return errAway
		})
		calls := 0
		d.acknowledge = func(r *ordergatev1.AcknowledgeRequest) (*ordergatev1.AcknowledgeResponse, error) {
			response := &ordergatev1.AcknowledgeResponse{}
			if calls++; calls == 1 {
				return nil, problem(codes.Unavailable, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
			}
			for _, word := range words(&ordergatev1.ConsumeRequest{Acks: r.GetDeliveryIds(), Nacks: r.GetNacks()}) {
				code := ok
				switch {
				case calls == 2 && strings.HasPrefix(word, "ack cs_1"):
					code = retryable
				case calls == 3:
					continue // and nothing more
				}
				response.Results = append(response.Results, &ordergatev1.DeliveryResult{DeliveryId: idOf(word), Code: code})
			}
			return response, nil
		}
		var retries []error
		w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
			if got.Event.GetId() != "cs_1.1" {
				time.Sleep(12 * time.Second)
			}
			if got.Event.GetId() == "cs_3.1" {
				return client.Reject(errors.New("bad"))
			}
			return ctx.Err()
		}, client.ConsumeOptions{Concurrency: 3, OnRetry: func(err error, _ time.Duration) { retries = append(retries, err) }})
		pass(time.Second)
		if took := w.stop(); took < 11*time.Second || took > 20*time.Second {
			t.Errorf("took %v", took)
		}
		expect(t, "calls", 1, d.calls())
		expect(t, "retries", 1, len(retries))
		slices.Sort(d.acknowledged)
		// cs_5 had not begun: the gateway has it back already.
		expect(t, "acknowledged", []string{"ack cs_1.1#1", "ack cs_2.1#1", "ack cs_4.1#1", "dead_letter cs_3.1#1 - bad"}, slices.Compact(d.acknowledged))
	})
}

// A gateway that is gone for good while the worker stops is waited for until 2 s
// after DrainTimeout.
func TestConsumeGatewayGoneWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(l *line) error { l.opened(30 * time.Second); l.deliver("cs_1.1#1"); return l.serve() })
		w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { time.Sleep(10 * time.Second); return nil }, client.ConsumeOptions{})
		synctest.Wait()
		d.server.Stop()
		pass(5 * time.Second)
		expect(t, "took", 22*time.Second, w.stop())
		expect(t, "acknowledged", 0, len(d.acknowledged))
	})
}

// A stop while there is no stream: between two tries, and before it is opened.
func TestConsumeStopsWithoutAStream(t *testing.T) {
	for name, scene := range map[string]func(*line) error{
		"between tries": func(*line) error {
			return problem(codes.Unavailable, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Minute)})
		},
		"not opened": func(l *line) error { <-l.s.Context().Done(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t, func(l *line) error {
					l.opened(30 * time.Second)
					l.deliver("cs_1.1#1", "cs_2.1#1")
					l.hear(1)
					return errAway
				}, scene)
				w := consume(t, d.client(t), func(_ context.Context, got *client.Delivery) error {
					if got.Event.GetId() == "cs_2.1" {
						time.Sleep(20 * time.Second)
					}
					return nil
				}, client.ConsumeOptions{})
				pass(5 * time.Second)
				expect(t, "took", 15*time.Second, w.stop())
				expect(t, "calls", 2, d.calls())
				expect(t, "acknowledged", []string{"ack cs_1.1#1", "ack cs_2.1#1"}, d.acknowledged)
			})
		})
	}
}

// An error that another try would not change is returned, after handlers had
// their time. Others are not.
func TestConsumeErrors(t *testing.T) {
	permanent := []codes.Code{codes.InvalidArgument, codes.OutOfRange, codes.NotFound, codes.AlreadyExists, codes.FailedPrecondition,
		codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		synctest.Test(t, func(t *testing.T) {
			d := newDesk(t, func(l *line) error {
				l.opened(30 * time.Second)
				l.deliver("cs_1.1#1", "cs_2.1#1")
				l.rest()
				return status.Error(code, "a problem")
			})
			began := time.Now()
			w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
				expect(t, "event", "cs_1.1", got.Event.GetId())
				time.Sleep(10 * time.Second)
				return ctx.Err()
			}, client.ConsumeOptions{Concurrency: 1})
			if !slices.Contains(permanent, code) {
				pass(20 * time.Second)
				w.stop()
				expect(t, code.String(), 2, d.calls())
				return
			}
			if err := w.wait(); status.Code(err) != code || time.Since(began) != 10*time.Second {
				t.Errorf("%v after %v", err, time.Since(began))
			}
			expect(t, "calls", 1, d.calls())
			expect(t, "acknowledged", []string{"ack cs_1.1#1"}, d.acknowledged)
		})
	}
}

// When settling is as hopeless as the stream, nothing is waited for.
func TestConsumeSubscriptionDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := status.Error(codes.NotFound, "there is no such subscription")
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1", "cs_2.1#1")
			l.hear(1)
			return gone
		})
		d.acknowledge = func(*ordergatev1.AcknowledgeRequest) (*ordergatev1.AcknowledgeResponse, error) { return nil, gone }
		began := time.Now()
		w := consume(t, d.client(t), func(_ context.Context, got *client.Delivery) error {
			if got.Event.GetId() == "cs_2.1" {
				time.Sleep(5 * time.Second)
			}
			return nil
		}, client.ConsumeOptions{})
		if err := w.wait(); status.Code(err) != codes.NotFound || time.Since(began) != 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		expect(t, "acknowledged", []string{"ack cs_1.1#1"}, d.acknowledged)
	})
}

// The end of the context comes before what the gateway says then.
func TestConsumeErrorWhileStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1")
			l.hear(1)
			return status.Error(codes.NotFound, "gone")
		})
		w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { time.Sleep(10 * time.Second); return nil }, client.ConsumeOptions{})
		synctest.Wait()
		expect(t, "took", 10*time.Second, w.stop())
	})
}

func TestConsumeExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		info := &errdetails.ErrorInfo{Domain: "ordergate", Reason: "RESUME_TOKEN_EXPIRED", Metadata: map[string]string{"earliest_resume_token": "9"}}
		d := newDesk(t, func(l *line) error { return problem(codes.OutOfRange, info) })
		err := d.client(t).Consume(t.Context(), "shipping", idle, client.ConsumeOptions{})
		var expired *client.ExpiredError
		if !errors.As(err, &expired) || expired.EarliestResumeToken != "9" {
			t.Error(err)
		}
	})
}

// Close ends it, after the handlers.
func TestConsumeClosedClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(l *line) error { l.opened(30 * time.Second); l.deliver("cs_1.1#1"); return l.serve() })
		c := d.client(t)
		began := time.Now()
		w := consume(t, c, func(ctx context.Context, _ *client.Delivery) error { time.Sleep(10 * time.Second); return ctx.Err() }, client.ConsumeOptions{})
		synctest.Wait()
		c.Close()
		if err := w.wait(); status.Code(err) != codes.Canceled || time.Since(began) != 10*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if err := c.Consume(t.Context(), "shipping", idle, client.ConsumeOptions{}); status.Code(err) != codes.Canceled {
			t.Error(err)
		}
	})
}

// Whatever the gateway says, nothing breaks, and nothing is lost.
func TestConsumeLies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		message := func(m *ordergatev1.ConsumeResponse) *ordergatev1.ConsumeResponse { return m }
		var said []string
		d := newDesk(t, func(l *line) error {
			l.deliver("cs_0.1#1") // before it is opened
			delete(l.out, "cs_0.1#1")
			l.send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Opened{Opened: &ordergatev1.ConsumeOpened{}}})
			l.opened(time.Hour) // again
			for _, m := range []*ordergatev1.ConsumeResponse{
				message(&ordergatev1.ConsumeResponse{}),
				{Payload: &ordergatev1.ConsumeResponse_Results{}},
				{Payload: &ordergatev1.ConsumeResponse_Results{Results: &ordergatev1.DeliveryResults{Results: []*ordergatev1.DeliveryResult{{}, {DeliveryId: "no"}, {DeliveryId: "no", Code: retryable}}}}},
				{Payload: &ordergatev1.ConsumeResponse_Delivery{}},
				{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: &ordergatev1.Delivery{}}},
				{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: &ordergatev1.Delivery{DeliveryId: "no-event"}}},
				{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: &ordergatev1.Delivery{DeliveryId: "no-order", Event: &ordergatev1.OrderEvent{Id: "e1"}}}},
				{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: &ordergatev1.Delivery{DeliveryId: "no-id-1", Event: &ordergatev1.OrderEvent{}}}},
				{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: &ordergatev1.Delivery{DeliveryId: "no-id-2", Event: &ordergatev1.OrderEvent{}}}},
				{Payload: &ordergatev1.ConsumeResponse_Delivery{Delivery: &ordergatev1.Delivery{DeliveryId: "no-id-2", Event: &ordergatev1.OrderEvent{Id: "e2"}}}}, // the id of another
				{Payload: &ordergatev1.ConsumeResponse_Draining{}},
			} {
				l.send(m)
			}
			l.answerExtension(ok, "no-order") // was never asked for
			l.answer(retryable, "no-order")
			l.sleep(time.Second)
			l.drain() // twice
			return l.serve(&said)
		})
		var ran notes
		w := consume(t, d.client(t), func(_ context.Context, got *client.Delivery) error {
			ran.add("%q", got.Event.GetId())
			time.Sleep(2 * time.Second)
			return nil
		}, client.ConsumeOptions{})
		pass(2500 * time.Millisecond)
		w.stop()
		expect(t, "ran", []string{`""`, `""`, `"e1"`}, ran.sorted())
		slices.Sort(said)
		expect(t, "said", []string{"ack no-id-1", "ack no-id-2", "ack no-order", "retry no-event - the delivery has no event"}, said)
	})
}

// A gateway that has taken acknowledgements delivers more before it has stored
// them: what waits for its result is not in the way.
func TestConsumeWithLateResults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sent = 100
		var acks []string
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			for i := range sent {
				l.deliver(fmt.Sprintf("cs_%d.1#1", i))
				acks = append(acks, l.hear(1)...)
			}
			for _, word := range acks {
				l.answer(ok, idOf(word))
			}
			return l.serve()
		})
		w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { return nil },
			client.ConsumeOptions{Concurrency: 1, MaxOutstandingEvents: 2})
		synctest.Wait()
		w.stop()
		expect(t, "acknowledged", sent, len(acks))
		expect(t, "streams", 1, d.calls())
	})
}

// Of what is beyond the window only so much is kept; what is in hand is dealt
// with.
func TestConsumeBeyondTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const concurrency, window, sent = 2, 10, 1000
		var said []string
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			for i := range sent {
				l.deliver(fmt.Sprintf("cs_%d.1#1", i))
			}
			clear(l.out)
			return l.serve(&said)
		})
		release := make(chan struct{})
		w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { <-release; return nil },
			client.ConsumeOptions{Concurrency: concurrency, MaxOutstandingEvents: window})
		synctest.Wait()
		close(release)
		synctest.Wait()
		w.stop()
		expect(t, "settled", 2*window+concurrency, len(said)-1)
	})
}

// Nothing is left, however it ended.
func TestConsumeLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		deliver := func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1", "cs_2.1#1", "cs_3.1#1")
			return l.serve()
		}
		stubborn := func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1", "cs_2.1#1", "cs_3.1#1")
			for {
				l.heartbeat()
				l.sleep(10 * time.Second)
			}
		}
		d := newDesk(t, deliver)
		c := d.client(t)
		handler := func(ctx context.Context, _ *client.Delivery) error {
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Second):
			}
			return nil
		}
		w := consume(t, c, handler, client.ConsumeOptions{}) // connects
		synctest.Wait()
		w.stop()
		synctest.Wait()
		before := goroutines()
		for _, scenes := range [][]func(*line) error{
			{deliver}, {stubborn}, {deliver, stubborn}, {stubborn, func(*line) error { return problem(codes.NotFound) }},
			{func(l *line) error { <-l.s.Context().Done(); return nil }},
		} {
			d.log.Lock()
			d.opens, d.scenes = nil, scenes
			d.log.Unlock()
			for _, after := range []time.Duration{0, time.Second, 9999 * time.Millisecond, 10 * time.Second, 45 * time.Second, 3 * time.Minute} {
				w := consume(t, c, handler, client.ConsumeOptions{Concurrency: 2})
				pass(after)
				w.cancel()
				w.wait()
				synctest.Wait()
				expect(t, "goroutines", before, goroutines())
			}
		}
	})
}

// BenchmarkConsume is what the client costs, with grpc over a network in memory
// and the least of a gateway, in the same process: one that stores nothing.
func BenchmarkConsume(b *testing.B) {
	d := newDesk(b)
	d.scenes = []func(*line) error{func(l *line) error {
		l.opened(30 * time.Second)
		window := make(chan struct{}, 1000)
		var sending sync.Mutex
		send := func(m *ordergatev1.ConsumeResponse) {
			sending.Lock()
			defer sending.Unlock()
			l.s.Send(m)
		}
		go func() {
			m := delivery("cs_0.1#1")
			for i := range b.N {
				select {
				case window <- struct{}{}:
				case <-l.s.Context().Done():
					return
				}
				m.GetDelivery().DeliveryId = fmt.Sprint(i)
				m.GetDelivery().Event = &ordergatev1.OrderEvent{Id: m.GetDelivery().GetDeliveryId(), Order: &ordergatev1.Order{Id: m.GetDelivery().GetDeliveryId()}}
				send(m)
			}
		}()
		messages := 0
		for settled := 0; settled < b.N; messages++ {
			r, err := l.s.Recv()
			if err != nil {
				return err
			}
			results := &ordergatev1.DeliveryResults{}
			for _, id := range r.GetAcks() {
				results.Results = append(results.Results, &ordergatev1.DeliveryResult{DeliveryId: id, Code: ok})
				<-window
			}
			settled += len(r.GetAcks())
			send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Results{Results: results}})
		}
		b.ReportMetric(float64(b.N)/float64(messages), "acks/message")
		return nil
	}}
	var left atomic.Int64
	left.Store(int64(b.N))
	ctx, cancel := context.WithCancel(b.Context())
	b.ResetTimer()
	err := d.client(b).Consume(ctx, "shipping", func(context.Context, *client.Delivery) error {
		if left.Add(-1) == 0 {
			cancel()
		}
		return nil
	}, client.ConsumeOptions{Concurrency: 100, MaxOutstandingEvents: 1000})
	if err != nil {
		b.Error(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}
