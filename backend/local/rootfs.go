package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/internal/boot"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/registryauth"
)

// rootfs is where the files of a sandbox come from.
type rootfs struct {
	digest string
	// lowers are directories of the state directory or, for "dir:" images, of
	// the host; the lowest first.
	lowers []string
	// binds shows directories of the host, read-only.
	binds []boot.Bind
	// config is the image's.
	config image.Config
	links  map[string]string
}

// hostTrees are the directories of the host that the "host" image shows, as
// far as they exist. They hold programs, and nothing that is private to this
// machine's users. They are bound without a mapping of ids: to the sandbox
// their files belong to nobody, so that even its root can read only what
// everybody can.
var hostTrees = []string{"/usr", "/opt", "/nix/store", "/gnu/store"}

// hostRoots are links into /usr on merged systems, and directories elsewhere.
var hostRoots = []string{"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"}

// hostEtc is what is copied of the host's /etc: what programs in /usr need to
// work and what is the same on every machine of its kind. Nothing that could
// hold a secret or name a user, host or network.
var hostEtc = []string{
	"alternatives", "ca-certificates", "ca-certificates.conf", "debian_version", "fonts", "ld.so.cache", "ld.so.conf",
	"ld.so.conf.d", "locale.alias", "locale.conf", "localtime", "magic", "matplotlibrc", "mime.types", "os-release", "perl",
	"pki/ca-trust/extracted", "pki/tls/certs", "protocols", "python3", "python3.11", "python3.12", "python3.13",
	"rpc", "services", "shells", "ssl/certs", "ssl/openssl.cnf", "terminfo", "timezone", "xattr.conf",
}

// baseFiles are the fresh files of /etc of the "host" image.
var baseFiles = map[string]string{
	"etc/passwd":        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"etc/group":         "root:x:0:\ntty:x:5:\nusers:x:100:\nnogroup:x:65534:\n",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nprotocols: files\nservices: files\n",
	"etc/host.conf":     "multi on\n",
	"etc/profile":       "PATH=" + lifecycle.DefaultPath + "\nexport PATH\n",
	"etc/inputrc":       "\"\\e[A\": previous-history\n\"\\e[B\": next-history\n",
}

// hostImage makes the skeleton of the "host" image if the present one is out
// of date. It is named by what it was made from.
func (e *engine) hostImage() (*rootfs, error) {
	e.hostOnce.Lock()
	defer e.hostOnce.Unlock()
	// Looked at again now and then, for a host that installs software.
	if e.host != nil && time.Since(e.hostTime) < time.Minute {
		return e.host, nil
	}
	r, err := e.makeHostImage()
	if err == nil {
		e.host, e.hostTime = r, time.Now()
	}
	return r, err
}

func (e *engine) makeHostImage() (*rootfs, error) {
	r := &rootfs{links: map[string]string{}}
	h := sha256.New()
	for _, p := range hostRoots {
		to, err := os.Readlink(p)
		if err == nil {
			r.links[p] = to
			fmt.Fprintln(h, p, to)
		} else if st, err := os.Stat(p); err == nil && st.IsDir() {
			r.binds = append(r.binds, boot.Bind{Source: boot.Source{Path: p}, Target: p, ReadOnly: true, Recursive: true})
		}
	}
	for _, p := range hostTrees {
		if st, err := os.Stat(p); err == nil && st.IsDir() {
			r.binds = append(r.binds, boot.Bind{Source: boot.Source{Path: p}, Target: p, ReadOnly: true, Recursive: true})
		}
	}
	for _, name := range hostEtc {
		if st, err := os.Lstat(filepath.Join("/etc", name)); err == nil {
			fmt.Fprintln(h, name, st.Size(), st.ModTime().UnixNano())
		}
	}
	fmt.Fprintln(h, "layout 1", baseFiles)
	r.digest = "host:" + hex.EncodeToString(h.Sum(nil)[:12])
	dir := filepath.Join(e.Dir("host"), strings.TrimPrefix(r.digest, "host:"))
	r.lowers = []string{dir}
	r.config = image.Config{Env: []string{"PATH=" + lifecycle.DefaultPath, "LANG=C.UTF-8"}}
	if _, err := os.Stat(dir); err == nil {
		return r, nil
	}
	if err := os.MkdirAll(e.Dir("host"), 0o700); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(e.Dir("host"), "new-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := makeSkeleton(tmp); err != nil {
		return nil, fmt.Errorf("make the host image: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		if _, statErr := os.Stat(dir); statErr != nil {
			return nil, err
		}
	}
	return r, nil
}

