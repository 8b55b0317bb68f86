package objects

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
)

// TestOpen is in a program that knows directories only.
func TestOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a")
	if s, err := Open(t.Context(), "Archive", dir); err != nil {
		t.Error(err)
	} else if _, ok := s.(*Dir); !ok {
		t.Errorf("a directory is a %T", s)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
	for where, want := range map[string]struct {
		kind daytona.Kind
		says string
	}{
		"s3://bucket/prefix":            {daytona.KindUnsupported, `import _ "github.com/daytona-go/daytona/archive/s3"`},
		"s3://bucket?secretKey=geheim":  {daytona.KindUnsupported, "archive/s3"},
		"s3://user:geheim@bucket":       {daytona.KindInvalid, "no user and password"},
		"s3://user:geheim@buck et/%zz":  {daytona.KindInvalid, "no user and password"},
		"s3://bucket/%zz?secret=geheim": {daytona.KindInvalid, "not a URL"},
		"ftp://host":                    {daytona.KindInvalid, "s3://"},
		"://":                           {daytona.KindInvalid, ""},
	} {
		_, err := Open(t.Context(), "Archive", where)
		e, ok := errors.AsType[*daytona.Error](err)
		if !ok || e.Kind != want.kind || e.Field != "Archive" || !strings.Contains(err.Error(), want.says) || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %v", where, err)
		}
	}
}
