package issuer

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"
	"github.com/uptrace/bun"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/store"
)

// session is a browser that has logged in.
type session struct {
	bun.BaseModel `bun:"table:issuer_sessions,alias:issuer_session"`

	Hash      string    `bun:"hash,pk"` // of the cookie
	UserID    string    `bun:"user_id,notnull"`
	AuthTime  time.Time `bun:"auth_time,notnull"`
	ExpiresAt time.Time `bun:"expires_at,notnull"`
}

// request is a login on its way.
type request struct {
	bun.BaseModel `bun:"table:issuer_requests,alias:issuer_request"`

	ID string `bun:"id,pk"`
	// BrowserHash is of the cookie of the browser that may go on with it.
	BrowserHash string     `bun:"browser_hash,notnull"`
	CodeHash    *string    `bun:"code_hash"`
	ClientID    string     `bun:"client_id,notnull"`
	Asked       asked      `bun:"asked,notnull"`
	UserID      string     `bun:"user_id,notnull"` // once there has been a login
	AuthTime    *time.Time `bun:"auth_time"`
	Used        bool       `bun:"used,notnull"` // the code has been
	ExpiresAt   time.Time  `bun:"expires_at,notnull"`

	audience string
}

// asked is what a client asked for.
type asked struct {
	RedirectURI  string            `json:"redirectUri"`
	State        string            `json:"state,omitempty"`
	Nonce        string            `json:"nonce,omitempty"`
	Scopes       []string          `json:"scopes"`
	ResponseType oidc.ResponseType `json:"responseType"`
	ResponseMode oidc.ResponseMode `json:"responseMode,omitempty"`
	Challenge    string            `json:"challenge,omitempty"`
	MaxAge       *uint             `json:"maxAge,omitempty"`
	LoginHint    string            `json:"loginHint,omitempty"`
}

func (r *request) GetID() string          { return r.ID }
func (r *request) GetACR() string         { return "" }
func (r *request) GetAMR() []string       { return []string{"pwd"} }
func (r *request) GetAudience() []string  { return []string{r.audience, r.ClientID} }
func (r *request) GetClientID() string    { return r.ClientID }
func (r *request) GetNonce() string       { return r.Asked.Nonce }
func (r *request) GetRedirectURI() string { return r.Asked.RedirectURI }
func (r *request) GetScopes() []string    { return r.Asked.Scopes }
func (r *request) GetState() string       { return r.Asked.State }
func (r *request) GetSubject() string     { return r.UserID }
func (r *request) Done() bool             { return r.UserID != "" && !r.Used }

func (r *request) GetResponseType() oidc.ResponseType { return r.Asked.ResponseType }
func (r *request) GetResponseMode() oidc.ResponseMode { return r.Asked.ResponseMode }

func (r *request) GetAuthTime() time.Time {
	if r.AuthTime == nil {
		return time.Time{}
	}
	return *r.AuthTime
}

func (r *request) GetCodeChallenge() *oidc.CodeChallenge {
	if r.Asked.Challenge == "" {
		return nil
	}
	return &oidc.CodeChallenge{Challenge: r.Asked.Challenge, Method: oidc.CodeChallengeMethodS256}
}

// refresh is a refresh token. All that came of one login are a family.
type refresh struct {
	bun.BaseModel `bun:"table:issuer_refresh_tokens,alias:issuer_refresh_token"`

	Hash      string     `bun:"hash,pk"`
	Family    string     `bun:"family,notnull"`
	ClientID  string     `bun:"client_id,notnull"`
	UserID    string     `bun:"user_id,notnull"`
	Scopes    []string   `bun:"scopes,notnull"`
	AuthTime  time.Time  `bun:"auth_time,notnull"`
	UsedAt    *time.Time `bun:"used_at"`
	ExpiresAt time.Time  `bun:"expires_at,notnull"`

	audience string
	asked    []string // fewer scopes, for once
}

func (r *refresh) GetAMR() []string            { return []string{"pwd"} }
func (r *refresh) GetAudience() []string       { return []string{r.audience, r.ClientID} }
func (r *refresh) GetAuthTime() time.Time      { return r.AuthTime }
func (r *refresh) GetClientID() string         { return r.ClientID }
func (r *refresh) GetSubject() string          { return r.UserID }
func (r *refresh) SetCurrentScopes(s []string) { r.asked = s }

func (r *refresh) GetScopes() []string {
	if r.asked != nil {
		return r.asked
	}
	return r.Scopes
}

