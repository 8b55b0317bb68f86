package wire

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// ExecuteRequest is the body of POST /process/execute. Timeout is in seconds,
// 0 is none.
type ExecuteRequest struct {
	Command string            `json:"command"`
	Cwd     string            `json:"cwd,omitempty"`
	Envs    map[string]string `json:"envs,omitempty"`
	Timeout int               `json:"timeout,omitempty"`
}

// ExecuteResponse is the answer. On a timeout the answer has status 408 and
// is an ErrorResponse with these fields added (Extension), so that the output
// until then is not lost.
type ExecuteResponse struct {
	ExitCode int    `json:"exitCode"`
	Result   string `json:"result"`
}

// TimeoutResponse is the body of status 408.
type TimeoutResponse struct {
	ErrorResponse
	ExecuteResponse
}

// CodeRunRequest is the body of POST /process/code-run. Timeout is in
// seconds, 0 is none.
type CodeRunRequest struct {
	Code     string            `json:"code"`
	Language string            `json:"language"`
	Argv     []string          `json:"argv,omitempty"`
	Envs     map[string]string `json:"envs,omitempty"`
	Timeout  int               `json:"timeout,omitempty"`
}

// CodeRunResponse is the answer.
type CodeRunResponse struct {
	ExitCode  int               `json:"exitCode"`
	Result    string            `json:"result"`
	Artifacts *CodeRunArtifacts `json:"artifacts,omitempty"`
}

// CodeRunArtifacts are the charts that the code showed.
type CodeRunArtifacts struct {
	Charts []json.RawMessage `json:"charts,omitempty"`
}

// CreateSessionRequest is the body of POST /process/session.
type CreateSessionRequest struct {
	SessionID string `json:"sessionId"`
}

// EntrypointSession and EntrypointCommand are the reserved ids under which
// the sandbox's entrypoint is found.
const (
	EntrypointSession = "entrypoint"
	EntrypointCommand = "entrypoint_command"
)

// Session is a session with its commands, oldest first.
type Session struct {
	SessionID string    `json:"sessionId"`
	Commands  []Command `json:"commands"`
}

// Command is a command of a session; ExitCode is absent while it runs.
type Command struct {
	ID       string `json:"id"`
	Command  string `json:"command"`
	ExitCode *int   `json:"exitCode,omitempty"`
}

// SessionExecuteRequest is the body of POST /process/session/{id}/exec. Async
// is another name of RunAsync.
type SessionExecuteRequest struct {
	Command           string `json:"command"`
	RunAsync          bool   `json:"runAsync,omitempty"`
	Async             bool   `json:"async,omitempty"`
	SuppressInputEcho bool   `json:"suppressInputEcho,omitempty"`
}

// SessionExecuteResponse is the answer; only CommandID is set when async.
type SessionExecuteResponse struct {
	CommandID string  `json:"cmdId"`
	Output    *string `json:"output,omitempty"`
	Stdout    *string `json:"stdout,omitempty"`
	Stderr    *string `json:"stderr,omitempty"`
	ExitCode  *int    `json:"exitCode,omitempty"`
}

// SessionLogs is the JSON form of a command's log.
type SessionLogs struct {
	Output string `json:"output"`
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr"`
}

// SessionInputRequest is the body of …/command/{id}/input.
type SessionInputRequest struct {
	Data string `json:"data"`
}

// PTYCreateRequest is the body of POST /process/pty; Cols defaults to 80,
// Rows to 24.
type PTYCreateRequest struct {
	ID        string            `json:"id"`
	Cwd       string            `json:"cwd,omitempty"`
	Envs      map[string]string `json:"envs,omitempty"`
	Cols      int               `json:"cols,omitempty"`
	Rows      int               `json:"rows,omitempty"`
	LazyStart bool              `json:"lazyStart,omitempty"`
}

// PTYCreateResponse is the answer.
type PTYCreateResponse struct {
	SessionID string `json:"sessionId"`
}

// PTYList is the answer of GET /process/pty.
type PTYList struct {
	Sessions []PTYInfo `json:"sessions"`
}

// PTYInfo describes a PTY; CreatedAt is RFC 3339.
type PTYInfo struct {
	ID        string            `json:"id"`
	Cwd       string            `json:"cwd"`
	Envs      map[string]string `json:"envs"`
	Cols      int               `json:"cols"`
	Rows      int               `json:"rows"`
	CreatedAt string            `json:"createdAt"`
	Active    bool              `json:"active"`
	LazyStart bool              `json:"lazyStart"`
}

// PTYResizeRequest is the body of POST /process/pty/{id}/resize; 1 to 1000.
type PTYResizeRequest struct {
	Cols int `json:"cols"`
	Rows int `json:"rows"`
}

// PTYControl is a text frame of a PTY's WebSocket.
type PTYControl struct {
	Type       string `json:"type"`   // "control"
	Status     string `json:"status"` // "connected", "error", "exited"
	Error      string `json:"error,omitempty"`
	ExitCode   *int   `json:"exitCode,omitempty"`
	ExitReason string `json:"exitReason,omitempty"`
}

// PTYExit is the reason of the close frame of a PTY's WebSocket.
type PTYExit struct {
	ExitCode   int    `json:"exitCode"`
	ExitReason string `json:"exitReason,omitempty"`
	Error      string `json:"error,omitempty"`
}

