package cli_test

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

func (b *hostBackend) Pause(_ context.Context, id string, o daytona.PauseOptions) (daytona.Info, error) {
	if o.Disk {
		return daytona.Info{}, &daytona.Error{Kind: daytona.KindUnsupported, Op: "pause sandbox", Field: "Disk", Value: true, Message: "there is no such thing"}
	}
	return b.set(id, daytona.StatePaused)
}

func (b *hostBackend) Resume(_ context.Context, id string) (daytona.Info, error) {
	return b.set(id, daytona.StateStarted)
}

func (b *hostBackend) Fork(_ context.Context, id string, o daytona.ForkOptions) (children []daytona.Info, err error) {
	parent, err := b.find(id)
	if err != nil {
		return nil, err
	}
	for _, name := range o.Names {
		child := parent
		child.ID, child.Parent = rand.Text(), parent.ID
		child.Name = cmp.Or(name, "sb-"+strings.ToLower(child.ID[:8]))
		child.WorkDir = b.files(child.ID)
		if err := os.CopyFS(b.files(child.ID), os.DirFS(b.files(id))); err != nil {
			return nil, err
		}
		if child, err = b.save(child); err != nil {
			return nil, err
		}
		children = append(children, child)
	}
	return children, nil
}

func (b *hostBackend) Resize(_ context.Context, id string, r daytona.Resources) (daytona.Info, error) {
	i, err := b.find(id)
	if err != nil {
		return i, err
	}
	if r.Disk != 0 && i.State == daytona.StateStarted {
		return i, &daytona.Error{Kind: daytona.KindState, Op: "resize sandbox", Field: "Resources.Disk", Value: r.Disk, Message: "the sandbox runs"}
	}
	i.Resources.CPU, i.Resources.Memory, i.Resources.Disk = cmp.Or(r.CPU, i.Resources.CPU), cmp.Or(r.Memory, i.Resources.Memory), cmp.Or(r.Disk, i.Resources.Disk)
	return b.save(i)
}

func (b *hostBackend) Archive(_ context.Context, id string) (daytona.Info, error) {
	return b.set(id, daytona.StateArchived)
}

// Restore knows a sandbox of another machine.
func (b *hostBackend) Restore(_ context.Context, id string) (daytona.Info, error) {
	if id == "elsewhere" {
		return daytona.Info{ID: id, Name: id, State: daytona.StateStopped}, nil
	}
	return b.set(id, daytona.StateStopped)
}

func (b *hostBackend) CreateSnapshot(ctx context.Context, spec daytona.SnapshotSpec) (daytona.Snapshot, error) {
	sn := daytona.Snapshot{
		ID: "id-" + spec.Name, Name: spec.Name, State: daytona.SnapshotActive, Image: spec.Image, Entrypoint: spec.Entrypoint, Resources: spec.Resources,
		SizeBytes: 3 << 20, CreatedAt: time.Now(),
	}
	if b.recorded("snapshot", spec.Name, &sn) == nil {
		return sn, &daytona.Error{Kind: daytona.KindConflict, Op: "create snapshot", Subject: spec.Name, Message: "the name is taken"}
	}
	if spec.Sandbox != "" {
		i, err := b.find(spec.Sandbox)
		if err != nil {
			return sn, err
		}
		sn.Sandbox, sn.Resources = i.ID, i.Resources
	}
	return sn, b.record("snapshot", spec.Name, sn)
}

func (b *hostBackend) GetSnapshot(_ context.Context, name string) (sn daytona.Snapshot, err error) {
	return sn, b.recorded("snapshot", name, &sn)
}

func (b *hostBackend) ListSnapshots(ctx context.Context) iter.Seq2[daytona.Snapshot, error] {
	return func(yield func(daytona.Snapshot, error) bool) {
		files, _ := filepath.Glob(filepath.Join(b.dir, "snapshot", "*"))
		for _, f := range files {
			var sn daytona.Snapshot
			data, err := os.ReadFile(f)
			if err == nil {
				err = json.Unmarshal(data, &sn)
			}
			if !yield(sn, err) {
				return
			}
		}
	}
}

func (b *hostBackend) DeleteSnapshot(ctx context.Context, name string) error {
	if _, err := b.GetSnapshot(ctx, name); err != nil {
		return err
	}
	return os.Remove(filepath.Join(b.dir, "snapshot", name))
}

