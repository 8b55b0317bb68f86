// Package objects keeps the archives of sandboxes, and whatever else is large
// and outlives the machine, as objects: values under keys. [Dir] keeps them in a
// directory; what speaks to a service implements [Store] as well.
package objects

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
)

// Store keeps objects. It must be safe for concurrent use, by other processes
// too.
type Store interface {
	// Put stores all that r has under a key, which [CheckKey] takes, in the
	// place of what was there. A reader sees the old object or the new one,
	// whole; on error, one of r's included, the old one stays. On success it
	// must survive the end of this machine's power.
	Put(ctx context.Context, key string, r io.Reader) error
	// Get reads an object; an error that matches [fs.ErrNotExist] if there is
	// none. The store checks that what is read is what was put, and the reader
	// gives an error that matches [ErrCorrupt] before its end, never io.EOF, if
	// it is not. The caller closes it.
	Get(ctx context.Context, key string) (io.ReadCloser, error)
	// List yields the objects whose key begins with prefix, sorted by key.
	List(ctx context.Context, prefix string) iter.Seq2[Entry, error]
	// Delete removes an object; none is no error.
	Delete(ctx context.Context, key string) error
}

// Entry is an object as [Store.List] sees it.
type Entry struct {
	Key  string
	Size int64 // in bytes
}

// ErrCorrupt says that an object is not what was put.
var ErrCorrupt = errors.New("the object is damaged: its content is not what was stored")

// MaxKey is the greatest length of a key, in bytes.
const MaxKey = 512

// CheckKey reports what is wrong with a key: it must be 1 to [MaxKey] bytes of
// letters, digits, ".", "_", "-" and "/", of parts between slashes that neither
// are empty nor begin with a dot.
func CheckKey(key string) error {
	bad := func(rule string) error {
		return &fs.PathError{Op: "object key", Path: key, Err: fmt.Errorf("%w: %s", fs.ErrInvalid, rule)}
	}
	if len(key) > MaxKey {
		return bad(fmt.Sprintf("longer than %d bytes", MaxKey))
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part[0] == '.' {
			return bad("a part is empty or begins with a dot")
		}
	}
	if strings.ContainsFunc(key, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("._-/", c)
	}) {
		return bad(`only letters, digits, ".", "_", "-" and "/" may be in it`)
	}
	return nil
}
