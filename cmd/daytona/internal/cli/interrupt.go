package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// signalError is the cause of a context that a signal cancelled.
type signalError struct {
	name   string
	number int
}

func (e signalError) Error() string { return "stopped by " + e.name }

// forwarded are the signals that go to the program inside, by their names
// there. SIGINT does so once; then it ends the run.
var forwarded = map[os.Signal]string{
	syscall.SIGINT:  "SIGINT",
	syscall.SIGQUIT: "SIGQUIT",
	syscall.SIGUSR1: "SIGUSR1",
	syscall.SIGUSR2: "SIGUSR2",
}

// interrupts cancels a context when the user, or the system, wants this
// process to end, but lets a running program have the first Ctrl-C.
type interrupts struct {
	cancel context.CancelCauseFunc
	ch     chan os.Signal
	done   chan struct{}

	mu      sync.Mutex
	forward func(name string)
	hangup  func()
	passed  bool // a SIGINT went to the program
}

// watchInterrupts returns a context that SIGINT, SIGTERM and SIGHUP cancel
// with a signalError. A signal that the parent had ignored (nohup, a shell's
// background job) stays ignored.
func watchInterrupts(ctx context.Context) (context.Context, *interrupts) {
	ctx, cancel := context.WithCancelCause(ctx)
	i := &interrupts{cancel: cancel, ch: make(chan os.Signal, 8), done: make(chan struct{})}
	for _, s := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		if !signal.Ignored(s) {
			signal.Notify(i.ch, s)
		}
	}
	// Handled, so that writing to a closed pipe is an error and not the end of
	// this process; not ignored, since children would inherit that.
	signal.Notify(i.ch, syscall.SIGPIPE)
	go i.loop()
	return ctx, i
}

func (i *interrupts) loop() {
	for {
		select {
		case s := <-i.ch:
			i.handle(s)
		case <-i.done:
			return
		}
	}
}

func (i *interrupts) handle(s os.Signal) {
	if s == syscall.SIGPIPE {
		return
	}
	i.mu.Lock()
	if s == syscall.SIGHUP && i.hangup != nil {
		go i.hangup()
		i.mu.Unlock()
		return
	}
	forward := i.forward
	if s == syscall.SIGINT {
		if i.passed {
			forward = nil
		}
		i.passed = forward != nil
	}
	i.mu.Unlock()
	if name := forwarded[s]; name != "" && forward != nil {
		go forward(name) // the next signal must not wait for this one's delivery
		return
	}
	n, ok := s.(syscall.Signal)
	if !ok {
		return
	}
	i.cancel(signalError{name: signalName(n), number: int(n)})
	// Cleaning up has begun. Who cannot wait for it ends this process the
	// usual way; the backend then cleans up after it.
	signal.Reset(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
}

// forwardTo sends the signals in forwarded to f until the returned function is
// called.
func (i *interrupts) forwardTo(f func(name string)) (stop func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.forward, i.passed = f, false
	more := []os.Signal{syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}
	for _, s := range more {
		if !signal.Ignored(s) {
			signal.Notify(i.ch, s)
		}
	}
	return func() {
		signal.Reset(more...)
		i.mu.Lock()
		defer i.mu.Unlock()
		i.forward = nil
	}
}

// onHangup has SIGHUP call f, and nothing else, until the returned function is
// called: who serves reads its configuration again.
func (i *interrupts) onHangup(f func()) (stop func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.hangup = f
	signal.Notify(i.ch, syscall.SIGHUP) // also where it was ignored: it does not end anything here
	return func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.hangup = nil
	}
}

func (i *interrupts) close() {
	signal.Stop(i.ch)
	close(i.done)
	i.cancel(nil)
}

func signalName(s syscall.Signal) string {
	switch s {
	case syscall.SIGINT:
		return "SIGINT"
	case syscall.SIGTERM:
		return "SIGTERM"
	case syscall.SIGHUP:
		return "SIGHUP"
	}
	return fmt.Sprintf("signal %d", int(s))
}
