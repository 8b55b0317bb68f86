// Package lsp runs the language servers of a sandbox: one for each language
// and project, as a program of the sandbox's user, spoken to by the Language
// Server Protocol. It starts a server again that crashed or hangs, with its
// documents open, and takes nothing that a server says on trust: all of it is
// bounded.
//
// It starts programs through a [process.Spawner] and knows the wire types. It
// must not know of authentication, of the other parts of the agent, nor of any
// language.
package lsp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/sourcegraph/jsonrpc2"

	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// serverLimit is how many servers may run.
	serverLimit = 32
	// bodyLimit bounds a request, in bytes: a text of textLimit as JSON.
	bodyLimit = 32 << 20
	// pathLimit bounds the paths and names in a request, in bytes.
	pathLimit = 4 << 10
	// settleTime is for how long a server must not have corrected its
	// diagnostics for them to be its last word: some say it in pieces.
	settleTime = 400 * time.Millisecond
)

// Options configure a [Service].
type Options struct {
	// Spawner starts the servers. Required.
	Spawner *process.Spawner
	// Logger defaults to none.
	Logger *slog.Logger
	// StartTimeout is how long a server may take to be ready. Defaults to a
	// minute.
	StartTimeout time.Duration
	// RequestTimeout is how long it may take to answer. One that has said
	// nothing meanwhile hangs, and is replaced. Defaults to a minute.
	RequestTimeout time.Duration
	// WriteTimeout is how long it may take to take a message; it hangs if it
	// does not. Defaults to ten seconds.
	WriteTimeout time.Duration
	// DiagnosticsTimeout is how long diagnostics are waited for. Defaults to
	// 15 seconds.
	DiagnosticsTimeout time.Duration
}

// Service serves the language server routes of the toolbox API.
type Service struct {
	options Options
	logger  *slog.Logger

	mu      sync.Mutex
	closed  bool
	servers map[key]*server
}

// New returns a Service.
func New(opts Options) *Service {
	byDefault := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	byDefault(&opts.StartTimeout, time.Minute)
	byDefault(&opts.RequestTimeout, time.Minute)
	byDefault(&opts.WriteTimeout, 10*time.Second)
	byDefault(&opts.DiagnosticsTimeout, 15*time.Second)
	s := &Service{options: opts, logger: opts.Logger, servers: make(map[key]*server)}
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	return s
}

// Register adds the routes to mux.
func (s *Service) Register(mux *http.ServeMux) {
	mux.HandleFunc("POST /lsp/start", s.start)
	mux.HandleFunc("POST /lsp/stop", s.stop)
	mux.HandleFunc("POST /lsp/did-open", s.didOpen)
	mux.HandleFunc("POST /lsp/did-close", s.didClose)
	mux.HandleFunc("POST /lsp/completions", s.completions)
	mux.HandleFunc("GET /lsp/document-symbols", s.documentSymbols)
	mux.HandleFunc("GET /lsp/workspacesymbols", s.workspaceSymbols)
	mux.HandleFunc("GET /lsp/workspace-symbols", s.workspaceSymbols) // as the API in front calls it

	// Extensions.
	mux.HandleFunc("POST /lsp/did-change", s.didChange)
	mux.HandleFunc("POST /lsp/did-change-files", s.didChangeFiles)
	mux.HandleFunc("POST /lsp/diagnostics", s.diagnostics)
	mux.HandleFunc("POST /lsp/hover", s.hover)
	mux.HandleFunc("POST /lsp/definition", s.definition)
	mux.HandleFunc("POST /lsp/references", s.references)
	mux.HandleFunc("POST /lsp/rename", s.rename)
	mux.HandleFunc("POST /lsp/formatting", s.formatting)
	mux.HandleFunc("POST /lsp/code-actions", s.codeActions)
	mux.HandleFunc("POST /lsp/execute-command", s.executeCommand)
}

