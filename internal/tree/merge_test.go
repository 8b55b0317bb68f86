//go:build linux

package tree

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// stack is an overlay of directories, as the engine mounts it.
type stack struct {
	t      *testing.T
	base   string
	lowers []string // the lowest first
	n      int
}

func (s *stack) dir(name string) string {
	s.t.Helper()
	d := filepath.Join(s.base, fmt.Sprint(name, s.n))
	s.n++
	if err := os.Mkdir(d, 0o755); err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *stack) with(lowers []string, upper string, f func(root string)) {
	s.t.Helper()
	lowers = slices.Clone(lowers)
	slices.Reverse(lowers)
	options := "userxattr,lowerdir=" + strings.Join(lowers, ":")
	if upper != "" {
		options += ",upperdir=" + upper + ",workdir=" + s.dir("work")
	}
	root := s.dir("root")
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		s.t.Skipf("no overlay can be mounted here: %v", err)
	}
	defer unix.Unmount(root, unix.MNT_DETACH)
	f(root)
}

// layer runs a script in the stack, whose changes become its next layer.
func (s *stack) layer(script string) {
	s.t.Helper()
	upper := s.dir("upper")
	s.with(s.lowers, upper, func(root string) {
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			s.t.Fatalf("%v: %s\n%s", err, out, script)
		}
	})
	s.lowers = append(s.lowers, upper)
}

// show lists all that is seen in a directory: the names as readdir has them, and
// what is behind each. It does not say how many links a file has, where the kernel
// counts those that nobody sees any more, but which files are one.
func show(t *testing.T, root string) string {
	t.Helper()
	script := `find . -mindepth 1 -type d -exec sh -c 'for d; do echo "$d: $(ls -A -U "$d" | sort | tr "\n" " ")"; done' - {} +
		ls -A -U . | sort
		find . -type d -printf '%p %y %m %U %G %T@\n' -o -printf '%p %y %m %U %G %s %T@ %l\n'
		find . -type f -exec sha256sum {} +
		find . -type f -links +1 -printf '%i %p\n' | sort -k 2 | awk '{s[$1] = s[$1] " " $2; n[$1]++} END {for (i in s) if (n[i] > 1) print "links:" s[i]}'
		find . -mindepth 1 ! -type l ! -type p -exec getfattr -h -d -m '^user\.x' {} + 2>/dev/null || true`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(string(out), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// check merges the layers above the first, and compares what is seen.
func (s *stack) check() {
	s.t.Helper()
	dst, work := s.dir("merged"), s.dir("work")
	if _, err := Merge(s.t.Context(), dst, work, s.lowers[:1], s.lowers[1:]); err != nil {
		s.t.Fatal(err)
	}
	if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
		s.t.Errorf("the work directory has %v, %v", left, err)
	}
	var want, got string
	s.with(s.lowers, "", func(root string) { want = show(s.t, root) })
	merged := []string{s.lowers[0], dst}
	s.with(merged, "", func(root string) { got = show(s.t, root) })
	s.with(merged, s.dir("upper"), func(root string) {
		// Directories can still be emptied and removed.
		if out, err := exec.Command("find", root, "-mindepth", "1", "-delete").CombinedOutput(); err != nil {
			s.t.Errorf("removing all: %v %s", err, out)
		}
	})
	if got != want {
		s.t.Errorf("merged:\n%s\n\nwant:\n%s", got, want)
	}
}

func newStack(t *testing.T) *stack {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root may mount")
	}
	s := &stack{t: t, base: t.TempDir()}
	s.lowers = []string{s.dir("image")}
	return s
}

// TestMerge has all that hides something.
func TestMerge(t *testing.T) {
	s := newStack(t)
	cmd := exec.Command("sh", "-c", "mkdir -p a/b/c d e f g/h; echo 1 >a/1; echo 2 >a/b/2; echo 3 >a/b/c/3; echo x >d/x; echo y >e/y; echo z >f/z; echo h >g/h/h; chmod 1777 d; chown 5:6 e")
	cmd.Dir = s.lowers[0]
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.layer("mkdir n n/m; echo n >n/n; echo o >n/m/o; echo p >n/p; ln n/n n/link; rm a/1; rm -r d; mkdir d; echo new >d/new; echo 3 >>a/b/c/3; ln -s nowhere s; mkfifo -m 600 p")
	s.layer("rm n/n; rm -r n/m; mkdir n/m; echo q >n/m/q; rm -r a/b; echo file >a/b; rm -r f; ln -s e f; chmod 700 e; touch -d @77 e; setfattr -n user.x -v 1 e/y || true")
	s.layer("rm a/b; mkdir a/b; echo again >a/b/4; rm s; mkdir s; echo in >s/in; rm d/new; truncate -s 10M sparse; cp /bin/sh n/prog; chmod 4755 n/prog; mv n/p n/moved")
	s.layer("rm -r g; echo 1 >g; rm n/m/q; rm n/link; ln n/prog n/prog2; rm -r s; chown 7:8 n")
	s.layer("rm g; mkdir -p g/h; echo other >g/h/other; rm f; mkdir f; touch -d @99 n a; rm -r e")
	s.check()
}

// TestMergeRandom compares random histories with what the kernel makes of them.
func TestMergeRandom(t *testing.T) {
	rounds := 8
	if testing.Short() {
		rounds = 3
	}
	for seed := range uint64(rounds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 7))
			name := func() string {
				parts := []string{}
				for range 1 + r.IntN(3) {
					parts = append(parts, string(rune('a'+r.IntN(4))))
				}
				return strings.Join(parts, "/")
			}
			script := func(n int) string {
				var b strings.Builder
				b.WriteString("exec 2>/dev/null\n")
				for range n {
					x, y := name(), name()
					switch r.IntN(9) {
					case 0, 1:
						fmt.Fprintf(&b, "mkdir -p %s\n", x)
					case 2, 3:
						fmt.Fprintf(&b, "(echo %d >%s)\n", r.IntN(1000), x)
					case 4:
						fmt.Fprintf(&b, "rm -rf %s\n", x)
					case 5:
						fmt.Fprintf(&b, "test -d %s || (rm -rf %s; ln %s %s)\n", x, y, x, y)
					case 6:
						fmt.Fprintf(&b, "rm -rf %s; ln -s %s %s\n", x, y, x)
					case 7:
						fmt.Fprintf(&b, "chmod %o %s; chown %d:0 %s; touch -h -d @%d %s\n", 0o700|r.IntN(0o100), x, r.IntN(9), x, r.IntN(100000), x)
					case 8:
						fmt.Fprintf(&b, "rm -rf %s; mkdir -p %s; (echo %d >%s/a)\n", x, x, r.IntN(1000), x)
					}
				}
				b.WriteString("true\n")
				return b.String()
			}
			s := newStack(t)
			cmd := exec.Command("sh", "-c", script(30))
			cmd.Dir = s.lowers[0]
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for range 2 + r.IntN(7) {
				s.layer(script(12))
			}
			s.check()
		})
	}
}
