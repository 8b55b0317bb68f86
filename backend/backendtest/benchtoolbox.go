package backendtest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/textproto"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
)

// The tree that is searched is of the size of Linux: searchFiles with fileSize
// bytes in the mean, 1 GB together. The repository that git is asked about has
// statusFiles.
const (
	searchFiles = 75000
	fileSize    = 13500
	statusFiles = 50000
)

// treeFiles is how many files a tree gets: as many as it should have, or what
// BENCH_TREE_FILES says if that is less.
func (e *bench) treeFiles(files int) int {
	if v := os.Getenv("BENCH_TREE_FILES"); v != "" {
		n, err := strconv.Atoi(v)
		e.must(err)
		files = min(files, n)
	}
	return files
}

// search looks for a line in a tree of sources.
func (e *bench) search(b *testing.B) {
	files := e.treeFiles(searchFiles)
	sb := e.create()
	const needle = "EXPORT_SYMBOL_GPL(the_one_that_is_looked_for)"
	bytes := e.sources(sb, files, needle)
	fsys := sb.FileSystem()
	peer := func(command string) time.Duration {
		var times []time.Duration
		for range 3 {
			begin := time.Now()
			r, err := sb.Process().Exec(b.Context(), command, nil)
			if err != nil || r.ExitCode != 0 || strings.Count(r.Output, "\n") != 3 {
				b.Logf("peer %q: %v %.200q", command, err, r.Output)
				return 0
			}
			times = append(times, time.Since(begin))
		}
		return percentile(times, 50)
	}
	peers := map[string]time.Duration{
		"grep": peer("grep -rnIF '" + needle + "' tree"),
		"rg":   peer("rg -nFuu '" + needle + "' tree"),
	}
	b.SetBytes(bytes)
	var times []time.Duration
	for b.Loop() {
		begin := time.Now()
		found, err := fsys.Grep(b.Context(), "tree", needle)
		e.must(err)
		if len(found) != 3 {
			b.Fatalf("%d lines found, want 3", len(found))
		}
		times = append(times, time.Since(begin))
	}
	e.report(times, peers)
}

// sources makes a tree that is as source trees are: most files small, some large,
// and returns its size.
func (e *bench) sources(sb daytona.Sandbox, files int, needle string) (size int64) {
	e.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	words := []string{"static", "int", "struct", "return", "void", "if", "(ptr)", "->next", "= NULL;", "for", "{", "}", "unsigned long", "/* comment */", "EXPORT_SYMBOL(x);", "err", "&dev->lock"}
	content := func() string {
		var t strings.Builder
		for n := int(fileSize * r.ExpFloat64()); t.Len() < n; {
			for range 3 + r.IntN(7) {
				t.WriteString(words[r.IntN(len(words))])
				t.WriteByte(' ')
			}
			t.WriteString("\n\t")
		}
		return t.String()
	}
	const batch = 1000
	var uploads []daytona.FileUpload
	for i := range files {
		text := content()
		if i%(files/3+1) == files/7 {
			text += needle + "\n" + content()
		}
		size += int64(len(text))
		uploads = append(uploads, daytona.FileUpload{Path: fmt.Sprintf("tree/d%d/e%d/f%d.c", i%37, i%401, i), Content: strings.NewReader(text)})
		if len(uploads) == batch || i == files-1 {
			e.must(sb.FileSystem().UploadFiles(e.Context(), uploads))
			uploads = uploads[:0]
		}
	}
	return size
}

const (
	// makeRepository makes one of FILES files, and then statusChanges of it.
	statusChanges  = 20
	makeRepository = `git init -q -b main repo && cd repo && awk 'BEGIN {
	print "commit refs/heads/main\ncommitter A <a@example.com> 0 +0000\ndata 1\nx"
	for (i = 0; i < FILES; i++) {
		text = ""
		for (n = i % 40; n >= 0; n--) text = text "line " n " of " i "\n"
		print "M 644 inline d" i % 500 "/f" i ".c\ndata " length(text) "\n" text
	}
}' | git fast-import --quiet && git reset -q --hard &&
for i in 0 1 2 3 4 5 6 7 8 9; do echo changed >> d$i/f$i.c; echo > d$i/new; done`
)

// gitStatus is how long it takes to see what is changed in a large repository.
func (e *bench) gitStatus(b *testing.B) {
	if why := e.h.Lacks[Git]; why != "" {
		b.Skip(why)
	}
	sb := e.create()
	sh := func(command string) (output string, took time.Duration) {
		begin := time.Now()
		r, err := sb.Process().Exec(b.Context(), command, nil)
		e.must(err)
		if r.ExitCode != 0 {
			b.Fatalf("%s: %s", command, r.Output)
		}
		return r.Output, time.Since(begin)
	}
	sh(strings.Replace(makeRepository, "FILES", strconv.Itoa(e.treeFiles(statusFiles)), 1))
	git := func() time.Duration {
		out, took := sh("git -C repo status --porcelain --untracked-files=all")
		if n := strings.Count(out, "\n"); n != statusChanges {
			b.Fatalf("git sees %d changes, want %d: %.200q", n, statusChanges, out)
		}
		return took
	}
	ours := func() time.Duration {
		begin := time.Now()
		st, err := sb.Git().Status(b.Context(), "repo")
		e.must(err)
		if len(st.Files) != statusChanges {
			b.Fatalf("%d changes, want %d", len(st.Files), statusChanges)
		}
		return time.Since(begin)
	}
	git() // which brings the index up to date, for both
	var times, peer []time.Duration
	for b.Loop() {
		times = append(times, ours())
		b.StopTimer()
		peer = append(peer, git())
		b.StartTimer()
	}
	e.report(times, map[string]time.Duration{"git": percentile(peer, 50)})
}