// Close ends all servers with what they started.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	var servers []*server
	for _, srv := range s.servers {
		servers = append(servers, srv)
	}
	s.mu.Unlock()
	var wg sync.WaitGroup
	for _, srv := range servers {
		wg.Go(func() {
			srv.stop()
			_ = srv.running.acquire(context.Background())
			c := srv.current
			srv.running.release()
			if c != nil {
				c.end("was stopped")
			}
			srv.end()
		})
	}
	wg.Wait()
}

func (s *Service) forget(srv *server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.servers[srv.key] == srv {
		delete(s.servers, srv.key)
	}
}

// key returns what a server is known by.
func (s *Service) key(r wire.LSPServer) (key, error) {
	switch {
	case r.LanguageID == "":
		return key{}, refuse(http.StatusBadRequest, "", "languageId is required")
	case r.PathToProject == "":
		return key{}, refuse(http.StatusBadRequest, "", "pathToProject is required")
	case len(r.LanguageID) > 64 || strings.ContainsAny(r.LanguageID, "\x00="):
		return key{}, refuse(http.StatusBadRequest, "", "languageId %q: at most 64 bytes, without = and NUL", clip(r.LanguageID, 64))
	case len(r.PathToProject) > pathLimit || strings.ContainsRune(r.PathToProject, 0):
		return key{}, refuse(http.StatusBadRequest, "", "pathToProject must be at most %d bytes, without NUL", pathLimit)
	}
	dir := r.PathToProject
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(s.options.Spawner.WorkDir(), dir)
	}
	return key{r.LanguageID, filepath.Clean(dir)}, nil
}

// find returns a server that has been started.
func (s *Service) find(r wire.LSPServer) (*server, error) {
	k, err := s.key(r)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if srv := s.servers[k]; srv != nil {
		return srv, nil
	}
	return nil, errNotStarted
}

// path is the path that a document's URI means. Clients put "file://" before
// whatever path they were given, escaped or not.
func (s *Service) path(srv *server, uri string) (string, error) {
	path, ok := strings.CutPrefix(uri, "file://")
	switch {
	case uri == "" || ok && path == "":
		return "", refuse(http.StatusBadRequest, "", "uri is required")
	case !ok && strings.Contains(uri, "://"):
		return "", refuse(http.StatusBadRequest, "", "uri %q: only files of the sandbox can be opened", clip(uri, 256))
	case len(path) > 3*pathLimit || strings.ContainsRune(path, 0):
		return "", refuse(http.StatusBadRequest, "", "uri must be at most %d bytes, without NUL", 3*pathLimit)
	}
	absolute := func(p string) string {
		if !filepath.IsAbs(p) {
			p = filepath.Join(srv.key.dir, p)
		}
		return filepath.Clean(p)
	}
	plain := absolute(path)
	escaped, err := url.PathUnescape(path)
	if !ok || err != nil || escaped == path || strings.ContainsRune(escaped, 0) {
		return plain, nil
	}
	// It may be either. That there is such a file tells which.
	there := s.options.Spawner.Account().Do(func() error { _, err := os.Lstat(plain); return err }) == nil
	if there {
		return plain, nil
	}
	return absolute(escaped), nil
}

// decode reads a request's JSON body to its end, which is also what lets
// net/http notice that the client goes away. It has answered if it returns
// false.
func decode(w http.ResponseWriter, r *http.Request, into any) bool {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err == nil {
		return true
	}
	status := http.StatusBadRequest
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		status = http.StatusRequestEntityTooLarge
	}
	wire.WriteError(w, r, status, wire.CodeInvalidBody, "invalid body request: "+err.Error())
	return false
}

