package ssh

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/process"
)

const (
	// settleTime is how long after a program's end its output is still waited
	// for while a background child holds it open.
	settleTime = 100 * time.Millisecond
	// maxTerminal is the greatest number of rows and columns; more is taken for
	// as much.
	maxTerminal              = 1000
	defaultCols, defaultRows = 80, 24
	// maxVariables and maxEnvironment (in bytes) bound what a session's client
	// adds to the environment.
	maxVariables   = 256
	maxEnvironment = 64 << 10
)

// The payloads of a session's requests: RFC 4254, section 6.
type (
	ptyRequest struct {
		Term          string
		Cols, Rows    uint32
		Width, Height uint32 // in pixels
		Modes         string
	}
	windowChange struct{ Cols, Rows, Width, Height uint32 }
	setEnv       struct{ Name, Value string }
	execRequest  struct{ Command string }
	subsystem    struct{ Name string }
	signalName   struct{ Name string }
	exitStatus   struct{ Code uint32 }
	exitSignal   struct {
		Name       string
		CoreDumped bool
		Message    string
		Language   string
	}
)

// session is a channel with a program on it, or files.
type session struct {
	c  *connection
	ch ssh.Channel

	env     map[string]string
	envSize int
	pty     *ptyRequest
	begun   bool

	// done is closed when the program and its output have ended, ready when
	// the program has started, or could not.
	done, ready chan struct{}
	readied     sync.Once

	mu      sync.Mutex
	hungUp  bool
	process *process.Process
	master  *os.File // of a terminal
	stdout  *os.File
}

func newSession(c *connection, ch ssh.Channel) *session {
	s := &session{c: c, ch: ch, env: make(map[string]string), done: make(chan struct{}), ready: make(chan struct{})}
	c.note(s)
	return s
}

// serve answers the channel's requests until the client closes it.
func (s *session) serve(requests <-chan *ssh.Request) {
	for r := range requests {
		if s.c.limit.Wait(s.c.ctx) != nil {
			break
		}
		ok, then := s.request(r.Type, r.Payload)
		if r.WantReply {
			_ = r.Reply(ok, nil)
		}
		if then != nil {
			// After the reply: a client does not expect output before it.
			go func() {
				defer close(s.done)
				defer s.isReady()
				then()
			}()
		}
	}
	s.c.forget(s)
	s.hangUp()
	_ = s.ch.Close()
	if s.begun {
		// What is left on the channel counts.
		<-s.done
	}
}

func (s *session) isReady() { s.readied.Do(func() { close(s.ready) }) }

// hangUp tells the program that nobody is there any more.
func (s *session) hangUp() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hungUp = true
	if s.process != nil {
		_ = s.process.Signal(syscall.SIGHUP)
	}
	if s.stdout != nil {
		// A program that goes on in spite of that is not waited for.
		process.Settle(s.stdout, settleTime)
	}
}

