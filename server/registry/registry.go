// Package registry has the registries that organizations pull images from, with
// the credentials for them, and a registry of its own that clients push images
// into to make snapshots of them.
package registry

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// Type is the type of a registry.
type Type string

// TypeOrganization is the type of those that are an organization's own, which
// are all that clients see.
const TypeOrganization Type = "organization"

// Registry is one row.
type Registry struct {
	bun.BaseModel `bun:"table:registries,alias:registry"`

	ID             string `bun:"id,pk"`
	OrganizationID string `bun:"organization_id,notnull"`
	Name           string `bun:"name,notnull"`
	URL            string `bun:"url,notnull"`
	// Host is that of the URL, as images have it.
	Host     string `bun:"host,notnull"`
	Username string `bun:"username,notnull"`
	// Password is sealed.
	Password  string    `bun:"password,notnull"`
	Project   string    `bun:"project,notnull"`
	Type      Type      `bun:"type,notnull"`
	Default   bool      `bun:"is_default,notnull"`
	CreatedAt time.Time `bun:"created_at,notnull"`
	UpdatedAt time.Time `bun:"updated_at,notnull"`
}

// robot is a credential for the registry of this server.
type robot struct {
	bun.BaseModel `bun:"table:registry_robots,alias:robot"`

	Name           string    `bun:"name,pk"`
	OrganizationID string    `bun:"organization_id,notnull"`
	Hash           string    `bun:"hash,notnull"`
	Push           bool      `bun:"push,notnull"`
	Expires        time.Time `bun:"expires_at,notnull"`
}

// Sealer encrypts what the database must not tell.
type Sealer interface {
	// Seal's answer can be opened with the same place only.
	Seal(plain, place string) string
	Open(sealed, place string) (string, error)
}

// Config says what a Service works with. DB and Sealer are required.
type Config struct {
	DB     *store.DB
	Sealer Sealer
	// Check says whether a URL may be used, as that of a registry that is
	// connected to; KindInvalid, naming the field, if not. Defaults to any.
	Check func(field, rawURL string) error
	// Host is that of the registry of this server, as images name it, with its
	// port. Defaults to none.
	Host string
	Now  func() time.Time
}

// Service has the rules of registries.
type Service struct {
	Config
	db *store.DB
}

// New returns a Service.
func New(c Config) *Service {
	if c.Check == nil {
		c.Check = func(string, string) error { return nil }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Service{Config: c, db: c.DB}
}

func (s *Service) now() time.Time { return s.Now().UTC().Truncate(time.Millisecond) }

const (
	// pushValid is how long a client may push, pullValid a runner pull.
	pushValid = time.Hour
	pullValid = 3 * time.Hour
	// maxRegistries is how many an organization may have.
	maxRegistries = 100
)

// notFound is for a registry that is not there, or another organization's.
func notFound(id string) error {
	return &daytona.Error{Kind: daytona.KindNotFound, Message: "Docker registry with ID " + id + " not found"}
}

func invalid(format string, args ...any) error {
	return &daytona.Error{Kind: daytona.KindInvalid, Message: fmt.Sprintf(format, args...)}
}

// Fields are what a client says of a registry.
type Fields struct {
	Name, URL, Username string
	// Password and Project keep what they are if they are nil.
	Password, Project *string
}

func (s *Service) check(f Fields) (host string, err error) {
	if strings.TrimSpace(f.Name) == "" {
		return "", invalid("name should not be empty")
	}
	lower := strings.ToLower(f.Name)
	if !utf8.ValidString(f.Name) || strings.ContainsFunc(f.Name, unicode.IsControl) || strings.ContainsAny(f.Name, "<>") || strings.Contains(lower, "://") || strings.Contains(lower, "www.") {
		return "", invalid("name must not contain HTML tags, URLs, or control characters")
	}
	values := map[string]string{"name": f.Name, "url": f.URL, "username": f.Username}
	if f.Password != nil {
		values["password"] = *f.Password
	}
	if f.Project != nil {
		values["project"] = *f.Project
	}
	for field, v := range values {
		most := 1024
		if field == "password" {
			most = 16 << 10 // some clouds' tokens
		}
		if len(v) > most {
			return "", invalid("%s must have at most %d characters", field, most)
		}
		if strings.ContainsFunc(v, unicode.IsControl) && field != "password" {
			return "", invalid("%s must not contain control characters", field)
		}
	}
	raw := f.URL
	if !strings.Contains(raw, "://") {
		raw = "https://" + raw
	}
	if err := s.Check("url", raw); err != nil {
		return "", err
	}
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return "", invalid("url must be that of a registry")
	}
	if s.Host != "" && hostOf(u.Host) == hostOf(s.Host) {
		return "", invalid("url must not be that of this server's own registry")
	}
	return hostOf(u.Host), nil
}

