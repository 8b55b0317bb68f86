package backendtest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/klauspost/compress/gzip"
)

// runStateBenchmarks measures what keeps and copies the files of sandboxes.
func (e *bench) runStateBenchmarks(b *testing.B) {
	b.Run("ForkStopped1GiB", func(b *testing.B) { e.with(b).forkGiB(b, true) })
	b.Run("ForkStarted1GiB", func(b *testing.B) { e.with(b).forkGiB(b, false) })
	b.Run("Fork100", func(b *testing.B) { e.with(b).fork100(b) })
	b.Run("SnapshotCreate", func(b *testing.B) { e.with(b).snapshotCreate(b) })
	b.Run("SnapshotRestore", func(b *testing.B) { e.with(b).snapshotRestore(b) })
	b.Run("Unpack", func(b *testing.B) { e.unpack(b) })
}

// maxStateRuns bounds the iterations of benchmarks that write a GiB for each.
const maxStateRuns = 5

// cold are times of creating a sandbox up to its first command, taken between
// iterations: the peer of everything that makes sandboxes of kept files.
type coldTimes struct {
	*bench
	times []time.Duration
}

func (p *coldTimes) run() {
	begin := time.Now()
	sb := p.create()
	p.must(sb.Process().Command(p.Context(), "true").Run())
	p.times = append(p.times, time.Since(begin))
	p.must(sb.Delete(p.Context()))
}

func (p *coldTimes) peers() map[string]time.Duration {
	return map[string]time.Duration{"create": percentile(p.times, 50)}
}

// coldBeside has had its first create, which prepares images, already.
func (e *bench) coldBeside() *coldTimes {
	sb := e.create()
	e.must(sb.Delete(e.Context()))
	return &coldTimes{bench: e}
}

func (e *bench) sh(sb daytona.Sandbox, line string) {
	e.Helper()
	r, err := sb.Process().Exec(e.Context(), line, nil)
	e.must(err)
	if r.ExitCode != 0 {
		e.Fatalf("%s: %d %s", line, r.ExitCode, r.Output)
	}
}

// gib makes a sandbox that has written a GiB, which is on the disk already.
func (e *bench) gib() daytona.Sandbox {
	sb := e.create()
	e.sh(sb, "mkdir -p /tmp/gib && cd /tmp/gib && i=0; while [ $i -lt 64 ]; do head -c 16777216 /dev/zero | tr '\\0' x >f$i || exit 1; i=$((i+1)); done; sync -f .")
	return sb
}

func (e *bench) forkGiB(b *testing.B, stopped bool) {
	if _, ok := daytona.As[daytona.Forker](e.client.Backend()); !ok {
		b.Skip("the backend is no Forker")
	}
	cold := e.coldBeside()
	var times []time.Duration
	for b.Loop() {
		if len(times) == maxStateRuns {
			continue
		}
		b.StopTimer()
		parent := e.gib()
		if stopped {
			e.must(parent.Stop(b.Context(), nil))
		}
		cold.run()
		begin := time.Now()
		children, err := parent.Fork(b.Context(), nil)
		e.must(err)
		e.must(children[0].Process().Command(b.Context(), "test", "-s", "/tmp/gib/f63").Run())
		times = append(times, time.Since(begin))
		cold.run()
		e.must(children[0].Delete(b.Context()))
		e.must(parent.Delete(b.Context()))
		b.StartTimer()
	}
	e.report(times, cold.peers())
}

// free is how much the file system of a directory has left.
func free(dir string) int64 {
	var st syscall.Statfs_t
	if syscall.Statfs(dir, &st) != nil {
		return 0
	}
	return int64(st.Bfree) * int64(st.Bsize)
}

