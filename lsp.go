package daytona

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// LSPServer is a language server inside a sandbox, for one language and one
// project directory: it knows what the code means. It is a program of the
// sandbox's user; the agent starts it again when it has crashed, or has not
// answered for a minute, and opens again what was open.
//
// Paths are absolute, or relative to the project directory. A document that a
// method is about is opened if need be, and is as it is on the sandbox's disk,
// unless DidChange says otherwise.
//
// All methods but Start and Stop give KindState if the server has not been
// started, KindUnsupported if it cannot do it, KindTimeout if it does not
// answer within a minute, and KindUnavailable if it crashed again and again:
// then Start it anew. What a server itself refuses is KindInvalid.
type LSPServer interface {
	// Start starts the server and waits until it is ready; nothing happens if
	// it runs already. KindNotFound if there is no such program in the sandbox,
	// KindInvalid if nothing is known of the language and no Command is given,
	// KindConflict if it runs with other options: Stop it first.
	Start(ctx context.Context, opts *LSPOptions) error
	// Stop ends the server; nothing happens if it does not run.
	Stop(ctx context.Context) error

	// DidOpen tells the server that an editor has a file open; of one that is
	// open already, that its content is that on the disk again.
	DidOpen(ctx context.Context, path string) error
	// DidChange tells what an editor has in an open file that is not saved; it
	// opens the file if need be. It counts until DidOpen or DidClose. At most
	// 4 MiB.
	DidChange(ctx context.Context, path, text string) error
	// DidClose says that an editor has closed the file.
	DidClose(ctx context.Context, path string) error
	// FilesChanged tells of files that were made, changed or deleted and are
	// not open. Many servers find out by themselves; gopls does not.
	FilesChanged(ctx context.Context, paths ...string) error

	// DocumentSymbols lists the symbols of a file, each before those in it.
	DocumentSymbols(ctx context.Context, path string) ([]Symbol, error)
	// WorkspaceSymbols lists the project's symbols that match query. The
	// server decides what matches, and how many it gives.
	WorkspaceSymbols(ctx context.Context, query string) ([]Symbol, error)
	// Completions proposes what may be written at a position.
	Completions(ctx context.Context, path string, at Position) (CompletionList, error)
	// Diagnostics lists what is wrong with a file as it is now. It waits for
	// the server to say so, up to 15 seconds.
	Diagnostics(ctx context.Context, path string) (DiagnosticList, error)
	// Hover is what there is to say about what is at a position. Its Text is
	// empty if nothing.
	Hover(ctx context.Context, path string, at Position) (Hover, error)
	// Definition says where that which is at a position is defined.
	Definition(ctx context.Context, path string, at Position) ([]Location, error)
	// References lists where that which is at a position is used, with
	// declaration also where it is declared.
	References(ctx context.Context, path string, at Position, declaration bool) ([]Location, error)
	// Rename says what has to change for that which is at a position to get
	// another name. Nothing is changed: see [WorkspaceEdit.Apply].
	Rename(ctx context.Context, path string, at Position, name string) (WorkspaceEdit, error)
	// Format says what has to change for a file to be well formatted. Nothing
	// is changed: see [WorkspaceEdit.Apply].
	Format(ctx context.Context, path string, opts *FormatOptions) (WorkspaceEdit, error)
	// CodeActions lists what the server can do to the code in a range: to
	// remedy its diagnostics, to organise imports, and so on. only restricts it
	// to kinds such as "quickfix" or "source.organizeImports".
	CodeActions(ctx context.Context, path string, in Range, only ...string) ([]CodeAction, error)
	// Execute has the server execute the command of a code action, and returns
	// the edit that it wants, which is not applied.
	Execute(ctx context.Context, command LSPCommand) (WorkspaceEdit, error)
}

// LSPOptions refine [LSPServer.Start].
type LSPOptions struct {
	// Command is the server's program and its arguments; it speaks the
	// protocol on its standard input and output. It is looked up in the
	// sandbox's PATH unless it has a slash. Defaults to what the sandbox's
	// variable DAYTONA_LSP_ and the language in capitals says, such as
	// DAYTONA_LSP_PYTHON="pyright-langserver --stdio", else to the first that
	// there is of: for "python" pylsp, pyright-langserver and
	// basedpyright-langserver; for "typescript" and "javascript"
	// typescript-language-server and vtsls; for "go" gopls.
	Command []string
	// Env is added to its environment. Defaults to none.
	Env map[string]string
	// InitializationOptions is given to the server when it starts, as JSON.
	// Defaults to none.
	InitializationOptions any
	// Settings are the server's configuration, as JSON: an object by section,
	// such as {"python": {"analysis": …}}. Defaults to none.
	Settings any
}

