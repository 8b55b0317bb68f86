package store

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/uptrace/bun"
)

// topics tells all servers of one database of changes: within a process, and
// with PostgreSQL, by NOTIFY, in all of them. It is a hint to look: one that is
// lost while a connection is down is made up for by whoever listens looking at
// what there is from time to time, and once when the connection is back.
type topics struct {
	db     *DB
	mu     sync.Mutex
	subs   map[string]map[chan string]struct{}
	cancel context.CancelFunc
	once   sync.Once
	done   chan struct{}
	// dropped is how many a slow listener has lost.
	dropped atomic.Int64
}

// channel is the PostgreSQL channel that carries all topics.
const channel = "daytona"

func newTopics(db *DB) *topics {
	return &topics{db: db, subs: map[string]map[chan string]struct{}{}, done: make(chan struct{})}
}

// Publish tells the listeners to a topic, in all servers of the database, of
// something: once the transaction of ctx has been committed, if there is one.
// The payload has at most 7,000 bytes.
func (db *DB) Publish(ctx context.Context, topic, payload string) error {
	if db.postgres {
		_, err := db.idb(ctx).NewRaw("SELECT pg_notify(?, ?)", channel, topic+"\x1f"+payload).Exec(ctx)
		return err
	}
	After(ctx, func() { db.topics.deliver(topic, payload) })
	return nil
}

// Subscribe returns a channel of what is published to a topic from now on, and
// a function that ends it. An empty payload says that some may have been lost.
// A listener that is slow loses some, and is told so.
func (db *DB) Subscribe(topic string) (<-chan string, func()) {
	t := db.topics
	if db.postgres {
		t.once.Do(t.listen)
	}
	c := make(chan string, 256)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.subs[topic] == nil {
		t.subs[topic] = map[chan string]struct{}{}
	}
	t.subs[topic][c] = struct{}{}
	return c, sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.subs[topic], c)
		if len(t.subs[topic]) == 0 {
			delete(t.subs, topic)
		}
	})
}

func (t *topics) deliver(topic, payload string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.subs[topic] {
		t.send(c, payload)
	}
}

// send never blocks: where there is no place, the oldest makes some, and what
// is left says that something is missing.
func (t *topics) send(c chan string, payload string) {
	select {
	case c <- payload:
		return
	default:
	}
	for {
		select {
		case <-c:
			t.dropped.Add(1)
		default:
			c <- ""
			return
		}
	}
}

func (t *topics) lost() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, subs := range t.subs {
		for c := range subs {
			t.send(c, "")
		}
	}
}

// listen keeps a connection that listens, until close.
func (t *topics) listen() {
	ctx, cancel := context.WithCancel(context.Background())
	t.mu.Lock()
	t.cancel = cancel
	t.mu.Unlock()
	ready := make(chan struct{})
	go func() {
		defer close(t.done)
		for first := true; ctx.Err() == nil; first = false {
			err := t.receive(ctx, func() {
				if first {
					close(ready)
					return
				}
				t.lost()
			})
			if ctx.Err() != nil {
				return
			}
			t.db.log.Warn("listening to PostgreSQL was interrupted", "err", err)
			if first {
				select {
				case <-ready:
				default:
					close(ready)
				}
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		}
	}()
	<-ready
}

func (t *topics) receive(ctx context.Context, listening func()) error {
	pooled, err := t.db.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	// Not of the pool any more: it is to be closed, never to be used by others.
	conn := pooled.Hijack()
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "LISTEN "+channel); err != nil {
		return err
	}
	listening()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		for i := range len(n.Payload) {
			if n.Payload[i] == '\x1f' {
				t.deliver(n.Payload[:i], n.Payload[i+1:])
				break
			}
		}
	}
}

func (t *topics) close() {
	t.mu.Lock()
	cancel := t.cancel
	t.mu.Unlock()
	if cancel != nil {
		cancel()
		<-t.done
	}
}

// lease is a row of the table of who leads what.
type lease struct {
	bun.BaseModel `bun:"table:leases,alias:lease"`

	Name    string    `bun:"name,pk"`
	Holder  string    `bun:"holder,notnull"`
	Token   int64     `bun:"token,notnull"`
	Expires time.Time `bun:"expires_at,notnull"`
}

// Lease makes holder the one who does the work of a name for a time, if nobody
// else is it; asked again, it prolongs. token grows with every change of
// holder: who writes with it can be told from who has been overtaken. ok is
// false while somebody else has it.
func (db *DB) Lease(ctx context.Context, name, holder string, d time.Duration) (token int64, ok bool, err error) {
	err = db.Tx(ctx, func(ctx context.Context) error {
		now := time.Now().UTC()
		l := &lease{Name: name, Holder: "", Token: 0, Expires: time.Unix(0, 0).UTC()}
		if _, err := db.idb(ctx).NewInsert().Model(l).On("CONFLICT (name) DO NOTHING").Exec(ctx); err != nil {
			return err
		}
		q := db.idb(ctx).NewSelect().Model(l).WherePK()
		if db.postgres {
			q = q.For("UPDATE")
		}
		if err := q.Scan(ctx); err != nil {
			return err
		}
		if l.Holder != holder {
			if l.Expires.After(now) {
				return nil
			}
			l.Holder, l.Token = holder, l.Token+1
		}
		l.Expires = now.Add(d)
		token, ok = l.Token, true
		_, err := db.idb(ctx).NewUpdate().Model(l).WherePK().Exec(ctx)
		return err
	})
	return token, ok && err == nil, err
}

// Yield gives a lease back, so that another need not wait until it is over.
func (db *DB) Yield(ctx context.Context, name, holder string) error {
	_, err := db.idb(ctx).NewUpdate().Model((*lease)(nil)).Set("expires_at = ?", time.Unix(0, 0).UTC()).
		Where("name = ? AND holder = ?", name, holder).Exec(ctx)
	return err
}
