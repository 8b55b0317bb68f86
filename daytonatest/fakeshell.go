package daytonatest

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
)

// FakeCommand is a running program of a [Fake], for its [CommandFunc].
type FakeCommand struct {
	// Args are the program's name and arguments.
	Args []string
	// Dir is where it runs, Env its whole environment.
	Dir string
	Env map[string]string
	// Stdin, Stdout and Stderr are never nil.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Files are those of its sandbox. Relative paths resolve against the
	// sandbox's working directory; use Path first.
	Files daytona.FileSystem

	engine *engine
}

// Path makes a path relative to Dir absolute.
func (c *FakeCommand) Path(name string) string { return resolve(c.Dir, name) }

// fail prints a message and returns an exit code.
func (c *FakeCommand) fail(code int, format string, args ...any) int {
	fmt.Fprintf(c.Stderr, "%s: %s\n", c.Args[0], fmt.Sprintf(format, args...))
	return code
}

// program finds what runs under a name.
func (e *engine) program(name string) CommandFunc {
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.commands[name]; f != nil {
		return f
	}
	if f := e.commands[path.Base(name)]; f != nil && strings.Contains(name, "/bin/") {
		return f
	}
	base := name
	if dir := path.Dir(name); dir == "/bin" || dir == "/usr/bin" {
		base = path.Base(name)
	}
	switch base {
	case "sh", "bash":
		return runSh
	case "echo":
		return func(_ context.Context, c *FakeCommand) int {
			_, err := fmt.Fprintln(c.Stdout, strings.Join(c.Args[1:], " "))
			return code(err)
		}
	case "cat":
		return runCat
	case "true":
		return func(context.Context, *FakeCommand) int { return 0 }
	case "false":
		return func(context.Context, *FakeCommand) int { return 1 }
	case "pwd":
		return func(_ context.Context, c *FakeCommand) int {
			_, err := fmt.Fprintln(c.Stdout, c.Dir)
			return code(err)
		}
	case "env":
		return func(_ context.Context, c *FakeCommand) int {
			for _, k := range slices.Sorted(maps.Keys(c.Env)) {
				fmt.Fprintf(c.Stdout, "%s=%s\n", k, c.Env[k])
			}
			return 0
		}
	case "printenv":
		return runPrintenv
	case "sleep":
		return runSleep
	case "test":
		return runTest
	}
	return e.commands["*"]
}

func code(err error) int {
	if err != nil {
		return 1
	}
	return 0
}

func runCat(ctx context.Context, c *FakeCommand) int {
	if len(c.Args) == 1 {
		_, err := io.Copy(c.Stdout, c.Stdin)
		return code(err)
	}
	status := 0
	for _, name := range c.Args[1:] {
		if _, err := c.Files.Download(ctx, c.Path(name), c.Stdout); err != nil {
			status = c.fail(1, "%v", err)
		}
	}
	return status
}

func runPrintenv(_ context.Context, c *FakeCommand) int {
	status := 0
	for _, k := range c.Args[1:] {
		if v, ok := c.Env[k]; ok {
			fmt.Fprintln(c.Stdout, v)
		} else {
			status = 1
		}
	}
	return status
}

func runSleep(ctx context.Context, c *FakeCommand) int {
	if len(c.Args) != 2 {
		return c.fail(1, "one number of seconds, please")
	}
	s, err := strconv.ParseFloat(c.Args[1], 64)
	if err != nil || s < 0 {
		return c.fail(1, "invalid time %q", c.Args[1])
	}
	t := time.NewTimer(time.Duration(s * float64(time.Second)))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return 1
	case <-t.C:
		return 0
	}
}

func runTest(ctx context.Context, c *FakeCommand) int {
	if len(c.Args) != 3 || !slices.Contains([]string{"-e", "-f", "-d"}, c.Args[1]) {
		return c.fail(2, "only -e, -f and -d are known")
	}
	fi, err := c.Files.Stat(ctx, c.Path(c.Args[2]))
	if err != nil || (c.Args[1] == "-f" && fi.IsDir()) || (c.Args[1] == "-d" && !fi.IsDir()) {
		return 1
	}
	return 0
}

func runSh(ctx context.Context, c *FakeCommand) int {
	var script string
	switch {
	case len(c.Args) >= 3 && c.Args[1] == "-c":
		script = c.Args[2]
	case len(c.Args) == 2:
		b, err := c.Files.ReadFile(ctx, c.Path(c.Args[1]))
		if err != nil {
			return c.fail(127, "%v", err)
		}
		script = string(b)
	default:
		b, err := io.ReadAll(c.Stdin)
		if err != nil {
			return 1
		}
		script = string(b)
	}
	sh := &shell{c: *c, vars: maps.Clone(c.Env), exported: map[string]bool{}}
	for k := range c.Env {
		sh.exported[k] = true
	}
	return sh.run(ctx, script)
}

