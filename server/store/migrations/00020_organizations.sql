-- +goose Up
CREATE TABLE organizations (
    id                            TEXT PRIMARY KEY,
    name                          TEXT NOT NULL,
    created_by                    TEXT NOT NULL,
    personal                      BOOLEAN NOT NULL,
    default_region_id             TEXT NOT NULL,
    suspended                     BOOLEAN NOT NULL,
    suspended_at                  TIMESTAMP,
    suspension_reason             TEXT NOT NULL,
    suspended_until               TIMESTAMP,
    suspension_grace_hours        BIGINT NOT NULL,
    limited_egress                BOOLEAN NOT NULL,
    preview_warning               BOOLEAN NOT NULL,
    sso_enabled                   BOOLEAN NOT NULL,
    snapshot_deactivation_minutes BIGINT NOT NULL,
    otel_endpoint                 TEXT NOT NULL,
    otel_headers                  TEXT NOT NULL,
    experimental                  TEXT NOT NULL,
    rate_limits                   TEXT NOT NULL,
    created_at                    TIMESTAMP NOT NULL,
    updated_at                    TIMESTAMP NOT NULL
);
CREATE INDEX organizations_created_by ON organizations (created_by);

CREATE TABLE organization_members (
    organization_id TEXT NOT NULL,
    user_id         TEXT NOT NULL,
    role            TEXT NOT NULL,
    role_ids        TEXT NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    updated_at      TIMESTAMP NOT NULL,
    PRIMARY KEY (organization_id, user_id)
);
CREATE INDEX organization_members_user ON organization_members (user_id);

CREATE TABLE organization_roles (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    name            TEXT NOT NULL,
    description     TEXT NOT NULL,
    permissions     TEXT NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    updated_at      TIMESTAMP NOT NULL
);
CREATE UNIQUE INDEX organization_roles_name ON organization_roles (organization_id, name);

CREATE TABLE organization_invitations (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    email           TEXT NOT NULL,
    invited_by      TEXT NOT NULL,
    role            TEXT NOT NULL,
    role_ids        TEXT NOT NULL,
    status          TEXT NOT NULL,
    expires_at      TIMESTAMP NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    updated_at      TIMESTAMP NOT NULL
);
CREATE INDEX organization_invitations_organization ON organization_invitations (organization_id, status);
CREATE INDEX organization_invitations_email ON organization_invitations (email, status);

CREATE TABLE identity_providers (
    id                   TEXT PRIMARY KEY,
    organization_id      TEXT NOT NULL,
    name                 TEXT NOT NULL,
    issuer_url           TEXT NOT NULL,
    client_id            TEXT NOT NULL,
    client_secret        TEXT NOT NULL,
    scope                TEXT NOT NULL,
    email_domains        TEXT NOT NULL,
    allow_any_domain     BOOLEAN NOT NULL,
    trust_email_verified BOOLEAN NOT NULL,
    default_role_ids     TEXT NOT NULL,
    enabled              BOOLEAN NOT NULL,
    created_at           TIMESTAMP NOT NULL,
    updated_at           TIMESTAMP NOT NULL
);
CREATE UNIQUE INDEX identity_providers_name ON identity_providers (organization_id, name);

CREATE TABLE regions (
    id                    TEXT PRIMARY KEY,
    organization_id       TEXT NOT NULL,
    name                  TEXT NOT NULL,
    type                  TEXT NOT NULL,
    enforce_quotas        BOOLEAN NOT NULL,
    proxy_url             TEXT NOT NULL,
    ssh_gateway_url       TEXT NOT NULL,
    snapshot_manager_url  TEXT NOT NULL,
    otel_endpoint         TEXT NOT NULL,
    proxy_key_hash        TEXT NOT NULL,
    ssh_gateway_key_hash  TEXT NOT NULL,
    snapshot_manager_hash TEXT NOT NULL,
    created_at            TIMESTAMP NOT NULL,
    updated_at            TIMESTAMP NOT NULL
);
CREATE UNIQUE INDEX regions_name ON regions (organization_id, name);
CREATE INDEX regions_proxy_key ON regions (proxy_key_hash);
CREATE INDEX regions_ssh_gateway_key ON regions (ssh_gateway_key_hash);

CREATE TABLE organization_quotas (
    organization_id                    TEXT PRIMARY KEY,
    max_cpu_per_sandbox                DOUBLE PRECISION NOT NULL,
    max_memory_per_sandbox             DOUBLE PRECISION NOT NULL,
    max_disk_per_sandbox               DOUBLE PRECISION NOT NULL,
    snapshot_quota                     BIGINT NOT NULL,
    max_snapshot_size                  DOUBLE PRECISION NOT NULL,
    volume_quota                       BIGINT NOT NULL,
    secret_quota                       BIGINT NOT NULL,
    max_secrets_per_sandbox            BIGINT NOT NULL,
    max_concurrent_snapshot_processing BIGINT NOT NULL
);