// device is a login of a program that has no browser.
type device struct {
	bun.BaseModel `bun:"table:issuer_devices,alias:issuer_device"`

	Hash      string     `bun:"hash,pk"` // of the device code
	UserCode  string     `bun:"user_code,notnull"`
	ClientID  string     `bun:"client_id,notnull"`
	Scopes    []string   `bun:"scopes,notnull"`
	UserID    string     `bun:"user_id,notnull"` // once a user has agreed
	AuthTime  *time.Time `bun:"auth_time"`
	Denied    bool       `bun:"denied,notnull"`
	Used      bool       `bun:"used,notnull"`
	ExpiresAt time.Time  `bun:"expires_at,notnull"`
}

// storage is what the protocol needs of the issuer.
type storage struct{ *Issuer }

var (
	_ op.Storage                        = (*storage)(nil)
	_ op.DeviceAuthorizationStorage     = (*storage)(nil)
	_ op.CanTerminateSessionFromRequest = (*storage)(nil)
)

// fault logs what went wrong here and returns what a client may know of it.
func (s *storage) fault(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		s.log.Error("login does not work", "err", err)
	}
	return oidc.ErrServerError().WithDescription("something went wrong; try again")
}

func (s *storage) CreateAuthRequest(ctx context.Context, a *oidc.AuthRequest, hinted string) (op.AuthRequest, error) {
	b := browserOf(ctx)
	if b.hash == "" {
		return nil, oidc.ErrInvalidRequest().WithDescription("this is not a browser's request")
	}
	c := s.clients[a.ClientID]
	switch {
	case a.CodeChallenge == "" && c.Secret == "":
		return nil, oidc.ErrInvalidRequest().WithDescription("PKCE is needed: code_challenge is missing")
	case a.CodeChallenge != "" && a.CodeChallengeMethod != oidc.CodeChallengeMethodS256:
		return nil, oidc.ErrInvalidRequest().WithDescription("code_challenge_method must be S256")
	}
	r := &request{
		ID: random(), BrowserHash: b.hash, ClientID: a.ClientID, ExpiresAt: s.now().UTC().Add(loginWithin), audience: s.config.Audience,
		Asked: asked{
			RedirectURI: a.RedirectURI, State: a.State, Nonce: a.Nonce, Scopes: a.Scopes, ResponseType: a.ResponseType,
			ResponseMode: a.ResponseMode, Challenge: a.CodeChallenge, MaxAge: a.MaxAge, LoginHint: a.LoginHint,
		},
	}
	login, err := s.session(ctx, b.session)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	if login != nil && r.accepts(login, s.now()) && (hinted == "" || hinted == login.UserID) && !slices.Contains(a.Prompt, oidc.PromptSelectAccount) {
		r.UserID, r.AuthTime = login.UserID, &login.AuthTime
	} else if slices.Contains(a.Prompt, oidc.PromptNone) {
		return nil, oidc.ErrLoginRequired()
	}
	if _, err := s.db.All(ctx).NewInsert().Model(r).Exec(ctx); err != nil {
		return nil, s.fault(ctx, err)
	}
	return r, nil
}

// accepts reports whether a login that has been is recent enough.
func (r *request) accepts(login *session, now time.Time) bool {
	return r.Asked.MaxAge == nil || now.Sub(login.AuthTime) < time.Duration(*r.Asked.MaxAge)*time.Second
}

