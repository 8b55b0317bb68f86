// Package daytonatest helps with tests of Go programs that use package
// daytona. [Sandbox] and [Client] give a test a real sandbox of the embedded
// engine and take it away when the test ends, however it ends. [NewFake] is a
// backend in memory, for tests that need speed and control more than a real
// machine.
//
//	func TestAgent(t *testing.T) {
//		sb := daytonatest.Sandbox(t)
//		out, err := sb.Process().Command(t.Context(), "python3", "-c", "print(6*7)").Output()
//		…
//	}
//
// The package knows the embedded engine only as the backend that its URL
// names; all else goes through package daytona.
package daytonatest

import (
	"context"
	"errors"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	_ "github.com/daytona-go/daytona/backend/local" // registers the scheme of the default URL
)

// Option refines [Client] and [Sandbox].
type Option func(*config)

type config struct {
	url    string
	client *daytona.Client
	spec   daytona.Spec
}

// WithURL takes the backend that a URL names, as for [daytona.Open]. Its
// package must be imported. Defaults to the embedded engine with its state in
// a directory of the test's own.
func WithURL(rawURL string) Option { return func(c *config) { c.url = rawURL } }

// WithClient takes a Client of the caller's, who closes it. It wins over
// WithURL.
func WithClient(client *daytona.Client) Option { return func(c *config) { c.client = client } }

// WithSpec describes the sandbox. Defaults to the zero Spec. It should not be
// persistent: then nothing but the end of the test would delete it.
func WithSpec(spec daytona.Spec) Option { return func(c *config) { c.spec = spec } }

func configure(opts []Option) config {
	var c config
	for _, o := range opts {
		o(&c)
	}
	return c
}

// Client opens a Client that is closed, with all its sandboxes, when the test
// ends. It skips the test, with the reason, where the machine cannot run the
// backend: where opening it gives [errors.ErrUnsupported] or KindUnavailable.
// Any other error fails the test.
func Client(t testing.TB, opts ...Option) *daytona.Client {
	t.Helper()
	return configure(opts).open(t)
}

func (c config) open(t testing.TB) *daytona.Client {
	t.Helper()
	if c.client != nil {
		return c.client
	}
	if c.url == "" {
		// Not t.TempDir: a long test name would make a path too long for the
		// address of a Unix socket (unix(7): 108 bytes).
		dir, err := os.MkdirTemp("", "dt-")
		if err != nil {
			t.Fatalf("daytonatest: make a state directory: %v", err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Errorf("daytonatest: remove the state directory: %v", err)
			}
		})
		c.url = (&url.URL{Scheme: "local", Path: dir}).String()
	}
	client, err := daytona.Open(t.Context(), c.url)
	if err != nil {
		if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, daytona.ErrUnavailable) {
			t.Skipf("daytonatest: this machine cannot run the backend %s: %v", c.url, err)
		}
		t.Fatalf("daytonatest: open %s: %v", c.url, err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Errorf("daytonatest: close the client: %v", err)
		}
	})
	return client
}

// Sandbox creates a sandbox that is deleted when the test ends, also when it
// fails or panics; if the whole process dies, the backend reaps it, for it is
// not persistent. It skips the test as [Client] does.
func Sandbox(t testing.TB, opts ...Option) daytona.Sandbox {
	t.Helper()
	c := configure(opts)
	client := c.open(t)
	sb, err := client.Create(t.Context(), c.spec)
	if err != nil {
		t.Fatalf("daytonatest: create a sandbox: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		if err := sb.Delete(ctx); err != nil && !errors.Is(err, daytona.ErrNotFound) {
			t.Errorf("daytonatest: delete sandbox %s: %v", sb.ID(), err)
		}
	})
	return sb
}
