package backendtest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
)

func toolboxChecks() []check {
	return []check{
		{name: "Dial", needs: []Capability{AgentAPI}, run: checkDial},
		{name: "DialPort", needs: []Capability{Ports}, run: checkDialPort},
		{name: "DialPortServer", needs: []Capability{Ports, Python, Sessions}, run: checkDialPortServer},
		{name: "Ports", needs: []Capability{Ports, Python, Sessions}, run: checkPorts},
		{name: "SSH", needs: []Capability{AgentAPI, Shell}, limit: time.Minute, run: checkSSH},
		{name: "WebTerminal", needs: []Capability{AgentAPI, Ports}, run: checkWebTerminal},
		{name: "Metrics", needs: []Capability{Metrics}, run: checkMetrics},
		{name: "Interpreter", needs: []Capability{Interpreter, Python}, limit: 2 * time.Minute, run: checkInterpreter},
		{name: "LanguageServer", needs: []Capability{LSP, Python, Shell}, limit: 2 * time.Minute, run: checkLanguageServer},
		{name: "Git", needs: []Capability{Git, Shell}, run: checkGit},
		{name: "NoComputerUse", needs: []Capability{ComputerUse, Shell}, run: checkNoComputerUse},
		{name: "ComputerUse", needs: []Capability{ComputerUse, Shell}, limit: 4 * time.Minute, run: checkComputerUse},
	}
}

func checkDial(c *env) {
	sb := c.create()
	conn, err := sb.Toolbox().Dial(c.ctx)
	c.try("dial", err)
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(c.slow(10 * time.Second)))
	_, err = io.WriteString(conn, "GET /work-dir HTTP/1.1\r\nHost: sandbox\r\nConnection: close\r\n\r\n")
	c.try("write", err)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	c.try("read the answer", err)
	defer resp.Body.Close()
	var body struct{ Dir string }
	c.try("decode the answer", json.NewDecoder(resp.Body).Decode(&body))
	equal(c, "dir", body.Dir, sb.Info().WorkDir)
}

func checkDialPort(c *env) {
	sb := c.create()
	var err error
	c.try("dial returns", c.within(10*time.Second, func() error { _, err = sb.DialPort(c.ctx, 9); return nil }))
	c.wantKind("dial a port that nothing listens on", err, daytona.KindUnavailable)
	for _, port := range []int{0, -1, 65536} {
		_, err := sb.DialPort(c.ctx, port)
		c.wantKind(fmt.Sprintf("dial port %d", port), err, daytona.KindInvalid)
	}
}

func checkDialPortServer(c *env) {
	sb := c.create()
	c.try("write", sb.FileSystem().WriteFile(c.ctx, "www/index.html", []byte("served from inside"), 0))
	c.startInBackground(sb, "cd www && exec python3 -m http.server 18080 --bind 127.0.0.1")
	var body []byte
	get := func() error {
		conn, err := sb.DialPort(c.ctx, 18080)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(c.slow(10 * time.Second)))
		if _, err := io.WriteString(conn, "GET /index.html HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
		return err
	}
	if !c.eventually(15*time.Second, "a server inside answers", get) {
		return
	}
	equal(c, "what it serves", string(body), "served from inside")
	ports, err := sb.Process().Ports(c.ctx)
	c.try("ports", err)
	if !slices.Contains(ports, 18080) {
		c.Errorf("Ports() = %v, lacks 18080", ports)
	}
	for range 20 {
		c.try("the server answers again", get())
	}
	neighbour := c.create()
	_, err = neighbour.DialPort(c.ctx, 18080)
	c.wantKind("the same port of another sandbox", err, daytona.KindUnavailable)
}

