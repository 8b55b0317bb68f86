package api

import (
	"net/http"
	"strings"

	"github.com/daytona-go/daytona/server/identity"
)

// ToolboxPasser passes requests to the toolboxes of sandboxes; the proxy is one.
type ToolboxPasser interface {
	// ServeToolbox passes a request that may be passed to a sandbox of an
	// organization: target is the escaped path there. An error says that nothing
	// has been written.
	ServeToolbox(w http.ResponseWriter, r *http.Request, organizationID, sandboxID, target string) error
}

// deprecatedToolbox are the operations that the API passes to the toolbox of a
// sandbox, for clients of old: all others go to the proxy.
var deprecatedToolbox = []struct {
	method, path, id string
	status           int
}{
	{"GET", "/project-dir", "getProjectDir_deprecated", 200},
	{"GET", "/user-home-dir", "getUserHomeDir_deprecated", 200},
	{"GET", "/work-dir", "getWorkDir_deprecated", 200},
	{"DELETE", "/files", "deleteFile_deprecated", 200},
	{"GET", "/files", "listFiles_deprecated", 200},
	{"GET", "/files/download", "downloadFile_deprecated", 200},
	{"POST", "/files/bulk-download", "downloadFiles_deprecated", 200},
	{"GET", "/files/find", "findInFiles_deprecated", 200},
	{"POST", "/files/folder", "createFolder_deprecated", 200},
	{"GET", "/files/info", "getFileInfo_deprecated", 200},
	{"POST", "/files/move", "moveFile_deprecated", 200},
	{"POST", "/files/permissions", "setFilePermissions_deprecated", 200},
	{"POST", "/files/replace", "replaceInFiles_deprecated", 200},
	{"GET", "/files/search", "searchFiles_deprecated", 200},
	{"POST", "/files/upload", "uploadFile_deprecated", 200},
	{"POST", "/files/bulk-upload", "uploadFiles_deprecated", 200},
	{"POST", "/git/add", "gitAddFiles_deprecated", 200},
	{"DELETE", "/git/branches", "gitDeleteBranch_deprecated", 200},
	{"GET", "/git/branches", "gitListBranches_deprecated", 200},
	{"POST", "/git/branches", "gitCreateBranch_deprecated", 200},
	{"POST", "/git/clone", "gitCloneRepository_deprecated", 200},
	{"POST", "/git/commit", "gitCommitChanges_deprecated", 200},
	{"GET", "/git/history", "gitGetHistory_deprecated", 200},
	{"POST", "/git/pull", "gitPullChanges_deprecated", 200},
	{"POST", "/git/push", "gitPushChanges_deprecated", 200},
	{"POST", "/git/checkout", "gitCheckoutBranch_deprecated", 200},
	{"GET", "/git/status", "gitGetStatus_deprecated", 200},
	{"POST", "/process/execute", "executeCommand_deprecated", 200},
	{"GET", "/process/session", "listSessions_deprecated", 200},
	{"POST", "/process/session", "createSession_deprecated", 200},
	{"DELETE", "/process/session/{sessionId}", "deleteSession_deprecated", 200},
	{"GET", "/process/session/{sessionId}", "getSession_deprecated", 200},
	{"POST", "/process/session/{sessionId}/exec", "executeSessionCommand_deprecated", 200},
	{"GET", "/process/session/{sessionId}/command/{commandId}", "getSessionCommand_deprecated", 200},
	{"GET", "/process/session/{sessionId}/command/{commandId}/logs", "getSessionCommandLogs_deprecated", 200},
	{"GET", "/process/pty", "listPTYSessions_deprecated", 200},
	{"POST", "/process/pty", "createPTYSession_deprecated", 201},
	{"DELETE", "/process/pty/{sessionId}", "deletePTYSession_deprecated", 200},
	{"GET", "/process/pty/{sessionId}", "getPTYSession_deprecated", 200},
	{"POST", "/process/pty/{sessionId}/resize", "resizePTYSession_deprecated", 200},
	{"POST", "/lsp/completions", "LspCompletions_deprecated", 200},
	{"POST", "/lsp/did-close", "LspDidClose_deprecated", 200},
	{"POST", "/lsp/did-open", "LspDidOpen_deprecated", 200},
	{"GET", "/lsp/document-symbols", "LspDocumentSymbols_deprecated", 200},
	{"POST", "/lsp/start", "LspStart_deprecated", 200},
	{"POST", "/lsp/stop", "LspStop_deprecated", 200},
	{"GET", "/lsp/workspace-symbols", "LspWorkspaceSymbols_deprecated", 200},
	{"POST", "/computeruse/start", "startComputerUse_deprecated", 200},
	{"POST", "/computeruse/stop", "stopComputerUse_deprecated", 200},
	{"GET", "/computeruse/status", "getComputerUseStatus_deprecated", 200},
	{"GET", "/computeruse/process/{processName}/status", "getProcessStatus_deprecated", 200},
	{"POST", "/computeruse/process/{processName}/restart", "restartProcess_deprecated", 200},
	{"GET", "/computeruse/process/{processName}/logs", "getProcessLogs_deprecated", 200},
	{"GET", "/computeruse/process/{processName}/errors", "getProcessErrors_deprecated", 200},
	{"GET", "/computeruse/mouse/position", "getMousePosition_deprecated", 200},
	{"POST", "/computeruse/mouse/move", "moveMouse_deprecated", 200},
	{"POST", "/computeruse/mouse/click", "clickMouse_deprecated", 200},
	{"POST", "/computeruse/mouse/drag", "dragMouse_deprecated", 200},
	{"POST", "/computeruse/mouse/scroll", "scrollMouse_deprecated", 200},
	{"POST", "/computeruse/keyboard/type", "typeText_deprecated", 200},
	{"POST", "/computeruse/keyboard/key", "pressKey_deprecated", 200},
	{"POST", "/computeruse/keyboard/hotkey", "pressHotkey_deprecated", 200},
	{"GET", "/computeruse/screenshot", "takeScreenshot_deprecated", 200},
	{"GET", "/computeruse/screenshot/region", "takeRegionScreenshot_deprecated", 200},
	{"GET", "/computeruse/screenshot/compressed", "takeCompressedScreenshot_deprecated", 200},
	{"GET", "/computeruse/screenshot/region/compressed", "takeCompressedRegionScreenshot_deprecated", 200},
	{"GET", "/computeruse/display/info", "getDisplayInfo_deprecated", 200},
	{"GET", "/computeruse/display/windows", "getWindows_deprecated", 200},
}

