//go:build linux

package s3fs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The kernel tells of any signal that reaches a program while it waits, once. A
// program that goes on would get EINTR from calls that never give it on a disk,
// and the Go runtime sends itself such signals all the time; one that is killed
// must not wait for a service that does not answer.

// patience is how often a program that got a signal is looked at.
const patience = 100 * time.Millisecond

// patient is the context of a request, which ends when the program that asked is
// to die.
func patient(asked context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(asked))
	caller, ok := fuse.FromContext(asked)
	if !ok || caller.Pid == 0 || asked.Done() == nil { // the kernel's own
		return ctx, cancel
	}
	go func() {
		select {
		case <-asked.Done():
		case <-ctx.Done():
			return
		}
		tick := time.NewTicker(patience)
		defer tick.Stop()
		for !dying(caller.Pid) {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		cancel()
	}()
	return ctx, cancel
}

// dying reports whether a thread is to be killed, or cannot be looked at. What
// kills a program, by whatever signal, has SIGKILL pending for each thread.
func dying(thread uint32) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", thread))
	if err != nil {
		return true
	}
	for line := range bytes.Lines(data) {
		name, value, _ := bytes.Cut(line, []byte(":"))
		if string(name) != "SigPnd" && string(name) != "ShdPnd" {
			continue
		}
		pending, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		const sigkill = 1 << (9 - 1)
		if err != nil || pending&sigkill != 0 {
			return true
		}
	}
	return false
}
