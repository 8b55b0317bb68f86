// Package s3 is an [objects.Store] in a bucket of any service that speaks S3.
//
// An object ends with the SHA-256 digest of its content, as files of
// [objects.Dir] do, since what a service calls an ETag says nothing about an
// object that came in parts. What was uploaded when a process was killed
// half-way is never seen, but kept by the service until a rule of the bucket's
// lifecycle (AbortIncompleteMultipartUpload) removes it.
package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/objects"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Options of a [Store]. The zero value is good.
type Options struct {
	// Attempts is how often a request is tried that the service does not answer
	// or is too busy for, with up to a second in between. Defaults to 5.
	Attempts int
	// Stall is how long a connection may go without a byte in either direction
	// before it is given up. Defaults to 1 minute.
	Stall time.Duration
	// TLS says whom to trust. Defaults to the authorities that the system trusts.
	TLS *tls.Config
}

const (
	defaultAttempts = 5
	defaultStall    = time.Minute
	defaultRegion   = "us-east-1"

	// wholeSize is up to which size an object is sent in one request, from
	// memory; partSize is that of the parts of others, one of which is in memory
	// at a time. 10000 parts, which S3 allows, are 312 GiB.
	wholeSize = 16 << 20
	partSize  = 32 << 20
)

// Store implements [objects.Store].
type Store struct {
	client   *minio.Client
	bucket   string
	prefix   string // "" or ends with "/"
	attempts int
	secrets  []string // what no error may show
}

var _ objects.Store = (*Store)(nil)

// ParseURL reads s3://bucket/prefix?endpoint=https://host:port&region=name. The
// endpoint defaults to Amazon's for the region, and the region to "us-east-1".
// Credentials are no part of it: the caller fills them in.
func ParseURL(raw string) (daytona.S3Location, error) {
	bad := func(field string, value any, rule string) (daytona.S3Location, error) {
		return daytona.S3Location{}, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: field, Value: value, Message: rule}
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "s3" { // the URL may have credentials, and so does the error
		return bad("url", nil, "must look like s3://bucket/prefix?endpoint=https://host&region=name")
	}
	if u.User != nil {
		return bad("url", nil, "must have no user and password: credentials are given apart from it")
	}
	l := daytona.S3Location{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/"), Region: defaultRegion}
	for k, v := range u.Query() {
		switch k {
		case "endpoint":
			l.Endpoint = v[0]
		case "region":
			l.Region = v[0]
		default:
			return bad(k, nil, `unknown parameter; there are "endpoint" and "region"`)
		}
	}
	if l.Endpoint == "" {
		l.Endpoint = "https://s3." + l.Region + ".amazonaws.com"
	}
	return l, nil
}

const openOp = "open object storage"

// Open makes a Store of a bucket, which must exist, and its objects below a
// prefix. It connects to nothing; a wrong address or credential is found by the
// first use. Buckets are named in the path of requests, not in the host. nil
// options are the defaults.
func Open(l daytona.S3Location, opts *Options) (*Store, error) {
	bad := func(field string, value any, rule string) (*Store, error) {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Field: field, Value: value, Message: rule}
	}
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Attempts <= 0 {
		o.Attempts = defaultAttempts
	}
	if o.Stall <= 0 {
		o.Stall = defaultStall
	}
	if l.Region == "" {
		l.Region = defaultRegion
	}
	u, err := url.Parse(l.Endpoint)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil:
		// Not shown, as there may be a password in it.
		return bad("Endpoint", nil, "must be an http or https URL without user and password")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return bad("Endpoint", u.Redacted(), "must have no path")
	case l.Bucket == "":
		return bad("Bucket", l.Bucket, "is required")
	case (l.AccessKey == "") != (l.SecretKey == ""):
		return bad("AccessKey", nil, "AccessKey and SecretKey belong together")
	}
	prefix := strings.Trim(l.Prefix, "/")
	for part := range strings.SplitSeq(prefix, "/") {
		if prefix != "" && (part == "" || part == "." || part == "..") {
			return bad("Prefix", l.Prefix, `must have no empty parts and none that are "." or ".."`)
		}
	}
	if prefix != "" {
		prefix += "/"
	}
	s := &Store{bucket: l.Bucket, prefix: prefix, attempts: o.Attempts}
	for _, secret := range []string{l.SecretKey, l.SessionToken, l.AccessKey} {
		if secret != "" {
			s.secrets = append(s.secrets, secret)
		}
	}
	s.client, err = minio.New(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4(l.AccessKey, l.SecretKey, l.SessionToken), Secure: u.Scheme == "https", Region: l.Region,
		BucketLookup: minio.BucketLookupPath, MaxRetries: o.Attempts, Transport: transport(o),
	})
	if err != nil {
		return nil, &daytona.Error{Kind: daytona.KindInvalid, Op: openOp, Subject: l.Bucket, Message: s.scrub(err.Error())}
	}
	return s, nil
}