// fail answers with an error.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	if e, ok := errors.AsType[*apiError](err); ok {
		wire.WriteError(w, r, e.status, e.code, e.Error())
		return
	}
	if e, ok := errors.AsType[*timeoutError](err); ok {
		wire.WriteError(w, r, http.StatusGatewayTimeout, wire.CodeLSPTimeout, e.Error())
		return
	}
	if e, ok := errors.AsType[*jsonrpc2.Error](err); ok {
		status, code := http.StatusBadRequest, wire.CodeLSPError
		switch e.Code {
		case jsonrpc2.CodeMethodNotFound:
			status, code = http.StatusNotImplemented, wire.CodeUnsupported
		case jsonrpc2.CodeInternalError:
			status = http.StatusInternalServerError
		}
		wire.WriteError(w, r, status, code, "the language server says: "+e.Message)
		return
	}
	if r.Context().Err() != nil {
		return // nobody is there to be told
	}
	// What a server's answer is, if it is not what the protocol says.
	wire.WriteError(w, r, http.StatusInternalServerError, wire.CodeLSPError, "the language server's answer is of no use: "+err.Error())
}

// answer answers with a value, or with an error if there is one.
func answer(w http.ResponseWriter, r *http.Request, v any, err error) {
	if err != nil {
		fail(w, r, err)
		return
	}
	if v == nil {
		v = struct{}{}
	}
	wire.WriteJSON(w, http.StatusOK, v)
}

// start serves POST /lsp/start.
func (s *Service) start(w http.ResponseWriter, r *http.Request) {
	var req wire.LSPStartRequest
	if decode(w, r, &req) {
		answer(w, r, nil, s.startServer(r.Context(), req))
	}
}

func (s *Service) startServer(ctx context.Context, req wire.LSPStartRequest) error {
	k, err := s.key(req.LSPServer)
	if err != nil {
		return err
	}
	req.LSPServer = wire.LSPServer{}
	if len(req.Command) > 0 && req.Command[0] == "" || strings.ContainsRune(strings.Join(req.Command, ""), 0) {
		return refuse(http.StatusBadRequest, "", "command %q: the program must not be empty, and nothing may contain NUL bytes", clip(fmt.Sprint(req.Command), 256))
	}
	if err := process.CheckEnv(req.Envs); err != nil {
		return refuse(http.StatusBadRequest, "", "%v", err)
	}
	if absent(req.InitializationOptions) {
		req.InitializationOptions = nil
	}
	if absent(req.Settings) {
		req.Settings = nil
	}
	s.mu.Lock()
	srv := s.servers[k]
	switch {
	case s.closed:
		s.mu.Unlock()
		return refuse(http.StatusServiceUnavailable, "", "the agent is shutting down")
	case srv == nil && len(s.servers) >= serverLimit:
		s.mu.Unlock()
		return refuse(http.StatusTooManyRequests, "", "%d language servers run already: stop some", serverLimit)
	case srv == nil:
		srv = &server{service: s, key: k, options: req, running: newLock(), open: newLock(), documents: make(map[string]*document)}
		srv.ctx, srv.stop = context.WithCancel(context.Background())
		s.servers[k] = srv
	}
	s.mu.Unlock()
	bare := len(req.Command) == 0 && len(req.Envs) == 0 && req.InitializationOptions == nil && req.Settings == nil
	if !bare && !reflect.DeepEqual(req, srv.options) {
		return refuse(http.StatusConflict, "", "the language server of %s for %s runs with other options: stop it first", k.language, k.dir)
	}
	if err := srv.running.acquire(ctx); err != nil {
		return err
	}
	srv.crashes = nil // the client wants to try again
	srv.running.release()
	if _, err := srv.connection(ctx); err != nil {
		if ctx.Err() == nil || !errors.Is(err, ctx.Err()) {
			srv.end()
		}
		return err
	}
	return nil
}

// stop serves POST /lsp/stop.
func (s *Service) stop(w http.ResponseWriter, r *http.Request) {
	var req wire.LSPServer
	if !decode(w, r, &req) {
		return
	}
	srv, err := s.find(req)
	if err == errNotStarted {
		err = nil
	}
	if srv != nil {
		srv.end()
	}
	answer(w, r, nil, err)
}

// locate finds the server and the path that a request is about.
func (s *Service) locate(req wire.LSPServer, uri string) (*server, string, error) {
	srv, err := s.find(req)
	if err != nil {
		return nil, "", err
	}
	path, err := s.path(srv, uri)
	return srv, path, err
}

