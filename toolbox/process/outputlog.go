package process

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// Streams of a log.
const (
	stdoutStream = 1
	stderrStream = 2
)

// outputLog is the log of one command of a session. It keeps the first and the
// last half of limit bytes; followers that keep up see all of it.
//
// Which stream a byte belongs to is kept beside the bytes, not among them:
// whatever a program prints, it is told apart. What is kept is a sequence of
// records (the stream, the length in four bytes, the data) in files of equal
// size, of which one in the middle is removed for each new one beyond the
// limit. Short logs stay in memory.
type outputLog struct {
	dir, name string
	segSize   int64
	keepHead  int
	keepTail  int

	mu       sync.Mutex
	segs     []*segment
	mem      []byte // of the only segment, while it has no file
	file     *os.File
	total    int64 // bytes of output ever
	finished bool
	removed  bool
	err      error
	changed  chan struct{} // non-nil while somebody waits
}

// segment is one file of a log.
type segment struct {
	seq   int
	size  int64
	start int64 // bytes of output before it
	bytes int64 // bytes of output in it
}

const (
	logSegments  = 16
	logMemory    = 4 << 10
	recordHeader = 5
	// recordLimit is the greatest length of a record's data.
	recordLimit = 64 << 10
)

func newOutputLog(dir string, limit int64) *outputLog {
	return &outputLog{
		dir: dir, name: newID(), segSize: max(limit/logSegments, 4<<10),
		keepHead: logSegments / 2, keepTail: logSegments / 2,
		segs: []*segment{{}},
	}
}

func (l *outputLog) path(seq int) string {
	return filepath.Join(l.dir, fmt.Sprintf("%s-%d", l.name, seq))
}

// append adds output. If the disk fails the rest of the output is lost, which
// the log then says.
func (l *outputLog) append(stream byte, p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(p) > 0 {
		n := min(len(p), recordLimit)
		l.add(stream, p[:n])
		p = p[n:]
	}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

func (l *outputLog) add(stream byte, p []byte) {
	l.total += int64(len(p))
	if l.err != nil {
		return
	}
	seg := l.segs[len(l.segs)-1]
	need := int64(recordHeader + len(p))
	if l.file == nil && len(l.segs) == 1 && (seg.size == 0 || l.mem != nil) {
		if len(l.mem)+int(need) <= logMemory {
			l.mem = appendRecord(l.mem, stream, p)
			seg.size += need
			seg.bytes += int64(len(p))
			return
		}
		if l.err = l.open(seg); l.err != nil {
			return
		}
		if _, l.err = l.file.Write(l.mem); l.err != nil {
			return
		}
		l.mem = nil
	}
	if seg.size > 0 && seg.size+need > l.segSize {
		next := &segment{seq: seg.seq + 1, start: seg.start + seg.bytes}
		if l.file != nil {
			l.file.Close()
			l.file = nil
		}
		if l.err = l.open(next); l.err != nil {
			return
		}
		l.segs = append(l.segs, next)
		seg = next
		if len(l.segs) > l.keepHead+l.keepTail {
			// Readers that have it open may finish it.
			_ = os.Remove(l.path(l.segs[l.keepHead].seq))
			l.segs = append(l.segs[:l.keepHead], l.segs[l.keepHead+1:]...)
		}
	}
	if l.file == nil {
		// Output of a background program after the command's end.
		if l.err = l.open(seg); l.err != nil {
			return
		}
	}
	record := appendRecord(make([]byte, 0, need), stream, p)
	if _, l.err = l.file.WriteAt(record, seg.size); l.err != nil {
		return
	}
	seg.size += need
	seg.bytes += int64(len(p))
	if l.finished {
		l.file.Close()
		l.file = nil
	}
}

func appendRecord(b []byte, stream byte, p []byte) []byte {
	b = append(b, stream)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(p)))
	return append(b, p...)
}

func (l *outputLog) open(seg *segment) (err error) {
	l.file, err = os.OpenFile(l.path(seg.seq), os.O_WRONLY|os.O_CREATE, 0o600)
	return err
}

// finish ends the log for its followers.
func (l *outputLog) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finished = true
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// remove deletes its files.
func (l *outputLog) remove() {
	l.finish()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, seg := range l.segs {
		_ = os.Remove(l.path(seg.seq))
	}
	l.removed, l.err = true, os.ErrClosed
}

// size is how much output there has been.
func (l *outputLog) size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// logReader reads a log from its beginning.
type logReader struct {
	log *outputLog
	// limit is where it ends; negative: where the log ends.
	limit int64
	seq   int
	off   int64
	at    int64 // bytes of output before off, those left out included
	file  *os.File
	buf   []byte
	// told says that the loss after an error has been mentioned.
	told bool
}

