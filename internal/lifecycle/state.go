//go:build linux

package lifecycle

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/failpoint"
	"golang.org/x/sys/unix"
)

// Phase is how far the life of a sandbox has come, for recovery. It is written
// before what it names begins.
type Phase string

// The phases.
const (
	PhaseCreating Phase = "creating" // not handed out yet: recovery removes it
	PhaseWarm     Phase = "warm"     // in a pool: recovery removes it
	PhaseForked   Phase = "forked"   // one of several that become live together: recovery removes it, unless all are there
	PhaseLive     Phase = "live"     // State says the rest
	PhaseDeleting Phase = "deleting" // recovery finishes it
)

// Record is what is kept of a sandbox. Own is the engine's.
type Record[T any] struct {
	daytona.Info
	Phase Phase `json:"phase"`
	// Owner is the keeper to which a sandbox that is not persistent, or is not
	// live yet, belongs.
	Owner string `json:"owner"`
	// Spec fields that Info lacks.
	SpecUser    string `json:"specUser,omitempty"`
	SpecWorkDir string `json:"specWorkDir,omitempty"`
	// Was is the state that a step which State names (resizing, forking,
	// snapshotting) began in and ends in.
	Was daytona.State `json:"was,omitempty"`
	// Fresh says that the files are another sandbox's, whose identity (machine id
	// and the like) the first start has to replace.
	Fresh bool `json:"fresh,omitempty"`
	// Forked are the children of a fork that is done but for their own records,
	// which do not say yet that they are live.
	Forked []string `json:"forked,omitempty"`
	// Archive names, for the engine, what there is of it in object storage; it is
	// written down before anything is.
	Archive string `json:"archive,omitempty"`
	// Packed says, in the state archiving, that the archive is complete: it counts,
	// and not what there is here.
	Packed bool `json:"packed,omitempty"`

	Own T `json:"own"`
}

// expired reports whether the TTL has passed.
func (r *Record[T]) expired(now time.Time) bool {
	return r.TTL > 0 && now.After(r.CreatedAt.Add(r.TTL))
}

// deletable reports whether AutoDelete says that the stopped sandbox must go.
func (r *Record[T]) deletable(now time.Time) bool {
	return r.AutoDelete > 0 && r.atRest() && now.After(r.StoppedAt.Add(r.AutoDelete))
}

// atRest reports whether it is stopped, here or in object storage.
func (r *Record[T]) atRest() bool {
	return r.State == daytona.StateStopped || r.State == daytona.StateArchived
}

// between reports whether a state is one that whoever holds the lock passes
// through: if nobody does, it has died on the way.
func between(s daytona.State) bool {
	switch s {
	case daytona.StateStarting, daytona.StateStopping, daytona.StatePausing, daytona.StateResuming, daytona.StateResizing,
		daytona.StateForking, daytona.StateSnapshotting, daytona.StateArchiving, daytona.StateRestoring:
		return true
	}
	return false
}

// State is a state directory:
//
//	owners/<keeper>        locked (flock) as long as that keeper lives
//	sandboxes/<id>/        one sandbox
//	  record.json          the journal: rewritten before each step
//	  lock                 locked by whoever changes the sandbox
//	  paused               is there while requests to it must be refused
//	names/<name>           a file with the id of the sandbox of that name
//
// and whatever the engine has besides. What a sandbox has on the machine must be
// found from its id or its record, or die with its processes; so whoever finds
// the record of a dead owner can remove all of it.
type State struct {
	// Root is its path.
	Root string
}

// Dir is the path of something in the state directory.
func (s State) Dir(name string) string { return filepath.Join(s.Root, name) }

// Sandbox is the directory of a sandbox.
func (s State) Sandbox(id string) string { return filepath.Join(s.Root, "sandboxes", id) }

// File is the path of something in the directory of a sandbox.
func (s State) File(id, name string) string { return filepath.Join(s.Sandbox(id), name) }

func (s State) nameFile(name string) string { return filepath.Join(s.Root, "names", name) }
func (s State) owner(keeper string) string  { return filepath.Join(s.Root, "owners", keeper) }

// Tag tells what belongs to this state directory from what belongs to others.
func (s State) Tag() string {
	sum := sha256.Sum256([]byte(s.Root))
	return hex.EncodeToString(sum[:4])
}