// session returns the session of a cookie's hash, or nil.
func (i *Issuer) session(ctx context.Context, hash string) (*session, error) {
	if hash == "" {
		return nil, nil
	}
	l := &session{}
	err := i.db.All(ctx).NewSelect().Model(l).Where("hash = ? AND expires_at > ?", hash, i.now().UTC()).Scan(ctx)
	if store.IsNone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// pending returns a login that the browser with a cookie's hash has begun, or
// nil.
func (i *Issuer) pending(ctx context.Context, id, browserHash string) (*request, error) {
	r := &request{audience: i.config.Audience}
	err := i.db.All(ctx).NewSelect().Model(r).Where("id = ? AND expires_at > ?", id, i.now().UTC()).Scan(ctx)
	if store.IsNone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if browserHash == "" || subtle.ConstantTimeCompare([]byte(r.BrowserHash), []byte(browserHash)) != 1 {
		return nil, nil
	}
	return r, nil
}

// AuthRequestByID is asked when a browser comes back from the login: only the
// one that began may go on, or else somebody could have others log in for them.
func (s *storage) AuthRequestByID(ctx context.Context, id string) (op.AuthRequest, error) {
	r, err := s.pending(ctx, id, browserOf(ctx).hash)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	if r == nil || r.CodeHash != nil {
		return nil, errors.New("this login is over, or was begun in another browser")
	}
	return r, nil
}

func (s *storage) SaveAuthCode(ctx context.Context, id, code string) error {
	err := store.Changed(s.db.All(ctx).NewUpdate().Model((*request)(nil)).
		Set("code_hash = ?", digest(code)).Set("expires_at = ?", s.now().UTC().Add(codeWithin)).
		Where("id = ? AND code_hash IS NULL AND user_id <> ''", id).Exec(ctx))
	if err != nil {
		return s.fault(ctx, err)
	}
	return nil
}

// AuthRequestByCode takes a code, which is good once, whatever comes of it.
// One that comes again has been stolen, or its thief was faster: what was made
// of it ends.
func (s *storage) AuthRequestByCode(ctx context.Context, code string) (op.AuthRequest, error) {
	r := &request{audience: s.config.Audience}
	invalid := errors.New("there is no such code")
	again := false
	err := s.db.Tx(ctx, func(ctx context.Context) error {
		again = false
		res, err := s.db.All(ctx).NewUpdate().Model((*request)(nil)).Set("used = ?", true).
			Where("code_hash = ? AND used = ? AND expires_at > ?", digest(code), false, s.now().UTC()).Exec(ctx)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if err != nil {
			return err
		}
		if err := s.db.All(ctx).NewSelect().Model(r).Where("code_hash = ?", digest(code)).Scan(ctx); err != nil {
			return err
		}
		if n == 1 {
			return nil
		}
		again = true
		_, err = s.db.All(ctx).NewDelete().Model((*refresh)(nil)).Where("family = ?", r.ID).Exec(ctx)
		return err
	})
	switch {
	case store.IsNone(err):
		return nil, invalid
	case err != nil:
		return nil, s.fault(ctx, err)
	case again:
		s.log.Warn("an authorization code came a second time, or too late", "client", r.ClientID, "user", r.UserID)
		return nil, invalid
	}
	return r, nil
}

// DeleteAuthRequest leaves it for a while, to know its code again; [Issuer.Sweep]
// removes it. It stays for as long as its login could have taken.
func (s *storage) DeleteAuthRequest(ctx context.Context, id string) error {
	_, err := s.db.All(ctx).NewUpdate().Model((*request)(nil)).Set("expires_at = ?", s.now().UTC().Add(loginWithin)).Where("id = ?", id).Exec(ctx)
	if err != nil {
		return s.fault(ctx, err)
	}
	return nil
}

func (s *storage) CreateAccessToken(ctx context.Context, r op.TokenRequest) (string, time.Time, error) {
	return uuid.NewString(), s.now().UTC().Add(s.config.AccessTTL), nil
}

func (s *storage) CreateAccessAndRefreshTokens(ctx context.Context, r op.TokenRequest, current string) (id, token string, expires time.Time, err error) {
	now := s.now().UTC()
	next := &refresh{UserID: r.GetSubject(), Scopes: r.GetScopes(), ExpiresAt: now.Add(s.config.RefreshTTL)}
	switch r := r.(type) {
	case *request:
		next.Family, next.ClientID, next.AuthTime = r.ID, r.ClientID, r.GetAuthTime()
	case *op.DeviceAuthorizationState:
		next.Family, next.ClientID, next.AuthTime = random(), r.ClientID, r.AuthTime
	case *refresh:
		next.Family, next.ClientID, next.AuthTime, next.Scopes = r.Family, r.ClientID, r.AuthTime, r.Scopes
	default:
		return "", "", time.Time{}, s.fault(ctx, fmt.Errorf("tokens for a %T", r))
	}
	token = random()
	next.Hash = digest(token)
	stolen := false
	err = s.db.Tx(ctx, func(ctx context.Context) error {
		stolen = false
		if current != "" {
			old := &refresh{}
			q := s.db.All(ctx).NewSelect().Model(old).Where("hash = ? AND expires_at > ?", digest(current), now)
			if s.db.Postgres() {
				q = q.For("UPDATE")
			}
			if err := q.Scan(ctx); err != nil {
				return err
			}
			if old.UsedAt != nil && now.Sub(*old.UsedAt) > overlap {
				stolen = true
				_, err := s.db.All(ctx).NewDelete().Model((*refresh)(nil)).Where("family = ?", old.Family).Exec(ctx)
				return err
			}
			if old.UsedAt == nil {
				if _, err := s.db.All(ctx).NewUpdate().Model(old).Set("used_at = ?", now).WherePK().Exec(ctx); err != nil {
					return err
				}
			}
		}
		_, err := s.db.All(ctx).NewInsert().Model(next).Exec(ctx)
		return err
	})
	switch {
	case store.IsNone(err):
		return "", "", time.Time{}, oidc.ErrInvalidGrant()
	case err != nil:
		return "", "", time.Time{}, s.fault(ctx, err)
	case stolen:
		s.log.Warn("a refresh token came a second time; its user must log in again", "client", next.ClientID, "user", next.UserID)
		return "", "", time.Time{}, oidc.ErrInvalidGrant()
	}
	return uuid.NewString(), token, now.Add(s.config.AccessTTL), nil
}

func (s *storage) TokenRequestByRefreshToken(ctx context.Context, token string) (op.RefreshTokenRequest, error) {
	r, err := s.refresh(ctx, token)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (s *storage) refresh(ctx context.Context, token string) (*refresh, error) {
	r := &refresh{audience: s.config.Audience}
	err := s.db.All(ctx).NewSelect().Model(r).Where("hash = ? AND expires_at > ?", digest(token), s.now().UTC()).Scan(ctx)
	if store.IsNone(err) {
		return nil, op.ErrInvalidRefreshToken
	}
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	// The user may be gone meanwhile.
	if _, _, _, err := s.config.Users.Info(ctx, r.UserID); errors.Is(err, daytona.ErrNotFound) {
		return nil, op.ErrInvalidRefreshToken
	} else if err != nil {
		return nil, s.fault(ctx, err)
	}
	return r, nil
}

func (s *storage) TerminateSession(ctx context.Context, userID, clientID string) error {
	_, err := s.db.All(ctx).NewDelete().Model((*refresh)(nil)).Where("user_id = ? AND client_id = ?", userID, clientID).Exec(ctx)
	if err != nil {
		return s.fault(ctx, err)
	}
	return nil
}

// TerminateSessionFromRequest logs a browser out, and the client that sent it.
func (s *storage) TerminateSessionFromRequest(ctx context.Context, r *op.EndSessionRequest) (string, error) {
	if hash := browserOf(ctx).session; hash != "" {
		if _, err := s.db.All(ctx).NewDelete().Model((*session)(nil)).Where("hash = ?", hash).Exec(ctx); err != nil {
			return "", s.fault(ctx, err)
		}
	}
	if r.UserID != "" && r.ClientID != "" {
		if err := s.TerminateSession(ctx, r.UserID, r.ClientID); err != nil {
			return "", err
		}
	}
	return r.RedirectURI, nil
}

// GetRefreshTokenInfo says whose a refresh token is. The token is its own id.
func (s *storage) GetRefreshTokenInfo(ctx context.Context, clientID, token string) (userID, tokenID string, err error) {
	r, err := s.refresh(ctx, token)
	if err != nil {
		return "", "", err
	}
	return r.UserID, token, nil
}

// RevokeToken ends a refresh token and all others of the same login. An access
// token ends by itself.
func (s *storage) RevokeToken(ctx context.Context, token, userID, clientID string) *oidc.Error {
	r := &refresh{}
	err := s.db.All(ctx).NewSelect().Model(r).Where("hash = ?", digest(token)).Scan(ctx)
	if store.IsNone(err) {
		return nil
	}
	if err == nil && r.ClientID != clientID {
		return oidc.ErrInvalidClient().WithDescription("the token is another client's")
	}
	if err == nil {
		_, err = s.db.All(ctx).NewDelete().Model((*refresh)(nil)).Where("family = ?", r.Family).Exec(ctx)
	}
	if err != nil {
		s.log.Error("a token can't be revoked", "err", err)
		return oidc.ErrServerError()
	}
	return nil
}

func (s *storage) SigningKey(ctx context.Context) (op.SigningKey, error) {
	k, err := s.keys.signing(ctx)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	return k, nil
}

func (s *storage) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.RS256}, nil
}

