package computeruse_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	_ "image/jpeg"
	_ "image/png"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jezek/xgb"
	"github.com/jezek/xgb/xproto"
	"github.com/jezek/xgb/xtest"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/computeruse"
	"github.com/daytona-go/daytona/toolbox/computeruse/display"
	"github.com/daytona-go/daytona/toolbox/environment"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/reexec"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// TestMain is the helper, too, as the agent's program is.
func TestMain(m *testing.M) {
	reexec.Main(os.Args[1:])
	os.Exit(m.Run())
}

// agent is the part of an agent that is about the desktop.
type agent struct {
	testing.TB
	url     string
	service *computeruse.Service
	env     *environment.Env
	spawner *process.Spawner
	dir     string
	vnc     int
	web     int
}

// want skips a test where a program that it drives is not installed.
func want(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

func newAgent(t testing.TB, vars map[string]string) *agent {
	t.Helper()
	return newAgentAs(t, account.Current(), vars)
}

func newAgentAs(t testing.TB, as *account.Account, vars map[string]string) *agent {
	t.Helper()
	// Not t.TempDir, whose parents are this user's alone.
	dir, err := os.MkdirTemp("", "desktop-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := &agent{TB: t, dir: dir, vnc: freePort(t), web: freePort(t)}
	web := filepath.Join(a.dir, "novnc")
	a.must(os.MkdirAll(filepath.Join(web, "core"), 0o755))
	a.must(os.WriteFile(filepath.Join(web, "core", "rfb.js"), []byte("export default class RFB {}\n"), 0o644))
	all := map[string]string{
		"PATH": os.Getenv("PATH"), "DISPLAY": freeDisplay(t), "VNC_RESOLUTION": "800x600", "VNC_PORT": strconv.Itoa(a.vnc), "NO_VNC_PORT": strconv.Itoa(a.web),
		"NO_VNC_DIR": web, "DAYTONA_RECORDINGS_DIR": filepath.Join(a.dir, "films"), "HOME": a.dir, "LANG": "C.UTF-8",
	}
	for name, value := range vars {
		all[name] = value
	}
	if as.UID != os.Getuid() {
		a.must(os.Chown(dir, as.UID, as.GID))
	}
	a.env, err = environment.New(all)
	a.must(err)
	logger := slog.New(slog.NewTextHandler(t.Output(), nil))
	a.spawner, err = process.NewSpawner(process.Options{Account: as, WorkDir: a.dir, Environ: a.env.Environ, Logger: logger})
	a.must(err)
	a.service = computeruse.New(computeruse.Options{Spawner: a.spawner, Env: a.env, Logger: logger})
	mux := http.NewServeMux()
	a.service.Register(mux)
	server := httptest.NewServer(mux)
	a.url = server.URL
	t.Cleanup(func() {
		a.service.Close()
		server.Close()
		a.spawner.Close()
	})
	return a
}

func (a *agent) must(err error) {
	a.Helper()
	if err != nil {
		a.Fatal(err)
	}
}

// freeDisplay is one that nobody has.
func freeDisplay(t testing.TB) string {
	for n := 60 + os.Getpid()%500; n < 900; n++ {
		_, lock := os.Lstat(display.Lock(n))
		_, socket := os.Lstat(display.Socket(n))
		if os.IsNotExist(lock) && os.IsNotExist(socket) {
			return fmt.Sprintf(":%d", n)
		}
	}
	t.Fatal("all displays are taken")
	return ""
}

func freePort(t testing.TB) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// call sends a request; body may be nil.
func (a *agent) call(method, path string, body any) (int, []byte) {
	a.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		data, err := json.Marshal(b)
		a.must(err)
		r = bytes.NewReader(data)
	}
	req, err := http.NewRequest(method, a.url+"/computeruse"+path, r)
	a.must(err)
	resp, err := http.DefaultClient.Do(req)
	a.must(err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	a.must(err)
	return resp.StatusCode, answer
}

// ok demands an answer of success.
func ok[T any](a *agent, method, path string, body any) (v T) {
	a.Helper()
	status, b := a.call(method, path, body)
	if status < 200 || status > 299 {
		a.Fatalf("%s %s: %d %s", method, path, status, b)
	}
	if len(b) > 0 {
		a.must(json.Unmarshal(b, &v))
	}
	return v
}

type empty = struct{}

// refused demands an error.
func (a *agent) refused(method, path string, body any, status int, code, part string) {
	a.Helper()
	got, b := a.call(method, path, body)
	var e wire.ErrorResponse
	if err := json.Unmarshal(b, &e); err != nil || got != status || e.StatusCode != status || !strings.Contains(e.Message, part) || e.Error == "" || code != "" && e.Code != code {
		a.Errorf("%s %s %v: %d %s, want %d %s with %q", method, path, body, got, b, status, code, part)
	}
}

func startDesktop(t testing.TB, vars map[string]string) *agent {
	t.Helper()
	want(t, "Xvfb", "icewm", "x11vnc", "dbus-daemon")
	a := newAgent(t, vars)
	ok[wire.DesktopChange](a, "POST", "/start", nil)
	return a
}

// app is a program on the desktop that writes lines to a file.
type app struct {
	a    *agent
	proc *process.Process
	log  string
	read int
}

func (a *agent) launch(args ...string) *app {
	a.Helper()
	p := &app{a: a, log: filepath.Join(a.dir, "log-"+strconv.FormatInt(time.Now().UnixNano(), 36))}
	errs, err := os.Create(p.log + "-stderr")
	a.must(err)
	defer errs.Close()
	p.proc, err = a.spawner.Start(&process.Spec{Args: append(args, p.log), Stderr: int(errs.Fd()), Stdout: int(errs.Fd())})
	a.must(err)
	a.Cleanup(func() {
		p.proc.KillTree()
		p.proc.Wait()
		if a.Failed() {
			b, _ := os.ReadFile(p.log + "-stderr")
			a.Logf("the program said: %s", b)
		}
	})
	return p
}

// says waits for the program to write a line, and returns the ones before it.
func (p *app) says(line string) []string {
	p.a.Helper()
	var lines []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(p.log)
		lines = strings.Split(string(b), "\n")
		if i := slices.Index(lines[p.read:len(lines)-1], line); i >= 0 {
			before := lines[p.read : p.read+i]
			p.read += i + 1
			return before
		}
	}
	p.a.Fatalf("the program has not said %q but %q", line, lines[p.read:])
	return nil
}

// picture takes a screenshot and returns it decoded.
func (a *agent) picture(path string) (image.Image, string) {
	a.Helper()
	s := ok[wire.Screenshot](a, "GET", path, nil)
	b, err := base64.StdEncoding.DecodeString(s.Screenshot)
	a.must(err)
	if s.SizeBytes != len(b) {
		a.Errorf("sizeBytes %d of %d", s.SizeBytes, len(b))
	}
	img, format, err := image.Decode(bytes.NewReader(b))
	a.must(err)
	return img, format
}

// shows waits for a pixel to have a colour.
func (a *agent) shows(x, y int, want color.RGBA) {
	a.Helper()
	var got color.RGBA
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		img, _ := a.picture(fmt.Sprintf("/screenshot/region?x=%d&y=%d&width=1&height=1", x, y))
		if got = color.RGBAModel.Convert(img.At(img.Bounds().Min.X, img.Bounds().Min.Y)).(color.RGBA); got == want {
			return
		}
	}
	a.Errorf("pixel %d,%d is %v, want %v", x, y, got, want)
}

