package grpcapi

import (
	"context"
	"errors"
	"iter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/pipeline"
)

const (
	// progressInterval is how long a stream that works may be silent, as far as
	// its single steps let it.
	progressInterval = 2 * time.Second
	// reprocessBatch is how many events are read at a time.
	reprocessBatch = 100
)

// storedEvents are events, or why there are no more.
type storedEvents = iter.Seq2[*eventlog.StoredEvent, error]

func (s *eventService) ReprocessEvents(request *ordergatev1.ReprocessEventsRequest, stream grpc.ServerStreamingServer[ordergatev1.ReprocessEventsResponse]) error {
	if err := checkSelection(request); err != nil {
		return err
	}
	ctx, cancel := untilDraining(stream.Context(), s.draining)
	defer cancel()
	events, err := s.selected(ctx, request)
	if err != nil {
		return causeOf(ctx, err)
	}
	progress := &ordergatev1.ReprocessEventsResponse{}
	lastSent := time.Now()
	for stored, err := range events {
		if err != nil {
			return causeOf(ctx, err)
		}
		event, err := s.reprocess(ctx, stored)
		if err != nil {
			return causeOf(ctx, err)
		}
		if progress.Event = nil; count(progress, event) {
			progress.Event = event
		}
		if progress.Event == nil && time.Since(lastSent) < progressInterval {
			continue
		}
		if err := stream.Send(progress); err != nil {
			return err
		}
		lastSent = time.Now()
	}
	progress.Event, progress.Done = nil, true
	return stream.Send(progress)
}

// count adds an event to the numbers, and reports whether there is something to
// tell about it.
func count(progress *ordergatev1.ReprocessEventsResponse, event *ordergatev1.ReprocessedEvent) (telling bool) {
	progress.Examined++
	if event.GetOrder() != nil {
		progress.Changed++
	}
	if isParked(event.GetEvent()) {
		progress.StillParked++
	}
	if event.GetProblem() != "" {
		progress.Failed++
	}
	return event.GetOrder() != nil || isParked(event.GetEvent()) || event.GetProblem() != ""
}

// reprocess converts one event again. An error ends the whole; what is wrong
// with this event only is in the result.
func (s *eventService) reprocess(ctx context.Context, stored *eventlog.StoredEvent) (*ordergatev1.ReprocessedEvent, error) {
	event := envelopeOf(stored)
	status, changed, err := s.pipeline.Reprocess(ctx, stored)
	switch {
	case err == nil:
		setStatus(event, status)
		return &ordergatev1.ReprocessedEvent{Event: event, Order: changed}, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, eventlog.ErrUnavailable), errors.Is(err, eventlog.ErrFull):
		return nil, err
	}
	s.logger.Error("an event could not be reprocessed", "event", stored.ID, "error", err)
	state, stateErr := s.log.InboxState(ctx)
	if stateErr != nil {
		return nil, stateErr
	}
	if err := s.addStatus(ctx, event, stored, state); err != nil {
		return nil, err
	}
	return &ordergatev1.ReprocessedEvent{Event: event, Problem: err.Error()}, nil
}

// selected returns the events that a request asks for.
func (s *eventService) selected(ctx context.Context, request *ordergatev1.ReprocessEventsRequest) (storedEvents, error) {
	switch {
	case request.GetParkedOnly():
		ids, err := s.log.Bucket(eventlog.ParkedEvents).Keys(ctx)
		return s.parkedEvents(ctx, ids), err
	case request.GetStartTime() != nil:
		return s.storedBetween(ctx, request.GetStartTime(), request.GetEndTime())
	}
	return s.namedEvents(ctx, request.GetEventIds())
}

// namedEvents are the events of some ids, all of which must exist.
func (s *eventService) namedEvents(ctx context.Context, ids []string) (storedEvents, error) {
	for _, id := range ids {
		if _, err := s.find(ctx, id); err != nil {
			return nil, err
		}
	}
	return s.parkedEvents(ctx, ids), nil
}

// parkedEvents are the events of some ids, but for those that are gone.
func (s *eventService) parkedEvents(ctx context.Context, ids []string) storedEvents {
	return func(yield func(*eventlog.StoredEvent, error) bool) {
		for _, id := range ids {
			stored, err := s.find(ctx, id)
			var missing *missingEvent
			if errors.As(err, &missing) {
				continue // it was dealt with meanwhile
			}
			if !yield(stored, err) {
				return
			}
		}
	}
}

// storedBetween are the events stored from one time until before another one, or
// until now.
func (s *eventService) storedBetween(ctx context.Context, start, end *timestamppb.Timestamp) (storedEvents, error) {
	after, err := s.log.InboxSequenceBefore(ctx, start.AsTime())
	if err != nil {
		return nil, err
	}
	if end == nil {
		end = timestamppb.Now()
	}
	last, err := s.log.InboxSequenceBefore(ctx, end.AsTime())
	if err != nil {
		return nil, err
	}
	return func(yield func(*eventlog.StoredEvent, error) bool) {
		for after < last {
			batch, err := s.log.ReadInbox(ctx, after, reprocessBatch)
			if err != nil {
				yield(nil, err)
				return
			}
			if len(batch) == 0 {
				return
			}
			for _, stored := range batch {
				if after = stored.Sequence; after > last || !yield(stored, nil) {
					return
				}
			}
		}
	}, nil
}

func (s *eventService) Backfill(request *ordergatev1.BackfillRequest, stream grpc.ServerStreamingServer[ordergatev1.BackfillResponse]) error {
	if err := checkSince(request); err != nil {
		return err
	}
	ctx, cancel := untilDraining(stream.Context(), s.draining)
	defer cancel()
	report, err := s.pipeline.Backfill(ctx, request.GetSince().AsTime(), func(report pipeline.BackfillReport) {
		if err := stream.Send(backfillResponse(report)); err != nil {
			cancel() // nobody listens any more
		}
	})
	if err != nil {
		return causeOf(ctx, err)
	}
	last := backfillResponse(report)
	last.Done = true
	return stream.Send(last)
}

func backfillResponse(report pipeline.BackfillReport) *ordergatev1.BackfillResponse {
	return &ordergatev1.BackfillResponse{
		Since:     timestamppb.New(report.Since),
		Until:     timestamppb.New(report.Until),
		Reached:   timestamppb.New(report.Reached),
		Listed:    int64(report.Listed),
		Missing:   int64(report.Missing),
		Recovered: int64(report.Recovered),
	}
}