// transport gives up on connections that stall.
func transport(o Options) http.RoundTripper {
	stall := o.Stall
	d := &net.Dialer{Timeout: min(stall, 10*time.Second)}
	return detacher{&http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := d.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &stallConn{c, stall}, nil
		},
		TLSClientConfig: o.TLS, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: min(stall, 10*time.Second), ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost: 16, IdleConnTimeout: stall,
		// What is stored is what is read, compressed or not.
		DisableCompression: true,
	}}
}

// detacher sees to it that nobody reads the body of a request that has been
// answered. http.Transport goes on for a while where the answer came early, and
// minio sends the same reader again.
type detacher struct{ next http.RoundTripper }

func (d detacher) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return d.next.RoundTrip(r)
	}
	b := &body{ReadCloser: r.Body}
	r = r.WithContext(r.Context())
	r.Body, r.GetBody = b, nil
	resp, err := d.next.RoundTrip(r)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answered = true
	return resp, err
}

type body struct {
	io.ReadCloser
	mu       sync.Mutex
	answered bool
}

func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.answered {
		return 0, errors.New("the request has been answered")
	}
	return b.ReadCloser.Read(p)
}

// stallConn fails when nothing has moved in either direction for a while.
type stallConn struct {
	net.Conn
	limit time.Duration
}

func (c *stallConn) Read(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *stallConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// The end of an object: "\nsha256:" and 64 hexadecimal digits.
const (
	trailerMark = "\nsha256:"
	trailerSize = len(trailerMark) + 2*sha256.Size
)

// source adds the trailer to what is read, and keeps the error that it ended
// with. Errors are wrapped, as minio takes io.ErrUnexpectedEOF for an end.
type source struct {
	ctx     context.Context
	r       io.Reader
	sum     hash.Hash
	trailer *strings.Reader // once r has ended
	err     error
}

func (s *source) Read(p []byte) (int, error) {
	if s.trailer != nil {
		return s.trailer.Read(p)
	}
	if s.err = s.ctx.Err(); s.err != nil {
		return 0, fmt.Errorf("read: %w", s.err)
	}
	n, err := s.r.Read(p)
	s.sum.Write(p[:n])
	if err == io.EOF {
		s.trailer = strings.NewReader(trailerMark + hex.EncodeToString(s.sum.Sum(nil)))
		return n, nil
	}
	if err != nil {
		s.err = err
		err = fmt.Errorf("read: %w", err)
	}
	return n, err
}

// Put implements [objects.Store]. It takes up to 64 MiB of memory.
func (s *Store) Put(ctx context.Context, key string, r io.Reader) error {
	const op = "put object"
	if err := objects.CheckKey(key); err != nil {
		return err
	}
	src := &source{ctx: ctx, r: r, sum: sha256.New()}
	var head bytes.Buffer
	_, err := io.CopyN(&head, src, wholeSize)
	opts := minio.PutObjectOptions{ContentType: "application/octet-stream", SendContentMd5: true, PartSize: partSize}
	if err == io.EOF {
		_, err = s.client.PutObject(ctx, s.bucket, s.prefix+key, bytes.NewReader(head.Bytes()), int64(head.Len()), opts)
	} else if err == nil {
		_, err = s.client.PutObject(ctx, s.bucket, s.prefix+key, io.MultiReader(&head, src), -1, opts)
	}
	if src.err != nil {
		return src.err
	}
	return s.error(op, key, err)
}

// Get implements [objects.Store]. A connection that is lost half-way is made
// again. ctx is for all of the reading.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if err := objects.CheckKey(key); err != nil {
		return nil, err
	}
	r := &reader{ctx: ctx, store: s, key: key, sum: sha256.New()}
	if err := r.open(); err != nil {
		return nil, err
	}
	if r.left = r.size - int64(trailerSize); r.left < 0 {
		r.body.Close()
		return nil, &fs.PathError{Op: getOp, Path: key, Err: objects.ErrCorrupt}
	}
	return r, nil
}

const getOp = "get object"

type reader struct {
	ctx   context.Context
	store *Store
	key   string
	etag  string
	size  int64 // of the object, trailer included
	off   int64
	left  int64 // of the content
	body  io.ReadCloser
	sum   hash.Hash
	end   error // what every further Read gives
}

// open asks for what has not been read yet.
func (r *reader) open() error {
	var opts minio.GetObjectOptions
	if r.etag != "" {
		if err := opts.SetMatchETag(r.etag); err != nil {
			return err
		}
	}
	if r.off > 0 {
		if err := opts.SetRange(r.off, 0); err != nil {
			return err
		}
	}
	s := r.store
	body, info, _, err := minio.Core{Client: s.client}.GetObject(r.ctx, s.bucket, s.prefix+r.key, opts)
	if err != nil {
		return s.error(getOp, r.key, err)
	}
	switch {
	case r.etag == "" && r.off == 0:
		r.etag, r.size = info.ETag, info.Size
	case info.Size != r.size-r.off: // a service that does not know ranges
		body.Close()
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: getOp, Subject: r.key, Message: "the connection was lost and the service cannot go on where it was"}
	}
	r.body = body
	return nil
}

