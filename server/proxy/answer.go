package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
)

// codes of errors of the proxy's own.
const (
	codeDestroyed   = "SANDBOX_DESTROYED"
	codeNotStarted  = "SANDBOX_NOT_STARTED"
	codeUnreachable = "SANDBOX_UNREACHABLE"
)

// recorder notes the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
}

func (r *recorder) WriteHeader(status int) {
	if r.status < 200 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.status < 200 {
		r.status = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Hijack is for WebSockets.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(r.ResponseWriter).Hijack()
}

// classes begin the messages of errors.
var classes = map[int]string{
	http.StatusBadRequest: "bad request", http.StatusUnauthorized: "unauthorized", http.StatusForbidden: "forbidden",
	http.StatusNotFound: "not found", http.StatusRequestTimeout: "request timeout", http.StatusConflict: "conflict",
	http.StatusGone: "gone", http.StatusTooManyRequests: "too many requests", http.StatusInternalServerError: "internal server error",
	http.StatusBadGateway: "bad gateway", http.StatusServiceUnavailable: "service unavailable", http.StatusGatewayTimeout: "gateway timeout",
}

// fail answers with an error. The path is told without its query, which may
// have a token in it.
func (q *request) fail(status int, code, message string) {
	if code == "" {
		code = strings.ToUpper(strings.ReplaceAll(http.StatusText(status), " ", "_"))
	}
	if class := classes[status]; class != "" {
		message = class + ": " + message
	}
	h := q.w.Header()
	q.cors(h)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	writeJSON(q.w, status, map[string]any{
		"statusCode": status, "message": message, "code": code, "timestamp": wire.Stamp(q.config.Clock()), "path": q.r.URL.Path, "method": q.r.Method,
	})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	b, _ := json.Marshal(body) // strings and numbers
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b) // whom could one tell?
}

// refuse answers to an error of finding out whether, and where to, a request
// may go.
func (q *request) refuse(err error) {
	q.err = err
	status, code := daytona.KindOf(err).HTTPStatus(), ""
	message := err.Error()
	if e, ok := errors.AsType[*daytona.Error](err); ok && e.Message != "" {
		message = e.Message
	}
	switch {
	case errors.Is(err, context.Canceled) && q.r.Context().Err() != nil:
		panic(http.ErrAbortHandler)
	case errors.Is(err, daytona.ErrGone):
		status, code = http.StatusNotFound, codeDestroyed
	case errors.Is(err, daytona.ErrState):
		code = codeNotStarted
	case status == http.StatusInternalServerError:
		q.log.Error("proxy", "sandbox", q.sandboxID, "err", err)
		message = "an unexpected error occurred"
	}
	q.fail(status, code, message)
}

func unauthorized(message string) error {
	return &daytona.Error{Kind: daytona.KindUnauthorized, Message: message}
}

// asUnauthorized is what is told of a credential that is no good; a fault of
// the server's own stays one.
func asUnauthorized(err error) error {
	if errors.Is(err, daytona.ErrUnauthorized) || errors.Is(err, daytona.ErrForbidden) {
		return &daytona.Error{Kind: daytona.KindUnauthorized, Message: "authentication failed: invalid credentials", Err: err}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &daytona.Error{Kind: daytona.KindUnavailable, Message: "the credential can't be checked just now", Err: err}
}

// notStarted is the error for a sandbox that has no agent to answer.
func notStarted(s Sandbox) error {
	return &daytona.Error{Kind: daytona.KindState, Message: "the sandbox is not started (state: " + s.State + "). Is the Sandbox started?"}
}

// preflight answers what browsers ask before they send a request of another
// page; they send no credentials with it. It reports whether it was one.
func (q *request) preflight() bool {
	r := q.r
	if r.Method != http.MethodOptions || r.Header.Get("Origin") == "" || r.Header.Get("Access-Control-Request-Method") == "" || r.Header.Get(headerDisableCORS) == "true" {
		return false
	}
	h := q.w.Header()
	q.cors(h)
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
		h.Set("Access-Control-Allow-Headers", asked)
	}
	h.Set("Access-Control-Max-Age", strconv.Itoa(int((10 * time.Minute).Seconds())))
	q.w.WriteHeader(http.StatusNoContent)
	return true
}

// cors lets any page read an answer. A page of another origin has no use of the
// proxy's cookies, see cookieCounts, so that it has to bring a token.
func (q *request) cors(h http.Header) {
	origin := q.r.Header.Get("Origin")
	if origin == "" || q.r.Header.Get(headerDisableCORS) == "true" {
		return
	}
	h.Add("Vary", "Origin")
	if h.Get("Access-Control-Allow-Origin") != "" {
		return
	}
	h.Set("Access-Control-Allow-Origin", origin)
	h.Set("Access-Control-Allow-Credentials", "true")
	h.Set("Access-Control-Expose-Headers", "*, Content-Disposition, Content-Length")
}