// document is what the routes about a document have in common.
func (s *Service) document(w http.ResponseWriter, r *http.Request, f func(srv *server, path string, text *string) (any, error)) {
	var req wire.LSPDocumentRequest
	if !decode(w, r, &req) {
		return
	}
	srv, path, err := s.locate(req.LSPServer, req.URI)
	var v any
	if err == nil {
		v, err = f(srv, path, req.Text)
	}
	answer(w, r, v, err)
}

// didOpen serves POST /lsp/did-open.
func (s *Service) didOpen(w http.ResponseWriter, r *http.Request) {
	s.document(w, r, func(srv *server, path string, text *string) (any, error) {
		return nil, srv.edit(r.Context(), path, text)
	})
}

// didChange serves POST /lsp/did-change.
func (s *Service) didChange(w http.ResponseWriter, r *http.Request) {
	s.document(w, r, func(srv *server, path string, text *string) (any, error) {
		if text == nil {
			return nil, refuse(http.StatusBadRequest, "", "text is required; of files that were changed on the disk tell by did-change-files")
		}
		if !utf8.ValidString(*text) {
			return nil, refuse(http.StatusBadRequest, "", "text is not UTF-8")
		}
		return nil, srv.edit(r.Context(), path, text)
	})
}

// didClose serves POST /lsp/did-close.
func (s *Service) didClose(w http.ResponseWriter, r *http.Request) {
	s.document(w, r, func(srv *server, path string, _ *string) (any, error) {
		return nil, srv.close(r.Context(), path)
	})
}

// didChangeFiles serves POST /lsp/did-change-files.
func (s *Service) didChangeFiles(w http.ResponseWriter, r *http.Request) {
	var req wire.LSPFilesRequest
	if !decode(w, r, &req) {
		return
	}
	answer(w, r, nil, s.filesChanged(r.Context(), req))
}

func (s *Service) filesChanged(ctx context.Context, req wire.LSPFilesRequest) error {
	srv, err := s.find(req.LSPServer)
	if err != nil {
		return err
	}
	if len(req.URIs) == 0 || len(req.URIs) > elementLimit {
		return refuse(http.StatusBadRequest, "", "uris: from 1 to %d", elementLimit)
	}
	const changed, deleted = 2, 3
	changes := make([]object, 0, len(req.URIs))
	for _, uri := range req.URIs {
		path, err := s.path(srv, uri)
		if err != nil {
			return err
		}
		kind := changed
		if s.options.Spawner.Account().Do(func() error { _, err := os.Stat(path); return err }) != nil {
			kind = deleted
		}
		changes = append(changes, object{"uri": fileURI(path), "type": kind})
	}
	return srv.with(ctx, "", func(c *connection, _ string) error {
		return c.notify("workspace/didChangeWatchedFiles", object{"changes": changes})
	})
}

// diagnostics serves POST /lsp/diagnostics.
func (s *Service) diagnostics(w http.ResponseWriter, r *http.Request) {
	s.document(w, r, func(srv *server, path string, _ *string) (any, error) {
		return srv.diagnose(r.Context(), path)
	})
}

// diagnose asks for the diagnostics of a document where the server can be
// asked, else waits for them.
func (s *server) diagnose(ctx context.Context, path string) (list wire.LSPDiagnosticList, err error) {
	list.Items = []wire.LSPDiagnostic{}
	err = s.with(ctx, path, func(c *connection, uri string) error {
		if c.can.has("diagnosticProvider") {
			raw, err := s.repeat(ctx, c, "textDocument/diagnostic", object{"textDocument": object{"uri": uri}})
			if err != nil {
				return err
			}
			var report struct {
				Items json.RawMessage `json:"items"`
			}
			if err := json.Unmarshal(raw, &report); err != nil {
				return err
			}
			c.store(path, nil, report.Items)
			var whole bool
			list.Items, whole, err = diagnostics(report.Items)
			list.IsIncomplete = !whole
			return err
		}
		limit, cancel := context.WithTimeout(ctx, s.service.options.DiagnosticsTimeout)
		defer cancel()
		p, err := c.diagnosticsOf(limit, path, settleTime)
		if err != nil && (err == errLost || ctx.Err() != nil) {
			return err
		}
		var whole bool
		list.Items, whole, err = diagnostics(p.raw)
		list.IsIncomplete = !p.fresh || !p.whole || !whole
		return err
	})
	return list, err
}

