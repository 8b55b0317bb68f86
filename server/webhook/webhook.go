// Package webhook tells programs of an organization what happens in it: a
// message for each event, signed, to each endpoint that wants to hear of such,
// tried again until it is taken.
//
// Messages are signed as standardwebhooks.com says.
package webhook

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/display"
	"github.com/daytona-go/daytona/server/seal"
	"github.com/daytona-go/daytona/server/store"
)

// Events that there are.
const (
	SandboxCreated       = "sandbox.created"
	SandboxStateUpdated  = "sandbox.state.updated"
	SnapshotCreated      = "snapshot.created"
	SnapshotStateUpdated = "snapshot.state.updated"
	SnapshotRemoved      = "snapshot.removed"
	VolumeCreated        = "volume.created"
	VolumeStateUpdated   = "volume.state.updated"
)

// Events returns all of them, in the order of the wire.
func Events() []string {
	return []string{SandboxCreated, SandboxStateUpdated, SnapshotCreated, SnapshotStateUpdated, SnapshotRemoved, VolumeCreated, VolumeStateUpdated}
}

// topic wakes those who deliver.
const topic = "webhook"

// Limits.
const (
	maxEndpoints = 50
	maxPayload   = 256 << 10 // bytes
	maxID        = 256
)

// Outbound makes connections to what users chose.
type Outbound interface {
	Check(field, rawURL string) error
	Client(timeout time.Duration) *http.Client
}

// Config says what a Service is made of. Outbound and Box are required.
type Config struct {
	// Disabled turns the feature off.
	Disabled bool
	Outbound Outbound
	Box      *seal.Box
	// PortalURL is the page of the dashboard on which endpoints are managed.
	PortalURL string
	// Schedule are the times between attempts. Defaults to those of
	// standardwebhooks.com, a day and a half in all.
	Schedule []time.Duration
	// Timeout is for one attempt. Defaults to 15 s.
	Timeout time.Duration
	// Workers is how many attempts are made at a time, an eighth of them for one
	// organization. Defaults to 32.
	Workers int
	// Retention is how long messages are kept. Defaults to 30 days.
	Retention time.Duration
	Log       *slog.Logger
}

// Service has endpoints and delivers messages to them.
type Service struct {
	db     *store.DB
	config Config
	client *http.Client
}

// New returns a service. [Service.Run] delivers.
func New(db *store.DB, c Config) *Service {
	if c.Schedule == nil {
		c.Schedule = []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour}
	}
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
	if c.Workers == 0 {
		c.Workers = 32
	}
	if c.Retention == 0 {
		c.Retention = 30 * 24 * time.Hour
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	s := &Service{db: db, config: c}
	if c.Outbound != nil {
		s.client = c.Outbound.Client(c.Timeout)
		// A receiver that has moved says so to its owner, not to us: a message
		// is not sent on to where nobody has put an endpoint.
		s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	return s
}

// Application is that an organization uses webhooks.
type Application struct {
	bun.BaseModel `bun:"table:webhook_applications,alias:application"`

	OrganizationID string    `bun:"organization_id,pk"`
	CreatedAt      time.Time `bun:"created_at,notnull"`
	UpdatedAt      time.Time `bun:"updated_at,notnull"`
}

// Endpoint is where messages go.
type Endpoint struct {
	bun.BaseModel `bun:"table:webhook_endpoints,alias:endpoint"`

	ID             string `bun:"id,pk"`
	OrganizationID string `bun:"organization_id,notnull"`
	URL            string `bun:"url,notnull"`
	Description    string `bun:"description,notnull"`
	// Events are those the endpoint is told of. None is all.
	Events []string `bun:"events,notnull"`
	// Secret is sealed; see [Service.Secret].
	Secret   string `bun:"secret,notnull"`
	Disabled bool   `bun:"disabled,notnull"`
	// DisabledReason is "" where a user has disabled it.
	DisabledReason string    `bun:"disabled_reason,notnull"`
	CreatedAt      time.Time `bun:"created_at,notnull"`
	UpdatedAt      time.Time `bun:"updated_at,notnull"`
}

// Message is an event to be told.
type Message struct {
	bun.BaseModel `bun:"table:webhook_messages,alias:message"`

	ID             string    `bun:"id,pk"`
	OrganizationID string    `bun:"organization_id,notnull"`
	Event          string    `bun:"event,notnull"`
	Payload        string    `bun:"payload,notnull"` // JSON
	CreatedAt      time.Time `bun:"created_at,notnull"`
}

// Attempt is one try to deliver a message.
type Attempt struct {
	bun.BaseModel `bun:"table:webhook_attempts,alias:attempt"`

	ID             string `bun:"id,pk"`
	MessageID      string `bun:"message_id,notnull"`
	EndpointID     string `bun:"endpoint_id,notnull"`
	OrganizationID string `bun:"organization_id,notnull"`
	URL            string `bun:"url,notnull"`
	// Status is that of the answer; 0 if there was none, for the reason Error.
	Status    int       `bun:"status,notnull"`
	Error     string    `bun:"error,notnull"`
	Duration  int64     `bun:"duration_ms,notnull"`
	CreatedAt time.Time `bun:"created_at,notnull"`
}

func invalid(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindNotFound, Message: fmt.Sprintf(format, args...)}
}

