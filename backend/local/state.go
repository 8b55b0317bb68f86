package local

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"golang.org/x/sys/unix"
)

// The state directory:
//
//	owners/<engine>        locked (flock) as long as that engine lives
//	sandboxes/<id>/        one sandbox
//	  record.json          the journal: rewritten before each step
//	  lock                 locked by whoever changes the sandbox
//	  agent.sock           where its agent listens
//	  agent.log            what its agent had to say
//	  fs/                  its files: overlay upper and work directories
//	  disk.img             instead, where it has a disk limit
//	names/<name>           a file with the id of the sandbox of that name
//	volumes/<id>/          volume.json and data/
//	images/                the image store
//	host/                  the skeleton of the "host" image
//	empty/                 the only layer of an image without layers
//
// Everything that a sandbox has on the machine can be found from its id (the
// cgroups), or dies with its processes (namespaces, mounts, network devices,
// loop devices). So whoever finds the record of a dead owner can remove all
// of it.

// phase is how far the life of a sandbox has come, for recovery. It is
// written before what it names begins.
type phase string

const (
	phaseCreating phase = "creating" // not handed out yet: recovery removes it
	phaseWarm     phase = "warm"     // in a pool: recovery removes it
	phaseLive     phase = "live"     // State says the rest
	phaseDeleting phase = "deleting" // recovery finishes it
)

// record is what is kept of a sandbox.
type record struct {
	daytona.Info
	Phase phase `json:"phase"`
	// Owner is the engine to which a sandbox that is not persistent, or is
	// not live yet, belongs.
	Owner string `json:"owner"`
	// PID 1 of the sandbox as the host sees it; its start time (clock ticks
	// since boot, proc(5)) and the boot id make it unique.
	PID       int    `json:"pid,omitempty"`
	StartTime uint64 `json:"startTime,omitempty"`
	BootID    string `json:"bootID,omitempty"`
	// UIDBase is the host uid (and gid) of the sandbox's root.
	UIDBase int `json:"uidBase"`
	// HasDisk says that its files are in disk.img.
	HasDisk bool `json:"hasDisk,omitempty"`
	// Digest of the image, which is held in the image store under the id, its
	// layers (the lowest first) and configuration.
	Digest string       `json:"digest,omitempty"`
	Lowers []string     `json:"lowers,omitempty"`
	Config image.Config `json:"config"`
	// AddUser says that the default user is to be added to the image's.
	AddUser bool `json:"addUser,omitempty"`
	// Offline says that it was started without a network interface.
	Offline bool `json:"offline,omitempty"`
	// Spec fields that Info lacks.
	SpecUser    string `json:"specUser,omitempty"`
	SpecWorkDir string `json:"specWorkDir,omitempty"`
}

// state reads and writes the state directory.
type state struct {
	root string
}

func (s state) sandbox(id string) string    { return filepath.Join(s.root, "sandboxes", id) }
func (s state) file(id, name string) string { return filepath.Join(s.sandbox(id), name) }
func (s state) name(name string) string     { return filepath.Join(s.root, "names", name) }
func (s state) owner(engine string) string  { return filepath.Join(s.root, "owners", engine) }
func (s state) volume(id string) string     { return filepath.Join(s.root, "volumes", id) }
func (s state) dir(name string) string      { return filepath.Join(s.root, name) }

