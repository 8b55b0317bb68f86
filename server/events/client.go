package events

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// client is one session.
type client struct {
	server       *Server
	id           string
	organization string // as the client asked for
	timer        *time.Timer
	rooms        []string // guarded by server.mu

	mu     sync.Mutex
	frames [][]byte
	bytes  int
	// socket says that a WebSocket carries the session, polling that a request
	// waits for frames.
	socket, polling bool
	// ended says that the session is over, told that a poll has said so.
	ended, told bool
	attempts    int       // to connect
	alive       time.Time // when the client was last heard of
	wake        chan struct{}
	done        chan struct{}
}

// push queues a frame. It reports false if there is no place for it.
func (c *client) push(frame []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return true
	}
	if len(c.frames) >= queue || c.bytes+len(frame) > queueBytes {
		return false
	}
	c.frames = append(c.frames, frame)
	c.bytes += len(frame)
	select {
	case c.wake <- struct{}{}:
	default:
	}
	return true
}

// take returns what is queued.
func (c *client) take() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	frames := c.frames
	c.frames, c.bytes = nil, 0
	return frames
}

// end ends the session.
func (c *client) end(why string) {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return
	}
	c.ended = true
	socket := c.socket
	c.mu.Unlock()
	c.timer.Stop()
	c.server.leave(c, socket)
	close(c.done)
	c.server.log.Debug("events: a client has ended", "why", why)
}

// ServeHTTP serves the sessions.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if origin := r.Header.Get("Origin"); origin != "" {
		// Any page may ask: it has to bring a credential of its own.
		h.Add("Vary", "Origin")
		h.Set("Access-Control-Allow-Origin", origin)
		if r.Method == http.MethodOptions {
			h.Set("Access-Control-Allow-Methods", "GET,POST")
			h.Set("Access-Control-Allow-Headers", "Content-Type")
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	transport, sid := q.Get("transport"), q.Get("sid")
	switch {
	case transport != "websocket" && transport != "polling":
		problem(w, http.StatusBadRequest, 0, "Transport unknown")
		return
	case q.Get("EIO") != "4":
		problem(w, http.StatusBadRequest, 5, "Unsupported protocol version")
		return
	case transport == "websocket" && r.Method != http.MethodGet, sid == "" && r.Method != http.MethodGet, r.Method != http.MethodGet && r.Method != http.MethodPost:
		problem(w, http.StatusBadRequest, 2, "Bad handshake method")
		return
	}
	var c *client
	if sid == "" {
		var err error
		if c, err = s.enter(r); err != nil {
			problem(w, http.StatusServiceUnavailable, 3, "Bad request")
			return
		}
	} else {
		s.mu.Lock()
		c = s.clients[sid]
		s.mu.Unlock()
		if c == nil {
			problem(w, http.StatusBadRequest, 1, "Session ID unknown")
			return
		}
	}
	switch {
	case transport == "websocket":
		s.websocket(w, r, c, sid != "")
	case r.Method == http.MethodPost:
		s.receive(w, r, c)
	default:
		s.poll(w, r, c, sid == "")
	}
}

// websocket carries a session, from its beginning or after an upgrade.
func (s *Server) websocket(w http.ResponseWriter, r *http.Request, c *client, upgrade bool) {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		if !upgrade {
			c.end("no WebSocket")
		}
		return
	}
	defer ws.CloseNow()
	ws.SetReadLimit(maxMessage)
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	if upgrade {
		if !s.probe(ctx, ws, c) {
			return
		}
	} else {
		c.mu.Lock()
		c.socket = true
		c.mu.Unlock()
		if s.write(ctx, ws, s.opening(c, []string{})) != nil {
			c.end("gone")
			return
		}
	}
	defer c.end("gone")
	c.heard()
	go func() {
		defer c.end("gone")
		for {
			kind, b, err := ws.Read(ctx)
			if err != nil || kind != websocket.MessageText || !s.handle(c, string(b)) {
				return
			}
		}
	}()
	ping := time.NewTicker(s.config.PingInterval)
	defer ping.Stop()
	for {
		ended := false
		select {
		case <-c.wake:
		case <-ping.C:
			if c.silent(s.config.PingInterval + s.config.PingTimeout) {
				return
			}
			if s.write(ctx, ws, []byte{enginePing}) != nil {
				return
			}
		case <-c.done:
			ended = true
		}
		for _, f := range c.take() {
			if s.write(ctx, ws, f) != nil {
				return
			}
		}
		if ended {
			_ = s.write(ctx, ws, []byte{engineClose})
			// The other end closes, or is left alone with it.
			go func() { time.Sleep(time.Second); cancel() }()
			_ = ws.Close(websocket.StatusNormalClosure, "")
			return
		}
	}
}

func (c *client) heard() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.alive = time.Now()
}

// silent reports whether nothing was heard of the client for a time.
func (c *client) silent(d time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.alive) > d
}