// NewID returns 20 random hexadecimal digits.
func NewID() string {
	b := make([]byte, 10)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// ValidID reports whether id could be of [NewID], so that it may be part of a
// path.
func ValidID(id string) bool { return len(id) == 20 && strings.Trim(id, "0123456789abcdef") == "" }

// makeDirs makes the layout. The root is the owner's alone: files in it may be
// setuid or owned by anybody.
func (s State) makeDirs(more []string) error {
	if err := os.MkdirAll(s.Root, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(s.Root, 0o700); err != nil {
		return err
	}
	for _, d := range append([]string{"owners", "sandboxes", "names"}, more...) {
		if err := os.Mkdir(s.Dir(d), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// Save writes a record so that a reader sees the old or the new one, whole. It
// is not synced to disk, as nothing of a sandbox but its files survives the
// machine, unless it is persistent and durable is set.
func (k *Keeper[T]) Save(r *Record[T], durable bool) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return rewrite(k.File(r.ID, "record.json"), data, durable && r.Persistent)
}

// rewrite is writeAtomic for a file that is there: on a disk that is full what is
// there must be stopped and removed all the same.
func rewrite(path string, data []byte, durable bool) error {
	err := writeAtomic(path, data, durable)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		if overwrite(path, data) == nil {
			return nil
		}
	}
	return err
}

// overwrite writes a file in the place that it has, if that is enough. It is one
// write of a few kilobytes, which no signal interrupts.
func overwrite(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if int64(len(data)) > st.Blocks*512 {
		return unix.ENOSPC
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		return err
	}
	return f.Truncate(int64(len(data)))
}

func writeAtomic(path string, data []byte, durable bool) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	failpoint.Kill("lifecycle/save/written")
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		os.Remove(path + ".new")
	}
	return err
}

// Load reads a record; fs.ErrNotExist if there is none. A record that cannot be
// read (a crash of the machine, not of a process, can leave one) is given as one
// in PhaseDeleting.
func (k *Keeper[T]) Load(id string) (*Record[T], error) {
	if !ValidID(id) {
		return nil, fs.ErrNotExist
	}
	data, err := os.ReadFile(k.File(id, "record.json"))
	if err != nil {
		return nil, err
	}
	r := &Record[T]{}
	if err := json.Unmarshal(data, r); err != nil || r.ID != id {
		return &Record[T]{Info: daytona.Info{ID: id}, Phase: PhaseDeleting}, nil
	}
	return r, nil
}

// IDs lists the sandboxes' directories.
func (s State) IDs() ([]string, error) {
	entries, err := os.ReadDir(s.Dir("sandboxes"))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if ValidID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// claimName makes name stand for id, or fails with fs.ErrExist. The file is made
// elsewhere and linked into place, so that it is never seen empty.
func (s State) claimName(name, id string) error {
	tmp := s.File(id, "name")
	if err := os.WriteFile(tmp, []byte(id), 0o600); err != nil {
		return err
	}
	defer os.Remove(tmp)
	failpoint.Kill("lifecycle/create/name-written")
	return os.Link(tmp, s.nameFile(name))
}

// lookupName returns the id that name stands for.
func (s State) lookupName(name string) (string, error) {
	if !daytona.ValidName(name) {
		return "", fs.ErrNotExist
	}
	data, err := os.ReadFile(s.nameFile(name))
	return string(data), err
}

// releaseName frees name if it stands for id.
func (s State) releaseName(name, id string) {
	if got, err := s.lookupName(name); err == nil && got == id {
		os.Remove(s.nameFile(name))
	}
}

// LockFile locks a file for as long as it is open; [ErrLocked] if wait is not
// set and somebody else has it.
func LockFile(path string, wait bool) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if !wait {
		how |= unix.LOCK_NB
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

// ErrLocked says that somebody else is at it.
var ErrLocked = errors.New("locked by another process")

// openLock is LockFile for a directory that may be removed meanwhile.
func openLock(path string, wait bool) (*os.File, error) {
	f, err := LockFile(path, wait)
	if err != nil {
		return nil, err
	}
	var a, b unix.Stat_t
	if unix.Fstat(int(f.Fd()), &a) != nil || unix.Stat(path, &b) != nil || a.Ino != b.Ino {
		f.Close()
		return nil, fs.ErrNotExist
	}
	return f, nil
}

// alive reports whether a keeper lives, by trying its lock.
func (s State) alive(keeper string) bool {
	if keeper == "" {
		return false
	}
	f, err := os.OpenFile(s.owner(keeper), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}
