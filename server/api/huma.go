package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
)

// newHuma returns a huma API whose answers are those of the wire: this
// package has an adapter of its own for it, since huma lets what it writes
// itself be changed for a whole program only.
func newHuma(a *API) huma.API {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	format := huma.Format{Marshal: marshal, Unmarshal: unmarshal}
	c := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info:    &huma.Info{Title: "Daytona", Version: a.config.Version, License: &huma.License{Name: "Apache-2.0"}},
			Servers: []*huma.Server{{URL: "/api"}},
			Components: &huma.Components{Schemas: registry, SecuritySchemes: map[string]*huma.SecurityScheme{
				"bearer": {Type: "http", Scheme: "bearer"},
			}},
		},
		Formats:       map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat: "application/json",
		Transformers:  []huma.Transformer{translate},
	}
	c.AllowAdditionalPropertiesByDefault, c.FieldsOptionalByDefault = true, true
	return huma.NewAPI(c, &adapter{a})
}

// operation is a route as huma has it.
func operation(r *Route) huma.Operation {
	op := huma.Operation{
		OperationID: r.ID, Method: r.Method, Path: r.Path, Tags: []string{r.Tag}, DefaultStatus: r.Status, Deprecated: r.Deprecated,
		// The limits are those of the adapter.
		MaxBodyBytes: -1, BodyReadTimeout: -1,
	}
	if !r.Access.Anyone {
		op.Security = []map[string][]string{{"bearer": {}}}
	}
	scoped := r.Access.Organization && !strings.Contains(r.Path, "{organizationId}")
	if scoped || r.Tag == "sandbox" || r.Tag == "webhooks" {
		op.Parameters = append(op.Parameters, &huma.Param{
			Name: "X-Daytona-Organization-ID", In: "header", Schema: &huma.Schema{Type: "string"},
			Description: "The organization that a token is to act in. A key has its own.",
		})
	}
	return op
}

// answer is what all operations give huma. The type is one for all of them, as
// huma's code is compiled for each pair of types that there is, which takes long.
type answer struct{ Body func(huma.Context) }

// documentAnswer says of an operation what huma would from the type of its body.
func documentAnswer(a huma.API, op *huma.Operation, t reflect.Type) {
	success := &huma.Response{Description: http.StatusText(op.DefaultStatus)}
	op.Responses = map[string]*huma.Response{strconv.Itoa(op.DefaultStatus): success}
	switch t {
	case reflect.TypeFor[None]():
	case reflect.TypeFor[Text]():
		success.Content = map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{Type: "string"}}}
	default:
		schema := a.OpenAPI().Components.Schemas.Schema(t, true, op.OperationID+"Response")
		success.Content = map[string]*huma.MediaType{"application/json": {Schema: schema}}
	}
}

func writeAnswer(c huma.Context, v any) {
	switch v := v.(type) {
	case None:
		c.SetStatus(c.Operation().DefaultStatus)
	case Text:
		c.SetHeader("Content-Type", "text/html; charset=utf-8")
		c.SetStatus(c.Operation().DefaultStatus)
		_, _ = io.WriteString(c.BodyWriter(), string(v))
	default:
		c.SetHeader("Content-Type", "application/json")
		c.SetStatus(c.Operation().DefaultStatus)
		_ = marshal(c.BodyWriter(), v) // who asked may be gone
	}
}

func marshal(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// unmarshal reads JSON. What huma validates, it reads into an any: a null is
// taken out there, so that a client may send one for what it may leave out.
func unmarshal(data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return err
	}
	if p, ok := v.(*any); ok {
		dropNulls(*p)
	}
	return nil
}

func dropNulls(v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			if e == nil {
				delete(v, k)
			} else {
				dropNulls(e)
			}
		}
	case []any:
		for _, e := range v {
			dropNulls(e)
		}
	}
}

// translate makes of an error the body that the wire has for it.
func translate(ctx huma.Context, _ string, v any) (any, error) {
	q := requestOf(ctx.Context())
	switch e := v.(type) {
	case *statusError:
		q.err = e
		return errorBody(q.url, statusOf(e), messageOf(e, statusOf(e)), e), nil
	case *huma.ErrorModel:
		// A request that breaks a rule, which is 400 on the wire.
		status := e.Status
		if status == http.StatusUnprocessableEntity || status == http.StatusUnsupportedMediaType {
			status = http.StatusBadRequest
		}
		message := e.Detail
		if len(e.Errors) > 0 {
			parts := make([]string, len(e.Errors))
			for i, d := range e.Errors {
				parts[i] = strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(d.Location, "body."), "query."), "path.")
				if parts[i] != "" {
					parts[i] += " "
				}
				parts[i] += d.Message
			}
			message = strings.Join(parts, ", ")
		}
		if _, ok := errors.AsType[*http.MaxBytesError](q.err); ok {
			status, message = http.StatusRequestEntityTooLarge, "request entity too large"
		}
		q.err, q.replaced = errors.New(message), status
		return errorBody(q.url, status, message, nil), nil
	}
	return v, nil
}

