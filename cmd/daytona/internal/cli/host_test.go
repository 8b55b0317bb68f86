package cli_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/creack/pty"

	"github.com/daytona-go/daytona"
)

// hostBackend is a backend without any isolation, for tests of the command
// line on machines that have no sandboxes: a sandbox is a directory, and its
// programs are processes of this machine. State is kept on disk, so that
// several processes share it. The query parameter "evil" makes its files
// misbehave; see evilFiles. "slow" is how long creating a sandbox takes.
type hostBackend struct {
	dir  string
	evil string
	slow time.Duration

	mu   sync.Mutex
	mine []string
}

func openHost(_ context.Context, u *url.URL) (daytona.Backend, error) {
	slow, err := time.ParseDuration(cmp.Or(u.Query().Get("slow"), "0"))
	return &hostBackend{dir: u.Path, evil: u.Query().Get("evil"), slow: slow}, err
}

func (b *hostBackend) Name() string { return "host" }

func (b *hostBackend) files(id string) string { return filepath.Join(b.dir, "sandboxes", id, "files") }

func (b *hostBackend) save(i daytona.Info) (daytona.Info, error) {
	data, err := json.Marshal(i)
	if err != nil {
		return i, err
	}
	return i, os.WriteFile(filepath.Join(b.dir, "sandboxes", i.ID, "info.json"), data, 0o600)
}

func (b *hostBackend) Create(ctx context.Context, s daytona.Spec) (daytona.Info, error) {
	if b.slow > 0 {
		s.OnProgress(daytona.Progress{Stage: "pulling \x1b[31mbig:1", Done: 1 << 20, Total: 4 << 20})
		select {
		case <-time.After(b.slow):
		case <-ctx.Done():
			return daytona.Info{}, ctx.Err()
		}
	}
	id := rand.Text()
	i := daytona.Info{
		ID: id, Name: cmp.Or(s.Name, "sb-"+strings.ToLower(id[:8])), State: daytona.StateStarted, Backend: "host",
		Image: cmp.Or(s.Image, "host"), WorkDir: b.files(id), Env: s.Env, Labels: s.Labels, Language: "python",
		Resources: s.Resources, Network: s.Network, Volumes: s.Volumes, Persistent: s.Persistent, TTL: s.TTL,
		AutoPause: s.AutoPause, AutoArchive: s.AutoArchive,
		CreatedAt: time.Now(), StartedAt: time.Now(),
	}
	if _, err := b.find(i.Name); err == nil {
		return i, &daytona.Error{Kind: daytona.KindConflict, Op: "create sandbox", Subject: i.Name, Message: "the name is taken"}
	}
	if s.Snapshot != "" {
		sn, err := b.GetSnapshot(ctx, s.Snapshot)
		if err != nil {
			return i, err
		}
		i.Snapshot, i.Image, i.Resources = sn.Name, sn.Image, sn.Resources
	}
	if s.Image == "missing" {
		return i, &daytona.Error{Kind: daytona.KindNotFound, Op: "create sandbox", Subject: i.Image, Message: "there is no such image"}
	}
	if err := os.MkdirAll(b.files(id), 0o755); err != nil {
		return i, err
	}
	if !s.Persistent {
		b.mu.Lock()
		b.mine = append(b.mine, id)
		b.mu.Unlock()
	}
	return b.save(i)
}

func (b *hostBackend) all() (list []daytona.Info, err error) {
	names, err := filepath.Glob(filepath.Join(b.dir, "sandboxes", "*", "info.json"))
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		data, err := os.ReadFile(n)
		if err != nil {
			return nil, err
		}
		var i daytona.Info
		if err := json.Unmarshal(data, &i); err != nil {
			return nil, err
		}
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b daytona.Info) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return list, nil
}

func (b *hostBackend) find(idOrName string) (daytona.Info, error) {
	list, err := b.all()
	if err != nil {
		return daytona.Info{}, err
	}
	for _, i := range list {
		if i.ID == idOrName || i.Name == idOrName {
			return i, nil
		}
	}
	return daytona.Info{}, &daytona.Error{Kind: daytona.KindNotFound, Op: "find sandbox", Subject: idOrName, Message: "there is no such sandbox"}
}

func (b *hostBackend) Get(_ context.Context, idOrName string) (daytona.Info, error) {
	return b.find(idOrName)
}

func (b *hostBackend) set(id string, state daytona.State) (daytona.Info, error) {
	i, err := b.find(id)
	if err != nil {
		return i, err
	}
	i.State = state
	return b.save(i)
}

