package lsp

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/sourcegraph/jsonrpc2"
)

const (
	// messageLimit bounds a message of a server, in bytes; it is held in
	// memory, some three times over.
	messageLimit = 8 << 20
	// headerLimit bounds the header before it, and is the size of the buffer.
	headerLimit = 4 << 10
	// errorLimit bounds the text of a server's error, in bytes.
	errorLimit = 4 << 10
)

// frameError says how a server breaks the protocol.
type frameError struct{ what string }

func (e *frameError) Error() string { return e.what }

func badFrame(format string, args ...any) error { return &frameError{fmt.Sprintf(format, args...)} }

// readFrame reads a header and what it announces. The error is io.EOF at the
// end of the stream, where a header may begin. Memory is taken as the data
// comes, whatever the header says.
func readFrame(r *bufio.Reader, limit int) ([]byte, error) {
	length := -1
	for total := 0; ; {
		line, err := r.ReadSlice('\n')
		total += len(line)
		if errors.Is(err, bufio.ErrBufferFull) || total > headerLimit {
			return nil, badFrame("a header of more than %d bytes: %q", headerLimit, clip(string(line), 64))
		}
		if err != nil {
			if err == io.EOF && total > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		text := strings.TrimRight(string(line), "\r\n")
		if text == "" {
			if length < 0 {
				return nil, badFrame("a header without Content-Length")
			}
			break
		}
		name, value, ok := strings.Cut(text, ":")
		if !ok {
			return nil, badFrame("%q where a header is due", clip(text, 64))
		}
		if !strings.EqualFold(strings.TrimSpace(name), "Content-Length") {
			continue
		}
		value = strings.TrimSpace(value)
		n, err := strconv.ParseUint(value, 10, 31)
		switch {
		case length >= 0:
			return nil, badFrame("a header with two Content-Lengths")
		case err != nil:
			return nil, badFrame("the Content-Length %q", clip(value, 64))
		case n > uint64(limit):
			return nil, badFrame("a message of %d bytes, more than %d", n, limit)
		case n == 0:
			return nil, badFrame("an empty message")
		}
		length = int(n)
	}
	var body bytes.Buffer
	body.Grow(min(length, 64<<10))
	if _, err := io.CopyN(&body, r, int64(length)); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return body.Bytes(), nil
}

// envelope is a message of the protocol with its contents left alone.
type envelope struct {
	ID     json.RawMessage `json:"id"`
	Method *string         `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Code    int64  `json:"code"`
		Message string `json:"message"`
	} `json:"error"`
}

// unwrap takes the contents out of a message, and returns what is left of it.
// jsonrpc2 makes a tree of interface values of all that it reads, twice, which
// takes a multiple of the message's size; so it gets a message of nothing, and
// has its contents put back by [stream.received].
func unwrap(body []byte) (shell []byte, contents json.RawMessage, err error) {
	var m envelope
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, nil, badFrame("%q where a message is due: %v", clip(string(body), 64), err)
	}
	type object map[string]any
	left := object{"jsonrpc": "2.0"}
	if len(m.ID) > 64 {
		return nil, nil, badFrame("a message's id of %d bytes", len(m.ID))
	}
	if m.ID != nil && string(m.ID) != "null" {
		left["id"] = m.ID
	}
	switch {
	case m.Method != nil:
		left["method"] = clip(*m.Method, 256)
		if contents = m.Params; contents != nil {
			left["params"] = 0
		}
	case left["id"] == nil && m.Error == nil:
		return nil, nil, badFrame("a message with neither method nor id: %q", clip(string(body), 64))
	case m.Error != nil:
		if left["id"] == nil {
			left["id"] = 0 // about something that it did not understand; no request has this id
		}
		left["error"] = object{"code": m.Error.Code, "message": clip(m.Error.Message, errorLimit)}
	default:
		left["result"] = 0
		if contents = m.Result; contents == nil {
			contents = json.RawMessage("null")
		}
	}
	shell, err = json.Marshal(left)
	return shell, contents, err
}

// stream is the two pipes of a server as a jsonrpc2.ObjectStream.
type stream struct {
	r       *bufio.Reader
	in, out *os.File // the server's input and output
	// patience is how long a server may take to take a message.
	patience time.Duration
	// messages counts what has come.
	messages atomic.Int64
	// contents are those of the message being read; of jsonrpc2's reader only.
	contents json.RawMessage

	mu  sync.Mutex
	err error // the first one
}

func newStream(in, out *os.File, patience time.Duration) *stream {
	return &stream{r: bufio.NewReaderSize(out, headerLimit), in: in, out: out, patience: patience}
}

// failed keeps the first error: what comes after the streams are closed is of
// no interest.
func (s *stream) failed(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	return err
}

// cause is why the stream has ended.
func (s *stream) cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// ReadObject implements [jsonrpc2.ObjectStream].
func (s *stream) ReadObject(into any) error {
	body, err := readFrame(s.r, messageLimit)
	if err != nil {
		return s.failed(err)
	}
	shell, contents, err := unwrap(body)
	if err != nil {
		return s.failed(err)
	}
	if err := json.Unmarshal(shell, into); err != nil {
		return s.failed(badFrame("%v: %q", err, clip(string(body), 64)))
	}
	s.contents = contents
	s.messages.Add(1)
	return nil
}

// received puts the contents back; it is called between ReadObject and whoever
// gets the message.
func (s *stream) received(req *jsonrpc2.Request, resp *jsonrpc2.Response) {
	contents := s.contents
	s.contents = nil
	switch {
	case resp == nil && req.Params != nil:
		req.Params = &contents
	case resp != nil && resp.Error == nil:
		resp.Result = &contents
	}
}

// WriteObject implements [jsonrpc2.ObjectStream].
func (s *stream) WriteObject(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	message := append(fmt.Appendf(make([]byte, 0, len(body)+32), "Content-Length: %d\r\n\r\n", len(body)), body...)
	_ = s.in.SetWriteDeadline(time.Now().Add(s.patience))
	if _, err := s.in.Write(message); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = badFrame("it has not taken what it was sent for %v", s.patience)
		}
		// Half a message may be out: nothing can follow.
		s.failed(err)
		_ = s.Close()
		return err
	}
	return nil
}

// Close implements [jsonrpc2.ObjectStream].
func (s *stream) Close() error { return errors.Join(s.in.Close(), s.out.Close()) }

// clip cuts a text to about limit bytes of valid UTF-8.
func clip(s string, limit int) string {
	if len(s) <= limit && utf8.ValidString(s) {
		return s
	}
	cut := ""
	if len(s) > limit {
		s, cut = s[:limit], "…"
	}
	return strings.ToValidUTF8(s, "�") + cut
}
