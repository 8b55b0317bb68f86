package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// lspServer implements daytona.LSPServer.
type lspServer struct {
	t  *toolbox
	id wire.LSPServer
}

func (l *lspServer) post(ctx context.Context, op, path, route string, in, out any) error {
	if path == "" {
		path = l.id.PathToProject
	}
	return l.t.call(ctx, request{op: op, subject: path, method: http.MethodPost, path: "/lsp/" + route, in: in, idempotent: route != "execute-command"}, out)
}

func (l *lspServer) Start(ctx context.Context, opts *daytona.LSPOptions) error {
	const op = "start language server"
	req := wire.LSPStartRequest{LSPServer: l.id}
	if opts != nil {
		req.Command, req.Envs = opts.Command, opts.Env
		for _, x := range []struct {
			name string
			from any
			to   *json.RawMessage
		}{{"InitializationOptions", opts.InitializationOptions, &req.InitializationOptions}, {"Settings", opts.Settings, &req.Settings}} {
			if x.from == nil {
				continue
			}
			var err error
			if *x.to, err = json.Marshal(x.from); err != nil {
				return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Subject: l.id.PathToProject, Field: x.name, Message: "cannot be encoded as JSON", Err: err}
			}
		}
	}
	return l.post(ctx, op, "", "start", req, nil)
}

func (l *lspServer) Stop(ctx context.Context) error {
	return l.post(ctx, "stop language server", "", "stop", l.id, nil)
}

// documentURI is the URI of a path, which may be relative. It is escaped, so
// that the agent has not to guess.
func documentURI(path string) string {
	if strings.HasPrefix(path, "/") {
		return (&url.URL{Scheme: "file", Path: path}).String()
	}
	return "file://" + (&url.URL{Path: path}).EscapedPath()
}

// check refuses what would be taken for a path that it is not.
func check(op, path string) error {
	if path == "" || strings.ContainsRune(path, 0) {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "path", Value: path, Message: "must not be empty nor contain NUL bytes"}
	}
	return nil
}

func (l *lspServer) document(ctx context.Context, op, path, route string, text *string, out any) error {
	if err := check(op, path); err != nil {
		return err
	}
	return l.post(ctx, op, path, route, wire.LSPDocumentRequest{LSPServer: l.id, URI: documentURI(path), Text: text}, out)
}

func (l *lspServer) DidOpen(ctx context.Context, path string) error {
	return l.document(ctx, "open document", path, "did-open", nil, nil)
}

func (l *lspServer) DidChange(ctx context.Context, path, text string) error {
	return l.document(ctx, "change document", path, "did-change", &text, nil)
}

func (l *lspServer) DidClose(ctx context.Context, path string) error {
	return l.document(ctx, "close document", path, "did-close", nil, nil)
}

func (l *lspServer) FilesChanged(ctx context.Context, paths ...string) error {
	const op = "tell of changed files"
	if len(paths) == 0 {
		return nil
	}
	req := wire.LSPFilesRequest{LSPServer: l.id, URIs: make([]string, len(paths))}
	for i, p := range paths {
		if err := check(op, p); err != nil {
			return err
		}
		req.URIs[i] = documentURI(p)
	}
	return l.post(ctx, op, "", "did-change-files", req, nil)
}

func (l *lspServer) DocumentSymbols(ctx context.Context, path string) ([]daytona.Symbol, error) {
	const op = "list document symbols"
	if err := check(op, path); err != nil {
		return nil, err
	}
	return l.symbols(ctx, request{op: op, subject: path, path: "/lsp/document-symbols"}, "uri", documentURI(path))
}

func (l *lspServer) WorkspaceSymbols(ctx context.Context, query string) ([]daytona.Symbol, error) {
	return l.symbols(ctx, request{op: "list workspace symbols", subject: l.id.PathToProject, path: "/lsp/workspacesymbols"}, "query", query)
}