func (b *hostBackend) SetSnapshotActive(ctx context.Context, name string, active bool) (daytona.Snapshot, error) {
	sn, err := b.GetSnapshot(ctx, name)
	if err != nil {
		return sn, err
	}
	if sn.State = daytona.SnapshotInactive; active {
		sn.State = daytona.SnapshotActive
	}
	return sn, b.record("snapshot", name, sn)
}

// BuildImage says what it is to build, line by line; a line with "fail" fails.
func (b *hostBackend) BuildImage(_ context.Context, img *daytona.Image, o daytona.BuildOptions) (daytona.BuiltImage, error) {
	lines := strings.Split(strings.TrimSpace(img.Dockerfile()), "\n")
	for i, line := range lines {
		l := daytona.BuildLog{Step: i + 1, Name: fmt.Sprintf("[%d/%d] %s", i+1, len(lines), line)}
		o.OnLog(l)
		switch {
		case strings.HasPrefix(line, "COPY"):
			for _, c := range img.Contexts() {
				err := filepath.WalkDir(c.Source, func(p string, d fs.DirEntry, err error) error {
					if err == nil && !d.IsDir() {
						rel, _ := filepath.Rel(c.Source, p)
						l.Line = filepath.Join(c.Path, rel)
						o.OnLog(l)
					}
					return err
				})
				if err != nil {
					return daytona.BuiltImage{}, err
				}
			}
		case strings.Contains(line, "fail"):
			l.Line, l.Stderr = "it \x1b[31mbroke", true
			o.OnLog(l)
			l.Line, l.Stderr, l.Done, l.Error = "", false, true, "exit code 3"
			o.OnLog(l)
			return daytona.BuiltImage{}, &daytona.BuildError{Step: l.Step, Name: l.Name, Line: i + 1, ExitCode: 3, Log: []byte("it broke"), Err: errors.New("exit code 3")}
		case strings.HasPrefix(line, "RUN"):
			l.Line = fmt.Sprint(o.Args, string(slices.Concat(o.Secrets["s"])), o.Network.Block, o.Resources.Memory, o.Target, o.NoCache)
			o.OnLog(l)
			l.Line = ""
			o.OnLog(l) // an empty line of output
		}
		l.Line, l.Done, l.Cached = "", true, i == 0
		o.OnLog(l)
	}
	return daytona.BuiltImage{Ref: fmt.Sprintf("built:%d", len(lines)), Digest: "sha256:x"}, nil
}

func TestSandboxStates(t *testing.T) {
	s := hostShell(t)
	s.ok("sandbox", "create", "--name", "dev", "--memory", "1g", "--auto-pause", "1h", "--auto-archive", "2h")
	info := func(name string) (i daytona.Info) {
		t.Helper()
		if err := json.Unmarshal([]byte(s.ok("sandbox", "info", name, "-o", "json")), &i); err != nil {
			t.Fatal(err)
		}
		return i
	}
	state := func(want daytona.State) {
		t.Helper()
		if got := info("dev").State; got != want {
			t.Errorf("state %s, want %s", got, want)
		}
	}
	if i := info("dev"); i.AutoPause != time.Hour || i.AutoArchive != 2*time.Hour {
		t.Errorf("%+v", i)
	}
	for _, step := range []struct {
		args string
		want daytona.State
	}{
		{"sandbox pause dev", daytona.StatePaused},
		{"sandbox resume dev", daytona.StateStarted},
		{"sandbox resize dev --cpu 2 --memory 2g", daytona.StateStarted},
		{"sandbox stop dev", daytona.StateStopped},
		{"sandbox resize --disk 5g dev", daytona.StateStopped},
		{"sandbox archive dev", daytona.StateArchived},
		{"sandbox restore dev", daytona.StateStopped},
		{"sandbox archive dev", daytona.StateArchived},
		{"sandbox start dev", daytona.StateStarted},
	} {
		if got := s.ok(strings.Fields(step.args)...); got != "dev\n" {
			t.Errorf("%s: got %q", step.args, got)
		}
		state(step.want)
	}
	if i := info("dev"); i.Resources != (daytona.Resources{CPU: 2, Memory: 2, Disk: 5}) {
		t.Errorf("%+v", i.Resources)
	}
	if r := s.run("sandbox", "resize", "dev", "--disk", "6g"); r.code != 125 || !strings.Contains(r.stderr, "--disk = ") {
		t.Error(r)
	}
	if r := s.run("sandbox", "pause", "--to-disk", "dev"); r.code != 125 || !strings.Contains(r.stderr, "no such thing") {
		t.Error(r)
	}
	if got := s.ok("sandbox", "restore", "elsewhere"); got != "elsewhere\n" {
		t.Errorf("got %q", got)
	}

	s.write("f", "of the parent\n", 0o644)
	s.ok("sandbox", "cp", "f", "dev:f")
	if got := s.ok("sandbox", "fork", "dev", "one", "two"); got != "one\ntwo\n" {
		t.Errorf("got %q", got)
	}
	if got := s.ok("sandbox", "exec", "two", "--", "cat", "f"); got != "of the parent\n" {
		t.Errorf("got %q", got)
	}
	if got := s.ok("sandbox", "info", "two"); !strings.Contains(got, "Forked from:") {
		t.Errorf("got %s", got)
	}
	var children []daytona.Info
	if err := json.Unmarshal([]byte(s.ok("sandbox", "fork", "dev", "-n", "3", "-o", "json")), &children); err != nil || len(children) != 3 || children[2].Parent != info("dev").ID {
		t.Errorf("%v, %+v", err, children)
	}
	if got := s.ok("__complete", "sandbox", "resume", ""); strings.Contains(got, "dev") {
		t.Errorf("completion: %q", got)
	}
	s.ok("sandbox", "delete", "--all", "--force")
	s.nothingLeft()
}