func checkPorts(c *env) {
	sb := c.create()
	events, stop := iter.Pull2(sb.Ports().Watch(c.ctx, nil))
	defer stop()
	want := func(kind daytona.PortEventType) (l daytona.Listener) {
		c.Helper()
		for l.Port != 18083 {
			e, err, _ := events()
			c.try("watch the ports", err)
			l = e.Listener
			if l.Port == 18083 && e.Type != kind {
				c.Fatalf("port 18083: %s, want %s", e.Type, kind)
			}
		}
		return l
	}
	c.startInBackground(sb, "python3 -m http.server 18083 --bind 127.0.0.1 & echo $! > pid; wait")
	l := want(daytona.PortOpened)
	equal(c, "address", l.Addr.String(), "127.0.0.1")
	if l.PID <= 0 || !strings.HasPrefix(l.Process, "python3") || !slices.Contains(l.Command, "18083") {
		c.Errorf("who listens: %+v", l)
	}
	equal(c, "the process's number", c.sh(sb, "cat pid"), fmt.Sprint(l.PID))
	equal(c, "the user", c.sh(sb, "id -u"), fmt.Sprint(l.UID))
	list, err := sb.Ports().List(c.ctx)
	c.try("list the listeners", err)
	if !slices.ContainsFunc(list, func(o daytona.Listener) bool { return o.Port == l.Port && o.PID == l.PID }) {
		c.Errorf("List() = %+v, lacks %+v", list, l)
	}
	proxy := httptest.NewServer(sb.Ports().Proxy(18083, nil))
	defer proxy.Close()
	resp, err := http.Get(proxy.URL + "/pid")
	c.try("ask the server through the proxy", err)
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	c.try("read the answer", err)
	equal(c, "the answer", string(body), fmt.Sprintln(l.PID))
	c.sh(sb, "kill $(cat pid)")
	want(daytona.PortClosed)
}

func checkMetrics(c *env) {
	memory := c.h.amount(0.5)
	sb := c.create(func(s *daytona.Spec) {
		if c.has(Memory) {
			s.Resources.Memory = memory
		}
	})
	m, err := sb.Metrics(c.ctx)
	c.try("metrics", err)
	if m.MemoryUsed <= 0 || m.MemoryTotal <= 0 || m.MemoryUsed > m.MemoryTotal || m.CPUCount <= 0 || m.DiskTotal <= 0 || m.Time.IsZero() {
		c.Errorf("Metrics() = %+v, which cannot be", m)
	}
	if c.has(Memory) && m.MemoryTotal != int64(memory*daytona.GiB) {
		c.Errorf("MemoryTotal = %d, want the limit of %d", m.MemoryTotal, int64(memory*daytona.GiB))
	}
	// Without a disk limit DiskUsed is of a file system that other programs fill and empty meanwhile:
	// the file is written again until nobody interferes.
	c.eventually(30*time.Second, "a written file shows in DiskUsed", func() error {
		c.sh(sb, "rm -f f")
		before, err := sb.Metrics(c.ctx)
		if err != nil {
			return err
		}
		c.sh(sb, "head -c 50000000 /dev/zero > f")
		after, err := sb.Metrics(c.ctx)
		if err == nil && after.DiskUsed < before.DiskUsed+40_000_000 {
			err = fmt.Errorf("it was %d, it is %d", before.DiskUsed, after.DiskUsed)
		}
		return err
	})
}

// firstWrite closes a channel when something is written.
type firstWrite struct {
	done chan struct{}
	once sync.Once
}

func (w *firstWrite) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.done) })
	return len(p), nil
}

