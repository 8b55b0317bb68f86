-- +goose Up
CREATE TABLE runners (
    id                  TEXT PRIMARY KEY,
    organization_id     TEXT NOT NULL,
    region_id           TEXT NOT NULL,
    name                TEXT NOT NULL,
    key_hash            TEXT NOT NULL UNIQUE,
    access_key          TEXT NOT NULL,
    api_version         TEXT NOT NULL,
    app_version         TEXT NOT NULL,
    class               TEXT NOT NULL,
    domain              TEXT NOT NULL,
    api_url             TEXT NOT NULL,
    proxy_url           TEXT NOT NULL,
    state               TEXT NOT NULL,
    unschedulable       BOOLEAN NOT NULL,
    draining            BOOLEAN NOT NULL,
    empty_checks        BIGINT NOT NULL,
    tags                TEXT NOT NULL,
    capabilities        TEXT NOT NULL,
    services            TEXT NOT NULL,
    cpu                 DOUBLE PRECISION NOT NULL,
    memory              DOUBLE PRECISION NOT NULL,
    disk                DOUBLE PRECISION NOT NULL,
    gpu                 DOUBLE PRECISION NOT NULL,
    gpu_type            TEXT NOT NULL,
    used                TEXT NOT NULL,
    score               BIGINT NOT NULL,
    measured_at         TIMESTAMP,
    checked_at          TIMESTAMP,
    created_at          TIMESTAMP NOT NULL,
    updated_at          TIMESTAMP NOT NULL
);
CREATE UNIQUE INDEX runners_name ON runners (region_id, name);
CREATE INDEX runners_organization ON runners (organization_id);

CREATE TABLE runner_reservations (
    id          TEXT PRIMARY KEY,
    runner_id   TEXT NOT NULL,
    cpu         DOUBLE PRECISION NOT NULL,
    memory      DOUBLE PRECISION NOT NULL,
    disk        DOUBLE PRECISION NOT NULL,
    gpu         DOUBLE PRECISION NOT NULL,
    released_at TIMESTAMP,
    expires_at  TIMESTAMP NOT NULL
);
CREATE INDEX runner_reservations_runner ON runner_reservations (runner_id);

CREATE TABLE jobs (
    id            TEXT PRIMARY KEY,
    type          TEXT NOT NULL,
    status        TEXT NOT NULL,
    runner_id     TEXT NOT NULL,
    resource_type TEXT NOT NULL,
    resource_id   TEXT NOT NULL,
    lane          TEXT NOT NULL,
    payload       TEXT NOT NULL,
    trace_context TEXT NOT NULL,
    error         TEXT NOT NULL,
    result        TEXT NOT NULL,
    created_at    TIMESTAMP NOT NULL,
    updated_at    TIMESTAMP NOT NULL
);
CREATE UNIQUE INDEX jobs_unfinished ON jobs (runner_id, resource_type, resource_id, lane) WHERE status IN ('PENDING', 'IN_PROGRESS');
CREATE INDEX jobs_runner ON jobs (runner_id, status, created_at);
CREATE INDEX jobs_resource ON jobs (resource_type, resource_id);
CREATE INDEX jobs_status ON jobs (status, updated_at);

-- +goose Down
DROP TABLE jobs;
DROP TABLE runner_reservations;
DROP TABLE runners;