CREATE TABLE region_quotas (
    organization_id                    TEXT NOT NULL,
    region_id                          TEXT NOT NULL,
    sandbox_class                      TEXT NOT NULL,
    total_cpu                          DOUBLE PRECISION NOT NULL,
    total_memory                       DOUBLE PRECISION NOT NULL,
    total_disk                         DOUBLE PRECISION NOT NULL,
    total_gpu                          DOUBLE PRECISION NOT NULL,
    allowed_gpu_types                  TEXT,
    max_cpu_per_sandbox                DOUBLE PRECISION,
    max_memory_per_sandbox             DOUBLE PRECISION,
    max_disk_per_sandbox               DOUBLE PRECISION,
    max_disk_per_non_ephemeral_sandbox DOUBLE PRECISION,
    max_cpu_per_gpu                    DOUBLE PRECISION,
    max_memory_per_gpu                 DOUBLE PRECISION,
    max_disk_per_gpu                   DOUBLE PRECISION,
    max_cpu_per_gpu_sandbox            DOUBLE PRECISION,
    max_memory_per_gpu_sandbox         DOUBLE PRECISION,
    max_disk_per_gpu_sandbox           DOUBLE PRECISION,
    max_sandbox_lifespan               DOUBLE PRECISION,
    PRIMARY KEY (organization_id, region_id, sandbox_class)
);

CREATE TABLE reservations (
    kind            TEXT NOT NULL,
    resource_id     TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    region_id       TEXT NOT NULL,
    sandbox_class   TEXT NOT NULL,
    cpu             DOUBLE PRECISION NOT NULL,
    memory          DOUBLE PRECISION NOT NULL,
    disk            DOUBLE PRECISION NOT NULL,
    gpu             DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (kind, resource_id)
);
CREATE INDEX reservations_organization ON reservations (organization_id, kind, region_id, sandbox_class);

CREATE TABLE audit_logs (
    id              TEXT PRIMARY KEY,
    created_at      TIMESTAMP NOT NULL,
    organization_id TEXT NOT NULL,
    actor_id        TEXT NOT NULL,
    actor_email     TEXT NOT NULL,
    key_prefix      TEXT NOT NULL,
    key_suffix      TEXT NOT NULL,
    action          TEXT NOT NULL,
    target_type     TEXT NOT NULL,
    target_id       TEXT NOT NULL,
    status_code     BIGINT NOT NULL,
    error_message   TEXT NOT NULL,
    ip_address      TEXT NOT NULL,
    user_agent      TEXT NOT NULL,
    source          TEXT NOT NULL,
    metadata        TEXT NOT NULL
);
CREATE INDEX audit_logs_organization ON audit_logs (organization_id, created_at);
CREATE INDEX audit_logs_created_at ON audit_logs (created_at);

CREATE TABLE webhook_applications (
    organization_id TEXT PRIMARY KEY,
    created_at      TIMESTAMP NOT NULL,
    updated_at      TIMESTAMP NOT NULL
);

CREATE TABLE webhook_endpoints (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    url             TEXT NOT NULL,
    description     TEXT NOT NULL,
    events          TEXT NOT NULL,
    secret          TEXT NOT NULL,
    disabled        BOOLEAN NOT NULL,
    disabled_reason TEXT NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    updated_at      TIMESTAMP NOT NULL
);
CREATE INDEX webhook_endpoints_organization ON webhook_endpoints (organization_id);

CREATE TABLE webhook_messages (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    event           TEXT NOT NULL,
    payload         TEXT NOT NULL,
    created_at      TIMESTAMP NOT NULL
);
CREATE INDEX webhook_messages_organization ON webhook_messages (organization_id, created_at);
CREATE INDEX webhook_messages_created_at ON webhook_messages (created_at);

CREATE TABLE webhook_deliveries (
    message_id      TEXT NOT NULL,
    endpoint_id     TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    state           TEXT NOT NULL,
    attempts        BIGINT NOT NULL,
    next_at         TIMESTAMP NOT NULL,
    PRIMARY KEY (message_id, endpoint_id)
);
CREATE INDEX webhook_deliveries_next ON webhook_deliveries (state, next_at);

CREATE TABLE webhook_attempts (
    id              TEXT PRIMARY KEY,
    message_id      TEXT NOT NULL,
    endpoint_id     TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    url             TEXT NOT NULL,
    status          BIGINT NOT NULL,
    error           TEXT NOT NULL,
    duration_ms     BIGINT NOT NULL,
    created_at      TIMESTAMP NOT NULL
);
CREATE INDEX webhook_attempts_message ON webhook_attempts (message_id);

CREATE TABLE secrets (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    name            TEXT NOT NULL,
    description     TEXT,
    value           TEXT NOT NULL,
    placeholder     TEXT NOT NULL,
    hosts           TEXT NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    updated_at      TIMESTAMP NOT NULL
);
CREATE UNIQUE INDEX secrets_name ON secrets (organization_id, name);

CREATE TABLE sandbox_secrets (
    sandbox_id      TEXT NOT NULL,
    env             TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    secret_id       TEXT NOT NULL,
    PRIMARY KEY (sandbox_id, env)
);
CREATE INDEX sandbox_secrets_secret ON sandbox_secrets (secret_id);

-- +goose Down
DROP TABLE sandbox_secrets;
DROP TABLE secrets;
DROP TABLE webhook_attempts;
DROP TABLE webhook_deliveries;
DROP TABLE webhook_messages;
DROP TABLE webhook_endpoints;
DROP TABLE webhook_applications;
DROP TABLE audit_logs;
DROP TABLE reservations;
DROP TABLE region_quotas;
DROP TABLE organization_quotas;
DROP TABLE regions;
DROP TABLE identity_providers;
DROP TABLE organization_invitations;
DROP TABLE organization_roles;
DROP TABLE organization_members;
DROP TABLE organizations;
