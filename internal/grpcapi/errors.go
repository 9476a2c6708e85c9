package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/ordergate/ordergate/internal/auth"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/peers"
	"github.com/ordergate/ordergate/internal/pipeline"
	"github.com/ordergate/ordergate/internal/stripeapi"
	"github.com/ordergate/ordergate/internal/subscription"
)

// errorDomain and the reasons are part of the API (google.rpc.ErrorInfo).
const (
	errorDomain = "ordergate"

	reasonUnauthenticated   = "UNAUTHENTICATED"
	reasonDenied            = "PERMISSION_DENIED"
	reasonInvalidRequest    = "INVALID_REQUEST"
	reasonOrderNotFound     = "ORDER_NOT_FOUND"
	reasonOrderConflict     = "ORDER_CONFLICT"
	reasonOrderNotHeld      = "ORDER_NOT_HELD"
	reasonOrderNotCanceled  = "ORDER_NOT_CANCELED"
	reasonOrderErased       = "ORDER_ERASED"
	reasonEventNotFound     = "EVENT_NOT_FOUND"
	reasonNotParked         = "EVENT_NOT_PARKED"
	reasonAnonymous         = "TOO_MANY_ANONYMOUS_CALLS"
	reasonPageToken         = "PAGE_TOKEN_INVALID"
	reasonResumeToken       = "RESUME_TOKEN_INVALID"
	reasonResumeExpired     = "RESUME_TOKEN_EXPIRED"
	reasonKeyMissing        = "API_KEY_MISSING"
	reasonKeyRefused        = "API_KEY_REFUSED"
	reasonBackfillRunning   = "BACKFILL_RUNNING"
	reasonStripeUnavailable = "STRIPE_UNAVAILABLE"
	reasonNoSubscription    = "SUBSCRIPTION_NOT_FOUND"
	reasonSubscriptionIs    = "SUBSCRIPTION_EXISTS"
	reasonNoDeadLetter      = "DEAD_LETTER_NOT_FOUND"
	reasonSubscriptions     = "TOO_MANY_SUBSCRIPTIONS"
	reasonWorkers           = "TOO_MANY_WORKERS"
	reasonLogUnavailable    = "LOG_UNAVAILABLE"
	reasonLogFull           = "LOG_FULL"
	reasonShuttingDown      = "SHUTTING_DOWN"
	reasonMoved             = "SUBSCRIPTION_MOVED"
	reasonInternal          = "INTERNAL"
)

// retryDelay is what a client is told to wait when the gateway is unavailable.
const retryDelay = 2 * time.Second

var errShuttingDown = errors.New("the gateway is shutting down: connect again; a watcher goes on with its last resume token")

// errRenew ends a stream whose connection is to be made anew.
var errRenew = errors.New("the connection has become old: open a new stream")

// missingEvent is an event that is not kept.
type missingEvent struct{ id string }

func (e *missingEvent) Error() string {
	return "there is no event " + e.id + ": check the id (evt_…); events are kept for as long as --inbox-max-age says, parked ones until they are converted"
}

// invalidField is a request with a field that cannot be accepted.
type invalidField struct{ field, description string }

func (e *invalidField) Error() string { return e.field + ": " + e.description }

func invalid(field, format string, args ...any) error {
	return &invalidField{field, fmt.Sprintf(format, args...)}
}

// invalidToken is a page or resume token that this log did not give out.
type invalidToken struct{ reason, field, description string }

func (e *invalidToken) Error() string { return e.field + ": " + e.description }

// expiredToken is a start before the oldest event that is kept.
type expiredToken struct{ earliest string }

func (e *expiredToken) Error() string {
	return "the events after this resume token are no longer kept: start from the earliest_resume_token of this error, or from_beginning, and reconcile with ListOrders"
}

