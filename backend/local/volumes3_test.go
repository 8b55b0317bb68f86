package local_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/objects/s3test"
)

// bucketServers are the processes that serve mounts of buckets for this process's
// sandboxes: those with its credentials' server.
func bucketServers(t *testing.T, spool string) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/fd/4")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if to, err := os.Readlink(f); err == nil && strings.HasPrefix(to, spool) {
			var pid int
			if _, err := fmt.Sscanf(f, "/proc/%d/", &pid); err == nil && pid != os.Getpid() {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// servers waits until there are as many of them as wanted.
func (e *volumeEngine) servers(want int) []int {
	e.Helper()
	var got []int
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if got = bucketServers(e.T, e.dir); len(got) == want {
			return got
		}
	}
	e.Errorf("%d servers of buckets, want %d", len(got), want)
	return got
}

// try runs a script and returns its exit status and what it prints.
func (e *volumeEngine) try(s daytona.Sandbox, script string) (int, string) {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), 2*time.Minute)
	defer cancel()
	r, err := s.Process().Exec(ctx, script, nil)
	if err != nil {
		e.Fatalf("%s: %v", script, err)
	}
	return r.ExitCode, strings.TrimSpace(r.Output)
}

// openBucket is an engine with a volume of a prefix of the server's bucket.
func openBucket(t *testing.T, server *s3test.Server, prefix string) *volumeEngine {
	t.Helper()
	e := openVolumeEngine(t, t.TempDir())
	where := server.Location
	where.Prefix = prefix
	e.volume(daytona.VolumeSpec{Name: "bucket", Kind: daytona.VolumeS3, S3: &where})
	return e
}

// TestVolumeS3 shares a bucket between two engines.
func TestVolumeS3(t *testing.T) {
	server := s3test.Start(t)
	one, two := openBucket(t, server, "team"), openBucket(t, server, "team")
	whole := daytona.VolumeMount{Volume: "bucket", MountPath: "/b"}
	a := one.sandbox(whole)
	b := two.sandbox(whole, daytona.VolumeMount{Volume: "bucket", MountPath: "/ro", ReadOnly: true}, daytona.VolumeMount{Volume: "bucket", MountPath: "/sub", Subpath: "d/deep"})
	one.servers(1)
	two.servers(3)

	one.sh(a, "cd /b && echo one > f && mkdir d && mkdir d/deep && echo two > d/deep/g && : > none")
	if data, err := os.ReadFile(filepath.Join(server.Dir, "team", "d", "deep", "g")); string(data) != "two\n" {
		t.Errorf("the object is %q, %v", data, err)
	}
	if got := two.sh(b, "cd /b && cat f d/deep/g /ro/f /sub/g && ls && ls -A /sub && stat -c '%s %F' none d"); got != "one\ntwo\none\ntwo\nd\nf\nnone\ng\n0 regular empty file\n4096 directory" && got != "one\ntwo\none\ntwo\nd\nf\nnone\ng\n0 regular empty file\n0 directory" {
		t.Errorf("the other engine's sandbox sees %q", got)
	}
	// Close to open: what is closed here is what is opened there.
	for i := range 5 {
		one.sh(a, fmt.Sprintf("echo round %d%s > /b/f", i, strings.Repeat("x", i*10)))
		if got := two.sh(b, "cat /b/f"); got != fmt.Sprintf("round %d%s", i, strings.Repeat("x", i*10)) {
			t.Errorf("round %d: %q", i, got)
		}
	}
	two.sh(b, "echo more >> /b/f; echo x > /b/none; truncate -s 3 /b/d/deep/g; echo new > /sub/new")
	time.Sleep(1100 * time.Millisecond) // for what is remembered of sizes
	if got := one.sh(a, "tail -n 1 /b/f; cat /b/none /b/d/deep/g /b/d/deep/new"); got != "more\nx\ntwonew" {
		t.Errorf("back in the first: %q", got)
	}
	// In place, renamed, removed, executed.
	if got := one.sh(a, "cd /b && printf 0123456789 > p && printf AB | dd of=p bs=1 seek=4 conv=notrunc 2>/dev/null && cat p && mv p d/q && cat d/q && ! cat p 2>/dev/null && printf '#!/bin/sh\necho ran\n' > run && ./run && cp run run2 && chmod 600 run2 && mv -f run2 run && rm run d/q && ls"); got != "0123AB67890123AB6789ran\nd\nf\nnone" {
		t.Errorf("files: %q", got)
	}
	// Directories.
	if got := one.sh(a, "cd /b && mkdir -p x/y/z && touch x/y/z/f && ! rmdir x/y/z 2>/dev/null && mv x w && ls w/y/z && rm -r w && ls && mkdir e && touch e/f && rm e/f && ls -d e && rmdir e"); got != "f\nd\nf\nnone\ne" {
		t.Errorf("directories: %q", got)
	}
	// What it cannot do.
	for _, script := range []string{"ln /b/f /b/hard", "ln -s f /b/soft", "mkfifo /b/p", "mknod /b/dev c 1 3", "touch /b/" + strings.Repeat("n", 256)} {
		if code, out := one.try(a, script); code == 0 {
			t.Errorf("%s: %q", script, out)
		}
	}
	// Locks are within the sandbox.
	one.sh(a, "flock /b/f true && rm -f /b/f /b/none")
	if err := b.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if err := a.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	one.servers(0)
	two.servers(0)
	if err := one.DeleteVolume(t.Context(), "bucket"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(server.Dir, "team", "d", "deep", "new")); err != nil {
		t.Errorf("the bucket after the volume was deleted: %v", err)
	}
}