// window waits for a window with a title.
func (a *agent) window(title string) wire.Window {
	a.Helper()
	var list wire.WindowList
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		list = ok[wire.WindowList](a, "GET", "/display/windows", nil)
		for _, w := range list.Windows {
			if w.Title == title && w.IsActive {
				return w
			}
		}
	}
	a.Fatalf("there is no active window %q but %+v", title, list)
	return wire.Window{}
}

// TestDrive drives a program with mouse and keyboard and looks at what it shows.
func TestDrive(t *testing.T) {
	want(t, "wish")
	a := startDesktop(t, nil)
	script, err := filepath.Abs("testdata/app.tcl")
	a.must(err)
	p := a.launch("wish", script)
	p.says("ready")
	w := a.window("Ünder test")
	at := func(x, y int) (int, int) { return w.X + x, w.Y + y }
	if w.Width != 400 || w.Height != 300 {
		t.Errorf("the window is %+v", w)
	}
	x, y := at(70, 70)
	a.shows(x, y, color.RGBA{255, 0, 0, 255})

	click := func(button string, double bool) {
		t.Helper()
		if got := ok[wire.Point](a, "POST", "/mouse/click", wire.MouseClickRequest{X: x, Y: y, Button: button, Double: double}); got != (wire.Point{X: x, Y: y}) {
			t.Errorf("click: %v", got)
		}
	}
	click("", false)
	p.says("left")
	a.shows(x, y, color.RGBA{0, 255, 0, 255})
	click("right", false)
	p.says("right")
	a.shows(x, y, color.RGBA{0, 0, 255, 255})
	click("middle", false)
	p.says("middle")
	click("left", true)
	p.says("double")

	x, y = at(210, 40)
	x2, y2 := at(370, 230)
	if got := ok[wire.Point](a, "POST", "/mouse/drag", wire.MouseDragRequest{StartX: x, StartY: y, EndX: x2, EndY: y2}); got != (wire.Point{X: x2, Y: y2}) {
		t.Errorf("drag: %v", got)
	}
	p.says("dragged")
	a.shows((x+x2)/2, (y+y2)/2, color.RGBA{0, 0, 0, 255})

	three := 3
	if got := ok[wire.ScrollResponse](a, "POST", "/mouse/scroll", wire.MouseScrollRequest{X: x, Y: y, Direction: "down", Amount: &three}); !got.Success {
		t.Error("scroll: no success")
	}
	for range 3 {
		if before := p.says("down"); len(before) > 0 {
			t.Errorf("scrolled %q", before)
		}
	}
	ok[wire.ScrollResponse](a, "POST", "/mouse/scroll", wire.MouseScrollRequest{X: x, Y: y, Direction: "up"})
	p.says("up")

	x, y = at(100, 280)
	ok[wire.Point](a, "POST", "/mouse/click", wire.MouseClickRequest{X: x, Y: y})
	for _, text := range []string{
		"hello, World! 1+1=2", `~!@#$%^&*()_+{}|:"<>?-=[]\;',./` + "`", "Grüße, naïve café", "Привет мир", "日本語テキスト", "€ ½ ™ → ∑ 😀",
		strings.Repeat("long enough ", 20) + "end",
		"Ελληνικά και Кириллица, עברית, العربية, हिन्दी, 漢字仮名交じり文の例です。", // more characters than there are spare keys
	} {
		if strings.Contains(text, "😀") && !tclHasEmoji {
			text = strings.ReplaceAll(text, " 😀", "")
		}
		ok[empty](a, "POST", "/keyboard/type", wire.KeyboardTypeRequest{Text: text + "\n"})
		p.says("text " + text)
	}
	begin := time.Now()
	ok[empty](a, "POST", "/keyboard/type", wire.KeyboardTypeRequest{Text: "slow", Delay: 100})
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("4 keys with 100 ms between them took %v", took)
	}
	ok[empty](a, "POST", "/keyboard/key", wire.KeyboardPressRequest{Key: "Enter"})
	p.says("text slow")
	ok[empty](a, "POST", "/keyboard/hotkey", wire.KeyboardHotkeyRequest{Keys: "ctrl+k"})
	p.says("ctrl+k")
	ok[empty](a, "POST", "/keyboard/key", wire.KeyboardPressRequest{Key: "f5"})
	p.says("f5")
	ok[empty](a, "POST", "/keyboard/key", wire.KeyboardPressRequest{Key: "a", Modifiers: []string{"Alt", "shift"}})
	p.says("alt+A")
	for _, key := range []string{"A", "b", "space", "?", "é", "5"} {
		ok[empty](a, "POST", "/keyboard/key", wire.KeyboardPressRequest{Key: key})
	}
	// With Caps Lock on, a text is still typed as it is.
	ok[empty](a, "POST", "/keyboard/key", wire.KeyboardPressRequest{Key: "capslock"})
	ok[empty](a, "POST", "/keyboard/type", wire.KeyboardTypeRequest{Text: "aBc9!\n"})
	ok[empty](a, "POST", "/keyboard/key", wire.KeyboardPressRequest{Key: "capslock"})
	p.says("text Ab ?é5aBc9!")
	// A key that is held for long, as when the machine is busy, is still one.
	number, err := display.Parse(a.env.Get("DISPLAY"))
	a.must(err)
	socket, err := net.Dial("unix", display.Socket(number))
	a.must(err)
	x11, err := xgb.NewConnNet(socket)
	a.must(err)
	defer x11.Close()
	a.must(xtest.Init(x11))
	const keyOfA = 38
	for _, kind := range []byte{xproto.KeyPress, xproto.KeyRelease} {
		a.must(xtest.FakeInputChecked(x11, kind, keyOfA, 0, 0, 0, 0, 0).Check())
		if kind == xproto.KeyPress {
			time.Sleep(1500 * time.Millisecond) // the server repeats keys after 660 ms
		}
	}
	ok[empty](a, "POST", "/keyboard/key", wire.KeyboardPressRequest{Key: "Return"})
	p.says("text a")
}

