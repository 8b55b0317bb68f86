//go:build linux

package docker_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/docker"
	"github.com/daytona-go/daytona/internal/agentbin"
)

// viaTransport are the checks of the conformance suite that transports may fail
// each in its own way: large and many transfers, ones that are broken off, all
// kinds of connections, the end of a sandbox, and other processes. The whole
// suite is run by setting DAYTONA_TEST_DOCKER_TRANSPORT.
var viaTransport = []string{
	"StopGraceful", "AdoptionOfProcesses", "SecondBackend", "FileBig", "FileCancel", "FileParallel",
	"CommandStdin", "CommandCancel", "CommandParallel", "PTY", "Dial", "DialPort", "DialPortServer",
}

func TestTransports(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	for _, transport := range []string{"port", "exec"} {
		t.Run(transport, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.run", "^TestConformance$/^("+strings.Join(viaTransport, "|")+")$")
			cmd.Env = append(os.Environ(), transportVariable+"="+transport)
			out, err := cmd.CombinedOutput()
			if n := bytes.Count(out, []byte("    --- PASS: TestConformance/")); err != nil || n < len(viaTransport) {
				t.Errorf("%v, %d of %d checks passed:\n%s", err, n, len(viaTransport), out)
			}
		})
	}
}

// opened is a backend on a state directory of its own.
func opened(t *testing.T, opts docker.Options) *daytona.Client {
	t.Helper()
	if why := missing(); why != "" {
		t.Skip(why)
	}
	if opts.Dir == "" {
		opts.Dir = t.TempDir()
	}
	if opts.Image == "" {
		opts.Image = sandboxImage()
	}
	c, err := docker.Open(t.Context(), &opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func created(t *testing.T, c *daytona.Client, spec daytona.Spec) daytona.Sandbox {
	t.Helper()
	sb, err := c.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return sb
}

func sh(t *testing.T, sb daytona.Sandbox, line string) string {
	t.Helper()
	r, err := sb.Process().Exec(t.Context(), line, nil)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return strings.TrimSpace(r.Output)
}

// recorded is what the state directory says of how a sandbox is reached.
func recorded(t *testing.T, dir string, sb daytona.Sandbox) (transport, key string, port int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "sandboxes", sb.ID(), "record.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Own struct {
			Transport, Key string
			Port           int
		}
	}
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return r.Own.Transport, r.Own.Key, r.Own.Port
}

// containerOf is the name of a sandbox's container.
func containerOf(t *testing.T, sb daytona.Sandbox) string {
	t.Helper()
	return dockerOut(t, "ps", "-a", "--filter", "label=io.github.daytona-go.sandbox="+sb.ID(), "--format", "{{.Names}}")
}

