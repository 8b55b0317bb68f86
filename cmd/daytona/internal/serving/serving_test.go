package serving

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// authority signs certificates.
type authority struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{key, cert}
}

func (a *authority) sign(public crypto.PublicKey, serial int64, names ...string) ([]byte, error) {
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, public, a.key)
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// write makes the files of a certificate.
func (a *authority) write(t *testing.T, dir string, serial int64) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := a.sign(k.Public(), serial, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: private}} {
		// As programs that renew certificates do: a new file in the place of the old.
		if err := os.WriteFile(name+".new", pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

// serve runs a server; stop ends it and returns what Run did.
func serve(t *testing.T, o Options) (s *Server, stop func() error) {
	t.Helper()
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	o.Log = slog.New(slog.DiscardHandler)
	s, err := Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { _ = stop() })
	return s, stop
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello over %s", r.Proto) })

// Certificates of files are read again when they change, by themselves and when
// asked; what can't be read does not take the place of what works.
func TestCertificateFiles(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	cert, key := ca.write(t, dir, 100)
	s, _ := serve(t, Options{Handler: hello, TLS: TLS{Cert: cert, Key: key, Redirect: "127.0.0.1:0"}})
	serial := func() int64 {
		t.Helper()
		c, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{RootCAs: ca.pool(), ServerName: "localhost", NextProtos: []string{"h2"}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if n := serial(); n != 100 {
		t.Errorf("serial %d", n)
	}
	ca.write(t, dir, 200)
	if n := serial(); n != 200 {
		t.Errorf("serial %d after the files have changed", n)
	}
	if err := os.WriteFile(cert, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := serial(); n != 200 {
		t.Errorf("serial %d after the file was spoilt", n)
	}
	if err := s.Reload(); err == nil {
		t.Error("a spoilt file is reloaded")
	}
	ca.write(t, dir, 300)
	if err := s.Reload(); err != nil {
		t.Error(err)
	}
	if n := serial(); n != 300 {
		t.Errorf("serial %d", n)
	}

	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool()}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	_, port, _ := net.SplitHostPort(s.Addr().String())
	r, err := client.Get("https://localhost:" + port + "/")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(r.Body)
	r.Body.Close()
	if string(b) != "hello over HTTP/2.0" || r.Header.Get("Strict-Transport-Security") != strict {
		t.Errorf("%s %v", b, r.Header)
	}
	if _, err := tls.Dial("tcp", s.Addr().String(), &tls.Config{RootCAs: ca.pool(), ServerName: "localhost", MaxVersion: tls.VersionTLS11}); err == nil {
		t.Error("TLS 1.1 is spoken")
	}
	if r, err = client.Get("http://" + s.RedirectAddr().String() + "/a%2Fb?c=d"); err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if want := "https://127.0.0.1:" + port + "/a%2Fb?c=d"; r.StatusCode != http.StatusPermanentRedirect || r.Header.Get("Location") != want {
		t.Errorf("%d %v, want %s", r.StatusCode, r.Header, want)
	}
	// The name is the client's word: it is that of a host, or nothing.
	for _, host := range []string{"evil.example/x?", "a@b", ""} {
		w := httptest.NewRecorder()
		q := httptest.NewRequest("GET", "/", nil)
		q.Host = host
		toTLS("443").ServeHTTP(w, q)
		if w.Code != http.StatusBadRequest {
			t.Errorf("%q: %d %v", host, w.Code, w.Header())
		}
	}
}

// directory is a CA that speaks ACME: it gives a certificate to who answers its
// challenge at the address that it is told names are at. It believes all
// signatures of requests.
type directory struct {
	*httptest.Server
	ca     *authority
	verify func(name string) error

	mu     sync.Mutex
	names  []string
	ready  bool
	issued []byte
	proved int
}

func (d *directory) serve(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var envelope struct{ Payload string }
	_ = json.NewDecoder(r.Body).Decode(&envelope)
	payload, _ := base64.RawURLEncoding.DecodeString(envelope.Payload)
	w.Header().Set("Replay-Nonce", rand.Text())
	at := func(path string) string { return d.URL + path }
	answer := func(status int, v map[string]any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	order := func() map[string]any {
		o := map[string]any{"status": "pending", "authorizations": []string{at("/authz")}, "finalize": at("/finalize")}
		var ids []map[string]string
		for _, n := range d.names {
			ids = append(ids, map[string]string{"type": "dns", "value": n})
		}
		o["identifiers"] = ids
		switch {
		case d.issued != nil:
			o["status"], o["certificate"] = "valid", at("/cert")
		case d.ready:
			o["status"] = "ready"
		}
		return o
	}
	status := map[bool]string{true: "valid", false: "pending"}
	challenge := func() map[string]any {
		return map[string]any{"type": "tls-alpn-01", "url": at("/challenge"), "token": "token", "status": status[d.ready]}
	}
	switch r.URL.Path {
	case "/":
		answer(200, map[string]any{"newNonce": at("/nonce"), "newAccount": at("/account"), "newOrder": at("/order"), "revokeCert": at("/revoke"), "keyChange": at("/change")})
	case "/nonce":
	case "/account":
		w.Header().Set("Location", at("/account/1"))
		answer(201, map[string]any{"status": "valid"})
	case "/order":
		var in struct{ Identifiers []struct{ Value string } }
		_ = json.Unmarshal(payload, &in)
		d.names, d.ready, d.issued = nil, false, nil
		for _, i := range in.Identifiers {
			d.names = append(d.names, i.Value)
		}
		w.Header().Set("Location", at("/order/1"))
		answer(201, order())
	case "/order/1":
		answer(200, order())
	case "/authz":
		answer(200, map[string]any{"status": status[d.ready], "identifier": map[string]string{"type": "dns", "value": d.names[0]}, "challenges": []any{challenge()}})
	case "/challenge":
		if err := d.verify(d.names[0]); err != nil {
			answer(403, map[string]any{"type": "urn:ietf:params:acme:error:unauthorized", "detail": err.Error()})
			return
		}
		d.ready = true
		d.proved++
		answer(200, challenge())
	case "/finalize":
		var in struct{ CSR string }
		_ = json.Unmarshal(payload, &in)
		der, _ := base64.RawURLEncoding.DecodeString(in.CSR)
		csr, err := x509.ParseCertificateRequest(der)
		if err == nil {
			d.issued, err = d.ca.sign(csr.PublicKey, 4711, csr.DNSNames...)
		}
		if err != nil {
			answer(400, map[string]any{"detail": err.Error()})
			return
		}
		w.Header().Set("Location", at("/order/1"))
		answer(200, order())
	case "/cert":
		w.Header().Set("Content-Type", "application/pem-certificate-chain")
		_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: d.issued})
		_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: d.ca.cert.Raw})
	default:
		http.NotFound(w, r)
	}
}

// A certificate comes from the CA that the configuration names, for the names
// that it names and no others, and is kept for the next start.
func TestACME(t *testing.T) {
	d := &directory{ca: newAuthority(t)}
	d.Server = httptest.NewServer(http.HandlerFunc(d.serve))
	defer d.Close()
	dir := t.TempDir()
	o := Options{Handler: hello, TLS: TLS{ACME: ACME{Domains: []string{"sandboxes.example"}, Email: "ops@example.com", Directory: d.URL, Dir: dir}}}
	s, stop := serve(t, o)
	at := s.Addr().String()
	d.verify = func(name string) error {
		// As RFC 8737 has it: a certificate for this protocol alone.
		c, err := tls.Dial("tcp", at, &tls.Config{ServerName: name, NextProtos: []string{"acme-tls/1"}, InsecureSkipVerify: true})
		if err != nil {
			return err
		}
		defer c.Close()
		if p := c.ConnectionState().NegotiatedProtocol; p != "acme-tls/1" {
			return fmt.Errorf("it speaks %q", p)
		}
		return nil
	}
	serial := func(name string) (int64, error) {
		c, err := tls.Dial("tcp", at, &tls.Config{RootCAs: d.ca.pool(), ServerName: name})
		if err != nil {
			return 0, err
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64(), nil
	}
	if n, err := serial("sandboxes.example"); err != nil || n != 4711 {
		t.Fatalf("%d %v", n, err)
	}
	if _, err := serial("another.example"); err == nil {
		t.Error("there is a certificate for a name that is not configured")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	s, _ = serve(t, o)
	at = s.Addr().String()
	if n, err := serial("sandboxes.example"); err != nil || n != 4711 || d.proved != 1 {
		t.Errorf("after a restart: %d %v, proved %d times", n, err, d.proved)
	}
}

func TestCheck(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	cert, key := ca.write(t, dir, 1)
	for name, c := range map[string]struct {
		tls   TLS
		field string
	}{
		"none":            {TLS{}, ""},
		"files":           {TLS{Cert: cert, Key: key}, ""},
		"half":            {TLS{Cert: cert}, "cert"},
		"no such file":    {TLS{Cert: cert, Key: key + "x"}, "cert"},
		"no key":          {TLS{Cert: cert, Key: cert}, "cert"},
		"both":            {TLS{Cert: cert, Key: key, ACME: ACME{Domains: []string{"a.example"}}}, "cert"},
		"redirect alone":  {TLS{Redirect: ":80"}, "redirect"},
		"wildcard":        {TLS{ACME: ACME{Domains: []string{"*.a.example"}}}, "acme.domains"},
		"wrong directory": {TLS{ACME: ACME{Domains: []string{"a.example"}, Directory: "ftp://x"}}, "acme.directory"},
	} {
		err := c.tls.Check()
		e, ok := errors.AsType[*Error](err)
		if c.field == "" && err != nil || c.field != "" && (!ok || e.Field != c.field) {
			t.Errorf("%s: %v, want %q", name, err, c.field)
		}
	}
}

// Limits of time end who says nothing, and nobody who says it slowly.
func TestTimeLimits(t *testing.T) {
	more, asked := make(chan struct{}), make(chan struct{}, 2)
	s, _ := serve(t, Options{header: 50 * time.Millisecond, idle: 50 * time.Millisecond, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/stream":
			fmt.Fprintln(w, "first")
			http.NewResponseController(w).Flush()
			asked <- struct{}{}
			<-more
			fmt.Fprintln(w, "second")
		case "/upload":
			asked <- struct{}{}
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprintln(w, n, err)
		case "/socket":
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			fmt.Fprint(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: test\r\nConnection: Upgrade\r\n\r\n")
			rw.Flush()
			line, err := rw.ReadString('\n')
			fmt.Fprintf(rw, "%s %v\n", strings.TrimSpace(line), err)
			rw.Flush()
		}
	})})
	dial := func(head string) (net.Conn, *bufio.Reader) {
		t.Helper()
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprint(c, head)
		return c, bufio.NewReader(c)
	}
	_, stream := dial("GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
	upload, answer := dial("PUT /upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
	socket, back := dial("GET /socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
	<-asked
	<-asked
	// These two say nothing, and are ended; which takes longer than the limits.
	if _, silent := dial("GET / HTTP/1.1\r\nHost:"); true {
		if b, err := io.ReadAll(silent); err != nil {
			t.Errorf("half a header: %q %v", b, err)
		}
	}
	if _, idle := dial("GET / HTTP/1.1\r\nHost: x\r\n\r\n"); true {
		if b, err := io.ReadAll(idle); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200 OK") {
			t.Errorf("an idle connection: %q %v", b, err)
		}
	}
	close(more)
	fmt.Fprint(upload, "67890")
	fmt.Fprint(socket, "still here\n")
	read := func(r *bufio.Reader, want string) {
		t.Helper()
		var all string
		for !strings.Contains(all, want) {
			line, err := r.ReadString('\n')
			if all += line; err != nil {
				t.Errorf("%q %v, want %q", all, err, want)
				return
			}
		}
	}
	read(stream, "second")
	read(answer, "10 <nil>")
	read(back, "still here <nil>")

	r, err := http.NewRequest("GET", "http://"+s.Addr().String()+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Long", strings.Repeat("x", maxHeader+8<<10))
	w, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	w.Body.Close()
	if w.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a long header: %d", w.StatusCode)
	}
}

// An end lets short requests end, and then ends streams and upgraded connections.
func TestDrain(t *testing.T) {
	begun, go1 := make(chan string, 3), make(chan struct{})
	healthy := true
	var mu sync.Mutex
	var s *Server
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/short":
			begun <- "short"
			<-go1
			fmt.Fprint(w, "done")
		case "/stream":
			w.WriteHeader(200)
			http.NewResponseController(w).Flush()
			begun <- "stream"
			<-r.Context().Done()
			fmt.Fprint(w, context.Cause(r.Context()))
		case "/socket":
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			begun <- "socket"
			<-r.Context().Done()
			fmt.Fprint(c, "bye")
		case "/health":
			mu.Lock()
			defer mu.Unlock()
			if !healthy {
				w.WriteHeader(503)
			}
		}
	})
	stopping := make(chan struct{})
	cut := make(chan struct{})
	s, stop := serve(t, Options{Handler: h, Delay: 50 * time.Millisecond, Grace: 2 * time.Second, Cut: func() { close(cut) }, Stopping: func() {
		mu.Lock()
		healthy = false
		mu.Unlock()
		// Connections are taken still: who asks hears of it.
		r, err := http.Get("http://" + s.Addr().String() + "/health")
		if err != nil || r.StatusCode != 503 {
			t.Errorf("%+v %v", r, err)
		} else {
			r.Body.Close()
		}
		close(stopping)
	}})
	type result struct {
		path, body string
		err        error
	}
	results := make(chan result, 3)
	get := func(path string) {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			results <- result{path, "", err}
			return
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.0\r\n\r\n", path)
		b, err := io.ReadAll(c)
		results <- result{path, string(b), err}
	}
	for _, path := range []string{"/short", "/stream", "/socket"} {
		go get(path)
		<-begun
	}
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	<-stopping
	close(go1)
	for range 3 {
		r := <-results
		want := map[string]string{"/short": "done", "/stream": "the server is shutting down", "/socket": "bye"}[r.path]
		if r.err != nil || !strings.HasSuffix(r.body, want) {
			t.Errorf("%+v, want %q", r, want)
		}
		if r.path == "/short" {
			select {
			case <-cut:
				t.Error("a short request ended after the cut")
			default:
			}
		}
	}
	<-cut
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", s.Addr().String()); err == nil {
		t.Error("it listens still")
	}
}
