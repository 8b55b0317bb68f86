-- +goose Up

-- Snapshots and backups in the object storage, for other runners than the one
-- that made them.
CREATE TABLE parcels (
    ref             TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    created_at      TIMESTAMP NOT NULL
);
ALTER TABLE snapshots ADD COLUMN parcelled BOOLEAN NOT NULL DEFAULT FALSE;

-- +goose Down
ALTER TABLE snapshots DROP COLUMN parcelled;
DROP TABLE parcels;
