// Package load puts load on a server that is a process of its own, over HTTP and
// WebSockets, as its clients do: many at once, and for as long as -load.time
// says. TestLoad is a short one of it that says whether everything works; the
// benchmarks say how fast, next to the engine alone.
package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

var (
	clients  = flag.Int("load.clients", 50, "clients that make, use and delete sandboxes at once")
	length   = flag.Duration("load.time", 10*time.Second, "for how long they do")
	rows     = flag.Int("load.rows", 2000, "sandboxes that are listed")
	sockets  = flag.Int("load.sockets", 1000, "WebSockets that are idle")
	profiles = flag.String("load.profile", "", "a directory for profiles of the server")
)

// client speaks to a server.
type client struct {
	at        ready
	transport *http.Transport
}

func newClient(at ready) *client {
	return &client{at, &http.Transport{MaxIdleConnsPerHost: 1000}}
}

// status is an answer that is not a success.
type status struct {
	method, url string
	code        int
	body        string
}

func (s *status) Error() string { return fmt.Sprintf("%s %s: %d %s", s.method, s.url, s.code, s.body) }

func (c *client) call(ctx context.Context, method, url string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	q, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	q.Header.Set("Authorization", "Bearer "+c.at.Key)
	if in != nil {
		q.Header.Set("Content-Type", "application/json")
	}
	r, err := c.transport.RoundTrip(q)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if r.StatusCode/100 != 2 {
		return &status{method, url, r.StatusCode, string(b)}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(b, out)
}

// create makes a sandbox and waits until it runs.
func (c *client) create(ctx context.Context, spec any) (id string, err error) {
	var v struct{ ID, State, ErrorReason string }
	err = c.call(ctx, "POST", c.at.URL+"/api/sandbox", spec, &v)
	for ; err == nil && v.State != "started"; err = c.call(ctx, "GET", c.at.URL+"/api/sandbox/"+v.ID, nil, &v) {
		if v.State == "error" || v.State == "build_failed" {
			return v.ID, fmt.Errorf("sandbox %s: %s", v.ID, v.ErrorReason)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return v.ID, err
}

// exec runs a program in a sandbox.
func (c *client) exec(ctx context.Context, id, command, want string) error {
	var v struct {
		ExitCode int
		Result   string
	}
	err := c.call(ctx, "POST", c.at.URL+"/toolbox/"+id+"/process/execute", map[string]string{"command": command}, &v)
	if err == nil && (v.ExitCode != 0 || v.Result != want) {
		err = fmt.Errorf("exec in %s: %+v", id, v)
	}
	return err
}

// remove deletes a sandbox and waits until it is gone. said is when the server
// has said that it will be.
func (c *client) remove(ctx context.Context, id string) (said time.Time, err error) {
	err = c.call(ctx, "DELETE", c.at.URL+"/api/sandbox/"+id, nil, nil)
	said = time.Now()
	for wait := 10 * time.Millisecond; err == nil; wait = min(wait+wait/2, 100*time.Millisecond) {
		time.Sleep(wait)
		err = c.call(ctx, "GET", c.at.URL+"/api/sandbox/"+id, nil, nil)
	}
	if s, ok := errors.AsType[*status](err); ok && s.code == http.StatusNotFound {
		err = nil
	}
	return said, err
}

// step is one of what clients do in turn.
type step struct {
	name string
	took time.Duration
}

// cycle makes a sandbox, uses it and deletes it.
func (c *client) cycle(ctx context.Context, n int64) ([]step, error) {
	begin := time.Now()
	id, err := c.create(ctx, map[string]any{"labels": map[string]string{"load": fmt.Sprint(n % 10)}})
	if err != nil {
		return nil, err
	}
	created := time.Now()
	err = c.exec(ctx, id, fmt.Sprintf("echo %d", n), fmt.Sprintln(n))
	used := time.Now()
	said, gone := c.remove(ctx, id)
	return []step{{"create", created.Sub(begin)}, {"exec", used.Sub(created)}, {"delete", said.Sub(used)}, {"gone", time.Since(used)}}, errors.Join(err, gone)
}

// churn makes a sandbox and deletes it.
func (c *client) churn(ctx context.Context, n int64) ([]step, error) {
	begin := time.Now()
	id, err := c.create(ctx, map[string]any{"labels": map[string]string{"load": fmt.Sprint(n % 10)}})
	if err != nil {
		return nil, err
	}
	created := time.Now()
	said, err := c.remove(ctx, id)
	return []step{{"create", created.Sub(begin)}, {"delete", said.Sub(created)}, {"gone", time.Since(created)}}, err
}

// times are how long things took, by name.
type times struct {
	mu  sync.Mutex
	all map[string][]time.Duration
}

func (t *times) add(steps ...step) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.all == nil {
		t.all = map[string][]time.Duration{}
	}
	for _, s := range steps {
		t.all[s.name] = append(t.all[s.name], s.took)
	}
}

// at is a percentile in milliseconds.
func (t *times) at(name string, percent int) float64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := slices.Sorted(slices.Values(t.all[name]))
	if len(list) == 0 {
		return 0
	}
	return float64(list[min(len(list)*percent/100, len(list)-1)]) / 1e6
}

// outcome is what came of a run.
type outcome struct {
	times
	cycles atomic.Int64
	took   time.Duration
}

// run has clients do something over and over for a time. The first error ends
// it.
func run(t testing.TB, clients int, d time.Duration, what func(ctx context.Context, n int64) ([]step, error)) *outcome {
	t.Helper()
	o := &outcome{}
	o.run(t, clients, d, what)
	return o
}

func (o *outcome) run(t testing.TB, clients int, d time.Duration, what func(ctx context.Context, n int64) ([]step, error)) {
	t.Helper()
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	begin := time.Now()
	var began atomic.Int64
	var all sync.WaitGroup
	for range clients {
		all.Go(func() {
			for first := true; (first || time.Since(begin) < d) && ctx.Err() == nil; first = false {
				steps, err := what(ctx, began.Add(1))
				if err != nil {
					stop(err)
					return
				}
				o.add(steps...)
				o.cycles.Add(1)
			}
		})
	}
	all.Wait()
	o.took = time.Since(begin)
	if err := context.Cause(ctx); err != nil {
		t.Fatalf("after %s and %d sandboxes: %v", o.took.Round(time.Millisecond), o.cycles.Load(), err)
	}
	if o.cycles.Load() == 0 {
		t.Fatal("nothing was done")
	}
}

// TestLoad has many clients make, use and delete sandboxes at once: nothing of
// it fails, and nothing is left of it, in the engine and in the server.
func TestLoad(t *testing.T) {
	d := 5 * time.Second
	if testing.Short() {
		d = time.Second
	}
	p := start(t, options{})
	// What is made once is there before it is counted.
	run(t, 20, 0, p.cycle)
	goroutines, files := p.rest(t, 1<<30, 1<<30)
	o := run(t, 20, d, p.cycle)
	t.Logf("%d sandboxes in %s: create %.0f ms, exec %.0f ms, delete %.0f ms", o.cycles.Load(), o.took.Round(time.Millisecond), o.at("create", 50), o.at("exec", 50), o.at("gone", 50))
	after, open := p.rest(t, goroutines+10, files+10)
	t.Logf("%d goroutines and %d files before, %d and %d after", goroutines, files, after, open)
	var page struct{ Items []struct{ ID, State string } }
	if err := p.call(t.Context(), "GET", p.URL+"/api/sandbox", nil, &page); err != nil || len(page.Items) > 0 {
		t.Errorf("sandboxes are left: %v, %v", page, err)
	}
	engine := p.engine(t)
	for sb, err := range engine.List(t.Context(), nil) {
		t.Errorf("the engine has a sandbox left: %v, %v", sb, err)
	}
}

// rest waits until the server has at most so many goroutines and files, and
// says how many.
func (p *process) rest(t testing.TB, goroutines, files int) (int, int) {
	t.Helper()
	p.transport.CloseIdleConnections()
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		g, f := p.figures(t).Goroutines, len(p.open(t))
		if g <= goroutines && f <= files {
			return g, f
		}
		if time.Since(begin) > time.Minute {
			r, err := http.Get(p.Debug + "/debug/pprof/goroutine?debug=1")
			if err != nil {
				t.Fatal(err)
			}
			defer r.Body.Close()
			b, err := io.ReadAll(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			t.Fatalf("%d goroutines and %d files a minute after the load, in place of %d and %d:\n%s\n%s", g, f, goroutines, files, strings.Join(p.open(t), "\n"), b)
		}
	}
}

// engine opens the engine of a server in this process as well.
func (p *process) engine(t testing.TB) *daytona.Client {
	t.Helper()
	c, err := daytona.Open(t.Context(), "local://"+sandboxes(p.dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}
