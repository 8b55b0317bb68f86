package cli_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/remote"
)

// TestServerConfiguration checks what a server's configuration may be, and what
// is prepared before there is a server.
func TestServerConfiguration(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "server.yaml")
	run := func(env []string, args ...string) (string, string, int) {
		t.Helper()
		s := hostShell(t)
		s.env = append(s.env, env...)
		r := s.run(append([]string{"server"}, args...)...)
		return r.stdout, r.stderr, r.code
	}
	for name, c := range map[string]struct {
		file string
		env  []string
		args []string
		want []string // all on standard error; none if it is right
	}{
		"nothing": {},
		"a file": {file: "listen: ':4000'\nurl: https://x.example\nlimits: {authenticated: {ttl: 60, limit: 10}}\ntrustedProxies: [10.0.0.0/8]\n" +
			"tracing: {endpoint: 'http://collector:4318', ratio: 0.1, headers: {x: y}}\nshutdown: {grace: 5}\nmetrics: {listen: ':9464'}\nimages: {python: 'oci:/srv:python'}\n"},
		"unknown fields":     {file: "lissten: x\nproxy:\n  domian: y\nqqqq: 1\n", want: []string{`server.yaml:1: there is no field "lissten"; did you mean "listen"?`, `server.yaml:3: there is no field "proxy.domian"; did you mean "domain"?`, "server.yaml:4: there is no field \"qqqq\"\n"}},
		"twice":              {file: "url: http://a\nurl: http://b\n", want: []string{"server.yaml:2: url is set twice"}},
		"no YAML":            {file: "{", want: []string{"server.yaml"}},
		"no mapping":         {file: "- a\n", want: []string{"server.yaml:1: the configuration must have fields"}},
		"two documents":      {file: "url: http://a\n---\nurl: http://b\n", want: []string{"one document"}},
		"wrong types":        {file: "defaults:\n  snapshots: many\n  runnerCpu: x\nmaintenance: perhaps\nproxy: x\nunenforced: disk\ntrustedProxies: [here]\nlisten: [1]\n", want: []string{`server.yaml:2: defaults.snapshots must be a whole number, and "many" is not`, "server.yaml:3: defaults.runnerCpu must be a number", "server.yaml:4: maintenance must be true or false", "server.yaml:5: proxy must have fields", "server.yaml:6: unenforced must be a list", "server.yaml:7: trustedProxies.0 must be an address with the length", "server.yaml:8: listen must be text"}},
		"a wrong URL":        {file: "listen: ':1'\nurl: ftp://x\n", want: []string{"server.yaml:2: ", "http or https"}},
		"a URL by variable":  {file: "url: http://x\n", env: []string{"APP_URL=ftp://x"}, want: []string{"environment variable APP_URL: ", "http or https"}},
		"a URL by flag":      {env: []string{"APP_URL=http://x"}, args: []string{"--url", "ftp://x"}, want: []string{"flag --url: ", "http or https"}},
		"a wrong listener":   {args: []string{"--listen", "4000"}, want: []string{"flag --listen: ", "with a port"}},
		"a short key":        {env: []string{"ENCRYPTION_KEY=short"}, want: []string{"environment variable ENCRYPTION_KEY: ", "at least 16 bytes"}},
		"a short token":      {file: "metrics: {token: short}\n", want: []string{"server.yaml:1: ", "at least 16 bytes"}},
		"wrong variables":    {env: []string{"DEFAULT_RUNNER_CPU=many", "MAINTENANCE_MODE=perhaps"}, want: []string{`environment variable DEFAULT_RUNNER_CPU = "many": must be a number`, "MAINTENANCE_MODE", "true or false"}},
		"a negative number":  {env: []string{"DEFAULT_RUNNER_CPU=-1"}, want: []string{"environment variable DEFAULT_RUNNER_CPU: ", "not negative"}},
		"a wrong port":       {env: []string{"PORT=70000"}, want: []string{"PORT", "from 0 to 65535"}},
		"half a limit":       {env: []string{"RATE_LIMIT_FAILED_AUTH_TTL=60"}, want: []string{"environment variable RATE_LIMIT_FAILED_AUTH_TTL: ", "failed-auth"}},
		"no such limit":      {file: "limits:\n  nobody: {ttl: 1, limit: 1}\n", want: []string{"server.yaml:2: ", "limits.nobody", "sandbox-create"}},
		"half of TLS":        {file: "tls:\n  cert: a.pem\n", want: []string{"server.yaml:2: ", "and key must both be set"}},
		"no certificate":     {file: "tls: {cert: a.pem, key: b.pem}\n", want: []string{"server.yaml:1: ", "a.pem"}},
		"an ACME wildcard":   {file: "tls: {acme: {domains: ['*.example.com']}}\n", want: []string{"wildcard"}},
		"a wrong database":   {env: []string{"DAYTONA_SERVER_DATABASE=mysql://u:hush@h/d"}, want: []string{"environment variable DAYTONA_SERVER_DATABASE: ", "mysql", "postgres:"}},
		"a wrong Redis":      {file: "redis: memcached://x\n", want: []string{"server.yaml:1: ", "redis://"}},
		"a wrong issuer":     {file: "oidc: {issuer: x}\n", want: []string{"server.yaml:1: ", "oidc.issuer"}},
		"a wrong level":      {env: []string{"LOG_LEVEL=loud"}, want: []string{"environment variable LOG_LEVEL: ", "debug, info, warn or error"}},
		"a wrong ratio":      {file: "tracing: {ratio: 2}\n", want: []string{"server.yaml:1: ", "from 0 to 1"}},
		"a wrong grace":      {file: "shutdown: {grace: -1}\n", want: []string{"server.yaml:1: ", "from 1 to 3600"}},
		"a wrong limit name": {file: "unenforced: [time]\n", want: []string{"server.yaml:1: ", "cpu, memory or disk"}},
		"no such file":       {args: []string{"--config", filepath.Join(dir, "none")}, want: []string{"none"}},
	} {
		args := []string{"--check-config", "--dir", filepath.Join(dir, "state")}
		if c.file != "" {
			if err := os.WriteFile(file, []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, "--config", file)
		}
		out, errs, code := run(c.env, append(args, c.args...)...)
		if len(c.want) == 0 && (code != 0 || !strings.Contains(out, "is right")) || len(c.want) > 0 && code == 0 {
			t.Errorf("%s: %q %q %d", name, out, errs, code)
		}
		for _, w := range c.want {
			if !strings.Contains(errs, w) {
				t.Errorf("%s: %q, want %q", name, errs, w)
			}
		}
		if strings.Contains(errs, "hush") {
			t.Errorf("%s: %q has a password", name, errs)
		}
	}

	// What it comes to is printed without what must not be seen.
	secrets := "encryptionKey: hush-hush-hush-hush\nadmin: {key: hush, password: hush, email: ada@example.com}\ndatabase: postgres://u:hush@h/d\nredis: redis://:hush@h\n" +
		"objects: {accessKey: hush, secretKey: hush}\nservices: {proxyKey: hush, sshGatewayKey: hush, collectorKey: hush, healthCheckKey: hush}\n" +
		"metrics: {token: hush-hush-hush-hush}\ntracing: {headers: {authorization: hush}}\n"
	if err := os.WriteFile(file, []byte(secrets), 0o600); err != nil {
		t.Fatal(err)
	}
	printed, errs, code := run([]string{"PORT=4321", "DEFAULT_ORG_QUOTA_SNAPSHOT_QUOTA=7"}, "--print-config", "--config", file, "--dir", filepath.Join(dir, "state"))
	if code != 0 || strings.Contains(printed, "hush") || !strings.Contains(printed, "ada@example.com") || !strings.Contains(printed, "listen: :4321") || !strings.Contains(printed, "snapshots: 7") {
		t.Errorf("%s %s %d", printed, errs, code)
	}
	// And it is a configuration itself.
	plain, errs, code := run(nil, "--print-config", "--dir", filepath.Join(dir, "state"))
	if err := os.WriteFile(file, []byte(plain), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, more, code2 := run(nil, "--print-config", "--config", file); code != 0 || code2 != 0 || again != plain {
		t.Errorf("%s\n%s\n%s %s", plain, again, errs, more)
	}
	if _, err := os.Stat(filepath.Join(dir, "state")); err == nil {
		t.Error("a configuration that is only checked leaves something behind")
	}

	at := []string{"--dir", filepath.Join(dir, "state")}
	var out string
	out, errs, code = run(nil, append([]string{"init", "--admin-key-file", filepath.Join(dir, "key")}, at...)...)
	key, err := os.ReadFile(filepath.Join(dir, "key"))
	if code != 0 || out != "" || err != nil || !strings.HasPrefix(string(key), "dtn_") {
		t.Fatalf("init: %q %q %d, %v", out, errs, code, err)
	}
	if st, _ := os.Stat(filepath.Join(dir, "key")); st.Mode().Perm() != 0o600 {
		t.Errorf("the key's file is %v", st.Mode())
	}
	if _, errs, code := run(nil, append([]string{"init", "--admin-key-file", filepath.Join(dir, "again")}, at...)...); code == 0 || !strings.Contains(errs, "already") {
		t.Errorf("a second init: %q %d", errs, code)
	}
	if _, err := os.Stat(filepath.Join(dir, "again")); err == nil {
		t.Error("a second init leaves a file without a key")
	}
	if out, errs, code := run(nil, append([]string{"migrate", "status"}, at...)...); code != 0 || !strings.Contains(out, "applied") || strings.Contains(out, "pending") {
		t.Errorf("migrate status: %q %q %d", out, errs, code)
	}
	if _, errs, code := run(nil, append([]string{"migrate", "sideways"}, at...)...); code == 0 || !strings.Contains(errs, "sideways") {
		t.Errorf("migrate sideways: %q %d", errs, code)
	}
}

