//go:build linux

// Package s3mount mounts a prefix of a bucket as a file system, detached, for
// whoever has the mount to put somewhere. A program of its own, daytona-s3fs,
// serves it through FUSE, without any rights; see package s3fs for what the file
// system does.
//
// The program lives as long as the mount: when the last of it is unmounted, in
// whatever way, the kernel says so, and it stores what is not stored yet and
// ends. So nothing of it is left when those who have the mount, or this process,
// are killed. When the program is killed all that is done in the mount fails
// with ENOTCONN.
package s3mount

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/companion"
	"golang.org/x/sys/unix"
)

// UserID is the user, and group, that the program runs as: below the ranges that
// sandboxes have, and nobody else's.
const UserID = 1<<28 - 2

// The descriptors that the program starts with.
const (
	DeviceFD  = 3 // /dev/fuse
	SpoolFD   = 4 // a directory for what is written and not stored yet
	LockFD    = 5 // locked until the program ends
	programFD = 6
)

// MaxLine is the greatest length of a configuration and of a reply, in bytes.
const MaxLine = 64 << 10

// Config is what the program reads from standard input, as JSON.
type Config struct {
	Location daytona.S3Location `json:"location"`
	// Owner is the user and group that files belong to.
	Owner uint32 `json:"owner"`
	// ReadOnly refuses whatever changes the bucket.
	ReadOnly bool `json:"readOnly,omitempty"`
	// MaxSpool is how much may be written and not stored yet, in bytes.
	MaxSpool int64 `json:"maxSpool"`
}

// Reply is what it then writes to standard output, once.
type Reply struct {
	Kind  daytona.Kind `json:"kind,omitempty"`
	Error string       `json:"error,omitempty"` // "" if the mount works
}

// Options say what to mount.
type Options struct {
	Config
	// Program is daytona-s3fs, executable by any user.
	Program *os.File
	// Spool is a directory that is given to UserID; files in it have no names.
	Spool string
	// Lock is the path of a file that is locked (flock) as long as the program
	// lives. An earlier program that has the lock is waited for, as it stores
	// what was written before; if that takes long it is KindUnavailable.
	Lock string
	// Stderr is the program's. Defaults to discarding it.
	Stderr *os.File
}

const readyTimeout = 40 * time.Second

// MaxRead is the greatest size of one request to the program, in bytes.
const MaxRead = 1 << 20

// Refuse says why this machine cannot mount; "" if it can.
func Refuse() string {
	if os.Geteuid() != 0 {
		return "it takes root to mount a bucket"
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return "the kernel offers no FUSE: " + err.Error()
	}
	f.Close()
	return ""
}

// Mount mounts. The caller closes the mount, and has it waited for: the program
// is a child of this process.
func Mount(ctx context.Context, o Options) (mount *os.File, program *exec.Cmd, err error) {
	lock, err := os.OpenFile(o.Lock, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer lock.Close()
	if err := take(ctx, lock); err != nil {
		return nil, nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: "mount bucket", Subject: o.Location.Bucket, Message: "what was written before it was stopped is still being stored; try again", Err: err}
	}
	spool, err := openSpool(o.Spool)
	if err != nil {
		return nil, nil, fmt.Errorf("make a place for what is written: %w", err)
	}
	defer spool.Close()
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer dev.Close()
	if mount, err = mountFUSE(dev, o.Location.Bucket); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			mount.Close()
		}
	}()
	program, err = start(ctx, o, []*os.File{dev, spool, lock, o.Program})
	return mount, program, err
}

// take locks a file.
func take(ctx context.Context, f *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func openSpool(dir string) (*os.File, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if err := os.Lchown(dir, UserID, UserID); err != nil {
		return nil, err
	}
	return os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// mountFUSE makes the mount that a device serves.
func mountFUSE(dev *os.File, name string) (*os.File, error) {
	fsfd, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen fuse", err)
	}
	defer unix.Close(fsfd)
	for _, option := range [][2]string{
		{"source", "s3:" + name}, {"subtype", "daytona-s3fs"}, {"fd", strconv.Itoa(int(dev.Fd()))}, {"rootmode", "40000"},
		{"user_id", "0"}, {"group_id", "0"}, {"max_read", strconv.Itoa(MaxRead)},
	} {
		if err := unix.FsconfigSetString(fsfd, option[0], option[1]); err != nil {
			return nil, fmt.Errorf("mount FUSE: %s: %w", option[0], err)
		}
	}
	// For all users of the sandbox, without the kernel's checks of owners: any of
	// them may also set a mode or a time, which is not kept.
	if err := unix.FsconfigSetFlag(fsfd, "allow_other"); err != nil {
		return nil, fmt.Errorf("mount FUSE: allow_other: %w", err)
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, fmt.Errorf("mount FUSE: %w", err)
	}
	m, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOATIME)
	if err != nil {
		return nil, fmt.Errorf("mount FUSE: %w", err)
	}
	return os.NewFile(uintptr(m), "s3:"+name), nil
}

// start starts the program and waits until it serves.
func start(ctx context.Context, o Options, files []*os.File) (*exec.Cmd, error) {
	config, err := json.Marshal(o.Config)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", programFD))
	cmd.Args = []string{"daytona-s3fs"}
	if o.Stderr != nil {
		cmd.Stderr = o.Stderr
	}
	cmd.Dir = "/"
	// Nothing of the engine's environment: it may hold secrets.
	cmd.Env = []string{"GOMEMLIMIT=384MiB"}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v := os.Getenv(name); v != "" {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.ExtraFiles = files
	// A session of its own, so that nobody's Ctrl-C ends it before its mount.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: UserID, Gid: UserID}}
	var r Reply
	err = companion.Start(ctx, cmd, companion.Options{
		Config: config, MaxAnswer: MaxLine, Timeout: readyTimeout,
		Answer: func(line []byte) error {
			if err := json.Unmarshal(line, &r); err != nil {
				return fmt.Errorf("it answers nonsense: %w", err)
			}
			if r.Error != "" {
				return errors.New(r.Error)
			}
			return nil
		},
	})
	if r.Error != "" {
		return nil, &daytona.Error{Kind: r.Kind, Op: "mount bucket", Subject: o.Location.Bucket, Message: r.Error}
	}
	if err != nil {
		return nil, fmt.Errorf("start daytona-s3fs: %w", err)
	}
	return cmd, nil
}
