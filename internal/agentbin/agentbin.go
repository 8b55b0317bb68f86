// Package agentbin finds the programs that run beside or inside sandboxes:
// the agent, the network helper and the server of buckets' files. It knows nothing of what they do.
//
// They are looked for in this order: an explicit path; the one embedded in a
// release build (build tag "embedagent"); beside the executable; on PATH;
// built once with the local Go toolchain into the user's cache directory.
package agentbin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// module is the path of this module.
const module = "github.com/daytona-go/daytona"

// Agent, Net and S3FS are the names of the programs.
const (
	Agent = "daytona-agent"
	Net   = "daytona-net"
	S3FS  = "daytona-s3fs"
)

// NotFoundError says where a program was looked for.
type NotFoundError struct {
	Name  string
	Tried []string
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("program %s not found; tried: %s. Install a release (which embeds it), put it beside this program or on PATH, "+
		"or install Go so that it can be built", e.Name, strings.Join(e.Tried, "; "))
}

// FindAgent is Find for the agent: in the place that explicit or else the
// variable DAYTONA_AGENT names, or wherever it is.
func FindAgent(ctx context.Context, explicit, cache string) (string, error) {
	if explicit == "" {
		explicit = os.Getenv("DAYTONA_AGENT")
	}
	return Find(ctx, Agent, explicit, cache)
}

// CacheDir is where programs are built into: the user's, or below fallback
// where the user has none.
func CacheDir(fallback string) string {
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = fallback
	}
	return filepath.Join(dir, "daytona", "bin")
}

// Find returns the path of a program, building it if need be. explicit, if
// not empty, is the only place looked at. cache is the directory to build
// into.
func Find(ctx context.Context, name, explicit, cache string) (string, error) {
	if explicit != "" {
		if err := executable(explicit); err != nil {
			return "", &NotFoundError{Name: name, Tried: []string{fmt.Sprintf("%s: %v", explicit, err)}}
		}
		return explicit, nil
	}
	var tried []string
	if data := embedded(name); data != nil {
		return extract(name, data, cache)
	}
	tried = append(tried, "embedded: this is not a release build")
	if exe, err := os.Executable(); err == nil {
		p := filepath.Join(filepath.Dir(exe), name)
		err := executable(p)
		if err == nil {
			return p, nil
		}
		tried = append(tried, fmt.Sprintf("beside the executable: %v", err))
	}
	// A working copy of the source builds its own, so that what is tested is
	// what is written.
	src, devel := sourceDir()
	if !devel {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
		tried = append(tried, "on PATH: not found")
	}
	p, err := build(ctx, name, src, devel, cache)
	if err == nil {
		return p, nil
	}
	tried = append(tried, fmt.Sprintf("building it: %v", err))
	return "", &NotFoundError{Name: name, Tried: tried}
}

func executable(p string) error {
	st, err := os.Stat(p)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || unix.Access(p, unix.X_OK) != nil {
		return &fs.PathError{Op: "execute", Path: p, Err: fs.ErrPermission}
	}
	return nil
}

// sourceDir is where this module's source lies, if it can be told; devel says
// that it is a working copy, not a released version in the module cache.
func sourceDir() (dir string, devel bool) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", false
	}
	dir = filepath.Dir(filepath.Dir(filepath.Dir(file)))
	if _, err := os.Stat(filepath.Join(dir, "cmd", Agent)); err != nil {
		return "", false
	}
	return dir, !strings.Contains(dir, "@v")
}

// version is the version of this module that the program was built with.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Path == module {
			return info.Main.Version
		}
		for _, d := range info.Deps {
			if d.Path == module {
				return d.Version
			}
		}
	}
	return ""
}

// build builds the program into the cache unless it is there already.
func build(ctx context.Context, name, src string, devel bool, cache string) (string, error) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		return "", err
	}
	pkg := module + "/cmd/" + name
	key := version()
	dir := src
	switch {
	case src != "":
		if devel {
			if key, err = sourceKey(src); err != nil {
				return "", err
			}
		}
	case key == "" || key == "(devel)":
		return "", errors.New("the source of " + module + " is not at hand")
	default:
		pkg += "@" + key
	}
	sum := sha256.Sum256([]byte(key + runtime.GOARCH + src))
	out := filepath.Join(cache, name+"-"+hex.EncodeToString(sum[:8]))
	if executable(out) == nil {
		return out, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(cache, "build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	args := []string{"build", "-trimpath", "-ldflags", "-s -w", "-o", tmp + string(filepath.Separator), pkg}
	if dir == "" {
		args = []string{"install", "-trimpath", "-ldflags", "-s -w", pkg}
	}
	cmd := exec.CommandContext(ctx, goTool, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOFLAGS=-buildvcs=false", "GOBIN="+tmp)
	var msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &msg, &msg
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w: %s", args[0], err, strings.TrimSpace(msg.String()))
	}
	if err := os.Rename(filepath.Join(tmp, name), out); err != nil {
		return "", err
	}
	return out, nil
}

// sourceKey changes whenever a file that the programs are made of does.
func sourceKey(src string) (string, error) {
	h := sha256.New()
	for _, top := range []string{"go.mod", "go.sum", "cmd/" + Agent, "cmd/" + Net, "cmd/" + S3FS, "toolbox", "internal"} {
		err := filepath.WalkDir(filepath.Join(src, top), func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			if d.IsDir() || strings.HasSuffix(p, "_test.go") || d.Name() == "testdata" {
				return nil
			}
			st, err := d.Info()
			if err != nil {
				return nil // just now removed
			}
			fmt.Fprintln(h, p, st.Size(), st.ModTime().UnixNano())
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// extract writes an embedded program into the cache, once for each content.
func extract(name string, data []byte, cache string) (string, error) {
	sum := sha256.Sum256(data)
	out := filepath.Join(cache, name+"-"+hex.EncodeToString(sum[:8]))
	if executable(out) == nil {
		return out, nil
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(cache, name+"-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o755)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), out)
	}
	return out, err
}
