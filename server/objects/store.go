package objects

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	bberrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// Store keeps buckets of objects in a directory of this machine. An index knows
// which object is in which file; a key is never a path. A file is written and
// synced before the index names it, so that a reader sees the old object or the
// new one, and what a killed process has left is removed by the next that opens
// the store. One process may have it open.
type Store struct {
	root  *os.Root
	dir   string
	index *bbolt.DB
	// free is what must be left on the file system, in bytes.
	free uint64
}

// Errors of a Store.
var (
	errNoBucket = errors.New("no such bucket")
	errNoKey    = errors.New("no such key")
	errNoUpload = errors.New("no such upload")
	errBadPart  = errors.New("no such part, or its ETag is another")
	errOrder    = errors.New("parts are not in ascending order")
	errTooSmall = errors.New("a part but the last is smaller than 5 MiB")
	errFull     = errors.New("the file system is full")
	errTaken    = errors.New("the bucket is there")
	errNotEmpty = errors.New("the bucket is not empty")
)

// Object is what the index knows of an object.
type Object struct {
	Blob     string            `json:"b"`
	Size     int64             `json:"s"`
	ETag     string            `json:"e"` // without quotes
	Modified time.Time         `json:"m"`
	Headers  map[string]string `json:"h,omitempty"` // Content-Type, X-Amz-Meta-…
}

type upload struct {
	Key     string            `json:"k"`
	Started time.Time         `json:"t"`
	Headers map[string]string `json:"h,omitempty"`
}

// The buckets of the index. A bucket of objects is one below "buckets" that has
// "objects" by key, "uploads" by id, and "parts" by id and number.
var (
	bBuckets = []byte("buckets")
	bObjects = []byte("objects")
	bUploads = []byte("uploads")
	bParts   = []byte("parts")
)

// minFree is what is left to the rest of the machine.
const minFree = 256 << 20

// maxUploadAge is how long an upload of many parts may take.
const maxUploadAge = 7 * 24 * time.Hour

