// Package events tells clients of what happens in their organizations, as it
// happens: a Socket.IO 4 server that only ever sends, and only over WebSockets
// (as all Daytona clients ask for) or by long polling until a client has
// upgraded.
//
// What is published reaches the clients of every server of a database. It is a
// hint: a client that was away asks the API what it has missed, and one that
// can't be told everything is cut off, so that it does.
package events

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/live"
	"github.com/daytona-go/daytona/server/store"
)

// Names of events.
const (
	SandboxCreated             = "sandbox.created"
	SandboxStateUpdated        = "sandbox.state.updated"
	SandboxDesiredStateUpdated = "sandbox.desired-state.updated"
	SnapshotCreated            = "snapshot.created"
	SnapshotStateUpdated       = "snapshot.state.updated"
	SnapshotRemoved            = "snapshot.removed"
	VolumeCreated              = "volume.created"
	VolumeStateUpdated         = "volume.state.updated"
	VolumeLastUsedAtUpdated    = "volume.lastUsedAt.updated"
	RunnerCreated              = "runner.created"
	RunnerStateUpdated         = "runner.state.updated"
	RunnerUnschedulableUpdated = "runner.unschedulable.updated"
)

// Topic is the topic that events are published to.
const Topic = "events"

// Authenticator finds out who has a credential; it is the API's.
type Authenticator interface {
	Authenticate(ctx context.Context, bearer string) (*identity.Principal, error)
	Join(ctx context.Context, p *identity.Principal, organizationID string) (*identity.Principal, error)
}

// Config says what a Server is made of.
type Config struct {
	DB            *store.DB
	Authenticator Authenticator
	// PingInterval is between two questions to a client whether it is there,
	// PingTimeout what the answer may take. They default to 25 s and 20 s.
	PingInterval, PingTimeout time.Duration
	// MaxClients at a time. Defaults to 10,000.
	MaxClients int
	// Log defaults to [slog.Default].
	Log *slog.Logger
}

const (
	// queue is how many messages, and queueBytes how many bytes of them, wait
	// for one client; one for whom more would have to is cut off.
	queue      = 256
	queueBytes = 4 << 20
	// maxMessage is the longest message of a client, in bytes.
	maxMessage = 64 << 10
	// connectTime is what the credential may take to come.
	connectTime = 20 * time.Second
	// attempts is how many credentials one session may try.
	attempts = 10
	// lastPoll is how long a session that is over is known, for a client that
	// polls to be told.
	lastPoll = 5 * time.Second
	// inline is the longest event that a topic carries itself, in bytes.
	inline = 6000
	// keep is how long longer ones are kept in the database: every server has
	// read them long before.
	keep = 10 * time.Minute
)

// Server is an http.Handler for the path /api/socket.io/.
type Server struct {
	config Config
	log    *slog.Logger
	set    *live.Set
	// listening is closed once what is published is heard.
	listening chan struct{}

	mu      sync.Mutex
	clients map[string]*client // by session id
	rooms   map[string]map[*client]struct{}
	closed  bool
}