func valid(p wire.LSPPosition) error {
	if p.Line < 0 || p.Character < 0 || p.Line > 1<<31-1 || p.Character > 1<<31-1 {
		return refuse(http.StatusBadRequest, "", "position %d:%d: line and character must be from 0 to 2^31-1", p.Line, p.Character)
	}
	return nil
}

// completions serves POST /lsp/completions.
func (s *Service) completions(w http.ResponseWriter, r *http.Request) {
	var req wire.LSPCompletionParams
	if !decode(w, r, &req) {
		return
	}
	list, err := s.complete(r.Context(), req)
	answer(w, r, list, err)
}

func (s *Service) complete(ctx context.Context, req wire.LSPCompletionParams) (wire.LSPCompletionList, error) {
	srv, path, err := s.locate(req.LSPServer, req.URI)
	if err == nil {
		err = valid(req.Position)
	}
	if err != nil {
		return wire.LSPCompletionList{}, err
	}
	context := req.Context
	if context == nil || context.TriggerKind < 1 || context.TriggerKind > 3 {
		context = &wire.LSPCompletionContext{TriggerKind: 1}
	}
	raw, _, err := srv.ask(ctx, path, "completionProvider", "textDocument/completion", func(uri string) object {
		return object{"textDocument": object{"uri": uri}, "position": req.Position, "context": context}
	})
	if err != nil {
		return wire.LSPCompletionList{}, err
	}
	return completions(raw)
}

// documentSymbols serves GET /lsp/document-symbols.
func (s *Service) documentSymbols(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	list, err := s.symbolsOf(r.Context(), wire.LSPServer{LanguageID: q.Get("languageId"), PathToProject: q.Get("pathToProject")}, q.Get("uri"))
	answer(w, r, list, err)
}

func (s *Service) symbolsOf(ctx context.Context, server wire.LSPServer, uri string) ([]wire.LSPSymbol, error) {
	srv, path, err := s.locate(server, uri)
	if err != nil {
		return nil, err
	}
	raw, uri, err := srv.ask(ctx, path, "documentSymbolProvider", "textDocument/documentSymbol", func(uri string) object {
		return object{"textDocument": object{"uri": uri}}
	})
	if err != nil {
		return nil, err
	}
	return symbols(raw, uri)
}

// workspaceSymbols serves GET /lsp/workspacesymbols.
func (s *Service) workspaceSymbols(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	list, err := s.symbolsLike(r.Context(), wire.LSPServer{LanguageID: q.Get("languageId"), PathToProject: q.Get("pathToProject")}, q.Get("query"))
	answer(w, r, list, err)
}

func (s *Service) symbolsLike(ctx context.Context, server wire.LSPServer, query string) ([]wire.LSPSymbol, error) {
	srv, err := s.find(server)
	if err != nil {
		return nil, err
	}
	if len(query) > pathLimit {
		return nil, refuse(http.StatusBadRequest, "", "query: at most %d bytes", pathLimit)
	}
	raw, _, err := srv.ask(ctx, "", "workspaceSymbolProvider", "workspace/symbol", func(string) object { return object{"query": query} })
	if err != nil {
		return nil, err
	}
	return symbols(raw, "")
}

