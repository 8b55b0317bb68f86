package proxy

import (
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// acceptPath is where the form of the warning leads.
const acceptPath = "/accept-daytona-preview-warning"

var warningPage = template.Must(template.New("warning").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><title>Preview of a sandbox</title>
<style>body{font:16px/1.5 system-ui,sans-serif;margin:0;background:#f6f7f9;color:#16181d}main{max-width:34rem;margin:12vh auto;padding:2rem;background:#fff;border-radius:12px;box-shadow:0 1px 4px #0002}
h1{font-size:1.3rem;margin-top:0}button{font:inherit;padding:.6rem 1.2rem;border:0;border-radius:8px;background:#16181d;color:#fff;cursor:pointer}code{word-break:break-all}
@media(prefers-color-scheme:dark){body{background:#101216;color:#e8eaee}main{background:#191c22}button{background:#e8eaee;color:#101216}}</style></head>
<body><main><h1>You are about to see a preview</h1>
<p>What <code>{{.Host}}</code> shows is made by a program in a sandbox, which somebody is trying out. Give it no password and no other
secret unless you know whose it is.</p>
<form method="post" action="{{.Action}}"><button type="submit">Go on to the preview</button></form></main></body></html>
`))

// warn shows the warning instead of the preview, and reports whether it did.
func (q *request) warn(s Sandbox) bool {
	r := q.r
	if !s.Warning || system(q.host.port) || !get(r) || r.Header.Get("Upgrade") != "" || r.Header.Get(headerSkipWarning) == "true" ||
		!strings.Contains(r.UserAgent(), "Mozilla/") {
		return false
	}
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" && mode != "navigate" {
		return false // what belongs to a page that is shown already
	}
	for _, v := range q.cookieValues(cookieWarning) {
		if v == "true" {
			return false
		}
	}
	target := r.URL.EscapedPath()
	if query := withoutToken(r.URL.RawQuery); query != "" {
		target += "?" + query
	}
	h := q.w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("X-Frame-Options", "DENY") // nobody clicks for the user
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	q.w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_ = warningPage.Execute(q.w, map[string]string{"Host": q.host.name(s.ID),
			"Action": acceptPath + "?" + url.Values{"redirect": {q.config.Protocol + "://" + q.host.own() + target}}.Encode()})
	}
	return true
}

// acceptWarning remembers for a day that the user has seen the warning, and
// sends them back to a page of the same host.
func (q *request) acceptWarning() {
	if !q.cookieCounts() {
		q.fail(http.StatusForbidden, "", "the form is of another page")
		return
	}
	// What is left of the URL is a path: there is no other host to be sent to.
	target, err := url.Parse(q.r.URL.Query().Get("redirect"))
	if err != nil || target.Host != "" && !q.ownOrigin(target.Scheme+"://"+target.Host) || target.User != nil || target.Opaque != "" {
		q.fail(http.StatusBadRequest, "", "redirect must be a page of this host")
		return
	}
	c := q.cookie(cookieWarning, "true", 24*time.Hour)
	if c.Secure {
		c.SameSite = http.SameSiteNoneMode
	}
	http.SetCookie(q.w, c)
	location := q.config.Protocol + "://" + q.host.own() + "/" + strings.TrimLeft(target.EscapedPath(), "/")
	if target.RawQuery != "" {
		location += "?" + target.RawQuery
	}
	q.w.Header().Set("Location", location)
	q.w.Header().Set("Referrer-Policy", "no-referrer")
	q.w.WriteHeader(http.StatusFound)
}
