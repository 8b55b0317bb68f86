//go:build linux

// Command attacker is the hostile program of the security suite. It runs
// inside a sandbox, tries one kind of attack that its first argument names,
// and prints what came of it as one JSON value, a [Report]. It knows nothing
// of the backend that it attacks, takes no advice from the environment, and
// stops short of harm where an attack succeeds: what could be opened for
// writing is proof enough and is not written to.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// Report is the output of an attack.
type Report struct {
	// Attempts, in order.
	Attempts []Attempt `json:"attempts"`
	// Facts are what was found out on the way.
	Facts map[string]string `json:"facts"`
	// N is the count that a resource attack reached.
	N int64 `json:"n"`
}

// Attempt is one thing that was tried.
type Attempt struct {
	Name string `json:"name"`
	// Worked says that the attack went through.
	Worked bool   `json:"worked"`
	Err    string `json:"err,omitempty"`
	Detail string `json:"detail,omitempty"`
}

func (r *Report) add(name string, worked bool, err error, detail string) {
	a := Attempt{Name: name, Worked: worked, Detail: detail}
	if err != nil {
		a.Err = err.Error()
		if e, ok := errors.AsType[syscall.Errno](err); ok {
			a.Err = errno(e)
		}
	}
	r.Attempts = append(r.Attempts, a)
}

// tried records an attempt that worked if err is nil.
func (r *Report) tried(name string, err error) { r.add(name, err == nil, err, "") }

func (r *Report) fact(name, value string) {
	if r.Facts == nil {
		r.Facts = map[string]string{}
	}
	r.Facts[name] = value
}

var attacks = map[string]func(r *Report, args []string){
	"privileges": privileges, "fds": descriptors, "syscalls": syscalls, "settings": settings,
	"mounts": mounts, "userns": userNamespace, "devices": devices, "agent": agent, "exe": overwrite,
	"cgroup": cgroup, "secrets": secrets, "dial": dial, "udp": udp,
	"forkbomb": forkBomb, "memory": memory, "fill": fill, "inodes": inodes, "openfiles": openFiles,
	"inotify": inotify, "keyring": keyring, "zombies": zombies, "flood": flood, "spin": spin,
	"family": family, "linkrace": linkRace, "hold": hold, "serve": serve, "sleep": sleep, "touch": touch,
}

func main() {
	if len(os.Args) < 2 || attacks[os.Args[1]] == nil {
		fmt.Fprintf(os.Stderr, "usage: %s attack [argument ...]\n", os.Args[0])
		os.Exit(2)
	}
	var r Report
	attacks[os.Args[1]](&r, os.Args[2:])
	r.print()
}

func (r *Report) print() {
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		os.Exit(3)
	}
}

func number(args []string, i int, otherwise int64) int64 {
	if i < len(args) {
		if n, err := strconv.ParseInt(args[i], 10, 64); err == nil {
			return n
		}
	}
	return otherwise
}
