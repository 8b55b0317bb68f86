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
