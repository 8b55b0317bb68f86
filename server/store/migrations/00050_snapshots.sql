-- +goose Up
CREATE TABLE snapshots (
    id                TEXT PRIMARY KEY,
    organization_id   TEXT NOT NULL,
    name              TEXT NOT NULL,
    general           BOOLEAN NOT NULL,
    hidden            BOOLEAN NOT NULL,
    image             TEXT NOT NULL,
    digest            TEXT NOT NULL,
    build             TEXT NOT NULL,
    source_sandbox_id TEXT NOT NULL,
    ref               TEXT NOT NULL,
    state             TEXT NOT NULL,
    reason            TEXT NOT NULL,
    size              DOUBLE PRECISION,
    entrypoint        TEXT,
    cpu               BIGINT NOT NULL,
    gpu               BIGINT NOT NULL,
    gpu_type          TEXT NOT NULL,
    memory            BIGINT NOT NULL,
    disk              BIGINT NOT NULL,
    class             TEXT NOT NULL,
    runner_id         TEXT NOT NULL,
    version           BIGINT NOT NULL,
    created_at        TIMESTAMP NOT NULL,
    updated_at        TIMESTAMP NOT NULL,
    state_since       TIMESTAMP NOT NULL,
    last_used_at      TIMESTAMP,
    UNIQUE (organization_id, name)
);
CREATE INDEX snapshots_name ON snapshots (name);
CREATE INDEX snapshots_ref ON snapshots (ref);
CREATE INDEX snapshots_state ON snapshots (state);

CREATE TABLE snapshot_regions (
    snapshot_id TEXT NOT NULL,
    region_id   TEXT NOT NULL,
    PRIMARY KEY (snapshot_id, region_id)
);

CREATE TABLE snapshot_builds (
    ref             TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    dockerfile      TEXT NOT NULL,
    context_hashes  TEXT NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    updated_at      TIMESTAMP NOT NULL
);

CREATE TABLE snapshot_copies (
    runner_id  TEXT NOT NULL,
    ref        TEXT NOT NULL,
    state      TEXT NOT NULL,
    reason     TEXT NOT NULL,
    job_id     TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    updated_at TIMESTAMP NOT NULL,
    PRIMARY KEY (runner_id, ref)
);
CREATE INDEX snapshot_copies_ref ON snapshot_copies (ref);

CREATE TABLE volumes (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    name            TEXT NOT NULL,
    state           TEXT NOT NULL,
    reason          TEXT NOT NULL,
    version         BIGINT NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    updated_at      TIMESTAMP NOT NULL,
    last_used_at    TIMESTAMP
);
CREATE UNIQUE INDEX volumes_name ON volumes (organization_id, name) WHERE state <> 'deleted';
CREATE INDEX volumes_state ON volumes (state);

CREATE TABLE registries (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    name            TEXT NOT NULL,
    url             TEXT NOT NULL,
    host            TEXT NOT NULL,
    username        TEXT NOT NULL,
    password        TEXT NOT NULL,
    project         TEXT NOT NULL,
    type            TEXT NOT NULL,
    is_default      BOOLEAN NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    updated_at      TIMESTAMP NOT NULL
);
CREATE INDEX registries_organization ON registries (organization_id);

CREATE TABLE registry_robots (
    name            TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    hash            TEXT NOT NULL,
    push            BOOLEAN NOT NULL,
    expires_at      TIMESTAMP NOT NULL
);

CREATE TABLE object_grants (
    access_key      TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    purpose         TEXT NOT NULL,
    bucket          TEXT NOT NULL,
    prefix          TEXT NOT NULL,
    may_delete      BOOLEAN NOT NULL,
    token_hash      TEXT NOT NULL,
    expires_at      TIMESTAMP
);
CREATE INDEX object_grants_purpose ON object_grants (organization_id, purpose);

-- +goose Down
DROP TABLE object_grants;
DROP TABLE registry_robots;
DROP TABLE registries;
DROP TABLE volumes;
DROP TABLE snapshot_copies;
DROP TABLE snapshot_builds;
DROP TABLE snapshot_regions;
DROP TABLE snapshots;
