// Package account is the identity that an agent acts under: the sandbox's
// user. The agent itself may be root of the sandbox (so that the user's
// programs can neither signal nor trace it) and then takes on the user's
// identity for each file operation and each program. It knows nothing of the
// HTTP API.
package account

import (
	"bufio"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Account is a user of the sandbox. The zero value is uid 0; use Lookup or
// Current.
type Account struct {
	Name     string
	UID, GID int
	Groups   []int
	Home     string
	Shell    string
	// switches says that the process runs as another user and has the right
	// to take on this identity.
	switches bool
	// threadGroups is what Do gives a thread, and ownGroups what it has
	// before and after; both nil if they are the same.
	threadGroups, ownGroups []uint32
}

// Current is the account that the process runs as; its operations need no
// switch.
func Current() *Account {
	a := &Account{UID: os.Getuid(), GID: os.Getgid(), Home: os.Getenv("HOME")}
	if u, err := user.LookupId(strconv.Itoa(a.UID)); err == nil {
		a.Name, a.Home = u.Username, u.HomeDir
	}
	if a.Home == "" {
		a.Home = "/"
	}
	a.Groups, _ = os.Getgroups()
	a.Shell = loginShell(a.Name)
	return a
}

// Lookup finds an account by a spec: a name in /etc/passwd, "uid" or
// "uid:gid" (either part may be a name). A number need not be in the file;
// its home is then "/". It is an error if the process has not the right to
// act as that user.
func Lookup(spec string) (*Account, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	a := &Account{Home: "/"}
	u, err := user.Lookup(name)
	if err != nil {
		uid, numErr := number(name)
		if numErr != nil {
			return nil, fmt.Errorf("user %q: not in /etc/passwd and not a number from 0 to %d", name, maxID)
		}
		a.UID, a.Name = uid, name
		if u, err = user.LookupId(name); err != nil {
			u = nil
		}
	}
	if u != nil {
		a.Name, a.Home = u.Username, u.HomeDir
		if u.HomeDir == "" {
			a.Home = "/"
		}
		// setfsuid(2) and setgroups(2) give -1 a meaning of its own: what
		// /etc/passwd says is checked as what the caller says is.
		var uidErr, gidErr error
		a.UID, uidErr = number(u.Uid)
		a.GID, gidErr = number(u.Gid)
		if uidErr != nil || gidErr != nil {
			return nil, fmt.Errorf("user %q: /etc/passwd has uid %q and gid %q; they must be from 0 to %d", name, u.Uid, u.Gid, maxID)
		}
		if groups, err := u.GroupIds(); err == nil {
			for _, id := range groups {
				if n, err := number(id); err == nil {
					a.Groups = append(a.Groups, n)
				}
			}
		}
	}
	if hasGroup {
		gid, err := LookupGroup(group)
		if err != nil {
			return nil, err
		}
		a.GID, a.Groups = gid, nil
	}
	if !slices.Contains(a.Groups, a.GID) {
		a.Groups = append(a.Groups, a.GID)
	}
	a.Shell = loginShell(a.Name)
	a.switches = a.UID != os.Getuid() || a.GID != os.Getgid()
	if a.switches && os.Geteuid() != 0 {
		return nil, fmt.Errorf("user %q (uid %d): the agent runs as uid %d and cannot act as another user", spec, a.UID, os.Getuid())
	}
	if a.switches {
		own, err := os.Getgroups()
		if err != nil {
			return nil, fmt.Errorf("user %q: ask for the agent's own groups: %w", spec, err)
		}
		if !sameGroups(own, a.Groups) {
			a.threadGroups, a.ownGroups = ids(a.Groups), ids(own)
		}
	}
	return a, nil
}

// maxID is the greatest uid and gid: 2^32-1 means "no change" to the kernel.
const maxID = 1<<32 - 2

// number parses a uid or gid.
func number(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > maxID {
		return 0, fmt.Errorf("%q: not a number from 0 to %d", s, maxID)
	}
	return int(n), nil
}

// LookupUser returns the uid of a name in /etc/passwd, or of a number.
func LookupUser(name string) (int, error) {
	if u, err := user.Lookup(name); err == nil {
		name = u.Uid
	}
	id, err := number(name)
	if err != nil {
		return 0, fmt.Errorf("user %q: not in /etc/passwd and not a number from 0 to %d", name, maxID)
	}
	return id, nil
}

// LookupGroup returns the gid of a name in /etc/group, or of a number.
func LookupGroup(name string) (int, error) {
	if g, err := user.LookupGroup(name); err == nil {
		name = g.Gid
	}
	id, err := number(name)
	if err != nil {
		return 0, fmt.Errorf("group %q: not in /etc/group and not a number from 0 to %d", name, maxID)
	}
	return id, nil
}

func sameGroups(a, b []int) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

func ids(groups []int) []uint32 {
	out := make([]uint32, len(groups))
	for i, g := range groups {
		out[i] = uint32(g)
	}
	return out
}

// loginShell chooses the shell: bash if it is there, else the user's own from
// /etc/passwd, else sh.
func loginShell(name string) string {
	if _, err := os.Stat("/bin/bash"); err == nil {
		return "/bin/bash"
	}
	if f, err := os.Open("/etc/passwd"); err == nil {
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if p := strings.Split(s.Text(), ":"); len(p) == 7 && p[0] == name && p[6] != "" {
				if _, err := os.Stat(p[6]); err == nil {
					return p[6]
				}
			}
		}
	}
	return "/bin/sh"
}

