package proxy

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
)

// ticketTime is how long a cookie opens what it was given for.
const ticketTime = time.Hour

// Names of cookies. With https they have the prefix __Host-, so that browsers
// take them from their own host only and send them to no other.
const (
	cookieTicket  = "daytona-sandbox-auth-"
	cookieLogin   = "daytona-login-"
	cookieWarning = "daytona-preview-page-accepted"
	hostPrefix    = "__Host-"
)

// Kinds of tickets.
const (
	ticketToken  = "token"  // Value is the sandbox's preview token
	ticketSigned = "signed" // Value is a signed token
	ticketUser   = "user"   // Value is a user's id
)

// ticket is what a cookie holds, sealed: whoever has it can't tell what is in
// it. What it was given for is asked for again at each use, so that a token that
// ends ends its cookies.
type ticket struct {
	Kind    string `json:"k"`
	Sandbox string `json:"s"`
	Port    int    `json:"p"`
	Value   string `json:"v"`
	Until   int64  `json:"u"`
}

// sealer encrypts and authenticates.
type sealer struct{ aead cipher.AEAD }

func newSealer(key []byte) (*sealer, error) {
	if len(key) < 32 {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "make proxy", Field: "Key", Message: "must have 32 bytes or more"}
	}
	k, err := hkdf.Key(sha256.New, key, nil, "daytona proxy cookies", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	return &sealer{aead}, err
}

// seal seals v for the cookie of one name at one host.
func (s *sealer) seal(host, name string, v any) string {
	b, _ := json.Marshal(v) // strings and numbers
	nonce := make([]byte, s.aead.NonceSize())
	rand.Read(nonce) // never fails
	return base64.RawURLEncoding.EncodeToString(s.aead.Seal(nonce, nonce, b, []byte(host+"\x00"+name)))
}

func (s *sealer) open(host, name, text string, v any) bool {
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) < s.aead.NonceSize() {
		return false
	}
	n := s.aead.NonceSize()
	b, err = s.aead.Open(nil, b[:n], b[n:], []byte(host+"\x00"+name))
	return err == nil && json.Unmarshal(b, v) == nil
}

// cookie makes a cookie of the host asked for.
func (q *request) cookie(name, value string, age time.Duration) *http.Cookie {
	c := &http.Cookie{Name: name, Value: value, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int((age + time.Second - 1) / time.Second)}
	if age <= 0 {
		c.MaxAge = -1
	}
	if q.config.Protocol == "https" {
		c.Name, c.Secure = hostPrefix+name, true
	}
	return c
}

// cookieValue finds the values of a cookie of that name. There may be several:
// without https, pages of other sandboxes can add some.
func (q *request) cookieValues(name string) []string {
	if q.config.Protocol == "https" {
		name = hostPrefix + name
	}
	var all []string
	for _, c := range q.r.CookiesNamed(name) {
		all = append(all, c.Value)
	}
	return all
}

func (q *request) ticketCookie(t *ticket) *http.Cookie {
	name := cookieTicket + q.host.label
	return q.cookie(name, q.seal.seal(q.host.own(), name, t), time.Unix(t.Until, 0).Sub(q.config.Clock()))
}

// ticketOf returns the valid ticket that a request has for its host.
func (q *request) ticketOf() (t ticket, ok bool) {
	name := cookieTicket + q.host.label
	for _, v := range q.cookieValues(name) {
		var t ticket
		if q.seal.open(q.host.own(), name, v, &t) && q.config.Clock().Unix() < t.Until {
			return t, true
		}
	}
	return ticket{}, false
}

// byTicket asks again for what a ticket was given for.
func (p *Proxy) byTicket(ctx context.Context, t ticket) ([]string, error) {
	if p.config.Clock().Unix() >= t.Until {
		return nil, unauthorized("the cookie is over")
	}
	switch t.Kind {
	case ticketToken:
		return p.byToken(ctx, t.Value, t.Sandbox)
	case ticketUser:
		s, err := p.config.Sandboxes.ProxySandbox(ctx, t.Sandbox)
		if err != nil {
			return nil, err
		}
		principal := &identity.Principal{Kind: identity.JWT, UserID: t.Value}
		if _, err := p.member(ctx, principal, s.OrganizationID); err != nil {
			return nil, asUnauthorized(err)
		}
		return idsOf(principal, s.OrganizationID, ""), nil
	}
	return nil, unauthorized("the cookie is of no use here")
}

// isOurs reports whether a cookie's name is one of the proxy's.
func isOurs(name string) bool {
	name = strings.TrimPrefix(strings.ToLower(strings.TrimSpace(name)), strings.ToLower(hostPrefix))
	return strings.HasPrefix(name, cookieTicket) || strings.HasPrefix(name, cookieLogin) || name == cookieWarning
}

// withoutOurs takes the proxy's cookies out of the headers Cookie of a request.
// What remains stays as it was.
func withoutOurs(h http.Header) {
	lines := h["Cookie"]
	if len(lines) == 0 {
		return
	}
	kept := lines[:0:0]
	for _, line := range lines {
		var parts []string
		for part := range strings.SplitSeq(line, ";") {
			name, _, _ := strings.Cut(part, "=")
			if !isOurs(name) {
				parts = append(parts, part)
			}
		}
		if line := strings.TrimSpace(strings.Join(parts, ";")); line != "" {
			kept = append(kept, line)
		}
	}
	if len(kept) == 0 {
		h.Del("Cookie")
		return
	}
	h["Cookie"] = kept
}

// ownCookies makes the cookies that a program of a sandbox sets its own: for
// its host only, and none of the proxy's names.
func ownCookies(h http.Header) {
	lines := h["Set-Cookie"]
	kept := lines[:0:0]
	for _, line := range lines {
		parts := strings.Split(line, ";")
		name, _, _ := strings.Cut(parts[0], "=")
		if isOurs(name) {
			continue
		}
		out := parts[:1:1]
		for _, part := range parts[1:] {
			attribute, _, _ := strings.Cut(part, "=")
			if !strings.EqualFold(strings.TrimSpace(attribute), "Domain") {
				out = append(out, part)
			}
		}
		kept = append(kept, strings.Join(out, ";"))
	}
	if len(kept) == 0 {
		h.Del("Set-Cookie")
		return
	}
	h["Set-Cookie"] = kept
}