func (b *hostBackend) Start(_ context.Context, id string) (daytona.Info, error) {
	return b.set(id, daytona.StateStarted)
}

func (b *hostBackend) Stop(_ context.Context, id string, _ daytona.StopOptions) (daytona.Info, error) {
	return b.set(id, daytona.StateStopped)
}

func (b *hostBackend) Delete(_ context.Context, id string) error {
	if _, err := b.find(id); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(b.dir, "sandboxes", id))
}

func (b *hostBackend) List(_ context.Context, f daytona.Filter) iter.Seq2[daytona.Info, error] {
	return func(yield func(daytona.Info, error) bool) {
		list, err := b.all()
		if err != nil {
			yield(daytona.Info{}, err)
			return
		}
		for _, i := range list {
			if f.Match(i) && !yield(i, nil) {
				return
			}
		}
	}
}

func (b *hostBackend) Close() error {
	for _, id := range b.mine {
		if err := os.RemoveAll(filepath.Join(b.dir, "sandboxes", id)); err != nil {
			return err
		}
	}
	return nil
}

func (b *hostBackend) volume(name string) string { return filepath.Join(b.dir, "volumes", name) }

func (b *hostBackend) CreateVolume(_ context.Context, spec daytona.VolumeSpec) (daytona.Volume, error) {
	name := spec.Name
	err := os.MkdirAll(filepath.Dir(b.volume(name)), 0o755)
	if err == nil {
		err = os.Mkdir(b.volume(name), 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		err = &daytona.Error{Kind: daytona.KindConflict, Op: "create volume", Subject: name, Message: "the name is taken"}
	}
	v := daytona.Volume{ID: name, Name: name, Kind: cmp.Or(spec.Kind, daytona.VolumeDirectory), Quota: spec.Quota, CreatedAt: time.Now()}
	if err == nil && spec.S3 != nil {
		v.ID = fmt.Sprint(*spec.S3)
	}
	if err == nil {
		err = b.record("volume", name, v)
	}
	return v, err
}

// record keeps what is known of a thing.
func (b *hostBackend) record(kind, name string, v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		err = os.MkdirAll(filepath.Join(b.dir, kind), 0o755)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(b.dir, kind, url.PathEscape(name)), data, 0o600)
	}
	return err
}

