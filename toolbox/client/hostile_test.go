package client_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/toolbox/client"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// answer is a handler that answers everything alike.
func answer(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		io.WriteString(w, body)
	}
}

func TestErrorMapping(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		kind   daytona.Kind
		text   string
	}{
		{400, `{"statusCode":400,"message":"bad command","code":"BAD_REQUEST"}`, daytona.KindInvalid, "bad command"},
		{401, `{"message":"who are you"}`, daytona.KindUnauthorized, "who are you"},
		{403, `{"message":"no"}`, daytona.KindForbidden, "no"},
		{404, `{"message":"not found: x","code":"NOT_FOUND"}`, daytona.KindNotFound, "not found: x"},
		{408, `{"message":"too slow","code":"PROCESS_EXECUTION_TIMEOUT"}`, daytona.KindTimeout, "too slow"},
		{409, `{"error":"taken"}`, daytona.KindConflict, "taken"},
		{410, `{"message":"over","code":"SESSION_ENDED"}`, daytona.KindGone, "over"},
		{422, `{"message":"cannot"}`, daytona.KindUnsupported, "cannot"},
		{429, `{"message":"slow down"}`, daytona.KindExhausted, "slow down"},
		{501, `{"message":"cannot","code":"NOT_SUPPORTED"}`, daytona.KindUnsupported, "cannot"},
		{502, `<html>bad gateway</html>`, daytona.KindUnavailable, "bad gateway"},
		{503, ``, daytona.KindUnavailable, "503 Service Unavailable"},
		{507, `{"message":"disk full","code":"NO_SPACE"}`, daytona.KindNoSpace, "disk full"},
		{500, `{"message":`, daytona.KindInternal, `{"message":`},
		{500, "\xff\xfe\x00", daytona.KindInternal, "�"},
		{302, ``, daytona.KindInternal, "302 Found"},
		{200, `{"exitCode":`, daytona.KindInternal, "malformed"},
		{200, `[]`, daytona.KindInternal, "malformed"},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			tb := serve(t, answer(c.status, "application/json", c.body), nil)
			_, err := tb.Process().Exec(t.Context(), "true", nil)
			wantKind(t, err, c.kind)
			if !strings.Contains(err.Error(), c.text) || !strings.HasPrefix(err.Error(), "run command: ") {
				t.Errorf("error %q lacks %q", err, c.text)
			}
		})
	}
}

func TestHeadersAndBaseURL(t *testing.T) {
	tb := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/toolbox/box/user-home-dir" || r.Host != "proxy.example" || r.Header.Get("Authorization") != "Bearer secret" ||
			r.Header.Get("X-Custom") != "yes" || r.Header.Get(wire.HeaderSDKVersion) == "" {
			t.Errorf("%s %s %v", r.Host, r.URL, r.Header)
		}
		io.WriteString(w, `{"dir":"/root"}`)
	}), &client.Options{BaseURL: "http://proxy.example/toolbox/box/", Token: "secret", Header: http.Header{"X-Custom": {"yes"}}})
	if dir, err := tb.HomeDir(t.Context()); dir != "/root" || err != nil {
		t.Errorf("HomeDir = %q, %v", dir, err)
	}
}

// endless answers with a body that never ends.
func endless(prefix, piece string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, prefix)
		block := bytes.Repeat([]byte(piece), 1<<16/len(piece))
		for {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}
}

func TestEndlessAnswersAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("moves hundreds of MiB")
	}
	tb := serve(t, endless(`{"exitCode":0,"result":"`, "x"), nil)
	_, err := tb.Process().Exec(t.Context(), "true", nil)
	wantKind(t, err, daytona.KindInvalid)
	list := serve(t, endless(`[`, " "), nil)
	_, err = list.FileSystem().ReadDir(t.Context(), ".")
	wantKind(t, err, daytona.KindInvalid)
}

func TestEndlessErrorsAreCheap(t *testing.T) {
	tb := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(500)
		endless("", "x")(w, r)
	}), nil)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := tb.FileSystem().Stat(t.Context(), "x")
	wantKind(t, err, daytona.KindInternal)
	if len(err.Error()) > 8<<10 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
	err = tb.Process().Command(t.Context(), "true").Run()
	wantKind(t, err, daytona.KindInternal)
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 16<<20 {
		t.Errorf("%d MiB were allocated", used>>20)
	}
}

