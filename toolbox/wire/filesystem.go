package wire

// FileInfo describes a file.
type FileInfo struct {
	Name        string `json:"name"`
	Path        string `json:"path,omitempty"`
	Size        int64  `json:"size"`
	Mode        string `json:"mode"`       // Go style, such as "-rw-r--r--"
	ModTime     string `json:"modTime"`    // Go's time.Time.String, for old clients
	ModifiedAt  string `json:"modifiedAt"` // RFC 3339
	IsDir       bool   `json:"isDir"`
	Owner       string `json:"owner"`       // uid, decimal
	Group       string `json:"group"`       // gid, decimal
	Permissions string `json:"permissions"` // four octal digits
}

// Match is a line found by GET /files/find.
type Match struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Content string `json:"content"`
}

// SearchFilesResponse is the answer of GET /files/search.
type SearchFilesResponse struct {
	Files []string `json:"files"`
}

// ReplaceRequest is the body of POST /files/replace.
type ReplaceRequest struct {
	Files    []string `json:"files"`
	Pattern  string   `json:"pattern"`
	NewValue string   `json:"newValue"`
}

// ReplaceResult is one item of the answer of POST /files/replace.
type ReplaceResult struct {
	File    string `json:"file"`
	Success bool   `json:"success"`
	Error   string `json:"error,omitempty"`
}

// FilesDownloadRequest is the body of POST /files/bulk-download.
type FilesDownloadRequest struct {
	Paths []string `json:"paths"`
}

// DownloadBoundary separates the parts of a bulk download; clients of the
// older generation look for it.
const DownloadBoundary = "DAYTONA-FILE-BOUNDARY"

// UploadedPath is one item of BulkUploadResponse.
type UploadedPath struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
}

// BulkUploadResponse is the answer of POST /files/bulk-upload, with Errors
// and status 400 if any file failed.
type BulkUploadResponse struct {
	Errors []string       `json:"errors,omitempty"`
	Files  []UploadedPath `json:"files"`
}

// UploadedFile is the answer of POST /files/upload-v2.
type UploadedFile struct {
	Name string `json:"name"`
	Path string `json:"path"`
	Type string `json:"type"`
}

// Extension: GET WatchPath?path= is a stream of server-sent events about what
// changes in a directory and, unless recursive=false, in all below it, or of one
// file. The first is EventReady, once nothing is missed any more. Further
// parameters: window, how many milliseconds changes are collected for (1 to
// 10000, default 50), and exclude, any number of them, a shell pattern of names
// that are left out with all that is below them.
const WatchPath = "/files/watch"

// Events of WatchPath.
const (
	EventReady    = "ready"    // WatchReady
	EventChanges  = "changes"  // FileChanges
	EventOverflow = "overflow" // WatchOverflow
	EventEnd      = "end"      // WatchEnd; the last one
)

// WatchReady says what is watched.
type WatchReady struct {
	Path        string `json:"path"` // absolute
	Directories int    `json:"directories"`
}

// FileChanges is what happened in a window of time, in order, several changes
// of a file as one where that says the same.
type FileChanges struct {
	Events []FileChange `json:"events"`
}

// FileChange is a change. OldPath is of a rename.
type FileChange struct {
	Type    string `json:"type"`
	Path    string `json:"path"`
	OldPath string `json:"oldPath,omitempty"`
	IsDir   bool   `json:"isDir,omitempty"`
}

// Types of a FileChange.
const (
	ChangeCreate     = "create"
	ChangeWrite      = "write"
	ChangeRemove     = "remove"
	ChangeRename     = "rename"
	ChangeAttributes = "attributes"
)

// WatchOverflow says that changes below a path were lost, and why.
type WatchOverflow struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// WatchEnd says why there is no more.
type WatchEnd struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}
