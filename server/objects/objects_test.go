package objects_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/api"
	"github.com/daytona-go/daytona/server/identity"
	"github.com/daytona-go/daytona/server/objects"
	"github.com/daytona-go/daytona/server/store"
	"github.com/daytona-go/daytona/server/store/storetest"
)

// env is a storage that is served, with a clock that can be moved.
type env struct {
	*objects.Service
	store  *objects.Store
	dir    string
	server *httptest.Server
	offset atomic.Int64
}

func start(t *testing.T, db *store.DB) *env {
	t.Helper()
	e := &env{dir: t.TempDir()}
	var err error
	if e.store, err = objects.OpenStore(e.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.store.Close() })
	var handler http.Handler
	e.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	t.Cleanup(e.server.Close)
	e.Service, err = objects.New(objects.Config{DB: db, Key: bytes.Repeat([]byte("k"), 32), Store: e.store, URL: e.server.URL,
		Now: func() time.Time { return time.Now().Add(time.Duration(e.offset.Load())) }, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	handler = e.Handler()
	return e
}

func sqlite(t *testing.T) *store.DB { return storetest.Open(t, storetest.SQLite(t)) }

func client(t *testing.T, rawURL, key, secret, token string) *minio.Client {
	t.Helper()
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	c, err := minio.New(u.Host, &minio.Options{Creds: credentials.NewStaticV4(key, secret, token), Region: "us-east-1", BucketLookup: minio.BucketLookupPath, MaxRetries: 1, TrailingHeaders: true})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

func code(err error) string {
	if err == nil {
		return ""
	}
	return minio.ToErrorResponse(err).Code
}

// volume returns a client that may do everything in a bucket.
func (e *env) volume(t *testing.T, id string) (*minio.Client, string) {
	t.Helper()
	if err := e.CreateVolume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	l, err := e.VolumeLocation(t.Context(), "org", id)
	if err != nil {
		t.Fatal(err)
	}
	return client(t, l.Endpoint, l.AccessKey, l.SecretKey, l.SessionToken), l.Bucket
}

// What minio-go, and so what mounts volumes, does with a storage.
func TestMinio(t *testing.T) {
	t.Parallel()
	e := start(t, sqlite(t))
	c, bucket := e.volume(t, "v1")
	ctx := t.Context()
	put := func(t *testing.T, key string, data []byte, size int64, o minio.PutObjectOptions) minio.UploadInfo {
		t.Helper()
		info, err := c.PutObject(ctx, bucket, key, bytes.NewReader(data), size, o)
		if err != nil {
			t.Fatalf("put %q: %v", key, err)
		}
		return info
	}
	get := func(t *testing.T, key string, o minio.GetObjectOptions) []byte {
		t.Helper()
		r, err := c.GetObject(ctx, bucket, key, o)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("get %q: %v", key, err)
		}
		return data
	}
	big := random(11<<20 + 17)
	for name, x := range map[string]struct {
		data []byte
		size int64
		opts minio.PutObjectOptions
	}{
		"empty":            {nil, 0, minio.PutObjectOptions{}},
		"small":            {[]byte("hello"), 5, minio.PutObjectOptions{ContentType: "text/plain", UserMetadata: map[string]string{"colour": "blue"}}},
		"md5":              {[]byte("hello"), 5, minio.PutObjectOptions{SendContentMd5: true}},
		"unknown size":     {[]byte("hello again"), -1, minio.PutObjectOptions{PartSize: 5 << 20}},
		"parts":            {big, int64(len(big)), minio.PutObjectOptions{PartSize: 5 << 20, NumThreads: 2}},
		"parts, checksums": {big, int64(len(big)), minio.PutObjectOptions{PartSize: 5 << 20, Checksum: minio.ChecksumCRC32C}},
		"crc64nvme":        {big[:100000], 100000, minio.PutObjectOptions{Checksum: minio.ChecksumCRC64NVME}},
		"sha256":           {big[:100000], 100000, minio.PutObjectOptions{Checksum: minio.ChecksumSHA256}},
		"parts, md5":       {big, int64(len(big)), minio.PutObjectOptions{PartSize: 5 << 20, SendContentMd5: true}},
		"one, streamed":    {big, int64(len(big)), minio.PutObjectOptions{DisableMultipart: true}},
	} {
		t.Run(name, func(t *testing.T) {
			info := put(t, "dir/"+name, x.data, x.size, x.opts)
			if got := get(t, "dir/"+name, minio.GetObjectOptions{}); !bytes.Equal(got, x.data) {
				t.Fatalf("got %d bytes, put %d", len(got), len(x.data))
			}
			st, err := c.StatObject(ctx, bucket, "dir/"+name, minio.StatObjectOptions{})
			if err != nil || st.Size != int64(len(x.data)) || st.ETag != info.ETag {
				t.Fatalf("%+v %v, want the ETag %s", st, err, info.ETag)
			}
			if name == "small" && (st.ContentType != "text/plain" || st.UserMetadata["Colour"] != "blue" || st.ETag != "5d41402abc4b2a76b9719d911017c592") {
				t.Fatalf("%+v", st)
			}
		})
	}
	// Ranges and conditions.
	o := minio.GetObjectOptions{}
	if err := o.SetRange(6<<20, 6<<20+9); err != nil {
		t.Fatal(err)
	}
	if got := get(t, "dir/parts", o); !bytes.Equal(got, big[6<<20:6<<20+10]) {
		t.Fatalf("a range of %d bytes", len(got))
	}
	o = minio.GetObjectOptions{}
	o.SetMatchETag("another")
	r, err := c.GetObject(ctx, bucket, "dir/parts", o)
	if err == nil {
		_, err = io.ReadAll(r)
	}
	if code(err) != "PreconditionFailed" {
		t.Fatal(err)
	}
	o = minio.GetObjectOptions{}
	o.Set("If-None-Match", "*")
	var only minio.PutObjectOptions
	only.SetMatchETagExcept("*")
	if _, err := c.PutObject(ctx, bucket, "dir/small", strings.NewReader("x"), 1, only); code(err) != "PreconditionFailed" {
		t.Fatalf("put where there is something: %v", err)
	}
	// Copies.
	if _, err := c.CopyObject(ctx, minio.CopyDestOptions{Bucket: bucket, Object: "copy of ä"}, minio.CopySrcOptions{Bucket: bucket, Object: "dir/parts"}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(get(t, "copy of ä", minio.GetObjectOptions{}), big) {
		t.Fatal("the copy is not the same")
	}
	if _, err := c.ComposeObject(ctx, minio.CopyDestOptions{Bucket: bucket, Object: "composed"},
		minio.CopySrcOptions{Bucket: bucket, Object: "dir/parts", MatchRange: true, Start: 0, End: 5<<20 - 1},
		minio.CopySrcOptions{Bucket: bucket, Object: "dir/small"}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(get(t, "composed", minio.GetObjectOptions{}), append(slices.Clone(big[:5<<20]), "hello"...)) {
		t.Fatal("what was composed is not the same")
	}
	// Removal.
	if err := c.RemoveObject(ctx, bucket, "composed", minio.RemoveObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveObject(ctx, bucket, "composed", minio.RemoveObjectOptions{}); err != nil {
		t.Fatalf("a second time: %v", err)
	}
	if _, err := c.StatObject(ctx, bucket, "composed", minio.StatObjectOptions{}); code(err) != "NoSuchKey" {
		t.Fatal(err)
	}
	// A signed URL, until it is over.
	u, err := c.PresignedGetObject(ctx, bucket, "dir/small", time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	fetch := func(u string) (int, string) {
		t.Helper()
		resp, err := http.Get(u)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(data)
	}
	if status, body := fetch(u.String()); status != 200 || body != "hello" {
		t.Fatalf("%d %s", status, body)
	}
	if status, body := fetch(strings.Replace(u.String(), "dir/small", "dir/md5", 1)); status != 403 || !strings.Contains(body, "SignatureDoesNotMatch") {
		t.Fatalf("another object by the same signature: %d %s", status, body)
	}
	e.offset.Store(int64(time.Hour + time.Minute))
	if status, body := fetch(u.String()); status != 403 || !strings.Contains(body, "expired") {
		t.Fatalf("%d %s", status, body)
	}
	e.offset.Store(0)
	// All that is left is what is there: nothing is kept of parts and of what was
	// replaced.
	if err := c.RemoveObject(ctx, bucket, "copy of ä", minio.RemoveObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	keys := make(chan minio.ObjectInfo, 100)
	n := 0
	for o := range c.ListObjects(ctx, bucket, minio.ListObjectsOptions{Recursive: true}) {
		keys <- o
		n++
	}
	close(keys)
	for err := range c.RemoveObjects(ctx, bucket, keys, minio.RemoveObjectsOptions{}) {
		t.Error(err)
	}
	if n != 10 {
		t.Fatalf("%d objects", n)
	}
	if left := e.blobs(t); len(left) != 0 {
		t.Fatalf("%d files are left", len(left))
	}
}

func (e *env) blobs(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(e.dir, "data", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Lists are in order, whole and without repetition, in pages of any size.
func TestList(t *testing.T) {
	t.Parallel()
	e := start(t, sqlite(t))
	c, bucket := e.volume(t, "v1")
	ctx := t.Context()
	keys := []string{"a", "a/", "a/1", "a/2/x", "a/2/y", "a0", "b/", "b/c/d/e", "c//d", "ä/ö", "z\x7fz"}
	for _, k := range keys {
		if _, err := c.PutObject(ctx, bucket, k, strings.NewReader(k), int64(len(k)), minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	list := func(o minio.ListObjectsOptions) (got []string) {
		t.Helper()
		for o := range c.ListObjects(ctx, bucket, o) {
			if o.Err != nil {
				t.Fatal(o.Err)
			}
			got = append(got, o.Key)
		}
		return got
	}
	sorted := slices.Sorted(slices.Values(keys))
	for size := 1; size < 13; size++ {
		for _, v1 := range []bool{false, true} {
			if got := list(minio.ListObjectsOptions{Recursive: true, MaxKeys: size, UseV1: v1}); !slices.Equal(got, sorted) {
				t.Fatalf("pages of %d, v1 %v: %q", size, v1, got)
			}
			for prefix, want := range map[string][]string{
				"":   {"a", "a/", "a0", "b/", "c/", "z\x7fz", "ä/"},
				"a/": {"a/", "a/1", "a/2/"},
				"b/": {"b/", "b/c/"},
				"c/": {"c//"},
				"x":  nil,
			} {
				got := list(minio.ListObjectsOptions{Prefix: prefix, MaxKeys: size, UseV1: v1})
				slices.Sort(got) // minio-go gives objects first
				if !slices.Equal(got, want) {
					t.Fatalf("below %q, pages of %d, v1 %v: %q", prefix, size, v1, got)
				}
			}
		}
	}
	if got := list(minio.ListObjectsOptions{Recursive: true, StartAfter: "a/2/x"}); !slices.Equal(got, sorted[slices.Index(sorted, "a/2/y"):]) {
		t.Fatalf("%q", got)
	}
}

// A key is a name and nothing else.
func TestHostileKeys(t *testing.T) {
	e := start(t, sqlite(t))
	c, bucket := e.volume(t, "v1")
	ctx := t.Context()
	for _, key := range []string{"../../../etc/passwd", "..", ".", "a/../b", "//", "a//b", "/a", `a\b`, "%2e%2e%2f", "index.db", "con\nline", strings.Repeat("k", 1024), "+ &=?#", "a b"} {
		data := "data of " + key
		if _, err := c.PutObject(ctx, bucket, key, strings.NewReader(data), int64(len(data)), minio.PutObjectOptions{}); err != nil {
			// minio-go itself refuses some.
			if code(err) != "" && code(err) != "InvalidArgument" && code(err) != "XMinioInvalidObjectName" {
				t.Errorf("%q: %v", key, err)
			}
			continue
		}
		o, err := c.GetObject(ctx, bucket, key, minio.GetObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(o); err != nil || string(got) != data {
			t.Errorf("%q: %q %v", key, got, err)
		}
	}
	for key, want := range map[string]string{"nul\x00": "InvalidArgument", "bad\xff": "InvalidArgument", strings.Repeat("k", 1025): "KeyTooLongError", "bell\a": "InvalidArgument"} {
		if _, err := c.PutObject(ctx, bucket, key, strings.NewReader("x"), 1, minio.PutObjectOptions{}); err == nil {
			t.Errorf("%q was taken", key)
		} else if got := code(err); got != want && got != "" && got != "XMinioInvalidObjectName" {
			t.Errorf("%q: %v", key, err)
		}
	}
	entries, err := os.ReadDir(e.dir)
	if err != nil || len(entries) != 2 {
		t.Fatalf("%v %v", entries, err)
	}
	for _, f := range e.blobs(t) {
		if len(filepath.Base(f)) != 26 {
			t.Errorf("a file called %q", f)
		}
	}
}

// A client that pushes sees its organization and nothing else, for an hour.
func TestPushAccess(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		ctx := t.Context()
		access := func(org string) *objects.Access {
			t.Helper()
			a, err := e.PushAccess(ctx, org)
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		a, b := access("org-a"), access("org-b")
		if a.URL != e.server.URL || a.Bucket == "" || a.Region == "" || a.SessionToken == "" {
			t.Fatalf("%+v", a)
		}
		ca, cb := client(t, a.URL, a.AccessKey, a.Secret, a.SessionToken), client(t, b.URL, b.AccessKey, b.Secret, b.SessionToken)
		put := func(c *minio.Client, bucket, key string) error {
			_, err := c.PutObject(ctx, bucket, key, strings.NewReader("tar of "+key), int64(len("tar of "+key)), minio.PutObjectOptions{})
			return err
		}
		for _, err := range []error{put(ca, a.Bucket, "org-a/h1/context.tar"), put(cb, b.Bucket, "org-b/h1/context.tar")} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := e.CreateVolume(ctx, "v"); err != nil {
			t.Fatal(err)
		}
		list := func(c *minio.Client, prefix string) (keys []string, err error) {
			for o := range c.ListObjects(ctx, a.Bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
				if o.Err != nil {
					return nil, o.Err
				}
				keys = append(keys, o.Key)
			}
			return keys, nil
		}
		// The CLI names its organization without a slash.
		for _, prefix := range []string{"org-a", "org-a/", "org-a/h1/"} {
			if keys, err := list(ca, prefix); err != nil || !slices.Equal(keys, []string{"org-a/h1/context.tar"}) {
				t.Errorf("below %q: %q %v", prefix, keys, err)
			}
		}
		stat := func(c *minio.Client, bucket, key string) error {
			o, err := c.GetObject(ctx, bucket, key, minio.GetObjectOptions{})
			if err == nil {
				_, err = io.ReadAll(o)
			}
			return err
		}
		listErr := func(prefix string) error { _, err := list(ca, prefix); return err }
		_, copyErr := ca.CopyObject(ctx, minio.CopyDestOptions{Bucket: a.Bucket, Object: "org-a/stolen"}, minio.CopySrcOptions{Bucket: a.Bucket, Object: "org-b/h1/context.tar"})
		for what, err := range map[string]error{
			"read another's":         stat(ca, a.Bucket, "org-b/h1/context.tar"),
			"write another's":        put(ca, a.Bucket, "org-b/x"),
			"write beside":           put(ca, a.Bucket, "org-a.x"),
			"list all":               listErr(""),
			"list another's":         listErr("org-b/"),
			"list a part":            listErr("org-"),
			"copy another's":         copyErr,
			"remove its own":         ca.RemoveObject(ctx, a.Bucket, "org-a/h1/context.tar", minio.RemoveObjectOptions{}),
			"write into a volume":    put(ca, "daytona-volume-v", "org-a/x"),
			"make a bucket":          ca.MakeBucket(ctx, "new", minio.MakeBucketOptions{}),
			"read a bucket not here": stat(ca, "new", "org-a/x"),
		} {
			if code(err) != "AccessDenied" {
				t.Errorf("%s: %v", what, err)
			}
		}
		for what, x := range map[string]struct {
			key, secret, token, code string
		}{
			"wrong secret":    {a.AccessKey, b.Secret, a.SessionToken, "SignatureDoesNotMatch"},
			"wrong token":     {a.AccessKey, a.Secret, b.SessionToken, "InvalidToken"},
			"no token":        {a.AccessKey, a.Secret, "", "InvalidToken"},
			"no such key":     {"DTNOTTHERE", a.Secret, a.SessionToken, "InvalidAccessKeyId"},
			"none of the two": {"", "", "", "AccessDenied"},
		} {
			if err := stat(client(t, a.URL, x.key, x.secret, x.token), a.Bucket, "org-a/h1/context.tar"); code(err) != x.code {
				t.Errorf("%s: %v", what, err)
			}
		}
		// Revoked at once, and nobody else is.
		if err := e.Revoke(ctx, "org-a"); err != nil {
			t.Fatal(err)
		}
		if err := stat(ca, a.Bucket, "org-a/h1/context.tar"); code(err) != "InvalidAccessKeyId" {
			t.Error(err)
		}
		if err := stat(cb, b.Bucket, "org-b/h1/context.tar"); err != nil {
			t.Error(err)
		}
		// What was pushed is what a build gets, by a URL.
		urls, err := e.Contexts(ctx, "org-a", []string{"h1"})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.Get(urls[0])
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if data, _ := io.ReadAll(resp.Body); string(data) != "tar of org-a/h1/context.tar" {
			t.Errorf("%d %s", resp.StatusCode, data)
		}
		r, err := e.OpenContext(ctx, "org-b", "h1")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if data, _ := io.ReadAll(r); string(data) != "tar of org-b/h1/context.tar" {
			t.Errorf("%s", data)
		}
		if _, err := e.Contexts(ctx, "org-a", []string{"h2"}); !errors.Is(err, daytona.ErrInvalid) {
			t.Error(err)
		}
		if _, err := e.OpenContext(ctx, "org-a", "h2"); !errors.Is(err, daytona.ErrNotFound) {
			t.Error(err)
		}
		// The grants are over by the database's clock; the client's must be right.
		c := access("org-c")
		cc := client(t, c.URL, c.AccessKey, c.Secret, c.SessionToken)
		if err := put(cc, c.Bucket, "org-c/x"); err != nil {
			t.Fatal(err)
		}
		e.offset.Store(int64(14 * time.Minute))
		if err := put(cc, c.Bucket, "org-c/y"); err != nil {
			t.Errorf("a clock that is off by 14 minutes: %v", err)
		}
		e.offset.Store(int64(16 * time.Minute))
		if err := put(cc, c.Bucket, "org-c/y"); code(err) != "RequestTimeTooSkewed" {
			t.Errorf("a clock that is off by 16 minutes: %v", err)
		}
		e.offset.Store(int64(-59 * time.Minute))
		early := access("org-c")
		e.offset.Store(int64(2 * time.Minute))
		if err := put(client(t, early.URL, early.AccessKey, early.Secret, early.SessionToken), c.Bucket, "org-c/y"); code(err) != "ExpiredToken" {
			t.Errorf("after an hour: %v", err)
		}
	})
}

// A volume's credential is for the volume, the same each time, and ends with it.
func TestVolumes(t *testing.T) {
	t.Parallel()
	storetest.Each(t, func(t *testing.T, db *store.DB) {
		e := start(t, db)
		ctx := t.Context()
		c, bucket := e.volume(t, "one")
		_, other := e.volume(t, "two")
		if _, err := c.PutObject(ctx, bucket, "x", strings.NewReader("x"), 1, minio.PutObjectOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.PutObject(ctx, other, "x", strings.NewReader("x"), 1, minio.PutObjectOptions{}); code(err) != "AccessDenied" {
			t.Fatal(err)
		}
		a, errA := e.VolumeLocation(ctx, "org", "one")
		b, errB := e.VolumeLocation(ctx, "org", "one")
		if a != b || errA != nil || errB != nil {
			t.Fatalf("%v %v", errA, errB)
		}
		if err := e.CreateVolume(ctx, "one"); err != nil {
			t.Fatalf("a second time: %v", err)
		}
		for range 2 {
			if err := e.DeleteVolume(ctx, "one"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.StatObject(ctx, bucket, "x", minio.StatObjectOptions{}); err == nil {
			t.Fatal("the credential outlives the volume")
		}
		if left := e.blobs(t); len(left) != 0 {
			t.Fatalf("%q is left", left)
		}
	})
}

// What a killed process has left is not seen, and goes; what it has stored stays.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	s, err := objects.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CreateBucket("b"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(t.Context(), "b", "k", nil, strings.NewReader("one"), nil); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("the client has gone")
	if _, err := s.Put(t.Context(), "b", "k", nil, io.MultiReader(strings.NewReader("half"), &failing{broken}), nil); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	id, err := s.StartUpload("b", "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutPart(t.Context(), "b", "k", id, 1, strings.NewReader("part")); err != nil {
		t.Fatal(err)
	}
	orphan := filepath.Join(dir, "data", "or", "orphanorphanorphanorphan12")
	if err := os.MkdirAll(filepath.Dir(orphan), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(orphan, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = objects.OpenStore(dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := os.Stat(orphan); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	_, f, err := s.Open("b", "k")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if data, _ := io.ReadAll(f); string(data) != "one" {
		t.Errorf("%q", data)
	}
	if parts, err := s.Parts("b", "k", id); err != nil || len(parts) != 1 {
		t.Errorf("%v %v", parts, err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "data", "*", "*"))
	if len(files) != 2 {
		t.Errorf("%d files", len(files))
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

// An external storage gives the credentials itself, with our policy.
func TestExternal(t *testing.T) {
	var form url.Values
	sts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		form = r.PostForm
		w.Header().Set("Content-Type", "application/xml")
		fmt.Fprintf(w, `%s<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials><AccessKeyId>ak</AccessKeyId><SecretAccessKey>sk</SecretAccessKey><SessionToken>st</SessionToken><Expiration>%s</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`,
			xml.Header, time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
	}))
	defer sts.Close()
	s, err := objects.New(objects.Config{DB: sqlite(t), External: &objects.External{Endpoint: "https://s3.example.com", Region: "eu-north-1", AccessKey: "a", SecretKey: "s", Bucket: "bkt", STS: sts.URL, Role: "arn:aws:iam::1:role/r"}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := s.PushAccess(t.Context(), "org-a")
	if err != nil {
		t.Fatal(err)
	}
	if *a != (objects.Access{AccessKey: "ak", Secret: "sk", SessionToken: "st", URL: "https://s3.example.com", Bucket: "bkt", Region: "eu-north-1"}) {
		t.Errorf("%+v", a)
	}
	if p := form.Get("Policy"); form.Get("Action") != "AssumeRole" || form.Get("DurationSeconds") != "3600" || form.Get("RoleArn") != "arn:aws:iam::1:role/r" ||
		!strings.Contains(p, `"arn:aws:s3:::bkt/org-a/*"`) || strings.Contains(p, "DeleteObject") {
		t.Errorf("%v", form)
	}
	urls, err := s.Contexts(t.Context(), "org-a", []string{"h"})
	if err != nil || len(urls) != 1 || !strings.HasPrefix(urls[0], "https://s3.example.com/bkt/org-a/h/context.tar?") {
		t.Errorf("%q %v", urls, err)
	}
	if _, err := s.PushAccess(t.Context(), "org-*"); !errors.Is(err, daytona.ErrInvalid) {
		t.Errorf("a name that is a pattern: %v", err)
	}
	none, err := objects.New(objects.Config{DB: sqlite(t)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := none.PushAccess(t.Context(), "org-a"); !errors.Is(err, daytona.ErrUnavailable) || err.Error() != "Object storage is not configured" {
		t.Error(err)
	}
}

// What a client is told at GET /object-storage/push-access.
func TestAPI(t *testing.T) {
	e := start(t, sqlite(t))
	a := api.New(api.Config{Authenticator: authenticator{}, Log: slog.New(slog.DiscardHandler)})
	api.RegisterObjects(a, e.Service)
	for bearer, want := range map[string]int{"write:snapshots": 200, "write:sandboxes": 200, "read:volumes": 403} {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/api/object-storage/push-access", nil)
		r.Header.Set("Authorization", "Bearer "+bearer)
		a.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s: %d %s", bearer, w.Code, w.Body)
		}
		if want != 200 {
			continue
		}
		var got map[string]string
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if got["organizationId"] != "org-a" || got["storageUrl"] != e.server.URL {
			t.Errorf("%v", got)
		}
		for _, k := range []string{"accessKey", "secret", "sessionToken", "bucket", "region"} {
			if got[k] == "" {
				t.Errorf("no %s", k)
			}
		}
		c := client(t, got["storageUrl"], got["accessKey"], got["secret"], got["sessionToken"])
		if _, err := c.PutObject(t.Context(), got["bucket"], "org-a/h/context.tar", strings.NewReader("x"), 1, minio.PutObjectOptions{}); err != nil {
			t.Error(err)
		}
	}
}

type authenticator struct{}

func (authenticator) Authenticate(_ context.Context, bearer string) (*identity.Principal, error) {
	return &identity.Principal{Kind: identity.Key, OrganizationID: "org-a", Permissions: []identity.Permission{identity.Permission(bearer)}}, nil
}

func (authenticator) Join(_ context.Context, p *identity.Principal, _ string) (*identity.Principal, error) {
	return p, nil
}