// New returns a Server.
func New(c Config) *Server {
	if c.PingInterval == 0 {
		c.PingInterval = 25 * time.Second
	}
	if c.PingTimeout == 0 {
		c.PingTimeout = 20 * time.Second
	}
	if c.MaxClients == 0 {
		c.MaxClients = 10000
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return &Server{config: c, log: c.Log, set: live.New(0), listening: make(chan struct{}), clients: map[string]*client{}, rooms: map[string]map[*client]struct{}{}}
}

// message is what the topic carries.
type message struct {
	Organization string `json:"o"`
	Event        string `json:"e"`
	// Payload is the event's, or else Ref is the row that has it.
	Payload json.RawMessage `json:"p,omitempty"`
	Ref     string          `json:"r,omitempty"`
}

// body is the row of an event that is too long for a topic.
type body struct {
	bun.BaseModel `bun:"table:event_bodies,alias:body"`

	ID      string    `bun:"id,pk"`
	Payload string    `bun:"payload,notnull"`
	Created time.Time `bun:"created_at,notnull"`
}

// Publish tells the clients of an organization, at every server, of an event.
// In a transaction, they are told once it has been committed.
func (s *Server) Publish(ctx context.Context, organizationID, event string, payload any) error {
	p, err := json.Marshal(payload)
	if err != nil {
		return err
	}
	m := message{Organization: organizationID, Event: event, Payload: p}
	if len(p) > inline {
		b := &body{ID: rand.Text(), Payload: string(p), Created: time.Now().UTC()}
		// It is read by nobody but the servers, by its id.
		if _, err := s.config.DB.All(ctx).NewInsert().Model(b).Exec(ctx); err != nil {
			return err
		}
		m.Payload, m.Ref = nil, b.ID
	}
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return s.config.DB.Publish(ctx, Topic, string(text))
}

// Listening reports whether anybody may be listening to an organization's
// events, so that one for nobody need not be made. Other servers' clients are
// not known here: of several servers it says yes. Whoever comes before the
// transaction of ctx is committed, and so can't know of the event, is cut off
// to look again.
func (s *Server) Listening(ctx context.Context, organizationID string) bool {
	if s.config.DB.Postgres() || s.anybody(organizationID) {
		return true
	}
	store.After(ctx, func() { s.cutRoom(organizationID) })
	return false
}

// Run passes events to the clients until ctx ends, and ends those whose right
// has ended: names are the topics that tell of it, see package live. Clients wait
// until it hears of events. It is called once.
func (s *Server) Run(ctx context.Context, names ...string) {
	var wg sync.WaitGroup
	defer wg.Wait()
	c, stop := s.config.DB.Subscribe(Topic)
	defer stop()
	defer s.close()
	close(s.listening)
	wg.Go(func() { s.set.Run(ctx, s.config.DB, names...) })
	tidy := time.NewTicker(keep)
	defer tidy.Stop()
	for {
		select {
		case text := <-c:
			s.deliver(ctx, text)
		case <-tidy.C:
			if _, err := s.config.DB.All(ctx).NewDelete().Model((*body)(nil)).Where("created_at < ?", time.Now().UTC().Add(-keep)).Exec(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("events: remove old ones", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// deliver passes one event on. What can't be told to somebody is a reason to cut
// them off: they come back and look for themselves.
func (s *Server) deliver(ctx context.Context, text string) {
	if text == "" {
		s.cutAll("some events were lost")
		return
	}
	var m message
	if err := json.Unmarshal([]byte(text), &m); err != nil || m.Organization == "" {
		s.log.Error("events: what was published is malformed", "err", err)
		return
	}
	if !s.anybody(m.Organization) {
		return
	}
	if m.Ref != "" {
		b := &body{ID: m.Ref}
		if err := s.config.DB.All(ctx).NewSelect().Model(b).WherePK().Scan(ctx); err != nil {
			if ctx.Err() == nil {
				s.log.Warn("events: read a long one", "err", err)
				s.cutRoom(m.Organization)
			}
			return
		}
		m.Payload = json.RawMessage(b.Payload)
	}
	name, _ := json.Marshal(m.Event)
	data := slices.Concat([]byte("["), name, []byte(","), m.Payload, []byte("]"))
	frame := packet{kind: socketEvent, namespace: "/", data: data}.encode()
	s.mu.Lock()
	var slow []*client
	for c := range s.rooms[m.Organization] {
		if !c.push(frame) {
			slow = append(slow, c)
		}
	}
	s.mu.Unlock()
	for _, c := range slow {
		c.end("it is too slow")
	}
}

func (s *Server) anybody(room string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.rooms[room]) > 0
}

func (s *Server) cutRoom(room string) {
	s.mu.Lock()
	var all []*client
	for c := range s.rooms[room] {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		c.end("an event was lost")
	}
}

func (s *Server) cutAll(why string) {
	s.mu.Lock()
	var all []*client
	for _, c := range s.clients {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		c.end(why)
	}
}

func (s *Server) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cutAll("the server is shutting down")
}

// Clients is how many there are, for metrics.
func (s *Server) Clients() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.clients)
}

// enter makes the client of a new session.
func (s *Server) enter(r *http.Request) (*client, error) {
	c := &client{server: s, id: rand.Text(), organization: r.URL.Query().Get("organizationId"), wake: make(chan struct{}, 1), done: make(chan struct{})}
	if len(c.organization) > 64 {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Field: "organizationId", Message: "is too long"}
	}
	// One that is let in is told of all that happens from then on.
	select {
	case <-s.listening:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	case <-time.After(connectTime):
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Message: "the server does not hear of events yet"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.clients) >= s.config.MaxClients {
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Message: "there are too many clients"}
	}
	s.clients[c.id] = c
	c.timer = time.AfterFunc(connectTime, func() { c.end("no credential came") })
	return c, nil
}

