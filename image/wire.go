//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
)

const (
	// defaultStall is how long a registry may be silent.
	defaultStall = time.Minute
	// maxRateWait is the longest that one request waits in all because the registry asks for it.
	// Docker Hub says hours when the day's pulls are used up; nobody waits for that.
	maxRateWait  = 2 * time.Minute
	maxRateWaits = 5
	// maxResumes limits the requests for the rest of a blob that brought nothing, maxAllResumes
	// those that did, so that a registry cannot feed a byte per request for ever.
	maxResumes    = 3
	maxAllResumes = 50
)

// wire carries the requests to registries. It is below what go-containerregistry does about
// authentication, so what it repeats is the request as it was sent.
type wire struct {
	inner http.RoundTripper
	stall time.Duration
	plain func(host string) bool // may be spoken to without TLS
	log   *slog.Logger
	// pause waits; tests need not.
	pause func(context.Context, time.Duration) error
}

func newWire(inner http.RoundTripper, stall time.Duration, plain func(string) bool, log *slog.Logger) *wire {
	if inner == nil {
		inner = remote.DefaultTransport
	}
	if stall == 0 {
		stall = defaultStall
	}
	return &wire{inner: inner, stall: stall, plain: plain, log: log, pause: pause}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// plainHosts says who may be spoken to without TLS: this machine, and who is listed.
func plainHosts(listed []string, always ...string) func(string) bool {
	return func(host string) bool {
		return isLoopback(host) || slices.Contains(listed, host) || slices.Contains(always, host)
	}
}

func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" && !w.plain(req.URL.Host) {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("%w: %s would be spoken to without TLS, which is only done within this machine and with the registries listed in PlainHTTP", ErrUnavailable, req.URL.Host)
	}
	var waited time.Duration
	for attempt := 0; ; attempt++ {
		resp, err := w.once(req)
		if err != nil {
			return nil, err
		}
		delay, limited := retryAfter(resp, attempt)
		if !limited {
			if req.Method == http.MethodGet && resp.StatusCode == http.StatusOK && strings.Contains(req.URL.Path, "/blobs/") || isRedirected(req) && resp.StatusCode == http.StatusOK {
				resp.Body = &resumed{wire: w, req: req, resp: resp, body: resp.Body, etag: resp.Header.Get("ETag")}
			}
			return resp, nil
		}
		kind := ErrRateLimited
		if resp.StatusCode == http.StatusServiceUnavailable {
			kind = ErrUnavailable
		}
		io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		resp.Body.Close()
		if waited += delay; attempt >= maxRateWaits || waited > maxRateWait || (req.Body != nil && req.GetBody == nil) {
			return nil, fmt.Errorf("%w: %s answers %s; it wants %v of silence", kind, req.URL.Host, resp.Status, delay)
		}
		w.log.Warn("image store: the registry wants fewer requests", "registry", req.URL.Host, "status", resp.StatusCode, "delay", delay)
		if err := w.pause(req.Context(), delay); err != nil {
			return nil, err
		}
		if req.GetBody != nil {
			next := req.Clone(req.Context())
			if next.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
			req = next
		}
	}
}

// isRedirected reports whether the request follows from an answer to a request for a blob, as
// registries send their clients to where the blobs really are.
func isRedirected(req *http.Request) bool {
	for r := req.Response; r != nil && r.Request != nil; r = r.Request.Response {
		if r.Request.Method == http.MethodGet && strings.Contains(r.Request.URL.Path, "/blobs/") {
			return true
		}
	}
	return false
}

// retryAfter reports whether the answer asks to come back later, and when.
// https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
func retryAfter(resp *http.Response, attempt int) (time.Duration, bool) {
	stated := resp.Header.Get("Retry-After")
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
	case resp.StatusCode == http.StatusServiceUnavailable && stated != "":
	default:
		return 0, false
	}
	if s, err := strconv.ParseInt(stated, 10, 32); err == nil && s >= 0 {
		return time.Duration(s) * time.Second, true
	}
	if t, err := http.ParseTime(stated); err == nil {
		return max(time.Until(t), 0), true
	}
	return time.Second << attempt, true
}

