package process

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// createSession serves POST /process/session.
func (s *Service) createSession(w http.ResponseWriter, r *http.Request) {
	var req wire.CreateSessionRequest
	if !decode(w, r, &req) {
		return
	}
	switch {
	case req.SessionID == "":
		fail(w, r, http.StatusBadRequest, "", "sessionId is required")
		return
	case req.SessionID == wire.EntrypointSession:
		fail(w, r, http.StatusBadRequest, "", "session id %q is reserved", req.SessionID)
		return
	case len(req.SessionID) > 255 || strings.ContainsAny(req.SessionID, "/\x00"):
		fail(w, r, http.StatusBadRequest, "", "session id %q: at most 255 bytes, without slash", req.SessionID)
		return
	}
	if s.session(req.SessionID) != nil {
		fail(w, r, http.StatusConflict, "", "session %q %v", req.SessionID, errSessionExists)
		return
	}
	dir := ""
	if startsInHome(r) {
		dir = s.spawner.account.Home
	}
	ss, err := s.newSession(req.SessionID, dir)
	if err != nil {
		fail(w, r, http.StatusInternalServerError, "", "create session %q: %v", req.SessionID, err)
		return
	}
	if err := s.add(ss); err != nil {
		ss.end(0)
		if errors.Is(err, errSessionExists) {
			fail(w, r, http.StatusConflict, "", "session %q %v", req.SessionID, err)
		} else {
			fail(w, r, http.StatusServiceUnavailable, "", "create session %q: %v", req.SessionID, err)
		}
		return
	}
	w.WriteHeader(http.StatusCreated)
}

func (s *Service) session(id string) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id]
}

// find returns the session that the path names, or answers 404.
func (s *Service) find(w http.ResponseWriter, r *http.Request, id string) *session {
	ss := s.session(id)
	if ss == nil {
		fail(w, r, http.StatusNotFound, "", "session %q not found", id)
	}
	return ss
}

func (s *Service) findCommand(w http.ResponseWriter, r *http.Request) (*session, *sessionCommand) {
	ss := s.find(w, r, r.PathValue("sessionId"))
	if ss == nil {
		return nil, nil
	}
	c := ss.command(r.PathValue("commandId"))
	if c == nil {
		fail(w, r, http.StatusNotFound, "", "command %q not found in session %q", r.PathValue("commandId"), ss.id)
	}
	return ss, c
}

// listSessions serves GET /process/session; the entrypoint's is not among
// them.
func (s *Service) listSessions(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	order := slices.Clone(s.order)
	s.mu.Unlock()
	list := make([]wire.Session, 0, len(order))
	for _, ss := range order {
		if ss.id != wire.EntrypointSession {
			list = append(list, ss.describe())
		}
	}
	wire.WriteJSON(w, http.StatusOK, list)
}

// getSession serves GET /process/session/{sessionId}.
func (s *Service) getSession(w http.ResponseWriter, r *http.Request) {
	if ss := s.find(w, r, r.PathValue("sessionId")); ss != nil {
		wire.WriteJSON(w, http.StatusOK, ss.describe())
	}
}

// deleteSession serves DELETE /process/session/{sessionId}.
func (s *Service) deleteSession(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("sessionId")
	if id == wire.EntrypointSession {
		fail(w, r, http.StatusBadRequest, "", "session %q cannot be deleted", id)
		return
	}
	s.mu.Lock()
	ss := s.sessions[id]
	if ss != nil {
		delete(s.sessions, id)
		s.order = slices.DeleteFunc(s.order, func(o *session) bool { return o == ss })
	}
	s.mu.Unlock()
	if ss == nil {
		fail(w, r, http.StatusNotFound, "", "session %q not found", id)
		return
	}
	ss.end(terminateGrace)
	w.WriteHeader(http.StatusNoContent)
}

