package plugin

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/daytona-go/daytona"
	pb "github.com/daytona-go/daytona/backend/plugin/proto"
)

const (
	buildOp = "build image"
	// chunkSize is that of the pieces of a build's files.
	chunkSize = 256 << 10
	// maxBuildLine bounds a line of a build's output.
	maxBuildLine = 1 << 20
)

// BuildImage sends the files of the build along, as they are this machine's, or
// this program's, while it hears what the build says.
func (o optional) BuildImage(ctx context.Context, img *daytona.Image, opts daytona.BuildOptions) (daytona.BuiltImage, error) {
	b := o.b
	if err := ctx.Err(); err != nil {
		return daytona.BuiltImage{}, ended(buildOp, "", err)
	}
	c, err := b.acquire(ctx)
	if err != nil {
		return daytona.BuiltImage{}, err
	}
	streamCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.rpc.BuildImage(streamCtx)
	if err != nil {
		return daytona.BuiltImage{}, b.callError(ctx, c, buildOp, "", err)
	}
	sent := make(chan error, 1)
	go func() {
		err := sendBuild(streamCtx, s, img, opts)
		if err != nil {
			cancel()
		}
		sent <- err
	}()
	var built *pb.BuiltImage
	for err == nil {
		var m *pb.BuildImageResponse
		if m, err = s.Recv(); err != nil {
			break
		}
		switch {
		case m.GetImage() != nil:
			built = m.GetImage()
		case m.GetLog() != nil && opts.OnLog != nil:
			opts.OnLog(buildLogFromWire(m.GetLog()))
		}
	}
	cancel()
	// The files are the caller's again when this returns.
	sendErr := <-sent
	switch {
	case err == io.EOF && built != nil:
		return builtImageFromWire(built), nil
	case sendErr != nil && ctx.Err() == nil:
		return daytona.BuiltImage{}, sendErr
	case err == io.EOF:
		return daytona.BuiltImage{}, b.unavailable(buildOp, "", noAnswer, nil)
	}
	return daytona.BuiltImage{}, b.callError(ctx, c, buildOp, "", err)
}

// sendBuild sends a build and its files. An error is one of the files; those of
// the stream are for its receiving side to find.
func sendBuild(ctx context.Context, s grpc.BidiStreamingClient[pb.BuildImageRequest, pb.BuildImageResponse], img *daytona.Image, opts daytona.BuildOptions) error {
	spec := buildOptionsToWire(opts)
	spec.Dockerfile = []byte(img.Dockerfile())
	for _, c := range img.Contexts() {
		spec.Contexts = append(spec.Contexts, &pb.BuildContext{Path: c.Path, ArchivePath: c.ArchivePath, Exclude: c.Exclude})
	}
	if err := s.Send(&pb.BuildImageRequest{Message: &pb.BuildImageRequest_Spec{Spec: spec}}); err != nil {
		return nil
	}
	w := &chunkWriter{stream: s}
	buf := bufio.NewWriterSize(w, chunkSize)
	err := archiveContexts(ctx, buf, img.Contexts())
	if err == nil {
		err = buf.Flush()
	}
	switch {
	case w.broken || ctx.Err() != nil:
		return nil
	case err != nil:
		return err
	}
	_ = s.CloseSend()
	return nil
}

// chunkWriter sends what is written to it.
type chunkWriter struct {
	stream grpc.BidiStreamingClient[pb.BuildImageRequest, pb.BuildImageResponse]
	broken bool
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); {
		// A message is not to be changed once it is sent.
		chunk := bytes.Clone(p[sent:min(len(p), sent+chunkSize)])
		if err := w.stream.Send(&pb.BuildImageRequest{Message: &pb.BuildImageRequest_Chunk{Chunk: chunk}}); err != nil {
			w.broken = true
			return sent, err
		}
		sent += len(chunk)
	}
	return len(p), nil
}

