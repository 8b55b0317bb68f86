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
}

// Current is the account that the process runs as; its operations need no
// switch.
func Current() *Account {
	a := &Account{UID: os.Getuid(), GID: os.Getgid(), Home: os.Getenv("HOME")}
	if u, err := user.LookupId(strconv.Itoa(a.UID)); err == nil {
		a.Name, a.Home = u.Username, u.HomeDir
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
		uid, numErr := strconv.Atoi(name)
		if numErr != nil {
			return nil, fmt.Errorf("user %q: not in /etc/passwd and not a number", name)
		}
		a.UID, a.Name = uid, name
		if u, err = user.LookupId(name); err != nil {
			u = nil
		}
	}
	if u != nil {
		a.Name, a.Home = u.Username, u.HomeDir
		a.UID, _ = strconv.Atoi(u.Uid)
		a.GID, _ = strconv.Atoi(u.Gid)
		if ids, err := u.GroupIds(); err == nil {
			for _, id := range ids {
				if n, err := strconv.Atoi(id); err == nil {
					a.Groups = append(a.Groups, n)
				}
			}
		}
	}
	if hasGroup {
		gid, err := strconv.Atoi(group)
		if err != nil {
			g, err := user.LookupGroup(group)
			if err != nil {
				return nil, fmt.Errorf("group %q: not in /etc/group and not a number", group)
			}
			gid, _ = strconv.Atoi(g.Gid)
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
	return a, nil
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

// Do calls f with the account's rights on files. f must not start goroutines
// that touch files, nor programs. Where the process is root it takes on the
// file-system uid and gid of one locked thread (setfsuid(2) drops the
// capabilities that bypass permissions with it), and puts them back after.
func (a *Account) Do(f func() error) error {
	if !a.switches {
		return f()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	euid, egid := os.Geteuid(), os.Getegid()
	if err := setThreadGroups(a.Groups); err != nil {
		return fmt.Errorf("take on the groups of %s: %w", a.Name, err)
	}
	unix.SetfsgidRetGid(a.GID)
	unix.SetfsuidRetUid(a.UID)
	defer func() {
		unix.SetfsuidRetUid(euid)
		unix.SetfsgidRetGid(egid)
		_ = setThreadGroups(nil)
	}()
	// setfsuid reports no error: ask.
	if got, _ := unix.SetfsuidRetUid(-1); got != a.UID {
		return fmt.Errorf("act as %s: the kernel refused file-system uid %d", a.Name, a.UID)
	}
	return f()
}

// setThreadGroups sets the supplementary groups of this thread only, where
// syscall.Setgroups would set them for all threads.
func setThreadGroups(groups []int) error {
	ids := make([]uint32, len(groups))
	for i, g := range groups {
		ids[i] = uint32(g)
	}
	var p unsafe.Pointer
	if len(ids) > 0 {
		p = unsafe.Pointer(&ids[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(ids)), uintptr(p), 0); errno != 0 {
		return errno
	}
	return nil
}