func TestHostileDirectories(t *testing.T) {
	for _, body := range []string{
		`[{"name":"../up","mode":"-rw-r--r--","modifiedAt":"2026-01-02T03:04:05Z"}]`,
		`[{"name":"..","isDir":true,"mode":"drwxr-xr-x","modifiedAt":"2026-01-02T03:04:05Z"}]`,
		`[{"name":"a\u0000b","mode":"-rw-r--r--","modifiedAt":"2026-01-02T03:04:05Z"}]`,
		`[{"name":"","mode":"-rw-r--r--","modifiedAt":"2026-01-02T03:04:05Z"}]`,
		`[{"name":"a","mode":"drwxr-xr-x","isDir":false,"modifiedAt":"2026-01-02T03:04:05Z"}]`,
		`[{"name":"a","mode":"rubbish","modifiedAt":"2026-01-02T03:04:05Z"}]`,
		`[{"name":"a","mode":"-rw-r--r--","modifiedAt":"yesterday"}]`,
		`{"name":"a"}`, `null garbage`,
	} {
		tb := serve(t, answer(200, "application/json", body), nil)
		list, err := tb.FileSystem().ReadDir(t.Context(), "d")
		if err == nil {
			t.Errorf("%s gave %v", body, list)
			continue
		}
		wantKind(t, err, daytona.KindInternal)
	}
}

func TestTruncatedDownload(t *testing.T) {
	tb := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		io.WriteString(w, "not a thousand")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}), nil)
	ctx := t.Context()
	_, err := tb.FileSystem().ReadFile(ctx, "f")
	wantKind(t, err, daytona.KindUnavailable)
	var sink bytes.Buffer
	_, err = tb.FileSystem().Download(ctx, "f", &sink)
	wantKind(t, err, daytona.KindUnavailable)
	if p, ok := errors.AsType[*fs.PathError](err); !ok || p.Path != "f" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v: want a *fs.PathError with the cause", err)
	}
}

func TestHostileBulkDownload(t *testing.T) {
	each := func(_ string, r io.Reader, err error) error {
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, r)
		return err
	}
	const head = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n"
	for name, c := range map[string]struct {
		kind string
		body string
	}{
		"no multipart": {"text/plain", "hello"},
		"no parts":     {"multipart/form-data; boundary=b", "--b--\r\n"},
		"cut short":    {"multipart/form-data; boundary=b", head + "\r\nconte"},
		"wrong length": {"multipart/form-data; boundary=b", head + "Content-Length: 100\r\n\r\nshort\r\n--b--\r\n"},
		"other file":   {"multipart/form-data; boundary=b", strings.Replace(head, `"f"`, `"g"`, 1) + "\r\nx\r\n--b--\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			tb := serve(t, answer(200, c.kind, c.body), nil)
			if err := tb.FileSystem().DownloadFiles(t.Context(), []string{"f", "g"}, each); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestUploadRefusedEarly(t *testing.T) {
	tb := serve(t, answer(507, "application/json", `{"message":"disk full","code":"NO_SPACE"}`), nil)
	_, err := tb.FileSystem().Upload(t.Context(), "f", newStream(64<<20))
	wantKind(t, err, daytona.KindNoSpace)
	w, err := tb.FileSystem().Create(t.Context(), "f")
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(w, newStream(64<<20))
	wantKind(t, err, daytona.KindNoSpace)
	wantKind(t, w.Close(), daytona.KindNoSpace)
}

func TestDialErrors(t *testing.T) {
	stopped := &daytona.Error{Kind: daytona.KindState, Op: "connect", Subject: "box", Message: "the sandbox is stopped"}
	for _, c := range []struct {
		err  error
		kind daytona.Kind
	}{{stopped, daytona.KindState}, {errors.New("no route"), daytona.KindUnavailable}} {
		tb := client.New(func(context.Context) (net.Conn, error) { return nil, c.err }, nil)
		_, err := tb.HomeDir(t.Context())
		wantKind(t, err, c.kind)
		if !errors.Is(err, c.err) {
			t.Errorf("%v does not wrap %v", err, c.err)
		}
		_, err = tb.FileSystem().Stat(t.Context(), "f")
		wantKind(t, err, c.kind)
		if errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v claims that the file does not exist", err)
		}
		wantKind(t, tb.Process().Command(t.Context(), "true").Run(), c.kind)
		_, err = tb.DialPort(t.Context(), 80)
		wantKind(t, err, c.kind)
		_, err = tb.Dial(t.Context())
		wantKind(t, err, c.kind)
	}
}

func TestContextErrors(t *testing.T) {
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	tb := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	}), nil)
	for name, f := range map[string]func(ctx context.Context) error{
		"exec":    func(ctx context.Context) error { _, err := tb.Process().Exec(ctx, "x", nil); return err },
		"stat":    func(ctx context.Context) error { _, err := tb.FileSystem().Stat(ctx, "x"); return err },
		"command": func(ctx context.Context) error { return tb.Process().Command(ctx, "x").Run() },
		"port":    func(ctx context.Context) error { _, err := tb.DialPort(ctx, 80); return err },
		"pty":     func(ctx context.Context) error { _, err := tb.Process().ConnectPTY(ctx, "x"); return err },
		"upload": func(ctx context.Context) error {
			_, err := tb.FileSystem().Upload(ctx, "x", strings.NewReader("x"))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			defer cancel()
			if err := f(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, want the context's error", err)
			}
			ctx, cancel2 := context.WithCancel(t.Context())
			cancel2()
			if err := f(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("%v, want the context's error", err)
			}
		})
	}
}

