//go:build linux

// Package s3fs is a file system whose files are the objects of a bucket below a
// prefix, and the whole of the program daytona-s3fs.
//
// A file is an object, its path below the prefix is the end of the object's key,
// and its content is the object's, byte for byte. A directory is what keys have
// in common up to a "/", or an object with an empty content whose key ends with
// "/". What is written goes to a file without a name on the local disk, and is
// stored as a whole when it is closed or synced; whoever opens the file after
// that, here or elsewhere, sees it. What a bucket has that makes no path (parts
// of a key that are empty, "." or "..", or longer than a name may be) is not
// seen.
package s3fs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/companion"
	"github.com/daytona-go/daytona/internal/s3mount"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Run serves the mount that s3mount.Mount has made until it is gone.
func Run(ctx context.Context) error {
	err := run(ctx)
	if err != nil {
		reply := s3mount.Reply{Kind: daytona.KindOf(err), Error: err.Error()}
		if e, ok := errors.AsType[*daytona.Error](err); ok && e.Message != "" {
			reply.Error = e.Message
		}
		// To whoever waits for readiness; too late for that it does no harm.
		_ = json.NewEncoder(os.Stdout).Encode(reply)
	}
	return err
}

const (
	// attempts and stall limit what a request may take when nobody answers, and
	// slowStall is for files that are stored or copied.
	attempts  = 3
	stall     = 10 * time.Second
	slowStall = time.Minute
	// checkTimeout is for the first request, while the sandbox starts.
	checkTimeout = 15 * time.Second
	// lastTimeout is for what is not stored yet when the mount is gone.
	lastTimeout = 5 * time.Minute
)

func run(ctx context.Context) error {
	for _, fd := range []int{s3mount.DeviceFD, s3mount.SpoolFD, s3mount.LockFD} {
		unix.CloseOnExec(fd)
	}
	unix.Close(s3mount.LockFD + 1) // the program itself
	var config s3mount.Config
	line, err := bufio.NewReader(io.LimitReader(os.Stdin, s3mount.MaxLine)).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&config); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := confine(); err != nil {
		return err
	}
	b, err := newBucket(config, logger)
	if err != nil {
		return err
	}
	first, cancel := context.WithTimeout(ctx, checkTimeout)
	err = b.check(first)
	cancel()
	if errors.Is(err, context.DeadlineExceeded) {
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: "mount bucket", Message: "the object storage did not answer within " + checkTimeout.String()}
	}
	if err != nil {
		return err
	}
	zero := time.Duration(0)
	quiet := log.New(io.Discard, "", 0)
	root := &dir{b: b}
	opts := &fs.Options{
		EntryTimeout: &zero, AttrTimeout: &zero, UID: config.Owner, GID: config.Owner, Logger: quiet,
		MountOptions: fuse.MountOptions{
			MaxWrite: s3mount.MaxRead, MaxBackground: 32, MaxInflightRequestBytes: 64 << 20, DisableXAttrs: true, Logger: quiet,
			FsName: "s3:" + config.Location.Bucket, Name: "daytona-s3fs",
		},
	}
	server, err := fuse.NewServer(fs.NewNodeFS(root, opts), fmt.Sprintf("/dev/fd/%d", s3mount.DeviceFD), &opts.MountOptions)
	if err != nil {
		return fmt.Errorf("serve the mount: %w", err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(s3mount.Reply{}); err != nil {
		return fmt.Errorf("report readiness: %w", err)
	}
	os.Stdout.Close()
	server.Serve() // until the mount is gone
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
	defer cancel()
	b.storeAll(last)
	return nil
}

// confine gives up what a file server has no use for. Names have to be looked up
// and certificates to be read, so files stay readable to a user who owns none.
func confine() error {
	if err := companion.Protect(); err != nil {
		return err
	}
	if err := companion.DropSyscalls(); err != nil {
		return fmt.Errorf("take system calls away: %w", err)
	}
	return nil
}
