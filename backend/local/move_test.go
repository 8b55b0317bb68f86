package local

import (
	"bytes"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/daytona-go/daytona"
)

// TestSnapshotElsewhere makes sandboxes on one engine of a snapshot of another.
func TestSnapshotElsewhere(t *testing.T) {
	ctx := t.Context()
	open := func() (*engine, *daytona.Client) {
		e, err := newEngine(ctx, &Options{Dir: t.TempDir()})
		must(t, err)
		t.Cleanup(func() { must(t, e.Close()) })
		return e, daytona.New(e)
	}
	a, ca := open()
	needsArchive(t, a)
	mover, ok := daytona.As[daytona.SnapshotMover](daytona.Backend(a))
	if !ok {
		t.Fatal("it can archive, and not exchange snapshots")
	}
	sb, err := ca.Create(ctx, daytona.Spec{Name: "source"})
	must(t, err)
	sh(t, sb, "cd ~; echo one > f; ln f g; mkdir -m 700 d; ln -s f l; mkfifo p; echo x > gone; truncate -s 100M sparse")
	must(t, sb.Stop(ctx, nil))
	_, err = ca.CreateSnapshot(ctx, daytona.SnapshotSpec{Name: "first", Sandbox: "source"}) // so that there are two layers
	must(t, err)
	must(t, sb.Start(ctx))
	sh(t, sb, "cd ~; rm gone; echo two > d/new")
	_, err = ca.CreateSnapshot(ctx, daytona.SnapshotSpec{Name: "second", Sandbox: "source"})
	must(t, err)
	var out bytes.Buffer
	must(t, mover.ExportSnapshot(ctx, "second", &out))
	if err := mover.ExportSnapshot(ctx, "none", &bytes.Buffer{}); daytona.KindOf(err) != daytona.KindNotFound {
		t.Errorf("what is not there: %v", err)
	}
	must(t, sb.Delete(ctx))

	b, cb := open()
	s, err := b.ImportSnapshot(ctx, "org/arrived:1", bytes.NewReader(out.Bytes()))
	must(t, err)
	if s.Name != "org/arrived:1" || s.State != daytona.SnapshotActive || s.Sandbox != sb.ID() || s.SizeBytes == 0 {
		t.Errorf("%+v", s)
	}
	if _, err := b.ImportSnapshot(ctx, "org/arrived:1", bytes.NewReader(out.Bytes())); daytona.KindOf(err) != daytona.KindConflict {
		t.Errorf("a name that is taken: %v", err)
	}
	there, err := cb.Create(ctx, daytona.Spec{Snapshot: "org/arrived:1"})
	must(t, err)
	must(t, b.DeleteSnapshot(ctx, "org/arrived:1"))
	if got := sh(t, there, "cd ~; cat f d/new; stat -c '%h %U' f; stat -c %a d; ls; stat -c %b sparse"); got != "one\ntwo\n2 daytona\n700\nd\nf\ng\nl\np\nsparse\n0" {
		t.Errorf("it has %q", got)
	}
	must(t, there.Delete(ctx))
	if n := layersOf(t, b); n != 0 {
		t.Errorf("%d layers are left", n)
	}

	// What is not whole is refused, and nothing of it stays.
	whole := out.Bytes()
	for name, data := range map[string][]byte{
		"nothing": nil, "no snapshot": []byte(strings.Repeat("x", 100)),
		"half": whole[:len(whole)/2], "all but the end": whole[:len(whole)-1],
		"a bit": append(append(bytes.Clone(whole[:len(whole)/2]), whole[len(whole)/2]^0x10), whole[len(whole)/2+1:]...),
	} {
		if _, err := b.ImportSnapshot(ctx, "bad", bytes.NewReader(data)); daytona.KindOf(err) != daytona.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
		if n := layersOf(t, b); n != 0 {
			t.Errorf("%s: %d layers are left", name, n)
		}
		if _, err := b.GetSnapshot(ctx, "bad"); daytona.KindOf(err) != daytona.KindNotFound {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSnapshotElsewhereOverImage exchanges snapshots that were made over an
// image: one of a registry is pulled again, one of this machine is in the snapshot.
func TestSnapshotElsewhereOverImage(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no Go toolchain to build the image's program with")
	}
	ctx := t.Context()
	img := smallImage(t)
	server := httptest.NewServer(registry.New())
	defer server.Close()
	ref := strings.TrimPrefix(server.URL, "http://") + "/small:1"
	tag, err := name.ParseReference(ref)
	must(t, err)
	must(t, remote.Write(tag, img))
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	must(t, err)
	must(t, path.AppendImage(img))
	open := func() (*engine, *daytona.Client) {
		e, err := newEngine(ctx, &Options{Dir: t.TempDir()})
		must(t, err)
		t.Cleanup(func() { must(t, e.Close()) })
		return e, daytona.New(e)
	}
	a, ca := open()
	needsArchive(t, a)
	b, cb := open()
	for kind, ref := range map[string]string{"registry": ref, "layout": "oci:" + dir} {
		sb, err := ca.Create(ctx, daytona.Spec{Image: ref, Network: daytona.NetworkPolicy{Block: true}})
		must(t, err)
		must(t, sb.FileSystem().WriteFile(ctx, "/kept", []byte(kind), 0o644))
		_, err = ca.CreateSnapshot(ctx, daytona.SnapshotSpec{Name: kind, Sandbox: sb.ID()})
		must(t, err)
		var out, again bytes.Buffer
		must(t, a.ExportSnapshot(ctx, kind, &out))
		must(t, sb.Delete(ctx))
		size := out.Len()
		if small := size < 1<<20; small != (kind == "registry") {
			t.Errorf("%s: %d bytes", kind, size)
		}
		if kind == "layout" {
			must(t, os.RemoveAll(dir))
		}
		_, err = b.ImportSnapshot(ctx, kind, &out)
		must(t, err)
		check := func(c *daytona.Client, snapshot string) daytona.Sandbox {
			sb, err := c.Create(ctx, daytona.Spec{Snapshot: snapshot, Network: daytona.NetworkPolicy{Block: true}})
			must(t, err)
			if data, err := sb.FileSystem().ReadFile(ctx, "/kept"); err != nil || string(data) != kind {
				t.Errorf("%s: %q %v", kind, data, err)
			}
			if out, err := sb.Process().Command(ctx, "hello", "version").Output(); err != nil || len(out) == 0 {
				t.Errorf("%s: the image's program: %q, %v", kind, out, err)
			}
			if _, err := sb.FileSystem().Stat(ctx, "/old"); daytona.KindOf(err) != daytona.KindNotFound {
				t.Errorf("%s: what the image has removed: %v", kind, err)
			}
			return sb
		}
		there := check(cb, kind)
		// And back, of a sandbox that never had the image itself.
		_, err = cb.CreateSnapshot(ctx, daytona.SnapshotSpec{Name: kind + "-back", Sandbox: there.ID()})
		must(t, err)
		must(t, there.Delete(ctx))
		must(t, b.ExportSnapshot(ctx, kind+"-back", &again))
		_, err = a.ImportSnapshot(ctx, kind+"-back", &again)
		must(t, err)
		must(t, check(ca, kind+"-back").Delete(ctx))
	}
}
