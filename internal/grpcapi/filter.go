package grpcapi

import (
	"regexp"
	"slices"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
	"github.com/ordergate/ordergate/internal/eventlog"
)

const (
	maxFilterIDs       = 100
	maxFilterCountries = 300
)

var countryShape = regexp.MustCompile(`^[A-Z]{2}$`)

func matchesOrder(filter *ordergatev1.OrderFilter, order *ordergatev1.Order) bool {
	return (filter.GetLivemode() == order.GetLivemode() || filter == nil || filter.Livemode == nil) &&
		anyOrIn(filter.GetStatuses(), order.GetStatus()) &&
		anyOrIn(filter.GetDirectives(), order.GetDirective())
}

// matchesRecord decides by what is stored beside an event, without decoding it.
func matchesRecord(filter *ordergatev1.OrderEventFilter, record *eventlog.OrderRecord) bool {
	return (filter.GetLivemode() == record.Livemode || filter == nil || filter.Livemode == nil) &&
		anyOrIn(filter.GetKinds(), record.Kind) &&
		anyOrIn(filter.GetOrderIds(), record.OrderID) &&
		anyOrIn(filter.GetAccounts(), record.Account) &&
		anyOrIn(filter.GetShipToCountries(), record.Country)
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
	return nil
}
