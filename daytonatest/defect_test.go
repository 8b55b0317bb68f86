package daytonatest_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"net/url"
	"os"
	"slices"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/daytonatest"
)

func init() {
	daytona.Register("daytonatest-unsupported", func(context.Context, *url.URL) (daytona.Backend, error) {
		return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: "open backend", Message: "not on this machine"}
	})
}

// leaky creates although the context is over, and says that it did not.
type leaky struct{ *daytonatest.Fake }

func (b leaky) Create(ctx context.Context, s daytona.Spec) (daytona.Info, error) {
	info, err := b.Fake.Create(context.WithoutCancel(ctx), s)
	if err == nil {
		err = ctx.Err()
	}
	return info, err
}

type deleteTwice struct{ *daytonatest.Fake }

func (b deleteTwice) Delete(ctx context.Context, id string) error {
	if err := b.Fake.Delete(ctx, id); !errors.Is(err, daytona.ErrNotFound) {
		return err
	}
	return nil
}

type unordered struct{ *daytonatest.Fake }

func (b unordered) List(ctx context.Context, f daytona.Filter) iter.Seq2[daytona.Info, error] {
	return func(yield func(daytona.Info, error) bool) {
		var all []daytona.Info
		for i, err := range b.Fake.List(ctx, f) {
			if err != nil {
				yield(i, err)
				return
			}
			all = append(all, i)
		}
		for _, i := range slices.Backward(all) {
			if !yield(i, nil) {
				return
			}
		}
	}
}

type ignoresLimits struct{ *daytonatest.Fake }

func (b ignoresLimits) Create(ctx context.Context, s daytona.Spec) (daytona.Info, error) {
	s.Resources, s.Network = daytona.Resources{}, daytona.NetworkPolicy{}
	return b.Fake.Create(ctx, s)
}

type forgetful struct{ *daytonatest.Fake }

func (b forgetful) Stop(ctx context.Context, id string, o daytona.StopOptions) (daytona.Info, error) {
	_ = b.Connect(id).FileSystem().RemoveAll(ctx, "dir")
	return b.Fake.Stop(ctx, id, o)
}

type keeper struct{ *daytonatest.Fake }

func (keeper) Close() error { return nil }

type kindless struct{ *daytonatest.Fake }

func (b kindless) Get(ctx context.Context, id string) (daytona.Info, error) {
	i, err := b.Fake.Get(ctx, id)
	if err != nil {
		err = errors.New(err.Error())
	}
	return i, err
}

type hostEnv struct{ *daytonatest.Fake }

func (b hostEnv) Create(ctx context.Context, s daytona.Spec) (daytona.Info, error) {
	if s.Env == nil {
		s.Env = map[string]string{}
	}
	s.Env["DAYTONA_BACKENDTEST_SECRET"] = os.Getenv("DAYTONA_BACKENDTEST_SECRET")
	return b.Fake.Create(ctx, s)
}

// renumbers forgets the labels of what another Backend made.
type renumbers struct{ *daytonatest.Fake }

func (b renumbers) Get(ctx context.Context, id string) (daytona.Info, error) {
	i, err := b.Fake.Get(ctx, id)
	if i.Persistent {
		i.Labels = nil
	}
	return i, err
}

// process and files are embedded under names of their own.
type (
	process struct{ daytona.Process }
	files   struct{ daytona.FileSystem }
)

// toolboxed replaces parts of the toolbox.
type toolboxed struct {
	*daytonatest.Fake
	process func(process) daytona.Process
	files   func(files) daytona.FileSystem
}

func toolboxDefect(p func(process) daytona.Process) func(*daytonatest.Fake) daytona.Backend {
	return func(f *daytonatest.Fake) daytona.Backend { return toolboxed{Fake: f, process: p} }
}

func filesDefect(fs func(files) daytona.FileSystem) func(*daytonatest.Fake) daytona.Backend {
	return func(f *daytonatest.Fake) daytona.Backend { return toolboxed{Fake: f, files: fs} }
}

func (b toolboxed) Connect(id string) daytona.Toolbox { return toolbox{b.Fake.Connect(id), b} }

type toolbox struct {
	daytona.Toolbox
	b toolboxed
}

func (t toolbox) Process() daytona.Process {
	if t.b.process == nil {
		return t.Toolbox.Process()
	}
	return t.b.process(process{t.Toolbox.Process()})
}

func (t toolbox) FileSystem() daytona.FileSystem {
	if t.b.files == nil {
		return t.Toolbox.FileSystem()
	}
	return t.b.files(files{t.Toolbox.FileSystem()})
}

// merged writes standard error to standard output.
type merged struct{ process }

func (p merged) Command(ctx context.Context, name string, args ...string) *daytona.Cmd {
	return daytona.NewCmd(ctx, p, name, args...)
}

func (p merged) StartCommand(ctx context.Context, s daytona.CommandSpec) (daytona.RunningCommand, error) {
	if s.Stdout != nil {
		s.Stderr = s.Stdout
	}
	return p.process.StartCommand(ctx, s)
}

type alwaysZero struct{ process }

func (p alwaysZero) Command(ctx context.Context, name string, args ...string) *daytona.Cmd {
	return daytona.NewCmd(ctx, p, name, args...)
}

func (p alwaysZero) StartCommand(ctx context.Context, s daytona.CommandSpec) (daytona.RunningCommand, error) {
	r, err := p.process.StartCommand(ctx, s)
	return zero{r}, err
}

type zero struct{ daytona.RunningCommand }

func (z zero) Wait() (daytona.ExitStatus, error) {
	_, err := z.RunningCommand.Wait()
	return daytona.ExitStatus{}, err
}

type timeless struct{ process }

func (p timeless) Command(ctx context.Context, name string, args ...string) *daytona.Cmd {
	return daytona.NewCmd(ctx, p, name, args...)
}

func (p timeless) StartCommand(ctx context.Context, s daytona.CommandSpec) (daytona.RunningCommand, error) {
	s.Timeout = 0
	return p.process.StartCommand(ctx, s)
}

// truncating loses the last byte of what is longer than eight.
type truncating struct{ files }

func (f truncating) Create(ctx context.Context, name string) (io.WriteCloser, error) {
	w, err := f.files.Create(ctx, name)
	return cutWriter{w}, err
}

func (f truncating) Upload(ctx context.Context, name string, r io.Reader) (int64, error) {
	n, err := f.files.Upload(ctx, name, io.LimitReader(r, 60<<20))
	return n, err
}

type cutWriter struct{ io.WriteCloser }

func (w cutWriter) Write(p []byte) (int, error) {
	if len(p) > 8 {
		_, err := w.WriteCloser.Write(p[:len(p)-1])
		return len(p), err
	}
	return w.WriteCloser.Write(p)
}

type replacing struct{ files }

func (f replacing) Rename(ctx context.Context, from, to string) error {
	if fi, err := f.Stat(ctx, to); err == nil && !fi.IsDir() {
		_ = f.Remove(ctx, to)
	}
	return f.files.Rename(ctx, from, to)
}

type plainErrors struct{ files }

func (f plainErrors) Stat(ctx context.Context, name string) (daytona.FileInfo, error) {
	fi, err := f.files.Stat(ctx, name)
	if err != nil {
		err = fs.ErrNotExist
	}
	return fi, err
}

type modeless struct{ files }

func (f modeless) WriteFile(ctx context.Context, name string, data []byte, _ fs.FileMode) error {
	return f.files.WriteFile(ctx, name, data, 0)
}
