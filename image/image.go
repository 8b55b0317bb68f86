//go:build linux

package image

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// Image is an unpacked image.
type Image struct {
	// Reference is what the image was asked for by.
	Reference Reference `json:"reference"`
	// Digest identifies the contents, as "sha256:…": the digest of the manifest for this platform
	// for a registry image or a layout, of the configuration for a Docker archive (which has no
	// manifest), of the file for tar:. It is "" for dir:, whose contents may change.
	Digest string `json:"digest"`
	// Layers are the directories to stack, the lowest first. Their contents must not be changed.
	// An image may have none.
	Layers []Layer `json:"layers"`
	Config Config  `json:"config"`
	// Size is the sum of the sizes of the regular files of all layers, in bytes. It is 0 for dir:.
	Size int64 `json:"size"`

	store *Store
}

// Layer is one unpacked layer.
type Layer struct {
	// Dir is the absolute path of the layer's root.
	Dir string `json:"dir"`
	// DiffID is the digest of the uncompressed archive; "" for a root filesystem directory.
	DiffID string `json:"diffID"`
	// Size is the sum of the sizes of its regular files, in bytes.
	Size int64 `json:"size"`
}

// Config is how an image wants to be run. Names and meanings are those of the OCI image
// configuration, https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md.
// It is the zero value for dir: and tar:.
type Config struct {
	Env        []string          `json:"env,omitempty"` // NAME=value
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	WorkingDir string            `json:"workingDir,omitempty"`
	User       string            `json:"user,omitempty"` // name or number, optionally :group
	Labels     map[string]string `json:"labels,omitempty"`
	// ExposedPorts are "8080/tcp" and the like, sorted.
	ExposedPorts []string `json:"exposedPorts,omitempty"`
	// Volumes are paths, sorted.
	Volumes    []string `json:"volumes,omitempty"`
	StopSignal string   `json:"stopSignal,omitempty"`
	// OnBuild, Shell and Healthcheck count for builds on top of the image only.
	OnBuild     []string         `json:"onBuild,omitempty"`
	Shell       []string         `json:"shell,omitempty"`
	Healthcheck *v1.HealthConfig `json:"healthcheck,omitempty"`

	OS           string    `json:"os,omitempty"`
	Architecture string    `json:"architecture,omitempty"`
	Created      time.Time `json:"created,omitzero"`
}

// Hold keeps the image's layers from [Store.Prune], also in other processes and after this one has
// ended, until [Store.Release] is called with the same owner: the identifier of a sandbox, say.
// Holding twice is holding once. If the image was pruned since it was resolved, the error is
// [ErrNotFound]; [PullOptions.HoldFor] leaves no such gap. A dir: image needs no holding.
func (img *Image) Hold(ctx context.Context, owner string) error {
	s := img.store
	if s == nil || img.Digest == "" {
		return nil
	}
	l, err := lock(ctx, s.path("lock"), false)
	if err != nil {
		return err
	}
	defer l.unlock()
	if _, _, err := s.readImage(img.Reference, img.Digest); err == errIncomplete {
		return fmt.Errorf("hold image %s for %q: %w; resolve it again", img.Digest, owner, notInStore(img.Digest))
	} else if err != nil {
		return err
	}
	return s.addLease(owner, img.Digest)
}

// lookup finds what the stacked layers have at a path, as overlayfs would but without following
// symbolic links. A nil result means nothing. What is not a directory ends the path early: at says
// where, and link what it says if it is a symbolic link.
func (img *Image) lookup(components []string) (st *unix.Stat_t, link, at string, err error) {
	var dirs []int // the directories that are merged, the highest first
	defer func() {
		for _, fd := range dirs {
			unix.Close(fd)
		}
		if err != nil {
			err = fmt.Errorf("look for /%s in the image: %w", strings.Join(components, "/"), err)
		}
	}()
	for i := len(img.Layers) - 1; i >= 0; i-- {
		fd, err := openDirectory(img.Layers[i].Dir)
		if err != nil {
			return nil, "", "", err
		}
		dirs = append(dirs, fd)
	}
	for i, c := range components {
		var below []int
		for _, fd := range dirs {
			found, serr := lstatAt(fd, c)
			if serr == unix.ENOENT {
				continue
			}
			if serr != nil {
				err = serr
				break
			}
			if !isDir(&found) {
				// A whiteout, or a file: neither merges with anything.
				if len(below) == 0 && !isWhiteout(&found) {
					st, at = &found, "/"+strings.Join(components[:i+1], "/")
					if isSymlink(st) {
						link, err = readlinkAt(fd, c)
					}
				}
				break
			}
			dir, oerr := openBeneath(fd, c, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
			if oerr != nil {
				err = oerr
				break
			}
			below = append(below, dir)
			value := make([]byte, 8)
			if n, xerr := unix.Fgetxattr(dir, opaqueXattr, value); xerr == nil && string(value[:n]) == "y" {
				break
			}
		}
		for _, fd := range dirs {
			unix.Close(fd)
		}
		dirs = below
		if err != nil || len(dirs) == 0 {
			return st, link, at, err
		}
	}
	if len(dirs) == 0 {
		return nil, "", "", nil
	}
	st, at = new(unix.Stat_t), "/"+strings.Join(components, "/")
	return st, "", at, unix.Fstat(dirs[0], st)
}

// CheckMountPoints makes sure that what a runtime mounts at these absolute paths will be there: in
// the stacked layers each must be a directory in directories, or not exist. A symbolic link on
// the way would lead the mount elsewhere. The error wraps [ErrUnsafeLayer] and names the link.
//
// [Store.Resolve] has checked /proc, /sys and /dev.
func (img *Image) CheckMountPoints(paths ...string) error {
	for _, p := range paths {
		components, err := splitName(p)
		if err == nil && !strings.HasPrefix(p, "/") {
			err = errors.New("it is not absolute")
		}
		if err != nil {
			return fmt.Errorf("mount point %s: %w", quoted(p), err)
		}
		st, link, at, err := img.lookup(components)
		switch {
		case err != nil:
			return err
		case st == nil || isDir(st):
		case isSymlink(st):
			return fmt.Errorf("%w: mount point %s: %s is a symbolic link to %s", ErrUnsafeLayer, quoted(p), quoted(at), quoted(link))
		default:
			return fmt.Errorf("%w: mount point %s: %s is not a directory", ErrUnsafeLayer, quoted(p), quoted(at))
		}
	}
	return nil
}

// checkRuntimePaths refuses images made to lead a runtime astray (CVE-2025-31133, CVE-2025-52565,
// GHSA-g2j6-57v7-gm8c). What honest images have, such as /dev/fd -> /proc/self/fd, is allowed.
func (img *Image) checkRuntimePaths() error {
	if err := img.CheckMountPoints("/proc", "/sys", "/dev"); err != nil {
		return err
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty", "console", "pts", "ptmx", "shm", "mqueue"} {
		st, link, at, err := img.lookup([]string{"dev", name})
		if err != nil {
			return err
		}
		if st == nil || !isSymlink(st) {
			continue
		}
		switch name + " " + link {
		case "ptmx pts/ptmx", "ptmx /dev/pts/ptmx", "shm /run/shm", "shm ../run/shm":
			continue
		}
		return fmt.Errorf("%w: %s is a symbolic link to %s", ErrUnsafeLayer, at, quoted(link))
	}
	return nil
}
