package client

import (
	"bytes"
	"io"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// demux takes a session's log apart. A marker of three equal bytes selects the
// stream of what follows, up to the next marker; what precedes the first is
// dropped. Markers may be split over calls of Write.
type demux struct {
	stdout, stderr io.Writer
	current        io.Writer // nil before the first marker
	// held is the beginning of what may be a marker: n bytes of value b.
	held byte
	n    int
}

func newDemux(stdout, stderr io.Writer) *demux {
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	return &demux{stdout: stdout, stderr: stderr}
}

// The bytes of which markers consist.
const (
	stdoutByte byte = '\x01'
	stderrByte byte = '\x02'
)

func (d *demux) Write(p []byte) (int, error) {
	size := len(p)
	for len(p) > 0 {
		if d.n == 0 {
			at := nextMarkerByte(p)
			if err := d.emit(p[:at]); err != nil {
				return size - len(p), err
			}
			if p = p[at:]; len(p) == 0 {
				break
			}
			d.held = p[0]
		}
		for len(p) > 0 && d.n < len(wire.StdoutMarker) && p[0] == d.held {
			d.n++
			p = p[1:]
		}
		switch {
		case d.n == len(wire.StdoutMarker):
			d.current = d.stdout
			if d.held == stderrByte {
				d.current = d.stderr
			}
			d.n = 0
		case len(p) > 0: // another byte: it was no marker
			if err := d.Flush(); err != nil {
				return size - len(p), err
			}
		}
	}
	return size, nil
}

// Flush delivers what was held back as the possible beginning of a marker.
func (d *demux) Flush() error {
	var b [len(wire.StdoutMarker)]byte
	held := b[:d.n]
	for i := range held {
		held[i] = d.held
	}
	d.n = 0
	return d.emit(held)
}

func (d *demux) emit(p []byte) error {
	if len(p) == 0 || d.current == nil {
		return nil
	}
	_, err := d.current.Write(p)
	return err
}

// nextMarkerByte is the index of the first byte that may begin a marker, or
// the length of p.
func nextMarkerByte(p []byte) int {
	at := len(p)
	if i := bytes.IndexByte(p, stdoutByte); i >= 0 {
		at = i
	}
	if i := bytes.IndexByte(p[:at], stderrByte); i >= 0 {
		at = i
	}
	return at
}
