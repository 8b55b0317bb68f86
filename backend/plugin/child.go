package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/daytona-go/daytona"
	pb "github.com/daytona-go/daytona/backend/plugin/proto"
)

// The handshake. Version is that of the protocol in proto/backend.proto.
const (
	Version = 1

	cookieKey   = "DAYTONA_BACKEND_PLUGIN"
	cookieValue = "0f1b2b3a-daytona-backend"
	// service is the one thing that go-plugin dispenses.
	service = "backend"
	// socketDirPrefix begins the name of the directory of a plugin's socket.
	socketDirPrefix = "daytona-plugin-"
	// socketDirVar is how go-plugin tells a plugin of it.
	socketDirVar = "PLUGIN_UNIX_SOCKET_DIR"
)

// maxMessage bounds a message, in bytes. The largest is a Spec.
const maxMessage = 16 << 20

// set is what go-plugin calls a set of plugins.
func set(serve func(*grpc.Server)) map[int]goplugin.PluginSet {
	return map[int]goplugin.PluginSet{Version: {service: &grpcPlugin{serve: serve}}}
}

// grpcPlugin is what go-plugin calls a plugin: one side of the service.
type grpcPlugin struct {
	goplugin.NetRPCUnsupportedPlugin
	serve func(*grpc.Server)
}

func (g *grpcPlugin) GRPCServer(_ *goplugin.GRPCBroker, s *grpc.Server) error {
	g.serve(s)
	return nil
}

func (g *grpcPlugin) GRPCClient(_ context.Context, _ *goplugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return pb.NewBackendClient(c), nil
}

// child is one process of a plugin, from its start to its end. It implements
// go-plugin's runner.Runner, so that the pipes, the environment and the exit
// status are in our hands.
type child struct {
	cmd    *exec.Cmd
	stdin  *os.File // its end tells the plugin that the host has gone
	stdout *os.File
	stderr *os.File
	sink   *logSink
	sock   *socketDir

	sockets string // the directory in it that the plugin's are in

	client *goplugin.Client
	conn   *grpc.ClientConn
	rpc    pb.BackendClient

	// started is closed when there is a process, or cannot be one.
	started chan struct{}
	// ended is closed when the process has ended, dead a moment later, when what
	// it had to say has been read; then exit says how it ended.
	ended chan struct{}
	dead  chan struct{}
	exit  string
}

var _ runner.Runner = (*child)(nil)

func (c *child) isDead() bool {
	select {
	case <-c.dead:
		return true
	default:
		return false
	}
}

