package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/logtest"
)

// openTerminal returns the two ends of a terminal: the person's and the
// program's.
func openTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here:", err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// Who sits at a terminal is asked, and told what would be lost.
func TestConfirm(t *testing.T) {
	const shipping = "shipping is deleted with its place and its dead letters. Backlog: 12, pending orders: 3, dead letters: 2, open streams: 3.\nGo on? Type yes: "
	for _, tt := range []struct {
		args, answer, question string
		goes                   bool
	}{
		{"subscriptions delete shipping", "yes\n", shipping, true},
		{"subscriptions delete shipping", "y\n", shipping, false},
		{"subscriptions delete shipping", "\n", shipping, false},
		{"subscriptions delete shipping", "\x04", shipping, false}, // Ctrl-D
		{"dead-letters discard shipping --all", "yes\n", "2 dead letters of shipping: done with, and not delivered to it again.\nGo on? Type yes: ", true},
		{"dead-letters discard shipping cs_1.1", "no\n", "1 dead letter of shipping: done with, and not delivered to it again.\nGo on? Type yes: ", false},
	} {
		var asked []string
		g := startScripted(t, &scriptedGateway{answer: func(request proto.Message) (proto.Message, error) {
			if _, ok := request.(*ordergatev1.GetSubscriptionRequest); ok {
				return &ordergatev1.GetSubscriptionResponse{Subscription: shippingSubscription()}, nil
			}
			asked = append(asked, fmt.Sprintf("%T", request))
			return &ordergatev1.DeleteSubscriptionResponse{}, nil
		}})
		person, program := openTerminal(t)
		if _, err := io.WriteString(person, tt.answer); err != nil {
			t.Fatal(err)
		}
		var stdout, stderr logtest.Buffer
		err := g.runWith(t, t.Context(), program, &stdout, &stderr, strings.Fields(tt.args)...)
		if stderr.String() != tt.question {
			t.Errorf("%s: asks %q", tt.args, stderr.String())
		}
		if tt.goes && (err != nil || len(asked) != 1) || !tt.goes && (err == nil || err.Error() != "nothing was done" || len(asked) != 0) {
			t.Errorf("%s, %q: %v, asked for %v", tt.args, tt.answer, err, asked)
		}
	}
}

// Ctrl-C at the question ends the command; a file is not asked.
func TestConfirmStopped(t *testing.T) {
	g := startScripted(t, &scriptedGateway{answer: func(proto.Message) (proto.Message, error) {
		return &ordergatev1.GetSubscriptionResponse{Subscription: shippingSubscription()}, nil
	}})
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var stdout logtest.Buffer
	if err := g.runWith(t, t.Context(), null, &stdout, io.Discard, "subscriptions", "delete", "shipping"); err == nil || !strings.Contains(err.Error(), "there is no terminal") {
		t.Errorf("without a terminal: %v", err)
	}
	_, program := openTerminal(t)
	ctx, stop := context.WithCancel(t.Context())
	stderr := stopAt{stop: stop, text: "Type yes"}
	err = g.runWith(t, ctx, program, &stdout, &stderr, "subscriptions", "delete", "shipping")
	if !errors.Is(err, errStopped) || stdout.String() != "" {
		t.Errorf("%v, %s", err, stdout.String())
	}
}