// Extension: GET /process/command is a WebSocket that runs one program with
// its streams kept apart, as os/exec does. The query parameter "spec" is a
// CommandRequest as base64url (unpadded) JSON, so that the program starts with
// the handshake. If it cannot be started the handshake is answered with an
// ErrorResponse (code COMMAND_START) instead: status 404 for no such program or
// directory, 403 for no permission, 422 for anything else.
//
// Client to server, binary frames, first byte FrameStdin: the rest is input;
// an empty rest is its end. Text frames: a CommandControl.
// Server to client, binary frames, first byte FrameStdout or FrameStderr.
// Text frames: a CommandEvent; the first has PID, the last Exit, after which
// the server closes with 1000. When the client goes away before, everything
// that the program started is killed.
const (
	CommandPath = "/process/command"
	FrameStdin  = 0
	FrameStdout = 1
	FrameStderr = 2
	// CommandFrameLimit is the greatest size of a frame in bytes.
	CommandFrameLimit = 64 << 10
)

// CommandRequest describes the program. Its Timeout is in milliseconds, 0 is
// none.
type CommandRequest struct {
	Args    []string          `json:"args"`
	Cwd     string            `json:"cwd,omitempty"`
	Envs    map[string]string `json:"envs,omitempty"`
	Stdin   bool              `json:"stdin,omitempty"` // false: it reads end of file
	Cols    int               `json:"cols,omitempty"`  // with Rows: on a terminal
	Rows    int               `json:"rows,omitempty"`
	Timeout int64             `json:"timeout,omitempty"`
}

// CommandControl is a request about the running program.
type CommandControl struct {
	Signal string `json:"signal,omitempty"` // such as "SIGINT", to its process group
	Cols   int    `json:"cols,omitempty"`   // with Rows: resize
	Rows   int    `json:"rows,omitempty"`
}

// CommandEvent tells about the running program.
type CommandEvent struct {
	PID  int          `json:"pid,omitempty"`
	Exit *CommandExit `json:"exit,omitempty"`
}

// CommandExit is how the program ended.
type CommandExit struct {
	Code     int    `json:"code"`
	Signal   string `json:"signal,omitempty"`
	TimedOut bool   `json:"timedOut,omitempty"`
}

// Extension: GET /port/{port}/connect is a WebSocket whose binary frames, in
// both directions, are the bytes of a TCP connection to that port on the
// sandbox's loopback interface. Nothing listening is answered with status 502
// and code NOT_LISTENING. An empty binary frame is the end of that direction.

// OfferedProtocols returns the WebSocket subprotocols that a client offers, in
// its order.
func OfferedProtocols(h http.Header) []string {
	var list []string
	for _, line := range h.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(line, ",") {
			if p = strings.Trim(p, " \t"); p != "" {
				list = append(list, p)
			}
		}
	}
	return list
}

// SelectProtocol chooses which of the offered subprotocols a server selects.
// Some clients fail if none of theirs is. The client's version comes first,
// then the PTY's exit control; the PTY's environment is the last resort, since
// it is sent back by being selected. Others are not ours: "".
func SelectProtocol(offered []string) string {
	best, rank := "", 0
	for _, p := range offered {
		n := 0
		switch {
		case hasPrefixFold(p, ProtocolSDKVersion):
			n = 3
		case strings.EqualFold(p, ProtocolPTYExitControl):
			n = 2
		case hasPrefixFold(p, ProtocolPTYEnvs):
			n = 1
		}
		if n > rank {
			best, rank = p, n
		}
	}
	return best
}

// ClientVersion returns the version of the client's SDK: from its header, or
// from a subprotocol where a browser cannot send the header. "" if neither is
// there.
func ClientVersion(h http.Header) string {
	if v := h.Get(HeaderSDKVersion); v != "" {
		return v
	}
	for _, p := range OfferedProtocols(h) {
		if hasPrefixFold(p, ProtocolSDKVersion) {
			return p[len(ProtocolSDKVersion):]
		}
	}
	return ""
}

// OffersExitControl says whether the client wants a PTY's exit status as a
// text frame.
func OffersExitControl(h http.Header) bool {
	for _, p := range OfferedProtocols(h) {
		if strings.EqualFold(p, ProtocolPTYExitControl) {
			return true
		}
	}
	return false
}

// OfferedPTYEnvs decodes the environment of a create-connect; nil if there is
// none.
func OfferedPTYEnvs(h http.Header) (map[string]string, error) {
	for _, p := range OfferedProtocols(h) {
		if !hasPrefixFold(p, ProtocolPTYEnvs) {
			continue
		}
		b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(p[len(ProtocolPTYEnvs):], "="))
		if err != nil {
			return nil, fmt.Errorf("subprotocol %s: not base64url: %w", ProtocolPTYEnvs, err)
		}
		var envs map[string]string
		if err := json.Unmarshal(b, &envs); err != nil {
			return nil, fmt.Errorf("subprotocol %s: not a JSON object of strings: %w", ProtocolPTYEnvs, err)
		}
		return envs, nil
	}
	return nil, nil
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// EncodeCommandSpec and DecodeCommandSpec convert the query parameter "spec"
// of CommandPath.
func EncodeCommandSpec(req CommandRequest) (string, error) {
	b, err := json.Marshal(req)
	return base64.RawURLEncoding.EncodeToString(b), err
}

// DecodeCommandSpec is the inverse of EncodeCommandSpec.
func DecodeCommandSpec(spec string) (req CommandRequest, err error) {
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(spec, "="))
	if err != nil {
		return req, fmt.Errorf("not base64url: %w", err)
	}
	if err := json.Unmarshal(b, &req); err != nil {
		return req, fmt.Errorf("not a JSON command: %w", err)
	}
	return req, nil
}