func TestSnapshots(t *testing.T) {
	s := hostShell(t)
	s.ok("sandbox", "create", "--name", "dev", "--memory", "1g")
	s.write("Dockerfile", "FROM debian:12\nRUN true\n", 0o644)
	for _, args := range []string{
		"snapshot create image --image debian:12 --cpu 2 --memory 512m -e", // and an entrypoint
		"snapshots create built -f Dockerfile",
		"snapshot create --sandbox dev files",
	} {
		fields := strings.Fields(args)
		if strings.HasSuffix(args, "-e") {
			fields = append(fields, "python3 -m http.server")
		}
		r := s.run(fields...)
		if r.code != 0 || !strings.Contains(args, strings.TrimSpace(r.stdout)) || strings.Contains(r.stderr, "RUN true") != strings.Contains(args, "built") {
			t.Errorf("%s: %s", args, r)
		}
	}
	s.ok("snapshot", "create", "with", "-i", "debian:12", "--", "sleep", "a b")
	if r := s.run("snapshot", "create", "image", "-i", "x"); r.code != 125 || !strings.Contains(r.stderr, "daytona snapshot delete image") {
		t.Error(r)
	}
	var list []daytona.Snapshot
	if err := json.Unmarshal([]byte(s.ok("snapshot", "ls", "-o", "json")), &list); err != nil || len(list) != 4 {
		t.Fatalf("%v, %+v", err, list)
	}
	for _, sn := range list {
		switch sn.Name {
		case "image":
			if sn.Image != "debian:12" || sn.Resources.CPU != 2 || sn.Resources.Memory != 0.5 || len(sn.Entrypoint) != 3 {
				t.Errorf("%+v", sn)
			}
		case "built":
			if sn.Image != "built:2" {
				t.Errorf("%+v", sn)
			}
		case "files":
			if sn.Sandbox == "" || sn.Resources.Memory != 1 {
				t.Errorf("%+v", sn)
			}
		case "with":
			if !slices.Equal(sn.Entrypoint, []string{"sleep", "a b"}) {
				t.Errorf("%+v", sn)
			}
		}
	}
	if got := s.ok("snapshot", "list"); !strings.Contains(got, "3.0 MiB") || !strings.Contains(got, "sandbox ") {
		t.Errorf("got %s", got)
	}
	if got := s.ok("snapshot", "get", "image"); !strings.Contains(got, "python3 -m http.server") {
		t.Errorf("got %s", got)
	}
	if got := s.ok("snapshot", "deactivate", "image", "built"); got != "image\nbuilt\n" {
		t.Errorf("got %q", got)
	}
	if got := s.ok("snapshot", "get", "image"); !strings.Contains(got, "inactive") {
		t.Errorf("got %s", got)
	}
	s.ok("snapshot", "activate", "image")
	if got := s.ok("__complete", "run", "--snapshot", "i"); !strings.HasPrefix(got, "image\n") {
		t.Errorf("completion: %q", got)
	}
	if got := s.ok("sandbox", "create", "--name", "new", "--snapshot", "image"); got != "new\n" {
		t.Errorf("got %q", got)
	}
	if got := s.ok("sandbox", "list"); !strings.Contains(got, "image (snapshot)") {
		t.Errorf("got %s", got)
	}
	if r := s.run("snapshot", "delete", "image", "nowhere"); r.code != 125 || r.stdout != "image\n" || !strings.Contains(r.stderr, "nowhere") {
		t.Error(r)
	}
}

