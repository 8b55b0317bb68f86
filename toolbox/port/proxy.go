package port

import (
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// ServeProxy answers ANY /proxy/{port}/{path...} with what the program behind
// the port answers to {path...}, WebSockets and other upgrades included. The
// path goes through byte by byte. Host and X-Forwarded-* are the caller's.
func (s *Service) ServeProxy(w http.ResponseWriter, r *http.Request) {
	rest := strings.TrimPrefix(r.URL.EscapedPath(), "/proxy/")
	number, target, _ := strings.Cut(rest, "/")
	port, err := parsePort(number)
	if err != nil {
		wire.WriteError(w, r, http.StatusBadRequest, "", err.Error())
		return
	}
	number = strconv.Itoa(port)
	target = "/" + target
	proxy := &httputil.ReverseProxy{
		Transport:     s.transport,
		FlushInterval: -1, // events must not wait for more
		Rewrite: func(p *httputil.ProxyRequest) {
			path, err := url.PathUnescape(target)
			if err != nil {
				path = target // cannot be: the server parsed it
			}
			p.Out.URL = &url.URL{Scheme: "http", Host: "localhost:" + number, Path: path, RawPath: target, RawQuery: p.In.URL.RawQuery}
			p.Out.Host = p.In.Host
			// The caller is the server's own proxy, which has set these.
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if v, ok := p.In.Header[name]; ok {
					p.Out.Header[name] = v
				}
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				panic(http.ErrAbortHandler)
			}
			writeDialError(w, r, number, err)
		},
		ErrorLog: slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	proxy.ServeHTTP(w, r)
}
