package wire_test

import (
	"bytes"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/daytona-go/daytona/toolbox/wire"
)

func TestEvents(t *testing.T) {
	w := httptest.NewRecorder()
	out := wire.NewEventWriter(w)
	for _, err := range []error{out.Send("a", "1", "line\nline"), out.KeepAlive(), out.Send("b", "", nil), out.Send("c", "2", map[string]int{"x": 1})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	in := wire.NewEventReader(iotest.OneByteReader(w.Body))
	for _, want := range []wire.Event{{"a", "1", []byte(`"line\nline"`)}, {"b", "1", []byte("null")}, {"c", "2", []byte(`{"x":1}`)}} {
		if e, err := in.Next(); err != nil || e.Name != want.Name || e.ID != want.ID || !bytes.Equal(e.Data, want.Data) {
			t.Errorf("%+v %v, want %+v", e, err, want)
		}
	}
	if _, err := in.Next(); err != io.EOF {
		t.Error(err)
	}
	if _, err := wire.NewEventReader(io.MultiReader(strings.NewReader("data: "), endless{})).Next(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("an endless event: %v", err)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return copy(p, "xxxxxxxxxxxxxxxx"), nil }

func FuzzEvents(f *testing.F) {
	f.Add([]byte("id: 1\nevent: a\ndata: x\ndata:y\n\n:\n\nretry\r\ndata: z\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		read := func(r io.Reader) (all []wire.Event) {
			in := wire.NewEventReader(r)
			for {
				e, err := in.Next()
				if err != nil {
					return all
				}
				all = append(all, e)
			}
		}
		once, slowly := read(bytes.NewReader(b)), read(iotest.OneByteReader(bytes.NewReader(b)))
		if len(once) != len(slowly) {
			t.Fatalf("%q: %d events, and %d when they come slowly", b, len(once), len(slowly))
		}
		for i, e := range once {
			if s := slowly[i]; e.Name != s.Name || e.ID != s.ID || !bytes.Equal(e.Data, s.Data) || strings.ContainsAny(e.Name+e.ID, "\n") {
				t.Errorf("%q: %+v, and %+v", b, e, s)
			}
		}
	})
}
