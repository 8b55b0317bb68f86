// Package store is the server's database: SQLite in a file by default,
// PostgreSQL by URL, with the same queries and the same migrations for both.
// It has what all features need of a database and knows none of them: their
// tables are theirs, and so are the queries.
//
// # Isolation
//
// What belongs to an organization is reached through [DB.In], which adds the
// organization to every query it makes. A feature that must see across
// organizations, such as the reconciler, says so by using [DB.All].
package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/uptrace/bun"
	"github.com/uptrace/bun/dialect/pgdialect"
	"github.com/uptrace/bun/dialect/sqlitedialect"
	"modernc.org/sqlite"

	"github.com/daytona-go/daytona"
)

// DB is an open database. It is safe for concurrent use.
type DB struct {
	bun      *bun.DB
	pool     *pgxpool.Pool // nil with SQLite
	postgres bool
	log      *slog.Logger
	topics   *topics
	// writes lets one writer at a time have an SQLite database, in the order in
	// which they came: its own lock is taken by whoever polls at the right
	// moment.
	writes chan struct{}
}

// Open opens a database:
//
//	sqlite:///var/lib/daytona/daytona.db    a file, made if it is not there
//	sqlite::memory:                         nothing that lasts
//	postgres://user:password@host/database  PostgreSQL, with the parameters that libpq knows
//
// It changes nothing in it; see [DB.Migrate].
func Open(ctx context.Context, rawURL string, log *slog.Logger) (*DB, error) {
	const op = "open database"
	if log == nil {
		log = slog.Default()
	}
	scheme, _, _ := strings.Cut(rawURL, ":")
	switch scheme {
	case "postgres", "postgresql":
		c, err := pgxpool.ParseConfig(rawURL)
		if err != nil {
			// pgx's own error leaves the password out.
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Message: "the URL of PostgreSQL is wrong", Err: err}
		}
		// A pooler between here and the server may know no prepared statements. No two
		// queries have the same text, since bun writes the arguments into it: to have
		// each described would only be asking twice.
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
		pool, err := pgxpool.NewWithConfig(ctx, c)
		if err != nil {
			return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Err: err}
		}
		if err := pool.Ping(ctx); err != nil {
			pool.Close()
			return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Message: "PostgreSQL does not answer", Err: err}
		}
		db := &DB{bun: bun.NewDB(stdlib.OpenDBFromPool(pool), pgdialect.New()), pool: pool, postgres: true, log: log}
		db.topics = newTopics(db)
		return db, nil
	case "sqlite":
		path := strings.TrimPrefix(strings.TrimPrefix(rawURL, "sqlite:"), "//")
		memory := path == ":memory:"
		if !memory {
			if path == "" {
				return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "url", Value: rawURL, Message: "must name a file, as in sqlite:///var/lib/daytona/daytona.db"}
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: path, Err: err}
			}
			// It has the hashes of keys and names of everything.
			f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
			if err != nil {
				return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: path, Err: err}
			}
			f.Close()
		}
		q := url.Values{
			// synchronous=FULL: what has been acknowledged survives a power cut.
			"_pragma":      {"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"},
			"_txlock":      {"immediate"},
			"_time_format": {"sqlite"},
		}
		dsn := "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode()
		if memory {
			q.Set("mode", "memory")
			dsn = "file::memory:?" + q.Encode()
		}
		conn, err := sql.Open("sqlite", dsn)
		if err != nil {
			return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: path, Err: err}
		}
		if memory {
			conn.SetMaxOpenConns(1)
			conn.SetMaxIdleConns(1)
			conn.SetConnMaxLifetime(0)
		} else {
			conn.SetMaxOpenConns(16)
			conn.SetMaxIdleConns(16)
		}
		if err := conn.PingContext(ctx); err != nil {
			conn.Close()
			return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: path, Err: err}
		}
		db := &DB{bun: bun.NewDB(conn, sqlitedialect.New()), log: log, writes: make(chan struct{}, 1)}
		db.topics = newTopics(db)
		return db, nil
	}
	return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "scheme", Value: scheme, Message: "must be sqlite or postgres"}
}

// Close closes the database.
func (db *DB) Close() error {
	db.topics.close()
	err := db.bun.Close()
	if db.pool != nil {
		db.pool.Close()
	}
	return err
}

// Postgres reports whether it is PostgreSQL, which several servers can share.
func (db *DB) Postgres() bool { return db.postgres }

// Ping reports whether the database answers.
func (db *DB) Ping(ctx context.Context) error { return db.bun.PingContext(ctx) }

type txKey struct{}

// idb is the transaction of a context, or else the database.
func (db *DB) idb(ctx context.Context) bun.IDB {
	if tx, ok := ctx.Value(txKey{}).(bun.Tx); ok {
		return tx
	}
	return db.bun
}

