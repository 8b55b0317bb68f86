package backendtest

import (
	"strings"
	"time"

	"github.com/daytona-go/daytona"
)

// languageServer is a language server in a few lines: the symbols of a
// document are its words and the user that it runs as, and to hover over the
// second line ends it. It completes only if an argument asks for that.
const languageServer = `import json, os, sys

def send(**message):
    body = json.dumps(message).encode()
    sys.stdout.buffer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    sys.stdout.buffer.flush()

documents = {}
while True:
    length = 0
    while (line := sys.stdin.buffer.readline()) != b"\r\n":
        if not line:
            sys.exit()
        if line.startswith(b"Content-Length:"):
            length = int(line.split(b":")[1])
    message = json.loads(sys.stdin.buffer.read(length))
    method, params = message["method"], message.get("params") or {}
    uri = params.get("textDocument", {}).get("uri")
    result = None
    if method == "initialize":
        result = {"capabilities": {"documentSymbolProvider": True, "hoverProvider": True}}
        if "completes" in sys.argv:
            result["capabilities"]["completionProvider"] = {}
    elif method == "textDocument/didOpen":
        documents[uri] = params["textDocument"]["text"]
    elif method == "textDocument/didChange":
        documents[uri] = params["contentChanges"][0]["text"]
    elif method == "textDocument/documentSymbol":
        place = {"start": {"line": 0, "character": 0}, "end": {"line": 0, "character": 1}}
        words = documents[uri].split() + [str(os.getuid()), os.getcwd()]
        result = [{"name": w, "kind": 12, "location": {"uri": uri, "range": place}} for w in words]
    elif method == "textDocument/completion":
        result = [{"label": "word%d" % i, "kind": 6, "detail": "a word"} for i in range(100)]
    elif method == "textDocument/hover" and params["position"]["line"] == 1:
        os._exit(3)
    elif method == "exit":
        sys.exit()
    if "id" in message:
        send(jsonrpc="2.0", id=message["id"], result=result)
`

func checkLanguageServer(c *env) {
	sb := c.create()
	files := sb.FileSystem()
	c.try("write", files.WriteFile(c.ctx, "server.py", []byte(languageServer), 0))
	c.try("write", files.WriteFile(c.ctx, "project/a.txt", []byte("one two"), 0))
	server := sb.LSPServer("words", "project")
	_, err := server.DocumentSymbols(c.ctx, "a.txt")
	c.wantKind("symbols before the start", err, daytona.KindState)
	c.wantKind("start of what nobody knows", server.Start(c.ctx, nil), daytona.KindInvalid)
	c.wantKind("start of what is not there", server.Start(c.ctx, &daytona.LSPOptions{Command: []string{"no-such-program"}}), daytona.KindNotFound)

	dir := sb.Info().WorkDir
	c.try("start", server.Start(c.ctx, &daytona.LSPOptions{Command: []string{"python3", dir + "/server.py"}}))
	uid := strings.TrimSpace(c.sh(sb, "id -u"))
	symbols := func(want ...string) {
		c.Helper()
		list, err := server.DocumentSymbols(c.ctx, "a.txt")
		c.try("symbols", err)
		var got []string
		for _, s := range list {
			got = append(got, s.Name)
			equal(c, "path", s.Path(), dir+"/project/a.txt")
			equal(c, "kind", s.Kind.String(), "function")
		}
		equalList(c, "symbols", got, append(want, uid, dir+"/project"))
	}
	symbols("one", "two")
	c.try("write", files.WriteFile(c.ctx, "project/a.txt", []byte("three"), 0))
	symbols("three")
	c.try("change", server.DidChange(c.ctx, "a.txt", "four five"))
	_, err = server.Hover(c.ctx, "a.txt", daytona.Position{Line: 1})
	c.wantKind("what ends the server", err, daytona.KindUnavailable)
	symbols("four", "five")
	_, err = server.Completions(c.ctx, "a.txt", daytona.Position{})
	c.wantKind("what it cannot do", err, daytona.KindUnsupported)
	c.try("stop", server.Stop(c.ctx))
	if left := c.processesLike(sb, "server.py"); len(left) > 0 {
		c.Errorf("after its stop there is %q", left)
	}

	if c.sh(sb, "command -v pylsp || true") == "" {
		return
	}
	c.try("write", files.WriteFile(c.ctx, "project/a.py", []byte("import os\n\nos.getcw\n"), 0))
	server = sb.LSPServer("python", "project")
	c.try("start pylsp", server.Start(c.ctx, nil))
	c.eventually(time.Minute, "a real server completes", func() error {
		list, err := server.Completions(c.ctx, "a.py", daytona.Position{Line: 2, Character: 8})
		if err == nil && (len(list.Items) == 0 || !strings.HasPrefix(list.Items[0].Label, "getcwd")) {
			c.Errorf("completions %+v, want getcwd", list)
		}
		return err
	})
}
