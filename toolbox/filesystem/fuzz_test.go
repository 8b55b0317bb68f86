package filesystem

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/daytona-go/daytona/toolbox/account"
	"github.com/daytona-go/daytona/toolbox/wire"
)

func fuzzService(t testing.TB) (http.Handler, string) {
	dir := t.TempDir()
	s, err := New(Options{Account: account.Current(), WorkDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	s.Register(mux)
	return mux, dir
}

// FuzzBulkUpload sends hostile forms. None contains a slash, so that nothing
// outside the test's directory is written.
func FuzzBulkUpload(f *testing.F) {
	const head = "--b\r\nContent-Disposition: form-data; name=\"files[0].path\"\r\n\r\n"
	const file = "\r\n--b\r\nContent-Disposition: form-data; name=\"files[0].file\"; filename=\"x\"\r\n\r\n"
	f.Add([]byte(head + "a" + file + "content\r\n--b--\r\n"))
	f.Add([]byte(head + ".." + file + "content\r\n--b--\r\n"))
	f.Add([]byte(head + "a\x00b" + file + "content\r\n--b--"))
	f.Add([]byte(head + strings.Repeat("a", 300) + file + "\r\n--b\r\n\r\n--b--"))
	f.Add([]byte(head + "a" + file + "content"))
	f.Add([]byte("--b--"))
	f.Fuzz(func(t *testing.T, body []byte) {
		if bytes.IndexByte(body, '/') >= 0 {
			t.Skip()
		}
		h, dir := fuzzService(t)
		r := httptest.NewRequest("POST", "/files/bulk-upload", iotest.HalfReader(bytes.NewReader(body)))
		r.Header.Set("Content-Type", "multipart/form-data; boundary=b")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		var answer wire.BulkUploadResponse
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || (w.Code == 200) != (len(answer.Errors) == 0) {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
		there := map[string]bool{}
		for _, up := range answer.Files {
			p := path.Clean(up.Path)
			if _, err := os.Lstat(filepath.Join(dir, p)); err == nil {
				there[p] = true
			} else if json.Valid([]byte(`"`+p+`"`)) && !strings.Contains(p, "\uFFFD") {
				t.Errorf("%q was answered and is not there", up.Path)
			} else {
				there[""] = true // a name that JSON cannot say
			}
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if !there[e.Name()] && !there[""] {
				t.Errorf("%q is there and was not answered", e.Name())
			}
		}
	})
}

// FuzzPath sends hostile paths and patterns.
func FuzzPath(f *testing.F) {
	f.Add("a", "*")
	f.Add("../..//./x", "[a-")
	f.Add("\x00", "**/a")
	f.Add("sub/"+strings.Repeat("x", 300), strings.Repeat("*a", 100))
	f.Add("/proc/self/fd/0", "\\")
	h, dir := fuzzService(f)
	if err := os.WriteFile(filepath.Join(dir, strings.Repeat("a", 200)), nil, 0o644); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, p, pattern string) {
		for _, target := range []string{
			"/files/info?" + url.Values{"path": {p}}.Encode(),
			"/files/search?" + url.Values{"path": {"."}, "pattern": {pattern}}.Encode(),
			"/files/find?" + url.Values{"path": {"."}, "pattern": {pattern}}.Encode(),
		} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", target, nil))
			if !json.Valid(w.Body.Bytes()) || w.Code >= 500 {
				t.Errorf("%s: %d %s", target, w.Code, w.Body)
			}
		}
		s := &Service{workDir: "/work"}
		if got, err := s.resolve(p); err == nil && (!path.IsAbs(got) || path.Clean(got) != got || strings.IndexByte(got, 0) >= 0 || len(got) > 4095) {
			t.Errorf("%q resolves to %q", p, got)
		}
	})
}

// FuzzText holds the streaming text functions against those of package bytes.
func FuzzText(f *testing.F) {
	f.Add([]byte("one\ntwo two\nthree"), []byte("two"), []byte("2"))
	f.Add([]byte(strings.Repeat("ab", 50)+"aba\n"), []byte("aba"), []byte(""))
	f.Add([]byte("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"), []byte("aaaaaaa"), []byte("b"))
	f.Fuzz(func(t *testing.T, data, old, new []byte) {
		if len(old) == 0 || len(old) > 16 {
			t.Skip()
		}
		for _, r := range []func() io.Reader{
			func() io.Reader { return bytes.NewReader(data) },
			func() io.Reader { return iotest.OneByteReader(bytes.NewReader(data)) },
			func() io.Reader { return iotest.DataErrReader(bytes.NewReader(data)) },
		} {
			var out bytes.Buffer
			if err := replaceAll(t.Context(), &out, r(), old, new, make([]byte, 40)); err != nil {
				t.Fatal(err)
			}
			if want := bytes.ReplaceAll(data, old, new); !bytes.Equal(out.Bytes(), want) {
				t.Errorf("replaced: %q, want %q", out.Bytes(), want)
			}
			if found, err := contains(t.Context(), r(), old, make([]byte, 40)); err != nil || found != bytes.Contains(data, old) {
				t.Errorf("contains: %v, %v", found, err)
			}
			if bytes.IndexByte(data, 0) >= 0 || bytes.IndexByte(old, '\n') >= 0 {
				continue
			}
			var got, want []int
			if err := grep(r(), old, make([]byte, 600), func(line int, _ []byte) error { got = append(got, line); return nil }); err != nil {
				t.Fatal(err)
			}
			for i, line := range bytes.Split(data, []byte("\n")) {
				if bytes.Contains(line, old) {
					want = append(want, i+1)
				}
			}
			if len(got) != len(want) {
				t.Fatalf("found in lines %v, want %v", got, want)
			}
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("found in lines %v, want %v", got, want)
				}
			}
		}
	})
}
