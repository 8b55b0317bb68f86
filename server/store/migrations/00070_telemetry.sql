-- +goose Up

-- What sandboxes say of themselves, for some days. Times are nanoseconds since
-- 1970.
CREATE TABLE telemetry_logs (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    sandbox_id      TEXT NOT NULL,
    at              BIGINT NOT NULL,
    severity        TEXT NOT NULL,
    severity_number BIGINT NOT NULL,
    body            TEXT NOT NULL,
    resource        TEXT NOT NULL,
    attributes      TEXT NOT NULL,
    trace_id        TEXT NOT NULL,
    span_id         TEXT NOT NULL
);

CREATE INDEX telemetry_logs_sandbox ON telemetry_logs (sandbox_id, at);
CREATE INDEX telemetry_logs_at ON telemetry_logs (at);

CREATE TABLE telemetry_spans (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    sandbox_id      TEXT NOT NULL,
    at              BIGINT NOT NULL,
    duration        BIGINT NOT NULL,
    trace_id        TEXT NOT NULL,
    span_id         TEXT NOT NULL,
    parent_id       TEXT NOT NULL,
    name            TEXT NOT NULL,
    attributes      TEXT NOT NULL,
    status          TEXT NOT NULL,
    message         TEXT NOT NULL
);

CREATE INDEX telemetry_spans_sandbox ON telemetry_spans (sandbox_id, at);
CREATE INDEX telemetry_spans_trace ON telemetry_spans (sandbox_id, trace_id);
CREATE INDEX telemetry_spans_at ON telemetry_spans (at);

-- What was measured at one time, by the names of metrics: there are many.
CREATE TABLE telemetry_samples (
    id              TEXT PRIMARY KEY,
    organization_id TEXT NOT NULL,
    sandbox_id      TEXT NOT NULL,
    at              BIGINT NOT NULL,
    measured        TEXT NOT NULL
);

CREATE INDEX telemetry_samples_sandbox ON telemetry_samples (sandbox_id, at);
CREATE INDEX telemetry_samples_at ON telemetry_samples (at);

-- +goose Down
DROP TABLE telemetry_samples;
DROP TABLE telemetry_spans;
DROP TABLE telemetry_logs;
