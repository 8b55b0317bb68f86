//go:build linux

package s3fs

import (
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// fresh is how long what is known of an object is believed, except when a file
// is opened.
const fresh = time.Second

// maxKnown is up to how many names a directory's list is remembered with what is
// known of them.
const maxKnown = 1000

// dir is a directory.
type dir struct {
	fs.Inode
	b   *bucket
	key string // "" or ends with "/"

	mu     sync.Mutex
	marked bool             // it has an object of its own
	known  map[string]entry // what was listed a moment ago
	when   time.Time
}

var _ interface {
	fs.NodeLookuper
	fs.NodeGetattrer
	fs.NodeSetattrer
	fs.NodeReaddirer
	fs.NodeCreater
	fs.NodeMkdirer
	fs.NodeUnlinker
	fs.NodeRmdirer
	fs.NodeRenamer
	fs.NodeStatfser
} = (*dir)(nil)

func (b *bucket) dirAttr(out *fuse.Attr) {
	out.Mode = syscall.S_IFDIR | 0o777
	out.Nlink = 1
	out.Uid, out.Gid = b.Owner, b.Owner
	out.Blksize = 4096
	out.SetTimes(nil, &b.start, &b.start)
}

func (d *dir) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	d.b.dirAttr(&out.Attr)
	return 0
}

// Setattr takes mode, owner and times, which are not kept.
func (d *dir) Setattr(ctx context.Context, f fs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if d.b.ReadOnly {
		return syscall.EROFS
	}
	return d.Getattr(ctx, f, out)
}

func (d *dir) Statfs(_ context.Context, out *fuse.StatfsOut) syscall.Errno {
	const blocks = 1 << 38 // a pebibyte: nobody knows
	*out = fuse.StatfsOut{Blocks: blocks, Bfree: blocks, Bavail: blocks, Files: 1 << 32, Ffree: 1 << 32, Bsize: 4096, Frsize: 4096, NameLen: maxName}
	return 0
}

// remembered is what was listed of a name a moment ago.
func (d *dir) remembered(name string) (entry, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.when) > fresh {
		d.known = nil
	}
	e, ok := d.known[name]
	return e, ok
}

func (d *dir) remember(names map[string]entry) {
	d.mu.Lock()
	d.known, d.when = names, time.Now()
	d.mu.Unlock()
	// Directories may be many, and stay as long as the kernel remembers them.
	time.AfterFunc(2*fresh, func() { d.remembered("") })
}

func (d *dir) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known = nil
}

// find looks for a name in the bucket.
func (d *dir) find(ctx context.Context, name string) (entry, error) {
	if e, ok := d.remembered(name); ok {
		return e, nil
	}
	type answer struct {
		some, marked bool
		err          error
	}
	dirs := make(chan answer, 1)
	go func() {
		some, marked, err := d.b.any(ctx, d.key+name+"/")
		dirs <- answer{some, marked, err}
	}()
	a, err := d.b.stat(ctx, d.key+name)
	below := <-dirs
	if below.err != nil {
		return entry{}, below.err
	}
	if below.some || below.marked {
		return entry{dir: true}, nil
	}
	return entry{attr: a}, err
}

func (d *dir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	ctx, done := patient(ctx)
	defer done()
	if errno := d.b.checkName(d.key, name); errno != 0 {
		if errno == syscall.EINVAL {
			errno = syscall.ENOENT
		}
		return nil, errno
	}
	ch := d.GetChild(name)
	if ch != nil {
		if f, ok := ch.Operations().(*file); ok && f.local(&out.Attr) {
			return ch, 0
		}
	}
	e, err := d.find(ctx, name)
	if err != nil {
		return nil, d.b.errno(ctx, "look up", d.key+name, err)
	}
	if e.dir {
		d.b.dirAttr(&out.Attr)
		out.SetEntryTimeout(fresh)
		out.SetAttrTimeout(fresh)
		if ch != nil {
			if _, ok := ch.Operations().(*dir); ok {
				return ch, 0
			}
		}
		return d.NewInode(ctx, &dir{b: d.b, key: d.key + name + "/"}, fs.StableAttr{Mode: syscall.S_IFDIR}), 0
	}
	if ch != nil {
		if f, ok := ch.Operations().(*file); ok && f.learn(e.attr, &out.Attr) {
			return ch, 0
		}
	}
	f := &file{b: d.b, key: d.key + name, attr: e.attr, asOf: time.Now()}
	f.fill(&out.Attr)
	return d.NewInode(ctx, f, fs.StableAttr{Mode: syscall.S_IFREG}), 0
}

func (d *dir) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	ctx, done := patient(ctx)
	defer done()
	names, marked, err := d.b.list(ctx, d.key, maxEntries)
	if err != nil {
		return nil, d.b.errno(ctx, "list", d.key, err)
	}
	if len(names) >= maxEntries {
		return nil, syscall.EOVERFLOW
	}
	d.mu.Lock()
	d.marked = d.marked || marked
	d.mu.Unlock()
	if len(names) <= maxKnown {
		d.remember(names)
	}
	var all []fuse.DirEntry
	for name, e := range names {
		mode := uint32(syscall.S_IFREG)
		if e.dir {
			mode = syscall.S_IFDIR
		}
		all = append(all, fuse.DirEntry{Name: name, Mode: mode})
	}
	for name, ch := range d.Children() {
		if f, ok := ch.Operations().(*file); ok && names[name] == (entry{}) && f.pending() {
			all = append(all, fuse.DirEntry{Name: name, Mode: syscall.S_IFREG})
		}
	}
	return fs.NewListDirStream(all), 0
}

