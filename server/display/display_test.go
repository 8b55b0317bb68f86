package display_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/daytona-go/daytona"
	"github.com/daytona-go/daytona/server/display"
)

func TestCheck(t *testing.T) {
	for _, ok := range []string{"", "My team", "a < b", "a<3", "ubuntu:22.04", "daytonaio/sandbox:0.5.0", "Zoë's 日本 👩‍💻", "1 <> 2", "metadata: x", "awww. nice"} {
		if err := display.Check("name", ok, 50); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"<b>", "</a", "<script>alert(1)", "<!--", "<?xml", "http://x", "see HTTPS://x.example", "x ssh://y", "www.evil.example", "JavaScript:alert(1)",
		"mailto:x", "a\nb", "a\x00", "\x1b[31m", "a\u0085", "a\u202eb", "\u2066", "\xff"} {
		err := display.Check("name", bad, 50)
		if !errors.Is(err, daytona.ErrInvalid) || err.Error() != "name must not contain HTML tags, URLs, or control characters" {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := display.Check("description", strings.Repeat("é", 50), 50); err != nil {
		t.Error(err)
	}
	if err := display.Check("description", strings.Repeat("é", 51), 50); !errors.Is(err, daytona.ErrInvalid) {
		t.Error(err)
	}
	if err := display.Name("name", ""); !errors.Is(err, daytona.ErrInvalid) {
		t.Error(err)
	}
}
