package filesystem_test

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// pattern reads a stream that is not all zero.
type pattern struct{ left int64 }

func (p *pattern) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := int(min(int64(len(b)), p.left))
	p.left -= int64(n)
	return n, nil
}

// form is a bulk upload of one large file.
func form(name string, size int64) (string, io.Reader) {
	var head bytes.Buffer
	w := multipart.NewWriter(&head)
	_ = w.WriteField("files[0].path", name)
	_, _ = w.CreateFormFile("files[0].file", name)
	tail := "\r\n--" + w.Boundary() + "--\r\n"
	return w.FormDataContentType(), io.MultiReader(bytes.NewReader(head.Bytes()), &pattern{size}, strings.NewReader(tail))
}

// TestLargeTransfers moves a GiB in every way, with client and agent in this
// process, and watches its memory.
func TestLargeTransfers(t *testing.T) {
	if testing.Short() {
		t.Skip("moves gigabytes")
	}
	const size = 1 << 30
	s := serve(t, nil)
	stop := make(chan struct{})
	peak := make(chan uint64)
	go func() {
		var top uint64
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			top = max(top, m.HeapInuse)
			select {
			case <-stop:
				peak <- top
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)

	check := func(what string, resp *http.Response, err error) {
		t.Helper()
		must(t, err)
		n, err := io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || strings.Contains(what, "download") && n < size {
			t.Errorf("%s: status %d, %d bytes, %v", what, resp.StatusCode, n, err)
		}
	}
	start := time.Now()
	lap := func(what string) {
		t.Logf("%s: %.0f MiB/s", what, size/float64(1<<20)/time.Since(start).Seconds())
		start = time.Now()
	}
	r, _ := http.NewRequest("POST", route("/files/upload-v2", "path", "big"), &pattern{size})
	r.Header.Set("Content-Type", "application/octet-stream")
	resp, err := s.Do(r)
	check("upload", resp, err)
	lap("upload, chunked")
	r, _ = http.NewRequest("POST", route("/files/upload-v2", "path", "big"), &pattern{size})
	r.Header.Set("Content-Type", "application/octet-stream")
	r.ContentLength = size
	resp, err = s.Do(r)
	check("upload", resp, err)
	lap("upload")
	kind, body := form("big", size)
	resp, err = s.Post(route("/files/bulk-upload"), kind, body)
	check("bulk upload", resp, err)
	lap("bulk upload")
	if info, err := os.Stat(s.path("big")); err != nil || info.Size() != size {
		t.Errorf("uploaded %v, %v", info, err)
	}
	resp, err = s.Get(route("/files/download", "path", "big"))
	check("download", resp, err)
	lap("download")
	resp, err = s.Post(route("/files/bulk-download"), "application/json", strings.NewReader(`{"paths":["big"]}`))
	check("bulk download", resp, err)
	lap("bulk download")
	close(stop)
	if top := <-peak; top > before.HeapInuse+24<<20 {
		t.Errorf("the heap grew from %d to %d MiB", before.HeapInuse>>20, top>>20)
	}
}

// The benchmarks compare with cp of the same file in the same directory.
const benchSize = 1 << 30

func BenchmarkCopy(b *testing.B) {
	s := serve(b, nil)
	must(b, exec.Command("dd", "if=/dev/zero", "of="+s.path("big"), "bs=1M", fmt.Sprintf("count=%d", benchSize>>20), "status=none").Run())
	b.SetBytes(benchSize)
	for b.Loop() {
		must(b, exec.Command("cp", s.path("big"), s.path("copy")).Run())
		b.StopTimer()
		must(b, os.Remove(s.path("copy")))
		b.StartTimer()
	}
}

func BenchmarkUpload(b *testing.B) {
	s := serve(b, nil)
	b.SetBytes(benchSize)
	for b.Loop() {
		r, _ := http.NewRequest("POST", route("/files/upload-v2", "path", "big"), &pattern{benchSize})
		r.ContentLength = benchSize
		resp, err := s.Do(r)
		must(b, err)
		resp.Body.Close()
		b.StopTimer()
		must(b, os.Remove(s.path("big")))
		b.StartTimer()
	}
}

func BenchmarkBulkUpload(b *testing.B) {
	s := serve(b, nil)
	b.SetBytes(benchSize)
	for b.Loop() {
		kind, body := form("big", benchSize)
		resp, err := s.Post(route("/files/bulk-upload"), kind, body)
		must(b, err)
		resp.Body.Close()
		b.StopTimer()
		must(b, os.Remove(s.path("big")))
		b.StartTimer()
	}
}

func BenchmarkDownload(b *testing.B) {
	s := serve(b, nil)
	must(b, exec.Command("dd", "if=/dev/zero", "of="+s.path("big"), "bs=1M", fmt.Sprintf("count=%d", benchSize>>20), "status=none").Run())
	b.SetBytes(benchSize)
	buf := make([]byte, 1<<20)
	for b.Loop() {
		resp, err := s.Get(route("/files/download", "path", "big"))
		must(b, err)
		if n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, resp.Body, buf); err != nil || n != benchSize {
			b.Fatal(n, err)
		}
		resp.Body.Close()
	}
}
