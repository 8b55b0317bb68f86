package client_test

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
)

// TestHostileDesktop gives answers that no agent gives: each is an error, and none
// is believed.
func TestHostileDesktop(t *testing.T) {
	deep := strings.Repeat(`{"children":[`, 20000) + strings.Repeat(`]}`, 20000)
	drop := func(_ any, err error) error { return err }
	for name, c := range map[string]struct {
		answer string
		ask    func(c daytona.ComputerUse) error
	}{
		"no base64":  {`{"screenshot":"***"}`, func(c daytona.ComputerUse) error { return drop(c.Screenshot(t.Context(), image.Rectangle{}, nil)) }},
		"no picture": {`{}`, func(c daytona.ComputerUse) error { return drop(c.Screenshot(t.Context(), image.Rectangle{}, nil)) }},
		"no JSON":    {`<html>`, func(c daytona.ComputerUse) error { return drop(c.Windows(t.Context())) }},
		"no tree": {`{"truncated":true}`, func(c daytona.ComputerUse) error {
			return drop(c.AccessibilityTree(t.Context(), daytona.AccessibilityScope{}, -1))
		}},
		"deep tree": {`{"root":` + deep + `}`, func(c daytona.ComputerUse) error {
			return drop(c.AccessibilityTree(t.Context(), daytona.AccessibilityScope{}, -1))
		}},
		"no time":          {`{"id":"x","startTime":"today"}`, func(c daytona.ComputerUse) error { return drop(c.Recording(t.Context(), "x")) }},
		"no time, in list": {`{"recordings":[{"id":"x"}]}`, func(c daytona.ComputerUse) error { return drop(c.Recordings(t.Context())) }},
		"no number":        {`{"x":"1"}`, func(c daytona.ComputerUse) error { return drop(c.MousePosition(t.Context())) }},
	} {
		t.Run(name, func(t *testing.T) {
			tb := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, c.answer) }), nil)
			wantKind(t, c.ask(tb.ComputerUse()), daytona.KindInternal)
		})
	}
	// What is odd but harmless is taken.
	tb := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"status":"splendid","windows":[{"width":-5,"height":-9223372036854775808}],"matches":[null,{"id":"x"}]}`)
	}), nil)
	if s, err := tb.ComputerUse().Status(t.Context()); err != nil || s != daytona.DesktopUnknown {
		t.Errorf("status %v, %v", s, err)
	}
	if w, err := tb.ComputerUse().Windows(t.Context()); err != nil || len(w) != 1 || !w[0].Bounds.Empty() {
		t.Errorf("windows %v, %v", w, err)
	}
	if found, err := tb.ComputerUse().FindAccessible(t.Context(), daytona.AccessibilityQuery{}); err != nil || len(found.Nodes) != 1 {
		t.Errorf("found %v, %v", found, err)
	}
}

// TestDownloadRecordingBreaks tells the fault of the connection from the writer's.
func TestDownloadRecordingBreaks(t *testing.T) {
	tb := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		fmt.Fprint(w, "half of it")
	}), nil)
	wantKind(t, tb.ComputerUse().DownloadRecording(t.Context(), "x", io.Discard), daytona.KindUnavailable)
	full := errors.New("the disk is full")
	if err := tb.ComputerUse().DownloadRecording(t.Context(), "x", failing{full}); !errors.Is(err, full) {
		t.Errorf("download: %v", err)
	}
	wantKind(t, tb.ComputerUse().DownloadRecording(t.Context(), "..", new(bytes.Buffer)), daytona.KindInvalid)
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
