package remote

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
)

// TestSignsOfLife: the owner renews the lease of what has one, and forgets what is
// gone.
func TestSignsOfLife(t *testing.T) {
	signs := make(chan string, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			signs <- r.URL.Path
		}
		if r.URL.Path != "/sandbox/leased/last-activity" || r.Method != http.MethodPost {
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer server.Close()
	made, err := New(&Options{URL: server.URL, Key: "key"})
	if err != nil {
		t.Fatal(err)
	}
	b := made.(*backend)
	b.opts.Lease = 60 * time.Millisecond
	for _, i := range []daytona.Info{
		{ID: "leased"}, {ID: "gone"}, {ID: "stops-by-itself", AutoStop: time.Hour}, {ID: "persistent", Persistent: true},
	} {
		if err := b.adopt(i); err != nil {
			t.Fatal(err)
		}
	}
	count := map[string]int{}
	for count["/sandbox/leased/last-activity"] < 3 {
		select {
		case s := <-signs:
			count[s]++
		case <-time.After(10 * time.Second):
			t.Fatalf("no more signs after %v", count)
		}
	}
	if len(count) != 2 || count["/sandbox/gone/last-activity"] != 1 {
		t.Errorf("signs of %v, want one of what is gone and none of others", count)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := b.adopt(daytona.Info{ID: "late"}); err == nil {
		t.Error("a closed backend takes a sandbox")
	}
}