// hostOf is a host by its one name.
func hostOf(host string) string {
	host = strings.ToLower(host)
	switch host {
	case "index.docker.io", "registry-1.docker.io", "hub.docker.com", "registry.hub.docker.com":
		return "docker.io"
	}
	return host
}

func place(id string) string { return "registry/" + id }

// Create adds a registry.
func (s *Service) Create(ctx context.Context, organizationID string, f Fields) (*Registry, error) {
	host, err := s.check(f)
	if err != nil {
		return nil, err
	}
	now := s.now()
	r := &Registry{ID: uuid.NewString(), OrganizationID: organizationID, Name: f.Name, URL: f.URL, Host: host, Username: f.Username,
		Type: TypeOrganization, CreatedAt: now, UpdatedAt: now}
	if f.Project != nil {
		r.Project = *f.Project
	}
	if f.Password == nil || *f.Password == "" {
		return nil, invalid("password should not be empty")
	}
	r.Password = s.Sealer.Seal(*f.Password, place(r.ID))
	n, err := s.db.In(ctx, organizationID).Select((*Registry)(nil)).Count(ctx)
	if err != nil {
		return nil, err
	}
	if n >= maxRegistries {
		return nil, invalid("An organization may have at most %d registries", maxRegistries)
	}
	_, err = s.db.All(ctx).NewInsert().Model(r).Exec(ctx)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// List returns an organization's registries, newest first.
func (s *Service) List(ctx context.Context, organizationID string) ([]Registry, error) {
	var list []Registry
	return list, s.db.In(ctx, organizationID).Select(&list).Where("type = ?", TypeOrganization).Order("created_at DESC", "id").Scan(ctx)
}

// Get returns one of an organization's registries.
func (s *Service) Get(ctx context.Context, organizationID, id string) (*Registry, error) {
	r := &Registry{}
	err := s.db.In(ctx, organizationID).Select(r).Where("id = ? AND type = ?", id, TypeOrganization).Scan(ctx)
	if store.IsNone(err) {
		return nil, notFound(id)
	} else if err != nil {
		return nil, err
	}
	return r, nil
}

// Update changes a registry.
func (s *Service) Update(ctx context.Context, organizationID, id string, f Fields) (*Registry, error) {
	r, err := s.Get(ctx, organizationID, id)
	if err != nil {
		return nil, err
	}
	host, err := s.check(f)
	if err != nil {
		return nil, err
	}
	// A password is for the host that it was given for.
	if host != r.Host && (f.Password == nil || *f.Password == "") {
		return nil, invalid("password is required when url has another host")
	}
	r.Name, r.URL, r.Host, r.Username, r.UpdatedAt = f.Name, f.URL, host, f.Username, s.now()
	if f.Password != nil && *f.Password != "" {
		r.Password = s.Sealer.Seal(*f.Password, place(r.ID))
	}
	if f.Project != nil {
		r.Project = *f.Project
	}
	if _, err := s.db.In(ctx, organizationID).Update(r).Where("id = ?", id).Exec(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// Delete removes a registry.
func (s *Service) Delete(ctx context.Context, organizationID, id string) error {
	if _, err := s.Get(ctx, organizationID, id); err != nil {
		return err
	}
	_, err := s.db.In(ctx, organizationID).Delete((*Registry)(nil)).Where("id = ?", id).Exec(ctx)
	return err
}

// SetDefault makes a registry its organization's default, for administrators.
func (s *Service) SetDefault(ctx context.Context, id string) (*Registry, error) {
	r := &Registry{ID: id}
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		// An administrator names any organization's.
		if err := s.db.All(ctx).NewSelect().Model(r).WherePK().Scan(ctx); store.IsNone(err) {
			return notFound(id)
		} else if err != nil {
			return err
		}
		if _, err := s.db.In(ctx, r.OrganizationID).Update((*Registry)(nil)).Set("is_default = ?", false).Where("type = ?", r.Type).Exec(ctx); err != nil {
			return err
		}
		r.Default, r.UpdatedAt = true, s.now()
		_, err := s.db.In(ctx, r.OrganizationID).Update(r).Where("id = ?", id).Exec(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Credentials say who may pull an image.
type Credentials struct {
	URL, Project, Username, Password string
}

// split divides an image into the host, as Docker reads it, and the rest.
func split(image string) (host, repository string) {
	host, rest, found := strings.Cut(image, "/")
	if !found || host != "localhost" && !strings.ContainsAny(host, ".:") {
		return "docker.io", image
	}
	return hostOf(host), rest
}

// Credentials finds who may pull an image for an organization: the registry of
// its host, and of those the one with the longest project that the image is in.
// nil if there is none. For an image of this server's own registry it makes a
// credential that pulls for three hours; another organization's image is
// KindForbidden.
func (s *Service) Credentials(ctx context.Context, organizationID, image string) (*Credentials, error) {
	host, repository := split(image)
	if s.Host != "" && host == hostOf(s.Host) {
		if !strings.HasPrefix(repository, organizationID+"/") {
			return nil, &daytona.Error{Kind: daytona.KindForbidden, Message: "The image " + image + " is not the organization's"}
		}
		r, secret, err := s.robot(ctx, organizationID, false, pullValid)
		if err != nil {
			return nil, err
		}
		return &Credentials{URL: s.Host, Project: organizationID, Username: r.Name, Password: secret}, nil
	}
	var list []Registry
	if err := s.db.In(ctx, organizationID).Select(&list).Where("host = ?", host).Order("created_at", "id").Scan(ctx); err != nil {
		return nil, err
	}
	var found *Registry
	for i := range list {
		r := &list[i]
		in := r.Project == "" || strings.HasPrefix(repository, strings.Trim(r.Project, "/")+"/")
		switch {
		case found == nil:
			found = r
		case in && len(r.Project) > len(found.Project):
			found = r
		case in && !strings.HasPrefix(repository, strings.Trim(found.Project, "/")+"/") && found.Project != "":
			found = r
		}
	}
	if found == nil {
		return nil, nil
	}
	password, err := s.Sealer.Open(found.Password, place(found.ID))
	if err != nil {
		return nil, fmt.Errorf("registry %s: the password can't be opened: %w", found.ID, err)
	}
	return &Credentials{URL: found.URL, Project: found.Project, Username: found.Username, Password: password}, nil
}

// All returns what an organization pulls with: the credentials of all its
// registries, and one for its images in this server's own.
func (s *Service) All(ctx context.Context, organizationID string) ([]Credentials, error) {
	list, err := s.List(ctx, organizationID)
	if err != nil {
		return nil, err
	}
	var all []Credentials
	for _, r := range list {
		password, err := s.Sealer.Open(r.Password, place(r.ID))
		if err != nil {
			return nil, fmt.Errorf("registry %s: the password can't be opened: %w", r.ID, err)
		}
		all = append(all, Credentials{URL: r.URL, Project: r.Project, Username: r.Username, Password: password})
	}
	if s.Host != "" {
		r, secret, err := s.robot(ctx, organizationID, false, pullValid)
		if err != nil {
			return nil, err
		}
		all = append(all, Credentials{URL: s.Host, Project: organizationID, Username: r.Name, Password: secret})
	}
	return all, nil
}

// PushAccess is what a client pushes images with.
type PushAccess struct {
	Username, Secret, URL, ID, Project string
	Expires                            time.Time
}

// OwnID is the id of this server's own registry.
const OwnID = "00000000-0000-0000-0000-000000000001"

// PushAccess gives an organization an hour in which to push images into its own
// project of this server's registry.
func (s *Service) PushAccess(ctx context.Context, organizationID string) (*PushAccess, error) {
	if s.Host == "" {
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Message: "No registry is configured to push images to"}
	}
	r, secret, err := s.robot(ctx, organizationID, true, pushValid)
	if err != nil {
		return nil, err
	}
	return &PushAccess{Username: r.Name, Secret: secret, URL: s.Host, ID: OwnID, Project: organizationID, Expires: r.Expires}, nil
}

// Revoke ends the credentials for this server's registry that an organization
// has.
func (s *Service) Revoke(ctx context.Context, organizationID string) error {
	_, err := s.db.In(ctx, organizationID).Delete((*robot)(nil)).Exec(ctx)
	return err
}

func (s *Service) robot(ctx context.Context, organizationID string, push bool, valid time.Duration) (*robot, string, error) {
	secret := rand.Text() + rand.Text()
	sum := sha256.Sum256([]byte(secret))
	r := &robot{Name: "robot-" + strings.ToLower(rand.Text()), OrganizationID: organizationID, Hash: hex.EncodeToString(sum[:]), Push: push, Expires: s.now().Add(valid)}
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		// Those of all organizations that are over.
		if _, err := s.db.All(ctx).NewDelete().Model((*robot)(nil)).Where("expires_at < ?", s.now()).Exec(ctx); err != nil {
			return err
		}
		_, err := s.db.All(ctx).NewInsert().Model(r).Exec(ctx)
		return err
	})
	return r, secret, err
}

// Access is what a credential for this server's registry allows.
type Access struct {
	OrganizationID string
	Push           bool
}

// Authenticate finds out what a credential allows; KindUnauthorized if nothing.
func (s *Service) Authenticate(ctx context.Context, username, secret string) (Access, error) {
	r := &robot{Name: username}
	// Whose it is is what is being found out.
	err := s.db.All(ctx).NewSelect().Model(r).WherePK().Scan(ctx)
	if err != nil && !store.IsNone(err) {
		return Access{}, err
	}
	sum := sha256.Sum256([]byte(secret))
	same := subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(r.Hash)) == 1
	if err != nil || !same || !s.now().Before(r.Expires) {
		return Access{}, &daytona.Error{Kind: daytona.KindUnauthorized, Message: "Invalid credentials"}
	}
	return Access{OrganizationID: r.OrganizationID, Push: r.Push}, nil
}
