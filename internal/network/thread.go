package network

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ownNamespace opens the network namespace of the calling thread.
func ownNamespace() (*os.File, error) {
	// Not /proc/self: that is the main thread, which may be visiting another namespace.
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open this thread's network namespace: %w", err)
	}
	return f, nil
}

// away runs fn on a thread of its own that may change its network namespace, and brings the
// thread back to home. A thread that cannot be brought back is not used again: it ends with its
// goroutine, because it stays locked to it.
func away(home *os.File, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := fn()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// inside runs fn on a thread that is in the network namespace ns.
func inside(home, ns *os.File, fn func() error) error {
	return away(home, func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter the sandbox's network namespace: %w (it needs CAP_SYS_ADMIN)", err)
		}
		return fn()
	})
}