// Enabled reports whether there are webhooks at all.
func (s *Service) Enabled() bool { return !s.config.Disabled && s.client != nil }

func (s *Service) on() error {
	if !s.Enabled() {
		return &daytona.Error{Kind: daytona.KindUnavailable, Message: "Webhook service is not configured"}
	}
	return nil
}

// Initialize makes an organization one that uses webhooks.
func (s *Service) Initialize(ctx context.Context, organizationID string) (*Application, error) {
	if err := s.on(); err != nil {
		return nil, err
	}
	a := &Application{OrganizationID: organizationID, CreatedAt: store.Now(), UpdatedAt: store.Now()}
	if _, err := s.db.All(ctx).NewInsert().Model(a).On("CONFLICT DO NOTHING").Exec(ctx); err != nil {
		return nil, err
	}
	return s.Application(ctx, organizationID)
}

// Application returns how an organization uses webhooks.
func (s *Service) Application(ctx context.Context, organizationID string) (*Application, error) {
	if err := s.on(); err != nil {
		return nil, err
	}
	a := &Application{}
	err := s.db.In(ctx, organizationID).Select(a).Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound("Webhook initialization status not found for organization %s", organizationID)
	}
	return a, err
}

// Portal returns the page on which endpoints are managed.
func (s *Service) Portal(ctx context.Context, organizationID string) (string, error) {
	if _, err := s.Initialize(ctx, organizationID); err != nil {
		return "", err
	}
	return s.config.PortalURL, nil
}

// Change is what is to be changed of an endpoint: nil leaves a field as it is.
type Change struct {
	URL, Description *string
	Events           []string
	Disabled         *bool
}

func (s *Service) apply(e *Endpoint, c Change) error {
	if c.URL != nil {
		e.URL = *c.URL
	}
	if err := s.config.Outbound.Check("url", e.URL); err != nil {
		return err
	}
	if c.Description != nil {
		e.Description = *c.Description
	}
	if err := display.Check("description", e.Description, display.MaxDescription); err != nil {
		return err
	}
	if c.Events != nil {
		e.Events = []string{}
		for _, v := range c.Events {
			if !slices.Contains(Events(), v) {
				return invalid("events must not have %q, which is none", v[:min(len(v), 64)])
			}
			if !slices.Contains(e.Events, v) {
				e.Events = append(e.Events, v)
			}
		}
	}
	if c.Disabled != nil {
		e.Disabled, e.DisabledReason = *c.Disabled, ""
	}
	e.UpdatedAt = store.Now()
	return nil
}

// CreateEndpoint adds an endpoint, and returns what its messages are signed
// with.
func (s *Service) CreateEndpoint(ctx context.Context, organizationID string, c Change) (*Endpoint, string, error) {
	if _, err := s.Initialize(ctx, organizationID); err != nil {
		return nil, "", err
	}
	e := &Endpoint{ID: "ep_" + uuid.NewString(), OrganizationID: organizationID, Events: []string{}, CreatedAt: store.Now()}
	if err := s.apply(e, c); err != nil {
		return nil, "", err
	}
	random := make([]byte, 32)
	rand.Read(random)
	secret := "whsec_" + base64.StdEncoding.EncodeToString(random)
	e.Secret = s.config.Box.Seal(secret, place(e))
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		if n, err := s.db.In(ctx, organizationID).Select((*Endpoint)(nil)).Count(ctx); err != nil {
			return err
		} else if n >= maxEndpoints {
			return invalid("Endpoint quota exceeded. Maximum allowed: %d", maxEndpoints)
		}
		_, err := s.db.All(ctx).NewInsert().Model(e).Exec(ctx)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return e, secret, nil
}

func place(e *Endpoint) string { return "webhook/" + e.OrganizationID + "/" + e.ID }

// Endpoints returns those of an organization.
func (s *Service) Endpoints(ctx context.Context, organizationID string) ([]Endpoint, error) {
	if err := s.on(); err != nil {
		return nil, err
	}
	all := []Endpoint{}
	return all, s.db.In(ctx, organizationID).Select(&all).OrderExpr("created_at, id").Scan(ctx)
}

// Endpoint returns one.
func (s *Service) Endpoint(ctx context.Context, organizationID, id string) (*Endpoint, error) {
	e := &Endpoint{}
	err := s.db.In(ctx, organizationID).Select(e).Where("id = ?", id).Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound("Webhook endpoint with ID %s not found", id)
	}
	return e, err
}