// TestVolumeS3Big writes and reads 64 MiB.
func TestVolumeS3Big(t *testing.T) {
	server := s3test.Start(t)
	one, two := openBucket(t, server, ""), openBucket(t, server, "")
	m := daytona.VolumeMount{Volume: "bucket", MountPath: "/b"}
	a, b := one.sandbox(m), two.sandbox(m)
	start := time.Now()
	want := one.sh(a, "head -c 67108864 /dev/urandom > /tmp/big && cp /tmp/big /b/big && sha256sum < /tmp/big")
	t.Logf("written in %s", time.Since(start))
	start = time.Now()
	if got := two.sh(b, "sha256sum < /b/big"); got != want {
		t.Errorf("read: %s, want %s", got, want)
	}
	t.Logf("read in %s", time.Since(start))
	if got := two.sh(b, "dd if=/b/big bs=1000 skip=67000 count=100 2>/dev/null | sha256sum"); got != one.sh(a, "dd if=/tmp/big bs=1000 skip=67000 count=100 2>/dev/null | sha256sum") {
		t.Errorf("its end is %s", got)
	}
	if got := two.sh(b, "printf change | dd of=/b/big bs=1 seek=50000000 conv=notrunc 2>/dev/null; stat -c %s /b/big; dd if=/b/big bs=1 skip=50000000 count=6 2>/dev/null"); got != "67108864\nchange" {
		t.Errorf("changed in place: %q", got)
	}
}

// TestVolumeS3ReadOnly checks that root cannot write through a read-only mount.
func TestVolumeS3ReadOnly(t *testing.T) {
	server := s3test.Start(t)
	e := openBucket(t, server, "")
	w := e.sandbox(daytona.VolumeMount{Volume: "bucket", MountPath: "/v"})
	e.sh(w, "mkdir /v/d && echo old > /v/d/f")
	s := e.sandbox(daytona.VolumeMount{Volume: "bucket", MountPath: "/v", ReadOnly: true}, daytona.VolumeMount{Volume: "bucket", MountPath: "/s", Subpath: "d", ReadOnly: true})
	for _, script := range []string{
		"echo x > /v/d/f", "echo x > /s/f", "rm /v/d/f", "chmod 600 /s/f", "chown 5 /v/d/f", "touch /v/d/f", "mkdir /s/new", "truncate -s 0 /v/d/f",
		"mount -o remount,rw /v", "mount -o remount,bind,rw /s", "umount /v", "mount --bind /v /mnt", "mv /s/f /s/g", "echo x > /proc/self/root/v/d/f", "ls /s/..  | grep d/f",
	} {
		if code, out := e.try(s, script); code == 0 {
			t.Errorf("root did %s: %s", script, out)
		}
	}
	if got := e.sh(w, "cat /v/d/f; ls -A /v/d"); got != "old\nf" {
		t.Errorf("afterwards: %q", got)
	}
	// The credentials are nowhere inside.
	if code, out := e.try(w, "grep -rl "+server.Location.SecretKey+" /proc/self/mountinfo /proc/mounts /etc /run /v"); code == 0 {
		t.Errorf("the credentials are in %s", out)
	}
}

