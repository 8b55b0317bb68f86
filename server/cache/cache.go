// Package cache keeps in memory what was read of the database, until somebody,
// in this server or in any other of the same database, says that it has
// changed. What must not be believed for long after it is gone, such as an API
// key, can be cached this way.
package cache

import (
	"context"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/daytona-go/daytona/server/store"
)

// Cache has values by key. It is safe for concurrent use.
type Cache[V any] struct {
	db    *store.DB
	topic string
	items *otter.Cache[string, V]

	mu sync.Mutex
	// listeners is how many Runs there are: nothing is kept while nobody hears
	// of changes.
	listeners int
	// changes counts what has been said to have changed: a value that was being
	// read meanwhile may be from before.
	changes uint64
}

// New returns an empty cache whose changes are published to a topic. It keeps
// at most size values, each for at most ttl, by which time even a change that
// was missed takes effect.
func New[V any](db *store.DB, topic string, size int, ttl time.Duration) *Cache[V] {
	return &Cache[V]{db: db, topic: topic, items: otter.Must(&otter.Options[string, V]{
		MaximumSize: size, ExpiryCalculator: otter.ExpiryWriting[string, V](ttl),
	})}
}

// Run listens for changes until ctx is done. The cache keeps nothing while no
// Run is under way.
func (c *Cache[V]) Run(ctx context.Context) error {
	changed, stop := c.db.Subscribe(c.topic)
	defer stop()
	c.mu.Lock()
	c.listeners++
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.listeners--
		c.forget("")
	}()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case key := <-changed:
			c.mu.Lock()
			c.forget(key)
			c.mu.Unlock()
		}
	}
}

// forget drops a value, or all of them: an empty key says that something was
// missed. c.mu is held.
func (c *Cache[V]) forget(key string) {
	c.changes++
	if key == "" {
		c.items.InvalidateAll()
		return
	}
	c.items.Invalidate(key)
}

// Get returns the value of a key: the one that is kept, or else what load
// returns. An error is not kept. ctx must not be that of a transaction, which
// may see what nobody else ever will.
func (c *Cache[V]) Get(ctx context.Context, key string, load func(context.Context) (V, error)) (V, error) {
	if v, ok := c.items.GetIfPresent(key); ok {
		return v, nil
	}
	c.mu.Lock()
	before := c.changes
	c.mu.Unlock()
	v, err := load(ctx)
	if err != nil {
		return v, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.listeners > 0 && c.changes == before {
		c.items.Set(key, v)
	}
	return v, nil
}

// Changed says to all servers that the value of a key has changed: once the
// transaction of ctx has been committed, if there is one. In this server it is
// gone when that, or Changed, returns.
func (c *Cache[V]) Changed(ctx context.Context, key string) error {
	store.After(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.forget(key)
	})
	return c.db.Publish(ctx, c.topic, key)
}