// sessionExec serves POST /process/session/{sessionId}/exec.
func (s *Service) sessionExec(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("sessionId")
	var req wire.SessionExecuteRequest
	if !decode(w, r, &req) {
		return
	}
	switch {
	case id == wire.EntrypointSession:
		fail(w, r, http.StatusBadRequest, "", "session %q takes no commands", id)
		return
	case strings.TrimSpace(req.Command) == "":
		fail(w, r, http.StatusBadRequest, "", "command is required and must not be empty")
		return
	case strings.ContainsRune(req.Command, 0):
		fail(w, r, http.StatusBadRequest, "", "command must not contain NUL bytes")
		return
	}
	ss := s.find(w, r, id)
	if ss == nil {
		return
	}
	c := ss.newCommand(req.Command, req.Async || req.RunAsync, req.SuppressInputEcho)
	if err := ss.enqueue(c); err != nil {
		if errors.Is(err, errSessionEnded) {
			fail(w, r, http.StatusGone, wire.CodeSessionEnded, "session %q: %v: delete it and create another", id, err)
		} else {
			fail(w, r, http.StatusTooManyRequests, "", "session %q: %v", id, err)
		}
		return
	}
	if c.async {
		wire.WriteJSON(w, http.StatusAccepted, wire.SessionExecuteResponse{CommandID: c.id})
		return
	}
	select {
	case <-c.done:
	case <-r.Context().Done():
		// The command goes on: it is the session's, not the request's.
		return
	}
	c.mu.Lock()
	cancelled, code := c.cancelled, *c.exit
	c.mu.Unlock()
	if cancelled {
		if ss.isDeleted() {
			fail(w, r, http.StatusBadRequest, wire.CodeSessionEnded, "session cancelled")
		} else {
			fail(w, r, http.StatusGone, wire.CodeSessionEnded, "session %q: %v before the command began", id, errSessionEnded)
		}
		return
	}
	s.writeLog(w, r, c, formatFor(r), func(b *bufio.Writer) error {
		_, err := b.WriteString(`"cmdId":"` + c.id + `",`)
		return err
	}, code)
}

// getCommand serves GET …/command/{commandId}.
func (s *Service) getCommand(w http.ResponseWriter, r *http.Request) {
	if _, c := s.findCommand(w, r); c != nil {
		wire.WriteJSON(w, http.StatusOK, c.describe())
	}
}

// commandInput serves POST …/command/{commandId}/input.
func (s *Service) commandInput(w http.ResponseWriter, r *http.Request) {
	var req wire.SessionInputRequest
	if !decode(w, r, &req) {
		return
	}
	if r.PathValue("sessionId") == wire.EntrypointSession {
		fail(w, r, http.StatusBadRequest, "", "session %q takes no input", wire.EntrypointSession)
		return
	}
	ss, c := s.findCommand(w, r)
	if c == nil {
		return
	}
	err := c.send(r.Context(), req.Data)
	switch {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case errors.Is(err, errInputClosed):
		select {
		case <-ss.ended:
			fail(w, r, http.StatusGone, wire.CodeSessionEnded, "session %q: %v", ss.id, errSessionEnded)
			return
		case <-c.done:
			fail(w, r, http.StatusGone, "COMMAND_ALREADY_COMPLETED", "command %q has already completed", c.id)
			return
		default:
		}
		if !c.async {
			fail(w, r, http.StatusBadRequest, "", "command %q reads no input: run it with runAsync", c.id)
			return
		}
		fail(w, r, http.StatusGone, "COMMAND_ALREADY_COMPLETED", "command %q has already completed", c.id)
	case r.Context().Err() != nil:
	default:
		fail(w, r, http.StatusInternalServerError, "", "%v", err)
	}
}

// commandLogs serves GET …/command/{commandId}/logs.
func (s *Service) commandLogs(w http.ResponseWriter, r *http.Request) {
	if ss, c := s.findCommand(w, r); c != nil {
		s.logs(w, r, c, ss.id == wire.EntrypointSession)
	}
}

// entrypointLogs serves GET /process/session/entrypoint/logs.
func (s *Service) entrypointLogs(w http.ResponseWriter, r *http.Request) {
	ss := s.find(w, r, wire.EntrypointSession)
	if ss == nil {
		return
	}
	s.logs(w, r, ss.command(wire.EntrypointCommand), true)
}

