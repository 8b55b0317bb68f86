package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const watchOp = "watch"

func (f *fileSystem) Watch(ctx context.Context, path string, opts *daytona.WatchOptions) (daytona.FileWatch, error) {
	w, err := f.watch(ctx, path, opts)
	if err != nil {
		return nil, pathError(watchOp, path, err)
	}
	return w, nil
}

func (f *fileSystem) watch(ctx context.Context, path string, opts *daytona.WatchOptions) (*fileWatch, error) {
	var o daytona.WatchOptions
	if opts != nil {
		o = *opts
	}
	q := query("path", path)
	if o.Shallow {
		q.Set("recursive", "false")
	}
	if o.Window != 0 {
		if o.Window < time.Millisecond {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Field: "Window", Value: o.Window, Message: "must be at least a millisecond"}
		}
		q.Set("window", strconv.FormatInt(o.Window.Milliseconds(), 10))
	}
	q["exclude"] = o.Exclude
	w := &fileWatch{path: path, parent: ctx}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	resp, err := f.t.extension(w.ctx, request{file: true, method: http.MethodGet, path: wire.WatchPath, query: q})
	if err != nil {
		w.cancel(nil)
		return nil, err
	}
	w.body = resp.Body
	w.silence = time.AfterFunc(watchSilence, func() { w.cancel(errSilent) })
	w.events = wire.NewEventReader(&noisy{resp.Body, w.silence})
	e, err := w.events.Next()
	if err == nil && e.Name != wire.EventReady {
		err = malformed("", "", fmt.Errorf("the first event is %q", e.Name))
	}
	if err != nil {
		err = w.lost(err)
		w.Close()
		return nil, err
	}
	return w, nil
}

// fileWatch implements daytona.FileWatch.
type fileWatch struct {
	path    string
	parent  context.Context
	ctx     context.Context
	cancel  context.CancelCauseFunc
	body    io.Closer
	silence *time.Timer
	events  *wire.EventReader

	reading sync.Mutex
	left    []daytona.FileEvent // read, and not yielded yet
	err     error               // why there are no more
}

func (w *fileWatch) Close() error {
	w.silence.Stop()
	w.cancel(fs.ErrClosed)
	return w.body.Close()
}

// lost says why reading ended with err.
func (w *fileWatch) lost(err error) error {
	if cause := context.Cause(w.ctx); w.parent.Err() == nil && cause != nil {
		if errors.Is(cause, fs.ErrClosed) {
			return fs.ErrClosed
		}
		err = cause
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return lost(w.parent, "", "", err)
}

func (w *fileWatch) Events() iter.Seq2[daytona.FileEvent, error] {
	return func(yield func(daytona.FileEvent, error) bool) {
		w.reading.Lock()
		defer w.reading.Unlock()
		for {
			for len(w.left) > 0 {
				e := w.left[0]
				w.left = w.left[1:]
				if !yield(e, nil) {
					return
				}
			}
			if w.err != nil {
				yield(daytona.FileEvent{}, pathError(watchOp, w.path, w.err))
				return
			}
			e, err := w.events.Next()
			if err != nil {
				w.err = w.lost(err)
				continue
			}
			if err := w.event(e); err != nil {
				w.err = malformed("", "", err)
			}
		}
	}
}

// event takes in an event. Those that it does not know are of newer agents.
func (w *fileWatch) event(e wire.Event) error {
	switch e.Name {
	case wire.EventChanges:
		var c wire.FileChanges
		if err := json.Unmarshal(e.Data, &c); err != nil {
			return err
		}
		for _, c := range c.Events {
			w.left = append(w.left, daytona.FileEvent{Type: daytona.FileEventType(c.Type), Path: c.Path, OldPath: c.OldPath, IsDir: c.IsDir})
		}
	case wire.EventOverflow:
		var o wire.WatchOverflow
		if err := json.Unmarshal(e.Data, &o); err != nil {
			return err
		}
		w.left = append(w.left, daytona.FileEvent{Type: daytona.FilesLost, Path: o.Path, IsDir: true, Reason: o.Reason})
	case wire.EventEnd:
		var end wire.WatchEnd
		if err := json.Unmarshal(e.Data, &end); err != nil {
			return err
		}
		kind := kindOf(http.StatusInternalServerError, end.Code)
		w.err = &daytona.Error{Kind: kind, Message: end.Message, Err: fileCause(kind)}
	}
	return nil
}
