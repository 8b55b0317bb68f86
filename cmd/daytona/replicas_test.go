package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona/server/apikey"
	"github.com/daytona-go/daytona/server/store"
)

// TestReplicas has two servers on one PostgreSQL, each with a runner of its own,
// as on two machines: who speaks to one of them must not be able to tell which.
// Then one is killed, and the other does what it did.
func TestReplicas(t *testing.T) {
	needRoot(t)
	t.Parallel()
	pg, db := newPostgres(t)
	pg.start(t)
	redis := newRedis(t)
	var servers [2]*process
	var clients [2]*client
	var starting sync.WaitGroup
	for i := range servers {
		c := map[string]any{"database": db, "backend": "local://" + backendDir(t), "limits": map[string]any{"anonymous": map[string]int{"ttl": 3600, "limit": 20}}}
		if redis != "" {
			c["redis"] = redis
		}
		servers[i], clients[i] = newServer(t, c)
		as := servers[i].command
		servers[i].command = func() *exec.Cmd {
			// A machine of another name.
			cmd := as()
			cmd.Args = append([]string{"sh", "-c", `hostname "$0" && exec "$@"`, fmt.Sprintf("machine-%d", i)}, cmd.Args...)
			cmd.Path = "/bin/sh"
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUTS}
			return cmd
		}
		// Both at once, on a database that is empty.
		starting.Go(func() { up(t, servers[i], clients[i]) })
	}
	starting.Wait()
	if t.Failed() {
		return
	}
	a, b := clients[0], clients[1]
	awaitRunner(t, a, 2)

	t.Run("sandboxes", func(t *testing.T) {
		events := listen(t, b)
		// Until each runner has some.
		runners := map[string]int{}
		var all []state
		for n := 0; n < 4 || len(runners) < 2 && n < 40; n++ {
			var s struct {
				state
				RunnerID string
			}
			clients[n%2].must(t, "POST", "/api/sandbox", map[string]any{"name": fmt.Sprintf("both-%d", n), "labels": map[string]string{"n": fmt.Sprint(n)}}, &s)
			runners[s.RunnerID]++
			all = append(all, s.state)
		}
		if len(runners) != 2 {
			t.Errorf("one runner has them all: %v", runners)
		}
		for i, s := range all {
			events.await(t, "sandbox.created", s.ID)
			for j, c := range clients {
				if text := run(t, c, s.ID, fmt.Sprintf("echo %d >> by; cat by", j)); j == 1 && text != "0\n1\n" {
					t.Errorf("%q", text)
				}
			}
			clients[i%2].must(t, "POST", "/api/sandbox/"+s.ID+"/stop", nil, nil)
		}
		for i, s := range all {
			c := clients[(i+1)%2]
			until(t, s.Name+" does not stop", func() (bool, string) {
				var now state
				a := c.call(t.Context(), "GET", "/api/sandbox/"+s.ID, nil, &now)
				return now.State == "stopped", a.String()
			})
			c.must(t, "DELETE", "/api/sandbox/"+s.Name, nil, nil)
			if got := clients[i%2].call(t.Context(), "GET", "/api/sandbox/"+s.ID, nil, nil); got.outcome == done && !strings.Contains(got.body, `"destroy`) {
				t.Errorf("deleted by one server, there at the other: %v", got)
			}
			events.await(t, "sandbox.state.updated", s.ID)
		}
		until(t, "they are not deleted", func() (bool, string) {
			var page struct{ Items []state }
			a.must(t, "GET", "/api/sandbox", nil, &page)
			return len(page.Items) == 0, fmt.Sprint(page)
		})
		// Every job was done once.
		d, err := store.Open(t.Context(), db, discard)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		var twice []string
		err = d.All(t.Context()).NewRaw(`SELECT resource_id || ' ' || type || ' ' || COUNT(*) FROM jobs WHERE resource_type = 'SANDBOX'
			GROUP BY resource_id, type HAVING COUNT(*) > 1 UNION SELECT resource_id || ' ' || type || ' ' || error FROM jobs WHERE status = 'FAILED'`).Scan(t.Context(), &twice)
		if err != nil || len(twice) > 0 {
			t.Errorf("%v %v", twice, err)
		}
	})

	t.Run("keys", func(t *testing.T) {
		d, err := store.Open(t.Context(), db, discard)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		// By the API this takes a login; it makes the same calls.
		keys := apikey.New(d, discard)
		who, err := keys.Validate(t.Context(), adminKey)
		if err != nil {
			t.Fatal(err)
		}
		other, err := keys.Ensure(t.Context(), who.OrganizationID, who.UserID, "other", "")
		if err != nil {
			t.Fatal(err)
		}
		for range 5 { // so that both remember it
			for _, c := range clients {
				newClient(c.url, other).must(t, "GET", "/api/sandbox", nil, nil)
			}
		}
		if err := keys.Delete(t.Context(), who, who.UserID, "other"); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for _, c := range clients {
			until(t, "a key that was revoked is good still", func() (bool, string) {
				got := newClient(c.url, other).call(t.Context(), "GET", "/api/sandbox", nil, nil)
				return got.status == 401, got.String()
			})
		}
		// What is remembered is remembered for ten seconds, unless it is told of.
		took := time.Since(began)
		t.Logf("refused by both %s after it was revoked", took)
		if took > 5*time.Second {
			t.Errorf("nobody told the servers: %s", took)
		}
	})

	t.Run("limits", func(t *testing.T) {
		if redis == "" {
			t.Skip("redis-server is not installed")
		}
		for i := range 21 {
			c := newClient(clients[i%2].url, "")
			got := c.call(t.Context(), "GET", "/api/config", nil, nil)
			if want := map[bool]int{false: 200, true: 429}[i >= 20]; got.status != want {
				t.Fatalf("request %d of 20: %v", i+1, got)
			}
		}
	})

	t.Run("killed", func(t *testing.T) {
		d, err := store.Open(t.Context(), db, discard)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		// One sandbox on each runner, with a program that counts.
		first := map[string]string{} // by runner, a sandbox
		for n := 0; len(first) < 2 && n < 40; n++ {
			var s struct{ ID, RunnerID string }
			a.must(t, "POST", "/api/sandbox", map[string]any{}, &s)
			if first[s.RunnerID] == "" {
				first[s.RunnerID] = s.ID
			}
		}
		for _, id := range first {
			run(t, b, id, `sh -c 'setsid sh -c "i=0; while :; do i=\$((i+1)); echo \$i > count.new; mv count.new count; sleep 0.1; done" >/dev/null 2>&1 </dev/null & echo $! > pid'`)
		}
		leases := func() map[string]time.Time {
			var rows []struct {
				Name      string
				ExpiresAt time.Time
			}
			if err := d.All(t.Context()).NewRaw("SELECT name, expires_at FROM leases").Scan(t.Context(), &rows); err != nil {
				t.Fatal(err)
			}
			all := map[string]time.Time{}
			for _, r := range rows {
				all[r.Name] = r.ExpiresAt
			}
			return all
		}
		lasts := map[string]time.Duration{"sandbox": 30 * time.Second, "runner-sweep": 30 * time.Second, "job-sweep": 45 * time.Second}
		// Who leads tells its machine.
		var leader string
		if err := d.All(t.Context()).NewRaw("SELECT holder FROM leases WHERE name = 'sandbox'").Scan(t.Context(), &leader); err != nil {
			t.Fatal(err)
		}
		k := 0
		if strings.HasPrefix(leader, "machine-1/") {
			k = 1
		} else if !strings.HasPrefix(leader, "machine-0/") {
			t.Fatalf("nobody leads: %q", leader)
		}
		dead, other := clients[k], clients[1-k]
		servers[k].kill(false)
		killed := time.Now()
		served := 0
		for _, id := range first {
			if got := other.call(t.Context(), "POST", "/toolbox/"+id+"/process/execute", map[string]any{"command": "kill -0 $(cat pid)"}, nil); got.outcome == done {
				served++
			}
		}
		if served != 1 {
			t.Errorf("of two sandboxes on two runners %d are reached when one is killed", served)
		}
		// One that was taken or prolonged after the kill is the other's: what the
		// dead one had would be over.
		until(t, "nobody takes over", func() (bool, string) {
			all := leases()
			for name, d := range lasts {
				if !all[name].After(killed.Add(d)) {
					return false, fmt.Sprint(all)
				}
			}
			return true, ""
		})
		up(t, servers[k], dead)
		awaitRunner(t, a, 2)
		for _, id := range first {
			var one, two int
			until(t, "the runner is not back", func() (bool, string) {
				got := dead.call(t.Context(), "POST", "/toolbox/"+id+"/process/execute", map[string]any{"command": "true"}, nil)
				return got.outcome == done, got.String()
			})
			text := run(t, dead, id, "kill -0 $(cat pid) && cat count")
			fmt.Sscan(text, &one)
			until(t, "what ran when the server was killed does not run any more", func() (bool, string) {
				text := run(t, other, id, "cat count")
				fmt.Sscan(text, &two)
				return two > one && one > 0, text
			})
		}
	})
}