func (s *Service) logs(w http.ResponseWriter, r *http.Request, c *sessionCommand, entrypoint bool) {
	format := formatFor(r)
	if entrypoint && format == combined {
		format = marked
	}
	follow := strings.EqualFold(r.URL.Query().Get("follow"), "true") || r.URL.Query().Get("follow") == "1"
	switch {
	case IsUpgrade(r):
		s.logSocket(w, r, c, format, follow)
	case follow:
		s.logStream(w, r, c, format)
	case format == split:
		s.writeLog(w, r, c, format, nil, -1)
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		rd := c.log.snapshot()
		defer rd.close()
		render := renderer(format)
		if err := copyLog(rd, nil, func(stream byte, p []byte) error {
			_, err := w.Write(render(stream, p))
			return err
		}); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
}

// renderer returns a function that puts the log's bytes into a format. What it
// returns is good until its next call.
func renderer(format logFormat) func(stream byte, p []byte) []byte {
	if format == combined {
		return func(_ byte, p []byte) []byte { return p }
	}
	var m lineMarker
	var buf []byte
	return func(stream byte, p []byte) []byte {
		buf = m.add(buf[:0], stream, p)
		return buf
	}
}

// copyLog passes on a log to its end, or until done is closed.
func copyLog(rd *logReader, done <-chan struct{}, fn func(stream byte, p []byte) error) error {
	for {
		if err := rd.each(done, fn); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

// writeLog answers with the log as JSON, and with what is given besides, a
// piece at a time: neither the log nor the answer is ever in memory as a
// whole. code is left out if begin is nil.
func (s *Service) writeLog(w http.ResponseWriter, r *http.Request, c *sessionCommand, format logFormat, begin func(*bufio.Writer) error, code int) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	b := bufio.NewWriterSize(w, 8<<10)
	end := c.log.size()
	field := func(name string, render func(stream byte, p []byte) []byte) error {
		return jsonField(b, name, func(to io.Writer) error {
			rd := c.log.snapshot()
			rd.limit = end
			defer rd.close()
			return copyLog(rd, nil, func(stream byte, p []byte) error {
				_, err := to.Write(render(stream, p))
				return err
			})
		})
	}
	only := func(want byte) func(byte, []byte) []byte {
		return func(stream byte, p []byte) []byte {
			if stream == want {
				return p
			}
			return nil
		}
	}
	b.WriteByte('{')
	if begin != nil {
		_ = begin(b)
	}
	err := field("output", renderer(format))
	if err == nil && format == split {
		b.WriteByte(',')
		if err = field("stdout", only(stdoutStream)); err == nil {
			b.WriteByte(',')
			err = field("stderr", only(stderrStream))
		}
	}
	if begin != nil {
		b.WriteString(`,"exitCode":`)
		b.WriteString(strconv.Itoa(code))
	}
	b.WriteString("}\n")
	if err == nil {
		err = b.Flush()
	}
	if err != nil {
		s.logger.Debug("log was not delivered", "path", r.URL.Path, "error", err)
		panic(http.ErrAbortHandler)
	}
}

// logSocket sends the log as binary messages.
func (s *Service) logSocket(w http.ResponseWriter, r *http.Request, c *sessionCommand, format logFormat, follow bool) {
	sock, err := AcceptSocket(w, r, 4<<10)
	if err != nil {
		s.logger.Debug("log socket", "error", err)
		return
	}
	defer sock.Drop()
	gone := sock.Discard()
	rd := c.log.snapshot()
	if follow {
		rd = c.log.follow()
	}
	defer rd.close()
	render := renderer(format)
	err = copyLog(rd, gone, func(stream byte, p []byte) error { return sock.WriteBinary(render(stream, p)) })
	if err != nil {
		sock.Close(1011, "read the log: "+err.Error())
		return
	}
	sock.Close(1000, "")
}

// logStream sends the log as the body of a plain answer, as it comes.
func (s *Service) logStream(w http.ResponseWriter, r *http.Request, c *sessionCommand, format logFormat) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(w)
	_ = rc.Flush()
	rd := c.log.follow()
	defer rd.close()
	render := renderer(format)
	for {
		err := rd.each(r.Context().Done(), func(stream byte, p []byte) error {
			_, err := w.Write(render(stream, p))
			return err
		})
		if err == io.EOF {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		_ = rc.Flush()
	}
}
