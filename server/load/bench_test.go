package load

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/daytonatest"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// The rows of the tables of .ci/bench are the databases.

func BenchmarkSQLite(b *testing.B) {
	benchmark(b, func(testing.TB) string { return "" })
}

func BenchmarkPostgreSQL(b *testing.B) {
	if os.Getenv(storetest.Variable) == "" {
		b.Skip(storetest.Variable + " does not say where a PostgreSQL is")
	}
	benchmark(b, storetest.Postgres)
}

func benchmark(b *testing.B, database func(testing.TB) string) {
	for _, c := range []struct {
		name string
		f    func(*testing.B, string)
	}{{"Load", benchmarkLoad}, {"Churn", benchmarkChurn}, {"List", benchmarkList}, {"ProxyExec", benchmarkProxyExec}, {"IdleWebSockets", benchmarkIdleWebSockets}} {
		b.Run(c.name, func(b *testing.B) {
			c.f(b, database(b))
			b.ReportMetric(0, "ns/op")
		})
	}
}

// once says that a benchmark counts for itself, and is not to be run again.
func once(b *testing.B) {
	for b.Loop() {
	}
}

// say tells who waits of what is seen meanwhile.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "    "+format+"\n", args...) }

// sample is what a server has at a time.
type sample struct {
	at     time.Duration
	cycles int64
	rss    float64 // MiB
}

// slope is by how much y grows for each x, by least squares.
func slope(x, y []float64) float64 {
	n := float64(len(x))
	var sx, sy, sxx, sxy float64
	for i := range x {
		sx, sy, sxx, sxy = sx+x[i], sy+y[i], sxx+x[i]*x[i], sxy+x[i]*y[i]
	}
	if d := n*sxx - sx*sx; d != 0 {
		return (n*sxy - sx*sy) / d
	}
	return 0
}

// benchmarkLoad has clients make, use and delete sandboxes for -load.time, and
// watches the memory of the server. Its peer is the engine alone, which as many
// do the same with for a minute at most.
func benchmarkLoad(b *testing.B, database string) {
	once(b)
	peer := engineLoad(b)
	o := load(b, start(b, options{Database: database}), *length, (*client).cycle)
	b.ReportMetric(peer.rate()/o.rate(), "x_engine")
	for _, name := range []string{"create", "exec", "gone"} {
		b.ReportMetric(o.at(name, 50)/peer.at(name, 50), name+"-x_engine")
	}
}

// benchmarkChurn is what the server takes for itself: the sandboxes are those of
// a runner that takes no time, and nothing is run in them. Many more are made
// than any engine could, which shows what is left of each.
func benchmarkChurn(b *testing.B, database string) {
	once(b)
	load(b, start(b, options{Database: database, Fake: true}), min(*length, 2*time.Minute), (*client).churn)
}

// load is put on a server for a time.
func load(b *testing.B, p *process, d time.Duration, what func(*client, context.Context, int64) ([]step, error)) *outcome {
	cycle := func(ctx context.Context, n int64) ([]step, error) { return what(p.client, ctx, n) }
	run(b, *clients, 0, cycle)
	before := p.figures(b)
	begin := time.Now()
	var samples []sample
	var cycles func() int64
	take := func() {
		samples = append(samples, sample{time.Since(begin), cycles(), p.rss(b)})
	}
	done := p.profile(b, strings.ReplaceAll(b.Name(), "/", "-"), d)
	o := &outcome{}
	cycles = o.cycles.Load
	take()
	halfway := before
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		half := time.After(d / 2)
		last := begin
		for {
			select {
			case <-stop:
				return
			case <-half:
				halfway = p.figures(b)
			case <-tick.C:
				take()
				if time.Since(last) >= 30*time.Second {
					last = time.Now()
					say("%4.0f s: %d sandboxes, %.0f MiB, %d goroutines, %d files", time.Since(begin).Seconds(), o.cycles.Load(), samples[len(samples)-1].rss, p.figures(b).Goroutines, len(p.open(b)))
				}
			}
		}
	})
	o.run(b, *clients, d, cycle)
	close(stop)
	watch.Wait()
	take()
	done()
	// Only what comes after the first fifth: until then, caches and pools fill.
	var x, y []float64
	for _, s := range samples {
		if s.at >= d/5 {
			x, y = append(x, float64(s.cycles)), append(y, s.rss*1024)
		}
	}
	after := p.figures(b)
	b.ReportMetric(float64(o.cycles.Load()), "sandboxes")
	b.ReportMetric(0, "errors") // the first would have ended it
	b.ReportMetric(float64(o.cycles.Load())/o.took.Seconds(), "sandboxes/s")
	for _, name := range []string{"create", "exec", "delete", "gone"} {
		if o.at(name, 50) == 0 {
			continue
		}
		for _, percent := range []int{50, 95, 99} {
			b.ReportMetric(o.at(name, percent), fmt.Sprintf("%s-ms/p%d", name, percent))
		}
	}
	middle := samples[len(samples)/2]
	b.ReportMetric(samples[0].rss, "rss-start-MiB")
	b.ReportMetric(middle.rss, "rss-middle-MiB")
	b.ReportMetric(samples[len(samples)-1].rss, "rss-end-MiB")
	b.ReportMetric(slope(x, y), "rss-KiB/sandbox")
	for name, f := range map[string]figures{"start": before, "middle": halfway, "end": after} {
		b.ReportMetric(float64(f.Heap)/(1<<20), "heap-"+name+"-MiB")
	}
	b.ReportMetric(float64(before.Goroutines), "goroutines-start")
	b.ReportMetric(float64(after.Goroutines), "goroutines-end")
	return o
}

