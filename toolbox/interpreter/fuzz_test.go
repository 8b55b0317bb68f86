package interpreter

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// FuzzFrame checks that whatever an interpreter sends is a frame that can be
// passed on as JSON, or an error.
func FuzzFrame(f *testing.F) {
	for _, s := range []string{`{"type":"ready"}`, `{"type":"done","id":1,"error":{"name":"E"}}`, `{"type":"result","data":{"text/plain":"1"}}`,
		`{"type":"chart","chart":{"elements":[{}]}}`, `{"type":"result","data":1}`, `{"type":"failed","text":"no"}`, `{}`, `null`} {
		f.Add(append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...))
	}
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Add([]byte("\x00\x00\x10\x00{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			frame, err := readFrame(r)
			if err != nil {
				return
			}
			if _, err := json.Marshal(wire.InterpreterMessage{Data: frame.Data, Chart: frame.Chart}); err != nil {
				t.Fatalf("%q cannot be passed on: %v", b, err)
			}
			if frame.Error != nil && len(frame.Error.message().Traceback) > textLimit+len("…") {
				t.Fatal("an exception without bounds")
			}
		}
	})
}

// FuzzIncomplete checks that output is cut between characters, and that no more
// than the beginning of one is held back.
func FuzzIncomplete(f *testing.F) {
	f.Add("é☺𝄞", 2)
	f.Add("a\xff\xe2\x82", 3)
	f.Fuzz(func(t *testing.T, s string, at int) {
		if at < 0 || at > len(s) {
			return
		}
		var out strings.Builder
		var rest []byte
		for _, part := range []string{s[:at], s[at:]} {
			text := append(rest, part...)
			cut := len(text) - incomplete(text)
			if len(text)-cut >= utf8.UTFMax || utf8.FullRune(text[cut:]) && cut < len(text) {
				t.Fatalf("%q is held back of %q", text[cut:], text)
			}
			out.WriteString(strings.ToValidUTF8(string(text[:cut]), "?"))
			rest = append([]byte(nil), text[cut:]...)
		}
		if utf8.ValidString(s) && (out.String() != s || len(rest) > 0) {
			t.Fatalf("%q became %q and %q", s, out.String(), rest)
		}
	})
}