// snapshot reads what there is now, follow until the log is finished.
func (l *outputLog) snapshot() *logReader { return &logReader{log: l, limit: l.size()} }
func (l *outputLog) follow() *logReader   { return &logReader{log: l, limit: -1} }

func (r *logReader) close() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// each passes on the next records. It waits for some until done is closed, and
// returns io.EOF at the end.
func (r *logReader) each(done <-chan struct{}, fn func(stream byte, p []byte) error) error {
	for {
		if r.limit >= 0 && r.at >= r.limit {
			return io.EOF
		}
		wait, notice, err := r.load()
		if err != nil {
			return err
		}
		if notice != "" {
			if err := fn(stderrStream, []byte(notice)); err != nil {
				return err
			}
		}
		if wait != nil {
			select {
			case <-wait:
				continue
			case <-done:
				return io.EOF
			}
		}
		if len(r.buf) == 0 {
			return nil
		}
		b := r.buf
		for len(b) >= recordHeader {
			n := int(binary.LittleEndian.Uint32(b[1:]))
			if len(b) < recordHeader+n {
				break
			}
			if err := fn(b[0], b[recordHeader:recordHeader+n]); err != nil {
				return err
			}
			b = b[recordHeader+n:]
			r.off += int64(recordHeader + n)
			r.at += int64(n)
		}
		return nil
	}
}

// load fills buf with whole records (and perhaps a part of another), or
// returns a channel to wait for.
func (r *logReader) load() (wait <-chan struct{}, notice string, err error) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	r.buf = r.buf[:0]
	if l.removed {
		return nil, "", io.EOF
	}
	var seg *segment
	for _, s := range l.segs {
		if s.seq == r.seq {
			seg = s
		}
	}
	if seg == nil && r.file == nil {
		// Removed before it was read: go on with the next one there is.
		for _, s := range l.segs {
			if s.seq > r.seq {
				if s.start > r.at {
					notice = fmt.Sprintf("\n[%d bytes left out: the log keeps its first and last %d MiB]\n", s.start-r.at, l.segSize*int64(l.keepHead)>>20)
				}
				r.seq, r.off, r.at, seg = s.seq, 0, s.start, s
				break
			}
		}
		if seg == nil {
			return nil, "", io.EOF
		}
	}
	last := seg != nil && seg == l.segs[len(l.segs)-1]
	if seg != nil && seg.seq == 0 && l.mem != nil {
		r.buf = append(r.buf, l.mem[r.off:]...)
	} else if seg == nil || r.off < seg.size {
		if r.file == nil {
			if r.file, err = os.Open(l.path(r.seq)); err != nil {
				return nil, "", fmt.Errorf("read the log: %w", err)
			}
		}
		if cap(r.buf) < recordHeader+recordLimit {
			r.buf = make([]byte, recordHeader+recordLimit)
		}
		room := int64(cap(r.buf))
		if seg != nil {
			// What a failed write left beyond is none of the log.
			room = min(room, seg.size-r.off)
		}
		n, err := r.file.ReadAt(r.buf[:room], r.off)
		if err != nil && err != io.EOF {
			return nil, "", fmt.Errorf("read the log: %w", err)
		}
		r.buf = r.buf[:n]
	}
	if len(r.buf) > 0 || notice != "" {
		return nil, notice, nil
	}
	r.close()
	if !last {
		// To the next one, of which the loop above knows.
		next := r.seq + 1
		for _, s := range l.segs {
			if s.seq == next {
				r.seq, r.off, r.at = s.seq, 0, s.start
				return nil, "", nil
			}
		}
		r.seq, r.off = next, 0
		return nil, "", nil
	}
	if l.err != nil && !r.told {
		r.told = true
		if lost := l.total - r.at; lost > 0 {
			r.at = l.total
			return nil, fmt.Sprintf("\n[%d bytes left out: %v]\n", lost, l.err), nil
		}
	}
	if l.finished || r.limit >= 0 {
		return nil, "", io.EOF
	}
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed, "", nil
}

// lineMarker adds the markers to output: before each line, and where the other
// stream begins within one.
type lineMarker struct {
	last   byte
	inLine bool
}

func (m *lineMarker) add(dst []byte, stream byte, p []byte) []byte {
	marker := wire.StdoutMarker
	if stream == stderrStream {
		marker = wire.StderrMarker
	}
	for len(p) > 0 {
		if !m.inLine || m.last != stream {
			dst = append(dst, marker...)
		}
		m.last = stream
		n := len(p)
		m.inLine = true
		for i, c := range p {
			if c == '\n' {
				n, m.inLine = i+1, false
				break
			}
		}
		dst = append(dst, p[:n]...)
		p = p[n:]
	}
	return dst
}