// at is what the routes about a position have in common.
func (s *Service) at(w http.ResponseWriter, r *http.Request, capability, method string, extend func(req wire.LSPPositionRequest, params object) error, convert func(raw json.RawMessage) (any, error)) {
	var req wire.LSPPositionRequest
	if !decode(w, r, &req) {
		return
	}
	v, err := func() (any, error) {
		srv, path, err := s.locate(req.LSPServer, req.URI)
		if err == nil {
			err = valid(req.Position)
		}
		extra := object{}
		if err == nil && extend != nil {
			err = extend(req, extra)
		}
		if err != nil {
			return nil, err
		}
		raw, _, err := srv.ask(r.Context(), path, capability, method, func(uri string) object {
			params := object{"textDocument": object{"uri": uri}, "position": req.Position}
			for name, value := range extra {
				params[name] = value
			}
			return params
		})
		if err != nil {
			return nil, err
		}
		return convert(raw)
	}()
	answer(w, r, v, err)
}

func places(raw json.RawMessage) (any, error) { return locations(raw) }

func edit(raw json.RawMessage) (any, error) {
	budget := elementLimit
	return workspaceEdit(raw, &budget)
}

// hover serves POST /lsp/hover.
func (s *Service) hover(w http.ResponseWriter, r *http.Request) {
	s.at(w, r, "hoverProvider", "textDocument/hover", nil, func(raw json.RawMessage) (any, error) { return hover(raw) })
}

// definition serves POST /lsp/definition.
func (s *Service) definition(w http.ResponseWriter, r *http.Request) {
	s.at(w, r, "definitionProvider", "textDocument/definition", nil, places)
}

// references serves POST /lsp/references.
func (s *Service) references(w http.ResponseWriter, r *http.Request) {
	s.at(w, r, "referencesProvider", "textDocument/references", func(req wire.LSPPositionRequest, params object) error {
		params["context"] = object{"includeDeclaration": req.IncludeDeclaration}
		return nil
	}, places)
}

// rename serves POST /lsp/rename.
func (s *Service) rename(w http.ResponseWriter, r *http.Request) {
	s.at(w, r, "renameProvider", "textDocument/rename", func(req wire.LSPPositionRequest, params object) error {
		if req.NewName == "" || len(req.NewName) > pathLimit {
			return refuse(http.StatusBadRequest, "", "newName: from 1 to %d bytes", pathLimit)
		}
		params["newName"] = req.NewName
		return nil
	}, edit)
}

// formatting serves POST /lsp/formatting.
func (s *Service) formatting(w http.ResponseWriter, r *http.Request) {
	var req wire.LSPFormattingRequest
	if !decode(w, r, &req) {
		return
	}
	list, err := s.format(r.Context(), req)
	answer(w, r, list, err)
}

func (s *Service) format(ctx context.Context, req wire.LSPFormattingRequest) (*wire.LSPFormatting, error) {
	srv, path, err := s.locate(req.LSPServer, req.URI)
	if err != nil {
		return nil, err
	}
	if req.TabSize < 0 || req.TabSize > 64 {
		return nil, refuse(http.StatusBadRequest, "", "tabSize %d: from 1 to 64", req.TabSize)
	}
	if req.TabSize == 0 {
		req.TabSize = 4
	}
	raw, uri, err := srv.ask(ctx, path, "documentFormattingProvider", "textDocument/formatting", func(uri string) object {
		return object{"textDocument": object{"uri": uri}, "options": object{"tabSize": req.TabSize, "insertSpaces": !req.Tabs}}
	})
	if err != nil {
		return nil, err
	}
	edits, err := textEdits(raw)
	return &wire.LSPFormatting{URI: uri, Edits: edits}, err
}

// codeActions serves POST /lsp/code-actions.
func (s *Service) codeActions(w http.ResponseWriter, r *http.Request) {
	var req wire.LSPCodeActionRequest
	if !decode(w, r, &req) {
		return
	}
	list, err := s.actions(r.Context(), req)
	answer(w, r, list, err)
}

// resolveLimit is how many code actions are asked for their edits.
const resolveLimit = 100

