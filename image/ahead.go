//go:build linux

package image

import (
	"hash"
	"io"
)

const (
	aheadChunk  = 256 << 10
	aheadChunks = 4
)

// ahead decompresses and hashes in a goroutine of its own, a few chunks ahead of who writes the
// files: either takes about half of the time.
type ahead struct {
	full  chan chunk
	empty chan []byte
	quit  chan struct{}
	done  chan struct{} // closed when nothing is read any more

	cur chunk
}

// chunk is a part of a stream, and the error that its source had after it.
type chunk struct {
	buf  []byte
	data []byte // what is left of buf
	in   int64  // bytes of the blob read so far
	err  error
}

// readAhead starts to read inner. read says how much of the blob was taken for that.
func readAhead(inner io.Reader, h hash.Hash, read func() int64) *ahead {
	a := &ahead{full: make(chan chunk, aheadChunks), empty: make(chan []byte, aheadChunks), quit: make(chan struct{}), done: make(chan struct{})}
	for range aheadChunks {
		a.empty <- nil // made when it is needed: most streams are short
	}
	go func() {
		defer close(a.done)
		for {
			var buf []byte
			select {
			case buf = <-a.empty:
			case <-a.quit:
				return
			}
			if buf == nil {
				buf = make([]byte, aheadChunk)
			}
			n, err := 0, error(nil)
			for n < len(buf) && err == nil {
				select {
				case <-a.quit:
					return
				default:
				}
				var m int
				m, err = inner.Read(buf[n:])
				n += m
			}
			h.Write(buf[:n])
			a.full <- chunk{buf: buf, data: buf[:n], in: read(), err: err} // there is room for all
			if err != nil {
				return
			}
		}
	}()
	return a
}

// next gives at most n bytes, which are good until the next call.
func (a *ahead) next(n int) ([]byte, error) {
	for len(a.cur.data) == 0 {
		if a.cur.err != nil {
			return nil, a.cur.err
		}
		if a.cur.buf != nil {
			a.empty <- a.cur.buf
		}
		select {
		case a.cur = <-a.full:
		case <-a.done:
			// It ends with an error, unless it was stopped.
			select {
			case a.cur = <-a.full:
			default:
				a.cur = chunk{err: io.ErrClosedPipe}
			}
		}
	}
	data := a.cur.data[:min(n, len(a.cur.data))]
	a.cur.data = a.cur.data[len(data):]
	return data, nil
}

// stop returns when nothing is read any more. interrupt, if it is not nil, ends a read that waits.
func (a *ahead) stop(interrupt func()) {
	select {
	case <-a.quit:
	default:
		close(a.quit)
	}
	select {
	case <-a.done:
		return
	default:
	}
	if interrupt != nil {
		interrupt()
	}
	<-a.done
}