// leave takes a client out. One that polls is to be told when it does so next.
func (s *Server) leave(c *client, socket bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if socket || c.rooms == nil || s.closed {
		delete(s.clients, c.id)
	} else {
		time.AfterFunc(lastPoll, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.clients, c.id)
		})
	}
	for _, room := range c.rooms {
		delete(s.rooms[room], c)
		if len(s.rooms[room]) == 0 {
			delete(s.rooms, room)
		}
	}
}

// authorize finds out what rooms a credential opens: the user's and the
// organization's.
func (s *Server) authorize(ctx context.Context, token, organization string) (rooms, ids []string, err error) {
	p, err := s.config.Authenticator.Authenticate(ctx, token)
	if err != nil {
		return nil, nil, err
	}
	switch p.Kind {
	case identity.Key:
		organization = p.OrganizationID
	case identity.JWT:
		if organization != "" {
			if p, err = s.config.Authenticator.Join(ctx, p, organization); err != nil {
				return nil, nil, err
			}
		}
	default:
		return nil, nil, &daytona.Error{Kind: daytona.KindForbidden, Message: "only users are told of events"}
	}
	rooms = []string{"user:" + p.UserID}
	if organization != "" {
		rooms = append(rooms, organization)
	}
	// Keys are known by their hashes.
	sum := sha256.Sum256([]byte(token))
	return rooms, []string{p.KeyID, p.UserID, organization, hex.EncodeToString(sum[:])}, nil
}

// admit puts a client into its rooms, or says why not.
func (s *Server) admit(c *client, token string) error {
	ctx, cancel := context.WithTimeout(context.Background(), connectTime)
	defer cancel()
	rooms, ids, err := s.authorize(ctx, token, c.organization)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if _, there := s.clients[c.id]; !there || c.rooms != nil {
		s.mu.Unlock()
		return errors.New("the session has ended, or is connected already")
	}
	c.rooms = rooms
	c.timer.Stop()
	sid, _ := json.Marshal(map[string]string{"sid": rand.Text()})
	c.push(packet{kind: socketConnect, namespace: "/", data: sid}.encode())
	for _, room := range rooms {
		if s.rooms[room] == nil {
			s.rooms[room] = map[*client]struct{}{}
		}
		s.rooms[room][c] = struct{}{}
	}
	s.mu.Unlock()
	remove := s.set.Add(ids, func(ctx context.Context) error {
		_, _, err := s.authorize(ctx, token, c.organization)
		return err
	}, func(error) {
		c.push(packet{kind: socketDisconnect, namespace: "/"}.encode())
		c.end("its credential has ended")
	})
	go func() { <-c.done; remove() }()
	// It may have ended between the question and now.
	if _, _, err := s.authorize(ctx, token, c.organization); live.Refused(err) {
		c.end("its credential has ended")
	}
	return nil
}

// opening is the first packet of a session.
func (s *Server) opening(c *client, upgrades []string) []byte {
	b, _ := json.Marshal(map[string]any{"sid": c.id, "upgrades": upgrades, "pingInterval": s.config.PingInterval.Milliseconds(),
		"pingTimeout": s.config.PingTimeout.Milliseconds(), "maxPayload": maxMessage})
	return append([]byte{engineOpen}, b...)
}

// problem answers as Engine.IO does to a request that is no good.
func problem(w http.ResponseWriter, status, code int, message string) {
	b, _ := json.Marshal(map[string]any{"code": code, "message": message})
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b)
}