// archiveContexts writes the archive that the protocol describes at BuildImage.
// It holds no more than a directory's names in memory.
func archiveContexts(ctx context.Context, w io.Writer, contexts []daytona.BuildContext) error {
	a := &archiver{ctx: ctx, tar: tar.NewWriter(w)}
	for i, c := range contexts {
		if err := a.context(c, strconv.Itoa(i)); err != nil {
			what := c.Source
			if c.Files != nil {
				what = c.Path
			}
			e := &daytona.Error{Kind: daytona.KindInvalid, Op: buildOp, Field: "Contexts", Value: what, Message: "cannot be read", Err: err}
			if errors.Is(err, fs.ErrPermission) {
				e.Kind = daytona.KindForbidden
			}
			return e
		}
	}
	return a.tar.Close()
}

type archiver struct {
	ctx context.Context
	tar *tar.Writer
}

func (a *archiver) context(c daytona.BuildContext, as string) error {
	if c.Files != nil {
		return a.add(c.Files, ".", as)
	}
	st, err := os.Stat(c.Source)
	if err != nil {
		return err
	}
	dir, name := c.Source, "."
	if !st.IsDir() {
		// It may be reached through a link, which is not what is meant.
		source, err := filepath.EvalSymlinks(c.Source)
		if err != nil {
			return err
		}
		dir, name = filepath.Split(source)
		if dir == "" {
			dir = "."
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	return a.add(root.FS(), name, as)
}

// add adds a file, or a directory with all that is in it.
func (a *archiver) add(files fs.FS, name, as string) error {
	if err := a.ctx.Err(); err != nil {
		return err
	}
	st, err := fs.Lstat(files, name)
	if err != nil {
		return err
	}
	h := &tar.Header{Format: tar.FormatPAX, Name: as, Mode: unixMode(st.Mode()), ModTime: st.ModTime()}
	switch st.Mode().Type() {
	case 0:
		h.Typeflag, h.Size = tar.TypeReg, st.Size()
		return a.addFile(files, name, h)
	case fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = fs.ReadLink(files, name); err != nil {
			return err
		}
		return a.tar.WriteHeader(h)
	case fs.ModeDir:
		entries, err := fs.ReadDir(files, name)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := a.add(files, path.Join(name, e.Name()), as+"/"+e.Name()); err != nil {
				return err
			}
		}
		h.Typeflag, h.Name = tar.TypeDir, as+"/"
		return a.tar.WriteHeader(h)
	case fs.ModeSocket: // belongs to a program that runs, and cannot be copied
		return nil
	default:
		return &fs.PathError{Op: "archive", Path: name, Err: errors.New("is no file, directory or symbolic link")}
	}
}

func (a *archiver) addFile(files fs.FS, name string, h *tar.Header) error {
	f, err := files.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := a.tar.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyN(a.tar, withContext{a.ctx, f}, h.Size)
	if err == io.EOF {
		return &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("it became shorter meanwhile: %d bytes of %d", n, h.Size)}
	}
	return err
}

// withContext ends the reading of a large file with a context.
type withContext struct {
	ctx context.Context
	r   io.Reader
}

func (w withContext) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.r.Read(p)
}

// unixMode are the permissions with the bits for which package fs has its own.
func unixMode(m fs.FileMode) int64 {
	mode := int64(m.Perm())
	for bit, unix := range map[fs.FileMode]int64{fs.ModeSetuid: syscall.S_ISUID, fs.ModeSetgid: syscall.S_ISGID, fs.ModeSticky: syscall.S_ISVTX} {
		if m&bit != 0 {
			mode |= unix
		}
	}
	return mode
}

