package events_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/events"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// people are who has what credential.
type people struct {
	mu      sync.Mutex
	tokens  map[string]*identity.Principal
	members map[string]string
}

func (p *people) Authenticate(_ context.Context, bearer string) (*identity.Principal, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if found := p.tokens[bearer]; found != nil {
		return new(*found), nil
	}
	return nil, daytona.ErrUnauthorized
}

func (p *people) Join(_ context.Context, who *identity.Principal, org string) (*identity.Principal, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.members[who.UserID] != org {
		return nil, daytona.ErrForbidden
	}
	return who, nil
}

type world struct {
	*people
	t      *testing.T
	db     *store.DB
	events *events.Server
	url    string
}

func newWorld(t *testing.T, db *store.DB, change func(*events.Config)) *world {
	t.Helper()
	w := &world{t: t, db: db, people: &people{members: map[string]string{"user": "org"}, tokens: map[string]*identity.Principal{
		"key":    {Kind: identity.Key, UserID: "user", KeyID: "key-id", OrganizationID: "org"},
		"jwt":    {Kind: identity.JWT, UserID: "user"},
		"other":  {Kind: identity.Key, UserID: "other", KeyID: "other-id", OrganizationID: "other-org"},
		"runner": {Kind: identity.Runner, RunnerID: "runner"},
	}}}
	c := events.Config{DB: db, Authenticator: w, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	w.events = events.New(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); w.events.Run(ctx, "changed") }()
	t.Cleanup(func() { cancel(); <-done })
	mux := http.NewServeMux()
	mux.Handle("/api/socket.io/", w.events)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	w.url = s.URL
	return w
}

// TestHeardFromTheStart: nobody is let in before the server hears of events, and so
// nobody misses those that happen meanwhile.
func TestHeardFromTheStart(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := events.New(events.Config{DB: db, Log: slog.New(slog.DiscardHandler)})
		s := httptest.NewServer(e)
		defer s.Close()
		early, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if ws, _, err := websocket.Dial(early, s.URL+"/?EIO=4&transport=websocket", nil); err == nil {
			ws.CloseNow()
			t.Error("let in before there was anything to be told")
		}
		ctx, end := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); e.Run(ctx) }()
		defer func() { end(); <-done }()
		ws, _, err := websocket.Dial(t.Context(), s.URL+"/?EIO=4&transport=websocket", nil)
		if err != nil {
			t.Fatal(err)
		}
		ws.CloseNow()
	})
}

// socket is a client that speaks the protocol by hand.
type socket struct {
	t *testing.T
	*websocket.Conn
}

func (w *world) open(query string) *socket {
	w.t.Helper()
	ws, _, err := websocket.Dial(w.t.Context(), w.url+"/api/socket.io/?EIO=4&transport=websocket"+query, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { ws.CloseNow() })
	ws.SetReadLimit(16 << 20)
	s := &socket{w.t, ws}
	if f := s.read(); !strings.HasPrefix(f, `0{`) || !strings.Contains(f, `"sid":`) {
		w.t.Fatal(f)
	}
	return s
}

func (s *socket) read() string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
	defer cancel()
	_, b, err := s.Conn.Read(ctx)
	if err != nil {
		return "error: " + err.Error()
	}
	return string(b)
}

func (s *socket) write(text string) {
	s.t.Helper()
	if err := s.Conn.Write(s.t.Context(), websocket.MessageText, []byte(text)); err != nil {
		s.t.Fatal(err)
	}
}

func (w *world) connect(token, query string) *socket {
	w.t.Helper()
	s := w.open(query)
	s.write(`40{"token":"` + token + `"}`)
	if f := s.read(); !strings.HasPrefix(f, `40{"sid":"`) {
		w.t.Fatal(f)
	}
	return s
}

func (w *world) publish(org, event string, payload any) {
	w.t.Helper()
	if err := w.events.Publish(w.t.Context(), org, event, payload); err != nil {
		w.t.Fatal(err)
	}
}