// startChild starts the plugin and shakes hands with it.
func startChild(ctx context.Context, o *Options, log *slog.Logger) (_ *child, err error) {
	const op = "start plugin"
	fail := func(kind daytona.Kind, field, message string, err error) error {
		e := &daytona.Error{Kind: kind, Op: op, Subject: o.Path, Field: field, Message: message, Err: err}
		if field != "" {
			e.Value, e.Subject = o.Path, ""
		}
		return e
	}
	switch st, err := os.Stat(o.Path); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fail(daytona.KindNotFound, "", "there is no such file", err)
	case err != nil:
		return nil, fail(daytona.KindInvalid, "", "", err)
	case !st.Mode().IsRegular() || unix.Access(o.Path, unix.X_OK) != nil:
		return nil, fail(daytona.KindInvalid, "Path", "is not an executable file", nil)
	}
	c := &child{started: make(chan struct{}), ended: make(chan struct{}), dead: make(chan struct{}), sink: &logSink{log: log, ceiling: slog.LevelError}}
	if c.sock, err = newSocketDir(); err != nil {
		return nil, fail(daytona.KindUnavailable, "", "make a directory for its socket", err)
	}
	level := hclog.Off
	if log.Enabled(ctx, slog.LevelDebug) {
		level = hclog.Debug
	}
	c.client = goplugin.NewClient(&goplugin.ClientConfig{
		HandshakeConfig:  goplugin.HandshakeConfig{MagicCookieKey: cookieKey, MagicCookieValue: cookieValue},
		VersionedPlugins: set(nil),
		AllowedProtocols: []goplugin.Protocol{goplugin.ProtocolGRPC},
		AutoMTLS:         true,
		SkipHostEnv:      true,
		StartTimeout:     o.StartTimeout,
		UnixSocketConfig: &goplugin.UnixSocketConfig{TempDir: c.sock.path},
		SyncStdout:       &logSink{log: log, ceiling: slog.LevelError},
		SyncStderr:       &logSink{log: log, ceiling: slog.LevelError},
		Logger:           hclog.New(&hclog.LoggerOptions{Level: level, JSONFormat: true, Output: &logSink{log: log, ceiling: slog.LevelDebug}}),
		GRPCDialOptions:  []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage))},
		RunnerFunc: func(_ hclog.Logger, cmd *exec.Cmd, dir string) (runner.Runner, error) {
			c.sockets = dir
			c.cmd = exec.Command(o.Path, o.Args...)
			c.cmd.Env = append(environment(o.Env), cmd.Env...)
			// Signals of a terminal are for the host, which ends its plugins.
			c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			return c, nil
		},
	})
	defer func() {
		if err != nil {
			c.stop(0)
		}
	}()
	over := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-c.started:
			_ = c.Kill(ctx)
		case <-over:
		}
	})
	_, err = c.client.Start()
	if err == nil {
		var protocol goplugin.ClientProtocol
		if protocol, err = c.client.Client(); err == nil {
			var side any
			if side, err = protocol.Dispense(service); err == nil {
				c.conn = protocol.(*goplugin.GRPCClient).Conn
				c.rpc = side.(pb.BackendClient)
			}
		}
	}
	close(over)
	if !stop() {
		return nil, ended(op, o.Path, ctx.Err())
	}
	if err == nil {
		return c, nil
	}
	if c.cmd == nil || c.cmd.Process == nil {
		if errors.Is(err, syscall.ENOEXEC) {
			return nil, fail(daytona.KindInvalid, "Path", "is not a program that this machine can run", err)
		}
		return nil, fail(daytona.KindUnavailable, "", "it cannot be started", err)
	}
	if strings.Contains(err.Error(), "incompatible") {
		// go-plugin's text has both versions.
		return nil, fail(daytona.KindUnsupported, "", fmt.Sprintf(
			"it speaks another version of the protocol than this program, whose version is %d; build one of them anew", Version), err)
	}
	message := "it is not a backend plugin, or failed before it could say so"
	select {
	case <-c.dead:
		message += " (" + c.exit + ")"
	case <-time.After(time.Second):
	}
	if tail := c.sink.last(); tail != "" {
		message += "; its standard error ends with:\n" + tail
	}
	return nil, fail(daytona.KindUnavailable, "", message, err)
}

// Start implements runner.Runner.
func (c *child) Start(context.Context) error {
	defer close(c.started)
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	pipe := func(write bool) (ours *os.File, err error) {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		if write {
			theirs = append(theirs, r)
			return w, nil
		}
		theirs = append(theirs, w)
		return r, nil
	}
	var err error
	if c.stdin, err = pipe(true); err != nil {
		return err
	}
	if c.stdout, err = pipe(false); err != nil {
		return err
	}
	if c.stderr, err = pipe(false); err != nil {
		return err
	}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = theirs[0], theirs[1], theirs[2]
	if err := c.cmd.Start(); err != nil {
		c.exit = err.Error()
		c.closePipes()
		close(c.ended)
		close(c.dead)
		return err
	}
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		c.sink.copy(c.stderr)
	}()
	go func() {
		if err := c.cmd.Wait(); err != nil && c.cmd.ProcessState == nil {
			c.exit = err.Error()
		} else {
			c.exit = c.cmd.ProcessState.String()
		}
		close(c.ended)
		// Processes that it has started may hold the other ends for as long as
		// they like. What it wrote itself is there by now.
		soon := time.Now().Add(200 * time.Millisecond)
		_ = c.stdout.SetReadDeadline(soon)
		_ = c.stderr.SetReadDeadline(soon)
		<-logged
		close(c.dead)
	}()
	return nil
}

func (c *child) closePipes() {
	for _, f := range []*os.File{c.stdin, c.stdout, c.stderr} {
		if f != nil {
			f.Close()
		}
	}
}

