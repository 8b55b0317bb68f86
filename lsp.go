package daytona

import "context"

// LSPServer is a language server inside a sandbox, for one language and one
// project directory.
type LSPServer interface {
	// Start starts the server; nothing happens if it runs already.
	Start(ctx context.Context) error
	Stop(ctx context.Context) error
	// DidOpen and DidClose tell it that an editor has a file open.
	DidOpen(ctx context.Context, path string) error
	DidClose(ctx context.Context, path string) error
	// DocumentSymbols lists the symbols of a file.
	DocumentSymbols(ctx context.Context, path string) ([]Symbol, error)
	// WorkspaceSymbols lists the project's symbols that match query.
	WorkspaceSymbols(ctx context.Context, query string) ([]Symbol, error)
	// Completions proposes what may be written at a position.
	Completions(ctx context.Context, path string, at Position) (CompletionList, error)
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

// Symbol is a named thing in a program. Kind is the SymbolKind number of the
// Language Server Protocol.
type Symbol struct {
	Name  string
	Kind  int
	URI   string
	Range Range
}

// CompletionList is the answer to a completion request.
type CompletionList struct {
	Incomplete bool
	Items      []Completion
}

// Completion is one proposal. Kind is the CompletionItemKind number of the
// Language Server Protocol.
type Completion struct {
	Label, Detail, Documentation, SortText, FilterText, InsertText string
	Kind                                                           int
}
