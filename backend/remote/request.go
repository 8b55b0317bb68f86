package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
)

const (
	// sdkVersion is what the server is told of this client: answers depend on it.
	sdkVersion = "0.205.0"
	source     = "daytona-go"

	// maxAnswer bounds an answer, in bytes: 200 sandboxes with large labels.
	maxAnswer = 64 << 20
	maxError  = 64 << 10
	// attempts at what may be repeated, the first included.
	attempts = 5
	// maxRetryAfter is the longest that a server may make us wait between two.
	maxRetryAfter = time.Minute

	closeTimeout   = 2 * time.Minute
	cleanupTimeout = 30 * time.Second
)

// call is one call of the API.
type call struct {
	op, subject string // for errors
	method      string
	path        string // escaped, below the API
	query       url.Values
	in, out     any
}

// segment is an id or a name as a part of a path.
func segment(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}

// header is sent with every request, also to the toolbox.
func (b *backend) header() http.Header {
	h := http.Header{
		"Authorization":         {"Bearer " + b.opts.Key},
		"X-Daytona-Source":      {source},
		"X-Daytona-Sdk-Version": {sdkVersion},
		"User-Agent":            {source},
	}
	if b.opts.Organization != "" {
		h.Set("X-Daytona-Organization-ID", b.opts.Organization)
	}
	return h
}

// do calls the API and decodes the answer. What cannot have been carried out is
// repeated: any call that was not sent or that the rate limit has refused, and
// calls that change nothing or set what they set.
func (b *backend) do(ctx context.Context, c call) error {
	var body []byte
	if c.in != nil {
		var err error
		if body, err = json.Marshal(c.in); err != nil {
			return &daytona.Error{Kind: daytona.KindInvalid, Op: c.op, Subject: c.subject, Message: "cannot be encoded as JSON", Err: err}
		}
	}
	target := b.api + c.path
	if len(c.query) > 0 {
		target += "?" + c.query.Encode()
	}
	for attempt := 1; ; attempt++ {
		wait, err := b.once(ctx, c, target, body)
		if err == nil {
			return nil
		}
		if ctxErr := ctx.Err(); ctxErr != nil {
			return fmt.Errorf("%s: %w", strings.TrimSpace(c.op+" "+c.subject), ctxErr)
		}
		if wait < 0 || attempt == attempts {
			return err
		}
		wait = max(wait, retryPause(attempt))
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait {
			return err // there is no time for another
		}
		if sleep(ctx, wait) != nil {
			return err
		}
	}
}

// retryPause is how long to wait after so many attempts, so that not all come
// back at once.
func retryPause(attempt int) time.Duration {
	pause := 50 * time.Millisecond << attempt
	return pause/2 + rand.N(pause/2)
}

// once makes one attempt. wait is how long to wait before another; negative if
// there must not be one.
func (b *backend) once(ctx context.Context, c call, target string, body []byte) (wait time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, c.method, target, bytes.NewReader(body))
	if err != nil {
		return -1, &daytona.Error{Kind: daytona.KindInvalid, Op: c.op, Subject: c.subject, Message: "not a valid request", Err: err}
	}
	req.Header = b.header()
	if c.in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	harmless := c.method == http.MethodGet || c.method == http.MethodPut
	resp, err := b.client.Do(req)
	if err != nil {
		wait = -1
		if harmless || notSent(err) {
			wait = 0
		}
		return wait, b.unreachable(c, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
		wait = -1
		switch resp.StatusCode {
		case http.StatusTooManyRequests:
			wait = retryAfter(resp.Header)
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			if harmless {
				wait = retryAfter(resp.Header)
			}
		}
		if wait > maxRetryAfter {
			wait = -1
		}
		return wait, b.refused(c, resp.StatusCode, text)
	}
	if c.out == nil {
		_, _ = io.CopyN(io.Discard, resp.Body, maxError) // for the connection to be used again
		return 0, nil
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		wait = -1
		if harmless {
			wait = 0
		}
		return wait, b.unreachable(c, err)
	}
	if len(text) > maxAnswer {
		return -1, &daytona.Error{Kind: daytona.KindInternal, Op: c.op, Subject: c.subject, Message: "the server's answer is larger than 64 MiB"}
	}
	if err := json.Unmarshal(text, c.out); err != nil {
		return -1, &daytona.Error{Kind: daytona.KindInternal, Op: c.op, Subject: c.subject,
			Message: "the server's answer is not what the API says; is the URL that of an API, such as https://host/api?", Err: err}
	}
	return 0, nil
}

