package seal_test

import (
	"strings"
	"testing"

	"github.com/daytona-go/daytona/server/seal"
)

func TestSeal(t *testing.T) {
	old, err := seal.New("an old key of bytes")
	if err != nil {
		t.Fatal(err)
	}
	box, err := seal.New("a new key of bytes", "an old key of bytes")
	if err != nil {
		t.Fatal(err)
	}
	sealed := box.Seal("geheim", "secret/1")
	if sealed == box.Seal("geheim", "secret/1") || strings.Contains(sealed, "geheim") {
		t.Error(sealed)
	}
	if plain, err := box.Open(sealed, "secret/1"); plain != "geheim" || err != nil {
		t.Error(plain, err)
	}
	if plain, err := box.Open(old.Seal("alt", "x"), "x"); plain != "alt" || err != nil {
		t.Error(plain, err)
	}
	for name, open := range map[string]func() (string, error){
		"another place": func() (string, error) { return box.Open(sealed, "secret/2") },
		"another key":   func() (string, error) { return old.Open(sealed, "secret/1") },
		"changed":       func() (string, error) { return box.Open(sealed[:len(sealed)-2]+"AA", "secret/1") },
		"short":         func() (string, error) { return box.Open("a1:AA", "secret/1") },
		"plain":         func() (string, error) { return box.Open("geheim", "secret/1") },
	} {
		if plain, err := open(); err == nil || plain != "" || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %q %v", name, plain, err)
		}
	}
	if _, err := seal.New("short"); err == nil || strings.Contains(err.Error(), "short") {
		t.Error(err)
	}
}