// Position is a place in a text: line and UTF-16 code unit, both from 0, as
// in the Language Server Protocol.
type Position struct {
	Line      int `json:"line"`
	Character int `json:"character"`
}

// Range is the text from Start up to End.
type Range struct {
	Start Position `json:"start"`
	End   Position `json:"end"`
}

// Location is a range in a document.
type Location struct {
	URI   string `json:"uri"`
	Range Range  `json:"range"`
}

// Path is the path of a "file:" URI; "" of any other.
func (l Location) Path() string { return pathOf(l.URI) }

func pathOf(uri string) string {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "file" || u.Host != "" && u.Host != "localhost" {
		return ""
	}
	return u.Path
}

// Symbol is a named thing in a program. Container is the name of what it is
// in, where the server says so.
type Symbol struct {
	Location
	Name      string
	Kind      SymbolKind
	Container string
}

// SymbolKind is the SymbolKind number of the Language Server Protocol.
type SymbolKind int

const symbolKinds = "file module namespace package class method property field constructor enum interface function variable constant string number boolean array object key null enum-member struct event operator type-parameter"

// String is a word such as "function".
func (k SymbolKind) String() string { return nth(symbolKinds, int(k)) }

// CompletionKind is the CompletionItemKind number of the Language Server
// Protocol; 0 if the server does not say.
type CompletionKind int

const completionKinds = "text method function constructor field variable class interface module property unit value enum keyword snippet color file reference folder enum-member constant struct event operator type-parameter"

// String is a word such as "function".
func (k CompletionKind) String() string { return nth(completionKinds, int(k)) }

// Severity is how bad a [Diagnostic] is; 0 if the server does not say.
type Severity int

// The severities of the Language Server Protocol.
const (
	SeverityError Severity = 1 + iota
	SeverityWarning
	SeverityInformation
	SeverityHint
)

// String is a word such as "error".
func (s Severity) String() string { return nth("error warning information hint", int(s)) }

// nth is the word with a number, from 1, or else the number.
func nth(words string, n int) string {
	if list := strings.Fields(words); n >= 1 && n <= len(list) {
		return list[n-1]
	}
	return strconv.Itoa(n)
}

// CompletionList is the answer to a completion request. Incomplete says that
// there are more.
type CompletionList struct {
	Incomplete bool
	Items      []Completion
}

// Completion is one proposal.
type Completion struct {
	Label, Detail, Documentation, SortText, FilterText, InsertText string
	Kind                                                           CompletionKind
}

// DiagnosticList is what a server has to say about a file. Incomplete says
// that it has not spoken since the file last changed.
type DiagnosticList struct {
	Incomplete bool
	Items      []Diagnostic
}

// Diagnostic is something that a server has to say about a range.
type Diagnostic struct {
	Range    Range
	Severity Severity
	// Code and Source are the server's own.
	Code, Source string
	Message      string
}

// String formats as "line:column: severity: message", both counted from 1.
func (d Diagnostic) String() string {
	return fmt.Sprintf("%d:%d: %s: %s", d.Range.Start.Line+1, d.Range.Start.Character+1, d.Severity, d.Message)
}

// Hover is a text about what is at a position.
type Hover struct {
	Text     string
	Markdown bool
	// Range is what the text is about; zero if the server does not say.
	Range Range
}

// FormatOptions refine [LSPServer.Format].
type FormatOptions struct {
	// TabSize is the width of an indentation. Defaults to 4.
	TabSize int
	// Tabs indents by tabs. Defaults to spaces. Some servers decide themselves.
	Tabs bool
}

// CodeAction is something that a server can do to the code: apply its Edit,
// then execute its Command, where they are not nil.
type CodeAction struct {
	Title string
	// Kind is such as "quickfix", "refactor.extract".
	Kind string
	// Preferred says that it is the one to choose.
	Preferred bool
	// Disabled says why it cannot be done now. Empty if it can.
	Disabled string
	Edit     *WorkspaceEdit
	Command  *LSPCommand
}

// LSPCommand is a command of a server, to be given back to it as it is.
type LSPCommand struct {
	Title     string
	Name      string
	Arguments []json.RawMessage
}

// WorkspaceEdit is a change of files, in order.
type WorkspaceEdit struct {
	Changes []FileChange
}

