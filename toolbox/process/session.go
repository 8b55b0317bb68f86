package process

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// session is one long-lived shell that runs commands one after another.
//
// The shell reads a line of script for each command from a pipe. It runs the
// command with eval, in its own context, with standard input, output and error
// redirected to FIFOs that are the command's alone, and then writes the exit
// code to another FIFO. So output of one command, even of what it left in the
// background, never gets among another's, nothing that a program prints can be
// taken for the end of a command, and no descriptor of this machinery is open
// in the user's programs.
type session struct {
	id      string
	service *Service
	shell   *Process
	// dir has the FIFOs. It belongs to the agent: the account passes through
	// it but cannot put anything into it.
	dir     string
	stdin   *os.File
	control *os.File
	// ended is closed when the shell is gone and every command has an end.
	ended chan struct{}
	// deleted is closed at the beginning of a deletion.
	deleted chan struct{}

	mu       sync.Mutex
	commands []*sessionCommand
	queue    []*sessionCommand
	wake     chan struct{}
	over     bool // the shell is gone: no more commands
	endOnce  sync.Once
}

// sessionCommand is a command of a session.
type sessionCommand struct {
	id, text string
	async    bool
	// quiet keeps input out of the log.
	quiet bool
	log   *outputLog
	// started is closed when it has its input, done when it has ended.
	started, done chan struct{}

	inputMu sync.Mutex
	input   *os.File

	mu        sync.Mutex
	exit      *int
	cancelled bool
}

var (
	errSessionEnded   = errors.New("the session's shell has ended")
	errTooManyWaiting = errors.New("too many commands wait for the session's shell: wait for some of them to end, or use another session")
)

const (
	// maxWaiting bounds a session's queue.
	maxWaiting = 10_000
	// maxKept bounds how many commands of a session are remembered; beyond
	// it the oldest that has ended is forgotten with its log.
	maxKept = 10_000
)

func (c *sessionCommand) describe() wire.Command {
	c.mu.Lock()
	defer c.mu.Unlock()
	return wire.Command{ID: c.id, Command: c.text, ExitCode: c.exit}
}

// newSession starts the shell of a session in dir.
func (s *Service) newSession(id, dir string) (*session, error) {
	base, err := s.logDir()
	if err != nil {
		return nil, err
	}
	ss := &session{id: id, service: s, ended: make(chan struct{}), deleted: make(chan struct{}), wake: make(chan struct{}, 1)}
	if ss.dir, err = os.MkdirTemp(base, "session-"); err != nil {
		return nil, fmt.Errorf("make the session's directory: %w", err)
	}
	fail := func(err error) (*session, error) {
		if ss.control != nil {
			ss.control.Close()
		}
		if ss.stdin != nil {
			ss.stdin.Close()
		}
		_ = os.RemoveAll(ss.dir)
		return nil, err
	}
	if err := os.Chmod(ss.dir, 0o711); err != nil {
		return fail(err)
	}
	if err := ss.makeFIFO("control"); err != nil {
		return fail(err)
	}
	// Open for writing as well: it must not end when no command writes.
	if ss.control, err = ss.openFIFO("control", unix.O_RDWR); err != nil {
		return fail(err)
	}
	r, w, err := inputPipe()
	if err != nil {
		return fail(err)
	}
	ss.stdin = w
	shell := s.scriptShell()
	ss.shell, err = s.spawner.Start(&Spec{Args: []string{shellName(shell)}, Path: shell, Dir: dir, Stdin: r})
	unix.Close(r)
	if err != nil {
		return fail(err)
	}
	go ss.run()
	return ss, nil
}

func (ss *session) path(name string) string { return filepath.Join(ss.dir, name) }

// makeFIFO makes a FIFO that is the account's.
func (ss *session) makeFIFO(name string) error {
	if err := unix.Mkfifo(ss.path(name), 0o600); err != nil {
		return fmt.Errorf("make FIFO %s: %w", ss.path(name), err)
	}
	a := ss.service.spawner.account
	if a.Credential() != nil {
		if err := os.Lchown(ss.path(name), a.UID, a.GID); err != nil {
			return fmt.Errorf("give FIFO %s to the account: %w", ss.path(name), err)
		}
	}
	return nil
}

