//go:build linux

// Package companion is what the programs that an engine starts beside a sandbox
// have in common, daytona-net and daytona-s3fs: how they are told what to do and
// say that they are ready, and what rights they give up. It knows nothing of what
// they are for.
package companion

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// Options say how a program is started.
type Options struct {
	// Start starts the prepared command. Defaults to (*exec.Cmd).Start.
	Start func(*exec.Cmd) error
	// Config is the line that the program reads from its standard input.
	Config []byte
	// Answer is given the line that the program writes to its standard output when
	// it is ready, or has given up; an error of it ends the program.
	Answer func(line []byte) error
	// MaxAnswer is how long that line may be, in bytes.
	MaxAnswer int64
	// Timeout is how long all that may take, unless ctx ends before.
	Timeout time.Duration
}

// Start starts a program and waits for its answer. If there is an error, no
// process is left; otherwise the caller has to wait for it.
func Start(ctx context.Context, cmd *exec.Cmd, o Options) (err error) {
	in, inWrite, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	defer inWrite.Close()
	outRead, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	defer outRead.Close()
	cmd.Stdin, cmd.Stdout = in, out
	start := o.Start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(cmd); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}()
	out.Close()
	in.Close()
	deadline := time.Now().Add(o.Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = inWrite.SetWriteDeadline(deadline)
	_ = outRead.SetReadDeadline(deadline)
	stop := context.AfterFunc(ctx, func() {
		_ = inWrite.SetWriteDeadline(time.Unix(1, 0))
		_ = outRead.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	line, err := exchange(inWrite, outRead, o)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return err
	}
	return o.Answer(line)
}

func exchange(in io.WriteCloser, out io.Reader, o Options) ([]byte, error) {
	if _, err := in.Write(append(slices.Clip(o.Config), '\n')); err != nil {
		return nil, fmt.Errorf("configure it: %w", err)
	}
	in.Close()
	return ReadAnswer(out, o.MaxAnswer)
}

// ReadAnswer reads a line of at most limit bytes.
func ReadAnswer(r io.Reader, limit int64) ([]byte, error) {
	line, err := bufio.NewReader(io.LimitReader(r, limit)).ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		err = errors.New("it ended without an answer")
	}
	return line, err
}

// Protect keeps others of the same user from tracing this process and from
// reading its memory.
func Protect() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid tracing: %w", err)
	}
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	return nil
}

// DropSyscalls takes the system calls away with which a process that was taken
// over gets at other programs, processes, mounts and the kernel. It sets
// no_new_privs on all threads. The error is the kernel's, if it cannot do it.
func DropSyscalls() error {
	return seccomp.LoadFilter(seccomp.Filter{NoNewPrivs: true, Flag: seccomp.FilterFlagTSync, Policy: seccomp.Policy{
		DefaultAction: seccomp.ActionAllow,
		Syscalls: []seccomp.SyscallGroup{{Action: seccomp.ActionKillProcess, Names: []string{
			"execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp",
			"mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree", "fsopen", "fsmount", "unshare", "setns",
			"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "keyctl", "add_key", "request_key",
			"init_module", "finit_module", "delete_module", "kexec_load", "reboot", "swapon", "swapoff",
		}}},
	}})
}
