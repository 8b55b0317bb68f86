package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// InterpreterPath is the WebSocket that runs code in a context: the client
// sends an InterpreterRequest, the server InterpreterMessages, and then closes
// with a code that says how it went. A client that goes away before interrupts
// its run.
const InterpreterPath = "/process/interpreter/execute"

// InterpreterContextsPath is where contexts are made, listed and, with an id,
// deleted. Extension: POST …/{id}/interrupt interrupts the run that is under
// way in a context.
const InterpreterContextsPath = "/process/interpreter/context"

// DefaultInterpreterContext is the id of the implicit Python context. Those of
// other languages (Extension) have it followed by a hyphen and the language.
const DefaultInterpreterContext = "default"

// Close codes of InterpreterPath, besides 1000.
const (
	CloseInterpreterMalformed = 1002 // the request is not JSON
	CloseInterpreterRefused   = 1008 // no code, no such context, …
	CloseInterpreterFailed    = 1011 // the interpreter cannot be started
	CloseInterpreterTimeout   = 4008
)

// CreateInterpreterContextRequest is the body of POST InterpreterContextsPath.
// Language is "python", the default, or (Extension) "javascript" or
// "typescript".
type CreateInterpreterContextRequest struct {
	Cwd      string `json:"cwd,omitempty"`
	Language string `json:"language,omitempty"`
}

// InterpreterContext is the answer; CreatedAt is RFC 3339. Active says that its
// interpreter runs.
type InterpreterContext struct {
	ID        string `json:"id"`
	Cwd       string `json:"cwd"`
	CreatedAt string `json:"createdAt"`
	Active    bool   `json:"active"`
	Language  string `json:"language"`
}

// InterpreterContexts is the answer of GET InterpreterContextsPath.
type InterpreterContexts struct {
	Contexts []InterpreterContext `json:"contexts"`
}

// InterpreterRequest is the only message of a client on InterpreterPath.
// Timeout is in seconds, 0 is none; absent it is DefaultInterpreterTimeout.
type InterpreterRequest struct {
	Code      string `json:"code"`
	ContextID string `json:"contextId,omitempty"`
	// Language (Extension) chooses the implicit context where there is no
	// ContextID. Defaults to "python".
	Language string            `json:"language,omitempty"`
	Timeout  *float64          `json:"timeout,omitempty"`
	Envs     map[string]string `json:"envs,omitempty"`
}

// DefaultInterpreterTimeout is that of a request without one.
const DefaultInterpreterTimeout = 10 * time.Minute

// ErrNotJSON marks a request that is malformed.
var ErrNotJSON = errors.New("not a JSON object of a request")

// DecodeInterpreterRequest checks a client's message. Limit is 0 for none. An
// error that is not ErrNotJSON is about the values.
func DecodeInterpreterRequest(b []byte) (req InterpreterRequest, limit time.Duration, err error) {
	if err := json.Unmarshal(b, &req); err != nil {
		return req, 0, fmt.Errorf("%w: %v", ErrNotJSON, err)
	}
	if strings.TrimSpace(req.Code) == "" {
		return req, 0, errors.New("code is required")
	}
	if req.Timeout == nil {
		return req, DefaultInterpreterTimeout, nil
	}
	t := *req.Timeout
	switch {
	case t < 0:
		return req, 0, fmt.Errorf("timeout %g: must not be negative; 0 is none", t)
	case t >= math.MaxInt64/float64(time.Second):
		return req, 0, nil // longer than anything runs
	}
	limit = time.Duration(t * float64(time.Second))
	if limit == 0 && t > 0 {
		limit = 1 // 0 would be none
	}
	return req, limit, nil
}

// Types of InterpreterMessage. The last message is one of type control, where
// the close code is 1000.
const (
	InterpreterStdout  = "stdout"  // Text
	InterpreterStderr  = "stderr"  // Text
	InterpreterError   = "error"   // Name, Value, Traceback: an exception
	InterpreterControl = "control" // Text: InterpreterCompleted or InterpreterInterrupted
	// InterpreterResult (Extension) is the value of the last expression or
	// what was given to display: Data.
	InterpreterResult = "result"
	// InterpreterChart (Extension) is a figure of matplotlib: Chart.
	InterpreterChart = "chart"
	// InterpreterRefused (Extension) precedes a close for which there is an
	// error: Name is its code, as in ErrorResponse, Text its message, which is
	// too long for the close.
	InterpreterRefused = "refused"

	InterpreterCompleted   = "completed"
	InterpreterInterrupted = "interrupted"
)

// InterpreterExited is InterpreterMessage.Name where the code has ended its own
// interpreter; the state of the context is lost.
const InterpreterExited = "InterpreterExited"

// InterpreterMessage is a text frame of the server. The strings are always
// there, empty where there is no use for them.
type InterpreterMessage struct {
	Type      string `json:"type"`
	Text      string `json:"text"`
	Name      string `json:"name"`
	Value     string `json:"value"`
	Traceback string `json:"traceback"`
	// Data (Extension) has the forms of a value by media type, which
	// "text/plain" is always among; binary ones are base64.
	Data json.RawMessage `json:"data,omitempty"`
	// Chart (Extension) is a chart as in CodeRunArtifacts.
	Chart json.RawMessage `json:"chart,omitempty"`
}
