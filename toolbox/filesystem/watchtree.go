package filesystem

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// maxWatches bounds the streams, of which each takes one of the kernel's
	// inotify instances.
	maxWatches = 64
	// maxWatchedDirs bounds the directories of one stream, and maxAllWatchedDirs
	// those of all. The kernel needs about a KiB for each.
	maxWatchedDirs    = 16 << 10
	maxAllWatchedDirs = 64 << 10
	// maxChanges bounds what a client has not taken yet.
	maxChanges = 8 << 10
	// moveTime is how long after the one half of a rename the other may come: the
	// kernel writes them one right after the other.
	moveTime = 20 * time.Millisecond
)

// watchBudget is what watches may use together.
type watchBudget struct{ streams, dirs atomic.Int64 }

// errWatchLimit is why a directory is not watched.
type errWatchLimit struct{ reason string }

func (e *errWatchLimit) Error() string { return e.reason }

// watcher watches a directory, and what is below it, with inotify(7). The paths
// that it knows are where it saw directories to be: it has each by its watch and
// its place in the tree, so that a rename of one moves all below it.
type watcher struct {
	s         *Service
	recursive bool
	exclude   []string
	only      string // the one name of the root that counts, if not ""

	inotify *os.File
	fd      int // of inotify: its Fd method would have it block
	dirs    map[int32]*watchedDir
	root    *watchedDir
	round   int // of scans; see rescan
	moves   []move

	changes changes
}

type watchedDir struct {
	wd       int32
	name     string // the root's is its path
	parent   *watchedDir
	children map[string]*watchedDir
	// missed are directories that were told of, and had another name before they
	// could be looked into: what is in them is news once they are found.
	missed map[string]struct{}
	round  int
}

func (d *watchedDir) miss(name string) {
	if d.missed == nil {
		d.missed = map[string]struct{}{}
	}
	d.missed[name] = struct{}{}
}

// move is the first half of a rename, whose other half may come, or not.
type move struct {
	cookie uint32
	dir    *watchedDir
	name   string
	isDir  bool
	moved  *watchedDir // still says where it was; nil if it is not watched
	missed bool
	at     time.Time
}

func (d *watchedDir) path() string {
	if d.parent == nil {
		return d.name
	}
	return path.Join(d.parent.path(), d.name)
}

