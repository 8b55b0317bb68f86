package load

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/local"
	"github.com/daytona-go/daytona/daytonatest"
	"github.com/daytona-go/daytona/server"
)

// variable says to the test's own program that it is to be a server, and which.
const variable = "DAYTONA_LOAD_SERVER"

// This program is the server as well, in a process of its own.
func TestMain(m *testing.M) {
	if text := os.Getenv(variable); text != "" {
		if err := serve(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// options are what a server is to be.
type options struct {
	Dir, Database string
	// Fake is a runner whose sandboxes are none and take no time.
	Fake bool
}

// ready is what a server says of itself once it serves.
type ready struct{ URL, Debug, Key string }

// figures are what a server knows of itself.
type figures struct {
	Goroutines int
	Heap       uint64 // bytes that live after a collection
}

// serve is the server, until it gets SIGTERM.
func serve(text string) error {
	var o options
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log, err := os.Create(filepath.Join(o.Dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	client := daytona.New(daytonatest.NewFake())
	if !o.Fake {
		if client, err = daytona.Open(ctx, "local://"+sandboxes(o.Dir)); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	url := strings.Replace("http://"+l.Addr().String(), "127.0.0.1", "localhost", 1)
	s, err := server.New(ctx, server.Config{
		URL: url, Dir: filepath.Join(o.Dir, "server"), Database: o.Database, Client: client,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn})),
		// So that requests are counted, and none is too many.
		Limits:   map[string]server.LimitConfig{"authenticated": limit, "sandbox-create": limit, "sandbox-lifecycle": limit, "anonymous": limit, "failed-auth": limit},
		Defaults: server.DefaultsConfig{RunnerCPU: 1e5, RunnerMemory: 1e5, RunnerDisk: 1e6},
	})
	if err != nil {
		return err
	}
	h := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	go h.Serve(l)
	debug, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/figures", func(w http.ResponseWriter, r *http.Request) {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		json.NewEncoder(w).Encode(figures{runtime.NumGoroutine(), m.HeapAlloc})
	})
	go http.Serve(debug, mux)
	ended := make(chan error, 1)
	go func() {
		err := s.Run(ctx)
		if ctx.Err() != nil {
			err = nil
		}
		ended <- err
		stop() // nobody is to wait for its runner any more
	}()
	if err = s.Ready(ctx); err == nil {
		err = json.NewEncoder(os.Stdout).Encode(ready{url, "http://" + debug.Addr().String(), s.AdminKey()})
	}
	if err != nil {
		stop()
	}
	return errors.Join(err, <-ended, h.Close(), s.Close(), client.Close())
}

var limit = server.LimitConfig{TTL: 60, Limit: 100_000_000}

func sandboxes(dir string) string { return filepath.Join(dir, "s") }

// process is a server under load.
type process struct {
	ready
	*client
	dir string
	cmd *exec.Cmd
}

// start starts a server and waits until sandboxes can be made. It skips where
// the local engine can't run.
func start(t testing.TB, o options) *process {
	t.Helper()
	var err error
	// A short one: it has sockets.
	if o.Dir, err = os.MkdirTemp("", "dl-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(o.Dir); err != nil {
			t.Error(err)
		}
	})
	if !o.Fake {
		daytonatest.Client(t)
	}
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{dir: o.Dir, cmd: exec.Command(os.Args[0])}
	p.cmd.Env = append(os.Environ(), variable+"="+string(text))
	p.cmd.Stderr = os.Stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			if log, err := os.ReadFile(filepath.Join(o.Dir, "log")); err == nil {
				t.Logf("the server says:\n%s", log[max(0, len(log)-8000):])
			}
		}
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("the server ended: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &p.ready)
	}
	if err != nil {
		t.Fatalf("the server did not start: %v", err)
	}
	p.client = newClient(p.ready)
	t.Cleanup(p.transport.CloseIdleConnections)
	for ; ; time.Sleep(20 * time.Millisecond) {
		var v struct {
			State       string
			ErrorReason *string
		}
		if err := p.call(t.Context(), "GET", p.URL+"/api/snapshots/default", nil, &v); err != nil {
			t.Fatal(err)
		}
		if v.State == "error" {
			t.Fatalf("the default snapshot: %s", *v.ErrorReason)
		}
		if v.State == "active" {
			return p
		}
	}
}

// figures asks the server, which collects its garbage first.
func (p *process) figures(t testing.TB) (f figures) {
	t.Helper()
	r, err := http.Get(p.Debug + "/figures")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if err := json.NewDecoder(r.Body).Decode(&f); err != nil {
		t.Fatal(err)
	}
	return f
}

// rss returns the memory of the server that is in use, in MiB.
func (p *process) rss(t testing.TB) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseFloat(strings.Fields(string(b))[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return n * float64(os.Getpagesize()) / (1 << 20)
}

// open returns what files the server has open, but for the pool of connections
// to its database, which grows up to its bound whenever it has to.
func (p *process) open(t testing.TB) (names []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid)
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if name, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && !strings.Contains(name, "/daytona.db") {
			names = append(names, name)
		}
	}
	return names
}

// profile writes what the server does for a time, and what it has at the end,
// where -load.profile says.
func (p *process) profile(t testing.TB, name string, d time.Duration) (done func()) {
	if *profiles == "" {
		return func() {}
	}
	save := func(what, query string) {
		r, err := http.Get(p.Debug + "/debug/pprof/" + query)
		if err != nil {
			t.Error(err)
			return
		}
		defer r.Body.Close()
		f, err := os.Create(filepath.Join(*profiles, name+"."+what))
		if err != nil {
			t.Error(err)
			return
		}
		_, err = io.Copy(f, r.Body)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Error(err)
		}
	}
	end := make(chan struct{})
	go func() {
		defer close(end)
		save("cpu", fmt.Sprintf("profile?seconds=%d", max(1, int(d.Seconds())-1)))
	}()
	return func() {
		<-end
		save("heap", "heap?gc=1")
		save("goroutines", "goroutine?debug=1")
	}
}