func (o *outcome) rate() float64 { return float64(o.cycles.Load()) / o.took.Seconds() }

// engineLoad is benchmarkLoad with the engine alone, in this process.
func engineLoad(b *testing.B) *outcome {
	c := daytonatest.Client(b)
	snapshot, err := c.CreateSnapshot(b.Context(), daytona.SnapshotSpec{Name: "base", Image: daytona.ImageHost})
	if err != nil {
		b.Fatal(err)
	}
	cycle := func(ctx context.Context, n int64) ([]step, error) {
		begin := time.Now()
		sb, err := c.Create(ctx, daytona.Spec{Snapshot: snapshot.Name, Persistent: true, User: "daytona"})
		if err != nil {
			return nil, err
		}
		created := time.Now()
		r, err := sb.Process().Exec(ctx, fmt.Sprintf("echo %d", n), nil)
		if err != nil || r.Output != fmt.Sprintln(n) {
			return nil, fmt.Errorf("exec: %+v, %w", r, err)
		}
		used := time.Now()
		if err := sb.Delete(ctx); err != nil {
			return nil, err
		}
		return []step{{"create", created.Sub(begin)}, {"exec", used.Sub(created)}, {"gone", time.Since(used)}}, nil
	}
	run(b, *clients, 0, cycle)
	return run(b, *clients, min(*length, time.Minute), cycle)
}

// benchmarkList asks for pages of many sandboxes, with filters.
func benchmarkList(b *testing.B, database string) {
	p := start(b, options{Database: database, Fake: true})
	var all sync.WaitGroup
	next := make(chan int)
	for range 16 {
		all.Go(func() {
			for i := range next {
				id, err := p.create(b.Context(), map[string]any{
					"name": fmt.Sprintf("sb-%d", i), "labels": map[string]string{"i": fmt.Sprint(i % 10), "of": "list"}, "env": map[string]string{"LONG": strings.Repeat("x", 500)},
				})
				if err == nil && i%4 == 0 {
					err = p.call(b.Context(), "POST", p.URL+"/api/sandbox/"+id+"/stop", nil, nil)
				}
				if err != nil {
					b.Error(err)
				}
			}
		})
	}
	for i := range *rows {
		next <- i
	}
	close(next)
	all.Wait()
	if b.Failed() {
		return
	}
	var t times
	labels := url.QueryEscape(`{"i":"7","of":"list"}`)
	for b.Loop() {
		for name, query := range map[string]string{
			"plain": "", "label": "labels=" + labels, "state": "states=stopped", "name": "name=sb-19", "sorted": "sort=name&order=asc&limit=200",
			"all": "labels=" + labels + "&states=started&name=sb-1&sort=createdAt&order=desc&limit=50", "page": "/paginated?page=7&limit=100&labels=" + labels,
		} {
			path := "/api/sandbox?" + query
			if strings.HasPrefix(query, "/") {
				path = "/api/sandbox" + query
			}
			var page struct{ Items []json.RawMessage }
			begin := time.Now()
			if err := p.call(b.Context(), "GET", p.URL+path, nil, &page); err != nil {
				b.Fatal(err)
			}
			t.add(step{name, time.Since(begin)})
			if len(page.Items) == 0 && name != "page" {
				b.Fatalf("%s: nothing is listed", name)
			}
		}
	}
	worst := 0.0
	for name := range t.all {
		b.ReportMetric(t.at(name, 50), name+"-ms/p50")
		b.ReportMetric(t.at(name, 95), name+"-ms/p95")
		worst = max(worst, t.at(name, 95))
	}
	b.ReportMetric(worst, "worst-ms/p95")
	b.ReportMetric(float64(*rows), "rows")
}

// benchmarkProxyExec runs programs by way of the server and straight at the
// agent, in turn.
func benchmarkProxyExec(b *testing.B, database string) {
	p := start(b, options{Database: database})
	id, err := p.create(b.Context(), map[string]any{})
	if err != nil {
		b.Fatal(err)
	}
	sb, err := p.engine(b).Get(b.Context(), id)
	if err != nil {
		b.Fatal(err)
	}
	direct := &client{p.ready, &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return sb.Toolbox().Dial(ctx) }}}
	defer direct.transport.CloseIdleConnections()
	ask := func(c *client, base string) time.Duration {
		var v struct {
			ExitCode int
			Result   string
		}
		begin := time.Now()
		if err := c.call(b.Context(), "POST", base+"/process/execute", map[string]string{"command": "true"}, &v); err != nil || v.ExitCode != 0 {
			b.Fatalf("%+v, %v", v, err)
		}
		return time.Since(begin)
	}
	var t times
	for b.Loop() {
		t.add(step{"direct", ask(direct, "http://agent")}, step{"proxy", ask(p.client, p.URL+"/toolbox/"+id)})
	}
	for _, name := range []string{"direct", "proxy"} {
		b.ReportMetric(t.at(name, 50), name+"-ms/p50")
		b.ReportMetric(t.at(name, 95), name+"-ms/p95")
	}
	b.ReportMetric(t.at("proxy", 50)/t.at("direct", 50), "x_direct")
	if _, err := p.remove(b.Context(), id); err != nil {
		b.Fatal(err)
	}
}