func (e *bench) fork100(b *testing.B) {
	if _, ok := daytona.As[daytona.Forker](e.client.Backend()); !ok {
		b.Skip("the backend is no Forker")
	}
	const width = 100
	cold := e.coldBeside()
	var each []time.Duration
	var disk int64
	for b.Loop() {
		if len(each) == 3 {
			continue
		}
		b.StopTimer()
		parent := e.create()
		e.sh(parent, "head -c 67108864 /dev/zero | tr '\\0' x >/tmp/file; sync -f /tmp/file")
		e.must(parent.Stop(b.Context(), nil))
		for range 3 {
			cold.run()
		}
		before := free(e.state)
		begin := time.Now()
		children, err := parent.Fork(b.Context(), &daytona.ForkOptions{Names: make([]string, width)})
		e.must(err)
		for _, c := range children {
			e.must(c.Process().Command(b.Context(), "true").Run())
		}
		each = append(each, time.Since(begin)/width)
		disk = max(0, before-free(e.state)) / width
		for _, c := range slices.Backward(children) {
			e.must(c.Delete(b.Context()))
		}
		e.must(parent.Delete(b.Context()))
		b.StartTimer()
	}
	e.report(each, cold.peers())
	// Others may write to the same file system meanwhile: an estimate.
	b.ReportMetric(float64(disk)/1024, "KiB/child")
}

func (e *bench) snapshotCreate(b *testing.B) {
	s, ok := daytona.As[daytona.Snapshotter](e.client.Backend())
	if !ok {
		b.Skip("the backend is no Snapshotter")
	}
	cold := e.coldBeside()
	var times []time.Duration
	for b.Loop() {
		if len(times) == maxStateRuns {
			continue
		}
		b.StopTimer()
		sb := e.create()
		e.sh(sb, "head -c 67108864 /dev/zero | tr '\\0' x >/tmp/file; sync -f /tmp/file")
		e.must(sb.Stop(b.Context(), nil))
		cold.run()
		name := fmt.Sprintf("bench-%d", len(times))
		begin := time.Now()
		_, err := sb.CreateSnapshot(b.Context(), name)
		e.must(err)
		times = append(times, time.Since(begin))
		e.must(s.DeleteSnapshot(b.Context(), name))
		e.must(sb.Delete(b.Context()))
		b.StartTimer()
	}
	e.report(times, cold.peers())
}

func (e *bench) snapshotRestore(b *testing.B) {
	s, ok := daytona.As[daytona.Snapshotter](e.client.Backend())
	if !ok {
		b.Skip("the backend is no Snapshotter")
	}
	cold := e.coldBeside()
	sb := e.create()
	e.sh(sb, "head -c 67108864 /dev/zero | tr '\\0' x >/tmp/file; sync -f /tmp/file")
	e.must(sb.Stop(b.Context(), nil))
	_, err := sb.CreateSnapshot(b.Context(), "bench")
	e.must(err)
	spec := e.h.Spec
	spec.Image, spec.Build, spec.Snapshot = "", nil, "bench"
	var times []time.Duration
	for b.Loop() {
		b.StopTimer()
		cold.run()
		b.StartTimer()
		begin := time.Now()
		child, err := e.client.Create(b.Context(), spec)
		e.must(err)
		e.must(child.Process().Command(b.Context(), "test", "-s", "/tmp/file").Run())
		times = append(times, time.Since(begin))
		b.StopTimer()
		e.must(child.Delete(b.Context()))
		b.StartTimer()
	}
	e.report(times, cold.peers())
	e.must(s.DeleteSnapshot(b.Context(), "bench"))
	e.must(sb.Delete(b.Context()))
}

// layerFiles and layerFile make the layer of writeArchive: 320 MiB.
const (
	layerFiles = 18_000
	layerFile  = 16 << 10
	layerBig   = 4
)

