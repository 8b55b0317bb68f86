//go:build linux

package image

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// StoreOptions adjusts a store. The zero value, and nil, mean the defaults.
type StoreOptions struct {
	// MaxEntries limits the files, directories and links of one image. Defaults to 2,000,000.
	MaxEntries int64
	// MaxBytes limits the unpacked size of one image, in bytes, headers and holes of sparse files
	// included. Defaults to 64 GiB.
	MaxBytes int64
	// MaxRatio limits how many times larger than its compressed form a layer may be once it
	// exceeds 256 MiB. Defaults to 200; honest layers stay below 20.
	MaxRatio int64
	// MaxLayers limits the layers of one image. Defaults to 500, the most that overlayfs stacks
	// (OVL_MAX_STACK).
	MaxLayers int
	// Parallel is how many layers of one image are fetched and unpacked at a time. Defaults to 2.
	Parallel int
	// MapOwner gives the owner on this machine of an entry that its layer says belongs to uid and
	// gid; a negative result leaves the caller's. It must be a pure function. Defaults to the
	// identity for root, and to leaving the caller's for everybody else. A store holds the layers
	// of one mapping: opening it with another is an error.
	MapOwner func(uid, gid int) (int, int)
	// DirMode is the mode of the directories on the way to a layer's root. Defaults to 0700,
	// which keeps set-user-ID programs and secrets of images from other users of this machine.
	// 0711 lets a process that does not run as the store's owner mount layers.
	DirMode fs.FileMode
	// Sync writes each layer to the disk before it counts as complete, so that the store survives
	// a power failure too. It costs a sync of the whole file system per layer. Defaults to false.
	Sync bool
	// Mirrors lists, for the host of a registry such as docker.io, where to look for its images
	// first: host[:port][/prefix], the prefix being put before the name of the repository, and
	// http:// before it all to do without TLS. They are tried in order, and the registry itself
	// last; a layer that one lacks or that arrives damaged is taken from the next. A mirror decides
	// what a tag means, but not what a digest does. [PullOptions.Auth] is not sent to mirrors,
	// what PullOptions.Keychain has for the mirror's own host is. Defaults to none.
	Mirrors map[string][]string
	// PlainHTTP lists registries, host or host:port, that may be talked to without TLS. Those on
	// this machine may anyway. Defaults to none.
	PlainHTTP []string
	// Logger gets a record of what is cleaned up and retried. Defaults to no logging.
	Logger *slog.Logger
}

// Store is a directory of unpacked images. Its methods may be called from several goroutines, and
// several processes of the same user may open the same directory.
type Store struct {
	dir    string
	opts   StoreOptions
	owners ownership
	log    *slog.Logger

	mirrors map[string][]endpoint
}

const storeVersion = 1

// maxRecord bounds the files of the store that are read into memory.
const maxRecord = 64 << 20

// OpenStore opens the store in dir, an absolute or relative path, and makes it if there is none.
// It removes what killed processes left half done. There is nothing to close.
//
// The directory must belong to the caller and be writable by nobody else.
func OpenStore(dir string, opts *StoreOptions) (*Store, error) {
	s, err := openStore(dir, opts)
	if err != nil {
		return nil, fmt.Errorf("open image store %q: %w", dir, err)
	}
	return s, nil
}

