package plugin_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/backend/plugin"
)

func dial(t *testing.T, b daytona.Backend, id string) net.Conn {
	t.Helper()
	c, err := b.Connect(id).Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func closeWrite(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
}

// TestConnBytes sends 64 MiB there and back at once, and ends the directions
// one after the other.
func TestConnBytes(t *testing.T) {
	c := dial(t, open(t, nil), "echo")
	const size = 64 << 20
	src := rand.NewChaCha8([32]byte{1})
	sent, got := sha256.New(), sha256.New()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, io.TeeReader(io.LimitReader(src, size), sent))
		closeWrite(t, c)
		done <- err
	}()
	if _, err := io.CopyN(got, c, size); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Error("other bytes came back")
	}
	rest, err := io.ReadAll(c)
	if err != nil || string(rest) != "|67108864" {
		t.Errorf("after the end of one direction: %q, %v", rest, err)
	}
}

// TestConnHalfClose: the agent may end its direction first.
func TestConnHalfClose(t *testing.T) {
	c := dial(t, open(t, nil), "speaks first")
	if data, err := io.ReadAll(c); string(data) != "hello" || err != nil {
		t.Fatalf("read %q, %v", data, err)
	}
	path := filepath.Join(t.TempDir(), "f")
	if _, err := io.WriteString(c, path); err != nil {
		t.Fatal(err)
	}
	closeWrite(t, c)
	eventually(t, 10*time.Second, "what was written after the end arrives", func() error { _, err := os.Stat(path); return err })
}

// TestConnCloseFlushes: Close does not lose what was written.
func TestConnCloseFlushes(t *testing.T) {
	c := dial(t, open(t, nil), "speaks first")
	path := filepath.Join(t.TempDir(), "f")
	if _, err := io.WriteString(c, path); err != nil {
		t.Fatal(err)
	}
	c.Close()
	eventually(t, 10*time.Second, "what was written before Close arrives", func() error { _, err := os.Stat(path); return err })
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
}

// TestConnRefused: when the agent takes no more, such as of an upload that has
// no room, the writer learns it at once, and reads why.
func TestConnRefused(t *testing.T) {
	c := dial(t, open(t, nil), "refuses")
	n, err := io.Copy(c, io.LimitReader(rand.NewChaCha8([32]byte{}), 1<<30))
	if !errors.Is(err, syscall.EPIPE) || n > 64<<20 {
		t.Errorf("%d bytes were taken, error %v", n, err)
	}
	if data, err := io.ReadAll(c); string(data) != "no room" || err != nil {
		t.Errorf("read %q, %v", data, err)
	}
}

// TestConnBackpressure: what nobody reads is not produced, and takes no
// memory.
func TestConnBackpressure(t *testing.T) {
	b := open(t, nil)
	c := dial(t, b, "deaf")
	buf := make([]byte, 1<<20)
	total := 0
	for {
		if err := c.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Write(buf)
		total += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil || total > 256<<20 {
			t.Fatalf("%d bytes are under way, %v", total, err)
		}
	}
	if total > 64<<20 {
		t.Errorf("%d bytes are under way to an agent that reads nothing", total)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	source := dial(t, b, "source")
	if _, err := io.CopyN(io.Discard, source, 64<<20); err != nil {
		t.Fatal(err)
	}
	// Nobody reads from here on; other connections are not held up.
	echo := dial(t, b, "echo")
	if _, err := io.WriteString(echo, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(echo, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}

// TestConnDeadline: a deadline interrupts a read and does not end the
// connection.
func TestConnDeadline(t *testing.T) {
	c := dial(t, open(t, nil), "echo")
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	_ = c.SetDeadline(time.Time{})
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Errorf("after the deadline: %v", err)
	}
}

// TestTickets: only who was given a ticket gets a connection, and once.
func TestTickets(t *testing.T) {
	b := open(t, nil)
	sockets, err := filepath.Glob(filepath.Join(socketDir(t, thePlugin(t)), "*", "agents.sock"))
	if err != nil || len(sockets) != 1 {
		t.Fatalf("sockets %v, %v", sockets, err)
	}
	for _, ticket := range []string{strings.Repeat("A", 26), strings.Repeat("\x00", 1000)} {
		c, err := net.Dial("unix", sockets[0])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, ticket); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("%d bytes for a wrong ticket", n)
		}
	}
	c := dial(t, b, "echo")
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Errorf("a connection with a ticket: %v", err)
	}
}

// TestDialErrors: the plugin's reasons come out of the toolbox's methods.
func TestDialErrors(t *testing.T) {
	b := open(t, nil)
	for id, kind := range map[string]daytona.Kind{"stopped": daytona.KindState, "missing": daytona.KindNotFound} {
		_, err := b.Connect(id).FileSystem().ReadFile(t.Context(), "x")
		wantKind(t, "ReadFile", err, kind)
		_, err = b.Connect(id).Process().Exec(t.Context(), "true", nil)
		wantKind(t, "Exec", err, kind)
		if err != nil && !strings.Contains(err.Error(), id) {
			t.Errorf("%v does not name the sandbox", err)
		}
	}
}

// BenchmarkConn is the rate of one connection through a plugin.
func BenchmarkConn(b *testing.B) {
	o := self(serveFake, nil)
	o.Logger = nil
	be, err := plugin.New(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { be.Close() })
	for _, kind := range []string{"source", "sink"} {
		b.Run(kind, func(b *testing.B) {
			c, err := be.Connect(kind).Dial(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			buf := make([]byte, 256<<10)
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				if kind == "source" {
					_, err = io.ReadFull(c, buf)
				} else {
					_, err = c.Write(buf)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("call", func(b *testing.B) {
		for b.Loop() {
			if _, err := be.Get(b.Context(), "x"); !errors.Is(err, daytona.ErrNotFound) {
				b.Fatal(err)
			}
		}
	})
	b.Run("dial", func(b *testing.B) {
		for b.Loop() {
			c, err := be.Connect("sink").Dial(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			c.Close()
		}
	})
}
