package computeruse

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/toolbox/computeruse/display"
	"github.com/daytona-go/daytona/toolbox/process"
	"github.com/daytona-go/daytona/toolbox/wire"
)

const (
	// A program that ends is started again after the first of these pauses, and
	// after twice as long each time until the second, as long as it does not live
	// for steady.
	pauseFirst = 100 * time.Millisecond
	pauseLast  = 30 * time.Second
	steady     = 10 * time.Second
	// stopGrace is between SIGTERM and SIGKILL.
	stopGrace = 2 * time.Second
	// keptOutput of a program, each of standard output and error, in bytes.
	keptOutput = 64 << 10
)

// names of the programs on the wire, in the order of their start. Clients know
// the window manager, whichever it is, as xfce4.
var names = []string{"xvfb", "dbus", "xfce4", "x11vnc", "novnc"}

// managers are the sessions and window managers that are looked for, first come
// first served: those that an image has on purpose before the light ones. When a
// session ends, so does all that it started; programs started from the menu of a
// window manager do not end with that.
var managers = []struct {
	args    []string
	session bool
}{
	{[]string{"startxfce4"}, true}, {[]string{"mate-session"}, true}, {[]string{"lxqt-session"}, true}, {[]string{"startlxde"}, true},
	{[]string{"icewm", "--replace"}, false}, {[]string{"openbox", "--replace"}, false}, {[]string{"xfwm4", "--replace"}, false},
	{[]string{"metacity", "--replace"}, false}, {[]string{"fluxbox"}, false}, {[]string{"jwm"}, false}, {[]string{"twm"}, false},
}

// programs are what makes up a desktop.
type programs struct{ list []*managed }

func (p *programs) find(name string) *managed {
	for _, m := range p.list {
		if m.name == name {
			return m
		}
	}
	return nil
}

func (p *programs) states() map[string]wire.DesktopProcess {
	states := map[string]wire.DesktopProcess{}
	for _, m := range p.list {
		states[m.name] = m.state()
	}
	return states
}

// missing are the programs that the sandbox does not have.
func (p *programs) missing() []string {
	var list []string
	for _, m := range p.list {
		if m.missing != "" {
			list = append(list, m.missing)
		}
	}
	return list
}

func (p *programs) start() {
	for _, m := range p.list {
		if m.missing == "" {
			m.supervise()
		}
	}
}

// stop ends the programs: the X server when those that need it have had their
// time.
func (p *programs) stop() {
	var wg sync.WaitGroup
	for _, m := range p.list[1:] {
		wg.Go(m.stop)
	}
	wg.Wait()
	p.list[0].stop()
}

// gate is open at times.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed while the gate is open
}

func newGate() *gate { return &gate{open: make(chan struct{})} }

func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.open:
		if !open {
			g.open = make(chan struct{})
		}
	default:
		if open {
			close(g.open)
		}
	}
}

// wait returns when the gate is open, or when whoever is to open it has been
// given up.
func (g *gate) wait(ctx context.Context, by *managed) error {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	var failed <-chan struct{}
	if by != nil {
		failed = by.failed
	}
	select {
	case <-open:
		return nil
	case <-failed:
		return errors.New("it ended at once, several times")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ring keeps the last bytes written to it.
type ring struct {
	mu  sync.Mutex
	buf []byte
}

func (b *ring) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, p...)
	// Twice the size, for not every line to move the rest.
	if over := len(b.buf) - keptOutput; over > keptOutput {
		b.buf = append(b.buf[:0], b.buf[over:]...)
	}
	return len(p), nil
}

func (b *ring) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := b.buf[max(0, len(b.buf)-keptOutput):]
	return strings.ToValidUTF8(string(kept), "�")
}

// managed is a program that is kept running.
type managed struct {
	name     string
	priority int
	spawner  *process.Spawner
	logger   *slog.Logger
	spec     func() (*process.Spec, error)
	// after, if not nil, must be open for it to be started.
	after *gate
	// ready, if not nil, is opened when the program writes to its
	// descriptor 3, and shut when it ends.
	ready *gate
	// leaves says that what it started lives on when it ends by itself.
	leaves bool
	// missing says what the sandbox lacks for it; it is not started then.
	missing string

	stdout, stderr ring
	// failed is closed when it has ended several times at once.
	failed   chan struct{}
	failOnce sync.Once

	// asked says that its end has been asked for.
	asked atomic.Bool
	// kick holds a wish that it be started without a pause.
	kick chan struct{}

	mu      sync.Mutex
	proc    *process.Process
	started chan struct{} // closed when proc has been set, and made anew when it ends
	gone    chan struct{} // closed when proc has ended
	cancel  context.CancelFunc
	done    chan struct{}
}

func (m *managed) state() wire.DesktopProcess {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := wire.DesktopProcess{Priority: m.priority, AutoRestart: true}
	if m.proc != nil {
		st.Running, st.PID = true, m.proc.PID()
	}
	return st
}

// tail is the end of what it said last.
func (m *managed) tail() string {
	said := strings.TrimSpace(m.stderr.text())
	return said[max(0, len(said)-500):]
}