// run runs a command, which must end with 0.
func run(t testing.TB, c *client, id, command string) string {
	t.Helper()
	var r struct {
		ExitCode int
		Result   string
	}
	c.must(t, "POST", "/toolbox/"+id+"/process/execute", map[string]any{"command": command}, &r)
	if r.ExitCode != 0 {
		t.Fatalf("%s: %d %s", command, r.ExitCode, r.Result)
	}
	return r.Result
}

// newRedis starts a Redis and returns its URL, "" where it is not installed.
func newRedis(t testing.TB) string {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return ""
	}
	listen := freePort(t)
	dir := t.TempDir()
	p := &process{name: "Redis", log: filepath.Join(dir, "redis.log"), command: func() *exec.Cmd {
		cmd := exec.Command(program, "--bind", "127.0.0.1", "--port", listen[strings.LastIndex(listen, ":")+1:], "--save", "", "--dir", dir)
		return cmd
	}}
	p.start(t)
	t.Cleanup(func() { p.kill(false) })
	return "redis://" + listen
}

// heard is what a client of the events has been told.
type heard struct {
	mu  sync.Mutex
	all []string
}

// listen connects to the events of a server.
func listen(t *testing.T, c *client) *heard {
	t.Helper()
	ws, _, err := websocket.Dial(t.Context(), c.url+"/api/socket.io/?EIO=4&transport=websocket", nil)
	if err != nil {
		t.Fatal(err)
	}
	ws.SetReadLimit(16 << 20)
	if _, _, err := ws.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	token, _ := json.Marshal(map[string]string{"token": c.key})
	if err := ws.Write(t.Context(), websocket.MessageText, append([]byte("40"), token...)); err != nil {
		t.Fatal(err)
	}
	_, first, err := ws.Read(t.Context())
	if err != nil || !strings.HasPrefix(string(first), `40{"sid"`) {
		t.Fatalf("%s %v", first, err)
	}
	h := &heard{}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		for {
			_, b, err := ws.Read(ctx)
			if err != nil {
				return
			}
			if string(b) == "2" {
				_ = ws.Write(ctx, websocket.MessageText, []byte("3"))
			}
			h.mu.Lock()
			h.all = append(h.all, string(b))
			h.mu.Unlock()
		}
	}()
	t.Cleanup(func() { cancel(); ws.CloseNow(); <-over })
	return h
}

// await waits for an event about something.
func (h *heard) await(t testing.TB, event, id string) {
	t.Helper()
	until(t, "nobody tells of "+event+" "+id, func() (bool, string) {
		h.mu.Lock()
		defer h.mu.Unlock()
		return slices.ContainsFunc(h.all, func(s string) bool { return strings.HasPrefix(s, `42["`+event+`"`) && strings.Contains(s, id) }), fmt.Sprint(len(h.all))
	})
}