func (s *Service) actions(ctx context.Context, req wire.LSPCodeActionRequest) ([]wire.LSPCodeAction, error) {
	srv, path, err := s.locate(req.LSPServer, req.URI)
	if err == nil {
		err = errors.Join(valid(req.Range.Start), valid(req.Range.End))
	}
	if err == nil && before(req.Range.End, req.Range.Start) {
		err = refuse(http.StatusBadRequest, "", "range: it ends before it starts")
	}
	if err != nil {
		return nil, err
	}
	var out []wire.LSPCodeAction
	err = srv.with(ctx, path, func(c *connection, uri string) error {
		if !c.can.has("codeActionProvider") {
			return srv.cannot(c, "textDocument/codeAction")
		}
		c.mu.Lock()
		var known json.RawMessage
		if p := c.published[path]; p != nil {
			known = p.raw
		}
		c.mu.Unlock()
		context := object{"diagnostics": within(known, req.Range), "triggerKind": 1}
		if len(req.Only) > 0 {
			context["only"] = req.Only
		}
		raw, err := srv.repeat(ctx, c, "textDocument/codeAction", object{"textDocument": object{"uri": uri}, "range": req.Range, "context": context})
		if err != nil {
			return err
		}
		out = []wire.LSPCodeAction{}
		if absent(raw) {
			return nil
		}
		budget := elementLimit
		list, err := array[json.RawMessage](raw, &budget)
		if err != nil {
			return err
		}
		for i, raw := range list {
			var a action
			if err := json.Unmarshal(raw, &a); err != nil {
				return err
			}
			if absent(a.Edit) && absent(a.Command) && a.Disabled == nil && i < resolveLimit && c.can.flag("codeActionProvider", "resolveProvider") {
				full, err := srv.repeat(ctx, c, "codeAction/resolve", object{}.of(raw))
				if err != nil {
					return err
				}
				if err := json.Unmarshal(full, &a); err != nil {
					return err
				}
			}
			converted, err := a.wire(&budget)
			if err != nil {
				return err
			}
			out = append(out, converted)
		}
		return nil
	})
	return out, err
}

// of is an object that has been read.
func (o object) of(raw json.RawMessage) object {
	var fields map[string]json.RawMessage
	_ = json.Unmarshal(raw, &fields)
	for name, value := range fields {
		o[name] = value
	}
	return o
}

// executeCommand serves POST /lsp/execute-command.
func (s *Service) executeCommand(w http.ResponseWriter, r *http.Request) {
	var req wire.LSPCommandRequest
	if !decode(w, r, &req) {
		return
	}
	out, err := s.execute(r.Context(), req)
	answer(w, r, out, err)
}

func (s *Service) execute(ctx context.Context, req wire.LSPCommandRequest) (*wire.LSPWorkspaceEdit, error) {
	srv, err := s.find(req.LSPServer)
	if err != nil {
		return nil, err
	}
	if req.Command == "" {
		return nil, refuse(http.StatusBadRequest, "", "command is required")
	}
	out := &wire.LSPWorkspaceEdit{Changes: []wire.LSPFileChange{}}
	c, err := srv.connection(ctx)
	if err != nil {
		return nil, err
	}
	if !c.can.has("executeCommandProvider") {
		return nil, srv.cannot(c, "workspace/executeCommand")
	}
	edits, err := c.execute(ctx, req.LSPCommand, s.options.RequestTimeout)
	switch {
	case err == errExecuting:
		return nil, refuse(http.StatusConflict, "", "%v", err)
	case err == errLost:
		// Not repeated: nobody knows how far it got.
		<-c.done
		return nil, refuse(http.StatusServiceUnavailable, wire.CodeLSPFailed, "the language server ended over this; it %s", c.reason)
	case err != nil:
		return nil, err
	}
	budget := elementLimit
	for _, raw := range edits {
		e, err := workspaceEdit(raw, &budget)
		if err != nil {
			return nil, err
		}
		out.Changes = append(out.Changes, e.Changes...)
	}
	return out, nil
}