// statusOf is the one place where errors become statuses. What is not known
// here is internal: whole in the log, not outside.
func statusOf(err error) *status.Status {
	var (
		token   *invalidToken
		expired *expiredToken
		missing *missingEvent
		unknown *auth.UnauthenticatedError
		there   *subscription.ElsewhereError
		denied  *auth.DeniedError
	)
	switch {
	case errors.As(err, &unknown):
		return newStatus(codes.Unauthenticated, unknown.Error(), reasonUnauthenticated, nil)
	case errors.As(err, &denied):
		return newStatus(codes.PermissionDenied, denied.Error(), reasonDenied, map[string]string{"principal": denied.Principal, "role": denied.Role.String(), "needed_role": denied.Needed.String()})
	case len(invalidFields(err)) > 0:
		return newStatus(codes.InvalidArgument, err.Error(), reasonInvalidRequest, nil, violations(invalidFields(err)))
	case errors.As(err, &token):
		return newStatus(codes.InvalidArgument, token.Error(), token.reason, nil, violations([]*invalidField{{token.field, token.description}}))
	case errors.As(err, &expired):
		return newStatus(codes.OutOfRange, expired.Error(), reasonResumeExpired, map[string]string{"earliest_resume_token": expired.earliest})
	case errors.As(err, &missing):
		return newStatus(codes.NotFound, missing.Error(), reasonEventNotFound, nil)
	case errors.Is(err, subscription.ErrNotFound):
		return newStatus(codes.NotFound, err.Error()+": create it, or see ordergate subscriptions list for those there are", reasonNoSubscription, nil)
	case errors.Is(err, subscription.ErrExists):
		return newStatus(codes.AlreadyExists, err.Error()+": use it, or choose another name", reasonSubscriptionIs, nil)
	case errors.Is(err, subscription.ErrNoDeadLetter):
		return newStatus(codes.NotFound, err.Error()+": nothing was done; see ordergate dead-letters list", reasonNoDeadLetter, nil)
	case errors.Is(err, subscription.ErrTooMany):
		return newStatus(codes.ResourceExhausted, err.Error()+": delete those that nobody uses", reasonSubscriptions, nil)
	case errors.Is(err, subscription.ErrBusy):
		return newStatus(codes.ResourceExhausted, err.Error()+": use fewer streams, each with a larger window", reasonWorkers, nil)
	case errors.Is(err, eventlog.ErrNotFound):
		return newStatus(codes.NotFound, "there is no such order: check the id (cs_…, pi_… or in_…); an order exists once its first event was converted", reasonOrderNotFound, nil)
	case errors.Is(err, pipeline.ErrNotHeld):
		return newStatus(codes.FailedPrecondition, "nothing would change: nothing holds the order, or not the given cause; see its hold_reasons", reasonOrderNotHeld, nil)
	case errors.Is(err, pipeline.ErrNotCanceled):
		return newStatus(codes.FailedPrecondition, "nothing would change: the order is not canceled; see its directive", reasonOrderNotCanceled, nil)
	case errors.Is(err, pipeline.ErrErased):
		return newStatus(codes.FailedPrecondition, "nothing would change: the order was erased, which cannot be undone", reasonOrderErased, nil)
	case errors.Is(err, errShuttingDown), errors.Is(err, subscription.ErrClosed):
		return newStatus(codes.Unavailable, errShuttingDown.Error(), reasonShuttingDown, nil, retryInfo())
	case errors.Is(err, errRenew):
		return newStatus(codes.Unavailable, errRenew.Error(), reasonShuttingDown, nil)
	case errors.Is(err, subscription.ErrMoved), errors.Is(err, peers.ErrAway), errors.As(err, &there):
		return newStatus(codes.Unavailable, "the gateway that had the subscription is gone, or another has taken it over: try again", reasonMoved, nil, retryInfo())
	case errors.Is(err, context.Canceled):
		return status.New(codes.Canceled, "the caller cancelled")
	case errors.Is(err, pipeline.ErrNoKey):
		return keyProblem(reasonKeyMissing, "the gateway has no Stripe API key, which listing events needs: start it with STRIPE_API_KEY set to a restricted key (rk_…) with Read on Events")
	case errors.Is(err, stripeapi.ErrPermission), errors.Is(err, stripeapi.ErrUnauthorized):
		return keyProblem(reasonKeyRefused, "Stripe refuses the gateway's API key: the gateway's own log says which permission is missing, or that the key is not accepted")
	case errors.Is(err, pipeline.ErrNotParked):
		return newStatus(codes.FailedPrecondition, err.Error()+": only UNMATCHED and FAILED events can be dismissed; no event was", reasonNotParked, nil)
	case errors.Is(err, pipeline.ErrBusy):
		return newStatus(codes.Aborted, "another backfill is running, one of an operator's or the gateway's own after it was down: try again when it has ended", reasonBackfillRunning, nil, retryInfo())
	case errors.Is(err, stripeapi.ErrUnavailable):
		return newStatus(codes.Unavailable, "Stripe's API does not answer: try again later; what was done until now stays", reasonStripeUnavailable, nil, retryInfo())
	case errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, eventlog.ErrUnavailable):
		return status.New(codes.DeadlineExceeded, "the caller's deadline passed")
	case errors.Is(err, eventlog.ErrUnavailable):
		return newStatus(codes.Unavailable, "the log is unavailable: try again; the gateway's own log says why", reasonLogUnavailable, nil, retryInfo())
	case errors.Is(err, eventlog.ErrFull):
		return newStatus(codes.ResourceExhausted, "the log is full: give it more room", reasonLogFull, nil)
	case errors.Is(err, eventlog.ErrConflict):
		return newStatus(codes.Aborted, "the order kept changing meanwhile: look at it, and try again", reasonOrderConflict, nil, retryInfo())
	}
	// A status that grpc itself made, such as for a send on a broken stream.
	if s, ok := status.FromError(err); ok {
		return s
	}
	return newStatus(codes.Internal, "internal error: the gateway's own log has the details", reasonInternal, nil)
}

func newStatus(code codes.Code, message, reason string, metadata map[string]string, more ...protoadapt.MessageV1) *status.Status {
	s := status.New(code, message)
	details := append([]protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: reason, Domain: errorDomain, Metadata: metadata}}, more...)
	detailed, err := s.WithDetails(details...)
	if err != nil { // only for OK or a message that cannot be marshalled
		return s
	}
	return detailed
}

// keyProblem is a failed precondition that a mend of the Stripe API key ends.
func keyProblem(reason, message string) *status.Status {
	return newStatus(codes.FailedPrecondition, message, reason, nil, &errdetails.PreconditionFailure{
		Violations: []*errdetails.PreconditionFailure_Violation{{Type: reason, Subject: "STRIPE_API_KEY", Description: message}},
	})
}

// invalidFields returns all the fields that an error says something of.
func invalidFields(err error) []*invalidField {
	switch e := err.(type) {
	case *invalidField:
		return []*invalidField{e}
	case interface{ Unwrap() []error }:
		var fields []*invalidField
		for _, one := range e.Unwrap() {
			fields = append(fields, invalidFields(one)...)
		}
		return fields
	case interface{ Unwrap() error }:
		return invalidFields(e.Unwrap())
	}
	return nil
}

func violations(fields []*invalidField) *errdetails.BadRequest {
	request := &errdetails.BadRequest{}
	for _, f := range fields {
		request.FieldViolations = append(request.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: f.field, Description: f.description})
	}
	return request
}

func retryInfo() *errdetails.RetryInfo {
	return &errdetails.RetryInfo{RetryDelay: durationpb.New(retryDelay)}
}

func reasonOf(s *status.Status) string {
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}