// shell interprets the small part of the shell language that a Fake knows.
type shell struct {
	c        FakeCommand
	vars     map[string]string
	exported map[string]bool
	status   int
	exited   bool
}

// word is a part of a command before it is expanded.
type word struct {
	text string
	op   bool // an operator such as ; or >
}

var errSyntax = errors.New("the fake's shell knows only lists, quotes, variables and redirections")

// parse splits a script into words and operators and expands variables as
// they come, which is why it takes one command of a list at a time.
func (s *shell) next(r *bufio.Reader) (words []word, sep string, err error) {
	var cur strings.Builder
	quoted := false // the word exists even if it is empty
	flush := func() {
		if cur.Len() > 0 || quoted {
			words = append(words, word{text: cur.String()})
		}
		cur.Reset()
		quoted = false
	}
	peek := func() byte {
		b, err := r.Peek(1)
		if err != nil {
			return 0
		}
		return b[0]
	}
	for {
		ch, err := r.ReadByte()
		if err == io.EOF {
			flush()
			return words, "", nil
		}
		switch ch {
		case ' ', '\t', '\r':
			flush()
		case '\n', ';':
			flush()
			return words, ";", nil
		case '&', '|':
			if peek() != ch {
				return nil, "", fmt.Errorf("%q: %w", string(ch), errSyntax)
			}
			_, _ = r.ReadByte()
			flush()
			return words, string([]byte{ch, ch}), nil
		case '#':
			if cur.Len() > 0 || quoted {
				cur.WriteByte(ch)
				continue
			}
			_, err := r.ReadString('\n')
			if err != nil {
				return words, "", nil
			}
			return words, ";", nil
		case '\'':
			quoted = true
			text, err := r.ReadString('\'')
			if err != nil {
				return nil, "", fmt.Errorf("unclosed quote: %w", errSyntax)
			}
			cur.WriteString(strings.TrimSuffix(text, "'"))
		case '"':
			quoted = true
			for {
				ch, err := r.ReadByte()
				if err != nil {
					return nil, "", fmt.Errorf("unclosed quote: %w", errSyntax)
				}
				if ch == '"' {
					break
				}
				if ch == '\\' && strings.IndexByte("$`\"\\", peek()) >= 0 && peek() != 0 {
					ch, _ = r.ReadByte()
					cur.WriteByte(ch)
					continue
				}
				if ch == '`' {
					return nil, "", fmt.Errorf("%q: %w", "`", errSyntax)
				}
				if ch == '$' {
					v, err := s.variable(r)
					if err != nil {
						return nil, "", err
					}
					cur.WriteString(v)
					continue
				}
				cur.WriteByte(ch)
			}
		case '\\':
			ch, err := r.ReadByte()
			if err == nil && ch != '\n' {
				cur.WriteByte(ch)
			}
		case '$':
			v, err := s.variable(r)
			if err != nil {
				return nil, "", err
			}
			cur.WriteString(v)
		case '>', '<':
			op := string(ch)
			if s := cur.String(); s == "1" || s == "2" {
				op = s + op
				cur.Reset()
			}
			flush()
			for peek() == '>' || peek() == '&' || peek() == '<' {
				b, _ := r.ReadByte()
				op += string(b)
			}
			words = append(words, word{op, true})
		case '(', ')', '`', '{', '}', '*', '?', '[':
			if ch == '*' || ch == '?' || ch == '[' || ch == '{' || ch == '}' {
				cur.WriteByte(ch) // no globbing: they stand for themselves
				continue
			}
			return nil, "", fmt.Errorf("%q: %w", string(ch), errSyntax)
		default:
			cur.WriteByte(ch)
		}
	}
}

// variable reads what follows a dollar sign.
func (s *shell) variable(r *bufio.Reader) (string, error) {
	b, _ := r.Peek(1)
	switch {
	case len(b) == 0:
		return "$", nil
	case b[0] == '?':
		_, _ = r.ReadByte()
		return strconv.Itoa(s.status), nil
	case b[0] == '{':
		name, err := r.ReadString('}')
		name = strings.Trim(name, "{}")
		if err != nil || !isName(name) {
			return "", fmt.Errorf("${%s}: %w", name, errSyntax)
		}
		return s.vars[name], nil
	case b[0] == '(' || b[0] == '$':
		return "", fmt.Errorf("$%s: %w", b, errSyntax)
	}
	var name strings.Builder
	for {
		b, err := r.Peek(1)
		if err != nil || !isName(name.String()+string(b)) {
			break
		}
		_, _ = r.ReadByte()
		name.WriteByte(b[0])
	}
	if name.Len() == 0 {
		return "$", nil
	}
	return s.vars[name.String()], nil
}

