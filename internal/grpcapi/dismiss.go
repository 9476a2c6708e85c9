package grpcapi

import (
	"context"
	"errors"
	"fmt"
	"slices"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/pipeline"
)

func (s *eventService) DismissEvents(ctx context.Context, request *ordergatev1.DismissEventsRequest) (*ordergatev1.DismissEventsResponse, error) {
	if err := checkDismissal(request); err != nil {
		return nil, err
	}
	ids := slices.Compact(slices.Sorted(slices.Values(request.GetEventIds())))
	// A parked event is kept in whole, and after that only as long as the inbox keeps it.
	stored := map[string]*eventlog.StoredEvent{}
	for _, id := range ids { // all or none
		event, err := s.find(ctx, id)
		if err != nil {
			return nil, err
		}
		stored[id] = event
		if _, err := s.pipeline.ParkedEvent(ctx, id); errors.Is(err, eventlog.ErrNotFound) {
			return nil, fmt.Errorf("event %s: %w", id, pipeline.ErrNotParked)
		} else if err != nil {
			return nil, err
		}
	}
	for _, id := range ids {
		if err := s.pipeline.Dismiss(ctx, id, request.GetReason()); err != nil {
			return nil, err
		}
	}
	state, err := s.log.InboxState(ctx)
	if err != nil {
		return nil, err
	}
	response := &ordergatev1.DismissEventsResponse{}
	for _, id := range request.GetEventIds() {
		event := envelopeOf(stored[id])
		if err := s.addStatus(ctx, event, stored[id], state); err != nil {
			return nil, err
		}
		response.Events = append(response.Events, event)
	}
	return response, nil
}