// TestVolumeS3Down checks that what nobody answers fails, in a bounded time, and
// works again later.
func TestVolumeS3Down(t *testing.T) {
	server := s3test.Start(t)
	e := openBucket(t, server, "")
	m := daytona.VolumeMount{Volume: "bucket", MountPath: "/b"}
	s := e.sandbox(m)
	e.sh(s, "echo kept > /b/f")
	server.Kill(t)
	start := time.Now()
	for _, script := range []string{"cat /b/f", "ls /b", "echo x > /b/g", "mkdir /b/d", "sleep 1.1; stat /b/f"} {
		if code, out := e.try(s, script+" 2>&1"); code == 0 || !strings.Contains(out, "rror") {
			t.Errorf("%s without a server: %d %s", script, code, out)
		}
	}
	if d := time.Since(start); d > time.Minute {
		t.Errorf("that took %s", d)
	}
	_, err := e.Client.Create(t.Context(), daytona.Spec{Volumes: []daytona.VolumeMount{m}})
	if !errors.Is(err, daytona.ErrUnavailable) || strings.Contains(err.Error(), server.Location.SecretKey) {
		t.Errorf("create: %v", err)
	}
	e.servers(1)
	server.Restart(t)
	if got := e.sh(s, "cat /b/f; echo y > /b/h; ls /b"); got != "kept\nf\nh" {
		t.Errorf("with the server back: %q", got)
	}
	// One that accepts and says nothing.
	server.Freeze(t)
	start = time.Now()
	if code, out := e.try(s, "cat /b/f 2>&1"); code == 0 || !strings.Contains(out, "rror") {
		t.Errorf("a frozen server: %d %s", code, out)
	}
	if d := time.Since(start); d > time.Minute {
		t.Errorf("a frozen server holds it up for %s", d)
	}
	// Nor does it keep a sandbox from going.
	start = time.Now()
	if _, err := s.Process().Exec(t.Context(), "cat /b/f & echo x > /b/z & sleep 0.3", nil); err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("the deletion took %s", d)
	}
}

