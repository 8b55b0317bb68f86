package sandbox

import (
	"context"
	"crypto/subtle"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/uptrace/bun"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// previewToken lets whoever has it see one port of a sandbox for a while.
type previewToken struct {
	bun.BaseModel `bun:"table:sandbox_preview_tokens,alias:token"`

	Hash           string    `bun:"token_hash,pk"`
	OrganizationID string    `bun:"organization_id,notnull"`
	SandboxID      string    `bun:"sandbox_id,notnull"`
	Port           int       `bun:"port,notnull"`
	Expires        time.Time `bun:"expires_at,notnull"`
}

// sshAccess lets whoever has its token into a sandbox for a while.
type sshAccess struct {
	bun.BaseModel `bun:"table:sandbox_ssh_access,alias:access"`

	ID             string    `bun:"id,pk"`
	OrganizationID string    `bun:"organization_id,notnull"`
	SandboxID      string    `bun:"sandbox_id,notnull"`
	Hash           string    `bun:"token_hash,notnull"`
	Expires        time.Time `bun:"expires_at,notnull"`
	CreatedAt      time.Time `bun:"created_at,notnull"`
	UpdatedAt      time.Time `bun:"updated_at,notnull"`
}

// most tokens that a sandbox has at a time.
const maxTokens = 1000

// Preview is where a port of a sandbox can be seen, and the token for it.
type Preview struct {
	SandboxID  string
	Port       int
	URL, Token string
}

func checkPort(port int) error {
	if port < 1 || port > 65535 {
		return invalid("Invalid port")
	}
	return nil
}

// PreviewURL returns the URL of a port, and the sandbox's auth token, which it
// takes unless the sandbox is public.
func (s *Service) PreviewURL(ctx context.Context, organizationID, idOrName string, port int) (Preview, error) {
	if err := checkPort(port); err != nil {
		return Preview{}, err
	}
	sb, err := s.Get(ctx, organizationID, idOrName)
	if err != nil {
		return Preview{}, err
	}
	auth, err := s.seals.unseal("auth "+sb.ID, sb.AuthToken)
	if err != nil {
		return Preview{}, err
	}
	u, err := s.previewURL(ctx, sb, port, sb.ID)
	return Preview{sb.ID, port, u, auth}, err
}

// previewURL is the URL of a port; who is a sandbox's id, or a token for it.
func (s *Service) previewURL(ctx context.Context, sb *Sandbox, port int, who string) (string, error) {
	r, err := s.deps.Regions.Region(ctx, sb.RegionID)
	if err != nil {
		return "", err
	}
	if scheme, rest, ok := strings.Cut(r.ProxyURL, "://"); ok {
		return fmt.Sprintf("%s://%d-%s.%s", scheme, port, who, rest), nil
	}
	return strings.NewReplacer("{{PORT}}", fmt.Sprint(port), "{{sandboxId}}", who).Replace(s.config.PreviewURL), nil
}

// SignedPreviewURL returns a URL of a port that needs nothing else, for some
// seconds.
func (s *Service) SignedPreviewURL(ctx context.Context, organizationID, idOrName string, port, seconds int) (Preview, error) {
	if err := checkPort(port); err != nil {
		return Preview{}, err
	}
	if seconds < 1 || seconds > 86400 {
		return Preview{}, invalid("expiresInSeconds %d must be 1 to 86400", seconds)
	}
	sb, err := s.Get(ctx, organizationID, idOrName)
	if err != nil {
		return Preview{}, err
	}
	now := s.now()
	n, err := s.db.In(ctx, organizationID).Select((*previewToken)(nil)).Where("sandbox_id = ? AND expires_at > ?", sb.ID, now).Count(ctx)
	if err != nil {
		return Preview{}, err
	}
	if n >= maxTokens {
		return Preview{}, invalid("The sandbox has %d signed preview URLs and must have at most %d", n, maxTokens)
	}
	t := token(16)
	row := &previewToken{Hash: hashOf(t), OrganizationID: organizationID, SandboxID: sb.ID, Port: port, Expires: now.Add(time.Duration(seconds) * time.Second)}
	if _, err := s.db.All(ctx).NewInsert().Model(row).Exec(ctx); err != nil {
		return Preview{}, err
	}
	u, err := s.previewURL(ctx, sb, port, t)
	return Preview{sb.ID, port, u, t}, err
}

// ExpirePreviewURL ends a signed URL. It does nothing if there is none.
func (s *Service) ExpirePreviewURL(ctx context.Context, organizationID, idOrName string, port int, token string) error {
	sb, err := s.Get(ctx, organizationID, idOrName)
	if err != nil {
		return err
	}
	_, err = s.db.In(ctx, organizationID).Delete((*previewToken)(nil)).Where("token_hash = ? AND sandbox_id = ? AND port = ?", hashOf(token), sb.ID, port).Exec(ctx)
	if err != nil {
		return err
	}
	return s.db.Publish(ctx, TopicChanged, sb.ID)
}

// SignedPreview returns the sandbox of a signed preview token, which is for
// just one port, and until when it is valid, which may be over: KindForbidden
// if it is for another port, or none.
func (s *Service) SignedPreview(ctx context.Context, token string, port int) (sandboxID string, expires time.Time, err error) {
	wrong := &daytona.Error{Kind: daytona.KindForbidden, Message: "Invalid or expired token"}
	if len(token) != 16 {
		return "", time.Time{}, wrong
	}
	row := &previewToken{}
	err = s.db.All(ctx).NewSelect().Model(row).Where("token_hash = ? AND port = ?", hashOf(token), port).Scan(ctx)
	if store.IsNone(err) {
		return "", time.Time{}, wrong
	} else if err != nil {
		return "", time.Time{}, err
	}
	if _, err := s.Find(ctx, row.SandboxID); err != nil {
		return "", time.Time{}, err
	}
	return row.SandboxID, row.Expires, nil
}

// ValidPreviewToken reports whether a token is the auth token of a sandbox.
func (s *Service) ValidPreviewToken(ctx context.Context, id, token string) (bool, error) {
	sb, err := s.Find(ctx, id)
	if err != nil {
		return false, err
	}
	return sb.AuthTokenHash != "" && subtle.ConstantTimeCompare([]byte(hashOf(token)), []byte(sb.AuthTokenHash)) == 1, nil
}

// ByToken returns the sandbox that has an auth token, for the telemetry
// collector.
func (s *Service) ByToken(ctx context.Context, token string) (*Sandbox, error) {
	sb := &Sandbox{}
	err := s.db.All(ctx).NewSelect().Model(sb).Where("auth_token_hash = ?", hashOf(token)).Where("NOT " + gone).Limit(1).Scan(ctx)
	if store.IsNone(err) {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox not found"}
	}
	return sb, err
}

// OrganizationByAuthToken returns the organization of the sandbox that has an
// auth token: KindNotFound if none has.
func (s *Service) OrganizationByAuthToken(ctx context.Context, token string) (string, error) {
	sb, err := s.ByToken(ctx, token)
	if err != nil {
		return "", err
	}
	return sb.OrganizationID, nil
}

// SigningKey returns the key that URLs of files of a sandbox are signed with,
// to the services of the system.
func (s *Service) SigningKey(ctx context.Context, id string) (string, error) {
	sb, err := s.Find(ctx, id)
	if err != nil {
		return "", err
	}
	return s.seals.unseal("signing "+sb.ID, sb.SigningKey)
}

// OwnSigningKey is SigningKey for the organization that has the sandbox.
func (s *Service) OwnSigningKey(ctx context.Context, organizationID, id string) (string, error) {
	sb, err := s.Get(ctx, organizationID, id)
	if err != nil {
		return "", err
	}
	return s.seals.unseal("signing "+sb.ID, sb.SigningKey)
}

// RotateSigningKey makes a new signing key, with which no URL of the old one is
// valid.
func (s *Service) RotateSigningKey(ctx context.Context, organizationID, id string) (string, error) {
	key := token(64)
	_, err := s.change(ctx, organizationID, id, func(_ context.Context, sb *Sandbox) error {
		sb.SigningKey = s.seals.seal("signing "+sb.ID, key)
		return nil
	})
	return key, err
}

// OutboundProxyURL is the proxy of a sandbox, in the clear.
func (s *Service) OutboundProxyURL(sb *Sandbox) (string, error) {
	return s.seals.unseal("proxy "+sb.ID, sb.OutboundProxy)
}

// SSHAccess is what lets somebody into a sandbox. Token and Command are known
// only when it is made.
type SSHAccess struct {
	ID, SandboxID, Token          string
	Expires, CreatedAt, UpdatedAt time.Time
	Command                       string
}

// CreateSSHAccess makes a token for the SSH gateway, and ends all earlier ones.
func (s *Service) CreateSSHAccess(ctx context.Context, organizationID, idOrName string, minutes int) (SSHAccess, error) {
	if minutes < 1 || minutes > maxMinutes {
		return SSHAccess{}, invalid("expiresInMinutes %d must be 1 to %d", minutes, maxMinutes)
	}
	t := token(32)
	var a SSHAccess
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		sb, err := s.get(ctx, organizationID, idOrName, true)
		if err != nil {
			return err
		}
		if _, err := s.db.In(ctx, organizationID).Delete((*sshAccess)(nil)).Where("sandbox_id = ?", sb.ID).Exec(ctx); err != nil {
			return err
		}
		r, err := s.deps.Regions.Region(ctx, sb.RegionID)
		if err != nil {
			return err
		}
		now := s.now()
		row := &sshAccess{ID: newID(), OrganizationID: organizationID, SandboxID: sb.ID, Hash: hashOf(t), Expires: now.Add(time.Duration(minutes) * time.Minute), CreatedAt: now, UpdatedAt: now}
		a = SSHAccess{row.ID, sb.ID, t, row.Expires, now, now, s.sshCommand(r, t)}
		if _, err = s.db.All(ctx).NewInsert().Model(row).Exec(ctx); err != nil {
			return err
		}
		return s.db.Publish(ctx, TopicChanged, sb.ID)
	})
	return a, err
}

