package netstack

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/companion"
	"github.com/daytona-go/daytona/internal/network/userspace"
)

// Run is the whole of the process that userspace.Start starts: it reads its configuration from
// standard input, gives up what rights it has, says that it is ready, and carries packets until
// the sandbox or its lifeline ends, which is no error.
func Run(ctx context.Context) error {
	err := run(ctx)
	if err != nil {
		// To whoever waits for readiness; too late for that it does no harm.
		_ = json.NewEncoder(os.Stdout).Encode(userspace.Reply{Error: err.Error()})
	}
	return err
}

func run(ctx context.Context) error {
	for _, fd := range []int{userspace.DeviceFD, userspace.LifelineFD, userspace.ControlFD} {
		unix.CloseOnExec(fd)
	}
	var config userspace.Config
	dec := json.NewDecoder(io.LimitReader(os.Stdin, userspace.MaxLine))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&config); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	level := slog.LevelInfo
	if config.Debug {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if err := confine(log); err != nil {
		return err
	}
	s, err := Open(Config{
		FD: userspace.DeviceFD, Kind: config.Kind, Policy: config.Policy,
		Resolvers: config.Resolvers, MaxFlows: config.MaxFlows, Log: log,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var control net.Listener
	if config.Control {
		if control, err = net.FileListener(os.NewFile(userspace.ControlFD, "control")); err != nil {
			return fmt.Errorf("open the control socket: %w", err)
		}
		defer control.Close()
	}
	if config.Lifeline {
		go func() {
			defer cancel()
			waitLifeline()
		}()
	}
	if control != nil {
		go s.listen(control, log)
	}
	p := s.Policy()
	if err := json.NewEncoder(os.Stdout).Encode(userspace.Reply{Policy: &p}); err != nil {
		return fmt.Errorf("report readiness: %w", err)
	}
	os.Stdout.Close()
	if err := s.Serve(ctx); err != nil {
		log.Info("the network ends", "reason", err)
	}
	return nil
}

// waitLifeline waits until the lifeline is readable or closed. It never reads: a pidfd, which
// becomes readable when its process ends, will do as well as a pipe.
func waitLifeline() {
	for {
		fds := []unix.PollFd{{Fd: userspace.LifelineFD, Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != unix.EINTR {
			return
		}
	}
}

// listen serves the control socket.
func (s *Stack) listen(l net.Listener, log *slog.Logger) {
	for {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			log.Warn("control socket", "error", err)
			time.Sleep(time.Second) // out of descriptors, say
			continue
		}
		s.answer(conn, log)
	}
}

// answer serves one request, for the engine's own user (or root) alone.
func (s *Stack) answer(conn net.Conn, log *slog.Logger) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if err := checkPeer(conn); err != nil {
		log.Warn("refused a control connection", "reason", err)
		return
	}
	line, err := bufio.NewReader(io.LimitReader(conn, userspace.MaxLine)).ReadBytes('\n')
	if err != nil {
		return
	}
	var request userspace.Request
	reply := userspace.Reply{}
	if err := json.Unmarshal(line, &request); err != nil {
		reply.Error = err.Error()
	} else if request.Policy != nil {
		if err := s.SetPolicy(*request.Policy); err != nil {
			reply.Error = err.Error()
		} else {
			log.Info("changed the policy", "mode", request.Policy.Mode)
		}
	}
	p := s.Policy()
	reply.Policy = &p
	_ = json.NewEncoder(conn).Encode(reply)
}

func checkPeer(conn net.Conn) error {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("not a Unix socket")
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if uid := uint32(os.Geteuid()); cred.Uid != uid && cred.Uid != 0 {
		return fmt.Errorf("user %d is not user %d", cred.Uid, uid)
	}
	return nil
}

// confine gives up what this process can do without: files, other programs, other processes. A
// sandbox that takes it over through a bug in the network stack has the host's network, as any
// process of the user has, and nothing else. What the kernel is too old for is left out.
func confine(log *slog.Logger) error {
	if err := companion.Protect(); err != nil {
		return err
	}
	if err := companion.DropSyscalls(); err != nil {
		log.Debug("the kernel cannot take system calls away from this process", "reason", err)
	}
	// After the filter, which has set no_new_privs on all threads.
	if err := landlock(); err != nil {
		log.Debug("the kernel cannot take the file system away from this process", "reason", err)
	}
	return nil
}

// landlock takes the whole file system away, and with newer kernels signals and abstract sockets
// (linux/landlock.h).
func landlock() error {
	abi, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return e
	}
	const scopeAbstractUnixSocket, scopeSignal = 1, 2
	attr := struct{ fs, net, scoped uint64 }{fs: 1<<13 - 1}
	size := unsafe.Sizeof(attr.fs)
	if abi >= 2 {
		attr.fs |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		attr.fs |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 6 {
		attr.scoped = scopeAbstractUnixSocket | scopeSignal
		size = unsafe.Sizeof(attr)
	}
	fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if e != 0 {
		return e
	}
	defer unix.Close(int(fd))
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); e != 0 {
		return e
	}
	return nil
}