// tclHasEmoji: Tcl 8.6 has no characters beyond the basic plane.
const tclHasEmoji = false

func TestScreenshots(t *testing.T) {
	a := startDesktop(t, nil)
	d := ok[wire.DisplayList](a, "GET", "/display/info", nil)
	if len(d.Displays) != 1 || d.Displays[0] != (wire.Display{Rectangle: wire.Rectangle{Width: 800, Height: 600}, IsActive: true}) {
		t.Errorf("displays %+v", d)
	}
	for path, want := range map[string]struct {
		format string
		size   image.Point
	}{
		"/screenshot":                 {"png", image.Pt(800, 600)},
		"/screenshot?showCursor=true": {"png", image.Pt(800, 600)},
		"/screenshot/region?x=10&y=20&width=30&height=40":                       {"png", image.Pt(30, 40)},
		"/screenshot/compressed":                                                {"png", image.Pt(800, 600)},
		"/screenshot/compressed?format=jpeg&quality=50&scale=0.5":               {"jpeg", image.Pt(400, 300)},
		"/screenshot/region/compressed?x=0&y=0&width=5&height=5&scale=0.1":      {"png", image.Pt(1, 1)},
		"/screenshot/region/compressed?x=799&y=599&width=1&height=1":            {"png", image.Pt(1, 1)},
		"/screenshot/region/compressed?x=0&y=0&width=800&height=600&format=jpg": {"jpeg", image.Pt(800, 600)},
	} {
		img, format := a.picture(path)
		if format != want.format || img.Bounds().Size() != want.size {
			t.Errorf("%s: %s of %v, want %v", path, format, img.Bounds(), want)
		}
	}
	// The cursor is drawn where it is, and only when asked for.
	ok[wire.Point](a, "POST", "/mouse/move", wire.Point{X: 300, Y: 200})
	if at := ok[wire.Point](a, "GET", "/mouse/position", nil); at != (wire.Point{X: 300, Y: 200}) {
		t.Errorf("the mouse is at %v", at)
	}
	const around = "/screenshot/region?x=280&y=180&width=40&height=40"
	without, _ := a.picture(around)
	with, _ := a.picture(around + "&showCursor=true")
	differ := 0
	for y := range 40 {
		for x := range 40 {
			if without.At(x, y) != with.At(x, y) {
				differ++
			}
		}
	}
	if differ < 10 || differ > 800 {
		t.Errorf("%d of 1600 pixels differ where the cursor is", differ)
	}
	s := ok[wire.Screenshot](a, "GET", around, nil)
	if s.CursorPosition == nil || *s.CursorPosition != (wire.Point{X: 300, Y: 200}) {
		t.Errorf("cursorPosition %v", s.CursorPosition)
	}
	for _, bad := range []string{
		"/screenshot?showCursor=perhaps", "/screenshot/region", "/screenshot/region?x=0&y=0&width=801&height=1", "/screenshot/region?x=-1&y=0&width=1&height=1",
		"/screenshot/region?x=0&y=0&width=0&height=1", "/screenshot/region?x=9223372036854775807&y=0&width=9223372036854775807&height=1", "/screenshot/region?x=a&y=0&width=1&height=1",
		"/screenshot/compressed?format=gif", "/screenshot/compressed?quality=0", "/screenshot/compressed?quality=101", "/screenshot/compressed?scale=0.05",
		"/screenshot/compressed?scale=NaN", "/screenshot/compressed?scale=1.01",
	} {
		a.refused("GET", bad, nil, 400, "BAD_REQUEST", "bad request: ")
	}
}

