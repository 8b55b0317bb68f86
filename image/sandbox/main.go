//go:build linux

// Command sandbox builds the images that sandboxes start from by default, from
// Debian packages, without a registry and without a Docker daemon:
//
//	go run ./image/sandbox                     # dist/image, variant default
//	go run ./image/sandbox -variant slim -o /srv/images/slim
//
// The result is an OCI image layout, which every backend takes as
// oci:/srv/images/slim:slim. It is made once per machine: the same list of
// packages from the same Debian release is found in the cache from then on,
// until -fresh asks for today's packages.
//
// mmdebstrap is needed, and for others than root uidmap besides. The Dockerfile
// beside this file, made from the same lists, is for those who have a registry.
package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// release is the Debian release that packages come from.
const release = "bookworm"

// variant is one image.
type variant struct {
	name string
	// debian are packages beyond Debian's essential ones.
	debian []string
	// npm are packages of the npm registry, each installed into
	// /usr/local/lib/node_modules with its programs in /usr/local/bin.
	npm []npmPackage
}

// npmPackage is a package without dependencies of its own, or with all of them
// bundled, so that no resolver is needed.
type npmPackage struct {
	name, version string
	// integrity is the SHA-512 of the archive in base64, by GOARCH; under "" for
	// packages that are the same everywhere.
	integrity map[string]string
	// bin are its programs, by the name that they are called by.
	bin map[string]string
}

// Debian's own Node.js 18 runs no TypeScript; 24 does, without a compiler.
var node = npmPackage{
	name: "node-linux-$ARCH", version: "24.21.0",
	integrity: map[string]string{
		"amd64": "3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==",
		"arm64": "FpJRPEz2OvvTLfjIOlNGFY9JLPMKgl5m+d4oGYBLg24kJ1mmvN1Zl/HPJgF4HDaJ51ISev1l1cRZ/DM+keXW5g==",
	},
	bin: map[string]string{"node": "bin/node"},
}

var npm = npmPackage{
	name: "npm", version: "11.21.2",
	integrity: map[string]string{"": "7HPApk+AflMUavSseL1Pm6CnYqMIHk53x+KmuhqmTDqPkjPMgxIpTPcTqsE91EKNw4gFBJV9fnXiSdGm1DXq9A=="},
	bin:       map[string]string{"npm": "bin/npm-cli.js", "npx": "bin/npx-cli.js"},
}

var typescript = npmPackage{
	name: "typescript", version: "5.9.3",
	integrity: map[string]string{"": "jl1vZzPDinLr9eUt3J/t7V6FgNEw9QjvBPdysz9KfQDD41fQrC2Y4vKQdiaUpFT4bXlb1RHhLpp8wtm6M5TgSw=="},
	bin:       map[string]string{"tsc": "bin/tsc", "tsserver": "bin/tsserver"},
}

var typescriptServer = npmPackage{
	name: "typescript-language-server", version: "5.1.2",
	integrity: map[string]string{"": "6V2mfQesAlyQRC5lCoMFOvWITNw70+jcK/bXRMNXVeD89XPJGf30Qft73BToWfGD54d6/55mqsCV4zFOFDLbOQ=="},
	bin:       map[string]string{"typescript-language-server": "lib/cli.mjs"},
}

// variants in the order of their size.
var variants = []variant{
	{
		name: "slim",
		debian: []string{
			"ca-certificates", "git", "procps", "python3",
		},
		npm: []npmPackage{node},
	},
	{
		// Of what matplotlib's font tools choose from, the least is named:
		// python3-munkres and python3-unicodedata2, not SciPy. With pyflakes the
		// language server finds what is wrong.
		name: "default",
		debian: []string{
			"build-essential", "ca-certificates", "curl", "file", "git", "iproute2", "jq", "less", "nano",
			"openssh-client", "procps", "psmisc", "python3", "python3-dev", "python3-matplotlib", "python3-munkres",
			"python3-pip", "python3-pyflakes", "python3-pylsp", "python3-unicodedata2", "python3-venv", "ripgrep", "rsync",
			"tree", "unzip", "wget", "xz-utils", "zip",
		},
		npm: []npmPackage{
			node, npm, typescript, typescriptServer,
		},
	},
	{
		// With what computer use needs; see docs/computer-use.md.
		name: "desktop",
		debian: []string{
			"at-spi2-core", "build-essential", "ca-certificates", "curl", "dbus", "ffmpeg", "file", "fonts-dejavu-core",
			"git", "icewm", "iproute2", "jq", "less", "mousepad", "nano", "openssh-client", "procps", "psmisc",
			"python3", "python3-dev", "python3-matplotlib", "python3-munkres", "python3-pip", "python3-pyflakes",
			"python3-pylsp", "python3-unicodedata2", "python3-venv", "ripgrep", "rsync", "tree", "unzip", "wget", "x11vnc",
			"xterm", "xvfb", "xz-utils", "zip",
		},
		npm: []npmPackage{
			node, npm, typescript, typescriptServer,
			{
				name: "@novnc/novnc", version: "1.7.0",
				integrity: map[string]string{"": "ucEJOx4T2avIRCleodk7YobZj5O2Ga2AeLfQ69A/yjG9HHba2+PDgwSkN3FttrmG+70ZGx21sElNFouK13RzyA=="},
			},
		},
	},
}

