package eventlog

import (
	"testing"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

func TestDirectiveFilters(t *testing.T) {
	const (
		none   = ordergatev1.Directive_DIRECTIVE_UNSPECIFIED
		wait   = ordergatev1.Directive_DIRECTIVE_WAIT
		ship   = ordergatev1.Directive_DIRECTIVE_SHIP
		cancel = ordergatev1.Directive_DIRECTIVE_CANCEL
	)
	paid := []ordergatev1.OrderEventKind{ordergatev1.OrderEventKind_ORDER_EVENT_KIND_PAID}
	for _, c := range []struct {
		name          string
		previous, now ordergatev1.Directive
		kind          ordergatev1.OrderEventKind
		filter        *ordergatev1.OrderEventFilter
		matches       bool
		matchesOrder  bool
	}{
		{"one of the directives", wait, ship, paid[0], &ordergatev1.OrderEventFilter{Directives: []ordergatev1.Directive{cancel, ship}}, true, true},
		{"another directive", ship, cancel, paid[0], &ordergatev1.OrderEventFilter{Directives: []ordergatev1.Directive{ship}}, false, false},
		{"changed", wait, ship, paid[0], &ordergatev1.OrderEventFilter{DirectiveChangedOnly: true}, true, true},
		{"unchanged", ship, ship, paid[0], &ordergatev1.OrderEventFilter{DirectiveChangedOnly: true}, false, true},
		{"first event", none, wait, paid[0], &ordergatev1.OrderEventFilter{DirectiveChangedOnly: true}, true, true},
		{"changed to another directive", ship, cancel, paid[0],
			&ordergatev1.OrderEventFilter{DirectiveChangedOnly: true, Directives: []ordergatev1.Directive{ship}}, false, false},
		{"another kind", wait, ship, ordergatev1.OrderEventKind_ORDER_EVENT_KIND_UPDATED, &ordergatev1.OrderEventFilter{Kinds: paid}, false, true},
		{"tombstone", ship, cancel, ordergatev1.OrderEventKind_ORDER_EVENT_KIND_ERASED,
			&ordergatev1.OrderEventFilter{Directives: []ordergatev1.Directive{cancel}, ShipToCountries: []string{"DE"}, Metadata: map[string]string{"a": "b"}}, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			event := orderEvent("cs_1", 2)
			event.Kind, event.PreviousDirective, event.Order.Directive = c.kind, c.previous, c.now
			record := &OrderRecord{OrderID: "cs_1"}
			record.decodeHeader(encodeHeader(event))
			if got, err := record.Matches(c.filter); err != nil || got != c.matches {
				t.Errorf("Matches: %v, %v; want %v", got, err, c.matches)
			}
			if got, err := record.MatchesOrder(c.filter); err != nil || got != c.matchesOrder {
				t.Errorf("MatchesOrder: %v, %v; want %v", got, err, c.matchesOrder)
			}
		})
	}
}
