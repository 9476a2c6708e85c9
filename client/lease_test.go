package client_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/client"
)

// serveExtending is serve, but answers the extensions with the codes that answer returns, and those
// for which it returns 0 not at all. Settlements are answered with OK.
func (l *line) serveExtending(answer func(id string) ordergatev1.DeliveryResultCode) error {
	go func() {
		for {
			select {
			case <-time.After(10 * time.Second):
				l.s.Send(&ordergatev1.ConsumeResponse{Payload: &ordergatev1.ConsumeResponse_Heartbeat{Heartbeat: &ordergatev1.Heartbeat{}}})
			case <-l.s.Context().Done():
				return
			}
		}
	}()
	for {
		request, err := l.s.Recv()
		if err != nil {
			return err
		}
		for _, e := range request.GetExtensions() {
			if code := answer(e.GetDeliveryId()); code != 0 {
				l.answerExtension(code, e.GetDeliveryId())
			}
		}
		for _, id := range request.GetAcks() {
			l.answer(ok, id)
		}
		for _, n := range request.GetNacks() {
			l.answer(ok, n.GetDeliveryId())
		}
		if request.GetStop() {
			return nil
		}
	}
}

// A handler's context ends when its lease has expired by the local clock, whatever keeps the
// gateway from confirming an extension.
func TestConsumeLeaseExpires(t *testing.T) {
	never := func(string) ordergatev1.DeliveryResultCode { return 0 }
	for _, tt := range []struct {
		name   string
		scene  func(*line) error
		cut    bool             // the connection afterwards
		within [2]time.Duration // after the delivery
	}{
		{"no answers", func(l *line) error { return l.serveExtending(never) }, false, [2]time.Duration{30 * time.Second, 30 * time.Second}},
		{"not stored", func(l *line) error {
			return l.serveExtending(func(string) ordergatev1.DeliveryResultCode { return retryable })
		}, false, [2]time.Duration{30 * time.Second, 30 * time.Second}},
		{"a partition after an extension", func(l *line) error {
			l.sleep(10 * time.Second)
			l.answerExtension(ok, idOf(l.next()[0])) // sent after 9 s
			return errAway
		}, true, [2]time.Duration{39 * time.Second, 39 * time.Second}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDesk(t, func(l *line) error { l.opened(30 * time.Second); l.deliver("cs_1.1#1"); return tt.scene(l) })
				var cause error
				var took, left time.Duration
				w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
					began := time.Now()
					<-ctx.Done()
					cause, took, left = context.Cause(ctx), time.Since(began), time.Until(got.LeaseExpireTime())
					return nil
				}, client.ConsumeOptions{})
				if tt.cut {
					pass(10100 * time.Millisecond)
					d.server.Stop()
				}
				pass(5 * time.Minute)
				w.stop()
				if !errors.Is(cause, client.ErrLeaseLost) || took < tt.within[0] || took > tt.within[1] || left != 0 {
					t.Errorf("after %v, with %v left: %v", took, left, cause)
				}
			})
		})
	}
}

// Confirmed extensions and redeliveries move the expiry, which a handler can read.
func TestConsumeLeaseExpireTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t,
			func(l *line) error {
				l.opened(30 * time.Second)
				l.deliver("cs_1.1#1")
				l.sleep(10 * time.Second) // the extension waits
				l.answerExtension(ok, idOf(l.next()[0]))
				l.sleep(5 * time.Second)
				return errAway
			},
			func(l *line) error {
				l.opened(30 * time.Second)
				l.sleep(20 * time.Second) // 35 s after the first delivery: the lease of 9 + 30 s has not expired
				l.deliver("cs_1.1#2")
				return l.serve()
			})
		var left []time.Duration
		w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
			for _, wait := range []time.Duration{0, 11 * time.Second, 27 * time.Second, 60 * time.Second} {
				time.Sleep(wait)
				left = append(left, time.Until(got.LeaseExpireTime()).Round(time.Second))
			}
			return ctx.Err()
		}, client.ConsumeOptions{})
		pass(3 * time.Minute)
		w.stop()
		if len(left) != 4 || left[0] != 30*time.Second || left[1] != 28*time.Second || left[2] < 20*time.Second || left[3] < 15*time.Second {
			t.Errorf("left %v", left)
		}
		if at := new(client.Delivery).LeaseExpireTime(); !at.IsZero() {
			t.Errorf("a delivery of a test expires at %v", at)
		}
	})
}

// An event whose lease has expired while it waited for a handler is not begun.
func TestConsumeDoesNotBeginExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(l *line) error {
			l.opened(30 * time.Second)
			l.deliver("cs_1.1#1", "cs_2.1#1")
			return l.serveExtending(func(id string) ordergatev1.DeliveryResultCode {
				if id == "cs_1.1#1" {
					return ok
				}
				return 0
			})
		})
		var ran notes
		w := consume(t, d.client(t), func(ctx context.Context, got *client.Delivery) error {
			ran.add("%s", got.ID)
			time.Sleep(40 * time.Second)
			return ctx.Err()
		}, client.ConsumeOptions{Concurrency: 1})
		pass(2 * time.Minute)
		w.stop()
		expect(t, "ran", []string{"cs_1.1#1"}, ran.all())
	})
}