// Those of an organization are told, in order, of what happens in it, at every
// server; nobody else is told anything.
func TestEvents(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		one, two := newWorld(t, db, nil), newWorld(t, db, nil)
		sockets := map[string]*socket{"key": one.connect("key", ""), "jwt": two.connect("jwt", "&organizationId=org")}
		other := one.connect("other", "")
		long := strings.Repeat("é<", 5000)
		for i := range 3 {
			one.publish("org", events.SandboxStateUpdated, map[string]any{"n": i, "sandbox": map[string]string{"id": "s"}})
			two.publish("org", events.SandboxCreated, map[string]string{"id": fmt.Sprint(i), "long": long})
		}
		two.publish("other-org", events.VolumeCreated, map[string]string{"id": "v"})
		for name, s := range sockets {
			for i := range 3 {
				if f, want := s.read(), fmt.Sprintf(`42["sandbox.state.updated",{"n":%d,"sandbox":{"id":"s"}}]`, i); f != want {
					t.Errorf("%s: %.200s", name, f)
				}
				var got []any
				f := s.read()
				if err := json.Unmarshal([]byte(strings.TrimPrefix(f, "42")), &got); err != nil || got[0] != "sandbox.created" ||
					got[1].(map[string]any)["id"] != fmt.Sprint(i) || got[1].(map[string]any)["long"] != long {
					t.Errorf("%s: %.200s", name, f)
				}
			}
		}
		if f := other.read(); f != `42["volume.created",{"id":"v"}]` {
			t.Errorf("%.200s", f)
		}
		// What is undone was never told.
		db.Tx(t.Context(), func(ctx context.Context) error {
			one.events.Publish(ctx, "other-org", "undone", long)
			return io.EOF
		})
		one.publish("other-org", "last", 1)
		if f := other.read(); f != `42["last",1]` {
			t.Errorf("%.200s", f)
		}
	})
}

func TestConnect(t *testing.T) {
	w := newWorld(t, storetest.Open(t, storetest.SQLite(t)), nil)
	for name, c := range map[string]struct{ query, send, want string }{
		"no token":        {"", `40`, `44{"message":"Unauthorized"}`},
		"no object":       {"", `40[1]`, `44{"message":"Unauthorized"}`},
		"wrong":           {"", `40{"token":"x"}`, `44{"message":"Unauthorized"}`},
		"a runner":        {"", `40{"token":"runner"}`, `44{"message":"Unauthorized"}`},
		"no member":       {"&organizationId=other-org", `40{"token":"jwt"}`, `44{"message":"Unauthorized"}`},
		"a key's own":     {"&organizationId=other-org", `40{"token":"key"}`, `40{"sid":"`},
		"user only":       {"", `40{"token":"jwt"}`, `40{"sid":"`},
		"other namespace": {"", `40/admin,{"token":"key"}`, `44/admin,{"message":"Invalid namespace"}`},
	} {
		s := w.open(c.query)
		s.write(c.send)
		if f := s.read(); !strings.HasPrefix(f, c.want) {
			t.Errorf("%s: %s", name, f)
		}
	}
	// A key has its own organization, whatever is asked for.
	s := w.connect("key", "&organizationId=other-org")
	w.publish("other-org", "x", 1)
	w.publish("org", "y", 1)
	if f := s.read(); f != `42["y",1]` {
		t.Error(f)
	}
	for name, send := range map[string]string{"garbage": "x", "binary": "45", "bad JSON": `42["x"`, "empty": "", "an event": `42["a",1]`} {
		s := w.connect("key", "")
		s.write(send)
		if f := func() string {
			if name == "an event" {
				w.publish("org", "z", 1)
			}
			return s.read()
		}(); strings.HasPrefix(f, "42") != (name == "an event") {
			t.Errorf("%s: %s", name, f)
		}
	}
	for query, want := range map[string]string{
		"EIO=4": "Transport unknown", "EIO=3&transport=websocket": "Unsupported protocol version", "EIO=4&transport=polling&sid=x": "Session ID unknown",
	} {
		resp, err := http.Get(w.url + "/api/socket.io/?" + query)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 400 || !strings.Contains(string(b), want) {
			t.Errorf("%s: %d %s", query, resp.StatusCode, b)
		}
	}
}