func (ss *session) openFIFO(name string, mode int) (*os.File, error) {
	fd, err := unix.Open(ss.path(name), mode|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open FIFO %s: %w", ss.path(name), err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// newCommandID returns a random UUID (version 4), as clients know them.
func newCommandID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func (ss *session) newCommand(text string, async, quiet bool) *sessionCommand {
	return &sessionCommand{
		id: newCommandID(), text: text, async: async, quiet: quiet,
		log:     newOutputLog(ss.dir, ss.service.logLimit),
		started: make(chan struct{}), done: make(chan struct{}),
	}
}

// enqueue adds a command. It is errSessionEnded if there is no shell any more.
func (ss *session) enqueue(c *sessionCommand) error {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.over {
		return errSessionEnded
	}
	if len(ss.queue) >= maxWaiting {
		return errTooManyWaiting
	}
	if len(ss.commands) >= maxKept {
		if i := slices.IndexFunc(ss.commands, (*sessionCommand).hasEnded); i >= 0 {
			ss.commands[i].log.remove()
			ss.commands = slices.Delete(ss.commands, i, i+1)
		}
	}
	ss.commands = append(ss.commands, c)
	ss.queue = append(ss.queue, c)
	select {
	case ss.wake <- struct{}{}:
	default:
	}
	return nil
}

func (c *sessionCommand) hasEnded() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

func (ss *session) command(id string) *sessionCommand {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, c := range ss.commands {
		if c.id == id {
			return c
		}
	}
	return nil
}

func (ss *session) describe() wire.Session {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	w := wire.Session{SessionID: ss.id, Commands: make([]wire.Command, 0, len(ss.commands))}
	for _, c := range ss.commands {
		w.Commands = append(w.Commands, c.describe())
	}
	return w
}

// run feeds the shell until it ends.
func (ss *session) run() {
	var status Status
	gone := make(chan struct{})
	go func() {
		status = ss.shell.Wait()
		// Wakes the reader of the exit codes.
		settle(ss.control, 0)
		close(gone)
	}()
	codes := bufio.NewReaderSize(ss.control, 4<<10)
	for running := true; running; {
		ss.mu.Lock()
		var c *sessionCommand
		if len(ss.queue) > 0 {
			c = ss.queue[0]
			ss.queue = ss.queue[1:]
		}
		ss.mu.Unlock()
		if c == nil {
			select {
			case <-ss.wake:
			case <-gone:
				running = false
			}
			continue
		}
		running = ss.runCommand(c, codes, gone, &status)
	}
	<-gone
	ss.mu.Lock()
	ss.over = true
	rest := ss.queue
	ss.queue = nil
	ss.mu.Unlock()
	for _, c := range rest {
		// It never ran.
		close(c.started)
		c.finish(-1, true)
	}
	ss.stdin.Close()
	ss.control.Close()
	close(ss.ended)
}

// runCommand runs one command to its end and says whether the shell is still
// there.
func (ss *session) runCommand(c *sessionCommand, codes *bufio.Reader, gone <-chan struct{}, status *Status) (alive bool) {
	io, err := ss.prepare(c)
	if err != nil {
		c.log.append(stderrStream, []byte("cannot run the command: "+err.Error()+"\n"))
		close(c.started)
		c.finish(-1, false)
		return true
	}
	close(c.started)
	io.copy(c)
	alive = true
	var code int
	// A write fails only when the shell is gone.
	if _, err := ss.stdin.WriteString(io.script); err != nil {
		<-gone
	}
	for {
		line, err := codes.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			// The shell has ended, perhaps by the command; it may still have
			// got to writing the code before.
			<-gone
			alive, code = false, status.Code
			if late, ok := ss.lateCode(c); ok {
				code = late
			}
			break
		}
		// Whatever else comes this way, from a program that found the FIFO,
		// is none of ours.
		id, number, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
		if n, err := strconv.Atoi(number); err == nil && id == c.id {
			code = n
			break
		}
	}
	io.close()
	c.finish(code, !alive && ss.isDeleted())
	return alive
}

// lateCode reads the control FIFO once more after the shell's end.
func (ss *session) lateCode(c *sessionCommand) (code int, ok bool) {
	conn, err := ss.control.SyscallConn()
	if err != nil {
		return 0, false
	}
	buf := make([]byte, 4<<10)
	n := 0
	_ = conn.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), buf) })
	for line := range strings.Lines(string(buf[:max(n, 0)])) {
		id, number, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if v, err := strconv.Atoi(number); err == nil && id == c.id {
			return v, true
		}
	}
	return 0, false
}

func (ss *session) isDeleted() bool {
	select {
	case <-ss.deleted:
		return true
	default:
		return false
	}
}

