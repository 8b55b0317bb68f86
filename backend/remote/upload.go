package remote

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/minio/minio-go/v7/pkg/signer"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/internal/wire"
)

const (
	// maxContext is what an object storage takes in one piece, in bytes.
	maxContext    = 5 << 30
	defaultRegion = "us-east-1"
)

// upload puts what a Dockerfile copies into the server's object storage, unless
// it is there, and returns what the server has to know of the build.
func (b *backend) upload(ctx context.Context, img *daytona.Image) (*built, error) {
	info := &built{DockerfileContent: img.Dockerfile()}
	contexts := img.Contexts()
	if len(contexts) == 0 {
		return info, nil
	}
	var access wire.StorageAccess
	if err := b.do(ctx, call{op: buildOp, method: http.MethodGet, path: "/object-storage/push-access", out: &access}); err != nil {
		return nil, err
	}
	s, err := b.storage(access)
	if err != nil {
		return nil, err
	}
	for _, c := range contexts {
		hash, err := c.Hash()
		if err != nil {
			return nil, err
		}
		prefix := access.OrganizationID + "/" + hash + "/"
		has, err := s.has(ctx, prefix)
		if err != nil {
			return nil, err
		}
		if !has {
			if err := s.put(ctx, prefix+"context.tar", c); err != nil {
				return nil, err
			}
		}
		info.ContextHashes = append(info.ContextHashes, hash)
	}
	return info, nil
}

// storage is the little of S3 that an upload needs. The base may have a path,
// which minio-go's client does not take.
type storage struct {
	client *http.Client
	base   *url.URL
	access wire.StorageAccess
	region string
}

func (b *backend) storage(access wire.StorageAccess) (*storage, error) {
	u, err := url.Parse(access.StorageURL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || access.Bucket == "" {
		return nil, &daytona.Error{Kind: daytona.KindInternal, Op: buildOp, Message: "the server gave no usable object storage"}
	}
	s := &storage{client: b.client, base: u, access: access, region: access.Region}
	if s.region == "" {
		s.region = defaultRegion
		// s3.eu-central-1.amazonaws.com, s3-eu-central-1.amazonaws.com
		if host, ok := strings.CutSuffix(u.Hostname(), ".amazonaws.com"); ok {
			if r := strings.TrimLeft(strings.TrimPrefix(host, "s3"), ".-"); r != "" && strings.HasPrefix(host, "s3") {
				s.region = r
			}
		}
	}
	return s, nil
}

// has reports whether there is anything with a prefix.
func (s *storage) has(ctx context.Context, prefix string) (bool, error) {
	u := s.base.JoinPath(s.access.Bucket) // without a slash at its end: some sign it, some do not
	u.RawQuery = strings.ReplaceAll(url.Values{"list-type": {"2"}, "max-keys": {"1"}, "prefix": {prefix}}.Encode(), "+", "%20")
	empty := sha256.Sum256(nil)
	resp, err := s.send(ctx, http.MethodGet, u, nil, 0, empty[:])
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	var list struct {
		Contents []struct {
			Key string
		}
	}
	if err := xml.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&list); err != nil {
		return false, &daytona.Error{Kind: daytona.KindInternal, Op: buildOp, Message: "the object storage gave a malformed list", Err: err}
	}
	return len(list.Contents) > 0, nil
}

// put writes a context's archive. It goes to a file first: its length and its
// digest come before it.
func (s *storage) put(ctx context.Context, key string, c daytona.BuildContext) error {
	local := func(err error) error {
		return &daytona.Error{Kind: daytona.KindUnavailable, Op: buildOp, Subject: c.Path, Message: "the context cannot be kept in a temporary file", Err: err}
	}
	f, err := os.CreateTemp("", "daytona-context-*.tar")
	if err != nil {
		return local(err)
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil { // so that nothing is left
		return local(err)
	}
	sum := sha256.New()
	if err := c.WriteTar(io.MultiWriter(f, sum, ctxWriter{ctx})); err != nil {
		if _, ok := errors.AsType[*daytona.Error](err); ok || ctx.Err() != nil {
			return err
		}
		return local(err)
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return local(err)
	}
	if size > maxContext {
		return &daytona.Error{Kind: daytona.KindInvalid, Op: buildOp, Field: "Contexts", Value: c.Path, Message: "is larger than 5 GiB"}
	}
	resp, err := s.send(ctx, http.MethodPut, s.base.JoinPath(s.access.Bucket, key), io.NewSectionReader(f, 0, size), size, sum.Sum(nil))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxError)
	return nil
}

// ctxWriter ends what writes to it when a context ends.
type ctxWriter struct{ ctx context.Context }

func (w ctxWriter) Write(p []byte) (int, error) { return len(p), w.ctx.Err() }

// send signs a request and sends it, again where the storage is busy.
func (s *storage) send(ctx context.Context, method string, u *url.URL, body *io.SectionReader, size int64, sum []byte) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
		if err != nil {
			return nil, &daytona.Error{Kind: daytona.KindInternal, Op: buildOp, Message: "the server gave no usable object storage", Err: err}
		}
		if body != nil {
			req.Body, req.ContentLength = io.NopCloser(io.NewSectionReader(body, 0, size)), size
			req.Header.Set("Content-Type", "application/x-tar")
		}
		req.Header.Set("X-Amz-Content-Sha256", hex.EncodeToString(sum))
		req = signer.SignV4(*req, s.access.AccessKey, s.access.Secret, s.access.SessionToken, s.region)
		resp, err := s.client.Do(req)
		switch {
		case err == nil && resp.StatusCode >= 200 && resp.StatusCode < 300:
			return resp, nil
		case err == nil:
			text, _ := io.ReadAll(io.LimitReader(resp.Body, maxError))
			resp.Body.Close()
			err = s.refused(resp.StatusCode, text)
			if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode < 500 {
				return nil, err
			}
		case ctx.Err() != nil:
			return nil, fmt.Errorf("%s: %w", buildOp, ctx.Err())
		default:
			if e, ok := errors.AsType[*url.Error](err); ok {
				err = e.Err
			}
			err = &daytona.Error{Kind: daytona.KindUnavailable, Op: buildOp, Message: "the object storage cannot be reached", Err: err}
		}
		if attempt == attempts {
			return nil, err
		}
		if sleep(ctx, retryPause(attempt)) != nil {
			return nil, err
		}
	}
}

// refused is the error that a storage reports, without the credentials.
func (s *storage) refused(status int, body []byte) error {
	var e struct {
		Code    string
		Message string
	}
	_ = xml.Unmarshal(body, &e)
	text := fmt.Sprintf("the object storage answered %s (status %d): %s", e.Code, status, e.Message)
	for _, secret := range []string{s.access.Secret, s.access.SessionToken, s.access.AccessKey} {
		if secret != "" {
			text = strings.ReplaceAll(text, secret, "[redacted]")
		}
	}
	return &daytona.Error{Kind: daytona.KindOfStatus(status), Op: buildOp, Message: text}
}
