package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		want string // on standard error; "" if it is right
	}{
		"nothing":        {want: ""},
		"a file":         {file: "listen: ':4000'\nurl: https://x.example\nlimits: {authenticated: {ttl: 60, limit: 10}}\n"},
		"unknown field":  {file: "lissten: x\n", want: "lissten"},
		"no YAML":        {file: "{", want: "server.yaml"},
		"a wrong URL":    {file: "url: ftp://x\n", want: "http or https"},
		"a short key":    {env: []string{"ENCRYPTION_KEY=short"}, want: "at least 16 bytes"},
		"a wrong number": {env: []string{"DEFAULT_RUNNER_CPU=many"}, want: "DEFAULT_RUNNER_CPU"},
		"half a limit":   {env: []string{"RATE_LIMIT_FAILED_AUTH_TTL=60"}, want: "failed-auth"},
		"half of TLS":    {file: "tls: {cert: a.pem}\n", want: "cert and key"},
		"no such file":   {args: []string{"--config", filepath.Join(dir, "none")}, want: "none"},
	} {
		args := []string{"--check-config", "--dir", filepath.Join(dir, "state")}
		if c.file != "" {
			if err := os.WriteFile(file, []byte(c.file), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append(args, "--config", file)
		}
		out, errs, code := run(c.env, append(args, c.args...)...)
		switch {
		case c.want == "" && (code != 0 || !strings.Contains(out, "is right")):
			t.Errorf("%s: %q %q %d", name, out, errs, code)
		case c.want != "" && (code == 0 || !strings.Contains(errs, c.want)):
			t.Errorf("%s: %q %q %d, want %q", name, out, errs, code, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "state")); err == nil {
		t.Error("a configuration that is only checked leaves something behind")
	}

	at := []string{"--dir", filepath.Join(dir, "state")}
	out, errs, code := run(nil, append([]string{"init", "--admin-key-file", filepath.Join(dir, "key")}, at...)...)
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
