package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// shellArgLimit is the greatest length of a command that is given to the shell
// as an argument; Linux allows 128 KiB (MAX_ARG_STRLEN).
const shellArgLimit = 120 << 10

// execute serves POST /process/execute.
func (s *Service) execute(w http.ResponseWriter, r *http.Request) {
	var req wire.ExecuteRequest
	if !decode(w, r, &req) {
		return
	}
	timeout, err := checkExecute(req.Envs, req.Timeout)
	if err == nil && strings.TrimSpace(req.Command) == "" {
		err = errors.New("command is required and must not be empty")
	}
	if err == nil && strings.ContainsRune(req.Command, 0) {
		err = errors.New("command must not contain NUL bytes")
	}
	if err != nil {
		fail(w, r, http.StatusBadRequest, "", "%v", err)
		return
	}
	out := &spool{open: s.tempFile, limit: s.outputLimit}
	defer out.close()
	spec := Spec{Dir: req.Cwd, Env: req.Envs}
	result, err := s.runShell(r.Context(), &spec, req.Command, timeout, out)
	if err != nil {
		// The command could not even be started: a result, on the wire.
		result.status = Status{Code: -1}
		fmt.Fprintln(out, err)
	}
	s.answer(w, r, result, out, nil)
}

// checkExecute checks what execute and code-run have in common. The wire's
// unit of timeouts is seconds, 0 is none.
func checkExecute(env map[string]string, timeout int) (time.Duration, error) {
	if timeout < 0 || timeout > int(time.Duration(1<<63-1)/time.Second) {
		return 0, fmt.Errorf("timeout %d: not a number of seconds; 0 is none", timeout)
	}
	return time.Duration(timeout) * time.Second, CheckEnv(env)
}

// result is how a run ended.
type result struct {
	status    Status
	timedOut  bool
	cancelled bool
}

// runShell runs a script in the account's shell.
//
// The script is an argument of the shell or, where it is too long, a file in
// memory; not, as in the reference implementation, its standard input, where
// the first command that reads would eat the rest of the script. All commands
// in it see the end of file on standard input.
func (s *Service) runShell(ctx context.Context, spec *Spec, script string, timeout time.Duration, out io.Writer) (result, error) {
	if words := plainCommand(script); words != nil {
		if result, err, ok := s.runPlain(ctx, spec, words, timeout, out); ok {
			return result, err
		}
	}
	shell := s.shell()
	spec.Path = shell
	if len(script) <= shellArgLimit {
		spec.Args = []string{shellName(shell), "-c", script}
		return s.run(ctx, spec, timeout, out)
	}
	// The first line closes the file, so that no command inherits it, and
	// keeps the numbers of lines.
	fd, err := memoryFile("script", "exec 3<&-; "+script)
	if err != nil {
		return result{}, err
	}
	defer unix.Close(fd)
	spec.Path = s.scriptShell()
	spec.Args, spec.ExtraFD = []string{shellName(spec.Path), "/proc/self/fd/3"}, fd
	return s.run(ctx, spec, timeout, out)
}

// shell is the account's, or /bin/sh if that is gone.
func (s *Service) shell() string {
	shell := s.spawner.account.Shell
	if shell == "" || unix.Access(shell, unix.X_OK) != nil {
		return "/bin/sh"
	}
	return shell
}

// scriptShell is the account's shell if it is known to speak the language that
// our own scripts are written in, else /bin/sh.
func (s *Service) scriptShell() string {
	shell := s.shell()
	switch filepath.Base(shell) {
	case "bash", "sh", "dash", "ash", "busybox", "ksh", "mksh":
		return shell
	}
	return "/bin/sh"
}

// shellName is what a shell is called as.
func shellName(path string) string {
	if name := filepath.Base(path); name != "busybox" {
		return name
	}
	return "sh"
}

// runPlain runs one program without a shell in between, which saves the
// shell's start (half of the time of a short command) and is what the shell
// would do: it executes the last command of a script in its own place. Where
// there is any difference it declines (ok is false).
func (s *Service) runPlain(ctx context.Context, spec *Spec, words []string, timeout time.Duration, out io.Writer) (_ result, err error, ok bool) {
	dir := s.spawner.resolveDir(spec.Dir)
	env := s.spawner.Environ(spec.Env, dir)
	for _, e := range env {
		// What a shell executes before a command, and what may replace it.
		if strings.HasPrefix(e, "BASH_") || strings.HasPrefix(e, "ENV=") || strings.HasPrefix(e, "SHELLOPTS=") || strings.HasPrefix(e, "BASHOPTS=") {
			return result{}, nil, false
		}
	}
	path, err := LookPath(words[0], dir, env)
	if err != nil || unix.Access(path, unix.X_OK) != nil {
		return result{}, nil, false
	}
	plain := *spec
	plain.Args, plain.Path = words, path
	plain.Env = make(map[string]string, len(spec.Env)+1)
	for k, v := range spec.Env {
		plain.Env[k] = v
	}
	plain.Env["_"] = path
	res, err := s.run(ctx, &plain, timeout, out)
	if e, isStart := errors.AsType[*StartError](err); isStart && e != nil {
		// A script without #!, for instance: the shell knows what to do.
		return result{}, nil, false
	}
	return res, err, true
}