func TestReconnect(t *testing.T) {
	socket := socketPath(t)
	started := make(chan string, 100)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started <- r.URL.Path
		io.WriteString(w, `{"dir":"/x","exitCode":0}`)
	})
	tb := client.New(dialer(socket), nil)
	for range 5 {
		stop := listen(t, socket, h)
		// Several at once, to fill the pool of connections.
		errs := make(chan error)
		for range 8 {
			go func() { _, err := tb.HomeDir(t.Context()); errs <- err }()
		}
		for range 8 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if _, err := tb.Process().Exec(t.Context(), "true", nil); err != nil {
			t.Error(err)
		}
		stop()
		_, err := tb.HomeDir(t.Context())
		wantKind(t, err, daytona.KindUnavailable)
	}
}

// A command is not repeated when a connection breaks under it, but it must not
// fail for a connection that was closed before.
func TestExecAfterRestart(t *testing.T) {
	socket := socketPath(t)
	tb := client.New(dialer(socket), nil)
	for range 50 {
		stop := listen(t, socket, answer(200, "application/json", `{"exitCode":0,"result":""}`))
		for range 2 {
			if _, err := tb.Process().Exec(t.Context(), "true", nil); err != nil {
				t.Error(err)
			}
		}
		stop()
	}
}

func TestConnectionLost(t *testing.T) {
	socket := socketPath(t)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	requests := make(chan string, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				requests <- req.URL.Path
			}
			c.Close()
		}
	}()
	tb := client.New(dialer(socket), nil)
	_, err = tb.Process().Exec(t.Context(), "true", nil)
	wantKind(t, err, daytona.KindUnavailable)
	wantKind(t, tb.Process().Command(t.Context(), "true").Run(), daytona.KindUnavailable)
	if n := len(requests); n != 2 {
		t.Errorf("%d requests were sent, want one for each command: a program must not start twice", n)
	}
}

// socketAgent serves one WebSocket.
func socketAgent(t *testing.T, f func(ctx context.Context, c *websocket.Conn)) daytona.Toolbox {
	return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			io.WriteString(w, `{"id":"1","command":"x"}`)
			return
		}
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{wire.ProtocolPTYExitControl}})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		f(r.Context(), c)
	}), nil)
}

