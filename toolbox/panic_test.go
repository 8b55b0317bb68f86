package toolbox

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestPanic adds a route that panics, which none does of itself.
func TestPanic(t *testing.T) {
	s, err := New(t.Context(), Config{WorkDir: t.TempDir()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.mux.HandleFunc("GET /panic", func(w http.ResponseWriter, r *http.Request) { panic("at once") })
	s.mux.HandleFunc("GET /late", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "begun")
		panic("late")
	})
	server := httptest.NewServer(s.Handler())
	defer server.Close()
	resp, err := http.Get(server.URL + "/panic")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 500 || !strings.Contains(string(b), "INTERNAL_SERVER_ERROR") || strings.Contains(string(b), "at once") {
		t.Errorf("%d %s", resp.StatusCode, b)
	}
	if resp, err = http.Get(server.URL + "/late"); err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("an answer that broke in the middle looks whole")
	}
	if resp, err = http.Get(server.URL + "/version"); err != nil || resp.StatusCode != 200 {
		t.Errorf("after panics: %v, %v", resp, err)
	}
	resp.Body.Close()
}
