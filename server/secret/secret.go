// Package secret has the secrets of organizations: values that programs in
// sandboxes use without seeing them. A sandbox gets a placeholder; what leaves
// it for an allowed host gets the value in its place.
package secret

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/display"
	"github.com/daytona-go/daytona/server/seal"
	"github.com/daytona-go/daytona/server/store"
)

// TopicChanged tells that what sandboxes may send has changed: the id of a
// sandbox, one message for each.
const TopicChanged = "secret.changed"

// Limits of a secret.
const (
	MaxValue  = 64 << 10 // bytes
	maxHosts  = 50
	maxEnv    = 256 // characters of the name of a variable
	maxListed = 1500
)

// Quotas is the feature that has quotas.
type Quotas interface {
	// ReserveSecret counts a secret, if there may be one more, and
	// ReleaseSecret counts it no more.
	ReserveSecret(ctx context.Context, organizationID, id string) error
	ReleaseSecret(ctx context.Context, id string) error
	// SecretsPerSandbox returns how many a sandbox may have.
	SecretsPerSandbox(ctx context.Context, organizationID string) (int, error)
}

// Config says what a Service is made of. Both are required.
type Config struct {
	Quotas Quotas
	Box    *seal.Box
}

// Service has secrets.
type Service struct {
	db     *store.DB
	config Config
}

// New returns a service.
func New(db *store.DB, c Config) *Service { return &Service{db, c} }

// Secret is a secret without its value.
type Secret struct {
	bun.BaseModel `bun:"table:secrets,alias:secret"`

	ID             string  `bun:"id,pk"`
	OrganizationID string  `bun:"organization_id,notnull"`
	Name           string  `bun:"name,notnull"`
	Description    *string `bun:"description"`
	// Value is sealed.
	Value string `bun:"value,notnull"`
	// Placeholder is what a sandbox sees.
	Placeholder string `bun:"placeholder,notnull"`
	// Hosts are those the value may be sent to. None is none.
	Hosts     []string  `bun:"hosts,notnull"`
	CreatedAt time.Time `bun:"created_at,notnull"`
	UpdatedAt time.Time `bun:"updated_at,notnull"`
}

// attachment is a row of which sandbox has which secret, in which variable.
type attachment struct {
	bun.BaseModel `bun:"table:sandbox_secrets,alias:attachment"`

	SandboxID      string `bun:"sandbox_id,pk"`
	Env            string `bun:"env,pk"`
	OrganizationID string `bun:"organization_id,notnull"`
	SecretID       string `bun:"secret_id,notnull"`
}

func invalid(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf(format, args...)}
}

func notFound(id string) error {
	return &daytona.Error{Kind: daytona.KindNotFound, Message: "Secret with ID " + id + " not found"}
}