func (l *lspServer) symbols(ctx context.Context, r request, name, value string) ([]daytona.Symbol, error) {
	r.method = http.MethodGet
	r.query = url.Values{"languageId": {l.id.LanguageID}, "pathToProject": {l.id.PathToProject}, name: {value}}
	var list []wire.LSPSymbol
	if err := l.t.call(ctx, r, &list); err != nil {
		return nil, err
	}
	out := make([]daytona.Symbol, len(list))
	for i, s := range list {
		out[i] = daytona.Symbol{Location: location(s.Location), Name: s.Name, Kind: daytona.SymbolKind(s.Kind), Container: s.ContainerName}
	}
	return out, nil
}

func (l *lspServer) Completions(ctx context.Context, path string, at daytona.Position) (daytona.CompletionList, error) {
	const op = "complete"
	if err := check(op, path); err != nil {
		return daytona.CompletionList{}, err
	}
	var list wire.LSPCompletionList
	if err := l.post(ctx, op, path, "completions", wire.LSPCompletionParams{LSPServer: l.id, URI: documentURI(path), Position: wire.LSPPosition(at)}, &list); err != nil {
		return daytona.CompletionList{}, err
	}
	out := daytona.CompletionList{Incomplete: list.IsIncomplete, Items: make([]daytona.Completion, len(list.Items))}
	for i, c := range list.Items {
		out.Items[i] = daytona.Completion{
			Label: c.Label, Detail: c.Detail, Documentation: markup(c.Documentation), SortText: c.SortText, FilterText: c.FilterText,
			InsertText: c.InsertText, Kind: daytona.CompletionKind(c.Kind),
		}
	}
	return out, nil
}

// markup is the text of a documentation: a string, or an object with one.
func markup(raw json.RawMessage) string {
	var text string
	if len(raw) == 0 || json.Unmarshal(raw, &text) == nil {
		return text
	}
	var m struct {
		Value string `json:"value"`
	}
	_ = json.Unmarshal(raw, &m) // anything else has no text
	return m.Value
}

func (l *lspServer) Diagnostics(ctx context.Context, path string) (daytona.DiagnosticList, error) {
	var list wire.LSPDiagnosticList
	if err := l.document(ctx, "diagnose", path, "diagnostics", nil, &list); err != nil {
		return daytona.DiagnosticList{}, err
	}
	out := daytona.DiagnosticList{Incomplete: list.IsIncomplete, Items: make([]daytona.Diagnostic, len(list.Items))}
	for i, d := range list.Items {
		out.Items[i] = daytona.Diagnostic{Range: span(d.Range), Severity: daytona.Severity(d.Severity), Code: d.Code, Source: d.Source, Message: d.Message}
	}
	return out, nil
}

// at asks about a position.
func (l *lspServer) at(ctx context.Context, op, path, route string, at daytona.Position, extend func(*wire.LSPPositionRequest), out any) error {
	if err := check(op, path); err != nil {
		return err
	}
	req := wire.LSPPositionRequest{LSPServer: l.id, URI: documentURI(path), Position: wire.LSPPosition(at)}
	if extend != nil {
		extend(&req)
	}
	return l.post(ctx, op, path, route, req, out)
}

func (l *lspServer) Hover(ctx context.Context, path string, at daytona.Position) (daytona.Hover, error) {
	var h wire.LSPHover
	if err := l.at(ctx, "hover", path, "hover", at, nil, &h); err != nil {
		return daytona.Hover{}, err
	}
	out := daytona.Hover{Text: h.Contents, Markdown: h.Kind == "markdown"}
	if h.Range != nil {
		out.Range = span(*h.Range)
	}
	return out, nil
}

func (l *lspServer) Definition(ctx context.Context, path string, at daytona.Position) ([]daytona.Location, error) {
	return l.locations(ctx, "find definition", path, "definition", at, nil)
}

func (l *lspServer) References(ctx context.Context, path string, at daytona.Position, declaration bool) ([]daytona.Location, error) {
	return l.locations(ctx, "find references", path, "references", at, func(r *wire.LSPPositionRequest) { r.IncludeDeclaration = declaration })
}

func (l *lspServer) locations(ctx context.Context, op, path, route string, at daytona.Position, extend func(*wire.LSPPositionRequest)) ([]daytona.Location, error) {
	var list []wire.LSPLocation
	if err := l.at(ctx, op, path, route, at, extend, &list); err != nil {
		return nil, err
	}
	out := make([]daytona.Location, len(list))
	for i, x := range list {
		out[i] = location(x)
	}
	return out, nil
}

