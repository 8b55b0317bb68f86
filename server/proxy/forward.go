package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/live"
	"github.com/daytona-go/daytona/server/observe"
	toolbox "github.com/daytona-go/daytona/toolbox/wire"
)

// private are the routes of agents that are for the server alone.
var private = []string{"/init", toolbox.SigningKeyPath, toolbox.IdleTimeoutPath, toolbox.ActivityPath, toolbox.ShutdownPath}

// preview serves a request to a preview host.
func (q *request) preview() {
	port := q.host.port
	if q.config.ToolboxOnly && port != toolboxPort {
		q.fail(http.StatusNotFound, "", "this proxy serves no previews")
		return
	}
	switch {
	case q.r.URL.Path == loginPath && get(q.r) && q.login != nil && !q.host.signed:
		q.finishLogin()
		return
	case q.r.URL.Path == acceptPath && q.r.Method == http.MethodPost:
		q.acceptWarning()
		return
	}
	if q.preflight() {
		return
	}
	g, err := q.authorize(q.host.label, port)
	if err != nil {
		if errors.Is(err, daytona.ErrUnauthorized) && q.login != nil && get(q.r) && q.r.Header.Get("Upgrade") == "" && !q.host.signed {
			q.sendToLogin()
			return
		}
		q.refuse(err)
		return
	}
	if g.query && q.navigates() {
		// The address that the browser shows, and tells others, must not have
		// the token in it.
		q.redirect(http.StatusSeeOther, withoutToken(q.r.URL.RawQuery), g.cookie)
		return
	}
	if q.warn(g.sandbox) {
		return
	}
	if port == toolboxPort {
		// A page that is not of the sandbox's own may not use its toolbox by a
		// form.
		if q.how == "cookie" && !get(q.r) && q.r.Header.Get("Origin") == "" && q.r.Header.Get("Sec-Fetch-Site") == "" {
			q.refuse(unauthorized("authentication failed: a cookie is not enough here"))
			return
		}
		q.pass(g, q.r.URL.EscapedPath(), "")
		return
	}
	q.pass(g, "/proxy/"+strconv.Itoa(port)+q.r.URL.EscapedPath(), "")
}

// redirect sends a browser to the same page with another query.
func (q *request) redirect(status int, query string, cookie *ticket) {
	target := q.config.Protocol + "://" + q.host.own() + q.r.URL.EscapedPath()
	if query != "" {
		target += "?" + query
	}
	h := q.w.Header()
	if cookie != nil {
		h.Add("Set-Cookie", q.ticketCookie(cookie).String())
	}
	h.Set("Location", target)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	q.w.WriteHeader(status)
}

// pass passes the request to the sandbox's agent: target is the escaped path
// there, prefix what a path of an answer has to have before it to be one of the
// client's.
func (q *request) pass(g *grant, target, prefix string) {
	decoded, err := url.PathUnescape(target)
	if err != nil {
		q.fail(http.StatusBadRequest, "", "the path has a wrong escape in it")
		return
	}
	id := g.sandbox.ID
	q.sandboxID = id
	if seen := observe.From(q.r.Context()); seen.Principal == nil && !g.api {
		seen.Principal = &identity.Principal{OrganizationID: g.sandbox.OrganizationID}
	}
	if !strings.HasPrefix(target, "/proxy/") || q.host == nil || q.host.port == toolboxPort {
		if clean := path.Clean("/" + decoded); slices.Contains(private, clean) {
			q.fail(http.StatusForbidden, "", "the route "+clean+" is the server's own")
			return
		}
	}
	if err := replayable(q.w, q.r); err != nil {
		q.fail(http.StatusBadRequest, "", "the body ended early")
		return
	}
	ctx, cancel := context.WithCancelCause(q.r.Context())
	defer cancel(nil)
	defer q.set.Add(g.ids, g.check, func(cause error) { cancel(cause) })()
	if q.r.Header.Get(toolbox.HeaderSkipActivity) != "true" {
		defer q.use(id)()
	}
	proxy := &httputil.ReverseProxy{
		Transport:     q.agents,
		FlushInterval: -1, // events must not wait for more
		BufferPool:    buffers{q.Proxy},
		ErrorLog:      slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			query := withoutToken(p.In.URL.RawQuery)
			if g.file != "" {
				// Nothing else was signed.
				query = url.Values{"path": {g.file}}.Encode()
			}
			p.Out.URL = &url.URL{Scheme: "http", Host: id, Path: decoded, RawPath: target, RawQuery: query}
			q.rewrite(g, p)
		},
		ModifyResponse: func(resp *http.Response) error {
			q.modify(g, resp, prefix)
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, r *http.Request, err error) { q.lost(ctx, g, err) },
	}
	proxy.ServeHTTP(q.w, q.r.WithContext(ctx))
}

// buffers are shared by all requests.
type buffers struct{ p *Proxy }

func (b buffers) Get() []byte  { return *b.p.buffers.Get().(*[]byte) }
func (b buffers) Put(x []byte) { b.p.buffers.Put(&x) }

