//go:build linux

package s3fs

import (
	"encoding/xml"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/s3mount"
)

// TestHostileKeys lists what a bucket may have and no file system: whoever writes
// into it by other means chooses the keys.
func TestHostileKeys(t *testing.T) {
	keys := []string{"p/ok", "p/", "p/../x", "p/./x", "p//x", "p/dir/x", "p/dir/", "p/..", "p/.", "p/both", "p/both/x", "p/both2/x", "p/both2", "q/other", "../p/x", "",
		"p/" + strings.Repeat("n", 256), "p/" + strings.Repeat("n", 255), "p/nul\x00", "p/bad\xff", "p/new\nline", "p/ü"}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		type object struct {
			Key          string
			Size         int
			ETag         string
			LastModified string
		}
		type common struct{ Prefix string }
		var answer struct {
			XMLName        xml.Name `xml:"ListBucketResult"`
			EncodingType   string
			Contents       []object
			CommonPrefixes []common
		}
		answer.EncodingType = "url"
		prefixes := map[string]bool{}
		for _, k := range keys {
			// Also what was not asked for: the service is not trusted with it.
			if rest, ok := strings.CutPrefix(k, "p/"); ok && r.URL.Query().Get("delimiter") != "" {
				if name, _, below := strings.Cut(rest, "/"); below {
					prefixes["p/"+name+"/"] = true
					continue
				}
			}
			answer.Contents = append(answer.Contents, object{Key: url.QueryEscape(k), Size: 1, ETag: `"e"`, LastModified: "2026-01-02T03:04:05Z"})
		}
		for p := range prefixes {
			answer.CommonPrefixes = append(answer.CommonPrefixes, common{url.QueryEscape(p)})
		}
		w.Header().Set("Content-Type", "application/xml")
		if err := xml.NewEncoder(w).Encode(answer); err != nil {
			t.Error(err)
		}
	}))
	defer server.Close()
	b, err := newBucket(s3mount.Config{Location: daytona.S3Location{Endpoint: server.URL, Bucket: "bucket", Prefix: "p"}}, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Fatal(err)
	}
	names, marked, err := b.list(t.Context(), "", maxEntries)
	if err != nil || !marked {
		t.Errorf("%v, %v", marked, err)
	}
	want := []string{"both", "both2", "dir", "new\nline", strings.Repeat("n", 255), "ok", "ü"}
	if got := slices.Sorted(maps.Keys(names)); !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	for name, isDir := range map[string]bool{"both": true, "both2": true, "dir": true, "ok": false} {
		if names[name].dir != isDir {
			t.Errorf("%s: %+v", name, names[name])
		}
	}
}

func TestNames(t *testing.T) {
	b := &bucket{prefix: "p/"}
	for name, want := range map[string]syscall.Errno{
		"ok": 0, "ü": 0, ".hidden": 0, "...": 0, "new\nline": 0, "": syscall.EINVAL, ".": syscall.EINVAL, "..": syscall.EINVAL, "a/b": syscall.EINVAL, "a\x00": syscall.EINVAL,
		"\xff": syscall.EILSEQ, strings.Repeat("n", 256): syscall.ENAMETOOLONG,
	} {
		if got := b.checkName("d/", name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
	if got := b.checkName(strings.Repeat("d/", 450), strings.Repeat("n", 200)); got != syscall.ENAMETOOLONG {
		t.Errorf("a long key: %v", got)
	}
	if s := fmt.Sprint(b.errno(t.Context(), "x", "k", fmt.Errorf("wrapped: %w", syscall.ENOSPC))); s != syscall.ENOSPC.Error() {
		t.Error(s)
	}
}
