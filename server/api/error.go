package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
	"github.com/daytona-go/daytona/server/store"
)

// statusError is an error with the status that is its answer.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string  { return e.err.Error() }
func (e *statusError) Unwrap() error  { return e.err }
func (e *statusError) GetStatus() int { return e.status }

// Status makes err the answer with a status other than that of its kind. Only
// the wire's own exceptions need it.
func Status(status int, err error) error { return &statusError{status, err} }

// codedError is an error whose answer has a code that clients look at.
type codedError struct {
	code string
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// statusOf is the status of the answer to err.
func statusOf(err error) int {
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return http.StatusRequestEntityTooLarge
	}
	if errors.Is(err, context.Canceled) {
		return 499 // what the log says of a client that has gone
	}
	if store.IsAway(err) {
		return http.StatusServiceUnavailable
	}
	return daytona.KindOf(err).HTTPStatus()
}

// messageOf is what a client may read of an error. What is the server's own
// fault is in its log and nowhere else: it may name what the client must not
// know.
func messageOf(err error, status int) string {
	e, ok := errors.AsType[*daytona.Error](err)
	switch {
	case status == http.StatusInternalServerError:
		return "An unexpected error occurred."
	case store.IsAway(err):
		return "The database can't be reached now. Please try again."
	case ok && e.Message != "" && e.Field == "":
		return e.Message
	case ok:
		return e.Error()
	}
	return err.Error()
}

// body makes the body of the answer to an error.
func errorBody(path string, status int, message string, err error) *wire.Error {
	reason := http.StatusText(status)
	if reason == "" {
		reason = "Error"
	}
	e := &wire.Error{Path: path, Timestamp: wire.Stamp(time.Now()), StatusCode: status, Error: reason, Message: message}
	if c, ok := errors.AsType[*codedError](err); ok {
		e.Code = c.code
	}
	return e
}

// writeError answers with an error.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	status, path := statusOf(err), r.URL.RequestURI()
	if q := requestOf(r.Context()); q != nil {
		q.err, path = err, q.url
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(errorBody(path, status, messageOf(err, status), err))
}