// notSent reports whether a request has not left this machine.
func notSent(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "dial"
}

func (b *backend) unreachable(c call, err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // the URL says nothing new
	}
	return &daytona.Error{Kind: daytona.KindUnavailable, Op: c.op, Subject: c.subject, Message: "the server " + b.api + " cannot be reached", Err: err}
}

// retryAfter is the longest time that a Retry-After header, of any limiter,
// wants: seconds or a date.
func retryAfter(h http.Header) time.Duration {
	var longest time.Duration
	for k, values := range h {
		if k != "Retry-After" && !strings.HasPrefix(k, "Retry-After-") {
			continue
		}
		for _, v := range values {
			if n, err := strconv.ParseFloat(v, 64); err == nil && n > 0 && n < 1e6 {
				longest = max(longest, time.Duration(n*float64(time.Second)))
			} else if at, err := http.ParseTime(v); err == nil {
				longest = max(longest, time.Until(at))
			}
		}
	}
	return longest
}

// refused is the error that an answer reports.
func (b *backend) refused(c call, status int, body []byte) error {
	// A message may be a list, and there may be a code.
	var e struct {
		Message any    `json:"message"`
		Error   string `json:"error"`
	}
	msg := ""
	if json.Unmarshal(body, &e) == nil {
		switch m := e.Message.(type) {
		case string:
			msg = m
		case []any:
			parts := make([]string, len(m))
			for i, p := range m {
				parts[i] = fmt.Sprint(p)
			}
			msg = strings.Join(parts, ", ")
		}
		if msg == "" {
			msg = e.Error
		}
	}
	switch {
	case msg != "":
	case status >= 300 && status < 400:
		msg = fmt.Sprintf("the server answered with a redirect (status %d), which is not followed; is the URL right?", status)
	default:
		msg = fmt.Sprintf("the server answered with status %d %s", status, http.StatusText(status))
	}
	if len(msg) > 4<<10 {
		msg = msg[:4<<10] + "…"
	}
	msg = strings.ReplaceAll(strings.ToValidUTF8(msg, "�"), b.opts.Key, "[redacted]")
	return &daytona.Error{Kind: kindOf(status, msg), Op: c.op, Subject: c.subject, Message: strings.TrimSpace(msg)}
}

// kindOf classifies an answer. 400 stands for many things on the wire, of which
// only the text tells.
func kindOf(status int, msg string) daytona.Kind {
	if status != http.StatusBadRequest {
		return daytona.KindOfStatus(status)
	}
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(msg, p) {
				return true
			}
		}
		return false
	}
	switch {
	case strings.HasPrefix(msg, "Volume with name ") && has("already exists"):
		return daytona.KindConflict
	case strings.HasPrefix(msg, "Snapshot ") && has(" not found"):
		return daytona.KindNotFound
	case has("quota exceeded", "limit exceeded", "exceeds maximum allowed"):
		return daytona.KindExhausted
	case has("No available runners"):
		return daytona.KindUnavailable
	case strings.HasPrefix(msg, "Sandbox failed to start"):
		return daytona.KindInternal
	case has(" state", "is not stopped", "is not started", "is not running", "must be started", "must be stopped", "must be inactive",
		"when the sandbox is stopped", "to be started", " active forks", "already in progress", "already active",
		"is inactive", "is building", "is pulling", "is pending", "cannot be activated", "deactivation is still in progress"):
		return daytona.KindState
	}
	return daytona.KindInvalid
}

// daytonaKind is the kind of an error; "" for others and for none.
func daytonaKind(err error) daytona.Kind {
	if e, ok := errors.AsType[*daytona.Error](err); ok {
		return e.Kind
	}
	return ""
}

// sleep waits; an error is the context's.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// poll asks until done, at first often and then once a second. The error of a
// context names the operation.
func poll(ctx context.Context, op, subject string, ask func() (done bool, err error)) error {
	pause := 20 * time.Millisecond
	for {
		done, err := ask()
		if done || err != nil {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return fmt.Errorf("%s %s: %w", op, subject, err)
		}
		pause = min(pause*3/2, time.Second)
	}
}

// each calls f for all, eight at a time, and joins the errors.
func each[T any](all []T, f func(T) error) error {
	var wg sync.WaitGroup
	free := make(chan struct{}, 8)
	errs := make([]error, len(all))
	for i, x := range all {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			errs[i] = f(x)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// timeOf reads a time of the wire; zero if there is none.
func timeOf(s *string) time.Time {
	if s == nil {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, *s)
	if err != nil {
		return time.Time{}
	}
	return t
}