// The user that sandboxes run as; the backends expect this name.
const (
	userName = "daytona"
	userID   = 1000
)

// environment of the images.
var environment = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}

// npmArch is what npm packages call a GOARCH.
var npmArch = map[string]string{"amd64": "x64", "arm64": "arm64"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sandbox image:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("sandbox", flag.ContinueOnError)
	name := flags.String("variant", "default", "which image: slim, default or desktop")
	out := flags.String("o", "", "the layout's directory (default dist/image/VARIANT)")
	cache := flags.String("cache", "", "where finished layouts are kept (default the user's cache directory, daytona/images)")
	mirror := flags.String("mirror", "", "the Debian mirror (default: what /etc/apt names, else deb.debian.org)")
	registry := flags.String("npm-registry", "https://registry.npmjs.org", "where npm packages come from")
	fresh := flags.Bool("fresh", false, "build even if the cache has it")
	print := flags.Bool("dockerfile", false, "print a Dockerfile for the same images, and build nothing")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return nil
	} else if err != nil {
		return err
	}
	if *print {
		fmt.Print(dockerfile())
		return nil
	}
	i := slices.IndexFunc(variants, func(v variant) bool { return v.name == *name })
	if i < 0 {
		return fmt.Errorf("-variant %q: there are slim, default and desktop", *name)
	}
	b := builder{variant: variants[i], mirror: *mirror, registry: strings.TrimRight(*registry, "/")}
	if *out == "" {
		*out = filepath.Join("dist", "image", b.variant.name)
	}
	if *cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("no place for the cache: %w; give -cache", err)
		}
		*cache = filepath.Join(dir, "daytona", "images")
	}
	kept := filepath.Join(*cache, b.variant.name+"-"+b.key())
	if _, err := os.Stat(filepath.Join(kept, "index.json")); err != nil || *fresh {
		if err := b.build(ctx, kept); err != nil {
			return err
		}
	}
	if err := copyLayout(kept, *out); err != nil {
		return err
	}
	abs, err := filepath.Abs(*out)
	if err != nil {
		return err
	}
	fmt.Printf("oci:%s:%s\n", abs, b.variant.name)
	return nil
}

type builder struct {
	variant          variant
	mirror, registry string
}

// key tells one set of inputs from another.
func (b *builder) key() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "1 %s %s %+v", release, runtime.GOARCH, b.variant))
	return hex.EncodeToString(sum[:8])
}

// build makes the layout in dir, which appears when it is complete.
func (b *builder) build(ctx context.Context, dir string) error {
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		return errors.New("mmdebstrap is not installed: apt-get install mmdebstrap")
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	begin := time.Now()
	extra := filepath.Join(work, "npm.tar")
	if err := b.fetch(ctx, extra); err != nil {
		return err
	}
	root := filepath.Join(work, "root.tar")
	args := []string{
		"--quiet", "--variant=minbase", "--components=main",
		"--include=" + strings.Join(b.variant.debian, ","),
		`--dpkgopt=path-exclude=/usr/share/doc/*`, `--dpkgopt=path-include=/usr/share/doc/*/copyright`,
		`--dpkgopt=path-exclude=/usr/share/man/*`, `--dpkgopt=path-exclude=/usr/share/locale/*`,
		`--dpkgopt=path-exclude=/usr/share/unicode/*`, // Python's programs have tables of their own
		fmt.Sprintf(`--customize-hook=chroot "$1" useradd --create-home --shell /bin/bash --uid %d %s`, userID, userName),
		"--customize-hook=tar-in " + extra + " /",
		// A sandbox may have no other name server than its own.
		`--customize-hook=rm -f "$1/etc/resolv.conf" "$1/etc/hostname"`,
		release, root,
	}
	if b.mirror != "" {
		args = append(args, b.mirror)
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	fmt.Fprintf(os.Stderr, "building %s: %d Debian packages and what they need\n", b.variant.name, len(b.variant.debian))
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("mmdebstrap: %w", err)
	}
	img, err := b.image(root)
	if err != nil {
		return err
	}
	made := filepath.Join(work, "layout")
	l, err := layout.Write(made, empty.Index)
	if err == nil {
		err = l.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": b.variant.name}),
			layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
	}
	if err != nil {
		return fmt.Errorf("write the layout: %w", err)
	}
	// Backends may run as others than who built.
	blobs, err := filepath.Glob(filepath.Join(made, "blobs", "*", "*"))
	if err != nil {
		return err
	}
	for _, b := range blobs {
		if err := os.Chmod(b, 0o644); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Rename(made, dir); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "built %s in %v\n", b.variant.name, time.Since(begin).Round(time.Second))
	return nil
}