// fill reads from the object as one would from a file.
func (r *reader) fill(p []byte) (int, error) {
	for failed := 0; ; {
		if r.body == nil {
			if err := r.open(); err != nil {
				return 0, err // it has been tried often enough
			}
		}
		n, err := r.body.Read(p)
		r.off += int64(n)
		if n > 0 || r.off == r.size {
			return n, nil
		}
		if err == nil {
			continue
		}
		r.body.Close()
		r.body = nil
		if failed++; failed >= r.store.attempts || r.ctx.Err() != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, r.store.error(getOp, r.key, err)
		}
		select {
		case <-r.ctx.Done():
		case <-time.After(time.Duration(failed) * 100 * time.Millisecond):
		}
	}
}

func (r *reader) Read(p []byte) (int, error) {
	if r.end != nil || len(p) == 0 {
		return 0, r.end
	}
	if r.left > 0 {
		n, err := r.fill(p[:min(int64(len(p)), r.left)])
		r.sum.Write(p[:n])
		r.left -= int64(n)
		r.end = err
		return n, err
	}
	trailer := make([]byte, trailerSize)
	for n := 0; n < len(trailer); {
		got, err := r.fill(trailer[n:])
		if err != nil {
			r.end = err
			return 0, err
		}
		n += got
	}
	r.end = io.EOF
	if string(trailer) != trailerMark+hex.EncodeToString(r.sum.Sum(nil)) {
		r.end = &fs.PathError{Op: getOp, Path: r.key, Err: objects.ErrCorrupt}
	}
	return 0, r.end
}

func (r *reader) Close() error {
	if r.end == nil {
		r.end = fs.ErrClosed
	}
	if r.body == nil {
		return nil
	}
	err := r.body.Close()
	r.body = nil
	return err
}

// List implements [objects.Store]. Objects that no Put can have made are left
// out.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[objects.Entry, error] {
	return func(yield func(objects.Entry, error) bool) {
		for o := range s.client.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true}) {
			if o.Err != nil {
				yield(objects.Entry{}, s.error("list objects", prefix, o.Err))
				return
			}
			key, ok := strings.CutPrefix(o.Key, s.prefix)
			if !ok || objects.CheckKey(key) != nil {
				continue
			}
			if !yield(objects.Entry{Key: key, Size: max(0, o.Size-int64(trailerSize))}, nil) {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(objects.Entry{}, err)
		}
	}
}

// Delete implements [objects.Store].
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := objects.CheckKey(key); err != nil {
		return err
	}
	err := s.error("delete object", key, s.client.RemoveObject(ctx, s.bucket, s.prefix+key, minio.RemoveObjectOptions{}))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// error says what an error of the service's means.
func (s *Store) error(op, key string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, done := errors.AsType[*daytona.Error](err); done {
		return err
	}
	e := &daytona.Error{Kind: daytona.KindUnavailable, Op: op, Subject: s.prefix + key}
	resp, answered := errors.AsType[minio.ErrorResponse](err)
	if !answered {
		e.Message = "the object storage cannot be reached: " + s.scrub(err.Error())
		return e
	}
	switch resp.Code {
	case "NoSuchKey":
		e.Kind, e.Message, e.Err = daytona.KindNotFound, "there is no such object", fs.ErrNotExist
		return e
	case "NoSuchBucket":
		e.Kind, e.Message = daytona.KindNotFound, "there is no bucket "+s.bucket
		return e
	case "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired",
		"XAdminUserNotFound": // what versitygw says of an unknown access key
		e.Kind = daytona.KindUnauthorized
	case "AccessDenied", "AllAccessDisabled", "AccountProblem":
		e.Kind = daytona.KindForbidden
	case "PreconditionFailed":
		e.Kind, e.Message = daytona.KindConflict, "the object has been replaced while it was read"
		return e
	case "QuotaExceeded", "XMinioStorageFull", "StorageFull":
		e.Kind = daytona.KindNoSpace
	case "AuthorizationHeaderMalformed", "InvalidBucketName", "PermanentRedirect":
		e.Kind = daytona.KindInvalid // most likely the region
	default:
		switch code := resp.StatusCode; {
		case code == http.StatusUnauthorized:
			e.Kind = daytona.KindUnauthorized
		case code == http.StatusForbidden:
			e.Kind = daytona.KindForbidden
		case code == http.StatusInsufficientStorage:
			e.Kind = daytona.KindNoSpace
		case code >= 400 && code < 500 && code != http.StatusTooManyRequests && code != http.StatusRequestTimeout:
			e.Kind = daytona.KindInternal
		}
	}
	e.Message = s.scrub(fmt.Sprintf("the object storage answered %s (status %d): %s", resp.Code, resp.StatusCode, resp.Message))
	return e
}

// scrub takes the credentials out of a text of somebody else's.
func (s *Store) scrub(text string) string {
	for _, secret := range s.secrets {
		text = strings.ReplaceAll(text, secret, "[redacted]")
	}
	return text
}

// Raw is what a Store is made of, for those who keep objects that are not as
// [Store.Put] makes them. prefix is empty or ends with "/".
func (s *Store) Raw() (client *minio.Client, bucket, prefix string) {
	return s.client, s.bucket, s.prefix
}

// Explain says what an error of Raw's client means, without credentials.
func (s *Store) Explain(op, key string, err error) error { return s.error(op, key, err) }
