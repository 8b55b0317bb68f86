package process

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// outputPipe is a pipe from programs to the agent. The programs' end is a
// plain blocking descriptor; the agent's waits in the netpoller.
func outputPipe() (r *os.File, w int, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, 0, fmt.Errorf("make a pipe: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, 0, fmt.Errorf("make a pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "output"), fds[1], nil
}

// inputPipe is a pipe from the agent to a program.
func inputPipe() (r int, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return 0, nil, fmt.Errorf("make a pipe: %w", err)
	}
	if err := unix.SetNonblock(fds[1], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return 0, nil, fmt.Errorf("make a pipe: %w", err)
	}
	return fds[0], os.NewFile(uintptr(fds[1]), "input"), nil
}

// drainLimit bounds what is read after the end of a program: no pipe holds
// more (fs/pipe-max-size), and a background child could write for ever.
const drainLimit = 1 << 20

// pump copies from a pipe or a terminal until its end, or until settle has
// been called and what was in it then has been read. It returns an error of
// sink only.
type pump struct {
	f *os.File
	// header bytes at the beginning of buf are left to sink.
	buf    []byte
	header int
	sink   func(b []byte) error
	hungUp bool // EIO has been seen
}

// early reports whether an error is not the end yet. A terminal without
// processes gives EIO, but once too early where they wrote and ended between
// the two looks that n_tty_read (drivers/tty/n_tty.c) takes: at what is there,
// then at who is. After that all is there.
func (p *pump) early(err error) bool {
	if p.hungUp || !errors.Is(err, unix.EIO) {
		return false
	}
	p.hungUp = true
	return true
}

// run returns whether somebody still holds the other end.
func (p *pump) run() (open bool, err error) {
	room := p.buf[p.header:]
	for {
		n, readErr := p.f.Read(room)
		if n > 0 {
			if err := p.sink(p.buf[:p.header+n]); err != nil {
				return true, err
			}
		}
		if errors.Is(readErr, os.ErrDeadlineExceeded) {
			return p.drain()
		}
		if readErr != nil && !p.early(readErr) {
			return false, nil
		}
	}
}

// drain reads what is there without waiting.
func (p *pump) drain() (open bool, err error) {
	room := p.buf[p.header:]
	conn, err := p.f.SyscallConn()
	if err != nil {
		return false, nil
	}
	for total := 0; total < drainLimit; {
		var n int
		var readErr error
		if err := conn.Control(func(fd uintptr) {
			for {
				if n, readErr = unix.Read(int(fd), room); readErr != unix.EINTR {
					return
				}
			}
		}); err != nil {
			return false, nil
		}
		if readErr == unix.EAGAIN {
			return true, nil
		}
		if p.early(readErr) {
			continue
		}
		if readErr != nil || n <= 0 {
			return false, nil
		}
		total += n
		if err := p.sink(p.buf[:p.header+n]); err != nil {
			return true, err
		}
	}
	return true, nil
}

// settle makes the pump of f finish soon although the other end is held open.
func settle(f *os.File, in time.Duration) { _ = f.SetReadDeadline(time.Now().Add(in)) }

// CopyOutput passes what comes from a pipe or a terminal to sink, until its
// end or until the time that [Settle] has set and what was there then. open
// says that somebody still holds the other end. An error is of sink.
func CopyOutput(f *os.File, buf []byte, sink func([]byte) error) (open bool, err error) {
	p := pump{f: f, buf: buf, sink: sink}
	return p.run()
}

// Settle makes a CopyOutput of f end after a time although the other end is
// still held, without losing anything that was written before.
func Settle(f *os.File, in time.Duration) { settle(f, in) }

// abandon keeps reading f to nowhere until its end: a server that was started
// in the background must not die of its next line of output.
func abandon(f *os.File) {
	_ = f.SetReadDeadline(time.Time{})
	go func() {
		defer f.Close()
		buf := make([]byte, 4<<10)
		for {
			if _, err := f.Read(buf); err != nil {
				return
			}
		}
	}()
}

// buffers are those of pumps.
var buffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// spool holds the output of one command: a little in memory, more in a file
// without a name, at most limit in all.
type spool struct {
	open  func() (*os.File, error)
	limit int64

	mem  []byte
	file *os.File
	size int64
	lost int64
	err  error
}