// supervise starts the program, and starts it again whenever it ends, until
// stop.
func (m *managed) supervise() {
	ctx, cancel := context.WithCancel(context.Background())
	m.mu.Lock()
	m.cancel, m.done, m.started = cancel, make(chan struct{}), make(chan struct{})
	m.mu.Unlock()
	go func() {
		defer close(m.done)
		m.loop(ctx)
	}()
}

func (m *managed) loop(ctx context.Context) {
	// One pipe for all its lives: what it has started may outlive it, and must
	// not die of its next line of output.
	out, err := newSink(&m.stdout)
	if err == nil {
		defer out.close()
		var errs *sink
		if errs, err = newSink(&m.stderr); err == nil {
			defer errs.close()
			pause := pauseFirst
			for quick := 0; ; {
				if m.after != nil && m.after.wait(ctx, nil) != nil {
					return
				}
				begin := time.Now()
				m.once(ctx, out, errs)
				if ctx.Err() != nil {
					return
				}
				if time.Since(begin) > steady {
					pause, quick = pauseFirst, 0
				}
				if quick++; quick == 3 {
					m.failOnce.Do(func() { close(m.failed) })
				}
				t := time.NewTimer(pause)
				select {
				case <-t.C:
					pause = min(2*pause, pauseLast)
				case <-m.kick:
					t.Stop()
					pause, quick = pauseFirst, 0
				case <-ctx.Done():
					t.Stop()
					return
				}
			}
		}
	}
	m.logger.Error("a program of the desktop cannot be started", "name", m.name, "error", err)
	fmt.Fprintln(&m.stderr, err)
}

// once runs the program until it ends.
func (m *managed) once(ctx context.Context, out, errs *sink) {
	spec, err := m.spec()
	var told *os.File
	if err == nil {
		spec.Stdout, spec.Stderr = int(out.w.Fd()), int(errs.w.Fd())
		var tell *os.File
		if m.ready != nil {
			if told, tell, err = os.Pipe(); err == nil {
				defer told.Close()
				spec.ExtraFD = int(tell.Fd())
			}
		}
		if err == nil {
			var p *process.Process
			p, err = m.spawner.Start(spec)
			if tell != nil {
				tell.Close()
			}
			if err == nil {
				m.live(ctx, p, told)
				return
			}
		}
	}
	m.logger.Warn("a program of the desktop was not started", "name", m.name, "error", err)
	fmt.Fprintln(&m.stderr, err)
}

// live waits for the program's end, or ends it.
func (m *managed) live(ctx context.Context, p *process.Process, told *os.File) {
	m.mu.Lock()
	m.proc, m.gone = p, make(chan struct{})
	close(m.started)
	m.mu.Unlock()
	var wg sync.WaitGroup
	if told != nil {
		wg.Go(func() {
			// The display's number, which is known.
			if n, _ := told.Read(make([]byte, 1)); n > 0 {
				m.ready.set(true)
			}
		})
	}
	stop := context.AfterFunc(ctx, func() { p.Terminate(stopGrace) })
	status := p.Wait()
	if stopped := !stop(); stopped || !m.leaves {
		p.KillTree()
	}
	if told != nil {
		_ = told.SetReadDeadline(time.Now())
		wg.Wait()
		m.ready.set(false)
	}
	m.mu.Lock()
	m.proc, m.started = nil, make(chan struct{})
	close(m.gone)
	m.mu.Unlock()
	if ctx.Err() == nil {
		level := slog.LevelWarn
		if m.asked.Swap(false) {
			level = slog.LevelInfo
		}
		m.logger.Log(ctx, level, "a program of the desktop has ended and is started again", "name", m.name, "code", status.Code, "signal", status.Signal)
		how := fmt.Sprintf("exit code %d", status.Code)
		if status.Signal != "" {
			how = status.Signal
		}
		fmt.Fprintf(&m.stderr, "[%s: ended with %s]\n", m.name, how)
	}
}

func (m *managed) stop() {
	m.mu.Lock()
	cancel, done := m.cancel, m.done
	m.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}

// restart ends the program, and returns when it has been started again.
func (m *managed) restart(ctx context.Context) error {
	if m.missing != "" {
		return refuse(http.StatusServiceUnavailable, wire.CodeUnsupported, "process %s: the sandbox lacks %s: install it and start the desktop anew", m.name, m.missing)
	}
	m.mu.Lock()
	p, gone := m.proc, m.gone
	m.mu.Unlock()
	if p != nil {
		m.asked.Store(true)
		if err := p.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("end process %s: %w", m.name, err)
		}
		grace := time.AfterFunc(stopGrace, p.KillTree)
		defer grace.Stop()
		select {
		case <-gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case m.kick <- struct{}{}:
	default:
	}
	m.mu.Lock()
	started := m.started
	m.mu.Unlock()
	select {
	case <-started:
		return nil
	case <-ctx.Done():
		return refuse(http.StatusInternalServerError, "", "internal server error: process %s does not start: %s", m.name, m.tail())
	}
}

