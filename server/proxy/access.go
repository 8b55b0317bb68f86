package proxy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/fileurl"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/observe"
)

// What clients prove themselves with, and what they ask of the proxy.
const (
	headerPreviewToken = "X-Daytona-Preview-Token"
	headerDisableCORS  = "X-Daytona-Disable-CORS"
	headerSkipWarning  = "X-Daytona-Skip-Preview-Warning"
	queryToken         = "DAYTONA_SANDBOX_AUTH_KEY"
)

// grant is the right to have a request passed on.
type grant struct {
	sandbox Sandbox
	// ids are what it hangs on, check asks again whether it is there.
	ids   []string
	check func(context.Context) error
	// authorization says that the header Authorization is not for the sandbox,
	// query that the token in the query was what counted.
	authorization, query bool
	// file is the path of the one file that the request is for.
	file string
	// cookie is what the browser is to bring next time.
	cookie *ticket
	// api says that an API's handler asked, which has CORS headers of its own.
	api bool
}

// bearerOf returns the bearer token of a request, "" if it has none.
func bearerOf(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// authorize finds the sandbox of a label and decides whether the request may be
// passed to its port, or with port 0 to its toolbox. An error that matches
// ErrUnauthorized says that a browser may be sent to log in, unless q.host is
// signed.
//
// Whoever can't see a sandbox is told the same of it as of one that is not there.
func (q *request) authorize(label string, port int) (*grant, error) {
	ctx := q.r.Context()
	signed := q.host != nil && q.host.signed
	id := label
	if signed {
		// The label is itself the credential, and nothing else counts: what it
		// opens is not known until it has been found.
		return q.bySignedHost(ctx)
	}
	s, err := q.sandbox(ctx, id)
	gone := errors.Is(err, daytona.ErrGone)
	if err != nil && !gone && !errors.Is(err, daytona.ErrNotFound) {
		return nil, err
	}
	exists := err == nil
	if exists {
		q.sandboxID = s.ID
	}
	notFound := &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox with ID or name " + id + " not found"}
	bearer := bearerOf(q.r)
	if exists && q.host != nil && s.Public && !system(port) {
		q.how = "public"
		g := &grant{sandbox: s, ids: []string{s.ID, s.OrganizationID}, authorization: q.ours(bearer)}
		g.check = func(ctx context.Context) error {
			s, err := q.config.Sandboxes.ProxySandbox(ctx, id)
			switch {
			case err != nil:
				return err
			case !running(s.State):
				return notStarted(s)
			case !s.Public:
				return unauthorized("the sandbox is not public any more")
			}
			return nil
		}
		return g, q.started(s)
	}
	var refused error
	if bearer != "" {
		ids, err := q.once(ctx, "bearer", bearer, id, func(ctx context.Context) ([]string, error) { return q.byBearer(ctx, bearer, id) })
		switch {
		case err == nil:
			q.how = "bearer"
			observe.From(q.r.Context()).Principal = &identity.Principal{KeyID: ids[0], UserID: ids[1], OrganizationID: ids[2]} // see idsOf
			return q.granted(s, ids, true, func(ctx context.Context) error { _, err := q.byBearer(ctx, bearer, id); return err })
		case errors.Is(err, daytona.ErrGone):
			return nil, err
		case errors.Is(err, daytona.ErrNotFound):
			refused = notFound
		case errors.Is(err, daytona.ErrUnauthorized):
			refused = err
		default:
			return nil, err
		}
	}
	if !exists {
		s = Sandbox{}
	}
	token := q.r.Header.Get(headerPreviewToken)
	how := "header"
	if token == "" {
		if token = queryValue(q.r.URL.RawQuery); token != "" {
			how = "query"
		}
	}
	if token != "" {
		ids, err := q.once(ctx, "token", token, id, func(ctx context.Context) ([]string, error) { return q.byToken(ctx, token, id) })
		if err == nil {
			q.how = how
			g, err := q.granted(s, ids, q.host == nil, func(ctx context.Context) error { _, err := q.byToken(ctx, token, id); return err })
			if g != nil && how == "query" {
				g.query = true
				if q.host != nil {
					g.cookie = &ticket{Kind: ticketToken, Sandbox: s.ID, Port: port, Value: token, Until: q.config.Clock().Add(ticketTime).Unix()}
				}
			}
			return g, err
		}
		if !errors.Is(err, daytona.ErrUnauthorized) {
			return nil, err
		}
		refused = err
	}
	if q.host == nil && exists && q.r.URL.Query().Has("signature") {
		if g, err := q.byFile(ctx, s); g != nil || err != nil {
			return g, err
		}
	}
	if q.host != nil && exists && q.cookieCounts() {
		if t, ok := q.ticketOf(); ok && t.Sandbox == s.ID && t.Port == port && t.Kind != ticketSigned {
			ids, err := q.once(ctx, t.Kind, t.Value, id, func(ctx context.Context) ([]string, error) { return q.byTicket(ctx, t) })
			if err == nil {
				q.how = "cookie"
				return q.granted(s, ids, false, func(ctx context.Context) error { _, err := q.byTicket(ctx, t); return err })
			}
			if !errors.Is(err, daytona.ErrUnauthorized) && !errors.Is(err, daytona.ErrNotFound) {
				return nil, err
			}
			refused = err
		}
	}
	if refused != nil {
		return nil, refused
	}
	return nil, unauthorized("missing authentication: send a bearer token, or the sandbox's preview token")
}

// granted makes a grant for a sandbox that somebody has proved to have the use
// of, in whatever state it is.
func (q *request) granted(s Sandbox, ids []string, authorization bool, again func(context.Context) error) (*grant, error) {
	if err := q.started(s); err != nil {
		return nil, err
	}
	return &grant{sandbox: s, ids: append([]string{s.ID}, ids...), authorization: authorization || q.ours(bearerOf(q.r)), check: func(ctx context.Context) error {
		now, err := q.config.Sandboxes.ProxySandbox(ctx, s.ID)
		if err == nil && !running(now.State) {
			err = notStarted(now)
		}
		if err == nil {
			err = again(ctx)
		}
		return err
	}}, nil
}

func (q *request) started(s Sandbox) error {
	if !running(s.State) {
		return notStarted(s)
	}
	return nil
}

// once asks, or remembers that the answer was yes, and what it hung on.
func (p *Proxy) once(ctx context.Context, kind, credential, sandboxID string, ask func(context.Context) ([]string, error)) ([]string, error) {
	key := sha256.Sum256([]byte(kind + "\x00" + sandboxID + "\x00" + credential))
	if ids, ok := p.allowed.get(key); ok {
		return ids, nil
	}
	epoch := p.allowed.epoch()
	ids, err := ask(ctx)
	if err == nil {
		p.allowed.put(epoch, key, append(ids, sandboxID), remember)
	}
	return ids, err
}

// byBearer lets in members of the organization of a sandbox.
func (p *Proxy) byBearer(ctx context.Context, bearer, sandboxID string) ([]string, error) {
	principal, err := p.config.Authenticator.Authenticate(ctx, bearer)
	if err != nil {
		return nil, asUnauthorized(err)
	}
	s, err := p.config.Sandboxes.ProxySandbox(ctx, sandboxID)
	gone := errors.Is(err, daytona.ErrGone)
	if err != nil && !gone {
		return nil, err
	}
	if _, err := p.member(ctx, principal, s.OrganizationID); err != nil {
		if errors.Is(err, daytona.ErrForbidden) || errors.Is(err, daytona.ErrNotFound) {
			err = &daytona.Error{Kind: daytona.KindNotFound, Message: "Sandbox with ID or name " + sandboxID + " not found"}
		}
		return nil, err
	}
	if gone {
		return nil, &daytona.Error{Kind: daytona.KindGone, Message: "Sandbox with ID or name " + sandboxID + " has been destroyed"}
	}
	return idsOf(principal, s.OrganizationID, bearer), nil
}

// member returns principal as a member of an organization, ErrForbidden if it
// is none.
func (p *Proxy) member(ctx context.Context, principal *identity.Principal, organizationID string) (*identity.Principal, error) {
	switch {
	case organizationID == "":
	case principal.Kind == identity.Key && principal.OrganizationID == organizationID:
		return principal, nil
	case principal.Kind == identity.JWT:
		return p.config.Authenticator.Join(ctx, principal, organizationID)
	}
	return nil, &daytona.Error{Kind: daytona.KindForbidden, Message: "no access to this organization"}
}

// idsOf is what a member's right hangs on. Keys are known by their hashes.
func idsOf(p *identity.Principal, organizationID, bearer string) []string {
	ids := []string{p.KeyID, p.UserID, organizationID}
	if bearer != "" {
		sum := sha256.Sum256([]byte(bearer))
		ids = append(ids, hex.EncodeToString(sum[:]))
	}
	return ids
}

// byToken lets in who has the token of a sandbox.
func (p *Proxy) byToken(ctx context.Context, token, sandboxID string) ([]string, error) {
	ok, err := p.config.Sandboxes.ValidPreviewToken(ctx, sandboxID, token)
	if err != nil && !errors.Is(err, daytona.ErrNotFound) && !errors.Is(err, daytona.ErrGone) {
		return nil, err
	}
	if err != nil || !ok {
		return nil, unauthorized("authentication failed: invalid preview token")
	}
	return nil, nil
}

// byFile lets in a request for one file whose URL has been signed. It returns
// nothing if the request is none of these.
func (q *request) byFile(ctx context.Context, s Sandbox) (*grant, error) {
	r := q.r
	_, target, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/toolbox/"), "/")
	method := fileurl.MethodOf("/" + target)
	if method == "" || r.Method != method && (r.Method != http.MethodHead || method != http.MethodGet) {
		return nil, nil
	}
	key, err := q.config.Sandboxes.SigningKey(ctx, s.ID)
	if err != nil {
		return nil, err
	}
	file, err := fileurl.Verify(key, method, r.URL.Query(), q.config.Clock())
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindForbidden, Message: err.Error()}
	}
	q.how = "file"
	g, err := q.granted(s, nil, true, func(ctx context.Context) error {
		now, err := q.config.Sandboxes.SigningKey(ctx, s.ID)
		if err == nil && now != key {
			err = unauthorized("the signing key has been changed")
		}
		return err
	})
	if g != nil {
		g.file = file
	}
	return g, err
}