// rewrite takes out of a request what is not for the sandbox, and says where it
// came from.
func (q *request) rewrite(g *grant, p *httputil.ProxyRequest) {
	h := p.Out.Header
	for _, name := range []string{headerPreviewToken, headerDisableCORS, headerSkipWarning, toolbox.HeaderAgentToken, "X-Daytona-Authorization"} {
		h.Del(name)
	}
	if g.authorization {
		h.Del("Authorization")
	}
	withoutOurs(h)
	if q.host == nil {
		// A toolbox has no use of cookies, and programs of the sandbox that a
		// browser was shown before must not have set any for it.
		h.Del("Cookie")
	}
	p.Out.Host = p.In.Host
	proto := "http"
	if p.In.TLS != nil || q.host != nil && q.config.Protocol == "https" {
		proto = "https"
	}
	if q.host != nil {
		p.Out.Host = q.host.name(g.sandbox.ID)
		q.hide(h, "Origin", g)
		q.hide(h, "Referer", g)
	}
	remote, _, _ := net.SplitHostPort(p.In.RemoteAddr)
	if addr, err := netip.ParseAddr(remote); err == nil && q.trusted(addr) {
		if before := p.In.Header["X-Forwarded-For"]; len(before) > 0 {
			remote = strings.Join(before, ", ") + ", " + remote
		}
		if v := p.In.Header.Get("X-Forwarded-Proto"); v == "http" || v == "https" {
			proto = v
		}
	}
	if remote != "" {
		h.Set("X-Forwarded-For", remote)
	}
	h.Set("X-Forwarded-Host", p.Out.Host)
	h.Set("X-Forwarded-Proto", proto)
}

func (q *request) trusted(addr netip.Addr) bool {
	return slices.ContainsFunc(q.config.TrustedProxies, func(p netip.Prefix) bool { return p.Contains(addr.Unmap()) })
}

// hide takes tokens out of a header that has a URL.
func (q *request) hide(h http.Header, name string, g *grant) {
	v := h.Get(name)
	if v == "" || v == "null" {
		return
	}
	u, err := url.Parse(v)
	if err != nil {
		h.Del(name)
		return
	}
	if mentionsToken(v) {
		u.RawQuery = withoutToken(u.RawQuery)
		u.Fragment = ""
		v = u.String()
		if mentionsToken(v) {
			v = u.Scheme + "://" + u.Host + "/"
		}
	}
	if host, ok := parseHost(u.Host, q.config.Domains); ok && host.signed {
		if host.own() != q.host.own() {
			h.Del(name) // another sandbox's
			return
		}
		u.Host = host.name(g.sandbox.ID)
		v = u.String()
	}
	h.Set(name, v)
}

// modify makes an answer of the sandbox one of the proxy's.
func (q *request) modify(g *grant, resp *http.Response, prefix string) {
	h := resp.Header
	if q.host != nil && q.host.port != toolboxPort {
		ownCookies(h)
	} else {
		h.Del("Set-Cookie")
	}
	// Servers before this one must not take orders from a sandbox.
	for _, name := range []string{"X-Accel-Redirect", "X-Sendfile", "Alt-Svc", "Daytona-Internal"} {
		h.Del(name)
	}
	if v := h.Get("Location"); v != "" {
		switch {
		case q.host == nil && prefix != "" && strings.HasPrefix(v, "/") && !strings.HasPrefix(v, "//"):
			h.Set("Location", prefix+v)
		case q.host != nil && q.host.signed:
			h.Set("Location", q.show(v, g))
		}
	}
	if q.host != nil && q.host.signed {
		for _, name := range []string{"Content-Location", "Access-Control-Allow-Origin"} {
			if v := h.Get(name); v != "" {
				h.Set(name, q.show(v, g))
			}
		}
		// The host is the token.
		if v := strings.ToLower(h.Get("Referrer-Policy")); v != "no-referrer" {
			h.Set("Referrer-Policy", "same-origin")
		}
	}
	if g.query {
		h.Set("Referrer-Policy", "no-referrer")
	}
	if g.cookie != nil && resp.StatusCode != http.StatusSwitchingProtocols {
		h.Add("Set-Cookie", q.ticketCookie(g.cookie).String())
	}
	if !g.api {
		q.cors(h)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols && h.Get("Sec-WebSocket-Protocol") == "" {
		// Clients that offer their version this way fail unless it is selected.
		for _, line := range q.r.Header.Values("Sec-WebSocket-Protocol") {
			for offered := range strings.SplitSeq(line, ",") {
				if offered = strings.TrimSpace(offered); strings.HasPrefix(offered, toolbox.ProtocolSDKVersion) && h.Get("Sec-WebSocket-Protocol") == "" {
					h.Set("Sec-WebSocket-Protocol", offered)
				}
			}
		}
	}
}

// show puts the host that the client knows in the place of the one that the
// sandbox does.
func (q *request) show(v string, g *grant) string {
	u, err := url.Parse(v)
	if err != nil || u.Host == "" {
		return v
	}
	if h, ok := parseHost(u.Host, q.config.Domains); ok && h.port == q.host.port && h.label == g.sandbox.ID {
		u.Host = q.host.own()
		return u.String()
	}
	return v
}

// lost answers when the sandbox did not.
func (q *request) lost(ctx context.Context, g *grant, err error) {
	if cause := context.Cause(ctx); cause != nil {
		if q.r.Context().Err() != nil {
			panic(http.ErrAbortHandler) // nobody is there
		}
		q.refuse(cause)
		return
	}
	q.err = err
	if d, ok := errors.AsType[*daytona.Error](err); ok && live.Refused(err) {
		q.refuse(d)
		return
	}
	// It may have been stopped or destroyed while it was remembered.
	s, serr := q.config.Sandboxes.ProxySandbox(q.r.Context(), g.sandbox.ID)
	switch {
	case live.Refused(serr):
		q.refuse(&daytona.Error{Kind: daytona.KindGone, Message: "Sandbox with ID or name " + g.sandbox.ID + " has been destroyed"})
		return
	case serr == nil && !running(s.State):
		q.refuse(notStarted(s))
		return
	}
	var timeout net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, daytona.ErrTimeout), errors.As(err, &timeout) && timeout.Timeout():
		q.fail(http.StatusGatewayTimeout, codeUnreachable, "the sandbox does not answer in time")
	default:
		q.fail(http.StatusBadGateway, codeUnreachable, "the sandbox can't be reached")
	}
}