// writeArchive writes an image of one gzipped layer as `docker save` does, and
// returns how many bytes the layer has unpacked. Its files compress to a third, about as
// programs and libraries do.
func writeArchive(path, tag string) (size int64, err error) {
	blob, err := os.CreateTemp(filepath.Dir(path), "layer")
	if err != nil {
		return 0, err
	}
	defer os.Remove(blob.Name())
	defer blob.Close()
	zw, err := gzip.NewWriterLevel(blob, gzip.BestSpeed)
	if err != nil {
		return 0, err
	}
	diff := sha256.New()
	buffered := bufio.NewWriterSize(io.MultiWriter(zw, diff), 1<<20)
	tw := tar.NewWriter(buffered)
	random := rand.NewChaCha8([32]byte{2})
	pattern := func(n int) []byte {
		data := make([]byte, n)
		for i := 0; i < n; i += 768 {
			// A quarter that cannot be compressed.
			_, _ = random.Read(data[i:min(n, i+256)])
			copy(data[min(n, i+256):min(n, i+768)], data[i:min(n, i+256)])
		}
		return data
	}
	add := func(name string, data []byte) {
		if err == nil {
			err = tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(1, 0)})
		}
		if err == nil {
			_, err = tw.Write(data)
		}
		size += int64(len(data))
	}
	for _, dir := range []string{"tmp", "etc", "proc", "sys", "dev", "usr", "usr/lib"} {
		if err == nil {
			err = tw.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1, 0)})
		}
	}
	for i := range layerFiles {
		if i%100 == 0 && err == nil {
			err = tw.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/lib/d%d/", i/100), Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1, 0)})
		}
		add(fmt.Sprintf("usr/lib/d%d/f%d", i/100, i), pattern(layerFile))
	}
	for i := range layerBig {
		add(fmt.Sprintf("usr/lib/big%d", i), pattern(8<<20))
	}
	err = errors.Join(err, tw.Close(), buffered.Flush(), zw.Close())
	if err != nil {
		return 0, err
	}
	config, err := json.Marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(diff.Sum(nil))}}})
	if err != nil {
		return 0, err
	}
	sum := sha256.Sum256(config)
	configName := hex.EncodeToString(sum[:]) + ".json"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{tag}, "Layers": []string{"layer.tar.gz"}}})
	if err != nil {
		return 0, err
	}
	out, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	length, err := blob.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = blob.Seek(0, io.SeekStart)
	}
	if err != nil {
		return 0, err
	}
	tw = tar.NewWriter(out)
	for _, f := range []struct {
		name string
		size int64
		data io.Reader
	}{{configName, int64(len(config)), bytes.NewReader(config)}, {"layer.tar.gz", length, blob}, {"manifest.json", int64(len(manifest)), bytes.NewReader(manifest)}} {
		if err := tw.WriteHeader(&tar.Header{Name: f.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: f.size}); err != nil {
			return 0, err
		}
		if _, err := io.Copy(tw, f.data); err != nil {
			return 0, err
		}
	}
	return size, errors.Join(tw.Close(), out.Close())
}

// unpack makes a sandbox of an image that the backend has not seen yet, each time with a
// state of its own, and has Docker load the same file.
func (e *bench) unpack(b *testing.B) {
	if e.h.ForgetImage != nil || e.h.DockerImage != nil {
		b.Skip("the backend's engine keeps the images")
	}
	tag := fmt.Sprintf("daytona-bench-unpack:%d", os.Getpid())
	archive := filepath.Join(b.TempDir(), "image.tar")
	size, err := writeArchive(archive, tag)
	if err != nil {
		b.Fatal(err)
	}
	spec := e.h.Spec
	spec.Image, spec.Build, spec.Snapshot = "docker-archive:"+archive, nil, ""
	_, noDocker := exec.LookPath("docker")
	var times, docker []time.Duration
	for b.Loop() {
		if len(times) == maxStateRuns {
			continue
		}
		b.StopTimer()
		load := func() {
			if noDocker != nil {
				return
			}
			begin := time.Now()
			out, err := exec.CommandContext(b.Context(), "docker", "load", "-q", "-i", archive).CombinedOutput()
			if err != nil {
				b.Logf("peer docker load: %v %s", err, out)
				noDocker = err
				return
			}
			docker = append(docker, time.Since(begin))
			_ = exec.Command("docker", "rmi", tag).Run()
		}
		unpack := func() {
			state, err := os.MkdirTemp(b.TempDir(), "")
			if err != nil {
				b.Fatal(err)
			}
			be, err := e.h.Open(b.Context(), state)
			if err != nil {
				b.Fatal(err)
			}
			client := daytona.New(be)
			begin := time.Now()
			sb, err := client.Create(b.Context(), spec)
			took := time.Since(begin)
			if err == nil {
				times = append(times, took)
				err = sb.Delete(context.WithoutCancel(b.Context()))
			}
			client.Close()
			removeState(state)
			if errors.Is(err, daytona.ErrUnsupported) {
				b.Skip(err)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		// In turns, so that neither always meets the other's writes.
		if len(times)%2 == 0 {
			unpack()
			load()
		} else {
			load()
			unpack()
		}
		b.StartTimer()
	}
	n := &bench{B: b, h: e.h}
	n.report(times, map[string]time.Duration{"dockerload": percentile(docker, 50)})
	b.ReportMetric(float64(size)/1e6/percentile(times, 50).Seconds(), "MB/s")
}

// removeState removes what may lack the permissions to be removed.
func removeState(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}
