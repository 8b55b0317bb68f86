package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// tree reads the files of the module with one of the suffixes, by path.
func tree(t *testing.T, suffixes ...string) map[string]string {
	t.Helper()
	root := filepath.Join("..", "..")
	found := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && p != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "node_modules" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		for _, s := range suffixes {
			if d.Type().IsRegular() && strings.HasSuffix(p, s) {
				data, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				rel, err := filepath.Rel(root, p)
				if err != nil {
					return err
				}
				found[rel] = string(data)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Fatalf("no %v files below %s", suffixes, root)
	}
	return found
}

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	fence    = regexp.MustCompile("(?s)```.*?```")
	heading  = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	noAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// TestLinks checks that what the documentation links to exists, headings
// included.
func TestLinks(t *testing.T) {
	pages := tree(t, ".md")
	anchors := map[string]map[string]bool{}
	for name, text := range pages {
		anchors[name] = map[string]bool{}
		for _, h := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			a := noAnchor.ReplaceAllString(strings.ToLower(h[1]), "")
			anchors[name][strings.ReplaceAll(a, " ", "-")] = true
		}
	}
	for name, text := range pages {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			to := name
			if target != "" {
				to = filepath.Join(filepath.Dir(name), target)
				if _, err := os.Stat(filepath.Join("..", "..", to)); err != nil {
					t.Errorf("%s links to %s, which does not exist", name, m[1])
					continue
				}
			}
			if anchor != "" && anchors[to] != nil && !anchors[to][anchor] {
				t.Errorf("%s links to %s, where there is no such heading", name, m[1])
			}
		}
	}
}

// checkName is a test or a check of a suite, as docs/security.md names them.
var checkName = regexp.MustCompile("`((?:Test|Fuzz)[A-Z][A-Za-z0-9]*|[SC][0-9]{2}(?:_[A-Za-z]+)?)`")

// TestSecurityDocNamesTests checks that the tests that docs/security.md
// relies on exist.
func TestSecurityDocNamesTests(t *testing.T) {
	var code strings.Builder
	for _, text := range tree(t, ".go") {
		code.WriteString(text)
	}
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := checkName.FindAllStringSubmatch(string(doc), -1)
	if len(names) < 20 {
		t.Fatalf("found only %d names of tests", len(names))
	}
	for _, m := range names {
		name := m[1]
		if !strings.Contains(code.String(), "func "+name+"(") && !strings.Contains(code.String(), `"`+name+`"`) &&
			!(len(name) == 3 && strings.Contains(code.String(), `"`+name+"_")) {
			t.Errorf("docs/security.md relies on %s, which does not exist", name)
		}
	}
}
