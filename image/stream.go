//go:build linux

package image

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// budget is what one image may use. The layers that are unpacked side by side share it.
type budget struct {
	maxEntries, maxBytes int64
	entries, bytes       atomic.Int64
}

func (b *budget) addEntries(n int64) error {
	if b.entries.Add(n) > b.maxEntries {
		return fmt.Errorf("%w: more than %d entries (StoreOptions.MaxEntries)", ErrTooLarge, b.maxEntries)
	}
	return nil
}

func (b *budget) addBytes(n int64) error {
	if b.bytes.Add(n) > b.maxBytes {
		return fmt.Errorf("%w: more than %d bytes unpacked (StoreOptions.MaxBytes)", ErrTooLarge, b.maxBytes)
	}
	return nil
}

// ratioSlack is what a layer may expand to before its compression ratio is looked at: small
// layers of zeros are common and harmless.
const ratioSlack = 256 << 20

// maxWindow is the largest zstd window accepted, and so the memory that decompressing may take.
// `zstd --long` without a number uses this much.
const maxWindow = 128 << 20

// A sourceError is a failure to read the blob, not a fault of the blob: trying again may help.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// stream decompresses one layer while it hashes both sides and watches the limits.
type stream struct {
	ctx      context.Context
	raw      io.Reader
	size     int64       // of the blob; -1 if nobody said
	digest   string      // of the blob; "" if nobody said
	progress func(int64) // may be nil
	budget   *budget     // may be nil
	maxRatio int64       // 0: no limit
	rawHash  hash.Hash   // nil without digest
	diffHash hash.Hash   // of the decompressed bytes
	in, out  int64       // bytes read and bytes decompressed
	extra    int64       // bytes written to files beyond out: the holes of sparse files
	charged  int64       // what this stream took from budget
	failure  error       // the first error of raw
	plain    io.Reader   // decompressed
	inner    io.Reader   // the decompressor
	ahead    *ahead      // reads inner, once somebody reads plain; in and failure are its own until it is stopped
	seen     int64       // what in was when the bytes read last were decompressed
	abort    func()      // ends a read of raw that waits, from another goroutine; may be nil
	free     func()      // of the decompressor
}

type rawSide struct{ *stream }
type plainSide struct{ *stream }

func (s rawSide) Read(p []byte) (int, error) {
	if s.failure != nil {
		return 0, s.failure
	}
	if err := s.ctx.Err(); err != nil {
		s.failure = context.Cause(s.ctx)
		return 0, s.failure
	}
	n, err := s.raw.Read(p)
	s.in += int64(n)
	if s.size >= 0 && s.in > s.size {
		s.failure = fmt.Errorf("%w: the blob %s is longer than the %d bytes its descriptor states", ErrDigestMismatch, s.digest, s.size)
		return 0, s.failure
	}
	if s.rawHash != nil {
		s.rawHash.Write(p[:n])
	}
	if s.progress != nil && n > 0 {
		s.progress(int64(n))
	}
	if err != nil && err != io.EOF {
		switch {
		case s.ctx.Err() != nil:
			err = context.Cause(s.ctx)
		case !errors.Is(err, ErrDigestMismatch):
			err = &sourceError{err}
		}
		s.failure = err
	}
	return n, err
}

func (s plainSide) Read(p []byte) (int, error) {
	if s.ahead == nil {
		s.stream.ahead = readAhead(s.inner, s.diffHash, func() int64 { return s.in })
	}
	data, err := s.ahead.next(len(p))
	s.seen = s.ahead.cur.in
	n := copy(p, data)
	if n > 0 {
		s.out += int64(n)
		if err := s.charge(int64(n)); err != nil {
			return 0, err
		}
	}
	return n, err
}

// close ends what open and reading began.
func (s *stream) close() {
	if s.ahead != nil {
		s.ahead.stop(s.abort)
	}
	s.free()
}

// charge accounts for n bytes of output.
func (s *stream) charge(n int64) error {
	s.charged += n
	if s.budget != nil {
		if err := s.budget.addBytes(n); err != nil {
			return err
		}
	}
	if out := s.out + s.extra; s.maxRatio > 0 && out > ratioSlack && out/s.maxRatio > s.seen {
		return fmt.Errorf("%w: %d compressed bytes expand to more than %d times as many (StoreOptions.MaxRatio)", ErrTooLarge, s.seen, s.maxRatio)
	}
	return nil
}

