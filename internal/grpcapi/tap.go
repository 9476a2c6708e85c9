package grpcapi

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/tap"

	"github.com/ordergate/ordergate/internal/auth"
)

const (
	// maxHeaderBytes bounds the metadata of a call, which is kept for as long as the call is open.
	maxHeaderBytes = 16 << 10
	// maxAnonymous bounds the open calls of all callers without a credential together: they may
	// ask for the gateway's health only.
	maxAnonymous = 64
)

// anonymousCalls counts the open calls of callers without a credential.
type anonymousCalls chan struct{}

// tap is called with the headers of each call, before any of its messages is read: a caller without
// a credential is refused here, or gets one of few places.
func (g guard) tap(places anonymousCalls) tap.ServerInHandle {
	return func(ctx context.Context, info *tap.Info) (context.Context, error) {
		_, err := g.access.Authenticate(g.shownBy(ctx))
		if err == nil {
			return ctx, nil
		}
		if !auth.ForAll(info.FullMethodName) {
			return nil, statusOf(err).Err()
		}
		select {
		case places <- struct{}{}:
			context.AfterFunc(ctx, func() { <-places })
			return ctx, nil
		default:
			return nil, newStatus(codes.ResourceExhausted, fmt.Sprintf("too many open calls without a credential: at most %d; try again, or send a credential", maxAnonymous),
				reasonAnonymous, nil, retryInfo()).Err()
		}
	}
}