// request carries out one; then, if not nil, is what to do after the reply.
func (s *session) request(kind string, payload []byte) (ok bool, then func()) {
	switch kind {
	case "env":
		var m setEnv
		return ssh.Unmarshal(payload, &m) == nil && s.setEnv(m.Name, m.Value), nil
	case "pty-req":
		var m ptyRequest
		if s.begun || s.pty != nil || ssh.Unmarshal(payload, &m) != nil || len(m.Term) > 256 || process.CheckEnv(map[string]string{"TERM": m.Term}) != nil {
			return false, nil
		}
		s.pty = &m
		return true, nil
	case "auth-agent-req@openssh.com":
		if s.begun || !s.c.config.AgentForwarding {
			return false, nil
		}
		socket, ok := s.c.forwardAgent()
		return ok && s.setEnv("SSH_AUTH_SOCK", socket), nil
	case "shell":
		if s.begun || len(payload) != 0 {
			return false, nil
		}
		s.begun = true
		shell := s.c.spawner.Account().Shell
		if shell == "" || unix.Access(shell, unix.X_OK) != nil {
			shell = "/bin/sh"
		}
		// The dash makes it a login shell.
		args := []string{"-" + shell[strings.LastIndexByte(shell, '/')+1:]}
		return true, func() { s.run(shell, args) }
	case "exec":
		var m execRequest
		if s.begun || ssh.Unmarshal(payload, &m) != nil || strings.ContainsRune(m.Command, 0) {
			return false, nil
		}
		s.begun = true
		return true, func() { s.run("/bin/sh", []string{"sh", "-c", m.Command}) }
	case "subsystem":
		var m subsystem
		if s.begun || ssh.Unmarshal(payload, &m) != nil || m.Name != "sftp" {
			return false, nil
		}
		s.begun = true
		return true, s.files
	case "window-change":
		var m windowChange
		if ssh.Unmarshal(payload, &m) != nil {
			return false, nil
		}
		if s.pty != nil && !s.begun {
			// Not yet there: it will have this size.
			s.pty.Cols, s.pty.Rows = m.Cols, m.Rows
			return true, nil
		}
		s.await()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.master == nil {
			return false, nil
		}
		return process.ResizeTerminal(s.master, size(m.Cols, defaultCols), size(m.Rows, defaultRows)) == nil, nil
	case "signal":
		var m signalName
		if ssh.Unmarshal(payload, &m) != nil {
			return false, nil
		}
		return s.signal(m.Name), nil
	case "eow@openssh.com":
		// The client takes no more output: the program is to notice.
		s.await()
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.stdout != nil && s.master == nil {
			s.stdout.Close()
		}
		return true, nil
	case "keepalive@openssh.com":
		return true, nil
	}
	return false, nil
}

func size(n uint32, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return int(min(n, maxTerminal))
}

func (s *session) setEnv(name, value string) bool {
	if s.begun {
		return false // the environment is the program's by now
	}
	old, known := s.env[name]
	total := s.envSize + len(name) + len(value)
	if known {
		total -= len(name) + len(old)
	}
	if !known && len(s.env) >= maxVariables || total > maxEnvironment || process.CheckEnv(map[string]string{name: value}) != nil {
		return false
	}
	s.env[name], s.envSize = value, total
	return true
}

func (s *session) signal(name string) bool {
	sig, err := process.ParseSignal(name)
	if err != nil {
		return false
	}
	s.await()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.process == nil:
		return false
	case s.master != nil:
		return process.SignalTerminal(s.process, s.master, sig) == nil
	}
	return s.process.Signal(sig) == nil
}

// await waits for the start of a program that has been asked for.
func (s *session) await() {
	if s.begun {
		<-s.ready
	}
}

// files serves the subsystem sftp.
func (s *session) files() {
	s.isReady()
	// Relative paths, and the targets of links, are those of this process: it
	// is in the working directory. The server would close the channel before
	// the exit status is told.
	stream := struct {
		io.ReadWriter
		io.Closer
	}{s.ch, io.NopCloser(nil)}
	server, err := sftp.NewServer(stream)
	code := uint32(0)
	if err == nil {
		err = server.Serve()
		_ = server.Close()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		_, _ = fmt.Fprintf(s.ch.Stderr(), "sftp: %v\n", err)
		code = 1
	}
	s.finish("exit-status", exitStatus{code})
}

// finish says how it ended.
func (s *session) finish(kind string, message any) {
	_ = s.ch.CloseWrite()
	_, _ = s.ch.SendRequest(kind, false, ssh.Marshal(message))
	_ = s.ch.Close()
}

// run runs a program on the channel.
func (s *session) run(path string, args []string) {
	spec := &process.Spec{Path: path, Args: args, Env: s.env}
	// Programs look at it to see whether they are used over SSH. There is no
	// network in between whose addresses it could tell.
	if _, ok := s.env["SSH_CONNECTION"]; !ok {
		s.env["SSH_CONNECTION"] = "127.0.0.1 0 127.0.0.1 22"
	}
	run := s.runPipes
	if s.pty != nil {
		run = s.runTerminal
	}
	status, err := run(spec)
	if err != nil {
		code := uint32(255)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			code = 127
		case errors.Is(err, fs.ErrPermission):
			code = 126
		}
		_, _ = fmt.Fprintf(s.ch.Stderr(), "%v\r\n", err)
		s.finish("exit-status", exitStatus{code})
		return
	}
	if status.Signal != "" {
		s.finish("exit-signal", exitSignal{Name: strings.TrimPrefix(status.Signal, "SIG")})
		return
	}
	code := status.Code
	if code < 0 {
		code = 1
	}
	s.finish("exit-status", exitStatus{uint32(code)})
}