// adapter puts huma's operations behind the guard of the API.
type adapter struct{ api *API }

func (a *adapter) Handle(op *huma.Operation, handler func(huma.Context)) {
	route := a.api.routes[op.OperationID]
	a.api.mux.Method(op.Method, op.Path, a.api.guard(route, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != nil && r.Body != http.NoBody {
			c := http.NewResponseController(w)
			c.SetReadDeadline(time.Now().Add(a.api.config.BodyTimeout)) // an answer that can't have one has none
			defer c.SetReadDeadline(time.Time{})
			r.Body = http.MaxBytesReader(w, timedBody{r.Body, c}, a.api.config.MaxBody)
		}
		handler(&humaContext{op: op, r: r, w: w})
	})))
}

// timedBody has a deadline until it has arrived. After that net/http reads on, to
// see whether the client goes: what it took for the client's end would end all
// later requests of the connection as well.
type timedBody struct {
	io.ReadCloser
	c *http.ResponseController
}

func (b timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.c.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (a *adapter) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.api.mux.ServeHTTP(w, r) }

// humaContext is one request as huma sees it.
type humaContext struct {
	op     *huma.Operation
	r      *http.Request
	w      http.ResponseWriter
	status int
	query  url.Values
}

func (c *humaContext) Operation() *huma.Operation { return c.op }
func (c *humaContext) Context() context.Context   { return c.r.Context() }
func (c *humaContext) TLS() *tls.ConnectionState  { return c.r.TLS }
func (c *humaContext) Method() string             { return c.r.Method }
func (c *humaContext) Host() string               { return c.r.Host }
func (c *humaContext) RemoteAddr() string         { return c.r.RemoteAddr }
func (c *humaContext) Param(name string) string   { return pathValue(c.r, name) }
func (c *humaContext) Status() int                { return c.status }
func (c *humaContext) BodyWriter() io.Writer      { return c.w }

func (c *humaContext) Version() huma.ProtoVersion {
	return huma.ProtoVersion{Proto: c.r.Proto, ProtoMajor: c.r.ProtoMajor, ProtoMinor: c.r.ProtoMinor}
}

// URL has the query as values: "a[]=1" is "a=1", as clients write arrays in
// both ways.
func (c *humaContext) URL() url.URL {
	u := *c.r.URL
	u.RawQuery = c.values().Encode()
	return u
}

func (c *humaContext) values() url.Values {
	if c.query == nil {
		c.query = url.Values{}
		for k, v := range c.r.URL.Query() {
			k = strings.TrimSuffix(k, "[]")
			c.query[k] = append(c.query[k], v...)
		}
	}
	return c.query
}

func (c *humaContext) Query(name string) string { return c.values().Get(name) }

// Header says that a body is JSON that says nothing of what it is, and that
// the answer may be.
func (c *humaContext) Header(name string) string {
	switch strings.ToLower(name) {
	case "accept":
		return ""
	case "content-type":
		if t := c.r.Header.Get(name); t == "" || strings.HasPrefix(t, "text/") {
			return "application/json"
		}
	}
	return c.r.Header.Get(name)
}

func (c *humaContext) EachHeader(f func(name, value string)) {
	for name, values := range c.r.Header {
		for _, v := range values {
			f(name, v)
		}
	}
}

func (c *humaContext) BodyReader() io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		n, err := c.r.Body.Read(p)
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			requestOf(c.Context()).err = err
		}
		return n, err
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (c *humaContext) GetMultipartForm() (*multipart.Form, error) {
	return nil, fmt.Errorf("a form is not taken here: %w", errors.ErrUnsupported)
}

func (c *humaContext) SetReadDeadline(t time.Time) error { return nil }

func (c *humaContext) SetStatus(status int) {
	if q := requestOf(c.Context()); q.replaced != 0 {
		status, q.replaced = q.replaced, 0
	}
	c.status = status
	c.w.WriteHeader(status)
}

func (c *humaContext) SetHeader(name, value string) {
	if name == "Content-Type" && value == "application/json" {
		value = "application/json; charset=utf-8"
	}
	c.w.Header().Set(name, value)
}

func (c *humaContext) AppendHeader(name, value string) { c.w.Header().Add(name, value) }

// pathValue returns a parameter of the path, unescaped once: where a path has
// escapes that matter, the router matches it as it was sent.
func pathValue(r *http.Request, name string) string {
	v := chi.URLParam(r, name)
	if r.URL.RawPath != "" {
		if u, err := url.PathUnescape(v); err == nil {
			return u
		}
	}
	return v
}

var pathParam = regexp.MustCompile(`\{([A-Za-z0-9]+)\}`)

// pathParams returns the names of the parameters of a path.
func pathParams(path string) []string {
	var names []string
	for _, m := range pathParam.FindAllStringSubmatch(path, -1) {
		names = append(names, m[1])
	}
	return names
}
