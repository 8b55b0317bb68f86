package store

import (
	"context"
	"crypto/rand"
	"time"
)

// Stats are the state of the pool of connections.
type Stats struct {
	// Max is how many connections there may be, Open how many there are, InUse
	// how many of them do something.
	Max, Open, InUse int
	// Waits is how often somebody had to wait for one, Waited for how long in all.
	Waits  int64
	Waited time.Duration
	// Lost is how many hints of topics did not reach a listener that was slow.
	Lost int64
}

// Stats returns the state of the pool of connections, for metrics.
func (db *DB) Stats() Stats {
	if db.pool != nil {
		p := db.pool.Stat()
		return Stats{
			Max: int(p.MaxConns()), Open: int(p.TotalConns()), InUse: int(p.AcquiredConns()),
			Waits: p.EmptyAcquireCount(), Waited: p.EmptyAcquireWaitTime(), Lost: db.topics.dropped.Load(),
		}
	}
	p := db.bun.DB.Stats()
	return Stats{Max: p.MaxOpenConnections, Open: p.OpenConnections, InUse: p.InUse, Waits: p.WaitCount, Waited: p.WaitDuration, Lost: db.topics.dropped.Load()}
}

// Lag publishes something and returns how long it took to be heard: what
// changes in one server are known in another after about that time.
func (db *DB) Lag(ctx context.Context) (time.Duration, error) {
	topic := "lag/" + rand.Text() // one that nobody else listens to
	heard, end := db.Subscribe(topic)
	defer end()
	began := time.Now()
	if err := db.Publish(ctx, topic, ""); err != nil {
		return 0, err
	}
	select {
	case <-heard:
		return time.Since(began), nil
	case <-ctx.Done():
		return time.Since(began), ctx.Err()
	}
}
