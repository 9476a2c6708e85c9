package stripeapi

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"google.golang.org/protobuf/proto"
)

const (
	// maxCached and maxCachedSize (bytes) bound each cache to 64 MiB. Real objects
	// have about 1 KiB.
	maxCached     = 1024
	maxCachedSize = 64 << 10
	// cacheTTL is how old a cached object may be.
	cacheTTL = 10 * time.Minute
)

// completePrice reads the price of a line whose price is only an id.
func (c *Client) completePrice(ctx context.Context, of Ref, line *parsedLine) (err error) {
	price := line.item.GetPriceDetails()
	if price == nil {
		return nil
	}
	of.ID = price.GetId()
	if line.priceExpanded {
		c.prices.put(cacheKeyOf(of), price)
		return nil
	}
	line.item.PriceDetails, err = readCached(ctx, c, c.prices, of, "/v1/prices/", "price", parsePrice)
	return err
}

// completeProduct reads the product of a line whose product is only an id.
func (c *Client) completeProduct(ctx context.Context, of Ref, line *parsedLine) (err error) {
	product := line.item.GetProduct()
	if product == nil {
		return nil
	}
	of.ID = product.GetId()
	if line.productExpanded {
		c.products.put(cacheKeyOf(of), product)
		return nil
	}
	line.item.Product, err = readCached(ctx, c, c.products, of, "/v1/products/", "product", parseProduct)
	return err
}

// readCached returns an object from a cache, or else reads it. An object that Stripe
// does not have (any more) is parsed from its id alone.
func readCached[M proto.Message](ctx context.Context, c *Client, from *cache[M], of Ref, path, object string, parse func(expandable) (M, error)) (none M, err error) {
	key := cacheKeyOf(of)
	if cached, ok := from.get(key); ok {
		return cached, nil
	}
	// A shop may choose the ids of its products and prices itself, but none of dots
	// only can be part of a path.
	if strings.Trim(of.ID, ".") == "" {
		return parse(expandable{id: of.ID})
	}
	path += url.PathEscape(of.ID)
	read := expandable{id: of.ID}
	switch body, err := c.get(ctx, of.request(path)); {
	case errors.Is(err, ErrNotFound): // deleted
	case err != nil:
		return none, err
	default:
		if read.object, err = checkObject(body, path, object); err != nil {
			return none, err
		}
	}
	parsed, err := parse(read)
	if err != nil {
		return none, fmt.Errorf("stripeapi: GET %s: the %s cannot be read: %w", path, object, err)
	}
	from.put(key, parsed)
	return parsed, nil
}

type cacheKey struct {
	livemode  bool
	inContext bool
	account   string
	id        string
}

func cacheKeyOf(of Ref) cacheKey { return cacheKey{of.Livemode, of.InContext, of.Account, of.ID} }

// cache holds the objects that were used last. Objects are copied on the way in and
// out.
type cache[M proto.Message] struct {
	byKey *lru.Cache[cacheKey, cached[M]]
}

type cached[M proto.Message] struct {
	object  M
	expires time.Time
}

func newCache[M proto.Message]() *cache[M] {
	byKey, err := lru.New[cacheKey, cached[M]](maxCached)
	if err != nil {
		panic(err) // only when the size is not positive
	}
	return &cache[M]{byKey: byKey}
}

// get returns an object; ok is false if it is not there or no longer fresh.
func (c *cache[M]) get(key cacheKey) (object M, ok bool) {
	found, ok := c.byKey.Get(key)
	if !ok || !time.Now().Before(found.expires) {
		return object, false
	}
	return proto.CloneOf(found.object), true
}

func (c *cache[M]) put(key cacheKey, object M) {
	if proto.Size(object) > maxCachedSize {
		return
	}
	c.byKey.Add(key, cached[M]{proto.CloneOf(object), time.Now().Add(cacheTTL)})
}