// FileChange is a change of one file.
type FileChange struct {
	Kind FileChangeKind
	URI  string
	// NewURI is of FileRename.
	NewURI string
	// Edits are of FileEdit. Their ranges are all of the text as it is before.
	Edits []TextEdit
}

// FileChangeKind says what a [FileChange] does.
type FileChangeKind string

// The kinds of changes.
const (
	FileEdit   FileChangeKind = "edit"
	FileCreate FileChangeKind = "create"
	FileRename FileChangeKind = "rename"
	FileDelete FileChangeKind = "delete"
)

// TextEdit replaces the text of a range.
type TextEdit struct {
	Range   Range
	NewText string
}

// Apply changes the files of a sandbox. It is no transaction: an error leaves
// what was done before it. Servers see the files that are open change; tell
// them of others by FilesChanged.
func (e WorkspaceEdit) Apply(ctx context.Context, files FileSystem) error {
	const op = "apply edit"
	path := func(uri string) (string, error) {
		if p := pathOf(uri); p != "" {
			return p, nil
		}
		return "", &Error{Kind: KindInvalid, Op: op, Field: "URI", Value: uri, Message: "only files of the sandbox can be changed"}
	}
	for _, c := range e.Changes {
		p, err := path(c.URI)
		if err != nil {
			return err
		}
		switch c.Kind {
		case FileEdit:
			var text []byte
			if text, err = files.ReadFile(ctx, p); err != nil {
				return err
			}
			changed, err := ApplyTextEdits(string(text), c.Edits)
			if err != nil {
				return &Error{Kind: KindInvalid, Op: op, Subject: p, Message: "the edit does not fit the file, which may have changed meanwhile", Err: err}
			}
			info, err := files.Stat(ctx, p)
			if err != nil {
				return err
			}
			if err := files.WriteFile(ctx, p, []byte(changed), info.Mode().Perm()); err != nil {
				return err
			}
		case FileCreate:
			if _, err := files.Stat(ctx, p); err == nil {
				continue
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			if err := files.WriteFile(ctx, p, nil, 0); err != nil {
				return err
			}
		case FileRename:
			to, err := path(c.NewURI)
			if err != nil {
				return err
			}
			if err := files.Rename(ctx, p, to); err != nil {
				return err
			}
		case FileDelete:
			if err := files.RemoveAll(ctx, p); err != nil {
				return err
			}
		default:
			return &Error{Kind: KindUnsupported, Op: op, Subject: p, Field: "Kind", Value: c.Kind, Message: "not a kind of change that is known"}
		}
	}
	return nil
}

// ApplyTextEdits returns a text with edits applied to it. Their ranges are of
// the text as it is, and must not overlap; several insertions at one place
// are made in their order. A place beyond the end of a line is its end.
func ApplyTextEdits(text string, edits []TextEdit) (string, error) {
	type span struct {
		from, to int
		text     string
	}
	lines := []int{0} // where each begins
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '\n', text[i] == '\r' && (i+1 == len(text) || text[i+1] != '\n'):
			lines = append(lines, i+1)
		}
	}
	offset := func(p Position) (int, bool) {
		if p.Line < 0 || p.Character < 0 || p.Line > len(lines) {
			return 0, false
		}
		if p.Line == len(lines) { // one past the last: the end, as servers say it
			return len(text), true
		}
		at := lines[p.Line]
		for units := 0; at < len(text) && text[at] != '\n' && text[at] != '\r'; {
			r, size := utf8.DecodeRuneInString(text[at:])
			if units++; r > 0xffff {
				units++
			}
			if units > p.Character {
				break
			}
			at += size
		}
		return at, true
	}
	spans := make([]span, len(edits))
	for i, e := range edits {
		from, ok := offset(e.Range.Start)
		to, ok2 := offset(e.Range.End)
		if !ok || !ok2 || to < from {
			return "", fmt.Errorf("there is no %d:%d to %d:%d in a text of %d lines", e.Range.Start.Line+1, e.Range.Start.Character+1, e.Range.End.Line+1, e.Range.End.Character+1, len(lines))
		}
		spans[i] = span{from, to, e.NewText}
	}
	slices.SortStableFunc(spans, func(a, b span) int {
		if a.from != b.from {
			return a.from - b.from
		}
		return a.to - b.to
	})
	var out strings.Builder
	at := 0
	for _, s := range spans {
		if s.from < at {
			return "", errors.New("two edits overlap")
		}
		out.WriteString(text[at:s.from])
		out.WriteString(s.text)
		at = s.to
	}
	out.WriteString(text[at:])
	return out.String(), nil
}