// benchmarkIdleWebSockets has many connected to a terminal through the proxy,
// and as many to the events, and runs programs beside them.
func benchmarkIdleWebSockets(b *testing.B, database string) {
	once(b)
	p := start(b, options{Database: database})
	ctx := b.Context()
	id, err := p.create(ctx, map[string]any{})
	if err != nil {
		b.Fatal(err)
	}
	var pty struct{ SessionID string }
	if err := p.call(ctx, "POST", p.URL+"/toolbox/"+id+"/process/pty", map[string]any{"id": "idle"}, &pty); err != nil {
		b.Fatal(err)
	}
	execs := func(t *times, name string) {
		for range 50 {
			begin := time.Now()
			if err := p.exec(ctx, id, "true", ""); err != nil {
				b.Fatal(err)
			}
			t.add(step{name, time.Since(begin)})
		}
	}
	var t times
	execs(&t, "before")
	base := strings.Replace(p.URL, "http", "ws", 1)
	for name, open := range map[string]func(context.Context) (*websocket.Conn, error){
		"terminal": func(ctx context.Context) (*websocket.Conn, error) {
			ws, _, err := websocket.Dial(ctx, base+"/toolbox/"+id+"/process/pty/idle/connect", &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + p.Key}}})
			if err != nil {
				return nil, err
			}
			_, _, err = ws.Read(ctx)
			return ws, err
		},
		"events": func(ctx context.Context) (*websocket.Conn, error) {
			ws, _, err := websocket.Dial(ctx, base+"/api/socket.io/?EIO=4&transport=websocket", nil)
			if err != nil {
				return nil, err
			}
			if _, _, err = ws.Read(ctx); err != nil {
				return nil, err
			}
			if err = ws.Write(ctx, websocket.MessageText, fmt.Appendf(nil, `40{"token":%q}`, p.Key)); err != nil {
				return nil, err
			}
			_, text, err := ws.Read(ctx)
			if err == nil && !strings.HasPrefix(string(text), "40") {
				err = fmt.Errorf("events: %s", text)
			}
			return ws, err
		},
	} {
		before, rss := p.figures(b), p.rss(b)
		var mu sync.Mutex
		var conns []*websocket.Conn
		var all sync.WaitGroup
		slots := make(chan struct{}, 32)
		for range *sockets {
			slots <- struct{}{}
			all.Go(func() {
				defer func() { <-slots }()
				ws, err := open(ctx)
				if err != nil {
					b.Error(err)
					return
				}
				mu.Lock()
				conns = append(conns, ws)
				mu.Unlock()
			})
		}
		all.Wait()
		if b.Failed() {
			return
		}
		// They are alive, and answer pings.
		var ended sync.WaitGroup
		var broken sync.Map
		reading, stop := context.WithCancel(ctx)
		for i, ws := range conns {
			ended.Go(func() {
				for {
					_, text, err := ws.Read(reading)
					if err == nil && string(text) == "2" {
						err = ws.Write(reading, websocket.MessageText, []byte("3"))
					}
					if err != nil {
						if reading.Err() == nil {
							broken.Store(i, err)
						}
						return
					}
				}
			})
		}
		execs(&t, "beside")
		after := p.figures(b)
		n := float64(*sockets)
		b.ReportMetric(float64(int64(after.Heap)-int64(before.Heap))/1024/n, name+"-heap-KiB/socket")
		b.ReportMetric((p.rss(b)-rss)*1024/n, name+"-rss-KiB/socket")
		b.ReportMetric(float64(after.Goroutines-before.Goroutines)/n, name+"-goroutines/socket")
		if all := maps.Collect(broken.Range); len(all) > 0 {
			b.Fatalf("%s: %d of %d ended by themselves: %v", name, len(all), *sockets, slices.Collect(maps.Values(all))[0])
		}
		stop()
		ended.Wait()
		for _, ws := range conns {
			ws.CloseNow()
		}
	}
	b.ReportMetric(float64(*sockets), "sockets")
	b.ReportMetric(t.at("before", 50), "exec-ms/p50")
	b.ReportMetric(t.at("beside", 50), "beside-ms/p50")
	b.ReportMetric(t.at("beside", 50)/t.at("before", 50), "x_before")
	if _, err := p.remove(ctx, id); err != nil {
		b.Fatal(err)
	}
}
