package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// cgroups hands out child cgroups of a delegated cgroup v2 directory, one to a
// command. Empty ones are used again: making one costs more than starting a
// program. A nil *cgroups, and a nil *cgroup, is no cgroup at all.
type cgroups struct {
	path string

	mu       sync.Mutex
	disabled bool
	next     int
	// idle are empty; left have lost their command but not all of their
	// processes.
	idle, left []*cgroup
}

// cgroup is the cgroup of one command.
type cgroup struct {
	path string
	// dir and events are descriptors, open while it exists.
	dir, events int
	// uses counts the commands that had it.
	uses int
	// spent says that it has been killed. Linux 6.18 then kills at birth
	// whatever is cloned into it, so it is not used again.
	spent bool
}

// membership is the use of a cgroup by one command. It is worth nothing once
// the cgroup has gone to another.
type membership struct {
	*cgroup
	owner *cgroups
	use   int
}

const (
	// idleCgroups is how many empty cgroups are kept.
	idleCgroups = 16
	// sweepCgroups is how many left ones are looked at per command, so that
	// ten thousand background servers do not slow down each new one.
	sweepCgroups = 8
)

func newCgroups(path string) (*cgroups, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return nil, fmt.Errorf("cgroup directory %s: %w", path, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil, fmt.Errorf("cgroup directory %s: not a cgroup v2 file system", path)
	}
	c := &cgroups{path: path}
	// Those of an agent that was killed; populated ones refuse.
	old, _ := filepath.Glob(filepath.Join(path, "cmd-*"))
	for _, p := range old {
		_ = unix.Rmdir(p)
	}
	g, err := c.create()
	if err != nil {
		return nil, err
	}
	if err := unix.Access(filepath.Join(g.path, "cgroup.kill"), unix.W_OK); err != nil {
		g.remove()
		return nil, fmt.Errorf("cgroup directory %s: no cgroup.kill, which Linux has since 5.14: %w", path, err)
	}
	c.idle = append(c.idle, g)
	return c, nil
}

func (c *cgroups) create() (*cgroup, error) {
	for {
		c.next++
		g := &cgroup{path: filepath.Join(c.path, "cmd-"+strconv.Itoa(c.next))}
		err := os.Mkdir(g.path, 0o755)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("make cgroup: %w", err)
		}
		g.dir, g.events = -1, -1
		if g.dir, err = unix.Open(g.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err == nil {
			g.events, err = unix.Openat(g.dir, "cgroup.events", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		if err != nil {
			g.remove()
			return nil, fmt.Errorf("open cgroup: %w", err)
		}
		return g, nil
	}
}

// acquire returns an empty cgroup, or nil.
func (c *cgroups) acquire() *membership {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.disabled {
		return nil
	}
	c.sweep()
	for len(c.idle) > 0 {
		n := len(c.idle)
		g := c.idle[n-1]
		c.idle = c.idle[:n-1]
		if g.spent { // killed after its command had ended and before it was used again
			g.remove()
			continue
		}
		g.uses++
		return &membership{cgroup: g, owner: c, use: g.uses}
	}
	g, err := c.create()
	if err != nil {
		// For instance cgroup.max.descendants: this command has to do
		// without.
		return nil
	}
	g.uses++
	return &membership{cgroup: g, owner: c, use: g.uses}
}

// leave takes back the cgroup of a command that has ended. What the command
// left running keeps it until a later sweep.
func (c *cgroups) leave(m *membership) {
	if c == nil || m == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.left = append(c.left, m.cgroup)
	c.sweep()
}

func (c *cgroups) sweep() {
	for range min(len(c.left), sweepCgroups) {
		g := c.left[0]
		c.left = c.left[1:]
		switch {
		case g.populated():
			c.left = append(c.left, g)
		case len(c.idle) < idleCgroups && !c.disabled && !g.spent:
			c.idle = append(c.idle, g)
		default:
			g.remove()
		}
	}
}

func (c *cgroups) disable() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.disabled = true
	for _, g := range c.idle {
		g.remove()
	}
	c.idle = nil
}

func (c *cgroups) close() {
	c.disable()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.left {
		g.remove()
	}
	c.left = nil
}

// populated says whether a living process is in g.
func (g *cgroup) populated() bool {
	var buf [256]byte
	n, _ := unix.Pread(g.events, buf[:], 0)
	return n <= 0 || !bytes.Contains(buf[:n], []byte("populated 0"))
}

// kill kills everything in m.
func (m *membership) kill() {
	if m == nil {
		return
	}
	m.owner.mu.Lock()
	defer m.owner.mu.Unlock()
	if m.use == m.uses {
		m.spent = true
		_ = os.WriteFile(filepath.Join(m.path, "cgroup.kill"), []byte("1"), 0)
	}
}

// members returns the processes in m.
func (m *membership) members() map[int]bool {
	if m == nil {
		return nil
	}
	m.owner.mu.Lock()
	defer m.owner.mu.Unlock()
	if m.use != m.uses {
		return nil
	}
	b, _ := os.ReadFile(filepath.Join(m.path, "cgroup.procs"))
	in := make(map[int]bool)
	for f := range strings.FieldsSeq(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil {
			in[pid] = true
		}
	}
	return in
}

func (g *cgroup) remove() {
	if g.dir >= 0 {
		unix.Close(g.dir)
	}
	if g.events >= 0 {
		unix.Close(g.events)
	}
	g.uses++
	_ = unix.Rmdir(g.path)
}