// TestRefusedInput demands that wrong input is refused and says what is wrong.
func TestRefusedInput(t *testing.T) {
	a := startDesktop(t, nil)
	for _, c := range []struct{ path, body, part string }{
		{"/mouse/move", `{"x":800,"y":0}`, "800 x 600"}, {"/mouse/move", `{"x":-1}`, "not on the screen"}, {"/mouse/click", `{"button":"fourth"}`, "left, right and middle"},
		{"/mouse/drag", `{"endX":5000}`, "not on the screen"}, {"/mouse/drag", `{"button":"x"}`, "left, right and middle"},
		{"/mouse/scroll", `{"direction":"left"}`, "up and down"}, {"/mouse/scroll", `{"direction":"up","amount":-1}`, "amount"}, {"/mouse/scroll", `{"direction":"up","amount":1000000}`, "amount"},
		{"/keyboard/type", `{"text":"a\u0000b"}`, "no key types"}, {"/keyboard/type", `{"text":"a","delay":-1}`, "delay"}, {"/keyboard/type", `{"text":"` + strings.Repeat("x", 70000) + `"}`, "write a file"},
		{"/keyboard/type", `{"text":"` + strings.Repeat("x", 7000) + `","delay":9999}`, "longer"},
		{"/keyboard/key", `{}`, "key is required"}, {"/keyboard/key", `{"key":"Nope"}`, "Page_Up"}, {"/keyboard/key", `{"key":"a","modifiers":["b"]}`, "modifier"},
		{"/keyboard/hotkey", `{"keys":""}`, "ctrl+c"}, {"/keyboard/hotkey", `{"keys":"a+b+c+d+e+f+g+h+i"}`, "at once"}, {"/keyboard/hotkey", `{"keys":"ctrl+"}`, "ctrl+c"},
	} {
		a.refused("POST", c.path, c.body, 400, "BAD_REQUEST", c.part)
	}
	for _, path := range []string{"/mouse/move", "/keyboard/type", "/a11y/find"} {
		a.refused("POST", path, `{"x":`, 400, "INVALID_REQUEST_BODY", "invalid body request: ")
	}
	a.refused("POST", "/keyboard/type", `{"text":"`+strings.Repeat("x", 2<<20)+`"}`, 413, "INVALID_REQUEST_BODY", "longer than")
	// Nothing of that has kept a key or a button pressed.
	ok[wire.Point](a, "POST", "/mouse/click", wire.MouseClickRequest{X: 10, Y: 10})
}

