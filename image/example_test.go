//go:build linux

package image_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/daytona-go/daytona/image"
)

// A root filesystem in a tar file becomes a directory to mount, held for as long as a sandbox
// uses it. A registry image works the same way; its reference would be "debian:12".
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "image-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer image.RemoveAll(dir)
	archive := filepath.Join(dir, "rootfs.tar")
	if err := writeArchive(archive, "etc/motd", "hello\n"); err != nil {
		log.Fatal(err)
	}

	store, err := image.OpenStore(filepath.Join(dir, "store"), nil)
	if err != nil {
		log.Fatal(err)
	}
	ref, err := image.ParseReference("tar:" + archive)
	if err != nil {
		log.Fatal(err)
	}
	img, err := store.Resolve(ctx, ref, image.PullIfMissing, &image.PullOptions{HoldFor: "sandbox-1"})
	if err != nil {
		log.Fatal(err)
	}
	motd, err := os.ReadFile(filepath.Join(img.Layers[0].Dir, "etc/motd"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d layer, %d bytes: %s", len(img.Layers), img.Size, motd)

	// Nobody refers to the image any more, but sandbox-1 still runs.
	if err := store.Remove(ctx, ref); err != nil {
		log.Fatal(err)
	}
	report, err := store.Prune(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("pruned while held:", len(report.Layers))

	if err := store.Release(ctx, "sandbox-1"); err != nil {
		log.Fatal(err)
	}
	if report, err = store.Prune(ctx); err != nil {
		log.Fatal(err)
	}
	fmt.Println("pruned after release:", len(report.Layers))

	_, err = store.Resolve(ctx, ref, image.PullNever, nil)
	fmt.Println("not found:", errors.Is(err, image.ErrNotFound))
	// Output:
	// 1 layer, 6 bytes: hello
	// pruned while held: 0
	// pruned after release: 1
	// not found: true
}

func writeArchive(path, name, body string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))}); err != nil {
		return err
	}
	if _, err := w.Write([]byte(body)); err != nil {
		return err
	}
	return w.Close()
}

func ExampleParseReference() {
	for _, s := range []string{"debian:12", "ghcr.io/owner/name", "oci:/srv/layout:app", "dir:relative"} {
		ref, err := image.ParseReference(s)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(ref, "local:", ref.Local())
	}
	// Output:
	// docker.io/library/debian:12 local: false
	// ghcr.io/owner/name:latest local: false
	// oci:/srv/layout:app local: true
	// invalid image reference "dir:relative": the path "relative" is not absolute
}