func openStore(dir string, opts *StoreOptions) (*Store, error) {
	if dir == "" {
		return nil, errors.New("the directory has no name")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, log: slog.New(slog.DiscardHandler)}
	if opts != nil {
		s.opts = *opts
	}
	for _, limit := range []int64{s.opts.MaxEntries, s.opts.MaxBytes, s.opts.MaxRatio, int64(s.opts.MaxLayers), int64(s.opts.Parallel)} {
		if limit < 0 {
			return nil, fmt.Errorf("the limit %d in StoreOptions is negative", limit)
		}
	}
	s.opts.MaxEntries = cmp.Or(s.opts.MaxEntries, 2_000_000)
	s.opts.MaxBytes = cmp.Or(s.opts.MaxBytes, 64<<30)
	s.opts.MaxRatio = cmp.Or(s.opts.MaxRatio, 200)
	s.opts.MaxLayers = cmp.Or(s.opts.MaxLayers, 500)
	s.opts.Parallel = cmp.Or(s.opts.Parallel, 2)
	s.opts.DirMode = cmp.Or(s.opts.DirMode, 0o700)
	if s.opts.DirMode&^0o755 != 0 || s.opts.DirMode&0o700 != 0o700 {
		return nil, fmt.Errorf("StoreOptions.DirMode %04o; want between 0700 and 0755, not writable by others", s.opts.DirMode)
	}
	if s.opts.Logger != nil {
		s.log = s.opts.Logger
	}
	if s.mirrors, err = parseMirrors(s.opts.Mirrors); err != nil {
		return nil, fmt.Errorf("StoreOptions.Mirrors: %w", err)
	}
	for _, host := range s.opts.PlainHTTP {
		if !reRegistry.MatchString(host) {
			return nil, fmt.Errorf("StoreOptions.PlainHTTP: %s is not a host name, optionally with a port", quoted(host))
		}
	}
	s.owners = ownership{root: os.Geteuid() == 0, mapOwner: s.opts.MapOwner}

	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, err
	}
	if err := s.mkdir(dir, s.opts.DirMode); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if !isDir(&st) {
		return nil, errors.New("it is not a directory")
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return nil, fmt.Errorf("it belongs to user %d and has mode %04o; it must belong to user %d, who opens it, and be writable by nobody else", st.Uid, st.Mode&0o7777, os.Geteuid())
	}
	fd, err := openDirectory(dir)
	if err != nil {
		return nil, err
	}
	probe, err := openBeneath(fd, ".", unix.O_PATH, 0)
	unix.Close(fd)
	if err != nil {
		return nil, fmt.Errorf("openat2(2), without which layers cannot be unpacked safely, is not available (Linux 5.6; some sandboxes forbid it): %w", err)
	}
	unix.Close(probe)
	for name, mode := range map[string]fs.FileMode{"layers": s.opts.DirMode, "images": 0o700, "refs": 0o700, "leases": 0o700, "locks": 0o700, "tmp": 0o700} {
		if err := s.mkdir(s.path(name), mode); err != nil {
			return nil, err
		}
	}
	if err := s.checkFormat(); err != nil {
		return nil, err
	}
	s.reap()
	return s, nil
}

// mkdir makes a directory with this mode whatever the umask, unless it exists.
func (s *Store) mkdir(dir string, mode fs.FileMode) error {
	err := os.Mkdir(dir, mode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

// Dir returns the absolute path of the store.
func (s *Store) Dir() string { return s.dir }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

type formatRecord struct {
	Version   int    `json:"version"`
	Ownership string `json:"ownership"`
}

// policy names the way in which owners are set, to tell stores apart that cannot be shared.
func (s *Store) policy() string {
	if s.opts.MapOwner == nil && !s.owners.root {
		return "the caller, user " + fmt.Sprint(os.Geteuid())
	}
	h := sha256.New()
	what := "the image's owners"
	if s.opts.MapOwner != nil {
		what = "mapped owners"
		for _, id := range []int{0, 1, 2, 5, 33, 42, 65, 99, 100, 101, 500, 999, 1000, 1001, 2000, 10000, 65533, 65534, 65535, 65536, 100000} {
			uid, gid := s.opts.MapOwner(id, id)
			fmt.Fprintln(h, id, uid, gid)
		}
	}
	// Root of a user namespace writes other numbers to the disk than root of another.
	if m, err := os.ReadFile("/proc/self/uid_map"); err == nil {
		fmt.Fprintln(h, strings.Fields(string(m)))
	}
	return what + ", " + hex.EncodeToString(h.Sum(nil)[:8])
}

func (s *Store) checkFormat() error {
	l, err := lock(context.Background(), s.path("lock"), false)
	if err != nil {
		return err
	}
	defer l.unlock()
	want := formatRecord{storeVersion, s.policy()}
	var have formatRecord
	err = readJSON(s.path("store.json"), &have)
	if errors.Is(err, fs.ErrNotExist) {
		return s.writeJSON(s.path("store.json"), want)
	}
	if err != nil {
		return err
	}
	if have.Version != want.Version {
		return fmt.Errorf("its format is version %d, this program knows version %d: use another directory, or delete it", have.Version, want.Version)
	}
	if have.Ownership != want.Ownership {
		return fmt.Errorf("its layers belong to %s; this process would unpack for %s: use another directory", have.Ownership, want.Ownership)
	}
	return nil
}

func readJSON(path string, v any) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	return nil
}

// writeJSON makes a file appear whole. The caller holds the store's lock, in either mode, so that
// nobody takes the temporary file for garbage.
func (s *Store) writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := s.path("tmp", rand.Text())
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		os.Remove(tmp)
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return err
	}
	return nil
}

// A session is a directory in tmp that lives as long as the operation that works in it.
type session struct {
	store *Store
	dir   string
	lock  *fileLock
}

// begin starts a session.
func (s *Store) begin(ctx context.Context) (*session, error) {
	// Garbage is collected under the exclusive lock, so nobody sees the directory without its lock.
	l, err := lock(ctx, s.path("lock"), false)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	dir := s.path("tmp", rand.Text())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	own, err := tryLock(filepath.Join(dir, "lock"), true)
	if err != nil {
		os.Remove(dir)
		return nil, err
	}
	return &session{s, dir, own}, nil
}

