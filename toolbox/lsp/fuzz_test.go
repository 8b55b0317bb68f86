package lsp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sourcegraph/jsonrpc2"
)

// FuzzFrame reads what a server might write. A frame has the length that it
// says; one that was read is read again from what it is written as; and where
// reading ends there was an end, or an error that says why.
func FuzzFrame(f *testing.F) {
	for _, s := range []string{
		"Content-Length: 2\r\n\r\n{}", "content-length:2\nContent-Type: x\n\n{}Content-Length: 1\r\n\r\n1", "Content-Length: -1\r\n\r\n", "Content-Length: 5\r\n\r\n{}",
		"Content-Length: 99999999999999999999\r\n\r\n", "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}", "\r\n", "x\n", strings.Repeat("a", 5000), "Content-Length: 0\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		const limit = 1 << 10
		r := bufio.NewReaderSize(bytes.NewReader(in), headerLimit)
		for {
			body, err := readFrame(r, limit)
			if err != nil {
				_, bad := errors.AsType[*frameError](err)
				if !bad && err != io.EOF && err != io.ErrUnexpectedEOF {
					t.Fatal(err)
				}
				return
			}
			if len(body) == 0 || len(body) > limit {
				t.Fatalf("a body of %d bytes", len(body))
			}
			again, err := readFrame(bufio.NewReaderSize(strings.NewReader(fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)), headerLimit), limit)
			if err != nil || !bytes.Equal(again, body) {
				t.Fatalf("%q: %q, %v", body, again, err)
			}
		}
	})
}

// FuzzConversation has a server say anything after it was asked something. The
// one who asked gets an answer or an error, and nothing is left behind.
func FuzzConversation(f *testing.F) {
	for _, s := range []string{
		`{"id":1,"result":{"a":[1,2]}}`, `{"id":1,"error":{"code":-32601,"message":"no"}}`, `{"id":1,"error":null,"result":null}`, `{"method":"textDocument/publishDiagnostics","params":{"uri":"file:///a","diagnostics":[]}}`,
		`{"id":"x","method":"workspace/configuration","params":{"items":[{"section":"a.b"}]}}`, `{"id":7,"method":"workspace/applyEdit","params":{"edit":{}}}`, `[{"id":1,"result":1}]`, `{"id":1.5,"result":1}`, `{"id":null,"method":"x"}`,
		`{"id":1,"result":1}` + "\x00" + `{"id":1,"result":2}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		serverIn, agentOut, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		agentIn, serverOut, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer serverIn.Close()
		c := &connection{logger: slog.New(slog.DiscardHandler), owed: make(chan *jsonrpc2.Response, owedLimit), done: make(chan struct{}),
			published: map[string]*published{"/a": {}}, news: make(chan struct{}), settings: json.RawMessage(`{"a":{"b":1}}`)}
		close(c.done)
		c.stream = newStream(agentOut, agentIn, time.Second)
		c.rpc = jsonrpc2.NewConn(context.Background(), c.stream, c, jsonrpc2.OnRecv(c.stream.received), jsonrpc2.SetLogger(silent{}))
		go c.answer()
		go io.Copy(io.Discard, serverIn)
		go func() {
			defer serverOut.Close()
			// Mostly well framed, for the rest would seldom be.
			for part := range bytes.SplitSeq(in, []byte{0}) {
				fmt.Fprintf(serverOut, "Content-Length: %d\r\n\r\n%s", len(part), part)
			}
		}()
		var raw json.RawMessage
		waiter, err := c.rpc.DispatchCall(context.Background(), "ask", nil, jsonrpc2.PickID(jsonrpc2.ID{Num: 1}))
		if err == nil {
			err = waiter.Wait(context.Background(), &raw)
		}
		if err == nil && !json.Valid(raw) {
			t.Fatalf("%q", raw)
		}
		<-c.rpc.DisconnectNotify()
		if c.kept < 0 || c.kept > diagnosticsBytes {
			t.Fatalf("%d bytes of diagnostics", c.kept)
		}
	})
}

// FuzzAnswers converts what may be in a server's answer. What comes of it is
// JSON, and no more than was allowed.
func FuzzAnswers(f *testing.F) {
	for _, s := range []string{
		`null`, `[]`, `{}`, `[{"name":"a","kind":5,"range":{"start":{"line":1,"character":2}},"children":[{"name":"b","location":{"uri":"file:///x"}}]}]`,
		`{"isIncomplete":true,"items":[{"label":"a","documentation":{"kind":"markdown","value":"v"},"textEdit":{"newText":".b"}}]}`,
		`{"contents":["a",{"language":"go","value":"b"}],"range":null}`, `{"contents":{"kind":"plaintext","value":"b"}}`, `[{"targetUri":"file:///x","targetSelectionRange":{"start":{},"end":{}}}]`,
		`{"changes":{"file:///a":[{"newText":"x"}]}}`, `{"documentChanges":[{"kind":"rename","oldUri":"a","newUri":"b"},{"textDocument":{"uri":"a"},"edits":[{}]}]}`,
		`[{"range":{},"severity":1,"code":{"value":"E1"},"message":"m"},{"code":1},{"code":"x"}]`, `{"title":"t","command":{"title":"t","command":"c","arguments":[1]},"edit":{"changes":null}}`, `{"title":"t","command":"c"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if !json.Valid(raw) {
			return // the envelope has been parsed
		}
		check := func(v any, err error, n int) {
			if err != nil {
				return
			}
			if _, err := json.Marshal(v); err != nil || n > elementLimit {
				t.Fatalf("%d elements: %v", n, err)
			}
		}
		s, err := symbols(raw, "file:///a")
		check(s, err, len(s))
		c, err := completions(raw)
		check(c, err, len(c.Items))
		d, _, err := diagnostics(raw)
		check(d, err, len(d))
		h, err := hover(raw)
		check(h, err, 0)
		l, err := locations(raw)
		check(l, err, len(l))
		e, err := textEdits(raw)
		check(e, err, len(e))
		budget := elementLimit
		if w, err := workspaceEdit(raw, &budget); err == nil {
			check(w, nil, len(w.Changes))
		}
		var a action
		if json.Unmarshal(raw, &a) == nil {
			if w, err := a.wire(&budget); err == nil {
				check(w, nil, 0)
			}
		}
	})
}
