package grpcapi

import (
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/stripehook"
)

const (
	maxFilterIDs       = 100
	maxFilterCountries = 300
	maxFilterMetadata  = 16
)

var countryShape = regexp.MustCompile(`^[A-Z]{2}$`)

func matchesOrder(filter *ordergatev1.OrderFilter, order *ordergatev1.Order) bool {
	return (filter.GetLivemode() == order.GetLivemode() || filter == nil || filter.Livemode == nil) &&
		anyOrIn(filter.GetStatuses(), order.GetStatus()) &&
		anyOrIn(filter.GetDirectives(), order.GetDirective())
}

// anyOrIn reports whether value is selected: an empty selection selects all.
func anyOrIn[T comparable](selection []T, value T) bool {
	return len(selection) == 0 || slices.Contains(selection, value)
}

func checkEventFilter(filter *ordergatev1.OrderEventFilter) error {
	for _, kind := range filter.GetKinds() {
		if _, known := ordergatev1.OrderEventKind_name[int32(kind)]; !known || kind == ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UNSPECIFIED {
			return invalid("filter.kinds", "%v is not a kind of order event", kind)
		}
	}
	for _, directive := range filter.GetDirectives() {
		if _, known := ordergatev1.Directive_name[int32(directive)]; !known || directive == ordergatev1.Directive_DIRECTIVE_UNSPECIFIED {
			return invalid("filter.directives", "%v is not a directive", directive)
		}
	}
	if n := len(filter.GetOrderIds()); n > maxFilterIDs {
		return invalid("filter.order_ids", "has %d ids, at most %d: watch everything and select yourself", n, maxFilterIDs)
	}
	for _, id := range filter.GetOrderIds() {
		if err := checkOrderID("filter.order_ids", id); err != nil {
			return err
		}
	}
	if n := len(filter.GetAccounts()); n > maxFilterIDs {
		return invalid("filter.accounts", "has %d accounts, at most %d: watch everything and select yourself", n, maxFilterIDs)
	}
	if n := len(filter.GetShipToCountries()); n > maxFilterCountries {
		return invalid("filter.ship_to_countries", "has %d countries, at most %d", n, maxFilterCountries)
	}
	for _, country := range filter.GetShipToCountries() {
		if !countryShape.MatchString(country) {
			return invalid("filter.ship_to_countries", "%.10q is not a country code: two capital letters, such as DE", country)
		}
	}
	if n := len(filter.GetMetadata()); n > maxFilterMetadata {
		return invalid("filter.metadata", "has %d keys, at most %d", n, maxFilterMetadata)
	}
	return nil
}

// shippingKinds are the kinds of events after which an order can be SHIP.
var shippingKinds = []ordergatev1.OrderEventKind{
	ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID,
	ordergatev1.OrderEventKind_ORDER_EVENT_KIND_REFUNDED,
	ordergatev1.OrderEventKind_ORDER_EVENT_KIND_RELEASED,
	ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UPDATED,
}

// stoppingKinds are the kinds of events that can hold or cancel an order that was SHIP.
var stoppingKinds = []ordergatev1.OrderEventKind{
	ordergatev1.OrderEventKind_ORDER_EVENT_KIND_CANCELED,
	ordergatev1.OrderEventKind_ORDER_EVENT_KIND_REFUNDED,
	ordergatev1.OrderEventKind_ORDER_EVENT_KIND_HELD,
	ordergatev1.OrderEventKind_ORDER_EVENT_KIND_RELEASED,
	ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UPDATED,
	ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED,
}

// filterWarnings returns a sentence for each condition of a filter that can hide the HOLD
// or CANCEL of an order that was delivered as SHIP.
func filterWarnings(filter *ordergatev1.OrderEventFilter) (warnings []string) {
	kinds, directives := filter.GetKinds(), filter.GetDirectives()
	if !anyOrIn(directives, ordergatev1.Directive_DIRECTIVE_SHIP) ||
		!slices.ContainsFunc(shippingKinds, func(kind ordergatev1.OrderEventKind) bool { return anyOrIn(kinds, kind) }) {
		return nil // nothing is delivered as SHIP
	}
	if hidden := left(kinds, stoppingKinds, "ORDER_EVENT_KIND_"); hidden != "" {
		warnings = append(warnings, "filter.kinds leaves out "+hidden+
			": an order delivered as SHIP can be held or canceled without another delivery; filter by directives instead")
	}
	stopping := []ordergatev1.Directive{ordergatev1.Directive_DIRECTIVE_HOLD, ordergatev1.Directive_DIRECTIVE_CANCEL}
	if hidden := left(directives, stopping, "DIRECTIVE_"); hidden != "" {
		warnings = append(warnings, "filter.directives leaves out "+hidden+
			": an order delivered as SHIP can be held or canceled without another delivery; add HOLD and CANCEL")
	}
	return warnings
}

