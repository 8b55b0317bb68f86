package lsp_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// behaviour is the variable that makes this test's binary a language server.
const behaviour = "DAYTONA_TEST_LSP_BEHAVIOUR"

func TestMain(m *testing.M) {
	if how := os.Getenv(behaviour); how != "" {
		serve(how)
		return
	}
	os.Exit(m.Run())
}

type message struct {
	ID     any             `json:"id,omitempty"`
	Method string          `json:"method,omitempty"`
	Params json.RawMessage `json:"params,omitempty"`
	Result any             `json:"result,omitempty"`
}

func send(v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	fmt.Printf("Content-Length: %d\r\n\r\n%s", len(b), b)
}

func receive(r *bufio.Reader) (m message) {
	length := 0
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			os.Exit(0)
		}
		if line == "\r\n" {
			break
		}
		if n, ok := strings.CutPrefix(line, "Content-Length: "); ok {
			length, _ = strconv.Atoi(strings.TrimSpace(n))
		}
	}
	b := make([]byte, length)
	if _, err := io.ReadFull(r, b); err != nil {
		os.Exit(0)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		panic(err)
	}
	return m
}

// serve is a server whose symbols of a workspace are the open documents, with
// their texts and versions, and that does what its hover's line says.
func serve(how string) {
	if text, ok := strings.CutPrefix(how, "say:"); ok { // and no more than that
		fmt.Fprint(os.Stderr, "I was told so\n")
		fmt.Print(text)
		os.Exit(7)
	}
	if how == "sleep" {
		time.Sleep(time.Hour)
	}
	r := bufio.NewReader(os.Stdin)
	type document struct {
		Text    string
		Version int
	}
	documents := map[string]document{}
	watched := 0
	for {
		m := receive(r)
		var p struct {
			TextDocument struct {
				URI     string
				Text    string
				Version int
			}
			ContentChanges []struct{ Text string }
			Position       struct{ Line int }
			Changes        []struct {
				URI  string
				Type int
			}
			Command string
		}
		_ = json.Unmarshal(m.Params, &p)
		uri := p.TextDocument.URI
		publish := func(text string) {
			send(object{"method": "textDocument/publishDiagnostics", "params": object{"uri": uri, "version": p.TextDocument.Version,
				"diagnostics": []object{{"range": span(0, 0, 0, 1), "severity": 2, "code": 17, "message": "text is " + text}}}})
		}
		switch m.Method {
		case "initialize":
			if how == "mute" {
				continue
			}
			if how == "once" { // a marker in the project says that it has been
				if _, err := os.Stat("been"); err == nil {
					fmt.Fprintln(os.Stderr, "not again")
					os.Exit(9)
				}
				_ = os.WriteFile("been", nil, 0o644)
			}
			all := object{}
			for _, name := range []string{"hover", "completion", "documentSymbol", "workspaceSymbol", "definition", "references", "rename", "executeCommand"} {
				all[name+"Provider"] = true
			}
			all["codeActionProvider"] = object{"resolveProvider": true}
			if how == "poor" {
				all = object{"hoverProvider": false}
			}
			send(message{ID: m.ID, Result: object{"capabilities": all}})
		case "textDocument/didOpen":
			documents[uri] = document{p.TextDocument.Text, p.TextDocument.Version}
			if p.TextDocument.Text == "poison" {
				os.Exit(5)
			}
			if p.TextDocument.Text != "quiet" {
				publish(p.TextDocument.Text)
			}
		case "textDocument/didChange":
			documents[uri] = document{p.ContentChanges[0].Text, p.TextDocument.Version}
			publish(p.ContentChanges[0].Text)
		case "textDocument/didClose":
			delete(documents, uri)
		case "workspace/didChangeWatchedFiles":
			for _, c := range p.Changes {
				watched += c.Type
			}
		case "workspace/symbol":
			list := []object{}
			for _, uri := range slices.Sorted(maps.Keys(documents)) {
				d := documents[uri]
				list = append(list, object{"name": d.Text, "kind": d.Version, "location": object{"uri": uri, "range": span(0, 0, 0, watched)}})
			}
			send(message{ID: m.ID, Result: list})
		case "workspace/executeCommand":
			if p.Command == "edit" {
				send(message{ID: "e", Method: "workspace/applyEdit", Params: raw(object{"edit": object{"changes": object{"file:///x": []object{{"range": span(0, 0, 0, 0), "newText": "n"}}}}})})
				if reply := receive(r); string(raw(reply.Result)) != `{"applied":true}` {
					os.Exit(8)
				}
			}
			send(object{"id": m.ID, "result": nil})
		case "textDocument/codeAction":
			send(message{ID: m.ID, Result: []object{{"title": "lazy", "data": object{"deep": 1}}, {"title": "bare", "command": "c", "arguments": []int{1}}, {"title": "no", "disabled": object{"reason": "not now"}}}})
		case "codeAction/resolve":
			send(message{ID: m.ID, Result: object{"title": "lazy", "edit": object{"documentChanges": []any{
				object{"kind": "create", "uri": "file:///new"},
				object{"textDocument": object{"uri": "file:///new", "version": nil}, "edits": []object{{"range": span(0, 0, 0, 0), "newText": "new"}}},
				object{"kind": "rename", "oldUri": "file:///a", "newUri": "file:///b"}, object{"kind": "delete", "uri": "file:///c"},
			}}}})
		case "textDocument/hover":
			misbehave(p.Position.Line, m.ID)
		case "shutdown":
			send(object{"id": m.ID, "result": nil})
		case "exit":
			os.Exit(0)
		case "initialized", "$/cancelRequest", "textDocument/didSave":
		default:
			if m.ID != nil && m.Method != "" {
				send(object{"id": m.ID, "error": object{"code": -32000, "message": "no " + m.Method}})
			}
		}
	}
}

