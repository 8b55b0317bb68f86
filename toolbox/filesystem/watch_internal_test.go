package filesystem

import (
	"path"
	"strings"
	"testing"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// FuzzChanges makes and removes files, and demands that a client that knows
// nothing but the changes, however they are cut into windows, knows in the end
// which files there are.
func FuzzChanges(f *testing.F) {
	f.Add("aAbBraRab/wa/mb/")
	f.Add("a.A.a/wa/Ra/b.rab.Ab.")
	f.Fuzz(func(t *testing.T, script string) {
		c := changes{ready: make(chan struct{}, 1), ended: make(chan struct{})}
		there, told := map[string]bool{}, map[string]bool{}
		apply := func() {
			list, _ := c.take()
			for _, e := range list {
				switch e.Type {
				case wire.ChangeCreate:
					told[e.Path] = true
				case wire.ChangeRemove:
					// It may be of a file that was renamed to there and removed.
					delete(told, e.Path)
				case wire.ChangeRename:
					if !told[e.OldPath] {
						t.Fatalf("%q was not there: %+v", e.OldPath, list)
					}
					delete(told, e.OldPath)
					told[e.Path] = true
				default:
					if !told[e.Path] {
						t.Fatalf("%q is not there: %+v", e.Path, list)
					}
				}
			}
		}
		names := []string{"/x", "/y", "/z"}
		for i := 0; i+1 < len(script); i += 2 {
			a, b := names[int(script[i+1])%3], names[int(script[i+1]/3)%3]
			switch script[i] % 6 {
			case 0, 1:
				if !there[a] {
					there[a] = true
					c.add(wire.FileChange{Type: wire.ChangeCreate, Path: a})
				}
			case 2:
				if there[a] {
					delete(there, a)
					c.add(wire.FileChange{Type: wire.ChangeRemove, Path: a})
				}
			case 3:
				if there[a] && a != b {
					delete(there, a)
					there[b] = true
					c.add(wire.FileChange{Type: wire.ChangeRename, OldPath: a, Path: b})
				}
			case 4:
				if there[a] {
					c.add(wire.FileChange{Type: []string{wire.ChangeWrite, wire.ChangeAttributes}[i%2], Path: a})
				}
			case 5:
				apply()
			}
		}
		apply()
		for _, name := range names {
			if there[name] != told[name] {
				t.Errorf("%s: there is %v, told was %v, after %q", name, there[name], told[name], script)
			}
		}
	})
}

func FuzzCommon(f *testing.F) {
	f.Add("/a/b", "/a/bc")
	f.Add("/", "/x")
	f.Fuzz(func(t *testing.T, a, b string) {
		a, b = path.Clean("/"+a), path.Clean("/"+b)
		got := common(a, b)
		for _, p := range []string{a, b} {
			if p != got && !strings.HasPrefix(p, strings.TrimSuffix(got, "/")+"/") {
				t.Errorf("common(%q, %q) = %q", a, b, got)
			}
		}
	})
}
