package proxy_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/daytona-go/daytona/server/proxy"
)

// What is open is told of from time to time, however many there are, and what
// is not is not.
func TestActivity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []time.Duration
		began := time.Now()
		s := &sandboxes{}
		p, err := proxy.New(proxy.Config{Sandboxes: s, Authenticator: s, Dialer: s, Key: []byte(strings.Repeat("k", 32)),
			Touch: func(string) { told = append(told, time.Since(began)) }})
		if err != nil {
			t.Fatal(err)
		}
		stop := p.Use("a")
		p.Use("a")()
		time.Sleep(time.Second)
		p.Use("a")()
		time.Sleep(119 * time.Second)
		stop()
		time.Sleep(time.Hour)
		if len(told) != 3 || told[0] != 0 || told[1] != 50*time.Second || told[2] != 100*time.Second {
			t.Errorf("%v", told)
		}
		p.Use("a")()
		if len(told) != 4 {
			t.Errorf("%v", told)
		}
	})
}

func TestSkipActivity(t *testing.T) {
	w := newWorld(t, nil)
	url := w.base() + "/toolbox/" + sandboxA + "/version"
	if a := w.call("GET", url, "", "Authorization", "Bearer "+keyA, "X-Daytona-Skip-Last-Activity-Update", "true"); a.status != 200 {
		t.Fatal(a)
	}
	if a := w.call("GET", url, ""); a.status != 401 {
		t.Fatal(a)
	}
	select {
	case <-w.touched:
		t.Error("it was told of")
	default:
	}
	if a := w.call("GET", url, "", "Authorization", "Bearer "+keyA); a.status != 200 {
		t.Fatal(a)
	}
	if id := <-w.touched; id != sandboxA {
		t.Error(id)
	}
}
