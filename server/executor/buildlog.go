package executor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
)

const (
	maxLog  = 64 << 20 // bytes of one build's log
	maxLine = 64 << 10
	keepLog = 7 * 24 * time.Hour
)

// buildLogs keeps what builds say, in files that can be read while they grow.
type buildLogs struct {
	dir string
	mu  sync.Mutex
	now map[string]*buildLog // of builds that run
}

// buildLog is the log of one build.
type buildLog struct {
	logs *buildLogs
	ref  string

	mu      sync.Mutex
	file    *os.File
	size    int64
	changed chan struct{} // closed and replaced with every change
	over    bool
}

func openBuildLogs(dir string) (*buildLogs, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: "open build logs", Subject: dir, Err: err}
	}
	l := &buildLogs{dir: dir, now: map[string]*buildLog{}}
	l.sweep()
	return l, nil
}

func (l *buildLogs) path(ref string) string {
	sum := sha256.Sum256([]byte(ref))
	return filepath.Join(l.dir, hex.EncodeToString(sum[:])+".log")
}

// sweep removes logs that nobody will ask for any more.
func (l *buildLogs) sweep() {
	list, _ := os.ReadDir(l.dir)
	for _, d := range list {
		if st, err := d.Info(); err == nil && time.Since(st.ModTime()) > keepLog {
			os.Remove(filepath.Join(l.dir, d.Name()))
		}
	}
}

// create begins the log of a build, in the place of an earlier one.
func (l *buildLogs) create(ref string) (*buildLog, error) {
	l.sweep()
	// A new file: who reads the old one reads it to its end.
	if err := os.Remove(l.path(ref)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(l.path(ref), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: "write build log", Err: err}
	}
	b := &buildLog{logs: l, ref: ref, file: f, changed: make(chan struct{})}
	l.mu.Lock()
	l.now[ref] = b
	l.mu.Unlock()
	return b, nil
}

func (l *buildLogs) remove(ref string) { os.Remove(l.path(ref)) }

// build writes what a build says.
func (b *buildLog) build(m daytona.BuildLog) {
	switch {
	case m.Line != "":
		b.line(m.Line)
	case m.Error != "":
		b.line(m.Name + ": " + m.Error)
	case m.Cached:
		b.line(m.Name + " (cached)")
	case !m.Done && m.Name != "":
		b.line(m.Name)
	}
}

// line writes a line. What is too long for it, and for the log, is lost.
func (b *buildLog) line(text string) {
	if len(text) > maxLine {
		text = text[:maxLine] + "…"
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.over || b.size >= maxLog {
		return
	}
	if b.size += int64(len(text)) + 1; b.size >= maxLog {
		text = fmt.Sprintf("[the log has reached %d bytes: the rest is left out]", maxLog)
	}
	io.WriteString(b.file, text+"\n") // a full disk fails the build, not its log
	close(b.changed)
	b.changed = make(chan struct{})
}

// end says that the log is complete.
func (b *buildLog) end() {
	b.logs.mu.Lock()
	if b.logs.now[b.ref] == b {
		delete(b.logs.now, b.ref)
	}
	b.logs.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	b.file.Close()
	close(b.changed)
}

// open returns the log of a build, KindNotFound if there is none. With follow
// it ends with the build or with ctx, else with what there is now.
func (l *buildLogs) open(ctx context.Context, ref string, follow bool) (io.ReadCloser, error) {
	l.mu.Lock()
	b := l.now[ref]
	f, err := os.Open(l.path(ref))
	l.mu.Unlock()
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindNotFound, Op: "read build log", Subject: ref, Message: "this runner has none"}
	}
	if !follow || b == nil {
		return f, nil
	}
	return &follower{ctx: ctx, File: f, log: b}, nil
}

// follower reads a file that grows.
type follower struct {
	*os.File
	ctx context.Context
	log *buildLog
}

// WriteTo is not the file's: it would end with what is there now.
func (r *follower) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{r})
}

func (r *follower) Read(p []byte) (int, error) {
	for {
		r.log.mu.Lock()
		changed, over := r.log.changed, r.log.over
		r.log.mu.Unlock()
		n, err := r.File.Read(p)
		if n > 0 || err != io.EOF || over {
			return n, err
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
}

// Logs returns what the build of a reference has said, KindNotFound if this
// runner has not built it. With follow it goes on until the build ends.
func (e *Executor) Logs(ctx context.Context, ref string, follow bool) (io.ReadCloser, error) {
	return e.logs.open(ctx, ref, follow)
}