var (
	validName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,255}$`)
	validEnv  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	validHost = regexp.MustCompile(`^(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

func checkValue(v string) error {
	if v == "" || len(v) > MaxValue {
		return invalid("value must have 1 to %d bytes, not %d", MaxValue, len(v))
	}
	// It goes into the headers of requests, which these would end.
	if strings.ContainsAny(v, "\x00\r\n") {
		return invalid("value must not contain line breaks or zero bytes")
	}
	return nil
}

func checkHosts(hosts []string) ([]string, error) {
	if len(hosts) > maxHosts {
		return nil, invalid("hosts must have at most %d hosts, not %d", maxHosts, len(hosts))
	}
	out := []string{}
	for _, h := range hosts {
		h = strings.ToLower(strings.TrimSpace(h))
		_, err := netip.ParseAddr(h)
		if err != nil && (len(h) > 253 || !validHost.MatchString(h)) {
			return nil, invalid("hosts must have names of hosts, such as api.example.com or *.example.com, not %q", h[:min(len(h), 64)])
		}
		if !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	return out, nil
}

// NewSecret is a secret to be made.
type NewSecret struct {
	Name, Value string
	Description *string
	Hosts       []string
}

// Create makes a secret.
func (s *Service) Create(ctx context.Context, organizationID string, n NewSecret) (*Secret, error) {
	if !validName.MatchString(n.Name) {
		return nil, invalid("name must have 1 to 255 characters, which must be letters, numbers, hyphens, and underscores")
	}
	if err := checkValue(n.Value); err != nil {
		return nil, err
	}
	if n.Description != nil {
		if err := display.Check("description", *n.Description, display.MaxDescription); err != nil {
			return nil, err
		}
	}
	hosts, err := checkHosts(n.Hosts)
	if err != nil {
		return nil, err
	}
	random := make([]byte, 16)
	rand.Read(random)
	v := &Secret{
		ID: uuid.NewString(), OrganizationID: organizationID, Name: n.Name, Description: n.Description, Hosts: hosts,
		Placeholder: "dtn_secret_" + hex.EncodeToString(random), CreatedAt: store.Now(),
	}
	v.UpdatedAt = v.CreatedAt
	v.Value = s.config.Box.Seal(n.Value, place(v))
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		if err := s.config.Quotas.ReserveSecret(ctx, organizationID, v.ID); err != nil {
			return err
		}
		_, err := s.db.All(ctx).NewInsert().Model(v).Exec(ctx)
		if store.IsUnique(err) {
			return &daytona.Error{Kind: daytona.KindConflict, Message: "Secret with name " + n.Name + " already exists"}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return v, nil
}

func place(v *Secret) string { return "secret/" + v.OrganizationID + "/" + v.ID }

// Get returns a secret of an organization.
func (s *Service) Get(ctx context.Context, organizationID, id string) (*Secret, error) {
	return s.get(ctx, organizationID, id, false)
}

func (s *Service) get(ctx context.Context, organizationID, id string, change bool) (*Secret, error) {
	v := &Secret{}
	q := s.db.In(ctx, organizationID).Select(v).Where("id = ?", id)
	if change && s.db.Postgres() {
		q = q.For("UPDATE")
	}
	err := q.Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound(id)
	}
	return v, err
}

// All returns the secrets of an organization, newest first.
func (s *Service) All(ctx context.Context, organizationID string) ([]Secret, error) {
	all := []Secret{}
	err := s.db.In(ctx, organizationID).Select(&all).OrderExpr("created_at DESC, id DESC").Limit(maxListed + 1).Scan(ctx)
	if len(all) > maxListed {
		return nil, invalid("The organization has more than %d secrets: list them in pages", maxListed)
	}
	return all, err
}

// Page says which secrets to return.
type Page struct {
	Cursor string
	Limit  int    // defaults to 100, at most 200
	Name   string // a part of the name, in any case
	Sort   string // name, createdAt (the default) or updatedAt
	Order  string // asc or desc (the default)
}

// cursor is where a page begins: after this row.
type cursor struct {
	Value string `json:"sortValue"`
	ID    string `json:"id"`
}

// List returns a page of the secrets of an organization, how many there are on
// all pages, and the cursor of the next page, which is "" after the last one.
func (s *Service) List(ctx context.Context, organizationID string, p Page) (all []Secret, total int, next string, err error) {
	if p.Limit == 0 {
		p.Limit = 100
	}
	if p.Limit < 1 || p.Limit > 200 {
		return nil, 0, "", invalid("limit must be between 1 and 200")
	}
	column, ok := map[string]string{"": "created_at", "name": "name", "createdAt": "created_at", "updatedAt": "updated_at"}[p.Sort]
	if !ok {
		return nil, 0, "", invalid("sort must be one of name, createdAt, updatedAt")
	}
	direction, than := "DESC", "<"
	switch p.Order {
	case "asc":
		direction, than = "ASC", ">"
	case "", "desc":
	default:
		return nil, 0, "", invalid("order must be asc or desc")
	}
	q := s.db.In(ctx, organizationID).Select(&all)
	if p.Name != "" {
		q = q.Where(`LOWER(name) LIKE ? ESCAPE '\'`, "%"+store.Escape(strings.ToLower(p.Name))+"%")
	}
	n, err := q.Count(ctx)
	if err != nil {
		return nil, 0, "", err
	}
	if p.Cursor != "" {
		var c cursor
		raw, err := base64.StdEncoding.DecodeString(p.Cursor)
		if err == nil {
			err = json.Unmarshal(raw, &c)
		}
		var value any = c.Value
		if err == nil && column != "name" {
			value, err = time.Parse(time.RFC3339Nano, c.Value)
		}
		if err != nil || c.ID == "" {
			return nil, 0, "", invalid("Invalid cursor")
		}
		q = q.Where("? "+than+" ? OR (? = ? AND id "+than+" ?)", bun.Ident(column), value, bun.Ident(column), value, c.ID)
	}
	all = []Secret{}
	if err := q.OrderExpr(column + " " + direction + ", id " + direction).Limit(int64(p.Limit) + 1).Scan(ctx); err != nil {
		return nil, 0, "", err
	}
	if len(all) > p.Limit {
		all = all[:p.Limit]
		last := all[p.Limit-1]
		c := cursor{last.Name, last.ID}
		switch column {
		case "created_at":
			c.Value = last.CreatedAt.UTC().Format(time.RFC3339Nano)
		case "updated_at":
			c.Value = last.UpdatedAt.UTC().Format(time.RFC3339Nano)
		}
		raw, err := json.Marshal(c)
		if err != nil {
			return nil, 0, "", err
		}
		next = base64.StdEncoding.EncodeToString(raw)
	}
	return all, int(n), next, nil
}

// Change is what is to be changed of a secret: nil leaves a field as it is.
type Change struct {
	Value, Description *string
	Hosts              []string
}

// Update changes a secret. Sandboxes that have it use the new value as soon as
// they have heard of it.
func (s *Service) Update(ctx context.Context, organizationID, id string, c Change) (*Secret, error) {
	var v *Secret
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		var err error
		if v, err = s.get(ctx, organizationID, id, true); err != nil {
			return err
		}
		if c.Value != nil {
			if err := checkValue(*c.Value); err != nil {
				return err
			}
			v.Value = s.config.Box.Seal(*c.Value, place(v))
		}
		if c.Description != nil {
			if err := display.Check("description", *c.Description, display.MaxDescription); err != nil {
				return err
			}
			v.Description = c.Description
		}
		if c.Hosts != nil {
			if v.Hosts, err = checkHosts(c.Hosts); err != nil {
				return err
			}
		}
		v.UpdatedAt = store.Now()
		if err := store.Changed(s.db.In(ctx, organizationID).Update(v).WherePK().Exec(ctx)); err != nil {
			return err
		}
		return s.tell(ctx, organizationID, id)
	})
	if err != nil {
		return nil, err
	}
	return v, nil
}

