package client_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// peer is a language client without anything: what the agent's is measured
// with.
type peer struct {
	b  *testing.B
	w  io.Writer
	r  *bufio.Reader
	id int
}

func newPeer(b *testing.B, argv []string, dir string) *peer {
	b.Helper()
	program := argv[0]
	if p := filepath.Join(os.Getenv(languageServers), program); os.Getenv(languageServers) != "" {
		program = p
	}
	cmd := exec.Command(program, argv[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+serverPath(), "GOFLAGS=-mod=mod", "GOPROXY=off")
	w, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	r, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		w.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	p := &peer{b: b, w: w, r: bufio.NewReader(r)}
	p.call("initialize", fmt.Sprintf(`{"processId":null,"rootUri":"file://%s","rootPath":%q,"workspaceFolders":[{"uri":"file://%s","name":"p"}],"capabilities":{"workspace":{"configuration":true}}}`, dir, dir, dir))
	p.send(`{"jsonrpc":"2.0","method":"initialized","params":{}}`)
	return p
}

func (p *peer) send(message string) {
	if _, err := fmt.Fprintf(p.w, "Content-Length: %d\r\n\r\n%s", len(message), message); err != nil {
		p.b.Fatal(err)
	}
}

func (p *peer) open(path, language, text string) {
	b, _ := json.Marshal(text)
	p.send(fmt.Sprintf(`{"jsonrpc":"2.0","method":"textDocument/didOpen","params":{"textDocument":{"uri":"file://%s","languageId":%q,"version":1,"text":%s}}}`, path, language, b))
}

// call asks, and answers what it is asked meanwhile.
func (p *peer) call(method, params string) []byte {
	p.id++
	p.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%d,"method":%q,"params":%s}`, p.id, method, params))
	for {
		length := 0
		for {
			line, err := p.r.ReadString('\n')
			if err != nil {
				p.b.Fatal(err)
			}
			if line == "\r\n" {
				break
			}
			if n, ok := strings.CutPrefix(line, "Content-Length: "); ok {
				length, _ = strconv.Atoi(strings.TrimSpace(n))
			}
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(p.r, body); err != nil {
			p.b.Fatal(err)
		}
		var m struct {
			ID     json.RawMessage
			Method string
			Error  json.RawMessage
			Params struct{ Items []any }
		}
		if err := json.Unmarshal(body, &m); err != nil {
			p.b.Fatal(err)
		}
		switch {
		case m.Method != "" && m.ID != nil:
			result := "null"
			if m.Method == "workspace/configuration" {
				result = "[" + strings.TrimSuffix(strings.Repeat("{},", len(m.Params.Items)), ",") + "]"
			}
			p.send(fmt.Sprintf(`{"jsonrpc":"2.0","id":%s,"result":%s}`, m.ID, result))
		case m.Method == "" && bytes.Equal(m.ID, []byte(strconv.Itoa(p.id))):
			if m.Error != nil {
				p.b.Fatalf("%s", body)
			}
			return body
		}
	}
}