func TestHostileCommands(t *testing.T) {
	frame := func(c *websocket.Conn, kind websocket.MessageType, b []byte) {
		c.Write(context.Background(), kind, b)
	}
	const binary, text = websocket.MessageBinary, websocket.MessageText
	for name, c := range map[string]struct {
		kind daytona.Kind
		f    func(c *websocket.Conn)
	}{
		"closes at once":    {daytona.KindUnavailable, func(c *websocket.Conn) { c.Close(websocket.StatusNormalClosure, "") }},
		"breaks":            {daytona.KindUnavailable, func(c *websocket.Conn) { c.CloseNow() }},
		"gives a reason":    {daytona.KindUnavailable, func(c *websocket.Conn) { c.Close(websocket.StatusInternalError, "tired") }},
		"garbage event":     {daytona.KindInternal, func(c *websocket.Conn) { frame(c, text, []byte("{{{")) }},
		"empty frame":       {daytona.KindInternal, func(c *websocket.Conn) { frame(c, binary, nil) }},
		"unknown stream":    {daytona.KindInternal, func(c *websocket.Conn) { frame(c, binary, []byte{7, 1, 2}) }},
		"oversized frame":   {daytona.KindUnavailable, func(c *websocket.Conn) { frame(c, binary, bytes.Repeat([]byte{1}, 8<<20)) }},
		"oversized event":   {daytona.KindInternal, func(c *websocket.Conn) { frame(c, text, bytes.Repeat([]byte("["), 512<<10)) }},
		"output but no end": {daytona.KindUnavailable, func(c *websocket.Conn) { frame(c, binary, []byte("\x01hello")) }},
	} {
		t.Run(name, func(t *testing.T) {
			tb := socketAgent(t, func(_ context.Context, ws *websocket.Conn) { c.f(ws) })
			cmd := tb.Process().Command(t.Context(), "x")
			err := cmd.Run()
			wantKind(t, err, c.kind)
			if cmd.PID() != 0 {
				t.Errorf("PID = %d", cmd.PID())
			}
		})
	}
}

func TestCommandWithoutExtension(t *testing.T) {
	for _, status := range []int{404, 405, 501} {
		tb := serve(t, answer(status, "application/json", `{"message":"no such route","code":"NOT_FOUND"}`), nil)
		err := tb.Process().Command(t.Context(), "x").Run()
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%d: %v, want errors.ErrUnsupported", status, err)
		}
	}
	tb := serve(t, answer(404, "application/json", `{"message":"x: not found","code":"COMMAND_START"}`), nil)
	wantKind(t, tb.Process().Command(t.Context(), "x").Run(), daytona.KindNotFound)
}

func TestCancelWithStuckWriter(t *testing.T) {
	tb := socketAgent(t, func(ctx context.Context, c *websocket.Conn) {
		c.Write(ctx, websocket.MessageText, []byte(`{"pid":42}`))
		c.Write(ctx, websocket.MessageBinary, []byte("\x01hello"))
		c.Read(ctx) // until the client goes away
	})
	ctx, cancel := context.WithCancel(t.Context())
	cmd := tb.Process().Command(ctx, "x")
	if _, err := cmd.StdoutPipe(); err != nil { // nobody reads it
		t.Fatal(err)
	}
	stdin, hold := io.Pipe() // nobody writes it
	defer hold.Close()
	cmd.Stdin = stdin
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if cmd.PID() != 42 {
		t.Errorf("PID = %d", cmd.PID())
	}
	cancel()
	start := time.Now()
	if err := cmd.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("Wait took %v after the cancellation", d)
	}
}

func TestPTYExit(t *testing.T) {
	for name, c := range map[string]struct {
		f    func(ctx context.Context, c *websocket.Conn)
		want daytona.ExitStatus
		kind daytona.Kind
	}{
		"close reason": {f: func(_ context.Context, c *websocket.Conn) {
			c.Close(websocket.StatusInternalError, `{"exitCode":137,"exitReason":"SIGKILL"}`)
		}, want: daytona.ExitStatus{ExitCode: 137, Signal: "SIGKILL"}},
		"clean": {f: func(_ context.Context, c *websocket.Conn) { c.Close(websocket.StatusNormalClosure, `{"exitCode":0}`) }},
		"control frame": {f: func(ctx context.Context, c *websocket.Conn) {
			c.Write(ctx, websocket.MessageText, []byte(`{"type":"control","status":"exited","exitCode":129,"exitReason":"signal 1"}`))
			c.Read(ctx)
		}, want: daytona.ExitStatus{ExitCode: 129, Signal: "SIGHUP"}},
		"lost": {f: func(_ context.Context, c *websocket.Conn) { c.CloseNow() }, want: daytona.ExitStatus{ExitCode: -1}, kind: daytona.KindUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			tb := socketAgent(t, func(ctx context.Context, ws *websocket.Conn) {
				ws.Write(ctx, websocket.MessageText, []byte(`{"type":"control","status":"connected"}`))
				ws.Write(ctx, websocket.MessageBinary, []byte("$ "))
				c.f(ctx, ws)
			})
			p, err := tb.Process().ConnectPTY(t.Context(), "p")
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			shown, err := io.ReadAll(p)
			if string(shown) != "$ " || daytona.KindOf(err) != c.kind {
				t.Errorf("read %q, %v", shown, err)
			}
			status, err := p.Wait(t.Context())
			if status != c.want || daytona.KindOf(err) != c.kind {
				t.Errorf("Wait = %+v, %v", status, err)
			}
		})
	}
}

