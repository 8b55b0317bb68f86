package objects

import (
	"bufio"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Errors of bodies.
var (
	errFraming  = errors.New("the chunks of the body are malformed")
	errChunkSig = errors.New("the signature of a chunk is wrong")
	errLength   = errors.New("the body has another length than was said")
	errDigest   = errors.New("the body has another checksum than was said")
	errSHA256   = errors.New("the body has another SHA-256 than was signed")
)

// What the framing may take, beyond the data.
const (
	maxLine     = 1 << 10 // of one line
	maxTrailers = 16
)

// chunkSigner signs the chunks of a body in turn. A nil one checks nothing.
type chunkSigner struct {
	key         []byte
	date, scope string
	previous    string
}

// emptySHA256 is the SHA-256 of nothing.
const emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func (c *chunkSigner) chunk(sum []byte) string {
	c.previous = sign(c.key, "AWS4-HMAC-SHA256-PAYLOAD\n"+c.date+"\n"+c.scope+"\n"+c.previous+"\n"+emptySHA256+"\n"+hex.EncodeToString(sum))
	return c.previous
}

func (c *chunkSigner) trailer(text string) string {
	sum := sha256.Sum256([]byte(text))
	return sign(c.key, "AWS4-HMAC-SHA256-TRAILER\n"+c.date+"\n"+c.scope+"\n"+c.previous+"\n"+hex.EncodeToString(sum[:]))
}

// chunkedReader reads a body in the encoding aws-chunked:
//
//	<size in hex>[;chunk-signature=<signature>]\r\n<data>\r\n … 0[;…]\r\n[<trailer>:<value>\r\n…]\r\n
//
// It holds a line in memory, never a chunk, and ends with io.EOF only after all
// of it was well-formed, as long as was said, and signed, if it is.
type chunkedReader struct {
	r        *bufio.Reader
	signer   *chunkSigner
	trailers http.Header // filled in at the end; nil if there are to be none

	total int64 // what the whole is to be, decoded
	read  int64
	left  int64 // of this chunk
	begun bool
	sig   string
	sum   hash.Hash
	err   error
}

func newChunkedReader(r io.Reader, signer *chunkSigner, total int64, trailers http.Header) *chunkedReader {
	return &chunkedReader{r: bufio.NewReaderSize(r, 64<<10), signer: signer, total: total, trailers: trailers, sum: sha256.New()}
}

func (c *chunkedReader) Read(p []byte) (int, error) {
	if c.err != nil || len(p) == 0 {
		return 0, c.err
	}
	for c.left == 0 {
		if c.err = c.next(); c.err != nil {
			return 0, c.err
		}
	}
	n, err := c.r.Read(p[:min(int64(len(p)), c.left)])
	c.left -= int64(n)
	c.read += int64(n)
	if c.signer != nil {
		c.sum.Write(p[:n])
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	c.err = err
	return n, err
}

// next ends a chunk and begins another; io.EOF after the last.
func (c *chunkedReader) next() error {
	if c.begun {
		if line, err := c.line(); err != nil {
			return err
		} else if line != "" {
			return errFraming
		}
		if err := c.check(); err != nil {
			return err
		}
	}
	c.begun = true
	line, err := c.line()
	if err != nil {
		return err
	}
	size, extension, _ := strings.Cut(line, ";")
	size = strings.TrimSpace(size)
	if len(size) > 16 {
		return errFraming
	}
	n, err := strconv.ParseUint(size, 16, 63)
	if err != nil || strings.ContainsAny(size, "+-_") {
		return errFraming
	}
	c.sig = ""
	for part := range strings.SplitSeq(extension, ";") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(part), "chunk-signature="); ok {
			c.sig = v
		}
	}
	if int64(n) > c.total-c.read {
		return errLength
	}
	c.left = int64(n)
	if n > 0 {
		return nil
	}
	if err := c.check(); err != nil {
		return err
	}
	if c.read != c.total {
		return errLength
	}
	if err := c.trailer(); err != nil {
		return err
	}
	return io.EOF
}

