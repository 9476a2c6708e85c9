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

	ordergatev1 "github.com/ordergate/ordergate/api/ordergate/v1"
)

const (
	// maxProducts and maxProductSize (bytes) bound the cache to 64 MiB. Real
	// products have about 1 KiB.
	maxProducts    = 1024
	maxProductSize = 64 << 10
	// productTTL is how old a cached product may be.
	productTTL = 10 * time.Minute
)

// completeProduct reads the product of a line whose product is only an id.
func (c *Client) completeProduct(ctx context.Context, of Ref, line *parsedLine) error {
	product := line.item.GetProduct()
	if product == nil {
		return nil
	}
	key := productKey{of.Livemode, of.Account, product.GetId()}
	if line.productExpanded {
		c.products.put(key, product)
		return nil
	}
	if cached := c.products.get(key); cached != nil {
		line.item.Product = cached
		return nil
	}
	// A shop may choose the ids of its products itself, but none of dots only
	// can be part of a path.
	if strings.Trim(key.id, ".") == "" {
		return nil
	}
	path := "/v1/products/" + url.PathEscape(key.id)
	body, err := c.get(ctx, request{path: path, account: of.Account, livemode: of.Livemode})
	if errors.Is(err, ErrNotFound) { // deleted
		c.products.put(key, product)
		return nil
	}
	if err != nil {
		return err
	}
	raw, err := checkObject(body, path, "product")
	if err != nil {
		return err
	}
	if product, err = parseProduct(expandable{key.id, raw}); err != nil {
		return fmt.Errorf("stripeapi: GET %s: the product cannot be read: %w", path, err)
	}
	c.products.put(key, product)
	line.item.Product = product
	return nil
}

type productKey struct {
	livemode bool
	account  string
	id       string
}

// productCache keeps the products that were used last. What goes in and out is
// copied.
type productCache struct {
	byKey *lru.Cache[productKey, cachedProduct]
}

type cachedProduct struct {
	product *ordergatev1.Product
	expires time.Time
}

func newProductCache() *productCache {
	byKey, err := lru.New[productKey, cachedProduct](maxProducts)
	if err != nil {
		panic(err) // only when the size is not positive
	}
	return &productCache{byKey: byKey}
}

// get returns nil for a product that is not there, or no longer fresh.
func (c *productCache) get(key productKey) *ordergatev1.Product {
	cached, ok := c.byKey.Get(key)
	if !ok || !time.Now().Before(cached.expires) {
		return nil
	}
	return proto.CloneOf(cached.product)
}

func (c *productCache) put(key productKey, product *ordergatev1.Product) {
	if proto.Size(product) > maxProductSize {
		return
	}
	c.byKey.Add(key, cachedProduct{proto.CloneOf(product), time.Now().Add(productTTL)})
}
