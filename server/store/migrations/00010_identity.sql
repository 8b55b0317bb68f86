-- +goose Up
CREATE TABLE users (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL,
    email          TEXT NOT NULL,
    email_verified BOOLEAN NOT NULL,
    role           TEXT NOT NULL,
    public_keys    TEXT NOT NULL,
    created_at     TIMESTAMP NOT NULL,
    updated_at     TIMESTAMP NOT NULL
);
CREATE INDEX users_email ON users (email);

-- Accounts of identity providers that are a user's, beside the one whose
-- subject is the user's id.
CREATE TABLE user_accounts (
    provider         TEXT NOT NULL,
    provider_user_id TEXT NOT NULL,
    user_id          TEXT NOT NULL,
    created_at       TIMESTAMP NOT NULL,
    PRIMARY KEY (provider, provider_user_id)
);
CREATE INDEX user_accounts_user ON user_accounts (user_id);

-- Accounts that may become a user's once the user has said yes.
CREATE TABLE user_pending_accounts (
    id               TEXT PRIMARY KEY,
    user_id          TEXT NOT NULL,
    organization_id  TEXT NOT NULL,
    provider         TEXT NOT NULL,
    provider_name    TEXT NOT NULL,
    provider_user_id TEXT NOT NULL,
    provider_email   TEXT,
    created_at       TIMESTAMP NOT NULL,
    expires_at       TIMESTAMP NOT NULL
);
CREATE UNIQUE INDEX user_pending_accounts_identity ON user_pending_accounts (user_id, provider, provider_user_id);

CREATE TABLE api_keys (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    user_id         TEXT NOT NULL,
    name            TEXT NOT NULL,
    hash            TEXT NOT NULL UNIQUE,
    prefix          TEXT NOT NULL,
    suffix          TEXT NOT NULL,
    permissions     TEXT NOT NULL,
    created_at      TIMESTAMP NOT NULL,
    last_used_at    TIMESTAMP,
    expires_at      TIMESTAMP
);
CREATE UNIQUE INDEX api_keys_name ON api_keys (organization_id, user_id, name);
CREATE INDEX api_keys_user ON api_keys (user_id);

-- What follows is the built-in issuer's.
CREATE TABLE issuer_passwords (
    user_id    TEXT PRIMARY KEY,
    email      TEXT NOT NULL UNIQUE,
    hash       TEXT NOT NULL,
    updated_at TIMESTAMP NOT NULL
);

CREATE TABLE issuer_keys (
    id         TEXT PRIMARY KEY,
    sealed     TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL
);

CREATE TABLE issuer_sessions (
    hash       TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL,
    auth_time  TIMESTAMP NOT NULL,
    expires_at TIMESTAMP NOT NULL
);
CREATE INDEX issuer_sessions_user ON issuer_sessions (user_id);

CREATE TABLE issuer_requests (
    id           TEXT PRIMARY KEY,
    browser_hash TEXT NOT NULL,
    code_hash    TEXT,
    client_id    TEXT NOT NULL,
    asked        TEXT NOT NULL,
    user_id      TEXT NOT NULL,
    auth_time    TIMESTAMP,
    used         BOOLEAN NOT NULL,
    expires_at   TIMESTAMP NOT NULL
);
CREATE UNIQUE INDEX issuer_requests_code ON issuer_requests (code_hash);

CREATE TABLE issuer_refresh_tokens (
    hash       TEXT PRIMARY KEY,
    family     TEXT NOT NULL,
    client_id  TEXT NOT NULL,
    user_id    TEXT NOT NULL,
    scopes     TEXT NOT NULL,
    auth_time  TIMESTAMP NOT NULL,
    used_at    TIMESTAMP,
    expires_at TIMESTAMP NOT NULL
);
CREATE INDEX issuer_refresh_tokens_family ON issuer_refresh_tokens (family);
CREATE INDEX issuer_refresh_tokens_user ON issuer_refresh_tokens (user_id, client_id);

CREATE TABLE issuer_devices (
    hash       TEXT PRIMARY KEY,
    user_code  TEXT NOT NULL UNIQUE,
    client_id  TEXT NOT NULL,
    scopes     TEXT NOT NULL,
    user_id    TEXT NOT NULL,
    auth_time  TIMESTAMP,
    denied     BOOLEAN NOT NULL,
    used       BOOLEAN NOT NULL,
    expires_at TIMESTAMP NOT NULL
);

-- +goose Down
DROP TABLE issuer_devices;
DROP TABLE issuer_refresh_tokens;
DROP TABLE issuer_requests;
DROP TABLE issuer_sessions;
DROP TABLE issuer_keys;
DROP TABLE issuer_passwords;
DROP TABLE api_keys;
DROP TABLE user_pending_accounts;
DROP TABLE user_accounts;
DROP TABLE users;