// process is a server that runs as a process of its own.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	first  string // what it says when it serves
	log    *logFile
	stdout *bufio.Reader
}

// logFile is what a process says on standard error.
type logFile struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // closed and made anew with each piece
}

func (l *logFile) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	close(l.more)
	l.more = make(chan struct{})
	return len(b), nil
}

// await waits until something is said for the nth time.
func (l *logFile) await(t *testing.T, text string, n int) {
	t.Helper()
	late := time.After(patience)
	for {
		l.mu.Lock()
		said, more := strings.Count(l.text.String(), text), l.more
		l.mu.Unlock()
		if said >= n {
			return
		}
		select {
		case <-more:
		case <-late:
			t.Fatalf("%q was said %d times:\n%s", text, said, l.text.String())
		}
	}
}

// serve starts a server and waits until it serves.
func (s *shell) serve(args ...string) *process {
	s.t.Helper()
	p := &process{t: s.t, cmd: exec.Command(s.program, append([]string{"server"}, args...)...), log: &logFile{more: make(chan struct{})}}
	p.cmd.Dir, p.cmd.Env, p.cmd.Stderr = s.dir, s.env, p.log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.cmd.Process.Kill()
			p.cmd.Wait()
		}
	})
	p.stdout = bufio.NewReader(out)
	for !strings.Contains(p.first, "Serving ") {
		line, err := p.stdout.ReadString('\n')
		if p.first += line; err != nil {
			p.cmd.Wait()
			s.t.Fatalf("%s\n%s", p.first, p.log.text.String())
		}
	}
	return p
}

