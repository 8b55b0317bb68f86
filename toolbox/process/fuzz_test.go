package process

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// split is how clients take a marked log apart: a marker selects the stream
// until the next one.
func splitLog(b []byte) (stdout, stderr []byte) {
	var to *[]byte
	for len(b) > 0 {
		switch {
		case bytes.HasPrefix(b, []byte(wire.StdoutMarker)):
			to, b = &stdout, b[3:]
		case bytes.HasPrefix(b, []byte(wire.StderrMarker)):
			to, b = &stderr, b[3:]
		default:
			if to != nil {
				*to = append(*to, b[0])
			}
			b = b[1:]
		}
	}
	return stdout, stderr
}

// Output that is free of markers comes out of a marked log as it went in,
// however it was cut; and every line has its marker.
func FuzzLineMarker(f *testing.F) {
	f.Add([]byte("a\nb"), []byte{0, 3})
	f.Add([]byte("\n\n\nx\n"), []byte{1, 1, 0, 1})
	f.Add([]byte("no newline"), []byte{})
	f.Fuzz(func(t *testing.T, data, cuts []byte) {
		data = bytes.ReplaceAll(bytes.ReplaceAll(data, []byte{1}, nil), []byte{2}, nil)
		log := newOutputLog(t.TempDir(), 64<<10)
		var want [3][]byte
		rest := data
		for _, c := range cuts {
			n := min(int(c>>1), len(rest))
			stream := c&1 + 1
			log.append(stream, rest[:n])
			want[stream] = append(want[stream], rest[:n]...)
			rest = rest[n:]
		}
		log.append(stdoutStream, rest)
		want[1] = append(want[1], rest...)
		log.finish()
		rd := log.follow()
		defer rd.close()
		var m lineMarker
		var marked []byte
		for {
			err := rd.each(nil, func(stream byte, p []byte) error {
				marked = m.add(marked, stream, p)
				return nil
			})
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		stdout, stderr := splitLog(marked)
		if !bytes.Equal(stdout, want[1]) || !bytes.Equal(stderr, want[2]) {
			t.Fatalf("%q: %q %q, want %q %q", marked, stdout, stderr, want[1], want[2])
		}
		for line := range bytes.Lines(marked) {
			if !bytes.HasPrefix(line, []byte(wire.StdoutMarker)) && !bytes.HasPrefix(line, []byte(wire.StderrMarker)) {
				t.Fatalf("line %q of %q has no marker", line, marked)
			}
		}
	})
}

// The streaming writer gives what encoding/json decodes to, however it was
// cut.
func FuzzJSONString(f *testing.F) {
	f.Add([]byte("é\xff\xe2\x82\xac\x00\"\\\n"), uint8(1))
	f.Add([]byte("\xe2\x82"), uint8(1))
	f.Add([]byte("\xf0\x9f\x98\x80"), uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		var out bytes.Buffer
		w := bufio.NewWriter(&out)
		if err := jsonField(w, "x", func(to io.Writer) error {
			for b := data; len(b) > 0; {
				n := min(int(step)+1, len(b))
				to.Write(b[:n])
				b = b[n:]
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		w.Flush()
		var got struct{ X string }
		if err := json.Unmarshal([]byte("{"+out.String()+"}"), &got); err != nil {
			t.Fatalf("%q: %v", out.String(), err)
		}
		b, _ := json.Marshal(string(data))
		var want string
		json.Unmarshal(b, &want)
		if got.X != want || !utf8.ValidString(got.X) {
			t.Fatalf("%q becomes %q, want %q", data, got.X, want)
		}
	})
}

// Chart lines are taken out and nothing else, however the output was cut.
func FuzzArtifactFilter(f *testing.F) {
	f.Add([]byte("a\n"+artifactPrefix+`{"type":"chart","value":{"x":1}}`+"\nb"), uint8(3))
	f.Add([]byte(artifactPrefix+"{}\n"+artifactPrefix), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, step uint8) {
		run := func(step int) (string, int) {
			var out strings.Builder
			a := artifactFilter{out: &out}
			for b := data; len(b) > 0; {
				n := min(step, len(b))
				a.Write(b[:n])
				b = b[n:]
			}
			a.flush()
			return out.String(), len(a.charts)
		}
		got, charts := run(int(step) + 1)
		whole, wholeCharts := run(len(data) + 1)
		if got != whole || charts != wholeCharts {
			t.Fatalf("cut in %d: %q (%d charts), whole: %q (%d charts)", step+1, got, charts, whole, wholeCharts)
		}
		if charts == 0 && got != string(data) {
			t.Fatalf("%q became %q", data, got)
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("123 (a) b) S 1 123 123 0 -1"))
	f.Add([]byte("1 () Z 0 0 0"))
	f.Fuzz(func(t *testing.T, line []byte) {
		e, ok := parseStat(line)
		if !ok {
			return
		}
		again, ok := parseStat(fmt.Appendf(nil, "%d (x) %c %d %d %d 0", e.pid, e.state, e.ppid, e.pgrp, e.sid))
		if !ok || again != e {
			t.Fatalf("%q: %+v, then %+v", line, e, again)
		}
	})
}

// What has no shell syntax is split as a shell splits it.
func FuzzPlainCommand(f *testing.F) {
	f.Add("ls -la /tmp")
	f.Add("A=b true")
	f.Add("echo *")
	f.Fuzz(func(t *testing.T, script string) {
		words := plainCommand(script)
		if words == nil {
			return
		}
		if strings.ContainsAny(script, "\"'`$\\&|;<>(){}*?[]#!~^") || strings.Contains(strings.Trim(script, " \t\n"), "\n") || strings.Contains(words[0], "=") {
			t.Fatalf("%q is not plain: %q", script, words)
		}
		if strings.Join(words, " ") != strings.Join(strings.Fields(script), " ") {
			t.Fatalf("%q: %q", script, words)
		}
	})
}

func FuzzParseVersion(f *testing.F) {
	for _, s := range []string{"0.190.0", "v1.2", "0.0.0-dev", "1.2.3-alpha+b", "", "-1.0.0", "1..2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, _, ok := parseVersion(s)
		if !ok && v != [3]int{} || v[0] < 0 || v[1] < 0 || v[2] < 0 {
			t.Fatalf("%q: %v %v", s, v, ok)
		}
	})
}

// A log beyond its limit keeps its beginning and its end and says what is
// missing.
func TestOutputLogKeepsEnds(t *testing.T) {
	log := newOutputLog(t.TempDir(), 256<<10)
	defer log.remove()
	line := []byte(strings.Repeat("x", 999) + "\n")
	log.append(stdoutStream, []byte("the beginning\n"))
	for range 2000 {
		log.append(stdoutStream, line)
	}
	log.append(stdoutStream, []byte("the end"))
	read := func(rd *logReader) (stdout, stderr string) {
		defer rd.close()
		for {
			if err := rd.each(nil, func(stream byte, p []byte) error {
				if stream == stdoutStream {
					stdout += string(p)
				} else {
					stderr += string(p)
				}
				return nil
			}); err != nil {
				return stdout, stderr
			}
		}
	}
	for _, rd := range []*logReader{log.snapshot(), func() *logReader { log.finish(); return log.follow() }()} {
		stdout, stderr := read(rd)
		if len(stdout) > 256<<10 || len(stdout) < 200<<10 || !strings.HasPrefix(stdout, "the beginning\n") || !strings.HasSuffix(stdout, "\nthe end") || !strings.Contains(stderr, "bytes left out") {
			t.Errorf("%d bytes, stderr %q", len(stdout), stderr)
		}
	}
}