// TestLife starts, kills, restarts and stops the desktop's programs.
func TestLife(t *testing.T) {
	want(t, "Xvfb", "icewm", "x11vnc", "dbus-daemon")
	a := newAgent(t, nil)
	where := a.env.Get("DISPLAY")
	status := func() string { return ok[wire.DesktopStatus](a, "GET", "/process-status", nil).Status }
	if s := status(); s != "inactive" {
		t.Errorf("before the start: %s", s)
	}
	a.refused("GET", "/screenshot", nil, 503, "DESKTOP_NOT_RUNNING", "start it")
	a.refused("POST", "/process/xvfb/restart", nil, 503, "DESKTOP_NOT_RUNNING", "start it")
	a.refused("GET", "/process/nope/logs", nil, 404, "NOT_FOUND", "xvfb, dbus, xfce4, x11vnc, novnc")
	if s := ok[wire.DesktopProcessStatus](a, "GET", "/process/xvfb/status", nil); s.Running || s.ProcessName != "xvfb" {
		t.Errorf("before the start: %+v", s)
	}
	if c := ok[wire.DesktopChange](a, "POST", "/stop", nil); len(c.Status) != 0 {
		t.Errorf("stopped before the start: %+v", c)
	}

	started := ok[wire.DesktopChange](a, "POST", "/start", nil)
	priority := 0
	for _, name := range []string{"xvfb", "dbus", "xfce4", "x11vnc", "novnc"} {
		p := started.Status[name]
		if !p.Running || p.PID == 0 || !p.AutoRestart || p.Priority <= priority {
			t.Errorf("%s: %+v", name, p)
		}
		priority = p.Priority
	}
	if s := status(); s != "active" {
		t.Errorf("after the start: %s (%+v)", s, started)
	}
	// Again is no error, and changes nothing.
	again := ok[wire.DesktopChange](a, "POST", "/start", nil)
	if again.Status["xvfb"].PID != started.Status["xvfb"].PID {
		t.Errorf("a second start made another X server")
	}
	// Programs know where the desktop is.
	if bus := a.env.Get("DBUS_SESSION_BUS_ADDRESS"); !strings.HasPrefix(bus, "unix:path=") {
		t.Errorf("programs are told of the bus %q", bus)
	}

	// VNC answers, and so does noVNC, on this machine only.
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", a.vnc))
	a.must(err)
	hello := make([]byte, 12)
	_, err = io.ReadFull(conn, hello)
	conn.Close()
	if err != nil || !strings.HasPrefix(string(hello), "RFB 003.") {
		t.Errorf("the VNC server said %q, %v", hello, err)
	}
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/vnc.html", a.web))
	a.must(err)
	page, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 || !bytes.Contains(page, []byte("<title>Desktop")) {
		t.Errorf("noVNC: %s %s", resp.Status, page)
	}

	// What dies comes back.
	running := func(name string, not int) int {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if p := ok[wire.DesktopChange](a, "POST", "/start", nil).Status[name]; p.Running && p.PID != not {
				return p.PID
			}
		}
		t.Fatalf("%s does not come back", name)
		return 0
	}
	for _, name := range []string{"x11vnc", "xfce4", "novnc", "dbus", "xvfb"} {
		pid := running(name, 0)
		a.must(kill(pid))
		running(name, pid)
	}
	for _, name := range []string{"x11vnc", "xvfb"} {
		pid := running(name, 0)
		if got := ok[wire.DesktopProcessRestart](a, "POST", "/process/"+name+"/restart", nil); got.ProcessName != name || got.Message == "" {
			t.Errorf("restart: %+v", got)
		}
		running(name, pid)
	}
	for deadline := time.Now().Add(20 * time.Second); status() != "active"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the desktop is %s", status())
		}
	}
	if e := ok[wire.DesktopProcessErrors](a, "GET", "/process/xvfb/errors", nil); !strings.Contains(e.Errors, "SIGKILL") {
		t.Errorf("the X server's errors do not tell of its end: %+v", e)
	}
	if l := ok[wire.DesktopProcessLogs](a, "GET", "/process/x11vnc/logs", nil); !strings.Contains(l.Logs, "PORT=") {
		t.Errorf("the VNC server's logs: %+v", l)
	}
	ok[wire.Screenshot](a, "GET", "/screenshot", nil)

	stopped := ok[wire.DesktopChange](a, "POST", "/stop", nil)
	for name, p := range stopped.Status {
		if p.Running {
			t.Errorf("%s runs on", name)
		}
	}
	if s := status(); s != "inactive" {
		t.Errorf("after the stop: %s", s)
	}
	if a.env.Get("DBUS_SESSION_BUS_ADDRESS") != "" || a.env.Get("DISPLAY") != where {
		t.Errorf("the environment after the stop: %q", a.env.Environ())
	}
	n, err := display.Parse(where)
	a.must(err)
	if _, err := os.Lstat(display.Socket(n)); !os.IsNotExist(err) {
		t.Errorf("the X server's socket: %v", err)
	}
	// What a killed X server left is no hindrance: here its lock names a process
	// that lives.
	a.must(os.WriteFile(display.Lock(n), fmt.Appendf(nil, "%10d\n", os.Getpid()), 0o444))
	ok[wire.DesktopChange](a, "POST", "/start", nil)
	ok[wire.Screenshot](a, "GET", "/screenshot", nil)
}
