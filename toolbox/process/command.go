package process

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// inputFrames of 64 KiB at most are held for a program that does not
	// read; then its client has to wait.
	inputFrames = 16
	// commandPipe is the size of a command's output pipes in bytes.
	commandPipe = 256 << 10
	maxTerminal = 1000
)

// command serves GET /process/command: one program, its streams apart; see
// [wire.CommandPath].
func (s *Service) command(w http.ResponseWriter, r *http.Request) {
	req, err := wire.DecodeCommandSpec(r.URL.Query().Get("spec"))
	if err != nil {
		fail(w, r, http.StatusBadRequest, "", "query parameter spec: %v", err)
		return
	}
	if err := checkCommand(&req); err != nil {
		fail(w, r, http.StatusBadRequest, "", "%v", err)
		return
	}
	if !IsUpgrade(r) {
		w.Header().Set("Upgrade", "websocket")
		wire.WriteError(w, r, http.StatusUpgradeRequired, "", "this operation is a WebSocket: ask for the upgrade")
		return
	}
	c, err := s.startCommand(&req)
	if err != nil {
		status := http.StatusUnprocessableEntity
		switch {
		case errors.Is(err, fs.ErrNotExist):
			status = http.StatusNotFound
		case errors.Is(err, fs.ErrPermission):
			status = http.StatusForbidden
		}
		wire.WriteError(w, r, status, wire.CodeCommandStart, err.Error())
		return
	}
	defer s.track(c.process)()
	sock, err := AcceptSocket(w, r, wire.CommandFrameLimit)
	if err != nil {
		s.logger.Debug("command socket", "error", err)
		c.process.KillTree()
		c.process.Wait()
		c.closeAll()
		return
	}
	defer sock.Drop()
	c.serve(sock, time.Duration(req.Timeout)*time.Millisecond)
}

func checkCommand(req *wire.CommandRequest) error {
	if len(req.Args) == 0 || req.Args[0] == "" {
		return errors.New("args: the program is required")
	}
	for _, a := range req.Args {
		if strings.ContainsRune(a, 0) {
			return errors.New("args must not contain NUL bytes")
		}
	}
	if strings.ContainsRune(req.Cwd, 0) {
		return errors.New("cwd must not contain NUL bytes")
	}
	if req.Timeout < 0 || req.Timeout > int64(time.Duration(1<<63-1)/time.Millisecond) {
		return errors.New("timeout: not a number of milliseconds; 0 is none")
	}
	if (req.Cols != 0 || req.Rows != 0) && !validSize(req.Cols, req.Rows) {
		return errors.New("cols and rows: both from 1 to 1000, or both absent")
	}
	return CheckEnv(req.Envs)
}

func validSize(cols, rows int) bool {
	return cols >= 1 && cols <= maxTerminal && rows >= 1 && rows <= maxTerminal
}

// runningCommand is a program with the agent's ends of its streams.
type runningCommand struct {
	process *Process
	// outputs are standard output and error, or the terminal alone.
	outputs [2]*os.File
	// input is nil if the program has none. On a terminal it is the terminal.
	input    *os.File
	terminal bool
}

func (c *runningCommand) closeAll() {
	for _, f := range c.outputs {
		if f != nil {
			f.Close()
		}
	}
	if c.input != nil && !c.terminal {
		c.input.Close()
	}
}