// plainCommand splits a command into words if no shell could see more in it
// than a program and its arguments. Otherwise it returns nil.
func plainCommand(script string) []string {
	script = strings.Trim(script, " \t\n")
	if len(script) > 4096 {
		return nil
	}
	for i := range len(script) {
		c := script[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte(" _./:,@%+-=", c) >= 0:
		default:
			return nil
		}
	}
	words := strings.Fields(script)
	if len(words) == 0 || strings.ContainsRune(words[0], '=') || shellWords()[words[0]] {
		return nil
	}
	return words
}

// shellWords are the builtins and reserved words of bash, dash, busybox and
// zsh that are not, or not just the same as, a program. true and false are.
var shellWords = sync.OnceValue(func() map[string]bool {
	m := make(map[string]bool)
	for w := range strings.FieldsSeq(`. : alias autoload bg bind bindkey break builtin bye caller case cd chdir
		command compgen complete compopt continue coproc declare dirs disable disown do done echo
		echotc echoti elif else emulate enable esac eval exec exit export fc fg fi float for foreach
		function functions getln getopts hash help history if in integer jobs kill let limit local
		log logout mapfile nocorrect noglob popd print printf pushd pushln pwd r read readarray
		readonly rehash repeat return sched select set setopt shift shopt source stat suspend test
		then time times trap ttyctl type typeset ulimit umask unalias unfunction unhash unlimit
		unset unsetopt until vared wait whence where which while zcompile zformat zle zmodload
		zparseopts zprof zpty zregexparse zsocket zstyle ztcp - end`) {
		m[w] = true
	}
	return m
})

// memoryFile returns a descriptor of a file that is only in memory.
func memoryFile(name, content string) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return 0, fmt.Errorf("make a file in memory: %w", err)
	}
	for b := []byte(content); len(b) > 0; {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			unix.Close(fd)
			return 0, fmt.Errorf("write a file in memory: %w", err)
		}
		b = b[n:]
	}
	if _, err := unix.Seek(fd, 0, io.SeekStart); err != nil {
		unix.Close(fd)
		return 0, fmt.Errorf("rewind a file in memory: %w", err)
	}
	return fd, nil
}

// run runs a program with its output, both streams merged in order, written
// to out. When timeout is over or ctx is cancelled it is killed with
// everything that it started.
func (s *Service) run(ctx context.Context, spec *Spec, timeout time.Duration, out io.Writer) (result, error) {
	pipe, end, err := outputPipe()
	if err != nil {
		return result{}, err
	}
	spec.Stdout, spec.Stderr = end, end
	p, err := s.spawner.Start(spec)
	unix.Close(end)
	if err != nil {
		pipe.Close()
		return result{}, err
	}
	defer s.track(p)()

	var res result
	var timedOut atomic.Bool
	kill := sync.OnceFunc(func() {
		p.KillTree()
		settle(pipe, 0)
	})
	if timeout > 0 {
		timer := time.AfterFunc(timeout, func() {
			timedOut.Store(true)
			kill()
		})
		defer timer.Stop()
	}
	stop := context.AfterFunc(ctx, kill)
	ended := make(chan struct{})
	go func() {
		res.status = p.Wait()
		// A program that it left in the background may hold the pipe for
		// ever.
		settle(pipe, settleTime)
		close(ended)
	}()
	buf := buffers.Get().(*[]byte)
	pu := pump{f: pipe, buf: *buf, sink: func(b []byte) error { _, err := out.Write(b); return err }}
	open, _ := pu.run()
	buffers.Put(buf)
	<-ended
	res.cancelled = !stop()
	res.timedOut = timedOut.Load()
	if res.cancelled || res.timedOut {
		// The program itself is dead; wait for the rest of its tree.
		kill()
	}
	if open && !res.cancelled && !res.timedOut {
		abandon(pipe)
	} else {
		pipe.Close()
	}
	return res, nil
}

// answer writes the outcome of execute and of code-run, large output without
// holding it in memory. charts may be nil.
func (s *Service) answer(w http.ResponseWriter, r *http.Request, res result, out *spool, charts []json.RawMessage) {
	if res.cancelled {
		// Nobody listens any more.
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	b := bufio.NewWriterSize(w, 4<<10)
	if res.timedOut {
		w.WriteHeader(http.StatusRequestTimeout)
		head, _ := json.Marshal(wire.NewError(r, http.StatusRequestTimeout, wire.CodeProcessTimeout, "request timeout: command execution timeout"))
		b.Write(head[:len(head)-1])
		b.WriteByte(',')
	} else {
		w.WriteHeader(http.StatusOK)
		b.WriteByte('{')
	}
	fmt.Fprintf(b, `"exitCode":%d,`, res.status.Code)
	err := jsonField(b, "result", out.writeTo)
	if len(charts) > 0 {
		list, _ := json.Marshal(charts)
		b.WriteString(`,"artifacts":{"charts":`)
		b.Write(list)
		b.WriteByte('}')
	}
	b.WriteString("}\n")
	if err == nil {
		err = b.Flush()
	}
	if err != nil {
		// The status is sent: break the connection so that the client does not
		// take half an answer for a whole one.
		s.logger.Debug("answer was not delivered", "path", r.URL.Path, "error", err)
		panic(http.ErrAbortHandler)
	}
}