// once sends a request and gives up when neither side has said anything for a while.
func (w *wire) once(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	stalled := fmt.Errorf("%w: %s has been silent for %v", ErrUnavailable, req.URL.Host, w.stall)
	timer := time.AfterFunc(w.stall, func() { cancel(stalled) })
	out := req.WithContext(ctx)
	if req.Body != nil && req.Body != http.NoBody {
		out.Body = &watchedUpload{ReadCloser: req.Body, timer: timer, stall: w.stall}
	}
	resp, err := w.inner.RoundTrip(out)
	timer.Stop()
	if err != nil {
		if ctx.Err() != nil && req.Context().Err() == nil {
			err = context.Cause(ctx)
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &watched{body: resp.Body, ctx: ctx, outer: req.Context(), cancel: cancel, timer: timer, stall: w.stall}
	return resp, nil
}

// watchedUpload puts the end off while the registry takes what it is sent.
type watchedUpload struct {
	io.ReadCloser
	timer *time.Timer
	stall time.Duration
}

func (u *watchedUpload) Read(p []byte) (int, error) {
	// The source of the upload may be slow itself; that is not the registry's silence.
	u.timer.Stop()
	n, err := u.ReadCloser.Read(p)
	u.timer.Reset(u.stall)
	return n, err
}

// watched is the body of an answer. The time runs only while somebody waits for bytes.
type watched struct {
	body   io.ReadCloser
	ctx    context.Context
	outer  context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
	closed atomic.Bool
}

func (b *watched) Read(p []byte) (int, error) {
	b.timer.Reset(b.stall)
	n, err := b.body.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF && b.ctx.Err() != nil && b.outer.Err() == nil && !b.closed.Load() {
		err = context.Cause(b.ctx)
	}
	return n, err
}

func (b *watched) Close() error {
	b.closed.Store(true)
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}

// resumed is a blob that is asked for again from where it broke off. Whoever reads it checks the
// digest of the whole.
type resumed struct {
	wire *wire
	req  *http.Request
	resp *http.Response
	body io.ReadCloser
	etag string
	done int64
	// lastDone is what had arrived when it broke off last.
	lastDone    int64
	futile, all int
}

func (b *resumed) Read(p []byte) (int, error) {
	for {
		n, err := b.body.Read(p)
		b.done += int64(n)
		if err == nil || err == io.EOF || b.req.Context().Err() != nil {
			return n, err
		}
		if n > 0 {
			return n, nil // the next call meets the error again
		}
		if err := b.again(err); err != nil {
			return 0, err
		}
	}
}

// again asks for the rest. It returns why it broke off if there is no asking.
func (b *resumed) again(cause error) error {
	if b.done > b.lastDone {
		b.futile = 0
	}
	b.lastDone = b.done
	for {
		b.futile++
		b.all++
		if b.futile > maxResumes || b.all > maxAllResumes {
			return cause
		}
		b.wire.log.Warn("image store: asking for the rest of a blob", "registry", b.req.URL.Host, "have", b.done, "error", cause)
		if err := b.wire.pause(b.req.Context(), 100*time.Millisecond<<(2*(b.futile-1))); err != nil {
			return err
		}
		body, err := b.rest(b.done > 0)
		if errors.Is(err, errNoRest) && b.done > 0 {
			body, err = b.rest(false) // some take a range for an error
		}
		if err == nil {
			b.body.Close()
			b.body = body
			return nil
		}
		if b.req.Context().Err() != nil {
			return context.Cause(b.req.Context())
		}
		if errors.Is(err, errNoRest) {
			return cause
		}
	}
}

// errNoRest: the server has nothing to continue with.
var errNoRest = errors.New("no rest")

func (b *resumed) rest(ranged bool) (io.ReadCloser, error) {
	req := b.req.Clone(b.req.Context())
	if ranged {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", b.done))
		if b.etag != "" && !strings.HasPrefix(b.etag, "W/") {
			req.Header.Set("If-Range", b.etag)
		}
	}
	resp, err := b.wire.once(req)
	if err != nil {
		return nil, err
	}
	switch {
	case ranged && resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", b.done)):
		return resp.Body, nil
	case resp.StatusCode == http.StatusOK:
		// It does not do ranges: what has arrived comes again.
		if _, err := io.CopyN(io.Discard, resp.Body, b.done); err != nil {
			resp.Body.Close()
			return nil, err
		}
		return resp.Body, nil
	}
	resp.Body.Close()
	if resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests {
		return nil, fmt.Errorf("the server answers %s", resp.Status)
	}
	return nil, errNoRest
}

func (b *resumed) Close() error { return b.body.Close() }