func (s *Service) startCommand(req *wire.CommandRequest) (_ *runningCommand, err error) {
	c := &runningCommand{}
	spec := Spec{Args: req.Args, Dir: req.Cwd, Env: req.Envs}
	var theirs []int
	defer func() {
		closeFDs(theirs...)
		if err != nil {
			c.closeAll()
		}
	}()
	if req.Cols > 0 {
		c.terminal = true
		master, slave, err := s.spawner.OpenTerminal(req.Cols, req.Rows)
		if err != nil {
			return nil, err
		}
		defer slave.Close()
		c.outputs[0], c.input = master, master
		fd := int(slave.Fd())
		spec.Stdin, spec.Stdout, spec.Stderr, spec.Terminal = fd, fd, fd, true
		if _, ok := req.Envs["TERM"]; !ok {
			env := map[string]string{"TERM": "xterm-256color"}
			for k, v := range req.Envs {
				env[k] = v
			}
			spec.Env = env
		}
	} else {
		for i, to := range []*int{&spec.Stdout, &spec.Stderr} {
			r, end, err := outputPipe()
			if err != nil {
				return nil, err
			}
			c.outputs[i], *to = r, end
			theirs = append(theirs, end)
			// Larger pipes mean fewer wake-ups; the limit of the account's
			// pipes may refuse.
			if i == 0 {
				_, _ = unix.FcntlInt(uintptr(end), unix.F_SETPIPE_SZ, commandPipe)
			}
		}
		if req.Stdin {
			end, in, err := inputPipe()
			if err != nil {
				return nil, err
			}
			c.input, spec.Stdin = in, end
			theirs = append(theirs, end)
		}
	}
	c.process, err = s.spawner.Start(&spec)
	return c, err
}

// OpenTerminal opens a pseudo-terminal of a size that belongs to the account.
func (s *Spawner) OpenTerminal(cols, rows int) (master, slave *os.File, err error) {
	fail := func(err error) (*os.File, *os.File, error) {
		return nil, nil, &StartError{Program: "terminal", Reason: "open a pseudo-terminal: " + err.Error(), Err: err}
	}
	var ptmx *os.File
	err = s.account.Do(func() error {
		var err error
		ptmx, slave, err = pty.Open()
		return err
	})
	if err != nil {
		return fail(err)
	}
	defer ptmx.Close()
	// Package pty leaves it in blocking mode: each reader would take a thread
	// and could not be stopped.
	fd, err := unix.FcntlInt(ptmx.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		if err = unix.SetNonblock(fd, true); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		slave.Close()
		return fail(err)
	}
	master = os.NewFile(uintptr(fd), "terminal")
	if err := ResizeTerminal(master, cols, rows); err != nil {
		master.Close()
		slave.Close()
		return fail(err)
	}
	return master, slave, nil
}

// SignalTerminal sends a signal to the foreground process group of a terminal,
// and to that of the program that leads it.
func SignalTerminal(p *Process, master *os.File, sig syscall.Signal) error {
	conn, err := master.SyscallConn()
	if err == nil {
		_ = conn.Control(func(fd uintptr) {
			if pgrp, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP); err == nil && pgrp > 1 && pgrp != p.pid {
				_ = unix.Kill(-pgrp, sig)
			}
		})
	}
	return p.Signal(sig)
}

// ResizeTerminal changes the size of a terminal.
func ResizeTerminal(master *os.File, cols, rows int) error {
	conn, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	if err := conn.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(cols), Row: uint16(rows)})
	}); err != nil {
		return err
	}
	return ioctlErr
}