// left names the values that a selection leaves out. An empty selection leaves out none.
func left[T interface {
	comparable
	String() string
}](selection, values []T, prefix string) string {
	var names []string
	for _, value := range values {
		if !anyOrIn(selection, value) {
			names = append(names, strings.TrimPrefix(value.String(), prefix))
		}
	}
	return strings.Join(names, ", ")
}

func checkStoredEventFilter(filter *ordergatev1.EventFilter) error {
	for _, outcome := range filter.GetOutcomes() {
		if _, known := ordergatev1.EventOutcome_name[int32(outcome)]; !known || outcome == ordergatev1.EventOutcome_EVENT_OUTCOME_UNSPECIFIED {
			return invalid("filter.outcomes", "%v is not an outcome of an event", outcome)
		}
	}
	if n := len(filter.GetTypes()); n > maxFilterIDs {
		return invalid("filter.types", "has %d types, at most %d", n, maxFilterIDs)
	}
	return checkTimes(map[string]*timestamppb.Timestamp{"filter.start_time": filter.GetStartTime(), "filter.end_time": filter.GetEndTime()})
}

// checkSelection wants exactly one way to say which events are to be
// reprocessed.
func checkSelection(request *ordergatev1.ReprocessEventsRequest) error {
	ways := 0
	for _, used := range []bool{len(request.GetEventIds()) > 0, request.GetStartTime() != nil, request.GetParkedOnly()} {
		if used {
			ways++
		}
	}
	if ways != 1 {
		return invalid("event_ids", "say which events: give either event_ids, or start_time, or parked_only")
	}
	if request.GetEndTime() != nil && request.GetStartTime() == nil {
		return invalid("end_time", "goes with start_time only")
	}
	if n := len(request.GetEventIds()); n > maxFilterIDs {
		return invalid("event_ids", "has %d ids, at most %d: give a start_time instead, or call several times", n, maxFilterIDs)
	}
	if err := checkEventIDs(request.GetEventIds()); err != nil {
		return err
	}
	return checkTimes(map[string]*timestamppb.Timestamp{"start_time": request.GetStartTime(), "end_time": request.GetEndTime()})
}

// maxDismissReason bounds the reason of a dismissal, in characters.
const maxDismissReason = 500

func checkDismissal(request *ordergatev1.DismissEventsRequest) error {
	if n := len(request.GetEventIds()); n < 1 || n > maxFilterIDs {
		return invalid("event_ids", "has %d ids: give 1 to %d", n, maxFilterIDs)
	}
	if n := utf8.RuneCountInString(request.GetReason()); n < 1 || n > maxDismissReason {
		return invalid("reason", "has %d characters: give a reason of 1 to %d", n, maxDismissReason)
	}
	return checkEventIDs(request.GetEventIds())
}

func checkEventIDs(ids []string) error {
	for _, id := range ids {
		if err := checkEventID("event_ids", id); err != nil {
			return err
		}
	}
	return nil
}

func checkSince(request *ordergatev1.BackfillRequest) error {
	if request.GetSince() == nil {
		return invalid("since", "is required: from when on Stripe is asked, at most 30 days ago")
	}
	if err := checkTimes(map[string]*timestamppb.Timestamp{"since": request.GetSince()}); err != nil {
		return err
	}
	if since := request.GetSince().AsTime(); since.After(time.Now()) {
		return invalid("since", "%v is in the future", since)
	}
	return nil
}

// checkTimes checks the times that are set.
func checkTimes(times map[string]*timestamppb.Timestamp) error {
	for field, at := range times {
		if at == nil {
			continue
		}
		if err := at.CheckValid(); err != nil {
			return invalid(field, "is not a time: %v", err)
		}
	}
	return nil
}

func checkEventID(field, id string) error {
	switch {
	case id == "":
		return invalid(field, "is required: the id of an event, such as evt_1A")
	case !stripehook.ValidEventID(id):
		return invalid(field, "%.40q is not the id of an event: evt_, then letters, digits and _", id)
	}
	return nil
}
