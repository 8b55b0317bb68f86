//go:build linux

package tree

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const opaque = "user.overlay.opaque"

// Merge makes one layer of several: in the empty directory dst what an overlay
// shows that has srcs, the lowest first, as its lower directories, with the
// whiteouts and opaque directories that hide what is in below, the directories
// that dst is to lie on, the lowest first. It keeps what [Copy] keeps; work is as
// there. Nobody may change any of them meanwhile.
//
// A whiteout in a directory that is merged with none of below is left out: an
// overlay lists such a directory as it is, the whiteout included.
func Merge(ctx context.Context, dst, work string, below, srcs []string) (Stats, error) {
	c := &copier{ctx: ctx, max: 5_000_000, clone: true}
	// From the top: what is there already hides what comes.
	for i := len(srcs) - 1; i >= 0; i-- {
		c.links, c.under = map[inode]bool{}, i < len(srcs)-1
		if err := c.run(dst, srcs[i], work); err != nil {
			return c.stats, fmt.Errorf("merge the layers of a sandbox: %w", err)
		}
	}
	if err := c.settle(dst, below); err != nil {
		return c.stats, fmt.Errorf("merge the layers of a sandbox: %w", err)
	}
	return c.stats, nil
}

// hidden says that nothing is to be copied of a name, as something above it is
// there. A directory whose content is merged is given with what is above it.
func hidden(from, to int, name string, st *unix.Stat_t, above **unix.Stat_t) (bool, error) {
	var top unix.Stat_t
	err := unix.Fstatat(to, name, &top, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return false, nil
	}
	if err != nil || top.Mode&unix.S_IFMT != unix.S_IFDIR {
		return true, err
	}
	dir, err := unix.Openat(to, name, dirFlags, 0)
	if err != nil {
		return true, err
	}
	defer unix.Close(dir)
	if is, err := isOpaque(dir); err != nil || is {
		return true, err
	}
	ends := true // what is no directory ends what the overlay merges
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		below, err := unix.Openat(from, name, dirFlags, 0)
		if err != nil {
			return true, err
		}
		defer unix.Close(below)
		if ends, err = isOpaque(below); err != nil {
			return true, err
		}
		*above = &top
	}
	if ends {
		err = unix.Fsetxattr(dir, opaque, []byte("y"), 0)
	}
	return *above == nil, err
}

func isOpaque(dir int) (bool, error) {
	value := make([]byte, 8)
	n, err := unix.Fgetxattr(dir, opaque, value)
	switch err {
	case nil:
		return n == 1 && value[0] == 'y', nil
	case unix.ENODATA, unix.EOPNOTSUPP, unix.ERANGE:
		return false, nil
	}
	return false, err
}

func restoreTimes(dir int, st *unix.Stat_t) error {
	return unix.UtimesNanoAt(dir, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// settle removes whiteouts where there is nothing for them to hide.
func (c *copier) settle(dst string, below []string) error {
	type place struct {
		level
		on      []int // the directories of below that it is merged with, the highest first
		removed bool  // a whiteout was removed
		st      unix.Stat_t
	}
	var lower []int
	fd := -1
	defer func() {
		for _, l := range append(lower, fd) {
			unix.Close(l)
		}
	}()
	var top place
	for i, dir := range below {
		l, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: dir, Err: err}
		}
		lower = append(lower, l)
		top.on = append([]int{i}, top.on...)
	}
	fd, err := unix.Open(dst, dirFlags, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: dst, Err: err}
	}
	fill := func(p *place) error {
		if err := unix.Fstat(fd, &p.st); err != nil {
			return err
		}
		p.level, err = c.list(fd)
		return err
	}
	if err := fill(&top); err != nil {
		return err
	}
	var path []string
	stack := []place{top}
	for {
		p := &stack[len(stack)-1]
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if len(p.names) == 0 {
			if p.removed {
				if err := restoreTimes(fd, &p.st); err != nil {
					return err
				}
			}
			if stack = stack[:len(stack)-1]; len(stack) == 0 {
				return nil
			}
			path = path[:len(path)-1]
			above, err := unix.Openat(fd, "..", dirFlags, 0)
			if err != nil {
				return err
			}
			unix.Close(fd)
			fd = above
			continue
		}
		name := p.names[len(p.names)-1]
		p.names = p.names[:len(p.names)-1]
		var st unix.Stat_t
		if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return &os.PathError{Op: "stat", Path: name, Err: err}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFCHR:
			if len(p.on) == 0 && st.Rdev == 0 {
				if err := unix.Unlinkat(fd, name, 0); err != nil {
					return &os.PathError{Op: "remove", Path: name, Err: err}
				}
				p.removed = true
			}
		case unix.S_IFDIR:
			sub, err := unix.Openat(fd, name, dirFlags, 0)
			if err != nil {
				return &os.PathError{Op: "open", Path: name, Err: err}
			}
			unix.Close(fd)
			fd = sub
			path = append(path, name)
			var next place
			ends, err := isOpaque(fd)
			if err != nil {
				return err
			}
			if !ends && len(p.on) > 0 {
				if next.on, err = mergedWith(lower, p.on, strings.Join(path, "/")); err != nil {
					return err
				}
			}
			if err := fill(&next); err != nil {
				return err
			}
			stack = append(stack, next)
		}
	}
}

// mergedWith finds the directories called path beneath lower that an overlay
// merges with one above them. on are those that have the directory above path.
func mergedWith(lower, on []int, path string) (found []int, err error) {
	for _, i := range on {
		fd, err := unix.Openat2(lower[i], path, &unix.OpenHow{Flags: dirFlags, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
		switch err {
		case nil:
			found = append(found, i)
			is, err := isOpaque(fd)
			unix.Close(fd)
			if err != nil {
				return nil, err
			}
			if is {
				return found, nil
			}
		case unix.ENOENT, unix.ENAMETOOLONG:
		case unix.ENOTDIR, unix.ELOOP, unix.ENXIO:
			return found, nil // something else, or a whiteout
		case unix.EACCES, unix.EPERM, unix.EAGAIN:
			found = append(found, i) // a whiteout too many is seen, one too few does harm
		default:
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
	return found, nil
}
