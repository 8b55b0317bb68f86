//go:build linux

package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"
)

// childVariable makes the test binary be something else than a test.
const childVariable = "IMAGE_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case "pull":
		childPull()
	case "overlay":
		childOverlay()
	case "collect":
		childCollect()
	default:
		os.Exit(m.Run())
	}
}

// childPull resolves os.Args[2] into the store os.Args[1], and stops for good when as many bytes
// as os.Args[3] have arrived.
func childPull() {
	var stopAt int64
	fmt.Sscan(os.Args[3], &stopAt)
	s, err := OpenStore(os.Args[1], nil)
	if err != nil {
		log.Fatal(err)
	}
	ref, err := ParseReference(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	_, err = s.Resolve(context.Background(), ref, PullIfMissing, &PullOptions{Progress: func(p Progress) {
		if p.Stage == StagePulling && p.Done >= stopAt || p.Stage == StageDone {
			fmt.Println("reached", p.Done)
			select {}
		}
	}})
	log.Fatal("not stopped: ", err)
}

// childCollect empties the store os.Args[1], and says when it begins.
func childCollect() {
	s, err := OpenStore(os.Args[1], nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("now")
	if _, err := s.Collect(context.Background(), CollectOptions{MaxBytes: 1, Grace: -1}); err != nil {
		log.Fatal(err)
	}
}

// childOverlay runs in new user and mount namespaces: it stacks the directories os.Args[2:], the
// highest first, at os.Args[1], and prints what is there.
func childOverlay() {
	lower := strings.Join(os.Args[2:], ":")
	if err := unix.Mount("overlay", os.Args[1], "overlay", unix.MS_RDONLY, "userxattr,lowerdir="+lower); err != nil {
		fmt.Println("mount:", err)
		os.Exit(3)
	}
	err := filepath.WalkDir(os.Args[1], func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(os.Args[1], p)
		if d.Type().IsRegular() {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			rel += "=" + string(b)
		} else if d.IsDir() {
			rel += "/"
		}
		fmt.Println(rel)
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
}

// entry is one entry of a test archive. The type defaults to a directory if the name ends in a
// slash and to a file otherwise.
type entry struct {
	name, body, link string
	typ              byte
	mode             int64
	uid, gid         int
	pax              map[string]string
	mtime            time.Time
}

func dir(name string) entry { return entry{name: name + "/", typ: tar.TypeDir, mode: 0o755} }
func file(name, body string) entry {
	return entry{name: name, body: body, typ: tar.TypeReg, mode: 0o644}
}
func symlink(name, link string) entry { return entry{name: name, link: link, typ: tar.TypeSymlink} }
func hardlink(name, link string) entry {
	return entry{name: name, link: link, typ: tar.TypeLink}
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Linkname: e.link, Typeflag: e.typ, Mode: e.mode, Uid: e.uid, Gid: e.gid,
			PAXRecords: e.pax, ModTime: e.mtime, Size: int64(len(e.body)),
		}
		if len(e.pax) > 0 {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("archive entry %q: %v", e.name, err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func layerOf(t testing.TB, data []byte, opts ...tarball.LayerOption) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func zstdLayer(t testing.TB, data []byte) v1.Layer {
	return layerOf(t, data, tarball.WithCompression(compression.ZStd), tarball.WithMediaType("application/vnd.oci.image.layer.v1.tar+zstd"))
}

func imageOf(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", runtime.GOARCH
	cf.Config = v1.Config{
		Env: []string{"PATH=/bin", "A=b"}, Entrypoint: []string{"/entry"}, Cmd: []string{"one", "two"},
		WorkingDir: "/srv", User: "app:app", Labels: map[string]string{"k": "v"}, StopSignal: "SIGINT",
		ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}}, Volumes: map[string]struct{}{"/data": {}},
	}
	img, err = mutate.ConfigFile(img, cf)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// testRegistry is a registry on a loopback port.
type testRegistry struct {
	host string
	// around, if set, sees every request first and says whether it has answered it.
	around func(w http.ResponseWriter, r *http.Request) bool
	blobs  chan string // paths of the blobs asked for, while there is room
}

func newRegistry(t testing.TB) *testRegistry {
	t.Helper()
	r := &testRegistry{blobs: make(chan string, 1000)}
	h := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			select {
			case r.blobs <- req.URL.Path:
			default:
			}
		}
		if r.around == nil || !r.around(w, req) {
			h.ServeHTTP(w, req)
		}
	}))
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

// switchable returns what sets around while requests are still running.
func (r *testRegistry) switchable() func(func(http.ResponseWriter, *http.Request) bool) {
	var current atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]
	r.around = func(w http.ResponseWriter, req *http.Request) bool {
		f := current.Load()
		return f != nil && *f != nil && (*f)(w, req)
	}
	return func(f func(http.ResponseWriter, *http.Request) bool) { current.Store(&f) }
}