func (s *Service) sshCommand(r Region, token string) string {
	at := r.SSHGatewayURL
	if at == "" {
		at = s.config.SSHGateway
	}
	if u, err := url.Parse(at); err == nil && u.Host != "" {
		at = u.Host
	}
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		host, port = at, "22"
	}
	if port == "22" {
		return "ssh " + token + "@" + host
	}
	return "ssh -p " + port + " " + token + "@" + host
}

// RevokeSSHAccess ends one token of a sandbox, or all of them if it is "".
func (s *Service) RevokeSSHAccess(ctx context.Context, organizationID, idOrName, token string) (*Sandbox, error) {
	sb, err := s.Get(ctx, organizationID, idOrName)
	if err != nil {
		return nil, err
	}
	q := s.db.In(ctx, organizationID).Delete((*sshAccess)(nil)).Where("sandbox_id = ?", sb.ID)
	if token != "" {
		q = q.Where("token_hash = ?", hashOf(token))
	}
	if _, err = q.Exec(ctx); err != nil {
		return nil, err
	}
	return sb, s.db.Publish(ctx, TopicChanged, sb.ID)
}

// SSHGrant is what a token opens.
type SSHGrant struct {
	ID, SandboxID string
	Expires       time.Time
	// State is the one that the wire shows.
	State State
}

