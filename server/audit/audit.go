// Package audit keeps who did what: one row for each thing that was done, or
// tried, written once and never changed.
package audit

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona/server/store"
)

// Entry is one thing that was done. The zero values of its fields stand for
// what is not known.
type Entry struct {
	bun.BaseModel `bun:"table:audit_logs,alias:audit"`

	// ID and CreatedAt are filled in by [Service.Record].
	ID             string    `bun:"id,pk"`
	CreatedAt      time.Time `bun:"created_at,notnull"`
	OrganizationID string    `bun:"organization_id,notnull"`
	// ActorID is the user's; of what the system does by itself, "system".
	ActorID    string `bun:"actor_id,notnull"`
	ActorEmail string `bun:"actor_email,notnull"`
	// KeyPrefix and KeySuffix are the ends of the API key that was used.
	KeyPrefix string `bun:"key_prefix,notnull"`
	KeySuffix string `bun:"key_suffix,notnull"`
	// Action and TargetType are words of the wire.
	Action       string         `bun:"action,notnull"`
	TargetType   string         `bun:"target_type,notnull"`
	TargetID     string         `bun:"target_id,notnull"`
	StatusCode   int            `bun:"status_code,notnull"`
	ErrorMessage string         `bun:"error_message,notnull"`
	IPAddress    string         `bun:"ip_address,notnull"`
	UserAgent    string         `bun:"user_agent,notnull"`
	Source       string         `bun:"source,notnull"`
	Metadata     map[string]any `bun:"metadata,notnull"`
}

// System is the actor of what nobody asked for.
const System = "system"

// Config says what a Service is made of.
type Config struct {
	// Retention is how long entries are kept. Defaults to 90 days; less than 0
	// is for ever.
	Retention time.Duration
	// Queue is how many entries may wait to be written. Defaults to 4096.
	Queue int
	Log   *slog.Logger
}

// Service writes and reads the audit log.
type Service struct {
	db     *store.DB
	config Config
	queue  chan *Entry
	// wait is the longest that Record waits for room in the queue.
	wait time.Duration

	mu     sync.Mutex
	closed bool
	sends  sync.WaitGroup
	done   chan struct{}
}

// batch is how many rows are written at once, retry how long a database that
// does not answer is left alone, sweep how often old entries are deleted.
const (
	batch = 100
	retry = time.Second
	sweep = time.Hour
)

// New returns a service and starts to write. [Service.Close] ends that.
func New(db *store.DB, c Config) *Service {
	if c.Retention == 0 {
		c.Retention = 90 * 24 * time.Hour
	}
	if c.Queue == 0 {
		c.Queue = 4096
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Service{db: db, config: c, queue: make(chan *Entry, c.Queue), wait: 2 * time.Second, done: make(chan struct{})}
	go s.write()
	return s
}

// clip bounds what came from a client, without breaking a character.
func clip(s string, max int) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "")
	for len(s) > max {
		_, n := utf8.DecodeLastRuneInString(s[:max+1])
		s = s[:max+1-n]
	}
	return s
}

// Record adds an entry. It returns at once as long as there is room for those
// that are waiting, and then waits a little; what finds no room even so, or
// comes after Close, is written to the log and lost to the database.
func (s *Service) Record(e Entry) {
	e.ID = uuid.Must(uuid.NewV7()).String()
	e.CreatedAt = time.Now().UTC()
	e.ErrorMessage, e.UserAgent, e.Source = clip(e.ErrorMessage, 2000), clip(e.UserAgent, 500), clip(e.Source, 100)
	e.TargetID, e.ActorEmail, e.OrganizationID, e.ActorID = clip(e.TargetID, 500), clip(e.ActorEmail, 320), clip(e.OrganizationID, 64), clip(e.ActorID, 255)
	metadata := map[string]any{}
	for k, v := range e.Metadata {
		if text, ok := v.(string); ok {
			v = clip(text, 2000)
		}
		metadata[clip(k, 100)] = v
	}
	e.Metadata = metadata
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.lost("the server is shutting down", &e)
		return
	}
	s.sends.Add(1)
	s.mu.Unlock()
	defer s.sends.Done()
	select {
	case s.queue <- &e:
		return
	default:
	}
	t := time.NewTimer(s.wait)
	defer t.Stop()
	select {
	case s.queue <- &e:
	case <-t.C:
		s.lost("the database is too slow", &e)
	}
}

// lost says in the log what the database won't have.
func (s *Service) lost(why string, e *Entry) {
	s.config.Log.Error("audit entry was not stored", "why", why, "id", e.ID, "time", e.CreatedAt, "actor", e.ActorID, "organization", e.OrganizationID,
		"action", e.Action, "targetType", e.TargetType, "target", e.TargetID, "status", e.StatusCode)
}

// write writes what is in the queue, in batches, until it is closed and empty.
func (s *Service) write() {
	defer close(s.done)
	for e := range s.queue {
		rows := []*Entry{e}
		for attempt := 0; ; attempt++ {
			rows = s.more(rows)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			// The ids are made here: what was written after all is not written twice.
			_, err := s.db.All(ctx).NewInsert().Model(&rows).On("CONFLICT (id) DO NOTHING").Exec(ctx)
			cancel()
			if err == nil {
				break
			}
			if s.alone(rows) {
				break
			}
			s.mu.Lock()
			closed := s.closed
			s.mu.Unlock()
			if closed && attempt > 0 {
				for _, e := range rows {
					s.lost(err.Error(), e)
				}
				break
			}
			s.config.Log.Error("audit entries can't be stored yet", "err", err, "entries", len(rows))
			time.Sleep(retry)
		}
	}
}

// more adds to rows what is waiting.
func (s *Service) more(rows []*Entry) []*Entry {
	for len(rows) < batch {
		select {
		case e, ok := <-s.queue:
			if !ok {
				return rows
			}
			rows = append(rows, e)
		default:
			return rows
		}
	}
	return rows
}

// alone writes rows one by one, if the database is there and just would not
// have them together: one that it never will have must not keep all others
// waiting, and with them whoever asks for something that is to be noted.
func (s *Service) alone(rows []*Entry) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	stored := 0
	var refused []*Entry
	var why error
	for _, e := range rows {
		if _, err := s.db.All(ctx).NewInsert().Model(e).On("CONFLICT (id) DO NOTHING").Exec(ctx); err == nil {
			stored++
		} else if refused, why = append(refused, e), err; stored == 0 && len(refused) > 1 {
			break // it is the database rather than the rows
		}
	}
	if stored == 0 {
		return false
	}
	for _, e := range refused {
		s.lost(why.Error(), e)
	}
	return true
}

// Close writes what is waiting, and returns when that is done or ctx is.
// Record must not be called after it.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if first {
		go func() {
			s.sends.Wait()
			close(s.queue)
		}()
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run deletes old entries from time to time, until ctx is done.
func (s *Service) Run(ctx context.Context) error {
	t := time.NewTicker(sweep)
	defer t.Stop()
	for {
		if err := s.Sweep(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.config.Log.Error("old audit entries can't be deleted", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}

// Sweep deletes the entries that are too old at a time.
func (s *Service) Sweep(ctx context.Context, at time.Time) error {
	if s.config.Retention < 0 {
		return nil
	}
	old := at.UTC().Add(-s.config.Retention)
	for {
		// In small portions: a delete of millions would keep everybody waiting.
		r, err := s.db.All(ctx).NewRaw("DELETE FROM audit_logs WHERE id IN (SELECT id FROM audit_logs WHERE created_at < ? LIMIT 1000)", old).Exec(ctx)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n < 1000 {
			return err
		}
	}
}
