package local

import (
	"bytes"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

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
	z, err := zstd.NewReader(nil)
	must(t, err)
	defer z.Close()
	plain, err := z.DecodeAll(whole, nil)
	must(t, err)
	// Of what is compressed: of a compressed stream, there are bits that mean nothing.
	plain[len(plain)/2] ^= 0x10
	w, err := zstd.NewWriter(nil)
	must(t, err)
	for name, data := range map[string][]byte{
		"nothing": nil, "no snapshot": []byte(strings.Repeat("x", 100)),
		"half": whole[:len(whole)/2], "all but the end": whole[:len(whole)-1],
		"a bit": w.EncodeAll(plain, nil),
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