// newWatcher watches an absolute path.
func (s *Service) newWatcher(ctx context.Context, p string, recursive bool, exclude []string) (*watcher, error) {
	if s.watches.streams.Add(1) > maxWatches {
		s.watches.streams.Add(-1)
		return nil, &errWatchLimit{fmt.Sprintf("%d watches are open, the most that there may be", maxWatches)}
	}
	w := &watcher{s: s, recursive: recursive, exclude: exclude, dirs: map[int32]*watchedDir{}}
	w.changes.ready, w.changes.ended = make(chan struct{}, 1), make(chan struct{})
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		s.watches.streams.Add(-1)
		if errors.Is(err, unix.EMFILE) {
			return nil, &errWatchLimit{"the kernel's limit of watches for a user (fs.inotify.max_user_instances) is reached"}
		}
		return nil, pathError("watch", p, err)
	}
	w.fd, w.inotify = fd, os.NewFile(uintptr(fd), "inotify") // with Go's poller, as it does not block
	dir := p
	err = s.account.Do(func() error {
		fd, err := s.open.at(unix.AT_FDCWD, p, unix.O_PATH, 0)
		if err != nil {
			return pathError("watch", p, err)
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		unix.Close(fd)
		if err != nil {
			return pathError("watch", p, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			// The directory it is in tells of it, also when another takes its place.
			w.recursive, w.only, dir = false, path.Base(p), path.Dir(p)
		}
		return w.scan(ctx, nil, unix.AT_FDCWD, dir, 0, false)
	})
	if err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// close gives back what the watch uses. It is for whoever has called newWatcher,
// once run has returned.
func (w *watcher) close() {
	w.inotify.Close()
	w.s.watches.streams.Add(-1)
	w.s.watches.dirs.Add(int64(-len(w.dirs)))
	w.dirs = nil
}

const watchMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

// scan watches a directory and what is below it. The watch comes before the
// look: what is made in between is seen twice, and told once. tell says that
// what is found is new. It runs with the account's rights.
func (w *watcher) scan(ctx context.Context, parent *watchedDir, at int, name string, depth int, tell bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	shown, flags := name, unix.O_NOFOLLOW
	if parent == nil {
		flags = 0
	} else {
		shown = path.Join(parent.path(), name)
	}
	fd, err := w.s.open.at(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|flags, 0)
	if err != nil {
		return pathError("watch", shown, err)
	}
	defer unix.Close(fd)
	if parent != nil && pseudo(fd) {
		return nil
	}
	// By descriptor: what the path means may have changed.
	wd, err := unix.InotifyAddWatch(w.fd, procFD(fd), watchMask)
	if err == unix.ENOSPC {
		return &errWatchLimit{"the kernel's limit of watched directories for a user (fs.inotify.max_user_watches) is reached"}
	}
	if err != nil {
		return pathError("watch", shown, err)
	}
	d, err := w.place(int32(wd), parent, name)
	if err != nil {
		_, _ = unix.InotifyRmWatch(w.fd, uint32(wd))
		return err
	}
	if !w.recursive {
		return nil
	}
	if depth >= depthLimit {
		return &errWatchLimit{fmt.Sprintf("directories deeper than %d are not watched", depthLimit)}
	}
	buf := make([]byte, 8<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return nil
		}
		for name, isDir := range dirents(fd, buf[:n]) {
			if w.excluded(name) {
				continue
			}
			if tell {
				w.changes.add(wire.FileChange{Type: wire.ChangeCreate, Path: path.Join(shown, name), IsDir: isDir})
			}
			if !isDir {
				continue
			}
			err := w.scan(ctx, d, fd, name, depth+1, tell)
			if _, limit := errors.AsType[*errWatchLimit](err); limit || ctx.Err() != nil {
				return err
			}
			if err != nil && tell {
				d.miss(name) // it is gone, or not the user's to read
			}
		}
	}
}

// dirents yields the entries in a buffer of getdents64(2), and which of them are
// directories.
func dirents(fd int, buf []byte) iter.Seq2[string, bool] {
	return func(yield func(string, bool) bool) {
		// struct linux_dirent64: inode, offset, length, type and name.
		const length, kind, start = 16, 18, 19
		for len(buf) > start {
			size := int(binary.NativeEndian.Uint16(buf[length:]))
			if size <= start || size > len(buf) {
				return
			}
			name, _, _ := strings.Cut(string(buf[start:size]), "\x00")
			isDir := buf[kind] == unix.DT_DIR
			if buf[kind] == unix.DT_UNKNOWN {
				var st unix.Stat_t
				isDir = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
			}
			buf = buf[size:]
			if name != "." && name != ".." && !yield(name, isDir) {
				return
			}
		}
	}
}

// excluded says whether a name is not of interest.
func (w *watcher) excluded(name string) bool {
	if w.only != "" && name != w.only {
		return true
	}
	return slices.ContainsFunc(w.exclude, func(pattern string) bool { ok, _ := path.Match(pattern, name); return ok })
}

// place notes where the directory of a watch is.
func (w *watcher) place(wd int32, parent *watchedDir, name string) (*watchedDir, error) {
	d := w.dirs[wd]
	if d == nil {
		if len(w.dirs) >= maxWatchedDirs {
			return nil, &errWatchLimit{fmt.Sprintf("there are more than %d directories; exclude some", maxWatchedDirs)}
		}
		if w.s.watches.dirs.Add(1) > maxAllWatchedDirs {
			w.s.watches.dirs.Add(-1)
			return nil, &errWatchLimit{fmt.Sprintf("all watches together have more than %d directories; exclude some", maxAllWatchedDirs)}
		}
		d = &watchedDir{wd: wd}
		w.dirs[wd] = d
	} else if d == w.root {
		return d, nil // found below itself, as a mount
	}
	d.round = w.round
	w.attach(d, parent, name)
	return d, nil
}

// attach puts a directory where it is now, with all below it.
func (w *watcher) attach(d, parent *watchedDir, name string) {
	for above := parent; above != nil; above = above.parent {
		if above == d {
			return // of two mounts, each below the other
		}
	}
	if d.parent != nil && d.parent.children[d.name] == d {
		delete(d.parent.children, d.name)
	}
	d.parent, d.name = parent, name
	if parent == nil {
		w.root = d
		return
	}
	if parent.children == nil {
		parent.children = map[string]*watchedDir{}
	}
	if old := parent.children[name]; old != nil && old != d {
		w.forget(old)
	}
	parent.children[name] = d
}

// forget ends the watches of a directory and all below it.
func (w *watcher) forget(d *watchedDir) {
	for _, child := range d.children {
		w.forget(child)
	}
	d.children = nil
	if w.dirs[d.wd] == d {
		delete(w.dirs, d.wd)
		w.s.watches.dirs.Add(-1)
		_, _ = unix.InotifyRmWatch(w.fd, uint32(d.wd)) // it may be gone with its directory
	}
	if d.parent != nil && d.parent.children[d.name] == d {
		delete(d.parent.children, d.name)
	}
}

// errWatchEnd says that what is watched is no longer there.
var errWatchEnd = errors.New("it was removed, or moved away")

// run reads events until ctx ends or what is watched goes away.
func (w *watcher) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = w.inotify.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// The kernel gives as many whole events as fit.
	buf := make([]byte, 32<<10)
	for {
		n, err := w.inotify.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			n, err = 0, nil // the other half of a rename did not come
		}
		if err == nil {
			// One identity for all of them: new directories are looked into.
			err = w.s.account.Do(func() error { return w.events(ctx, buf[:n]) })
		}
		if err != nil {
			w.changes.end(cmp.Or(ctx.Err(), err))
			return
		}
		w.settle(false)
		until := time.Time{} // for ever
		if len(w.moves) > 0 {
			until = time.Now().Add(moveTime)
		}
		// Where ctx ended meanwhile, this must not undo what stop has set.
		if _ = w.inotify.SetReadDeadline(until); ctx.Err() != nil {
			_ = w.inotify.SetReadDeadline(time.Unix(1, 0))
		}
	}
}

