package grpcapi

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
	"github.com/ordergate/ordergate/internal/pipeline"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const (
	// inboxWindow is how many places of the inbox are read at a time, and
	// maxWindows how many windows one ListEvents looks at.
	inboxWindow = 100
	maxWindows  = 20
	// maxLooks bounds the events of which one ListEvents finds out what became
	// of them.
	maxLooks = 500
)

// eventService implements ordergate.v1.EventService on the log's inbox and the
// pipeline that empties it.
type eventService struct {
	ordergatev1.UnimplementedEventServiceServer
	log      *eventlog.Log
	pipeline *pipeline.Pipeline
	logger   *slog.Logger
	// draining ends when open streams are to end.
	draining context.Context
}

func (s *eventService) GetEvent(ctx context.Context, request *ordergatev1.GetEventRequest) (*ordergatev1.GetEventResponse, error) {
	if err := checkEventID("event_id", request.GetEventId()); err != nil {
		return nil, err
	}
	stored, err := s.find(ctx, request.GetEventId())
	if err != nil {
		return nil, err
	}
	state, err := s.log.InboxState(ctx)
	if err != nil {
		return nil, err
	}
	event := envelopeOf(stored)
	if err := s.addStatus(ctx, event, stored, state); err != nil {
		return nil, err
	}
	response := &ordergatev1.GetEventResponse{Event: event}
	if utf8.Valid(stored.Body) {
		response.Body = &ordergatev1.GetEventResponse_Raw{Raw: string(stored.Body)}
	} else {
		response.Body = &ordergatev1.GetEventResponse_RawBytes{RawBytes: stored.Body}
	}
	return response, nil
}

// find returns a stored event: from the inbox, or from the parked ones when the
// inbox has forgotten it by age.
func (s *eventService) find(ctx context.Context, id string) (*eventlog.StoredEvent, error) {
	stored, err := s.log.InboxEvent(ctx, id)
	if !errors.Is(err, eventlog.ErrNotFound) {
		return stored, err
	}
	parked, err := s.pipeline.ParkedEvent(ctx, id)
	if errors.Is(err, eventlog.ErrNotFound) {
		return nil, &missingEvent{id}
	}
	if err != nil {
		return nil, err
	}
	return &eventlog.StoredEvent{RawEvent: eventlog.RawEvent{ID: id, Body: parked.Event, SecretLabel: parked.SecretLabel}}, nil
}

// envelopeOf says of a stored event what needs no look at anything else.
func envelopeOf(stored *eventlog.StoredEvent) *ordergatev1.StripeEvent {
	event := &ordergatev1.StripeEvent{Id: stored.ID, Sequence: int64(stored.Sequence), ReceivedBy: stored.SecretLabel}
	if !stored.StoreTime.IsZero() {
		event.StoreTime = timestamppb.New(stored.StoreTime)
	}
	envelope, _ := stripehook.ReadEnvelope(stored.Body) // empty when it cannot be read
	event.Type, event.ApiVersion, event.Account, event.Livemode = envelope.Type, envelope.APIVersion, envelope.Account, &envelope.Livemode
	return event
}

// addStatus says what became of an event.
func (s *eventService) addStatus(ctx context.Context, event *ordergatev1.StripeEvent, stored *eventlog.StoredEvent, state eventlog.InboxState) error {
	status, err := s.pipeline.StatusOf(ctx, stored, state.Converted)
	if err != nil {
		return err
	}
	setStatus(event, status)
	return nil
}

func setStatus(event *ordergatev1.StripeEvent, status pipeline.Status) {
	event.Outcome = outcomeOf(status.Outcome)
	event.OrderId = status.OrderID
	event.Detail = strings.ToValidUTF8(status.Detail, "\uFFFD")
}

func outcomeOf(outcome pipeline.Outcome) ordergatev1.EventOutcome {
	return ordergatev1.EventOutcome(ordergatev1.EventOutcome_value["EVENT_OUTCOME_"+string(outcome)])
}

func isParked(event *ordergatev1.StripeEvent) bool {
	return slices.Contains(parkedOutcomes, event.GetOutcome())
}

var parkedOutcomes = []ordergatev1.EventOutcome{ordergatev1.EventOutcome_EVENT_OUTCOME_UNMATCHED, ordergatev1.EventOutcome_EVENT_OUTCOME_FAILED}

func (s *eventService) ListEvents(ctx context.Context, request *ordergatev1.ListEventsRequest) (*ordergatev1.ListEventsResponse, error) {
	pageSize, err := checkPageSize(request.GetPageSize())
	if err != nil {
		return nil, err
	}
	if err := checkStoredEventFilter(request.GetFilter()); err != nil {
		return nil, err
	}
	state, err := s.log.InboxState(ctx)
	if err != nil {
		return nil, err
	}
	l := &eventLister{eventService: s, filter: request.GetFilter(), state: state, page: page[*ordergatev1.StripeEvent]{size: pageSize}}
	list, kind := l.inbox, inboxPageToken
	if asksForParked(request.GetFilter()) {
		list, kind = l.parked, parkedPageToken
	}
	var from *uint64
	if token := request.GetPageToken(); token != "" {
		from = new(uint64)
		if err := decodePageToken(token, kind, state.LogID, from); err != nil {
			return nil, err
		}
	}
	next, more, err := list(ctx, from)
	if err != nil {
		return nil, err
	}
	response := &ordergatev1.ListEventsResponse{Events: l.page.items}
	if more {
		response.NextPageToken = encodeToken(kind, state.LogID, next)
	}
	return response, nil
}

