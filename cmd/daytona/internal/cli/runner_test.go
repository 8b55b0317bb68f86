package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRunnerConfiguration checks what a runner's configuration may be, and that
// the token that a server shows is one.
func TestRunnerConfiguration(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "runner.yaml")
	run := func(env []string, args ...string) (string, string, int) {
		t.Helper()
		s := hostShell(t)
		s.env = append(s.env, env...)
		r := s.run(args...)
		return r.stdout, r.stderr, r.code
	}
	server := []string{"--dir", filepath.Join(dir, "server")}
	add := append([]string{"server", "runner", "add", "one", "--url", "https://daytona.example.com"}, server...)
	token, errs, code := run(nil, add...)
	token = strings.TrimSpace(token)
	if code != 0 || !strings.HasPrefix(token, "dtj_") {
		t.Fatalf("add: %q %q %d", token, errs, code)
	}
	if out, errs, code := run(nil, add...); code == 0 || out != "" || !strings.Contains(errs, "already exists") {
		t.Errorf("a name that is taken: %q %q %d", out, errs, code)
	}
	if out, errs, code := run(nil, append([]string{"server", "runner", "add", "two", "--region", "none"}, server...)...); code == 0 || out != "" || !strings.Contains(errs, "Region") {
		t.Errorf("no such region: %q %q %d", out, errs, code)
	}
	for name, c := range map[string]struct {
		file string
		env  []string
		args []string
		want string // on standard output if it is right
		err  string // on standard error if not
	}{
		"nothing":        {err: "--join"},
		"a token":        {args: []string{"--join", token}, want: "https://daytona.example.com/api"},
		"by environment": {env: []string{"DAYTONA_RUNNER_JOIN=" + token}, want: "https://daytona.example.com/api"},
		"another URL":    {args: []string{"--join", token, "--url", "http://10.0.0.1:3000"}, want: "http://10.0.0.1:3000/api"},
		"URL and key":    {args: []string{"--join", "http://x.example/", "--token", "rnr_0123456789abcdef"}, want: "http://x.example/api"},
		"upstream":       {env: []string{"DAYTONA_API_URL=http://x.example/api", "DAYTONA_RUNNER_TOKEN=rnr_0123456789abcdef"}, want: "http://x.example/api"},
		"a file":         {file: "url: http://x.example\ntoken: rnr_0123456789abcdef\nhealth: 5s\nunenforced: [disk]\n", want: "http://x.example/api"},
		"no token":       {args: []string{"--join", "dtj_x"}, err: "the token is not one"},
		"no key":         {args: []string{"--url", "http://x.example"}, err: "--token"},
		"a wrong URL":    {args: []string{"--url", "ftp://x", "--token", "x"}, err: "http or https"},
		"unknown field":  {file: "tokn: x\n", err: "tokn"},
		"a wrong time":   {env: []string{"DAYTONA_RUNNER_JOIN=" + token, "POLL_TIMEOUT=soon"}, err: "POLL_TIMEOUT"},
		"a wrong limit":  {file: "join: " + token + "\nunenforced: [gpu]\n", err: "unenforced"},
		"half of TLS":    {args: []string{"--join", token, "--tls-cert", "a.pem"}, err: "cert and key"},
		"no certificate": {args: []string{"--join", token, "--tls-cert", "a.pem", "--tls-key", "a.key"}, err: "a.pem"},
		"no address":     {args: []string{"--join", token, "--listen", "3003"}, err: "listen"},
		"advertise":      {args: []string{"--join", token, "--advertise", "machine:3003"}, err: "advertise"},
	} {
		args := []string{"runner", "--check-config", "--dir", filepath.Join(dir, "state")}
		if c.file != "" {
			if err := os.WriteFile(file, []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, "--config", file)
		}
		out, errs, code := run(c.env, append(args, c.args...)...)
		switch {
		case c.err == "" && (code != 0 || !strings.Contains(out, "is right: a runner of "+c.want+",")):
			t.Errorf("%s: %q %q %d", name, out, errs, code)
		case c.err != "" && (code == 0 || !strings.Contains(errs, c.err)):
			t.Errorf("%s: %q %q %d, want %q", name, out, errs, code, c.err)
		}
		if secret := strings.TrimPrefix(token, "dtj_"); strings.Contains(out+errs, secret) || strings.Contains(out+errs, "0123456789abcdef") {
			t.Errorf("%s: it shows the key: %q %q", name, out, errs)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "state")); err == nil {
		t.Error("a configuration that is only checked leaves something behind")
	}
}
