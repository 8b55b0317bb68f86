package client

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"testing"

	"github.com/daytona-go/daytona"
)

// FuzzDemux checks that the outcome does not depend on where frames are split,
// against a plain reading of the format.
func FuzzDemux(f *testing.F) {
	f.Add([]byte("\x01\x01\x01out\n\x02\x02\x02err\n"), uint8(1))
	f.Add([]byte("dropped\x01\x01\x01a\x01b\x02\x02\x01\x01\x01\x01c\x02\x02\x02"), uint8(2))
	f.Add([]byte("\x02\x02\x02\x02\x02\x02\x01\x01"), uint8(3))
	f.Add([]byte("\x01\x01\x02\x02\x02x"), uint8(0))
	f.Fuzz(func(t *testing.T, log []byte, size uint8) {
		var wantOut, wantErr bytes.Buffer
		var current *bytes.Buffer
		for rest := log; len(rest) > 0; {
			switch {
			case bytes.HasPrefix(rest, []byte("\x01\x01\x01")):
				current, rest = &wantOut, rest[3:]
			case bytes.HasPrefix(rest, []byte("\x02\x02\x02")):
				current, rest = &wantErr, rest[3:]
			default:
				if current != nil {
					current.WriteByte(rest[0])
				}
				rest = rest[1:]
			}
		}
		var out, errs bytes.Buffer
		d := newDemux(&out, &errs)
		for rest := log; len(rest) > 0; {
			n := min(len(rest), int(size)+1)
			if wrote, err := d.Write(rest[:n]); wrote != n || err != nil {
				t.Fatalf("Write = %d, %v", wrote, err)
			}
			rest = rest[n:]
		}
		if err := d.Flush(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Bytes(), wantOut.Bytes()) || !bytes.Equal(errs.Bytes(), wantErr.Bytes()) {
			t.Errorf("%q in pieces of %d: stdout %q, stderr %q; want %q, %q", log, int(size)+1, out.Bytes(), errs.Bytes(), wantOut.Bytes(), wantErr.Bytes())
		}
	})
}

// FuzzParseMode checks that what is accepted formats back to what it was.
func FuzzParseMode(f *testing.F) {
	for _, m := range []fs.FileMode{0, 0o644, fs.ModeDir | 0o755, fs.ModeSymlink | 0o777, fs.ModeDevice | fs.ModeCharDevice | 0o600,
		fs.ModeDir | fs.ModeSticky | 0o777, fs.ModeSetuid | fs.ModeSetgid | 0o755, fs.ModeSocket, fs.ModeNamedPipe, fs.ModeIrregular} {
		f.Add(m.String())
	}
	f.Add("drwxr-xr-")
	f.Add("-rwxrwxrwz")
	f.Add("Ddrwxrwxrwx")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseMode(s)
		if err == nil && m.String() != s {
			t.Errorf("%q parsed as %q", s, m)
		}
	})
}

func TestParseModeIsInverse(t *testing.T) {
	for bit := range 32 {
		for _, perm := range []fs.FileMode{0, 0o644, 0o777} {
			m := fs.FileMode(1)<<bit | perm
			if m&^(fs.ModePerm|fs.FileMode(0xFFF80000)) != 0 {
				continue // not a defined bit
			}
			if got, err := parseMode(m.String()); err != nil || got != m {
				t.Errorf("%v parsed as %v, %v", m, got, err)
			}
		}
	}
}

// FuzzRun checks that whatever an agent says about a run is taken or refused,
// within bounds.
func FuzzRun(f *testing.F) {
	for _, s := range []string{
		`{"type":"stdout","text":"o"}`, `{"type":"error","name":"E","value":"v","traceback":"t"}`, `{"type":"result","data":{"text/plain":"1","image/png":"iVBO"}}`,
		`{"type":"chart","chart":{"type":"composite_chart","png":"iVBO","elements":[{"type":"pie","elements":[{"label":"a","angle":1}]},{"points":[[1,2]]}]}}`,
		`{"type":"control","text":"interrupted"}`, `{"type":"refused","name":"NOT_FOUND","text":"x"}`, `{"type":"result","data":{"a":{}}}`, `null`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := run{op: "op", o: &daytona.InterpreterOptions{}}
		if r.take(b) != nil {
			return
		}
		got := r.result()
		for _, d := range got.Results {
			if len(d) > maxForms {
				t.Errorf("%d forms", len(d))
			}
		}
		// A chart is what it was once it is written and read again.
		for _, c := range got.Charts {
			first, err := json.Marshal(c)
			if err != nil {
				t.Fatal(err)
			}
			again, err := decodeChart("op", first)
			if err != nil {
				t.Fatalf("%s: %v", first, err)
			}
			if second, _ := json.Marshal(again); !bytes.Equal(first, second) {
				t.Errorf("%s became %s", first, second)
			}
		}
	})
}
