package proxy_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// BenchmarkExec is a command by way of the proxy, and straight at the agent.
func BenchmarkExec(b *testing.B) {
	w := newWorld(b, nil)
	direct := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return w.Dial(ctx, sandboxA) }}
	defer direct.CloseIdleConnections()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	plain := &http.Server{Handler: w.proxy}
	go plain.Serve(l)
	defer plain.Close()
	proxied := &http.Transport{}
	defer proxied.CloseIdleConnections()
	for _, c := range []struct {
		name, url, body string
		transport       http.RoundTripper
	}{
		{"direct/exec", "http://agent/process/execute", `{"command":"true"}`, direct},
		{"proxy/exec", "http://" + l.Addr().String() + "/toolbox/" + sandboxA + "/process/execute", `{"command":"true"}`, proxied},
		{"direct/version", "http://agent/version", "", direct},
		{"proxy/version", "http://" + l.Addr().String() + "/toolbox/" + sandboxA + "/version", "", proxied},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				method := "GET"
				if c.body != "" {
					method = "POST"
				}
				r, _ := http.NewRequestWithContext(b.Context(), method, c.url, strings.NewReader(c.body))
				r.Header.Set("Authorization", "Bearer "+keyA)
				resp, err := c.transport.RoundTrip(r)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 200 {
					b.Fatal(resp.Status, err)
				}
				resp.Body.Close()
			}
		})
	}
}
