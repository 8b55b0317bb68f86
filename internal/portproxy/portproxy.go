// Package portproxy is the reverse proxy to servers inside a sandbox, for the
// agent and for programs outside. It knows nothing of how a port is reached.
package portproxy

import (
	"context"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Protocols that servers speak.
const (
	HTTP1 = "http/1.1"
	H2C   = "h2c"
)

// Transport connects to ports. It keeps connections to be used again.
type Transport struct {
	http1, h2c *http.Transport
}

// NewTransport returns a Transport whose connections dial makes.
func NewTransport(dial func(ctx context.Context, port int) (net.Conn, error)) *Transport {
	connect := func(ctx context.Context, _, addr string) (net.Conn, error) {
		// The host of a request is a port number, see ServeHTTP.
		_, number, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		port, err := strconv.Atoi(number)
		if err != nil {
			return nil, err
		}
		return dial(ctx, port)
	}
	t := &Transport{http1: &http.Transport{
		DialContext:         connect,
		DisableCompression:  true, // the client decides
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     30 * time.Second,
		ReadBufferSize:      32 << 10,
		WriteBufferSize:     32 << 10,
		Protocols:           new(http.Protocols),
	}}
	t.http1.Protocols.SetHTTP1(true)
	t.h2c = t.http1.Clone()
	t.h2c.Protocols = new(http.Protocols)
	t.h2c.Protocols.SetUnencryptedHTTP2(true)
	return t
}

// Close closes idle connections.
func (t *Transport) Close() {
	t.http1.CloseIdleConnections()
	t.h2c.CloseIdleConnections()
}

// Proxy forwards requests to one port.
type Proxy struct {
	Transport *Transport
	Port      int
	// Target is the path as the server is to get it, byte by byte. Defaults to the
	// request's own.
	Target string
	// Protocol is HTTP1 or H2C. Defaults to H2C for gRPC, HTTP1 for the rest.
	Protocol string
	// Forwarded says that the caller has set X-Forwarded-* and Forwarded. Defaults
	// to false: they are set anew.
	Forwarded bool
	// Fail answers a request that could not be forwarded.
	Fail func(w http.ResponseWriter, r *http.Request, err error)
	// Log gets what no client is told.
	Log *log.Logger
}

func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// A server may answer while it is still being asked. Without this, what has not
	// been passed on of an HTTP/1 request when its answer begins is thrown away.
	http.NewResponseController(w).EnableFullDuplex()
	proxy := &httputil.ReverseProxy{
		Transport:     p.Transport.http1,
		FlushInterval: -1, // events must not wait for more
		Rewrite: func(q *httputil.ProxyRequest) {
			target := p.Target
			if target == "" {
				target = q.In.URL.EscapedPath()
			}
			path, err := url.PathUnescape(target)
			if err != nil {
				path = target // cannot be: the server parsed it
			}
			q.Out.URL = &url.URL{Scheme: "http", Host: "localhost:" + strconv.Itoa(p.Port), Path: path, RawPath: target, RawQuery: q.In.URL.RawQuery}
			q.Out.Host = q.In.Host
			if !p.Forwarded {
				q.SetXForwarded()
				return
			}
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if v, ok := q.In.Header[name]; ok {
					q.Out.Header[name] = v
				}
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil {
				panic(http.ErrAbortHandler)
			}
			p.Fail(w, r, err)
		},
		ErrorLog: p.Log,
	}
	proxy.ModifyResponse = func(r *http.Response) error {
		// Headers that end an answer, as those of a gRPC error do, must not be sent
		// on before it is known that they do: what follows them would be an end
		// without trailers. There is nothing to wait for.
		if r.ContentLength == 0 {
			proxy.FlushInterval = 0
		}
		return nil
	}
	if p.Protocol == H2C || p.Protocol == "" && isGRPC(r.Header.Get("Content-Type")) {
		proxy.Transport = p.Transport.h2c
	}
	proxy.ServeHTTP(w, r)
}

// isGRPC says whether a content type is gRPC's, which only HTTP/2 carries.
// (gRPC-Web is another, for servers of either kind.)
func isGRPC(contentType string) bool {
	const grpc = "application/grpc"
	contentType = strings.ToLower(contentType)
	if !strings.HasPrefix(contentType, grpc) {
		return false
	}
	return len(contentType) == len(grpc) || strings.ContainsRune("+; ", rune(contentType[len(grpc)]))
}
