//go:build linux

package build

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// convertWhiteout turns a layer's marks of removal into those of an overlay
// mounted with userxattr.
func convertWhiteout(h *tar.Header, path string) (bool, error) {
	dir, name := filepath.Split(path)
	removed, ok := strings.CutPrefix(name, ".wh.")
	switch {
	case !ok:
		return true, nil
	case name == ".wh..wh..opq":
		return false, unix.Setxattr(filepath.Clean(dir), "user.overlay.opaque", []byte("y"), 0)
	}
	at := filepath.Join(dir, removed)
	if err := unix.Mknod(at, unix.S_IFCHR, 0); err != nil {
		return false, &os.PathError{Op: "mknod", Path: at, Err: err}
	}
	return false, os.Chown(at, h.Uid, h.Gid)
}
