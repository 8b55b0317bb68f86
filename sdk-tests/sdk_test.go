// Package sdktests runs programs that use a server through the official SDKs, in
// ways that their users do: ts/main.cjs and py/main.py, with sandboxes of the local
// engine and of a Docker engine. The programs know nothing
// of this module, only where the API is and the key; each of their checks is a
// subtest here. They fail as well when a public method of an SDK is called by no
// check, unless uncovered.json says why.
package sdktests

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"html"
	"io"
	stdlog "log"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/all"
	"github.com/daytona-go/daytona/internal/registrytest"
	multitenant "github.com/daytona-go/daytona/server"
)

// server is what the programs are run against.
type server struct {
	url, key string
	// own says that it is of this process, with a certificate of the authority.
	own bool
	// restricted is a key without permissions; "" if there is none.
	restricted string
	// limited is the API of a server that refuses after a few requests, and
	// limitedKey a key of it; "" if there is none.
	limited, limitedKey string
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

// backends are those that the programs' sandboxes are made on.
var backends = []struct {
	name, lacks string
	unenforced  []string
	// missing says why there can be none here; "" if there can.
	missing func() string
}{
	{name: "local", lacks: "domains,sandbox-secrets", missing: func() string { return "" }},
	{
		// The agent gives up the right to change the policy of a container that runs.
		name: "docker", lacks: "network,domains,sandbox-secrets",
		unenforced: []string{"disk"}, // overlay2 on ext4 gives containers no limit
		missing: func() string {
			switch {
			case exec.Command("docker", "info").Run() != nil:
				return "no Docker engine answers (docker info)"
			case image("default", "desktop") == "":
				return "DAYTONA_TEST_IMAGES has no image \"default\""
			}
			return ""
		},
	},
}

// image is the last of those with a tag that DAYTONA_TEST_IMAGES names; "" if it
// names none of them.
func image(tags ...string) (found string) {
	for _, tag := range tags {
		for ref := range strings.SplitSeq(os.Getenv("DAYTONA_TEST_IMAGES"), ",") {
			if strings.HasSuffix(ref, ":"+tag) {
				found = ref
			}
		}
	}
	return found
}

// inProcess starts a server in this process, with TLS and a backend, and says
// what it is. Where DAYTONA_TEST_IMAGES has an image "desktop", or "default",
// sandboxes are made from it, and a registry of this process has "slim", or the
// same, for what is built. limited is another server.
func inProcess(t *testing.T, b int, limited server) server {
	backend, dir := backends[b], t.TempDir()
	at := server{own: true, lacks: backend.lacks, limited: limited.url, limitedKey: limited.key}
	client, err := daytona.Open(t.Context(), backend.name+"://"+filepath.Join(dir, "sandboxes"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A server leaves sandboxes running; this one has no successor.
		for sb, err := range client.List(context.Background(), nil) {
			if err == nil {
				err = sb.Delete(context.Background())
			}
			if err != nil {
				t.Error(err)
			}
		}
		client.Close()
	})
	log := io.Discard
	if name := os.Getenv("DAYTONA_TEST_LOG"); name != "" {
		f, err := os.Create(name + "." + backend.name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		log = f
	}
	const password = "correct horse"
	c := multitenant.Config{
		Client: client, Log: slog.New(slog.NewTextHandler(log, nil)), AllowedAddresses: []string{"localhost"}, Unenforced: backend.unenforced,
		Admin: multitenant.AdminConfig{Email: "ada@example.com", Password: password},
	}
	if ref := image("default", "desktop"); ref != "" {
		c.Defaults.Image = "localhost/sandbox:1"
		c.Images = map[string]string{c.Defaults.Image: ref}
		at.image = registryWith(t, image("default", "slim"))
	} else {
		at.lacks += ",charts,lsp,images,build"
	}
	if image("desktop") != "" {
		at.desktop = "default"
	}
	at.url, at.key = serve(t, c)
	at.restricted = at.keyWithout(t, c.Admin.Email, password)
	at.await(t, "default")
	return at
}

// withLimits starts a server without a runner that refuses after a few requests.
func withLimits(t *testing.T) server {
	var s server
	s.url, s.key = serve(t, multitenant.Config{
		Log: slog.New(slog.DiscardHandler), Limits: multitenant.LimitsConfig{"authenticated": {TTL: 600, Limit: 4}},
	})
	return s
}

// serve runs a server with TLS and returns the URL of its API and the key of its
// first user. Its toolboxes are without: the synchronous Python SDK reads and
// writes a terminal's connection in two threads at once, which breaks TLS
// connections of CPython 3.11 every now and then.
func serve(t *testing.T, c multitenant.Config) (url, key string) {
	listen := func() (net.Listener, string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		return l, "localhost:" + port
	}
	l, host := listen()
	plain, plainHost := listen()
	c.URL, c.Proxy.ToolboxURL, c.Dir = "https://"+host, "http://"+plainHost, filepath.Join(t.TempDir(), "server")
	ctx, stop := context.WithCancel(context.Background())
	s, err := multitenant.New(ctx, c)
	if err != nil {
		stop()
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	h := &http.Server{Handler: s, TLSConfig: &tls.Config{Certificates: []tls.Certificate{authority.certificate}}, ErrorLog: stdlog.New(io.Discard, "", 0)}
	// Two: one that serves both ways at once may say that it has HTTP/2, and not have it.
	toolbox := &http.Server{Handler: s}
	go h.ServeTLS(l, "", "")
	go toolbox.Serve(plain)
	t.Cleanup(func() {
		h.Close()
		toolbox.Close()
		stop()
		<-ended
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return c.URL + "/api", s.AdminKey()
}

// ask asks the API, and fails unless it does what it is asked.
func (s server) ask(t *testing.T, method, path, token string, body, answer any, header ...string) {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	q, err := http.NewRequestWithContext(t.Context(), method, s.url+path, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Authorization", "Bearer "+token)
	q.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		q.Header.Set(header[i], header[i+1])
	}
	r, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	data, err = io.ReadAll(r.Body)
	if err == nil && r.StatusCode < 300 && answer != nil {
		err = json.Unmarshal(data, answer)
	}
	if err != nil || r.StatusCode >= 300 {
		t.Fatalf("%s %s: %d %s %v", method, path, r.StatusCode, data, err)
	}
}

// keyWithout makes an API key without permissions, which only who has logged in
// can do: as a browser does.
func (s server) keyWithout(t *testing.T, email, password string) string {
	t.Helper()
	base := strings.TrimSuffix(s.url, "/api")
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	// What the program that logs in is sent back to, on a port of its own.
	const back = "http://127.0.0.1:9/callback"
	browser := &http.Client{Jar: jar, CheckRedirect: func(q *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(q.URL.String(), back) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	app := oauth2.Config{
		ClientID: "daytona", RedirectURL: back, Scopes: []string{"openid", "profile", "email"},
		Endpoint: oauth2.Endpoint{AuthURL: base + "/oidc/authorize", TokenURL: base + "/oidc/oauth/token", AuthStyle: oauth2.AuthStyleInParams},
	}
	verifier := oauth2.GenerateVerifier()
	r, err := browser.Get(app.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier)))
	if err != nil {
		t.Fatal(err)
	}
	page, err := io.ReadAll(r.Body)
	r.Body.Close()
	form := url.Values{"email": {email}, "password": {password}}
	for _, m := range regexp.MustCompile(`type="hidden" name="([^"]*)" value="([^"]*)"`).FindAllSubmatch(page, -1) {
		form.Set(string(m[1]), html.UnescapeString(string(m[2])))
	}
	if err == nil {
		r, err = browser.PostForm(base+"/oidc/login", form)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	at, err := r.Location()
	if err != nil {
		t.Fatalf("logging in: %d %v, after %s", r.StatusCode, err, page)
	}
	token, err := app.Exchange(t.Context(), at.Query().Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		t.Fatal(err)
	}
	var mine []struct{ ID string }
	s.ask(t, "GET", "/organizations", token.AccessToken, nil, &mine)
	var key struct{ Value string }
	s.ask(t, "POST", "/api-keys", token.AccessToken, map[string]any{"name": "restricted", "permissions": []string{}}, &key,
		"X-Daytona-Organization-ID", mine[0].ID)
	return key.Value
}

// await waits until sandboxes can be made from a snapshot.
func (s server) await(t *testing.T, snapshot string) {
	t.Helper()
	for ; ; time.Sleep(50 * time.Millisecond) {
		var v struct{ State, ErrorReason string }
		s.ask(t, "GET", "/snapshots/"+snapshot, s.key, nil, &v)
		switch v.State {
		case "error":
			t.Fatalf("the snapshot %s: %s", snapshot, v.ErrorReason)
		case "active":
			return
		}
	}
}

// registryWith serves an image of those in OCI layouts and returns its reference.
func registryWith(t *testing.T, image string) string {
	t.Helper()
	images := registrytest.Start()
	t.Cleanup(images.Close)
	ref, err := images.Push(t.Context(), "sandbox", image[strings.Index(image, ":")+1:strings.LastIndex(image, ":")])
	if err != nil {
		t.Fatal(err)
	}
	return ref
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
	for _, name := range []string{"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"} {
		cmd.Env = append(cmd.Env, name+"="+authority.file)
	}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// TestPrograms runs every program against a server with each backend, those of a
// backend at once; or against the one that DAYTONA_TEST_API_URL says. DAYTONA_TEST_ONLY,
// a regular expression, chooses checks.
func TestPrograms(t *testing.T) {
	if url := os.Getenv("DAYTONA_TEST_API_URL"); url != "" {
		runAll(t, server{
			url: url, key: os.Getenv("DAYTONA_TEST_API_KEY"), restricted: os.Getenv("DAYTONA_TEST_RESTRICTED_KEY"),
			limited: os.Getenv("DAYTONA_TEST_LIMITED_API_URL"), limitedKey: os.Getenv("DAYTONA_TEST_LIMITED_API_KEY"),
			lacks: os.Getenv("DAYTONA_TEST_API_LACKS"), desktop: os.Getenv("DAYTONA_TEST_API_DESKTOP"), image: os.Getenv("DAYTONA_TEST_API_IMAGE"),
		})
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("the backends have all that this takes as root only; set DAYTONA_TEST_API_URL and DAYTONA_TEST_API_KEY")
	}
	limited := withLimits(t)
	for i, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			if why := b.missing(); why != "" {
				t.Skip(why)
			}
			runAll(t, inProcess(t, i, limited))
		})
	}
}

func runAll(t *testing.T, s server) {
	each(t, func(t *testing.T, command []string) {
		for flag, value := range map[string]string{"--lacks": s.lacks, "--desktop": s.desktop, "--image": s.image, "--only": os.Getenv("DAYTONA_TEST_ONLY")} {
			if value != "" {
				command = append(command, flag, value)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if s.own {
			command = append([]string{"unshare", "--mount", "sh", "-c", `mount --bind "$0" ` + systemCAs + ` && exec "$@"`, authority.file}, command...)
		}
		cmd := start(ctx, t, command, "DAYTONA_API_URL="+s.url, "DAYTONA_API_KEY="+s.key, "DAYTONA_TEST_RESTRICTED_KEY="+s.restricted,
			"DAYTONA_TEST_LIMITED_API_URL="+s.limited, "DAYTONA_TEST_LIMITED_API_KEY="+s.limitedKey)
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
		if checks < 10 && os.Getenv("DAYTONA_TEST_ONLY") == "" {
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