// completion is what an editor waits for after each dot.
func (e *bench) completion(b *testing.B) {
	for _, need := range []Capability{LSP, Python} {
		if why := e.h.Lacks[need]; why != "" {
			b.Skip(why)
		}
	}
	sb := e.create()
	e.must(sb.FileSystem().WriteFile(b.Context(), "server.py", []byte(languageServer), 0))
	e.must(sb.FileSystem().WriteFile(b.Context(), "project/a.txt", []byte("one two"), 0))
	wd, err := sb.WorkDir(b.Context())
	e.must(err)
	server := sb.LSPServer("words", "project")
	e.must(server.Start(b.Context(), &daytona.LSPOptions{Command: []string{"python3", wd + "/server.py", "completes"}}))
	complete := func() time.Duration {
		begin := time.Now()
		list, err := server.Completions(b.Context(), "a.txt", daytona.Position{})
		e.must(err)
		if len(list.Items) != 100 {
			b.Fatalf("%d completions, want 100", len(list.Items))
		}
		return time.Since(begin)
	}
	complete() // which opens the document
	peer := e.hostCompletion()
	var times []time.Duration
	for b.Loop() {
		for range 20 {
			times = append(times, complete())
		}
	}
	e.report(times, map[string]time.Duration{"lsp": peer})
}

// hostCompletion is the same of the same server on the host, p50; 0 if there is
// no Python.
func (e *bench) hostCompletion() time.Duration {
	e.Helper()
	cmd := exec.Command("python3", "-c", languageServer, "completes")
	in, err := cmd.StdinPipe()
	e.must(err)
	out, err := cmd.StdoutPipe()
	e.must(err)
	if err := cmd.Start(); err != nil {
		e.Logf("peer lsp: %v", err)
		return 0
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	answers := textproto.NewReader(bufio.NewReader(out))
	say := func(message string) {
		_, err := fmt.Fprintf(in, "Content-Length: %d\r\n\r\n%s", len(message), message)
		e.must(err)
	}
	ask := func(method, params string) []byte {
		say(`{"jsonrpc": "2.0", "id": 1, "method": "` + method + `", "params": ` + params + `}`)
		head, err := answers.ReadMIMEHeader()
		e.must(err)
		n, err := strconv.Atoi(head.Get("Content-Length"))
		e.must(err)
		body := make([]byte, n)
		_, err = io.ReadFull(answers.R, body)
		e.must(err)
		return body
	}
	ask("initialize", "{}")
	say(`{"jsonrpc": "2.0", "method": "textDocument/didOpen", "params": {"textDocument": {"uri": "file:///a.txt", "text": "one two"}}}`)
	var times []time.Duration
	for range 200 {
		begin := time.Now()
		var answer struct{ Result []struct{ Label string } }
		e.must(json.Unmarshal(ask("textDocument/completion", `{"textDocument": {"uri": "file:///a.txt"}, "position": {"line": 0, "character": 0}}`), &answer))
		if len(answer.Result) != 100 {
			e.Fatalf("%d completions, want 100", len(answer.Result))
		}
		times = append(times, time.Since(begin))
	}
	return percentile(times, 50)
}

// echoProgram types back what is typed, without the terminal's help.
const echoProgram = "stty raw -echo; printf ready; exec cat"

// ptyEcho is how long it takes until a key that was pressed shows.
func (e *bench) ptyEcho(b *testing.B) {
	sb := e.create()
	pty, err := sb.Process().CreatePTY(b.Context(), daytona.PTYOptions{})
	e.must(err)
	defer pty.Close()
	_, err = fmt.Fprintln(pty, echoProgram)
	e.must(err)
	peer := e.hostEcho()
	in := bufio.NewReader(pty)
	e.awaitReady(in)
	var times []time.Duration
	for b.Loop() {
		for range 100 {
			times = append(times, e.echo(pty, in))
		}
	}
	e.report(times, map[string]time.Duration{"pty": peer})
}

// awaitReady reads past the line that was typed, which shows "ready" as well.
func (e *bench) awaitReady(in *bufio.Reader) {
	e.Helper()
	seen := ""
	for !strings.HasSuffix(seen, "ready") || strings.HasSuffix(seen, "printf ready") {
		c, err := in.ReadByte()
		e.must(err)
		seen += string(c)
	}
}

func (e *bench) echo(out io.Writer, in io.Reader) time.Duration {
	e.Helper()
	begin := time.Now()
	_, err := out.Write([]byte{'x'})
	e.must(err)
	var got [1]byte
	_, err = io.ReadFull(in, got[:])
	e.must(err)
	if got[0] != 'x' {
		e.Fatalf("%q came back", got)
	}
	return time.Since(begin)
}

// hostEcho is the same on the host, p50; 0 if it fails.
func (e *bench) hostEcho() time.Duration {
	e.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	e.must(err)
	defer master.Close()
	var number int
	raw, err := master.SyscallConn()
	e.must(err)
	e.must(raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	}))
	e.must(err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	e.must(err)
	cmd := exec.Command("/bin/sh", "-c", echoProgram)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	e.must(cmd.Start())
	slave.Close()
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	in := bufio.NewReader(master)
	e.awaitReady(in)
	var times []time.Duration
	for range 1000 {
		times = append(times, e.echo(master, in))
	}
	return percentile(times, 50)
}
