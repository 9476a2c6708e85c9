package client_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/ordergate/ordergate/client"
)

// printLabel panics as a handler does by mistake.
func printLabel(value any) {
	if value == "nil pointer" {
		var order *struct{ id string }
		_ = order.id
	}
	panic(value)
}

// The panic of a handler is the failure of its event alone. The reason has the stack.
func TestConsumeRecoversPanics(t *testing.T) {
	for _, tt := range []struct {
		value any
		want  string
	}{
		{"no paper", "panic: no paper\nclient_test.printLabel panic_test.go:"},
		{fmt.Errorf("no %s", "paper"), "panic: no paper\nclient_test.printLabel panic_test.go:"},
		{client.Reject(fmt.Errorf("no paper")), "panic: no paper\nclient_test.printLabel"}, // a failure all the same
		{"nil pointer", "panic: runtime error: invalid memory address or nil pointer dereference\nclient_test.printLabel"},
		{nil, "panic: panic called with nil argument\nclient_test.printLabel"},
		{strings.Repeat("ä", 10_000) + "\xff", "panic: " + strings.Repeat("ä", 200) + "\nclient_test.printLabel"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var said []string
			d := newDesk(t, func(l *line) error {
				l.opened(30 * time.Second)
				l.deliver("cs_1.1#1", "cs_2.1#1")
				return l.serve(&said)
			})
			var logged bytes.Buffer
			w := consume(t, d.client(t), func(_ context.Context, got *client.Delivery) error {
				if got.Event.GetId() == "cs_1.1" {
					printLabel(tt.value)
				}
				return nil
			}, client.ConsumeOptions{Concurrency: 1, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
			pass(time.Second)
			w.stop()
			if len(said) != 3 || !strings.HasPrefix(said[0], "retry cs_1.1#1 - "+tt.want) {
				t.Fatalf("want %q, said %q", tt.want, said)
			}
			expect(t, "rest", []string{"ack cs_2.1#1", "stop"}, said[1:])
			if n := utf8.RuneCountInString(strings.TrimPrefix(said[0], "retry cs_1.1#1 - ")); n > 500 {
				t.Errorf("the reason has %d characters", n)
			}
			if strings.Contains(said[0], "gopanic") || strings.Contains(said[0], "(*consumer)") {
				t.Errorf("the reason has functions of others: %s", said[0])
			}
			if text := logged.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, `level=ERROR msg="handler panicked" subscription=shipping order=cs_1 event=cs_1.1 attempt=1`) ||
				!strings.Contains(text, "goroutine ") || !strings.Contains(text, "printLabel") || len(text) > 12<<10 {
				t.Errorf("the log has %s", text)
			}
		})
	}
}

// With CrashOnPanic, a panic ends the program.
func TestConsumeCrashesOnPanic(t *testing.T) {
	if os.Getenv("ORDERGATE_TEST_CRASH") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestConsumeCrashesOnPanic$")
		cmd.Env = append(os.Environ(), "ORDERGATE_TEST_CRASH=true")
		output, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(output), "panic: no paper") {
			t.Errorf("%v: %s", err, output)
		}
		return
	}
	synctest.Test(t, func(t *testing.T) {
		d := newDesk(t, func(l *line) error { l.opened(30 * time.Second); l.deliver("cs_1.1#1"); return l.serve() })
		w := consume(t, d.client(t), func(context.Context, *client.Delivery) error { panic("no paper") }, client.ConsumeOptions{CrashOnPanic: true})
		pass(time.Second)
		w.stop()
	})
}
