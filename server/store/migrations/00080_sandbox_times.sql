-- +goose Up

-- When a sandbox was started last, and stopped or paused last.
ALTER TABLE sandboxes ADD COLUMN started_at TIMESTAMP;
ALTER TABLE sandboxes ADD COLUMN stopped_at TIMESTAMP;

-- +goose Down
ALTER TABLE sandboxes DROP COLUMN stopped_at;
ALTER TABLE sandboxes DROP COLUMN started_at;
