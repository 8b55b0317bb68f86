// Package wire has the types of the toolbox HTTP API: the protocol between
// the agent in a sandbox and everything that talks to it. Names and shapes are
// those of the public Daytona toolbox API, generations 0.190 and 0.205, so
// that unmodified clients work; the few operations of our own are marked
// "Extension". It knows nothing of how the operations are carried out.
package wire

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Header and subprotocol names that clients send.
const (
	// HeaderSDKVersion tells the client's version; some answers depend on it.
	HeaderSDKVersion = "X-Daytona-SDK-Version"
	// HeaderSplitOutput is the opt-in to split output of clients that send no
	// version.
	HeaderSplitOutput = "X-Daytona-Split-Output"
	// ProtocolSDKVersion, followed by a version, is a WebSocket subprotocol
	// that must be selected when it is offered.
	ProtocolSDKVersion = "X-Daytona-SDK-Version~"
	// HeaderSkipActivity, if "true", says that a request does not put off the
	// sandbox's automatic stop.
	HeaderSkipActivity = "X-Daytona-Skip-Last-Activity-Update"
	// HeaderAgentToken (Extension) has the token of an agent that listens on
	// TCP, where Authorization is for the program behind /proxy. Without this
	// header, the token is looked for in Authorization.
	HeaderAgentToken = "X-Daytona-Agent-Token"
	// ProtocolPTYEnvs, followed by base64url JSON, carries the environment of
	// create-connect; it must be selected when it is offered.
	ProtocolPTYEnvs = "X-Daytona-Pty-Envs~"
	// ProtocolPTYExitControl asks for the exit status as a text frame.
	ProtocolPTYExitControl = "X-Daytona-Pty-Exit-Control"
)

// FirstRequestTimeout is how long an agent waits for the first request on a
// connection, or for the rest of a request's header, until it closes it. For
// further requests it waits longer.
const FirstRequestTimeout = 30 * time.Second

// OfferedVersion returns the ProtocolSDKVersion subprotocols that a WebSocket
// request offers.
func OfferedVersion(r *http.Request) []string {
	var offered []string
	for _, header := range r.Header["Sec-Websocket-Protocol"] {
		for name := range strings.SplitSeq(header, ",") {
			if name = strings.TrimSpace(name); strings.HasPrefix(name, ProtocolSDKVersion) {
				offered = append(offered, name)
			}
		}
	}
	return offered
}

// Markers precede every line of a session log.
const (
	StdoutMarker = "\x01\x01\x01"
	StderrMarker = "\x02\x02\x02"
)

// Error codes of the file routes, and of our own.
const (
	CodeFileNotFound     = "FILE_NOT_FOUND"
	CodeFileAccessDenied = "FILE_ACCESS_DENIED"
	CodeInvalidFilePath  = "INVALID_FILE_PATH"
	CodeFileReadFailed   = "FILE_READ_FAILED"
	CodeProcessTimeout   = "PROCESS_EXECUTION_TIMEOUT"
	CodeSessionEnded     = "SESSION_ENDED"
	CodeNoSpace          = "NO_SPACE"      // Extension: with status 507
	CodeCommandStart     = "COMMAND_START" // Extension: a command could not be started
	CodeNotListening     = "NOT_LISTENING" // Extension: nothing listens on the port
	CodeInvalidBody      = "INVALID_REQUEST_BODY"
	CodeUnsupported      = "NOT_SUPPORTED"     // Extension: with status 501, or 503 where the sandbox lacks a program
	CodeDirectoryInPlace = "DIRECTORY"         // Extension: a directory where a file is wanted
	CodeNotEmpty         = "NOT_EMPTY"         // Extension: a directory that is not empty
	CodeTooManyWatches   = "TOO_MANY_WATCHES"  // Extension: with status 429
	CodeInvalidSignature = "INVALID_SIGNATURE" // Extension: of a signed file URL, with status 403
	CodeURLExpired       = "URL_EXPIRED"       // Extension: of a signed file URL, with status 403
)

// Source is ErrorResponse.Source of every error of an agent.
const Source = "DAYTONA_DAEMON"

