// Package wire has the JSON shapes of the public API: what the server writes
// and clients read, and the other way round. They are the union of the two
// generations of clients that are alive, 0.190 and 0.205 (see docs/wire.md).
//
// A response field that either generation requires is never left out. One that
// may be null is a pointer that is written as null; one that may be absent is
// left out when it is nil. A request field is required only where both
// generations require it.
//
// It is shared by server and backend/remote and knows neither: no rules, no
// defaults, nothing but names, types and the tags that package huma makes the
// OpenAPI document of.
package wire

import "time"

// Stamp is a time as the API writes it: ISO 8601, UTC, milliseconds.
func Stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// StampOf is Stamp for what may not have happened.
func StampOf(t *time.Time) *string {
	if t == nil || t.IsZero() {
		return nil
	}
	return new(Stamp(*t))
}

// Error is the body of every answer that is an error.
type Error struct {
	Path       string `json:"path" required:"true"`
	Timestamp  string `json:"timestamp" required:"true"`
	StatusCode int    `json:"statusCode" required:"true"`
	// Error is the reason phrase of the status.
	Error string `json:"error" required:"true"`
	// Message is one line, or lines, that clients show.
	Message string `json:"message" required:"true"`
	// Code tells apart what has the same status, where clients have to.
	Code string `json:"code,omitempty"`
}

// UserKeyPair is a user with a new key pair. The private key is kept nowhere.
type UserKeyPair struct {
	User
	PrivateKey string `json:"privateKey" required:"true"`
}

// Live is the answer of a server that is there.
type Live struct {
	Status string `json:"status" required:"true"`
}
