package daytona

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// Kind classifies an [Error]. Kinds map one to one to the status codes of the
// wire protocol; see [Kind.HTTPStatus].
type Kind string

// The kinds of errors. Each has a sentinel (ErrNotFound and so on) for use
// with [errors.Is].
const (
	KindInvalid      Kind = "invalid"      // a value breaks a documented rule (400)
	KindUnauthorized Kind = "unauthorized" // no or unknown credentials (401)
	KindForbidden    Kind = "forbidden"    // known caller, not allowed (403)
	KindNotFound     Kind = "not_found"    // no such sandbox, file, image, … (404)
	KindTimeout      Kind = "timeout"      // a time limit given by the caller ran out (408)
	KindConflict     Kind = "conflict"     // the name is taken, or another operation is under way (409)
	KindGone         Kind = "gone"         // it was there and has ended (410)
	KindUnsupported  Kind = "unsupported"  // this backend cannot do or enforce it (422)
	KindState        Kind = "state"        // not possible in the sandbox's present state (400 on the wire)
	KindExhausted    Kind = "exhausted"    // a quota or rate limit is used up (429)
	KindInternal     Kind = "internal"     // a fault of the implementation (500)
	KindUnavailable  Kind = "unavailable"  // the sandbox, its agent or its engine cannot be reached (503)
	KindNoSpace      Kind = "no_space"     // the sandbox's disk, or the host's, is full (507)
)

// Sentinels for [errors.Is]. An [Error] matches the sentinel of its kind;
// KindUnsupported also matches [errors.ErrUnsupported].
var (
	ErrInvalid      = kindError(KindInvalid)
	ErrUnauthorized = kindError(KindUnauthorized)
	ErrForbidden    = kindError(KindForbidden)
	ErrNotFound     = kindError(KindNotFound)
	ErrTimeout      = kindError(KindTimeout)
	ErrConflict     = kindError(KindConflict)
	ErrGone         = kindError(KindGone)
	ErrUnsupported  = kindError(KindUnsupported)
	ErrState        = kindError(KindState)
	ErrExhausted    = kindError(KindExhausted)
	ErrInternal     = kindError(KindInternal)
	ErrUnavailable  = kindError(KindUnavailable)
	ErrNoSpace      = kindError(KindNoSpace)
)

// kindError is a sentinel: an error that is nothing but its kind.
type kindError Kind

func (k kindError) Error() string { return "daytona: " + strings.ReplaceAll(string(k), "_", " ") }

func (k kindError) Is(target error) bool {
	return Kind(k) == KindUnsupported && target == errors.ErrUnsupported
}

// HTTPStatus returns the status code that stands for k on the wire.
func (k Kind) HTTPStatus() int {
	switch k {
	case KindInvalid, KindState:
		return http.StatusBadRequest
	case KindUnauthorized:
		return http.StatusUnauthorized
	case KindForbidden:
		return http.StatusForbidden
	case KindNotFound:
		return http.StatusNotFound
	case KindTimeout:
		return http.StatusRequestTimeout
	case KindConflict:
		return http.StatusConflict
	case KindGone:
		return http.StatusGone
	case KindUnsupported:
		return http.StatusUnprocessableEntity
	case KindExhausted:
		return http.StatusTooManyRequests
	case KindUnavailable:
		return http.StatusServiceUnavailable
	case KindNoSpace:
		return http.StatusInsufficientStorage
	default:
		return http.StatusInternalServerError
	}
}

// KindOfStatus returns the kind that an HTTP status of the wire stands for.
// It is KindInternal for every status that has no kind of its own.
func KindOfStatus(status int) Kind {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return KindInvalid
	case http.StatusUnauthorized:
		return KindUnauthorized
	case http.StatusForbidden:
		return KindForbidden
	case http.StatusNotFound:
		return KindNotFound
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return KindTimeout
	case http.StatusConflict:
		return KindConflict
	case http.StatusGone:
		return KindGone
	case http.StatusUnprocessableEntity, http.StatusNotImplemented:
		return KindUnsupported
	case http.StatusTooManyRequests:
		return KindExhausted
	case http.StatusServiceUnavailable, http.StatusBadGateway:
		return KindUnavailable
	case http.StatusInsufficientStorage:
		return KindNoSpace
	default:
		return KindInternal
	}
}

