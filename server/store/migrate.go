package store

import (
	"context"
	"embed"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/daytona-go/daytona"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migration is one step from an older form of the tables to a newer one.
type Migration struct {
	Version int64
	Name    string
	Applied bool
}

func (db *DB) provider() (*goose.Provider, error) {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return nil, err
	}
	dialect, options := goose.DialectSQLite3, []goose.ProviderOption{goose.WithLogger(goose.NopLogger())}
	if db.postgres {
		// Two servers that start at once must not both migrate.
		l, err := lock.NewPostgresSessionLocker()
		if err != nil {
			return nil, err
		}
		dialect, options = goose.DialectPostgres, append(options, goose.WithSessionLocker(l))
	}
	return goose.NewProvider(dialect, db.bun.DB, dir, options...)
}

// Migrate brings the tables to the form that this program knows. A database
// that a newer program has migrated is refused with KindConflict, unchanged.
func (db *DB) Migrate(ctx context.Context) error {
	p, err := db.provider()
	if err != nil {
		return err
	}
	if err := db.checkNewer(ctx, p); err != nil {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// MigrateDown undoes the newest migration, and loses what only the newer form
// could hold.
func (db *DB) MigrateDown(ctx context.Context) error {
	p, err := db.provider()
	if err != nil {
		return err
	}
	if err := db.checkNewer(ctx, p); err != nil {
		return err
	}
	_, err = p.Down(ctx)
	return err
}

// Migrations returns all migrations that this program knows.
func (db *DB) Migrations(ctx context.Context) ([]Migration, error) {
	p, err := db.provider()
	if err != nil {
		return nil, err
	}
	status, err := p.Status(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]Migration, len(status))
	for i, s := range status {
		all[i] = Migration{Version: s.Source.Version, Name: s.Source.Path, Applied: s.State == goose.StateApplied}
	}
	return all, nil
}

func (db *DB) checkNewer(ctx context.Context, p *goose.Provider) error {
	current, err := p.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	sources := p.ListSources()
	if newest := sources[len(sources)-1].Version; current > newest {
		return &daytona.Error{Kind: daytona.KindConflict, Op: "migrate database", Field: "version", Value: current,
			Message: "a newer program has migrated this database; use that one, or restore a backup of before"}
	}
	return nil
}
