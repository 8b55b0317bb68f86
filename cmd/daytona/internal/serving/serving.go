// Package serving puts a handler on the network: with time limits that cut no
// stream, with TLS whose certificates are read anew when they change or come from
// a CA by ACME, and with an end that lets requests end first.
package serving

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// TLS says where certificates come from: from files, by ACME, or not at all.
type TLS struct {
	// Cert and Key are PEM files. They are read again when they have changed.
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	ACME ACME   `yaml:"acme"`
	// Redirect is the address of a second listener, such as ":80", that sends
	// browsers from http to https and answers challenges of ACME. Defaults to none.
	Redirect string `yaml:"redirect"`
}

// ACME is a CA that gives certificates to who shows that a name is theirs.
type ACME struct {
	// Domains are the names that there are to be certificates for. A name of
	// previews, of which there is one for each port, can't be among them: previews
	// need a certificate with a wildcard.
	Domains []string `yaml:"domains"`
	// Email is where the CA writes to. Defaults to nowhere.
	Email string `yaml:"email"`
	// Directory is the URL of the CA. Defaults to that of Let's Encrypt.
	Directory string `yaml:"directory"`
	// Dir keeps keys and certificates. Required.
	Dir string `yaml:"-"`
}

// On reports whether there is to be TLS.
func (t *TLS) On() bool { return t.Cert != "" || len(t.ACME.Domains) > 0 }

// Error is a field that is wrong, by its name in a configuration file, below
// that of the TLS.
type Error struct {
	Field, Rule string
}

func (e *Error) Error() string { return e.Field + " " + e.Rule }

// Check says what is wrong. It reads the files, and asks nobody.
func (t *TLS) Check() error {
	switch {
	case (t.Cert == "") != (t.Key == ""):
		return &Error{"cert", "and key must both be set, or neither"}
	case t.Cert != "" && len(t.ACME.Domains) > 0:
		return &Error{"cert", "and acme must not both be set"}
	case t.Redirect != "" && !t.On():
		return &Error{"redirect", "must not be set without cert or acme"}
	}
	if t.Cert != "" {
		if _, err := tls.LoadX509KeyPair(t.Cert, t.Key); err != nil {
			return &Error{"cert", "and key can't be used: " + err.Error()}
		}
	}
	if d := t.ACME.Directory; d != "" {
		if u, err := url.Parse(d); err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
			return &Error{"acme.directory", "must be an http or https URL"}
		}
	}
	for _, d := range t.ACME.Domains {
		if strings.ContainsAny(d, "*/:") || d == "" {
			return &Error{"acme.domains", fmt.Sprintf("must be names without wildcard, port and path, and %q is none", d)}
		}
	}
	return nil
}

// Options say what is served, and how.
type Options struct {
	// Listen is the address. Required.
	Listen string
	TLS    TLS
	// Handler is required.
	Handler http.Handler
	// Stopping is called when the end begins: what asks whether all is well is to be
	// told no. Delay is how long connections are accepted from then on, so that who
	// asks can hear of it. Defaults to nothing and none.
	Stopping func()
	Delay    time.Duration
	// Grace is how long requests may take to end. WebSockets and what else still
	// goes on after it are ended. Cut is called before. Defaults to 20 s and nothing.
	Grace time.Duration
	Cut   func()
	// Log defaults to slog.Default().
	Log *slog.Logger

	header, idle time.Duration // of tests, which do not wait for the usual ones
}

const (
	headerTime = 10 * time.Second
	idleTime   = 2 * time.Minute
	maxHeader  = 64 << 10
	// farewell is how long what is cut may take to notice.
	farewell = 5 * time.Second
	// strict is how long browsers are to ask for https only: a year.
	strict = "max-age=31536000"
)

// Server serves. Its listeners are open.
type Server struct {
	o        Options
	main     *http.Server
	redirect *http.Server // nil without
	listener net.Listener
	plain    net.Listener // of redirect
	files    *files       // nil without
	cut      context.CancelCauseFunc

	mu     sync.Mutex
	active int
	idle   chan struct{} // closed when active is 0, once somebody waits
}