// BuildImage unpacks the files of a build and has the backend build it.
func (s *server) BuildImage(c grpc.BidiStreamingServer[pb.BuildImageRequest, pb.BuildImageResponse]) error {
	built, err := ask(s, c.Context(), buildOp, func(ctx context.Context, b daytona.ImageBuilder) (daytona.BuiltImage, error) {
		first, err := c.Recv()
		if err != nil {
			return daytona.BuiltImage{}, err
		}
		if err := known(buildOp, first); err != nil {
			return daytona.BuiltImage{}, err
		}
		spec := first.GetSpec()
		opts, err := buildOptionsFromWire(spec)
		if err != nil {
			return daytona.BuiltImage{}, err
		}
		// The host removes this directory if this process does not live to.
		dir, err := os.MkdirTemp(s.dir, "build-")
		if err != nil {
			return daytona.BuiltImage{}, unpackError(err)
		}
		defer removeTree(dir)
		if err := unpackContexts(&chunkReader{stream: c}, dir, len(spec.GetContexts())); err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return daytona.BuiltImage{}, err
		}
		var contexts []daytona.BuildContext
		for i, m := range spec.GetContexts() {
			contexts = append(contexts, daytona.BuildContext{
				Source: filepath.Join(dir, strconv.Itoa(i)), Path: m.GetPath(), ArchivePath: m.GetArchivePath(), Exclude: m.GetExclude(),
			})
		}
		img := daytona.NewImage(string(spec.GetDockerfile()), contexts...)
		if err := img.Err(); err != nil {
			return daytona.BuiltImage{}, err
		}
		logs := make(chan daytona.BuildLog, 1024)
		if spec.GetLog() {
			// No line is lost. There is room for those of a host that is slow, and
			// one that has gone ends the context.
			opts.OnLog = func(l daytona.BuildLog) {
				select {
				case logs <- l:
				case <-ctx.Done():
				}
			}
		}
		return telling(logs, func(l daytona.BuildLog) {
			_ = c.Send(&pb.BuildImageResponse{Message: &pb.BuildImageResponse_Log{Log: buildLogToWire(l)}})
		}, func() (daytona.BuiltImage, error) { return b.BuildImage(ctx, img, opts) })
	}, builtImageToWire)
	if err != nil {
		return err
	}
	return c.Send(&pb.BuildImageResponse{Message: &pb.BuildImageResponse_Image{Image: built}})
}

// chunkReader reads what the host sends.
type chunkReader struct {
	stream grpc.BidiStreamingServer[pb.BuildImageRequest, pb.BuildImageResponse]
	rest   []byte
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		m, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		r.rest = m.GetChunk()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// unpackContexts unpacks what archiveContexts has packed into a directory, in
// which context i is then called i.
func unpackContexts(r io.Reader, dir string, n int) error {
	bad := func(name, message string) error {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: buildOp, Field: "Contexts", Value: name, Message: message}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return unpackError(err)
	}
	defer root.Close()
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return unpackError(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		first, _, _ := strings.Cut(name, "/")
		if i, err := strconv.Atoi(first); err != nil || i < 0 || i >= n || strconv.Itoa(i) != first || path.Clean(name) != name {
			return bad(h.Name, "belongs to no context")
		}
		if err := unpack(root, name, h, t); err != nil {
			return unpackError(err)
		}
	}
	// The host closes its direction when it has sent everything.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return unpackError(err)
	}
	for i := range n {
		if _, err := root.Lstat(strconv.Itoa(i)); err != nil {
			return bad(strconv.Itoa(i), "has not been sent")
		}
	}
	return nil
}

func unpack(root *os.Root, name string, h *tar.Header, content io.Reader) error {
	// The entry of a directory, with its mode, comes after what is in it.
	if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	mode := h.FileInfo().Mode()
	switch h.Typeflag {
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeDir:
		if err := root.MkdirAll(name, 0o700); err != nil {
			return err
		}
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	default:
		return &fs.PathError{Op: "unpack", Path: name, Err: fmt.Errorf("entries of type %q are not known", h.Typeflag)}
	}
	if err := root.Chmod(name, mode&(fs.ModePerm|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)); err != nil {
		return err
	}
	return root.Chtimes(name, time.Time{}, h.ModTime)
}

// unpackError is the error for files that did not arrive.
func unpackError(err error) error {
	e := &daytona.Error{Kind: daytona.KindInternal, Op: buildOp, Message: "unpack the files that the Dockerfile copies", Err: err}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		e.Kind = daytona.KindNoSpace
	}
	return e
}

// removeTree removes a directory in which there may be some that their owner
// cannot enter.
func removeTree(dir string) {
	if os.RemoveAll(dir) == nil {
		return
	}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}
