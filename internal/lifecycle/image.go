//go:build linux

package lifecycle

import (
	"context"
	"errors"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/image"
	"github.com/daytona-go/daytona/toolbox/wire"
)

// ImageError turns an error of package image into one of the library.
func ImageError(op, ref string, err error) error {
	kind := daytona.KindOf(err)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, image.ErrNotFound):
		kind = daytona.KindNotFound
	case errors.Is(err, image.ErrUnauthorized):
		kind = daytona.KindUnauthorized
	case errors.Is(err, image.ErrInvalidReference), errors.Is(err, image.ErrUnsafeLayer), errors.Is(err, image.ErrTooLarge), errors.Is(err, image.ErrDigestMismatch):
		kind = daytona.KindInvalid
	case errors.Is(err, image.ErrUnavailable), errors.Is(err, image.ErrRateLimited):
		kind = daytona.KindUnavailable
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		kind = daytona.KindNoSpace
	}
	return &daytona.Error{Kind: kind, Op: op, Field: "Image", Value: ref, Err: err}
}

// Environment is the image's with the spec's added, as a map.
func Environment(config image.Config, env map[string]string) map[string]string {
	all := map[string]string{"PATH": DefaultPath}
	for _, kv := range config.Env {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			all[k] = v
		}
	}
	for k, v := range env {
		all[k] = v
	}
	return all
}

// DefaultPath is the PATH of images that name none.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// The default user is who programs run as where neither spec nor image says.
const (
	DefaultUser   = "daytona"
	DefaultUserID = 1000
)

// UserOf is the user for a spec and an image, and whether it may have to be
// added.
func UserOf(spec string, config image.Config) (name string, add bool) {
	switch {
	case spec != "":
		return spec, spec == DefaultUser
	case config.User != "":
		return config.User, false
	}
	return DefaultUser, true
}

// EntrypointOf is the program of the image that is worth running: the spec's,
// or the image's unless it is only a shell.
func EntrypointOf(spec []string, config image.Config) []string {
	if len(spec) > 0 {
		return spec
	}
	if len(config.Entrypoint) > 0 {
		return append(append([]string{}, config.Entrypoint...), config.Cmd...)
	}
	if len(config.Cmd) == 0 {
		return nil
	}
	switch filepath.Base(config.Cmd[0]) {
	case "sh", "bash", "dash", "ash", "zsh", "python", "python3", "node", "irb", "jshell":
		if len(config.Cmd) == 1 {
			return nil
		}
	}
	return config.Cmd
}

// UserToAdd is the default user where it may be missing, or one for a bare
// number, so that it has a name and a home; nil for the image's own.
func UserToAdd(user string, isDefault bool) *wire.ContainerUser {
	u := &wire.ContainerUser{Name: DefaultUser, UID: DefaultUserID, GID: DefaultUserID, Home: "/home/" + DefaultUser}
	if isDefault {
		return u
	}
	uid, gid, hasGroup := strings.Cut(user, ":")
	n, err := strconv.Atoi(uid)
	if err != nil {
		return nil
	}
	u.UID, u.GID, u.Fixed = n, n, true
	if g, err := strconv.Atoi(gid); hasGroup && err == nil {
		u.GID = g
	}
	return u
}
