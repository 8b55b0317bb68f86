//go:build linux

package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// manyFiles streams an archive of n empty files in directories of a thousand.
func manyFiles(n int) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		for i := range n {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("d%d/f%d", i/1000, i), Mode: 0o644}
			if err := tw.WriteHeader(h); err != nil {
				w.CloseWithError(err)
				return
			}
		}
		w.CloseWithError(tw.Close())
	}()
	return r
}

// TestMillionEntries unpacks a layer of 10⁶ files, and refuses it where fewer are allowed, in
// bounded memory.
func TestMillionEntries(t *testing.T) {
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("-short, or the second time")
	}
	const n = 1_000_000
	run := func(limit int64) (layerStats, error, uint64) {
		root := filepath.Join(tempDir(t), "fs")
		if err := os.Mkdir(root, 0o700); err != nil {
			t.Fatal(err)
		}
		raw := manyFiles(n)
		defer raw.Close()
		b := &budget{maxEntries: limit, maxBytes: 64 << 30}
		src := &stream{ctx: t.Context(), raw: raw, size: -1, diffHash: discardHash{}, budget: b}
		if err := src.open(); err != nil {
			t.Fatal(err)
		}
		defer src.close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var peak uint64
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			for {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapAlloc)
				if pause(ctx, 100*time.Millisecond) != nil {
					return
				}
			}
		}()
		stats, err := unpack(t.Context(), root, src, b, ownership{root: true})
		cancel()
		<-watched
		return stats, err, peak
	}
	began := time.Now()
	stats, err, peak := run(2_000_000)
	if err != nil || stats.Entries != n+n/1000 {
		t.Errorf("%d entries, %v", stats.Entries, err)
	}
	t.Logf("%d entries in %v, at most %d MiB of heap", stats.Entries, time.Since(began).Round(time.Millisecond), peak>>20)
	if peak > 256<<20 {
		t.Errorf("it took %d MiB of heap", peak>>20)
	}
	if _, err, _ := run(1000); !errors.Is(err, ErrTooLarge) {
		t.Errorf("with fewer allowed: %v", err)
	}
}

// BenchmarkUnpack unpacks a Docker archive, and has Docker load the same if an engine answers.
// x_docker is the time over Docker's: less than 1 is faster.
func BenchmarkUnpack(b *testing.B) {
	var entries []entry
	for i := range 4000 {
		entries = append(entries, file(fmt.Sprintf("usr/d%d/f%d", i/100, i), strings.Repeat(noise(uint64(i), 4000), 4)))
	}
	data := makeTar(b, entries...)
	archive := filepath.Join(tempDir(b), "image.tar")
	tagName := fmt.Sprintf("daytona-benchmark-unpack:%d", os.Getpid())
	tag, err := name.NewTag(tagName)
	if err != nil {
		b.Fatal(err)
	}
	if err := tarball.WriteToFile(archive, tag, imageOf(b, layerOf(b, data))); err != nil {
		b.Fatal(err)
	}
	ref := mustParse(b, "docker-archive:"+archive)
	var ours, docker []time.Duration
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		s := newStore(b, nil)
		began := time.Now()
		if _, err := s.Resolve(b.Context(), ref, PullAlways, nil); err != nil {
			b.Fatal(err)
		}
		ours = append(ours, time.Since(began))
		b.StopTimer()
		began = time.Now()
		if exec.Command("docker", "load", "-q", "-i", archive).Run() == nil {
			docker = append(docker, time.Since(began))
			exec.Command("docker", "rmi", tagName).Run()
		}
		b.StartTimer()
	}
	median := func(d []time.Duration) float64 {
		if len(d) == 0 {
			return 0
		}
		d = append([]time.Duration(nil), d...)
		for i := range d {
			for j := i; j > 0 && d[j] < d[j-1]; j-- {
				d[j], d[j-1] = d[j-1], d[j]
			}
		}
		return float64(d[len(d)/2])
	}
	b.ReportMetric(median(ours)/1e6, "ms/p50")
	if peer := median(docker); peer > 0 {
		b.ReportMetric(peer/1e6, "docker-ms/p50")
		b.ReportMetric(median(ours)/peer, "x_docker")
	}
}
