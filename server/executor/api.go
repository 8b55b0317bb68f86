package executor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
)

// maxAnswer bounds an answer of the server's that is held in memory, in bytes.
const maxAnswer = 64 << 20

// apiClient is a runner's view of the server.
type apiClient struct {
	base string
	key  string
	http *http.Client
}

func newAPIClient(base, key string, transport http.RoundTripper) (*apiClient, error) {
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: "make runner", Field: "URL", Message: "must be an http or https URL without user and password"}
	}
	if transport == nil {
		t := http.DefaultTransport.(*http.Transport).Clone()
		t.MaxIdleConnsPerHost = 64
		transport = t
	}
	return &apiClient{base: strings.TrimRight(base, "/"), key: key, http: &http.Client{
		Transport: transport,
		// The key is for one server.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// call sends in, if it is not nil, and reads out, if it is not nil.
func (a *apiClient) call(ctx context.Context, limit time.Duration, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, a.base+path, body)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+a.key)
	r.Header.Set("User-Agent", "daytona-runner")
	r.Header.Set("X-Daytona-Source", "runner")
	for k, v := range headersOf(ctx) {
		r.Header.Set(k, v)
	}
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	w, err := a.http.Do(r)
	if err != nil {
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: method, Subject: path, Err: err}
	}
	defer w.Body.Close()
	data, err := io.ReadAll(io.LimitReader(w.Body, maxAnswer+1))
	switch {
	case err != nil:
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: method, Subject: path, Err: err}
	case len(data) > maxAnswer:
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: method, Subject: path, Message: "the answer is too long"}
	case w.StatusCode < 200 || w.StatusCode > 299:
		var e wire.Error
		if json.Unmarshal(data, &e) != nil || e.Message == "" {
			e.Message = w.Status
		}
		return &daytona.Error{Kind: daytona.KindOfStatus(w.StatusCode), Op: method, Subject: path, Message: e.Message}
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: method, Subject: path, Message: "the answer is not what it should be", Err: err}
	}
	return nil
}

type traceKey struct{}

// withTrace returns a context whose requests belong to the trace of a job: to the
// span of ctx, or, where none is made, to that which the job itself names.
func (e *Executor) withTrace(ctx context.Context, j wire.Job) context.Context {
	headers := e.c.Tracer.Headers(ctx)
	if headers == nil {
		headers = traceOf(j)
	}
	return context.WithValue(ctx, traceKey{}, headers)
}

func headersOf(ctx context.Context) map[string]string {
	headers, _ := ctx.Value(traceKey{}).(map[string]string)
	return headers
}

// traceOf are the headers of the trace context of a job.
func traceOf(j wire.Job) map[string]string {
	headers := map[string]string{}
	for _, k := range []string{"traceparent", "tracestate", "baggage"} {
		if v, ok := j.TraceContext[k].(string); ok {
			headers[k] = v
		}
	}
	return headers
}

const usual = 30 * time.Second

func (a *apiClient) me(ctx context.Context) (r wire.RunnerFull, err error) {
	return r, a.call(ctx, usual, "GET", "/runners/me", nil, &r)
}

func (a *apiClient) health(ctx context.Context, h *wire.RunnerHealthcheck) error {
	return a.call(ctx, usual, "POST", "/runners/healthcheck", h, nil)
}

func (a *apiClient) poll(ctx context.Context, limit int, wait time.Duration) ([]wire.Job, error) {
	var r wire.PollJobsResponse
	err := a.call(ctx, wait+usual, "GET", fmt.Sprintf("/jobs/poll?timeout=%s&limit=%d", strconv.FormatFloat(wait.Seconds(), 'f', -1, 64), limit), nil, &r)
	return r.Jobs, err
}

func (a *apiClient) jobs(ctx context.Context, status string, page, limit int) (r wire.PaginatedJobs, err error) {
	return r, a.call(ctx, usual, "GET", fmt.Sprintf("/jobs?status=%s&page=%d&limit=%d", status, page, limit), nil, &r)
}

func (a *apiClient) update(ctx context.Context, id string, u wire.UpdateJobStatus) error {
	return a.call(ctx, usual, "POST", "/jobs/"+url.PathEscape(id)+"/status", u, nil)
}

func (a *apiClient) sandboxes(ctx context.Context) (list []wire.Sandbox, err error) {
	return list, a.call(ctx, usual, "GET", "/sandbox/for-runner", nil, &list)
}

func (a *apiClient) setState(ctx context.Context, id string, s wire.UpdateSandboxState) error {
	return a.call(ctx, usual, "PUT", "/sandbox/"+url.PathEscape(id)+"/state", s, nil)
}

// InProcess carries requests to a handler of this process. Answers are held in
// memory until they are whole: it is not for streams.
func InProcess(h http.Handler) http.RoundTripper { return inProcess{h} }

type inProcess struct{ handler http.Handler }

func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	in := r.Clone(r.Context())
	// An address that nobody has who comes by the network: what others do wrong
	// is not counted against us.
	in.RequestURI, in.RemoteAddr = r.URL.RequestURI(), "[::]:0"
	if in.Body == nil {
		in.Body = http.NoBody
	}
	if in.Host == "" {
		in.Host = r.URL.Host
	}
	w := &answer{header: http.Header{}}
	done := make(chan any, 1)
	go func() {
		defer func() { done <- recover() }()
		p.handler.ServeHTTP(w, in)
	}()
	// Not even a handler that does not listen keeps who has gone.
	select {
	case v := <-done:
		if v != nil {
			return nil, fmt.Errorf("handler panicked: %v", v)
		}
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return &http.Response{
		Status: fmt.Sprintf("%d %s", w.status, http.StatusText(w.status)), StatusCode: w.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.header, Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: r,
	}, nil
}

// answer is what a handler writes.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *answer) Header() http.Header { return w.header }

func (w *answer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *answer) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}
