package stripeapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/url"
	"strconv"
)

const (
	// pageLimit is how many objects a page has at most: as many as Stripe gives.
	pageLimit = 100
	// maxLineItemPages bounds the line items of one order to 5,000. Stripe allows
	// far fewer: https://docs.stripe.com/api/checkout/sessions/create.
	maxLineItemPages = 50
	// maxEventPages bounds one listing of events to 5 million, which takes most
	// of an hour.
	maxEventPages = 50_000
)

// listPage is a page of a list. https://docs.stripe.com/api/pagination
type listPage struct {
	data    []json.RawMessage
	hasMore bool
}

// list yields the objects of all pages. After an error, which comes with no
// object, there is nothing more.
func (c *Client) list(ctx context.Context, r request, maxPages int) iter.Seq2[json.RawMessage, error] {
	return func(yield func(json.RawMessage, error) bool) {
		r := r // each range over the list begins at its start
		r.query = maps.Clone(r.query)
		if r.query == nil {
			r.query = url.Values{}
		}
		limit := pageLimit
		for range maxPages {
			r.query.Set("limit", strconv.Itoa(limit))
			page, err := c.page(ctx, r)
			if errors.Is(err, errTooLarge) && limit > 1 {
				limit = max(limit/4, 1)
				continue
			}
			if err != nil {
				yield(nil, err)
				return
			}
			for _, object := range page.data {
				if !yield(object, nil) {
					return
				}
			}
			if !page.hasMore {
				return
			}
			next, err := page.cursor(r.query.Get("starting_after"))
			if err != nil {
				yield(nil, fmt.Errorf("stripeapi: GET %s: %w", r.path, err))
				return
			}
			r.query.Set("starting_after", next)
		}
		yield(nil, fmt.Errorf("stripeapi: GET %s: more than %d pages: the list is not complete", r.path, maxPages))
	}
}

// cursor is where the next page begins: after this page's last object. It must
// move, or the listing would go round in a circle.
func (p *listPage) cursor(before string) (string, error) {
	if len(p.data) == 0 {
		return "", errors.New("more objects are said to follow an empty page")
	}
	var last struct{ ID string }
	if json.Unmarshal(p.data[len(p.data)-1], &last) != nil || last.ID == "" {
		return "", errors.New("the last object of a page has no id to go on from")
	}
	if last.ID == before {
		return "", errors.New("the same page came again")
	}
	return last.ID, nil
}

// page reads one page. An answer that is not clearly a list is an error: taken
// for an empty one, it would be an order without goods.
func (c *Client) page(ctx context.Context, r request) (*listPage, error) {
	body, err := c.get(ctx, r)
	if err != nil {
		return nil, err
	}
	var list struct {
		Object  string
		Data    *[]json.RawMessage
		HasMore *bool `json:"has_more"`
	}
	if json.Unmarshal(body, &list) != nil || list.Object != "list" || list.Data == nil || list.HasMore == nil {
		return nil, fmt.Errorf("stripeapi: GET %s: the answer is not a list as Stripe sends it", r.path)
	}
	return &listPage{data: *list.Data, hasMore: *list.HasMore}, nil
}

// checkObject returns raw if it is an object of this type.
func checkObject(raw []byte, path, object string) (json.RawMessage, error) {
	var got struct{ ID, Object string }
	if json.Unmarshal(raw, &got) != nil || got.Object != object || got.ID == "" {
		return nil, fmt.Errorf("stripeapi: GET %s: the answer is not an object of the type %s", path, object)
	}
	return raw, nil
}