// TestVolumeS3Server kills the program that serves a mount, stops and starts the
// sandbox, and looks for what is left.
func TestVolumeS3Server(t *testing.T) {
	server := s3test.Start(t)
	e := openBucket(t, server, "p")
	s := e.sandbox(daytona.VolumeMount{Volume: "bucket", MountPath: "/b"})
	e.sh(s, "echo kept > /b/f")
	pid := e.servers(1)[0]
	for _, name := range []string{"environ", "cmdline", "status"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil || bytes.Contains(data, []byte(server.Location.SecretKey)) {
			t.Errorf("%s: %v, %s", name, err, data)
		}
		if name == "status" {
			for _, want := range []string{"Uid:\t268435454\t268435454", "CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
				if !bytes.Contains(data, []byte(want)) {
					t.Errorf("the program's status lacks %q:\n%s", want, data)
				}
			}
		}
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	e.servers(0)
	if code, out := e.try(s, "cat /b/f 2>&1"); code == 0 || !strings.Contains(out, "endpoint is not connected") {
		t.Errorf("without its program: %d %s", code, out)
	}
	for range 2 {
		if err := s.Stop(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := e.sh(s, "cat /b/f; (sleep 1000; echo) > /b/open & sleep .1"); got != "kept" {
			t.Errorf("started again: %q", got)
		}
		e.servers(1)
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	e.servers(0)
	for _, f := range filesBelow(t, filepath.Join(e.dir, "volumes")) {
		if strings.Contains(f, "spool") {
			t.Errorf("left: %s", f)
		}
	}
	if data, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(data, []byte("s3:bucket")) {
		t.Errorf("the host has the mount: %v", err)
	}
}

// killedVariable makes TestVolumeS3Killed an engine that is killed.
const killedVariable = "DAYTONA_TEST_VOLUME_S3_KILLED"

// TestVolumeS3Killed kills an engine: the sandbox that it leaves keeps its
// volume, and of the one that goes with it nothing is left.
func TestVolumeS3Killed(t *testing.T) {
	m := []daytona.VolumeMount{{Volume: "bucket", MountPath: "/b"}}
	if dir := os.Getenv(killedVariable); dir != "" {
		e := openVolumeEngine(t, dir)
		for name, persistent := range map[string]bool{"stays": true, "goes": false} {
			s, err := e.Client.Create(t.Context(), daytona.Spec{Name: name, User: "root", Persistent: persistent, Volumes: m, Network: daytona.NetworkPolicy{Block: true}})
			if err != nil {
				t.Fatal(err)
			}
			e.sh(s, "echo "+name+" > /b/"+name+"; (sleep 1000; echo) > /b/open-"+name+" & sleep .1")
		}
		fmt.Println("ready")
		select {}
	}
	server := s3test.Start(t)
	dir := t.TempDir()
	e := openVolumeEngine(t, dir)
	e.volume(daytona.VolumeSpec{Name: "bucket", Kind: daytona.VolumeS3, S3: &server.Location})
	cmd := exec.Command(os.Args[0], "-test.run=^TestVolumeS3Killed$")
	cmd.Env = append(os.Environ(), killedVariable+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "ready"; {
	}
	e.servers(2)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	other := openVolumeEngine(t, dir)
	s, err := other.Get(t.Context(), "stays")
	if err != nil {
		t.Fatal(err)
	}
	other.servers(1)
	if got := other.sh(s, "echo again > /b/again && cat /b/stays /b/goes /b/again"); got != "stays\ngoes\nagain" {
		t.Errorf("the sandbox that stayed sees %q", got)
	}
	// Frozen and thawed while it is used.
	other.sh(s, "(while :; do echo x > /b/loop; cat /b/loop; done) >/dev/null 2>&1 & sleep .2")
	for range 3 {
		if err := s.Pause(t.Context(), nil); errors.Is(err, daytona.ErrUnsupported) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if err := s.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	other.sh(s, "cat /b/again")
	if err := s.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	other.servers(0)
	if data, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(data, []byte("s3:bucket")) {
		t.Errorf("the host has the mount: %v", err)
	}
}

// TestVolumeS3User checks that the default user of a sandbox can use it, and
// that another sandbox of the same engine has owners of its own.
func TestVolumeS3User(t *testing.T) {
	server := s3test.Start(t)
	e := openBucket(t, server, "")
	m := []daytona.VolumeMount{{Volume: "bucket", MountPath: "/b"}, {Volume: "bucket", MountPath: "/again"}}
	for i := range 2 {
		s, err := e.Client.Create(t.Context(), daytona.Spec{Volumes: m})
		if err != nil {
			t.Fatal(err)
		}
		if got := e.sh(s, "cd /b && echo "+fmt.Sprint(i)+" >> f && cat f && stat -c '%u %g %a' f . && chmod 600 f && touch -d 2001-01-01 f && cp -p f g && rm g && mv f g && mv g f && mkdir -p d && rm -rf d && cat /again/f | wc -l"); !strings.HasSuffix(got, fmt.Sprintf("%d\n1000 1000 777\n1000 1000 777\n%d", i, i+1)) {
			t.Errorf("as its user: %q", got)
		}
	}
}
