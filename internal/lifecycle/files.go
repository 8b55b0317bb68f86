//go:build linux

package lifecycle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// DefaultProcesses is the limit where the spec sets none: enough for any build,
// and too few for a fork bomb to trouble the machine.
const DefaultProcesses = 4096

// KeepFile copies an executable into a directory, under a name that its content
// decides, unless it is there already, and returns the copy's path. Others may
// do the same at the same time.
func KeepFile(path, dir string) (string, error) {
	in, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer in.Close()
	out, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, sum), in); err != nil {
		return "", err
	}
	name := filepath.Join(dir, hex.EncodeToString(sum.Sum(nil)[:16]))
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	if err := out.Chmod(0o555); err != nil {
		return "", err
	}
	if err := out.Close(); err != nil {
		return "", err
	}
	return name, os.Rename(out.Name(), name)
}

// DialBeneath connects to a Unix socket in a directory whose content is hostile:
// a link in its place is not followed. (Nor does the length of its path matter,
// which unix(7) limits to 107 bytes.)
func DialBeneath(ctx context.Context, dir, name string) (net.Conn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Openat2(int(d.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Join(dir, name), Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, fmt.Errorf("%s is no socket: %w", filepath.Join(dir, name), errors.ErrUnsupported)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(fd))
}
