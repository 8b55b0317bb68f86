package wire

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Server-sent events carry the streams of our own: what a browser's EventSource
// and curl read as well.

// EventKeepAlive is how often a stream without events sends a comment, so that
// either side notices when the other is gone, and no proxy between them takes it
// for idle.
const EventKeepAlive = 15 * time.Second

// eventPatience is how long a client may take to read an event.
const eventPatience = time.Minute

// EventWriter answers a request with events.
type EventWriter struct {
	w   http.ResponseWriter
	out *http.ResponseController
	buf bytes.Buffer
}

// NewEventWriter begins the answer.
func NewEventWriter(w http.ResponseWriter) *EventWriter {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // of nginx, which would keep events back
	w.WriteHeader(http.StatusOK)
	return &EventWriter{w: w, out: http.NewResponseController(w)}
}

// Send sends an event; id may be empty. It blocks while the client does not
// read, for a minute at most.
func (e *EventWriter) Send(event, id string, data any) error {
	e.buf.Reset()
	if id != "" {
		e.buf.WriteString("id: " + id + "\n")
	}
	e.buf.WriteString("event: " + event + "\ndata: ")
	// An encoder, to end the line; JSON has no newline within.
	if err := json.NewEncoder(&e.buf).Encode(data); err != nil {
		return err
	}
	e.buf.WriteByte('\n')
	return e.flush()
}

// KeepAlive sends what is no event.
func (e *EventWriter) KeepAlive() error {
	e.buf.Reset()
	e.buf.WriteString(":\n\n")
	return e.flush()
}

func (e *EventWriter) flush() error {
	if err := e.out.SetWriteDeadline(time.Now().Add(eventPatience)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := e.w.Write(e.buf.Bytes()); err != nil {
		return err
	}
	return e.out.Flush()
}

// Event is one that an EventReader read.
type Event struct {
	Name string
	ID   string
	Data []byte
}

// eventLimit bounds an event, in bytes.
const eventLimit = 4 << 20

// EventReader reads a stream of events.
type EventReader struct {
	r  *bufio.Reader
	id string
}

// NewEventReader reads events from r.
func NewEventReader(r io.Reader) *EventReader {
	return &EventReader{r: bufio.NewReaderSize(r, 16<<10)}
}

// Next returns the next event; io.EOF at the end, also in the middle of an event,
// which is lost then, as the protocol wants it.
func (e *EventReader) Next() (Event, error) {
	var event Event
	size, some := 0, false
	for {
		var line []byte
		for {
			part, err := e.r.ReadSlice('\n')
			if size += len(part); size > eventLimit {
				return Event{}, fmt.Errorf("an event of more than %d bytes", eventLimit)
			}
			line = append(line, part...)
			if err == nil {
				break
			}
			if err != bufio.ErrBufferFull {
				return Event{}, err
			}
		}
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if len(line) == 0 {
			if some {
				event.ID = e.id
				return event, nil
			}
			event, size = Event{}, 0
			continue
		}
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			event.Name = string(value)
		case "id":
			if !strings.ContainsRune(string(value), 0) {
				e.id = string(value)
			}
		case "data":
			if some {
				event.Data = append(event.Data, '\n')
			}
			event.Data, some = append(event.Data, value...), true
		}
	}
}
