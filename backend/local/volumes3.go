package local

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/lifecycle"
	"github.com/daytona-go/daytona/internal/s3mount"
)

// A volume of kind s3 is mounted by a program of its own for each mount that a
// sandbox has of it: it shows the mount's part of the volume and no other, with
// files that belong to the sandbox's user. The mount is nowhere on
// the host, only in the sandbox, and so it ends with the sandbox, and the program
// with it, whether there is an engine or not.

// maxSpool is how much a sandbox may have written into one volume that is not
// stored in the bucket yet, in bytes.
const maxSpool = 16 * daytona.GiB

// fileServer is the program, once it was needed.
type fileServer struct {
	sync.Mutex
	find    func(ctx context.Context) (string, error)
	program *os.File // sealed memfd, which any user may execute
}

// refuseBuckets says why there can be no volumes of kind s3; "" if there can.
func (e *engine) refuseBuckets() string {
	if !e.root {
		return "without root the local backend has volumes of kind directory only: it takes root to mount a bucket"
	}
	return s3mount.Refuse()
}

// mountBucket mounts a volume of kind s3, detached; nil if it is of another kind.
// What is mounted belongs to the launch.
func (e *engine) mountBucket(ctx context.Context, r *record, m daytona.VolumeMount, l *launch) (*os.File, error) {
	v, err := e.GetVolume(ctx, m.Volume)
	if err != nil || v.Kind != daytona.VolumeS3 {
		return nil, err
	}
	if why := e.refuseBuckets(); why != "" {
		return nil, &daytona.Error{Kind: daytona.KindUnsupported, Op: createOp, Field: "Volumes", Value: m.Volume, Message: why}
	}
	program, err := e.bucketProgram(ctx)
	if err != nil {
		return nil, err
	}
	where, spool, err := e.OpenBucket(v)
	if err != nil {
		return nil, err
	}
	// Whoever it is, all users may do everything; but programs such as "cp -p" are
	// happier with what is their own.
	user, _, _ := strings.Cut(r.User, ":")
	where.Prefix = strings.Trim(where.Prefix+"/"+m.Subpath, "/")
	mount, cmd, err := s3mount.Mount(ctx, s3mount.Options{
		Config:  s3mount.Config{Location: where, Owner: uint32(r.Own.UIDBase + singleUserID(user)), ReadOnly: m.ReadOnly, MaxSpool: maxSpool},
		Program: program, Spool: spool, Lock: e.File(r.ID, fmt.Sprintf("s3-%d.lock", len(l.held))), Stderr: l.log,
	})
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", v.Name, err)
	}
	go cmd.Wait() // it ends with the mount
	l.held = append(l.held, mount)
	return mount, nil
}

func (e *engine) bucketProgram(ctx context.Context) (*os.File, error) {
	s := &e.fileServer
	s.Lock()
	defer s.Unlock()
	if s.program != nil {
		return s.program, nil
	}
	path, err := s.find(ctx)
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindUnavailable, Op: lifecycle.CreateOp, Field: "Volumes", Message: "the program that mounts buckets is missing", Err: err}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s.program, err = memfd("daytona-s3fs", f)
	return s.program, err
}
