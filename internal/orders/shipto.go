package orders

import (
	"strings"

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

// place is one of the places of a sale where the ship-to may be.
type place struct {
	// problem says why the place cannot be read. Empty when it can, and when
	// there is nothing there.
	problem string
	// incomplete means that the problem is an address without line1 or country.
	incomplete  bool
	address     *ordergatev1.Address // nil when there is none, or a problem
	name, phone string
}

// readShipTo reads where the goods of a sale go from its places, the first that
// has an address.
//
// An address that is not found is NOT_COLLECTED only when nothing speaks for
// one: not where we looked is not the same as not there. sign is what does, if
// anything.
//
// An address without line1 or country is INCOMPLETE, unless a place that cannot be
// read may have the whole one. buyer fills in the parts that no place has.
func readShipTo(from object, places []place, sign string, buyer recipient) (*ordergatev1.Shipping, ordergatev1.AddressState) {
	var (
		to         *ordergatev1.Shipping
		problems   []string
		incomplete int
		// The place that has the address may lack the name or the phone: then
		// another may have it.
		name, phone string
	)
	for _, p := range places {
		if p.problem != "" {
			problems = append(problems, p.problem)
		}
		if p.incomplete {
			incomplete++
		}
		if to == nil && p.address != nil {
			to = &ordergatev1.Shipping{Address: p.address}
		}
		name, phone = first(name, p.name), first(phone, p.phone)
	}
	if to != nil {
		to.Name, to.Phone, to.BusinessName = first(name, buyer.name), first(phone, buyer.phone), buyer.business
		for _, problem := range problems {
			from.warn("the ship-to address was read, but not in each of its places:", problem)
		}
		return to, ordergatev1.AddressState_ADDRESS_STATE_PRESENT
	}
	if len(problems) == 0 {
		if sign == "" {
			return nil, ordergatev1.AddressState_ADDRESS_STATE_NOT_COLLECTED
		}
		problems = []string{"it is in none of the known places, though there is a " + sign}
	}
	if incomplete == len(problems) {
		from.warn("the ship-to address is INCOMPLETE:", strings.Join(problems, "; "))
		return nil, ordergatev1.AddressState_ADDRESS_STATE_INCOMPLETE
	}
	from.warn("the ship-to address is UNREADABLE:", strings.Join(problems, "; "))
	return nil, ordergatev1.AddressState_ADDRESS_STATE_UNREADABLE
}

// recipient names the buyer on the label, for a ship-to that names nobody.
type recipient struct{ name, business, phone string }

// addressState returns the address state of an order: of the stored one, it
// separates the orders that need no address from those that have none.
func addressState(o *ordergatev1.Order) ordergatev1.AddressState {
	switch state := o.GetAddressState(); state {
	case ordergatev1.AddressState_ADDRESS_STATE_NOT_COLLECTED, ordergatev1.AddressState_ADDRESS_STATE_NOT_NEEDED:
		if isDigital(o) {
			return ordergatev1.AddressState_ADDRESS_STATE_NOT_NEEDED
		}
		return ordergatev1.AddressState_ADDRESS_STATE_NOT_COLLECTED
	default:
		return state
	}
}

// isDigital reports whether the shop marked each product of an order as not
// shipped. Prorations are money and not goods.
func isDigital(o *ordergatev1.Order) bool {
	goods := 0
	for _, item := range o.GetLineItems() {
		if item.GetProration() {
			continue
		}
		if item.GetProduct() == nil || item.Product.Shippable == nil || item.Product.GetShippable() {
			return false
		}
		goods++
	}
	return goods > 0 && o.GetLineItemsState() == ordergatev1.LineItemsState_LINE_ITEMS_STATE_COMPLETE
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// shipToPlaces reads the places of a session. Each API version that moved the
// ship-to has its place; they are all looked at, the newest first, because what
// moved once may be in two places for a while, and nothing says that the version
// an event names is one that was known when this was written:
//
//	collected_information.shipping_details   from 2025-02-24.acacia on
//	shipping_details                         2022-08-01 to 2025-02-24.acacia
//	shipping                                 before 2022-08-01
//
// Since 2025-03-31.basil none of them has a phone.
func shipToPlaces(session object) []place {
	var newest place
	switch shape := shapeOf(session.field("collected_information")); shape {
	case "an object":
		newest = readPlace(collectedInformation(session), "shipping_details")
	case "absent", "null":
	default:
		newest.problem = session.at("collected_information") + " is " + shape
	}
	return []place{newest, readPlace(session, "shipping_details"), readPlace(session, "shipping")}
}

func readPlace(parent object, key string) (p place) {
	if !parent.has(key) {
		return place{}
	}
	if shape := shapeOf(parent.field(key)); shape != "an object" {
		return place{problem: parent.at(key) + " is " + shape}
	}
	shipping, _ := parent.object(key)
	p.name, p.phone = shipping.text("name"), shipping.text("phone")
	address, problem := readAddress(shipping, "address")
	switch {
	case problem != "":
		p.problem = shipping.path + " " + problem
	case blank(address.GetLine1(), address.GetCity(), address.GetPostalCode(), address.GetCountry()):
		p.problem = shipping.path + " has no address"
	case blank(address.GetLine1()):
		p.problem, p.incomplete = shipping.path+" has an address without line1", true
	case blank(address.GetCountry()):
		p.problem, p.incomplete = shipping.path+" has an address without country", true
	default:
		p.address = address
	}
	return p
}

func blank(texts ...string) bool {
	return strings.TrimSpace(strings.Join(texts, "")) == ""
}

// readAddress reads an address; one that is not there is empty. An address with
// a part that cannot be read is not read at all: half an address must never be
// shipped to. problem then says what is wrong with it.
func readAddress(parent object, key string) (_ *ordergatev1.Address, problem string) {
	address := &ordergatev1.Address{}
	v := parent.field(key)
	if isNothing(v) {
		return address, ""
	}
	if shape := shapeOf(v); shape != "an object" {
		return nil, "has an address that is " + shape
	}
	fields, _ := parent.object(key)
	for _, part := range []struct {
		key  string
		text *string
	}{
		{"line1", &address.Line1},
		{"line2", &address.Line2},
		{"city", &address.City},
		{"state", &address.State},
		{"postal_code", &address.PostalCode},
		{"country", &address.Country},
	} {
		v := fields.field(part.key)
		text, ok := v.Text()
		if !ok && !isNothing(v) {
			return nil, "has an address whose " + part.key + " is " + shapeOf(v)
		}
		*part.text = text
	}
	return address, ""
}

// signOfShipping names what in a session says that its buyer was asked for an
// address. Empty when nothing does.
func signOfShipping(session object) string {
	for _, key := range []string{"shipping_address_collection", "shipping_cost", "shipping_rate"} {
		if session.has(key) {
			return key
		}
	}
	// A list that is empty says nothing; one that is not a list might say all.
	if v := session.field("shipping_options"); !isNothing(v) &&
		(!v.IsArray() || len(session.list("shipping_options")) > 0) {
		return "shipping_options"
	}
	return ""
}