// commandIO is what connects one command to the agent.
type commandIO struct {
	ss     *session
	c      *sessionCommand
	names  []string
	script string
	// readers are the agent's ends of standard output and error. keep holds
	// the other ends open until the shell has opened them.
	readers [2]*os.File
	keep    [2]*os.File
	pumps   sync.WaitGroup
}

// prepare makes the FIFOs of a command and the script that runs it.
func (ss *session) prepare(c *sessionCommand) (_ *commandIO, err error) {
	io := &commandIO{ss: ss, c: c}
	defer func() {
		if err != nil {
			io.release()
		}
	}()
	make := func(suffix string) (string, error) {
		name := c.id + suffix
		io.names = append(io.names, name)
		return name, ss.makeFIFO(name)
	}
	for i, suffix := range []string{".out", ".err"} {
		name, err := make(suffix)
		if err != nil {
			return nil, err
		}
		if io.readers[i], err = ss.openFIFO(name, unix.O_RDONLY); err != nil {
			return nil, err
		}
		if io.keep[i], err = ss.openFIFO(name, unix.O_WRONLY); err != nil {
			return nil, err
		}
	}
	stdin := os.DevNull
	if c.async {
		name, err := make(".in")
		if err != nil {
			return nil, err
		}
		// For both, so that neither end waits for the other to open it.
		f, err := ss.openFIFO(name, unix.O_RDWR)
		if err != nil {
			return nil, err
		}
		c.inputMu.Lock()
		c.input = f
		c.inputMu.Unlock()
		stdin = ss.path(name)
	}
	run := "eval " + quote(c.text+"\n")
	if len(c.text) > longCommand {
		// A shell reads a pipe byte by byte.
		name := c.id + ".sh"
		io.names = append(io.names, name)
		if err := os.WriteFile(ss.path(name), []byte(c.text+"\n"), 0o600); err != nil {
			return nil, fmt.Errorf("write the command to a file: %w", err)
		}
		if a := ss.service.spawner.account; a.Credential() != nil {
			if err := os.Lchown(ss.path(name), a.UID, a.GID); err != nil {
				return nil, fmt.Errorf("give the command's file to the account: %w", err)
			}
		}
		run = ". " + quote(ss.path(name))
	}
	// "command" keeps a syntax error from ending dash, and a function of the
	// user's from taking the place of printf.
	io.script = fmt.Sprintf("{ command %s\n} <%s >%s 2>%s\ncommand printf '%%s %%s\\n' %s \"$?\" >%s\n",
		run, quote(stdin), quote(ss.path(io.names[0])), quote(ss.path(io.names[1])), c.id, quote(ss.path("control")))
	return io, nil
}

// longCommand is the length in bytes from which a command goes through a file.
const longCommand = 8 << 10

// quote makes one word of a shell of s.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// copy moves the output to the log until it ends.
func (io *commandIO) copy(c *sessionCommand) {
	for i, f := range io.readers {
		stream := byte(stdoutStream + i)
		io.pumps.Add(1)
		go func() {
			buf := make([]byte, 32<<10)
			p := pump{f: f, buf: buf, sink: func(b []byte) error { c.log.append(stream, b); return nil }}
			open, _ := p.run()
			io.pumps.Done()
			if open {
				// The command has ended, something it left behind has not:
				// its output still belongs to this log.
				_ = f.SetReadDeadline(time.Time{})
				p.buf = make([]byte, 4<<10)
				_, _ = p.run()
			}
			f.Close()
		}()
	}
}

// close ends the command's input and waits for its output: to the end, or for
// a short time if something in the background holds it open.
func (io *commandIO) close() {
	for _, f := range io.keep {
		f.Close()
	}
	for _, f := range io.readers {
		settle(f, settleTime)
	}
	io.pumps.Wait()
	io.c.closeInput()
	io.unlink()
}

func (io *commandIO) release() {
	for i := range io.readers {
		if io.readers[i] != nil {
			io.readers[i].Close()
		}
		if io.keep[i] != nil {
			io.keep[i].Close()
		}
	}
	io.c.closeInput()
	io.unlink()
}

func (io *commandIO) unlink() {
	for _, name := range io.names {
		_ = os.Remove(io.ss.path(name))
	}
}

func (c *sessionCommand) closeInput() {
	c.inputMu.Lock()
	f := c.input
	c.input = nil
	c.inputMu.Unlock()
	if f != nil {
		f.Close()
	}
}

