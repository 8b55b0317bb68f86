// Package ratelimit counts requests by name of a limiter and by who sends
// them, in windows of a fixed length: in memory, or in a Redis that several
// servers share.
package ratelimit

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/redis/go-redis/v9"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/identity"
)

// Names of limiters. The first two count by address, the others by
// organization, or by user where a request is about none.
const (
	Anonymous        = "anonymous"
	FailedAuth       = "failed-auth"
	Authenticated    = "authenticated"
	SandboxCreate    = "sandbox-create"
	SandboxLifecycle = "sandbox-lifecycle"
)

// Rule is how many requests there may be in how long.
type Rule struct {
	// TTL is the length of a window.
	TTL time.Duration
	// Limit is the number of requests in a window.
	Limit int
}

// Organizations knows the limits that some organizations have of their own.
type Organizations interface {
	// RateLimit returns an organization's limit and the length of its window;
	// zero, of either, is that of the rule. It is asked for every request.
	RateLimit(ctx context.Context, organizationID, limiter string) (limit int, ttl time.Duration, err error)
}

// Config says what is limited.
type Config struct {
	// Rules are the limiters that there are, by name. A rule without a TTL or
	// without a Limit is none.
	Rules map[string]Rule
	// Organizations may be nil.
	Organizations Organizations
	// Redis counts. Defaults to this process. While Redis does not answer,
	// each server counts for itself.
	Redis redis.UniversalClient
	// Size is how many counters each limiter has in memory. Defaults to 65,536:
	// about 10 MiB for each.
	Size int
	// Log defaults to slog.Default.
	Log *slog.Logger
	// Now defaults to time.Now. It is not asked where Redis counts.
	Now func() time.Time
}

// Limiter implements the interface of package api.
type Limiter struct {
	config Config
	memory map[string]*otter.Cache[string, *counter]

	mu sync.Mutex
	// down is until when Redis is left alone.
	down time.Time
}

var _ api.Limiter = (*Limiter)(nil)

// counter is one window.
type counter struct {
	mu    sync.Mutex
	n     int
	reset time.Time
}

// New returns a limiter.
func New(c Config) (*Limiter, error) {
	if c.Size == 0 {
		c.Size = 65_536
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	l := &Limiter{config: c, memory: map[string]*otter.Cache[string, *counter]{}}
	for name, r := range c.Rules {
		switch name {
		case Anonymous, FailedAuth, Authenticated, SandboxCreate, SandboxLifecycle:
		default:
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "set up rate limits", Field: "limiter", Value: name, Message: "there is no such limiter"}
		}
		if r.TTL < 0 || r.Limit < 0 || r.TTL > 0 && r.TTL < time.Second {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "set up rate limits", Field: name, Value: r, Message: "the TTL must be at least a second and the limit positive"}
		}
		if r.TTL > 0 && r.Limit > 0 {
			l.memory[name] = otter.Must(&otter.Options[string, *counter]{MaximumSize: c.Size})
		}
	}
	return l, nil
}

// Rule returns the rule of a limiter; ok is false if there is no such limiter.
func (l *Limiter) Rule(name string) (r Rule, ok bool) {
	if l.memory[name] == nil {
		return Rule{}, false
	}
	return l.config.Rules[name], true
}

// Take counts one and says what is left.
func (l *Limiter) Take(ctx context.Context, limiter, who string, p *identity.Principal) (api.Limit, bool) {
	r, ok := l.Rule(limiter)
	if !ok {
		return api.Limit{}, false
	}
	if p != nil && p.OrganizationID != "" && l.config.Organizations != nil {
		limit, ttl, err := l.config.Organizations.RateLimit(ctx, p.OrganizationID, limiter)
		if err != nil {
			l.config.Log.Warn("cannot find out what an organization's rate limit is", "organization", p.OrganizationID, "err", err)
		}
		if limit > 0 {
			r.Limit = limit
		}
		if ttl >= time.Second {
			r.TTL = ttl
		}
	}
	n, reset := l.count(ctx, limiter, who, r, 1)
	return api.Limit{Limit: r.Limit, Remaining: max(r.Limit-n, 0), Reset: reset, Exceeded: n > r.Limit}, true
}