// events handles what inotify said.
func (w *watcher) events(ctx context.Context, buf []byte) error {
	for len(buf) >= unix.SizeofInotifyEvent {
		wd, mask := int32(binary.NativeEndian.Uint32(buf)), binary.NativeEndian.Uint32(buf[4:])
		cookie, size := binary.NativeEndian.Uint32(buf[8:]), int(binary.NativeEndian.Uint32(buf[12:]))
		buf = buf[unix.SizeofInotifyEvent:]
		if size > len(buf) {
			break
		}
		name, _, _ := strings.Cut(string(buf[:size]), "\x00")
		buf = buf[size:]
		if mask&unix.IN_Q_OVERFLOW != 0 {
			if err := w.rescan(ctx); err != nil {
				return err
			}
			continue
		}
		d := w.dirs[wd]
		if d == nil {
			continue // of a directory that was forgotten
		}
		if name == "" {
			if mask&(unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_UNMOUNT|unix.IN_IGNORED) == 0 {
				continue // the directory's own attributes: told by the one above
			}
			if d == w.root {
				w.settle(true)
				return errWatchEnd
			}
			if mask&(unix.IN_UNMOUNT|unix.IN_IGNORED) != 0 {
				w.forget(d)
			}
			continue
		}
		if w.excluded(name) {
			continue
		}
		w.event(ctx, d, name, mask, cookie)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func (w *watcher) event(ctx context.Context, d *watchedDir, name string, mask, cookie uint32) {
	change := wire.FileChange{Path: path.Join(d.path(), name), IsDir: mask&unix.IN_ISDIR != 0}
	switch {
	case mask&unix.IN_MOVED_FROM != 0:
		_, missed := d.missed[name]
		w.moves = append(w.moves, move{cookie: cookie, dir: d, name: name, isDir: change.IsDir, moved: d.children[name], missed: missed, at: time.Now()})
		delete(d.children, name)
		delete(d.missed, name)
		return
	case mask&unix.IN_MOVED_TO != 0:
		if i := slices.IndexFunc(w.moves, func(m move) bool { return m.cookie == cookie }); i >= 0 {
			from := w.moves[i]
			w.moves = slices.Delete(w.moves, i, i+1)
			change.Type, change.OldPath = wire.ChangeRename, path.Join(from.dir.path(), from.name)
			w.changes.add(change)
			if from.moved != nil {
				w.attach(from.moved, d, name)
			} else if change.IsDir {
				w.enter(ctx, d, name, from.missed) // one that could not be watched
			}
			return
		}
		change.Type = wire.ChangeCreate
	case mask&unix.IN_CREATE != 0:
		change.Type = wire.ChangeCreate
	case mask&unix.IN_DELETE != 0:
		change.Type = wire.ChangeRemove
		delete(d.missed, name)
		if child := d.children[name]; child != nil {
			w.forget(child)
		}
	case mask&unix.IN_MODIFY != 0:
		change.Type = wire.ChangeWrite
	case mask&unix.IN_ATTRIB != 0:
		if name[0] == '#' && w.gone(change.Path) {
			return // of a file without a name (O_TMPFILE), for which the kernel makes one up
		}
		change.Type = wire.ChangeAttributes
	default:
		return
	}
	w.changes.add(change)
	if change.Type == wire.ChangeCreate && change.IsDir {
		w.enter(ctx, d, name, true)
	}
}

// gone says that there is nothing of this name.
func (w *watcher) gone(p string) bool {
	fd, err := w.s.open.at(unix.AT_FDCWD, p, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return errors.Is(err, unix.ENOENT)
	}
	unix.Close(fd)
	return false
}

// enter watches a directory that has come. tell says that what is in it is new.
func (w *watcher) enter(ctx context.Context, parent *watchedDir, name string, tell bool) {
	if !w.recursive {
		return
	}
	depth := 1
	for above := parent; above.parent != nil; above = above.parent {
		depth++
	}
	// Its path from the root on, which is what the user's rights are for: nothing
	// is held open meanwhile.
	at := path.Join(parent.path(), name)
	fd, err := w.s.open.at(unix.AT_FDCWD, path.Dir(at), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == nil {
		defer unix.Close(fd)
		err = w.scan(ctx, parent, fd, name, depth, tell)
	}
	if limit, ok := errors.AsType[*errWatchLimit](err); ok {
		w.changes.overflow(at, limit.reason)
	} else if err != nil && tell {
		parent.miss(name) // it is gone again
	}
}

// rescan is for when the kernel had no room for events: directories may have
// come and gone.
func (w *watcher) rescan(ctx context.Context) error {
	w.moves = nil
	w.changes.overflow(w.root.path(), "changes came faster than the agent could read them")
	w.round++
	root := w.root.path()
	err := w.scan(ctx, nil, unix.AT_FDCWD, root, 0, false)
	if limit, ok := errors.AsType[*errWatchLimit](err); ok {
		w.changes.overflow(root, limit.reason)
	} else if err != nil {
		return errWatchEnd
	}
	for _, d := range w.dirs {
		d.missed = nil
		if d.round != w.round && d != w.root {
			w.forget(d)
		}
	}
	return nil
}

// settle says of renames whose other half did not come in time that files went
// away; of all of them if all is true.
func (w *watcher) settle(all bool) {
	w.moves = slices.DeleteFunc(w.moves, func(m move) bool {
		if !all && time.Since(m.at) < moveTime {
			return false
		}
		w.changes.add(wire.FileChange{Type: wire.ChangeRemove, Path: path.Join(m.dir.path(), m.name), IsDir: m.isDir})
		if m.moved != nil {
			w.forget(m.moved)
		}
		return true
	})
}