// SSHGrant returns what a token opens: KindNotFound if nothing, or nothing any
// more.
func (s *Service) SSHGrant(ctx context.Context, token string) (SSHGrant, error) {
	row := &sshAccess{}
	err := s.db.All(ctx).NewSelect().Model(row).Where("token_hash = ? AND expires_at > ?", hashOf(token), s.now()).Scan(ctx)
	if store.IsNone(err) {
		return SSHGrant{}, &daytona.Error{Kind: daytona.KindNotFound, Message: "SSH access not found or expired"}
	} else if err != nil {
		return SSHGrant{}, err
	}
	sb, err := s.Find(ctx, row.SandboxID)
	if err != nil {
		return SSHGrant{}, err
	}
	return SSHGrant{row.ID, sb.ID, row.Expires, sb.Shown()}, nil
}

// SandboxBuild returns whose the build of a sandbox is, and its reference.
func (s *Service) SandboxBuild(ctx context.Context, id string) (organizationID, ref string, err error) {
	sb, err := s.Find(ctx, id)
	if err != nil {
		return "", "", err
	}
	if sb.Build == nil {
		return "", "", &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox " + clip(id) + " has no build"}
	}
	return sb.OrganizationID, sb.Build.Ref, nil
}

// ToolboxURL is the base of the toolbox of sandboxes of a region.
func (s *Service) ToolboxURL(ctx context.Context, regionID string) (string, error) {
	r, err := s.deps.Regions.Region(ctx, regionID)
	if err != nil {
		return "", err
	}
	if r.ToolboxURL != "" {
		return strings.TrimSuffix(r.ToolboxURL, "/") + "/toolbox", nil
	}
	return s.config.ToolboxURL, nil
}

// BuildLogsURL is where the proxy has the log of the build of a sandbox.
func (s *Service) BuildLogsURL(ctx context.Context, organizationID, idOrName string) (string, error) {
	sb, err := s.Get(ctx, organizationID, idOrName)
	if err != nil {
		return "", err
	}
	if sb.Build == nil {
		return "", &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox " + sb.Name + " has no build"}
	}
	r, err := s.deps.Regions.Region(ctx, sb.RegionID)
	if err != nil {
		return "", err
	}
	base := r.ProxyURL
	if base == "" {
		base = s.config.ProxyURL
	}
	return strings.TrimSuffix(base, "/") + "/sandboxes/" + sb.ID + "/build-logs", nil
}