func makeSkeleton(root string) error {
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	for _, d := range []string{"dev", "etc", "home", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr", "var/lib", "var/log", "var/cache", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for d, mode := range map[string]fs.FileMode{"tmp": 0o777 | fs.ModeSticky, "var/tmp": 0o777 | fs.ModeSticky, "root": 0o700} {
		if err := os.Chmod(filepath.Join(root, d), mode); err != nil {
			return err
		}
	}
	if err := os.Symlink("../run", filepath.Join(root, "var/run")); err != nil {
		return err
	}
	for _, name := range hostEtc {
		if err := copyPublic(filepath.Join("/etc", name), filepath.Join(root, "etc", name)); err != nil {
			return err
		}
	}
	for name, content := range baseFiles {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// copyPublic copies what everybody may read: links as links, files, and
// directories. The rest, and what is missing, is left out.
func copyPublic(from, to string) error {
	st, err := os.Lstat(from)
	if err != nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	switch {
	case st.Mode().Type() == fs.ModeSymlink:
		target, err := os.Readlink(from)
		if err != nil {
			return nil
		}
		return os.Symlink(target, to)
	case st.Mode().Perm()&0o004 == 0:
		return nil
	case st.IsDir():
		entries, err := os.ReadDir(from)
		if err != nil {
			return nil
		}
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		for _, e := range entries {
			if err := copyPublic(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
				return err
			}
		}
		return nil
	case st.Mode().IsRegular():
		in, err := os.Open(from)
		if err != nil {
			return nil
		}
		defer in.Close()
		out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer out.Close()
		_, err = io.Copy(out, in)
		return err
	}
	return nil
}

// resolveImage finds the files for a spec's image and holds them in the store
// for the sandbox.
func (e *engine) resolveImage(ctx context.Context, op, ref, id string, progress func(daytona.Progress)) (*rootfs, error) {
	if ref == "" || ref == daytona.ImageHost {
		r, err := e.hostImage()
		return r, lifecycle.KernelError(op, ref, err)
	}
	parsed, err := image.ParseReference(ref)
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Image", Value: ref, Err: err}
	}
	// What Dockerfiles call a build of this engine.
	if parsed.Registry() == "daytona.local" && parsed.Repository() == "build" && parsed.Digest() != "" {
		if parsed, err = image.ParseReference("oci:" + filepath.Join(e.Dir("build"), "oci") + "@" + parsed.Digest()); err != nil {
			return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: op, Field: "Image", Value: ref, Err: err}
		}
	}
	opts := &image.PullOptions{HoldFor: id, Keychain: registryauth.Keychain(ctx)}
	if progress != nil {
		opts.Progress = func(p image.Progress) {
			progress(daytona.Progress{Stage: string(p.Stage) + " " + ref, Done: p.Done, Total: p.Total})
		}
	}
	img, err := e.images.Resolve(ctx, parsed, image.PullIfMissing, opts)
	if err != nil {
		return nil, lifecycle.ImageError(op, ref, err)
	}
	r := &rootfs{digest: img.Digest, config: img.Config}
	r.lowers = layerDirs(img)
	return r, nil
}

// layerDirs are the directories of an image's layers, the lowest first. Of a
// layer that is there more than once only the highest counts: it hides all of
// the others, and an overlay takes no directory twice.
func layerDirs(img *image.Image) []string {
	var dirs []string
	for _, l := range img.Layers {
		dirs = append(slices.DeleteFunc(dirs, func(d string) bool { return d == l.Dir }), l.Dir)
	}
	return dirs
}

// disk is where a sandbox's own files are: a directory of the host, or a file
// system of limited size.
type disk struct {
	// mount is detached: it is nowhere to be seen on the host and ends with
	// the sandbox. nil where only boot may mount.
	mount *os.File
	// device is its "major:minor" for I/O limits.
	device string
}

// overlayDirs makes the upper and work directory beneath dir. mode is that of the
// upper one, which is the root of what the sandbox sees.
func overlayDirs(dir *os.Root, mode fs.FileMode, uid, gid int) error {
	for _, d := range []string{"upper", "work"} {
		err := dir.Mkdir(d, 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := dir.Lchown(d, uid, gid); err != nil {
			return err
		}
		if d == "upper" && mode != 0o755 {
			if err := dir.Chmod(d, mode); err != nil {
				return err
			}
		}
	}
	return nil
}

func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