// Credential is for exec: nil if no switch is needed.
func (a *Account) Credential() *syscall.Credential {
	if !a.switches {
		return nil
	}
	c := &syscall.Credential{Uid: uint32(a.UID), Gid: uint32(a.GID)}
	for _, g := range a.Groups {
		c.Groups = append(c.Groups, uint32(g))
	}
	return c
}

// Do calls f with the account's rights on files and returns its error. f must
// not start goroutines that touch files, nor programs, and should not wait for
// anything but the disk: it holds a thread. Where the process is root it takes
// on the file-system uid and gid and the groups of one locked thread
// (setfsuid(2) drops the capabilities that bypass permissions with it), and
// puts them back after. The kernel makes the process undumpable and forgets the
// thread's PR_SET_PDEATHSIG on the way: a program that relies on that keeps
// its main goroutine locked to the first thread.
func (a *Account) Do(f func() error) error {
	if !a.switches {
		return f()
	}
	runtime.LockOSThread()
	restored := false
	defer func() {
		// A thread that could not be put back must not serve others: left
		// locked, it ends with its goroutine.
		if restored {
			runtime.UnlockOSThread()
		}
	}()
	euid, egid := os.Geteuid(), os.Getegid()
	defer func() {
		unix.SetfsuidRetUid(euid)
		unix.SetfsgidRetGid(egid)
		uid, _ := unix.SetfsuidRetUid(-1)
		gid, _ := unix.SetfsgidRetGid(-1)
		restored = uid == euid && gid == egid && (a.threadGroups == nil || setThreadGroups(a.ownGroups) == nil)
	}()
	if a.threadGroups != nil {
		if err := setThreadGroups(a.threadGroups); err != nil {
			return fmt.Errorf("take on the groups of %s: %w", a.Name, err)
		}
	}
	unix.SetfsgidRetGid(a.GID)
	unix.SetfsuidRetUid(a.UID)
	// Neither reports an error: ask.
	uid, _ := unix.SetfsuidRetUid(-1)
	gid, _ := unix.SetfsgidRetGid(-1)
	if uid != a.UID || gid != a.GID {
		return fmt.Errorf("act as %s: the kernel refused file-system uid %d and gid %d", a.Name, a.UID, a.GID)
	}
	return f()
}

// setThreadGroups sets the supplementary groups of this thread only, where
// syscall.Setgroups would set them for all threads.
func setThreadGroups(groups []uint32) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0); errno != 0 {
		return errno
	}
	return nil
}