// OpenStore opens a store, and makes it if it is not there.
func OpenStore(dir string) (*Store, error) {
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(filepath.Join(dir, "data"))
	if err != nil {
		return nil, err
	}
	// A second process would wait for ever for the lock of the first.
	index, err := bbolt.Open(filepath.Join(dir, "index.db"), 0o600, &bbolt.Options{Timeout: 5 * time.Second})
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("open the index of objects in %s, which one process may have: %w", dir, err)
	}
	s := &Store{root: root, dir: dir, index: index, free: minFree}
	err = index.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bBuckets)
		return err
	})
	if err == nil {
		err = s.sweep(time.Now())
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close closes the store.
func (s *Store) Close() error { return errors.Join(s.index.Close(), s.root.Close()) }

// sweep ends uploads that are too old, and removes files that the index does not
// name: at the opening only, when nobody writes.
func (s *Store) sweep(now time.Time) error {
	known := map[string]bool{}
	err := s.index.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bBuckets).ForEachBucket(func(name []byte) error {
			b := tx.Bucket(bBuckets).Bucket(name)
			var old [][]byte
			err := b.Bucket(bUploads).ForEach(func(id, v []byte) error {
				var u upload
				if err := json.Unmarshal(v, &u); err != nil || now.Sub(u.Started) > maxUploadAge {
					old = append(old, bytes.Clone(id))
				}
				return nil
			})
			if err != nil {
				return err
			}
			for _, id := range old {
				if _, err := dropUpload(b, string(id)); err != nil {
					return err
				}
			}
			for _, part := range [][]byte{bObjects, bParts} {
				err := b.Bucket(part).ForEach(func(_, v []byte) error {
					var o Object
					if err := json.Unmarshal(v, &o); err != nil {
						return err
					}
					known[o.Blob] = true
					return nil
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	shards, err := fs.ReadDir(s.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, shard := range shards {
		files, err := fs.ReadDir(s.root.FS(), shard.Name())
		if err != nil {
			continue
		}
		for _, f := range files {
			if !known[f.Name()] {
				s.drop(f.Name())
			}
		}
	}
	return nil
}

func path(blob string) string { return blob[:2] + "/" + blob }

func (s *Store) drop(blobs ...string) {
	for _, b := range blobs {
		if len(b) > 2 {
			s.root.Remove(path(b)) // what is left goes with the next opening
		}
	}
}

// blob is a file that is being written.
type blob struct {
	s    *Store
	name string
	f    *os.File
	md5  hash.Hash
	size int64
}

func (s *Store) create() (*blob, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err == nil && uint64(st.Bavail)*uint64(st.Bsize) < s.free {
		return nil, errFull
	}
	name := strings.ToLower(rand.Text())
	if err := s.root.Mkdir(name[:2], 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	f, err := s.root.OpenFile(path(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	return &blob{s: s, name: name, f: f, md5: md5.New()}, nil
}

func (b *blob) Write(p []byte) (int, error) {
	n, err := b.f.Write(p)
	b.md5.Write(p[:n])
	b.size += int64(n)
	return n, err
}

// seal makes the file one that survives the end of the machine's power.
func (b *blob) seal() error {
	err := b.f.Sync()
	if closeErr := b.f.Close(); err == nil {
		err = closeErr
	}
	for _, dir := range []string{b.name[:2], "."} {
		if err == nil {
			var d *os.File
			if d, err = b.s.root.Open(dir); err == nil {
				err = d.Sync()
				d.Close()
			}
		}
	}
	return err
}

func (b *blob) discard() {
	b.f.Close()
	b.s.drop(b.name)
}

// fill writes all that r has into a new file.
func (s *Store) fill(ctx context.Context, r io.Reader) (*blob, error) {
	b, err := s.create()
	if err != nil {
		return nil, err
	}
	if _, err = io.CopyBuffer(b, &contextReader{ctx, r}, make([]byte, 128<<10)); err == nil {
		err = b.seal()
	}
	if err != nil {
		b.discard()
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = errFull
		}
		return nil, err
	}
	return b, nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// CreateBucket makes a bucket; errTaken if it is there.
func (s *Store) CreateBucket(name string) error {
	return s.index.Update(func(tx *bbolt.Tx) error {
		b, err := tx.Bucket(bBuckets).CreateBucket([]byte(name))
		if errors.Is(err, bberrors.ErrBucketExists) {
			return errTaken
		}
		for _, n := range [][]byte{bObjects, bUploads, bParts} {
			if err == nil {
				_, err = b.CreateBucket(n)
			}
		}
		return err
	})
}

// HasBucket reports whether there is a bucket.
func (s *Store) HasBucket(name string) (ok bool, err error) {
	err = s.index.View(func(tx *bbolt.Tx) error {
		ok = tx.Bucket(bBuckets).Bucket([]byte(name)) != nil
		return nil
	})
	return ok, err
}

// DeleteBucket removes a bucket, with all that is in it if all is set; no error
// if there is none.
func (s *Store) DeleteBucket(name string, all bool) error {
	var gone []string
	err := s.index.Update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bBuckets).Bucket([]byte(name))
		if b == nil {
			return nil
		}
		if k, _ := b.Bucket(bObjects).Cursor().First(); k != nil && !all {
			return errNotEmpty
		}
		for _, part := range [][]byte{bObjects, bParts} {
			err := b.Bucket(part).ForEach(func(_, v []byte) error {
				var o Object
				if err := json.Unmarshal(v, &o); err != nil {
					return err
				}
				gone = append(gone, o.Blob)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return tx.Bucket(bBuckets).DeleteBucket([]byte(name))
	})
	if err == nil {
		s.drop(gone...)
	}
	return err
}

// view and update run f with a bucket.
func (s *Store) view(name string, f func(b *bbolt.Bucket) error) error {
	return s.index.View(func(tx *bbolt.Tx) error { return with(tx, name, f) })
}

func (s *Store) update(name string, f func(b *bbolt.Bucket) error) error {
	return s.index.Update(func(tx *bbolt.Tx) error { return with(tx, name, f) })
}

func with(tx *bbolt.Tx, name string, f func(b *bbolt.Bucket) error) error {
	b := tx.Bucket(bBuckets).Bucket([]byte(name))
	if b == nil {
		return errNoBucket
	}
	return f(b)
}

func get(b *bbolt.Bucket, key []byte, v any) (bool, error) {
	data := b.Get(key)
	if data == nil {
		return false, nil
	}
	return true, json.Unmarshal(data, v)
}

func put(b *bbolt.Bucket, key []byte, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, data)
}

// Stat returns an object.
func (s *Store) Stat(bucket, key string) (Object, error) {
	var o Object
	err := s.view(bucket, func(b *bbolt.Bucket) error {
		ok, err := get(b.Bucket(bObjects), []byte(key), &o)
		if err == nil && !ok {
			err = errNoKey
		}
		return err
	})
	return o, err
}

// Open opens an object. It is what it is when it is opened, whatever is put in
// its place meanwhile.
func (s *Store) Open(bucket, key string) (Object, *os.File, error) {
	// What is replaced between the two steps is gone.
	for range 8 {
		o, err := s.Stat(bucket, key)
		if err != nil {
			return o, nil, err
		}
		f, err := s.root.Open(path(o.Blob))
		if !errors.Is(err, fs.ErrNotExist) {
			return o, f, err
		}
		if again, err := s.Stat(bucket, key); err == nil && again.Blob == o.Blob {
			return o, nil, fmt.Errorf("the file of an object is missing: %s", o.Blob)
		}
	}
	return Object{}, nil, errNoKey
}

// precondition says whether a write may be done, given what is there (nil:
// nothing).
type precondition func(old *Object) error

// Put stores an object.
func (s *Store) Put(ctx context.Context, bucket, key string, headers map[string]string, r io.Reader, check precondition) (Object, error) {
	if ok, err := s.HasBucket(bucket); err != nil || !ok {
		return Object{}, cmp(err, errNoBucket)
	}
	b, err := s.fill(ctx, r)
	if err != nil {
		return Object{}, err
	}
	o := Object{Blob: b.name, Size: b.size, ETag: hex.EncodeToString(b.md5.Sum(nil)), Modified: now(), Headers: headers}
	return o, s.place(bucket, key, o, check, nil)
}

func cmp(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// place puts an object into the index, and removes what was there.
func (s *Store) place(bucket, key string, o Object, check precondition, also func(b *bbolt.Bucket) ([]string, error)) error {
	var gone []string
	err := s.update(bucket, func(b *bbolt.Bucket) error {
		gone = nil
		var old Object
		ok, err := get(b.Bucket(bObjects), []byte(key), &old)
		if err != nil {
			return err
		}
		if check != nil {
			var p *Object
			if ok {
				p = &old
			}
			if err := check(p); err != nil {
				return err
			}
		}
		if ok {
			gone = append(gone, old.Blob)
		}
		if also != nil {
			more, err := also(b)
			if err != nil {
				return err
			}
			gone = append(gone, more...)
		}
		return put(b.Bucket(bObjects), []byte(key), o)
	})
	if err != nil {
		s.drop(o.Blob)
		return err
	}
	s.drop(gone...)
	return nil
}

// Delete removes an object; no error if there is none.
func (s *Store) Delete(bucket, key string) error {
	var gone string
	err := s.update(bucket, func(b *bbolt.Bucket) error {
		var o Object
		ok, err := get(b.Bucket(bObjects), []byte(key), &o)
		if err != nil || !ok {
			return err
		}
		gone = o.Blob
		return b.Bucket(bObjects).Delete([]byte(key))
	})
	if err == nil {
		s.drop(gone)
	}
	return err
}

// Entry is an object of a list, or with a nil Object what keys have in common.
type Entry struct {
	Key    string
	Object *Object
}

// List returns up to limit entries whose keys begin with prefix and come after
// a key, and whether there are more. Keys that have the delimiter after the
// prefix are one entry, that ends with it.
func (s *Store) List(bucket, prefix, delimiter, after string, limit int) (list []Entry, more bool, err error) {
	err = s.view(bucket, func(b *bbolt.Bucket) error {
		c := b.Bucket(bObjects).Cursor()
		start := prefix
		if after >= prefix {
			start = after
		}
		k, v := c.Seek([]byte(start))
		// After a common prefix come the keys that do not have it.
		skip := ""
		if delimiter != "" && strings.HasPrefix(after, prefix) && strings.HasSuffix(after, delimiter) && len(after) > len(prefix) {
			skip = after
		}
		for k != nil && bytes.HasPrefix(k, []byte(prefix)) {
			key := string(k)
			if key <= after && !(skip != "" && strings.HasPrefix(key, skip)) {
				k, v = c.Next()
				continue
			}
			if skip != "" && strings.HasPrefix(key, skip) {
				if k, v = past(c, skip); k == nil {
					return nil
				}
				skip = ""
				continue
			}
			e := Entry{Key: key}
			if delimiter != "" {
				if i := strings.Index(key[len(prefix):], delimiter); i >= 0 {
					e.Key = key[:len(prefix)+i+len(delimiter)]
				}
			}
			if len(list) == limit {
				more = true
				return nil
			}
			if len(e.Key) == len(key) && (delimiter == "" || !strings.Contains(key[len(prefix):], delimiter)) {
				e.Object = &Object{}
				if err := json.Unmarshal(v, e.Object); err != nil {
					return err
				}
				k, v = c.Next()
			} else {
				k, v = past(c, e.Key)
			}
			list = append(list, e)
		}
		return nil
	})
	return list, more, err
}

// past moves a cursor to the first key after all that begin with a prefix.
func past(c *bbolt.Cursor, prefix string) (k, v []byte) {
	end := []byte(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return c.Seek(end[:i+1])
		}
	}
	return nil, nil
}

// StartUpload begins an object that comes in parts.
func (s *Store) StartUpload(bucket, key string, headers map[string]string) (id string, err error) {
	id = strings.ToLower(rand.Text())
	return id, s.update(bucket, func(b *bbolt.Bucket) error {
		return put(b.Bucket(bUploads), []byte(id), upload{Key: key, Started: now(), Headers: headers})
	})
}

func partKey(id string, number int) []byte {
	return binary.BigEndian.AppendUint16([]byte(id+"\x00"), uint16(number))
}

func uploadOf(b *bbolt.Bucket, id, key string) (upload, error) {
	var u upload
	ok, err := get(b.Bucket(bUploads), []byte(id), &u)
	if err == nil && (!ok || u.Key != key) {
		err = errNoUpload
	}
	return u, err
}

// PutPart stores a part, in the place of one of the same number.
func (s *Store) PutPart(ctx context.Context, bucket, key, id string, number int, r io.Reader) (Object, error) {
	if err := s.view(bucket, func(b *bbolt.Bucket) error { _, err := uploadOf(b, id, key); return err }); err != nil {
		return Object{}, err
	}
	f, err := s.fill(ctx, r)
	if err != nil {
		return Object{}, err
	}
	o := Object{Blob: f.name, Size: f.size, ETag: hex.EncodeToString(f.md5.Sum(nil)), Modified: now()}
	var gone string
	err = s.update(bucket, func(b *bbolt.Bucket) error {
		gone = ""
		if _, err := uploadOf(b, id, key); err != nil {
			return err
		}
		var old Object
		ok, err := get(b.Bucket(bParts), partKey(id, number), &old)
		if err != nil {
			return err
		}
		if ok {
			gone = old.Blob
		}
		return put(b.Bucket(bParts), partKey(id, number), o)
	})
	if err != nil {
		s.drop(o.Blob)
		return Object{}, err
	}
	s.drop(gone)
	return o, nil
}

// Part is one part of an upload.
type Part struct {
	Number int
	Object
}

func partsOf(b *bbolt.Bucket, id string) (list []Part, err error) {
	prefix := []byte(id + "\x00")
	c := b.Bucket(bParts).Cursor()
	for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		p := Part{Number: int(binary.BigEndian.Uint16(k[len(prefix):]))}
		if err := json.Unmarshal(v, &p.Object); err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// Parts returns the parts of an upload.
func (s *Store) Parts(bucket, key, id string) (list []Part, err error) {
	err = s.view(bucket, func(b *bbolt.Bucket) error {
		if _, err := uploadOf(b, id, key); err != nil {
			return err
		}
		list, err = partsOf(b, id)
		return err
	})
	return list, err
}

func dropUpload(b *bbolt.Bucket, id string) (blobs []string, err error) {
	parts, err := partsOf(b, id)
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		blobs = append(blobs, p.Blob)
		if err := b.Bucket(bParts).Delete(partKey(id, p.Number)); err != nil {
			return nil, err
		}
	}
	return blobs, b.Bucket(bUploads).Delete([]byte(id))
}

// Abort ends an upload without an object.
func (s *Store) Abort(bucket, key, id string) error {
	var gone []string
	err := s.update(bucket, func(b *bbolt.Bucket) error {
		if _, err := uploadOf(b, id, key); err != nil {
			return err
		}
		var err error
		gone, err = dropUpload(b, id)
		return err
	})
	if err == nil {
		s.drop(gone...)
	}
	return err
}

// Want is a part that a client has named for its object.
type Want struct {
	Number int
	ETag   string
}

// minPart is the least size of a part that is not the last.
const minPart = 5 << 20

// Complete makes the object of an upload's parts.
func (s *Store) Complete(ctx context.Context, bucket, key, id string, want []Want, check precondition) (Object, error) {
	var u upload
	var have []Part
	err := s.view(bucket, func(b *bbolt.Bucket) (err error) {
		if u, err = uploadOf(b, id, key); err != nil {
			return err
		}
		have, err = partsOf(b, id)
		return err
	})
	if err != nil {
		return Object{}, err
	}
	byNumber := map[int]Part{}
	for _, p := range have {
		byNumber[p.Number] = p
	}
	sum := md5.New()
	var parts []Part
	for i, w := range want {
		if i > 0 && want[i-1].Number >= w.Number {
			return Object{}, errOrder
		}
		p, ok := byNumber[w.Number]
		if !ok || p.ETag != strings.Trim(w.ETag, `"`) {
			return Object{}, errBadPart
		}
		if i < len(want)-1 && p.Size < minPart {
			return Object{}, errTooSmall
		}
		raw, err := hex.DecodeString(p.ETag)
		if err != nil {
			return Object{}, err
		}
		sum.Write(raw)
		parts = append(parts, p)
	}
	if len(parts) == 0 {
		return Object{}, errBadPart
	}
	o := Object{ETag: fmt.Sprintf("%x-%d", sum.Sum(nil), len(parts)), Modified: now(), Headers: u.Headers}
	f, err := s.create()
	if err != nil {
		return Object{}, err
	}
	for _, p := range parts {
		if err = ctx.Err(); err != nil {
			break
		}
		var part *os.File
		if part, err = s.root.Open(path(p.Blob)); err != nil {
			break
		}
		// From file to file: the kernel copies, or shares the blocks.
		var n int64
		n, err = io.Copy(f.f, part)
		part.Close()
		f.size += n
		if err == nil && n != p.Size {
			err = fmt.Errorf("a part has %d bytes, not %d", n, p.Size)
		}
		if err != nil {
			break
		}
	}
	if err == nil {
		err = f.seal()
	}
	if err != nil {
		f.discard()
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			err = errFull
		}
		return Object{}, err
	}
	o.Blob, o.Size = f.name, f.size
	return o, s.place(bucket, key, o, check, func(b *bbolt.Bucket) ([]string, error) {
		// Another may have completed or aborted it meanwhile.
		if _, err := uploadOf(b, id, key); err != nil {
			return nil, err
		}
		return dropUpload(b, id)
	})
}