// Look says what is left, and whether one more would be too many. It counts
// nothing.
func (l *Limiter) Look(ctx context.Context, limiter, who string) (api.Limit, bool) {
	r, ok := l.Rule(limiter)
	if !ok {
		return api.Limit{}, false
	}
	n, reset := l.count(ctx, limiter, who, r, 0)
	return api.Limit{Limit: r.Limit, Remaining: max(r.Limit-n, 0), Reset: reset, Exceeded: n >= r.Limit}, true
}

// count adds to a window and returns how many there are in it and how long it
// lasts.
func (l *Limiter) count(ctx context.Context, limiter, who string, r Rule, add int) (n int, reset time.Duration) {
	who = network(who)
	if l.config.Redis != nil && l.up() {
		n, reset, err := l.redis(ctx, limiter, who, r, add)
		if err == nil {
			return n, reset
		}
		if ctx.Err() == nil {
			l.rest(err)
		}
	}
	return l.local(limiter, who, r, add)
}

// network is what an address is counted as: who has one IPv6 address has a
// whole network of them.
func network(who string) string {
	a, err := netip.ParseAddr(who)
	if err != nil || a.Is4() {
		return who
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return who
	}
	return p.String()
}

func (l *Limiter) local(limiter, who string, r Rule, add int) (int, time.Duration) {
	now := l.config.Now()
	cache := l.memory[limiter]
	if add == 0 {
		c, ok := cache.GetIfPresent(who)
		if !ok {
			return 0, r.TTL
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if !now.Before(c.reset) {
			return 0, r.TTL
		}
		return c.n, c.reset.Sub(now)
	}
	c, _ := cache.ComputeIfAbsent(who, func() (*counter, bool) { return &counter{}, false })
	c.mu.Lock()
	defer c.mu.Unlock()
	if !now.Before(c.reset) {
		c.n, c.reset = 0, now.Add(r.TTL)
	}
	c.n += add
	if limiter == FailedAuth && c.n == r.Limit {
		// From here on nothing is let through, for a whole window.
		c.reset = now.Add(r.TTL)
	}
	return c.n, c.reset.Sub(now)
}

// window is local, in Redis.
const window = `
local n = tonumber(redis.call('GET', KEYS[1]) or '0')
if ARGV[1] == '0' then
  if n == 0 then return {0, tonumber(ARGV[2])} end
  return {n, redis.call('PTTL', KEYS[1])}
end
n = redis.call('INCRBY', KEYS[1], ARGV[1])
local left = redis.call('PTTL', KEYS[1])
if left < 0 or (ARGV[4] == '1' and n == tonumber(ARGV[3])) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  left = tonumber(ARGV[2])
end
return {n, left}
`

func (l *Limiter) redis(ctx context.Context, limiter, who string, r Rule, add int) (int, time.Duration, error) {
	// A limiter that is slow is worse than one that does not count for a moment.
	ctx, cancel := context.WithTimeout(ctx, 250*time.Millisecond)
	defer cancel()
	block := 0
	if limiter == FailedAuth {
		block = 1
	}
	out, err := redis.NewScript(window).Run(ctx, l.config.Redis, []string{"daytona:limit:" + limiter + ":" + who},
		add, r.TTL.Milliseconds(), r.Limit, block).Int64Slice()
	if err == nil && len(out) != 2 {
		err = fmt.Errorf("it answers with %d numbers", len(out))
	}
	if err != nil {
		return 0, 0, err
	}
	return int(out[0]), time.Duration(out[1]) * time.Millisecond, nil
}

func (l *Limiter) up() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.config.Now().Before(l.down)
}

// rest leaves Redis alone for a second, so that not every request waits for
// it.
func (l *Limiter) rest(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down = l.config.Now().Add(time.Second)
	l.config.Log.Warn("Redis does not count requests; this server counts for itself", "err", err)
}