func dockerOut(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("docker", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("docker %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// TestPortIsClosed: who does not know the key gets nothing out of the port, be
// it another user of the machine, a neighbour or the sandbox itself, and no
// program of the sandbox finds the key.
func TestPortIsClosed(t *testing.T) {
	dir := t.TempDir()
	c := opened(t, docker.Options{Dir: dir, Transport: "port"})
	sb := created(t, c, daytona.Spec{User: "root"})
	neighbour := created(t, c, daytona.Spec{})
	transport, key, port := recorded(t, dir, sb)
	if transport != "port" || len(key) != 64 || port == 0 {
		t.Fatalf("%q, a key of %d digits, port %d", transport, len(key), port)
	}
	ask := func(address string) string {
		hc := &http.Client{Timeout: 5 * time.Second}
		req, _ := http.NewRequest("GET", "http://"+address+"/version", nil)
		req.Header.Set("Authorization", "Bearer "+key) // the key itself is not what is wanted there
		resp, err := hc.Do(req)
		if err != nil {
			return ""
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.Status + string(b)
	}
	if got := ask(fmt.Sprintf("127.0.0.1:%d", port)); got != "" && !strings.HasPrefix(got, "400") {
		t.Errorf("the port answers somebody else: %q", got)
	}
	name := containerOf(t, sb)
	ip := dockerOut(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", name)
	if got := ask(ip + ":2280"); got != "" && !strings.HasPrefix(got, "400") {
		t.Errorf("the container's address answers: %q", got)
	}
	if published := dockerOut(t, "port", name); published != fmt.Sprintf("2280/tcp -> 127.0.0.1:%d", port) {
		t.Errorf("published: %q", published)
	}
	const connect = `python3 -c 'import socket,sys
s = socket.socket(); s.settimeout(3)
try: s.connect((sys.argv[1], 2280)); print("connected")
except Exception as e: print("refused")' `
	for _, from := range []struct {
		what string
		sb   daytona.Sandbox
		ip   string
	}{{"loopback", sb, "127.0.0.1"}, {"its own address", sb, ip}, {"a neighbour", neighbour, ip}} {
		if got := sh(t, from.sb, connect+from.ip); got != "refused" {
			t.Errorf("the agent's port from %s: %s", from.what, got)
		}
	}
	// Root of the sandbox looks everywhere that it can.
	search := `cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | grep -c -e "$K" ; grep -r -s -l -e "$K" /run /tmp /etc /root /home /dev/shm /.daytona / --exclude-dir=proc --exclude-dir=sys | head`
	r, err := sb.Process().Exec(t.Context(), search, &daytona.ExecOptions{Env: map[string]string{"K": "[" + key[:1] + "]" + key[1:]}})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(r.Output); got != "0" {
		t.Errorf("the key is to be found in the sandbox: %q", got)
	}
	if strings.Contains(dockerOut(t, "inspect", name), key) {
		t.Error("the engine knows the key")
	}
	if err := sb.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := sb.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, again, _ := recorded(t, dir, sb); again == key || len(again) != 64 {
		t.Error("the key outlives the run")
	}
}

// TestRelay: a sandbox takes one `docker exec` for all requests, and another when
// its root has killed the first.
func TestRelay(t *testing.T) {
	dir := t.TempDir()
	c := opened(t, docker.Options{Dir: dir, Transport: "exec"})
	// Without a network, nothing else is possible.
	sb := created(t, c, daytona.Spec{User: "root", Network: daytona.NetworkPolicy{Block: true}})
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if r, err := sb.Process().Exec(t.Context(), "echo $((6*7))", nil); err != nil || r.Output != "42\n" {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	wg.Wait()
	const relays = `for p in /proc/[0-9]*; do case "$(tr '\0' ' ' <$p/cmdline)" in "/.daytona/daytona-agent relay "*) echo ${p#/proc/};; esac; done`
	one := strings.Fields(sh(t, sb, relays))
	if len(one) != 1 {
		t.Fatalf("relays: %q", one)
	}
	// It has no more rights than the agent, and nobody may look into it.
	if got := sh(t, sb, "grep CapBnd /proc/1/status; grep CapBnd /proc/"+one[0]+"/status; ls /proc/"+one[0]+"/fd 2>&1 | wc -l; cat /proc/"+one[0]+"/environ 2>&1 | head -c 300"); func() bool {
		lines := strings.Split(got, "\n")
		return len(lines) < 2 || lines[0] != lines[1] || !strings.Contains(got, "denied")
	}() {
		t.Errorf("the relay, to root of the sandbox: %s", got)
	}
	_, _ = sb.Process().Exec(t.Context(), "kill -9 "+one[0], nil) // its own answer may be lost
	if again := strings.Fields(sh(t, sb, relays)); len(again) != 1 || again[0] == one[0] {
		t.Errorf("after it was killed: %q, was %q", again, one)
	}
	if err := sb.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.Process().Exec(t.Context(), "true", nil); !errors.Is(err, daytona.ErrState) {
		t.Errorf("in a stopped sandbox: %v", err)
	}

	// Root puts a pipe where the engine reads the users: it locks itself out.
	other := created(t, c, daytona.Spec{User: "root"})
	_, _ = other.Process().Exec(t.Context(), `rm /etc/passwd && mkfifo /etc/passwd; kill -9 $(`+relays+`)`, nil)
	begin := time.Now()
	if _, err := other.Process().Exec(t.Context(), "true", nil); !errors.Is(err, daytona.ErrUnavailable) || !strings.Contains(err.Error(), "/etc/passwd") {
		t.Errorf("%v", err)
	}
	if err := other.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("that took %v", took)
	}
}

// forward is the test's engine on another address.
func forward(t *testing.T, address string) (host string) {
	t.Helper()
	socket := strings.TrimPrefix(os.Getenv("DOCKER_HOST"), "unix://")
	if socket == "" {
		socket = "/var/run/docker.sock"
	}
	if !strings.HasPrefix(socket, "/") {
		t.Skipf("the engine is not reached through a Unix socket: %s", socket)
	}
	l, err := net.Listen("tcp", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				e, err := net.Dial("unix", socket)
				if err != nil {
					return
				}
				defer e.Close()
				go func() {
					io.Copy(e, c)
					e.(*net.UnixConn).CloseWrite()
				}()
				io.Copy(c, e)
			}()
		}
	}()
	return "tcp://" + l.Addr().String()
}

// TestRemoteEngine: an engine at an address that is not of the loopback
// interface shares nothing with this process but the connection.
func TestRemoteEngine(t *testing.T) {
	if why := missing(); why != "" {
		t.Skip(why)
	}
	const address = "198.51.100.77" // for documentation: nobody has it
	if out, err := exec.Command("ip", "address", "add", address+"/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Skipf("an address: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("ip", "address", "del", address+"/32", "dev", "lo").Run() })
	host := forward(t, address)
	for _, transport := range []string{"socket", "port"} {
		if _, err := docker.New(t.Context(), &docker.Options{Host: host, Dir: t.TempDir(), Transport: transport}); !errors.Is(err, daytona.ErrUnsupported) {
			t.Errorf("transport %s: %v, want it refused", transport, err)
		}
	}
	dir := t.TempDir()
	c := opened(t, docker.Options{Host: host, Dir: dir})
	sb := created(t, c, daytona.Spec{Persistent: true})
	if transport, _, _ := recorded(t, dir, sb); transport != "exec" {
		t.Errorf("transport %q", transport)
	}
	if got := dockerOut(t, "inspect", "-f", `{{range .Mounts}}{{.Type}} {{end}}{{.HostConfig.PortBindings}}`, containerOf(t, sb)); strings.Contains(got, "bind") || !strings.HasSuffix(got, "map[]") {
		t.Errorf("the container has %s", got)
	}
	if got := sh(t, sb, "echo $((6*7))"); got != "42" {
		t.Errorf("%q", got)
	}
	if err := sb.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := sb.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := sh(t, sb, "echo $((6*7))"); got != "42" {
		t.Errorf("%q", got)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestProbing: the engine is one that sees nothing of the state directory, and
// whose ports are published on another loopback interface.
func TestProbing(t *testing.T) {
	dir := t.TempDir()
	e := newEngine(t, t.TempDir(), engineOptions{hide: dir})
	c := opened(t, docker.Options{Host: e.host, Dir: dir, Image: smallLayout(t)})
	for range 2 {
		sb := created(t, c, daytona.Spec{User: "root"})
		if transport, _, _ := recorded(t, dir, sb); transport != "exec" {
			t.Errorf("transport %q", transport)
		}
		if err := sb.FileSystem().WriteFile(t.Context(), "f", []byte("x"), 0); err != nil {
			t.Error(err)
		}
	}
	if n := len(strings.Fields(e.docker("ps", "-a", "-q"))); n != 2 {
		t.Errorf("%d containers: those of attempts are left", n)
	}
	forced := opened(t, docker.Options{Host: e.host, Dir: t.TempDir(), Image: smallLayout(t), Transport: "port"})
	if _, err := forced.Create(t.Context(), daytona.Spec{User: "root"}); !errors.Is(err, daytona.ErrUnavailable) || !strings.Contains(err.Error(), "Transport") {
		t.Errorf("transport port: %v, want it to be named", err)
	}
}

func TestTransportParameter(t *testing.T) {
	u, err := url.Parse("docker://?transport=pigeon")
	if err != nil {
		t.Fatal(err)
	}
	if why := missing(); why != "" {
		t.Skip(why)
	}
	if _, err := daytona.Open(t.Context(), u.String()); !errors.Is(err, daytona.ErrInvalid) || !strings.Contains(err.Error(), "pigeon") {
		t.Errorf("%v", err)
	}
}

// userVariable has TestAsUser be what it starts as an ordinary user.
const userVariable = "DAYTONA_TEST_DOCKER_USER"

// TestAsUser: who may use the engine need not be root.
func TestAsUser(t *testing.T) {
	if os.Getenv(userVariable) != "" {
		asUser(t)
		return
	}
	if why := missing(); why != "" {
		t.Skip(why)
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	copied := func(from, name string) string {
		t.Helper()
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, name)
		if err := os.WriteFile(to, b, 0o755); err != nil {
			t.Fatal(err)
		}
		return to
	}
	agent, err := agentbin.FindAgent(t.Context(), "", agentbin.CacheDir(dir))
	if err != nil {
		t.Fatal(err)
	}
	agent = copied(agent, "agent")
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	if err := os.Chown(home, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	// An archive, which one file is.
	image := filepath.Join(dir, "image.tar")
	archive(t, image)
	cmd := exec.CommandContext(t.Context(), copied(os.Args[0], "test"), "-test.v", "-test.run", "^TestAsUser$")
	cmd.Dir = home
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + home, "DOCKER_HOST=" + forward(t, "127.0.0.1"),
		"DAYTONA_AGENT=" + agent, userVariable + "=docker-archive:" + image}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestAsUser")) {
		t.Errorf("%v\n%s", err, out)
	}
}

func asUser(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Fatal("this is root")
	}
	if _, err := docker.New(t.Context(), &docker.Options{Transport: "socket"}); !errors.Is(err, daytona.ErrUnsupported) {
		t.Errorf("transport socket: %v, want it refused", err)
	}
	c, err := docker.Open(t.Context(), &docker.Options{Image: os.Getenv(userVariable)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sb := created(t, c, daytona.Spec{User: "root", Persistent: true})
	dir := filepath.Join(os.Getenv("HOME"), ".local", "share", "daytona-docker")
	if transport, _, _ := recorded(t, dir, sb); transport != "port" {
		t.Errorf("transport %q", transport)
	}
	if err := sb.FileSystem().WriteFile(t.Context(), "f", []byte("x"), 0); err != nil {
		t.Error(err)
	}
	if err := sb.Stop(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := sb.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err := sb.FileSystem().ReadFile(t.Context(), "f"); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	if err := sb.Delete(t.Context()); err != nil {
		t.Error(err)
	}
}