func (s *storage) KeySet(ctx context.Context) ([]op.Key, error) {
	keys, err := s.keys.published(ctx)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	return keys, nil
}

func (s *storage) GetClientByClientID(ctx context.Context, id string) (op.Client, error) {
	if c := s.clients[id]; c != nil {
		return c, nil
	}
	return nil, oidc.ErrInvalidClient().WithDescription("there is no such client")
}

func (s *storage) AuthorizeClientIDSecret(ctx context.Context, id, secret string) error {
	c := s.clients[id]
	if c == nil || c.Secret == "" || subtle.ConstantTimeCompare([]byte(digest(secret)), []byte(digest(c.Secret))) != 1 {
		return errors.New("wrong client or secret")
	}
	return nil
}

// SetUserinfoFromScopes is for ID tokens.
func (s *storage) SetUserinfoFromScopes(ctx context.Context, u *oidc.UserInfo, userID, clientID string, scopes []string) error {
	return s.describe(ctx, u, userID, scopes)
}

// SetUserinfoFromToken is for who asks with an access token.
func (s *storage) SetUserinfoFromToken(ctx context.Context, u *oidc.UserInfo, tokenID, subject, origin string) error {
	return s.describe(ctx, u, subject, []string{oidc.ScopeOpenID, oidc.ScopeProfile, oidc.ScopeEmail})
}