// started notes what can be hung up on. It does so if that has happened
// meanwhile.
func (s *session) started(p *process.Process, stdout, master *os.File) {
	s.mu.Lock()
	s.process, s.stdout, s.master = p, stdout, master
	late := s.hungUp
	s.mu.Unlock()
	s.isReady()
	if late {
		s.hangUp()
	}
}

// ended takes it back before the files are closed.
func (s *session) ended() {
	s.mu.Lock()
	s.process, s.stdout, s.master = nil, nil, nil
	s.mu.Unlock()
}

func (s *session) runTerminal(spec *process.Spec) (process.Status, error) {
	master, slave, err := s.c.spawner.OpenTerminal(size(s.pty.Cols, defaultCols), size(s.pty.Rows, defaultRows))
	if err != nil {
		return process.Status{}, err
	}
	// With this the terminal hangs up on what is left on it.
	defer master.Close()
	applyModes(slave, s.pty.Modes)
	if s.pty.Term != "" {
		s.env["TERM"] = s.pty.Term
	}
	s.env["SSH_TTY"] = slave.Name()
	fd := int(slave.Fd())
	spec.Stdin, spec.Stdout, spec.Stderr, spec.Terminal = fd, fd, fd, true
	p, err := s.c.spawner.Start(spec)
	slave.Close()
	if err != nil {
		return process.Status{}, err
	}
	s.started(p, master, master)
	defer s.ended()
	go func() {
		_, _ = io.Copy(master, s.ch)
		// The end of input is a character here.
		_, _ = master.Write([]byte{4})
	}()
	go func() {
		p.Wait()
		process.Settle(master, settleTime)
	}()
	_, err = process.CopyOutput(master, make([]byte, frameSize), s.write(s.ch))
	if err != nil {
		_ = p.Signal(syscall.SIGHUP)
	}
	return p.Wait(), nil
}

// write is the sink of output.
func (s *session) write(to io.Writer) func([]byte) error {
	return func(b []byte) error {
		_, err := to.Write(b)
		return err
	}
}

func (s *session) runPipes(spec *process.Spec) (status process.Status, err error) {
	var files []*os.File
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
		}
	}()
	for range 3 {
		r, w, err := os.Pipe()
		if err != nil {
			return status, fmt.Errorf("make a pipe: %w", err)
		}
		files = append(files, r, w)
	}
	stdin, stdout, stderr := files[1], files[2], files[4]
	theirs := []*os.File{files[0], files[3], files[5]}
	spec.Stdin, spec.Stdout, spec.Stderr = int(theirs[0].Fd()), int(theirs[1].Fd()), int(theirs[2].Fd())
	p, err := s.c.spawner.Start(spec)
	if err != nil {
		return status, err
	}
	for _, f := range theirs {
		f.Close()
	}
	s.started(p, stdout, nil)
	go func() {
		_, _ = io.Copy(stdin, s.ch)
		stdin.Close()
	}()
	var pumps sync.WaitGroup
	for f, to := range map[*os.File]io.Writer{stdout: s.ch, stderr: s.ch.Stderr()} {
		pumps.Go(func() {
			open, err := process.CopyOutput(f, make([]byte, frameSize), s.write(to))
			if open && err == nil {
				s.c.abandon(f)
				return
			}
			// To write to a client that is gone is an error in the program, too.
			f.Close()
		})
	}
	status = p.Wait()
	process.Settle(stdout, settleTime)
	process.Settle(stderr, settleTime)
	pumps.Wait()
	s.ended()
	stdin.Close()
	return status, nil
}

// abandon keeps reading from a program that was left in the background: it must
// not die of its next line of output.
func (c *connection) abandon(f *os.File) {
	_ = f.SetReadDeadline(time.Time{})
	c.background.Go(func() {
		defer f.Close()
		buf := make([]byte, 4<<10)
		for {
			if _, err := f.Read(buf); err != nil {
				return
			}
		}
	})
}