func (d *dir) Create(ctx context.Context, name string, flags uint32, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	ctx, done := patient(ctx)
	defer done()
	if d.b.ReadOnly {
		return nil, nil, 0, syscall.EROFS
	}
	if errno := d.b.checkName(d.key, name); errno != 0 {
		return nil, nil, 0, errno
	}
	f := &file{b: d.b, key: d.key + name, attr: attr{mtime: time.Now()}}
	if err := f.empty(); err != nil {
		return nil, nil, 0, d.b.errno(ctx, "create", f.key, err)
	}
	f.handles = 1
	f.fill(&out.Attr)
	d.forget()
	return d.NewInode(ctx, f, fs.StableAttr{Mode: syscall.S_IFREG}), &handle{file: f, appends: flags&syscall.O_APPEND != 0}, fuse.FOPEN_DIRECT_IO, 0
}

func (d *dir) Mkdir(ctx context.Context, name string, _ uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	ctx, done := patient(ctx)
	defer done()
	if d.b.ReadOnly {
		return nil, syscall.EROFS
	}
	if errno := d.b.checkName(d.key, name); errno != 0 {
		return nil, errno
	}
	key := d.key + name + "/"
	if err := d.b.mark(ctx, key); err != nil {
		return nil, d.b.errno(ctx, "make directory", key, err)
	}
	d.forget()
	d.b.dirAttr(&out.Attr)
	return d.NewInode(ctx, &dir{b: d.b, key: key, marked: true}, fs.StableAttr{Mode: syscall.S_IFDIR}), 0
}

// keep makes the directory one that is there without files, before one of them
// goes.
func (d *dir) keep(ctx context.Context) error {
	d.mu.Lock()
	marked := d.marked || d.key == ""
	d.mu.Unlock()
	if marked {
		return nil
	}
	if err := d.b.mark(ctx, d.key); err != nil {
		return err
	}
	d.mu.Lock()
	d.marked = true
	d.mu.Unlock()
	return nil
}

func (d *dir) Unlink(ctx context.Context, name string) syscall.Errno {
	ctx, done := patient(ctx)
	defer done()
	if d.b.ReadOnly {
		return syscall.EROFS
	}
	err := d.keep(ctx)
	if err == nil {
		if ch := d.GetChild(name); ch != nil {
			if f, ok := ch.Operations().(*file); ok {
				f.discard()
			}
		}
		err = d.b.remove(ctx, d.key+name)
	}
	d.forget()
	return d.b.errno(ctx, "remove", d.key+name, err)
}

func (d *dir) Rmdir(ctx context.Context, name string) syscall.Errno {
	ctx, done := patient(ctx)
	defer done()
	if d.b.ReadOnly {
		return syscall.EROFS
	}
	key := d.key + name + "/"
	some, _, err := d.b.any(ctx, key)
	if err != nil {
		return d.b.errno(ctx, "remove directory", key, err)
	}
	if ch := d.GetChild(name); ch != nil {
		for _, c := range ch.Children() {
			if f, ok := c.Operations().(*file); ok && f.pending() {
				some = true
			}
		}
	}
	if some {
		return syscall.ENOTEMPTY
	}
	if err = d.keep(ctx); err == nil {
		err = d.b.remove(ctx, key)
	}
	d.forget()
	return d.b.errno(ctx, "remove directory", key, err)
}

// Rename renames a file: it is copied, and the old one removed. A directory is
// not, as that would be many steps; programs like mv then copy.
func (d *dir) Rename(ctx context.Context, name string, newParent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	ctx, done := patient(ctx)
	defer done()
	to, ok := newParent.(*dir)
	const noReplace = 1
	switch {
	case !ok:
		return syscall.EXDEV
	case d.b.ReadOnly:
		return syscall.EROFS
	case flags&^noReplace != 0:
		return syscall.EINVAL
	}
	if errno := d.b.checkName(to.key, newName); errno != 0 {
		return errno
	}
	ch := d.GetChild(name)
	if ch == nil {
		return syscall.ENOENT
	}
	f, ok := ch.Operations().(*file)
	if !ok {
		return syscall.EXDEV
	}
	var old *file
	if ch := to.GetChild(newName); ch != nil {
		if old, ok = ch.Operations().(*file); !ok {
			return syscall.EISDIR
		}
	}
	if flags&noReplace != 0 {
		to.forget()
		if _, err := to.find(ctx, newName); err == nil || old != nil && old.pending() {
			return syscall.EEXIST
		} else if errno := d.b.errno(ctx, "look up", to.key+newName, err); errno != syscall.ENOENT {
			return errno
		}
	}
	err := d.keep(ctx)
	if err == nil {
		if old != nil && old != f {
			old.discard()
		}
		err = f.move(ctx, to.key+newName)
	}
	d.forget()
	to.forget()
	return d.b.errno(ctx, "rename", d.key+name, err)
}