// A socket ends with the credential that opened it.
func TestEviction(t *testing.T) {
	w := newWorld(t, storetest.Open(t, storetest.SQLite(t)), nil)
	sum := sha256.Sum256([]byte("key"))
	for name, c := range map[string]struct {
		token, query, about string
		revoke              func()
	}{
		"key":        {"key", "", hex.EncodeToString(sum[:]), func() { delete(w.tokens, "key") }},
		"membership": {"jwt", "&organizationId=org", "org user", func() { delete(w.members, "user") }},
	} {
		s := w.connect(c.token, c.query)
		bystander := w.connect("other", "")
		w.mu.Lock()
		c.revoke()
		w.mu.Unlock()
		began := time.Now()
		if err := w.db.Publish(t.Context(), "changed", c.about); err != nil {
			t.Fatal(err)
		}
		if f := s.read(); f != "41" || time.Since(began) > time.Second {
			t.Errorf("%s: %s after %v", name, f, time.Since(began))
		}
		for f := s.read(); !strings.HasPrefix(f, "error"); f = s.read() {
		}
		w.publish("other-org", "still", 1)
		if f := bystander.read(); f != `42["still",1]` {
			t.Errorf("%s: %s", name, f)
		}
	}
}

// Who is silent or slow is cut off, and holds up nobody.
func TestSlow(t *testing.T) {
	w := newWorld(t, storetest.Open(t, storetest.SQLite(t)), func(c *events.Config) {
		c.PingInterval, c.PingTimeout = 100*time.Millisecond, time.Second
	})
	s := w.connect("key", "")
	var f string
	for f = s.read(); f == "2"; f = s.read() {
	}
	if !strings.HasPrefix(f, "error") {
		t.Errorf("a client that does not answer gets %s", f)
	}
	alive := w.connect("key", "")
	for range 6 {
		if f := alive.read(); f != "2" {
			t.Fatal(f)
		}
		alive.write("3")
	}
	if n := w.events.Clients(); n != 1 {
		t.Errorf("%d clients", n)
	}
	go func() {
		for f := alive.read(); f == "2"; f = alive.read() {
			alive.Conn.Write(t.Context(), websocket.MessageText, []byte("3"))
		}
	}()
	w.connect("other", "") // never read again
	long := strings.Repeat("x", 1<<20)
	for range 30 {
		w.publish("other-org", "x", long)
	}
	deadline := time.Now().Add(10 * time.Second)
	for w.events.Clients() > 1 && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	if n := w.events.Clients(); n != 1 {
		t.Errorf("%d clients", n)
	}
}

// TestFlood: whoever sends too much, or guesses, is sent away, and the others
// notice nothing.
func TestFlood(t *testing.T) {
	w := newWorld(t, storetest.Open(t, storetest.SQLite(t)), nil)
	alive := w.connect("key", "")
	for name, frame := range map[string]string{
		"guesses":        `40{"token":"guess"}`,
		"namespaces":     `40/other,{"token":"key"}`,
		"pings":          "2",
		"binary packets": "b" + strings.Repeat("A", 100),
		"long messages":  "42" + strings.Repeat("x", 1<<20),
	} {
		s := w.open("")
		for range 10_000 {
			if s.Conn.Write(t.Context(), websocket.MessageText, []byte(frame)) != nil {
				break
			}
		}
		var f string
		answers := 0
		for f = s.read(); !strings.HasPrefix(f, "error"); f = s.read() {
			answers++
		}
		if !strings.Contains(f, "close") && !strings.Contains(f, "reset") || answers > 11 {
			t.Errorf("%s: %d answers, %s", name, answers, f)
		}
	}
	w.publish("org", "x", "still there")
	if f := alive.read(); f != `42["x","still there"]` {
		t.Error(f)
	}
}

