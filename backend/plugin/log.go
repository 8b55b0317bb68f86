package plugin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// The form of a log line is that of hashicorp/go-hclog, which plugins that are
// not made with this package are likely to use. go-plugin can read it too, but
// it panics at one that is malformed and loses types and order.

const (
	keyTime    = "@timestamp"
	keyLevel   = "@level"
	keyMessage = "@message"
	logTime    = "2006-01-02T15:04:05.000000Z07:00"

	levelTrace = slog.LevelDebug - 4

	// maxLogLine bounds a line of the plugin's standard error, in bytes; what
	// is beyond it is dropped.
	maxLogLine = 64 << 10
	// maxTail is how much of it is kept to explain why a plugin ended, in bytes.
	maxTail = 4 << 10
	// maxLogDepth is how deep groups of attributes are taken apart.
	maxLogDepth = 8
)

// NewLogHandler returns a handler that writes records the way the host reads
// them, for a plugin that logs before it calls [Serve]: w is os.Stderr. Serve
// and [ServeFunc] make such a handler the default, with the level that the
// host asks for. A nil level is slog.LevelInfo.
func NewLogHandler(w io.Writer, level slog.Leveler) slog.Handler {
	return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) > 0 {
			return a
		}
		// An attribute of the caller's may have the same key; the types tell
		// them apart, and for the message the order: the first one is it.
		switch a.Key {
		case slog.TimeKey:
			if a.Value.Kind() == slog.KindTime {
				return slog.String(keyTime, a.Value.Time().Format(logTime))
			}
		case slog.LevelKey:
			if l, ok := a.Value.Any().(slog.Level); ok {
				return slog.String(keyLevel, levelName(l))
			}
		case slog.MessageKey:
			a.Key = keyMessage
		}
		return a
	}})
}

func levelName(l slog.Level) string {
	switch {
	case l < slog.LevelDebug:
		return "trace"
	case l < slog.LevelInfo:
		return "debug"
	case l < slog.LevelWarn:
		return "info"
	case l < slog.LevelError:
		return "warn"
	}
	return "error"
}

func parseLevel(name string) (slog.Level, bool) {
	switch strings.ToLower(name) {
	case "trace":
		return levelTrace, true
	case "debug":
		return slog.LevelDebug, true
	case "info":
		return slog.LevelInfo, true
	case "warn":
		return slog.LevelWarn, true
	case "error":
		return slog.LevelError, true
	}
	return slog.LevelInfo, false
}

// parseRecord reads one line of a plugin's log; ok is false if it is not in
// the form of one.
func parseRecord(line []byte) (_ slog.Record, ok bool) {
	attrs, err := parseAttrs(line, 0)
	if err != nil {
		return slog.Record{}, false
	}
	r := slog.Record{Time: time.Now()}
	var hasLevel, hasMessage, hasTime bool
	for _, a := range attrs {
		s, isText := a.Value.Any().(string)
		switch {
		case a.Key == keyLevel && isText && !hasLevel:
			if r.Level, hasLevel = parseLevel(s); !hasLevel {
				return slog.Record{}, false
			}
		case a.Key == keyMessage && isText && !hasMessage:
			r.Message, hasMessage = s, true
		case a.Key == keyTime && isText && !hasTime:
			if t, err := time.Parse(logTime, s); err == nil {
				r.Time, hasTime = t, true
			}
		default:
			if a.Key == keyMessage {
				a.Key = slog.MessageKey
			}
			r.AddAttrs(a)
		}
	}
	return r, hasLevel && hasMessage
}

// parseAttrs reads a JSON object, in its order.
func parseAttrs(data []byte, depth int) ([]slog.Attr, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil {
		return nil, err
	} else if t != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	var attrs []slog.Attr
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return nil, err
		}
		v, err := parseValue(raw, depth)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, slog.Attr{Key: key.(string), Value: v})
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("more than an object")
	}
	return attrs, nil
}

func parseValue(raw json.RawMessage, depth int) (slog.Value, error) {
	if raw[0] == '{' && depth < maxLogDepth {
		attrs, err := parseAttrs(raw, depth+1)
		return slog.GroupValue(attrs...), err
	}
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return slog.Value{}, err
	}
	if n, ok := v.(json.Number); ok {
		if i, err := n.Int64(); err == nil {
			return slog.Int64Value(i), nil
		}
		if f, err := n.Float64(); err == nil {
			return slog.Float64Value(f), nil
		}
		return slog.StringValue(n.String()), nil
	}
	return slog.AnyValue(v), nil
}

// logSink is where a plugin's lines go: to the host's logger, and their end
// into memory.
type logSink struct {
	log *slog.Logger
	// ceiling is the highest level that lines are logged at. What go-plugin has
	// to say, such as that a plugin has ended, is of no interest to users: the
	// calls that it touches say so.
	ceiling slog.Level

	mu       sync.Mutex
	tail     []byte
	panicked bool
	partial  []byte // of Write
}

// copy logs the lines of r until it ends.
func (s *logSink) copy(r io.Reader) {
	b := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, more, err := b.ReadLine()
		if err != nil {
			return
		}
		line = bytes.Clone(line)
		for more && err == nil {
			_, more, err = b.ReadLine()
		}
		s.line(line)
	}
}

// Write takes lines in pieces, from hclog and from what a plugin prints.
func (s *logSink) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		s.mu.Lock()
		if len(s.partial) < maxLogLine {
			s.partial = append(s.partial, line[:min(len(line), maxLogLine-len(s.partial))]...)
		}
		var done []byte
		if whole {
			done, s.partial = s.partial, nil
		}
		s.mu.Unlock()
		if whole {
			s.line(done)
		}
		p = rest
	}
	return n, nil
}

func (s *logSink) line(line []byte) {
	ctx := context.Background()
	line = bytes.TrimRight(line, "\r")
	if len(line) == 0 {
		return
	}
	r, ok := parseRecord(line)
	s.mu.Lock()
	if !ok {
		text := string(line)
		s.panicked = s.panicked || strings.HasPrefix(text, "panic: ") || strings.HasPrefix(text, "fatal error: ")
		r = slog.Record{Time: time.Now(), Level: slog.LevelInfo, Message: strings.ToValidUTF8(text, "�")}
		if s.panicked {
			r.Level = slog.LevelError
		}
	}
	s.tail = append(append(s.tail, r.Message...), '\n')
	if over := len(s.tail) - maxTail; over > 0 {
		s.tail = append(s.tail[:0], s.tail[over:]...)
	}
	s.mu.Unlock()
	r.Level = min(r.Level, s.ceiling)
	if h := s.log.Handler(); h.Enabled(ctx, r.Level) {
		_ = h.Handle(ctx, r)
	}
}

// last is the end of what was written.
func (s *logSink) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimSpace(strings.ToValidUTF8(string(s.tail), ""))
}
