package client

import (
	"fmt"
	"path"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
)

const (
	maxPanicValue = 200     // in characters
	maxPanicStack = 8 << 10 // in bytes, for the log
)

// panicError is the error of a handler that panicked. Unlike the value of the panic, it never asks
// for a delay or a dead letter.
type panicError struct {
	value  string // the value of the panic, as text
	frames string // the functions on the stack up to the handler, innermost first
	stack  string // the stack as the runtime prints it
}

func (e *panicError) Error() string { return "panic: " + e.value + e.frames }

// newPanicError returns the error for a recovered panic. The caller is the deferred function that
// recovered it.
func newPanicError(value any) *panicError {
	stack := debug.Stack()
	return &panicError{
		value:  cutTo(fmt.Sprint(value), maxPanicValue),
		frames: panicFrames(),
		stack:  string(stack[:min(len(stack), maxPanicStack)]),
	}
}

// panicFrames returns a line for each function between the panic and the call of the handler. The
// lines have no folders, so that many fit into a reason.
func panicFrames() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	var lines strings.Builder
	panicking := false
	for more := true; more; {
		var frame runtime.Frame
		frame, more = frames.Next()
		switch {
		case strings.HasSuffix(frame.Function, "client.(*consumer).call"):
			return lines.String()
		case frame.Function == "runtime.gopanic":
			panicking = true
		case panicking && !strings.HasPrefix(frame.Function, "runtime."):
			fmt.Fprintf(&lines, "\n%s %s:%d", path.Base(frame.Function), filepath.Base(frame.File), frame.Line)
		}
	}
	return lines.String()
}
