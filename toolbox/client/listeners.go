package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/portproxy"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// ports implements daytona.Ports.
type ports struct{ t *toolbox }

func (p ports) Dial(ctx context.Context, port int) (net.Conn, error) { return p.t.DialPort(ctx, port) }

func (p ports) List(ctx context.Context) ([]daytona.Listener, error) {
	const op = "list listeners"
	r := request{op: op, method: http.MethodGet, path: wire.ListenersPath}
	resp, err := p.t.extension(ctx, r)
	if errors.Is(err, daytona.ErrUnsupported) {
		return p.numbers(ctx, op)
	}
	if err != nil {
		return nil, err
	}
	var list wire.ListenerList
	if err := decode(ctx, r, resp, &list); err != nil {
		return nil, err
	}
	return listeners(list.Listeners), nil
}

// numbers asks an agent that only knows of numbers.
func (p ports) numbers(ctx context.Context, op string) ([]daytona.Listener, error) {
	var list wire.PortList
	if err := p.t.call(ctx, request{op: op, method: http.MethodGet, path: "/port"}, &list); err != nil {
		return nil, err
	}
	out := make([]daytona.Listener, len(list.Ports))
	for i, port := range list.Ports {
		out[i].Port = port
	}
	return out, nil
}

// extension is open for what not every agent has.
func (t *toolbox) extension(ctx context.Context, r request) (*http.Response, error) {
	resp, err := t.do(ctx, r)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	err, body := t.refused(ctx, r, resp)
	var e wire.ErrorResponse
	// A missing file has a code of its own.
	if resp.StatusCode == http.StatusNotFound && (json.Unmarshal(body, &e) != nil || e.Code == "" || e.Code == "NOT_FOUND") {
		return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: r.op, Subject: r.subject, Message: "the sandbox's agent does not know how to"}
	}
	return nil, err
}

func listeners(list []wire.Listener) []daytona.Listener {
	out := make([]daytona.Listener, len(list))
	for i, l := range list {
		out[i] = listener(l)
	}
	slices.SortFunc(out, compareListeners)
	return out
}

func compareListeners(a, b daytona.Listener) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), a.Addr.Compare(b.Addr))
}

func listener(l wire.Listener) daytona.Listener {
	addr, _ := netip.ParseAddr(l.Address) // the zero Addr if it is none
	return daytona.Listener{Port: l.Port, Addr: addr, UID: l.UID, PID: l.PID, Process: l.Process, Command: l.Command}
}

const (
	// reconnectFor is how long it is tried to make a lost stream anew.
	reconnectFor = 30 * time.Second
	// reconnectPause, doubled for each failure up to reconnectMost.
	reconnectPause = 50 * time.Millisecond
	reconnectMost  = 2 * time.Second
	// watchSilence is how long a stream may be silent: the agent sends something
	// three times meanwhile.
	watchSilence = 3 * wire.EventKeepAlive
)

func (p ports) Watch(ctx context.Context, opts *daytona.WatchPortsOptions) iter.Seq2[daytona.PortEvent, error] {
	var o daytona.WatchPortsOptions
	if opts != nil {
		o = *opts
	}
	return func(yield func(daytona.PortEvent, error) bool) {
		w := portWatch{t: p.t, cursor: o.Cursor, yield: yield}
		pause, last := reconnectPause, time.Now()
		for {
			some, err := w.stream(ctx)
			if w.stopped {
				return
			}
			if some {
				pause, last = reconnectPause, time.Now()
			}
			if !errors.Is(err, daytona.ErrUnavailable) || time.Since(last) > reconnectFor {
				yield(daytona.PortEvent{}, err)
				return
			}
			timer := time.NewTimer(pause)
			select {
			case <-ctx.Done():
				timer.Stop()
				yield(daytona.PortEvent{}, ended("watch ports", "", ctx.Err()))
				return
			case <-timer.C:
			}
			pause = min(2*pause, reconnectMost)
		}
	}
}

// portWatch is a sequence of events, over any number of streams.
type portWatch struct {
	t       *toolbox
	cursor  string
	present []daytona.Listener // what has been said to be open
	yield   func(daytona.PortEvent, error) bool
	stopped bool
}