func TestFollowEndsBadly(t *testing.T) {
	tb := socketAgent(t, func(ctx context.Context, c *websocket.Conn) {
		c.Write(ctx, websocket.MessageBinary, []byte("lost\x01\x01"))
		c.Write(ctx, websocket.MessageBinary, []byte("\x01out\x02"))
		c.Write(ctx, websocket.MessageBinary, []byte("\x02\x02err\x01"))
		c.Close(websocket.StatusInternalError, "cannot read the log")
	})
	s, err := tb.Process().Session(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Command(t.Context(), "1")
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	err = c.Follow(t.Context(), &out, &errs)
	wantKind(t, err, daytona.KindUnavailable)
	if out.String() != "out" || errs.String() != "err" || !strings.Contains(err.Error(), "cannot read the log") {
		t.Errorf("stdout %q, stderr %q, %v", out.String(), errs.String(), err)
	}
}

// echo is an agent's end of a port connection, to a server that echoes.
func echo(ctx context.Context, c *websocket.Conn) {
	for {
		_, b, err := c.Read(ctx)
		if err != nil {
			return
		}
		if len(b) == 0 {
			c.Write(ctx, websocket.MessageBinary, []byte("bye"))
			c.Write(ctx, websocket.MessageBinary, nil)
			c.Close(websocket.StatusNormalClosure, "")
			return
		}
		c.Write(ctx, websocket.MessageBinary, b)
	}
}

func TestPortConn(t *testing.T) {
	tb := socketAgent(t, echo)
	c, err := tb.DialPort(t.Context(), 8080)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 100)
	// A deadline interrupts a read and leaves the connection intact.
	c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := c.Read(buf); err == nil {
		t.Error("Read beyond the deadline")
	} else if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		t.Errorf("Read beyond the deadline: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf[:5]); err != nil || string(buf[:5]) != "hello" {
		t.Fatalf("read %q, %v", buf[:5], err)
	}
	big := make([]byte, 1<<20)
	go func() {
		c.Write(big)
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	rest, err := io.ReadAll(c)
	if err != nil || len(rest) != len(big)+3 || string(rest[len(big):]) != "bye" {
		t.Errorf("after half-close: %d bytes, %v", len(rest), err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(buf); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Read after Close: %v", err)
	}

	for _, port := range []int{0, -1, 65536} {
		_, err := tb.DialPort(t.Context(), port)
		wantKind(t, err, daytona.KindInvalid)
	}
	none := serve(t, answer(502, "application/json", `{"message":"nothing listens","code":"NOT_LISTENING"}`), nil)
	_, err = none.DialPort(t.Context(), 9)
	wantKind(t, err, daytona.KindUnavailable)
}

func TestInvalidArguments(t *testing.T) {
	tb := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Errorf("request %s", r.URL) }), nil)
	ctx, p := t.Context(), tb.Process()
	drop := func(_ any, err error) error { return err }
	for name, err := range map[string]error{
		"exec timeout": drop(p.Exec(ctx, "x", &daytona.ExecOptions{Timeout: -1})),
		"no program":   drop(p.StartCommand(ctx, daytona.CommandSpec{})),
		"tty size":     drop(p.StartCommand(ctx, daytona.CommandSpec{Args: []string{"x"}, TTY: &daytona.TTYSize{}})),
		"timeout":      drop(p.StartCommand(ctx, daytona.CommandSpec{Args: []string{"x"}, Timeout: -1})),
		"huge":         drop(p.StartCommand(ctx, daytona.CommandSpec{Args: []string{"x", strings.Repeat("x", 1<<20)}})),
		"session id":   drop(p.Session(ctx, "..")),
		"pty id":       drop(p.ConnectPTY(ctx, "")),
		"pty size":     drop(p.CreatePTY(ctx, daytona.PTYOptions{Size: daytona.TTYSize{Cols: 1001, Rows: 1}})),
	} {
		t.Run(name, func(t *testing.T) { wantKind(t, err, daytona.KindInvalid) })
	}
}