// bySignedHost lets in a request whose host has a signed token in it, or a
// cookie that was given for that one: a page that was opened in time may go on
// to load what belongs to it.
func (q *request) bySignedHost(ctx context.Context) (*grant, error) {
	token, port := q.host.label, q.host.port
	denied := &daytona.Error{Kind: daytona.KindForbidden, Message: "the signed URL is not valid, or not any more"}
	id, expires, err := q.config.Sandboxes.SignedPreview(ctx, token, port)
	switch {
	case errors.Is(err, daytona.ErrForbidden) || errors.Is(err, daytona.ErrNotFound) || errors.Is(err, daytona.ErrUnauthorized) || errors.Is(err, daytona.ErrGone):
		return nil, denied
	case err != nil:
		return nil, err
	}
	now := q.config.Clock()
	until := expires
	q.how = "signed"
	if !now.Before(expires) {
		t, ok := q.ticketOf()
		if !ok || t.Kind != ticketSigned || t.Value != token || t.Sandbox != id || t.Port != port || !q.cookieCounts() {
			return nil, denied
		}
		q.how, until = "cookie", time.Unix(t.Until, 0)
	}
	s, err := q.sandbox(ctx, id)
	if err != nil {
		if errors.Is(err, daytona.ErrNotFound) || errors.Is(err, daytona.ErrGone) {
			err = denied
		}
		return nil, err
	}
	q.sandboxID = s.ID
	g, err := q.granted(s, nil, false, func(ctx context.Context) error {
		_, _, err := q.config.Sandboxes.SignedPreview(ctx, token, port)
		return err
	})
	if g == nil {
		return nil, err
	}
	g.ids = append(g.ids, token)
	if q.how == "signed" && q.navigates() {
		g.cookie = &ticket{Kind: ticketSigned, Sandbox: s.ID, Port: port, Value: token, Until: later(until, now.Add(ticketTime)).Unix()}
	}
	return g, nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// ours reports whether a bearer token is of a kind that this server gives out,
// so that no program of a sandbox may see it even where nobody asked for it.
func (q *request) ours(bearer string) bool {
	if strings.HasPrefix(bearer, "dtn_") {
		return true
	}
	return q.login != nil && q.login.issued(bearer)
}

// cookieCounts reports whether the browser sends a request on behalf of the
// preview's own page, or of a user who goes there: a page of another sandbox is
// of the same site as this one, for browsers, and may have requests sent with
// this one's cookies.
func (q *request) cookieCounts() bool {
	r := q.r
	if origin := r.Header.Get("Origin"); origin != "" {
		return q.ownOrigin(origin)
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return true
	}
	return get(r) && r.Header.Get("Sec-Fetch-Mode") == "navigate"
}

// ownOrigin reports whether an origin is that of the host asked for.
func (q *request) ownOrigin(origin string) bool {
	u, err := url.Parse(origin)
	if err != nil || u.Scheme != q.config.Protocol {
		return false
	}
	h, ok := parseHost(u.Host, q.config.Domains)
	return ok && h.own() == q.host.own()
}

// navigates reports whether a browser is about to show what is asked for.
func (q *request) navigates() bool {
	r := q.r
	if !get(r) || r.Header.Get("Upgrade") != "" {
		return false
	}
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		return mode == "navigate"
	}
	return strings.Contains(r.Header.Get("Accept"), "text/html")
}

// queryValue returns the token of a raw query, "" if it has none.
func queryValue(raw string) string {
	for part := range strings.SplitSeq(raw, "&") {
		k, v, _ := strings.Cut(part, "=")
		if k, err := url.QueryUnescape(k); err != nil || k != queryToken {
			continue
		}
		if v, err := url.QueryUnescape(v); err == nil && v != "" {
			return v
		}
	}
	return ""
}

// withoutToken takes all parts out of a raw query that name the token, in
// whatever way, and leaves the rest as it is.
func withoutToken(raw string) string {
	if !mentionsToken(raw) {
		return raw
	}
	var kept []string
	for part := range strings.SplitSeq(raw, "&") {
		if !mentionsToken(part) {
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, "&")
}

// mentionsToken reports whether text has the token's name in it, escaped up to
// three times: a URL in a URL.
func mentionsToken(text string) bool {
	for range 4 {
		if strings.Contains(strings.ToUpper(text), queryToken) {
			return true
		}
		u := lenientUnescape(text)
		if u == text {
			return false
		}
		text = u
	}
	return false
}

// lenientUnescape undoes the escapes that are well-formed.
func lenientUnescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
