package lsp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"github.com/daytona-go/daytona/toolbox/wire"
)

// Bounds of what a server's answer is turned into. An answer of many tiny
// elements would take a multiple of its size.
const (
	elementLimit    = 20_000
	diagnosticLimit = 1_000 // of a document
	depthLimit      = 64    // of symbols in symbols
)

var errTooMany = fmt.Errorf("the language server's answer has more than %d elements: ask for less", elementLimit)

// array decodes an array of at most *budget elements, which it counts down.
// "null" is an empty one.
func array[T any](raw json.RawMessage, budget *int) ([]T, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	first, err := d.Token()
	if err != nil {
		return nil, err
	}
	list := []T{}
	if first == nil {
		return list, nil
	}
	if first != json.Delim('[') {
		return nil, fmt.Errorf("%v where an array is due", first)
	}
	for d.More() {
		if *budget--; *budget < 0 {
			return list, errTooMany
		}
		var v T
		if err := d.Decode(&v); err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// is tells objects, arrays, strings and numbers apart by their first byte.
func is(raw json.RawMessage, first byte) bool {
	raw = bytes.TrimLeft(raw, " \t\r\n")
	return len(raw) > 0 && raw[0] == first
}

func absent(raw json.RawMessage) bool {
	raw = bytes.TrimSpace(raw)
	return len(raw) == 0 || string(raw) == "null"
}

// object is JSON that is made here.
type object map[string]any

// capabilities are what a server said that it can do; those that are "true" or
// have options are there.
type capabilities map[string]json.RawMessage

func (c capabilities) has(name string) bool {
	raw := bytes.TrimSpace(c[name])
	return len(raw) > 0 && string(raw) != "null" && string(raw) != "false"
}

// option is a field of a capability's options.
func (c capabilities) option(name, field string) json.RawMessage {
	var options map[string]json.RawMessage
	if json.Unmarshal(c[name], &options) != nil {
		return nil
	}
	return options[field]
}

func (c capabilities) flag(name, field string) bool {
	return string(bytes.TrimSpace(c.option(name, field))) == "true"
}

// saves says whether a server wants to know that a document is saved.
func (c capabilities) saves() bool {
	save := bytes.TrimSpace(c.option("textDocumentSync", "save"))
	return len(save) > 0 && string(save) != "null" && string(save) != "false"
}

// initializeParams is what the agent says of itself and of the project.
func initializeParams(dir string, options json.RawMessage) object {
	formats := []string{"markdown", "plaintext"}
	uri := fileURI(dir)
	params := object{
		// Not the agent's: a server that looks for its client would not be
		// allowed to see it, and end.
		"processId":  nil,
		"clientInfo": object{"name": "daytona"},
		"rootPath":   dir,
		"rootUri":    uri,
		"workspaceFolders": []object{
			{"uri": uri, "name": dir[strings.LastIndexByte(dir, '/')+1:]},
		},
		"capabilities": object{
			"general": object{"positionEncodings": []string{"utf-16"}},
			"workspace": object{
				"applyEdit":              true,
				"configuration":          true,
				"workspaceFolders":       true,
				"symbol":                 object{},
				"executeCommand":         object{},
				"didChangeConfiguration": object{},
				"didChangeWatchedFiles":  object{},
				"workspaceEdit":          object{"documentChanges": true, "resourceOperations": []string{"create", "rename", "delete"}},
			},
			"textDocument": object{
				"synchronization":    object{"didSave": true},
				"completion":         object{"contextSupport": true, "completionItem": object{"snippetSupport": false, "documentationFormat": formats}},
				"hover":              object{"contentFormat": formats},
				"definition":         object{"linkSupport": true},
				"references":         object{},
				"documentSymbol":     object{"hierarchicalDocumentSymbolSupport": true},
				"formatting":         object{},
				"rename":             object{},
				"publishDiagnostics": object{"versionSupport": true},
				"diagnostic":         object{},
				"codeAction": object{
					"isPreferredSupport": true, "disabledSupport": true, "dataSupport": true,
					"resolveSupport": object{"properties": []string{"edit", "command"}},
					"codeActionLiteralSupport": object{"codeActionKind": object{"valueSet": []string{
						"", "quickfix", "refactor", "refactor.extract", "refactor.inline", "refactor.rewrite", "source", "source.organizeImports", "source.fixAll",
					}}},
				},
			},
		},
	}
	if len(options) > 0 {
		params["initializationOptions"] = options
	}
	return params
}

// fileURI is the URI of an absolute path.
func fileURI(path string) string { return (&url.URL{Scheme: "file", Path: path}).String() }

// filePath is the path of a "file:" URI that a server made.
func filePath(uri string) (string, bool) {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "file" || u.Path == "" {
		return "", false
	}
	return u.Path, true
}

// symbols turns the answer to a request for symbols, of either form, into a
// list; uri is of the document where the form does not tell.
func symbols(raw json.RawMessage, uri string) ([]wire.LSPSymbol, error) {
	budget := elementLimit
	list := []wire.LSPSymbol{}
	var walk func(raw json.RawMessage, container string, depth int) error
	walk = func(raw json.RawMessage, container string, depth int) error {
		if depth > depthLimit {
			return fmt.Errorf("symbols within symbols, %d deep", depthLimit)
		}
		level, err := array[struct {
			Name          string            `json:"name"`
			Kind          int               `json:"kind"`
			Location      *wire.LSPLocation `json:"location"`
			Range         *wire.LSPRange    `json:"range"`
			ContainerName string            `json:"containerName"`
			Children      json.RawMessage   `json:"children"`
		}](raw, &budget)
		if err != nil {
			return err
		}
		for _, s := range level {
			out := wire.LSPSymbol{Name: s.Name, Kind: s.Kind, ContainerName: s.ContainerName}
			if container != "" {
				out.ContainerName = container
			}
			switch {
			case s.Location != nil:
				out.Location = *s.Location
			case s.Range != nil:
				out.Location = wire.LSPLocation{URI: uri, Range: *s.Range}
			}
			list = append(list, out)
			if !absent(s.Children) {
				if err := walk(s.Children, s.Name, depth+1); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return list, walk(raw, "", 0)
}

// completions turns the answer to a completion request, a list or an array,
// into a list, which is cut off where it is too long.
func completions(raw json.RawMessage) (wire.LSPCompletionList, error) {
	var list struct {
		IsIncomplete bool            `json:"isIncomplete"`
		Items        json.RawMessage `json:"items"`
	}
	out := wire.LSPCompletionList{Items: []wire.LSPCompletionItem{}}
	if is(raw, '{') {
		if err := json.Unmarshal(raw, &list); err != nil {
			return out, err
		}
	} else {
		list.Items = raw
	}
	out.IsIncomplete = list.IsIncomplete
	if absent(list.Items) {
		return out, nil
	}
	budget := elementLimit
	items, err := array[struct {
		wire.LSPCompletionItem
		TextEdit *struct {
			NewText string `json:"newText"`
		} `json:"textEdit"`
	}](list.Items, &budget)
	if errors.Is(err, errTooMany) {
		out.IsIncomplete, err = true, nil
	}
	if err != nil {
		return out, err
	}
	for _, item := range items {
		// The API has no field for an edit. One that only takes more of the line
		// along (the dot before a name) is left to the label.
		if item.InsertText == "" && item.TextEdit != nil && !strings.HasSuffix(item.TextEdit.NewText, item.Label) {
			item.InsertText = item.TextEdit.NewText
		}
		out.Items = append(out.Items, item.LSPCompletionItem)
	}
	return out, nil
}

// diagnostics turns a server's diagnostics into those of the wire, and says
// whether these are all.
func diagnostics(raw json.RawMessage) (list []wire.LSPDiagnostic, all bool, err error) {
	list = []wire.LSPDiagnostic{}
	if absent(raw) {
		return list, true, nil
	}
	budget := diagnosticLimit
	items, err := array[struct {
		Range    wire.LSPRange   `json:"range"`
		Severity int             `json:"severity"`
		Code     json.RawMessage `json:"code"`
		Source   string          `json:"source"`
		Message  string          `json:"message"`
	}](raw, &budget)
	all = !errors.Is(err, errTooMany)
	if err != nil && all {
		return list, false, err
	}
	for _, d := range items {
		out := wire.LSPDiagnostic{Range: d.Range, Severity: d.Severity, Source: d.Source, Message: d.Message}
		switch {
		case absent(d.Code):
		case is(d.Code, '"'):
			_ = json.Unmarshal(d.Code, &out.Code)
		case is(d.Code, '{'): // not of the protocol, but of some servers
			var code struct {
				Value json.RawMessage `json:"value"`
			}
			_ = json.Unmarshal(d.Code, &code)
			out.Code = strings.Trim(string(code.Value), `"`)
		default:
			out.Code = string(d.Code)
		}
		list = append(list, out)
	}
	return list, all, nil
}

// within returns those of a server's diagnostics, as they are, that a range
// touches.
func within(raw json.RawMessage, r wire.LSPRange) []json.RawMessage {
	out := []json.RawMessage{}
	if absent(raw) {
		return out
	}
	budget := diagnosticLimit
	items, _ := array[json.RawMessage](raw, &budget)
	for _, item := range items {
		var d struct {
			Range wire.LSPRange `json:"range"`
		}
		if json.Unmarshal(item, &d) == nil && !before(d.Range.End, r.Start) && !before(r.End, d.Range.Start) {
			out = append(out, item)
		}
	}
	return out
}

func before(a, b wire.LSPPosition) bool {
	return a.Line < b.Line || a.Line == b.Line && a.Character < b.Character
}

// hover turns the answer to a hover request, in any of its forms, into text.
func hover(raw json.RawMessage) (wire.LSPHover, error) {
	var out wire.LSPHover
	if absent(raw) {
		return out, nil
	}
	var h struct {
		Contents json.RawMessage `json:"contents"`
		Range    *wire.LSPRange  `json:"range"`
	}
	if err := json.Unmarshal(raw, &h); err != nil {
		return out, err
	}
	out.Range, out.Kind = h.Range, "markdown"
	part := func(raw json.RawMessage) (string, error) {
		if is(raw, '"') {
			var s string
			return s, json.Unmarshal(raw, &s)
		}
		var p struct{ Kind, Language, Value string }
		err := json.Unmarshal(raw, &p)
		switch {
		case p.Language != "":
			p.Value = "```" + p.Language + "\n" + p.Value + "\n```"
		case p.Kind == "plaintext":
			out.Kind = "plaintext"
		}
		return p.Value, err
	}
	switch {
	case absent(h.Contents):
	case is(h.Contents, '['):
		budget := elementLimit
		list, err := array[json.RawMessage](h.Contents, &budget)
		if err != nil {
			return out, err
		}
		var parts []string
		for _, raw := range list {
			text, err := part(raw)
			if err != nil {
				return out, err
			}
			parts = append(parts, text)
		}
		out.Contents = strings.Join(parts, "\n\n")
	default:
		text, err := part(h.Contents)
		if err != nil {
			return out, err
		}
		out.Contents = text
	}
	return out, nil
}

// locations turns the answer to a request for places, in any of its forms,
// into a list.
func locations(raw json.RawMessage) ([]wire.LSPLocation, error) {
	type place struct {
		wire.LSPLocation
		TargetURI            string         `json:"targetUri"`
		TargetSelectionRange *wire.LSPRange `json:"targetSelectionRange"`
	}
	out := []wire.LSPLocation{}
	var places []place
	switch {
	case absent(raw):
		return out, nil
	case is(raw, '{'):
		places = make([]place, 1)
		if err := json.Unmarshal(raw, &places[0]); err != nil {
			return nil, err
		}
	default:
		budget := elementLimit
		var err error
		if places, err = array[place](raw, &budget); err != nil {
			return nil, err
		}
	}
	for _, p := range places {
		if p.TargetURI != "" {
			p.URI = p.TargetURI
			if p.TargetSelectionRange != nil {
				p.Range = *p.TargetSelectionRange
			}
		}
		out = append(out, p.LSPLocation)
	}
	return out, nil
}

// textEdits turns the answer to a formatting request into a list.
func textEdits(raw json.RawMessage) ([]wire.LSPTextEdit, error) {
	if absent(raw) {
		return []wire.LSPTextEdit{}, nil
	}
	budget := elementLimit
	return array[wire.LSPTextEdit](raw, &budget)
}

// workspaceEdit turns a WorkspaceEdit of either form into a list of changes.
func workspaceEdit(raw json.RawMessage, budget *int) (*wire.LSPWorkspaceEdit, error) {
	out := &wire.LSPWorkspaceEdit{Changes: []wire.LSPFileChange{}}
	if absent(raw) {
		return out, nil
	}
	var e struct {
		Changes         json.RawMessage `json:"changes"`
		DocumentChanges json.RawMessage `json:"documentChanges"`
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return nil, err
	}
	edits := func(uri string, raw json.RawMessage) error {
		list := []wire.LSPTextEdit{}
		if !absent(raw) {
			var err error
			if list, err = array[wire.LSPTextEdit](raw, budget); err != nil {
				return err
			}
		}
		out.Changes = append(out.Changes, wire.LSPFileChange{Kind: "edit", URI: uri, Edits: list})
		return nil
	}
	if absent(e.DocumentChanges) {
		return out, members(e.Changes, budget, edits)
	}
	list, err := array[struct {
		Kind         string `json:"kind"`
		URI          string `json:"uri"`
		OldURI       string `json:"oldUri"`
		NewURI       string `json:"newUri"`
		TextDocument struct {
			URI string `json:"uri"`
		} `json:"textDocument"`
		Edits json.RawMessage `json:"edits"`
	}](e.DocumentChanges, budget)
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		switch c.Kind {
		case "":
			if err := edits(c.TextDocument.URI, c.Edits); err != nil {
				return nil, err
			}
		case "create", "delete":
			out.Changes = append(out.Changes, wire.LSPFileChange{Kind: c.Kind, URI: c.URI})
		case "rename":
			out.Changes = append(out.Changes, wire.LSPFileChange{Kind: c.Kind, URI: c.OldURI, NewURI: c.NewURI})
		default:
			return nil, fmt.Errorf("a change of the unknown kind %q", clip(c.Kind, 64))
		}
	}
	return out, nil
}

// members calls f for each member of an object, in order.
func members(raw json.RawMessage, budget *int, f func(name string, value json.RawMessage) error) error {
	if absent(raw) {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if first, err := d.Token(); err != nil || first != json.Delim('{') {
		return fmt.Errorf("%v where an object is due", first)
	}
	for d.More() {
		if *budget--; *budget < 0 {
			return errTooMany
		}
		name, err := d.Token()
		if err != nil {
			return err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		if err := f(name.(string), value); err != nil {
			return err
		}
	}
	return nil
}

// action is a code action, or the bare command that old servers answer with.
type action struct {
	Title       string          `json:"title"`
	Kind        string          `json:"kind"`
	IsPreferred bool            `json:"isPreferred"`
	Disabled    *disabled       `json:"disabled"`
	Edit        json.RawMessage `json:"edit"`
	Command     json.RawMessage `json:"command"`
	Arguments   json.RawMessage `json:"arguments"`
}

type disabled struct {
	Reason string `json:"reason"`
}

// wire is the action as the client gets it.
func (a action) wire(budget *int) (wire.LSPCodeAction, error) {
	out := wire.LSPCodeAction{Title: a.Title, Kind: a.Kind, Preferred: a.IsPreferred}
	if a.Disabled != nil {
		out.Disabled = a.Disabled.Reason
	}
	var err error
	if !absent(a.Edit) {
		if out.Edit, err = workspaceEdit(a.Edit, budget); err != nil {
			return out, err
		}
	}
	command := struct {
		Title     string          `json:"title"`
		Command   string          `json:"command"`
		Arguments json.RawMessage `json:"arguments"`
	}{Title: a.Title, Arguments: a.Arguments}
	switch {
	case absent(a.Command):
		return out, nil
	case is(a.Command, '"'):
		err = json.Unmarshal(a.Command, &command.Command)
	default:
		err = json.Unmarshal(a.Command, &command)
	}
	if err != nil {
		return out, err
	}
	out.Command = &wire.LSPCommand{Title: command.Title, Command: command.Command}
	if !absent(command.Arguments) {
		out.Command.Arguments, err = array[json.RawMessage](command.Arguments, budget)
	}
	return out, err
}