// Delete deletes a secret, and takes it from the sandboxes that have it.
func (s *Service) Delete(ctx context.Context, organizationID, id string) error {
	return s.db.Tx(ctx, func(ctx context.Context) error {
		if _, err := s.Get(ctx, organizationID, id); err != nil {
			return err
		}
		if err := s.tell(ctx, organizationID, id); err != nil {
			return err
		}
		if _, err := s.db.In(ctx, organizationID).Delete((*attachment)(nil)).Where("secret_id = ?", id).Exec(ctx); err != nil {
			return err
		}
		if _, err := s.db.In(ctx, organizationID).Delete((*Secret)(nil)).Where("id = ?", id).Exec(ctx); err != nil {
			return err
		}
		return s.config.Quotas.ReleaseSecret(ctx, id)
	})
}

// DeleteAll deletes those of an organization that is being deleted.
func (s *Service) DeleteAll(ctx context.Context, organizationID string) error {
	for _, model := range []any{(*attachment)(nil), (*Secret)(nil)} {
		if _, err := s.db.In(ctx, organizationID).Delete(model).Exec(ctx); err != nil {
			return err
		}
	}
	return nil
}

// tell publishes the sandboxes that have a secret.
func (s *Service) tell(ctx context.Context, organizationID, id string) error {
	var rows []attachment
	if err := s.db.In(ctx, organizationID).Select(&rows).Where("secret_id = ?", id).Scan(ctx); err != nil {
		return err
	}
	told := map[string]bool{}
	for _, r := range rows {
		if told[r.SandboxID] {
			continue
		}
		told[r.SandboxID] = true
		if err := s.db.Publish(ctx, TopicChanged, r.SandboxID); err != nil {
			return err
		}
	}
	return nil
}

