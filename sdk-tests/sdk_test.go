// Package sdktests runs programs that use a server through the official SDKs, in
// ways that their users do: ts/main.cjs and py/main.py. The programs know nothing
// of this module, only where the API is and the key; each of their checks is a
// subtest here. They fail as well when a public method of an SDK is called by no
// check, unless uncovered.json says why.
package sdktests

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/all"
	"github.com/daytona-go/daytona/internal/registrytest"
	multitenant "github.com/daytona-go/daytona/server"
)

// server is what the programs are run against.
type server struct {
	url, key string
	// restricted is a key without permissions; "" if there is none.
	restricted string
	// lacks are the capabilities that it does not have: such as "charts", "lsp",
	// "javascript", "git" (of its default snapshot), "network", "domains", "resize", "pause",
	// "fork", "archive", "sandbox-snapshot", "images", "build", "volumes", "secrets",
	// "sandbox-secrets",
	// "warm-pools" and "timers", which take minutes.
	lacks string
	// desktop is a snapshot with a desktop; "" if there is none.
	desktop string
	// image is of a registry, for what is built. Defaults to debian:12-slim.
	image string
}

// inProcess starts a server in this process, with the local engine, and says
// what it is. Where DAYTONA_TEST_IMAGES has an image "default", sandboxes are
// made from it, and a registry of this process has it for what is built. It
// skips the test where there can be no server.
func inProcess(t *testing.T) server {
	if os.Geteuid() != 0 {
		t.Skip("the local engine has all that this takes as root only; set DAYTONA_TEST_API_URL and DAYTONA_TEST_API_KEY")
	}
	dir := t.TempDir()
	lacks, img := "charts,lsp,images,build,domains,sandbox-secrets,timers", ""
	for ref := range strings.SplitSeq(os.Getenv("DAYTONA_TEST_IMAGES"), ",") {
		if layout, ok := strings.CutSuffix(ref, ":default"); ok {
			images := registrytest.Start()
			t.Cleanup(images.Close)
			ref, err := images.Push(t.Context(), "sandbox", strings.TrimPrefix(layout, "oci:"))
			if err != nil {
				t.Fatal(err)
			}
			lacks, img = "domains,sandbox-secrets,timers", ref
		}
	}
	client, err := daytona.Open(t.Context(), "local://"+filepath.Join(dir, "sandboxes"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	log := io.Discard
	if name := os.Getenv("DAYTONA_TEST_LOG"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		log = f
	}
	ctx, stop := context.WithCancel(context.Background())
	s, err := multitenant.New(ctx, multitenant.Config{
		URL: "http://localhost:" + port, Dir: filepath.Join(dir, "server"), Client: client, Log: slog.New(slog.NewTextHandler(log, nil)),
		AllowedAddresses: []string{"localhost"},
		Defaults:         multitenant.DefaultsConfig{Image: img},
	})
	if err != nil {
		stop()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	h := &http.Server{Handler: s}
	go h.Serve(l)
	t.Cleanup(func() {
		h.Close()
		stop()
		<-ended
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	at := server{url: "http://localhost:" + port + "/api", key: s.AdminKey(), lacks: lacks, image: img}
	at.await(t, "default")
	return at
}

// await waits until sandboxes can be made from a snapshot.
func (s server) await(t *testing.T, snapshot string) {
	t.Helper()
	for ; ; time.Sleep(50 * time.Millisecond) {
		q, err := http.NewRequestWithContext(t.Context(), "GET", s.url+"/snapshots/"+snapshot, nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Authorization", "Bearer "+s.key)
		r, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		var v struct{ State, ErrorReason string }
		err = json.NewDecoder(r.Body).Decode(&v)
		r.Body.Close()
		switch {
		case err != nil || v.State == "error":
			t.Fatalf("the snapshot %s: %+v, %v", snapshot, v, err)
		case v.State == "active":
			return
		}
	}
}

func underTest(t *testing.T) server {
	if url := os.Getenv("DAYTONA_TEST_API_URL"); url != "" {
		return server{
			url: url, key: os.Getenv("DAYTONA_TEST_API_KEY"), restricted: os.Getenv("DAYTONA_TEST_RESTRICTED_KEY"),
			lacks: os.Getenv("DAYTONA_TEST_API_LACKS"), desktop: os.Getenv("DAYTONA_TEST_API_DESKTOP"), image: os.Getenv("DAYTONA_TEST_API_IMAGE"),
		}
	}
	return inProcess(t)
}

// programs are run with the SDK that a variable says the place of; see
// testdata/sdk/install.sh.
var programs = []struct {
	name, variable string
	command        func(where string) []string
}{
	{"ts", "DAYTONA_TEST_SDK_TS", func(where string) []string { return []string{"node", "ts/main.cjs", where} }},
	{"ts190", "DAYTONA_TEST_SDK_TS190", func(where string) []string { return []string{"node", "ts/main.cjs", where} }},
	{"py", "DAYTONA_TEST_SDK_PY", func(where string) []string { return []string{where, "py/main.py"} }},
	{"py-async", "DAYTONA_TEST_SDK_PY", func(where string) []string { return []string{where, "py/main.py", "--async"} }},
}

// each runs a subtest for each program whose SDK is there.
func each(t *testing.T, f func(t *testing.T, command []string)) {
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			where := os.Getenv(p.variable)
			if where == "" {
				t.Skipf("%s does not say where the SDK is", p.variable)
			}
			t.Parallel()
			f(t, p.command(where))
		})
	}
}

// start is a program's command, with nothing of this process's environment but
// what programs need.
func start(ctx context.Context, t *testing.T, command []string, env ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TMPDIR=" + t.TempDir(), "PYTHONDONTWRITEBYTECODE=1", "LANG=C.UTF-8"}, env...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// TestPrograms runs every program against the server, all at once.
func TestPrograms(t *testing.T) {
	s := underTest(t)
	each(t, func(t *testing.T, command []string) {
		for flag, value := range map[string]string{"--lacks": s.lacks, "--desktop": s.desktop, "--image": s.image} {
			if value != "" {
				command = append(command, flag, value)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		cmd := start(ctx, t, command, "DAYTONA_API_URL="+s.url, "DAYTONA_API_KEY="+s.key, "DAYTONA_TEST_RESTRICTED_KEY="+s.restricted)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		checks := 0
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var c struct {
				Name           string
				OK             bool
				MS             int
				Error, Skipped string
			}
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil || c.Name == "" {
				t.Errorf("not a check: %s", lines.Bytes())
				continue
			}
			checks++
			t.Run(c.Name, func(t *testing.T) {
				switch {
				case !c.OK:
					t.Errorf("%s (after %d ms)", c.Error, c.MS)
				case c.Skipped != "":
					t.Skip(c.Skipped)
				}
			})
		}
		if err := lines.Err(); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil && !t.Failed() {
			t.Errorf("no check has failed, but the program: %v: %s", err, stderr.String())
		}
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("standard error: %s", stderr.String())
		}
		if checks < 10 {
			t.Errorf("%d checks", checks)
		}
	})
}

// TestLists: a program says what it checks without a server.
func TestLists(t *testing.T) {
	each(t, func(t *testing.T, command []string) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := start(ctx, t, append(command, "--list")).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		seen := map[string]bool{}
		for name := range strings.FieldsFuncSeq(string(out), func(r rune) bool { return r == '\n' }) {
			if seen[name] {
				t.Errorf("two checks are called %s", name)
			}
			seen[name] = true
		}
		for _, name := range []string{"sandbox/create", "exec/command", "files/100 MiB streamed", "coverage"} {
			if !seen[name] {
				t.Errorf("there is no %s among %d", name, len(seen))
			}
		}
		// Without a server's address it must not go to anybody's.
		if out, err := start(ctx, t, command).CombinedOutput(); err == nil {
			t.Errorf("without a server: %s", out)
		}
	})
}

// TestUncovered: each exception has a reason, and belongs to a program.
func TestUncovered(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("uncovered.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]map[string]struct{ Why, Lacks string }
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		for method, reason := range all[p.name] {
			if reason.Why == "" {
				t.Errorf("%s: %s is excused without a reason", p.name, method)
			}
		}
		delete(all, p.name)
	}
	for name := range all {
		t.Errorf("there is no program %s", name)
	}
}