// ErrorResponse is the body of every error. PTY routes of the older
// generation carry the message in Error as well.
type ErrorResponse struct {
	StatusCode int    `json:"statusCode"`
	Message    string `json:"message"`
	Error      string `json:"error,omitempty"`
	Code       string `json:"code"`
	Source     string `json:"source"`
	Timestamp  string `json:"timestamp"`
	Path       string `json:"path"`
	Method     string `json:"method"`
}

// NewError returns the body of an error answer to r.
func NewError(r *http.Request, status int, code, message string) ErrorResponse {
	if code == "" {
		code = strings.ToUpper(strings.ReplaceAll(http.StatusText(status), " ", "_"))
	}
	return ErrorResponse{
		StatusCode: status, Message: message, Code: code, Source: Source,
		Timestamp: time.Now().UTC().Format(time.RFC3339Nano), Path: r.URL.Path, Method: r.Method,
	}
}

// Clip cuts what somebody else said to limit bytes, and shows that it did: for
// messages.
func Clip(s string, limit int) string {
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}

// WriteError answers r with an error.
func WriteError(w http.ResponseWriter, r *http.Request, status int, code, message string) {
	WriteJSON(w, status, NewError(r, status, code, message))
}

// WriteJSON answers with a JSON body. It says how long that is, so that a client
// knows the end of an answer to a request whose body is still on its way.
func WriteJSON(w http.ResponseWriter, status int, body any) {
	var b bytes.Buffer
	_ = json.NewEncoder(&b).Encode(body) // the types are this package's
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	// The client is gone if this fails: there is nobody to tell.
	_, _ = w.Write(b.Bytes())
}

// Dir is the answer of /user-home-dir and /work-dir.
type Dir struct {
	Dir string `json:"dir"`
}

// Version is the answer of /version.
type Version struct {
	Version string `json:"version"`
}

// InitializeRequest is the body of POST /init.
type InitializeRequest struct {
	Token string `json:"token"`
}

// Extension: POST SigningKeyPath replaces the key of signed file URLs; an empty
// one has the agent take none.
const SigningKeyPath = "/signing-key"

// SigningKeyRequest is the body of SigningKeyPath.
type SigningKeyRequest struct {
	Key string `json:"key"`
}

// UpdateEnvRequest is the body of POST /env.
type UpdateEnvRequest struct {
	Set              map[string]string `json:"set,omitempty"`
	Unset            []string          `json:"unset,omitempty"`
	UnsetValuePrefix string            `json:"unsetValuePrefix,omitempty"`
}

// SystemMetrics is the answer of GET /system/metrics; sizes are in bytes.
type SystemMetrics struct {
	CPUCount      int     `json:"cpuCount"`
	CPUUsedPct    float64 `json:"cpuUsedPct"`
	DiskFree      int64   `json:"diskFree"`
	DiskTotal     int64   `json:"diskTotal"`
	DiskUsed      int64   `json:"diskUsed"`
	MemCache      int64   `json:"memCache"`
	MemTotal      int64   `json:"memTotal"`
	MemUsed       int64   `json:"memUsed"`
	Timestamp     string  `json:"timestamp"`
	TimestampUnix int64   `json:"timestampUnix"`
}

// Extension: POST IdleTimeoutPath changes the time without a request after
// which the agent ends itself, and with it the sandbox; 0 is never.
const IdleTimeoutPath = "/idle-timeout"

// Extension: GET ActivityPath tells how long there has been no request. One with
// HeaderSkipActivity does not count.
const ActivityPath = "/activity"

// Activity is the answer of ActivityPath.
type Activity struct {
	// Open requests, WebSockets included.
	Open int `json:"open"`
	// IdleMilliseconds since the last request ended; 0 while one is open.
	IdleMilliseconds int64 `json:"idleMilliseconds"`
}

// Extension: POST ShutdownPath ends the sandbox as SIGTERM to the agent does:
// all processes get SIGTERM, and SIGKILL five seconds later.
const ShutdownPath = "/shutdown"

// IdleTimeoutRequest is the body of IdleTimeoutPath.
type IdleTimeoutRequest struct {
	Milliseconds int64 `json:"milliseconds"`
}