// Attach makes the secrets of a sandbox those of secrets: names of secrets of
// the organization by the names of variables. It returns what the variables
// are: placeholders.
func (s *Service) Attach(ctx context.Context, organizationID, sandboxID string, secrets map[string]string) (map[string]string, error) {
	env := map[string]string{}
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		most, err := s.config.Quotas.SecretsPerSandbox(ctx, organizationID)
		if err != nil {
			return err
		}
		if len(secrets) > most {
			return invalid("A sandbox can have at most %d secrets, not %d", most, len(secrets))
		}
		clear(env)
		if _, err := s.db.In(ctx, organizationID).Delete((*attachment)(nil)).Where("sandbox_id = ?", sandboxID).Exec(ctx); err != nil {
			return err
		}
		for variable, name := range secrets {
			if len(variable) > maxEnv || !validEnv.MatchString(variable) {
				return invalid("secrets must be by the names of variables, not by %q", variable[:min(len(variable), 64)])
			}
			v := &Secret{}
			err := s.db.In(ctx, organizationID).Select(v).Where("name = ?", name).Scan(ctx)
			if store.IsNone(err) {
				return invalid("Secret %q not found", name[:min(len(name), 255)])
			} else if err != nil {
				return err
			}
			a := &attachment{SandboxID: sandboxID, Env: variable, OrganizationID: organizationID, SecretID: v.ID}
			if _, err := s.db.All(ctx).NewInsert().Model(a).Exec(ctx); err != nil {
				return err
			}
			env[variable] = v.Placeholder
		}
		return s.db.Publish(ctx, TopicChanged, sandboxID)
	})
	if err != nil {
		return nil, err
	}
	return env, nil
}

// Detach takes all secrets from a sandbox that is no more.
func (s *Service) Detach(ctx context.Context, organizationID, sandboxID string) error {
	_, err := s.db.In(ctx, organizationID).Delete((*attachment)(nil)).Where("sandbox_id = ?", sandboxID).Exec(ctx)
	return err
}

// Resolved is a secret as the runner of a sandbox needs it.
type Resolved struct {
	Env, Placeholder, Value string
	Hosts                   []string
}

// Resolve returns the secrets of a sandbox, with their values, by the names of
// their variables. They are for the sandbox's runner and nobody else.
func (s *Service) Resolve(ctx context.Context, organizationID, sandboxID string) ([]Resolved, error) {
	var rows []attachment
	if err := s.db.In(ctx, organizationID).Select(&rows).Where("sandbox_id = ?", sandboxID).OrderExpr("env").Scan(ctx); err != nil {
		return nil, err
	}
	all := []Resolved{}
	for _, a := range rows {
		v, err := s.Get(ctx, organizationID, a.SecretID)
		if err != nil {
			return nil, err
		}
		value, err := s.config.Box.Open(v.Value, place(v))
		if err != nil {
			return nil, err
		}
		all = append(all, Resolved{a.Env, v.Placeholder, value, v.Hosts})
	}
	return all, nil
}

// Env returns the variables of a sandbox that have secrets: placeholders.
func (s *Service) Env(ctx context.Context, organizationID, sandboxID string) (map[string]string, error) {
	var rows []attachment
	if err := s.db.In(ctx, organizationID).Select(&rows).Where("sandbox_id = ?", sandboxID).Scan(ctx); err != nil {
		return nil, err
	}
	env := map[string]string{}
	for _, a := range rows {
		v, err := s.Get(ctx, organizationID, a.SecretID)
		if err != nil {
			return nil, err
		}
		env[a.Env] = v.Placeholder
	}
	return env, nil
}