// end has the server end and waits for it.
func (p *process) end(s syscall.Signal) int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
	err := p.cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	} else if err != nil {
		p.t.Fatal(err)
	}
	return 0
}

// freePort is a port that nobody listens to.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// SIGHUP has a server read its configuration again and go on; SIGTERM ends it
// though somebody still waits for an answer.
func TestServerSignals(t *testing.T) {
	s := hostShell(t)
	port := freePort(t)
	file := filepath.Join(s.dir, "server.yaml")
	configure := func(level string) {
		if err := os.WriteFile(file, []byte("listen: '127.0.0.1:"+port+"'\nurl: 'http://127.0.0.1:"+port+"'\ndir: '"+filepath.Join(s.dir, "state")+"'\nbackend: none\nshutdown: {grace: 1}\nlog: {level: "+level+", format: json}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	configure("warn")
	p := s.serve("--config", file)
	get := func(path string) int {
		r, err := http.Get("http://127.0.0.1:" + port + path)
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		return r.StatusCode
	}
	if status := get("/api/config"); status != 200 {
		t.Errorf("%d", status)
	}
	if strings.Contains(p.log.text.String(), "ConfigController_getConfig") {
		t.Errorf("a request is in a log of warnings: %s", p.log.text.String())
	}
	configure("info")
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p.log.await(t, "were read again", 1)
	if status := get("/api/config"); status != 200 {
		t.Errorf("%d", status)
	}
	p.log.await(t, `"operation":"ConfigController_getConfig"`, 1)
	configure("loud")
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	p.log.await(t, "was not read again", 1)
	if status := get("/api/config"); status != 200 {
		t.Errorf("%d", status)
	}
	// A WebSocket is not what the end waits for.
	key := strings.Fields(strings.SplitN(p.first, "shown only now:", 2)[1])[0]
	socket, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	fmt.Fprintf(socket, "GET /api/socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", port)
	if line, err := bufio.NewReader(socket).ReadString('\n'); err != nil || !strings.Contains(line, "101") {
		t.Fatalf("%q %v", line, err)
	}
	if code := p.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d: %s", code, p.log.text.String())
	}
	if strings.Contains(p.log.text.String(), key) {
		t.Error("the key is in the log")
	}
}

// A server that is ended and started again, under a program that runs, finds the
// program where it was.
func TestServerRestart(t *testing.T) {
	s := localShell(t)
	port := freePort(t)
	backend := ""
	for _, e := range s.env {
		if v, ok := strings.CutPrefix(e, "DAYTONA_BACKEND="); ok {
			backend = v
		}
	}
	file := filepath.Join(s.dir, "server.yaml")
	if err := os.WriteFile(file, []byte("shutdown: {grace: 1}\nunenforced: [cpu, memory, disk] # which ordinary users can't\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--config", file, "--listen", "127.0.0.1:" + port, "--url", "http://localhost:" + port, "--dir", filepath.Join(s.dir, "state"), "--backend", backend}
	p := s.serve(args...)
	key := strings.Fields(strings.SplitN(p.first, "shown only now:", 2)[1])[0]
	b, err := remote.New(&remote.Options{URL: "http://localhost:" + port + "/api", Key: key})
	if err != nil {
		t.Fatal(err)
	}
	client := daytona.New(b)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// That it serves is said when its runner takes sandboxes.
	sb, err := client.Create(ctx, daytona.Spec{Name: "kept", Persistent: true})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := sb.Process().Exec(ctx, "(while :; do echo tick >>ticks; sleep 0.1; done) >/dev/null 2>&1 & echo $! >pid", nil); err != nil || r.ExitCode != 0 {
		t.Fatalf("%+v %v", r, err)
	}
	// One that is asked for when the end comes: it has an answer, or an error, and
	// is not waited for.
	asked := make(chan error, 1)
	go func() {
		_, err := sb.Process().Exec(ctx, "touch begun; sleep 100", nil)
		asked <- err
	}()
	for {
		if r, err := sb.Process().Exec(ctx, "test -e begun", nil); err != nil {
			t.Fatal(err)
		} else if r.ExitCode == 0 {
			break
		}
	}
	s.env = append(s.env, "LOG_LEVEL=warn")
	if code := p.end(syscall.SIGTERM); code != 0 {
		t.Fatalf("exit code %d: %s", code, p.log.text.String())
	}
	if err := <-asked; err == nil {
		t.Error("a program that sleeps for 100 s has ended")
	}
	p = s.serve(args...)
	if strings.Contains(p.first, "API key") {
		t.Errorf("a later start shows a key: %s", p.first)
	}
	for {
		r, err := sb.Process().Exec(ctx, "n=$(wc -l <ticks); for i in $(seq 100); do test $(wc -l <ticks) -gt $n && break; sleep 0.1; done; kill -0 $(cat pid) && echo alive", nil)
		if errors.Is(err, daytona.ErrUnavailable) && ctx.Err() == nil {
			continue // the runner has not said where the sandbox is yet
		}
		if err != nil || r.Output != "alive\n" {
			t.Errorf("after a restart: %+v %v", r, err)
		}
		break
	}
	if err := sb.Delete(ctx); err != nil {
		t.Error(err)
	}
	if code := p.end(syscall.SIGINT); code != 0 {
		t.Errorf("exit code %d: %s", code, p.log.text.String())
	}
}