// Secret returns what messages to an endpoint are signed with.
func (s *Service) Secret(ctx context.Context, organizationID, id string) (string, error) {
	e, err := s.Endpoint(ctx, organizationID, id)
	if err != nil {
		return "", err
	}
	return s.config.Box.Open(e.Secret, place(e))
}

// UpdateEndpoint changes one.
func (s *Service) UpdateEndpoint(ctx context.Context, organizationID, id string, c Change) (*Endpoint, error) {
	if err := s.on(); err != nil {
		return nil, err
	}
	var e *Endpoint
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		var err error
		if e, err = s.Endpoint(ctx, organizationID, id); err != nil {
			return err
		}
		if err := s.apply(e, c); err != nil {
			return err
		}
		return store.Changed(s.db.In(ctx, organizationID).Update(e).WherePK().Exec(ctx))
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// DeleteEndpoint removes one, with what was still to be delivered to it.
func (s *Service) DeleteEndpoint(ctx context.Context, organizationID, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.Endpoint(ctx, organizationID, id); err != nil {
			return err
		}
		if _, err := s.db.In(ctx, organizationID).Delete((*delivery)(nil)).Where("endpoint_id = ?", id).Exec(ctx); err != nil {
			return err
		}
		_, err := s.db.In(ctx, organizationID).Delete((*Endpoint)(nil)).Where("id = ?", id).Exec(ctx)
		return err
	})
}

// DeleteAll removes what there is of an organization that is being deleted.
func (s *Service) DeleteAll(ctx context.Context, organizationID string) error {
	for _, model := range []any{(*delivery)(nil), (*Attempt)(nil), (*Message)(nil), (*Endpoint)(nil), (*Application)(nil)} {
		if _, err := s.db.In(ctx, organizationID).Delete(model).Exec(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Send tells the endpoints of an organization of an event, once the
// transaction of ctx has been committed. It adds event, timestamp and
// organizationId to the payload, where they are not there. id may be "": two
// messages with the same id are one. Where nobody listens nothing is kept.
func (s *Service) Send(ctx context.Context, organizationID, event, id string, payload map[string]any) error {
	if !s.Enabled() {
		return nil
	}
	if !slices.Contains(Events(), event) {
		return invalid("eventType must be one of those there are, not %q", event[:min(len(event), 64)])
	}
	if len(id) > maxID {
		return invalid("eventId must have at most %d characters", maxID)
	}
	if id == "" {
		id = "msg_" + uuid.NewString()
	} else {
		// Ids that a client chooses are those of its organization alone.
		id = "evt_" + organizationID + "_" + id
	}
	at := store.Now()
	body := map[string]any{"event": event, "timestamp": at.Format("2006-01-02T15:04:05.000Z"), "organizationId": organizationID}
	for k, v := range payload {
		body[k] = v
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: "send webhook", Field: "payload", Message: "must be JSON", Err: err}
	}
	if len(raw) > maxPayload {
		return invalid("payload must have at most %d bytes, not %d", maxPayload, len(raw))
	}
	return s.db.Tx(ctx, func(ctx context.Context) error {
		var endpoints []Endpoint
		if err := s.db.In(ctx, organizationID).Select(&endpoints).Where("disabled = ?", false).Scan(ctx); err != nil {
			return err
		}
		endpoints = slices.DeleteFunc(endpoints, func(e Endpoint) bool { return len(e.Events) > 0 && !slices.Contains(e.Events, event) })
		if len(endpoints) == 0 {
			return nil
		}
		m := &Message{ID: id, OrganizationID: organizationID, Event: event, Payload: string(raw), CreatedAt: at}
		r, err := s.db.All(ctx).NewInsert().Model(m).On("CONFLICT DO NOTHING").Exec(ctx)
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return err
		}
		for _, e := range endpoints {
			d := &delivery{MessageID: id, EndpointID: e.ID, OrganizationID: organizationID, State: pending, NextAt: at}
			if _, err := s.db.All(ctx).NewInsert().Model(d).Exec(ctx); err != nil {
				return err
			}
		}
		return s.db.Publish(ctx, topic, id)
	})
}

// Attempts returns the tries to deliver a message, newest first.
func (s *Service) Attempts(ctx context.Context, organizationID, messageID string) ([]Attempt, error) {
	if err := s.on(); err != nil {
		return nil, err
	}
	all := []Attempt{}
	return all, s.db.In(ctx, organizationID).Select(&all).Where("message_id = ?", messageID).OrderExpr("created_at DESC, id").Limit(200).Scan(ctx)
}

// Messages returns the last ones of an organization.
func (s *Service) Messages(ctx context.Context, organizationID string) ([]Message, error) {
	all := []Message{}
	return all, s.db.In(ctx, organizationID).Select(&all).OrderExpr("created_at DESC, id").Limit(200).Scan(ctx)
}