// Listen opens what there is to listen to, so that what is wrong with an address
// or a certificate is known at once.
func Listen(o Options) (*Server, error) {
	if err := o.TLS.Check(); err != nil {
		return nil, err
	}
	if o.Grace == 0 {
		o.Grace = 20 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	s := &Server{o: o}
	base, cut := context.WithCancelCause(context.Background())
	s.cut = cut
	s.main = s.server(s.counted(o.Handler))
	s.main.BaseContext = func(net.Listener) context.Context { return base }
	// Without TLS as well: a proxy before this one may speak it.
	s.main.Protocols.SetUnencryptedHTTP2(true)
	var manager *autocert.Manager
	switch {
	case o.TLS.Cert != "":
		s.files = &files{cert: o.TLS.Cert, key: o.TLS.Key, log: o.Log}
		if err := s.files.load(); err != nil {
			return nil, err
		}
		s.main.TLSConfig = &tls.Config{GetCertificate: s.files.get}
	case len(o.TLS.ACME.Domains) > 0:
		a := o.TLS.ACME
		manager = &autocert.Manager{
			Prompt: autocert.AcceptTOS, Email: a.Email, HostPolicy: autocert.HostWhitelist(a.Domains...), Cache: autocert.DirCache(a.Dir),
		}
		if a.Directory != "" {
			manager.Client = &acme.Client{DirectoryURL: a.Directory}
		}
		s.main.TLSConfig = manager.TLSConfig()
	}
	if s.main.TLSConfig != nil {
		s.main.TLSConfig.MinVersion = tls.VersionTLS12
	}
	var err error
	if s.listener, err = net.Listen("tcp", o.Listen); err != nil {
		return nil, err
	}
	if o.TLS.Redirect != "" {
		_, port, err := net.SplitHostPort(s.listener.Addr().String())
		if err == nil {
			s.plain, err = net.Listen("tcp", o.TLS.Redirect)
		}
		if err != nil {
			s.listener.Close()
			return nil, err
		}
		var h http.Handler = toTLS(port)
		if manager != nil {
			h = manager.HTTPHandler(h)
		}
		s.redirect = s.server(h)
		s.redirect.ReadTimeout, s.redirect.WriteTimeout = headerTime, 3*headerTime // all of it is short
	}
	return s, nil
}

// server has the limits of all listeners. There is none on reading and writing
// as a whole: uploads, streams and WebSockets take as long as they take.
func (s *Server) server(h http.Handler) *http.Server {
	x := &http.Server{
		Handler: h, ReadHeaderTimeout: cmp.Or(s.o.header, headerTime), IdleTimeout: cmp.Or(s.o.idle, idleTime), MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug), Protocols: new(http.Protocols),
		// A peer that is gone without a word is found out; HTTP/1 has TCP's keepalive.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
	x.Protocols.SetHTTP1(true)
	x.Protocols.SetHTTP2(true)
	return x
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// RedirectAddr is where it sends browsers from http to https; nil for nowhere.
func (s *Server) RedirectAddr() net.Addr {
	if s.plain == nil {
		return nil
	}
	return s.plain.Addr()
}

// Reload reads the certificate's files again. With an error, those that were read
// before stay.
func (s *Server) Reload() error {
	if s.files == nil {
		return nil
	}
	return s.files.load()
}

// counted knows which requests are being answered: the http.Server forgets those
// that are upgraded.
func (s *Server) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.active++
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.active--; s.active == 0 && s.idle != nil {
				close(s.idle)
				s.idle = nil
			}
		}()
		if r.TLS != nil {
			w.Header().Set("Strict-Transport-Security", strict)
		}
		next.ServeHTTP(w, r)
	})
}

// Run serves until ctx ends, and then lets go: see Options. It returns nil if all
// requests had an end of their own or were cut in time.
func (s *Server) Run(ctx context.Context) error {
	ended := make(chan error, 2)
	go func() {
		if s.main.TLSConfig != nil {
			ended <- s.main.ServeTLS(s.listener, "", "")
		} else {
			ended <- s.main.Serve(s.listener)
		}
	}()
	if s.redirect != nil {
		go func() { ended <- s.redirect.Serve(s.plain) }()
	}
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		if s.o.Stopping != nil {
			s.o.Stopping()
		}
		select {
		case <-time.After(s.o.Delay):
		case err = <-ended:
		}
	}
	return errors.Join(err, s.drain())
}

// drain ends everything, in order.
func (s *Server) drain() error {
	grace, cancel := context.WithTimeout(context.Background(), s.o.Grace)
	defer cancel()
	if s.redirect != nil {
		s.redirect.Close()
	}
	late := s.main.Shutdown(grace) // upgraded connections it does not know
	s.cut(errors.New("the server is shutting down"))
	if s.o.Cut != nil {
		s.o.Cut()
	}
	s.mu.Lock()
	idle := make(chan struct{})
	if s.active == 0 {
		close(idle)
	} else {
		s.idle = idle
	}
	s.mu.Unlock()
	select {
	case <-idle:
		late = nil
	case <-time.After(farewell):
		if late == nil {
			late = context.DeadlineExceeded
		}
	}
	s.main.Close()
	if late != nil {
		return fmt.Errorf("some requests did not end: %w", late)
	}
	return nil
}

// toTLS sends who came by http to https, at a port.
func toTLS(port string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		} else {
			host = strings.Trim(host, "[]")
		}
		u := &url.URL{Scheme: "https", Host: host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
		switch {
		case host == "" || strings.ContainsAny(host, "/\\@?# ") || !strings.HasPrefix(r.URL.Path, "/"):
			http.Error(w, "there is nothing here by this name", http.StatusBadRequest)
			return
		case port != "443":
			u.Host = net.JoinHostPort(host, port)
		case strings.Contains(host, ":"):
			u.Host = "[" + host + "]"
		}
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Connection", "close")
		http.Redirect(w, r, u.String(), http.StatusPermanentRedirect)
	})
}

// files are a certificate and its key, read again when one of them changes.
type files struct {
	cert, key string
	log       *slog.Logger

	mu     sync.Mutex
	loaded *tls.Certificate
	seen   [2]stamp
	failed [2]stamp // what could not be read
}

// stamp tells one content of a file from another.
type stamp struct {
	size int64
	time time.Time
}

func (f *files) stamps() (s [2]stamp, err error) {
	for i, name := range []string{f.cert, f.key} {
		st, err := os.Stat(name)
		if err != nil {
			return s, err
		}
		s[i] = stamp{st.Size(), st.ModTime()}
	}
	return s, nil
}

// load reads both files.
func (f *files) load() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.read()
}

func (f *files) read() error {
	seen, err := f.stamps() // before: what changes meanwhile is read next time
	if err != nil {
		return err
	}
	c, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", f.cert, f.key, err)
	}
	f.loaded, f.seen = &c, seen
	return nil
}

// get is asked for every handshake: two calls of stat are nothing beside it.
func (f *files) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now, err := f.stamps(); err == nil && now != f.seen && now != f.failed {
		// One of two may have been replaced and the other not yet.
		if err := f.read(); err != nil {
			f.failed = now
			f.log.Warn("a changed certificate can't be read; the one before it goes on", "err", err)
		} else {
			f.log.Info("a changed certificate is in use", "cert", f.cert)
		}
	}
	return f.loaded, nil
}
