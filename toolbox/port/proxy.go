package port

import (
	"log/slog"
	"net/http"
	"strconv"
	"strings"

	"github.com/daytona-go/daytona/internal/portproxy"
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
	protocol := r.Header.Get(wire.HeaderProxyProtocol)
	if protocol != "" && protocol != portproxy.HTTP1 && protocol != portproxy.H2C {
		wire.WriteError(w, r, http.StatusBadRequest, "", wire.HeaderProxyProtocol+" is "+strconv.Quote(clip(protocol))+"; it must be "+portproxy.HTTP1+" or "+portproxy.H2C)
		return
	}
	r.Header.Del(wire.HeaderProxyProtocol)
	proxy := &portproxy.Proxy{
		Transport: s.transport, Port: port, Target: "/" + target, Protocol: protocol, Forwarded: true,
		Fail: func(w http.ResponseWriter, r *http.Request, err error) { writeDialError(w, r, strconv.Itoa(port), err) },
		Log:  slog.NewLogLogger(s.logger.Handler(), slog.LevelDebug),
	}
	proxy.ServeHTTP(w, r)
}