func (c *sessionCommand) finish(code int, cancelled bool) {
	c.mu.Lock()
	c.exit, c.cancelled = &code, cancelled
	c.mu.Unlock()
	c.log.finish()
	close(c.done)
}

// errInputClosed says that a command reads no more input.
var errInputClosed = errors.New("the command has ended")

// send writes to a command's standard input; it blocks while the command does
// not read.
func (c *sessionCommand) send(ctx context.Context, data string) error {
	select {
	case <-c.started:
	case <-ctx.Done():
		return ctx.Err()
	}
	if !strings.HasSuffix(data, "\n") {
		data += "\n"
	}
	c.inputMu.Lock()
	f := c.input
	c.inputMu.Unlock()
	if f == nil || c.hasEnded() {
		return errInputClosed
	}
	if !c.quiet {
		c.log.append(stdoutStream, []byte(data))
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetWriteDeadline(time.Now()) })
	_, err := f.WriteString(data)
	stop()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrClosed), errors.Is(err, unix.EPIPE):
		return errInputClosed
	}
	return fmt.Errorf("write to the command's standard input: %w", err)
}

// end terminates the shell and everything that was started in it, and removes
// what is left of the session.
func (ss *session) end(grace time.Duration) {
	ss.endOnce.Do(func() {
		close(ss.deleted)
		if grace > 0 {
			ss.shell.Terminate(grace)
		} else {
			ss.shell.KillTree()
		}
		<-ss.ended
		ss.mu.Lock()
		defer ss.mu.Unlock()
		for _, c := range ss.commands {
			c.log.remove()
		}
		_ = os.RemoveAll(ss.dir)
	})
}

// FollowEntrypoint passes on the entrypoint's output from its beginning until its
// end, until done is closed, or until fn returns an error. It returns at once if
// there is no entrypoint. A slow fn misses what the log does not keep.
func (s *Service) FollowEntrypoint(done <-chan struct{}, fn func(stderr bool, p []byte) error) error {
	s.mu.Lock()
	ss := s.sessions[wire.EntrypointSession]
	s.mu.Unlock()
	if ss == nil {
		return nil
	}
	rd := ss.command(wire.EntrypointCommand).log.follow()
	defer rd.close()
	return copyLog(rd, done, func(stream byte, p []byte) error { return fn(stream == stderrStream, p) })
}

// StartEntrypoint runs a program as the command "entrypoint_command" of the
// reserved session "entrypoint". Its output is logged, it has no input, and
// nothing but reading can be done with it through the API. It may be called
// once.
func (s *Service) StartEntrypoint(args []string) error {
	base, err := s.logDir()
	if err != nil {
		return err
	}
	ss := &session{id: wire.EntrypointSession, service: s, ended: make(chan struct{}), deleted: make(chan struct{}), over: true}
	if ss.dir, err = os.MkdirTemp(base, "session-"); err != nil {
		return fmt.Errorf("make the entrypoint's directory: %w", err)
	}
	c := ss.newCommand(strings.Join(args, " "), false, false)
	c.id = wire.EntrypointCommand
	close(c.started)
	ss.commands = []*sessionCommand{c}

	var readers [2]*os.File
	var ends [2]int
	for i := range readers {
		if readers[i], ends[i], err = outputPipe(); err != nil {
			closeFDs(ends[0])
			return err
		}
	}
	p, err := s.spawner.Start(&Spec{Args: args, Stdout: ends[0], Stderr: ends[1]})
	closeFDs(ends[0], ends[1])
	if err != nil {
		readers[0].Close()
		readers[1].Close()
		_ = os.RemoveAll(ss.dir)
		return fmt.Errorf("entrypoint: %w", err)
	}
	ss.shell = p
	if err := s.add(ss); err != nil {
		p.KillTree()
		p.Wait()
		return err
	}
	io := &commandIO{ss: ss, c: c, readers: readers}
	io.copy(c)
	go func() {
		status := p.Wait()
		for _, f := range readers {
			settle(f, settleTime)
		}
		io.pumps.Wait()
		c.finish(status.Code, ss.isDeleted())
		close(ss.ended)
	}()
	return nil
}

var (
	errSessionExists = errors.New("exists already")
	errClosed        = errors.New("the agent is shutting down")
)

// add makes a session known.
func (s *Service) add(ss *session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	if s.sessions[ss.id] != nil {
		return errSessionExists
	}
	s.sessions[ss.id] = ss
	s.order = append(s.order, ss)
	return nil
}