func checkInterpreter(c *env) {
	in := c.create().Interpreter()
	run := func(code string, o *daytona.InterpreterOptions) daytona.InterpreterResult {
		c.Helper()
		r, err := in.Run(c.ctx, code, o)
		c.try(fmt.Sprintf("run %q", code), err)
		return r
	}
	run("x = 41", nil)
	equal(c, "state is kept", run("x += 1\nprint(x)", nil).Stdout, "42\n")
	r := run("import sys\nprint('e', file=sys.stderr)\nraise KeyError('on purpose')", nil)
	equal(c, "Stderr", strings.HasPrefix(r.Stderr, "e\n"), true)
	if r.Err == nil || r.Err.Name != "KeyError" || !strings.Contains(r.Err.Value, "on purpose") {
		c.Errorf("Err = %+v, want a KeyError", r.Err)
	}
	equal(c, "state after an exception", run("print(x)", nil).Stdout, "42\n")
	ctx, err := in.CreateContext(c.ctx, &daytona.InterpreterContextOptions{Dir: "/"})
	c.try("create a context", err)
	r = run("import os\nprint(os.getcwd(), 'x' in globals())", &daytona.InterpreterOptions{Context: ctx.ID})
	equal(c, "another context", r.Stdout, "/ False\n")
	var live LockedBuffer
	r = run("import os; print(os.environ['E'])", &daytona.InterpreterOptions{Env: map[string]string{"E": "v"}, Stdout: &live})
	equal(c, "Env and Stdout", live.String(), "v\n")
	r = run("import os; print('E' in os.environ)", nil)
	equal(c, "Env of an earlier run", r.Stdout, "False\n")
	list, err := in.Contexts(c.ctx)
	c.try("contexts", err)
	if !slices.ContainsFunc(list, func(i daytona.InterpreterContext) bool { return i.ID == ctx.ID }) {
		c.Errorf("Contexts() = %+v, lacks %s", list, ctx.ID)
	}
	r = run("display({'a': 1})\n6 * 7", nil)
	if len(r.Results) != 2 || r.Results[0].Text() != "{'a': 1}" || r.Results[1].Text() != "42" || r.Stdout != "" {
		c.Errorf("results: %+v", r)
	}
	r = run("import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(7)'], stdout=1)\nimport os; os._exit(3)", nil)
	if r.Stdout != "7\n" || r.Err == nil || r.Err.Name != daytona.InterpreterExited {
		c.Errorf("code that ends its interpreter: %+v %+v", r, r.Err)
	}
	equal(c, "state after that", run("print('x' in globals())", nil).Stdout, "False\n")
	begun := make(chan struct{})
	stopped := make(chan daytona.InterpreterResult, 1)
	go func() {
		r, _ := in.Run(c.ctx, "x = 1\nprint('begun')\nwhile True: pass", &daytona.InterpreterOptions{Stdout: &firstWrite{done: begun}})
		stopped <- r
	}()
	select {
	case <-begun:
	case r := <-stopped:
		c.Fatalf("a run that never ends: %+v", r)
	}
	c.try("interrupt", in.Interrupt(c.ctx, daytona.DefaultInterpreterContext))
	if r := <-stopped; !r.Interrupted || r.Err == nil || r.Err.Name != "KeyboardInterrupt" {
		c.Errorf("an interrupted run: %+v %+v", r, r.Err)
	}
	equal(c, "state after an interrupt", run("print(x)", nil).Stdout, "1\n")
	if c.has(JavaScript) {
		js := &daytona.InterpreterOptions{Language: "javascript"}
		run("const x = await Promise.resolve(41)", js)
		r = run("console.log(x); x + 1", js)
		if r.Stdout != "41\n" || len(r.Results) != 1 || r.Results[0].Text() != "42" {
			c.Errorf("JavaScript: %+v %+v", r, r.Err)
		}
	}
	begin := time.Now()
	_, err = in.Run(c.ctx, "while True: pass", &daytona.InterpreterOptions{Timeout: time.Second})
	c.wantKind("a run beyond its timeout", err, daytona.KindTimeout)
	if d := time.Since(begin); d > c.slow(6*time.Second) {
		c.Errorf("a timeout of 1s took %v", d)
	}
	c.try("delete a context", in.DeleteContext(c.ctx, ctx.ID))
	c.wantKind("delete it again", in.DeleteContext(c.ctx, ctx.ID), daytona.KindNotFound)
	_, err = in.Run(c.ctx, "1", &daytona.InterpreterOptions{Context: ctx.ID})
	c.wantKind("run in a deleted context", err, daytona.KindNotFound)
}