// check checks the signature of the chunk that was read.
func (c *chunkedReader) check() error {
	if c.signer == nil {
		return nil
	}
	want := c.signer.chunk(c.sum.Sum(nil))
	c.sum.Reset()
	if subtle.ConstantTimeCompare([]byte(want), []byte(c.sig)) != 1 {
		return errChunkSig
	}
	return nil
}

// trailer reads what comes after the last chunk, up to an empty line or the end.
func (c *chunkedReader) trailer() error {
	var text strings.Builder
	gap := false
	for i := 0; ; i++ {
		line, err := c.line()
		if err == io.ErrUnexpectedEOF && line == "" && i == 0 && c.trailers == nil {
			return nil // no line after the last chunk
		}
		if err == io.ErrUnexpectedEOF && gap {
			return errChunkSig
		}
		if err != nil {
			return err
		}
		if line == "" {
			// minio-go has an empty line before the signature as well.
			if c.signer != nil && text.Len() > 0 && !gap {
				gap = true
				continue
			}
			break
		}
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if !ok || name == "" || c.trailers == nil || i == maxTrailers {
			return errFraming
		}
		if name == "x-amz-trailer-signature" {
			if c.signer != nil {
				if subtle.ConstantTimeCompare([]byte(c.signer.trailer(text.String())), []byte(value)) != 1 {
					return errChunkSig
				}
				c.signer = nil // it has been checked
			}
			continue
		}
		text.WriteString(name + ":" + value + "\n")
		c.trailers.Add(name, value)
	}
	if c.signer != nil && c.trailers != nil && text.Len() > 0 {
		return errChunkSig // trailers that nobody signed
	}
	return nil
}

// line reads a line without its end, which some clients write as "\n" after
// trailers.
func (c *chunkedReader) line() (string, error) {
	var line []byte
	for {
		b, err := c.r.ReadByte()
		if err == io.EOF {
			return string(line), io.ErrUnexpectedEOF
		} else if err != nil {
			return "", err
		}
		if b == '\n' {
			if n := len(line); n > 0 && line[n-1] == '\r' {
				line = line[:n-1]
			}
			return string(line), nil
		}
		if len(line) == maxLine {
			return "", errFraming
		}
		line = append(line, b)
	}
}

// checksums are those that S3 knows, by their names in headers.
var checksums = map[string]func() hash.Hash{
	"x-amz-checksum-crc32":     func() hash.Hash { return crc32.NewIEEE() },
	"x-amz-checksum-crc32c":    func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) },
	"x-amz-checksum-crc64nvme": func() hash.Hash { return crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5)) },
	"x-amz-checksum-sha1":      sha1.New,
	"x-amz-checksum-sha256":    sha256.New,
	"content-md5":              md5.New,
}

// verifier reads a body and compares its checksums at the end.
type verifier struct {
	r      io.Reader
	limit  int64 // bytes that are still taken
	hashes map[string]hash.Hash
	sha256 string // in hex; "" if it was not signed
	want   func() http.Header
	err    error
}

var errTooLarge = errors.New("the object is too large")

func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.r.Read(p)
	if v.limit -= int64(n); v.limit < 0 {
		v.err = errTooLarge
		return 0, v.err
	}
	for _, h := range v.hashes {
		h.Write(p[:n])
	}
	if err == io.EOF {
		err = v.check()
	}
	v.err = err
	return n, err
}

func (v *verifier) check() error {
	want := v.want()
	for name, h := range v.hashes {
		if name == "" {
			if subtle.ConstantTimeCompare([]byte(hex.EncodeToString(h.Sum(nil))), []byte(strings.ToLower(v.sha256))) != 1 {
				return errSHA256
			}
			continue
		}
		value := want.Get(name)
		if value == "" {
			return errDigest // it was announced
		}
		if base64.StdEncoding.EncodeToString(h.Sum(nil)) != value {
			return errDigest
		}
	}
	return io.EOF
}
