package backendtest

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
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
// bytes in the mean, 1 GB together. BENCH_TREE_FILES has it made smaller.
const (
	searchFiles = 75000
	fileSize    = 13500
)

// search looks for a line in a tree of sources.
func (e *bench) search(b *testing.B) {
	files := searchFiles
	if v := os.Getenv("BENCH_TREE_FILES"); v != "" {
		n, err := strconv.Atoi(v)
		e.must(err)
		files = n
	}
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