func isName(n string) bool {
	for i, r := range n {
		if r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return n != ""
}

// run runs a script and returns its exit code.
func (s *shell) run(ctx context.Context, script string) int {
	r := bufio.NewReader(strings.NewReader(script))
	skip := false
	for !s.exited {
		words, sep, err := s.next(r)
		if err != nil {
			fmt.Fprintf(s.c.Stderr, "sh: %v\n", err)
			s.status = 2
			return 2
		}
		if len(words) > 0 && !skip {
			s.status = s.simple(ctx, words)
			if ctx.Err() != nil {
				return s.status
			}
		}
		switch sep {
		case "&&":
			skip = s.status != 0
		case "||":
			skip = s.status == 0
		case ";":
			skip = false
		default:
			return s.status
		}
	}
	return s.status
}

// simple runs a command with its assignments and redirections.
func (s *shell) simple(ctx context.Context, words []word) int {
	c := s.c
	var args []string
	assigned := map[string]string{}
	var files []func() error
	defer func() {
		for _, f := range files {
			if err := f(); err != nil {
				fmt.Fprintf(s.c.Stderr, "sh: %v\n", err)
			}
		}
	}()
	for i := 0; i < len(words); i++ {
		w := words[i]
		if !w.op {
			k, v, ok := strings.Cut(w.text, "=")
			if len(args) == 0 && ok && isName(k) {
				assigned[k] = v
			} else {
				args = append(args, w.text)
			}
			continue
		}
		if i++; i >= len(words) || words[i].op {
			fmt.Fprintln(c.Stderr, "sh: a redirection without target")
			return 2
		}
		to := words[i].text
		fail := func(err error) int {
			fmt.Fprintf(s.c.Stderr, "sh: %v\n", err)
			return 1
		}
		switch w.text {
		case ">&", "1>&":
			if to != "2" {
				return fail(errSyntax)
			}
			c.Stdout = c.Stderr
		case "2>&":
			if to != "1" {
				return fail(errSyntax)
			}
			c.Stderr = c.Stdout
		case ">", "1>", "2>", ">>":
			var out io.Writer = io.Discard
			if to != "/dev/null" {
				old := []byte{}
				if w.text == ">>" {
					if b, err := c.Files.ReadFile(ctx, resolve(c.Dir, to)); err == nil {
						old = b
					}
				}
				var buf bytes.Buffer
				buf.Write(old)
				out = &buf
				name := resolve(c.Dir, to)
				if err := c.Files.WriteFile(ctx, name, old, 0); err != nil {
					return fail(err)
				}
				files = append(files, func() error { return c.Files.WriteFile(context.WithoutCancel(ctx), name, buf.Bytes(), 0) })
			}
			if w.text == "2>" {
				c.Stderr = out
			} else {
				c.Stdout = out
			}
		case "<":
			b, err := c.Files.ReadFile(ctx, resolve(c.Dir, to))
			if err != nil {
				return fail(err)
			}
			c.Stdin = bytes.NewReader(b)
		default:
			fmt.Fprintf(c.Stderr, "sh: %s: %v\n", w.text, errSyntax)
			return 2
		}
	}
	if len(args) == 0 {
		maps.Copy(s.vars, assigned)
		return 0
	}
	c.Args = args
	switch args[0] {
	case "exit":
		s.exited = true
		if len(args) > 1 {
			n, err := strconv.Atoi(args[1])
			if err != nil {
				return c.fail(2, "bad number %q", args[1])
			}
			return n & 255
		}
		return s.status
	case "cd":
		dir := fakeHome
		if len(args) > 1 {
			dir = resolve(c.Dir, args[1])
		}
		if fi, err := c.Files.Stat(ctx, dir); err != nil || !fi.IsDir() {
			return c.fail(1, "no such directory: %s", dir)
		}
		s.c.Dir = dir
		return 0
	case "export":
		for _, a := range args[1:] {
			k, v, ok := strings.Cut(a, "=")
			if !isName(k) {
				return c.fail(1, "bad name %q", k)
			}
			if ok {
				s.vars[k] = v
			}
			s.exported[k] = true
		}
		return 0
	case "kill", "trap", "for", "while", "if", "case", "function", "set", "eval", "read", "source", ".":
		return c.fail(2, "%v", errSyntax)
	}
	c.Env = map[string]string{}
	for k := range s.exported {
		if v, ok := s.vars[k]; ok {
			c.Env[k] = v
		}
	}
	maps.Copy(c.Env, assigned)
	run := c.engine.program(args[0])
	if run == nil {
		fmt.Fprintf(c.Stderr, "sh: %s: not found\n", args[0])
		return 127
	}
	return run(ctx, &c)
}

// environment is what a program of a sandbox sees.
func (sb *fakeSandbox) environment(more map[string]string) map[string]string {
	env := map[string]string{"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": fakeHome, "USER": fakeUser, "LANG": "C.UTF-8"}
	maps.Copy(env, sb.info.Env)
	maps.Copy(env, more)
	return env
}

// ended is why a program's context ended.
type ended struct {
	signal   string
	number   int
	timedOut bool
}

func (e *ended) Error() string { return "ended by " + cmp.Or(e.signal, "its time limit") }