func checkGit(c *env) {
	sb := c.create()
	if r, err := sb.Process().Exec(c.ctx, "git init -q -b main repo && git clone -q --bare repo origin.git", nil); err != nil || r.ExitCode != 0 {
		c.Fatalf("git init: %v %s", err, r.Output)
	}
	wd, err := sb.WorkDir(c.ctx)
	c.try("WorkDir", err)
	g := sb.Git()
	c.try("write", sb.FileSystem().WriteFile(c.ctx, "repo/a.txt", []byte("a"), 0))
	st, err := g.Status(c.ctx, "repo")
	c.try("status", err)
	if len(st.Files) != 1 || st.Files[0].Path != "a.txt" || st.Files[0].Worktree != "Untracked" {
		c.Errorf("Status = %+v, want a.txt untracked", st)
	}
	c.try("add", g.Add(c.ctx, "repo", "."))
	hash, err := g.Commit(c.ctx, "repo", daytona.Commit{Message: "first\n\nbody", Author: "A B", Email: "a@b.example"})
	c.try("commit", err)
	if len(hash) < 40 {
		c.Errorf("hash = %q", hash)
	}
	log, err := g.Log(c.ctx, "repo", nil)
	c.try("log", err)
	if len(log) != 1 || log[0].Hash != hash || log[0].Author != "A B" || log[0].Email != "a@b.example" {
		c.Errorf("Log = %+v", log)
	}
	c.try("create branch", g.CreateBranch(c.ctx, "repo", "feature"))
	b, err := g.Branches(c.ctx, "repo")
	c.try("branches", err)
	slices.Sort(b)
	equalList(c, "Branches", b, []string{"feature", "main"})
	st, err = g.Status(c.ctx, "repo")
	c.try("status", err)
	equal(c, "CreateBranch checks it out", st.Branch, "feature")
	c.try("checkout", g.Checkout(c.ctx, "repo", "main"))
	c.try("delete branch", g.DeleteBranch(c.ctx, "repo", "feature"))
	c.try("add a remote", g.AddRemote(c.ctx, "repo", daytona.GitRemote{Name: "origin", URL: "../origin.git"}, nil))
	c.try("push", g.Push(c.ctx, "repo", &daytona.GitPushOptions{SetUpstream: true}))
	cloned, err := g.Clone(c.ctx, "file://"+wd+"/origin.git", "cloned", nil)
	c.try("clone", err)
	equal(c, "what is checked out", cloned, daytona.CloneResult{Hash: hash, Branch: "main"})
	data, err := sb.FileSystem().ReadFile(c.ctx, "cloned/a.txt")
	c.try("read from the clone", err)
	equal(c, "content", string(data), "a")
	c.try("push with nothing to do", g.Push(c.ctx, "cloned", nil))
	c.try("pull with nothing to do", g.Pull(c.ctx, "cloned", nil))
	_, err = g.Status(c.ctx, "no-repo")
	if err == nil {
		c.Error("status of what is no repository gave no error")
	}
	_, err = g.Clone(c.ctx, "https://user:s3cr3t@127.0.0.1:1/none.git", "none", &daytona.CloneOptions{Credentials: &daytona.GitCredentials{Username: "u", Password: "p4ssw0rd"}})
	if err == nil {
		c.Error("clone of nothing gave no error")
	} else if strings.Contains(err.Error(), "p4ssw0rd") || strings.Contains(err.Error(), "s3cr3t") {
		c.Errorf("credentials are in the error: %v", err)
	}
	if e, ok := errors.AsType[*daytona.Error](err); err != nil && !ok {
		c.Errorf("clone of nothing: a %T, want to find an *Error %v", err, e)
	}
}