// sink is a pipe that programs write to, and that is read into a ring.
type sink struct {
	w    *os.File
	r    *os.File
	done chan struct{}
}

func newSink(to *ring) (*sink, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	s := &sink{w: w, r: r, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		buf := make([]byte, 4<<10)
		for {
			n, err := r.Read(buf)
			_, _ = to.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	return s, nil
}

// close returns when what was written has been read.
func (s *sink) close() {
	s.w.Close()
	process.Settle(s.r, 100*time.Millisecond)
	<-s.done
	s.r.Close()
}

// lookPath says what is missing for a program; "" if nothing is.
func (s *Service) lookPath(name string) string {
	env := s.spawner.Environ(nil, s.spawner.WorkDir())
	if _, err := process.LookPath(name, s.spawner.WorkDir(), env); err != nil {
		return name
	}
	return ""
}

// define says which programs the desktop consists of.
func (s *Service) define(run *session, c settings) error {
	if missing := s.lookPath("Xvfb"); missing != "" {
		return refuse(http.StatusServiceUnavailable, wire.CodeUnsupported,
			"the sandbox has no Xvfb, without which there is no desktop: use an image that has one, such as the variant desktop, or install the package xvfb")
	}
	add := func(name, missing string, after, ready *gate, spec func() (*process.Spec, error)) {
		run.list = append(run.list, &managed{
			name: name, priority: 100 * (len(run.list) + 1), spawner: s.spawner, logger: s.logger,
			spec: spec, after: after, ready: ready, missing: missing, failed: make(chan struct{}), kick: make(chan struct{}, 1),
		})
	}
	plain := func(args ...string) func() (*process.Spec, error) {
		return func() (*process.Spec, error) { return &process.Spec{Args: args, Env: run.env}, nil }
	}
	// Neither the network nor the abstract namespace, which is the network's. The
	// server repeats no keys (-r): one is held for as long as a busy machine takes
	// to let go of it, and VNC clients send repeated keys themselves.
	add("xvfb", "", nil, run.ready, plain("Xvfb", c.display, "-screen", "0", fmt.Sprintf("%dx%dx24", c.width, c.height),
		"-displayfd", "3", "-noreset", "-r", "-nolisten", "tcp", "-nolisten", "local"))
	if bus := s.env.Get("DBUS_SESSION_BUS_ADDRESS"); bus != "" {
		run.env["DBUS_SESSION_BUS_ADDRESS"] = bus // the sandbox has one of its own
	} else {
		missing := s.lookPath("dbus-daemon")
		socket := run.dir + "/bus"
		if missing == "" {
			run.env["DBUS_SESSION_BUS_ADDRESS"] = "unix:path=" + socket
		}
		add("dbus", missing, nil, nil, func() (*process.Spec, error) {
			// One that was killed leaves it behind.
			_ = s.spawner.Account().Do(func() error { return os.Remove(socket) })
			return &process.Spec{Args: []string{"dbus-daemon", "--session", "--nofork", "--nopidfile", "--nosyslog", "--address=unix:path=" + socket}, Env: run.env}, nil
		})
	}
	manager, missing, leaves := []string(nil), "a window manager (icewm, openbox, …)", false
	for _, m := range managers {
		if s.lookPath(m.args[0]) == "" {
			manager, missing, leaves = m.args, "", !m.session
			break
		}
	}
	add("xfce4", missing, run.ready, nil, plain(manager...))
	run.find("xfce4").leaves = leaves
	add("x11vnc", s.lookPath("x11vnc"), run.ready, nil, plain("x11vnc", "-display", c.display, "-rfbport", strconv.Itoa(c.vnc), "-localhost", "-no6",
		"-forever", "-shared", "-nopw", "-norc", "-quiet", "-repeat", "-noipv6"))
	web := cmp.Or(s.env.Get("NO_VNC_DIR"), display.WebRoot())
	missing = ""
	if web == "" {
		missing = "noVNC"
	}
	add("novnc", missing, nil, nil, func() (*process.Spec, error) {
		return s.spawner.Helper(display.WebHelper, "127.0.0.1:"+strconv.Itoa(c.web), "127.0.0.1:"+strconv.Itoa(c.vnc), web), nil
	})
	return nil
}

// clearDisplay makes sure that no other X server has the display, and removes
// what one left that did not end by itself: its number may be another program's
// by now, which keeps the next one from starting.
func (s *Service) clearDisplay(ctx context.Context, c settings) error {
	socket, lock := display.Socket(c.number), display.Lock(c.number)
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err == nil {
		conn.Close()
		return refuse(http.StatusConflict, "", "conflict: display %s is in use by an X server that is not the desktop's: end it, or give the sandbox another DISPLAY", c.display)
	}
	return s.spawner.Account().Do(func() error {
		for _, path := range []string{lock, socket} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				s.logger.Warn("a file of an earlier X server stays", "path", path, "error", err)
			}
		}
		return nil
	})
}

// awaitPort returns when something listens on a port of this machine.
func awaitPort(ctx context.Context, port int) {
	dialer := net.Dialer{Timeout: time.Second}
	for ctx.Err() == nil {
		conn, err := dialer.DialContext(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
