package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// dialError marks an error of the dialer.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// closedIdle reports whether a request was given a connection that the agent
// had closed before any of it was sent. net/http does not export its error for
// that (errServerClosedIdle).
func closedIdle(err error) bool { return err.Error() == "http: server closed idle connection" }

// lost is the error for a request that got no answer, or not all of it.
func lost(ctx context.Context, op, subject string, err error) error {
	if ctxErr := ctx.Err(); ctxErr != nil {
		return ended(op, subject, ctxErr)
	}
	if d, ok := errors.AsType[*dialError](err); ok {
		if _, typed := errors.AsType[*daytona.Error](d.err); typed {
			return d.err
		}
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: subject,
			Message: "the sandbox's agent cannot be reached; is the sandbox started?", Err: d.err}
	}
	if _, typed := errors.AsType[*daytona.Error](err); typed {
		return err
	}
	return &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: subject,
		Message: "the connection to the sandbox's agent was lost", Err: err}
}

// ended says that a context ended an operation.
func ended(op, subject string, err error) error {
	switch {
	case op == "":
		return err
	case subject == "":
		return fmt.Errorf("%s: %w", op, err)
	}
	return fmt.Errorf("%s %s: %w", op, subject, err)
}

// malformed is the error for an answer that breaks the protocol.
func malformed(op, subject string, err error) error {
	return &daytona.Error{Kind: daytona.KindInternal, Op: op, Subject: subject,
		Message: "the sandbox's agent gave a malformed answer", Err: err}
}

// answerError is the error that an answer with this status and body reports.
func answerError(op, subject string, file bool, status int, body []byte) *daytona.Error {
	var r wire.ErrorResponse
	if err := json.Unmarshal(body, &r); err != nil || (r.Message == "" && r.Error == "") {
		// Not an agent's: a proxy's page or plain text, or an old form.
		r.Message = string(body)
		if len(r.Message) > 500 {
			r.Message = r.Message[:500] + "…"
		}
	}
	msg := r.Message
	if msg == "" {
		msg = r.Error
	}
	if len(msg) > 4<<10 {
		msg = msg[:4<<10] + "…"
	}
	msg = strings.TrimSpace(strings.ToValidUTF8(msg, "�"))
	if msg == "" {
		msg = fmt.Sprintf("the sandbox's agent answered with status %d %s", status, http.StatusText(status))
	}
	e := &daytona.Error{Kind: kindOf(status, r.Code), Op: op, Subject: subject, Message: msg}
	if file {
		e.Err = fileCause(e.Kind)
	}
	return e
}

// kindOf classifies an answer: by its code, which is more precise, or else by
// its status.
func kindOf(status int, code string) daytona.Kind {
	switch code {
	case wire.CodeFileNotFound:
		return daytona.KindNotFound
	case wire.CodeFileAccessDenied:
		return daytona.KindForbidden
	case wire.CodeInvalidFilePath, wire.CodeDirectoryInPlace:
		return daytona.KindInvalid
	case wire.CodeProcessTimeout:
		return daytona.KindTimeout
	case wire.CodeSessionEnded:
		return daytona.KindGone
	case wire.CodeNoSpace:
		return daytona.KindNoSpace
	case wire.CodeNotListening, wire.CodeGitTransport:
		return daytona.KindUnavailable
	case wire.CodeUnsupported, wire.CodeFFmpegNotFound:
		return daytona.KindUnsupported
	case wire.CodeLSPNotStarted:
		return daytona.KindState
	case wire.CodeLSPNotFound:
		return daytona.KindNotFound
	case wire.CodeLSPFailed:
		return daytona.KindUnavailable
	case wire.CodeDesktopStopped:
		return daytona.KindState
	}
	if code == wire.CodeCommandStart && status == http.StatusUnprocessableEntity {
		return daytona.KindInvalid // the program is at fault, not the agent
	}
	if status == http.StatusRequestHeaderFieldsTooLarge || status == http.StatusRequestURITooLong {
		return daytona.KindInvalid
	}
	return daytona.KindOfStatus(status)
}

// fileCause is what package io/fs calls an error of a kind, or nil.
func fileCause(k daytona.Kind) error {
	switch k {
	case daytona.KindNotFound:
		return fs.ErrNotExist
	case daytona.KindConflict:
		return fs.ErrExist
	case daytona.KindForbidden:
		return fs.ErrPermission
	case daytona.KindInvalid:
		return fs.ErrInvalid
	}
	return nil
}

// pathError says which operation on which path err is about.
func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}