func (ses *session) end() {
	if err := RemoveAll(ses.dir); err != nil {
		ses.store.log.Warn("image store: temporary directory left behind", "dir", ses.dir, "error", err)
	}
	ses.lock.unlock()
}

// want protects layers from Prune while the session lasts, whether or not they exist yet.
func (ses *session) want(ctx context.Context, diffIDs []string) error {
	l, err := lock(ctx, ses.store.path("lock"), false)
	if err != nil {
		return err
	}
	defer l.unlock()
	return ses.store.writeJSON(filepath.Join(ses.dir, "wants"), diffIDs)
}

// dead lists the sessions whose processes are gone, locked for the caller, and what the live ones
// want. The caller holds the exclusive lock.
func (s *Store) sessions() (dead []*session, wants map[string]bool, err error) {
	wants = map[string]bool{}
	entries, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		dir := s.path("tmp", e.Name())
		if !e.IsDir() {
			os.Remove(dir) // by writeJSON, killed
			continue
		}
		l, err := tryLock(filepath.Join(dir, "lock"), true)
		switch {
		case err == nil:
			dead = append(dead, &session{s, dir, l})
		case errors.Is(err, fs.ErrNotExist): // removed just now
		case err == errLocked:
			var ids []string
			if err := readJSON(filepath.Join(dir, "wants"), &ids); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return dead, nil, err
			}
			for _, id := range ids {
				wants[id] = true
			}
		default:
			return dead, nil, err
		}
	}
	return dead, wants, nil
}

// reap removes what killed processes left. It does nothing if the store is busy.
func (s *Store) reap() {
	l, err := tryLock(s.path("lock"), true)
	if err != nil {
		return
	}
	dead, _, err := s.sessions()
	l.unlock()
	if err != nil {
		s.log.Warn("image store: cannot look for leftovers", "dir", s.dir, "error", err)
	}
	for _, ses := range dead {
		s.log.Info("image store: removing what an interrupted operation left", "dir", ses.dir)
		ses.end()
	}
}

// fileID makes a digest or any other name a file name.
func fileID(digest string) string { return strings.ReplaceAll(digest, ":", "-") }

func hashID(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func (s *Store) layerDir(diffID string) string {
	// Without "sha256-", to keep the options of an overlay mount short.
	return s.path("layers", strings.TrimPrefix(fileID(diffID), "sha256-"))
}

func (s *Store) imagePath(digest string) string { return s.path("images", fileID(digest)+".json") }

func (s *Store) refPath(ref Reference, platform string) string {
	return s.path("refs", hashID(ref.String()+"\x00"+platform)+".json")
}

type layerRecord struct {
	DiffID string `json:"diffID"`
	layerStats
}

type imageLayer struct {
	DiffID string `json:"diffID"`
	Digest string `json:"digest,omitempty"`
}

type imageRecord struct {
	Digest string       `json:"digest"`
	Config Config       `json:"config"`
	Layers []imageLayer `json:"layers"`
}

type refRecord struct {
	Reference string    `json:"reference"`
	Platform  string    `json:"platform"`
	Digest    string    `json:"digest"`
	Resolved  time.Time `json:"resolved"`
	// File identifies the version of the file that a tar: reference was read from.
	File string `json:"file,omitempty"`
}

type leaseRecord struct {
	Owner  string    `json:"owner"`
	Digest string    `json:"digest"`
	Since  time.Time `json:"since"`
}

// errIncomplete: a record names a layer that is not there.
var errIncomplete = errors.New("incomplete")

// assemble makes an Image of a record. It returns errIncomplete if a layer is missing.
func (s *Store) assemble(ref Reference, rec *imageRecord) (*Image, error) {
	img := &Image{Reference: ref, Digest: rec.Digest, Config: rec.Config, store: s}
	for _, l := range rec.Layers {
		dir := s.layerDir(l.DiffID)
		var lr layerRecord
		if err := readJSON(filepath.Join(dir, "layer.json"), &lr); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil, errIncomplete
			}
			return nil, err
		}
		if lr.OpaqueRoot {
			img.Layers, img.Size = nil, 0
		}
		img.Layers = append(img.Layers, Layer{Dir: filepath.Join(dir, "fs"), DiffID: l.DiffID, Size: lr.Size})
		img.Size += lr.Size
	}
	return img, nil
}

func (s *Store) readImage(ref Reference, digest string) (*Image, *imageRecord, error) {
	var rec imageRecord
	if err := readJSON(s.imagePath(digest), &rec); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, errIncomplete
		}
		return nil, nil, err
	}
	img, err := s.assemble(ref, &rec)
	return img, &rec, err
}

func notInStore(what string) error {
	return fmt.Errorf("%w: %s is not in the store", ErrNotFound, what)
}

