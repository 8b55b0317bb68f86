package interpreter

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// client is the WebSocket that a run's output goes to.
type client struct {
	sock *process.Socket
	// lost is called when it takes no more.
	lost func()

	// writing is held while something is written, which may take long.
	writing sync.Mutex
	over    bool
	// rest is the beginning of a character that was cut, by stream.
	rest [2][]byte

	mu    sync.Mutex
	stall *time.Timer
	done  bool
}

func (c *client) output(stream int, p []byte) {
	c.writing.Lock()
	defer c.writing.Unlock()
	text := append(c.rest[stream], p...)
	cut := len(text) - incomplete(text)
	c.text(stream, text[:cut])
	c.rest[stream] = append(c.rest[stream][:0], text[cut:]...)
}

// text sends output. The caller holds c.writing.
func (c *client) text(stream int, b []byte) {
	if len(b) > 0 {
		c.send(&wire.InterpreterMessage{Type: [2]string{wire.InterpreterStdout, wire.InterpreterStderr}[stream], Text: string(b)})
	}
}

// incomplete is how many bytes at the end of b begin a character.
func incomplete(b []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if c := b[len(b)-n]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}

func (c *client) message(m *wire.InterpreterMessage) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.send(m)
}

// send sends a message, unless the run is over: threads may go on after it. The
// caller holds c.writing.
func (c *client) send(m *wire.InterpreterMessage) {
	if !c.over && c.write(m) != nil {
		c.lost()
	}
}

func (c *client) write(m *wire.InterpreterMessage) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(m); err != nil {
		return err // the interpreter's JSON, which was parsed before: cannot be
	}
	return c.sock.WriteText(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
}

// hurry gives up on a client that does not read.
func (c *client) hurry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stall == nil && !c.done {
		c.stall = time.AfterFunc(interruptGrace+stallLimit, c.sock.Drop)
	}
}

// finish ends the connection as the run has ended.
func (c *client) finish(cause error, limit time.Duration) {
	c.writing.Lock()
	for i := range c.rest {
		c.text(i, c.rest[i])
	}
	c.over = true
	c.writing.Unlock()
	c.mu.Lock()
	c.done = true
	if c.stall != nil {
		c.stall.Stop()
	}
	c.mu.Unlock()
	// Whoever does not read the end either is not waited for.
	stall := time.AfterFunc(stallLimit, c.sock.Drop)
	defer stall.Stop()
	control := func(text string) {
		if c.write(&wire.InterpreterMessage{Type: wire.InterpreterControl, Text: text}) == nil {
			c.sock.Close(1000, "")
		}
	}
	switch {
	case cause == nil:
		control(wire.InterpreterCompleted)
	case errors.Is(cause, errInterrupted):
		control(wire.InterpreterInterrupted)
	case errors.Is(cause, errTimeout):
		c.sock.Close(wire.CloseInterpreterTimeout, fmt.Sprintf("execution timed out after %v", limit))
	case errors.Is(cause, errGone):
	default:
		e := classify(cause)
		code := wire.CloseInterpreterRefused
		if e.status >= 500 || e.code == wire.CodeCommandStart {
			code = wire.CloseInterpreterFailed
		}
		end(c.sock, code, e)
	}
}

// end closes a connection with an error. Its message comes before, in full.
func end(sock *process.Socket, code int, e *apiError) {
	name := e.code
	if name == "" {
		name = strings.ToUpper(strings.ReplaceAll(http.StatusText(e.status), " ", "_"))
	}
	b, _ := json.Marshal(wire.InterpreterMessage{Type: wire.InterpreterRefused, Name: name, Text: e.message})
	if sock.WriteText(b) == nil {
		sock.Close(code, e.message)
	}
}