func (b *hostBackend) recorded(kind, name string, v any) error {
	data, err := os.ReadFile(filepath.Join(b.dir, kind, url.PathEscape(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return &daytona.Error{Kind: daytona.KindNotFound, Op: "find " + kind, Subject: name, Message: "there is no such " + kind}
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

func (b *hostBackend) GetVolume(_ context.Context, name string) (v daytona.Volume, err error) {
	return v, b.recorded("volume", name, &v)
}

func (b *hostBackend) ListVolumes(context.Context) iter.Seq2[daytona.Volume, error] {
	return func(yield func(daytona.Volume, error) bool) {
		entries, err := os.ReadDir(filepath.Join(b.dir, "volumes"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			yield(daytona.Volume{}, err)
			return
		}
		for _, e := range entries {
			if !yield(b.GetVolume(context.Background(), e.Name())) {
				return
			}
		}
	}
}

func (b *hostBackend) DeleteVolume(_ context.Context, name string) error {
	if err := os.Remove(b.volume(name)); err != nil {
		return &daytona.Error{Kind: daytona.KindNotFound, Op: "delete volume", Subject: name, Message: "there is no such volume", Err: err}
	}
	return nil
}

func (b *hostBackend) Connect(id string) daytona.Toolbox { return hostToolbox{b: b, id: id} }

type hostToolbox struct {
	daytona.Toolbox // what no test uses
	b               *hostBackend
	id              string
}

func (t hostToolbox) Close() error { return nil }

func (t hostToolbox) FileSystem() daytona.FileSystem {
	files := hostFiles{root: t.b.files(t.id)}
	if t.b.evil != "" {
		return evilFiles{hostFiles: files, how: t.b.evil}
	}
	return files
}

func (t hostToolbox) Process() daytona.Process { return hostProcess{t: t} }

type hostFiles struct {
	daytona.FileSystem
	root string
}

func (f hostFiles) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(f.root, p)
}

func fileInfo(i fs.FileInfo) daytona.FileInfo {
	return daytona.FileInfo{FileName: i.Name(), Bytes: i.Size(), FileMode: i.Mode(), Modified: i.ModTime()}
}

func (f hostFiles) Stat(_ context.Context, p string) (daytona.FileInfo, error) {
	i, err := os.Stat(f.path(p))
	if err != nil {
		return daytona.FileInfo{}, err
	}
	return fileInfo(i), nil
}

func (f hostFiles) ReadDir(_ context.Context, p string) (list []daytona.FileInfo, err error) {
	entries, err := os.ReadDir(f.path(p))
	for _, e := range entries {
		i, err := e.Info()
		if err != nil {
			return nil, err
		}
		list = append(list, fileInfo(i))
	}
	return list, err
}

func (f hostFiles) Mkdir(_ context.Context, p string, _ fs.FileMode) error {
	return os.MkdirAll(f.path(p), 0o755)
}

func (f hostFiles) Chmod(_ context.Context, p string, mode fs.FileMode) error {
	return os.Chmod(f.path(p), mode)
}

func (f hostFiles) Upload(_ context.Context, p string, r io.Reader) (int64, error) {
	if err := os.MkdirAll(filepath.Dir(f.path(p)), 0o755); err != nil {
		return 0, err
	}
	w, err := os.Create(f.path(p))
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(w, r)
	return n, errors.Join(err, w.Close())
}

func (f hostFiles) UploadFiles(ctx context.Context, files []daytona.FileUpload) error {
	for _, u := range files {
		if _, err := f.Upload(ctx, u.Path, u.Content); err != nil {
			return err
		}
	}
	return nil
}

func (f hostFiles) Download(_ context.Context, p string, w io.Writer) (int64, error) {
	r, err := os.Open(f.path(p))
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(w, r)
}

func (f hostFiles) DownloadFiles(_ context.Context, paths []string, each func(string, io.Reader, error) error) error {
	for _, p := range paths {
		r, err := os.Open(f.path(p))
		err = each(p, r, err)
		if r != nil {
			r.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// evilFiles lies about the files of its sandbox.
type evilFiles struct {
	hostFiles
	how string
}

func (f evilFiles) ReadDir(ctx context.Context, p string) ([]daytona.FileInfo, error) {
	file := func(name string, mode fs.FileMode) daytona.FileInfo {
		return daytona.FileInfo{FileName: name, FileMode: mode, Bytes: 4}
	}
	switch f.how {
	case "dotdot":
		return []daytona.FileInfo{file("../escaped", 0o644)}, nil
	case "absolute":
		return []daytona.FileInfo{file("/tmp/daytona-escaped", 0o644)}, nil
	case "parent":
		return []daytona.FileInfo{file("..", 0o755|fs.ModeDir)}, nil
	case "deep":
		return []daytona.FileInfo{file("d", 0o755|fs.ModeDir)}, nil
	case "link":
		// A name that the local directory has as a link to elsewhere.
		if filepath.Base(p) != "." {
			return []daytona.FileInfo{file("file", 0o644)}, nil
		}
		return []daytona.FileInfo{file("link", 0o755|fs.ModeDir)}, nil
	case "more", "fewer":
		return []daytona.FileInfo{file("one", 0o644), file("two", 0o644)}, nil
	case "setuid":
		return []daytona.FileInfo{file("tool", 0o755|fs.ModeSetuid|fs.ModeSetgid)}, nil
	}
	return f.hostFiles.ReadDir(ctx, p)
}

func (f evilFiles) Stat(context.Context, string) (daytona.FileInfo, error) {
	return daytona.FileInfo{FileName: "tree", FileMode: 0o755 | fs.ModeDir}, nil
}

func (f evilFiles) DownloadFiles(_ context.Context, paths []string, each func(string, io.Reader, error) error) error {
	switch f.how {
	case "more":
		paths = append(paths, "../../three")
	case "fewer":
		paths = paths[:1]
	}
	for range paths {
		if err := each("../../elsewhere", strings.NewReader("evil"), nil); err != nil {
			return err
		}
	}
	return nil
}

type hostProcess struct {
	daytona.Process
	t hostToolbox
}

func (p hostProcess) StartCommand(ctx context.Context, s daytona.CommandSpec) (daytona.RunningCommand, error) {
	info, err := p.t.b.find(p.t.id)
	if err != nil {
		return nil, err
	}
	if info.State != daytona.StateStarted {
		return nil, &daytona.Error{Kind: daytona.KindState, Op: "run command", Subject: info.Name, Message: "the sandbox is " + string(info.State)}
	}
	env := map[string]string{"PATH": os.Getenv("PATH"), "HOME": info.WorkDir}
	maps.Copy(env, info.Env)
	maps.Copy(env, s.Env)
	cmd := exec.Command(s.Args[0], s.Args[1:]...)
	cmd.Dir = cmp.Or(s.Dir, info.WorkDir)
	if strings.Contains(s.Args[0], "/") && !filepath.IsAbs(s.Args[0]) {
		cmd.Path = filepath.Join(cmd.Dir, s.Args[0])
	}
	for k, v := range env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	r := &hostCommand{cmd: cmd, ended: make(chan struct{})}
	if s.TTY != nil {
		err = r.startTTY(s)
	} else {
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Stdout, cmd.Stderr = s.Stdout, s.Stderr
		err = r.start(s)
	}
	if err != nil {
		kind := daytona.KindInternal
		switch {
		case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist):
			kind = daytona.KindNotFound
		case errors.Is(err, fs.ErrPermission):
			kind = daytona.KindForbidden
		}
		return nil, &daytona.Error{Kind: kind, Op: "start command", Subject: s.Args[0], Err: err}
	}
	if s.Timeout > 0 {
		timer := time.AfterFunc(s.Timeout, func() { r.timedOut.Store(true); r.kill() })
		context.AfterFunc(ctx, func() { timer.Stop() })
	}
	stop := context.AfterFunc(ctx, r.kill)
	go func() { <-r.ended; stop() }()
	return r, nil
}

type hostCommand struct {
	cmd      *exec.Cmd
	tty      *os.File
	copied   chan struct{}
	ended    chan struct{}
	timedOut atomic.Bool
}

func (r *hostCommand) start(s daytona.CommandSpec) error {
	if s.Stdin == nil {
		return r.cmd.Start()
	}
	// Not cmd.Stdin: Wait would wait for the end of the input.
	w, err := r.cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := r.cmd.Start(); err != nil {
		return err
	}
	go func() {
		io.Copy(w, s.Stdin)
		w.Close()
	}()
	return nil
}

func (r *hostCommand) startTTY(s daytona.CommandSpec) error {
	f, err := pty.StartWithSize(r.cmd, &pty.Winsize{Rows: uint16(s.TTY.Rows), Cols: uint16(s.TTY.Cols)})
	if err != nil {
		return err
	}
	r.tty, r.copied = f, make(chan struct{})
	go func() {
		defer close(r.copied)
		io.Copy(s.Stdout, f)
	}()
	if s.Stdin != nil {
		go io.Copy(f, s.Stdin)
	}
	return nil
}

func (r *hostCommand) kill() { syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL) }

func (r *hostCommand) PID() int { return r.cmd.Process.Pid }

func (r *hostCommand) Signal(_ context.Context, name string) error {
	signals := map[string]syscall.Signal{"SIGINT": syscall.SIGINT, "SIGUSR1": syscall.SIGUSR1, "SIGUSR2": syscall.SIGUSR2, "SIGQUIT": syscall.SIGQUIT}
	return syscall.Kill(-r.cmd.Process.Pid, signals[name])
}

func (r *hostCommand) Resize(_ context.Context, size daytona.TTYSize) error {
	return pty.Setsize(r.tty, &pty.Winsize{Rows: uint16(size.Rows), Cols: uint16(size.Cols)})
}

func (r *hostCommand) Wait() (daytona.ExitStatus, error) {
	if r.copied != nil {
		<-r.copied
	}
	err := r.cmd.Wait()
	close(r.ended)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return daytona.ExitStatus{}, err
	}
	ws := r.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return daytona.ExitStatus{ExitCode: 128 + int(ws.Signal()), Signal: fmt.Sprint(ws.Signal()), TimedOut: r.timedOut.Load()}, nil
	}
	return daytona.ExitStatus{ExitCode: ws.ExitStatus()}, nil
}

var (
	_ daytona.Backend       = (*hostBackend)(nil)
	_ daytona.VolumeManager = (*hostBackend)(nil)
	_ daytona.Pauser        = (*hostBackend)(nil)
	_ daytona.Forker        = (*hostBackend)(nil)
	_ daytona.Archiver      = (*hostBackend)(nil)
	_ daytona.Resizer       = (*hostBackend)(nil)
	_ daytona.Snapshotter   = (*hostBackend)(nil)
	_ daytona.ImageBuilder  = (*hostBackend)(nil)
)
