package objects

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
)

func TestDir(t *testing.T) {
	ctx := t.Context()
	d, err := OpenDir(filepath.Join(t.TempDir(), "a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	read := func(key string) (string, error) {
		r, err := d.Get(ctx, key)
		if err != nil {
			return "", err
		}
		defer r.Close()
		data, err := io.ReadAll(r)
		if n, again := r.Read(make([]byte, 1)); err == nil && (n != 0 || again != io.EOF) {
			t.Errorf("a read after the end: %d, %v", n, again)
		}
		return string(data), err
	}
	for key, value := range map[string]string{"x/one": "1", "x/two": strings.Repeat("2", 1<<20), "x/y/three": "", "z": "4"} {
		if err := d.Put(ctx, key, strings.NewReader(value)); err != nil {
			t.Fatal(err)
		}
		if got, err := read(key); got != value || err != nil {
			t.Errorf("%s: %d bytes, %v", key, len(got), err)
		}
	}
	for prefix, want := range map[string]string{"": "x/one x/two x/y/three z", "x": "x/one x/two x/y/three", "x/t": "x/two", "x/y/": "x/y/three", "q/": "", "../": ""} {
		var keys []string
		for e, err := range d.List(ctx, prefix) {
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, e.Key)
		}
		if got := strings.Join(keys, " "); got != want {
			t.Errorf("List(%q) = %s, want %s", prefix, got, want)
		}
	}
	// What fails leaves the old one.
	broken := errors.New("broken")
	if err := d.Put(ctx, "x/one", io.MultiReader(strings.NewReader("new"), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("Put of a broken reader: %v", err)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := d.Put(cancelled, "x/one", strings.NewReader("new")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled Put: %v", err)
	}
	if got, err := read("x/one"); got != "1" || err != nil {
		t.Errorf("x/one = %q, %v", got, err)
	}
	for _, bad := range []string{"", "/x", "x/", "x//y", "../x", "x/../y", ".x", "x y", "x\x00", strings.Repeat("k", MaxKey+1)} {
		if err := d.Put(ctx, bad, strings.NewReader("")); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Put(%q): %v", bad, err)
		}
		if _, err := d.Get(ctx, bad); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("Get(%q): %v", bad, err)
		}
	}
	for range 2 {
		if err := d.Delete(ctx, "x/y/three"); err != nil {
			t.Error(err)
		}
	}
	if _, err := read("x/y/three"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a deleted object: %v", err)
	}
	if _, err := os.Stat(filepath.Join(d.root, "x/y")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory of a deleted object: %v", err)
	}
	// Nothing but the objects is left.
	if left, _ := filepath.Glob(filepath.Join(d.root, "*", newPrefix+"*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestDirDamage(t *testing.T) {
	d, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte("content"), 10000)
	for name, damage := range map[string]func(data []byte) []byte{
		"bit":       func(data []byte) []byte { data[5000] ^= 1; return data },
		"trailer":   func(data []byte) []byte { data[len(data)-1] ^= 1; return data },
		"truncated": func(data []byte) []byte { return data[:40000] },
		"empty":     func([]byte) []byte { return nil },
		"longer":    func(data []byte) []byte { return append(data, 'x') },
	} {
		if err := d.Put(t.Context(), name, bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(d.file(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.file(name), damage(data), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := d.Get(t.Context(), name)
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