func (s *Server) write(ctx context.Context, ws *websocket.Conn, frame []byte) error {
	ctx, cancel := context.WithTimeout(ctx, s.config.PingTimeout)
	defer cancel()
	return ws.Write(ctx, websocket.MessageText, frame)
}

// probe has a session that was begun by polling go on over a WebSocket.
func (s *Server) probe(ctx context.Context, ws *websocket.Conn, c *client) bool {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	_, b, err := ws.Read(ctx)
	if err != nil || string(b) != string([]byte{enginePing})+"probe" {
		return false
	}
	c.mu.Lock()
	if c.socket || c.ended {
		c.mu.Unlock()
		return false
	}
	c.mu.Unlock()
	if s.write(ctx, ws, append([]byte{enginePong}, "probe"...)) != nil {
		return false
	}
	// A request that still waits is sent away, so that the client can upgrade.
	c.mu.Lock()
	c.frames = append(c.frames, []byte{engineNoop})
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	_, b, err = ws.Read(ctx)
	if err != nil || string(b) != string([]byte{engineUpgrade}) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.socket || c.ended {
		return false
	}
	c.socket = true
	if len(c.frames) > 0 {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// separator is between the packets of one answer to a poll.
const separator = "\x1e"

// poll answers with what there is, or what comes, or a ping.
func (s *Server) poll(w http.ResponseWriter, r *http.Request, c *client, first bool) {
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	if first {
		c.heard()
		s.watch(c)
		_, _ = w.Write(s.opening(c, []string{"websocket"}))
		return
	}
	c.mu.Lock()
	busy := c.polling || c.socket
	c.polling = true
	if c.ended {
		// The last of it, said once.
		busy = c.told
		c.told = true
	}
	c.mu.Unlock()
	if busy {
		// Two at once are a mistake that no client makes.
		c.end("it polls twice at once")
		problem(w, http.StatusBadRequest, 3, "Bad request")
		return
	}
	defer func() {
		c.mu.Lock()
		c.polling = false
		c.mu.Unlock()
	}()
	c.heard()
	timer := time.NewTimer(s.config.PingInterval)
	defer timer.Stop()
	frames := c.take()
	for len(frames) == 0 {
		select {
		case <-c.wake:
			frames = c.take()
		case <-timer.C:
			frames = [][]byte{{enginePing}}
		case <-c.done:
			frames = append(c.take(), []byte{engineClose})
		case <-r.Context().Done():
			return
		}
	}
	_, _ = w.Write(bytes.Join(frames, []byte(separator)))
}

// watch ends a session that neither polls nor has upgraded.
func (s *Server) watch(c *client) {
	go func() {
		tick := time.NewTicker(s.config.PingInterval)
		defer tick.Stop()
		for {
			select {
			case <-c.done:
				return
			case <-tick.C:
				c.mu.Lock()
				socket, polling := c.socket, c.polling
				c.mu.Unlock()
				if socket {
					return
				}
				if !polling && c.silent(s.config.PingInterval+s.config.PingTimeout) {
					c.end("silent")
				}
			}
		}
	}()
}

// receive takes what a polling client sends.
func (s *Server) receive(w http.ResponseWriter, r *http.Request, c *client) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(connectTime))
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMessage))
	if err != nil {
		problem(w, http.StatusRequestEntityTooLarge, 3, "Bad request")
		return
	}
	c.heard()
	for part := range bytes.SplitSeq(b, []byte(separator)) {
		if !s.handle(c, string(part)) {
			c.end("it sent what it must not")
			break
		}
	}
	w.Header().Set("Content-Type", "text/html")
	_, _ = io.WriteString(w, "ok")
}

// handle takes a packet of a client. It reports false if the session is over.
func (s *Server) handle(c *client, frame string) bool {
	c.heard()
	if frame == "" {
		return false
	}
	switch frame[0] {
	case enginePong, engineNoop:
		return true
	case engineMessage:
	default:
		return false
	}
	p, err := parse(frame[1:])
	if err != nil {
		return false
	}
	switch p.kind {
	case socketConnect:
		if !c.attempt() {
			return false
		}
		if p.namespace != "/" {
			c.refuse(p.namespace, "Invalid namespace")
			return true
		}
		var auth struct {
			Token string `json:"token"`
		}
		if len(p.data) > 0 && json.Unmarshal(p.data, &auth) != nil || auth.Token == "" {
			c.refuse("/", "Unauthorized")
			return true
		}
		if err := s.admit(c, auth.Token); err != nil {
			c.refuse("/", "Unauthorized")
		}
		return true
	case socketDisconnect:
		return false
	}
	// Clients have nothing to say, and nobody listens.
	return true
}

// attempt counts the connect packets of a session. It reports false if there
// were too many.
func (c *client) attempt() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.attempts++
	return c.attempts <= attempts
}

// refuse answers to a connect packet.
func (c *client) refuse(namespace, message string) {
	b, _ := json.Marshal(map[string]string{"message": message})
	c.push(packet{kind: socketConnectError, namespace: namespace, data: b}.encode())
}