// Get returns a stored image by its digest, as in [Image.Digest]. If nobody refers to it any more
// and nobody holds it, it may be gone, which is an [ErrNotFound]. Reference is not set.
func (s *Store) Get(ctx context.Context, digest string) (*Image, error) {
	if _, _, ok := cutDigest("@" + digest); !ok {
		return nil, fmt.Errorf("%w: %q is not a digest", ErrInvalidReference, digest)
	}
	l, err := lock(ctx, s.path("lock"), false)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	img, _, err := s.readImage(Reference{}, digest)
	if err == errIncomplete {
		return nil, notInStore(digest)
	}
	s.touch(digest)
	return img, err
}

func (s *Store) refs() ([]refRecord, error) {
	paths, err := filepath.Glob(s.path("refs", "*.json"))
	if err != nil {
		return nil, err
	}
	var recs []refRecord
	for _, p := range paths {
		var rec refRecord
		if err := readJSON(p, &rec); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return nil, err
		}
		recs = append(recs, rec)
	}
	return recs, nil
}

// List returns the images that references have been resolved to, sorted by reference. An image
// with several references appears several times. Root filesystem directories (dir:) are never
// stored and so never listed.
func (s *Store) List(ctx context.Context) ([]*Image, error) {
	l, err := lock(ctx, s.path("lock"), false)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	recs, err := s.refs()
	if err != nil {
		return nil, err
	}
	var images []*Image
	for _, rec := range recs {
		ref, err := ParseReference(rec.Reference)
		if err != nil {
			return nil, err
		}
		img, _, err := s.readImage(ref, rec.Digest)
		if err == errIncomplete {
			continue
		}
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	slices.SortStableFunc(images, func(a, b *Image) int {
		return cmp.Or(strings.Compare(a.Reference.String(), b.Reference.String()), strings.Compare(a.Digest, b.Digest))
	})
	return images, nil
}

// Remove forgets a reference, for all platforms. The layers stay until [Store.Prune]. If the
// reference was not stored, the error is [ErrNotFound].
func (s *Store) Remove(ctx context.Context, ref Reference) error {
	l, err := lock(ctx, s.path("lock"), true)
	if err != nil {
		return err
	}
	defer l.unlock()
	recs, err := s.refs()
	if err != nil {
		return err
	}
	found := false
	for _, rec := range recs {
		if rec.Reference == ref.String() {
			found = true
			if err := os.Remove(s.refPath(ref, rec.Platform)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	if !found {
		return notInStore(ref.String())
	}
	return nil
}

// Lease says that an owner uses an image.
type Lease struct {
	Owner  string    `json:"owner"`
	Digest string    `json:"digest"` // of the image
	Since  time.Time `json:"since"`
}

const maxOwner = 512

func (s *Store) leasePath(owner, digest string) string {
	return s.path("leases", hashID(owner)+"-"+hashID(digest)[:32]+".json")
}

// addLease records a lease. The caller holds the store's lock and has seen the image's layers.
func (s *Store) addLease(owner, digest string) error {
	if owner == "" || len(owner) > maxOwner {
		return fmt.Errorf("hold image %s: the owner's name has %d bytes; want between 1 and %d", digest, len(owner), maxOwner)
	}
	s.touch(digest)
	path := s.leasePath(owner, digest)
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	return s.writeJSON(path, leaseRecord{owner, digest, time.Now().UTC()})
}

func (s *Store) leases() ([]Lease, error) {
	paths, err := filepath.Glob(s.path("leases", "*.json"))
	if err != nil {
		return nil, err
	}
	var leases []Lease
	for _, p := range paths {
		var rec leaseRecord
		if err := readJSON(p, &rec); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return nil, err
		}
		leases = append(leases, Lease(rec))
	}
	slices.SortFunc(leases, func(a, b Lease) int {
		return cmp.Or(strings.Compare(a.Owner, b.Owner), strings.Compare(a.Digest, b.Digest))
	})
	return leases, nil
}

// Leases returns who holds what, sorted by owner, so that leases of owners that are no more can
// be released.
func (s *Store) Leases(ctx context.Context) ([]Lease, error) {
	l, err := lock(ctx, s.path("lock"), false)
	if err != nil {
		return nil, err
	}
	defer l.unlock()
	return s.leases()
}

// Release ends all leases of an owner. It is no error if there are none.
func (s *Store) Release(ctx context.Context, owner string) error {
	l, err := lock(ctx, s.path("lock"), true)
	if err != nil {
		return err
	}
	defer l.unlock()
	paths, err := filepath.Glob(s.path("leases", hashID(owner)+"-*.json"))
	if err != nil {
		return err
	}
	for _, p := range paths {
		var rec leaseRecord
		if readJSON(p, &rec) == nil {
			s.touch(rec.Digest) // it was in use until now
		}
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// PruneReport says what [Store.Prune] removed.
type PruneReport struct {
	Images []string // digests
	Layers []string // diffIDs
	Size   int64    // bytes of regular files in those layers
}