// image wraps a root file system.
func (b *builder) image(root string) (v1.Image, error) {
	layer, err := tarball.LayerFromFile(root, tarball.WithCompressionLevel(gzip.BestSpeed))
	if err != nil {
		return nil, fmt.Errorf("read the root file system: %w", err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Created = v1.Time{Time: time.Now().UTC()}
	config.Config = v1.Config{User: userName, WorkingDir: "/home/" + userName, Env: environment}
	return mutate.ConfigFile(img, config)
}

// fetch writes an archive of the npm packages as they are to be installed.
func (b *builder) fetch(ctx context.Context, file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 1<<20)
	w := tar.NewWriter(buffered)
	for _, p := range b.variant.npm {
		if err := b.add(ctx, w, p); err != nil {
			return fmt.Errorf("npm package %s %s: %w", p.name, p.version, err)
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return buffered.Flush()
}

// add downloads and checks one package and adds it to the archive.
func (b *builder) add(ctx context.Context, w *tar.Writer, p npmPackage) error {
	sum := p.integrity[""]
	if sum == "" {
		sum = p.integrity[runtime.GOARCH]
	}
	arch := npmArch[runtime.GOARCH]
	if sum == "" || arch == "" {
		return fmt.Errorf("not available for %s", runtime.GOARCH)
	}
	name := strings.ReplaceAll(p.name, "$ARCH", arch)
	archive, err := b.download(ctx, fmt.Sprintf("%s/%s/-/%s-%s.tgz", b.registry, name, path.Base(name), p.version), sum)
	if err != nil {
		return err
	}
	defer os.Remove(archive)
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return err
	}
	home := path.Join("usr/local/lib/node_modules", strings.TrimSuffix(name, "-linux-"+arch))
	programs := map[string]bool{}
	for _, target := range p.bin {
		programs[target] = true
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		// Everything is below one directory, "package" or the package's name.
		_, rel, ok := strings.Cut(path.Clean(h.Name), "/")
		if h.Typeflag != tar.TypeReg || !ok || !filepath.IsLocal(rel) ||
			strings.HasPrefix(rel, "include/") || strings.HasPrefix(rel, "share/") {
			continue
		}
		mode := int64(0o644)
		if programs[rel] || h.Mode&0o100 != 0 {
			mode = 0o755
		}
		if err := w.WriteHeader(&tar.Header{Name: path.Join(home, rel), Typeflag: tar.TypeReg, Size: h.Size, Mode: mode, ModTime: h.ModTime}); err != nil {
			return err
		}
		if _, err := io.Copy(w, r); err != nil {
			return err
		}
	}
	for _, called := range slices.Sorted(maps.Keys(p.bin)) {
		if err := w.WriteHeader(&tar.Header{Name: "usr/local/bin/" + called, Typeflag: tar.TypeSymlink,
			Linkname: path.Join("../lib/node_modules", path.Base(home), p.bin[called]), Mode: 0o777}); err != nil {
			return err
		}
	}
	return nil
}

// download fetches a file whose SHA-512 is known.
func (b *builder) download(ctx context.Context, url, sum string) (file string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", url, resp.Status)
	}
	f, err := os.CreateTemp("", "daytona-npm-")
	if err != nil {
		return "", err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	hash := sha512.New()
	const limit = 256 << 20
	n, err := io.Copy(io.MultiWriter(f, hash), io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", url, err)
	case n > limit:
		return "", fmt.Errorf("%s: larger than %d MiB", url, limit>>20)
	}
	if got := base64.StdEncoding.EncodeToString(hash.Sum(nil)); got != sum {
		return "", fmt.Errorf("%s: its SHA-512 is %s, want %s", url, got, sum)
	}
	return f.Name(), nil
}

// copyLayout puts a layout from the cache where it is wanted, by hard links
// where that is possible. Files of a layout are named by their content and
// never change.
func copyLayout(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return filepath.WalkDir(from, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		if err := os.Link(p, target); err == nil {
			return nil
		}
		in, err := os.Open(p)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.Create(target)
		if err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			out.Close()
			return err
		}
		return out.Close()
	})
}