// newID returns 20 random hexadecimal digits.
func newID() string {
	b := make([]byte, 10)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// validID reports whether id could be of newID, so that it may be part of a
// path.
func validID(id string) bool { return len(id) == 20 && strings.Trim(id, "0123456789abcdef") == "" }

// tag tells what belongs to this state directory from what belongs to others.
func (s state) tag() string {
	sum := sha256.Sum256([]byte(s.root))
	return hex.EncodeToString(sum[:4])
}

// makeDirs makes the layout. The root is the owner's alone: files in it may
// be setuid or owned by anybody.
func (s state) makeDirs() error {
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		return err
	}
	if err := os.Chmod(s.root, 0o700); err != nil {
		return err
	}
	for _, d := range []string{"owners", "sandboxes", "names", "volumes", "empty"} {
		if err := os.Mkdir(s.dir(d), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

// save writes a record so that a reader sees the old or the new one, whole.
// It is not synced to disk, as nothing of a sandbox but its files survives
// the machine, unless it is persistent and durable is set.
func (s state) save(r *record, durable bool) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return writeAtomic(s.file(r.ID, "record.json"), data, durable && r.Persistent)
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
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	return err
}

// load reads a record; fs.ErrNotExist if there is none. A record that cannot
// be read (a crash of the machine, not of a process, can leave one) is given
// as one in phaseDeleting.
func (s state) load(id string) (*record, error) {
	if !validID(id) {
		return nil, fs.ErrNotExist
	}
	data, err := os.ReadFile(s.file(id, "record.json"))
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(data, r); err != nil || r.ID != id {
		return &record{Info: daytona.Info{ID: id}, Phase: phaseDeleting}, nil
	}
	return r, nil
}

// ids lists the sandboxes' directories.
func (s state) ids() ([]string, error) {
	entries, err := os.ReadDir(s.dir("sandboxes"))
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		if validID(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// claimName makes name stand for id, or fails with fs.ErrExist. The file is
// made elsewhere and linked into place, so that it is never seen empty.
func (s state) claimName(name, id string) error {
	tmp := s.file(id, "name")
	if err := os.WriteFile(tmp, []byte(id), 0o600); err != nil {
		return err
	}
	defer os.Remove(tmp)
	return os.Link(tmp, s.name(name))
}

// lookupName returns the id that name stands for.
func (s state) lookupName(name string) (string, error) {
	if !daytona.ValidName(name) {
		return "", fs.ErrNotExist
	}
	data, err := os.ReadFile(s.name(name))
	return string(data), err
}

// releaseName frees name if it stands for id.
func (s state) releaseName(name, id string) {
	if got, err := s.lookupName(name); err == nil && got == id {
		os.Remove(s.name(name))
	}
}

// lockFile locks a file for as long as it is open; errLocked if wait is not
// set and somebody else has it.
func lockFile(path string, wait bool) (*os.File, error) {
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
			return nil, errLocked
		}
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

var errLocked = errors.New("locked by another process")

// alive reports whether an engine lives, by trying its lock.
func (s state) alive(engine string) bool {
	if engine == "" {
		return false
	}
	f, err := os.OpenFile(s.owner(engine), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}

// bootID tells one boot of the machine from another. It is read once: every
// look at a sandbox compares it, and it cannot change while this process lives.
var bootID = sync.OnceValue(func() string {
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data))
})

// startTime is when a process started, in clock ticks since boot: field 22 of
// /proc/PID/stat, proc(5). 0 if there is no such process, or only a zombie.
func startTime(pid int) uint64 {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The name, in parentheses, may contain anything.
	i := strings.LastIndexByte(string(data), ')')
	f := strings.Fields(string(data[i+1:]))
	if len(f) < 20 || f[0] == "Z" || f[0] == "X" {
		return 0
	}
	n, _ := strconv.ParseUint(f[19], 10, 64)
	return n
}

// running reports whether the record's PID 1 still runs.
func (r *record) running() bool {
	return r.PID > 0 && r.BootID == bootID() && startTime(r.PID) == r.StartTime && r.StartTime != 0
}

// expired reports whether the TTL has passed.
func (r *record) expired(now time.Time) bool {
	return r.TTL > 0 && now.After(r.CreatedAt.Add(r.TTL))
}

// deletable reports whether AutoDelete says that the stopped sandbox must go.
func (r *record) deletable(now time.Time) bool {
	return r.AutoDelete > 0 && r.State == daytona.StateStopped && now.After(r.StoppedAt.Add(r.AutoDelete))
}
