package wire

import "encoding/json"

// The language server routes. A server is known by its language and project.
// Those of the public API are start, stop, did-open, did-close, completions,
// document-symbols and workspacesymbols; all others, and the fields marked
// so, are Extensions. A document's URI is "file://" and its path, which need
// not be escaped; a relative one is below the project.

// Codes of language server errors (Extension). The API wants status 400 for
// the first, and 500 for a server that does not start.
const (
	CodeLSPNotStarted = "LSP_NOT_STARTED"      // no such server has been started
	CodeLSPNotFound   = "LSP_SERVER_NOT_FOUND" // its program is not in the sandbox
	CodeLSPFailed     = "LSP_SERVER_FAILED"    // it does not start, or crashed too often
	CodeLSPTimeout    = "LSP_TIMEOUT"          // it did not answer in time; status 504
	CodeLSPError      = "LSP_SERVER_ERROR"     // it answered with an error
)

// LSPServer says which server a request is for.
type LSPServer struct {
	LanguageID    string `json:"languageId"`
	PathToProject string `json:"pathToProject"`
}

// LSPStartRequest is the body of POST /lsp/start; with LSPServer alone, of
// /lsp/stop.
type LSPStartRequest struct {
	LSPServer
	// Extensions. Command is the server's program and arguments, Envs is added
	// to its environment, InitializationOptions goes into its initialize
	// request, and Settings is what it gets as its configuration.
	Command               []string          `json:"command,omitempty"`
	Envs                  map[string]string `json:"envs,omitempty"`
	InitializationOptions json.RawMessage   `json:"initializationOptions,omitempty"`
	Settings              json.RawMessage   `json:"settings,omitempty"`
}

// LSPDocumentRequest is the body of did-open and did-close, and (Extension)
// of did-change and diagnostics. Text is of did-change: the content that the
// document has in an editor.
type LSPDocumentRequest struct {
	LSPServer
	URI  string  `json:"uri"`
	Text *string `json:"text,omitempty"`
}

// LSPFilesRequest (Extension) is the body of POST /lsp/did-change-files:
// files that were made, changed or deleted.
type LSPFilesRequest struct {
	LSPServer
	URIs []string `json:"uris"`
}

// LSPPosition is a place in a text: line and UTF-16 code unit, from 0.
type LSPPosition struct {
	Line      int `json:"line"`
	Character int `json:"character"`
}

// LSPRange is the text from Start up to End.
type LSPRange struct {
	Start LSPPosition `json:"start"`
	End   LSPPosition `json:"end"`
}

// LSPLocation is a range in a document.
type LSPLocation struct {
	URI   string   `json:"uri"`
	Range LSPRange `json:"range"`
}

// LSPSymbol is an element of the answer of document-symbols and
// workspacesymbols. ContainerName is an Extension.
type LSPSymbol struct {
	Name          string      `json:"name"`
	Kind          int         `json:"kind"`
	Location      LSPLocation `json:"location"`
	ContainerName string      `json:"containerName,omitempty"`
}

// LSPCompletionParams is the body of POST /lsp/completions.
type LSPCompletionParams struct {
	LSPServer
	URI      string                `json:"uri"`
	Position LSPPosition           `json:"position"`
	Context  *LSPCompletionContext `json:"context,omitempty"`
}

// LSPCompletionContext says what made the client ask.
type LSPCompletionContext struct {
	TriggerKind      int    `json:"triggerKind"`
	TriggerCharacter string `json:"triggerCharacter,omitempty"`
}

// LSPCompletionList is the answer.
type LSPCompletionList struct {
	IsIncomplete bool                `json:"isIncomplete"`
	Items        []LSPCompletionItem `json:"items"`
}

// LSPCompletionItem is a proposal. Documentation is a string, or an object of
// kind ("plaintext" or "markdown") and value.
type LSPCompletionItem struct {
	Label         string          `json:"label"`
	Kind          int             `json:"kind,omitempty"`
	Detail        string          `json:"detail,omitempty"`
	Documentation json.RawMessage `json:"documentation,omitempty"`
	SortText      string          `json:"sortText,omitempty"`
	FilterText    string          `json:"filterText,omitempty"`
	InsertText    string          `json:"insertText,omitempty"`
}

