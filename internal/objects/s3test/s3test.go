// Package s3test starts a real S3 server for tests: versitygw, which checks
// signatures. It is a program of its own, built with the local Go toolchain into
// the user's cache, so that nothing of it is in this module's graph.
package s3test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"golang.org/x/sys/unix"
)

const (
	module  = "github.com/versity/versitygw"
	version = "v1.8.0"
)

// Server is a running server with one bucket.
type Server struct {
	// Location is where the bucket is, with the credentials of its owner.
	Location daytona.S3Location
	// Dir has the objects of the bucket as files.
	Dir string

	program, root, addr string
	cmd                 *exec.Cmd
	ended               chan struct{} // closed when cmd has ended
	log                 bytes.Buffer
}

// Start starts a server that ends with the test, which is skipped where there is
// none to be had.
func Start(t testing.TB) *Server {
	t.Helper()
	program := find(t)
	root := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	s := &Server{program: program, root: root, addr: addr, Dir: filepath.Join(root, "bucket"), Location: daytona.S3Location{
		Endpoint: "http://" + addr, Region: "us-east-1", Bucket: "bucket", AccessKey: "test-access-key", SecretKey: "test-secret-key",
	}}
	if err := os.Mkdir(s.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.cmd != nil {
			s.Kill(t)
		}
		if t.Failed() && s.log.Len() > 0 {
			t.Logf("versitygw: %s", s.log.Bytes())
		}
	})
	s.Restart(t)
	return s
}

// Kill ends the server at once.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	<-s.ended
}

// Environment sets the variables that credentials are taken from, and returns the
// URL of a prefix of the bucket.
func (s *Server) Environment(t *testing.T, prefix string) string {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", s.Location.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", s.Location.SecretKey)
	t.Setenv("AWS_SESSION_TOKEN", "")
	return "s3://" + s.Location.Bucket + "/" + prefix + "?endpoint=" + s.Location.Endpoint + "&region=" + s.Location.Region
}

// Restart starts a killed server again, at the same address and with the same
// objects.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.cmd = exec.Command(s.program, "--quiet", "--keep-alive", "--port", s.addr, "posix", s.root)
	s.cmd.Dir = s.root
	s.cmd.Env = append(s.cmd.Environ(), "ROOT_ACCESS_KEY_ID="+s.Location.AccessKey, "ROOT_SECRET_ACCESS_KEY="+s.Location.SecretKey)
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	s.ended = ended
	go func() { s.cmd.Wait(); close(ended) }()
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := net.Dial("tcp", s.addr)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("versitygw ended: %s", s.log.Bytes())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("versitygw does not listen: %v", err)
		}
	}
}

// Freeze stops the server's threads, so that it goes on to accept connections and
// answers none.
func (s *Server) Freeze(t testing.TB) {
	t.Helper()
	if err := s.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// The signal is on its way to each thread.
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		running := slices.ContainsFunc(stats, func(name string) bool {
			data, err := os.ReadFile(name)
			i := bytes.LastIndexByte(data, ')')
			return err == nil && (i < 0 || len(data) < i+3 || data[i+2] != 'T')
		})
		if !running {
			return
		}
	}
	t.Fatal("the server does not stop")
}

// find returns the server's program, built if need be.
func find(t testing.TB) string {
	t.Helper()
	if p, err := exec.LookPath("versitygw"); err == nil {
		return p
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("no place for an S3 server: %v", err)
	}
	dir := filepath.Join(cache, "daytona", "test", "versitygw-"+version)
	program := filepath.Join(dir, "versitygw")
	if _, err := os.Stat(program); err == nil {
		return program
	}
	if testing.Short() {
		t.Skip("there is no S3 server yet, and building one takes minutes")
	}
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skipf("no S3 server: %v", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Of several tests one builds, and the others wait.
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err == nil {
		return program
	}
	tmp := t.TempDir()
	cmd := exec.CommandContext(t.Context(), goTool, "install", module+"/cmd/versitygw@"+version)
	cmd.Dir = tmp
	cmd.Env = append(cmd.Environ(), "GOBIN="+tmp, "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("no S3 server: go install %s@%s: %v: %s", module, version, err, bytes.TrimSpace(out))
	}
	data, err := os.ReadFile(filepath.Join(tmp, "versitygw"))
	if err == nil {
		err = os.WriteFile(program+".new", data, 0o755)
	}
	if err == nil {
		err = os.Rename(program+".new", program)
	}
	if err != nil {
		t.Fatal(err)
	}
	return program
}
