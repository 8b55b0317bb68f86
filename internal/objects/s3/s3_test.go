package s3_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/objects"
	"github.com/daytona-go/daytona/internal/objects/s3"
	"github.com/daytona-go/daytona/internal/objects/s3test"
)

func open(t *testing.T, l daytona.S3Location, opts *s3.Options) *s3.Store {
	t.Helper()
	s, err := s3.Open(l, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func get(ctx context.Context, s *s3.Store, key string) ([]byte, error) {
	r, err := s.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// slow has no length and gives odd amounts.
type slow struct{ r io.Reader }

func (s slow) Read(p []byte) (int, error) { return s.r.Read(p[:min(len(p), 65521)]) }

func TestStore(t *testing.T) {
	server := s3test.Start(t)
	l := server.Location
	l.Prefix = "team/one"
	s := open(t, l, nil)
	ctx := t.Context()
	for _, size := range []int{0, 1, 4096, 16<<20 - 72, 16 << 20, 40<<20 + 17, 70 << 20} {
		want := random(t, size)
		key := fmt.Sprintf("sizes/%d.tar", size)
		if err := s.Put(ctx, key, slow{bytes.NewReader(want)}); err != nil {
			t.Fatalf("put %d bytes: %v", size, err)
		}
		got, err := get(ctx, s, key)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("get %d bytes: %d bytes, %v", size, len(got), err)
		}
	}
	// Replaced, and the other prefixes of the bucket are out of sight.
	other := l
	other.Prefix = "team/one-other"
	if err := open(t, other, nil).Put(ctx, "x", strings.NewReader("of others")); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"old", "new"} {
		if err := s.Put(ctx, "x", strings.NewReader(v)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := get(ctx, s, "x"); string(got) != "new" {
		t.Errorf("x = %q, %v", got, err)
	}
	list := func(prefix string) (all []objects.Entry) {
		t.Helper()
		for e, err := range s.List(ctx, prefix) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, e)
		}
		return all
	}
	if got := list(""); len(got) != 8 || got[7] != (objects.Entry{Key: "x", Size: 3}) {
		t.Errorf("list = %v", got)
	}
	if got := list("sizes/16"); len(got) != 2 || got[0].Size != 16<<20-72 || got[1].Key != "sizes/16777216"+".tar" {
		t.Errorf("list of sizes/16 = %v", got)
	}
	if got := list("none"); got != nil {
		t.Errorf("list of nothing = %v", got)
	}
	for range 2 { // deleting nothing is no error
		if err := s.Delete(ctx, "x"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, err := s.Get(ctx, "x"); !errors.Is(err, fs.ErrNotExist) || daytona.KindOf(err) != daytona.KindNotFound {
		t.Errorf("get of nothing: %v", err)
	}
	if got, err := get(ctx, open(t, other, nil), "x"); string(got) != "of others" {
		t.Errorf("x of others = %q, %v", got, err)
	}
	for _, key := range []string{"", "../x", "a//b", "/x", "a/", ".hidden", "a\x00b"} {
		if err := s.Put(ctx, key, strings.NewReader("")); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("put %q: %v", key, err)
		}
		if _, err := s.Get(ctx, key); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("get %q: %v", key, err)
		}
	}
}

// TestPaging lists more than a page of a service has.
func TestPaging(t *testing.T) {
	server := s3test.Start(t)
	s := open(t, server.Location, nil)
	var want []string
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	for i := range 1234 {
		key := fmt.Sprintf("k/%04d", i)
		want = append(want, key)
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := s.Put(t.Context(), key, strings.NewReader("")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	var got []string
	for e, err := range s.List(t.Context(), "k/") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d of %d keys, sorted %v", len(got), len(want), slices.IsSorted(got))
	}
	for range s.List(t.Context(), "") {
		break
	}
}

// TestPutFails checks that what fails half-way leaves what was there, whatever
// error the reader gives.
func TestPutFails(t *testing.T) {
	server := s3test.Start(t)
	s := open(t, server.Location, nil)
	if err := s.Put(t.Context(), "k", strings.NewReader("old")); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{10, 20 << 20, 80 << 20} {
		for _, cause := range []error{errors.New("disk is broken"), io.ErrUnexpectedEOF} {
			r := io.MultiReader(io.LimitReader(zero{}, size), failing{cause})
			if err := s.Put(t.Context(), "k", r); !errors.Is(err, cause) {
				t.Errorf("put of %d bytes and %v: %v", size, cause, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		r := io.MultiReader(io.LimitReader(zero{}, size), calls(cancel), zero{})
		if err := s.Put(ctx, "k", r); !errors.Is(err, context.Canceled) {
			t.Errorf("put of %d bytes, cancelled: %v", size, err)
		}
	}
	if got, err := get(t.Context(), s, "k"); string(got) != "old" {
		t.Errorf("k = %.20q, %v", got, err)
	}
}

type zero struct{}

func (zero) Read(p []byte) (int, error) { clear(p); return len(p), nil }

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type calls func()

func (c calls) Read([]byte) (int, error) { c(); return 0, io.EOF }

// TestMemory checks that an object of unknown size is not in memory as a whole.
func TestMemory(t *testing.T) {
	server := s3test.Start(t)
	s := open(t, server.Location, nil)
	var most atomic.Uint64
	watch := calls(func() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		most.Store(max(most.Load(), m.HeapInuse))
	})
	parts := []io.Reader{}
	for range 40 {
		parts = append(parts, io.LimitReader(zero{}, 10<<20), watch)
	}
	if err := s.Put(t.Context(), "big", io.MultiReader(parts...)); err != nil {
		t.Fatal(err)
	}
	if m := most.Load(); m > 128<<20 {
		t.Errorf("%d MiB of memory for an object of 400 MiB", m>>20)
	}
}

func TestDamage(t *testing.T) {
	server := s3test.Start(t)
	s := open(t, server.Location, nil)
	for name, damage := range map[string]func([]byte) []byte{
		"changed":   func(b []byte) []byte { b[5] ^= 1; return b },
		"truncated": func(b []byte) []byte { return b[:len(b)-1] },
		"tiny":      func([]byte) []byte { return []byte("x") },
		"longer":    func(b []byte) []byte { return append([]byte("0"), b...) },
	} {
		if err := s.Put(t.Context(), name, strings.NewReader("something of value")); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(server.Dir, name)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, damage(data), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := get(t.Context(), s, name); !errors.Is(err, objects.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCredentials checks that the service's refusals are told apart, and that
// no error shows a credential.
func TestCredentials(t *testing.T) {
	server := s3test.Start(t)
	for name, x := range map[string]struct {
		change func(l *daytona.S3Location)
		kind   daytona.Kind
	}{
		"wrong secret":    {func(l *daytona.S3Location) { l.SecretKey = "wrong-secret" }, daytona.KindUnauthorized},
		"wrong key":       {func(l *daytona.S3Location) { l.AccessKey = "wrong-access" }, daytona.KindUnauthorized},
		"anonymous":       {func(l *daytona.S3Location) { l.AccessKey, l.SecretKey = "", "" }, daytona.KindForbidden},
		"no such bucket":  {func(l *daytona.S3Location) { l.Bucket = "nothing" }, daytona.KindNotFound},
		"wrong region":    {func(l *daytona.S3Location) { l.Region = "eu-nowhere-1" }, daytona.KindInvalid},
		"nobody's there":  {func(l *daytona.S3Location) { l.Endpoint = "http://127.0.0.1:1" }, daytona.KindUnavailable},
		"no such address": {func(l *daytona.S3Location) { l.Endpoint = "https://test-secret-key.invalid" }, daytona.KindUnavailable},
	} {
		l := server.Location
		x.change(&l)
		s := open(t, l, &s3.Options{Attempts: 2})
		errs := map[string]error{"put": s.Put(t.Context(), "k", strings.NewReader("v")), "delete": s.Delete(t.Context(), "k")}
		_, errs["get"] = s.Get(t.Context(), "k")
		for _, err := range s.List(t.Context(), "") {
			errs["list"] = err
		}
		for op, err := range errs {
			if daytona.KindOf(err) != x.kind || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %s: %v (%s), want %s", name, op, err, daytona.KindOf(err), x.kind)
			}
			for _, secret := range []string{"test-secret-key", "wrong-secret", "test-access-key", "wrong-access"} {
				if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, secret) {
					t.Errorf("%s: %s: the error shows %s: %s", name, op, secret, text)
				}
			}
		}
	}
}

// unreliable is a proxy before the server that spoils some answers.
func unreliable(t *testing.T, l daytona.S3Location, spoil func(w http.ResponseWriter, r *http.Request) bool) daytona.S3Location {
	t.Helper()
	u, err := url.Parse(l.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	// The signature is for this proxy's host, which the server sees too.
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u); r.Out.Host = r.In.Host }}
	p := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !spoil(w, r) {
			proxy.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(p.Close)
	l.Endpoint = p.URL
	return l
}

func TestRetries(t *testing.T) {
	server := s3test.Start(t)
	var requests atomic.Int64
	busy := open(t, unreliable(t, server.Location, func(w http.ResponseWriter, r *http.Request) bool {
		if requests.Add(1)%3 != 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	}), nil)
	want := random(t, 50<<20)
	if err := busy.Put(t.Context(), "k", bytes.NewReader(want)); err != nil {
		t.Fatalf("put to a busy service: %v", err)
	}
	got, err := get(t.Context(), busy, "k")
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("get from a busy service: %d bytes, %v", len(got), err)
	}
	// Answers that break off after a few MiB.
	var cuts atomic.Int64
	torn := open(t, unreliable(t, server.Location, func(w http.ResponseWriter, r *http.Request) bool {
		req := r.Clone(r.Context())
		u, _ := url.Parse(server.Location.Endpoint)
		req.URL.Scheme, req.URL.Host, req.RequestURI = u.Scheme, u.Host, ""
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Error(err)
			return true
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		if n, _ := io.Copy(w, io.LimitReader(resp.Body, 9<<20)); n == 9<<20 {
			cuts.Add(1)
			panic(http.ErrAbortHandler)
		}
		return true
	}), nil)
	got, err = get(t.Context(), torn, "k")
	if err != nil || !bytes.Equal(got, want) || cuts.Load() < 4 {
		t.Errorf("get over torn connections: %d bytes, %v, %d cuts", len(got), err, cuts.Load())
	}
}

// TestTLS checks that whoever is not trusted gets nothing, and that all works
// encrypted, where content is signed in another way.
func TestTLS(t *testing.T) {
	server := s3test.Start(t)
	u, err := url.Parse(server.Location.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	p := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u); r.Out.Host = r.In.Host }})
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.StartTLS()
	defer p.Close()
	l := server.Location
	l.Endpoint = p.URL
	if err := open(t, l, &s3.Options{Attempts: 1}).Put(t.Context(), "k", strings.NewReader("v")); daytona.KindOf(err) != daytona.KindUnavailable {
		t.Errorf("put to a stranger: %v", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(p.Certificate())
	s := open(t, l, &s3.Options{TLS: &tls.Config{RootCAs: roots}})
	for _, size := range []int{10, 40 << 20} {
		want := random(t, size)
		if err := s.Put(t.Context(), "k", bytes.NewReader(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := get(t.Context(), s, "k"); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes of %d, %v", len(got), size, err)
		}
	}
}

// TestStall checks that a service that has fallen silent is given up, and that
// a context ends any wait.
func TestStall(t *testing.T) {
	server := s3test.Start(t)
	s := open(t, server.Location, &s3.Options{Attempts: 2, Stall: 300 * time.Millisecond})
	if err := s.Put(t.Context(), "k", strings.NewReader("v")); err != nil {
		t.Fatal(err)
	}
	server.Freeze(t)
	if _, err := s.Get(t.Context(), "k"); daytona.KindOf(err) != daytona.KindUnavailable {
		t.Errorf("get: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := open(t, server.Location, nil).Put(ctx, "k", strings.NewReader("w")); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 5*time.Second {
		t.Errorf("put: %v after %s", err, time.Since(start))
	}
}

func TestParseURL(t *testing.T) {
	for raw, want := range map[string]daytona.S3Location{
		"s3://b":                         {Bucket: "b", Region: "us-east-1", Endpoint: "https://s3.us-east-1.amazonaws.com"},
		"s3://b/x/y/?region=eu-west-1":   {Bucket: "b", Prefix: "x/y", Region: "eu-west-1", Endpoint: "https://s3.eu-west-1.amazonaws.com"},
		"s3://b?endpoint=http://[::1]:9": {Bucket: "b", Region: "us-east-1", Endpoint: "http://[::1]:9"},
	} {
		got, err := s3.ParseURL(raw)
		if err != nil || got != want {
			t.Errorf("%s = %+v, %v", raw, got, err)
		}
		if _, err := s3.Open(got, nil); err != nil {
			t.Errorf("open %s: %v", raw, err)
		}
	}
	for _, raw := range []string{"", "http://b", "s3://user:geheim@b", "s3://b?secretKey=geheim", "s3://user:geheim@b:bad/%zz", "s3://?endpoint=http://user:geheim@h", "s3://b/a/../c", "s3://b?endpoint=http://user:geheim@h", "s3://b?endpoint=ftp://h", "s3://b?endpoint=http://h/path"} {
		l, err := s3.ParseURL(raw)
		if err == nil {
			_, err = s3.Open(l, nil)
		}
		if daytona.KindOf(err) != daytona.KindInvalid || strings.Contains(fmt.Sprint(err), "geheim") {
			t.Errorf("%s: %v", raw, err)
		}
	}
	if _, err := s3.Open(daytona.S3Location{Endpoint: "http://h", Bucket: "b", AccessKey: "a"}, nil); daytona.KindOf(err) != daytona.KindInvalid {
		t.Errorf("half a credential: %v", err)
	}
}
