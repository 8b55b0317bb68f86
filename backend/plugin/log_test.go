package plugin

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestRecordSurvives: what a plugin logs is what the host's handler gets.
func TestRecordSurvives(t *testing.T) {
	var wire bytes.Buffer
	log := slog.New(NewLogHandler(&wire, levelTrace))
	log.With("w", 1).WithGroup("g").Warn("hello", "n", -5, "f", 2.5, "b", true, "s", "text", "d", time.Second,
		slog.Group("inner", "x", "y"), "list", []int{1, 2}, "msg", "in a group")
	log.Debug("second", "msg", "an attribute", "level", "high", "time", "noon")
	log.Log(t.Context(), levelTrace, "lowest")

	var got bytes.Buffer
	sink := &logSink{ceiling: slog.LevelError, log: slog.New(slog.NewTextHandler(&got, &slog.HandlerOptions{Level: levelTrace, ReplaceAttr: func(g []string, a slog.Attr) slog.Attr {
		if len(g) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
			if d := time.Since(a.Value.Time()); d < 0 || d > time.Minute {
				t.Errorf("the record's time is %v ago", d)
			}
			return slog.Attr{}
		}
		return a
	}}))}
	sink.copy(&wire)
	const want = `level=WARN msg=hello w=1 g.n=-5 g.f=2.5 g.b=true g.s=text g.d=1000000000 g.inner.x=y g.list="[1 2]" g.msg="in a group"
level=DEBUG msg=second msg="an attribute" level=high time=noon
level=DEBUG-4 msg=lowest
`
	if got.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
	}
}

// TestHostileLog: a plugin's lines cannot take the host's memory, nor make it
// panic as they would in go-plugin.
func TestHostileLog(t *testing.T) {
	var got bytes.Buffer
	sink := &logSink{ceiling: slog.LevelWarn, log: slog.New(slog.NewTextHandler(&got, nil))}
	sink.copy(strings.NewReader(strings.Repeat("x", 10<<20) + "\nnext\n" +
		`{"@level":"info","@message":7}` + "\n" + `{"@message":"no level"}` + "\n" + `{"@level":5}` + "\n" + `null` + "\n" +
		strings.Repeat(`{"a":`, 10_000) + "\n" +
		`{"@level":"error","@message":"loud"}` + "\npanic: it hurts\n\tat line 1\n"))
	text := got.String()
	if len(text) > 4*maxLogLine {
		t.Errorf("%d bytes were logged", len(text))
	}
	for _, want := range []string{"msg=next", `@message\":7`, "no level", "level=WARN msg=loud", `level=WARN msg="panic: it hurts"`} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in the log", want)
		}
	}
	if tail := sink.last(); len(tail) > maxTail || !strings.HasSuffix(tail, "panic: it hurts\n\tat line 1") {
		t.Errorf("the tail is %q", tail)
	}
	if strings.Contains(text, "level=ERROR") {
		t.Error("the ceiling does not hold")
	}
	for range 1000 { // pieces without an end
		_, _ = sink.Write(bytes.Repeat([]byte("y"), 1000))
	}
	if len(sink.partial) > maxLogLine {
		t.Errorf("%d bytes of an unfinished line are kept", len(sink.partial))
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"@level":"info","@message":"m","@timestamp":"2026-01-02T15:04:05.000000Z","k":{"a":[1,2.5,null]}}`))
	f.Add([]byte(`{"@level":"info","@message":{},"a":1e400}`))
	f.Add([]byte(`{"a":1} {}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, ok := parseRecord(line)
		if !ok {
			return
		}
		var out bytes.Buffer
		if err := slog.NewTextHandler(&out, &slog.HandlerOptions{Level: levelTrace}).Handle(t.Context(), r); err != nil {
			t.Error(err)
		}
	})
}