// asksForParked reports whether only parked events can match: there are few of
// them, and they need not be looked for in the whole inbox.
func asksForParked(filter *ordergatev1.EventFilter) bool {
	return filter.GetParkedOnly() || len(filter.GetOutcomes()) > 0 && !slices.ContainsFunc(filter.GetOutcomes(), func(o ordergatev1.EventOutcome) bool {
		return !slices.Contains(parkedOutcomes, o)
	})
}

// eventLister makes one page of events.
type eventLister struct {
	*eventService
	filter *ordergatev1.EventFilter
	state  eventlog.InboxState
	page   page[*ordergatev1.StripeEvent]
	looks  int
}

// full reports whether the page holds enough, or took enough work.
func (l *eventLister) full() bool { return l.page.full() || l.looks >= maxLooks }

// inbox lists stored events, going down from just below a sequence, and returns
// where the next page begins.
func (l *eventLister) inbox(ctx context.Context, from *uint64) (below uint64, more bool, err error) {
	floor, below, err := l.bounds(ctx)
	if err != nil {
		return 0, false, err
	}
	if from != nil {
		below = min(below, *from)
	}
	for windows := 0; below > floor && !l.full() && windows < maxWindows; windows++ {
		start := max(floor, below-min(below, inboxWindow))
		window, err := l.readWindow(ctx, start, below)
		if err != nil {
			return 0, false, err
		}
		below = start
		for i, stored := range slices.Backward(window) {
			if err := l.add(ctx, stored); err != nil {
				return 0, false, err
			}
			if l.full() && i > 0 {
				below = stored.Sequence
				break
			}
		}
	}
	return below, below > floor, nil
}

// bounds returns the sequences that the filter's times stand for: from floor to
// just below below.
func (l *eventLister) bounds(ctx context.Context) (floor, below uint64, err error) {
	floor, below = l.state.First, l.state.Last+1
	if start := l.filter.GetStartTime(); start != nil {
		before, err := l.log.InboxSequenceBefore(ctx, start.AsTime())
		if err != nil {
			return 0, 0, err
		}
		floor = max(floor, before+1)
	}
	if end := l.filter.GetEndTime(); end != nil {
		before, err := l.log.InboxSequenceBefore(ctx, end.AsTime())
		if err != nil {
			return 0, 0, err
		}
		below = min(below, before+1)
	}
	return floor, below, nil
}

// readWindow returns the events from a sequence to just below another one.
func (l *eventLister) readWindow(ctx context.Context, from, below uint64) (window []*eventlog.StoredEvent, err error) {
	for after := from - 1; after+1 < below; {
		batch, err := l.log.ReadInbox(ctx, after, int(below-1-after))
		if err != nil {
			return nil, err
		}
		if len(batch) == 0 {
			break
		}
		for _, stored := range batch {
			if after = stored.Sequence; after < below {
				window = append(window, stored)
			}
		}
	}
	return window, nil
}

// parked lists parked events, going back from the one parked last, and returns
// how many are left. More of them do not move those that are left.
func (l *eventLister) parked(ctx context.Context, from *uint64) (left uint64, more bool, err error) {
	ids, err := l.log.Bucket(eventlog.ParkedEvents).Keys(ctx)
	if err != nil {
		return 0, false, err
	}
	left = uint64(len(ids))
	if from != nil {
		left = min(left, *from)
	}
	for ; left > 0 && !l.full(); left-- {
		stored, err := l.find(ctx, ids[left-1])
		var missing *missingEvent
		if errors.As(err, &missing) {
			continue // it was dealt with meanwhile
		}
		if err != nil {
			return 0, false, err
		}
		if err := l.add(ctx, stored); err != nil {
			return 0, false, err
		}
	}
	return left, left > 0, nil
}

// add adds an event to the page if it matches.
func (l *eventLister) add(ctx context.Context, stored *eventlog.StoredEvent) error {
	event := envelopeOf(stored)
	if !anyOrIn(l.filter.GetTypes(), event.GetType()) || !storedWithin(l.filter, event) {
		return nil
	}
	l.looks++
	if err := l.addStatus(ctx, event, stored, l.state); err != nil {
		return err
	}
	if anyOrIn(l.filter.GetOutcomes(), event.GetOutcome()) && (isParked(event) || !l.filter.GetParkedOnly()) {
		l.page.add(event)
	}
	return nil
}

// storedWithin reports whether an event was stored between the filter's times.
// One that the inbox has forgotten is older than any time.
func storedWithin(filter *ordergatev1.EventFilter, event *ordergatev1.StripeEvent) bool {
	start, end := filter.GetStartTime(), filter.GetEndTime()
	if event.GetStoreTime() == nil {
		return start == nil
	}
	at := event.GetStoreTime().AsTime()
	return (start == nil || !at.Before(start.AsTime())) && (end == nil || at.Before(end.AsTime()))
}