func (s *storage) describe(ctx context.Context, u *oidc.UserInfo, userID string, scopes []string) error {
	email, name, verified, err := s.config.Users.Info(ctx, userID)
	if err != nil {
		return s.fault(ctx, err)
	}
	for _, scope := range scopes {
		switch scope {
		case oidc.ScopeOpenID:
			u.Subject = userID
		case oidc.ScopeProfile:
			u.Name, u.PreferredUsername = name, name
		case oidc.ScopeEmail:
			u.Email, u.EmailVerified = email, oidc.Bool(verified)
		}
	}
	return nil
}

// GetPrivateClaimsFromScopes is for access tokens: the API is told who a user
// is, whatever the client may know.
func (s *storage) GetPrivateClaimsFromScopes(ctx context.Context, userID, clientID string, scopes []string) (map[string]any, error) {
	email, name, verified, err := s.config.Users.Info(ctx, userID)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	return map[string]any{useClaim: useAccess, "email": email, "email_verified": verified, "name": name}, nil
}

func (s *storage) SetIntrospectionFromToken(context.Context, *oidc.IntrospectionResponse, string, string, string) error {
	return errors.New("there is no introspection")
}

func (s *storage) GetKeyByIDAndClientID(context.Context, string, string) (*jose.JSONWebKey, error) {
	return nil, errors.New("clients have no keys")
}

func (s *storage) ValidateJWTProfileScopes(context.Context, string, []string) ([]string, error) {
	return nil, errors.New("clients have no keys")
}

func (s *storage) Health(ctx context.Context) error { return s.db.Ping(ctx) }

func (s *storage) StoreDeviceAuthorization(ctx context.Context, clientID, deviceCode, userCode string, expires time.Time, scopes []string) error {
	_, err := s.db.All(ctx).NewInsert().Model(&device{
		Hash: digest(deviceCode), UserCode: userCode, ClientID: clientID, Scopes: scopes, ExpiresAt: expires.UTC(),
	}).Exec(ctx)
	if store.IsUnique(err) {
		return op.ErrDuplicateUserCode
	}
	if err != nil {
		return s.fault(ctx, err)
	}
	return nil
}

// GetDeviceAuthorizatonState says what has become of a device's login. Once it
// has said that a user agreed, the device code is used up.
func (s *storage) GetDeviceAuthorizatonState(ctx context.Context, clientID, deviceCode string) (*op.DeviceAuthorizationState, error) {
	d := &device{}
	err := s.db.All(ctx).NewSelect().Model(d).Where("hash = ? AND client_id = ?", digest(deviceCode), clientID).Scan(ctx)
	if store.IsNone(err) {
		return nil, errors.New("there is no such device code")
	}
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	state := &op.DeviceAuthorizationState{
		ClientID: d.ClientID, Audience: []string{s.config.Audience}, Scopes: d.Scopes, Expires: d.ExpiresAt, Denied: d.Denied,
	}
	if d.UserID == "" || d.Denied || !d.ExpiresAt.After(s.now()) {
		return state, nil
	}
	res, err := s.db.All(ctx).NewUpdate().Model((*device)(nil)).Set("used = ?", true).Where("hash = ? AND used = ?", d.Hash, false).Exec(ctx)
	if err != nil {
		return nil, s.fault(ctx, err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return nil, errors.New("this device code has been used")
	}
	state.Done, state.Subject, state.AMR = true, d.UserID, []string{"pwd"}
	if d.AuthTime != nil {
		state.AuthTime = *d.AuthTime
	}
	return state, nil
}