func (r *testRegistry) fetched() int {
	n := 0
	for {
		select {
		case <-r.blobs:
			n++
		default:
			return n
		}
	}
}

func (r *testRegistry) push(t testing.TB, repository string, img v1.Image) Reference {
	t.Helper()
	nref, err := name.ParseReference(r.host + "/" + repository)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(nref, img); err != nil {
		t.Fatal(err)
	}
	return mustParse(t, nref.String())
}

func (r *testRegistry) pushIndex(t testing.TB, repository string, idx v1.ImageIndex) Reference {
	t.Helper()
	nref, err := name.ParseReference(r.host + "/" + repository)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(nref, idx); err != nil {
		t.Fatal(err)
	}
	return mustParse(t, nref.String())
}

func mustParse(t testing.TB, s string) Reference {
	t.Helper()
	ref, err := ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func newStore(t testing.TB, opts *StoreOptions) *Store {
	t.Helper()
	s, err := OpenStore(filepath.Join(tempDir(t), "store"), opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// tempDir is t.TempDir, except that it can remove what images leave.
func tempDir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "image-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := RemoveAll(d); err != nil {
			t.Error(err)
		}
	})
	return d
}

// fingerprint describes everything below dir that unpacking decides.
func fingerprint(t testing.TB, dir string, skip ...string) string {
	t.Helper()
	var lines []string
	inodes := map[uint64]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		rel, _ := filepath.Rel(dir, p)
		if slices.Contains(skip, rel) {
			return fs.SkipDir
		}
		line := fmt.Sprintf("%s %o %d:%d %d", rel, st.Mode, st.Uid, st.Gid, st.Rdev)
		switch {
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(b)
			line += fmt.Sprintf(" %d %s %d", fi.ModTime().Unix(), hex.EncodeToString(sum[:6]), st.Nlink)
			if st.Nlink > 1 {
				if first, ok := inodes[st.Ino]; ok {
					line += " =" + first
				} else {
					inodes[st.Ino] = rel
				}
			}
		case fi.Mode()&fs.ModeSymlink != 0:
			l, _ := os.Readlink(p)
			line += " -> " + l
		case fi.IsDir():
			line += fmt.Sprintf(" %d", fi.ModTime().Unix())
			b := make([]byte, 16)
			if n, err := unix.Lgetxattr(p, opaqueXattr, b); err == nil {
				line += " opaque=" + string(b[:n])
			}
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// mergedTree mounts an image as a backend would, in user and mount namespaces of its own, and
// returns what is there, one path per line, directories with a slash, files with =contents.
func mergedTree(t *testing.T, img *Image) []string {
	t.Helper()
	args := []string{tempDir(t)}
	for i := len(img.Layers) - 1; i >= 0; i-- {
		args = append(args, img.Layers[i].Dir)
	}
	if len(img.Layers) == 1 {
		args = append(args, tempDir(t)) // overlayfs wants two when there is no upper
	}
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), childVariable+"=overlay")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if exit, ok := err.(*exec.ExitError); err != nil && (!ok || exit.ExitCode() == 3) {
		t.Skipf("this kernel does not let user namespaces mount overlayfs with userxattr: %v %s", err, out)
	}
	if err != nil {
		t.Fatalf("overlay: %v\n%s", err, out)
	}
	var lines []string
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		if sc.Text() != "./" {
			lines = append(lines, sc.Text())
		}
	}
	return lines
}

// TestAsOrdinaryUser runs the other tests again without privilege.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("already an ordinary user")
	}
	if testing.Short() {
		t.Skip("-short")
	}
	const nobody = 65534
	work := tempDir(t)
	home := filepath.Join(work, "home")
	bin := filepath.Join(work, "image.test")
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Chmod(work, 0o755), os.Mkdir(home, 0o700), os.Chown(home, nobody, nobody), os.WriteFile(bin, data, 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"-test.count=1"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Dir = home
	cmd.Env = []string{"HOME=" + home, "TMPDIR=" + home, "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("as user %d: %v\n%s", nobody, err, out)
	} else if testing.Verbose() {
		t.Logf("%s", out)
	}
}
