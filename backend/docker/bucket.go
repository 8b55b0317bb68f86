//go:build linux

package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/agentbin"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/s3mount"
)

// A volume of kind s3 is nothing of the engine's: for each mount that a sandbox
// has of it a program of its own is started, which shows the mount's part of the
// bucket and no other. The mount is where the engine finds it for the moment that
// the container starts (see places), and from then on in the container only: it
// ends with the container, and the program with it, whether this process lives or
// not.

// maxSpool is how much a sandbox may have written into one volume that is not
// stored in the bucket yet, in bytes.
const maxSpool = 16 * daytona.GiB

// refuseBuckets says why there can be no volumes of kind s3; "" if there can.
func (b *backend) refuseBuckets() string {
	if !b.mounts {
		return "the engine does not see what this process mounts: it takes root, on the engine's machine, in the same mount namespace"
	}
	return s3mount.Refuse()
}

// bucketFile says where a volume of kind s3 is, for root only; spool has what is
// written and not stored yet.
func (b *backend) bucketFile(id string) string {
	return filepath.Join(b.Dir("volumes"), id+bucketSuffix)
}
func (b *backend) spool(id string) string { return filepath.Join(b.Dir("volumes"), id+spoolSuffix) }

const (
	bucketSuffix = ".s3"
	spoolSuffix  = ".spool"
)

// isBucket reports whether a volume is of kind s3.
func (b *backend) isBucket(id string) bool {
	_, err := os.Stat(b.bucketFile(id))
	return err == nil
}

// removeBucket removes what this machine has of a volume of kind s3, which is
// nothing of what is in the bucket.
func (b *backend) removeBucket(id string) error {
	err := os.Remove(b.bucketFile(id))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(b.spool(id)))
}

// fillBucket mounts a sandbox's part of a volume of kind s3 in its place.
func (b *backend) fillBucket(ctx context.Context, r *record, i int) error {
	m, id := r.Volumes[i], r.Own.Volumes[i]
	if why := b.refuseBuckets(); why != "" {
		return &daytona.Error{Kind: daytona.KindUnsupported, Op: lifecycle.StartOp, Field: "Volumes", Value: m.Volume, Message: why}
	}
	var where daytona.S3Location
	data, err := os.ReadFile(b.bucketFile(id))
	if err == nil {
		err = json.Unmarshal(data, &where)
	}
	if err != nil {
		return err
	}
	program, err := b.bucketProgram(ctx)
	if err != nil {
		return err
	}
	defer program.Close()
	where.Prefix = strings.Trim(where.Prefix+"/"+m.Subpath, "/")
	mount, cmd, err := s3mount.Mount(ctx, s3mount.Options{
		Config:  s3mount.Config{Location: where, Owner: ownerOf(r.User), ReadOnly: m.ReadOnly, MaxSpool: maxSpool},
		Program: program, Spool: b.spool(id), Lock: b.File(r.ID, "s3-"+strconv.Itoa(i)+".lock"),
	})
	if err != nil {
		return fmt.Errorf("volume %s: %w", m.Volume, err)
	}
	defer mount.Close()
	go cmd.Wait() // it ends with the mount
	if err := os.MkdirAll(b.place(r, i), 0o700); err != nil {
		return err
	}
	if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, b.place(r, i), unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: "mount", Path: b.place(r, i), Err: err}
	}
	return nil
}

// ownerOf is the id of a sandbox's user, where that is known outside of it:
// whoever it is may do everything in a bucket, but programs such as "cp -p" are
// happier with what is their own.
func ownerOf(user string) uint32 {
	user, _, _ = strings.Cut(user, ":")
	if user == "root" {
		return 0
	}
	if n, err := strconv.ParseUint(user, 10, 32); err == nil {
		return uint32(n)
	}
	return lifecycle.DefaultUserID
}

// bucketProgram opens the program that serves mounts of buckets.
func (b *backend) bucketProgram(ctx context.Context) (*os.File, error) {
	path := filepath.Join(filepath.Dir(b.agentFrom), agentbin.S3FS)
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
		if path, err = agentbin.Find(ctx, agentbin.S3FS, "", agentbin.CacheDir(b.Root)); err != nil {
			return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: lifecycle.StartOp, Field: "Volumes", Message: "the program that mounts buckets is missing", Err: err}
		}
	}
	return os.Open(path)
}