// LSPDiagnosticList (Extension) is the answer of POST /lsp/diagnostics.
// IsIncomplete says that the server has not spoken since the document last
// changed.
type LSPDiagnosticList struct {
	IsIncomplete bool            `json:"isIncomplete"`
	Items        []LSPDiagnostic `json:"items"`
}

// LSPDiagnostic is something that a server has to say about a range. Severity
// is from 1 (error) to 4 (hint).
type LSPDiagnostic struct {
	Range    LSPRange `json:"range"`
	Severity int      `json:"severity"`
	Code     string   `json:"code,omitempty"`
	Source   string   `json:"source,omitempty"`
	Message  string   `json:"message"`
}

// LSPPositionRequest (Extension) is the body of hover, definition, references
// and rename. IncludeDeclaration is of references, NewName of rename.
type LSPPositionRequest struct {
	LSPServer
	URI                string      `json:"uri"`
	Position           LSPPosition `json:"position"`
	IncludeDeclaration bool        `json:"includeDeclaration,omitempty"`
	NewName            string      `json:"newName,omitempty"`
}

// LSPHover (Extension) is the answer of hover; Contents is empty if there is
// nothing to say. Kind is "plaintext" or "markdown".
type LSPHover struct {
	Kind     string    `json:"kind"`
	Contents string    `json:"contents"`
	Range    *LSPRange `json:"range,omitempty"`
}

// LSPFormattingRequest (Extension) is the body of formatting; TabSize
// defaults to 4.
type LSPFormattingRequest struct {
	LSPServer
	URI     string `json:"uri"`
	TabSize int    `json:"tabSize,omitempty"`
	Tabs    bool   `json:"tabs,omitempty"`
}

// LSPFormatting (Extension) is the answer of formatting: the edits of a
// document.
type LSPFormatting struct {
	URI   string        `json:"uri"`
	Edits []LSPTextEdit `json:"edits"`
}

// LSPTextEdit (Extension) replaces a range.
type LSPTextEdit struct {
	Range   LSPRange `json:"range"`
	NewText string   `json:"newText"`
}

// LSPWorkspaceEdit (Extension) is the answer of rename: what to do, in order.
type LSPWorkspaceEdit struct {
	Changes []LSPFileChange `json:"changes"`
}

// LSPFileChange is a change of one file. Kind is "edit", "create", "rename"
// (to NewURI) or "delete".
type LSPFileChange struct {
	Kind   string        `json:"kind"`
	URI    string        `json:"uri"`
	NewURI string        `json:"newUri,omitempty"`
	Edits  []LSPTextEdit `json:"edits,omitempty"`
}

// LSPCodeActionRequest (Extension) is the body of code-actions. Only names
// the kinds that are wanted; none is all.
type LSPCodeActionRequest struct {
	LSPServer
	URI   string   `json:"uri"`
	Range LSPRange `json:"range"`
	Only  []string `json:"only,omitempty"`
}

// LSPCodeAction (Extension) is something that a server can do to the code, by
// an edit, or by a command, or by both, the edit first.
type LSPCodeAction struct {
	Title     string            `json:"title"`
	Kind      string            `json:"kind,omitempty"`
	Preferred bool              `json:"preferred,omitempty"`
	Disabled  string            `json:"disabled,omitempty"`
	Edit      *LSPWorkspaceEdit `json:"edit,omitempty"`
	Command   *LSPCommand       `json:"command,omitempty"`
}

// LSPCommand is a command of a server.
type LSPCommand struct {
	Title     string            `json:"title,omitempty"`
	Command   string            `json:"command"`
	Arguments []json.RawMessage `json:"arguments,omitempty"`
}

// LSPCommandRequest (Extension) is the body of execute-command. The answer is
// the LSPWorkspaceEdit that the server wanted to be applied meanwhile.
type LSPCommandRequest struct {
	LSPServer
	LSPCommand
}
