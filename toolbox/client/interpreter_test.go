package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// saying is an agent that says the same to every run, and then closes.
func saying(t *testing.T, code websocket.StatusCode, reason string, messages ...string) daytona.Interpreter {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+wire.InterpreterPath, func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		if _, _, err := conn.Read(r.Context()); err != nil {
			return
		}
		for _, m := range messages {
			if conn.Write(r.Context(), websocket.MessageText, []byte(m)) != nil {
				return
			}
		}
		if code != 0 {
			conn.Close(code, reason)
		}
	})
	return serve(t, mux, nil).Interpreter()
}

// What agents of all kinds answer becomes a result or a typed error.
func TestInterpreterAnswers(t *testing.T) {
	many := strings.Repeat("{},", 200_000) + "{}"
	forms := "{" + strings.Repeat(`"a":"","b":"",`, 100) + `"c":""}`
	for name, c := range map[string]struct {
		code     websocket.StatusCode
		reason   string
		messages []string
		kind     daytona.Kind
		stdout   string
	}{
		"no control message":   {1000, "", []string{`{"type":"stdout","text":"o"}`}, "", "o"},
		"a control message":    {0, "", []string{`{"type":"stdout","text":"o"}`, `{"type":"control","text":"completed"}`}, "", "o"},
		"types to come":        {1000, "", []string{`{"type":"later","text":1.5}`}, daytona.KindInternal, ""},
		"unknown type":         {1000, "", []string{`{"type":"later","x":{}}`, `{"type":"stdout","text":"o"}`}, "", "o"},
		"timeout":              {4008, "execution timed out", []string{`{"type":"stdout","text":"o"}`}, daytona.KindTimeout, "o"},
		"unknown context":      {1008, "context not found", nil, daytona.KindNotFound, ""},
		"refused":              {1008, "no", nil, daytona.KindInvalid, ""},
		"refused with a code":  {1008, "no", []string{`{"type":"refused","name":"TOO_MANY_REQUESTS","text":"busy"}`}, daytona.KindExhausted, ""},
		"not started":          {1011, "no", []string{`{"type":"refused","name":"COMMAND_START","text":"no python3"}`}, daytona.KindInvalid, ""},
		"failed":               {1011, "no", nil, daytona.KindUnavailable, ""},
		"not JSON":             {1000, "", []string{`{`}, daytona.KindInternal, ""},
		"data that is none":    {1000, "", []string{`{"type":"result","data":[1]}`}, daytona.KindInternal, ""},
		"data of another type": {1000, "", []string{`{"type":"result","data":{"text/plain":1}}`}, daytona.KindInternal, ""},
		"too many forms":       {1000, "", []string{`{"type":"result","data":{"x":"` + strings.Repeat("y", 100) + `"}}`, `{"type":"result","data":` + manyForms() + `}`}, daytona.KindInternal, ""},
		"the same form often":  {1000, "", []string{`{"type":"result","data":` + forms + `}`}, "", ""},
		"a chart that is none": {1000, "", []string{`{"type":"chart","chart":1}`}, daytona.KindInternal, ""},
		"a chart of too much":  {1000, "", []string{`{"type":"chart","chart":{"elements":[` + many + `]}}`}, daytona.KindInternal, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := saying(t, c.code, c.reason, c.messages...).Run(t.Context(), "code", nil)
			if c.kind == "" && err != nil || c.kind != "" && daytona.KindOf(err) != c.kind || r.Stdout != c.stdout {
				t.Errorf("%+v, %v, want kind %q", r, err, c.kind)
			}
			if e, ok := errors.AsType[*daytona.Error](err); err != nil && (!ok || e.Op == "") {
				t.Errorf("%T %v", err, err)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := saying(t, 0, "").Run(ctx, "code", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func manyForms() string {
	m := map[string]string{}
	for i := range 100 {
		m[strings.Repeat("f", i)] = ""
	}
	b, _ := json.Marshal(m)
	return string(b)
}