// Error is the error type of this module: what was tried, on what, why it did
// not work and what to do. Match its kind with errors.Is(err, ErrNotFound),
// or take it apart with [errors.As].
type Error struct {
	// Kind classifies the error. Defaults to KindInternal.
	Kind Kind
	// Op is what was tried, such as "create sandbox".
	Op string
	// Subject is what it was tried on: a sandbox id or name, a path, an image.
	Subject string
	// Field names the offending field of the request, such as
	// "Resources.Memory". Empty where no single field is to blame.
	Field string
	// Value is the offending value, where Field is set.
	Value any
	// Message says what is wrong and what to do, in one sentence.
	Message string
	// Err is the cause, if any.
	Err error
}

// Error formats as "op subject: field = value: message: cause".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Subject != "" {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(e.Subject)
	}
	part := func(s string) {
		if s == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(s)
	}
	if e.Field != "" {
		if s, ok := e.Value.(string); ok {
			part(e.Field + " = " + strconv.Quote(s))
		} else if e.Value != nil {
			part(fmt.Sprintf("%s = %v", e.Field, e.Value))
		} else {
			part(e.Field)
		}
	}
	part(e.Message)
	if e.Err != nil {
		part(e.Err.Error())
	}
	if b.Len() == 0 {
		return kindError(e.Kind).Error()
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the sentinel of e's kind.
func (e *Error) Is(target error) bool {
	if k, ok := target.(kindError); ok {
		return e.kind() == Kind(k)
	}
	return e.kind() == KindUnsupported && target == errors.ErrUnsupported
}

func (e *Error) kind() Kind {
	if e.Kind == "" {
		return KindInternal
	}
	return e.Kind
}

// KindOf returns the kind of the first [Error] or sentinel in err's chain,
// KindUnsupported for [errors.ErrUnsupported], and KindInternal for any other
// error. It returns "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.kind()
	}
	if k, ok := errors.AsType[kindError](err); ok {
		return Kind(k)
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return KindUnsupported
	}
	return KindInternal
}

// invalid is the error for a field that breaks a rule.
func invalid(op, field string, value any, rule string) error {
	return &Error{Kind: KindInvalid, Op: op, Field: field, Value: value, Message: rule}
}

// ExitError says that a program ended, but not with exit code 0.
type ExitError struct {
	// ExitCode is the program's exit code, or 128 plus the signal's number
	// when a signal ended it, as shells count.
	ExitCode int
	// Signal names the signal that ended the program, such as "SIGKILL".
	// Empty when it exited by itself.
	Signal string
	// TimedOut says that the time limit of the command ended it.
	TimedOut bool
	// Stderr holds the last part (at most 32 KiB) of what [Cmd.Output] saw on
	// standard error, if Cmd.Stderr was nil.
	Stderr []byte
}

func (e *ExitError) Error() string {
	switch {
	case e.TimedOut:
		return fmt.Sprintf("command ran past its time limit and was killed (exit code %d)", e.ExitCode)
	case e.Signal != "":
		return fmt.Sprintf("command was ended by %s (exit code %d)", e.Signal, e.ExitCode)
	}
	msg := fmt.Sprintf("command exited with code %d", e.ExitCode)
	if s := strings.TrimSpace(string(e.Stderr)); s != "" {
		msg += ": " + s
	}
	return msg
}

// Is reports a timed-out command as [ErrTimeout].
func (e *ExitError) Is(target error) bool { return e.TimedOut && target == ErrTimeout }

// BuildError says that a step of a build failed.
type BuildError struct {
	// Step and Name are those of [BuildLog].
	Step int
	Name string
	// Line of the Dockerfile, from 1; 0 if it belongs to none.
	Line int
	// ExitCode of the program of a RUN step; 0 if it was none.
	ExitCode int
	// Log is the last part (at most 32 KiB) of what the step wrote.
	Log []byte
	// Err says what went wrong.
	Err error
}

func (e *BuildError) Error() string {
	msg := "build step " + e.Name
	if e.Line > 0 {
		msg += fmt.Sprintf(" (line %d)", e.Line)
	}
	if e.Err != nil {
		msg += ": " + e.Err.Error()
	}
	if s := strings.TrimSpace(string(e.Log)); s != "" {
		msg += ": " + s
	}
	return msg
}

func (e *BuildError) Unwrap() error { return e.Err }