// node runs the official client.
func (w *world) node(options string) (lines <-chan string, kill func()) {
	module := os.Getenv("DAYTONA_TEST_SOCKETIO")
	if module == "" {
		w.t.Skip("DAYTONA_TEST_SOCKETIO does not say where socket.io-client is; see testdata/install.sh")
	}
	cmd := exec.CommandContext(w.t.Context(), "node", "testdata/client.cjs", module, w.url, options)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	c := make(chan string, 100)
	go func() {
		defer close(c)
		for s := bufio.NewScanner(out); s.Scan(); {
			c <- s.Text()
		}
	}()
	return c, func() { cmd.Process.Kill() }
}

func next(t *testing.T, lines <-chan string) string {
	t.Helper()
	select {
	case l := <-lines:
		return l
	case <-time.After(20 * time.Second):
		t.Fatal("nothing comes")
		return ""
	}
}

// The official client gets along with it, as the SDK configures it and as it is
// by default.
func TestOfficialClient(t *testing.T) {
	for name, transports := range map[string]string{"websocket": `["websocket"]`, "polling": `["polling"]`, "default": `["polling","websocket"]`} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, storetest.Open(t, storetest.SQLite(t)), func(c *events.Config) { c.PingInterval, c.PingTimeout = 300*time.Millisecond, 5*time.Second })
			options := `{"path":"/api/socket.io/","transports":` + transports + `,"auth":{"token":"%s"},"query":{"organizationId":"org"}}`
			lines, _ := w.node(fmt.Sprintf(options, "jwt"))
			l := next(t, lines)
			if !strings.HasPrefix(l, "connect ") {
				t.Fatal(l)
			}
			// The upgrade may have come first.
			if name == "default" && l != "connect websocket" {
				if l := next(t, lines); l != "upgrade websocket" {
					t.Fatal(l)
				}
			}
			time.Sleep(700 * time.Millisecond) // some heartbeats
			w.publish("org", events.SandboxStateUpdated, map[string]string{"newState": "started"})
			w.publish("org", events.SandboxCreated, map[string]string{"id": "é"})
			if l := next(t, lines); l != `event sandbox.state.updated {"newState":"started"}` {
				t.Error(l)
			}
			if l := next(t, lines); l != `event sandbox.created {"id":"é"}` {
				t.Error(l)
			}
			w.mu.Lock()
			delete(w.tokens, "jwt")
			w.mu.Unlock()
			w.db.Publish(t.Context(), "changed", "user")
			if l := next(t, lines); l != "disconnect io server disconnect" {
				t.Error(l)
			}
			lines, _ = w.node(fmt.Sprintf(options, "wrong"))
			if l := next(t, lines); l != "connect_error Unauthorized" {
				t.Error(l)
			}
		})
	}
}

// Events are made if somebody listens; who comes between the question and the
// commit, and so misses one, is cut off to look again.
func TestListening(t *testing.T) {
	db := storetest.Open(t, storetest.SQLite(t))
	w := newWorld(t, db, nil)
	if w.events.Listening(t.Context(), "org") {
		t.Error("nobody listens")
	}
	var s *socket
	if err := db.Tx(t.Context(), func(ctx context.Context) error {
		if w.events.Listening(ctx, "org") {
			t.Error("nobody listens yet")
		}
		s = w.connect("key", "")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if f := s.read(); f != "1" { // Engine.IO's close
		t.Errorf("who missed an event goes on: %s", f)
	}
	w.connect("key", "")
	if !w.events.Listening(t.Context(), "org") {
		t.Error("somebody listens")
	}
	if w.events.Listening(t.Context(), "other-org") {
		t.Error("nobody of the other organization listens")
	}
}
