package server

import (
	"io"
	"net/http"
	"time"
)

// stalled is how long a client may send nothing of a body that it has announced.
const stalled = 2 * time.Minute

// patient bounds how long a body may stand still, and not how long it may take:
// uploads are large, and some lines slow.
func patient(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0 {
			r.Body = &body{ReadCloser: r.Body, c: http.NewResponseController(w)}
		}
		next.ServeHTTP(w, r)
	})
}

// body sets a deadline for each piece of a body, not for all of it.
type body struct {
	io.ReadCloser
	c *http.ResponseController
}

func (b *body) Read(p []byte) (int, error) {
	_ = b.c.SetReadDeadline(time.Now().Add(stalled)) // what can't have one has none
	n, err := b.ReadCloser.Read(p)
	_ = b.c.SetReadDeadline(time.Time{})
	return n, err
}
