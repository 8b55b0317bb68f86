package build_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
	"golang.org/x/sys/unix"
)

// TestContextSpecialFiles: sockets, pipes and devices are refused by name, in a
// context that BuildKit reads in place and in one that is put together, unless
// .dockerignore leaves them out.
func TestContextSpecialFiles(t *testing.T) {
	base(t)
	c := open(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	contexts := map[string]func(string) daytona.BuildContext{
		"in place": func(d string) daytona.BuildContext { return daytona.BuildContext{Source: d, Path: "."} },
		"copied":   func(d string) daytona.BuildContext { return daytona.BuildContext{Files: os.DirFS(d), Path: "."} },
	}
	for what, make := range map[string]func(string) error{
		"socket": func(p string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p})
			if err == nil {
				l.SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		},
		"pipe":   func(p string) error { return unix.Mkfifo(p, 0o600) },
		"device": func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
	} {
		odd := filepath.Join(dir, "odd-"+what)
		if err := make(odd); err != nil {
			t.Fatal(err)
		}
		for how, context := range contexts {
			build := func() error {
				_, err := c.Build(t.Context(), daytona.NewImage("FROM scratch\nCOPY . /\n", context(dir)), daytona.BuildOptions{})
				return err
			}
			if err := build(); !errors.Is(err, daytona.ErrInvalid) || !strings.Contains(err.Error(), "odd-"+what) || !strings.Contains(err.Error(), "a "+what) {
				t.Errorf("a %s %s: %v", what, how, err)
			}
			ignore := filepath.Join(dir, ".dockerignore")
			if err := os.WriteFile(ignore, []byte("odd-*\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := build(); err != nil {
				t.Errorf("an ignored %s %s: %v", what, how, err)
			}
			if err := os.Remove(ignore); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Remove(odd); err != nil {
			t.Fatal(err)
		}
	}
}