// hole accounts for n bytes of a file that no byte of the archive stands for.
func (s *stream) hole(n int64) error {
	s.extra += n
	return s.charge(n)
}

// open finds out how the blob is compressed, by its first bytes as everybody does, because media
// types of layers are often wrong.
func (s *stream) open() error {
	if s.digest != "" {
		h, err := v1.NewHash(s.digest)
		if err != nil {
			return err
		}
		if s.rawHash, err = v1.Hasher(h.Algorithm); err != nil {
			return err
		}
	}
	s.free = func() {}
	buffered := bufio.NewReaderSize(rawSide{s}, 256<<10)
	magic, err := buffered.Peek(6)
	if err != nil && err != io.EOF {
		return err
	}
	inner := io.Reader(buffered)
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}): // RFC 1952
		zr, err := gzip.NewReader(buffered)
		if err != nil {
			return s.corrupt(err)
		}
		inner = zr
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}), // RFC 8878, 3.1.1
		len(magic) >= 4 && magic[0]&0xf0 == 0x50 && bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18}): // skippable frame
		zr, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return s.corrupt(err)
		}
		s.free = zr.Close
		inner = zr
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return fmt.Errorf("the layer is compressed with xz; want gzip, zstd or no compression: %w", errors.ErrUnsupported)
	case bytes.HasPrefix(magic, []byte("BZh")):
		return fmt.Errorf("the layer is compressed with bzip2; want gzip, zstd or no compression: %w", errors.ErrUnsupported)
	}
	s.inner, s.plain = inner, plainSide{s}
	return nil
}

// corrupt finds the true cause of an error met while decompressing or reading entries: the
// connection broke, or these are not the bytes that were asked for, or they were bad all along.
func (s *stream) corrupt(err error) error {
	for _, known := range []error{ErrTooLarge, ErrDigestMismatch, ErrUnsafeLayer, errors.ErrUnsupported} {
		if errors.Is(err, known) {
			return err
		}
	}
	if s.ahead != nil {
		s.ahead.stop(nil) // the rest of the blob is read below anyway
	}
	if s.failure != nil {
		return s.failure
	}
	if derr := s.checkBlob(); derr != nil {
		return derr
	}
	return fmt.Errorf("%w: malformed archive: %w", ErrUnsafeLayer, err)
}

// checkBlob reads what is left of the blob and compares its digest.
func (s *stream) checkBlob() error {
	if s.ahead != nil {
		s.ahead.stop(nil)
	}
	if _, err := io.Copy(io.Discard, rawSide{s}); err != nil {
		return err
	}
	if s.size >= 0 && s.in != s.size {
		return fmt.Errorf("%w: the blob %s has %d bytes, its descriptor states %d", ErrDigestMismatch, s.digest, s.in, s.size)
	}
	if s.rawHash == nil {
		return nil
	}
	want, _ := v1.NewHash(s.digest)
	if got := hex.EncodeToString(s.rawHash.Sum(nil)); got != want.Hex {
		return fmt.Errorf("%w: the blob is %s:%s, want %s", ErrDigestMismatch, want.Algorithm, got, s.digest)
	}
	return nil
}

// finish reads both sides to their ends and returns the digest of the decompressed bytes, having
// compared it with want unless that is "".
func (s *stream) finish(want string) (string, error) {
	if _, err := io.Copy(io.Discard, s.plain); err != nil {
		return "", s.corrupt(err)
	}
	if err := s.checkBlob(); err != nil {
		return "", err
	}
	algorithm := "sha256"
	if h, err := v1.NewHash(want); err == nil {
		algorithm = h.Algorithm
	}
	got := algorithm + ":" + hex.EncodeToString(s.diffHash.Sum(nil))
	if want != "" && got != want {
		return "", fmt.Errorf("%w: the layer unpacks to %s, the image's configuration states %s", ErrDigestMismatch, got, want)
	}
	return got, nil
}

// refund gives back what a failed attempt took.
func (s *stream) refund() {
	if s.budget != nil {
		s.budget.bytes.Add(-s.charged)
	}
	if s.progress != nil {
		s.progress(-s.in)
	}
}