// serve moves bytes until the program has ended.
func (c *runningCommand) serve(sock *Socket, timeout time.Duration) {
	var finished, timedOut atomic.Bool
	killTree := sync.OnceFunc(c.process.KillTree)
	kill := func() {
		if !finished.Load() {
			killTree()
		}
	}
	if timeout > 0 {
		timer := time.AfterFunc(timeout, func() {
			timedOut.Store(true)
			kill()
		})
		defer timer.Stop()
	}
	hello, _ := json.Marshal(wire.CommandEvent{PID: c.process.PID()})
	if sock.WriteText(hello) != nil {
		sock.Drop()
	}

	// Client to program.
	frames := make(chan []byte, inputFrames)
	done := make(chan struct{})
	go c.receive(sock, frames, done, kill)
	go c.feed(frames, done)

	// Program to client. A client that does not read stops the program.
	var pumps sync.WaitGroup
	for i, f := range c.outputs {
		if f == nil {
			continue
		}
		pumps.Go(func() {
			buf := buffers.Get().(*[]byte)
			defer buffers.Put(buf)
			(*buf)[0] = byte(wire.FrameStdout + i)
			p := pump{f: f, buf: *buf, header: 1, sink: sock.WriteBinary}
			open, err := p.run()
			switch {
			case err != nil:
				kill()
				sock.Drop()
				if !c.terminal {
					f.Close()
				}
			case open && !c.terminal && !timedOut.Load():
				abandon(f)
			case !c.terminal:
				f.Close()
			}
		})
	}
	status := c.process.Wait()
	// What it left in the background may hold the pipes for ever.
	for _, f := range c.outputs {
		if f != nil {
			settle(f, settleTime)
		}
	}
	pumps.Wait()
	if timedOut.Load() {
		// The program itself is dead; wait for the rest of its tree.
		killTree()
	}
	finished.Store(true)
	close(done)
	if c.terminal {
		// With this the terminal hangs up on what is left on it.
		c.outputs[0].Close()
	}
	last, _ := json.Marshal(wire.CommandEvent{Exit: &wire.CommandExit{Code: status.Code, Signal: status.Signal, TimedOut: timedOut.Load()}})
	if sock.WriteText(last) == nil {
		sock.Close(1000, "")
	}
}

// receive takes the client's frames until the connection ends, and kills the
// program if that is before its end.
func (c *runningCommand) receive(sock *Socket, frames chan<- []byte, done <-chan struct{}, kill func()) {
	for {
		text, data, err := sock.Read()
		if err != nil {
			kill()
			return
		}
		if text {
			if err := c.control(data); err != nil {
				sock.Close(1003, "text frames are control requests: "+err.Error())
				kill()
				return
			}
			continue
		}
		if len(data) == 0 || data[0] != wire.FrameStdin {
			sock.Close(1003, "binary frames begin with byte 0: standard input")
			kill()
			return
		}
		select {
		case frames <- data[1:]:
			continue
		case <-done:
			continue
		default:
		}
		// No room: the client waits, but that it goes away must be noticed.
		wait, stop := sock.Hangup()
		go func() {
			if wait() {
				kill()
			}
		}()
		select {
		case frames <- data[1:]:
		case <-done:
		}
		stop()
	}
}

// feed writes input to the program.
func (c *runningCommand) feed(frames <-chan []byte, done <-chan struct{}) {
	closed := c.input == nil
	defer func() {
		if c.input != nil && !c.terminal && !closed {
			c.input.Close()
		}
	}()
	go func() {
		<-done
		if c.input != nil {
			_ = c.input.SetWriteDeadline(time.Now())
		}
	}()
	for {
		select {
		case data := <-frames:
			switch {
			case closed:
				// Input for a program that has none, or after its end.
			case len(data) == 0 && c.terminal:
				// The end-of-file character of a terminal in canonical mode.
				_, _ = c.input.Write([]byte{4})
			case len(data) == 0:
				c.input.Close()
				closed = true
			default:
				if _, err := c.input.Write(data); err != nil && !c.terminal {
					c.input.Close()
					closed = true
				}
			}
		case <-done:
			return
		}
	}
}

// control carries out a request. What cannot be carried out (the program has
// ended, the name is no signal) is no reason to end the connection, unlike what
// is no request.
func (c *runningCommand) control(data []byte) error {
	var req wire.CommandControl
	if err := json.Unmarshal(data, &req); err != nil {
		return err
	}
	if req.Signal != "" {
		if sig, err := ParseSignal(req.Signal); err == nil {
			if c.terminal {
				_ = SignalTerminal(c.process, c.outputs[0], sig)
			} else {
				_ = c.process.Signal(sig)
			}
		}
	}
	if c.terminal && validSize(req.Cols, req.Rows) {
		_ = ResizeTerminal(c.outputs[0], req.Cols, req.Rows)
	}
	return nil
}
