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
	"time"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"golang.org/x/sys/unix"
)

// MaxLine is the most that the configuration and the answer may have, in bytes.
const MaxLine = 256 << 10

// Start starts a program, by start, which defaults to (*exec.Cmd).Start, gives it
// a line of configuration on its standard input, and returns the line that it
// answers on its standard output when it is ready, or has given up. It may take as
// long as timeout and ctx allow. If there is an error, no process is left;
// otherwise the caller has to wait for it.
func Start(ctx context.Context, cmd *exec.Cmd, start func(*exec.Cmd) error, config []byte, timeout time.Duration) (answer []byte, err error) {
	in, inWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	defer inWrite.Close()
	outRead, out, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	defer outRead.Close()
	cmd.Stdin, cmd.Stdout = in, out
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(cmd); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
		}
	}()
	out.Close()
	in.Close()
	deadline := time.Now().Add(timeout)
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
	if _, err := inWrite.Write(append(config[:len(config):len(config)], '\n')); err != nil {
		return nil, fmt.Errorf("configure it: %w", err)
	}
	inWrite.Close()
	answer, err = bufio.NewReader(io.LimitReader(outRead, MaxLine)).ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		err = errors.New("it ended without an answer")
	}
	return answer, err
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
