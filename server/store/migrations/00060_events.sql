-- +goose Up

-- Events that are too long for a notification, for some minutes.
CREATE TABLE event_bodies (
    id         TEXT PRIMARY KEY,
    payload    TEXT NOT NULL,
    created_at TIMESTAMP NOT NULL
);

CREATE INDEX event_bodies_created_at ON event_bodies (created_at);

-- +goose Down
DROP TABLE event_bodies;