// spoolMemory is what a spool keeps in memory.
const spoolMemory = 256 << 10

func (s *spool) Write(p []byte) (int, error) {
	n := len(p)
	if room := s.limit - s.size; int64(len(p)) > room {
		s.lost += int64(len(p)) - room
		p = p[:room]
	}
	if len(p) == 0 {
		return n, nil
	}
	if s.file == nil {
		if len(s.mem)+len(p) <= spoolMemory {
			s.mem = append(s.mem, p...)
			s.size += int64(len(p))
			return n, nil
		}
		if s.file, s.err = s.open(); s.err != nil {
			// No disk: what is in memory is what there is.
			s.limit = s.size
			s.lost += int64(len(p))
			return n, nil
		}
	}
	wrote, err := s.file.Write(p)
	s.size += int64(wrote)
	if err != nil {
		s.err = err
		s.limit = s.size
		s.lost += int64(len(p) - wrote)
	}
	return n, nil
}

// writeTo copies everything, and a note of what was left out.
func (s *spool) writeTo(w io.Writer) error {
	if _, err := w.Write(s.mem); err != nil {
		return err
	}
	if s.file != nil {
		if _, err := io.Copy(w, io.NewSectionReader(s.file, 0, s.size-int64(len(s.mem)))); err != nil {
			return err
		}
	}
	if s.lost > 0 {
		reason := ""
		if s.err != nil {
			reason = ": " + s.err.Error()
		}
		if _, err := fmt.Fprintf(w, "\n[output truncated: %d bytes left out%s]\n", s.lost, reason); err != nil {
			return err
		}
	}
	return nil
}

func (s *spool) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// jsonString writes the inside of a JSON string as it is written to, so that
// large output is never in memory as a whole. Bytes that are not UTF-8 become
// U+FFFD, as encoding/json does it.
type jsonString struct {
	w *bufio.Writer
	// rest is the beginning of a rune that was cut.
	rest  [utf8.UTFMax]byte
	nrest int
}

func (j *jsonString) Write(p []byte) (int, error) {
	n := len(p)
	for j.nrest > 0 && len(p) > 0 {
		j.rest[j.nrest] = p[0]
		j.nrest++
		p = p[1:]
		if utf8.FullRune(j.rest[:j.nrest]) {
			whole := j.rest
			k := j.nrest
			j.nrest = 0
			j.escape(whole[:k])
		}
	}
	return n, j.escape(p)
}

const hexDigits = "0123456789abcdef"

func (j *jsonString) escape(p []byte) error {
	start := 0
	for i := 0; i < len(p); {
		c := p[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRune(p[i:])
			if r != utf8.RuneError || size > 1 {
				i += size
				continue
			}
			if !utf8.FullRune(p[i:]) {
				j.w.Write(p[start:i])
				j.nrest = copy(j.rest[:], p[i:])
				return nil
			}
			j.w.Write(p[start:i])
			j.w.WriteString("\ufffd")
			i++
			start = i
			continue
		}
		j.w.Write(p[start:i])
		switch c {
		case '"', '\\':
			j.w.WriteByte('\\')
			j.w.WriteByte(c)
		case '\n':
			j.w.WriteString(`\n`)
		case '\r':
			j.w.WriteString(`\r`)
		case '\t':
			j.w.WriteString(`\t`)
		default:
			j.w.WriteString(`\u00`)
			j.w.WriteByte(hexDigits[c>>4])
			j.w.WriteByte(hexDigits[c&15])
		}
		i++
		start = i
	}
	_, err := j.w.Write(p[start:])
	return err
}

// finish writes what is left of a rune that never became whole.
func (j *jsonString) finish() {
	for range j.nrest {
		j.w.WriteString("\ufffd")
	}
	j.nrest = 0
}

// field writes one string of a JSON object, after a comma or brace.
func jsonField(w *bufio.Writer, name string, value func(io.Writer) error) error {
	w.WriteByte('"')
	w.WriteString(name)
	w.WriteString(`":"`)
	j := jsonString{w: w}
	err := value(&j)
	j.finish()
	w.WriteByte('"')
	return err
}

// closeFDs closes descriptors that were not 0.
func closeFDs(fds ...int) {
	for _, fd := range fds {
		if fd > 0 {
			_ = syscall.Close(fd)
		}
	}
}
