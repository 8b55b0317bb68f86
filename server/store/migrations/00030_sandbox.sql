-- +goose Up
CREATE TABLE sandboxes (
    id                 TEXT PRIMARY KEY,
    organization_id    TEXT NOT NULL,
    name               TEXT NOT NULL,
    region_id          TEXT NOT NULL,
    runner_id          TEXT NOT NULL,
    class              TEXT NOT NULL,
    state              TEXT NOT NULL,
    desired_state      TEXT NOT NULL,
    -- what a list says that the state is
    shown              TEXT NOT NULL,
    pending            BOOLEAN NOT NULL,
    version            BIGINT NOT NULL,
    state_since        TIMESTAMP NOT NULL,
    -- the one job that may end the present step
    job_id             TEXT NOT NULL,
    job_type           TEXT NOT NULL,
    step               TEXT NOT NULL,
    last_job_id        TEXT NOT NULL,
    last_job_error     TEXT NOT NULL,
    retry_at           TIMESTAMP,
    attempts           BIGINT NOT NULL,
    snapshot           TEXT NOT NULL,
    snapshot_id        TEXT NOT NULL,
    ref                TEXT NOT NULL,
    entrypoint         TEXT NOT NULL,
    build              TEXT,
    os_user            TEXT NOT NULL,
    env                TEXT NOT NULL,
    labels             TEXT NOT NULL,
    public             BOOLEAN NOT NULL,
    network_block_all  BOOLEAN NOT NULL,
    network_allow_list TEXT,
    domain_allow_list  TEXT,
    outbound_proxy     TEXT NOT NULL,
    otel_endpoint      TEXT NOT NULL,
    cpu                BIGINT NOT NULL,
    gpu                BIGINT NOT NULL,
    gpu_type           TEXT NOT NULL,
    memory             BIGINT NOT NULL,
    disk               BIGINT NOT NULL,
    error_reason       TEXT NOT NULL,
    recoverable        BOOLEAN NOT NULL,
    lost               BOOLEAN NOT NULL,
    restored_at        TIMESTAMP,
    backup_state       TEXT NOT NULL,
    backup_ref         TEXT NOT NULL,
    backup_job_id      TEXT NOT NULL,
    backup_since       TIMESTAMP,
    backup_at          TIMESTAMP,
    backup_error       TEXT NOT NULL,
    backup_runner_id   TEXT NOT NULL,
    reserved           TEXT NOT NULL,
    auto_stop          BIGINT NOT NULL,
    auto_pause         BIGINT NOT NULL,
    auto_archive       BIGINT NOT NULL,
    auto_delete        BIGINT NOT NULL,
    destroy_at         TIMESTAMP,
    volumes            TEXT NOT NULL,
    secrets            TEXT NOT NULL,
    linked_id          TEXT NOT NULL,
    parent_id          TEXT NOT NULL,
    warm_pool_id       TEXT NOT NULL,
    daemon_version     TEXT NOT NULL,
    auth_token         TEXT NOT NULL,
    auth_token_hash    TEXT NOT NULL,
    signing_key        TEXT NOT NULL,
    created_at         TIMESTAMP NOT NULL,
    updated_at         TIMESTAMP NOT NULL,
    last_activity_at   TIMESTAMP NOT NULL
);
CREATE UNIQUE INDEX sandboxes_name ON sandboxes (organization_id, name);
-- All that a list can ask for: it need not read the rows, which are large.
CREATE INDEX sandboxes_list ON sandboxes (organization_id, last_activity_at, id, state, desired_state, shown, warm_pool_id, name, snapshot,
    region_id, class, cpu, memory, disk, gpu, public, recoverable, created_at, destroy_at);
CREATE INDEX sandboxes_created ON sandboxes (organization_id, created_at, id);
CREATE INDEX sandboxes_token ON sandboxes (auth_token_hash);
CREATE INDEX sandboxes_state ON sandboxes (state, desired_state);
-- Most rows have no job, no pool, no parent and no link.
CREATE INDEX sandboxes_job ON sandboxes (job_id) WHERE job_id <> '';
CREATE INDEX sandboxes_backup_job ON sandboxes (backup_job_id) WHERE backup_job_id <> '';
CREATE INDEX sandboxes_runner ON sandboxes (runner_id) WHERE runner_id <> '';
CREATE INDEX sandboxes_pool ON sandboxes (warm_pool_id) WHERE warm_pool_id <> '';
CREATE INDEX sandboxes_parent ON sandboxes (parent_id) WHERE parent_id <> '';
CREATE INDEX sandboxes_linked ON sandboxes (linked_id) WHERE linked_id <> '';
CREATE INDEX sandboxes_destroy ON sandboxes (destroy_at) WHERE destroy_at IS NOT NULL;

CREATE TABLE sandbox_labels (
    organization_id TEXT NOT NULL,
    sandbox_id      TEXT NOT NULL,
    name            TEXT NOT NULL,
    value           TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, name)
);
CREATE INDEX sandbox_labels_value ON sandbox_labels (organization_id, name, value);

CREATE TABLE sandbox_volumes (
    organization_id TEXT NOT NULL,
    sandbox_id      TEXT NOT NULL,
    volume_id       TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, volume_id)
);
CREATE INDEX sandbox_volumes_volume ON sandbox_volumes (volume_id);

-- Copies of sandboxes that are to go from runners that could not be told.
CREATE TABLE sandbox_leftovers (
    sandbox_id TEXT NOT NULL,
    runner_id  TEXT NOT NULL,
    job_id     TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL,
    PRIMARY KEY (sandbox_id, runner_id)
);

CREATE TABLE sandbox_preview_tokens (
    token_hash      TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    sandbox_id      TEXT NOT NULL,
    port            BIGINT NOT NULL,
    expires_at      TIMESTAMP NOT NULL
);
CREATE INDEX sandbox_preview_tokens_sandbox ON sandbox_preview_tokens (sandbox_id);
CREATE INDEX sandbox_preview_tokens_expires ON sandbox_preview_tokens (expires_at);

CREATE TABLE sandbox_ssh_access (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    sandbox_id      TEXT NOT NULL,
    token_hash      TEXT NOT NULL UNIQUE,
    expires_at      TIMESTAMP NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    updated_at      TIMESTAMP NOT NULL
);
CREATE INDEX sandbox_ssh_access_sandbox ON sandbox_ssh_access (sandbox_id);

CREATE TABLE warm_pools (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    snapshot        TEXT NOT NULL,
    snapshot_id     TEXT NOT NULL,
    region_id       TEXT NOT NULL,
    size            BIGINT NOT NULL,
    cpu             BIGINT NOT NULL,
    memory          BIGINT NOT NULL,
    disk            BIGINT NOT NULL,
    os_user         TEXT NOT NULL,
    error_reason    TEXT NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    updated_at      TIMESTAMP NOT NULL
);
CREATE UNIQUE INDEX warm_pools_snapshot ON warm_pools (organization_id, region_id, snapshot_id);

-- +goose Down
DROP TABLE warm_pools;
DROP TABLE sandbox_ssh_access;
DROP TABLE sandbox_preview_tokens;
DROP TABLE sandbox_leftovers;
DROP TABLE sandbox_volumes;
DROP TABLE sandbox_labels;
DROP TABLE sandboxes;