// stream reads one stream to its end. some says that it began.
func (w *portWatch) stream(ctx context.Context) (some bool, err error) {
	const op = "watch ports"
	// For a stream that is silent for too long.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := request{op: op, method: http.MethodGet, path: wire.PortEventsPath}
	if w.cursor != "" {
		r.query = url.Values{"since": {w.cursor}}
	}
	resp, err := w.t.extension(ctx, r)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	silence := time.AfterFunc(watchSilence, func() { cancel(errSilent) })
	defer silence.Stop()
	events := wire.NewEventReader(&noisy{resp.Body, silence})
	for {
		e, err := events.Next()
		if err != nil {
			if context.Cause(ctx) == errSilent {
				return some, lost(context.Background(), op, "", errSilent)
			}
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return some, lost(ctx, op, "", err)
		}
		some = true
		if err := w.event(e); err != nil {
			return some, malformed(op, "", err)
		}
		if w.stopped {
			return some, nil
		}
	}
}

var errSilent = errors.New("the agent says nothing")

// noisy puts off a timer with every read.
type noisy struct {
	r     io.Reader
	timer *time.Timer
}

func (n *noisy) Read(p []byte) (int, error) {
	read, err := n.r.Read(p)
	if read > 0 {
		n.timer.Reset(watchSilence)
	}
	return read, err
}

// event yields what an event says.
func (w *portWatch) event(e wire.Event) error {
	switch e.Name {
	case wire.EventListeners:
		var list wire.ListenerList
		if err := json.Unmarshal(e.Data, &list); err != nil {
			return err
		}
		w.compare(listeners(list.Listeners), e.ID)
	case wire.EventOpen, wire.EventClose:
		var l wire.Listener
		if err := json.Unmarshal(e.Data, &l); err != nil {
			return err
		}
		w.say(daytona.PortEventType(e.Name), listener(l), e.ID)
	}
	// Others are of newer agents.
	w.cursor = e.ID
	return nil
}

// compare yields how who listens now differs from what was said before.
func (w *portWatch) compare(now []daytona.Listener, cursor string) {
	same := func(a, b daytona.Listener) bool {
		return compareListeners(a, b) == 0 && a.PID == b.PID && a.UID == b.UID && a.Process == b.Process
	}
	var events []daytona.PortEvent
	missing := func(of, in []daytona.Listener, kind daytona.PortEventType) {
		for _, l := range of {
			if !slices.ContainsFunc(in, func(o daytona.Listener) bool { return same(l, o) }) {
				events = append(events, daytona.PortEvent{Type: kind, Listener: l})
			}
		}
	}
	missing(w.present, now, daytona.PortClosed)
	missing(now, w.present, daytona.PortOpened)
	for i, e := range events {
		if i == len(events)-1 {
			e.Cursor = cursor
		}
		if w.say(e.Type, e.Listener, e.Cursor); w.stopped {
			return
		}
	}
}

func (w *portWatch) say(kind daytona.PortEventType, l daytona.Listener, cursor string) {
	w.present = slices.DeleteFunc(w.present, func(o daytona.Listener) bool { return compareListeners(o, l) == 0 })
	if kind == daytona.PortOpened {
		w.present = append(w.present, l)
	}
	w.stopped = !w.yield(daytona.PortEvent{Type: kind, Listener: l, Cursor: cursor}, nil)
}

func (p ports) Proxy(port int, opts *daytona.ProxyOptions) http.Handler {
	var o daytona.ProxyOptions
	if opts != nil {
		o = *opts
	}
	return &portproxy.Proxy{
		Transport: p.t.proxied(), Port: port, Protocol: o.Protocol, Forwarded: o.TrustForwarded,
		Fail: func(w http.ResponseWriter, r *http.Request, err error) {
			p.t.log.Debug("proxy to a port", "port", port, "error", err)
			http.Error(w, "the sandbox's port "+strconv.Itoa(port)+" does not answer", http.StatusBadGateway)
		},
		Log: slog.NewLogLogger(p.t.log.Handler(), slog.LevelDebug),
	}
}