func (l *lspServer) Rename(ctx context.Context, path string, at daytona.Position, name string) (daytona.WorkspaceEdit, error) {
	var e wire.LSPWorkspaceEdit
	err := l.at(ctx, "rename symbol", path, "rename", at, func(r *wire.LSPPositionRequest) { r.NewName = name }, &e)
	return workspaceEdit(e), err
}

func (l *lspServer) Format(ctx context.Context, path string, opts *daytona.FormatOptions) (daytona.WorkspaceEdit, error) {
	const op = "format"
	if err := check(op, path); err != nil {
		return daytona.WorkspaceEdit{}, err
	}
	var o daytona.FormatOptions
	if opts != nil {
		o = *opts
	}
	uri := documentURI(path)
	var answer wire.LSPFormatting
	if err := l.post(ctx, op, path, "formatting", wire.LSPFormattingRequest{LSPServer: l.id, URI: uri, TabSize: o.TabSize, Tabs: o.Tabs}, &answer); err != nil || len(answer.Edits) == 0 {
		return daytona.WorkspaceEdit{}, err
	}
	return workspaceEdit(wire.LSPWorkspaceEdit{Changes: []wire.LSPFileChange{{Kind: string(daytona.FileEdit), URI: answer.URI, Edits: answer.Edits}}}), nil
}

func (l *lspServer) CodeActions(ctx context.Context, path string, in daytona.Range, only ...string) ([]daytona.CodeAction, error) {
	const op = "list code actions"
	if err := check(op, path); err != nil {
		return nil, err
	}
	var list []wire.LSPCodeAction
	if err := l.post(ctx, op, path, "code-actions", wire.LSPCodeActionRequest{LSPServer: l.id, URI: documentURI(path),
		Range: wire.LSPRange{Start: wire.LSPPosition(in.Start), End: wire.LSPPosition(in.End)}, Only: only}, &list); err != nil {
		return nil, err
	}
	out := make([]daytona.CodeAction, len(list))
	for i, a := range list {
		out[i] = daytona.CodeAction{Title: a.Title, Kind: a.Kind, Preferred: a.Preferred, Disabled: a.Disabled}
		if a.Edit != nil {
			e := workspaceEdit(*a.Edit)
			out[i].Edit = &e
		}
		if a.Command != nil {
			out[i].Command = &daytona.LSPCommand{Title: a.Command.Title, Name: a.Command.Command, Arguments: a.Command.Arguments}
		}
	}
	return out, nil
}

func (l *lspServer) Execute(ctx context.Context, command daytona.LSPCommand) (daytona.WorkspaceEdit, error) {
	const op = "execute command of language server"
	if command.Name == "" {
		return daytona.WorkspaceEdit{}, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Name", Message: "must not be empty"}
	}
	var e wire.LSPWorkspaceEdit
	err := l.post(ctx, op, command.Name, "execute-command", wire.LSPCommandRequest{LSPServer: l.id,
		LSPCommand: wire.LSPCommand{Command: command.Name, Arguments: command.Arguments}}, &e)
	return workspaceEdit(e), err
}

func span(r wire.LSPRange) daytona.Range {
	return daytona.Range{Start: daytona.Position(r.Start), End: daytona.Position(r.End)}
}

func location(l wire.LSPLocation) daytona.Location {
	return daytona.Location{URI: l.URI, Range: span(l.Range)}
}

func workspaceEdit(e wire.LSPWorkspaceEdit) daytona.WorkspaceEdit {
	var out daytona.WorkspaceEdit
	for _, c := range e.Changes {
		change := daytona.FileChange{Kind: daytona.FileChangeKind(c.Kind), URI: c.URI, NewURI: c.NewURI}
		for _, t := range c.Edits {
			change.Edits = append(change.Edits, daytona.TextEdit{Range: span(t.Range), NewText: t.NewText})
		}
		out.Changes = append(out.Changes, change)
	}
	return out
}