type object = map[string]any

func raw(v any) json.RawMessage { b, _ := json.Marshal(v); return b }

func span(a, b, c, d int) object {
	return object{"start": object{"line": a, "character": b}, "end": object{"line": c, "character": d}}
}

// What the line of a hover makes the server do.
const (
	fine = iota
	ignore
	hang
	deaf
	crash
	flood
	floodErrors
	tooLong
	tooShort
	huge
	negative
	twice
	noLength
	endless
	noise
	notJSON
	noMessage
	oddID
	deepNesting
	manyElements
	wrongID
	twoAnswers
	questions
	closeOutput
	leaveChild
	questionOddID
	behaviours
)

var behaviourNames = [...]string{"fine", "ignore", "hang", "deaf", "crash", "flood", "floodErrors", "tooLong", "tooShort", "huge", "negative", "twice", "noLength", "endless",
	"noise", "notJSON", "noMessage", "oddID", "deepNesting", "manyElements", "wrongID", "twoAnswers", "questions", "closeOutput", "leaveChild", "questionOddID"}

func misbehave(what int, id any) {
	answer := message{ID: id, Result: object{"contents": "fine"}}
	body, _ := json.Marshal(answer)
	frame := func(body string) { fmt.Printf("Content-Length: %d\r\n\r\n%s", len(body), body) }
	switch what {
	case ignore: // this one request
	case hang:
		time.Sleep(time.Hour)
	case deaf: // and says something all the time
		for {
			send(object{"method": "window/logMessage", "params": object{"message": "busy"}})
			time.Sleep(time.Millisecond)
		}
	case crash:
		fmt.Fprintln(os.Stderr, "\x1b[31mI crash\x1b[0m")
		os.Exit(3)
	case flood:
		big := strings.Repeat("x", 1<<20)
		for range 40 {
			send(object{"method": "window/logMessage", "params": object{"message": big}})
			send(object{"method": "textDocument/publishDiagnostics", "params": object{"uri": "file:///" + big, "diagnostics": []string{big}}})
		}
		send(answer)
	case floodErrors:
		big := strings.Repeat("y", 1<<20)
		for range 200 {
			fmt.Fprint(os.Stderr, big)
		}
		send(answer)
	case tooLong: // announced, not sent
		fmt.Printf("Content-Length: %d\r\n\r\n%s", len(body)+1000, body)
	case tooShort:
		fmt.Printf("Content-Length: %d\r\n\r\n%s", len(body)-2, body)
		fmt.Printf("Content-Length: %d\r\n\r\n%s", len(body), body)
	case huge:
		fmt.Printf("Content-Length: %d\r\n\r\n%s", 1<<30, body)
	case negative:
		fmt.Printf("Content-Length: -1\r\n\r\n%s", body)
	case twice:
		fmt.Printf("Content-Length: %d\r\nContent-Length: 5\r\n\r\n%s", len(body), body)
	case noLength:
		fmt.Printf("Content-Type: application/json\r\n\r\n%s", body)
	case endless:
		for {
			fmt.Print("X")
		}
	case noise:
		fmt.Print("nobody reads this\n")
		send(answer)
	case notJSON:
		frame("{]")
	case noMessage:
		frame(`{"jsonrpc":"2.0"}`)
	case oddID:
		frame(`{"jsonrpc":"2.0","id":{"a":1},"result":null}`)
	case deepNesting:
		frame(fmt.Sprintf(`{"id":%v,"result":{"contents":%s}}`, id, strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000)))
	case manyElements:
		frame(fmt.Sprintf(`{"id":%v,"result":{"contents":[%s""]}}`, id, strings.Repeat(`"",`, 2_000_000)))
	case wrongID:
		frame(`{"id":4711,"result":null}`)
		frame(`{"id":"x","result":[]}`)
		frame(`{"id":null,"error":{"code":1,"message":"which?"}}`)
		send(answer)
	case twoAnswers:
		send(answer)
		send(answer)
	case questions:
		for i := range 100_000 { // without ever reading
			send(object{"id": i, "method": "workspace/configuration", "params": object{"items": []object{{"section": strings.Repeat("a.", 1000)}}}})
		}
	case closeOutput:
		os.Stdout.Close()
		time.Sleep(time.Hour)
	case leaveChild:
		cmd := exec.Command("sleep", "3600.25")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		_ = cmd.Start()
		os.Exit(4)
	case questionOddID:
		frame(`{"id":-1,"method":"workspace/configuration","params":[]}`)
		frame(`{"id":"s","method":"workspace/configuration","params":{"items":null}}`)
		frame(`{"id":7,"method":"what/ever"}`)
		send(answer)
	default:
		send(answer)
	}
}
