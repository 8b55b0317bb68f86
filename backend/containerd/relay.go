//go:build linux

package containerd

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/link"
)

// startRelay has containerd run a relay in a sandbox's container, for runtimes
// whose processes the host does not see.
func (b *backend) startRelay(ctx context.Context, id string) (_ link.Stream, err error) {
	ctx = b.context(ctx)
	r, err := b.Load(id)
	if err != nil {
		return nil, err
	}
	// runc reads the users for that, too, and waits for ever where they are in a
	// pipe.
	if err := b.checkFiles(ctx, lifecycle.DialOp, r); err != nil {
		return nil, err
	}
	c, err := b.api.LoadContainer(ctx, b.name(id))
	if err != nil {
		return nil, err
	}
	task, err := c.Task(ctx, nil)
	if err != nil {
		return nil, err
	}
	spec, err := c.Spec(ctx)
	if err != nil {
		return nil, err
	}
	process := *spec.Process
	process.Args = []string{agentFile, "relay", socketFile}
	process.Terminal = false
	dir, err := os.MkdirTemp(b.Sandbox(id), "relay-")
	if err != nil {
		return nil, err
	}
	s := &stream{dir: dir}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	var in *io.PipeReader
	var out *io.PipeWriter
	in, s.in = io.Pipe()
	s.out, out = io.Pipe()
	if s.process, err = task.Exec(ctx, "relay-"+randomHex(), &process, cio.NewCreator(cio.WithStreams(in, out, stderr{s}), cio.WithFIFODir(dir))); err != nil {
		return nil, err
	}
	return s, s.process.Start(ctx)
}

func randomHex() string {
	b := make([]byte, 8)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// stream is a relay's standard input and output.
type stream struct {
	dir     string // of its pipes
	in      *io.PipeWriter
	out     *io.PipeReader
	process client.Process
	closed  sync.Once

	mu   sync.Mutex
	said []byte
}

func (s *stream) Read(p []byte) (int, error) { return s.out.Read(p) }

// saidLimit bounds what is kept of standard error, in bytes.
const saidLimit = 1 << 10

// stderr is where the relay's standard error goes.
type stderr struct{ *stream }

func (e stderr) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.said = append(e.said, p[:min(len(p), saidLimit-len(e.said))]...)
	return len(p), nil
}

func (s *stream) Write(p []byte) (int, error) { return s.in.Write(p) }

// Said implements link.Stream.
func (s *stream) Said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimSpace(string(s.said))
}

// Close ends the relay.
func (s *stream) Close() (err error) {
	s.closed.Do(func() {
		if s.in != nil {
			s.in.Close()
			s.out.Close()
		}
		if s.process != nil {
			ctx, cancel := context.WithTimeout(context.Background(), engineTimeout)
			defer cancel()
			if kerr := s.process.Kill(ctx, unix.SIGKILL); kerr == nil {
				if _, derr := s.process.Delete(ctx, client.WithProcessKill); derr != nil && !isNotFound(derr) {
					err = derr
				}
			} else if !isNotFound(kerr) {
				err = kerr
			}
		}
		err = errors.Join(err, os.RemoveAll(s.dir))
	})
	if err != nil {
		return fmt.Errorf("end the relay: %w", err)
	}
	return nil
}

var _ link.Stream = (*stream)(nil)