const toolboxPrefix = "/toolbox/{sandboxId}/toolbox"

// toolboxRoutes makes the routes of the deprecated passthrough.
func toolboxRoutes() []Route {
	routes := make([]Route, len(deprecatedToolbox))
	for i, o := range deprecatedToolbox {
		routes[i] = Route{ID: o.id, Method: o.method, Path: toolboxPrefix + o.path, Tag: "toolbox", Status: o.status,
			Access: may(identity.WriteSandboxes), Deprecated: true}
	}
	return routes
}

// RegisterToolbox serves the deprecated passthrough.
func RegisterToolbox(a *API, p ToolboxPasser) {
	for _, o := range deprecatedToolbox {
		Stream(a, o.id, func(w http.ResponseWriter, r *http.Request) error {
			// The path goes on as it was sent.
			_, target, _ := strings.Cut(r.URL.EscapedPath(), "/toolbox/")
			_, target, _ = strings.Cut(target, "/toolbox")
			if o.id == "LspWorkspaceSymbols_deprecated" {
				target = "/lsp/workspacesymbols"
			}
			sandbox := Param(r, "sandboxId")
			Note(r.Context(), sandbox, nil)
			return p.ServeToolbox(w, r, identity.From(r.Context()).OrganizationID, sandbox, target)
		})
	}
}