func TestVolumeKinds(t *testing.T) {
	s := hostShell(t)
	s.env = append(s.env, "AWS_ACCESS_KEY_ID=key", "AWS_SECRET_ACCESS_KEY=secret")
	s.ok("volume", "create", "big", "--quota", "10g")
	if got := s.ok("volumes", "get", "big"); !strings.Contains(got, "10.0 GiB") || !strings.Contains(got, "directory") {
		t.Errorf("got %s", got)
	}
	s.ok("volume", "create", "far", "--s3-endpoint", "https://s3.example", "--s3-bucket", "b", "--s3-prefix", "p", "--s3-region", "r")
	var v daytona.Volume
	if err := json.Unmarshal([]byte(s.ok("volume", "get", "far", "-o", "json")), &v); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprint(daytona.S3Location{Endpoint: "https://s3.example", Region: "r", Bucket: "b", Prefix: "p", AccessKey: "key", SecretKey: "secret"}); v.Kind != daytona.VolumeS3 || v.ID != want {
		t.Errorf("%+v, want %s", v, want)
	}
}

func TestImageBuild(t *testing.T) {
	s := hostShell(t)
	s.write("app/Dockerfile", "FROM debian:12\nCOPY . /\nRUN make\n", 0o644)
	s.write("app/src/main.go", "", 0o644)
	s.write("other/x", "", 0o644)
	s.write("bad/Dockerfile", "FROM debian:12\nRUN fail\n", 0o644)
	s.write("token", "of a file", 0o644)
	s.env = append(s.env, "TOKEN=of a variable")
	r := s.run("image", "build", "-f", "app/Dockerfile", "--build-arg", "A=b", "--secret", "id=s,src=token", "--net", "none", "--memory", "1g", "--target", "t", "--no-cache")
	want := "#1 [1/3] FROM debian:12\n#1 CACHED\n#2 [2/3] COPY . /\n#2 Dockerfile\n#2 src/main.go\n#2 DONE\n#3 [3/3] RUN make\n#3 map[A:b]of a filetrue 1ttrue"
	if r.code != 0 || r.stdout != "built:3\n" || !strings.HasPrefix(strings.ReplaceAll(r.stderr, " ", ""), strings.ReplaceAll(want, " ", "")) || !strings.HasSuffix(r.stderr, "\n#3\n#3 DONE\n") {
		t.Errorf("%s\nwant %s", r, want)
	}
	r = s.run("image", "build", "-f", "app/Dockerfile", "-c", "app/src", "-c", filepath.Join(s.dir, "other"), "--secret", "id=s,env=TOKEN", "-o", "json")
	var built daytona.BuiltImage
	if err := json.Unmarshal([]byte(r.stdout), &built); err != nil || built.Ref != "built:3" || !strings.Contains(r.stderr, "#2 app/src/main.go\n#2 other/x\n") || !strings.Contains(r.stderr, "of a variable") {
		t.Errorf("%v, %s", err, r)
	}
	s.write("Dockerfile", "FROM scratch\n", 0o644)
	if got := s.ok("image", "build"); got != "built:1\n" {
		t.Errorf("got %q", got)
	}
	for _, args := range []string{"image build", "run", "sandbox create", "snapshot create x"} {
		r := s.run(append(strings.Fields(args), "-f", "bad/Dockerfile")...)
		if args == "run" {
			r = s.run("run", "-f", "bad/Dockerfile", "--", "true")
		}
		if r.code != 125 || r.stdout != "" || !strings.Contains(r.stderr, "#2 FAILED: exit code 3\ndaytona: build step [2/2] RUN fail (line 2): exit code 3\n") || strings.Contains(r.stderr, "\x1b") {
			t.Errorf("daytona %s: %s", args, r)
		}
	}
	r = s.run("run", "--dockerfile", "app/Dockerfile", "--", "echo", "ran")
	if r.code != 0 || r.stdout != "ran\n" || !strings.Contains(r.stderr, "RUN make") {
		t.Error(r)
	}
	s.ok("sandbox", "create", "--name", "dev", "-f", "app/Dockerfile")
	if got := s.ok("sandbox", "list"); !strings.Contains(got, "built:3") {
		t.Errorf("got %s", got)
	}
	s.ok("sandbox", "delete", "dev")
	s.nothingLeft()
}