// Tx runs f in a transaction, which its context has: all that f does with that
// context is done, or nothing of it. Within f, Tx is f's own transaction. What
// another transaction made impossible is tried again, so f must do nothing else
// that can't be done twice.
func (db *DB) Tx(ctx context.Context, f func(ctx context.Context) error) error {
	if _, ok := ctx.Value(txKey{}).(bun.Tx); ok {
		return f(ctx)
	}
	for attempt := 0; ; attempt++ {
		err := db.once(ctx, f)
		if err == nil || attempt == 10 || !isRetryable(err) || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(time.Duration(1<<attempt) * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

func (db *DB) once(ctx context.Context, f func(ctx context.Context) error) error {
	if db.writes != nil {
		select {
		case db.writes <- struct{}{}:
			defer func() { <-db.writes }()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	var after []func()
	err := db.bun.RunInTx(ctx, &sql.TxOptions{}, func(ctx context.Context, tx bun.Tx) error {
		return f(context.WithValue(context.WithValue(ctx, txKey{}, tx), afterKey{}, &after))
	})
	if err == nil {
		for _, f := range after {
			f()
		}
	}
	return err
}

type afterKey struct{}

// After runs f once the transaction of ctx has been committed, and at once if
// there is none.
func After(ctx context.Context, f func()) {
	if list, ok := ctx.Value(afterKey{}).(*[]func()); ok {
		*list = append(*list, f)
		return
	}
	f()
}

// All makes queries that see every organization.
func (db *DB) All(ctx context.Context) bun.IDB { return db.idb(ctx) }

// In makes queries that see one organization.
func (db *DB) In(ctx context.Context, organizationID string) Scope {
	return Scope{db.idb(ctx), organizationID}
}

// Scope makes queries for the rows of one organization: every table that is
// read or changed through it must have a column organization_id. No
// organization at all has no rows.
type Scope struct {
	db bun.IDB
	id string
}

const scoped = "?TableAlias.organization_id = ?"

// Select selects rows of model's table.
func (s Scope) Select(model any) *bun.SelectQuery {
	return s.db.NewSelect().Model(model).Where(scoped, s.id)
}

// Update changes rows of model's table, without any limit but the
// organization: the caller adds conditions.
func (s Scope) Update(model any) *bun.UpdateQuery {
	return s.db.NewUpdate().Model(model).Where(scoped, s.id)
}

// Delete deletes rows of model's table; see Update.
func (s Scope) Delete(model any) *bun.DeleteQuery {
	return s.db.NewDelete().Model(model).Where(scoped, s.id)
}

// IsUnique reports whether err says that a row with such a key is there already.
func IsUnique(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code == "23505"
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code() == 2067 || e.Code() == 1555 // SQLITE_CONSTRAINT_UNIQUE, SQLITE_CONSTRAINT_PRIMARYKEY
	}
	return false
}

// IsNone reports whether err says that there is no such row.
func IsNone(err error) bool { return errors.Is(err, sql.ErrNoRows) }

// IsAway reports whether err says that the database can't be reached now: it
// ends, begins, takes nobody more, or the connection broke before a query was
// sent.
func IsAway(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		// The classes are those of PostgreSQL's appendix A: admin_shutdown and its
		// like, connection exceptions, too_many_connections.
		return strings.HasPrefix(e.Code, "57P0") || strings.HasPrefix(e.Code, "08") || e.Code == "53300"
	}
	if _, ok := errors.AsType[*pgconn.ConnectError](err); ok {
		return true
	}
	return errors.Is(err, driver.ErrBadConn) || pgconn.SafeToRetry(err)
}

// isRetryable reports whether the same transaction may work a moment later.
func isRetryable(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code == "40001" || e.Code == "40P01" // serialization_failure, deadlock_detected
	}
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()&0xff == 5 // SQLITE_BUSY
	}
	return false
}

// Changed returns an error that matches [daytona.ErrConflict] if a query
// changed no row: somebody else was faster.
func Changed(r sql.Result, err error) error {
	if err != nil {
		return err
	}
	n, err := r.RowsAffected()
	if err == nil && n == 0 {
		return &daytona.Error{Kind: daytona.KindConflict, Message: "it was changed by another operation meanwhile"}
	}
	return err
}

// Escape makes text stand for itself in the pattern of a LIKE … ESCAPE '\'.
func Escape(text string) string {
	return strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(text)
}

// Now is the time as both databases keep it: in UTC, of whole milliseconds, so
// that what is written is what is read.
func Now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// String names the kind of database and nothing that is secret.
func (db *DB) String() string {
	if db.postgres {
		return fmt.Sprintf("PostgreSQL at %s", db.pool.Config().ConnConfig.Host)
	}
	return "SQLite"
}
