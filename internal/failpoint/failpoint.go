// Package failpoint ends a process, or fails what it is doing, at a named point
// in the middle of a step, so that tests see what the next process makes of it:
//
//	DAYTONA_FAILPOINT=lifecycle/delete/released=kill     SIGKILL for this process when it comes there
//	DAYTONA_FAILPOINT=lifecycle/delete/released=kill@3   the third time
//	DAYTONA_FAILPOINT=lifecycle/create/named=error       one ENOSPC, where the point can fail
//	DAYTONA_FAILPOINT=lifecycle/create/named=error@2     the second time
//
// The points are compiled into every program, so that it is the program itself
// that is tested and not one that was built for it. The variable is read once;
// without it a point costs a few nanoseconds. Whoever can set it can end the process
// in other ways too: it is the environment of the program that embeds the
// engine, and never that of a sandbox. A value that makes no sense is no point's.
//
// A name is that of a package, of the transition that the point is in, and of
// what has just been done: "local/fork/copied". Tests find the names in the
// source (package failpointtest), so they are string constants.
package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Variable is that of the environment.
const Variable = "DAYTONA_FAILPOINT"

// plan is what the variable says.
type plan struct {
	name string
	kill bool
	left atomic.Int64 // how often the point is yet to be passed
}

var planned = sync.OnceValue(func() *plan { return parse(os.Getenv(Variable)) })

func parse(value string) *plan {
	name, what, ok := strings.Cut(value, "=")
	what, times, counted := strings.Cut(what, "@")
	n, err := strconv.ParseInt(times, 10, 64)
	if !counted {
		n, err = 1, nil
	}
	if !ok || err != nil || what != "kill" && what != "error" {
		return nil
	}
	p := &plan{name: name, kill: what == "kill"}
	p.left.Store(n)
	return p
}

// due reports whether it is this time that the point named is for.
func (p *plan) due(name string, kill bool) bool {
	return p != nil && p.name == name && p.kill == kill && p.left.Add(-1) == 0
}

// Kill is a point at which a process may die.
func Kill(name string) {
	if planned().due(name, true) {
		die()
	}
}

// Fail is a point at which a process may die or what it does may fail.
func Fail(name string) error {
	p := planned()
	if p == nil {
		return nil
	}
	if p.due(name, true) {
		die()
	}
	if p.due(name, false) {
		return fmt.Errorf("failpoint %s: %w", name, unix.ENOSPC)
	}
	return nil
}

func die() {
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {} // until the signal is here
}
