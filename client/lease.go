package client

import (
	"fmt"
	"sync/atomic"
	"time"
)

// errLeaseExpired is the cause of the end of a handler's context whose lease was not extended in
// time.
var errLeaseExpired = fmt.Errorf("%w: it expired before the gateway confirmed an extension", ErrLeaseLost)

// lease is the end of a lease by the local clock. A delivery counts from its arrival, and a
// confirmed extension from when it was sent, so that the lease of the gateway ends later.
type lease struct {
	expires atomic.Pointer[time.Time] // nil before the first delivery
}

// extend moves the end to a time, never back.
func (l *lease) extend(to time.Time) {
	if to.After(l.end()) {
		l.expires.Store(&to)
	}
}

func (l *lease) end() time.Time {
	if end := l.expires.Load(); end != nil {
		return *end
	}
	return time.Time{}
}

func (l *lease) remaining() time.Duration { return time.Until(l.end()) }
