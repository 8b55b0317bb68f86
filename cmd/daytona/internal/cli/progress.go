package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/daytona-go/daytona"
)

const (
	// progressDelay is how long work must last before it shows: what is fast
	// needs no spinner.
	progressDelay = 500 * time.Millisecond
	progressTick  = 100 * time.Millisecond
)

// progress shows on a terminal that something is going on. It writes nothing
// if standard error is not a terminal.
type progress struct {
	w     *os.File
	stop  chan struct{}
	ended chan struct{}
	once  sync.Once

	mu    sync.Mutex
	stage string

	done, total atomic.Int64
}

// startProgress begins to show stage. The caller must call finish before it
// writes to the terminal itself.
func (a *app) startProgress(stage string) *progress {
	p := &progress{w: a.Stderr, stage: stage, stop: make(chan struct{}), ended: make(chan struct{})}
	if !term.IsTerminal(int(a.Stderr.Fd())) || os.Getenv("TERM") == "dumb" || a.debug || a.verbose {
		close(p.ended)
		return p
	}
	go p.draw()
	return p
}

// update is a [daytona.Spec.OnProgress].
func (p *progress) update(u daytona.Progress) {
	p.mu.Lock()
	p.stage = u.Stage
	p.mu.Unlock()
	p.total.Store(u.Total)
	p.done.Store(u.Done)
}

// count returns r with what is read from it added to the bytes done.
func (p *progress) count(r io.Reader) io.Reader { return &countingReader{r: r, n: &p.done} }

func (p *progress) finish() {
	p.once.Do(func() { close(p.stop) })
	<-p.ended
}

func (p *progress) draw() {
	defer close(p.ended)
	delay := time.NewTimer(progressDelay)
	defer delay.Stop()
	select {
	case <-delay.C:
	case <-p.stop:
		return
	}
	const clear = "\r\x1b[K"
	defer io.WriteString(p.w, clear)
	tick := time.NewTicker(progressTick)
	defer tick.Stop()
	for frame := 0; ; frame++ {
		io.WriteString(p.w, clear+p.line(frame))
		select {
		case <-tick.C:
		case <-p.stop:
			return
		}
	}
}

// line is one line of at most the terminal's width.
func (p *progress) line(frame int) string {
	p.mu.Lock()
	text := printable(p.stage)
	p.mu.Unlock()
	spinner := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	done, total := p.done.Load(), p.total.Load()
	switch {
	case total > 0:
		text = fmt.Sprintf("%s  %s / %s (%d%%)", text, byteSize(done), byteSize(total), min(done*100/total, 100))
	case done > 0:
		text = fmt.Sprintf("%s  %s", text, byteSize(done))
	}
	text = fmt.Sprintf("%c %s", spinner[frame%len(spinner)], text)
	width, _, err := term.GetSize(int(p.w.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	for utf8.RuneCountInString(text) >= width {
		_, n := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-n]
	}
	return text
}

type countingReader struct {
	r io.Reader
	n *atomic.Int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n.Add(int64(n))
	return n, err
}
