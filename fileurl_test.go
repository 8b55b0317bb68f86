package daytona_test

import (
	"bytes"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/daytonatest"
)

func TestFileURLs(t *testing.T) {
	client := daytona.New(daytonatest.NewFake())
	defer client.Close()
	sb, err := client.Create(t.Context(), daytona.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	var handler http.Handler
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	defer server.Close()
	urls := daytona.FileURLs{Base: server.URL + "/s/", Key: daytona.NewFileURLKey()}
	handler = http.StripPrefix("/s", urls.Handler(sb.FileSystem()))

	var form bytes.Buffer
	m := multipart.NewWriter(&form)
	part, _ := m.CreateFormFile("file", "x")
	io.WriteString(part, "from a form")
	m.Close()
	for kind, body := range map[string]string{m.FormDataContentType(): form.String(), "text/plain": "from a form"} {
		up, err := urls.UploadURL("dir/a b&c", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.Post(up, kind, strings.NewReader(body))
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("upload: %v %v", resp, err)
		}
		resp.Body.Close()
		down, err := urls.DownloadURL("dir/a b&c", 0)
		if err != nil {
			t.Fatal(err)
		}
		resp, err = http.Get(down)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != "from a form" || resp.Header.Get("Content-Disposition") != `attachment; filename="a b&c"` {
			t.Errorf("download: %d %q %v", resp.StatusCode, b, resp.Header)
		}
	}
	missing, _ := urls.DownloadURL("none", time.Minute)
	valid, _ := urls.DownloadURL("dir", time.Minute)
	for url, want := range map[string]int{
		missing: 404, strings.Replace(valid, "path=dir", "path=x", 1): 403, valid + "x": 403,
		strings.Replace(valid, "download", "info", 1): 404, strings.Replace(valid, "download", "upload-v2", 1): 405,
	} {
		resp, err := http.Get(url)
		if err != nil || resp.StatusCode != want {
			t.Errorf("%s: %v %v, want %d", url, resp, err, want)
			continue
		}
		resp.Body.Close()
	}
	for _, u := range []daytona.FileURLs{{}, {Key: "k", Base: "http://x/?q"}, {Key: "k", Base: ":"}} {
		if _, err := u.DownloadURL("f", 0); daytona.KindOf(err) != daytona.KindInvalid {
			t.Errorf("%+v: %v", u, err)
		}
	}
	if _, err := urls.DownloadURL("", 0); daytona.KindOf(err) != daytona.KindInvalid {
		t.Error(err)
	}
	if _, err := urls.UploadURL("f", -1); daytona.KindOf(err) != daytona.KindInvalid {
		t.Error(err)
	}
}