// Wait implements runner.Runner.
func (c *child) Wait(ctx context.Context) error {
	select {
	case <-c.dead:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Kill implements runner.Runner.
func (c *child) Kill(context.Context) error {
	if c.cmd == nil || c.cmd.Process == nil {
		return nil
	}
	return c.cmd.Process.Kill()
}

// Stdout implements runner.Runner.
func (c *child) Stdout() io.ReadCloser { return untilEnd{c.stdout} }

// Stderr implements runner.Runner; the log is read here and not by go-plugin.
func (c *child) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name implements runner.Runner.
func (c *child) Name() string { return filepath.Base(c.cmd.Path) }

// ID implements runner.Runner.
func (c *child) ID() string {
	if c.cmd == nil || c.cmd.Process == nil {
		return ""
	}
	return strconv.Itoa(c.cmd.Process.Pid)
}

// Diagnose implements runner.Runner; what there is to say, startChild says.
func (c *child) Diagnose(context.Context) string { return "" }

// PluginToHost implements runner.Runner. A plugin must not make the host
// connect to anything but a socket in the directory that is its own.
func (c *child) PluginToHost(network, address string) (string, string, error) {
	if network != "unix" || !strings.HasPrefix(filepath.Clean(address), c.sock.path+"/") {
		return "", "", fmt.Errorf("the plugin listens on %s %s, and not on a Unix socket below %s", network, address, c.sock.path)
	}
	return network, address, nil
}

// HostToPlugin implements runner.Runner.
func (c *child) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// untilEnd is a pipe from a process that may be dead while others hold it.
type untilEnd struct{ *os.File }

func (u untilEnd) Read(p []byte) (int, error) {
	n, err := u.File.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
		err = io.EOF
	}
	return n, err
}

// stop ends the process: it gets a time to end by itself after its standard
// input has, and is killed after that.
func (c *child) stop(grace time.Duration) {
	if c.cmd != nil && c.cmd.Process != nil {
		c.stdin.Close()
		if grace > 0 {
			t := time.NewTimer(grace)
			select {
			case <-c.dead:
			case <-t.C:
			}
			t.Stop()
		}
		if !c.isDead() {
			_ = c.cmd.Process.Kill()
			<-c.dead
		}
	}
	// go-plugin closes its connection and forgets the process.
	c.client.Kill()
	c.closePipes()
	c.sock.remove()
}

// watch pings the plugin and kills it when it has not answered for a while,
// so that the calls that wait for it fail and the next ones find a new one.
func (c *child) watch(unresponsive time.Duration, log *slog.Logger) {
	health := grpc_health_v1.NewHealthClient(c.conn)
	t := time.NewTicker(unresponsive / 4)
	defer t.Stop()
	for {
		select {
		case <-c.dead:
			return
		case <-t.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), unresponsive)
		_, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: goplugin.GRPCServiceName})
		expired := ctx.Err() != nil
		cancel()
		if err != nil && expired && !c.isDead() {
			log.Error("the plugin does not answer and is killed", "pid", c.ID(), "after", unresponsive)
			_ = c.Kill(context.Background())
		}
	}
}

// environment is what a plugin gets of this process's environment, and extra.
// Names that end in * stand for all that begin so.
func environment(extra []string) []string {
	var out []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		for _, pass := range []string{
			"PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LC_*", "XDG_*",
			"SSL_CERT_FILE", "SSL_CERT_DIR", "DAYTONA_AGENT",
		} {
			prefix, many := strings.CutSuffix(pass, "*")
			if name == pass || many && strings.HasPrefix(name, prefix) {
				out = append(out, kv)
				break
			}
		}
	}
	return append(out, extra...)
}

// socketDir is the private directory of a plugin's socket. It is locked while
// it is in use, so that those of killed processes can be told.
type socketDir struct {
	path string
	lock *os.File
}

func newSocketDir() (*socketDir, error) {
	base := os.TempDir()
	if len(base) > 40 {
		base = "/tmp" // a socket's path is limited to 107 bytes (unix(7))
	}
	sweepSocketDirs(base)
	path, err := os.MkdirTemp(base, socketDirPrefix) // 0700
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(path)
	if err != nil {
		os.Remove(path)
		return nil, err
	}
	return &socketDir{path, lock}, nil
}

func lockDir(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

func (d *socketDir) remove() {
	os.RemoveAll(d.path)
	d.lock.Close()
}

// sweepSocketDirs removes what is left of hosts and plugins that were killed
// together. One that is a minute old and not locked is in nobody's use.
func sweepSocketDirs(base string) {
	dirs, _ := filepath.Glob(filepath.Join(base, socketDirPrefix+"*"))
	for _, dir := range dirs {
		st, err := os.Lstat(dir)
		if err != nil || !st.IsDir() || time.Since(st.ModTime()) < time.Minute {
			continue
		}
		if s, ok := st.Sys().(*syscall.Stat_t); !ok || int(s.Uid) != os.Geteuid() {
			continue
		}
		if f, err := lockDir(dir); err == nil {
			os.RemoveAll(dir)
			f.Close()
		}
	}
}
